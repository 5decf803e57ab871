"""The Scaleway client against a small stand-in of the API: what it sends, repeats, waits for, and says."""

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.scaleway.api import (
    AuthenticationFailed,
    Credentials,
    DeadlineExceeded,
    InvalidArguments,
    NotFound,
    OutOfStock,
    PermissionDenied,
    PreconditionFailed,
    QuotaExceeded,
    Rule,
    ScalewayClient,
    ScalewayError,
    Server,
    ServerError,
    StartFailed,
    UnexpectedReply,
    Unreachable,
    same_rules,
    sbs_root_volume_id,
)
from components.scaleway.owned import delete_server
from components.scaleway.resources import (
    NodeStopped,
    PowerProvider,
    RootVolumeProvider,
    ScalewayProvider,
)

SECRET = "5ec2e700-0000-4000-8000-00000000cafe"
ZONE = "fr-par-2"
OWNER, PENDING = "vllm-fleet-owner=7f", "vllm-fleet-pending"
IMAGE = "5c3d28db-33ce-4997-8572-f49506339283"

Reply = httpx.Response | Exception
Handler = Callable[[httpx.Request], Reply]


class Time:
    """A clock that moves only when somebody sleeps, or when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


def client_of(handler: Handler, time: Time | None = None) -> ScalewayClient:
    def answer(request: httpx.Request) -> httpx.Response:
        reply = handler(request)
        if isinstance(reply, Exception):
            raise reply
        return reply

    time = time or Time()
    return ScalewayClient(
        Credentials(secret_key=SECRET, project_id="project-1"),
        ZONE,
        transport=httpx.MockTransport(answer),
        clock=time.clock,
        sleep=time.sleep,
    )


def scripted(replies: Sequence[Reply], requests: list[httpx.Request] | None = None) -> Handler:
    """Answers with one reply after the other; the last one stays."""
    left = list(replies)

    def handler(request: httpx.Request) -> Reply:
        if requests is not None:
            requests.append(request)
        return left.pop(0) if len(left) > 1 else left[0]

    return handler


def ok(body: object, status: int = 200, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=body, headers=headers)


def empty(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers=headers)


def server_json(id_: str = "s-1", **changes: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "name": "dev-l4-a",
        "zone": ZONE,
        "project": "project-1",
        "commercial_type": "L4-1-24G",
        "state": "stopped",
        "state_detail": "",
        "tags": [OWNER, PENDING],
        "protected": False,
        "image": {"id": IMAGE},
        "security_group": {"id": "sg-1", "name": "dev-l4-a"},
        "volumes": {
            "0": {"boot": False, "volume_type": "sbs_volume", "id": "v-1", "state": "available", "zone": ZONE}
        },
        "public_ip": None,
        "public_ips": [],
        "creation_date": "2026-08-21T12:41:16.000000+00:00",
        "not_known_here": 1,
    } | changes


def volume_json(size_gb: int = 20, status: str = "in_use") -> dict[str, Any]:
    return {
        "id": "v-1",
        "name": "GPU OS_sbs_volume_0",
        "zone": ZONE,
        "size": size_gb * 10**9,
        "status": status,
        "tags": [],
        "references": [{"product_resource_type": "instance_server", "product_resource_id": "s-1"}],
        "created_at": "2026-08-21T12:41:16Z",
    }


def group_json(id_: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "name": "dev-l4-a",
        "zone": ZONE,
        "project": "project-1",
        "tags": [OWNER],
        "stateful": True,
        "inbound_default_policy": "drop",
        "outbound_default_policy": "accept",
        "enable_default_security": True,
        "servers": [],
        "creation_date": "2026-08-21T12:41:16.000000+00:00",
    } | changes


class Cloud:
    """Servers to list and create; each fault strikes one request, before or after its effect."""

    def __init__(self, faults: Sequence[tuple[str, Callable[[], Reply]]] = ()) -> None:
        self.faults = list(faults)
        self.servers: list[dict[str, Any]] = []
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> Reply:
        moment, fault = self.faults.pop(0) if self.faults else ("never", lambda: empty(500))
        if moment == "before":
            return fault()
        reply = self.answer(request)
        return fault() if moment == "after" else reply

    def answer(self, request: httpx.Request) -> Reply:
        if request.method == "POST":
            body = json.loads(request.content)
            self.bodies.append(body)
            self.servers.append(
                server_json(f"s-{len(self.servers) + 1}", tags=body["tags"], name=body["name"])
            )
            return ok({"server": self.servers[-1]}, 201)
        wanted = request.url.params.get("tags", "").split(",")
        found = [server for server in self.servers if set(wanted) <= set(server["tags"])]
        return ok({"servers": found}, **{"X-Total-Count": str(len(found))})


def create(client: ScalewayClient) -> Server:
    return client.create_server(
        "dev-l4-a",
        commercial_type="L4-1-24G",
        image=IMAGE,
        marks=[OWNER, PENDING],
        tags=["team=ml"],
        security_group="sg-1",
    )


# --- creating exactly once ---


def test_a_server_is_created_from_an_image_alone() -> None:
    cloud = Cloud()
    server = create(client_of(cloud))
    assert server.id == "s-1"
    assert cloud.bodies == [
        {
            "name": "dev-l4-a",
            "commercial_type": "L4-1-24G",
            "image": IMAGE,
            "project": "project-1",
            "tags": ["team=ml", OWNER, PENDING],
            "dynamic_ip_required": True,
            "boot_type": "local",
            "security_group": "sg-1",
        }
    ]


def test_a_server_left_by_an_interrupted_run_is_adopted() -> None:
    cloud = Cloud()
    cloud.servers = [server_json("s-left")]
    assert create(client_of(cloud)).id == "s-left"
    assert cloud.bodies == []


def test_the_server_that_is_being_replaced_is_not_taken_for_its_successor() -> None:
    cloud = Cloud([("never", lambda: empty(500)), ("after", lambda: httpx.ReadError("reset"))])
    cloud.servers = [server_json("s-old", tags=[OWNER])]
    assert create(client_of(cloud)).id == "s-2"
    assert len(cloud.bodies) == 1


BEFORE_EFFECT: list[Callable[[], Reply]] = [
    lambda: empty(429),
    lambda: empty(503),
    lambda: ok({"type": "internal_server_error", "message": "Internal error"}, 500),
    lambda: ok({"type": "transient_state", "resource": "image", "current_state": "busy"}, 409),
    lambda: httpx.ConnectError("refused"),
    lambda: httpx.ConnectTimeout(""),
    lambda: httpx.ReadTimeout(""),
    lambda: httpx.ReadError("reset"),
]
AFTER_EFFECT: list[Callable[[], Reply]] = [
    lambda: empty(502),
    lambda: empty(504),
    lambda: httpx.ReadTimeout(""),
    lambda: httpx.ReadError("reset"),
    lambda: httpx.RemoteProtocolError("closed"),
]
FAULTS = st.one_of(
    st.tuples(st.just("before"), st.sampled_from(BEFORE_EFFECT)),
    st.tuples(st.just("after"), st.sampled_from(AFTER_EFFECT)),
    st.just(("never", BEFORE_EFFECT[0])),
)


@given(st.lists(FAULTS, max_size=7))
def test_any_retriable_faults_before_a_success_end_in_exactly_one_server(faults: list[Any]) -> None:
    cloud = Cloud(faults)
    assert create(client_of(cloud)).id == "s-1"
    assert len(cloud.servers) == 1


@given(st.lists(FAULTS, min_size=8, max_size=80))
def test_faults_that_outlast_the_patience_never_leave_two_servers(faults: list[Any]) -> None:
    cloud = Cloud(faults)
    try:
        create(client_of(cloud))
    except ScalewayError:
        assert len(cloud.servers) <= 1
    else:
        assert len(cloud.servers) == 1


def test_nothing_is_posted_again_while_it_is_unknown_whether_the_first_took_effect() -> None:
    posts = 0

    def handler(request: httpx.Request) -> Reply:
        nonlocal posts
        if request.method == "POST":
            posts += 1
            return httpx.ReadTimeout("")
        return ok({"servers": []}) if posts == 0 else ok({"type": "permissions_denied"}, 403)

    with pytest.raises(Unreachable, match="create_server dev-l4-a") as caught:
        create(client_of(handler))
    assert posts == 1
    assert isinstance(caught.value.__cause__, PermissionDenied)


def test_a_created_server_is_found_even_if_its_reply_was_garbled() -> None:
    cloud = Cloud([("never", lambda: empty(500)), ("after", lambda: httpx.Response(201, text="<html>"))])
    assert create(client_of(cloud)).id == "s-1"
    assert len(cloud.servers) == 1


def test_a_security_group_drops_what_comes_in_by_default() -> None:
    groups: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> Reply:
        if request.method == "POST":
            groups.append(group_json("sg-1", **json.loads(request.content)))
            return ok({"security_group": groups[0]}, 201)
        return ok({"security_groups": groups})

    group = client_of(handler).create_security_group("dev-l4-a", marks=[OWNER])
    assert (group.inbound_default_policy, group.outbound_default_policy, group.stateful) == (
        "drop",
        "accept",
        True,
    )
    assert group.tags == (OWNER,)


def test_a_security_group_in_use_is_not_taken_for_its_successor_and_a_left_one_is() -> None:
    groups = [group_json("sg-old", servers=[{"id": "s-1", "name": "dev-l4-a"}])]

    def handler(request: httpx.Request) -> Reply:
        if request.method == "POST":
            groups.append(group_json("sg-new", **json.loads(request.content)))
            return ok({"security_group": groups[-1]}, 201)
        return ok({"security_groups": groups})

    client = client_of(handler)
    assert client.create_security_group("dev-l4-a", marks=[OWNER]).id == "sg-new"
    assert client.create_security_group("dev-l4-a", marks=[OWNER]).id == "sg-new"
    assert len(groups) == 2


# --- power and size, asked for once ---


class Machine:
    """One server whose actions are counted; `fault` strikes each action after its effect."""

    def __init__(self, state: str, *, effect: str | None, fault: Reply) -> None:
        self.state, self.effect, self.fault = state, effect, fault
        self.actions = 0

    def __call__(self, request: httpx.Request) -> Reply:
        if request.method == "GET":
            return ok({"server": server_json(state=self.state)})
        self.actions += 1
        self.state = self.effect or self.state
        return self.fault


def test_a_power_on_whose_reply_was_lost_is_not_sent_again() -> None:
    machine = Machine("stopped", effect="starting", fault=httpx.ReadTimeout(""))
    client_of(machine).server_action("s-1", "poweron")
    assert machine.actions == 1


def test_a_power_on_of_a_running_server_is_content() -> None:
    refusal = ok({"type": "precondition_failed", "help_message": "server should be stopped"}, 400)
    client_of(Machine("running", effect=None, fault=refusal)).server_action("s-1", "poweron")


def test_a_power_on_of_a_stopping_server_says_what_is_wrong() -> None:
    refusal = ok({"type": "precondition_failed", "help_message": "server should be stopped"}, 400)
    with pytest.raises(PreconditionFailed, match=r"server_action s-1 poweron .*: server should be stopped"):
        client_of(Machine("stopping", effect=None, fault=refusal)).server_action("s-1", "poweron")


def test_a_power_on_without_effect_is_sent_again_until_patience_ends() -> None:
    machine = Machine("stopped", effect=None, fault=empty(503))
    with pytest.raises(ServerError, match="gave up after 8 attempts"):
        client_of(machine).server_action("s-1", "poweron")
    assert machine.actions == 8


def test_a_reboot_that_may_have_happened_is_not_repeated() -> None:
    machine = Machine("running", effect=None, fault=httpx.ReadTimeout(""))
    with pytest.raises(Unreachable):
        client_of(machine).server_action("s-1", "reboot")
    assert machine.actions == 1


def test_terminating_a_server_that_is_gone_is_done() -> None:
    client_of(scripted([ok({"type": "not_found", "message": "resource is not found"}, 404)])).server_action(
        "s-1", "terminate"
    )


@pytest.mark.parametrize(
    ("under_way", "then", "asked"), [("stopping", "stopped", "DELETE"), ("starting", "running", "POST")]
)
def test_a_server_under_way_is_removed_once_it_has_arrived(under_way: str, then: str, asked: str) -> None:
    """Scaleway refuses every action on it before."""
    states = [under_way, under_way, then]
    writes: list[str] = []

    def handler(request: httpx.Request) -> Reply:
        if request.method != "GET":
            assert not states, "asked while it was under way"
            writes.append(request.method)
            return empty(204)
        if "/volumes/" in request.url.path or (writes and not states):
            return ok({"type": "not_found", "message": "resource is not found"}, 404)
        return ok({"server": server_json(state=states.pop(0), volumes={})})

    delete_server(client_of(handler), "s-1", None)
    assert writes == [asked]


def test_growing_a_volume_is_not_asked_again_once_it_has_begun() -> None:
    requests: list[httpx.Request] = []
    client = client_of(scripted([httpx.ReadError("reset"), ok(volume_json(20, "updating"))], requests))
    assert client.grow_volume("v-1", 200 * 10**9).status == "updating"
    assert [request.method for request in requests] == ["PATCH", "GET"]
    assert json.loads(requests[0].content) == {"size": 200 * 10**9}
    assert requests[0].url.path == f"/block/v1/zones/{ZONE}/volumes/v-1"


@pytest.mark.parametrize("call", ["delete_server", "delete_volume", "delete_ip", "delete_security_group"])
def test_deleting_takes_gone_as_done_also_after_a_lost_reply(call: str) -> None:
    requests: list[httpx.Request] = []
    gone = ok({"type": "not_found", "message": "resource is not found"}, 404)
    getattr(client_of(scripted([httpx.ReadTimeout(""), gone], requests)), call)("id-1")
    assert [request.method for request in requests] == ["DELETE", "DELETE", "GET", "GET", "GET"]


# --- what is tried again, and for how long ---


def test_a_rate_limit_without_retry_after_backs_off_exponentially() -> None:
    time = Time()
    limited = empty(429, **{"X-Envoy-Ratelimited": "true"})
    client_of(scripted([*[limited] * 4, ok({"server": server_json()})]), time).get_server("s-1")
    assert len(time.sleeps) == 4
    for longest, slept in zip([0.5, 1, 2, 4], time.sleeps, strict=True):
        assert longest / 2 <= slept <= longest


@pytest.mark.parametrize(("header", "pause"), [("3", 3), ("86400", 30), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)])
def test_retry_after_is_honoured_within_bounds(header: str, pause: float) -> None:
    time = Time()
    client_of(
        scripted([empty(429, **{"Retry-After": header}), ok({"server": server_json()})]), time
    ).get_server("s-1")
    assert time.sleeps == [pause]


def test_a_call_that_times_out_gives_up_within_its_budget() -> None:
    time = Time()

    def handler(request: httpx.Request) -> Reply:
        time.now += 20
        return httpx.ReadTimeout("")

    with pytest.raises(
        Unreachable, match=r"https://api\.scaleway\.com: no reply in time \(gave up after 3 attempts"
    ):
        client_of(handler, time).get_server("s-1")


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (
            401,
            {"type": "denied_authentication", "method": "api_key", "reason": "not_found"},
            AuthenticationFailed,
            "api_key not_found",
        ),
        (
            403,
            {"type": "permissions_denied", "details": [{"action": "write", "resource": "instances"}]},
            PermissionDenied,
            "may not write instances",
        ),
        (
            403,
            {
                "type": "quotas_exceeded",
                "details": [{"resource": "cp_servers_type_L4_1_24G", "quota": 1, "current": 1}],
            },
            QuotaExceeded,
            "cp_servers_type_L4_1_24G 1 of 1 used",
        ),
        (
            400,
            {
                "type": "invalid_arguments",
                "details": [
                    {"argument_name": "image", "reason": "required", "help_message": "key not provided"}
                ],
            },
            InvalidArguments,
            "image: key not provided",
        ),
        (
            400,
            {"type": "invalid_request_error", "fields": {"rules.2.dest_port_to": ["must be at least 1"]}},
            InvalidArguments,
            r"rules\.2\.dest_port_to: must be at least 1",
        ),
        (
            412,
            {"type": "precondition_failed", "help_message": "volume is in use"},
            PreconditionFailed,
            "volume is in use",
        ),
        (503, {"type": "out_of_stock", "resource": "L4"}, OutOfStock, "out of stock: L4"),
        (412, {"type": "out_of_stock", "resource": "L4"}, OutOfStock, "out of stock: L4"),
        (
            404,
            {"type": "not_found", "resource": "instance_server", "resource_id": "s-1"},
            NotFound,
            "instance_server s-1",
        ),
        (409, {"type": "conflict", "message": "name is taken"}, ScalewayError, "name is taken"),
        (501, None, ServerError, "HTTP 501"),
        (302, None, ScalewayError, "HTTP 302"),
        (403, ["not", "a", "mapping"], PermissionDenied, "HTTP 403"),
        (
            400,
            {"type": "invalid_arguments", "details": "odd", "message": "no details"},
            InvalidArguments,
            "no details",
        ),
    ],
)
def test_a_lasting_refusal_is_reported_at_once(status: int, body: object, kind: type, message: str) -> None:
    requests: list[httpx.Request] = []
    reply = empty(status) if body is None else ok(body, status)
    with pytest.raises(ScalewayError, match=message) as caught:
        client_of(scripted([reply], requests)).get_server("s-1")
    assert type(caught.value) is kind
    assert len(requests) == 1
    assert caught.value.status == status
    assert re.fullmatch(r"get_server s-1 \(fr-par-2\): .+\. Fix: .+", str(caught.value))


def test_an_error_is_one_readable_line() -> None:
    quota = {"type": "quotas_exceeded", "message": "quota(s) exceeded\nfor this resource"} | {
        "details": [{"resource": "cp_servers_type_L4_1_24G", "quota": 1, "current": 1}]
    }
    with pytest.raises(QuotaExceeded) as caught:
        create(client_of(scripted([ok({"servers": []}), ok(quota, 403, **{"X-Request-Id": "r-9"})])))
    assert str(caught.value) == (
        "create_server dev-l4-a (fr-par-2): quota exceeded: cp_servers_type_L4_1_24G 1 of 1 used. Fix: ask "
        "Scaleway support for a higher quota, or delete what is no longer needed [request id r-9]"
    )


@pytest.mark.parametrize(
    ("call", "permission"),
    [
        ("get_server", "InstancesFullAccess"),
        ("get_volume", "BlockStorageFullAccess"),
        ("list_ssh_keys", "SSHKeysReadOnly"),
    ],
)
def test_a_denied_permission_names_the_one_to_give(call: str, permission: str) -> None:
    client = client_of(scripted([ok({"type": "permissions_denied"}, 403)]))
    with pytest.raises(PermissionDenied, match=permission):
        getattr(client, call)(*(["id-1"] if call.startswith("get") else []))


DENIED: Reply = ok({"type": "permissions_denied"}, 403)
VOLUME = {"zone": ZONE, "node": "l4-a", "owner": "7f", "server_id": "s-1", "size_gb": 200}
SERVER = {"zone": ZONE, "node": "l4-a", "server_id": "s-1"}


@pytest.mark.parametrize(
    ("provider", "props", "replies", "said"),
    [
        (
            RootVolumeProvider,
            VOLUME,
            [ok({"server": server_json()}), ok(volume_json()), DENIED],
            r"l4-a stopped at 25 % PROVIDER_VOLUME_RESIZE: the root volume did not grow\n"
            r"  seen:  update_volume v-1 .*permission denied.* \| Fix: .*BlockStorageFullAccess.*\n"
            r"  cause: the API key may not change block volumes, .*\n"
            r"  next:  scw block volume get v-1 zone=fr-par-2$",
        ),
        (
            PowerProvider,
            SERVER,
            [ok({"server": server_json(tags=[])}), DENIED],
            r"l4-a stopped at 30 % PROVIDER_START: the server does not start\n"
            r"  seen:  server_action s-1 .*\n"
            r"  cause: its root volume does not hold the image's snapshot, a local volume is attached .*\n"
            r"  next:  scw instance server get s-1 zone=fr-par-2$",
        ),
    ],
)
def test_what_stops_a_node_is_diagnosed_as_the_gate_does(
    provider: type[ScalewayProvider], props: Any, replies: list[Reply], said: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(provider, "client", lambda self, props: client_of(scripted(replies)))
    with pytest.raises(NodeStopped, match=said):
        provider().create(props)


def test_an_unknown_image_is_fixed_by_choosing_another() -> None:
    missing = {"type": "not_found", "resource": "instance_image", "resource_id": IMAGE}
    with pytest.raises(NotFound, match="choose an image that exists in this zone"):
        create(client_of(scripted([ok({"servers": []}), ok(missing, 404)])))


@pytest.mark.parametrize(
    "content", ["<html>log in</html>", "[]", '{"server": {"id": "s-1"}}', '{"server": null}']
)
def test_a_success_of_another_shape_is_no_success(content: str) -> None:
    with pytest.raises(UnexpectedReply, match="get_server s-1"):
        client_of(scripted([httpx.Response(200, text=content)])).get_server("s-1")


def test_the_secret_key_travels_in_its_header_alone() -> None:
    requests: list[httpx.Request] = []
    echo = ok({"type": "invalid_arguments", "message": f"X-Auth-Token: {SECRET}"}, 400)
    with pytest.raises(InvalidArguments) as caught:
        client_of(scripted([echo], requests)).get_server("s-1")
    assert requests[0].headers["X-Auth-Token"] == SECRET
    assert SECRET not in str(requests[0].url)
    assert SECRET not in f"{caught.value} {caught.value!r} {vars(caught.value)}"


@pytest.fixture
def resetting_port() -> Iterator[int]:
    """A port that takes a request and answers with a TCP reset."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    # Linger for no time: closing sends RST instead of FIN.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def over_the_network(port: int) -> ScalewayClient:
    time = Time()
    credentials = Credentials(secret_key=SECRET, project_id="p", api_url=f"http://127.0.0.1:{port}")
    return ScalewayClient(credentials, ZONE, clock=time.clock, sleep=time.sleep)


