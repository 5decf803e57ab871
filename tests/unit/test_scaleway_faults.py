"""Every fault of Scaleway's API × every call of a node's life: create, refresh, change, replace, destroy.

The providers run here as in the engine, over HTTP against the embedded cloud, with a clock that runs faster.
Whatever happens once is got over, or ends in an error that names the call and what to do; the next command
then converges. There is never a second machine for long, and nothing is left behind.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pulumi.dynamic import Config, ConfigureRequest, Resource

from components.dynamic import CloudProvider
from components.gateway import Opening
from components.ownership import FleetOwnerProvider, Retirement
from components.scaleway import owned, resources
from components.scaleway.api import ScalewayClient, Timeouts
from components.scaleway.credentials import Credentials
from fleet.settings.nodes import SCALEWAY_GPU_IMAGE
from simcloud.testing import SimCloud

ZONE = "fr-par-2"
SPEED = 20
"""How many times faster the clients' clock runs: their pauses are those of a real cloud."""
PASSING = ("429", "500", "503", "409", "timeout", "reset", "closed", "lost_reply", "html_502", "truncated")
"""Met once, these are never seen by anybody."""
SPOILT = ("garbage", "wrong_shape", "nulls")
REFUSING = ("403", "404", "quota", "out_of_stock")
FAULTS = (*PASSING, *SPOILT, *REFUSING)
AGAIN = ("lost_reply", "garbage", "403", "404")
"""Tried also where a call is made for the second time."""
PARTS = {"server": 1, "volume": 1, "security_group": 1}


@pytest.fixture
def cloud(emulator: SimCloud, monkeypatch: pytest.MonkeyPatch) -> SimCloud:
    emulator.reset()
    clients: dict[str, ScalewayClient] = {}

    def client_of(credentials: Credentials, zone: str, timeouts: Timeouts) -> ScalewayClient:
        if zone not in clients:
            clients[zone] = ScalewayClient(
                credentials,
                zone,
                timeouts=timeouts,
                clock=lambda: time.monotonic() * SPEED,
                sleep=lambda seconds: time.sleep(seconds / SPEED),
            )
        return clients[zone]

    # What it does is for a process of the engine's own.
    monkeypatch.setattr(CloudProvider, "configure", lambda self, req: None)
    for module in (owned, resources):
        monkeypatch.setattr(module, "client_of", client_of)
    return emulator


@dataclass
class Known:
    """A resource in state."""

    provider: CloudProvider
    id: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]


