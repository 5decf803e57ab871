"""Why vLLM did not start, from its own log: each log of the collection has its name, none a wrong one."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_node import Answer, FakeNode
from typer.testing import CliRunner

from fleet import engine_faults, engine_log
from fleet.cli import app
from fleet.commands import pulumi
from fleet.diagnosis import QUOTED_LENGTH, Fault
from fleet.engine_log import read

LOGS = Path(__file__).parents[1] / "data" / "engine_logs"
INDEX: dict[str, dict[str, Any]] = {
    entry["name"]: entry for entry in yaml.safe_load((LOGS / "index.yaml").read_text(encoding="utf-8"))
}
NAMED = [name for name, entry in INDEX.items() if entry["fault"]]
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB."
START = "INFO 07-10 08:00:00 [api_server.py:1395] vLLM API server version 0.9.2"
MEGABYTES = 5_000_000
PREFIXES = {
    "plain": "",
    "compose": "vllm  | ",
    "compose v1": "vllm-openai_1  | ",
    "docker's time": "2026-11-30T02:34:40.123456789Z ",
    "journal": "Nov 30 02:34:40 node-1 docker[1234]: ",
    "colours": "\x1b[1;36m",
    "colours that a page has damaged": "\ufffd[1;36m(VllmWorker rank=3 pid=48)\ufffd[0;0m ",
    "colours as a pager shows them": "ESC[1;36m(APIServer pid=1)ESC[0;0m ",
    "rank": "[rank0]: ",
    "Google's logs": "INFO 2025-11-19T20:16:36.096674521Z [resource.labels.containerName: vllm] (E pid=2) ",
    "process": "(EngineCore_DP0 pid=123) ",
    "process and record": "(EngineCore_DP0 pid=123) ERROR 11-30 10:00:00 [core.py:100] ",
    "record of 0.6": "ERROR 11-30 10:00:00 core.py:100] ",
    "Ray's worker": "(RayWorkerWrapper pid=1463574, ip=192.168.10.60) ",
    "compose and process": "vllm-1  | (APIServer pid=1) ",
    "time and process": "2026-11-30T02:34:40.123456789Z (Worker_TP0 pid=88) ERROR 11-30 10:00:00 core.py:1] ",
}


def text_of(entry: dict[str, Any]) -> str:
    return str(entry.get("text") or (LOGS / entry["file"]).read_text(encoding="utf-8"))


def name_of(text: str, *, ended: bool = False) -> str | None:
    fault = read(text, ended=ended).fault
    return fault.name.lower() if fault else None


def fleet(*words: str, stdin: bytes = b"", code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["diagnose", *words], input=stdin, prog_name="fleet")
    assert result.exit_code == code, result.output
    return result


def document(*words: str, stdin: bytes = b"", code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fleet(*words, "--json", stdin=stdin, code=code).stdout)
    return found


@pytest.mark.parametrize("name", INDEX)
def test_a_log_is_named_by_its_cause_or_not_at_all(name: str) -> None:
    assert name_of(text_of(INDEX[name])) == INDEX[name]["fault"]
    assert name_of(text_of(INDEX[name]), ended=True) == INDEX[name]["fault"]


def test_the_collection_is_large_enough_and_says_where_it_is_from() -> None:
    assert len(INDEX) >= 60
    assert sum(entry["fault"] is None for entry in INDEX.values()) >= 8
    assert all(entry["source"] for entry in INDEX.values())
    assert {entry["file"] for entry in INDEX.values() if "file" in entry} == {
        file.name for file in LOGS.glob("*.log")
    }


@pytest.mark.parametrize("name", NAMED)
def test_a_name_comes_with_a_proof_and_a_fix(name: str) -> None:
    reading = read(text_of(INDEX[name]))
    assert reading.seen and reading.fix
    assert all(proof in text_of(INDEX[name]) for proof in reading.seen)


def test_every_fault_that_a_log_can_show_has_a_fix_that_names_a_setting_or_a_command() -> None:
    signs = (*engine_faults.EXCEPTIONS, *engine_faults.TOOLS)
    phases = [fault for fault, _ in engine_faults.PHASES]
    known = (
        r"serving\.|secrets\.|network\.|root_volume_gb|driver_branch|fleet ssh|pulumi up|type with more RAM"
    )
    for fault in {*(sign.fault for sign in signs), *phases}:
        assert re.search(known, fault.fix) or "replace the node" in fault.fix, fault


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_prefix_of_its_lines_does_not_hide_an_exception(prefix: str) -> None:
    lines = ["Traceback (most recent call last):", '  File "x.py", line 1, in load_model', OOM]
    reading = read("\n".join(PREFIXES[prefix] + line for line in lines))
    assert reading.fault is Fault.GPU_MEMORY_LOADING
    assert reading.seen == (OOM,)


@pytest.mark.parametrize(
    ("name", "length"), [("kv-v1-estimate", 34736), ("kv-v0-tokens", 3664), ("toolong", 2048)]
)
def test_a_length_that_fits_is_taken_from_the_message(name: str, length: int) -> None:
    assert f"set serving.max_model_len to {length} or less" in read(text_of(INDEX[name])).fix


def test_the_last_start_counts() -> None:
    port = "OSError: [Errno 98] Address already in use"
    assert name_of("\n".join([START, OOM, START, port])) == "port_taken"
    assert name_of("\n".join([START, OOM, START, "INFO:     Application startup complete."])) is None
    assert name_of("\n".join([START, OOM, START, "ImportError: no module named x"])) is None


def test_a_start_that_has_only_begun_says_nothing() -> None:
    loading = "INFO 07-10 08:00:00 [gpu_model_runner.py:1770] Starting to load model x..."
    assert name_of("\n".join([START, OOM, START])) == "out_of_gpu_memory"
    wrapper = "RuntimeError: Engine core initialization failed. See root cause above."
    assert name_of("\n".join([START, OOM, START, wrapper])) is None
    assert name_of("\n".join([START, OOM, START, loading])) is None
    assert name_of("\n".join([START, OOM, START, loading]), ended=True) == "out_of_gpu_memory"


@pytest.mark.parametrize("level", ["INFO", "WARNING", "DEBUG"])
def test_what_is_no_error_is_no_cause(level: str) -> None:
    assert name_of(f"{level} 07-10 08:00:00 [x.py:1] {OOM}") is None
    assert name_of(f"(Worker pid=1) {level} 07-10 08:00:00 [x.py:1] no space left on device") is None


def test_an_exception_that_its_own_process_survived_is_no_cause() -> None:
    limited = (
        "(W pid=1) requests.exceptions.HTTPError: 429 Client Error: Too Many Requests for url: https://h"
    )
    loaded = "INFO 07-10 08:00:00 [default_loader.py:272] Loading weights took 20.01 seconds"
    assert name_of(limited) == "hub_rate_limited"
    assert name_of(f"{limited}\n(W pid=1) {loaded}") is None
    assert name_of(f"{limited}\n(W pid=2) {loaded}") == "hub_rate_limited"


def test_a_tool_that_begins_its_line_with_error_raises_no_exception() -> None:
    assert name_of("Error: pull access denied for x/y, repository does not exist") == "image_refused"
    assert name_of("Error: No such container: vllm") is None


def test_what_nccl_lost_is_no_cause_where_a_peer_ended_for_another_reason() -> None:
    lost = "(W pid=1) RuntimeError: NCCL error: unhandled system error"
    assert name_of(lost) == "nccl_failed"
    assert name_of(f"{lost}\n(W pid=2) {OOM}") == "out_of_gpu_memory"
    assert name_of(f"(W pid=2) AssertionError: odd\n{lost}") is None


def test_a_log_without_a_name_still_shows_its_innermost_exception() -> None:
    wrapped = "RuntimeError: Engine core initialization failed. See root cause above."
    reading = read(f"(E pid=2) ERROR 07-10 08:00:00 [core.py:1] KeyError: 'rope_theta'\n{wrapped}")
    assert reading.fault is None and reading.seen == ("KeyError: 'rope_theta'",)


def test_an_engine_that_dies_while_it_serves_is_named() -> None:
    served = f"{START}\nINFO:     Application startup complete.\n"
    died = f"ERROR 07-10 09:00:00 [core.py:1] EngineCore encountered a fatal error.\n{OOM}"
    assert name_of(served + died) == "out_of_gpu_memory"
    assert name_of(served + f"ERROR 07-10 09:00:00 [serving_chat.py:1] {OOM}") is None


@pytest.mark.parametrize(
    "text",
    [
        "x" * MEGABYTES,
        "ValueError: " + "x" * MEGABYTES,
        "Error response from daemon: " + "dial tcp lookup " * (MEGABYTES // 16),
        "(" * MEGABYTES,
        "a." * (MEGABYTES // 2),
        "\n" * MEGABYTES,
        "\x00\x1b[" * (MEGABYTES // 3),
        "vllm  | " * (MEGABYTES // 8),
        "ValueError: a\n" * (MEGABYTES // 14),
        "".join(f"(W pid={n}) ValueError: {'max seq len (1) ' * 600}\n" for n in range(500)),
    ],
    ids=range(10),
)
def test_hostile_text_costs_no_more_than_its_length(text: str) -> None:
    started = time.process_time()
    assert read(text).fault is None
    assert time.process_time() - started < 10


def test_an_error_is_found_before_a_line_of_megabytes_and_after_one() -> None:
    assert name_of(f"{OOM}\n{'x' * MEGABYTES}") == "out_of_gpu_memory"
    assert name_of(f"{'x' * MEGABYTES}\n{OOM}") == "out_of_gpu_memory"
    assert name_of(f"ValueError: CUDA out of memory {'x' * MEGABYTES}") == "out_of_gpu_memory"


# --- The command ---


def test_a_saved_log_is_named_with_proof_cause_and_fix() -> None:
    found = document("--log", str(LOGS / "toolong.log"))
    assert found["fault"] == "context_too_long"
    assert found["seen"][0].startswith("Value error, User-specified max_model_len (100000)")
    assert found["cause"] and found["fix"] == "set serving.max_model_len to 2048 or less"
    said = fleet("--log", str(LOGS / "toolong.log")).stdout
    assert said.startswith("context_too_long\n  seen:  Value error")
    assert "\n  cause: " in said and "\n  fix:   set serving.max_model_len to 2048 or less\n" in said


def test_a_log_without_a_known_cause_ends_with_3() -> None:
    assert document("--log", str(LOGS / "ok.log"), code=3) == {
        "fault": None,
        "seen": [],
        "cause": "",
        "fix": "",
    }
    assert "not named" in fleet("--log", "-", stdin=b"KeyError: 'x'\n", code=3).stdout
    assert "not named" in fleet("--log", "-", stdin=b"", code=3).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a node, or give a log"),
        (["l4-a", "--log", "x"], "name a node, or give a log"),
        (["--log", "/no/such.log"], "/no/such.log cannot be read: No such file"),
        (["--log", "/"], "cannot be read: Is a directory"),
    ],
)
def test_a_wrong_call_ends_with_2_and_says_what_is_right(words: list[str], said: str) -> None:
    assert said in " ".join(fleet(*words, code=2).output.split())


def test_what_is_quoted_is_masked_bounded_and_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-token-0123456789")
    line = (
        f"ValueError: CUDA out of memory planted-token-0123456789 hf_plantedSecret1 \x1b[31m\x07{'x' * 5000}"
    )
    for text in (line.encode(), b"\xff\xfe\x00" + b"\n" + line.encode()):
        found = document("--log", "-", stdin=text)
        assert found["fault"] == "out_of_gpu_memory"
        assert "planted" not in json.dumps(found)
        assert all(len(seen) <= QUOTED_LENGTH and seen.isprintable() for seen in found["seen"])


def test_only_the_end_of_a_long_stream_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.commands.diagnose.LONGEST", 1000)
    early = f"{OOM}\n" + "INFO 07-10 08:00:00 [x.py:1] fine\n" * 100
    assert document("--log", "-", stdin=early.encode(), code=3)["fault"] is None
    assert document("--log", "-", stdin=(early + OOM).encode())["fault"] == "out_of_gpu_memory"


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The outputs of a stack, whose one secret is planted."""
    outputs: dict[str, Any] = {}
    secret = {"secret": True, "value": "planted-key-0123456789"}

    def answer(*words: str, **_: object) -> Any:
        if words[:2] == ("stack", "output"):
            return outputs
        return {"vllm-fleet:secrets": secret} if words[0] == "config" else {"deployment": {}}

    monkeypatch.setattr(pulumi, "read", answer)
    return outputs