def test_a_reset_connection_may_hide_an_effect(resetting_port: int) -> None:
    with over_the_network(resetting_port) as client, pytest.raises(Unreachable) as caught:
        client.get_server("s-1")
    assert caught.value.effect_unknown
    assert caught.value.attempts == 8


def test_a_refused_connection_hides_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    # A proxy of the environment must not be asked for what is on loopback.
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:3128")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with (
            over_the_network(unused.getsockname()[1]) as client,
            pytest.raises(Unreachable, match="refused") as caught,
        ):
            client.get_server("s-1")
    assert not caught.value.effect_unknown


# --- lists ---


def test_every_page_is_read_by_the_total_in_the_header() -> None:
    rows = [server_json(f"s-{number}") for number in range(230)]

    def handler(request: httpx.Request) -> Reply:
        page, size = int(request.url.params["page"]), int(request.url.params["per_page"])
        return ok({"servers": rows[(page - 1) * size : page * size]}, **{"X-Total-Count": "230"})

    assert len(client_of(handler).list_servers()) == 230


@pytest.mark.parametrize("total", [{"total_count": 200}, {}])
def test_every_page_is_read_by_the_total_in_the_body_or_until_one_is_not_full(total: dict[str, int]) -> None:
    def handler(request: httpx.Request) -> Reply:
        rows = [volume_json()] * 100 if int(request.url.params["page"]) <= 2 else []
        return ok({"volumes": rows} | total)

    assert len(client_of(handler).list_volumes()) == 200


