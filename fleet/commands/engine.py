"""The Pulumi engine under the Automation API, with an end that we decide."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import IO

from pulumi import automation

from fleet.commands.pulumi import STATE_UMASK


class Engine(automation.PulumiCommand):
    """The CLI in a session of its own: a terminal's Ctrl-C then reaches it through `interrupt` alone.

    Left in ours it would get the signal from the terminal and from us, and two mean to end at once, without
    waiting for what is under way.
    """

    def __init__(self) -> None:
        super().__init__()
        self._process: subprocess.Popen[str] | None = None
        self.complaints: list[str] = []
        """What the last command wrote to standard error."""

    def interrupt(self) -> None:
        """Cancel what the engine is doing; a second time: end at once."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def run(
        self,
        args: list[str],
        cwd: str,
        additional_env: Mapping[str, str],
        on_output: Callable[[str], object] | None = None,
        on_error: Callable[[str], object] | None = None,
    ) -> automation.CommandResult:
        """See `PulumiCommand.run`. Raises CommandError."""
        process = subprocess.Popen(
            [self.command, "--non-interactive", *args],
            cwd=cwd,
            env={**os.environ, **additional_env, "PULUMI_AUTOMATION_API": "true"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
            umask=STATE_UMASK,
        )
        self._process = process
        assert process.stdout is not None
        assert process.stderr is not None
        stdout: list[str] = []
        stderr: list[str] = []
        readers = [
            threading.Thread(target=_read, args=(process.stdout, on_output, stdout)),
            threading.Thread(target=_read, args=(process.stderr, on_error, stderr)),
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        self.complaints = stderr
        result = automation.CommandResult(
            stdout="\n".join(stdout), stderr="\n".join(stderr), code=process.wait()
        )
        if result.code:
            raise automation.CommandError(result)
        return result


def _read(stream: IO[str], tell: Callable[[str], object] | None, kept: list[str]) -> None:
    with stream:
        for line in stream:
            kept.append(line.rstrip())
            if tell:
                tell(kept[-1])
