"""The `fleet` command: quick to start, and every command explains itself."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from fleet.cli import COMMANDS, app

SLOW = ("asyncssh", "boto3", "httpx", "pulumi", "pydantic", "rich", "yaml")


def run(*arguments: str, environment: dict[str, str] | None = None) -> Any:
    return CliRunner().invoke(app, arguments, prog_name="fleet", env=environment or {})


def test_help_lists_every_command_and_loads_none() -> None:
    program = f"""
import sys
from typer.testing import CliRunner
from fleet.cli import app
print(CliRunner().invoke(app, ["--help"]).stdout)
print("loaded", [name for name in {SLOW} if name in sys.modules],
      [name for name in sys.modules if name.startswith("fleet.commands")])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert "loaded [] []" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself_with_an_example(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0, result.output
    assert f"Usage: fleet {name}" in result.stdout
    if "Commands:" not in result.stdout:
        assert f"Example: fleet {name}" in result.stdout


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    result = run("plam")
    assert result.exit_code == 2
    assert "Did you mean 'plan'?" in result.output


def test_shells_complete_commands_and_their_options() -> None:
    def complete(words: str, position: int) -> str:
        asked = {
            "_FLEET_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(position),
        }
        return str(run(environment=asked).stdout)

    assert "reap" in complete("fleet re", 1).split()
    assert "--model-config" in complete("fleet fit --mod", 2).split()


def test_python_m_fleet_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fleet", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Usage: fleet ")
