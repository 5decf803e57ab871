"""Programs that Commands start, while they wait: each ends by a signal, and with whoever started it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fleet import lifeline

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0
SECRETS = dict.fromkeys(("FLEET_API_KEY", "FLEET_RAY_TOKEN", "FLEET_SECRET_ENVIRONMENT"), "X='planted'")

SPECS: dict[str, dict[str, Any]] = {
    "fleet.gate": {"cloud": "aws", "served_model": "m"},
    "fleet.rollout": {"cloud": "aws", "compose": "services: {vllm: {image: i, command: [m]}}"},
    "fleet.provision": {"cloud": "aws"},
    "fleet.observability": {"files": []},
    "fleet.ray.join": {"address": "10.0.0.2", "head_address": "10.0.0.1", "requirements": "", "files": ""},
    "fleet.ray.serve": {"members": [], "arguments": [], "environment": ""},
}
every_program = pytest.mark.parametrize("module", SPECS)


@dataclass
class SilentNode:
    """A machine that takes connections and never says a word."""

    server: socket.socket
    target: dict[str, Any]

    def spec(self, module: str) -> str:
        heads = {"head": self.target} if module == "fleet.ray.join" else {}
        lines = {"environment": ""} if module == "fleet.rollout" else {}
        return json.dumps({"node": "a", "target": self.target, **SPECS[module], **heads, **lines})

    def is_asked(self) -> None:
        """Wait until a program has connected: from then on it waits for an answer."""
        self.server.accept()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[SilentNode]:
    key = tmp_path / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE_S)
        port = server.getsockname()[1]
        target = {"host": "127.0.0.1", "port": port, "host_keys": [public], "private_key_path": str(key)}
        yield SilentNode(server, target)


def started(argv: list[str], spec: str, folder: Path) -> subprocess.Popen[str]:
    file = folder / "spec.json"
    file.write_text(spec)
    with file.open() as stdin:
        return subprocess.Popen(
            argv,
            cwd=ROOT,
            env=os.environ | SECRETS,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@every_program
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_program_that_waits_says_that_it_was_interrupted_and_ends(
    module: str, number: signal.Signals, node: SilentNode, tmp_path: Path
) -> None:
    program = started([sys.executable, "-m", module], node.spec(module), tmp_path)
    node.is_asked()
    program.send_signal(number)
    said, _ = program.communicate(timeout=DEADLINE_S)
    assert program.returncode == lifeline.INTERRUPTED
    assert "interrupted" in said and "Traceback" not in said


PARENT = "import subprocess, sys; subprocess.run(sys.argv[1:])"


@every_program
def test_a_program_that_waits_ends_when_its_parent_is_killed(
    module: str, node: SilentNode, tmp_path: Path
) -> None:
    argv = [sys.executable, "-c", PARENT, sys.executable, "-m", module]
    parent = started(argv, node.spec(module), tmp_path)
    node.is_asked()
    parent.kill()
    # Its output closes with the last process that holds it.
    parent.communicate(timeout=DEADLINE_S)


def test_a_program_that_cannot_clean_up_ends_all_the_same() -> None:
    stuck = """
import asyncio, time
from fleet import lifeline

async def work():
    print("there", flush=True)
    await asyncio.to_thread(time.sleep, 3600)

lifeline.CLEANUP_S = 0.1
lifeline.run(work())
"""
    program = subprocess.Popen([sys.executable, "-c", stuck], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None and program.stdout.readline() == "there\n"
    program.send_signal(signal.SIGINT)
    assert program.wait(DEADLINE_S) == lifeline.INTERRUPTED


def test_what_a_killed_program_runs_here_ends_with_it() -> None:
    child = """
import subprocess
from fleet import lifeline

subprocess.run(["sleep", "3600"], preexec_fn=lambda: (lifeline.end_with_parent(), print("there", flush=True)))
"""
    program = subprocess.Popen([sys.executable, "-c", child], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None and program.stdout.readline() == "there\n"
    program.kill()
    assert program.communicate(timeout=DEADLINE_S)[0] == ""
