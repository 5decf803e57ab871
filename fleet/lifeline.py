"""How a program that Pulumi starts comes to its end: by itself, by a signal, or with whoever started it.

pulumi-command kills the process it started with SIGKILL and waits for the pipe to close; nobody tells that
process's own children. An engine that is killed tells nobody at all. So each program sees to it itself.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

INTERRUPTED = 130
"""Exit status of a program that was interrupted, as a shell reports it for SIGINT."""

CLEANUP_S = 3.0
"""Seconds in which an interrupted program may close its connections. The engine kills a plugin after 5."""

PARENT_POLL_S = 0.5

PR_SET_PDEATHSIG = 1


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` for a program that others wait for.

    On SIGINT, on SIGTERM and when the parent process ends, the work is cancelled and KeyboardInterrupt
    raised. What has not cleaned up within CLEANUP_S is left and the process exits with INTERRUPTED.
    """
    return asyncio.run(_interruptible(work))


async def _interruptible(work: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.create_task(work)

    def interrupt() -> None:
        task.cancel()
        # Even a closed loop waits for the threads it started, as those that look up a host's name.
        deadline = threading.Timer(CLEANUP_S, os._exit, [INTERRUPTED])
        deadline.daemon = True
        deadline.start()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    when_parent_ends(lambda: loop.call_soon_threadsafe(interrupt))
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def when_parent_ends(callback: Callable[[], object]) -> None:
    """Call `callback` from a thread once the process that started this one has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        callback()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def end_with_parent() -> None:
    """For `preexec_fn`: a child that this process starts ends with it, even if it is killed. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def exit_with_engine() -> None:
    """End this plugin process once the engine has ended, even if it was killed.

    The engine holds the other end of a plugin's standard input. The script that starts Pulumi's dynamic
    provider stays between the two, so the parent alone tells nothing.
    """
    if stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
        threading.Thread(target=_exit_at_end_of_input, name="engine-watch", daemon=True).start()
    when_parent_ends(lambda: os._exit(0))


def _exit_at_end_of_input() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(0)
