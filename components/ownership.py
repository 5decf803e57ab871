"""Who owns what a stack has in its clouds, and when it may go.

The engine deletes what was replaced, or is no longer declared, at the end of an update: even of one that
failed, if it is told to go on after errors, and of the second failure in a row in any case. A machine that
serves must not go that way. So no resource of a node deletes anything in a cloud. Instead:

- `FleetOwner` comes first and draws the random id that everything of the stack carries. It goes last and then
  removes whatever carries it.
- A `Retirement` comes last, after the gates: it removes what carries the id and is no longer in use. One of
  each node runs when that node's machine was replaced. The stack's own looks at every refresh for what is in
  no state, and also removes nodes that are no longer declared.

See docs/adr/0004-owner-before-objects.md.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pulumi
from pulumi import Input, Output
from pulumi.dynamic import ConfigureRequest, CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from components import owned
from components.dynamic import CloudProvider
from components.owned import Owned, Place
from components.tags import NODE_TAG


class NotOurs(Exception):
    """A machine of this name belongs to another owner. The message names it and the two ways out."""


def not_ours(node: str, label: str, found: Sequence[str]) -> NotOurs:
    """The error for machines that carry a node's label and another stack's owner id."""
    stack = label.rpartition("/")[0]
    return NotOurs(
        f"{node}: {' and '.join(found)} in this account has the tag {NODE_TAG}={label}, but another owner "
        f"id: it belongs to another checkout or operator using the stack name {stack}, or to a state that "
        f"was lost. No machine was created. Fix: `fleet adopt {node}` takes it into this stack; or keep the "
        "two apart: pulumi stack init ANOTHER-NAME"
    )


class FleetProvider(CloudProvider):
    """Adds the stack's whole configuration, from which each cloud's part takes its own credentials."""

    def configure(self, req: ConfigureRequest) -> None:
        super().configure(req)
        self._config: owned.Config = req.config.get


# --- the owner ------------------------------------------------------------------------------------------


class FleetOwnerProvider(FleetProvider):
    update_on = frozenset({"labels", "wanted"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        # 32 characters: what Linode's tags have room for.
        return CreateResult(uuid.uuid4().hex, {**props, "places": sorted(props["wanted"])})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """It exists in state alone; a place that is wanted no more counts until nothing is left there."""
        wanted, former = set(props["wanted"]), set(props["places"]) - set(props["wanted"])
        left = {str(each.place) for each in owned.everything(self._config, map(Place.parse, former), id_)}
        return ReadResult(id_, {**props, "places": sorted(wanted | left)})

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult({**news, "places": sorted({*olds["places"], *news["wanted"]})})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        found = owned.everything(self._config, map(Place.parse, props["places"]), id_)
        _say(f"removing {each}" for each in found)
        owned.remove(self._config, found)
        # What an interrupted request made meanwhile, or a list did not show at once.
        owned.remove(self._config, owned.everything(self._config, map(Place.parse, props["places"]), id_))


class FleetOwner(Resource, module="fleet", name="FleetOwner"):
    """The id by which everything of the stack is found again, whatever happened to program or state."""

    places: Output[Sequence[str]]
    """Every place that the stack has, or still may have, something in, as `cloud/zone`."""

    def __init__(
        self,
        name: str,
        *,
        places: Iterable[Place],
        labels: Iterable[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        props: dict[str, Any] = {
            "wanted": sorted({str(place) for place in places}),
            "labels": sorted(labels),
            "places": None,
        }
        look = pulumi.ResourceHook(
            f"{name}-look", _refuse_others, pulumi.ResourceHookOptions(on_dry_run=True)
        )
        hooks = pulumi.ResourceHookBinding(before_create=[look], before_update=[look])
        merged = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(hooks=hooks))
        super().__init__(FleetOwnerProvider(), name, props, merged)


async def _refuse_others(args: pulumi.ResourceHookArgs) -> None:
    """At preview, refuse a node whose name another stack's machine has in this account.

    In an update it is the machine's creation that is refused: by then the owner's id has to be in state, so
    that `fleet adopt` has something to adopt for.
    """
    if not pulumi.runtime.is_dry_run():
        return
    inputs = args.new_inputs or {}
    labels, places = inputs["labels"], [Place.parse(text) for text in inputs["wanted"]]
    found = await asyncio.to_thread(owned.labelled, program_config, places, labels)
    for label in labels:
        others = [each for each in found if each.label == label and each.owner != args.id]
        if others:
            raise not_ours(others[0].node, label, [f"{each.kind} {each.id}" for each in others])


def program_config(key: str) -> str | None:
    """A setting of the stack by its whole key, as the program sees it."""
    namespace, _, name = key.partition(":")
    return pulumi.Config(namespace).get(name)


# --- retirement -----------------------------------------------------------------------------------------


class RetirementProvider(FleetProvider):
    update_on = frozenset({"keep", "spared"})

    def differs(self, key: str, olds: Mapping[str, Any], news: Mapping[str, Any]) -> bool:
        if isinstance(news.get(key), list):
            return set(olds.get(key) or ()) != set(news[key])
        return super().differs(key, olds, news)

    def diff(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        if news["hold"]:
            return DiffResult(changes=False)
        found = super().diff(id_, olds, news)
        found.changes = found.changes or bool(olds.get("surplus"))
        return found

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(f"{props['owner']}/{props['node'] or 'all'}", self._retired(props))

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(self._retired(news))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        # One look for the whole stack is enough, by one that knows what is in use.
        surplus = [] if props["node"] or props["hold"] else [str(each) for each in self._surplus(props)]
        return ReadResult(id_, {**props, "surplus": sorted(surplus)})

    def _retired(self, props: dict[str, Any]) -> dict[str, Any]:
        if props["hold"]:
            return {**props, "surplus": []}
        surplus = self._surplus(props)
        _say(f"removing {each}, which is no longer in use" for each in surplus)
        owned.remove(self._config, surplus)
        return {**props, "surplus": []}

    def _surplus(self, props: Mapping[str, Any]) -> list[Owned]:
        """What the owner has and nobody uses: of this node, or of all that are not spared."""
        keep, spared, node = set(props["keep"]), set(props["spared"]), props["node"]
        found = owned.everything(self._config, map(Place.parse, props["places"]), props["owner"])
        return [
            each
            for each in found
            if each.id not in keep
            and each.belongs_to not in keep
            and each.node not in spared
            and (not node or each.node == node)
        ]


class Retirement(Resource, module="fleet", name="Retirement"):
    """That nothing is left of what was replaced, lost or removed, once everything it waits for serves."""

    def __init__(
        self,
        name: str,
        *,
        owner: FleetOwner,
        keep: Sequence[Input[str]],
        node: str = "",
        spared: Iterable[str] = (),
        hold: bool = False,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """`keep` are the ids in use. `node` limits it to one node; `spared` are names of nodes left alone.

        With `hold` nothing is removed, whatever the rest says: something it waits for has failed.
        """
        props: dict[str, Any] = {
            "owner": owner.id,
            "places": owner.places,
            "node": node,
            "keep": list(keep),
            "spared": sorted(spared),
            "hold": hold,
            "surplus": None,
        }
        super().__init__(RetirementProvider(), name, props, opts)


def _say(lines: Iterable[str]) -> None:
    """What is removed is said before it is: on the line that the engine shows."""
    for line in lines:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
