"""What can be known of a stack before it costs anything: does each model fit its node, and what will it cost.

`check` refuses a stack whose models do not fit or whose cost is over budget; what it finds otherwise are
sentences for the preview. Arithmetic on plain values, but for a model that the bundled table lacks: the
Hugging Face hub is asked for that one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from pathlib import Path

from pydantic import ValidationError

from fleet import loading, models, vllm_arguments
from fleet.catalog import InstanceType, catalog
from fleet.cost import HOURS_PER_MONTH, Cost, check_budget
from fleet.fit import DEFAULT_VERSION, Architecture, FitReport, FitRequest, gpu, plan
from fleet.fit.compatibility import compatible
from fleet.fit.flags import supported
from fleet.fit.memory import GIB
from fleet.fit.planner import disk_gib
from fleet.models.files import ModelFiles
from fleet.settings import Jobs, Node, Problem, Secrets, Serving, SettingsError, StackSettings

MAX_SWAP_SHARE = 0.7
"""Of the host's memory; vLLM refuses to start with more swap space (0.9.2, `vllm/config.py`)."""

LENGTHENING = ("--rope-scaling", "--hf-overrides")
"""Arguments that change how long a context the model takes."""


class UnknownModelError(ValueError):
    """Nobody knows what the model is like; the message says how to tell."""


@dataclass(frozen=True)
class NodeCheck:
    """What is to be said of one node, a sentence each."""

    facts: tuple[str, ...]
    warnings: tuple[str, ...]
    cost: Cost


@dataclass(frozen=True)
class Model:
    """What planning needs of a model."""

    architecture: Architecture
    weights_gib: float | None = None
    """Size of the checkpoint in GiB where it is known; else it is counted from the architecture."""
    files: ModelFiles | None = None
    """Its repository's, where the model was looked up."""


def check(config: StackSettings) -> dict[str, NodeCheck]:
    """Judge every node, by name.

    Raises SettingsError for models that do not fit and for a stack over its budget, all of them at once.
    """
    checks, problems = judge(config)
    if problems:
        raise SettingsError(problems)
    return checks


def judge(
    config: StackSettings,
    positions: Mapping[str, Sequence[int]] | None = None,
    *,
    complete: bool = True,
    ask_hub: bool = True,
) -> tuple[dict[str, NodeCheck], list[Problem]]:
    """What is to be said of every node, by name, and everything that keeps the stack from being deployed.

    `positions` says where the nodes and clusters stand in the stack's own lists. What the stack as a whole
    costs is judged where it is `complete`. With `ask_hub` False no network is used.
    """
    problems: list[Problem] = []
    checks: dict[str, NodeCheck] = {}
    places = positions or {}
    for index, node in zip(places.get("nodes", range(len(config.nodes))), config.nodes, strict=True):
        if not isinstance(node, Node):
            complete = False  # its cloud is still to be chosen
            continue
        misfits, facts, warnings = _judge(node, config.keys, ask_hub=ask_hub)
        if misfits and node.fit.override is None:
            problems += [misfit.problem(f"nodes[{index}]") for misfit in misfits]
        else:
            warnings = [*(f"{misfit}; overridden: {node.fit.override}" for misfit in misfits), *warnings]
        checks[node.name] = NodeCheck(tuple(facts), tuple(warnings), node.cost_per_hour())
    for index, cluster in zip(places.get("ray", range(len(config.ray))), config.ray, strict=True):
        from fleet.ray import plan as spreading  # noqa: PLC0415  it builds on this module

        found, misfit = spreading.check(cluster, config.keys, ask_hub=ask_hub)
        checks |= found
        if misfit and cluster.fit.override is None:
            problems.append(Problem.said(f"ray[{index}].count", misfit))
        if cluster.serve:
            # A cluster installs vLLM from PyPI, and with it the newest Transformers, whose backend may load
            # more than that of the release's image: nothing is certain.
            refused, doubts = _loading(cluster.serving, config.keys, ask_hub=ask_hub)
            said = [*(f"serving.model: {each}" for each in refused), *doubts]
            head = checks[cluster.head.name]
            checks[cluster.head.name] = replace(head, warnings=(*head.warnings, *said))
    problems += _unpayable_jobs(config.jobs)
    if complete:
        problems += _over_budget(config, {name: found.cost for name, found in checks.items()})
    return checks, problems


