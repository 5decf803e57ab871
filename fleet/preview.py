"""A preview as a comment: what would change, what policies say, whether models fit, what it costs."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WORDS = {
    "create": "create",
    "update": "update in place",
    "replace": "**replace**",
    "delete": "**delete**",
    "read": "read",
}
"""Operations worth a row; the parts of a replacement are left out, for it has a row of its own."""

LONGEST_COMMENT = 65_000
"""GitHub refuses more than 65,536 characters."""

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m|<\{%[^%]*%\}>")


@dataclass(frozen=True)
class Change:
    """What would happen to one resource."""

    resource: str
    type: str
    operation: str
    properties: tuple[str, ...]


@dataclass
class Preview:
    """What a preview's events say."""

    changes: list[Change] = field(default_factory=list)
    violations: dict[str, list[str]] = field(default_factory=dict)
    """Enforcement level → sentences."""
    said: dict[str, list[str]] = field(default_factory=dict)
    """Severity → what the program said: errors, warnings, and facts such as fit and cost."""

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> Preview:
        """From the engine's event stream."""
        preview = cls()
        for event in events:
            if found := event.get("resourcePreEvent"):
                preview._change(found["metadata"])
            elif found := event.get("policyEvent"):
                sentence = (
                    f"`{found['policyName']}` {_text(found['message'])} ({_name(found['resourceUrn'])})"
                )
                preview.violations.setdefault(found["enforcementLevel"], []).append(sentence)
            elif found := event.get("diagnosticEvent"):
                preview._say(found)
        return preview

    def _change(self, step: Mapping[str, Any]) -> None:
        if step["op"] in WORDS and not step["type"].startswith("pulumi:"):
            properties = step.get("diffs") or sorted(step.get("detailedDiff") or _differing(step))
            self.changes.append(Change(_name(step["urn"]), step["type"], step["op"], tuple(properties)))

    def _say(self, found: Mapping[str, Any]) -> None:
        text = _text(found["message"])
        if not text or found["severity"] not in ("error", "warning", "info") or found.get("ephemeral"):
            return
        about = _name(found["urn"]) if found.get("urn") and "pulumi:pulumi:Stack" not in found["urn"] else ""
        self.said.setdefault(found["severity"], []).append(f"{about}: {text}" if about else text)


def comment(stack: str, preview: Preview, *, failed: bool) -> str:
    """One stack's part of the comment, in markdown."""
    counts = [
        f"{count} to {WORDS[operation].strip('*')}"
        for operation in WORDS
        if (count := sum(change.operation == operation for change in preview.changes))
    ]
    verdict = "❌ failed" if failed else ", ".join(counts) or "no changes"
    parts = [f"### `{stack}`: {verdict}"]
    parts += _list("Errors", preview.said.get("error", []))
    parts += _list("Policies that stop it", preview.violations.get("mandatory", []))
    parts += _list("Policies that advise", preview.violations.get("advisory", []))
    parts += _list("Warnings", preview.said.get("warning", []))
    parts += _list("Fit and cost", preview.said.get("info", []))
    parts += _table(preview.changes)
    return _shortened("\n".join([*parts, ""]))


def _differing(step: Mapping[str, Any]) -> set[str]:
    """Inputs that differ: a dynamic resource's provider does not tell which it acts upon."""
    was, now = ((step.get(side) or {}).get("inputs") or {} for side in ("old", "new"))
    if not was or not now:
        return set()
    # Names that begin so are the SDK's own.
    return {key for key in was.keys() | now.keys() if was.get(key) != now.get(key) and key[:2] != "__"}


def _table(changes: Sequence[Change]) -> list[str]:
    if not changes:
        return []
    rows = [
        f"| {WORDS[each.operation]} | `{each.resource}` | `{each.type}` | {', '.join(each.properties)} |"
        for each in changes
    ]
    heading = ["| would | resource | type | differs in |", "|---|---|---|---|"]
    return ["", "<details><summary>Resources</summary>", "", *heading, *rows, "", "</details>"]


def _list(title: str, sentences: Sequence[str]) -> list[str]:
    return ["", f"**{title}**", *(f"- {sentence}" for sentence in sentences)] if sentences else []


def _text(message: str) -> str:
    """A message of the engine without its colours; several lines become one item of a list."""
    return html.escape(_ESCAPES.sub("", message).strip(), quote=False).replace("\n", "<br>")


def _name(urn: str) -> str:
    return urn.rsplit("::", 1)[-1]


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_COMMENT:
        return text
    return text[:LONGEST_COMMENT].rpartition("\n")[0] + "\n\n…the rest is in the job's log.\n"
