"""Reads single files of wheels on PyPI, without fetching the wheels."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from fnmatch import fnmatch
from typing import Any, NamedTuple

import httpx
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

INDEX = "https://pypi.org/simple/{project}/"
BLOCK = 1 << 18
"""Bytes of one request. A wheel's directory takes two, its sources some ten."""


class Wheel(NamedTuple):
    """A release's file for 64-bit x86, or for any machine."""

    release: str
    """As PyPI names it: 0.33.0, 0.8.5.post1."""
    url: str
    size: int
    """Bytes."""
    uploaded: datetime | None
    yanked: bool


def wheels(client: httpx.Client, project: str) -> Iterator[Wheel]:
    """Every wheel of a project, in the index's order."""
    reply = client.get(
        INDEX.format(project=project), headers={"Accept": "application/vnd.pypi.simple.v1+json"}
    )
    for file in reply.raise_for_status().json()["files"]:
        name = str(file["filename"])
        if name.endswith(("x86_64.whl", "none-any.whl")):
            when = str(file.get("upload-time") or "")
            yield Wheel(
                name.split("-")[1],
                str(file["url"]),
                int(file["size"]),
                datetime.fromisoformat(when) if when else None,
                bool(file.get("yanked")),
            )


def read(wheel: io.RawIOBase, patterns: Iterable[str]) -> dict[str, str]:
    """The files of a wheel that match, path → text, in the order of the patterns of `fnmatch`."""
    with zipfile.ZipFile(io.BufferedReader(wheel, BLOCK)) as archive:
        chosen = matching(dict.fromkeys(archive.namelist(), ""), patterns)
        return {name: archive.read(name).decode() for name in chosen}


def matching(files: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """The files whose paths match, in the order of the patterns."""
    return {name: text for pattern in patterns for name, text in files.items() if fnmatch(name, pattern)}


class RemoteFile(io.RawIOBase):
    """A file behind an address, of which only the blocks are fetched that are read."""

    def __init__(self, client: httpx.Client, url: str, size: int) -> None:
        super().__init__()
        self._client, self._url, self._size = client, url, size
        self._at = 0
        self._blocks: dict[int, bytes] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        index, inside = divmod(self._at, BLOCK)
        if self._at >= self._size:
            return 0
        if index not in self._blocks:
            self._blocks[index] = self._fetched(index * BLOCK)
        part = self._blocks[index][inside : inside + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    @retry(
        retry=retry_if_exception_type(httpx.HTTPError),
        stop=stop_after_attempt(4),
        wait=wait_exponential(max=10),
        reraise=True,
    )
    def _fetched(self, first: int) -> bytes:
        last = min(first + BLOCK, self._size) - 1
        reply = self._client.get(self._url, headers={"Range": f"bytes={first}-{last}"})
        reply.raise_for_status()
        if reply.status_code != httpx.codes.PARTIAL_CONTENT:
            raise SystemExit(
                f"{self._url} is not served in ranges; fetch it with pip download, and give --wheel"
            )
        return reply.content


def number(release: str) -> tuple[int, ...]:
    """The numbers in a release's name, to compare releases by."""
    return tuple(int(part) for part in re.findall(r"\d+", release))
