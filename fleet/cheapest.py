"""Nodes with `cloud: cheapest`: the choice, and how it is written into the stack's file so that it stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date

import yaml
from pydantic import ValidationError

from fleet.catalog import InstanceType
from fleet.checks import find_model, request_of
from fleet.cost import HOURS_PER_MONTH
from fleet.fit import plan as judge
from fleet.optimizer import Option, Verdict, Wish, plan
from fleet.settings import PROJECT, Budget, CheapestNode, Pin, Secrets, with_pin


class NoChoiceError(ValueError):
    """No server can be chosen; the message says why and what to do."""


@dataclass(frozen=True)
class Choice:
    """What was chosen for a node, and the sentence that says so."""

    pin: Pin
    why: str


def choose(
    node: CheapestNode, secrets: Secrets, budget: Budget, *, today: date | None = None, ask_hub: bool = True
) -> Choice:
    """The cheapest server that holds the node's model and that its settings accept.

    A price that is older than 90 days is never relied on. Raises NoChoiceError, and UnknownModelError where
    nobody knows what the model is like.
    """
    passed_over: Option | None = None
    ways = _ways(node, secrets, budget, today, ask_hub=ask_hub)
    for best in ways:
        if best.warning is None:
            break
        passed_over = passed_over or best
    else:
        why = (
            f"{_words(passed_over)} would do, but its {passed_over.warning}, as every other's is; "
            "run: fleet catalog refresh --write"
            if passed_over
            else f"no single server serves {node.serving.model} with {node.serving.max_model_len} tokens; "
            f"see why: fleet plan --model {node.serving.model} --why"
        )
        raise NoChoiceError(f"cheapest in {', '.join(node.clouds)}: {why}")
    month = best.cost_per_hour * HOURS_PER_MONTH
    why = f"cheapest: {_words(best)} {budget.currency} an hour, {month:.2f} a month"
    if passed_over:
        why += f"; passed over is {_words(passed_over)}, whose {passed_over.warning}"
    elif runner_up := next((way for way in ways if way.type.name != best.type.name), None):
        why += f"; next is {_words(runner_up)}"
    return Choice(_pin(best), why)


def keep(node: CheapestNode, secrets: Secrets, budget: Budget, cloud: str, place: str, type_: str) -> Choice:
    """The choice that leaves a deployed node where it is.

    Raises NoChoiceError where its server does not hold the model any more.
    """
    for way in _ways(node, secrets, budget, None):
        if (way.type.cloud, way.zone, way.type.name) == (cloud, place, type_):
            return Choice(_pin(way), f"cheapest: stays {type_} in {cloud} {place}, where it is deployed")
    raise NoChoiceError(
        f"cheapest: the node is deployed as {type_} in {cloud} {place}, which does not hold what it is to "
        "serve now; lower serving.max_model_len or concurrency, or give the node another name to have it "
        "chosen anew"
    )


def _ways(
    node: CheapestNode, secrets: Secrets, budget: Budget, today: date | None, *, ask_hub: bool = True
) -> Iterator[Option]:
    """The single servers that would do, the cheapest first."""
    model = find_model(node.serving, secrets, ask_hub=ask_hub)

    def report(kind: InstanceType, tensor_parallel: int, _: str | None) -> Verdict:
        serving = node.serving.model_copy(update={"tensor_parallel_size": tensor_parallel})
        found = judge(request_of(serving, model, kind), suggest=False)
        return Verdict(
            found.fits,
            found.reason,
            found.max_concurrency,
            found.weights_gib_per_gpu,
            found.host_memory_gib,
        )

    wish = Wish(
        concurrency=node.concurrency,
        clouds=node.clouds,
        zones=node.locations,
        quantizations=(node.serving.quantization,),
        root_volume_gb=node.root_volume_gb,
        currency=budget.currency,
    )
    for option in plan(wish, report, rate=budget.rate, today=today).options:
        if option.nodes == 1 and _accepted(node, _pin(option)):
            yield option


def _accepted(node: CheapestNode, pin: Pin) -> bool:
    """Whether the settings of the cloud take the node: not every place and disk of the catalog is offered."""
    try:
        with_pin(node, pin)
    except ValidationError:
        return False
    return True


def _words(way: Option) -> str:
    return f"{way.type.name} in {way.type.cloud} {way.zone} at {way.cost_per_hour:.4f}"


def _pin(option: Option) -> Pin:
    return Pin(
        cloud=option.type.cloud,
        location=option.zone,
        type=option.type.name,
        tensor_parallel_size=option.tensor_parallel,
    )


# --- the stack's file -----------------------------------------------------------------------------------


def pinned(text: str, pins: Mapping[str, Pin]) -> str:
    """The stack file `text` with each node's pin written under its `cloud:`; nothing else changes.

    Raises NoChoiceError for a node that the file does not have.
    """
    missing = dict(pins)
    # From the end, so that what is inserted moves nothing that is still to be found.
    for node in reversed(_nodes(text)):
        entries = {key.value: (key, value) for key, value in node.value}
        name = entries["name"][1].value if "name" in entries else None
        if name not in missing or "cloud" not in entries:
            continue
        key, value = entries["cloud"]
        pin = missing.pop(name)
        words = ", ".join(f"{field}: {chosen}" for field, chosen in pin.model_dump().items())
        if node.flow_style:
            at, line = value.end_mark.index, f", pinned: {{{words}}}"
        else:
            at = text.find("\n", value.end_mark.index)
            at = len(text) if at < 0 else at
            line = f"\n{' ' * key.start_mark.column}pinned: {{{words}}}"
        text = text[:at] + line + text[at:]
    if missing:
        raise NoChoiceError(f"the stack's file has no node {', '.join(sorted(missing))} to pin")
    return text


def _nodes(text: str) -> list[yaml.MappingNode]:
    """The nodes of a stack file, as YAML nodes that know where they stand in it."""
    found: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    for step in ("config", f"{PROJECT}:nodes"):
        entries = found.value if isinstance(found, yaml.MappingNode) else []
        found = next((value for key, value in entries if key.value == step), None)
    listed = found.value if isinstance(found, yaml.SequenceNode) else []
    return [entry for entry in listed if isinstance(entry, yaml.MappingNode)]