def test_a_name_matches_exactly_although_the_api_matches_its_beginning() -> None:
    requests: list[httpx.Request] = []
    both = ok({"servers": [server_json("s-10", name="l4-a0"), server_json("s-1", name="l4-a")]})
    found = client_of(scripted([both], requests)).list_servers(name="l4-a")
    assert [server.id for server in found] == ["s-1"]
    assert requests[0].url.params["name"] == "l4-a"


def test_tags_must_all_be_there_and_the_oldest_comes_first() -> None:
    rows = [
        server_json("s-new", creation_date="2026-08-22T00:00:00+00:00"),
        server_json("s-old", creation_date="2026-08-21T00:00:00+00:00"),
        server_json("s-other", tags=[OWNER]),
    ]
    requests: list[httpx.Request] = []
    found = client_of(scripted([ok({"servers": rows})], requests)).list_servers(tags=[OWNER, PENDING])
    assert [server.id for server in found] == ["s-old", "s-new"]
    assert requests[0].url.params["tags"] == f"{OWNER},{PENDING}"


def test_availability_is_a_word_for_each_type() -> None:
    body = {"servers": {"L4-1-24G": {"availability": "shortage"}}}
    assert client_of(scripted([ok(body)])).list_availability() == {"L4-1-24G": "shortage"}


