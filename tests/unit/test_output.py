"""Tables: in a pipe every row is one whole line; on a narrow terminal nothing is cut off."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.table import Table

from fleet.commands import output

ROOT = Path(__file__).parents[2]
FLEET = (sys.executable, "-m", "fleet")


def piped(*words: str, **environment: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [*FLEET, *words], cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def on_a_terminal(columns: int, *words: str) -> list[str]:
    """What a terminal so wide gets."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [*FLEET, *words],
        cwd=ROOT,
        env=kept | {"TERM": "xterm", "NO_COLOR": "1"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    try:
        while chunk := os.read(ours, 65536):
            said += chunk
    except OSError:  # how Linux tells that the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", said.decode()).splitlines()


@pytest.mark.parametrize("environment", [{}, {"COLUMNS": "40"}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}])
def test_every_type_of_the_catalog_is_found_whole_in_a_pipe(environment: dict[str, str]) -> None:
    lines = piped("catalog", "list", **environment)
    known = json.loads("".join(piped("catalog", "list", "--json")))
    for each in known:
        row = [line for line in lines if f" {each['type']} " in line and each["zone"] in line]
        assert row, each["type"]
    assert "…" not in "".join(lines)


@pytest.mark.parametrize("columns", [60, 80])
def test_a_narrow_terminal_wraps_and_cuts_nothing(columns: int) -> None:
    lines = on_a_terminal(columns, "catalog", "list", "scaleway")
    assert max(map(len, lines)) <= columns
    assert "…" not in "".join(lines)


def test_a_plan_and_a_fit_are_whole_in_a_pipe() -> None:
    plan = piped("plan", "--model", "Qwen/Qwen3-8B-AWQ", "--why", COLUMNS="50")
    fit = piped("fit", "--model", "Qwen/Qwen3-8B-AWQ", "--type", "L4-1-24G", COLUMNS="20")
    assert "…" not in "".join(plan + fit)
    assert any("1 x L4-1-24G (1 x L4)" in line for line in plan)


def test_what_is_shown_twice_is_whole_both_times(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("job")
    table.add_row("job-" + "x" * 200)
    output.console().print(output.whole(table))
    assert "job-" + "x" * 200 in capsys.readouterr().out