def _unpayable_jobs(jobs: Jobs | None) -> Iterator[Problem]:
    """What a job may cost has to pay for a minute of each type that it may run on."""
    if jobs is None or jobs.max_cost is None:
        return
    from fleet.jobs.price import LimitError, limits_of  # noqa: PLC0415  few stacks have jobs

    for type_ in (jobs.type, *jobs.fallback_types):
        try:
            limits_of(
                type_,
                jobs.region,
                timeout_minutes=jobs.timeout_minutes,
                max_cost=jobs.max_cost,
                spot=jobs.spot,
            )
        except LimitError as error:
            key, message = str(error).split(": ", 1)
            yield Problem.said(f"jobs.{key}", message, f"{jobs.max_cost:g}")


def _over_budget(config: StackSettings, costs: Mapping[str, Cost]) -> Iterator[Problem]:
    budget = config.budget
    for sentence in check_budget(
        costs,
        max_cost_per_hour=budget.max_cost_per_hour,
        max_cost_per_month=budget.max_cost_per_month,
        currency=budget.currency,
        rate=budget.rate,
    ):
        path, message = sentence.split(": ", 1)
        yield Problem.said(path, message)


# --- does it fit ----------------------------------------------------------------------------------------


def find_model(serving: Serving, secrets: Secrets, *, ask_hub: bool = True) -> Model:
    """What the served model is like: as the settings say, else as the bundled table or the hub says.

    With `ask_hub` False, of the hub only what it said before. Raises UnknownModelError.
    """
    try:
        files = _files_of(serving, secrets, ask_hub=ask_hub)
        return Model(Architecture.from_config(files.config), files.weights_gib, files)
    except (OSError, ValueError) as error:
        raise UnknownModelError(
            f"whether {serving.model} fits is unknown: {error}; give its config.json as "
            "serving.architecture.config, and the size of its weights as serving.architecture.weights_gib"
        ) from None


def _files_of(serving: Serving, secrets: Secrets, *, ask_hub: bool) -> ModelFiles:
    """The model's configuration and the size of its weights. Raises OSError and ValueError."""
    token = secrets.hf_token.get_secret_value() if secrets.hf_token else None
    given = serving.architecture
    if given is not None:
        return _files_from(str(given.config.expanduser()), given.weights_gib)
    if folder := serving.model_folder:
        return _files_from(str(folder / "config.json"), _weights_gib(folder))
    return _files_by_name(serving.model, token, ask_hub)


def request_of(serving: Serving, model: Model, kind: InstanceType) -> FitRequest:
    """The fit planner's question for a model served so on a server of that type."""
    added = serving.added.values
    architecture = model.architecture
    if serving.dtype != "auto":
        architecture = replace(architecture, dtype_bytes=4 if serving.dtype == "float32" else 2)
    v1 = serving.environment.get("VLLM_USE_V1")
    devices = serving.visible_devices
    # Weights that are quantized while they load are not as large as their files.
    as_stored = serving.quantization is None or bool(architecture.quantization)
    return FitRequest(
        architecture=architecture,
        gpu=gpu(kind.gpu),
        gpus=kind.gpu_count if devices == "all" else len(devices),
        tensor_parallel_size=serving.tensor_parallel_size,
        pipeline_parallel_size=_number(added, "--pipeline-parallel-size") or 1,
        max_model_len=serving.max_model_len,
        gpu_memory_utilization=serving.gpu_memory_utilization,
        weights_gib=model.weights_gib if as_stored else None,
        quantization=serving.quantization,
        kv_cache_dtype=serving.kv_cache_dtype,
        max_num_seqs=serving.max_num_seqs,
        max_num_batched_tokens=_number(added, "--max-num-batched-tokens"),
        version=serving.vllm_version or DEFAULT_VERSION,
        enforce_eager=added.get("--enforce-eager") is True,
        swap_space_gib=serving.swap_space_gb,
        use_v1=None if v1 is None else v1 != "0",
    )


@dataclass(frozen=True)
class Misfit:
    """Why a model cannot be served as it is asked for."""

    key: str
    """The setting of the node to change."""
    why: str
    fix: str

    def problem(self, node: str) -> Problem:
        """The same as a problem of the node with that path."""
        override = "or say in fit.override why it is to be deployed all the same"
        return Problem(f"{node}.{self.key}", self.why, f"{self.fix}, {override}")

    def __str__(self) -> str:
        return f"{self.why}; {self.fix}"


