"""The `X-Filter` header, as far as clients of this project use it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from simcloud.cloud import Json, Received
from simcloud.linode import errors

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "+gt": lambda have, want: bool(have > want),
    "+gte": lambda have, want: bool(have >= want),
    "+lt": lambda have, want: bool(have < want),
    "+lte": lambda have, want: bool(have <= want),
    "+neq": lambda have, want: bool(have != want),
    "+contains": lambda have, want: want in have,
}


def apply(received: Received, rows: list[Json], fields: Collection[str]) -> list[Json]:
    """The rows that the request's filter lets through, in the order it asks for.

    Raises:
        ApiError: the header is not JSON or names a field that cannot be filtered on.
    """
    header = received.headers.get("x-filter")
    if not header:
        return rows
    try:
        wanted = json.loads(header)
    except ValueError:
        wanted = None
    if not isinstance(wanted, dict):
        raise errors.invalid("X-Filter", "Cannot parse filter")
    order_by, order = wanted.pop("+order_by", None), wanted.pop("+order", "asc")
    _check(wanted, fields)
    found = [row for row in rows if _matches(row, wanted)]
    if order_by:
        found.sort(key=lambda row: row[order_by], reverse=order == "desc")
    return found


def _check(wanted: Json, fields: Collection[str]) -> None:
    for key, value in wanted.items():
        if key in ("+and", "+or"):
            for part in value:
                _check(part, fields)
        elif key not in fields:
            raise errors.invalid("X-Filter", f"Cannot filter on {key}")


def _matches(row: Json, wanted: Json) -> bool:
    return all(_holds(row, key, value) for key, value in wanted.items())


def _holds(row: Json, key: str, value: Any) -> bool:
    if key in ("+and", "+or"):
        every = [_matches(row, part) for part in value]
        return all(every) if key == "+and" else any(every)
    have: Any = row
    for part in key.split("."):
        have = have[part]
    if isinstance(value, dict):
        return all(_COMPARE[operator](have, want) for operator, want in value.items())
    return value in have if isinstance(have, list) else bool(have == value)
