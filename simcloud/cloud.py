"""What every embedded cloud is made of: named calls, replies, and a place in the simulation.

An emulator (`simcloud.scaleway`, …) declares its calls and answers them with plain functions. Reading
requests, faults, the log and transactions are the same for all and happen here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from simcloud.faults import Fault, FaultKind, Faults, Lag
from simcloud.journal import Journal
from simcloud.machines import Machines
from simcloud.store import Document, Store
from simcloud.timers import Timers

NODE_TAG = "vllm-fleet-node="
OWNER_TAG = "vllm-fleet-owner="
"""Tag `vllm-fleet-node=<stack>/<name>`: which node an object belongs to."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """An HTTP reply. A body that is not bytes is sent as JSON; None sends no body."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        if self.body is None:
            return Response(status_code=self.status, headers=dict(self.headers))
        if isinstance(self.body, bytes):
            headers = {"Content-Type": "text/plain", **self.headers}
            return Response(self.body, status_code=self.status, headers=headers)
        headers = {"Content-Type": "application/json", **self.headers}
        return Response(json.dumps(self.body), status_code=self.status, headers=headers)


class ApiError(Exception):
    """A refusal, in the cloud's own shape."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.body)
        self.reply = reply


@dataclass(frozen=True)
class Received:
    """A request as it reached a call."""

    call: Call
    path: str
    params: Mapping[str, str]
    query: Mapping[str, str]
    query_string: str
    headers: Mapping[str, str]
    raw: bytes

    @cached_property
    def json(self) -> Json:
        """The body as a JSON object; empty when there is none or it is something else."""
        try:
            body = json.loads(self.raw)
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}


@dataclass(frozen=True)
class Call:
    """One call of a cloud's API."""

    name: str
    method: str
    path: str
    """Below the cloud's prefix; empty where the request itself names its call (see `Cloud.recognize`)."""
    handler: Callable[[Received], Reply]
    resource: str = ""
    """What the call is about, in the words of the cloud's permission errors."""
    raw_body: bool = False
    """The body is data, not JSON: the log keeps its digest and size only."""
    secret_fields: frozenset[str] = frozenset()
    """Fields of the body of which the log keeps digest and size only."""


class Cloud(Protocol):
    """An embedded cloud."""

    name: str
    prefix: str
    calls: list[Call]

    def recognize(self, received: Received, method: str) -> Received:
        """The request with the call it is, for a cloud whose requests name their call in their body."""
        return received

    def authorize(self, received: Received) -> None:
        """Raises ApiError unless the request carries a known key and its permission was not taken away."""

    def names(self, received: Received) -> Iterable[str]:
        """Names of the node and the objects a request is about, the node's own first."""

    def refusal(self, kind: FaultKind, received: Received) -> Reply:
        """The cloud's own reply for a fault that is a status."""

    def not_found(self, received: Received) -> Reply:
        """The cloud's own reply for a path it does not know."""

    def inventory(self) -> Iterable[Json]:
        """Everything that exists, each with cloud, kind, id, name, node, state and whether it bills."""

    def private_addresses(self) -> Iterable[tuple[str, str]]:
        """Each machine's address in a private network, and the loopback address at which it really is."""
        return ()

    def objects(self) -> frozenset[str]:
        """Ids of everything that exists, to see what a call made."""

    def hiding(self, lags: Sequence[Lag]) -> AbstractContextManager[None]:
        """In the block, calls do not know of what the lags hide."""

    async def start(self) -> None:
        """Takes up what was under way and powers on the machines that should run."""

    def reset(self) -> None:
        """Forgets what it knows outside the store: nothing, for a cloud that keeps all of it there."""
        return


class Conditions(Document):
    """What the operator of the simulation has decided, for all clouds."""

    id: str = "conditions"
    denied_calls: list[str] = Field(default_factory=list)
    """Calls refused for missing permission."""
    quotas: dict[str, int] = Field(default_factory=dict)
    """Largest allowed number by the cloud's name of the quota; what is not named is unlimited."""
    stock: dict[str, str] = Field(default_factory=dict)
    """`<cloud>/<zone or region>/<type>` to the cloud's own word for its availability."""
    node_faults: dict[str, str] = Field(default_factory=dict)
    """Node name to the fault its machine has."""


class Simulation:
    """What the embedded clouds of one emulator share."""

    def __init__(
        self, store: Store, journal: Journal, faults: Faults, timers: Timers, machines: Machines
    ) -> None:
        self.store = store
        self.journal = journal
        self.faults = faults
        self.timers = timers
        self.machines = machines
        self._conditions = store.table("conditions", Conditions)

    @property
    def conditions(self) -> Conditions:
        return self._conditions.get("conditions") or Conditions()

    @conditions.setter
    def conditions(self, conditions: Conditions) -> None:
        self._conditions.put(conditions)


def node_name(name: str, tags: Iterable[str]) -> str:
    """The node an object belongs to: what its tags say (stack/node, or stack/node/id), else its own name."""
    for tag in tags:
        if tag.startswith(OWNER_TAG) and tag.count("/") == 2:
            return tag.split("/")[1]
        if tag.startswith(NODE_TAG):
            return tag.rpartition("/")[2].removeprefix(NODE_TAG)
    return name


def routes(cloud: Cloud, simulation: Simulation) -> list[Route]:
    """The cloud's calls as routes, and a last one that logs and refuses everything else."""
    unknown = Call("unknown", "*", "{rest:path}", cloud.not_found)
    return [
        *(_route(cloud, call, simulation, [call.method]) for call in cloud.calls if call.path),
        _route(cloud, unknown, simulation, ["GET", "POST", "PUT", "PATCH", "DELETE"]),
    ]