def _judge(node: Node, secrets: Secrets, *, ask_hub: bool) -> tuple[list[Misfit], list[str], list[str]]:
    """Misfits, facts and warnings of a node."""
    refused, doubts = _loading(node.serving, secrets, ask_hub=ask_hub)
    warnings = [*doubts, *_image_warnings(node)]
    try:
        model = find_model(node.serving, secrets, ask_hub=ask_hub)
        request = request_of(node.serving, model, node.instance_type())
        report = plan(request)
    except ValueError as error:
        return refused, [], [str(error), *warnings]
    misfits = [*refused, *_misfits(node, model, request, report)]
    facts = [] if misfits else [f"fit: {report.reason}"]
    lengthened = any(flag in node.serving.added.values for flag in LENGTHENING)
    too_long = node.serving.max_model_len > request.architecture.max_model_len
    said = [warning for warning in report.warnings if not (lengthened and too_long)]
    return misfits, facts, [*said, *_memory_warnings(node, report), *warnings]


def _loading(serving: Serving, secrets: Secrets, *, ask_hub: bool = True) -> tuple[list[Misfit], list[str]]:
    """Why the image's release cannot load the model, and what is doubtful about it.

    Of a model whose configuration is not known here nothing is said.
    """
    try:
        config = _files_of(serving, secrets, ask_hub=ask_hub).config
    except (OSError, ValueError):
        return [], []
    found = loading.finding(serving, config)
    doubts = list(loading.doubts(serving, config))
    if found is None:
        return [], doubts
    if found.is_warning:
        return [], [f"serving.model: {found}", *doubts]
    return [Misfit("serving.model", found.problem, found.fix)], doubts


def _misfits(node: Node, model: Model, request: FitRequest, report: FitReport) -> Iterator[Misfit]:
    serving, kind = node.serving, node.instance_type()
    if not report.fits:
        ways = [*_settings_that_fit(node, request, report), *_type_that_fits(node, request)]
        nearest = f"it fits {' or '.join(ways)}" if ways else f"nothing near it fits in {node.location}"
        yield Misfit("serving", f"{serving.model} does not fit {node.type}: {report.reason}", nearest)
    downloaded = model.files.downloaded_bytes(serving.weights, serving.model) if model.files else None
    needed_gib = report.disk_gib if downloaded is None else disk_gib(downloaded / GIB)
    needed_gb = ceil(needed_gib * 2**30 / 1e9)
    if needed_gb > node.root_volume_gb and not serving.model.startswith("/"):
        larger = ceil(needed_gb / 10) * 10
        yield Misfit(
            "root_volume_gb",
            f"image, weights and caches of {serving.model} need {needed_gb} GB, root_volume_gb is "
            f"{node.root_volume_gb}",
            f"make it {larger}"
            if _changed(node, root_volume_gb=larger)
            else f"choose a type that takes {larger} GB, or a smaller model",
        )
    swap = (serving.swap_space_gb or 0) * serving.tensor_parallel_size
    if supported("--swap-space", request.version) and swap > MAX_SWAP_SHARE * kind.ram_gib:
        yield Misfit(
            "serving.swap_space_gb",
            f"swap_space_gb {serving.swap_space_gb} on {serving.tensor_parallel_size} GPUs is {swap} GiB, "
            f"more than vLLM takes of the {kind.ram_gib:g} GiB of {node.type}",
            f"give {int(MAX_SWAP_SHARE * kind.ram_gib / serving.tensor_parallel_size)} or less",
        )


def _changed(node: Node, serving: Mapping[str, object] | None = None, **changes: object) -> Node | None:
    """The node with some of its settings changed; None where settings do not take that."""
    given = node.model_dump()
    try:
        return type(node).model_validate(
            {**given, **changes, "serving": {**given["serving"], **(serving or {})}}
        )
    except ValidationError:
        return None


def _settings_that_fit(node: Node, request: FitRequest, report: FitReport) -> Iterator[str]:
    """The nearest configuration that fits, in the words of the settings, if they take it."""
    changes = dict(report.suggestion or {})
    gpus = changes.pop("gpus", None)
    if not changes or ("pipeline_parallel_size" in changes and request.pipeline_parallel_size > 1):
        return
    changes.pop("pipeline_parallel_size", None)
    type_ = _type_with(node, int(str(gpus))) if gpus else node.type
    if type_ and _changed(node, changes, type=type_):
        on = f"on {type_} " if gpus else ""
        yield f"{on}with {', '.join(f'{name}: {value}' for name, value in changes.items())}"


