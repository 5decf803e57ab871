"""Child processes that end as a whole, however their parent ends them."""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal, cast

# How long a child may take to end by itself. The engine kills a plugin 5 s after asking it to end.
GRACE_S = 3.0

Stream = Literal["stdout", "stderr"]
Process = subprocess.Popen[bytes]


class Children:
    """The running children of this process, each leading a process group of its own."""

    def __init__(self) -> None:
        self._running: set[Process] = set()

    @contextlib.contextmanager
    def started(
        self,
        argv: Sequence[str],
        cwd: str | Path,
        env: Mapping[str, str],
        stdin: int = subprocess.DEVNULL,
        output: int | None = None,
    ) -> Iterator[Process]:
        """A child that has ended when the block is left. `output` is where its stdout and stderr go.

        Raises:
            OSError: the program or the folder does not exist.
        """
        process = subprocess.Popen(
            argv, cwd=cwd, env=env, stdin=stdin, stdout=output, stderr=output, process_group=0
        )
        self._running.add(process)
        try:
            yield process
        finally:
            self._running.discard(process)
            if process.poll() is None:
                end([process])
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()

    def end(self) -> None:
        """Ends them all. Whoever waits for one of them sees it end."""
        end(list(self._running))


def end(processes: Sequence[Process]) -> None:
    """Ends process groups: asks them all, gives them `GRACE_S` together, then kills what is left of them."""
    # Not `poll`: until someone has waited for it, its id is its own and cannot mean another process.
    running = [process for process in processes if process.returncode is None]
    for process in running:
        _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        # The leader may have ended and left others behind who hold its output open.
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: Process, sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, sign)


def output_of(process: Process) -> Iterator[tuple[Stream, bytes]]:
    """What a child with piped output prints, as it prints it, until both streams are closed."""
    with selectors.DefaultSelector() as selector:
        selector.register(cast(IO[bytes], process.stdout), selectors.EVENT_READ, "stdout")
        selector.register(cast(IO[bytes], process.stderr), selectors.EVENT_READ, "stderr")
        while selector.get_map():
            for key, _ in selector.select():
                if chunk := os.read(key.fd, 65536):
                    yield key.data, chunk
                else:
                    selector.unregister(key.fileobj)
