"""What Linode's provider leaves open about a node: which machine comes after which, that it is known to be in
state, that it runs, and that it stays behind its firewall.

Linode's provider makes the machine and the firewall. What is there already when it is about to do so is dealt
with in `succession`; nothing here deletes what is in state, which `components.ownership` does.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi import Input, Output
from pulumi.dynamic import (
    ConfigureRequest,
    CreateResult,
    DiffResult,
    ReadResult,
    Resource,
    UpdateResult,
)

from components.dynamic import CloudProvider, gone
from components.linode.credentials import Credentials
from components.linode.owned import client
from components.linode.succession import (
    ANY_BOOT,
    Wanted,
    WantedMachine,
    is_noted,
    make_way_for_firewall,
    make_way_for_machine,
    note,
)
from components.tags import BOOT_TAG, OWNER_TAG, value_of
from fleet.progress import Progress, Stage

if TYPE_CHECKING:
    from components.linode.api import LinodeClient

STOCK_TIMEOUT_S = 5.0
STOCK_PATIENCE_S = 1.0
"""A preview does not wait long for advice."""
BOOTS_REMEMBERED = 20


class LinodeProvider(CloudProvider):
    """Adds credentials, by configuration or Linode's own environment; never by inputs."""

    def configure(self, req: ConfigureRequest) -> None:
        super().configure(req)
        self._credentials = Credentials.resolve(lambda key: req.config.get(f"linode:{key}"))

    @property
    def client(self) -> LinodeClient:
        return client(self._credentials)


# --- first boot -----------------------------------------------------------------------------------------

_in_state: set[str] = set()
"""Nodes whose first boot the refresh found in state. The engine tells a resource that it replaces nothing of
the one before."""


