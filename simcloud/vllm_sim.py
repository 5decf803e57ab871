"""A stand-in for vLLM's OpenAI-compatible server: flags, log marks, routes and failures, without a GPU.

One file, standard library only: it runs inside a light node (`Simulator`, no socket of its own), and as the
program of the stand-in container image (`python vllm_sim.py --model …`). Behaviour follows vLLM 0.9.2: the
port answers only once the engine is up, the key guards `/v1` alone, `/health` says nothing about generation,
and paths are routed as its uvicorn and Starlette route them (see `_route`).

It fails for the reasons vLLM fails: unknown flags, weights or context that do not fit, a gated model without
a token, a model that does not exist (any name with `does-not-exist` in it). `VLLM_SIM_FAULT`, or a model
named `fault/NAME`, makes it fail on purpose; `VLLM_SIM_SPEED` (0 is at once), `VLLM_SIM_VERSION`,
`VLLM_SIM_GPUS` and `VLLM_SIM_GPU_MEMORY_MIB` describe the rest of the pretence.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import sys
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol
from urllib.parse import unquote, urlsplit

GIB = 2**30


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
    SLOW = "slow"
    """Takes ten times as long over everything."""


class State(StrEnum):
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    EXITED = "exited"


# --- Flags ------------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    return text.split()


# Names as in vLLM 0.9.2's engine and API server arguments; those with an effect here are typed further down.
_VALUE_FLAGS = _words("""
    allowed-credentials allowed-headers allowed-local-media-path allowed-methods allowed-origins
    api-server-count block-size chat-template chat-template-content-format code-revision
    collect-detailed-traces compilation-config config-format cpu-offload-gb cuda-graph-sizes
    data-parallel-address data-parallel-backend data-parallel-rpc-port data-parallel-size
    data-parallel-size-local data-parallel-start-rank device download-dir generation-config
    guided-decoding-backend hf-config-path hf-overrides hf-token ignore-patterns kv-events-config
    kv-transfer-config limit-mm-per-prompt load-format log-config-file logits-processor-pattern
    long-prefill-token-threshold lora-dtype lora-extra-vocab-size lora-modules max-cpu-loras max-log-len
    max-logprobs max-long-partial-prefills max-lora-rank max-loras max-num-batched-tokens
    max-num-partial-prefills max-num-seqs max-parallel-loading-workers max-prompt-adapter-token
    max-prompt-adapters max-seq-len-to-capture middleware mm-processor-kwargs model-impl
    model-loader-extra-config num-gpu-blocks-override num-lookahead-slots num-scheduler-steps
    otlp-traces-endpoint override-generation-config override-neuron-config override-pooler-config
    preemption-mode prefix-caching-hash-algo prompt-adapters pt-load-map-location reasoning-parser
    response-role return-tokens-as-token-ids revision root-path rope-scaling rope-theta scheduler-cls
    scheduler-delay-factor scheduling-policy seed show-hidden-metrics-for-version speculative-config
    ssl-ca-certs ssl-cert-reqs ssl-certfile ssl-keyfile task tokenizer tokenizer-mode
    tokenizer-pool-extra-config tokenizer-pool-size tokenizer-pool-type tokenizer-revision
    tool-call-parser tool-parser-plugin tool-server uvicorn-log-level worker-cls worker-extension-cls
""")
_SWITCHES = _words("""
    async-scheduling calculate-kv-scales data-parallel-external-lb data-parallel-hybrid-lb
    disable-async-output-proc disable-cascade-attn disable-chunked-mm-input disable-custom-all-reduce
    disable-fastapi-docs disable-frontend-multiprocessing disable-hybrid-kv-cache-manager
    disable-log-requests disable-log-stats disable-mm-preprocessor-cache disable-sliding-window
    disable-uvicorn-access-log enable-auto-tool-choice enable-chunked-prefill enable-eplb
    enable-expert-parallel enable-lora enable-lora-bias enable-prefix-caching enable-prompt-adapter
    enable-prompt-embeds enable-prompt-tokens-details enable-reasoning enable-request-id-headers
    enable-server-load-tracking enable-sleep-mode enable-ssl-refresh enable-tokenizer-info-endpoint
    enforce-eager expand-tools-even-if-tool-choice-none fully-sharded-loras headless
    multi-step-stream-outputs ray-workers-use-nsight skip-tokenizer-init trust-remote-code
    use-tqdm-on-load use-v2-block-manager
