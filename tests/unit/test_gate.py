"""The gate: what counts as ready, and which diagnosis each way of not getting there has."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from fake_node import API_KEY, MODEL, Answer, FakeNode, FastClock, cloud_init, container, vllm

from fleet import gate
from fleet.diagnosis import INSTALL_MARKS, Context, Fault, Hints, diagnose, marked, quote
from fleet.gate import GateSpec, Report, Timeouts
from fleet.progress import Progress, Stage
from fleet.spec import SpecError


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[FakeNode]:
    async with FakeNode(tmp_path).running() as running:
        yield running


def spec_of(node: FakeNode, **changes: Any) -> GateSpec:
    spec = GateSpec(
        "l4-a",
        "scaleway",
        node.target,
        MODEL,
        API_KEY,
        node.http_port,
        hints=Hints(zone="fr-par-2", server_id="server-1", security_group="group-1"),
    )
    return replace(spec, **changes)


async def check(
    node: FakeNode, time: FastClock | None = None, told: io.StringIO | None = None, **changes: Any
) -> Report:
    clock = (time or FastClock()).clock()
    return await gate.check(
        spec_of(node, **changes), Progress("l4-a", told or io.StringIO(), clock=clock), clock=clock
    )


def fault_of(report: Report) -> str:
    assert report.diagnosis and not report.ready
    return report.diagnosis.fault


async def test_a_ready_node_passes_every_stage_and_the_percentages_only_rise(node: FakeNode) -> None:
    node.files[gate.STAGES_PATH] = (
        b'{"stage": "docker", "at": 1.5, "seconds": 12.3}\n{"stage": "driver", "at": 99, "seco'
    )
    told = io.StringIO()
    report = await check(node, told=told)
    assert report.ready and report.diagnosis is None
    assert [(stage.percent, stage.name) for stage in report.stages] == [
        (50, "WORKER_SSH_ACCESSIBLE"),
        (60, "WORKER_SSH_INSTALL"),
        (70, "WORKER_VLLM_HTTP_OK"),
        (80, "WORKER_MODEL_LOADED"),
        (90, "WORKER_VLLM_WARMUP"),
        (95, "HEALTH_CHECK"),
        (100, "READY"),
    ]
    assert report.boot == ({"stage": "docker", "at": 1.5, "seconds": 12.3},)
    assert report.first_token_s is not None
    percentages = [int(number) for number in re.findall(r"^l4-a +(\d+) %", told.getvalue(), re.MULTILINE)]
    assert percentages == sorted(percentages) and percentages[-1] == 100
    assert API_KEY not in told.getvalue() + report.to_json()


async def test_no_host_key_means_no_connection(node: FakeNode) -> None:
    report = await check(node, target=replace(node.target, host_keys=()))
    assert fault_of(report) == "host_key_not_published"
    assert "user-data get server-id=server-1 key=ssh-host-public-keys" in str(report.diagnosis)


async def test_closed_ssh_asks_for_rule_state_and_address(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    async with node.running():
        pass
    time = FastClock()
    report = await check(node, time)
    text = str(report.diagnosis)
    assert fault_of(report) == "ssh_refused" and 180 <= time.seconds < 190
    assert "is the server still booting?" in text and "its address?" in text and "the rule" in text
    assert "scw instance server get server-1 zone=fr-par-2" in text


async def test_another_machine_at_the_address_is_a_host_key_mismatch(node: FakeNode) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    report = await check(node, target=replace(node.target, host_keys=(other,)))
    assert fault_of(report) == "host_key_mismatch"
    assert node.ran == []


async def test_a_refused_login_is_its_own_diagnosis(node: FakeNode, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(stranger)
    report = await check(node, target=replace(node.target, private_key_path=stranger))
    assert fault_of(report) == "authentication_refused"


@pytest.mark.parametrize(
    ("fault", "commands"),
    [
        (
            "cloud_init_crashed",
            {
                "cloud-init status": cloud_init("error", 1, errors=["('scripts_user', RuntimeError('no'))"]),
                "tail": Answer("Failed to run module scripts_user\n"),
            },
        ),
        (
            "cloud_init_degraded",
            {
                "cloud-init status": cloud_init(
                    "done", 2, recoverable_errors={"WARNING": ["Invalid cloud-config provided"]}
                )
            },
        ),
        (
            "apt_unreachable",
            {
                "cloud-init status": cloud_init("error", 1, errors=["('package_update_upgrade_install', …)"]),
                "tail": Answer("E: Failed to fetch http://mirror/x.deb  Could not connect to mirror:80\n"),
            },
        ),
        (
            "package_missing",
            {
                "cloud-init status": cloud_init("error", 1),
                "tail": Answer("E: Unable to locate package nvidia-driver-580-server\n"),
            },
        ),
        ("install_timeout", {"cloud-init status": cloud_init("running")}),
        ("driver_not_loaded", {"nvidia-smi": Answer(status=9, stderr="NVIDIA-SMI has failed\n")}),
        ("docker_dead", {"systemctl is-active docker": Answer("failed\n", 3)}),
    ],
)
async def test_a_machine_that_is_not_set_up_is_diagnosed(
    node: FakeNode, fault: str, commands: dict[str, Answer]
) -> None:
    node.commands |= commands
    report = await check(node)
    assert fault_of(report) == fault
    assert report.diagnosis and report.diagnosis.stage == "60 % WORKER_SSH_INSTALL"


async def test_a_set_up_that_failed_before_is_begun_again(node: FakeNode) -> None:
    states = iter(["activating", "activating"])
    node.commands |= {
        "cloud-init status": cloud_init("error", 1, errors=["('scripts_user', RuntimeError('no'))"]),
        "systemctl start --no-block vllm-setup.service": Answer(),
        "systemctl show --property=ActiveState --value vllm-setup.service": lambda: Answer(
            next(states, "inactive") + "\n"
        ),
    }
    told = io.StringIO()
    assert (await check(node, told=told)).ready
    assert "cloud-init failed earlier; setting the machine up again" in told.getvalue()


async def test_a_set_up_that_fails_again_is_named_and_left_alone(node: FakeNode) -> None:
    node.commands |= {
        "cloud-init status": cloud_init("error", 1),
        "systemctl start --no-block vllm-setup.service": Answer(),
        "systemctl show --property=ActiveState --value vllm-setup.service": Answer("failed\n"),
        "tail": Answer("E: Unable to locate package nvidia-driver-580-server\n"),
    }
    assert fault_of(await check(node)) == "package_missing"
    assert [line for line in node.ran if "--no-block" in line] == [
        "systemctl start --no-block vllm-setup.service"
    ]


async def test_a_set_up_that_fails_again_without_a_word_leaves_the_diagnosis_as_it_was(
    node: FakeNode,
) -> None:
    node.commands |= {
        "nvidia-smi": Answer(status=9, stderr="NVIDIA-SMI has failed\n"),
        "systemctl start --no-block vllm-setup.service": Answer(),
        "systemctl show --property=ActiveState --value vllm-setup.service": Answer("failed\n"),
        "tail": Answer("vllm-fleet: units failed: exit status 1\n"),
    }
    assert fault_of(await check(node)) == "driver_not_loaded"


async def test_a_set_up_that_fails_under_the_gates_eyes_is_not_begun_again(node: FakeNode) -> None:
    states = iter([cloud_init("running")])
    node.commands |= {
        "cloud-init status": lambda: next(states, cloud_init("error", 1)),
        "systemctl start --no-block vllm-setup.service": Answer(),
    }
    assert fault_of(await check(node)) == "cloud_init_crashed"
    assert not [line for line in node.ran if "vllm-setup" in line]


async def test_what_is_missing_is_named_even_if_time_runs_out_first(node: FakeNode) -> None:
    node.commands["nvidia-smi"] = Answer("No devices were found\n", 6)
    report = await check(node, timeouts=Timeouts(install_s=30))
    assert fault_of(report) == "driver_not_loaded"
    assert report.diagnosis and report.diagnosis.seen == ("nvidia-smi: No devices were found",)


async def test_deprecated_user_data_alone_does_not_stop_a_node(node: FakeNode) -> None:
    node.commands["cloud-init status"] = cloud_init("done", 2, recoverable_errors={"DEPRECATED": ["old key"]})
    assert (await check(node)).ready


async def test_the_reboot_in_the_middle_of_the_installation_is_survived(node: FakeNode) -> None:
    answers = iter([Answer(status=9, stderr="couldn't communicate with the NVIDIA driver"), "reboot"])

    def nvidia_smi() -> Answer:
        answer = next(answers, Answer("0, NVIDIA L4, 23034\n"))
        if isinstance(answer, Answer):
            return answer
        node.hang_up()
        return Answer(status=255)

    node.commands["nvidia-smi"] = nvidia_smi
    told = io.StringIO()
    report = await check(node, told=told)
    assert report.ready
    assert "waiting for the node to come back" in told.getvalue()


async def test_a_reboot_that_never_comes_back_is_named_within_its_deadline(tmp_path: Path) -> None:
    node, time = FakeNode(tmp_path), FastClock()
    running = node.running()
    await running.__aenter__()
    leave = asyncio.Event()

    def reboot() -> Answer:
        leave.set()
        return cloud_init("running")

    async def sleep(seconds: float) -> None:
        time.seconds += seconds
        if leave.is_set():
            leave.clear()
            await running.__aexit__(None, None, None)

    node.commands["cloud-init status"] = reboot
    clock = replace(time.clock(), sleep=sleep)
    report = await gate.check(spec_of(node), Progress("l4-a", io.StringIO(), clock=clock), clock=clock)
    assert fault_of(report) == "reboot_lost" and 300 <= time.seconds < 310


def not_listening(*_request: str) -> None:
    return None


CRASHES = {
    "out_of_gpu_memory": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB.",
    "kv_cache_too_small": "ValueError: To serve at least one request with the models's max seq len (131072), "
    "(20.00 GiB KV cache is needed, which is larger than the available KV cache memory (3.10 GiB).",
    "model_not_found": "OSError: Qwen/Nope is not a local folder and is not a valid model identifier",
    "token_refused": "GatedRepoError: 401 Client Error. Cannot access gated repo for url https://x",
    "bad_flag": "api_server.py: error: unrecognized arguments: --no-such-flag",
    "driver_too_old": "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 803: system has "
    "unsupported display driver / cuda driver combination",
    "disk_full": "OSError: [Errno 28] No space left on device",
    "exit_loop": "RuntimeError: Engine core initialization failed. See root cause above.",
}


def dies_again_and_again(node: FakeNode, log: Answer) -> None:
    restarts = iter(range(100))
    node.http = not_listening
    node.commands["docker inspect vllm"] = lambda: container(
        "restarting", restarts=next(restarts), exit_code=1
    )
    node.commands["docker logs"] = log


@pytest.mark.parametrize("fault", CRASHES)
async def test_a_container_that_dies_again_and_again_ends_the_wait_with_its_reason(
    node: FakeNode, fault: str
) -> None:
    dies_again_and_again(node, Answer(f"INFO starting\n{CRASHES[fault]}\n"))
    time = FastClock()
    report = await check(node, time)
    assert fault_of(report) == fault
    assert time.seconds < 60, "far less than the 1800 s it might have waited"
    assert report.diagnosis and CRASHES[fault][:60] in " ".join(report.diagnosis.seen)


async def test_the_next_step_after_a_failed_start_is_the_setting_that_helps(node: FakeNode) -> None:
    message = (
        "(EngineCore_DP0 pid=109) ValueError: To serve at least one request with the models's max seq len "
        "(262144), (24.0 GiB KV cache is needed, which is larger than the available KV cache memory "
        "(3.18 GiB). Based on the available memory, the estimated maximum model length is 34736."
    )
    dies_again_and_again(node, Answer(f"{message}\nRuntimeError: Engine core initialization failed.\n"))
    report = await check(node)
    assert fault_of(report) == "kv_cache_too_small"
    assert "\n  next:  set serving.max_model_len to 34736 or less" in str(report.diagnosis)


async def test_a_failed_start_without_a_name_is_quoted_by_its_innermost_exception(node: FakeNode) -> None:
    log = "KeyError: 'rope_theta'\nRuntimeError: Engine core initialization failed.\nlast line\n"
    dies_again_and_again(node, Answer(log))
    report = await check(node)
    assert fault_of(report) == "exit_loop"
    assert report.diagnosis and report.diagnosis.seen[1:] == ("KeyError: 'rope_theta'",)


async def test_both_streams_of_a_container_are_read_in_the_order_of_time(node: FakeNode) -> None:
    def at(second: int, text: str) -> str:
        return f"2026-11-30T10:00:{second:02}.000000000Z {text}\n"

    begins = "INFO 07-10 08:00:00 [api_server.py:1395] vLLM API server version 0.9.2"
    stdout = at(0, begins) + at(2, begins)
    stderr = at(1, "OSError: [Errno 98] Address already in use") + at(3, "MemoryError")
    dies_again_and_again(node, Answer(stdout, stderr=stderr))
    report = await check(node)
    assert fault_of(report) == "out_of_host_memory"
    assert report.diagnosis and report.diagnosis.seen == ("MemoryError",)


async def test_a_mark_in_the_log_of_a_container_that_runs_is_no_reason_to_give_up(node: FakeNode) -> None:
    slow = iter([None] * 20)
    node.http = lambda *request: next(slow) if _has_next(slow) else vllm(*request)
    node.commands["docker inspect vllm"] = container("running", restarts=4)
    node.commands["docker logs"] = Answer("torch.OutOfMemoryError: CUDA out of memory.\nINFO loading\n")
    assert (await check(node)).ready


async def test_a_container_killed_for_memory_is_told_from_other_exits(node: FakeNode) -> None:
    node.http = not_listening
    node.commands["docker inspect vllm"] = container("exited", exit_code=137, oom_killed=True)
    assert fault_of(await check(node)) == "out_of_host_memory"


@pytest.mark.parametrize(
    ("fault", "unit", "journal"),
    [
        ("image_refused", "failed", "Error response from daemon: manifest for vllm/vllm-openai:v9 not found"),
        (
            "compose_invalid",
            "failed",
            "validating /opt/llm/docker-compose.yml: services.vllm must be a mapping",
        ),
        ("port_taken", "failed", "Bind for 127.0.0.1:8000 failed: port is already allocated"),
        ("disk_full", "failed", "failed to register layer: write /usr/lib/x.so: no space left on device"),
        ("service_failed", "failed", "something nobody has seen before"),
        ("env_missing", "inactive", ""),
    ],
)
async def test_a_unit_that_makes_no_container_is_diagnosed(
    node: FakeNode, fault: str, unit: str, journal: str
) -> None:
    node.http = not_listening
    node.commands |= {
        "docker inspect vllm": Answer("[]", 1, "Error: No such object: vllm"),
        "systemctl show vllm.service": Answer(f"ActiveState={unit}\nSubState={unit}\n"),
        "journalctl -u vllm.service": Answer(journal),
        "test -e /opt/llm/.env": Answer(status=1),
    }
    time = FastClock()
    assert fault_of(await check(node, time)) == fault
    assert time.seconds < 60


async def test_a_machine_going_down_is_not_mistaken_for_a_failure(node: FakeNode) -> None:
    looks = iter([container("exited"), container("exited"), container("exited")])
    node.commands["docker inspect vllm"] = lambda: next(looks, container())
    node.commands["systemctl is-system-running"] = Answer("stopping\n", 1)
    node.http = lambda *request: vllm(*request) if not _has_next(looks) else None
    assert (await check(node)).ready


async def test_a_load_that_hangs_ends_at_the_deadline_with_the_age_of_the_last_line(node: FakeNode) -> None:
    node.http = not_listening
    node.commands["docker logs"] = Answer("INFO Starting to load model\n")
    time = FastClock()
    report = await check(node, time, timeouts=Timeouts(ready_s=600))
    assert fault_of(report) == "loading_timeout" and 600 <= time.seconds < 605
    assert re.search(r"Starting to load model \(unchanged for (5\d\d|600) s\)", str(report.diagnosis))


async def test_a_long_wait_says_so_every_ten_seconds_and_no_more_often(node: FakeNode) -> None:
    node.http = not_listening
    told = io.StringIO()
    await check(node, told=told, timeouts=Timeouts(ready_s=100))
    heartbeats = [line for line in told.getvalue().splitlines() if "waiting for /health" in line]
    assert 7 <= len(heartbeats) <= 10
    assert re.search(r"70 % WORKER_VLLM_HTTP_OK .*waiting for /health: .* s of 100 s$", heartbeats[-1])


@pytest.mark.parametrize(
    ("fault", "http"),
    [
        ("wrong_model", partial(vllm, model="other/model")),
        ("key_refused", partial(vllm, expected_key="another-key-entirely")),
        ("open_without_key", partial(vllm, expected_key=None)),
        (
            "completion_failed",
            lambda method, *rest: (400, {"error": "bad"}) if method == "POST" else vllm(method, *rest),
        ),
        (
            "hung",
            lambda method, *rest: asyncio.sleep(60) if method == "POST" else vllm(method, *rest),
        ),
    ],
)
async def test_a_model_that_answers_wrongly_is_not_ready(
    node: FakeNode, fault: str, http: Callable[..., Any]
) -> None:
    node.http = http
    report = await check(node, timeouts=Timeouts(token_s=0.3))
    assert fault_of(report) == fault


ANSWERS: dict[str, tuple[str, Any]] = {
    "generate": ("/v1/completions", {"choices": [{"text": "2"}]}),
    "chat": ("/v1/chat/completions", {"choices": [{"message": {"content": "2"}}]}),
    "embed": ("/v1/embeddings", {"data": [{"embedding": [0.5, -1]}]}),
    "rerank": ("/rerank", {"results": [{"index": 0, "relevance_score": 0.5}]}),
    "score": ("/score", {"data": [{"score": 0.5}]}),
    "classify": ("/classify", {"data": [{"label": None, "probs": [0.5, 0.5]}]}),
    "pooling": ("/pooling", {"data": [{"data": [[0.5, 1], [0.25, 2]]}]}),
    "transcription": ("/v1/audio/transcriptions", {"text": ""}),
}
"""Where a model of each task is asked, and what it answers."""


def answering(answers: dict[str, Any], status: int = 200) -> Callable[..., Any]:
    """vLLM with these answers to requests, by path, and no other routes for them."""

    def http(method: str, path: str, key: str) -> Any:
        if method == "POST":
            return (status, answers[path]) if path in answers else (404, {"detail": "Not Found"})
        return vllm(method, path, key)

    return http


@pytest.mark.parametrize("task", ANSWERS)
async def test_a_node_is_ready_once_it_has_answered_a_request_of_its_task(node: FakeNode, task: str) -> None:
    node.http = answering(dict([ANSWERS[task]]))
    report = await check(node, task=task)
    assert report.ready, report.diagnosis
    assert report.first_token_s is not None


@pytest.mark.parametrize(
    ("task", "answer", "said"),
    [
        ("generate", {"choices": []}, "no choices"),
        ("embed", {"data": []}, "no data[0].embedding"),
        ("embed", {"data": [{"embedding": []}]}, "data[0].embedding is empty"),
        ("embed", {"data": [{"embedding": "AACAPw=="}]}, "no finite number"),
        ("embed", {"data": [{"embedding": [0.5, float("nan")]}]}, "no finite number"),
        ("embed", {"data": [{"embedding": [0.5, None]}]}, "no finite number"),
        ("rerank", {"results": [{"relevance_score": float("inf")}]}, "no finite number"),
        ("score", {"data": [{"score": True}]}, "no finite number"),
        ("pooling", {"data": [{"data": [[], []]}]}, "data[0].data is empty"),
        ("transcription", {"text": None}, "no text"),
        ("transcription", ["text"], "no text"),
    ],
)
async def test_an_answer_that_holds_nothing_is_none(
    node: FakeNode, task: str, answer: Any, said: str
) -> None:
    node.http = answering({ANSWERS[task][0]: answer})
    report = await check(node, task=task)
    assert fault_of(report) == "completion_failed"
    assert said in str(report.diagnosis)


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (404, {"detail": "Not Found"}),
        (400, {"object": "error", "message": "The model does not support Embeddings API"}),
        (501, {"error": {"message": "The model does not support Rerank (Score) API"}}),
    ],
)
async def test_a_model_of_another_task_is_told_from_one_that_fails(
    node: FakeNode, status: int, answer: Any
) -> None:
    node.http = answering({"/v1/embeddings": answer}, status)
    report = await check(node, task="embed")
    assert fault_of(report) == "task_unsupported"
    assert "serving.task is embed" in str(report.diagnosis)
    assert "set serving.task to what the model is made for" in str(report.diagnosis)


async def test_a_chat_without_a_template_has_its_own_fix(node: FakeNode) -> None:
    said = (
        "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat "
        "template if the tokenizer does not define one."
    )
    node.http = answering({"/v1/chat/completions": {"error": {"message": said}}}, 400)
    report = await check(node, task="chat")
    assert fault_of(report) == "chat_template_missing"
    assert "deliver a template with serving.files" in str(report.diagnosis)


async def test_an_adapter_is_a_model_that_has_to_be_listed_and_to_answer(node: FakeNode) -> None:
    listed = {"data": [{"id": MODEL}, {"id": "sql"}]}

    def http(method: str, path: str, key: str) -> Any:
        return (200, listed) if path == "/v1/models" and key else vllm(method, path, key)

    report = await check(node, more_served=("sql",))
    assert fault_of(report) == "wrong_model"
    assert "asked for sql" in str(report.diagnosis)
    node.http = http
    assert (await check(node, more_served=("sql",))).ready


def test_a_spec_names_a_task_that_there_is() -> None:
    raw = {**gate.EXAMPLE, "task": "embedding"}
    with pytest.raises(SpecError, match="task: must be one of generate, chat, embed"):
        GateSpec.parse(json.dumps(raw), API_KEY)


async def test_a_gateway_counts_by_whom_it_lets_through(node: FakeNode) -> None:
    assert (await check(node, gateway_port=node.http_port)).ready  # it answers as vLLM does
    report = await check(node, gateway_port=node.ssh_port)
    assert fault_of(report) == "gateway_failed"
    assert "docker logs --tail 50 caddy" in str(report.diagnosis)


async def test_a_container_that_restarts_after_its_first_token_is_not_ready(node: FakeNode) -> None:
    states = iter([container(restarts=0)])
    node.commands["docker inspect vllm"] = lambda: next(states, container(restarts=1))
    assert fault_of(await check(node)) == "unstable"


def test_every_diagnosis_is_four_lines_whatever_is_known() -> None:
    for fault in Fault:
        for context in (
            Context("l4-a", "scaleway"),
            Context("l4-a", "linode", Hints(region="de-fra-2", server_id="1", security_group="2")),
            Context("l4-a", "aws", Hints(region="us-east-1", server_id="i-1", volume_id="vol-1")),
        ):
            text = str(diagnose(fault, Stage.HEALTH_CHECK, context, ["a line"]))
            assert len(text.splitlines()) == 4 and "{" not in text, text


@pytest.mark.parametrize(
    "line",
    [
        "non-default args: {'api_key': 'planted-secret', 'model': 'x'}",
        "api_key=['planted-secret'], model=x",
        "vllm serve --api-key planted-secret --port 8000",
        "Authorization: Bearer planted-secret",
        "HF_TOKEN=planted-secret",
        "token hf_plantedSecret1 is invalid",
        "the value itself: known-planted-secret",
    ],
)
def test_quoted_lines_hold_no_secret(line: str) -> None:
    assert "planted" not in quote(line, ["known-planted-secret"])


def test_quoted_lines_hold_no_control_characters() -> None:
    assert quote("\x1b[31mERROR\x1b[0m \x07bell\r") == "ERROR bell"


def test_marks_are_sought_in_their_order_and_quoted_from_the_end() -> None:
    log = ["No space left on device (1)", "No space left on device (2)", "No space left on device (3)"]
    found = marked([*log, "Unable to locate package x"], INSTALL_MARKS)
    assert found and found.fault is Fault.DISK_FULL and found.seen == tuple(log[1:])
    assert marked(["Setting up docker-ce"], INSTALL_MARKS) is None


def test_a_spec_is_read_strictly_and_its_problems_hold_no_value() -> None:
    raw = {
        "node": "l4-a",
        "cloud": "scaleway",
        "target": {"host": "127.0.0.1", "host_keys": "ssh-ed25519"},
        "served_model": MODEL,
        "api_key": ["planted"],
        "colour": 1,
    }
    with pytest.raises(SpecError) as raised:
        GateSpec.parse(json.dumps(raw))
    text = str(raised.value)
    assert "colour: unknown field" in text
    assert "target.host_keys: must be a list, not str" in text
    assert "api_key: must be a string, not list" in text
    assert "planted" not in text


def test_a_spec_survives_the_way_through_json_and_hides_its_key() -> None:
    raw = dict(gate.EXAMPLE)
    spec = GateSpec.parse(json.dumps(raw), API_KEY)
    assert spec.target.private_key_path == Path("~/.ssh/id_ed25519")
    assert spec.timeouts.ready_s == 1800 and spec.hints.zone == "fr-par-2"
    assert API_KEY not in repr(spec)
    assert GateSpec.parse(json.dumps(asdict(spec), default=str)) == spec
    with pytest.raises(SpecError, match="api_key: missing"):
        GateSpec.parse(json.dumps(raw))


async def test_the_commits_that_are_served_are_reported_and_what_is_no_commit_is_not(node: FakeNode) -> None:
    node.files |= {"/refs/main": b"c" * 40, "/refs/odd": b"../" * 10}
    refs = tuple(gate.Ref(f"acme/model@{name}", f"/refs/{name}") for name in ("main", "odd", "absent"))
    report = await check(node, refs=refs)
    assert report.ready
    assert report.commits == {"acme/model@main": "c" * 40}


async def test_the_command_reports_on_stdout_and_explains_on_stderr(node: FakeNode) -> None:
    node.http = partial(vllm, model="other/model")
    spec = json.dumps(asdict(replace(spec_of(node), api_key="")), default=str)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "fleet.gate",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"FLEET_API_KEY": API_KEY},
    )
    out, err = await process.communicate(spec.encode())
    report = json.loads(out)
    assert process.returncode == 1 and report["ready"] is False
    assert report["diagnosis"]["fault"] == "wrong_model"
    lines = err.decode().splitlines()
    assert lines[-4].startswith("l4-a stopped at 80 % WORKER_MODEL_LOADED: another model is served")
    assert API_KEY not in out.decode() + err.decode()


def test_a_wrong_spec_ends_the_command_before_anything_is_tried() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fleet.gate"], input="{}", capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "node: missing" in done.stderr and done.stdout == ""


def test_help_shows_a_spec_that_can_be_used() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fleet.gate", "--help"], capture_output=True, text=True, check=True
    )
    assert GateSpec.parse(done.stdout[done.stdout.index("{") :], API_KEY).node == "l4-a"


def test_nothing_heavy_is_imported_before_a_connection_is_made() -> None:
    program = "import sys, fleet.gate; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"asyncssh", "pydantic", "httpx", "rich", "typer", "pulumi"}.isdisjoint(done.stdout.split())


def _has_next(iterator: Any) -> bool:
    """Whether a list iterator has anything left."""
    return iterator.__length_hint__() > 0
