"""The programs of a light machine: small stand-ins for what people and deployments run on a GPU host.

Each handler takes a `Call` and returns the exit status. A program that has none runs for real, by the host's
shell, in the machine's folder.
"""

from __future__ import annotations

import asyncio
import getopt
import hashlib
import os
import shlex
import shutil
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import asyncssh

from simcloud.light.disk import HOME
from simcloud.light.log import Log

if TYPE_CHECKING:
    from simcloud.light.machine import Machine


FOLLOW_S = 0.1
"""Seconds between two looks at a file that is followed."""


class Output(Protocol):
    def write(self, data: bytes, /) -> object: ...


async def _no_input() -> bytes:
    return b""


@dataclass
class Call:
    """One running program."""

    machine: Machine
    argv: list[str]
    stdout: Output
    stderr: Output
    stdin: Callable[[], Awaitable[bytes]] = _no_input
    """Everything up to end of file."""
    cwd: str = HOME

    @property
    def args(self) -> list[str]:
        return self.argv[1:]

    def out(self, text: str) -> None:
        self.stdout.write(f"{text}\n".encode())

    def err(self, text: str) -> None:
        self.stderr.write(f"{text}\n".encode())

    def path(self, name: str) -> str:
        """An absolute path of the machine."""
        return str(PurePosixPath(self.cwd) / name)

    def options(self, short: str, long: Sequence[str] = ()) -> tuple[dict[str, str], list[str]]:
        """Options, by name with dashes, and the other words. Raises `Failed` on an unknown one."""
        try:
            found, rest = getopt.gnu_getopt(self.args, short, list(long))
        except getopt.GetoptError as error:
            raise Failed(f"{self.argv[0]}: {error}", 2) from error
        return dict(found), rest


class Failed(Exception):
    """The program ends with a message on stderr."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


Handler = Callable[[Call], Awaitable[int]]
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler under the names of its programs."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


async def run(call: Call) -> int:
    """Run a program that has a handler, with the errors a real one would print."""
    try:
        return await HANDLERS[call.argv[0]](call)
    except Failed as failure:
        call.err(str(failure))
        return failure.status
    except ValueError:  # too few words, or a number that is none
        call.err(f"{call.argv[0]}: invalid arguments: {shlex.join(call.args)}")
        return 2
    except OSError as error:
        call.err(f"{call.argv[0]}: {call.args[-1] if call.args else ''}: {error.strerror}")
        return 1


class Process(asyncssh.SSHServerProcess[bytes]):
    """Keeps signals apart; the library raises them where input is read, which a program need not do."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.signals: asyncio.Queue[str] = asyncio.Queue()

    def signal_received(self, signal: str) -> None:
        self.signals.put_nowait(signal)


async def run_remote(machine: Machine, command: str, process: Process) -> int:
    """Run the command of an SSH channel."""
    argv = _simple(command)
    privileged = process.get_extra_info("username") == "root" or command.startswith("sudo ")
    if argv and not privileged and (refused := _refused(machine, argv)):
        said, status = refused
        process.stderr.write(f"{said}\n".encode())
        return status
    if argv[:2] == ["rsync", "--server"]:
        command = shlex.join(_inside(machine, argv))
    if argv == ["printenv", "SSH_CLIENT"]:
        host, port, *_ = process.get_extra_info("peername")
        process.stdout.write(f"{host} {port} {machine.ssh_port}\n".encode())
        return 0
    if not argv or argv[0] not in HANDLERS:
        return await _on_host(machine, command, process)
    call = Call(machine, argv, process.stdout, process.stderr, process.stdin.read)
    running, signalled = asyncio.create_task(run(call)), asyncio.create_task(process.signals.get())
    try:
        await asyncio.wait({running, signalled}, return_when=asyncio.FIRST_COMPLETED)
        return running.result() if running.done() else 128 + signal.Signals[f"SIG{signalled.result()}"]
    finally:
        running.cancel()
        signalled.cancel()


async def run_unit_command(machine: Machine, argv: list[str], directory: str, log: Log) -> int:
    """Run a command of a unit; what only a real machine has is taken as done."""
    if argv[0] not in HANDLERS:
        return 0
    output = _ToLog(log)
    return await run(Call(machine, argv, output, output, cwd=directory))