""")
_QUANTIZATIONS = _words("""
    aqlm auto-round awq awq_marlin bitblas bitsandbytes compressed-tensors deepspeedfp experts_int8
    fbgemm_fp8 fp8 gguf gptq gptq_bitblas gptq_marlin gptq_marlin_24 hqq ipex marlin modelopt
    modelopt_fp4 moe_wna16 neuron_quant ptpc_fp8 qqq quark rtn torchao tpu_int8
""")
_LISTS = {"cuda-graph-sizes", "ignore-patterns", "lora-modules", "middleware", "prompt-adapters"}
# The release that no longer knows the flag: vLLM's own release notes.
_REMOVED = {"enable-reasoning": (0, 10), "swap-space": (0, 18)}


class BadFlags(Exception):
    """The command line is not vLLM's: the message is what vLLM prints before it exits with status 2."""


@dataclass(frozen=True)
class Options:
    """What of a serve command line matters here."""

    model: str
    served_names: tuple[str, ...]
    host: str
    port: int
    api_key: str | None
    max_model_len: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    gpu_memory_utilization: float
    quantization: str | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadFlags(f"usage: {self.prog} [-h] [--model MODEL] …\n{self.prog}: error: {message}")


def _tokens(text: str) -> int:
    """`16384`, and as vLLM takes it `16k` (10³) or `16K` (2¹⁰)."""
    units = {"k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20}
    return int(float(text[:-1]) * units[text[-1]]) if text[-1:] in units else int(text)


def parse_options(argv: Sequence[str], environment: Mapping[str, str], version: str = "0.9.2") -> Options:
    """Read a serve command line, without the program's name, as the given vLLM version does.

    Raises `BadFlags` for a flag or value that version refuses.
    """
    parser = _Parser(prog="api_server.py", add_help=False)
    release = tuple(int(part) for part in re.findall(r"\d+", version)[:2])

    def known(name: str) -> bool:
        return name not in _REMOVED or release < _REMOVED[name]

    for name in filter(known, _VALUE_FLAGS):
        parser.add_argument(f"--{name}", nargs="+" if name in _LISTS else None)
    for name in filter(known, _SWITCHES):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction)
    if known("swap-space"):
        parser.add_argument("--swap-space", type=float)
    parser.add_argument("model_tag", nargs="?")
    parser.add_argument("--model", default="Qwen/Qwen3-0.6B")
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-key", default=environment.get("VLLM_API_KEY"))
    parser.add_argument("--max-model-len", type=_tokens, default=0)
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
    parser.add_argument("--pipeline-parallel-size", "-pp", type=int, default=1)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--quantization", "-q", choices=_QUANTIZATIONS)
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float", "float16", "float32", "half"])
    parser.add_argument("--kv-cache-dtype", choices=["auto", "fp8", "fp8_e4m3", "fp8_e5m2"])
    parser.add_argument("--distributed-executor-backend", choices=["external_launcher", "mp", "ray", "uni"])
    # vLLM takes underscores for dashes in the names of flags, and `--json-flag.key value`.
    normal = [
        re.sub(r"^--([^=.]*)[^=]*", lambda flag: "--" + flag[1].replace("_", "-"), word) for word in argv
    ]
    args = parser.parse_args(normal)
    model = args.model_tag or args.model
    return Options(
        model=model,
        served_names=tuple(args.served_model_name or [model]),
        host=args.host,
        port=args.port,
        api_key=args.api_key or None,
        max_model_len=args.max_model_len,
        tensor_parallel_size=args.tensor_parallel_size,
        pipeline_parallel_size=args.pipeline_parallel_size,
        gpu_memory_utilization=args.gpu_memory_utilization,
        quantization=args.quantization,
    )


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
    headers = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
    writer.write(
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\nServer: uvicorn\r\n"
        f"Content-Type: {answer.content_type}\r\n{framing}\r\n{headers}"
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


@dataclass
class _Counters:
    running: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0})


_BYTES_PER_WEIGHT = {"awq": 0.55, "awq_marlin": 0.55, "gptq": 0.55, "gptq_marlin": 0.55, "fp8": 1.0}
_GATED = re.compile(r"^(meta-llama/|google/gemma|mistralai/)")
_ANSWER = ("This", " is", " a", " simulated", " answer", ":", " no", " model", " was", " asked", ".")


