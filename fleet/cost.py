"""What nodes cost: server, root volume, address; by the hour and by the month; and whether a budget holds.

A price that nobody knows makes the whole cost unknown, with the reason: it is never counted as nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import cache
from math import ceil

from fleet.catalog import STALE_AFTER_DAYS, Catalog, CloudCatalog, InstanceType, catalog

HOURS_PER_MONTH = 730
"""A twelfth of a year, as the clouds themselves count a month."""


@dataclass(frozen=True, slots=True)
class ExchangeRate:
    """How many US dollars a euro buys. A setting; the default is the European Central Bank's of ``as_of``."""

    usd_per_eur: float
    as_of: date
    source: str

    def convert(self, amount: float, currency: str, into: str) -> float:
        """``amount`` of one currency in the other.

        Raises ValueError for anything but EUR and USD.
        """
        per_eur = {"EUR": 1.0, "USD": self.usd_per_eur}
        for code in (currency, into):
            if code not in per_eur:
                raise ValueError(f"currency: {code!r} is neither EUR nor USD; the catalog holds no other")
        return amount / per_eur[currency] * per_eur[into]


@cache
def default_rate() -> ExchangeRate:
    """The exchange rate that ships with the catalog."""
    row = catalog().read("exchange")
    return ExchangeRate(row["usd"], date.fromisoformat(row["as_of"]), row["source"])


