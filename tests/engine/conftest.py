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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleets import Fleet, running_fleet
from harness import ROOT, Stack, stacks


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
    with stacks(engine_env, tmp_path) as make:
        yield make


@pytest.fixture
def fleet(pulumi: Callable[..., Stack], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """This project's stack on embedded clouds without delays; see fleets.py.

    Its nodes are on Scaleway; `every_cloud` of fleets.py tries a test on each.
    """
    with running_fleet(pulumi, tmp_path, getattr(request, "param", "scaleway")) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def ready_fleet(
    engine_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Fleet]:
    """The same, brought up; `first_up` is what that said. Tests of a module share it: none may change it."""
    at = tmp_path_factory.mktemp("ready")
    with (
        stacks(engine_env, at) as make,
        running_fleet(make, at, getattr(request, "param", "scaleway")) as fleet,
    ):
        fleet.first_up = fleet.run("up")
        yield fleet