class Simulator:
    """One vLLM process: `run` is its life, `connection` answers one client of its port.

    `speed` multiplies every simulated delay (seconds); 0 passes through every state at once.
    `weights` is the folder that remembers downloaded models over restarts, None remembers nothing.
    """

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
        self.fault = Fault(named) if named in set(Fault) else fault
        self.state = State.STARTING
        self.ready = asyncio.Event()
        self._hf_token = hf_token
        self._gpus = gpus or Gpus()
        self._speed = max(speed, 0.05) * 10 if self.fault is Fault.SLOW else speed
        self._weights = weights
        self._log = log
        self._counters = _Counters()
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

    def _info(self, module: str, text: str, level: str = "INFO") -> None:
        self._log(f"{level} {time.strftime('%m-%d %H:%M:%S')} [{module}] {text}")

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self._speed)

    async def _start(self) -> None:
        options = self.options
        self._info("__init__.py:244", "Automatically detected platform cuda.")
        self._info("api_server.py:1395", f"vLLM API server version {self.version}")
        self._info("cli_args.py:325", f"non-default args: {{'model': '{options.model}'}}")
        if self.fault is Fault.BAD_FLAG:
            raise _EngineDied("api_server.py: error: unrecognized arguments: --no-such-flag", 2)
        if not 0 < options.gpu_memory_utilization <= 1:
            raise _EngineDied(
                "ValueError: GPU memory utilization must be less than 1.0. "
                f"Got {options.gpu_memory_utilization}."
            )
        if self.fault is Fault.EXIT_LOOP:
            await self._pause(1.0)
            raise _EngineDied("RuntimeError: Engine core initialization failed. See root cause above.")
        self._check_hub()
        wanted = options.tensor_parallel_size * options.pipeline_parallel_size
        if wanted > self._gpus.count:
            raise _EngineDied(
                f"ValueError: world size {wanted} is larger than the {self._gpus.count} GPUs available"
            )
        self._info("config.py:1472", f"Using max model len {self._max_model_len}")
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
        self._info("api_server.py:1457", f"Starting vLLM API server 0 on {address}")
        self._log("INFO:     Started server process [1]")
        self._log("INFO:     Application startup complete.")
        self._log(f"INFO:     Uvicorn running on {address} (Press CTRL+C to quit)")

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
        if needed > available and self.options.max_model_len:
            raise _EngineDied(
                "ValueError: To serve at least one request with the models's max seq len "
                f"({self._max_model_len}), ({needed / GIB:.2f} GiB KV cache is needed, which is larger than "
                f"the available KV cache memory ({available / GIB:.2f} GiB). "
                f"The estimated maximum model length is {self._kv_tokens}."
            )
        self._info("kv_cache_utils.py:716", f"GPU KV cache size: {self._kv_tokens:,} tokens")
        self._info(
            "kv_cache_utils.py:720",
            f"Maximum concurrency for {self._max_model_len:,} tokens per request: "
            f"{self._kv_tokens / self._max_model_len:.2f}x",
        )

    # --- Routes ---

    async def _respond(self, request: Request) -> Response:
        if _guarded(request) and not self._admits(request.headers.get("authorization", "")):
            return _json({"error": "Unauthorized"}, 401)
        try:
            return await self._route(request)
        except _Refused as refusal:
            return refusal.response

    async def _route(self, request: Request) -> Response:
        """As Starlette does it: routes by exact path, mounts by pattern, then a try with or without the slash
        at the end. vLLM mounts its metrics with this pattern, for `/metrics` without a redirect."""
        methods = self._ROUTES.get(request.path)
        if methods is None and re.match(r"^/metrics(?P<path>.*)$", request.path):
            return await self._get_metrics(request)
        if methods is None:
            other = request.path.rstrip("/") if request.path.endswith("/") else f"{request.path}/"
            if other in self._ROUTES:
                location = f"http://{request.headers.get('host', '')}{other}"
                return Response(b"", 307, "text/plain", {"Location": location})
            return _json({"detail": "Not Found"}, 404)
        if request.method not in methods:
            return _json({"detail": "Method Not Allowed"}, 405)
        return await methods[request.method](self, request)

    def _admits(self, authorization: str) -> bool:
        if self.fault is Fault.KEY_REFUSED:
            return False
        key = self.options.api_key
        return key is None or self.fault is Fault.NO_AUTH or authorization == f"Bearer {key}"

    def _served_names(self) -> tuple[str, ...]:
        return ("another/model",) if self.fault is Fault.WRONG_MODEL else self.options.served_names

    def _model_card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._started_at,
            "owned_by": "vllm",
            "root": self.options.model,
            "parent": None,
            "max_model_len": self._max_model_len,
            "permission": [],
        }

    def _metrics(self) -> str:
        used = self._counters.running * 256 / self._kv_tokens if self._kv_tokens else 0.0
        names = ",".join(self._served_names())
        samples = [
            ("gauge", "num_requests_running", "", self._counters.running),
            ("gauge", "num_requests_waiting", "", 0),
            ("gauge", "gpu_cache_usage_perc", "", round(min(used, 1.0), 6)),
            ("counter", "prompt_tokens_total", "", self._counters.prompt_tokens),
            ("counter", "generation_tokens_total", "", self._counters.generation_tokens),
            *(
                ("counter", "request_success_total", f',finished_reason="{reason}"', count)
                for reason, count in self._counters.finished.items()
            ),
        ]
        lines: dict[str, None] = {}  # an ordered set: a family's TYPE line comes once
        for kind, name, labels, value in samples:
            lines[f"# TYPE vllm:{name} {kind}"] = None
            lines[f'vllm:{name}{{engine="0",model_name="{names}"{labels}}} {float(value)}'] = None
        return "\n".join(lines) + "\n"

    async def _get_health(self, request: Request) -> Response:
        return Response(b"")

    async def _get_version(self, request: Request) -> Response:
        return _json({"version": self.version})

    async def _get_metrics(self, request: Request) -> Response:
        return Response(self._metrics().encode(), content_type="text/plain; version=0.0.4; charset=utf-8")

    async def _get_models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._model_card(name) for name in self._served_names()]})

    def _read(self, request: Request) -> tuple[dict[str, Any], list[str]]:
        """The JSON body and the words of its prompt."""
        try:
            body = json.loads(request.body)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise _Refused("The request body is not a JSON object.", "BadRequestError", 400)
        if body.get("model") not in {None, *self._served_names()}:
            raise _Refused(f"The model `{body['model']}` does not exist.", "NotFoundError", 404)
        text = json.dumps(body["messages"]) if "messages" in body else str(body.get("prompt", ""))
        return body, re.findall(r"\w+|[^\w\s]", text)

    async def _tokenize(self, request: Request) -> Response:
        _, words = self._read(request)
        ids = [zlib.crc32(word.encode()) % 150_000 for word in words]
        return _json({"count": len(ids), "max_model_len": self._max_model_len, "tokens": ids})

    async def _complete(self, request: Request) -> Response:
        body, prompt = self._read(request)
        if self.fault is Fault.HUNG:
            # Its engine has taken it, and goes on having it.
            self._counters.running += 1
            try:
                await request.disconnected()
            finally:
                self._counters.running -= 1
        chat = request.path == "/v1/chat/completions"
        wanted = body.get("max_completion_tokens") or body.get("max_tokens") or (len(_ANSWER) if chat else 16)
        if len(prompt) + wanted > self._max_model_len:
            raise _Refused(
                f"This model's maximum context length is {self._max_model_len} tokens, "
                f"but {len(prompt)} + {wanted} were asked for.",
                "BadRequestError",
                400,
            )
        reply = _Reply(
            chat=chat,
            model=body.get("model") or self._served_names()[0],
            prompt_tokens=len(prompt),
            tokens=_ANSWER[:wanted],
            finish="stop" if wanted >= len(_ANSWER) else "length",
        )
        if body.get("stream"):
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return Response(self._stream(reply, usage=usage), content_type="text/event-stream; charset=utf-8")
        async for _ in self._generate(reply):
            pass
        return _json(reply.whole())

    async def _generate(self, reply: _Reply) -> AsyncIterator[str]:
        self._counters.running += 1
        self._counters.prompt_tokens += reply.prompt_tokens
        try:
            for token in reply.tokens:
                await self._pause(self.TOKEN_S)
                self._counters.generation_tokens += 1
                yield token
            self._counters.finished[reply.finish] += 1
        finally:
            self._counters.running -= 1

    async def _stream(self, reply: _Reply, *, usage: bool) -> AsyncIterator[bytes]:
        def event(document: Mapping[str, Any]) -> bytes:
            return b"data: " + json.dumps(document).encode() + b"\n\n"

        async for token in self._generate(reply):
            yield event(reply.chunk(token))
        yield event(reply.chunk("", finish=reply.finish))
        if usage:
            yield event({**reply.chunk(""), "choices": [], "usage": reply.usage()})
        yield b"data: [DONE]\n\n"

    async def _get_load(self, request: Request) -> Response:
        return _json({"server_load": self._counters.running})

    async def _get_documentation(self, request: Request) -> Response:
        return Response(b"<!doctype html><title>FastAPI</title>", content_type="text/html; charset=utf-8")

    async def _get_schema(self, request: Request) -> Response:
        return _json({"openapi": "3.1.0", "paths": {path: {} for path in self._ROUTES}})

    async def _detokenize(self, request: Request) -> Response:
        self._read(request)
        return _json({"prompt": "".join(_ANSWER)})

    async def _unsupported(self, request: Request) -> Response:
        """A route for models of another kind than those that complete text."""
        message = f"The model does not support {request.path}"
        raise _Refused(message, "BadRequestError", 400)

    # FastAPI's own documentation is plain Starlette routes, which answer HEAD as well; vLLM's routes do not.
    _ROUTES: ClassVar[dict[str, dict[str, Callable[[Simulator, Request], Awaitable[Response]]]]] = {
        "/health": {"GET": _get_health},
        "/load": {"GET": _get_load},
        "/ping": {"GET": _get_health, "POST": _get_health},
        "/version": {"GET": _get_version},
        "/v1/models": {"GET": _get_models},
        "/v1/chat/completions": {"POST": _complete},
        "/v1/completions": {"POST": _complete},
        "/invocations": {"POST": _complete},
        "/tokenize": {"POST": _tokenize},
        "/detokenize": {"POST": _detokenize},
        "/openapi.json": {"GET": _get_schema, "HEAD": _get_schema},
        "/docs": {"GET": _get_documentation, "HEAD": _get_documentation},
        "/redoc": {"GET": _get_documentation, "HEAD": _get_documentation},
        "/v1/responses": {"POST": _unsupported},
        "/v1/embeddings": {"POST": _unsupported},
        "/v1/score": {"POST": _unsupported},
        "/v1/rerank": {"POST": _unsupported},
        "/v1/audio/transcriptions": {"POST": _unsupported},
        "/v1/audio/translations": {"POST": _unsupported},
        "/v2/rerank": {"POST": _unsupported},
        "/pooling": {"POST": _unsupported},
        "/classify": {"POST": _unsupported},
        "/score": {"POST": _unsupported},
        "/rerank": {"POST": _unsupported},
    }


