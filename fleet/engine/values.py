"""Reads the value of a flag as vLLM's parser does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from fleet.engine.releases import Option
from fleet.masking import mask_of

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT])")
_DECIMAL, _BINARY = (
    dict(zip("kmgt", (3, 6, 9, 12), strict=True)),
    dict(zip("KMGT", (10, 20, 30, 40), strict=True)),
)
_BARE_SIZE = re.compile(r'("(?:[^"\\]|\\.)*")|\b\d+(?:\.\d+)?[kKmMgGtT]\b')


def converted(text: str, option: Option) -> Any:
    """A value as the option's own function reads it. Raises ValueError with what is wrong, as a clause."""
    if option.optional and text in ("", "None"):
        return None
    value = _CONVERSIONS[option.type](text)
    if option.choices and value not in option.choices:
        raise ValueError("which is not one of its choices")
    return value


def advice(option: Option) -> str:
    if option.choices:
        return f"use {', '.join(str(each) for each in option.choices)}"
    return _EXAMPLES.get(option.type, "write another value")


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("which is not a whole number") from None


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("which is not a number") from None


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return _int(text)
    number, unit = match.groups()
    if unit in _DECIMAL:
        return int(float(number) * 10 ** _DECIMAL[unit])
    if "." in number:
        raise ValueError(f"which has decimals before the binary {unit}")
    return int(number) * int(2 ** _BINARY[unit])


def _size_or_auto(text: str) -> int:
    return -1 if text.strip().lower() in ("-1", "auto") else _size(text)


def _json(text: str) -> Any:
    # As vLLM does: 8k outside quotes is a number.
    plain = _BARE_SIZE.sub(lambda match: match[0] if match[1] else str(_size(match[0])), text)
    try:
        return json.loads(plain)
    except ValueError as error:
        raise ValueError(f"which is not JSON ({str(error).partition(':')[0].lower()})") from None
    except RecursionError:
        raise ValueError("which is nested too deeply") from None


def _json_or_text(text: str) -> Any:
    return _json(text) if re.fullmatch(r"\s*\{.*\}\s*", text, re.DOTALL) else text


def adapter(text: str) -> tuple[str, str]:
    """Name and path of a LoRA adapter: `NAME=PATH`, or JSON with both, as vLLM's `LoRAParserAction` reads it.

    Raises:
        ValueError: it is neither.
    """
    if "=" in text and "," not in text:
        name, _, path = text.partition("=")
        return name, path
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict) and {"name", "path"} <= found.keys():
            return str(found["name"]), str(found["path"])
    raise ValueError("which names no adapter and its path")


def adapters(modules: object) -> Iterator[tuple[str, str]]:
    """Name and path of each adapter in what `--lora-modules` was given; what is none is left out."""
    for text in modules if isinstance(modules, list | tuple) else ():
        with suppress(ValueError):
            yield adapter(text)


def _adapter_text(text: str) -> str:
    adapter(text)
    return text


def of_key(text: str) -> Any:
    for read in (_json, _size):
        try:
            return read(text)
        except ValueError:
            continue
    return text


_CONVERSIONS: dict[str, Callable[[str], Any]] = {
    "text": str,
    "lowered": lambda text: text.lower().replace("-", "_"),
    "int": _int,
    "float": _float,
    "size": _size,
    "size_or_auto": _size_or_auto,
    "json": _json,
    "json_or_text": _json_or_text,
    "adapter": _adapter_text,
}
_EXAMPLES = {
    "int": "write digits",
    "float": "write for example 0.9",
    "size": "write digits, or for example 8k",
    "size_or_auto": "write digits, 8k, or auto",
    "json": """write it like '{"key": "value"}'""",
    "json_or_text": """write it like '{"key": "value"}'""",
    "adapter": "write it like sql=/files/sql",
}


def shown(text: str) -> str:
    """A value as a sentence may have it: cut, and without what looks like a secret."""
    masked = mask_of(())(text)
    return repr(masked if len(masked) <= 40 else f"{masked[:39]}…")