def test_ssh_keys_are_those_of_the_project() -> None:
    requests: list[httpx.Request] = []
    body = {"ssh_keys": [{"id": "k", "name": "me", "public_key": "ssh-ed25519 AAAA me"}], "total_count": 1}
    keys = client_of(scripted([ok(body)], requests)).list_ssh_keys()
    assert keys[0].public_key == "ssh-ed25519 AAAA me"
    assert requests[0].url.path == "/iam/v1alpha1/ssh-keys"
    assert requests[0].url.params["project_id"] == "project-1"


def test_an_image_tells_the_type_of_its_root_volume() -> None:
    image = {"id": IMAGE, "name": "GPU OS", "zone": ZONE, "arch": "x86_64", "state": "available"}
    root = {"root_volume": {"volume_type": "sbs_snapshot", "id": "snap"}}
    assert (
        client_of(scripted([ok({"image": image | root})])).get_image(IMAGE).root_volume_type == "sbs_snapshot"
    )


# --- single objects ---


def test_the_root_volume_is_the_sbs_volume_and_not_the_scratch_volume() -> None:
    scratch = {"id": "v-scratch", "volume_type": "scratch", "size": 3 * 10**12}
    sbs = {"id": "v-root", "volume_type": "sbs_volume"}
    server = client_of(scripted([ok({"server": server_json(volumes={"1": scratch, "0": sbs})})])).get_server(
        "s-1"
    )
    assert sbs_root_volume_id(server) == "v-root"


