"""`python -m tools.vllm_flags [RELEASE …]`: brings what `fleet.engine` knows of vLLM's releases up to date.

Which arguments `vllm serve` takes goes to `arguments.json`; which models and parsers a release knows, and
which models the Transformers in its image, to `registry.json`.

Without a release, every one on PyPI since 0.6.6 that the data lacks is read. A wheel is 200 to 500 MB, the
files that are read of it 2 MB: only those are fetched, by ranges, as the wheel's own zip directory has them.
`--wheel FILE` reads one that is here already.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx

from tools import pypi, transformers_source, vllm_registry, vllm_source
from tools.pypi import Wheel, number

TARGET = Path(__file__).resolve().parent.parent / "fleet" / "engine"
OLDEST = (0, 6, 6)
SOURCES = (*vllm_source.SOURCES, *vllm_registry.SOURCES)
FALLBACK = "fallback"
"""What a model is for that only Transformers knows."""

Table = dict[str, dict[str, Any]]
"""Release → what it has, by name."""
PARTS = {
    "arguments.json": ("parser", "flags"),
    "registry.json": ("transformers", "suffixes", *vllm_registry.PARSERS, "model_types", "architectures"),
}
"""The tables of each file."""
A_LINE_EACH = ("flags", *vllm_registry.PARSERS, "model_types", "architectures")
"""Tables of which each name has a line, so that a change of one shows as such."""


def main(arguments: list[str]) -> int:
    """Exit status 1 where a release is not on PyPI."""
    parser = argparse.ArgumentParser(prog="python -m tools.vllm_flags", description=__doc__)
    parser.add_argument(
        "releases", nargs="*", metavar="RELEASE", help="as PyPI names it: 0.33.0, 0.8.5.post1"
    )
    parser.add_argument("--wheel", action="append", default=[], type=Path, help="a wheel on this machine")
    parser.add_argument("--target", default=TARGET, type=Path, help="the folder of the data to update")
    given = parser.parse_args(arguments)
    tables = {part: table for name in PARTS for part, table in _read(given.target / name).items()}
    with httpx.Client(timeout=60, follow_redirects=True) as client:
        transformers = transformers_source.Reader(client)
        for path in given.wheel:
            wheel = Wheel(path.name.split("-")[1], str(path), path.stat().st_size, None, False)
            _add(wheel, pypi.read(path.open("rb", buffering=0), SOURCES), tables, transformers)
        if given.releases or not given.wheel:
            on_pypi = releases(pypi.wheels(client, "vllm"))
            missing = [each for each in given.releases if each not in on_pypi]
            if missing:
                print(f"not on PyPI: {', '.join(missing)}; newest there: {', '.join(list(on_pypi)[-5:])}")
                return 1
            for release in given.releases or unread(on_pypi, tables):
                wheel = on_pypi[release]
                remote = pypi.RemoteFile(client, wheel.url, wheel.size)
                _add(wheel, pypi.read(remote, SOURCES), tables, transformers)
    for name, parts in PARTS.items():
        (given.target / name).write_text(written({part: tables[part] for part in parts}))
    return 0


def _read(path: Path) -> dict[str, Table]:
    data = json.loads(path.read_text()) if path.exists() else {}
    return {part: expanded(data, part) for part in PARTS[path.name]}


def _add(
    wheel: Wheel,
    files: Mapping[str, str],
    tables: Mapping[str, Table],
    transformers: transformers_source.Reader,
) -> None:
    key = str_of(number(wheel.release))
    found: dict[str, dict[str, Any]] = {
        "flags": vllm_source.read_arguments(pypi.matching(files, vllm_source.SOURCES)),
        "parser": vllm_source.read_features(files),
        "suffixes": dict.fromkeys(vllm_registry.read_suffixes(files), True),
    }
    for flag, names in vllm_registry.read_parsers(files).items():
        found[flag] = dict.fromkeys(names, True)
    known = transformers.of(vllm_registry.read_requirement(files, transformers_source.PROJECT), wheel)
    models = vllm_registry.read_models(files)
    found["transformers"] = {"newest": known.release}
    found["model_types"] = dict.fromkeys(vllm_registry.read_model_types(files) | known.model_types, True)
    # Before it had this flag, a release loaded what its own registry has, and nothing else.
    others = known.classes if "--model-impl" in found["flags"] else ()
    found["architectures"] = dict.fromkeys(others, FALLBACK) | models
    for part, now in found.items():
        tables[part][key] = now
    print(
        f"vLLM {wheel.release}: {len(found['flags'])} arguments, {len(models)} models; "
        f"Transformers up to {known.release}"
    )


def releases(wheels: Iterable[Wheel]) -> dict[str, Wheel]:
    """Every release since the oldest that is read, in their order."""
    found = {each.release: each for each in wheels if number(each.release) >= OLDEST}
    return dict(sorted(found.items(), key=lambda each: number(each[0])))


def unread(on_pypi: Iterable[str], tables: Mapping[str, Table]) -> list[str]:
    """Of releases with the same three numbers, as 0.8.5 and 0.8.5.post1, the last."""
    last = {str_of(number(release)): release for release in on_pypi}
    return [
        release
        for key, release in last.items()
        if not all(key in tables[part] for parts in PARTS.values() for part in parts)
    ]


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


def written(tables: Mapping[str, Table]) -> str:
    """A data file."""
    releases = sorted(next(iter(tables.values())), key=number)
    lines = [f'  "releases": {json.dumps(releases)}']
    for part, table in tables.items():
        changes = compressed(table)
        if part in A_LINE_EACH:
            body = ",\n".join(f"    {json.dumps(name)}: {json.dumps(each)}" for name, each in changes.items())
            lines.append(f'  "{part}": {{\n{body}\n  }}')
        else:
            lines.append(f'  "{part}": {json.dumps(changes)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