class FirstBootProvider(CloudProvider):
    update_on = frozenset({"made_from"})

    def diff(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        found = super().diff(id_, olds, news)
        if not self.differs("made_from", olds, news):
            found.stables = list(FirstBoot.DECIDED)
        return found

    def create(self, props: dict[str, Any]) -> CreateResult:
        Progress(props["node"]).reached(Stage.REQUEST_CREATE)
        # One that is replaced by hand follows machines that state knew.
        former = [{"boot": ANY_BOOT, "generation": 0}] if props["node"] in _in_state else []
        made = {"boot": _token(), "generation": len(former), "former": former}
        return CreateResult(uuid.uuid4().hex, props | made)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        _in_state.add(props["node"])
        return ReadResult(id_, props)  # it exists in state alone

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        if not self.differs("made_from", olds, news):
            return UpdateResult(news | {name: olds[name] for name in FirstBoot.DECIDED})
        current = {name: olds[name] for name in ("boot", "generation", "made_from")}
        former = [*olds["former"], current]
        # Back to what a machine was made from that may still be there, and still be the one in state.
        again = next((each for each in former if each.get("made_from") == news["made_from"]), None)
        made = again or {
            "boot": _token(),
            "generation": 1 + max(int(each["generation"]) for each in former),
        }
        return UpdateResult(news | made | {"former": former[-BOOTS_REMEMBERED:]})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Nothing: it goes with the state."""


class FirstBoot(Resource, module="linode", name="FirstBoot"):
    """Which machine of a node it is: another one for all that none can change after its first boot."""

    DECIDED = ("boot", "former", "generation")

    boot: Output[str]
    """Marks the machine, and makes its label unique."""
    former: Output[Sequence[Mapping[str, Any]]]
    """The same of the machines before it, and what they were made from."""
    generation: Output[int]
    """How many came before it; of two in a row, one is even and one is odd."""

    def __init__(
        self, name: str, *, node: str, made_from: Mapping[str, Any], opts: pulumi.ResourceOptions
    ) -> None:
        props: dict[str, Any] = {
            "node": node,
            "made_from": dict(made_from),
            **dict.fromkeys(self.DECIDED),
        }
        super().__init__(FirstBootProvider(), name, props, opts)


def _token() -> str:
    return uuid.uuid4().hex[:8]


# --- firewall -------------------------------------------------------------------------------------------


class FirewallAttachmentProvider(LinodeProvider):
    replace_on = frozenset({"firewall_id", "instance_id"})
    update_on = frozenset({"attached"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        self._attach(props)
        progress = Progress(props["node"])
        progress.reached(Stage.PROVIDER_CREATE, f"instance {props['instance_id']}")
        progress.reached(Stage.PROVIDER_VOLUME_RESIZE, "nothing to grow: the disk is the plan's own")
        progress.reached(Stage.PROVIDER_START, "running")
        progress.reached(Stage.PROVIDER_GET_IP, props["public_ip"])
        progress.reached(Stage.PROVIDER_SECURITY_GROUP, f"firewall {props['firewall_id']}")
        return CreateResult(f"{props['firewall_id']}/{props['instance_id']}", {**props, "attached": True})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        behind = self.client.behind_firewall(int(props["firewall_id"]))
        if behind is None or self.client.find_instance(int(props["instance_id"])) is None:
            return gone()
        return ReadResult(id_, {**props, "attached": int(props["instance_id"]) in behind})

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        self._attach(news)
        return UpdateResult({**news, "attached": True})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Nothing: it ends with the machine or the firewall, and no machine is ever left open."""

    def _attach(self, props: Mapping[str, Any]) -> None:
        firewall, instance = int(props["firewall_id"]), int(props["instance_id"])
        if instance not in (self.client.behind_firewall(firewall, exists=True) or ()):
            self.client.put_behind(firewall, instance)


class FirewallAttachment(Resource, module="linode", name="FirewallAttachment"):
    """That a machine is behind its firewall: it is from its creation on; this notices and fixes when not."""

    def __init__(
        self,
        name: str,
        *,
        node: str,
        firewall_id: Input[str],
        instance_id: Input[str],
        public_ip: Input[str],
        opts: pulumi.ResourceOptions,
    ) -> None:
        props: dict[str, Any] = {
            "node": node,
            "firewall_id": firewall_id,
            "instance_id": instance_id,
            "public_ip": public_ip,
            "attached": True,
        }
        super().__init__(FirewallAttachmentProvider(), name, props, opts)


# --- power ----------------------------------------------------------------------------------------------


class PowerProvider(LinodeProvider):
    replace_on = frozenset({"instance_id"})
    # Linode's provider writes the whole profile when it changes tags or label, with the comments it saw last.
    update_on = frozenset({"state", "noted", "known_as"})

    def diff(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        found = super().diff(id_, olds, news)
        if not found.replaces:
            started_again = self.differs("state", olds, news)
            found.stables = ["host_key", *([] if started_again else ["started"])]
        return found

    def create(self, props: dict[str, Any]) -> CreateResult:
        # Not the machine's own id, by which commands see whether state knows the machine.
        id_ = f"power/{props['instance_id']}"
        return CreateResult(id_, self._noted(props) | {"started": _token()})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        found = self.client.find_instance(int(props["instance_id"]))
        if found is None:
            return gone()
        # One that is about to run counts as running, as in Linode's own provider.
        state = "running" if found.status in ("booting", "rebooting") else found.status
        return ReadResult(id_, {**props, "state": state, "noted": is_noted(self.client, found.id)})

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        started = olds["started"]
        if self.differs("state", olds, news):
            # The instance, which comes before this, has been booted again by Linode's provider.
            Progress(news["node"]).reached(Stage.PROVIDER_START, "running")
            started = _token()
        # What it was pinned to stays.
        return UpdateResult(self._noted({**news, "made_with": olds["host_key"]}) | {"started": started})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Nothing: the machine's own deletion ends it."""

    def _noted(self, props: Mapping[str, Any]) -> dict[str, Any]:
        host_key = note(self.client, int(props["instance_id"]), props["made_with"])
        return {**props, "host_key": host_key}


class Power(Resource, module="linode", name="Power"):
    """That a machine runs, and is noted to be in state. Linode's provider sees to the first, but tells nobody
    when it had to."""

    started: Output[str]
    """Changes whenever the machine was started again."""
    host_key: Output[str]
    """The public host key the machine was made with: of one that was adopted, another stack's."""

    def __init__(
        self,
        name: str,
        *,
        node: str,
        instance_id: Input[str],
        known_as: Sequence[Input[Any]],
        host_key: Input[str],
        opts: pulumi.ResourceOptions,
    ) -> None:
        """`known_as`: the machine's label and tags; `host_key`: the public key that a new one is given."""
        props: dict[str, Any] = {
            "node": node,
            "instance_id": instance_id,
            "known_as": list(known_as),
            "made_with": host_key,
            "state": "running",
            "noted": True,
            "started": None,
            "host_key": None,
        }
        super().__init__(PowerProvider(), name, props, opts)


# --- hooks ----------------------------------------------------------------------------------------------


def before_machine(name: str, node: str, boot: FirstBoot, *, protect: bool) -> pulumi.ResourceHook:
    """A hook that makes way for the machine about to be created, or refuses it; see `succession`."""

    async def hook(args: pulumi.ResourceHookArgs) -> None:
        inputs = args.new_inputs or {}
        wanted = WantedMachine(
            node=node,
            label=f"{pulumi.get_stack()}/{node}",
            owner=value_of(inputs["tags"], OWNER_TAG),
            name=inputs["label"],
            boot=value_of(inputs["tags"], BOOT_TAG),
            former_boots=[each["boot"] for each in await boot.former.future() or ()],
            made_from=(inputs["region"], inputs["type"], inputs["image"]),
            protect=protect,
        )
        await asyncio.to_thread(make_way_for_machine, client(_program_credentials()), wanted)

    return pulumi.ResourceHook(name, hook)


def before_firewall(name: str, node: str) -> pulumi.ResourceHook:
    """A hook that makes way for the firewall about to be created; see `succession`."""

    async def hook(args: pulumi.ResourceHookArgs) -> None:
        inputs = args.new_inputs or {}
        wanted = Wanted(
            node=node,
            label=f"{pulumi.get_stack()}/{node}",
            owner=value_of(inputs["tags"], OWNER_TAG),
            name=inputs["label"],
        )
        await asyncio.to_thread(make_way_for_firewall, client(_program_credentials()), wanted)

    return pulumi.ResourceHook(name, hook)


def stock_check(name: str, region: str, plan: str, node: pulumi.Resource) -> pulumi.ResourceHook:
    """A hook for the preview of a machine's creation: warns when the region has none left of the plan."""

    async def hook(args: pulumi.ResourceHookArgs) -> None:
        if not pulumi.runtime.is_dry_run():
            return  # it is being created: Linode's own answer comes with it
        try:
            available = await asyncio.to_thread(ask)
        except Exception as error:  # advice must never stop a preview
            pulumi.log.info(f"stock: Linode did not say whether {region} has a {plan}: {error}", node)
            return
        if available is False:
            pulumi.log.warn(
                f"stock: Linode has no {plan} left in {region} just now, so creating it would fail; "
                "choose another region or type, or try again later",
                node,
            )

    def ask() -> bool | None:
        from components.linode.api import LinodeClient  # noqa: PLC0415

        quick = LinodeClient(
            _program_credentials(), patience_s=STOCK_PATIENCE_S, read_timeout_s=STOCK_TIMEOUT_S
        )
        return quick.available(region, plan)

    return pulumi.ResourceHook(name, hook, pulumi.ResourceHookOptions(on_dry_run=True))


def _program_credentials() -> Credentials:
    return Credentials.resolve(pulumi.Config("linode").get)