@dataclass(frozen=True, slots=True)
class Part:
    """One line of a bill: ``server``, ``root volume`` or ``public address``."""

    name: str
    per_hour: float
    as_of: date | None
    source: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What a node costs an hour, in ``currency``, before tax."""

    parts: tuple[Part, ...]
    currency: str
    reason: str | None = None
    """Why the total is unknown; None when it is known."""

    @property
    def total(self) -> float | None:
        """All parts an hour, or None when one of them is unknown."""
        # Sums of prices with at most six decimals; the rest is what binary fractions leave.
        return None if self.reason else round(sum(part.per_hour for part in self.parts), 9)

    @property
    def per_month(self) -> float | None:
        """All parts for 730 hours, or None when one of them is unknown."""
        return None if self.total is None else round(self.total * HOURS_PER_MONTH, 6)

    @property
    def as_of(self) -> date | None:
        """The day of the oldest price in it; None when one of them is undated."""
        days = [part.as_of for part in self.parts if part.as_of]
        return min(days) if days and len(days) == len(self.parts) else None

    def stale(self, today: date) -> list[str]:
        """The parts whose price is undated or older than 90 days, in words."""
        oldest = today - timedelta(days=STALE_AFTER_DAYS)
        return [
            f"the price of the {part.name} is {f'of {part.as_of}' if part.as_of else 'undated'}"
            for part in self.parts
            if part.as_of is None or part.as_of < oldest
        ]

    def into(self, currency: str, rate: ExchangeRate) -> Cost:
        """The same cost in another currency."""
        parts = (
            replace(part, per_hour=rate.convert(part.per_hour, self.currency, currency))
            for part in self.parts
        )
        return Cost(tuple(parts), currency, self.reason)


def total(costs: Iterable[Cost], rate: ExchangeRate | None = None) -> Cost:
    """Several costs as one, in their common currency or else in euros; unknown if one of them is."""
    all_of_them = list(costs)
    currencies = {cost.currency for cost in all_of_them}
    currency = currencies.pop() if len(currencies) == 1 else "EUR"
    converted = [cost.into(currency, rate or default_rate()) for cost in all_of_them]
    reasons = [cost.reason for cost in converted if cost.reason]
    parts = tuple(part for cost in converted for part in cost.parts)
    return Cost(parts, currency, "; ".join(reasons) or None)


def node_cost_per_hour(
    cloud: str,
    zone: str,
    type_name: str | None,
    root_volume_gb: int,
    *,
    spot: bool = False,
    running: bool = True,
    public_address: bool = True,
    prices: Catalog | None = None,
) -> Cost:
    """What one node costs an hour.

    ``root_volume_gb`` is in the cloud's own GB (10⁹ bytes; 2³⁰ for EBS). A node that is not ``running`` still
    pays for its volume and address, and on Linode, which bills a plan until it is deleted, for everything.
    ``type_name`` None: the server is gone and only its volume is left.
    """
    offer = (prices or catalog()).cloud(cloud)
    parts: list[Part] = []

    def cost(reason: str | None = None) -> Cost:
        return Cost(tuple(parts), offer.currency, reason)

    if type_name is not None and (running or offer.root_volume_included):
        found = offer.types.get(type_name)
        price = found.price(zone, spot=spot) if found else offer.control_price(type_name, zone)
        if price is None:
            return cost(
                _unknown_server(found, zone, spot) if found else _unknown_type(offer, type_name, zone)
            )
        parts.append(Part("server", price.amount, price.as_of, price.source))
    if offer.root_volume_included:
        return cost()
    if root_volume_gb:
        volume = offer.volume_price(zone)
        if volume is None:
            return cost(f"the price of a root volume in {cloud} {zone} is unknown")
        hourly = volume.per_gb_month * root_volume_gb / HOURS_PER_MONTH
        parts.append(Part("root volume", hourly, volume.as_of, volume.source))
    if public_address and type_name is not None:
        address = offer.address_price(zone)
        if address is None:
            return cost(f"the price of a public address in {cloud} {zone} is unknown")
        parts.append(Part("public address", address.amount, address.as_of, address.source))
    return cost()


def _unknown_server(found: InstanceType, zone: str, spot: bool) -> str:
    if zone not in found.zones:
        zones = ", ".join(found.zones) or "no zone known"
        return f"{found.name} is not listed in {found.cloud} {zone}; it is in {zones}"
    kind = "spot price" if spot else "price"
    fix = f"; bring it in with: fleet catalog refresh {found.cloud}" if found.deployable else ""
    return f"the {kind} of {found.name} in {found.cloud} {zone} is unknown{fix}"


def _unknown_type(offer: CloudCatalog, name: str, zone: str) -> str:
    here = f"{offer.cloud} has no type {name!r} in the catalog"
    return f"{here} with a price in {zone}; see: fleet catalog list {offer.cloud}"


def check_budget(
    costs: Mapping[str, Cost],
    *,
    max_cost_per_hour: float | None = None,
    max_cost_per_month: float | None = None,
    currency: str = "EUR",
    rate: ExchangeRate | None = None,
) -> list[str]:
    """What is wrong with the stack's cost, as sentences with their arithmetic; empty when the budget holds.

    ``costs`` is per node; limits are in ``currency``. A node of unknown cost breaks every budget: what cannot
    be added up cannot be under a limit.
    """
    if max_cost_per_hour is None and max_cost_per_month is None:
        return []
    here = {name: cost.into(currency, rate or default_rate()) for name, cost in costs.items()}
    unknown = [
        f"budget: the cost of node {name} is unknown ({cost.reason}); without it no limit can be kept"
        for name, cost in here.items()
        if cost.total is None
    ]
    if unknown:
        return unknown
    total = sum(cost.total or 0.0 for cost in here.values())
    terms = " + ".join(f"{name} {cost.total:.4f}" for name, cost in here.items())
    limits = (
        ("max_cost_per_hour", max_cost_per_hour, total, terms),
        (
            "max_cost_per_month",
            max_cost_per_month,
            total * HOURS_PER_MONTH,
            f"({terms}) * {HOURS_PER_MONTH} h",
        ),
    )
    return [
        f"budget.{key}: {limit:.2f} {currency} is below the stack's {amount:.4f} = {arithmetic}; "
        f"raise it to {ceil(amount * 100) / 100:.2f}, or take fewer or smaller nodes"
        for key, limit, amount, arithmetic in limits
        if limit is not None and amount > limit
    ]


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a node may live: until ``ttl_hours`` after ``created``. ``ttl_hours`` None: for ever."""

    node: str
    created: datetime
    ttl_hours: float | None

    @property
    def ends(self) -> datetime | None:
        """The moment it is due to be destroyed."""
        return None if self.ttl_hours is None else self.created + timedelta(hours=self.ttl_hours)


def outlived(lifetimes: Sequence[Lifetime], now: datetime) -> list[Lifetime]:
    """Those whose time has run out by ``now``, the longest overdue first. Datetimes carry a timezone."""
    due = [(life.ends, life) for life in lifetimes if life.ends is not None and life.ends <= now]
    return [life for _, life in sorted(due, key=lambda entry: (entry[0], entry[1].node))]
