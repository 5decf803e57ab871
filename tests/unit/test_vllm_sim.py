"""The vLLM simulator, judged by its command line as a process and by the official OpenAI client."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import openai
import pytest

from fleet.engine import tasks
from simcloud import vllm_sim
from simcloud.vllm_flags import BadFlags, parse_options
from simcloud.vllm_sim import FILES, Fault, Gpus, Simulator, State

ROOT = Path(__file__).parents[2]
KEY = "sk-test"
MODEL = "Qwen/Qwen3-8B-AWQ"


def simulator(
    *flags: str,
    model: str = MODEL,
    fault: Fault | None = None,
    speed: float = 0.0,
    gpus: Gpus | None = None,
    hf_token: str = "",
    log: Callable[[str], None] = lambda line: None,
) -> Simulator:
    options = parse_options(["--model", model, "--api-key", KEY, *flags], {})
    return Simulator(options, fault=fault, speed=speed, gpus=gpus, hf_token=hf_token, log=log)


@asynccontextmanager
async def serving(sim: Simulator) -> AsyncIterator[str]:
    """The address of a ready simulator."""
    life = asyncio.create_task(sim.run())
    await asyncio.wait_for(sim.ready.wait(), 10)
    server = await asyncio.start_server(sim.connection, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()
        life.cancel()


async def test_official_client_lists_chats_completes_and_streams() -> None:
    async with (
        serving(simulator("--served-model-name", "qwen")) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY) as client,
    ):
        assert [model.id async for model in client.models.list()] == ["qwen"]
        chat = await client.chat.completions.create(
            model="qwen", messages=[{"role": "user", "content": "Hello"}], max_tokens=1, temperature=0
        )
        assert chat.choices[0].message.content == "This"
        assert chat.choices[0].finish_reason == "length"
        assert chat.usage is not None
        assert chat.usage.completion_tokens == 1
        text = await client.completions.create(model="qwen", prompt="Hello", max_tokens=3)
        assert text.choices[0].text == "This is a"
        stream = await client.chat.completions.create(
            model="qwen",
            messages=[{"role": "user", "content": "Hello"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert said == "This is a simulated answer: no model was asked."
        assert chunks[-1].usage is not None
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.completions.create(model="other", prompt="Hello")


async def test_the_key_guards_only_the_v1_routes() -> None:
    async with serving(simulator()) as url, httpx.AsyncClient(base_url=url) as client:
        for path in ("/health", "/ping", "/version", "/metrics"):
            assert (await client.get(path)).status_code == 200, path
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            refused = await client.get("/v1/models", headers=headers)
            assert (refused.status_code, refused.json()) == (401, {"error": "Unauthorized"})
        tokens = await client.post("/tokenize", json={"model": MODEL, "prompt": "two words"})
        assert tokens.json()["count"] == 2


async def test_metrics_count_what_was_generated() -> None:
    async with serving(simulator()) as url, httpx.AsyncClient(base_url=url) as client:
        auth = {"Authorization": f"Bearer {KEY}"}
        await client.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 5}, headers=auth)
        metrics = (await client.get("/metrics")).text
        assert f'vllm:generation_tokens_total{{engine="0",model_name="{MODEL}"}} 5.0' in metrics
        assert f'vllm:num_requests_running{{engine="0",model_name="{MODEL}"}} 0.0' in metrics
        assert "vllm:gpu_cache_usage_perc" in metrics


@pytest.mark.parametrize(
    ("sim", "status", "mark"),
    [
        ({"fault": Fault.OOM}, 1, "CUDA out of memory"),
        ({"model": "fault/oom"}, 1, "CUDA out of memory"),
        ({"model": "Qwen/Qwen3-32B"}, 1, "CUDA out of memory"),
        ({"fault": Fault.MODEL_NOT_FOUND}, 1, "404 Client Error"),
        ({"model": "org/does-not-exist"}, 1, "is not a valid model identifier"),
        ({"fault": Fault.TOKEN_REFUSED}, 1, "401 Client Error. Cannot access gated repo"),
        ({"model": "meta-llama/Llama-3.1-8B-Instruct"}, 1, "Cannot access gated repo"),
        ({"hf_token": "not-a-token"}, 1, "Invalid user token"),
        ({"fault": Fault.EXIT_LOOP}, 1, "Engine core initialization failed"),
        ({"fault": Fault.BAD_FLAG}, 2, "unrecognized arguments"),
    ],
    ids=str,
)
async def test_a_failed_start_exits_with_its_log_mark(sim: dict[str, object], status: int, mark: str) -> None:
    log: list[str] = []
    assert await asyncio.wait_for(simulator(**sim, log=log.append).run(), 10) == status  # type: ignore[arg-type]
    assert any(mark in line for line in log), log


async def test_a_context_that_does_not_fit_is_refused_and_two_gpus_make_room() -> None:
    flags = ("--max-model-len", "131072", "--tensor-parallel-size", "2")
    log: list[str] = []
    two_l4 = simulator(*flags, model="Qwen/Qwen3-32B-AWQ", gpus=Gpus(2, 23034), log=log.append)
    assert await two_l4.run() == 1
    assert any("is larger than the available KV cache memory" in line for line in log)
    async with serving(simulator(*flags, model="Qwen/Qwen3-32B-AWQ", gpus=Gpus(2, 46068))):
        pass


async def test_a_ready_log_carries_the_marks_of_success() -> None:
    log: list[str] = []
    async with serving(simulator(log=log.append)):
        text = "\n".join(log)
        for mark in (
            "Loading weights took",
            "GPU KV cache size:",
            "Starting vLLM API server",
            "Application startup complete",
        ):
            assert mark in text


async def test_a_log_is_that_of_the_release() -> None:
    log: list[str] = []
    options = parse_options(["--model", MODEL], {}, "0.32.0")
    async with serving(Simulator(options, version="0.32.0", speed=0.0, log=log.append)):
        text = "\n".join(log)
        for mark in (
            "(EngineCore pid=139) INFO",
            "Initializing a V1 LLM engine (v0.32.0)",
            " tokens, Maximum concurrency for 40,960 tokens per request: ",
            "(APIServer pid=1) INFO",
            "Starting vLLM server on http://0.0.0.0:8000",
            "Application startup complete",
        ):
            assert mark in text
        assert "Uvicorn running" not in text


async def test_hung_is_healthy_but_never_answers_a_completion() -> None:
    async with serving(simulator(fault=Fault.HUNG)) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/health")).status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            await client.post(
                "/v1/completions",
                json={"prompt": "Hello"},
                headers={"Authorization": f"Bearer {KEY}"},
                timeout=0.2,
            )


@pytest.mark.parametrize(
    ("fault", "key", "status", "listed"),
    [
        (Fault.KEY_REFUSED, KEY, 401, None),
        (Fault.NO_AUTH, "wrong", 200, MODEL),
        (Fault.WRONG_MODEL, KEY, 200, "another/model"),
    ],
)
async def test_access_faults_show_on_the_model_list(
    fault: Fault, key: str, status: int, listed: str | None
) -> None:
    async with serving(simulator(fault=fault)) as url, httpx.AsyncClient(base_url=url) as client:
        reply = await client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert reply.status_code == status
        assert listed is None or reply.json()["data"][0]["id"] == listed


async def test_while_loading_the_connection_is_dropped() -> None:
    sim = simulator(fault=Fault.HANG_LOADING)
    life = asyncio.create_task(sim.run())
    server = await asyncio.start_server(sim.connection, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    assert sim.state is State.LOADING
    writer.close()
    server.close()
    life.cancel()


@pytest.mark.parametrize(
    ("version", "flag", "known"),
    [
        ("0.9.2", "--swap-space=16", True),
        ("0.18.0", "--swap-space=16", False),
        ("0.9.2", "--enable-reasoning", True),
        ("0.10.0", "--enable-reasoning", False),
        ("0.9.2", "--max_num_seqs=8", True),
        ("0.9.2", "--no-enable-prefix-caching", True),
        ("0.9.2", "--gpu-memory-utilisation=0.9", False),
        ("0.9.2", "--quantization=awq2", False),
    ],
)
def test_flags_are_those_of_the_version(version: str, flag: str, known: bool) -> None:
    if known:
        parse_options(["--model", MODEL, flag], {}, version)
    else:
        with pytest.raises(BadFlags, match=r": error: .*" + flag.split("=", maxsplit=1)[0]):
            parse_options(["--model", MODEL, flag], {}, version)


async def test_a_quantization_of_no_release_is_refused_by_parser_or_engine() -> None:
    with pytest.raises(BadFlags, match="argument --quantization/-q: invalid choice: 'awq2'"):
        parse_options(["--quantization", "awq2"], {}, "0.9.2")
    log: list[str] = []
    options = parse_options(["--quantization", "awq2"], {}, "0.32.0")
    assert await Simulator(options, version="0.32.0", speed=0.0, log=log.append).run() == 1
    assert any("Unknown quantization method: awq2" in line for line in log)


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["--no-such-flag"], "vllm: error: unrecognized arguments: --no-such-flag"),
        (["--dtype", "foo"], "vllm serve: error: argument --dtype: invalid choice: 'foo'"),
        (
            ["--speculative-config", "{bad"],
            "argument --speculative-config/-sc: Value {bad cannot be converted",
        ),
        (["--max-model"], "vllm serve: error: argument --max-model-len: expected one argument"),
        (["--quant=awq"], "ambiguous option: --quant=awq could match --quantization, --quantization-config"),
        (["--lora-modules", "name"], "Invalid JSON format for --lora-modules: name"),
    ],
    ids=str,
)
def test_arguments_are_refused_in_the_words_of_0_32(words: list[str], refusal: str) -> None:
    """As vLLM 0.32.0 printed them."""
    with pytest.raises(BadFlags) as refused:
        parse_options(words, {}, "0.32.0")
    assert refusal in str(refused.value)


def test_the_safe_deployment_command_line_is_understood() -> None:
    options = parse_options(
        shlex.split(
            "--model Qwen/Qwen3-32B-AWQ --max-model-len 131072 --quantization awq_marlin --swap-space 16 "
            "--distributed-executor-backend mp --tensor-parallel-size 2 --gpu-memory-utilization 0.95 "
            "--port 5002"
        ),
        {"VLLM_API_KEY": KEY},
    )
    assert (options.port, options.tensor_parallel_size, options.api_keys) == (5002, 2, (KEY,))


def test_an_unknown_flag_ends_the_program_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert vllm_sim.main(["--modell", "x"], {}) == 2
    assert "unrecognized arguments: --modell" in capsys.readouterr().err


async def test_its_files_alone_serve_with_the_standard_library_and_ends_on_sigterm(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    start = (
        f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "runpy.run_module('simcloud.vllm_sim', run_name='__main__', alter_sys=True)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", "-c", start, "serve", MODEL, "--host", "127.0.0.1", "--port", str(port)),
        stdout=asyncio.subprocess.PIPE,
        env={"VLLM_SIM_SPEED": "0", "VLLM_API_KEY": KEY, "PATH": os.environ["PATH"]},
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        while b"startup complete" not in await process.stdout.readline():
            assert process.returncode is None
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(retries=5)) as client:
            assert (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


TASKS = {
    "generate": ("acme/model", []),
    "chat": ("acme/model", []),
    "embed": ("acme/bge", ["--runner", "pooling", "--convert", "embed"]),
    "rerank": ("acme/reranker", ["--runner", "pooling"]),
    "score": ("acme/reranker", ["--runner", "pooling"]),
    "classify": ("acme/classifier", ["--runner", "pooling", "--convert", "classify"]),
    "pooling": ("acme/reward", ["--runner", "pooling"]),
    "transcription": ("acme/whisper", []),
}
"""A model of each task, with the flags that it is served with."""
BEFORE_RUNNERS = {
    "embed": ["--task", "embed"],
    "rerank": ["--task", "score"],
    "score": ["--task", "score"],
    "classify": ["--task", "classify"],
    "pooling": ["--task", "reward"],
    "transcription": ["--task", "transcription"],
}


def serving_for(task: str, version: str) -> Simulator:
    model, flags = TASKS[task]
    if version == "0.9.2":
        flags = BEFORE_RUNNERS.get(task, [])
    options = parse_options(["--model", model, "--api-key", KEY, *flags], {}, version)
    return Simulator(options, version=version, speed=0.0, log=lambda line: None)


async def put(url: str, task: str, model: str) -> httpx.Response:
    """The gate's question, from outside of the gate."""
    asked = tasks.question(task, model)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": asked.content_type}
    async with httpx.AsyncClient(base_url=url) as client:
        return await client.post(asked.path, content=asked.body, headers=headers)


