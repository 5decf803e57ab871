"""What Linode's provider leaves open about a node: who owns what, and that it stays behind its firewall.

Linode's provider makes the machine and the firewall. It cannot pick up what an interrupted run left: such an
object is in no state, and its label is taken. So everything a node consists of carries the node's owner tag,
and

- just before a machine is created, those that carry the tag are removed: they are in no state, for a node
  has one machine, whose replacement is created only after the old one is deleted;
- just before a firewall is created, those that carry the tag and protect nothing are removed;
- when the node goes, whatever still carries the tag goes with it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi import Input, Output
from pulumi.dynamic import ConfigureRequest, CreateResult, ReadResult, Resource, UpdateResult

from components.dynamic import CloudProvider, gone
from components.linode.credentials import Credentials
from components.tags import OWNER_TAG
from fleet.progress import Progress, Stage

if TYPE_CHECKING:
    from components.linode.api import LinodeClient

STOCK_TIMEOUT_S = 5.0
STOCK_PATIENCE_S = 1.0
"""A preview does not wait long for advice."""


@lru_cache(maxsize=4)
def client(credentials: Credentials) -> LinodeClient:
    """The client of an account."""
    # The HTTP library is loaded at the first call: most runs make none.
    from components.linode.api import LinodeClient  # noqa: PLC0415

    return LinodeClient(credentials)


class LinodeProvider(CloudProvider):
    """Adds credentials, by configuration or Linode's own environment; never by inputs."""

    def configure(self, req: ConfigureRequest) -> None:
        super().configure(req)
        self._credentials = Credentials.resolve(lambda key: req.config.get(f"linode:{key}"))

    @property
    def client(self) -> LinodeClient:
        return client(self._credentials)


def owner_tag(owner: str) -> str:
    """The tag of what a node owns: 49 characters, where Linode takes 50."""
    return f"{OWNER_TAG}={owner}"


class NodeOwnerProvider(LinodeProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        Progress(props["node"]).reached(Stage.REQUEST_CREATE)
        return CreateResult(uuid.uuid4().hex, props)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        return ReadResult(id_, props)  # it exists in state alone

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(news)

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        remove_instances(self.client, owner_tag(id_))
        remove_firewalls(self.client, owner_tag(id_))


class NodeOwner(Resource, module="linode", name="NodeOwner"):
    """The id by which everything of one node is found again, whatever happened to the program.

    It is in state before the first object is created, and it goes last.
    """

    def __init__(self, name: str, *, node: str, opts: pulumi.ResourceOptions) -> None:
        super().__init__(NodeOwnerProvider(), name, {"node": node}, opts)


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
        if instance not in (self.client.behind_firewall(firewall) or ()):
            self.client.put_behind(firewall, instance)


class PowerProvider(LinodeProvider):
    replace_on = frozenset({"instance_id"})
    update_on = frozenset({"state"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(props["instance_id"], {**props, "started": _moment()})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        found = self.client.find_instance(int(props["instance_id"]))
        if found is None:
            return gone()
        # One that is about to run counts as running, as in Linode's own provider.
        state = "running" if found.status in ("booting", "rebooting") else found.status
        return ReadResult(id_, {**props, "state": state})

    def update(self, id_: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        # The instance, which comes before this, has been booted again by Linode's provider.
        Progress(news["node"]).reached(Stage.PROVIDER_START, "running")
        return UpdateResult({**news, "started": _moment()})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Nothing: the instance's own deletion ends it."""


def _moment() -> str:
    return uuid.uuid4().hex[:12]


class Power(Resource, module="linode", name="Power"):
    """That a machine runs. Linode's provider sees to that, but tells nobody when it had to."""

    started: Output[str]
    """Changes whenever the machine was started again."""

    def __init__(
        self, name: str, *, node: str, instance_id: Input[str], opts: pulumi.ResourceOptions
    ) -> None:
        props: dict[str, Any] = {
            "node": node,
            "instance_id": instance_id,
            "state": "running",
            "started": None,
        }
        super().__init__(PowerProvider(), name, props, opts)


class FirewallAttachment(Resource, module="linode", name="FirewallAttachment"):
    """That a machine is behind its firewall: it is from its creation on; this notices and mends when not."""

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


def remove_instances(api: LinodeClient, tag: str) -> None:
    """Delete every instance that carries the tag, and wait until they are gone."""
    for instance in api.instances(tag):
        api.delete_instance(instance.id)


def remove_firewalls(api: LinodeClient, tag: str) -> None:
    """Delete every firewall that carries the tag."""
    for firewall in api.firewalls(tag):
        api.delete_firewall(firewall.id)


def make_way(api: LinodeClient, tag: str) -> None:
    """Let a firewall be made: delete those with the tag that nothing is behind, an interrupted run's.

    One with a machine behind it is about to be replaced. It gives up its label, and keeps the machine until
    that is behind the new one.
    """
    for firewall in api.firewalls(tag):
        if api.behind_firewall(firewall.id):
            api.rename_firewall(firewall.id, f"replaced-{firewall.id}")
        else:
            api.delete_firewall(firewall.id)


def before_create(
    name: str, node: str, remove: Callable[[LinodeClient, str], None], *, protect: bool = False
) -> pulumi.ResourceHook:
    """A hook that removes what an interrupted run left of the resource about to be created.

    With `protect`, nothing is removed: what is found fails the creation.
    """

    async def hook(args: pulumi.ResourceHookArgs) -> None:
        tags = (args.new_inputs or {})["tags"]
        tag = next(tag for tag in tags if tag.startswith(f"{OWNER_TAG}="))
        await asyncio.to_thread(run, tag)

    def run(tag: str) -> None:
        api = client(_program_credentials())
        if protect and (left := api.instances(tag)):
            raise RuntimeError(
                f"{node}: protected, and instance {left[0].id} ({left[0].label}) carries its owner tag but "
                "is not in the state. Mend: bring it in with `pulumi import`, or delete it; then run this "
                "again"
            )
        remove(api, tag)

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