@dataclass
class Engine:
    """As much of Pulumi's engine as a node's life needs."""

    cloud: SimCloud
    node: dict[str, Any]
    state: dict[str, Known] = field(default_factory=dict)
    boots: int = 0

    def up(self) -> None:
        self.refresh()
        former: list[Known] = []
        try:
            self._program(former)
        finally:
            # The engine deletes what was replaced also where the update failed.
            for known in former:
                known.provider.delete(known.id, known.outputs)

    def refresh(self) -> None:
        for name, known in list(self.state.items()):
            found = known.provider.read(known.id, dict(known.outputs))
            if found.id:
                known.outputs = plain(found.outs)
            else:
                del self.state[name]

    def destroy(self) -> None:
        for name, known in reversed(list(self.state.items())):
            known.provider.delete(known.id, known.outputs)
            del self.state[name]

    def _program(self, former: list[Known]) -> None:
        """A node as `components.scaleway.node` declares it, between its stack's first and last resource."""
        node, mark = self.node, ["vllm-fleet-node=test/a"]
        common = {"zone": ZONE, "node": "a"}
        place = [f"scaleway/{ZONE}"]
        owner = self._register(former, "owner", FleetOwnerProvider(), {"wanted": place, "labels": ["test/a"]})
        ours = {**common, "owner": owner.id, "tags": [*mark, *node["tags"]]}

        def declare(kind: type[Resource], **args: Any) -> Known:
            provider, props = declared(kind, args)
            return self._register(former, kind.__name__, provider, props)

        group = declare(
            resources.SecurityGroup,
            **ours,
            label=node["name"],
            openings=[Opening("SSH", 22, tuple(node["cidrs"]))],
        )
        server = declare(
            resources.Server,
            **ours,
            label=node["name"],
            commercial_type=node["type"],
            image=SCALEWAY_GPU_IMAGE,
            security_group_id=group.id,
            user_data="#cloud-config",
            host_digest="digest",
            private_network_id=None,
        )
        volume = declare(resources.RootVolume, **ours, server_id=server.id, size_gb=node["size"])
        declare(resources.Power, **common, server_id=server.id, private_ip=None)
        if "HostKeys" not in self.state or self.state["HostKeys"].id != server.id:
            self.boot(server.id)
        declare(resources.HostKeys, **common, server_id=server.id, deadline_s=60)
        # Of the whole stack: it also looks at every refresh for what is in no state.
        declare(
            Retirement,
            owner=SimpleNamespace(id=owner.id, places=owner.outputs["places"]),
            keep=[server.id, volume.id, group.id],
        )

    def boot(self, server_id: str) -> None:
        """What the machine does: publish its host key."""
        self.boots += 1
        url = f"{self.cloud.scaleway_url}/instance/v1/zones/{ZONE}/servers/{server_id}/user_data"
        key = httpx.patch(
            f"{url}/{resources.HOST_KEYS_KEY}",
            content="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 root@a\n",
            headers={"X-Auth-Token": self.cloud.secret_key},
        )
        key.raise_for_status()

    def _register(
        self, former: list[Known], name: str, provider: CloudProvider, props: Mapping[str, Any]
    ) -> Known:
        config = {
            "scaleway:apiUrl": self.cloud.scaleway_url,
            "scaleway:projectId": self.cloud.project,
            "scaleway:accessKey": "SCWXXXXXXXXXXXXXXXXX",
            "scaleway:secretKey": self.cloud.secret_key,
            "scaleway:timeout": "0.5",
        }
        provider.configure(ConfigureRequest(Config(config, "vllm-fleet")))
        known = self.state.get(name)
        checked = provider.check(known.inputs if known else {}, plain(props))
        assert checked.failures == []
        inputs = plain(checked.inputs)
        if known is None:
            made = provider.create(dict(inputs))
            known = Known(provider, made.id, inputs, plain(made.outs))
        else:
            found = provider.diff(known.id, dict(known.outputs), dict(inputs))
            if found.replaces:
                made = provider.create(dict(inputs))
                former.append(known)
                known = Known(provider, made.id, inputs, plain(made.outs))
            elif found.changes:
                updated = provider.update(known.id, dict(known.outputs), dict(inputs))
                known = Known(provider, known.id, inputs, plain(updated.outs))
        self.state[name] = known
        return known


def plain(props: Mapping[str, Any] | None) -> dict[str, Any]:
    """Properties as they pass through the engine, which drops what is null."""
    return {key: value for key, value in (props or {}).items() if value is not None}


def declared(kind: Callable[..., Resource], args: Mapping[str, Any]) -> tuple[CloudProvider, dict[str, Any]]:
    """The provider and the inputs of a resource, as its class hands them to Pulumi."""
    taken: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Resource, "__init__", lambda _, *given: taken.extend(given))
        kind("a", **args, opts=None)
    provider, _, props, _ = taken
    return provider, props


@dataclass(frozen=True)
class Phase:
    """A command, and what comes before it."""

    prepare: Callable[[Engine], None]
    run: Callable[[Engine], None]


def _changed(**changes: tuple[Any, Any]) -> Callable[[Engine], None]:
    """Brings a node up, and gives the other one of two values to each of its settings that are named."""

    def prepare(engine: Engine) -> None:
        if not engine.state:
            engine.up()
        for key, values in changes.items():
            engine.node[key] = values[engine.node[key] == values[0]]

    return prepare


PHASES: Mapping[str, Phase] = {
    "create": Phase(lambda _: None, Engine.up),
    "refresh": Phase(_changed(), Engine.refresh),
    "update": Phase(
        _changed(
            name=("test-a", "test-b"), tags=([], ["team=ml"]), cidrs=(["192.0.2.8/32"], ["192.0.2.9/32"])
        ),
        Engine.up,
    ),
    "grow": Phase(_changed(size=(200, 250)), Engine.up),
    "replace": Phase(_changed(type=("L4-1-24G", "L4-2-24G")), Engine.up),
    "destroy": Phase(_changed(), Engine.destroy),
}
"""The commands of a node's life."""


def life(cloud: SimCloud) -> Engine:
    node = {"name": "test-a", "tags": [], "cidrs": ["192.0.2.8/32"], "size": 200, "type": "L4-1-24G"}
    return Engine(cloud, node)


