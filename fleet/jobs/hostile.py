"""What strangers may have written: tags of instances, results and logs of jobs. Each is read by itself.

Whoever may start an instance may tag it, and a job's script writes what it likes to the share and to the log
group. What is malformed is left out and said; it never keeps the rest from being read.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LONGEST_MINUTES = 2880
"""No job may live longer, whatever its tags say; nor one whose tags do not say how long it may."""

LONGEST_RESULT = 64 * 1024
"""Bytes. A result is a page; a longer file is none."""

LONGEST_TEXT = 1024
"""Characters of a text in a result."""

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""It is also the name of a folder on the share, and of streams of the log group."""

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def job_id(tag: str) -> str | None:
    """The id that a tag names, if it can be one."""
    return tag if JOB_ID.fullmatch(tag) else None


def minutes(tag: str) -> int | None:
    """Minutes from launch to power-off, LONGEST_MINUTES at most; None for anything else."""
    if not (tag.isascii() and tag.isdecimal()) or int(tag[:9]) < 1:
        return None
    return min(int(tag[:9]), LONGEST_MINUTES)


def amount(value: object) -> float | None:
    """A number of dollars or seconds, from a number or a tag's text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def moment(value: object) -> datetime | None:
    """A time from seconds since 1970; None for anything else."""
    seconds = amount(value)
    if seconds is None or isinstance(value, str):
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def text(value: object) -> str:
    """A text for a terminal: in one line, not too long, with nothing that a terminal obeys; else empty."""
    return printable(value)[:LONGEST_TEXT] if isinstance(value, str) else ""


def printable(line: str) -> str:
    """A line of a log without what a terminal would obey instead of showing it; tabs stay."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape", "replace").decode(), line)


def result(written: str) -> Mapping[str, Any] | None:
    """The result that a job wrote, if it is one."""
    try:
        document = json.loads(written)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not isinstance(document.get("reason"), str):
        return None
    times = (moment(document.get(name)) for name in ("launched", "ended"))
    return document if all(times) and amount(document.get("seconds")) is not None else None


def file(path: Path) -> str | None:
    """The text of a small file on the share; None for anything else, such as a pipe or a link."""
    try:
        # A pipe would be waited for, a link leads out of the share.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > LONGEST_RESULT:
            return None
        return os.read(descriptor, LONGEST_RESULT).decode(errors="replace")
    except OSError:
        return None
    finally:
        os.close(descriptor)
