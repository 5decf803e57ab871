"""Which servers would serve a model, what each way costs, and why the others lost.

Every (type, tensor-parallel size, quantization) is judged once by the fit planner that the caller hands in;
the types that hold the model are then priced in every zone. The search is exhaustive: the catalog is small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from functools import lru_cache
from math import ceil

from fleet.catalog import CLOUDS, Catalog, InstanceType, catalog
from fleet.cost import Cost, ExchangeRate, default_rate, node_cost_per_hour

MIN_COMPUTE_CAPABILITY = (7, 0)
"""vLLM's documented minimum (docs.vllm.ai, installation, GPU)."""


class Latency(StrEnum):
    """How fast a single answer must come.

    Judged by an upper bound: decoding a token reads all weights once, so memory bandwidth limits it.
    """

    BATCH = "batch"
    STANDARD = "standard"
    INTERACTIVE = "interactive"

    @property
    def tokens_per_second(self) -> float:
        """The least a single request must be able to reach: none, reading speed, three times that."""
        return {"batch": 0.0, "standard": 10.0, "interactive": 30.0}[self]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the fit planner says of one type with one tensor-parallel size and quantization.

    ``max_concurrency`` counts the requests of full length that one copy of the model holds.
    ``weights_gib_per_gpu`` is what decoding reads for a token; ``host_ram_gib`` what the server must have.
    """

    fits: bool
    reason: str
    max_concurrency: float = 0.0
    weights_gib_per_gpu: float = 0.0
    host_ram_gib: float = 0.0


Fit = Callable[[InstanceType, int, str | None], Verdict]
"""(type, tensor-parallel size, quantization) → verdict."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. ``concurrency`` is in requests of full length, over all nodes together."""

    concurrency: int = 1
    clouds: tuple[str, ...] = CLOUDS
    zones: tuple[str, ...] = ()
    """Zones or regions to choose from; empty: all."""
    spot: bool = False
    latency: Latency = Latency.STANDARD
    quantizations: tuple[str | None, ...] = (None,)
    """To choose from, the preferred first; None: as the model comes."""
    root_volume_gb: int = 200
    currency: str = "EUR"


@dataclass(frozen=True, slots=True)
class Option:
    """One way to serve the model that works."""

    type: InstanceType
    zone: str
    nodes: int
    tensor_parallel: int
    quantization: str | None
    concurrency: float
    """Requests of full length, over all nodes."""
    cost_per_hour: float
    """All nodes, in the wish's currency."""
    warning: str | None
    """Why the price should not be relied on; None when it is younger than 90 days."""
    lost_by: str = ""
    """Why it is not the best; empty for the best."""

    @property
    def deployable(self) -> bool:
        """False where this project can compare but not create."""
        return self.type.deployable