def outputs_of(node: FakeNode) -> dict[str, Any]:
    ssh = {
        **asdict(node.target),
        "private_key_path": str(node.key_path),
        "host_keys": [node.target.host_keys[0]],
    }
    entry = {"id": "1", "cloud": "aws", "zone": "us-east-1a", "type": "g6.xlarge", "ssh": ssh}
    return {"a": {**entry, "container": "vllm", "ports": {"vllm": 8000}, "model": "m"}}


async def test_a_nodes_log_is_read_over_ssh_and_the_stacks_secrets_are_masked(
    tmp_path: Path, stack: dict[str, Any]
) -> None:
    node = FakeNode(tmp_path)
    node.commands["docker logs"] = Answer(f"{START}\nValueError: CUDA out of memory planted-key-0123456789\n")
    async with node.running():
        stack["nodes"] = outputs_of(node)
        found = await asyncio.to_thread(document, "a")
        assert found["fault"] == "out_of_gpu_memory"
        assert found["seen"] == ["ValueError: CUDA out of memory ***"]
        assert [command for command in node.ran if command.endswith("vllm 2>&1")]
        node.commands["docker logs"] = Answer("Error: No such container: vllm\n", 1)
        failed = await asyncio.to_thread(fleet, "a", code=1)
        assert "No such container" in failed.output
        unknown = await asyncio.to_thread(fleet, "b", code=2)
        assert "no node is called 'b'" in unknown.output


def test_a_bounded_part_of_a_log_is_read() -> None:
    assert engine_log.LONGEST_TEXT >= MEGABYTES
