"""A catalog file on disk: one stable layout, so that a changed price is one changed line."""

from __future__ import annotations

import json
from typing import Any

Row = dict[str, Any]
Document = dict[str, Any]
"""A cloud's file, or the tables of GPUs and of the exchange rate."""


def render(document: Document) -> str:
    """The text of a cloud's file: types and price lists sorted, each type and each price on its own line."""
    lists = [entry | {"hourly": dict(sorted(entry["hourly"].items()))} for entry in document["price_lists"]]
    lists.sort(key=lambda entry: (entry["zone"], entry.get("spot", False), entry["as_of"] or ""))
    ordered = document | {"types": dict(sorted(document["types"].items())), "price_lists": lists}
    if "control_types" in document:
        rows = sorted(document["control_types"], key=lambda entry: str(entry["zone"]))
        ordered["control_types"] = [row | {"hourly": dict(sorted(row["hourly"].items()))} for row in rows]
    return _text(ordered, "", "") + "\n"


def _text(value: Any, key: str, margin: str) -> str:
    """What holds only plain values is one line, except a list of prices."""
    nested = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not nested or (
        key != "hourly" and not any(isinstance(entry, dict | list) for entry in nested) and margin
    ):
        return json.dumps(value, ensure_ascii=False)
    inner = margin + " "
    if isinstance(value, dict):
        rows = [f"{inner}{json.dumps(name)}: {_text(entry, name, inner)}" for name, entry in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{margin}}}"
    return "[\n" + ",\n".join(inner + _text(entry, key, inner) for entry in value) + f"\n{margin}]"
