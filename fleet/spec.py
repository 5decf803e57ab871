"""Typed specs from JSON: what a Command's program is told on standard input.

Standard library only, because these programs start once per node and pydantic alone takes 0.1 s to import.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


class SpecError(ValueError):
    """A spec is wrong; the message lists every wrong field, and never a value: it may be secret."""


def parse(kind: type[T], raw: object, path: str = "") -> T:
    """`raw`, as JSON gives it, as the frozen dataclass `kind`.

    Fields may be strings, numbers, booleans, paths, tuples, optional values and dataclasses. Unknown
    fields are refused. Raises SpecError with every problem; `path` is put before the fields' names.
    """
    problems: list[str] = []
    value: T = _convert(kind, raw, path, problems)
    if problems:
        raise SpecError("; ".join(problems))
    return value


def _convert(kind: Any, raw: object, path: str, problems: list[str]) -> Any:
    if is_dataclass(kind):
        return _dataclass(kind, raw, path, problems)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if raw is None else _convert(inner, raw, path, problems)
    if origin is tuple:
        if isinstance(raw, (list, tuple)):
            return tuple(_convert(arguments[0], item, f"{path}[{i}]", problems) for i, item in enumerate(raw))
        problems.append(f"{path}: must be a list, not {type(raw).__name__}")
        return None
    accepted = {float: (int, float), Path: (str, Path)}.get(kind, (kind,))
    if not isinstance(raw, accepted) or (isinstance(raw, bool) and kind is not bool):
        problems.append(f"{path}: must be {_NAMES[kind]}, not {type(raw).__name__}")
        return None
    return kind(raw)


def _dataclass(kind: Any, raw: object, path: str, problems: list[str]) -> Any:
    if not isinstance(raw, Mapping):
        problems.append(f"{path or 'the spec'}: must be an object, not {type(raw).__name__}")
        return None
    dot = f"{path}." if path else ""
    known, hints = {field.name: field for field in fields(kind)}, get_type_hints(kind)
    problems += [
        f"{dot}{name}: unknown field; known are {', '.join(known)}" for name in raw if name not in known
    ]
    problems += [
        f"{dot}{name}: missing"
        for name, field in known.items()
        if name not in raw and field.default is MISSING and field.default_factory is MISSING
    ]
    values = {
        name: _convert(hints[name], raw[name], f"{dot}{name}", problems) for name in known if name in raw
    }
    return None if problems else kind(**values)
