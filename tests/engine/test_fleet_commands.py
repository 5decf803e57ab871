"""The daily commands on a real stack: the same engine and state as plain `pulumi`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest
from fleets import SECRETS, Fleet
from harness import TIMEOUT_S, wait_for

from fleet.progress import parse_line


def fleet_command(fleet: Fleet, *words: str) -> subprocess.Popen[str]:
    fleet.write()
    return subprocess.Popen(
        [sys.executable, "-m", "fleet", *words],
        cwd=fleet.stack.folder,
        env=fleet.stack.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        said, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        pytest.fail(f"{process.args} was still running after {TIMEOUT_S:g} s:\n{said}")
    return process.returncode, said


def run(fleet: Fleet, *words: str, code: int = 0) -> str:
    status, said = ended(fleet_command(fleet, *words, "--stack", fleet.stack.name))
    assert status == code, said
    for secret in (*SECRETS.values(), fleet.cloud.secret_key):
        assert secret not in said
    return said


def percentages(said: str) -> dict[str, list[int]]:
    """What was shown of each node, in order."""
    shown: dict[str, list[int]] = {}
    for told in filter(None, map(parse_line, said.splitlines())):
        shown.setdefault(told.node, []).append(int(told.stage))
    return shown


def test_a_day_with_a_fleet(fleet: Fleet) -> None:
    fleet.nodes("a", "b")
    said = run(fleet, "up", "--yes")
    assert "2 done" in said
    assert percentages(said).keys() == {"a", "b"}
    assert {shown[-1] for shown in percentages(said).values()} == {100}

    assert "2 unchanged" in run(fleet, "up", "--yes")
    # Lines come as the nodes send them, in whatever order.
    assert sorted(run(fleet, "exec", "all", "hostname").splitlines()) == ["a | a", "b | b"]
    assert "startup complete" in run(fleet, "logs", "a", "--no-follow", "-n", "200")
    rows: list[dict[str, Any]] = json.loads(run(fleet, "top", "--once", "--json"))
    assert [(row["node"], row["running"], row["error"]) for row in rows] == [("a", 0, ""), ("b", 0, "")]
    findings = json.loads(run(fleet, "check", "--json"))
    assert {finding["status"] for finding in findings} <= {"ok", "warning"}
    assert run(fleet, "ssh", "b", "hostname").strip() == "b"
    assert "no node is called 'c'" in run(fleet, "exec", "c", "true", code=2)


def test_a_failed_node_shows_where_and_why_and_the_others_get_ready(fleet: Fleet) -> None:
    fleet.nodes("a", "b")
    fleet.cloud.set_node_fault("b", "oom")
    said = run(fleet, "up", "--yes", code=1)
    assert "1 done, 1 failed" in said
    assert "b failed after 60 % WORKER_SSH_INSTALL" in said
    summary = said[said.index("b failed after") :]
    assert "vLLM ran out of GPU memory" in summary
    assert "next:" in summary
    # What failed can still be reached, to look at it.
    assert run(fleet, "exec", "b", "hostname").strip() == "b | b"
    findings = json.loads(run(fleet, "check", "--json", "--no-clouds", code=1))
    assert {finding["subject"] for finding in findings if finding["status"] == "failed"} == {"b"}


def test_ctrl_c_cancels_cleanly_and_the_next_up_goes_on(fleet: Fleet) -> None:
    fleet.cloud.set_fault("server_action", "hold")
    process = fleet_command(fleet, "up", "--yes", "--stack", fleet.stack.name)
    wait_for(lambda: fleet.cloud.faults()["held"] or process.poll() is not None, "the server to be started")
    process.send_signal(signal.SIGINT)
    fleet.cloud.release()
    status, said = ended(process)
    assert status == 130, said
    assert "cancelling: waiting for what is under way to end" in said
    assert "1 cancelled" in said
    # Nothing is locked or pending, and nothing is made twice.
    fleet.run("up")
    assert len(fleet.cloud.inventory("server")) == 1