def _type_with(node: Node, gpus: int) -> str | None:
    """The cheapest type in the node's place with that many of its GPUs."""
    card = node.instance_type().gpu
    kinds = [kind for kind in _offered(node) if kind.gpu == card and kind.gpu_count >= gpus]
    return kinds[0].name if kinds else None


def _type_that_fits(node: Node, request: FitRequest) -> Iterator[str]:
    """The cheapest type in the node's place that serves the very same configuration, if settings take it."""
    ranks = request.tensor_parallel_size * request.pipeline_parallel_size
    for kind in _offered(node):
        if kind.gpu_count < ranks or kind.name == node.type:
            continue
        asked = replace(request, gpu=gpu(kind.gpu), gpus=kind.gpu_count)
        if plan(asked, suggest=False).fits and _changed(node, type=kind.name):
            price = kind.price(node.location)
            assert price is not None, "a type without a price is not offered"
            yield f"on {kind.name} ({price.amount:.4f} {price.currency} an hour)"
            return


def _offered(node: Node) -> list[InstanceType]:
    """The types that the catalog prices in the node's place, the cheapest first."""
    priced = [
        (price.amount, kind.name, kind)
        for kind in catalog().types(node.cloud)
        if (price := kind.price(node.location)) and kind.architecture == "x86_64"
    ]
    return [kind for _, _, kind in sorted(priced, key=lambda each: each[:2])]


def _memory_warnings(node: Node, report: FitReport) -> Iterator[str]:
    there = node.instance_type().ram_gib
    if report.host_memory_gib > there:
        yield (
            f"loading needs some {report.host_memory_gib:.0f} GiB of host memory, {node.type} has {there:g}: "
            "it may start slowly or not at all"
        )


def _image_warnings(node: Node) -> Iterator[str]:
    serving, version = node.serving, node.serving.vllm_version
    doubt = vllm_arguments.doubt(version)
    if version is None:
        yield (
            f"serving.image {serving.image} names no vLLM release, so it is judged as vLLM {DEFAULT_VERSION} "
            f"and {doubt}; a tag such as vllm/vllm-openai:v0.33.0 says which it is"
        )
    elif doubt:
        yield f"serving.image: {doubt}"
    yield from (f"{at}: {finding}" for at, finding in serving.argument_warnings())
    if version is None:
        return
    if serving.swap_space_gb is not None and not supported("--swap-space", version):
        yield (
            f"serving.swap_space_gb is left out: vLLM {version} has no --swap-space, it recomputes instead; "
            "remove the setting"
        )
    driver = node.driver_branch_of_image
    if driver is not None:
        verdict = compatible(version, gpu(node.instance_type().gpu), driver)
        if not verdict.ok:
            yield verdict.reason


@cache
def _files_from(path: str, weights_gib: float | None) -> ModelFiles:
    with open(path, encoding="utf-8") as file:  # noqa: PTH123  a path from the settings, once a run
        config = json.load(file)
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a JSON object")
    return ModelFiles(config, weights_gib)


def _weights_gib(folder: Path) -> float | None:
    """Size of the weights in a model's folder, as vLLM loads them; None where there are none."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / GIB or None


_unknown: dict[str, str] = {}
"""Why nobody could tell about a model, so that a hundred nodes ask once."""


@cache
def _files_by_name(name: str, token: str | None, ask_hub: bool) -> ModelFiles:
    if name.startswith("/"):
        raise ValueError("it lies on the node alone")
    if name in _unknown:
        raise ValueError(_unknown[name])
    try:
        return models.find_model(name, token, ask_hub=ask_hub)
    except ValueError as error:
        if ask_hub:
            _unknown[name] = str(error)
        raise


def _number(added: Mapping[str, object], name: str) -> int | None:
    value = added.get(name)
    return value if isinstance(value, int) and value > 0 else None


# --- what it costs --------------------------------------------------------------------------------------


def cost_line(cost: Cost, deployed_per_hour: float | None) -> str:
    """A node's or a stack's cost in words, with the difference to what is deployed where that is known."""
    if cost.total is None:
        return f"cost: unknown; {cost.reason}"
    line = f"cost: {cost.total:.4f} {cost.currency} an hour, {cost.total * HOURS_PER_MONTH:.2f} a month"
    if deployed_per_hour is None:
        return line
    more = cost.total - deployed_per_hour
    if abs(more) < 5e-5:
        return f"{line}, as deployed"
    return f"{line}; {more:+.4f} an hour, {more * HOURS_PER_MONTH:+.2f} a month against what is deployed"