def parts(cloud: SimCloud) -> dict[str, int]:
    found: dict[str, int] = {}
    for thing in cloud.inventory():
        found[thing["kind"]] = found.get(thing["kind"], 0) + 1
    return found


@pytest.fixture(scope="module")
def counts() -> dict[str, Counter[str]]:
    """How often each phase makes each call; found out once."""
    return {}


def counted(cloud: SimCloud, phase: Phase) -> Counter[str]:
    engine = life(cloud)
    phase.prepare(engine)
    before, boots = cloud.log(), engine.boots
    phase.run(engine)
    calls = Counter(call["call"] for call in cloud.calls(after=before[-1]["seq"] if before else 0))
    # The machine's own, which publishes its key.
    calls["set_user_data"] -= engine.boots - boots
    emptied(engine)
    return +calls


def emptied(engine: Engine) -> None:
    engine.cloud.clear_faults()
    engine.destroy()
    assert parts(engine.cloud) == {}


def trials() -> Iterator[Any]:
    """Each phase with each fault of a call's first reply, or its second; every seventh is tried every day."""
    met = [*((fault, 0) for fault in FAULTS), *((fault, 1) for fault in AGAIN)]
    for number, ((fault, skip), name) in enumerate(product(met, PHASES)):
        yield pytest.param(name, fault, skip, marks=() if number % 7 == 0 else pytest.mark.faults)


@pytest.mark.parametrize(("name", "fault", "skip"), [*trials()])
def test_a_fault_of_any_call_is_got_over_or_explained(
    cloud: SimCloud, counts: dict[str, Counter[str]], name: str, fault: str, skip: int
) -> None:
    """Each call meets it once: the first time that it is made, or the second."""
    phase = PHASES[name]
    if name not in counts:
        counts[name] = counted(cloud, phase)
    calls = [call for call, count in counts[name].items() if count > skip]
    engine = life(cloud)
    phase.prepare(engine)
    for call in calls:
        cloud.set_fault(call, fault, skip=skip)
    failures = 0
    for _ in range(len(calls) + 1):
        planted = {each["call"] for each in cloud.faults()["planted"]}
        try:
            phase.run(engine)
        except Exception as error:
            assert_explained(error, planted)
            failures += 1
        else:
            break
        assert parts(cloud).get("server", 0) <= (2 if name == "replace" else 1)
    assert cloud.faults()["planted"] == [], "not every call was made"
    if fault in PASSING:
        assert failures == 0
    if name != "destroy":
        engine.up()
        assert parts(cloud) == PARTS
    emptied(engine)


def assert_explained(error: Exception, calls: set[str]) -> None:
    said = str(error)
    # Its own class is the one that Pulumi's host prints; see `components.dynamic`.
    assert type(error).__mro__[1].__module__.startswith("components."), repr(error)
    assert any(call in said for call in calls), said
    assert "Fix: " in said, said


# --- what was just made is not known everywhere yet ---

LOOKS = 4
"""How often a list is asked before something is made again whose reply was lost."""
MAKING = ("create_security_group", "create_server")


@pytest.mark.parametrize("misses", [1, *(pytest.param(n, marks=pytest.mark.faults) for n in (2, 3, 4, 6))])
@pytest.mark.parametrize("fault", ["lag", "list_lag"])
@pytest.mark.parametrize("also", [None, "lost_reply", "html_502", "garbage"])
def test_a_node_is_made_once_although_the_api_lags_behind(
    cloud: SimCloud, fault: str, also: str | None, misses: int
) -> None:
    engine = life(cloud)
    for call in MAKING:
        cloud.set_fault(call, fault, misses=misses)
        if also:
            cloud.set_fault(call, also)
    engine.up()
    if also and misses > LOOKS:
        # What nobody could know of was made twice; it is found and removed as soon as it shows.
        engine.up()
    assert parts(cloud) == PARTS
    for known in engine.state.values():
        assert known.inputs.keys() <= known.outputs.keys()
    emptied(engine)


# --- what state knows is not forgotten for a false reply ---


@pytest.mark.parametrize("times", [1, 2, 3, 10])
@pytest.mark.parametrize("call", ["get_server", "get_volume", "get_security_group"])
def test_false_404s_in_a_refresh_do_not_cost_a_machine(cloud: SimCloud, call: str, times: int) -> None:
    engine = life(cloud)
    engine.up()
    before = ids(cloud)
    cloud.set_fault(call, "404", times=times)
    engine.refresh()
    assert {"SecurityGroup", "Server", "RootVolume"} <= engine.state.keys()
    cloud.clear_faults()
    engine.up()
    assert ids(cloud) == before
    emptied(engine)


