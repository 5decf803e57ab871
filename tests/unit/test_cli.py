"""The `fleet` command: quick to start, and every command explains itself."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from fleet.cli import COMMANDS, app, load

SLOWEST = ("asyncssh", "boto3", "httpx", "pulumi", "rich")
SLOW = (*SLOWEST, "pydantic", "yaml")


def run(*arguments: str, environment: dict[str, str] | None = None) -> Any:
    return CliRunner().invoke(app, arguments, prog_name="fleet", env=environment or {})


def words_of_every_command() -> list[tuple[str, ...]]:
    """What each command is called by, the commands of groups included."""
    groups = {name: getattr(load(name), "commands", {}) for name in COMMANDS}
    return [words for name, inner in groups.items() for words in ((name,), *((name, each) for each in inner))]


EVERY_COMMAND = words_of_every_command()


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


def test_no_command_loads_what_is_slow_before_it_is_at_work() -> None:
    program = f"""
import sys
from typer.testing import CliRunner
from fleet.cli import app
for words in {EVERY_COMMAND}:
    assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0, words
    slow = [name for name in {SLOWEST} if name in sys.modules]
    assert not slow, (words, slow)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", EVERY_COMMAND, ids=" ".join)
def test_a_command_explains_itself_with_an_example(words: tuple[str, ...]) -> None:
    result = run(*words, "--help")
    assert result.exit_code == 0, result.output
    assert f"Usage: fleet {' '.join(words)} " in result.stdout
    assert f"Example: fleet {' '.join(words)} " in result.stdout


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

    for words in EVERY_COMMAND:
        typed = ["fleet", *words]
        assert words[-1] in complete(" ".join(typed)[:-1], len(words)).split(), words
        assert "--help" in complete(" ".join([*typed, "--he"]), len(typed)).split(), words
    assert "--model-config" in complete("fleet fit --mod", 2).split()


def test_python_m_fleet_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fleet", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Usage: fleet ")