@dataclass
class _ToLog:
    log: Log

    def write(self, data: bytes, /) -> None:
        self.log.write(data.decode(errors="replace"))


def _simple(command: str) -> list[str]:
    """The words of a command without its `sudo`; none when only a shell can run it."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return []
    if shlex.split(command) != words:  # an operator was split off: `a|b`, `a;b`, …
        return []
    if any(set(word) <= set("();<>|&") for word in words):
        return []
    if words[:1] == ["sudo"]:
        words = words[1:]
        while words and words[0].startswith("-"):
            words = words[1:]
    return words


LOOKS = {"cat", "show", "status", "is-active", "is-enabled", "is-failed", "list-units", "list-unit-files"}
"""What anybody may ask of systemd."""
READERS = {"cat", "head", "tail", "sha256sum"}
WRITERS = {"install", "mv", "cp", "rm", "mkdir", "chmod", "chown", "ln"}
OWN = ("/tmp/", f"{HOME}/")
"""Where a login user may write."""


def _refused(machine: Machine, argv: list[str]) -> tuple[str, int] | None:
    """What a program says, and its exit status, to a login user who needed sudo; None if it is not needed.

    The user is one of the clouds' images: with sudo, in group adm, which reads the logs, and not in docker.
    """
    program, words = argv[0], [word for word in argv[1:] if not word.startswith("-")]
    match program, words:
        case "docker", [_, *_]:
            return "permission denied while trying to connect to the Docker daemon socket", 1
        case "systemctl", [verb, *_] if verb not in LOOKS:
            return f"Failed to {verb} {words[-1]}: Interactive authentication required.", 1
        case "reboot", _:
            return "Call to Reboot failed: Interactive authentication required.", 1
        case "apt-mark", _:
            return (
                "E: Could not open lock file /var/lib/dpkg/lock-frontend - open (13: Permission denied)",
                100,
            )
    paths = [str(PurePosixPath(HOME) / word) for word in words]
    refused = [path for path in paths if program in READERS and _closed_to_others(machine, path)]
    refused += [path for path in paths if program in WRITERS and not path.startswith(OWN)]
    return (f"{program}: {refused[0]}: Permission denied", 1) if refused else None


def _closed_to_others(machine: Machine, path: str) -> bool:
    try:
        return not machine.disk.locate(path).stat().st_mode & 0o004
    except OSError:
        return False  # the program says itself what is wrong


def _inside(machine: Machine, argv: list[str]) -> list[str]:
    """An `rsync --server` command that works in the machine's folder; its paths come after a lone dot."""
    first = argv.index(".") + 1
    # A slash at the end makes a difference to rsync.
    paths = [f"{machine.disk.locate(path)}{'/' if path.endswith('/') else ''}" for path in argv[first:]]
    return [*argv[:first], *paths]


async def start_shell(command: str, directory: Path) -> asyncio.subprocess.Process:
    """A shell at the head of a session of its own; cancelled, it leaves no process of it behind."""
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", command),
            cwd=directory,
            env={"PATH": os.defpath, "HOME": HOME, "LANG": "C.UTF-8"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    )
    try:
        # asyncio would kill the shell alone and wait until what it has started closes the pipes, or forever.
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        child = await starting
        _kill(child)
        await child.communicate()
        raise