@dataclass(frozen=True)
class _Reply:
    """One answer, in the shapes of OpenAI's chat and completion objects."""

    chat: bool
    model: str
    prompt_tokens: int
    tokens: tuple[str, ...]
    finish: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def usage(self) -> dict[str, int]:
        count = len(self.tokens)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": count,
            "total_tokens": self.prompt_tokens + count,
        }

    def _document(self, kind: str, choice: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "logprobs": None, **choice}],
        }

    def whole(self) -> dict[str, Any]:
        text = "".join(self.tokens)
        content = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._document(kind, {**content, "finish_reason": self.finish}), "usage": self.usage()}

    def chunk(self, token: str, finish: str | None = None) -> dict[str, Any]:
        content = {"delta": {"role": "assistant", "content": token}} if self.chat else {"text": token}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return self._document(kind, {**content, "finish_reason": finish})


def _guarded(request: Request) -> bool:
    """Whether vLLM asks for its key: it judges the path of the URL that Starlette puts together, Host header
    included, and lets OPTIONS pass."""
    url = f"http://{request.headers.get('host', '')}{request.path}"
    return request.method != "OPTIONS" and urlsplit(url).path.startswith("/v1")


class _Refused(Exception):
    """A request vLLM answers with an error object."""

    def __init__(self, message: str, kind: str, status: int) -> None:
        super().__init__(message)
        self.response = _json(
            {"object": "error", "message": message, "type": kind, "param": None, "code": status}, status
        )


def _json(document: object, status: int = 200) -> Response:
    return Response(json.dumps(document).encode(), status)


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
