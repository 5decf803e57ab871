"""The real Pulumi engine for tests.

The fixture `pulumi` makes stacks. Each has a project folder, a state backend and a passphrase of its own;
plugins come from the checkout's PULUMI_HOME, which set-up filled.

    def test_a_program_runs(pulumi):
        stack = pulumi("import pulumi; pulumi.export('answer', 42)")
        result = stack.run("up")                  # fails the test, with the whole output, if the engine fails
        assert result.changes == {"create": 1}
        assert stack.outputs() == {"answer": 42}

- `pulumi(program, files={path: text}, config={key: value}, env={...})` writes `__main__.py` (dedented),
  further files and the stack's settings. `pulumi(folder=PATH)` drives an existing project instead, with
  state of its own. What a test leaves in a stack is destroyed after it.
- `stack.run("up" | "preview" | "refresh" | "destroy", *flags, expect_failure=False, env={...})` asks no
  questions and returns a `Result`: `code`, `stdout` (both streams, as a user reads them), `events` (the
  engine's own, parsed), `changes` (operation → count) and `operations` (resource name → its operations),
  both without "same" and "refresh", and `drifted` (names of resources a refresh found changed).
- `stack.start(…)` does not wait. It returns a `Running` with `interrupt()` (as Ctrl-C), `kill()` (SIGKILL, as
  a crash), `wait_until(condition, what)` and `wait()` → `Result`. `stack.unlock()` makes a killed stack
  usable again, as `pulumi cancel` does.
- `stack.program(text)` replaces the program; `stack.outputs()` and `stack.state()` read the stack, secrets in
  clear only with `show_secrets=True`; `stack.ask("config", "get", …)` is any other command's output.

No wait is longer than `TIMEOUT_S`.
"""

import subprocess
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, Stack

from simcloud.testing import running_simcloud


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session")
def engine_env() -> dict[str, str]:
    """The settings of `make env`, whatever shell started the tests."""
    script = 'settings="$(python3 tools/setup.py env)" && eval "$settings" && env -0'
    done = subprocess.run(
        ["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode != 0:
        pytest.fail(f"set-up failed:\n{done.stderr}")
    return dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)


@pytest.fixture
def pulumi(engine_env: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """Makes a stack; see the top of this file."""
    stacks: list[Stack] = []

    def make(
        program: str = "",
        *,
        folder: Path | None = None,
        files: Mapping[str, str] | None = None,
        config: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Stack:
        workspace = tmp_path / f"stack-{len(stacks)}"
        state = workspace / "state"
        state.mkdir(parents=True)
        own = {
            "PULUMI_BACKEND_URL": f"file://{state}",
            "PULUMI_CONFIG_PASSPHRASE": "a test's own",
            "HF_ENDPOINT": "http://127.0.0.1:9",  # no test asks the real hub about a model
            "PULUMI_DEBUG_COMMANDS": "true",  # brings the flag --event-log
        }
        stack = Stack(folder or workspace / "project", workspace, engine_env | own | dict(env or {}))
        if folder is None:
            stack.folder.mkdir()
            (stack.folder / "Pulumi.yaml").write_text("name: project\nruntime: python\n")
            stack.program(program)
        for path, text in (files or {}).items():
            (stack.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (stack.folder / path).write_text(textwrap.dedent(text))
        stack.ask("stack", "init")
        for key, value in (config or {}).items():
            stack.ask("config", "set", key, value)
        stacks.append(stack)
        return stack

    yield make
    for stack in stacks:
        stack.close()


@pytest.fixture
def fleet(pulumi: Callable[..., Stack], tmp_path: Path) -> Iterator[Any]:
    """This project's stack on an embedded Scaleway without delays; see fleets.py."""
    import fleets

    key = fleets.ssh_key(tmp_path / "id_ed25519")
    folder = fleets.project_folder(tmp_path / "project")
    with running_simcloud(tmp_path / "cloud", ssh_port=fleets.SSH_PORT) as cloud:
        fleets.register_key(cloud, key)
        fleet = fleets.Fleet(pulumi(folder=folder), cloud, key, "scaleway")
        yield fleet
        cloud.clear_faults()
        fleet.stack.close()