def _kill(child: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


async def _on_host(machine: Machine, command: str, process: Process) -> int:
    child = await start_shell(command.removeprefix("sudo -n "), machine.disk.locate(HOME))
    assert child.stdout is not None
    assert child.stderr is not None
    pumps = [
        asyncio.create_task(_pump(child.stdout, process.stdout)),
        asyncio.create_task(_pump(child.stderr, process.stderr)),
        asyncio.create_task(_feed(process, child)),
        asyncio.create_task(_pass_signals(process, child)),
    ]
    try:
        await asyncio.gather(*pumps[:2])
        status = await child.wait()
        return 128 - status if status < 0 else status
    finally:
        _kill(child)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await child.communicate()  # reads what is left, so that the pipes close


async def _pump(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
    """Pass output on, no faster than the client takes it."""
    with suppress(OSError, asyncssh.Error):  # the client has gone, and with it, at once, this session
        while data := await source.read(65536):
            target.write(data)
            await target.drain()


async def _feed(process: Process, child: asyncio.subprocess.Process) -> None:
    """Pass on what the client types."""
    assert child.stdin is not None
    with suppress(OSError):
        while data := await process.stdin.read(65536):
            child.stdin.write(data)
            await child.stdin.drain()
        child.stdin.close()


async def _pass_signals(process: Process, child: asyncio.subprocess.Process) -> None:
    while True:
        name = await process.signals.get()
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.Signals[f"SIG{name}"])


def _there(place: Path) -> bool:
    """Whether there is anything, a dangling link included."""
    return place.is_symlink() or place.exists()


# --- Files ------------------------------------------------------------------------------------------------


@handles("install")
async def _install(call: Call) -> int:
    options, rest = call.options("DTdm:o:g:", ["mode=", "owner=", "group="])
    mode = int(options.get("-m") or options.get("--mode") or "755", 8)
    disk = call.machine.disk
    if "-d" in options:
        for name in rest:
            folder = disk.locate(call.path(name))
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode)
        return 0
    source, target = rest
    data = await call.stdin() if source == "/dev/stdin" else disk.read(call.path(source))
    path = call.path(target)
    if "-D" not in options and not disk.exists(str(PurePosixPath(path).parent)):
        raise Failed(f"install: cannot create regular file '{target}': No such file or directory")
    if disk.locate(path).is_dir() and "-T" not in options:
        path = f"{path}/{PurePosixPath(source).name}"
    disk.write(path, data, mode)
    return 0


