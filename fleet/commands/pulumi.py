"""Calls of the Pulumi CLI that commands need: its own words on failure, a deadline on everything."""

from __future__ import annotations

import json
import subprocess
from typing import Any

READ_TIMEOUT_S = 120
"""A state of thousands of resources takes seconds; a backend that does not answer is given up on."""
DESTROY_TIMEOUT_S = 3600


class PulumiError(Exception):
    """The CLI is missing or refused; the message is what it said."""


def read(*arguments: str, stack: str | None = None) -> Any:
    """The JSON that a reading command prints."""
    return json.loads(_run([*arguments, *_of(stack)], timeout_s=READ_TIMEOUT_S, capture=True))


def outputs(stack: str | None = None) -> dict[str, Any]:
    """The stack's outputs; secrets stay hidden."""
    found: dict[str, Any] = read("stack", "output", "--json", stack=stack)
    return found


def destroy(urns: list[str], *, stack: str | None = None) -> None:
    """Destroy these resources and nothing else, its progress shown as it comes."""
    targets = [word for urn in urns for word in ("--target", urn)]
    _run(
        ["destroy", "--yes", "--skip-preview", *targets, *_of(stack)],
        timeout_s=DESTROY_TIMEOUT_S,
        capture=False,
    )


def _of(stack: str | None) -> list[str]:
    return ["--stack", stack] if stack else []


def _run(arguments: list[str], *, timeout_s: float, capture: bool) -> str:
    command = ["pulumi", *arguments, "--non-interactive"]
    try:
        done = subprocess.run(command, check=False, capture_output=capture, text=True, timeout=timeout_s)
    except FileNotFoundError:
        raise PulumiError('pulumi is not on PATH; run: make setup, then: eval "$(make -s env)"') from None
    except subprocess.TimeoutExpired:
        raise PulumiError(f"pulumi {arguments[0]} gave no answer within {timeout_s:.0f} s") from None
    if done.returncode:
        said = (done.stderr or "").strip() if capture else "see above"
        raise PulumiError(f"pulumi {arguments[0]} failed with exit code {done.returncode}: {said}")
    return done.stdout or ""
