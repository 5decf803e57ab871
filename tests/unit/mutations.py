"""Stack files spoilt at random, as typing, merging and bad tools spoil them. The same seed spoils alike."""

from __future__ import annotations

import copy
import random
from typing import Any

import yaml

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 10**30, float("inf"), float("nan"), "", " ", "x" * 5000, "\ud800"),
    *("\x00", "..", "~", "~nobody/key", "$(id)", "{model}", "{0}", "%s", "; ", ": ", "stack:a/b/c#d", "🦙"),
    *([], {}, [[]], [None], {"secure": "v1:x"}, {"secure": 1}, {"a": {"b": []}}, ["--api-key", "X"]),
    *("2026-11-01", "1e999", "0x7f", "012", "yes", "::/0", "203.0.113.7", "-----BEGIN", "vllm-fleet-owner=x"),
]
LINES = [
    "\t- x",
    "? [a, b]",
    "<<: *none",
    "&a [*a]",
    "- - - -",
    "!!python/object:os.system x",
    "%YAML 9",
    "---",
]
LINES += ["key: [", "'", '"\\ud800"', "a: b: c", "!!binary ====", "2026-99-99: 1", "? {a: 1}\n: 2", "0x: 1_0"]


def spoilt(config: dict[str, Any], seed: int) -> bytes:
    """A file made from a right configuration: its values changed, or its text, or its bytes."""
    chance = random.Random(seed)
    named = {key if ":" in key else f"vllm-fleet:{key}": value for key, value in config.items()}
    document: dict[str, Any] = {"config": copy.deepcopy(named)}
    for _ in range(chance.randint(1, 3)):
        _change_values(document, chance)
    text = yaml.dump(document, allow_unicode=chance.random() < 0.5)
    if chance.random() < 0.4:
        text = _changed_lines(text, chance)
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    if chance.random() < 0.2:
        for _ in range(chance.randint(1, 5)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def _change_values(document: Any, chance: random.Random) -> None:
    """Change one place, deep or shallow."""
    at = document
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = chance.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and chance.random() < 0.8:
            at = at[key]
            continue
        match chance.randrange(5):
            case 0:
                del at[key]
            case 1 if isinstance(at, dict) and isinstance(key, str):
                letters = list(key)
                chance.shuffle(letters)
                at["".join(letters)] = at.pop(key)
            case 2 if isinstance(at, dict):
                at[chance.choice(["x", "cloud", "secure", 7, None, "\ud800", ""])] = copy.deepcopy(at[key])
            case _:
                at[key] = copy.deepcopy(chance.choice(ODD))
        return


def _changed_lines(text: str, chance: random.Random) -> str:
    lines = text.splitlines()
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(lines) + 1)
        match chance.randrange(4):
            case 0:
                lines.insert(at, chance.choice(LINES))
            case 1 if at < len(lines):
                lines.insert(at, lines[at])
            case 2 if at < len(lines):
                lines[at] = f"{' ' * chance.randint(1, 4)}{lines[at]}"
            case _:
                lines = lines[:at] or lines
    return "\n".join(lines)
