"""Stand-in for pulumi-resource-command: `command:local:Command` and `command:local:run`.

Behaves as version 1.2.1 does: commands run through `/bin/sh -c` unless `interpreter` says otherwise; a
change of `triggers` replaces, any other change runs `update`, or `create` again where there is none; the
previous output is in PULUMI_COMMAND_STDOUT and PULUMI_COMMAND_STDERR; a command that fails leaves no trace
in the state; an interrupt or a timeout kills the shell and nothing below it, and the operation ends when
the last process that holds the shell's output has ended. Not served: assetPaths, archivePaths, and the
commands of `command:remote`.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

from tools.plugins.base import Call, Props, ProviderError, ResourceType, serve_provider
from tools.processes import Process, Stream, output_of

SHELL = ["/bin/sh", "-c"]
# How much of a failed command's output its error repeats: its end tells why.
ERROR_TAIL_BYTES = 8192


class Shells:
    """The shells that run. When they are to end, each gets SIGKILL and its children nothing, as from Go's
    CommandContext."""

    def __init__(self) -> None:
        self._running: set[Process] = set()

    @contextlib.contextmanager
    def started(self, argv: Sequence[str], cwd: str, env: Mapping[str, str], stdin: int) -> Iterator[Process]:
        """A shell with its output piped. Raises OSError if the program or the folder does not exist."""
        pipe = subprocess.PIPE
        process = subprocess.Popen(argv, cwd=cwd, env=env, stdin=stdin, stdout=pipe, stderr=pipe)
        self._running.add(process)
        # A command need not have read its input.
        with contextlib.suppress(BrokenPipeError), process:
            try:
                yield process
            finally:
                self._running.discard(process)

    def kill(self) -> None:
        for process in list(self._running):
            process.kill()


SHELLS = Shells()


class Lines:
    """Cuts a stream into lines as it arrives."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._emit(line.decode(errors="replace"))

    def close(self) -> None:
        if self._rest:
            self._emit(self._rest.decode(errors="replace"))


def run(call: Call, command: str, inputs: Props, previous: Props) -> Props:
    """Runs one command to its end and returns its `stdout` and `stderr`, each without its last newline.

    Raises:
        ProviderError: it could not be started, ended with another code than 0, or was killed: by an
            interrupt, or for taking longer than the resource's `custom_timeouts` allow.
    """
    env = os.environ | inputs.get("environment", {})
    if inputs.get("addPreviousOutputInEnv", True):
        kept = {f"PULUMI_COMMAND_{name.upper()}": previous.get(name) for name in ("stdout", "stderr")}
        env |= {name: value for name, value in kept.items() if value}
    logging = inputs.get("logging", "stdoutAndStderr")
    loggers = {name: Lines(call.log) for name in ("stdout", "stderr") if logging in (name, "stdoutAndStderr")}
    collected: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    tail = bytearray()
    argv = [*(inputs.get("interpreter") or SHELL), command]
    stdin = inputs.get("stdin") or ""

    with contextlib.ExitStack() as stack:
        try:
            process = stack.enter_context(
                SHELLS.started(
                    argv, inputs.get("dir") or ".", env, subprocess.PIPE if stdin else subprocess.DEVNULL
                )
            )
        except OSError as error:
            raise ProviderError(f"{error}: running {command!r}") from error
        if process.stdin:
            threading.Thread(target=_feed, args=[process.stdin, stdin.encode()], daemon=True).start()
        if call.timeout_s:
            timer = threading.Timer(call.timeout_s, process.kill)
            timer.start()
            stack.callback(timer.cancel)
        if call.cancelled.is_set():  # it was too late for the cancellation to find this child
            process.kill()
        for stream, chunk in output_of(process):
            collected[stream] += chunk
            tail = (tail + chunk)[-ERROR_TAIL_BYTES:]
            if stream in loggers:
                loggers[stream].feed(chunk)
        code = process.wait()
    for logger in loggers.values():
        logger.close()
    if code != 0:
        reason = f"exit status {code}" if code > 0 else f"signal: {signal.strsignal(-code)}".lower()
        raise ProviderError(f"{reason}: running {command!r}:\n{tail.decode(errors='replace')}")
    return {name: text.decode(errors="replace").removesuffix("\n") for name, text in collected.items()}


def _feed(stdin: IO[bytes], text: bytes) -> None:
    # A command need not read its input.
    with contextlib.suppress(BrokenPipeError), stdin:
        stdin.write(text)


class Command(ResourceType):
    """A command for each of a resource's create, update and delete."""

    token = "command:local:Command"
    replace_on = frozenset({"triggers"})
    derived = frozenset({"stdout", "stderr"})

    def check(self, inputs: Props) -> tuple[Props, dict[str, str]]:
        return {"addPreviousOutputInEnv": True} | inputs, {}

    def create(self, call: Call, inputs: Props) -> tuple[str, Props]:
        name = call.urn.rsplit("::", 1)[-1]
        id_ = f"{name}{secrets.token_hex(4)}"
        return id_, self._run(call, inputs.get("create"), inputs, {})

    def update(self, call: Call, id_: str, state: Props, inputs: Props) -> Props:
        return self._run(call, inputs.get("update", inputs.get("create")), inputs, state)

    def delete(self, call: Call, id_: str, state: Props) -> None:
        self._run(call, state.get("delete"), state, state)

    def _run(self, call: Call, command: str | None, inputs: Props, previous: Props) -> Props:
        kept = {name: previous.get(name, "") for name in self.derived}
        return inputs | (kept if command is None else run(call, command, inputs, previous))


def invoke_run(call: Call, inputs: Props) -> Props:
    """`command:local:run`: runs at every preview and update, and keeps nothing."""
    return inputs | run(call, inputs["command"], inputs, {})


if __name__ == "__main__":
    serve_provider([Command()], {"command:local:run": invoke_run}, on_cancel=SHELLS.kill)
