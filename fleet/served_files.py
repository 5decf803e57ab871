"""Files of this machine that a node serves with: chat templates, adapters, a model's own weights.

On the node they lie in a folder named by their content, which vLLM's container sees as `/files`: so a release
and the one it may go back to each keep theirs, and other content is another release.

Standard library only: the program that delivers them starts once per node.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

MOUNT = "/files"
"""Where vLLM's container sees them."""


class FilesError(ValueError):
    """A file that cannot be delivered; the message names it and what to do."""


def digest(files: Mapping[str, Path]) -> str:
    """Names the content of all files, 16 hexadecimal digits; empty for none. Raises FilesError, OSError.

    `files` are what is at `/files/NAME`: NAME → file or folder here. Every file is read whole.
    """
    return digest_of(checksums(files)) if files else ""


def checksums(files: Mapping[str, Path]) -> dict[str, str]:
    """The SHA-256 of every file, in hexadecimal, by its path below `/files`. Raises FilesError, OSError."""
    found = [each for name, source in sorted(files.items()) for each in listed(name, source)]
    return {path: _checksum(file) for path, file in found}


def manifest(known: Mapping[str, str], folder: str = "") -> str:
    """The lines by which `sha256sum --check` knows files, `folder` put before their paths."""
    return "".join(f"{checksum}  {folder}{path}\n" for path, checksum in known.items())


def digest_of(known: Mapping[str, str]) -> str:
    """The digest of files with those checksums."""
    return hashlib.sha256(manifest(known).encode()).hexdigest()[:16]


def listed(name: str, source: Path) -> Iterator[tuple[str, Path]]:
    """Every file of an entry: its path below `/files`, and where it is here. Raises FilesError, OSError."""
    top = source.expanduser()
    if not top.is_dir():
        yield _checked(name, top)
        return
    yield from _in_folder(name, top, frozenset())


def _in_folder(name: str, folder: Path, above: frozenset[Path]) -> Iterator[tuple[str, Path]]:
    # Links are followed: a folder of the hub's cache consists of them.
    real = folder.resolve()
    if real in above:
        raise FilesError(f"{folder} leads back into itself; remove the link")
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = f"{name}/{entry.name}"
        if entry.is_dir():
            yield from _in_folder(path, Path(entry.path), above | {real})
        else:
            yield _checked(path, Path(entry.path))


def _checked(name: str, path: Path) -> tuple[str, Path]:
    if not name.isprintable() or "\\" in name:
        raise FilesError(f"{str(path)!a} has a name that is not plain text; rename it")
    if not path.is_file():
        raise FilesError(f"{path} is neither a file nor a folder; leave it out")
    return name, path


def _checksum(file: Path) -> str:
    facts = file.stat()
    return _checksum_of(file, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=4096)
def _checksum_of(file: Path, size: int, changed_ns: int) -> str:
    # The nodes of a stack often share their files: within one program they are read once.
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
