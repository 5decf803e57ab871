"""Renders a mapping in the spelling of vLLM's own configuration file as the words that say the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fleet.engine.releases import Option, Release
from fleet.engine.values import shown
from fleet.engine.words import Finding, is_flag


def rendered(mapping: Mapping[str, Any], release: Release) -> tuple[list[str], list[Finding]]:
    """The words for a mapping in the spelling of vLLM's own configuration file, and what is wrong with it."""
    words: list[str] = []
    findings: list[Finding] = []
    for key, value in mapping.items():
        flag = f"--{key.replace('_', '-')}"
        try:
            words += _words(flag, value, release.spellings.get(flag))
        except ValueError as error:
            problem, fix = str(error).split("; ", 1)
            findings.append(Finding(flag, problem, fix))
    return words, findings


def _words(flag: str, value: Any, known: tuple[Option, bool] | None) -> Iterator[str]:
    option = known[0] if known else Option(flag)
    if not re.fullmatch(r"--[A-Za-z0-9][A-Za-z0-9-]*", flag):
        raise ValueError(
            f"has the key {shown(flag[2:])}, which is no flag's name; write it like max_num_seqs"
        )
    if value is None:
        raise ValueError(f"has no value for {flag[2:]}; give one or leave it out")
    if isinstance(value, bool):
        yield from _switch(flag, value, known)
    elif "json" in option.type and not isinstance(value, str):
        yield from _with_value(flag, _dumped(flag, value))
    elif isinstance(value, list):
        if not value:
            raise ValueError(f"has an empty list for {flag[2:]}; give values or leave it out")
        texts = [_text(flag, each) for each in value]
        if option.repeats or (known and option.takes == "one"):
            for text in texts:
                yield from _with_value(flag, text)
        elif any(is_flag(text) for text in texts):
            raise ValueError(f"has a value for {flag[2:]} that begins with -; give the list in extra_args")
        else:
            yield from (flag, *texts)
    else:
        yield from _with_value(flag, _text(flag, value))


def _switch(flag: str, value: bool, known: tuple[Option, bool] | None) -> Iterator[str]:
    """As vLLM's configuration file has it: false is the other flag of a pair, or nothing."""
    if known is None or known[0].takes in ("none", "maybe"):
        if value:
            yield flag
        elif known and known[0].pair:
            yield f"--no-{flag[2:]}" if known[1] else known[0].flag
        return
    yield from _with_value(flag, _text(flag, value))


def _with_value(flag: str, text: str) -> Iterator[str]:
    """Two words, and one where the second would be taken for a flag."""
    if text.startswith("-"):
        yield f"{flag}={text}"
    else:
        yield from (flag, text)


def _text(flag: str, value: Any) -> str:
    return value if isinstance(value, str) else _dumped(flag, value)


def _dumped(flag: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(
            f"has a value for {flag[2:]} that JSON does not have; use text, finite numbers, true, false, "
            "lists and keys"
        ) from None
