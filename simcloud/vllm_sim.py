"""A stand-in for vLLM's OpenAI-compatible server: flags, log marks, routes and failures, without a GPU.

Standard library only, with what else is in `FILES`: it runs inside a light node (`Simulator`, no socket of
its own), and as the program of the stand-in container image (`python vllm_sim.py --model …`). It behaves as
the release that it is told to be: the port answers only once the engine is up, the key guards some paths
alone, `/health` says nothing about generation, and paths are routed as vLLM's uvicorn and Starlette route
them (see `_route`). `make test-engine` puts the same questions to vLLM 0.32.0 itself.

It fails for the reasons vLLM fails: unknown flags, weights or context that do not fit, a gated model without
a token, a model that does not exist (any name with `does-not-exist` in it). `VLLM_SIM_FAULT`, or a model
named `fault/NAME`, makes it fail on purpose; `VLLM_SIM_SPEED` (0 is at once), `VLLM_SIM_VERSION`,
`VLLM_SIM_GPUS` and `VLLM_SIM_GPU_MEMORY_MIB` describe the rest of the pretence.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from fleet.fit.versions import VllmVersion
from simcloud import vllm_api
from simcloud.vllm_api import Refused, Reply
from simcloud.vllm_flags import BadFlags, Options, parse_options, quantizations
from simcloud.vllm_metrics import Measured

GIB = 2**30
FILES = (
    *("simcloud/__init__.py", "simcloud/vllm_sim.py", "simcloud/vllm_api.py", "simcloud/vllm_flags.py"),
    *("simcloud/vllm_metrics.py", "simcloud/vllm_metrics.txt", "fleet/__init__.py"),
    *("fleet/engine/__init__.py", "fleet/engine/releases.py", "fleet/engine/arguments.json"),
    "fleet/fit/versions.py",
)
"""All that the program needs, by its place in this project."""

PROCESS_NAMES = VllmVersion(0, 10, 2)
"""Since then a line of the log begins with the process that wrote it."""
TASK_ROUTES = VllmVersion(0, 32)
"""Seen in that release: routes of tasks that the model is not for do not exist."""
MORE_GUARDED = VllmVersion(0, 32)
"""Seen in that release: the key guards more than `/v1`, by the path alone, and takes a small `bearer`."""


class Fault(StrEnum):
    """Ways to misbehave on purpose."""

    OOM = "oom"
    HANG_LOADING = "hang_loading"
    """Loads for ever: the port never answers."""
    HUNG = "hung"
    """Healthy, but completions never answer (vllm #36960)."""
    WRONG_MODEL = "wrong_model"
    KEY_REFUSED = "key_refused"
    NO_AUTH = "no_auth"
    """Answers without the key."""
    MODEL_NOT_FOUND = "model_not_found"
    TOKEN_REFUSED = "token_refused"
    EXIT_LOOP = "exit_loop"
    """Ends with an error a second after each start."""
    BAD_FLAG = "bad_flag"
    NO_CHAT_TEMPLATE = "no_chat_template"
    """Completes, and refuses every chat."""
    SLOW = "slow"
    """Takes ten times as long over everything."""


class State(StrEnum):
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    EXITED = "exited"


# --- HTTP -------------------------------------------------------------------------------------------------


class Reader(Protocol):
    """What asyncio's and asyncssh's stream readers share."""

    async def readuntil(self, separator: bytes, /) -> bytes: ...
    async def readexactly(self, n: int, /) -> bytes: ...
    async def read(self, n: int = ..., /) -> bytes: ...


class Writer(Protocol):
    """What asyncio's and asyncssh's stream writers share."""

    def write(self, data: bytes, /) -> None: ...
    async def drain(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    """Percent-decoded once, and otherwise as sent: uvicorn neither resolves dots nor merges slashes."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    disconnected: Callable[[], Awaitable[object]]
    """Returns when the client has gone away."""


@dataclass(frozen=True)
class Response:
    body: bytes | AsyncIterator[bytes]
    """An iterator is sent in chunks, as it comes."""
    status: int = 200
    content_type: str = "application/json"
    """Empty: none is said."""
    headers: Mapping[str, str] = field(default_factory=dict)


async def serve_http(
    reader: Reader, writer: Writer, respond: Callable[[Request], Awaitable[Response]]
) -> None:
    """Answer the HTTP/1.1 requests of one connection until the client closes it."""
    with suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, OSError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            request_line, *lines = head.strip().split("\r\n")
            method, target, _ = request_line.split(" ", 2)
            headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            request = Request(method, _decoded_path(target), headers, body, lambda: reader.read(1))
            answer = await respond(request)
            keep = headers.get("connection", "").lower() != "close"
            await _send(writer, answer, keep=keep, with_body=method != "HEAD")
            if not keep:
                break
    writer.close()


def _decoded_path(target: str) -> str:
    """The path of a request target, in origin form or as an absolute URI."""
    path = target.partition("?")[0]
    if absolute := re.match(r"https?://[^/]*", path, re.IGNORECASE):
        path = path[absolute.end() :] or "/"
    return unquote(path)


async def _send(writer: Writer, answer: Response, *, keep: bool, with_body: bool) -> None:
    body = answer.body
    framing = f"Content-Length: {len(body)}" if isinstance(body, bytes) else "Transfer-Encoding: chunked"
    named = {"Content-Type": answer.content_type} if answer.content_type else {}
    headers = "".join(f"{name}: {value}\r\n" for name, value in {**named, **answer.headers}.items())
    writer.write(
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\nServer: uvicorn\r\n"
        f"{framing}\r\n{headers}"
        f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n".encode()
    )
    if not with_body:
        pass
    elif isinstance(body, bytes):
        writer.write(body)
    else:
        async for part in body:
            writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
    await writer.drain()


# --- Engine -----------------------------------------------------------------------------------------------


class _EngineDied(Exception):
    """The process ends with this status; the log says why."""

    def __init__(self, log: str, status: int = 1) -> None:
        super().__init__(log)
        self.status = status


@dataclass(frozen=True)
class Gpus:
    """What the machine has."""

    count: int = 1
    memory_mib: int = 23034
    """Per GPU, as the driver reports it: an L4's by default."""


class _TaskRoute(NamedTuple):
    """A route of models that are for one task."""

    task: str
    api: str
    """What vLLM calls it where it refuses a request."""
    answer: Callable[[Simulator, Request], Awaitable[Response]]


_BYTES_PER_WEIGHT = {"awq": 0.55, "awq_marlin": 0.55, "gptq": 0.55, "gptq_marlin": 0.55, "fp8": 1.0}
_GATED = re.compile(r"^(meta-llama/|google/gemma|mistralai/)")
_ANSWER = ("This", " is", " a", " simulated", " answer", ":", " no", " model", " was", " asked", ".")


class Simulator:
    """One vLLM process: `run` is its life, `connection` answers one client of its port.

    `speed` multiplies every simulated delay (seconds); 0 passes through every state at once.
    `weights` is the folder that remembers downloaded models over restarts, None remembers nothing.
    """

    WIDTH = 64
    """Numbers in an embedding."""
    DOWNLOAD_S, LOAD_S, COMPILE_S, TOKEN_S = 3.0, 1.5, 1.5, 0.01

    def __init__(
        self,
        options: Options,
        *,
        version: str = "0.9.2",
        hf_token: str = "",
        gpus: Gpus | None = None,
        fault: Fault | None = None,
        speed: float = 1.0,
        weights: Path | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        named = (
            options.model.removeprefix("fault/").replace("-", "_")
            if options.model.startswith("fault/")
            else None
        )
        self.options = options
        self.version = version
        self._release = VllmVersion.parse(version)
        self.fault = Fault(named) if named in set(Fault) else fault
        self.state = State.STARTING
        self.ready = asyncio.Event()
        self._hf_token = hf_token
        self._gpus = gpus or Gpus()
        self._speed = max(speed, 0.05) * 10 if self.fault is Fault.SLOW else speed
        self._weights = weights
        self._log = log
        self._measured = Measured(",".join(options.served_names))
        self._max_model_len = options.max_model_len or 40960
        self._kv_tokens = 0
        self._started_at = int(time.time())

    async def run(self) -> int:
        """Start, load, serve until cancelled; returns the exit status if the engine dies by itself."""
        try:
            await self._start()
            await self._load()
            self.state = State.READY
            self.ready.set()
            await asyncio.Event().wait()
        except _EngineDied as death:
            for line in str(death).splitlines():
                self._log(line)
            return death.status
        finally:
            self.state = State.EXITED
            self.ready.clear()
        return 0

    async def fetch(self) -> int:
        """Download the weights and no more; returns the exit status of what does that."""
        try:
            self._check_hub()
            await self._download()
        except _EngineDied as death:
            self._log(str(death))
            return death.status
        return 0

    async def connection(self, reader: Reader, writer: Writer) -> None:
        """Answer one client; before the engine is up nothing listens, so the connection is dropped."""
        if self.state is State.READY:
            await serve_http(reader, writer, self._respond)
        else:
            writer.close()

    def _info(self, module: str, text: str, process: str = "EngineCore") -> None:
        named = f"({process} pid={1 if process == 'APIServer' else 139}) "
        begin = named if self._release >= PROCESS_NAMES else ""
        self._log(f"{begin}INFO {time.strftime('%m-%d %H:%M:%S')} [{module}] {text}")

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self._speed)

    async def _start(self) -> None:
        options = self.options
        self._info("__init__.py:244", "Automatically detected platform cuda.", "APIServer")
        self._info("api_server.py:1395", f"vLLM API server version {self.version}", "APIServer")
        self._info("cli_args.py:325", f"non-default args: {dict(options.given)}", "APIServer")
        if self.fault is Fault.BAD_FLAG:
            raise _EngineDied("api_server.py: error: unrecognized arguments: --no-such-flag", 2)
        if not 0 < options.gpu_memory_utilization <= 1:
            raise _EngineDied(
                "ValueError: GPU memory utilization must be less than 1.0. "
                f"Got {options.gpu_memory_utilization}."
            )
        known = quantizations(self._release)
        if options.quantization and options.quantization not in known:
            raise _EngineDied(
                f"ValueError: Unknown quantization method: {options.quantization}. Must be one of {[*known]}."
            )
        if options.given.get("task") == "transcription" and "transcription" not in self._tasks():
            raise _EngineDied("ValueError: This model does not support the 'transcription' task.")
        if self.fault is Fault.EXIT_LOOP:
            await self._pause(1.0)
            raise _EngineDied("RuntimeError: Engine core initialization failed. See root cause above.")
        self._check_hub()
        wanted = options.tensor_parallel_size * options.pipeline_parallel_size
        if wanted > self._gpus.count:
            raise _EngineDied(
                f"ValueError: world size {wanted} is larger than the {self._gpus.count} GPUs available"
            )
        self._info("config.py:1472", f"Using max model len {self._max_model_len}", "APIServer")
        self._info(
            "core.py:69",
            f"Initializing a V1 LLM engine (v{self.version}) with config: model='{options.model}'",
        )

    def _check_hub(self) -> None:
        model, token = self.options.model, self._hf_token
        url = f"https://huggingface.co/{model}/resolve/main/config.json"
        if token and not token.startswith("hf_"):
            raise _EngineDied(
                f"huggingface_hub.errors.HfHubHTTPError: 401 Client Error: Unauthorized for url: {url}\n"
                "Invalid user token."
            )
        if self.fault is Fault.TOKEN_REFUSED or (_GATED.match(model) and not token):
            raise _EngineDied(
                "huggingface_hub.errors.GatedRepoError: 401 Client Error. "
                f"Cannot access gated repo for url {url}.\nAccess to model {model} is restricted."
            )
        if self.fault is Fault.MODEL_NOT_FOUND or "does-not-exist" in model:
            raise _EngineDied(
                "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. "
                f"Repository Not Found for url: {url}.\n"
                f"OSError: {model} is not a local folder and is not a valid model identifier listed on "
                "'https://huggingface.co/models'"
            )

    async def _load(self) -> None:
        self.state = State.LOADING
        options = self.options
        self._info("gpu_model_runner.py:1770", f"Starting to load model {options.model}...")
        await self._download()
        if self.fault is Fault.HANG_LOADING:
            await asyncio.Event().wait()
        await self._pause(self.LOAD_S)
        weights = self._weights_bytes() / options.tensor_parallel_size / options.pipeline_parallel_size
        budget = self._gpus.memory_mib * 2**20 * options.gpu_memory_utilization
        if self.fault is Fault.OOM or weights > budget:
            raise _EngineDied(
                "ERROR [core.py:586] EngineCore failed to start.\n"
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB. GPU 0 has a total "
                f"capacity of {self._gpus.memory_mib / 1024:.2f} GiB of which 512.00 MiB is free.\n"
                "RuntimeError: Engine core initialization failed. See root cause above."
            )
        self._info("default_loader.py:272", f"Loading weights took {self.LOAD_S * self._speed:.2f} seconds")
        self._info("gpu_model_runner.py:1801", f"Model loading took {weights / GIB:.4f} GiB")
        self._plan_kv_cache(budget - weights - GIB)
        await self._pause(self.COMPILE_S)
        self._info("gpu_model_runner.py:2326", "Graph capturing finished in 20 secs, took 0.58 GiB")
        address = f"http://{options.host}:{options.port}"
        self._info("api_server.py:1457", f"{self._starting()} on {address}", "APIServer")
        # uvicorn says nothing of the address, since vLLM opens the socket.
        self._log("INFO:     Started server process [1]")
        self._log("INFO:     Waiting for application startup.")
        self._log("INFO:     Application startup complete.")

    def _starting(self) -> str:
        """As 0.9.2 and 0.32.0 have it."""
        return "Starting vLLM server" if self._release >= TASK_ROUTES else "Starting vLLM API server 0"

    async def _download(self) -> None:
        local = self._weights / self.options.model.replace("/", "--") if self._weights else None
        if local and local.exists():
            return
        self._info("weight_utils.py:292", "Using model weights format ['*.safetensors']")
        await self._pause(self.DOWNLOAD_S)
        self._info(
            "weight_utils.py:308",
            f"Time spent downloading weights for {self.options.model}: "
            f"{self.DOWNLOAD_S * self._speed:.6f} seconds",
        )
        if local:
            local.mkdir(parents=True, exist_ok=True)

    def _billions(self) -> float:
        """Billions of weights, from the size in the model's name (`…-32B-AWQ`); 1 when it names none."""
        size = re.search(r"(\d+(?:\.\d+)?)b\b", self.options.model.lower())
        return float(size[1]) if size else 1.0

    def _weights_bytes(self) -> float:
        named = next((q for q in _BYTES_PER_WEIGHT if q in self.options.model.lower()), "")
        return self._billions() * 1e9 * _BYTES_PER_WEIGHT.get(self.options.quantization or named, 2.0)

    def _plan_kv_cache(self, available: float) -> None:
        """A rough cache: 128 KiB a token for an 8B model (Llama 3's), by the root of the size for others."""
        a_token = 128 * 2**10 * max(self._billions() / 8, 0.05) ** 0.5 / self.options.tensor_parallel_size
        self._kv_tokens = max(int(available / a_token) // 16 * 16, 0)
        needed = self._max_model_len * a_token
        newer = self._release >= TASK_ROUTES
        if needed > available and self.options.max_model_len:
            whose = "model's" if newer else "models's"
            raise _EngineDied(
                f"ValueError: To serve at least one request with the {whose} max seq len "
                f"({self._max_model_len}), ({needed / GIB:.2f} GiB KV cache is needed, which is larger than "
                f"the available KV cache memory ({available / GIB:.2f} GiB). "
                f"The estimated maximum model length is {self._kv_tokens}."
            )
        size = f"GPU KV cache size: {self._kv_tokens:,} tokens"
        concurrency = (
            f"Maximum concurrency for {self._max_model_len:,} tokens per request: "
            f"{self._kv_tokens / self._max_model_len:.2f}x"
        )
        for line in [f"{size}, {concurrency}"] if newer else [size, concurrency]:
            self._info("kv_cache_utils.py:716", line)

    # --- Routes ---

    async def _respond(self, request: Request) -> Response:
        if self._guarded(request) and not self._admits(request.headers.get("authorization", "")):
            return _json({"error": "Unauthorized"}, 401)
        try:
            return await self._route(request)
        except Refused as refusal:
            return _json(refusal.document(self._release), refusal.status)

    async def _route(self, request: Request) -> Response:
        """As Starlette does it: routes by exact path, mounts by pattern, then a try with or without the slash
        at the end. vLLM mounts its metrics with this pattern, for `/metrics` without a redirect."""
        methods = self._methods(request.path)
        if methods is None and re.match(r"^/metrics(?P<path>.*)$", request.path):
            return await self._get_metrics(request)
        if methods is None:
            other = request.path.rstrip("/") if request.path.endswith("/") else f"{request.path}/"
            if self._methods(other):
                location = f"http://{request.headers.get('host', '')}{other}"
                return Response(b"", 307, "", {"Location": location})
            return _json({"detail": "Not Found"}, 404)
        if request.method not in methods:
            # Each route has one method, and the first with the path answers.
            return _json({"detail": "Method Not Allowed"}, 405, {"Allow": next(iter(methods))})
        return await methods[request.method](self, request)

    def _methods(self, path: str) -> Mapping[str, Callable[[Simulator, Request], Awaitable[Response]]] | None:
        """What answers on a path, by method."""
        if path not in self._OF_TASKS:
            return self._ROUTES.get(path)
        route = self._OF_TASKS[path]
        if route.task in self._tasks():
            return {"POST": route.answer}
        return None if self._release >= TASK_ROUTES else {"POST": Simulator._unsupported}

    def _guarded(self, request: Request) -> bool:
        """Whether vLLM asks for its key; OPTIONS passes. Up to 0.31 it judges the path of the URL that
        Starlette puts together, Host header included."""
        if request.method == "OPTIONS":
            return False
        if self._release >= MORE_GUARDED:
            return request.path.startswith(("/v1", "/v2", "/inference", "/cohere"))
        url = f"http://{request.headers.get('host', '')}{request.path}"
        return urlsplit(url).path.startswith("/v1")

    def _admits(self, authorization: str) -> bool:
        if self.fault is Fault.KEY_REFUSED:
            return False
        if not self.options.api_keys or self.fault is Fault.NO_AUTH:
            return True
        scheme, _, key = authorization.partition(" ")
        named = scheme.lower() == "bearer" if self._release >= MORE_GUARDED else scheme == "Bearer"
        return named and key in self.options.api_keys

    def _served_names(self) -> tuple[str, ...]:
        return ("another/model",) if self.fault is Fault.WRONG_MODEL else self.options.served_names

    def _cards(self) -> list[dict[str, Any]]:
        names, now = self._served_names(), int(time.time())
        root, length = self.options.model, self._max_model_len
        served = [vllm_api.model_card(name, root, None, length, now) for name in names]
        adapters = self.options.adapters.items()
        return [*served, *(vllm_api.model_card(name, path, names[0], None, now) for name, path in adapters)]

    async def _get_health(self, request: Request) -> Response:
        return Response(b"", content_type="")

    async def _get_version(self, request: Request) -> Response:
        return _json({"version": self.version})

    async def _get_metrics(self, request: Request) -> Response:
        used = self._measured.running * 256 / self._kv_tokens if self._kv_tokens else 0.0
        self._measured.kv_cache = round(min(used, 1.0), 6)
        text = self._measured.published(self._release)
        return Response(text.encode(), content_type="text/plain; version=0.0.4; charset=utf-8")

    async def _get_models(self, request: Request) -> Response:
        return _json({"object": "list", "data": self._cards()})

    def _read(self, request: Request) -> dict[str, Any]:
        return vllm_api.document(request.headers.get("content-type", ""), request.body)

    def _check_model(self, body: Mapping[str, Any]) -> str:
        """The model that a request is for, by name."""
        names = self._served_names()
        model = body.get("model") or names[0]
        if model not in {*names, *self.options.adapters}:
            aliases = f" Valid aliases: {', '.join(names)}." if self._release >= TASK_ROUTES else ""
            raise Refused(f"The model `{model}` does not exist.{aliases}", "NotFoundError", 404, "model")
        return str(model)

    async def _tokenize(self, request: Request) -> Response:
        body = self._read(request)
        vllm_api.required(body, "prompt", "messages")
        self._check_model(body)
        ids = [zlib.crc32(word.encode()) % 150_000 for word in vllm_api.prompts(body)[0]]
        return _json(
            {"count": len(ids), "max_model_len": self._max_model_len, "tokens": ids, "token_strs": None}
        )

    async def _complete(self, request: Request) -> Response:
        if "generate" not in self._tasks():
            # `/invocations` of SageMaker, which passes other requests on to other routes.
            raise Refused("Cannot find suitable handler for request.")
        body = self._read(request)
        chat = request.path == "/v1/chat/completions" or (
            request.path == "/invocations" and "messages" in body
        )
        vllm_api.check(body, chat=chat, has_tool_parser=bool(self.options.tool_parser))
        if chat and self.fault is Fault.NO_CHAT_TEMPLATE:
            raise Refused(
                "As of transformers v4.44, default chat template is no longer allowed, so you must provide a "
                "chat template if the tokenizer does not define one."
            )
        model = self._check_model(body)
        if self.fault is Fault.HUNG:
            # Its engine has taken it, and goes on having it.
            self._measured.running += 1
            try:
                await request.disconnected()
            finally:
                self._measured.running -= 1
        reply = self._reply(body, model, chat=chat)
        if body.get("stream"):
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return Response(self._stream(reply, usage=usage), content_type="text/event-stream; charset=utf-8")
        async for _ in self._generate(reply):
            pass
        return _json(reply.whole())

    def _reply(self, body: Mapping[str, Any], model: str, *, chat: bool) -> Reply:
        """The answer to a request. Raises Refused where there is no room for it."""
        words = vllm_api.prompts(body)
        longest = max(map(len, words))
        given = vllm_api.whole_number(body, "max_completion_tokens" if chat else "max_tokens")
        if given is None:
            given = vllm_api.whole_number(body, "max_tokens")
        room = self._max_model_len - longest
        wanted = (min(len(_ANSWER), room) if chat else 16) if given is None else given
        if self._release < TASK_ROUTES and longest + wanted > self._max_model_len:
            raise Refused(
                f"This model's maximum context length is {self._max_model_len} tokens. However, you "
                f"requested {longest + wanted} tokens ({longest} in the messages, {wanted} in the "
                "completion). Please reduce the length of the messages or completion."
            )
        vllm_api.check_length(body, longest, wanted, self._max_model_len)
        wanted = min(wanted, room)
        return Reply(
            chat=chat,
            model=model,
            prompt=" ".join(words[0]) if body.get("echo") and not chat else "",
            prompt_tokens=sum(map(len, words)),
            tokens=_ANSWER[:wanted],
            finish="stop" if wanted >= len(_ANSWER) else "length",
            fingerprint=f"vllm-{self.version}-00000000",
            choices=len(words) * (vllm_api.whole_number(body, "n") or 1),
        )

    async def _generate(self, reply: Reply) -> AsyncIterator[int]:
        """The tokens' places in the answer, each when it is there."""
        measured, began = self._measured, time.monotonic()
        measured.running += 1
        measured.prompt_tokens += reply.prompt_tokens
        try:
            for index in range(len(reply.tokens)):
                await self._pause(self.TOKEN_S)
                measured.generation_tokens += reply.choices
                if index == 0:
                    measured.observe(time_to_first_token_seconds=time.monotonic() - began)
                yield index
            measured.finished[reply.finish] += reply.choices
            lasted = time.monotonic() - began
            measured.observe(
                e2e_request_latency_seconds=lasted,
                request_inference_time_seconds=lasted,
                request_prompt_tokens=reply.prompt_tokens,
                request_generation_tokens=len(reply.tokens),
            )
        finally:
            measured.running -= 1

    async def _stream(self, reply: Reply, *, usage: bool) -> AsyncIterator[bytes]:
        def event(document: Mapping[str, Any]) -> bytes:
            return b"data: " + json.dumps(document).encode() + b"\n\n"

        if first := reply.first():
            yield event(first)
        async for index in self._generate(reply):
            last = index == len(reply.tokens) - 1
            yield event(reply.chunk(index, last=last, usage_follows=usage))
        if usage:
            yield event(reply.last())
        yield b"data: [DONE]\n\n"

    async def _get_load(self, request: Request) -> Response:
        return _json({"server_load": self._measured.running})

    async def _get_documentation(self, request: Request) -> Response:
        return Response(b"<!doctype html><title>FastAPI</title>", content_type="text/html; charset=utf-8")

    async def _get_schema(self, request: Request) -> Response:
        paths = (path for path in (*self._ROUTES, *self._OF_TASKS) if self._methods(path))
        return _json({"openapi": "3.1.0", "paths": {path: {} for path in paths}})

    async def _detokenize(self, request: Request) -> Response:
        body = self._read(request)
        vllm_api.required(body, "tokens")
        self._check_model(body)
        return _json({"prompt": "".join(_ANSWER)})

    async def _unsupported(self, request: Request) -> Response:
        """A route of a task that the model is not for, in releases that have it all the same."""
        raise Refused(f"The model does not support {self._OF_TASKS[request.path].api} API")

    async def _respond_to(self, request: Request) -> Response:
        """More of the Responses API than that it is there is not pretended."""
        raise Refused("The model does not support Responses API")

    # --- Routes of models that do not generate ---

    def _tasks(self) -> frozenset[str]:
        """What the model is for. vLLM reads it off the model's files; here its name has to do, and a model
        of which neither flags nor name say anything else generates."""
        name, pools = self.options.model.lower(), self.options.pools
        if "whisper" in name:
            return frozenset({"transcription"})
        if pools is None:
            return frozenset({"generate"})
        ranks = "rerank" in name
        if pools == "classify" or (pools == "auto" and (ranks or "classif" in name)):
            # A classifier with one class alone scores pairs.
            return frozenset({"pooling", "classify", *(["score"] if ranks else [])})
        return frozenset({"pooling", "embed", "score"})

    def _asked(self, request: Request, *names: str) -> tuple[dict[str, Any], str]:
        """A request with these fields, and the model that it is for. Raises Refused."""
        body = self._read(request)
        for name in names:
            vllm_api.required(body, name)
        return body, self._check_model(body)

    async def _pool(self, request: Request, texts: Sequence[Sequence[str]]) -> int:
        """Run the texts, in tokens, through the model; returns how many tokens they are. Raises Refused."""
        longest, measured = max(map(len, texts), default=0), self._measured
        if longest > self._max_model_len:
            raise Refused(
                f"This model's maximum context length is {self._max_model_len} tokens. However, you "
                f"requested {longest} tokens in the input. Please reduce the length of the input."
            )
        measured.running += 1
        try:
            if self.fault is Fault.HUNG:
                await request.disconnected()
            await self._pause(self.TOKEN_S)
        finally:
            measured.running -= 1
        measured.prompt_tokens += sum(map(len, texts))
        measured.finished["stop"] += len(texts)
        return sum(map(len, texts))

    def _vector(self, text: Sequence[str], size: int) -> list[float]:
        """Numbers of a text's own, from 0 to 1."""
        seed = " ".join(text).encode()
        return [zlib.crc32(seed + bytes([place])) / 2**32 for place in range(size)]

    async def _embed(self, request: Request) -> Response:
        body, model = self._asked(request, "input")
        texts = vllm_api.prompts({"prompt": body["input"]})
        tokens = await self._pool(request, texts)
        rows = [{"object": "embedding", "embedding": self._vector(text, self.WIDTH)} for text in texts]
        return _json(vllm_api.pooled("embd", model, rows, tokens))

    async def _classify(self, request: Request) -> Response:
        body, model = self._asked(request, "input")
        texts = vllm_api.prompts({"prompt": body["input"]})
        tokens = await self._pool(request, texts)
        shares = [self._vector(text, 1)[0] for text in texts]
        rows = [
            {"label": f"LABEL_{round(share)}", "probs": [1 - share, share], "num_classes": 2}
            for share in shares
        ]
        return _json(vllm_api.pooled("classify", model, rows, tokens))

    async def _pool_alone(self, request: Request) -> Response:
        body, model = self._asked(request, "input")
        texts = vllm_api.prompts({"prompt": body["input"]})
        tokens = await self._pool(request, texts)
        rows = [{"object": "pooling", "data": self._vector(text, self.WIDTH)} for text in texts]
        return _json(vllm_api.pooled("pool", model, rows, tokens))

    async def _score(self, request: Request) -> Response:
        body, model = self._asked(request, "text_1", "text_2")
        texts = vllm_api.prompts({"prompt": vllm_api.pairs(body, "text_1", "text_2")})
        tokens = await self._pool(request, texts)
        rows = [{"object": "score", "score": self._vector(text, 1)[0]} for text in texts]
        return _json(vllm_api.pooled("score", model, rows, tokens))

    async def _rerank(self, request: Request) -> Response:
        body, model = self._asked(request, "query", "documents")
        texts = vllm_api.prompts({"prompt": vllm_api.pairs(body, "query", "documents")})
        tokens = await self._pool(request, texts)
        scores = [self._vector(text, 1)[0] for text in texts]
        return _json(vllm_api.reranked(model, body["documents"], scores, tokens))

    async def _transcribe(self, request: Request) -> Response:
        fields = vllm_api.form(request.headers.get("content-type", ""), request.body)
        self._check_model({"model": fields.get("model", b"").decode()})
        sound = fields["file"]
        if not (sound.startswith(b"RIFF") and sound[8:12] == b"WAVE"):
            raise Refused("Invalid or unsupported audio file.")
        await self._pool(request, [[]])
        return _json({"text": ""})

    # Every task of its own has these routes, with what refusals call it.
    _OF_TASKS: ClassVar[dict[str, _TaskRoute]] = {
        "/v1/chat/completions": _TaskRoute("generate", "Chat Completions", _complete),
        "/v1/completions": _TaskRoute("generate", "Completions", _complete),
        "/v1/responses": _TaskRoute("generate", "Responses", _respond_to),
        "/v1/embeddings": _TaskRoute("embed", "Embeddings", _embed),
        "/pooling": _TaskRoute("pooling", "Pooling", _pool_alone),
        "/classify": _TaskRoute("classify", "Classification", _classify),
        **dict.fromkeys(("/score", "/v1/score"), _TaskRoute("score", "Score", _score)),
        **dict.fromkeys(
            ("/rerank", "/v1/rerank", "/v2/rerank"), _TaskRoute("score", "Rerank (Score)", _rerank)
        ),
        "/v1/audio/transcriptions": _TaskRoute("transcription", "Transcriptions", _transcribe),
        "/v1/audio/translations": _TaskRoute("transcription", "Translations", _transcribe),
    }
    # FastAPI's own documentation is plain Starlette routes, which answer HEAD as well; vLLM's routes do not.
    _ROUTES: ClassVar[dict[str, dict[str, Callable[[Simulator, Request], Awaitable[Response]]]]] = {
        "/health": {"GET": _get_health},
        "/load": {"GET": _get_load},
        "/ping": {"GET": _get_health, "POST": _get_health},
        "/version": {"GET": _get_version},
        "/v1/models": {"GET": _get_models},
        "/invocations": {"POST": _complete},
        "/tokenize": {"POST": _tokenize},
        "/detokenize": {"POST": _detokenize},
        "/openapi.json": {"GET": _get_schema, "HEAD": _get_schema},
        "/docs": {"GET": _get_documentation, "HEAD": _get_documentation},
        "/redoc": {"GET": _get_documentation, "HEAD": _get_documentation},
    }


def _json(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(document).encode(), status, headers=headers or {})


# --- The program ------------------------------------------------------------------------------------------


async def _serve(simulator: Simulator) -> int:
    """Run one engine; the port is bound only when it is up, as vLLM's clients see it."""
    life = asyncio.create_task(simulator.run())
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, life.cancel)
    up = asyncio.create_task(simulator.ready.wait())
    await asyncio.wait({life, up}, return_when=asyncio.FIRST_COMPLETED)
    up.cancel()
    if not life.done():
        await asyncio.start_server(simulator.connection, simulator.options.host, simulator.options.port)
    try:
        return await life
    except asyncio.CancelledError:
        return 0


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Serve as vLLM would with this command line; returns the process's exit status."""
    version = environment.get("VLLM_SIM_VERSION", "0.9.2")
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["serve"]:
        del words[0]
    try:
        options = parse_options(words, environment, version)
    except BadFlags as refusal:
        print(refusal, file=sys.stderr)
        return 2
    fault = environment.get("VLLM_SIM_FAULT")
    cache = environment.get("HF_HOME")
    simulator = Simulator(
        options,
        version=version,
        hf_token=environment.get("HF_TOKEN", ""),
        gpus=Gpus(
            count=int(environment.get("VLLM_SIM_GPUS", "1")),
            memory_mib=int(environment.get("VLLM_SIM_GPU_MEMORY_MIB", "23034")),
        ),
        fault=Fault(fault) if fault else None,
        speed=float(environment.get("VLLM_SIM_SPEED", "1")),
        weights=Path(cache) / "hub" if cache else None,
        log=lambda line: print(line, flush=True),
    )
    return asyncio.run(_serve(simulator))


if __name__ == "__main__":
    sys.exit(main())