def test_a_server_without_an_sbs_volume_is_an_error_with_its_fix() -> None:
    local = {"0": {"id": "v-local", "volume_type": "l_ssd"}}
    server = client_of(scripted([ok({"server": server_json(volumes=local)})])).get_server("s-1")
    with pytest.raises(PreconditionFailed, match=r"but 0: l_ssd.*without a `volumes` field.*sbs_snapshot"):
        sbs_root_volume_id(server)


def test_a_missing_object_is_none_to_those_who_look_for_it() -> None:
    client = client_of(scripted([ok({"type": "not_found", "message": "resource is not found"}, 404)]))
    assert client.find_server("s-1") is None
    assert client.find_volume("v-1") is None
    assert client.find_security_group("sg-1") is None


def test_the_public_address_is_the_ipv4_one() -> None:
    ips = [{"address": "2001:db8::1", "family": "inet6"}, {"address": "51.15.0.1", "family": "inet"}]
    assert (
        client_of(scripted([ok({"server": server_json(public_ips=ips)})])).get_server("s-1").public_ip
        == "51.15.0.1"
    )


def test_an_update_sends_what_is_given_and_nothing_else() -> None:
    requests: list[httpx.Request] = []
    client = client_of(scripted([ok({"server": server_json()})], requests))
    client.update_server("s-1", tags=[OWNER], security_group="sg-2")
    assert json.loads(requests[0].content) == {
        "tags": [OWNER],
        "security_group": {"id": "sg-2", "name": "sg-2"},
    }


