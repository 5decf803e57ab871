"""A machine's file system: a folder in which absolute paths and links stay inside, as in a chroot."""

from __future__ import annotations

import errno
import os
from collections import deque
from pathlib import Path, PurePosixPath

HOME = "/root"


class Disk:
    """Files by the paths the machine knows them by. Everything belongs to root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in (HOME, "/tmp", "/etc", "/var/log", "/opt"):
            (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def locate(self, path: str, *, follow: bool = True) -> Path:
        """Where a path of the machine lies on the host; relative ones start at root's home.

        `follow=False` leaves a link in the last place as it is. Raises `OSError` (ELOOP) on a ring of links.
        """
        here = self.root
        pending = deque(_parts(PurePosixPath(HOME) / path))
        links = 0
        while pending:
            part = pending.popleft()
            if part == "..":
                here = here if here == self.root else here.parent
                continue
            step = here / part
            if step.is_symlink() and (pending or follow):
                links += 1
                if links > 40:  # what Linux allows
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = PurePosixPath(step.readlink())
                here = self.root if target.is_absolute() else here
                pending.extendleft(reversed(_parts(target)))
            else:
                here = step
        return here

    def read(self, path: str) -> bytes:
        return self.locate(path).read_bytes()

    def text(self, path: str) -> str:
        return self.locate(path).read_text(errors="replace")

    def exists(self, path: str) -> bool:
        return self.locate(path).exists()

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Create or replace a file and the folders above it."""
        place = self.locate(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        # A new file, since the old one may be read-only. The mode comes before the content, which may be
        # secret.
        place.unlink(missing_ok=True)
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)

    def append(self, path: str, text: str) -> None:
        place = self.locate(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("a") as file:
            file.write(text)


def _parts(path: PurePosixPath) -> list[str]:
    return [part for part in path.parts if part != "/"]
