"""What a machine finds at the outside world's names: package archives and container registries, on loopback.

Every machine has mirrors of its own, so that bandwidth and failures can be set for one and not for its
neighbours. The archives are files, the registry is a real one behind a proxy; both are metered here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import httpx
from pydantic import BaseModel, ConfigDict, Field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from simcloud.vm.serving import LoopbackServer, cut_connection


class Mirror(StrEnum):
    """A group of hosts that fail and are slow together."""

    APT = "apt"
    REGISTRY = "registry"
    WEIGHTS = "weights"
    PYTHON = "python"


_MIRROR_OF_HOST = {
    "archive.ubuntu.com": Mirror.APT,
    "security.ubuntu.com": Mirror.APT,
    "download.docker.com": Mirror.APT,
    "nvidia.github.io": Mirror.APT,
    "developer.download.nvidia.com": Mirror.APT,
    "registry-1.docker.io": Mirror.REGISTRY,
    "ghcr.io": Mirror.REGISTRY,
    "huggingface.co": Mirror.WEIGHTS,
    "repo.anaconda.com": Mirror.PYTHON,
    "pypi.org": Mirror.PYTHON,
    "files.pythonhosted.org": Mirror.PYTHON,
}


COMMIT = "c0ffee" * 6 + "cafe"
WEIGHTS_BYTES = 72 << 20
"""What every model weighs here: as much as the serving image, which is about how it is for a model of 8 to 14
billion parameters in four bits."""


class Fault(StrEnum):
    """How a mirror fails."""

    DOWN = "down"
    """Every connection is cut before a reply."""
    NOT_FOUND = "not_found"
    UNAUTHORIZED = "unauthorized"
    CUT = "cut"
    """The connection breaks in the middle of the body."""


class Condition(BaseModel):
    """State of a mirror, settable at any time; also the JSON of its admin endpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bandwidth: float | None = Field(default=None, gt=0)
    """Bytes a second, over all connections to this mirror; None is unmetered."""
    fault: Fault | None = None
    path: str = ""
    """The fault strikes requests whose path contains this text; the empty text is in every path."""


@dataclass(frozen=True)
class _Body:
    """What an origin has to send, before it is metered."""

    content: AsyncIterator[bytes]
    size: int
    status: int
    headers: dict[str, str]