def test_an_id_cannot_reach_another_path() -> None:
    requests: list[httpx.Request] = []
    client_of(scripted([ok({"server": server_json()})], requests)).get_server("../volumes?x=1")
    assert requests[0].url.raw_path == f"/instance/v1/zones/{ZONE}/servers/..%2Fvolumes%3Fx%3D1".encode()
    with pytest.raises(ValueError, match="an empty id"):
        client_of(scripted([empty(204)])).delete_server("")


def test_user_data_is_sent_as_the_bytes_it_is() -> None:
    requests: list[httpx.Request] = []
    client_of(scripted([empty(204)], requests)).set_user_data("s-1", "cloud-init", b"#cloud-config\n\xff")
    assert (requests[0].method, requests[0].content) == ("PATCH", b"#cloud-config\n\xff")
    assert requests[0].headers["Content-Type"] == "text/plain"


def test_a_missing_key_is_none_but_a_missing_server_is_an_error() -> None:
    assert client_of(scripted([empty(404)])).get_user_data("s-1", "key") is None
    gone = ok({"type": "not_found", "message": "resource is not found"}, 404)
    with pytest.raises(NotFound):
        client_of(scripted([gone])).get_user_data("s-1", "key")


# --- rules ---


def rule_json(
    ip_range: str, *, port: int = 22, to: int | None = None, position: int = 1, **changes: Any
) -> dict[str, Any]:
    return {
        "id": "r",
        "protocol": "TCP",
        "direction": "inbound",
        "action": "accept",
        "ip_range": ip_range,
        "dest_port_from": port,
        "dest_port_to": to,
        "position": position,
        "editable": True,
    } | changes


def test_rules_come_back_in_the_spelling_they_were_given() -> None:
    mail = rule_json("0.0.0.0/0", port=25, direction="outbound", action="drop", editable=False)
    rows = [mail, rule_json("2001:db8::1", position=2), rule_json("203.0.113.7", to=22, position=1)]
    wanted = (Rule("203.0.113.7/32", 22), Rule("2001:db8::1/128", 22, 22, protocol="tcp"))
    assert client_of(scripted([ok({"rules": rows})])).list_rules("sg-1") == wanted


def test_setting_rules_numbers_them_in_order() -> None:
    requests: list[httpx.Request] = []
    rules = [Rule("203.0.113.7/32", 22), Rule("0.0.0.0/0", 8000, 8080, action="drop")]
    client_of(scripted([ok({"rules": []})], requests)).set_rules("sg-1", rules)
    assert requests[0].method == "PUT"
    sent = [
        (rule["ip_range"], rule["dest_port_from"], rule["dest_port_to"], rule["position"])
        for rule in json.loads(requests[0].content)["rules"]
    ]
    assert sent == [("203.0.113.7/32", 22, None, 1), ("0.0.0.0/0", 8000, 8080, 2)]


def test_order_counts_only_where_accept_and_drop_mix() -> None:
    ssh, web = Rule("203.0.113.7/32", 22), Rule("203.0.113.0/24", 443)
    deny = Rule("203.0.113.0/24", 22, action="drop")
    assert same_rules([ssh, web], [web, ssh, ssh])
    assert not same_rules([ssh, web], [ssh])
    assert not same_rules([ssh, deny], [deny, ssh])
    assert same_rules(
        [ssh, Rule("0.0.0.0/0", 25, direction="outbound", action="drop")],
        [Rule("0.0.0.0/0", 25, direction="outbound", action="drop"), ssh],
    )


# --- waits ---


def test_waiting_for_a_server_backs_off() -> None:
    time, states = Time(), ("stopped", "starting", "starting", "starting", "running")
    replies = [ok({"server": server_json(state=state)}) for state in states]
    server = client_of(scripted(replies), time).wait_server("s-1", until={"running"}, deadline_s=60)
    assert server.state == "running"
    for least, slept in zip([0.1, 0.16, 0.256, 0.4096], time.sleeps, strict=True):
        assert least <= slept <= least + 0.05


def test_a_server_that_does_not_start_in_time_says_what_was_seen_and_how_long() -> None:
    time = Time()
    stuck = ok({"server": server_json(state="starting", state_detail="allocating node")})
    with pytest.raises(DeadlineExceeded) as caught:
        client_of(scripted([stuck]), time).wait_server("s-1", until={"running"}, deadline_s=300)
    assert re.match(
        r"wait_server dev-l4-a \(fr-par-2\): deadline exceeded: not running after 300 s, last seen starting "
        r"\(allocating node\)\. Fix: check that its root volume holds the image's snapshot, that no local",
        str(caught.value),
    )
    assert time.now == pytest.approx(1300)
    assert max(time.sleeps) <= 5


def test_a_server_that_falls_back_to_stopped_has_failed_to_start() -> None:
    replies = [ok({"server": server_json(state=state)}) for state in ("stopped", "starting", "stopped")]
    with pytest.raises(StartFailed, match="from starting back to stopped"):
        client_of(scripted(replies)).wait_server("s-1", until={"running"}, deadline_s=300)