@handles("mv", "cp")
async def _mv(call: Call) -> int:
    options, (*sources, target) = call.options("TfnapRr")
    disk = call.machine.disk
    for source in sources:
        origin = disk.locate(call.path(source), follow=False)
        place = disk.locate(call.path(target), follow=False)
        if "-T" not in options and disk.locate(call.path(target)).is_dir():
            place = disk.locate(call.path(target)) / PurePosixPath(source).name
        if not _there(origin):
            raise Failed(f"{call.argv[0]}: cannot stat '{source}': No such file or directory")
        if call.argv[0] == "mv":
            origin.rename(place)
        elif origin.is_dir():
            shutil.copytree(origin, place, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(origin, place)
    return 0


@handles("cat", "head", "tail")
async def _cat(call: Call) -> int:
    options, names = call.options("n:c:fFq")
    if not names:
        call.stdout.write(await call.stdin())
    status = 0
    for name in names:
        try:
            data = call.machine.disk.read(call.path(name))
        except OSError as error:
            call.err(f"{call.argv[0]}: {name}: {error.strerror}")
            status = 1
            continue
        lines = data.splitlines(keepends=True)
        count = int(options.get("-n", "10").lstrip("+"))
        if call.argv[0] == "head":
            lines = lines[:count]
        elif call.argv[0] == "tail":
            lines = lines[max(len(lines) - count, 0) :]
        call.stdout.write(b"".join(lines))
    if options.keys() & {"-f", "-F"}:
        await _follow(call, names[-1])
    return status


async def _follow(call: Call, name: str) -> NoReturn:
    """What is written to a file from now on, until the caller leaves."""
    place = call.machine.disk.locate(call.path(name))
    seen = place.stat().st_size if place.exists() else 0
    while True:
        await asyncio.sleep(FOLLOW_S)
        if place.exists() and place.stat().st_size > seen:
            call.stdout.write(place.read_bytes()[seen:])
            seen = place.stat().st_size


@handles("rm")
async def _rm(call: Call) -> int:
    options, names = call.options("rRfd")
    for name in names:
        place = call.machine.disk.locate(call.path(name), follow=False)
        if place.is_dir() and not place.is_symlink():
            if not options.keys() & {"-r", "-R"}:
                raise Failed(f"rm: cannot remove '{name}': Is a directory")
            shutil.rmtree(place)
        elif _there(place):
            place.unlink()
        elif "-f" not in options:
            raise Failed(f"rm: cannot remove '{name}': No such file or directory")
    return 0


@handles("mkdir")
async def _mkdir(call: Call) -> int:
    options, names = call.options("pm:")
    for name in names:
        place = call.machine.disk.locate(call.path(name))
        try:
            place.mkdir(parents="-p" in options, exist_ok="-p" in options)
        except FileExistsError as error:
            raise Failed(f"mkdir: cannot create directory '{name}': File exists") from error
        if "-m" in options:
            place.chmod(int(options["-m"], 8))
    return 0


@handles("ls")
async def _ls(call: Call) -> int:
    _, names = call.options("1alAdrt")
    for name in names or ["."]:
        place = call.machine.disk.locate(call.path(name))
        if not place.exists():
            raise Failed(f"ls: cannot access '{name}': No such file or directory", 2)
        for entry in sorted(child.name for child in place.iterdir()) if place.is_dir() else [name]:
            call.out(entry)
    return 0


@handles("test", "[")
async def _test(call: Call) -> int:
    negated = call.args[:1] == ["!"]
    flag, name = call.args[1:3] if negated else call.args[:2]
    place = call.machine.disk.locate(call.path(name), follow=flag not in {"-L", "-h"})
    checks: dict[str, Callable[[], bool]] = {
        "-e": place.exists,
        "-r": place.exists,
        "-f": place.is_file,
        "-d": place.is_dir,
        "-L": place.is_symlink,
        "-h": place.is_symlink,
        "-s": lambda: place.exists() and place.stat().st_size > 0,
    }
    if flag not in checks:
        raise Failed(f"test: {flag}: unary operator expected", 2)
    return 0 if checks[flag]() != negated else 1


def _checked(call: Call, checksums: str) -> int:
    """Whether files are as a list of their checksums says; those that are not are named."""
    wrong = 0
    for line in call.machine.disk.read(call.path(checksums)).decode().splitlines():
        expected, name = line.split("  ", 1)
        if hashlib.sha256(call.machine.disk.read(call.path(name))).hexdigest() != expected:
            call.out(f"{name}: FAILED")
            wrong += 1
    if wrong:
        call.err(f"sha256sum: WARNING: {wrong} computed checksum did NOT match")
    return 1 if wrong else 0


@handles("sha256sum")
async def _sha256sum(call: Call) -> int:
    if call.args[:3] == ["--check", "--quiet", "--strict"]:
        return _checked(call, call.args[3])
    for name in call.args:
        try:
            data = call.machine.disk.read(call.path(name))
        except OSError as error:
            raise Failed(f"sha256sum: {name}: {error.strerror}") from error
        call.out(f"{hashlib.sha256(data).hexdigest()}  {name}")
    return 0


@handles("sshd")
async def _sshd(call: Call) -> int:
    if call.args != ["-T"]:
        raise Failed(f"sshd: unrecognized arguments: {shlex.join(call.args)}")
    call.out("authorizedkeysfile .ssh/authorized_keys .ssh/authorized_keys2")
    return 0


@handles("stat")
async def _stat(call: Call) -> int:
    options, names = call.options("c:L", ["format="])
    for name in names:
        place = call.machine.disk.locate(call.path(name))
        if not place.exists():
            raise Failed(f"stat: cannot statx '{name}': No such file or directory")
        facts = place.stat()
        text = options.get("-c") or options.get("--format") or "%n"
        fields = {
            "%a": f"{facts.st_mode & 0o7777:o}",
            "%U": "root",
            "%G": "root",
            "%s": facts.st_size,
            "%n": name,
        }
        for mark, value in {**fields, "%Y": int(facts.st_mtime)}.items():
            text = text.replace(mark, str(value))
        call.out(text)
    return 0


@handles("chmod", "chown")
async def _chmod(call: Call) -> int:
    _, (setting, *names) = call.options("R")
    for name in names:
        place = call.machine.disk.locate(call.path(name))
        if call.argv[0] == "chmod":
            place.chmod(int(setting, 8))
    return 0


@handles("readlink", "realpath")
async def _readlink(call: Call) -> int:
    options, (name,) = call.options("fem")
    disk = call.machine.disk
    if options or call.argv[0] == "realpath":
        call.out("/" + str(disk.locate(call.path(name)).relative_to(disk.root)))
        return 0
    place = disk.locate(call.path(name), follow=False)
    if not place.is_symlink():
        return 1
    call.out(str(place.readlink()))
    return 0


@handles("ln")
async def _ln(call: Call) -> int:
    _, (target, name) = call.options("sfnT")
    place = call.machine.disk.locate(call.path(name), follow=False)
    # A link that replaces another does so at once, as `ln -sfn` followed by a rename would.
    fresh = place.with_name(f".{place.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(place)
    return 0