@dataclass(frozen=True, slots=True)
class Rejected:
    """One way that does not work, and why."""

    cloud: str
    type: str
    zone: str | None
    tensor_parallel: int | None
    quantization: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All ways that work, the cheapest first, and all that do not."""

    options: tuple[Option, ...]
    rejected: tuple[Rejected, ...]

    def choice(self, *, accept_stale: bool = False) -> Option | None:
        """The cheapest way this project can create; at a price younger than 90 days unless told otherwise."""
        for option in self.options:
            if option.deployable and (accept_stale or option.warning is None):
                return option
        return None


def plan(
    wish: Wish,
    fit: Fit,
    *,
    prices: Catalog | None = None,
    rate: ExchangeRate | None = None,
    today: date | None = None,
) -> Plan:
    """Judge and price the whole catalog.

    Of equal cost the fewer nodes come first, then the preferred quantization, then room for more requests.
    """
    source = prices or catalog()
    search = _Search(wish, fit, source, rate or default_rate(), today or date.today())
    for cloud in wish.clouds:
        for kind in source.types(cloud):
            search.judge(kind)
    return search.result()


class _Search:
    def __init__(self, wish: Wish, fit: Fit, prices: Catalog, rate: ExchangeRate, today: date) -> None:
        self._wish, self._fit, self._prices, self._rate, self._today = wish, fit, prices, rate, today
        self._options: list[Option] = []
        self._rejected: list[Rejected] = []

    def judge(self, kind: InstanceType) -> None:
        if reason := _unusable(kind):
            self._reject(kind, reason)
            return
        ways = [
            (tensor_parallel, quantization, verdict)
            for tensor_parallel in _tensor_parallel_sizes(kind.gpu_count)
            for quantization in self._wish.quantizations
            if (verdict := self._verdict(kind, tensor_parallel, quantization))
        ]
        if not ways:
            return
        for zone in kind.zones:
            if self._wish.zones and zone not in self._wish.zones:
                continue
            cost = self._cost(kind, zone)
            if cost.total is None:
                self._reject(kind, cost.reason or "", zone=zone)
                continue
            warning = self._warning(kind, zone)
            for tensor_parallel, quantization, verdict in ways:
                nodes = max(1, ceil(self._wish.concurrency / verdict.max_concurrency))
                self._options.append(
                    Option(
                        kind,
                        zone,
                        nodes,
                        tensor_parallel,
                        quantization,
                        nodes * verdict.max_concurrency,
                        nodes * cost.total,
                        warning,
                    )
                )

    def result(self) -> Plan:
        preference = {name: rank for rank, name in enumerate(self._wish.quantizations)}
        self._options.sort(
            key=lambda option: (
                # Two roads to the same price must not differ by a rounding error.
                round(option.cost_per_hour, 9),
                option.nodes,
                preference[option.quantization],
                -option.concurrency,
                # Of two that are alike, the one whose price was read last.
                -self._read_on(option),
                option.type.cloud,
                option.zone,
                option.type.name,
                option.tensor_parallel,
            )
        )
        for rank, option in enumerate(self._options[1:], start=1):
            lost_by = _difference(option, self._options[0], self._wish.currency)
            self._options[rank] = replace(option, lost_by=lost_by)
        return Plan(tuple(self._options), tuple(self._rejected))

    def _verdict(self, kind: InstanceType, tensor_parallel: int, quantization: str | None) -> Verdict | None:
        verdict = self._fit(kind, tensor_parallel, quantization)
        reason = None
        if not verdict.fits or verdict.max_concurrency <= 0:
            reason = verdict.reason
        elif verdict.host_ram_gib > kind.ram_gib:
            reason = f"needs {verdict.host_ram_gib:.0f} GiB of host memory, the type has {kind.ram_gib:g}"
        elif verdict.weights_gib_per_gpu > 0:
            bound = kind.memory_gb_per_s / (verdict.weights_gib_per_gpu * 2**30 / 1e9)
            least = self._wish.latency.tokens_per_second
            if bound < least:
                reason = (
                    f"one request gets at most {bound:.0f} tokens/s: {kind.memory_gb_per_s} GB/s for "
                    f"{verdict.weights_gib_per_gpu:.1f} GiB of weights; {self._wish.latency} asks {least:.0f}"
                )
        if reason is None:
            return verdict
        self._reject(kind, reason, tensor_parallel=tensor_parallel, quantization=quantization)
        return None

    def _cost(self, kind: InstanceType, zone: str) -> Cost:
        # Clouds that are here for comparison alone have no prices of volumes and addresses.
        volume = self._wish.root_volume_gb if kind.deployable else 0
        cost = node_cost_per_hour(
            kind.cloud,
            zone,
            kind.name,
            volume,
            spot=self._wish.spot,
            public_address=kind.deployable,
            prices=self._prices,
        )
        return cost.into(self._wish.currency, self._rate)

    def _read_on(self, option: Option) -> int:
        price = option.type.price(option.zone, spot=self._wish.spot)
        return price.as_of.toordinal() if price and price.as_of else 0

    def _warning(self, kind: InstanceType, zone: str) -> str | None:
        price = kind.price(zone, spot=self._wish.spot)
        return f"price is {price.age(self._today)}" if price and price.stale(self._today) else None

    def _reject(
        self,
        kind: InstanceType,
        reason: str,
        *,
        zone: str | None = None,
        tensor_parallel: int | None = None,
        quantization: str | None = None,
    ) -> None:
        self._rejected.append(Rejected(kind.cloud, kind.name, zone, tensor_parallel, quantization, reason))


def _unusable(kind: InstanceType) -> str | None:
    """Why no serving image runs on the type, whatever the model; None when one does."""
    if kind.architecture != "x86_64":
        return f"the serving images are built for x86_64, the type is {kind.architecture}"
    if not kind.zones:
        return "no zone is known to offer it"
    if _capability(kind.compute_capability) < MIN_COMPUTE_CAPABILITY:
        return f"vLLM needs compute capability 7.0, {kind.gpu} has {kind.compute_capability}"
    return None


@lru_cache(maxsize=64)
def _capability(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _tensor_parallel_sizes(gpu_count: int) -> Sequence[int]:
    """Powers of two up to the number of GPUs: models divide their heads by nothing else in practice."""
    return [1 << power for power in range(gpu_count.bit_length())]


def _difference(option: Option, best: Option, currency: str) -> str:
    more = option.cost_per_hour - best.cost_per_hour
    if more > 5e-5:
        return f"{more:.4f} {currency} an hour dearer ({more / best.cost_per_hour:+.0%})"
    if option.nodes > best.nodes:
        return f"the same cost with {option.nodes} nodes instead of {best.nodes}"
    if option.concurrency < best.concurrency:
        return "the same cost with room for fewer requests"
    return "the same cost; the best was listed first"