def test_waiting_for_a_size_outlasts_the_reply_with_the_old_one() -> None:
    replies = [
        ok(volume_json(20, "updating")),
        ok(volume_json(200, "updating")),
        ok(volume_json(200, "in_use")),
    ]
    volume = client_of(scripted(replies)).wait_volume_size("v-1", 200 * 10**9, deadline_s=60)
    assert (volume.size, volume.status) == (200 * 10**9, "in_use")


def test_a_volume_that_does_not_grow_in_time_says_what_to_check() -> None:
    with pytest.raises(
        DeadlineExceeded, match=r"not 200 GB after 60 s, last seen updating with 20 GB.*server is stopped"
    ):
        client_of(scripted([ok(volume_json(20, "updating"))])).wait_volume_size(
            "v-1", 200 * 10**9, deadline_s=60
        )


GONE = {"type": "not_found", "message": "resource is not found", "resource": "instance_server"}


@pytest.mark.parametrize("call", ["delete_server", "delete_volume", "delete_ip", "delete_security_group"])
def test_deleting_does_not_believe_a_single_404(call: str) -> None:
    requests: list[httpx.Request] = []
    replies = [ok(GONE, 404), ok({"there": True}), empty(204)]
    getattr(client_of(scripted(replies, requests)), call)("id-1")
    assert [request.method for request in requests] == ["DELETE", "GET", "DELETE"]


def test_terminating_does_not_believe_a_single_404() -> None:
    requests: list[httpx.Request] = []
    replies = [ok(GONE, 404), ok({"server": server_json()}), ok({"task": {}}, 202)]
    client_of(scripted(replies, requests)).server_action("s-1", "terminate")
    assert [request.method for request in requests] == ["POST", "GET", "POST"]


def test_one_false_404_does_not_make_an_object_missing() -> None:
    found = client_of(scripted([ok(GONE, 404), ok({"server": server_json()})])).find_server("s-1")
    assert found is not None


def test_what_its_owner_lists_is_there_whatever_its_own_address_says() -> None:
    def handler(request: httpx.Request) -> Reply:
        if not request.url.path.endswith("/servers"):
            return ok(GONE, 404)
        return ok({"servers": [server_json("s-0"), server_json("s-1")]})

    client = client_of(handler)
    assert client.find_server("s-1", owner_tag=OWNER) == Server.parse(server_json("s-1"))
    assert client.find_server("s-2", owner_tag=OWNER) is None


class Late(Cloud):
    """What was created is not found by the next calls about it, and not in the next lists."""

    def __init__(self, misses: int, list_misses: int = 0) -> None:
        super().__init__([("never", lambda: empty(500)), ("after", lambda: httpx.ReadError("reset"))])
        self.misses, self.list_misses = misses, list_misses

    def answer(self, request: httpx.Request) -> Reply:
        if request.url.path.endswith("/servers"):
            if request.method == "GET" and self.bodies and self.list_misses:
                self.list_misses -= 1
                return ok({"servers": []})
            return super().answer(request)
        self.misses -= 1
        if self.misses >= 0:
            return ok({**GONE, "resource_id": "s-1"}, 404)
        return ok({"server": self.servers[0]}) if "user_data" not in request.url.path else empty(204)


def test_calls_about_a_new_server_wait_until_the_api_knows_it() -> None:
    client = client_of(Late(misses=5))
    assert client.get_server(create(client).id).id == "s-1"
    client = client_of(Late(misses=5))
    client.set_user_data(create(client).id, "cloud-init", b"#cloud-config")


def test_a_new_server_that_stays_unknown_is_reported_after_a_while() -> None:
    time = Time()
    client = client_of(Late(misses=1000), time)
    server = create(client)
    with pytest.raises(NotFound, match=r"get_server s-1 .*gave up after 8 attempts"):
        client.get_server(server.id)
    # Later on, a 404 is an answer and no lag.
    time.now += 60
    slept = len(time.sleeps)
    with pytest.raises(NotFound):
        client.get_server(server.id)
    assert len(time.sleeps) == slept


def test_a_server_that_lists_show_late_is_not_created_again() -> None:
    cloud = Late(misses=0, list_misses=3)
    assert create(client_of(cloud)).id == "s-1"
    assert len(cloud.bodies) == 1


def test_a_key_that_a_new_machine_has_not_written_yet_is_no_lag() -> None:
    time = Time()

    def handler(request: httpx.Request) -> Reply:
        return empty(404) if "user_data" in request.url.path else Cloud().answer(request)

    client = client_of(handler, time)
    assert client.get_user_data(create(client).id, "ssh-host-public-keys") is None
    assert time.sleeps == []


@pytest.mark.parametrize("content", ["<html>log in</html>", "[]", '{"server": {"id": null}}', "[" * 100_000])
def test_a_success_of_another_shape_is_asked_for_again(content: str) -> None:
    replies = [httpx.Response(200, text=content), ok({"server": server_json()})]
    assert client_of(scripted(replies)).get_server("s-1").id == "s-1"


def nulled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: nulled(each) for key, each in value.items()}
    return [nulled(each) for each in value] if isinstance(value, list) else None


