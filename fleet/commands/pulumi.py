"""Calls of the Pulumi CLI that commands need: its own words on failure, a deadline on everything."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

READ_TIMEOUT_S = 120
"""A state of thousands of resources takes seconds; a backend that does not answer is given up on."""
REFRESH_TIMEOUT_S = 900
"""It asks the clouds for every resource."""
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


def selected_stack() -> str:
    """Name of the stack that commands mean when none is given. Raises PulumiError."""
    for entry in read("stack", "ls", "--json"):
        if entry["current"]:
            return str(entry["name"])
    raise PulumiError("no stack is selected; name one with --stack, or run: pulumi stack select")


def refresh_events(*, stack: str | None = None) -> list[dict[str, Any]]:
    """The engine's events of a refresh that is only previewed: it finds drift and writes nothing."""
    said = _run(
        ["refresh", "--preview-only", "--json", *_of(stack)],
        timeout_s=REFRESH_TIMEOUT_S,
        capture=True,
        # Without it the JSON is a digest of the steps, which tells not what was found.
        env={"PULUMI_ENABLE_STREAMING_JSON_PREVIEW": "true"},
    )
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


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


def _run(
    arguments: list[str], *, timeout_s: float, capture: bool, env: Mapping[str, str] | None = None
) -> str:
    command = ["pulumi", *arguments, "--non-interactive"]
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=capture,
            text=True,
            timeout=timeout_s,
            env={**os.environ, **(env or {})},
        )
    except FileNotFoundError:
        raise PulumiError('pulumi is not on PATH; run: make setup, then: eval "$(make -s env)"') from None
    except subprocess.TimeoutExpired:
        raise PulumiError(f"pulumi {arguments[0]} gave no answer within {timeout_s:.0f} s") from None
    if done.returncode:
        said = (done.stderr or "").strip() or _errors(done.stdout) if capture else "see above"
        raise PulumiError(f"pulumi {arguments[0]} failed with exit code {done.returncode}: {said}")
    return done.stdout or ""


def _errors(stdout: str) -> str:
    """The errors in a stream of events, which is where a command that prints JSON puts them."""
    events = [json.loads(line) for line in stdout.splitlines() if line.startswith('{"')]
    diagnostics = [event["diagnosticEvent"] for event in events if "diagnosticEvent" in event]
    return " / ".join(each["message"].strip() for each in diagnostics if each["severity"] == "error")