def _route(cloud: Cloud, call: Call, simulation: Simulation, methods: list[str]) -> Route:
    async def endpoint(request: Request) -> Response:
        received = Received(
            call=call,
            path=request.url.path,
            params=request.path_params,
            query=dict(request.query_params),
            query_string=request.url.query,
            headers=request.headers,
            raw=await request.body(),
        )
        return await _answer(cloud, cloud.recognize(received, request.method), simulation, request)

    return Route(cloud.prefix + call.path, endpoint, methods=methods)


async def _answer(cloud: Cloud, received: Received, simulation: Simulation, request: Request) -> Response:
    call, faults = received.call, simulation.faults
    names = [name for name in cloud.names(received) if name]
    node = names[0] if names else None
    entry = simulation.journal.request(
        cloud=cloud.name,
        call=call.name,
        method=request.method,
        path=received.path,
        query=received.query_string,
        body=_loggable(received),
        node=node,
    )
    fault: FaultKind | None = None
    lag: Fault | None = None

    def answered(reply: Reply | None) -> Response:
        met = fault or (lag.fault if lag else None)
        simulation.journal.answered(entry, status=reply.status if reply else None, fault=met)
        if reply is None:
            return NoReply(fault)
        return TornReply(reply.response()) if fault is FaultKind.TRUNCATED else reply.response()

    try:
        cloud.authorize(received)
        fault, lag = faults.take(call.name, names), faults.take_lag(call.name, names)
        if fault in SILENT:
            return answered(None)
        if fault in REFUSING:
            return answered(cloud.refusal(fault, received))
        if fault is FaultKind.HOLD and not await _or_gone(faults.hold(call.name, node, fault), request):
            return answered(None)
        known = cloud.objects() if lag else frozenset()
        with simulation.store.transaction(), faults.lags() as lags, cloud.hiding(lags):
            reply = call.handler(received)
        if lag:
            faults.hide(cloud.objects() - known, lag)
    except ApiError as error:
        reply = error.reply
    if fault is FaultKind.LOST_REPLY:
        return answered(None)
    if fault is FaultKind.HOLD_AFTER and not await _or_gone(faults.hold(call.name, node, fault), request):
        return answered(None)
    return answered(spoilt(reply, fault))


def _loggable(received: Received) -> Any:
    if not received.raw:
        return None
    if received.call.raw_body:
        return _digest(received.raw)
    return {
        key: _digest(json.dumps(value).encode()) if key in received.call.secret_fields else value
        for key, value in received.json.items()
    }


def _digest(data: bytes) -> Json:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


async def _or_gone(wait: Coroutine[Any, Any, None], request: Request) -> bool:
    """Waits; returns False when the client goes away first."""
    waiting = asyncio.create_task(wait)
    gone = asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.done()
    finally:
        for task in (waiting, gone):
            task.cancel()
        await asyncio.gather(waiting, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


SILENT = frozenset({FaultKind.TIMEOUT, FaultKind.RESET, FaultKind.CLOSED})
"""These have no effect and get no reply."""
REFUSING = frozenset(
    {
        *(FaultKind.RATE_LIMITED, FaultKind.SERVER_ERROR, FaultKind.UNAVAILABLE, FaultKind.FORBIDDEN),
        *(FaultKind.NOT_FOUND, FaultKind.CONFLICT, FaultKind.QUOTA, FaultKind.OUT_OF_STOCK),
    }
)
"""These have no effect, and a reply in the cloud's own words."""

PROXY_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
LOGIN_PAGE = b"<!DOCTYPE html><html><body>Please sign in to this network.</body></html>"


def spoilt(reply: Reply, fault: FaultKind | None) -> Reply:
    """A reply as a fault leaves it."""
    html = {"Content-Type": "text/html"}
    match fault:
        case FaultKind.HTML_502:
            return Reply(502, PROXY_PAGE, html)
        case FaultKind.GARBAGE:
            return Reply(200, LOGIN_PAGE, html)
        case FaultKind.WRONG_SHAPE if _is_xml(reply.body):
            return replace(reply, body=b"<Unexpected><shape/></Unexpected>")
        case FaultKind.WRONG_SHAPE:
            return replace(reply, status=max(reply.status, 200), body=b'["an unexpected shape"]')
        case FaultKind.NULLS:
            return replace(reply, body=_without_values(reply.body))
        case _:
            return reply


def _is_xml(body: Any) -> bool:
    return isinstance(body, bytes) and body.lstrip().startswith(b"<")


def _without_values(body: Any) -> Any:
    if _is_xml(body):
        return re.sub(rb">[^<]+<", b"><", body)
    try:
        return _nulled(json.loads(body) if isinstance(body, bytes) else body)
    except ValueError:
        return b""


def _nulled(value: Any) -> Any:
    """The same keys and lists, with null for every value in them."""
    if isinstance(value, dict):
        return {key: _nulled(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_nulled(each) for each in value]
    return None


class NoReply(Response):
    """Says nothing: the connection is reset, closed, or stays open until the client closes it."""

    def __init__(self, fault: FaultKind | None) -> None:
        super().__init__()
        self._fault = fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport: asyncio.Transport = scope["state"]["transport"]
        if self._fault not in (FaultKind.TIMEOUT, FaultKind.CLOSED):
            # Closing without lingering sends RST instead of FIN.
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
            )
        if self._fault is not FaultKind.TIMEOUT:
            transport.abort()
        await _gone(receive)


class TornReply(Response):
    """Ends in the middle: all headers, half of the body, and the connection is closed."""

    def __init__(self, whole: Response) -> None:
        super().__init__(whole.body, whole.status_code)
        self.raw_headers = whole.raw_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        half = bytes(self.body)[: len(self.body) // 2]
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": half, "more_body": True})
        scope["state"]["transport"].close()
        await _gone(receive)