def test_a_machine_that_is_gone_is_forgotten_and_made_anew(cloud: SimCloud) -> None:
    engine = life(cloud)
    engine.up()
    (former,) = cloud.inventory("server")
    console(cloud, "POST", f"servers/{former['id']}/action", {"action": "terminate"})
    wait_until(lambda: console(cloud, "GET", f"servers/{former['id']}") is None)
    engine.up()
    assert parts(cloud) == PARTS
    assert former["id"] not in ids(cloud)
    emptied(engine)


@pytest.mark.parametrize("name", ["SecurityGroup", "Server", "RootVolume", "Power", "HostKeys"])
def test_a_state_that_lost_the_outputs_of_a_resource_finds_its_object_again(
    cloud: SimCloud, name: str
) -> None:
    engine = life(cloud)
    engine.up()
    (server,) = cloud.inventory("server")
    engine.state[name].outputs = {}
    engine.up()
    assert parts(cloud) == PARTS
    assert server["id"] in ids(cloud)
    engine.state[name].outputs = {}
    emptied(engine)


# --- what somebody changes in the console is seen and undone ---


@pytest.mark.parametrize(
    ("kind", "resource", "change"),
    [
        ("security_group", "SecurityGroup", {"stateful": False}),
        ("security_group", "SecurityGroup", {"outbound_default_policy": "drop"}),
        ("security_group", "SecurityGroup", {"inbound_default_policy": "accept"}),
        ("security_group", "SecurityGroup", {"enable_default_security": False}),
        ("security_group", "SecurityGroup", {"tags": []}),
        ("server", "Server", {"protected": True}),
        ("server", "Server", {"dynamic_ip_required": False}),
        ("server", "Server", {"tags": ["mine"]}),
    ],
)
def test_a_change_in_the_console_is_drift_and_undone(
    cloud: SimCloud, kind: str, resource: str, change: dict[str, Any]
) -> None:
    engine = life(cloud)
    engine.up()
    (thing,) = cloud.inventory(kind)
    path = f"{kind}s/{thing['id']}"
    (before,) = console(cloud, "GET", path).values()
    console(cloud, "PATCH", path, change)
    engine.refresh()
    known = engine.state[resource]
    assert known.provider.diff(known.id, known.outputs, known.inputs).changes
    engine.up()
    (after,) = console(cloud, "GET", path).values()
    for key in change:
        same = sorted if key == "tags" else lambda value: value
        assert same(after[key]) == same(before[key])
    assert ids(cloud) >= {thing["id"]}
    emptied(engine)


def test_destroying_a_protected_machine_says_how_to_take_its_protection_away(cloud: SimCloud) -> None:
    engine = life(cloud)
    engine.up()
    (server,) = cloud.inventory("server")
    console(cloud, "PATCH", f"servers/{server['id']}", {"protected": True})
    engine.refresh()
    with pytest.raises(Exception, match=f"update {server['id']} zone={ZONE} protected=false"):
        engine.destroy()
    console(cloud, "PATCH", f"servers/{server['id']}", {"protected": False})
    emptied(engine)


def test_a_volume_that_its_deleted_server_still_holds_is_waited_for(cloud: SimCloud) -> None:
    engine = life(cloud)
    engine.up()
    (server,) = cloud.inventory("server")
    console(cloud, "POST", f"servers/{server['id']}/action", {"action": "poweroff"})
    wait_until(lambda: console(cloud, "GET", f"servers/{server['id']}")["server"]["state"] == "stopped")
    console(cloud, "DELETE", f"servers/{server['id']}")
    emptied(engine)


def ids(cloud: SimCloud) -> set[str]:
    return {thing["id"] for thing in cloud.inventory()}


def console(cloud: SimCloud, method: str, path: str, body: Any = None) -> Any:
    """A call of the Instance API by somebody else; None where there is no such thing."""
    url = f"{cloud.scaleway_url}/instance/v1/zones/{ZONE}/{path}"
    reply = httpx.request(method, url, json=body, headers={"X-Auth-Token": cloud.secret_key})
    if reply.status_code == 404:
        return None
    reply.raise_for_status()
    return reply.json() if reply.content else {}


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)
