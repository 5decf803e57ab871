"""`python -m tools.vllm_flags [RELEASE …]`: brings what `fleet.engine` knows of vLLM's arguments up to date.

Without a release, every one on PyPI since 0.6.6 that the data lacks is read. A wheel is 200 to 500 MB, its
argument definitions are 1 MB: only those are fetched, by ranges, as the wheel's own zip directory has them.
`--wheel FILE` reads one that is here already.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from tools.vllm_source import SOURCES, read_arguments, read_features

TARGET = Path(__file__).resolve().parent.parent / "fleet" / "engine" / "arguments.json"
INDEX = "https://pypi.org/simple/vllm/"
OLDEST = (0, 6, 6)
BLOCK = 1 << 18
"""Bytes of one request. A wheel's directory takes two, its sources some ten."""

Table = dict[str, dict[str, Any]]
"""Release → what it has: options by flag, or features of the parser by name."""


def main(arguments: list[str]) -> int:
    """Exit status 1 where a release is not on PyPI."""
    parser = argparse.ArgumentParser(prog="python -m tools.vllm_flags", description=__doc__)
    parser.add_argument(
        "releases", nargs="*", metavar="RELEASE", help="as PyPI names it: 0.33.0, 0.8.5.post1"
    )
    parser.add_argument("--wheel", action="append", default=[], type=Path, help="a wheel on this machine")
    parser.add_argument("--target", default=TARGET, type=Path, help="the data to update")
    given = parser.parse_args(arguments)
    data = json.loads(given.target.read_text()) if given.target.exists() else {}
    options, features = expanded(data, "flags"), expanded(data, "parser")
    for wheel in given.wheel:
        _add(wheel.name.split("-")[1], wheel.open("rb", buffering=0), options, features)
    if given.releases or not given.wheel:
        with httpx.Client(timeout=60, follow_redirects=True) as client:
            on_pypi = wheels(client)
            missing = [each for each in given.releases if each not in on_pypi]
            if missing:
                print(f"not on PyPI: {', '.join(missing)}; newest there: {', '.join(list(on_pypi)[-5:])}")
                return 1
            for release in given.releases or unread(on_pypi, options):
                url, size = on_pypi[release]
                _add(release, RemoteFile(client, url, size), options, features)
    given.target.write_text(written(options, features))
    return 0


def _add(release: str, wheel: io.RawIOBase, options: Table, features: Table) -> None:
    with zipfile.ZipFile(io.BufferedReader(wheel, BLOCK)) as archive:
        files = sources(archive)
    key = str_of(number(release))
    options[key], features[key] = read_arguments(files), read_features(files)
    print(f"vLLM {release}: {len(options[key])} arguments")


def sources(archive: zipfile.ZipFile) -> dict[str, str]:
    """The files of a wheel that define arguments: path → text."""
    names = archive.namelist()
    chosen = dict.fromkeys(name for pattern in SOURCES for name in names if fnmatch(name, pattern))
    return {name: archive.read(name).decode() for name in chosen}


# --- what PyPI has ------------------------------------------------------------------------------------------


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


def wheels(client: httpx.Client) -> dict[str, tuple[str, int]]:
    """Every release on PyPI since the oldest that is read, in their order: address and size of its wheel."""
    reply = client.get(INDEX, headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    found = {}
    for file in reply.raise_for_status().json()["files"]:
        name = str(file["filename"])
        if name.endswith(("x86_64.whl", "none-any.whl")) and number(name.split("-")[1]) >= OLDEST:
            found[name.split("-")[1]] = str(file["url"]), int(file["size"])
    return dict(sorted(found.items(), key=lambda each: number(each[0])))


def unread(on_pypi: Iterable[str], options: Table) -> list[str]:
    """Of releases with the same three numbers, as 0.8.5 and 0.8.5.post1, the last."""
    last = {str_of(number(release)): release for release in on_pypi}
    return [release for key, release in last.items() if key not in options]


def number(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", release))


def str_of(numbers: tuple[int, ...]) -> str:
    """The three numbers that an image's tag is compared by."""
    return ".".join(map(str, (*numbers, 0, 0)[:3]))


# --- the data ---------------------------------------------------------------------------------------------


def expanded(data: Mapping[str, Any], part: str) -> Table:
    """Release → name → what it is there."""
    releases = data.get("releases", [])
    table: Table = {release: {} for release in releases}
    for name, changes in data.get(part, {}).items():
        now = None
        for release in releases:
            now = changes.get(release, now)
            if now is not None:
                table[release][name] = now
    return table


def compressed(table: Table) -> dict[str, dict[str, Any]]:
    """Name → what it is from which release on; null where a release has it no more."""
    found: dict[str, dict[str, Any]] = {}
    for name in sorted({name for each in table.values() for name in each}):
        before = None
        for release in sorted(table, key=number):
            now = table[release].get(name)
            if now != before:
                found.setdefault(name, {})[release] = now
            before = now
    return found


def written(options: Table, features: Table) -> str:
    """The data file: a line a flag, so that a change of one shows as such."""
    lines = [f"{json.dumps(name)}: {json.dumps(changes)}" for name, changes in compressed(options).items()]
    body = ",\n".join(f"    {line}" for line in lines)
    releases = json.dumps(sorted(options, key=number))
    parser = json.dumps(compressed(features))
    return f'{{\n  "releases": {releases},\n  "parser": {parser},\n  "flags": {{\n{body}\n  }}\n}}\n'


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
