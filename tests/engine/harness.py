"""What the fixtures of conftest.py hand out: stacks of the real engine, and their results."""

import contextlib
import json
import os
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A hung engine fails its test long before continuous integration gives up.
TIMEOUT_S = 180.0

UNATTENDED = {
    "up": ["--yes", "--skip-preview"],
    "destroy": ["--yes", "--skip-preview"],
    "refresh": ["--yes", "--skip-preview"],
}


@dataclass(frozen=True)
class Result:
    """How one engine command ended."""

    code: int
    stdout: str
    events: list[dict[str, Any]]

    @property
    def changes(self) -> dict[str, int]:
        """How many resources met each operation, as the engine sums up; unchanged ones are left out."""
        sums = [event["summaryEvent"]["resourceChanges"] for event in self.events if "summaryEvent" in event]
        return {op: count for op, count in sums[-1].items() if op != "same"} if sums else {}

    @property
    def operations(self) -> dict[str, list[str]]:
        """What the engine did to each resource, by the resource's name.

        Providers apart: the dynamic one's inputs are the whole configuration.
        """
        done: dict[str, list[str]] = {}
        for event in self.events:
            metadata = event.get("resourcePreEvent", {}).get("metadata")
            if not metadata or metadata["type"].startswith("pulumi:providers:"):
                continue
            if metadata["op"] not in ("same", "refresh"):
                done.setdefault(metadata["urn"].rsplit("::", 1)[-1], []).append(metadata["op"])
        return done

    @property
    def errors(self) -> list[tuple[str, str]]:
        """What the engine reported as errors: the resource's name and the message."""
        diagnostics = [event["diagnosticEvent"] for event in self.events if "diagnosticEvent" in event]
        return [
            (each.get("urn", "").rsplit("::", 1)[-1], each["message"])
            for each in diagnostics
            if each["severity"] == "error"
        ]

    @property
    def drifted(self) -> set[str]:
        """Names of the resources that a refresh found to be other than they should be."""
        seen = [event["resOutputsEvent"]["metadata"] for event in self.events if "resOutputsEvent" in event]
        return {each["urn"].rsplit("::", 1)[-1] for each in seen if each["op"] not in ("same", "refresh")}


@dataclass
class Running:
    """An engine command under way."""

    process: subprocess.Popen[str]
    event_log: Path

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Ends the engine as a crash would, then the plugins: not all of them notice that it is gone."""
        plugins = descendants(self.process.pid)
        self.process.kill()
        for pid in plugins:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(TIMEOUT_S)

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Waits for something that happens while the command runs; fails the test if it ends before."""
        wait_for(lambda: condition() or self.process.poll() is not None, what)
        if not condition():
            pytest.fail(f"the engine ended while waiting for {what}:\n{self.wait().stdout}")

    def wait(self, timeout_s: float = TIMEOUT_S) -> Result:
        try:
            stdout, _ = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            stdout, _ = self.process.communicate()
            pytest.fail(f"{self.process.args} was still running after {timeout_s:g} s:\n{stdout}")
        lines = self.event_log.read_text().splitlines() if self.event_log.exists() else []
        return Result(self.process.returncode, stdout, [json.loads(line) for line in lines])


@dataclass
class Stack:
    """One stack of one project."""

    folder: Path
    workspace: Path
    env: dict[str, str]
    name: str = "test"
    started: list[Running] = field(default_factory=list)
    abandoned: bool = False

    def program(self, text: str) -> None:
        (self.folder / "__main__.py").write_text(textwrap.dedent(text))

    def start(self, command: str, *flags: str, env: Mapping[str, str] | None = None) -> Running:
        event_log = self.workspace / f"events-{len(self.started)}.jsonl"
        unattended = [] if "--preview-only" in flags else UNATTENDED.get(command, [])
        process = subprocess.Popen(
            [
                *("pulumi", command, *unattended, *flags, "--stack", self.name, "--non-interactive"),
                *("--event-log", str(event_log), "--color", "never"),
            ],
            cwd=self.folder,
            env=self.env | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        running = Running(process, event_log)
        self.started.append(running)
        return running

    def run(
        self, command: str, *flags: str, expect_failure: bool = False, env: Mapping[str, str] | None = None
    ) -> Result:
        result = self.start(command, *flags, env=env).wait()
        if (result.code != 0) != expect_failure:
            pytest.fail(f"pulumi {command} {' '.join(flags)} ended with code {result.code}:\n{result.stdout}")
        return result

    def ask(self, *command: str, in_stack: bool = True, timeout_s: float = TIMEOUT_S) -> str:
        stack = ["--stack", self.name] if in_stack else []
        done = subprocess.run(
            ["pulumi", *command, *stack, "--non-interactive"],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            pytest.fail(f"{done.args} ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def outputs(self, show_secrets: bool = False) -> dict[str, Any]:
        flags = ["--show-secrets"] if show_secrets else []
        outputs: dict[str, Any] = json.loads(self.ask("stack", "output", "--json", *flags))
        return outputs

    def state(self, show_secrets: bool = False) -> list[dict[str, Any]]:
        flags = ["--show-secrets"] if show_secrets else []
        exported = json.loads(self.ask("stack", "export", *flags))
        resources: list[dict[str, Any]] = exported["deployment"].get("resources", [])
        return resources

    def unlock(self) -> None:
        self.ask("cancel", "--yes")

    def abandon(self) -> None:
        """End what runs, and leave everything as it is."""
        self.abandoned = True
        for running in self.started:
            if running.process.poll() is None:
                running.kill()

    def close(self) -> None:
        """End what runs, and destroy what there is."""
        if self.abandoned:
            return
        self.abandon()
        if self.state():
            self.unlock()
            self.run("destroy")


@contextlib.contextmanager
def stacks(engine_env: Mapping[str, str], at: Path) -> Iterator[Callable[..., Stack]]:
    """What the fixture `pulumi` hands out, in a folder of its own; see conftest.py."""
    made: list[Stack] = []

    def make(
        program: str = "",
        *,
        folder: Path | None = None,
        files: Mapping[str, str] | None = None,
        config: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Stack:
        workspace = at / f"stack-{len(made)}"
        state = workspace / "state"
        state.mkdir(parents=True)
        own = {
            "PULUMI_BACKEND_URL": f"file://{state}",
            "PULUMI_CONFIG_PASSPHRASE": "a test's own",
            "HF_ENDPOINT": "http://127.0.0.1:9",  # no test asks the real hub about a model
            "PULUMI_DEBUG_COMMANDS": "true",  # brings the flag --event-log
        }
        stack = Stack(folder or workspace / "project", workspace, {**engine_env, **own, **(env or {})})
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
        made.append(stack)
        return stack

    yield make
    for stack in made:
        stack.close()


def descendants(pid: int) -> list[int]:
    """The processes below this one."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            # The second field, a name in parentheses, may hold spaces; the fourth is the parent.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found[1:]


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended but that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Waits until the condition holds; after `timeout_s` the test fails and says what it waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.05)