@pytest.mark.parametrize("version", ["0.9.2", "0.33.0"])
@pytest.mark.parametrize("task", tasks.TASKS)
async def test_a_model_answers_the_question_of_its_task(task: str, version: str) -> None:
    async with serving(serving_for(task, version)) as url:
        reply = await put(url, task, TASKS[task][0])
        assert (reply.status_code, tasks.question(task, "").wrong(reply.json())) == (200, None)
        other = await put(url, task, "other/model")
        assert (other.status_code, "does not exist" in other.text) == (404, True)


@pytest.mark.parametrize(
    ("task", "asked", "api"),
    [
        ("generate", "embed", "Embeddings"),
        ("generate", "rerank", "Rerank (Score)"),
        ("generate", "transcription", "Transcriptions"),
        ("embed", "generate", "Completions"),
        ("embed", "chat", "Chat Completions"),
        ("embed", "classify", "Classification"),
        ("classify", "score", "Score"),
        ("classify", "embed", "Embeddings"),
        ("transcription", "generate", "Completions"),
        ("transcription", "pooling", "Pooling"),
    ],
)
async def test_a_model_refuses_requests_of_other_tasks_as_its_release_does(
    task: str, asked: str, api: str
) -> None:
    async with serving(serving_for(task, "0.9.2")) as url:
        reply = await put(url, asked, TASKS[task][0])
        assert (reply.status_code, reply.json()["message"]) == (400, f"The model does not support {api} API")
    async with serving(serving_for(task, "0.33.0")) as url:
        reply = await put(url, asked, TASKS[task][0])
        assert (reply.status_code, reply.json()) == (404, {"detail": "Not Found"})


async def test_the_official_client_embeds_and_transcribes() -> None:
    async with (
        serving(serving_for("embed", "0.33.0")) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY) as client,
    ):
        found = await client.embeddings.create(
            model="acme/bge", input=["one", "two"], encoding_format="float"
        )
        assert [len(each.embedding) for each in found.data] == [64, 64]
    async with (
        serving(serving_for("transcription", "0.33.0")) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY) as client,
    ):
        with pytest.raises(openai.BadRequestError, match="Invalid or unsupported audio file"):
            await client.audio.transcriptions.create(model="acme/whisper", file=("a.wav", b"no sound"))


@pytest.mark.parametrize("missing", ["query", "documents"])
async def test_a_request_without_one_of_its_fields_is_refused(missing: str) -> None:
    body = {"model": "acme/reranker", "query": "a", "documents": ["b"]}
    del body[missing]
    async with (
        serving(serving_for("rerank", "0.33.0")) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        reply = await client.post("/rerank", json=body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, f"body.{missing}")
