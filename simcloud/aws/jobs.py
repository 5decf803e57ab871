"""Light job machines: the user data of a GPU job, carried out by this host in a folder.

The runner and its unit are the real ones. What they ask of the machine (mount, runuser, aws, …) is in
`machine/`: a share is a folder, the job's user is whoever runs the embedded cloud, and the machine goes off
when the unit says so, which ends the instance.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fleet.jobs.userdata import DIRECTORY, SETTINGS_PATH, UNIT
from simcloud.light.userdata import parse

PROGRAMS = Path(__file__).parent / "machine"
UNIT_PATH = f"/etc/systemd/system/{UNIT}"
PATHS = ("state", "home", "mount_path")
"""Settings that are places on the machine."""

PLUG = "plug pulled"


@dataclass(frozen=True)
class JobBoot:
    """What a job machine gets from its cloud."""

    instance_id: str
    user_data: bytes
    launched: float
    """Seconds since 1970."""
    directory: Path
    """The machine's disk."""
    shares: Path
    """Folder of the file systems, each below its id."""
    api_url: str
    access_key: str | None
    """Of the machine's role; None if it has none."""


@lru_cache(maxsize=1024)
def is_job(user_data: bytes | None) -> bool:
    """Whether a machine with this user data runs a job."""
    return any(file.path == SETTINGS_PATH for file in parse(user_data).files)


class JobMachines:
    """Those that are on. `off` is told when one has gone off by itself."""

    def __init__(self, off: Callable[[str], Awaitable[None]]) -> None:
        self._off = off
        self._lives: dict[str, asyncio.Task[None]] = {}

    def start(self, boot: JobBoot) -> None:
        """Power on, once."""
        if boot.instance_id not in self._lives:
            self._lives[boot.instance_id] = asyncio.get_running_loop().create_task(self._live(boot))

    async def stop(self, instance_id: str) -> None:
        """Press the power button, and return when the machine is off; one that is not on is."""
        life = self._lives.pop(instance_id, None)
        if life and life is not asyncio.current_task():
            life.cancel()
            with suppress(asyncio.CancelledError):
                await life

    def reset(self) -> None:
        """Pull every plug: nothing more is told of any job."""
        for life in self._lives.values():
            life.cancel(PLUG)
        self._lives.clear()

    async def _live(self, boot: JobBoot) -> None:
        settings, unit = _install(boot)
        environment = {
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "EMBEDDED_SHARES": str(boot.shares),
            "EMBEDDED_LAUNCHED": str(int(boot.launched)),
            "EMBEDDED_AWS": boot.api_url,
            "EMBEDDED_ACCESS_KEY": boot.access_key or "",
        }
        try:
            # The deadline that the user data sets before anything else: nothing is asked, nothing told.
            async with asyncio.timeout(boot.launched + settings["minutes"] * 60 - time.time()):
                ended = await _run(boot, unit["ExecStart"], environment)
                await _run(boot, unit["ExecStopPost"], environment | ended)
        except TimeoutError:
            pass
        except asyncio.CancelledError as end:
            if PLUG not in end.args:
                await _run(boot, unit["ExecStopPost"], environment)
            raise
        assert unit["SuccessAction"] == unit["FailureAction"] == "poweroff-force"
        await self._off(boot.instance_id)


def _install(boot: JobBoot) -> tuple[dict[str, Any], dict[str, str]]:
    """What cloud-init does with the user data; the job's settings, and its unit's."""
    root = boot.directory / "root"
    files = {file.path: file.content.decode() for file in parse(boot.user_data).files}
    settings = json.loads(files[SETTINGS_PATH])
    settings.update({key: f"{root}{settings[key]}" for key in PATHS})
    files[SETTINGS_PATH] = json.dumps(settings)
    for path, content in files.items():
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (root / path[1:]).write_text(content)
    for key in PATHS:
        Path(settings[key]).mkdir(parents=True, exist_ok=True)
    unit = dict(line.split("=", 1) for line in files[UNIT_PATH].splitlines() if "=" in line)
    return settings, unit


async def _run(boot: JobBoot, command: str, environment: dict[str, str]) -> dict[str, str]:
    """Run one of the unit's commands; what systemd would tell the next one of its end."""
    root = boot.directory / "root"
    _, *words = (f"{root}{word}" if word.startswith(DIRECTORY) else word for word in command.split())
    with (boot.directory / "console.log").open("ab") as console:
        # A job must not go on when the embedded clouds are gone.
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "TERM", sys.executable, *words), env=environment,
            stdin=asyncio.subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
        )  # fmt: skip
    try:
        status = await process.wait()
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        raise
    if status >= 0:
        outcome = "exit-code" if status else "success"
        return {"SERVICE_RESULT": outcome, "EXIT_CODE": "exited", "EXIT_STATUS": str(status)}
    name = signal.Signals(-status).name.removeprefix("SIG")
    return {"SERVICE_RESULT": "signal", "EXIT_CODE": "killed", "EXIT_STATUS": name}
