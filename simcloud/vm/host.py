"""What this machine must have to run virtual machines: its tools, its cache, its speed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TOOLS = {
    "qemu-system-x86_64": ("qemu-system-x86", "runs the machines"),
    "qemu-img": ("qemu-utils", "makes their disks"),
    "mmdebstrap": ("mmdebstrap", "builds the machine image and the container images from Debian packages"),
    "mkfs.ext4": ("e2fsprogs", "makes the root file system"),
    "debugfs": ("e2fsprogs", "unpacks it again"),
    "sfdisk": ("fdisk", "partitions the disk"),
    "apt-ftparchive": ("apt-utils", "indexes the apt mirror"),
    "dpkg-deb": ("dpkg", "builds the stand-in packages"),
    "gpg": ("gnupg", "signs the apt mirror"),
    "docker-registry": ("docker-registry", "serves the container images"),
    "rsync": ("rsync", "copies files to machines"),
    "socat": ("socat", "joins a machine's network to the mirrors"),
    "setpriv": ("util-linux", "ends a machine together with the process that started it"),
}
"""Executable → (Debian package, what it is for)."""

_KEPT_S = 14 * 24 * 3600

_SBIN = "/usr/sbin:/sbin"


class HostError(RuntimeError):
    """This machine cannot run virtual machines; the text says what is missing, why and how to get it."""


def say(text: str) -> None:
    """One progress line."""
    print(f"vm: {text}", file=sys.stderr, flush=True)


def ensure_tools() -> None:
    """Install by apt-get what is missing of `TOOLS`.

    Raises HostError, one line, when a tool cannot be had.
    """
    path = f"{os.environ.get('PATH', '')}:{_SBIN}"
    os.environ["PATH"] = path
    missing = {tool: about for tool, about in TOOLS.items() if shutil.which(tool) is None}
    if not missing:
        return
    packages = sorted({package for package, _ in missing.values()})
    by_hand = f"apt-get install --no-install-recommends {' '.join(packages)}"
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if shutil.which("apt-get") is None or (sudo and shutil.which("sudo") is None):
        tool, (_, purpose) = next(iter(missing.items()))
        raise HostError(f"{tool} is missing: it {purpose}. As root on Debian or Ubuntu: {by_hand}")
    say(f"installing {', '.join(packages)} (about 15 s)")
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=120"]
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run([*apt, *arguments], capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise HostError(f"{', '.join(missing)} missing and apt-get {arguments[0]} failed: "
                            f"{' '.join(last)}. As root: {by_hand}")  # fmt: skip


def run(
    command: Sequence[str | Path], *, timeout_s: float, cwd: Path | None = None, stdin: bytes | None = None
) -> bytes:
    """Standard output of a command; raises HostError with its last lines when it fails or takes too long."""
    argv = [str(word) for word in command]
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, cwd=cwd, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as expired:
        raise HostError(f"{argv[0]} did not end within {timeout_s:.0f} s: {' '.join(argv)}") from expired
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).decode(errors="replace").splitlines()[-15:])
        raise HostError(f"{' '.join(argv)} ended with {done.returncode}:\n{tail}")
    return done.stdout


def cache_directory() -> Path:
    """Where images are kept between runs, outside the checkout."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "vllm-fleet" / "vm"


def digest(*parts: bytes | Path) -> str:
    """16 hex digits over bytes, files and directories, in order."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, bytes):
            total.update(part)
            continue
        files = sorted(part.rglob("*")) if part.is_dir() else [part]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                total.update(file.name.encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:16]


def cached(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The directory `<cache>/<kind>-<key>`, made by `build` in a temporary place and renamed when whole.

    Builders in several processes wait for one another; directories of the same kind that nobody has asked for
    in two weeks are removed (others may be in use by another checkout).
    """
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"{kind}-{key}"
    if target.is_dir():
        target.touch()
        return target
    with (cache / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        for stale in cache.glob(f"{kind}-*"):
            if time.time() - stale.stat().st_mtime > _KEPT_S:
                shutil.rmtree(stale, ignore_errors=True)
        started = time.monotonic()
        scratch = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=cache))
        try:
            # mkdtemp gives 0700; dpkg and apt drop privileges and must be able to look inside.
            scratch.chmod(0o755)
            build(scratch)
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        say(f"{kind} ready in {time.monotonic() - started:.0f} s, kept in {target}")
    return target


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is done and how long it took."""
    say(f"{what} …")
    started = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - started:.0f} s")
