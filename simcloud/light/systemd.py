"""The machine's systemd: units as files, oneshot services that run commands, path units that wait."""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from simcloud.light.disk import Disk
from simcloud.light.log import Log

UNITS = "/etc/systemd/system"
# What the image brings: there and running, with no file to read.
BUILT_IN = {"docker.service", "docker.socket", "containerd.service", "ssh.service", "multi-user.target"}

_PATH_KEYS = ("PathExists", "PathChanged", "PathModified")

Execute = Callable[[list[str], str, Log], Awaitable[int]]
"""Runs one command line in a working directory, its output to a log; returns the exit status."""


@dataclass
class Unit:
    """The state of one unit, in systemd's words."""

    name: str
    active: str = "inactive"
    sub: str = "dead"
    result: str = "success"
    status: int = 0
    since: float = 0.0
    restarts: int = 0
    """By itself, since it was last started by somebody."""
    log: Log = field(default_factory=Log)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def become(self, active: str, sub: str) -> None:
        self.active, self.sub, self.since = active, sub, time.time()


class NoSuchUnit(Exception):
    """`Unit NAME not found.`"""


class Systemd:
    """Units of one machine. A unit file that is wanted by a target counts as enabled until it is disabled."""

    def __init__(self, disk: Disk, execute: Execute) -> None:
        self._disk = disk
        self._execute = execute
        self._tasks: set[asyncio.Task[None]] = set()
        self.units: dict[str, Unit] = {}
        self.disabled: set[str] = set()

    def file_state(self, name: str) -> str:
        """What `systemctl is-enabled` says of a unit."""
        if name not in BUILT_IN and "WantedBy" not in self.settings(name):
            return "static"
        return "disabled" if name in self.disabled else "enabled"

    def unit(self, name: str) -> Unit:
        """The state of a unit. Raises `NoSuchUnit` when there is neither a file nor a built-in one."""
        name = name if "." in name else f"{name}.service"
        if name not in BUILT_IN and not self._disk.exists(f"{UNITS}/{name}"):
            raise NoSuchUnit(name)
        if name not in self.units:
            self.units[name] = Unit(name)
            if name in BUILT_IN:
                self.units[name].become("active", "running")
        return self.units[name]

    def settings(self, name: str) -> dict[str, list[str]]:
        """A unit file's settings, sections aside; an empty assignment clears the list, as systemd has it."""
        path = f"{UNITS}/{name}"
        settings: dict[str, list[str]] = defaultdict(list)
        text = re.sub(r"\\\n", " ", self._disk.text(path)) if self._disk.exists(path) else ""
        for line in text.splitlines():
            key, equals, value = line.partition("=")
            if not equals or line.startswith(("#", ";")):
                continue
            if value.strip():
                settings[key.strip()].append(value.strip())
            else:
                settings.pop(key.strip(), None)
        return settings

    def boot(self) -> None:
        """Start what is wanted at boot. A service that a path unit starts waits for its file."""
        folder = self._disk.locate(UNITS)
        files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        paths = {name for name in files - self.disabled if name.endswith(".path")}
        awaited = {self._target(name) for name in paths}
        for name in sorted(paths):
            self.unit(name).become("active", "waiting")
        for name in sorted(files - awaited - self.disabled):
            if name.endswith(".service") and "WantedBy" in self.settings(name):
                self._spawn(self.start(name))
        self.check_paths()

    def check_paths(self) -> None:
        """Start the services whose file has come: while it exists, an inactive one is started again."""
        for name, unit in list(self.units.items()):
            if name.endswith(".path") and unit.active == "active":
                wanted = self.settings(name)
                files = [path for key in _PATH_KEYS for path in wanted.get(key, [])]
                if any(map(self._disk.exists, files)):
                    self._trigger(unit)

    def _trigger(self, path_unit: Unit) -> None:
        try:
            target = self.unit(self._target(path_unit.name))
        except NoSuchUnit as missing:
            path_unit.log.write(f"{path_unit.name}: Unit {missing} not found.")
            path_unit.become("failed", "failed")
            return
        if target.active == "inactive" and not target.lock.locked():
            self._spawn(self.start(target.name))

    async def start(self, name: str) -> bool:
        """Start a unit and wait for its start to end; False when it failed."""
        unit = self.unit(name)
        async with unit.lock:
            if unit.active == "active":
                return True
            if unit.name.endswith((".path", ".socket")):
                unit.become("active", "waiting" if unit.name.endswith(".path") else "listening")
                self.check_paths()
                return True
            wanted = self.settings(unit.name)
            if not all(map(self._holds, wanted.get("ConditionPathExists", []))):
                return True
            if "ExecStart" not in wanted:
                unit.log.write(f"{unit.name}: Service has no ExecStart= setting. Refusing.")
                return self._fail(unit, "bad-setting")
            unit.become("activating", "start")
            unit.log.write(f"Starting {unit.name}...")
            oneshot = wanted.get("Type", ["simple"])[-1] == "oneshot"
            for line in [*wanted.get("ExecStartPre", []), *(wanted.get("ExecStart", []) if oneshot else [])]:
                if status := await self._run(unit, line):
                    unit.status = status
                    return self._fail(unit, "exit-code")
            unit.status, unit.result, unit.restarts = 0, "success", 0
            if not oneshot:
                unit.become("active", "running")
            elif wanted.get("RemainAfterExit", ["no"])[-1] in {"yes", "true", "1"}:
                unit.become("active", "exited")
            else:
                unit.become("inactive", "dead")
            unit.log.write(f"Finished {unit.name}.")
            return True

    def _fail(self, unit: Unit, result: str) -> bool:
        unit.result = result
        unit.become("failed", "failed")
        unit.log.write(f"{unit.name}: Failed with result '{result}'.")
        return False

    async def stop(self, name: str) -> None:
        unit = self.unit(name)
        async with unit.lock:
            if unit.active == "active":
                for line in self.settings(unit.name).get("ExecStop", []):
                    await self._run(unit, line)
            unit.become("inactive", "dead")

    async def restart(self, name: str) -> bool:
        await self.stop(name)
        return await self.start(name)

    async def close(self) -> None:
        """Power off: whatever is starting ends, without running any stop command."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.units.clear()

    def _target(self, path_unit: str) -> str:
        return self.settings(path_unit).get("Unit", [path_unit.removesuffix(".path") + ".service"])[-1]

    def _holds(self, condition: str) -> bool:
        wanted = not condition.startswith("!")
        return self._disk.exists(condition.lstrip("!|")) == wanted

    async def _run(self, unit: Unit, line: str) -> int:
        directory = self.settings(unit.name).get("WorkingDirectory", ["/"])[-1]
        argv = shlex.split(line.lstrip("-+!@"))
        argv[0] = PurePosixPath(argv[0]).name
        status = await self._execute(argv, directory.lstrip("-"), unit.log)
        return 0 if line.startswith("-") else status

    def _spawn(self, start: Awaitable[object]) -> None:
        async def run() -> None:
            await start

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