class Mirrors:
    """The mirrors of one machine: an HTTP and an HTTPS port that answer for every mirrored host."""

    def __init__(self) -> None:
        self._conditions = dict.fromkeys(Mirror, Condition())
        self._free_at = dict.fromkeys(Mirror, 0.0)
        self._servers: list[LoopbackServer] = []
        self._registry: httpx.AsyncClient | None = None
        self._archive = Path()
        self._app = Starlette(
            routes=[Route("/{path:path}", self._answer, methods=["GET", "HEAD", "POST", "PUT", "DELETE"])]
        )

    def __getitem__(self, mirror: Mirror) -> Condition:
        return self._conditions[mirror]

    def __setitem__(self, mirror: Mirror, condition: Condition) -> None:
        self._conditions[mirror] = condition

    async def start(self, *, archive: Path, registry_url: str, certificate: Path) -> tuple[int, int]:
        """Listen; returns the ports of HTTP and HTTPS. Conditions set before hold."""
        self._archive = archive
        self._registry = httpx.AsyncClient(base_url=registry_url, timeout=60)
        http, https = LoopbackServer(self._app), LoopbackServer(self._app, certificate=certificate)
        self._servers = [http, https]
        return http.ports[0], https.ports[0]

    async def stop(self) -> None:
        """Close the ports; the conditions stay for the next start."""
        await asyncio.gather(*(server.close() for server in self._servers))
        self._servers = []
        if self._registry is not None:
            await self._registry.aclose()
            self._registry = None

    async def _answer(self, request: Request) -> Response:
        host = request.headers.get("host", "").partition(":")[0]
        mirror = _MIRROR_OF_HOST.get(host)
        if mirror is None:
            return PlainTextResponse(f"no mirror of {host}\n", status_code=404)
        condition = self._conditions[mirror]
        fault = condition.fault if condition.path in request.url.path else None
        match fault:
            case Fault.DOWN:
                cut_connection()
                return Response()
            case Fault.NOT_FOUND:
                return PlainTextResponse("not found\n", status_code=404)
            case Fault.UNAUTHORIZED:
                return _unauthorized()
        response: Response | _Body
        if mirror is Mirror.REGISTRY:
            response = await self._from_registry(request)
        elif mirror in {Mirror.APT, Mirror.PYTHON}:
            response = self._from_archive(host, request)
        else:
            response = _from_hub(request.url.path)
        if isinstance(response, _Body):
            metered = self._metered(mirror, response, cut=fault is Fault.CUT)
            length = {"content-length": str(response.size)}
            return StreamingResponse(metered, response.status, response.headers | length)
        return response

    def _from_archive(self, host: str, request: Request) -> Response | _Body:
        root = self._archive / ("archive.ubuntu.com" if host == "security.ubuntu.com" else host)
        file = (root / request.path_params["path"]).resolve()
        if file.is_dir():
            file /= "index.html"
        if not file.is_relative_to(root) or not file.is_file():
            return PlainTextResponse("not found\n", status_code=404)
        # pip reads no other index.
        headers = {"content-type": "text/html"} if file.name == "index.html" else {}
        return _Body(_read(file), file.stat().st_size, 200, headers)

    async def _from_registry(self, request: Request) -> Response | _Body:
        assert self._registry is not None
        asked = self._registry.build_request(
            request.method,
            request.url.path,
            params=request.query_params,
            # Pairs, not a mapping: Docker says each type it accepts in a header of its own.
            headers=[(key, value) for key, value in request.headers.items() if key in {"accept", "range"}],
        )
        reply = await self._registry.send(asked, stream=True)
        kept = {
            key: value
            for key, value in reply.headers.items()
            if key.startswith(("content-", "docker-", "etag"))
        }
        if request.method == "HEAD" or "content-length" not in kept:
            await reply.aread()
            return Response(reply.content, status_code=reply.status_code, headers=kept)
        return _Body(reply.aiter_raw(), int(kept["content-length"]), reply.status_code, kept)

    async def _metered(self, mirror: Mirror, body: _Body, *, cut: bool) -> AsyncIterator[bytes]:
        sent = 0
        async for chunk in body.content:
            if cut and sent + len(chunk) > body.size // 2:
                cut_connection()
                # The lost connection cancels this; to return would be to end the body properly.
                await asyncio.get_running_loop().create_future()
            await self._wait_for_turn(mirror, len(chunk))
            sent += len(chunk)
            yield chunk

    async def _wait_for_turn(self, mirror: Mirror, size: int) -> None:
        """Sleep until the mirror's line has carried `size` more bytes."""
        bandwidth = self._conditions[mirror].bandwidth
        if bandwidth is None:
            return
        now = time.monotonic()
        self._free_at[mirror] = max(now, self._free_at[mirror]) + size / bandwidth
        await asyncio.sleep(self._free_at[mirror] - now)


def _from_hub(path: str) -> Response | _Body:
    """A Hugging Face hub that has every model: one commit, one file."""
    if path.startswith("/api/models/"):
        return JSONResponse({"sha": COMMIT, "siblings": [{"rfilename": "model.safetensors"}]})
    if path.endswith(f"/resolve/{COMMIT}/model.safetensors"):
        return _Body(_zeros(WEIGHTS_BYTES), WEIGHTS_BYTES, 200, {})
    return PlainTextResponse("not found\n", status_code=404)


async def _zeros(size: int) -> AsyncIterator[bytes]:
    for start in range(0, size, 64 * 1024):
        yield bytes(min(64 * 1024, size - start))


async def _read(file: Path) -> AsyncIterator[bytes]:
    with file.open("rb") as content:
        while chunk := content.read(64 * 1024):
            yield chunk


def _unauthorized() -> Response:
    return JSONResponse(
        {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required", "detail": None}]},
        status_code=401,
        headers={
            "WWW-Authenticate": 'Basic realm="registry"',
            "Docker-Distribution-Api-Version": "registry/2.0",
        },
    )