@pytest.mark.parametrize(
    ("call", "body"),
    [
        ("get_server", {"server": server_json()}),
        ("get_volume", volume_json()),
        ("get_security_group", {"security_group": group_json("sg-1")}),
        ("list_servers", {"servers": [server_json()]}),
        ("list_volumes", {"volumes": [volume_json()]}),
        ("list_security_groups", {"security_groups": [group_json("sg-1")]}),
        ("list_availability", {"servers": {"L4-1-24G": {"availability": "available"}}}),
        ("list_ssh_keys", {"ssh_keys": [{"id": "k", "name": "k", "public_key": "ssh-ed25519 AAAA"}]}),
        ("list_ips", {"ips": [{"id": "i", "address": "51.1.1.1", "zone": ZONE, "type": "routed_ipv4"}]}),
    ],
)
def test_a_reply_without_values_is_no_success(call: str, body: Any) -> None:
    arguments = ["id-1"] if call.startswith("get_") else []
    assert getattr(client_of(scripted([ok(body)])), call)(*arguments)
    with pytest.raises(UnexpectedReply, match=call):
        getattr(client_of(scripted([ok(nulled(body))])), call)(*arguments)


def test_a_server_that_does_not_settle_is_not_judged_as_one_that_does_not_start() -> None:
    settled = {"running", "stopped", "stopped in place"}
    with pytest.raises(DeadlineExceeded, match="exists and bills") as caught:
        client_of(scripted([ok({"server": server_json(state="stopping")})])).wait_server(
            "s-1", until=settled, deadline_s=60
        )
    assert "snapshot" not in str(caught.value)


def test_a_protected_server_says_how_its_protection_is_taken_away() -> None:
    refusal = ok({"type": "precondition_failed", "help_message": "server is protected"}, 400)

    def handler(request: httpx.Request) -> Reply:
        return ok({"server": server_json(protected=True)}) if request.method == "GET" else refusal

    with pytest.raises(PreconditionFailed, match=r"scw instance server update s-1 zone=\S+ protected=false"):
        client_of(handler).server_action("s-1", "terminate")


def test_a_volume_in_error_is_not_free_until_it_is_available() -> None:
    requests: list[httpx.Request] = []
    replies = [ok(volume_json(status="error")), ok(volume_json(status="available")), empty(204)]
    client_of(scripted(replies, requests)).delete_volume_once_detached("v-1", deadline_s=60)
    assert [request.method for request in requests] == ["GET", "GET", "DELETE"]
    with pytest.raises(DeadlineExceeded, match=r"still error after 60 s.*still bills.*support"):
        client_of(scripted([ok(volume_json(status="error"))])).delete_volume_once_detached(
            "v-1", deadline_s=60
        )


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, {"type": "quotas_exceeded"}, "needs neither stock nor quota"),
        (503, {"type": "out_of_stock"}, "needs neither stock nor quota"),
        (400, {"type": "invalid_arguments"}, "still bills"),
        (412, {"type": "precondition_failed"}, "free it from what holds it"),
        (409, {"type": "conflict"}, "still bills"),
        (403, {"type": "permissions_denied"}, "BlockStorageFullAccess"),
    ],
)
def test_a_deletion_that_fails_is_fixed_in_its_own_words(
    status: int, body: object, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Volumes(ScalewayProvider):
        def delete(self, id_: str, props: dict[str, Any]) -> None:
            client_of(scripted([ok(body, status)])).delete_volume(id_)

    with pytest.raises(ScalewayError, match=words):
        Volumes().delete("v-1", {"zone": ZONE})


def test_a_volume_in_error_is_not_waited_for() -> None:
    time = Time()
    with pytest.raises(PreconditionFailed, match="the volume is in state error"):
        client_of(scripted([ok(volume_json(20, "error"))]), time).wait_volume(
            "v-1", until={"in_use"}, deadline_s=60
        )
    assert time.sleeps == []


def test_a_volume_is_deleted_as_soon_as_its_server_lets_go() -> None:
    requests: list[httpx.Request] = []
    replies = [ok(volume_json(status="in_use")), ok(volume_json(status="available")), empty(204)]
    client_of(scripted(replies, requests)).delete_volume_once_detached("v-1", deadline_s=60)
    assert [request.method for request in requests] == ["GET", "GET", "DELETE"]


def test_a_volume_that_stays_attached_is_said_to_bill() -> None:
    with pytest.raises(DeadlineExceeded, match=r"still in_use after 60 s.*still bills"):
        client_of(scripted([ok(volume_json())])).delete_volume_once_detached("v-1", deadline_s=60)


def test_waiting_for_a_server_to_be_gone_ends_with_not_found() -> None:
    replies = [
        ok({"server": server_json(state="stopping")}),
        ok({"type": "not_found", "message": "gone"}, 404),
    ]
    client_of(scripted(replies)).wait_server_gone("s-1", deadline_s=60)


def test_what_the_machine_publishes_is_waited_for() -> None:
    client = client_of(scripted([empty(404), empty(404), httpx.Response(200, text="ssh-ed25519 AAAA\n")]))
    assert client.wait_user_data("s-1", "ssh-host-public-keys", deadline_s=60) == b"ssh-ed25519 AAAA\n"
    with pytest.raises(DeadlineExceeded, match="has not published ssh-host-public-keys after 60 s"):
        client_of(scripted([empty(404)])).wait_user_data("s-1", "ssh-host-public-keys", deadline_s=60)


def test_the_address_of_a_starting_server_is_waited_for() -> None:
    ip = [{"address": "51.15.0.1", "family": "inet"}]
    replies = [
        ok({"server": server_json(state="starting")}),
        ok({"server": server_json(state="running", public_ips=ip)}),
    ]
    assert client_of(scripted(replies)).wait_public_ip("s-1", deadline_s=60) == "51.15.0.1"


def test_loading_the_client_does_not_load_the_http_library() -> None:
    code = "import sys, components.scaleway.api; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
