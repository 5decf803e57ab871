"""A state in a folder (`file://`) that a crash or a full disk has damaged, and what it can be restored from.

The engine writes STACK.json after every step, a copy of the one before it to STACK.json.bak, and further
copies below `backups` and `history` after every update.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.safekeeping import BACKEND, local_state
from fleet.settings import Problem

ATTRIBUTES = ".attrs"
"""Ending of the files of attributes that a backend without `?metadata=skip` writes beside each of its own."""

DAMAGED = ".damaged"
"""Ending under which a damaged state is kept. The engine takes no file with it for a stack."""

LEAST_FREE_BYTES = 50 * 10**6
"""For logs, records of rollouts and plans; the state of a node is some 0.1 MB."""

COPIES_OF_STATE = 10
"""An update keeps three copies of the state while it runs and leaves two more; a few updates should fit."""


class StateError(Exception):
    """The state cannot be repaired here. The message says why and what to do."""


@dataclass(frozen=True)
class Copy:
    """A whole state of the stack."""

    file: Path
    written_at: float
    """Seconds since 1970."""
    resources: int


@dataclass(frozen=True)
class Damage:
    """What is wrong with a stack's files, and what would fix it."""

    attributes: tuple[Path, ...]
    """Files of attributes that cannot be read; the engine does without."""
    state: Path | None
    """The state itself, if it cannot be read."""
    restore: Copy | None
    """The newest whole copy."""

    def __bool__(self) -> bool:
        return bool(self.attributes or self.state)


@dataclass(frozen=True)
class StateFiles:
    """The files of one stack of one project below a backend's folder."""

    folder: Path
    """What `file://` names."""
    project: str
    stack: str

    @property
    def _inside(self) -> Path:
        return self.folder / ".pulumi"

    @property
    def state(self) -> Path:
        """Where the engine keeps the state, whether it is there or not."""
        return self._inside / "stacks" / self.project / f"{self.stack}.json"

    def damage(self) -> Damage:
        """What is wrong. Raises StateError if there is no such stack, or no whole copy of a damaged state."""
        copies = sorted(self._copies(), key=lambda copy: copy.written_at)
        if not (self.state.exists() or copies):
            raise StateError(
                f"{self.folder} holds no stack {self.stack} of project {self.project}. "
                "Fix: name it with --stack, and its backend with PULUMI_BACKEND_URL"
            )
        attributes = tuple(file for file in self._attributes() if _document(file) is None)
        if _resources(self.state) is not None:
            return Damage(attributes, None, None)
        if not copies:
            raise StateError(
                f"{self.state} is damaged, and no whole copy of it is left. Fix: restore the folder from a "
                "backup of this machine, or start an empty stack and take the machines up: fleet adopt NODE"
            )
        return Damage(attributes, self.state, copies[-1])

    def repair(self, damage: Damage) -> None:
        """Put right what `damage` found. What is replaced stays beside it."""
        for file in damage.attributes:
            file.unlink()
        if damage.state is None or damage.restore is None:
            return
        draft = damage.state.with_name(f"{damage.state.name}.draft")
        shutil.copyfile(damage.restore.file, draft)
        draft.chmod(0o600)
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        if damage.state.exists():
            damage.state.replace(damage.state.with_name(f"{damage.state.name}{DAMAGED}"))
        draft.replace(damage.state)

    def held_by(self) -> str | None:
        """Who holds the stack's lock and may still be at work; None if nobody, or one that has ended."""
        for file in self._inside.glob(f"locks/*/{self.project}/{self.stack}/*.json"):
            lock = _document(file) or {}
            pid, host = lock.get("pid"), lock.get("hostname")
            if host != socket.gethostname() or (isinstance(pid, int) and _runs(pid)):
                return f"{lock.get('username', 'somebody')}@{host or 'unknown'}, process {pid} ({file})"
        return None

    def _attributes(self) -> Iterator[Path]:
        own = (
            *self.state.parent.glob(f"{self.stack}.json*{ATTRIBUTES}"),
            *(self._inside / "history" / self.project / self.stack).glob(f"*{ATTRIBUTES}"),
            *(self._inside / "backups" / self.project / self.stack).glob(f"*{ATTRIBUTES}"),
        )
        return (file for file in (self._inside / f"meta.yaml{ATTRIBUTES}", *own) if file.exists())

    def _copies(self) -> Iterator[Copy]:
        found = (
            self.state.with_name(f"{self.state.name}.bak"),
            *(self._inside / "backups" / self.project / self.stack).glob(f"{self.stack}.*.json"),
            *(self._inside / "history" / self.project / self.stack).glob("*.checkpoint.json"),
        )
        for file in found:
            if (count := _resources(file)) is not None:
                yield Copy(file, file.stat().st_mtime, count)


def _document(file: Path) -> dict[str, Any] | None:
    """A JSON object; None for anything else."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _resources(file: Path) -> int | None:
    """How many resources a state has; None if the file is no whole state."""
    match _document(file):
        case {"checkpoint": {"latest": {"resources": list(resources)}}}:
            return len(resources)
        case {"checkpoint": dict(), "version": int()}:  # a stack that was never brought up
            return 0
    return None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def refusals(stack: str, environment: Mapping[str, str], folder: Path) -> list[Problem]:
    """Why an update of a stack of the project in `folder` cannot be written down on this machine."""
    state = local_state(environment.get(BACKEND, ""))
    size = state_size(state / ".pulumi" / "stacks", stack) if state else 0
    needed = LEAST_FREE_BYTES + COPIES_OF_STATE * size
    places = {"the state": state, "the project's .fleet": folder / ".fleet"}
    return [
        Problem(str(at), f"{lack}; {what} lies there. Fix: make room, then run it again")
        for what, at in places.items()
        if at is not None and (lack := lack_of_space(at, needed))
    ]


def state_size(stacks: Path, stack: str) -> int:
    """Bytes of the largest state of that name, of whatever project."""
    return max((file.stat().st_size for file in stacks.glob(f"*/{stack}.json")), default=0)


def lack_of_space(folder: Path, needed: int) -> str | None:
    """What a folder's disk lacks for `needed` bytes; None if nothing.

    A folder that is not there yet is judged by the one above it.
    """
    at = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    disk = os.statvfs(at)
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
        return f"{free / 1e6:.0f} MB are free, and an update may need {needed / 1e6:.0f} MB"
    if disk.f_files and not disk.f_favail:
        return "no file can be created: all inodes are taken"
    return None
