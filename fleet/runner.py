"""Runs one command on many nodes at once over SSH: streamed, limited, and ended when we are.

Output is passed on as it comes, line by line and no faster than it is taken: what a reader does not take
stays on the node, so a command may print any amount.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from fleet.inventory import FleetNode, InventoryError
from fleet.ssh import (
    AuthenticationRefused,
    Connection,
    ConnectionLost,
    HostKeyMismatch,
    NothingListens,
    SshError,
    connect,
)

if TYPE_CHECKING:
    import asyncssh

MAX_PARALLEL = 64
"""Nodes at work at once; each costs a socket and, for its login, some 20 ms of one core."""

CHUNK = 65536
LONGEST_LINE = 65536
"""Bytes after which a line is passed on in parts, so that one without an end is not held in memory."""

END_GRACE_S = 3.0
"""Seconds a command gets between the polite signal and the final one."""

TAIL_LINES = 3
"""Last lines of standard error that a result quotes."""

TIMED_OUT, INTERRUPTED, UNREACHABLE = 124, 130, 255
"""Exit statuses as `timeout`, a shell and `ssh` give them."""

Stream = Literal["stdout", "stderr"]
Write = Callable[[str, Stream, list[bytes]], None]
"""Takes whole lines, without their ends, of one job's stream."""


class Outcome(StrEnum):
    """How a command ended, or why it did not run."""

    OK = "ok"
    FAILED = "failed"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    """The node is there but does not let us in, or is not the node that is pinned."""
    LOST = "lost"
    """The connection ended before the command did."""
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Job:
    """A command line for one node, run by the login user's shell."""

    label: str
    """Unique among the jobs of one run; stands before each line of output."""
    node: FleetNode
    command: str


@dataclass(frozen=True)
class Result:
    """How one job went."""

    label: str
    outcome: Outcome
    exit_status: int
    seconds: float
    error: str = ""
    """What went wrong, in one line."""


def command_line(words: Sequence[str]) -> str:
    """One word is a line for the remote shell; several are a program and its arguments, kept as they are."""
    return words[0] if len(words) == 1 else shlex.join(words)


def worst(results: Sequence[Result]) -> int:
    """The exit status of a whole run."""
    return max((result.exit_status for result in results), default=0)


async def run(
    jobs: Sequence[Job], write: Write, *, max_parallel: int = MAX_PARALLEL, timeout_s: float | None = None
) -> list[Result]:
    """Run every job, at most `max_parallel` at once and each for at most `timeout_s` seconds.

    A node's failure is a result, never raised. When cancelled, it ends the commands on the nodes and
    returns what there is. Raises what `write` raises, after ending everything.
    """
    free = asyncio.Semaphore(max_parallel)
    tasks = [asyncio.create_task(_run_one(job, write, free, timeout_s)) for job in jobs]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    except asyncio.CancelledError:
        me = asyncio.current_task()
        assert me is not None
        me.uncancel()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks]


async def _run_one(job: Job, write: Write, free: asyncio.Semaphore, timeout_s: float | None) -> Result:
    started = time.monotonic()

    def result(outcome: Outcome, status: int, error: str = "") -> Result:
        return Result(job.label, outcome, status, round(time.monotonic() - started, 3), error)

    tail: deque[bytes] = deque(maxlen=TAIL_LINES)

    def keep(stream: Stream, lines: list[bytes]) -> None:
        if stream == "stderr":
            tail.extend(lines[-TAIL_LINES:])
        write(job.label, stream, lines)

    try:
        async with free:
            started = time.monotonic()
            async with connect(job.node.reachable()) as session:
                status = await _stream(session, job.command, keep, timeout_s)
    except asyncio.CancelledError:
        return result(Outcome.INTERRUPTED, INTERRUPTED, "interrupted; the command was ended")
    except TimeoutError:
        said = f"no end within {timeout_s:g} s; the command was ended"
        return result(Outcome.TIMEOUT, TIMED_OUT, said)
    except (SshError, InventoryError, ValueError) as error:
        return result(_outcome(error), UNREACHABLE, str(error))
    if status == 0:
        return result(Outcome.OK, 0)
    said = b" / ".join(tail).decode(errors="replace") or "nothing on standard error"
    how = f"ended by signal {-status}" if status < 0 else f"exit status {status}"
    return result(Outcome.FAILED, 128 - status if status < 0 else status, f"{how}: {said}")


def _outcome(error: Exception) -> Outcome:
    match error:
        case AuthenticationRefused() | HostKeyMismatch():
            return Outcome.REFUSED
        case ConnectionLost() | NothingListens():
            return Outcome.LOST
    return Outcome.UNREACHABLE


async def _stream(
    session: Connection, command: str, write: Callable[[Stream, list[bytes]], None], timeout_s: float | None
) -> int:
    """The command's exit status, negative for a signal. However this ends, so does the command."""
    process = await session.open_process(command)
    muted = False

    async def pump(stream: Stream, reader: asyncssh.SSHReader[bytes]) -> None:
        rest = b""
        while data := await reader.read(CHUNK):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > LONGEST_LINE:
                lines.append(rest)
                rest = b""
            if lines and not muted:
                write(stream, lines)
        if rest and not muted:
            write(stream, [rest])

    ended = asyncio.gather(
        pump("stdout", process.stdout), pump("stderr", process.stderr), process.wait_closed()
    )
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(ended)
    except BaseException:
        # The pumps go on without a reader: a command that cannot write would not see its end.
        muted = True
        await _end(process, ended)
        raise
    if process.returncode is None:
        raise ConnectionLost(session.target, f"the connection was lost while `{command}` ran")
    return process.returncode


async def _end(process: asyncssh.SSHClientProcess[bytes], ended: asyncio.Future[Any]) -> None:
    """End a command on its node: politely, then not; closing the channel alone would leave it running."""
    for signal in ("TERM", "KILL"):
        if not ended.done():
            with suppress(OSError):  # the channel or the connection is closed already
                process.send_signal(signal)
            await asyncio.wait([ended], timeout=END_GRACE_S)
    ended.cancel()
    await asyncio.gather(ended, return_exceptions=True)


COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
"""ANSI colours, neighbours far apart."""


class Printer:
    """Writes each job's lines with its label before them."""

    def __init__(self, labels: Sequence[str], out: BinaryIO, err: BinaryIO, *, colour: bool) -> None:
        self._streams: dict[Stream, BinaryIO] = {"stdout": out, "stderr": err}
        width = max(map(len, labels), default=0)
        self._prefixes = {
            label: _prefix(label.ljust(width), COLOURS[index % len(COLOURS)] if colour else None)
            for index, label in enumerate(labels)
        }

    def __call__(self, label: str, stream: Stream, lines: list[bytes]) -> None:
        prefix = self._prefixes[label]
        target = self._streams[stream]
        target.write(b"".join(prefix + line + b"\n" for line in lines))
        target.flush()


def _prefix(label: str, colour: int | None) -> bytes:
    return (f"{label} | " if colour is None else f"\x1b[{colour}m{label} |\x1b[0m ").encode()
