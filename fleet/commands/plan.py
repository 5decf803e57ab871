"""`fleet plan`: the cheapest way to serve a model, over all clouds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date
from functools import cache
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.catalog import CLOUDS, LOCATION_KEY, InstanceType
from fleet.commands import output
from fleet.cost import HOURS_PER_MONTH, ExchangeRate, default_rate
from fleet.optimizer import Latency, Option, Plan, Verdict, Wish
from fleet.optimizer import plan as search

if TYPE_CHECKING:
    from fleet.fit import FitReport

MIN_ROOT_VOLUME_GB = 200
"""What every node gets at least; the image alone unpacks to some 25 GB."""


def plan(
    model: Annotated[str, typer.Option(help="Model on the Hugging Face hub, for example Qwen/Qwen3-8B-AWQ.")],
    max_model_len: Annotated[int, typer.Option(min=256, help="Longest context in tokens.")] = 16384,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Requests of full length at a time, over all nodes.")
    ] = 1,
    cloud: Annotated[list[str] | None, typer.Option(help="Only this cloud; may be repeated.")] = None,
    zone: Annotated[list[str] | None, typer.Option(help="Only this zone or region; may be repeated.")] = None,
    quantization: Annotated[
        list[str] | None,
        typer.Option(
            help="Quantize while loading, for example fp8; may be repeated. As the model comes, if left out."
        ),
    ] = None,
    kv_cache_dtype: Annotated[str, typer.Option(help="Type of the KV cache: auto or fp8.")] = "auto",
    gpu_memory_utilization: Annotated[
        float, typer.Option(min=0.1, max=0.95, help="Share of GPU memory.")
    ] = 0.90,
    latency: Annotated[Latency, typer.Option(help="How fast one answer must come.")] = Latency.STANDARD,
    spot: Annotated[
        bool, typer.Option("--spot", help="Compare spot prices; the cloud may take a node back.")
    ] = False,
    root_volume_gb: Annotated[
        int | None, typer.Option(min=150, help="Size in GB; what the model needs, if left out.")
    ] = None,
    currency: Annotated[str, typer.Option(help="EUR or USD.")] = "EUR",
    usd_per_eur: Annotated[float | None, typer.Option(min=0.1, help="Exchange rate of today.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Ways to show in the table.")] = 15,
    why: Annotated[
        bool, typer.Option("--why", help="Show why each type that cannot serve the model cannot.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every way and every reason as JSON.")
    ] = False,
    write: Annotated[
        Path | None, typer.Option(help="Write the choice as this stack file, Pulumi.NAME.yaml.")
    ] = None,
    ssh_cidr: Annotated[
        list[str] | None, typer.Option(help="For --write: who may open SSH; may be repeated.")
    ] = None,
    accept_stale: Annotated[bool, typer.Option("--accept-stale", help="Choose at an old price too.")] = False,
) -> None:
    """Rank every way to serve a model by cost, and say why the others lost. Exit code 3: there is none.

    Example: fleet plan --model Qwen/Qwen3-32B-AWQ --max-model-len 32768 --concurrency 4
    """
    if write is not None and not ssh_cidr:
        fix = "give the addresses that may open SSH, for example --ssh-cidr 203.0.113.7/32"
        raise typer.BadParameter(f"is needed with --write; {fix}", param_hint="--ssh-cidr")
    if write is not None and write.exists():
        raise typer.BadParameter(f"{write} exists; choose another name or remove it", param_hint="--write")
    for name in cloud or ():
        if name not in CLOUDS:
            raise typer.BadParameter(
                f"{name!r} is not in the catalog; it has {', '.join(CLOUDS)}", param_hint="--cloud"
            )
    rate = default_rate() if usd_per_eur is None else ExchangeRate(usd_per_eur, date.today(), "--usd-per-eur")
    try:
        judge = judge_of(
            model,
            max_model_len=max_model_len,
            kv_cache_dtype=kv_cache_dtype,
            gpu_memory_utilization=gpu_memory_utilization,
        )
        wish = Wish(
            concurrency=concurrency,
            clouds=tuple(cloud or CLOUDS),
            zones=tuple(zone or ()),
            spot=spot,
            latency=latency,
            quantizations=tuple(quantization or (None,)),
            root_volume_gb=root_volume_gb or judge.root_volume_gb(),
            currency=currency,
        )
        found = search(wish, judge.fit, rate=rate)
    except ValueError as error:  # its message names the value and the fix
        raise typer.BadParameter(str(error)) from error
    choice = found.choice(accept_stale=accept_stale)
    if as_json:
        # Without indentation: thousands of ways take the encoder in C a third of the time.
        typer.echo(json.dumps(document(found, choice, wish, rate)))
    else:
        _show(found, choice, wish, rate, limit=limit, why=why)
    if choice is None:
        raise typer.Exit(3)
    if write is not None:
        serving = {
            "model": model,
            "max_model_len": max_model_len,
            "gpu_memory_utilization": gpu_memory_utilization,
        }
        if kv_cache_dtype != "auto":
            serving["kv_cache_dtype"] = kv_cache_dtype
        _write(write, stack_config(choice, serving, wish.root_volume_gb, ssh_cidr or []))


class Judge:
    """The fit planner for one model and context, asked once for each card, width and quantization."""

    def __init__(self, report: Callable[[str, float, int, str | None], FitReport]) -> None:
        self._report = cache(report)

    def fit(self, kind: InstanceType, tensor_parallel: int, quantization: str | None) -> Verdict:
        """What the optimizer asks."""
        report = self._report(kind.gpu, kind.gpu_memory_mib / 1024, tensor_parallel, quantization)
        return Verdict(
            report.fits,
            report.reason,
            report.max_concurrency,
            report.weights_gib_per_gpu,
            report.host_memory_gib,
        )

    def root_volume_gb(self) -> int:
        """Room for the image, the weights and the caches, in steps of 50 GB (10⁹ bytes)."""
        needed = self._report("H100-80GB", 80.0, 1, None).disk_gib * 2**30 / 1e9
        return max(MIN_ROOT_VOLUME_GB, ceil(needed / 50) * 50)


def judge_of(model: str, **settings: Any) -> Judge:
    """A judge for a model of the bundled table or the hub; ``settings`` are the fit planner's own.

    Raises ValueError for a model that neither has, with the names nearest to it, and for one that the default
    image cannot load.
    """
    from fleet.engine import registry  # noqa: PLC0415
    from fleet.fit import DEFAULT_VERSION, Architecture, FitRequest, gpu, gpu_from_memory  # noqa: PLC0415
    from fleet.fit import plan as judge  # noqa: PLC0415
    from fleet.models import find_model  # noqa: PLC0415

    files = find_model(model)
    found = registry.loading(registry.declared(files.config), DEFAULT_VERSION)
    if found and not found.is_warning:
        raise ValueError(f"{model}: {found}")
    architecture = Architecture.from_config(files.config)

    def report(name: str, memory_gib: float, tensor_parallel: int, quantization: str | None) -> FitReport:
        try:
            card = gpu(name)
        except ValueError:
            card = gpu_from_memory(memory_gib)
        request = FitRequest(
            architecture,
            card,
            gpus=tensor_parallel,
            tensor_parallel_size=tensor_parallel,
            quantization=quantization,
            # Weights that are quantized while they load are not as large as their files.
            weights_gib=files.weights_gib if quantization is None or architecture.quantization else None,
            **settings,
        )
        return judge(request, suggest=False)

    return Judge(report)


def document(found: Plan, choice: Option | None, wish: Wish, rate: ExchangeRate) -> dict[str, Any]:
    """The whole plan as plain values, for ``--json``."""
    return {
        "choice": None if choice is None else _option(choice),
        "options": [_option(option) for option in found.options],
        "rejected": [
            {
                "cloud": entry.cloud,
                "type": entry.type,
                "zone": entry.zone,
                "tensor_parallel_size": entry.tensor_parallel,
                "quantization": entry.quantization,
                "reason": entry.reason,
            }
            for entry in found.rejected
        ],
        "currency": wish.currency,
        "root_volume_gb": wish.root_volume_gb,
        "usd_per_eur": rate.usd_per_eur,
        "exchange_rate_as_of": rate.as_of.isoformat(),
    }


def stack_config(
    choice: Option, serving: dict[str, Any], root_volume_gb: int, ssh_cidrs: list[str]
) -> dict[str, Any]:
    """A stack file that brings ``choice`` up."""
    short = (
        re.sub(r"[^a-z0-9]+", "-", serving["model"].rsplit("/", 1)[-1].lower()).strip("-")[:40].rstrip("-")
    )
    if choice.tensor_parallel > 1:
        serving |= {"tensor_parallel_size": choice.tensor_parallel}
    if choice.quantization:
        serving |= {"quantization": choice.quantization}
    nodes = [
        {
            "name": f"{short}-{number}",
            "cloud": choice.type.cloud,
            LOCATION_KEY[choice.type.cloud]: choice.zone,
            "type": choice.type.name,
            "root_volume_gb": root_volume_gb,
        }
        for number in range(1, choice.nodes + 1)
    ]
    return {
        "config": {
            "vllm-fleet:nodes": nodes,
            "vllm-fleet:serving": serving,
            "vllm-fleet:access": {"ssh_cidrs": ssh_cidrs, "ssh_private_key_path": "~/.ssh/id_ed25519"},
        }
    }


def _option(option: Option) -> dict[str, Any]:
    return {
        "cloud": option.type.cloud,
        "zone": option.zone,
        "type": option.type.name,
        "gpu": option.type.gpu,
        "gpu_count": option.type.gpu_count,
        "nodes": option.nodes,
        "tensor_parallel_size": option.tensor_parallel,
        "quantization": option.quantization,
        "concurrency": round(option.concurrency, 2),
        "cost_per_hour": round(option.cost_per_hour, 6),
        "cost_per_month": round(option.cost_per_hour * HOURS_PER_MONTH, 2),
        "deployable": option.deployable,
        "warning": option.warning,
        "lost_by": option.lost_by or None,
    }


def _show(
    found: Plan, choice: Option | None, wish: Wish, rate: ExchangeRate, *, limit: int, why: bool
) -> None:
    from rich.table import Table  # noqa: PLC0415

    table = Table()
    for heading in ("where", "what", "TP", "requests", f"{wish.currency} / h", "why not first"):
        table.add_column(heading)
    ways = _zones_of_each_way(found)
    for options in ways[:limit]:
        option = options[0]
        remarks = [text for text in (option.lost_by, option.warning) if text]
        if not option.deployable:
            remarks.append("comparison only")
        more = f" and {len(options) - 1} more" if len(options) > 1 else ""
        quantized = f" {option.quantization}" if option.quantization else ""
        table.add_row(
            f"{option.type.cloud} {option.zone}{more}",
            f"{option.nodes} x {option.type.name} ({option.type.gpu_count} x {option.type.gpu}){quantized}",
            str(option.tensor_parallel),
            f"{option.concurrency:.1f}",
            f"{option.cost_per_hour:.4f}",
            "; ".join(remarks),
        )
    console = output.console()
    console.print(output.whole(table))
    if len(ways) > limit:
        console.print(f"{len(ways) - limit} dearer ways are left out; see them with --limit or --json")
    if why:
        for reason, types in _grouped(found).items():
            console.print(f"{', '.join(sorted(types))}: {reason}", highlight=False)
    else:
        console.print(f"{len(found.rejected)} ways do not work; see why with --why")
    console.print(
        f"1 EUR = {rate.usd_per_eur} USD ({rate.as_of}); before tax; root volume {wish.root_volume_gb} GB"
    )
    _say_choice(found, choice, wish)


def _zones_of_each_way(found: Plan) -> list[list[Option]]:
    """The options, those that differ by their zone alone together, the cheapest zone first."""
    ways: dict[tuple[object, ...], list[Option]] = {}
    for option in found.options:
        way = (option.type.cloud, option.type.name, option.tensor_parallel, option.quantization)
        ways.setdefault(way, []).append(option)
    return list(ways.values())


def _say_choice(found: Plan, choice: Option | None, wish: Wish) -> None:
    if choice is None:
        stale = found.choice(accept_stale=True)
        fix = "every price is old: fleet catalog refresh, or --accept-stale" if stale else "see --why"
        typer.echo(f"Nothing to choose; {fix}", err=True)
        return
    hour, month = choice.cost_per_hour, choice.cost_per_hour * HOURS_PER_MONTH
    typer.echo(
        f"Choice: {choice.nodes} x {choice.type.name} in {choice.type.cloud} {choice.zone}, "
        f"{hour:.4f} {wish.currency} an hour, {month:.2f} a month"
    )
    if choice.warning:
        typer.echo(f"Its {choice.warning}: check it before you rely on it", err=True)
    passed_over = next((option for option in found.options if option.deployable), choice)
    if passed_over is not choice:
        typer.echo(
            f"Passed over: {passed_over.nodes} x {passed_over.type.name} in {passed_over.type.cloud} "
            f"{passed_over.zone} at {passed_over.cost_per_hour:.4f}, whose {passed_over.warning}",
            err=True,
        )


def _grouped(found: Plan) -> dict[str, set[str]]:
    """Reason → the types it holds for."""
    reasons: dict[str, set[str]] = {}
    for entry in found.rejected:
        way = f" TP {entry.tensor_parallel}" if entry.tensor_parallel else ""
        reason = "price unknown in some zones" if entry.zone else entry.reason
        reasons.setdefault(reason, set()).add(f"{entry.cloud} {entry.type}{way}")
    return reasons


def _write(path: Path, config: dict[str, Any]) -> None:
    import yaml  # noqa: PLC0415  only when a file is written

    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    stack = path.name.removeprefix("Pulumi.").removesuffix(".yaml")
    # Standard output may be JSON that a program reads.
    typer.echo(
        f"Wrote {path}. Next:\n"
        f"  pulumi stack init {stack}\n"
        "  pulumi config set --secret --path vllm-fleet:secrets.api_key\n"
        "  pulumi up",
        err=True,
    )
