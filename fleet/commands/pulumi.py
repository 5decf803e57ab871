"""Calls of the Pulumi CLI that commands need: its own words on failure, a deadline on everything."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

READ_TIMEOUT_S = 120
"""A state of thousands of resources takes seconds; a backend that does not answer is given up on."""
REFRESH_TIMEOUT_S = 900
"""It asks the clouds for every resource."""
DESTROY_TIMEOUT_S = 3600

STATE_UMASK = 0o077
"""The engine writes a local state and its backups with the umask it is started with: for nobody else."""

State = Mapping[str, Any]
"""The document of `pulumi stack export`."""

Event = dict[str, Any]
"""One of the engine's events, as its JSON has it."""


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


def refresh_events(*, stack: str | None = None) -> list[Event]:
    """The engine's events of a refresh that is only previewed: it finds drift and writes nothing."""
    arguments = ["refresh", "--preview-only", *_of(stack)]
    done, events = _events(arguments, timeout_s=REFRESH_TIMEOUT_S)
    if done.returncode:
        raise _failed(arguments, done, _errors(events))
    return events


def preview_events(*flags: str, stack: str | None = None) -> tuple[list[Event], bool]:
    """The engine's events of a preview, and whether it went well; what it refused is among the events."""
    arguments = ["preview", *flags, *_of(stack)]
    done, events = _events(arguments, timeout_s=REFRESH_TIMEOUT_S)
    if done.returncode and not _errors(events) and not any("policyEvent" in event for event in events):
        raise _failed(arguments, done, done.stdout.strip())
    return events, done.returncode == 0


def config(stack: str | None = None) -> dict[str, Any]:
    """The stack's configuration with its secrets in clear, each key with `value` and often `objectValue`."""
    found: dict[str, Any] = read("config", "--json", "--show-secrets", stack=stack)
    return found


def preview(*, stack: str | None = None) -> None:
    """Preview an update, shown as it comes."""
    _run(["preview", *_of(stack)], timeout_s=REFRESH_TIMEOUT_S, capture=False)


def up_only(type_: str, *, stack: str | None = None) -> None:
    """Bring up the resources of one type and nothing else."""
    flags = ["--yes", "--skip-preview", "--refresh=false", "--target", f"**{type_}::*"]
    _run(["up", *flags, *_of(stack)], timeout_s=REFRESH_TIMEOUT_S, capture=True)


def take_in(
    type_: str, package: str, name: str, id_: str, component: tuple[str, str], *, stack: str | None = None
) -> None:
    """Take something that exists into the state, under a component that may not be there yet.

    `package` is the SDK of its provider, `component` the type and name of what it belongs to. Raises
    PulumiError.
    """
    of, parent = component
    resources = read("stack", "export", stack=stack)["deployment"].get("resources", ())
    here = (each["urn"] for each in resources if each["type"] == of)
    urn = next((urn for urn in here if urn.endswith(f"::{parent}")), None)
    wanted = {
        "nameTable": {parent: urn} if urn else {},
        "resources": [
            *([] if urn else [{"type": of, "name": parent, "component": True}]),
            {"type": type_, "name": name, "id": id_, "parent": parent, "version": version(package)},
        ],
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "import.json"
        path.write_text(json.dumps(wanted), encoding="utf-8")
        flags = ["--yes", "--skip-preview", "--generate-code=false", "--protect=false", "--file", str(path)]
        _run(["import", *flags, *_of(stack)], timeout_s=REFRESH_TIMEOUT_S, capture=True)


def destroy(urns: list[str], *, stack: str | None = None) -> None:
    """Destroy these resources and what depends on them, its progress shown as it comes."""
    targets = [word for urn in urns for word in ("--target", urn)]
    _run(
        # A refresh of targets alone fails on providers that are no target of it ("unknown provider").
        [
            "destroy",
            "--yes",
            "--skip-preview",
            "--refresh=false",
            "--target-dependents",
            *targets,
            *_of(stack),
        ],
        timeout_s=DESTROY_TIMEOUT_S,
        capture=False,
    )


def _of(stack: str | None) -> list[str]:
    return ["--stack", stack] if stack else []


def _events(
    arguments: list[str], *, timeout_s: float
) -> tuple[subprocess.CompletedProcess[str], list[Event]]:
    # Without the setting, the JSON of a preview is a digest of the steps, which tells not what was found.
    streaming = {"PULUMI_ENABLE_STREAMING_JSON_PREVIEW": "true"}
    done = _completed([*arguments, "--json"], timeout_s=timeout_s, capture=True, env=streaming)
    return done, [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]


def _errors(events: list[Event]) -> str:
    """What went wrong, which a command that prints JSON says in its events."""
    diagnostics = [event["diagnosticEvent"] for event in events if "diagnosticEvent" in event]
    return " / ".join(each["message"].strip() for each in diagnostics if each["severity"] == "error")


def _run(arguments: list[str], *, timeout_s: float, capture: bool) -> str:
    done = _completed(arguments, timeout_s=timeout_s, capture=capture)
    if done.returncode:
        raise _failed(arguments, done, "" if capture else "see above")
    return done.stdout or ""


def _completed(
    arguments: list[str], *, timeout_s: float, capture: bool, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = ["pulumi", *arguments, "--non-interactive"]
    try:
        return subprocess.run(
            command,
            check=False,
            capture_output=capture,
            text=True,
            timeout=timeout_s,
            env={**os.environ, **(env or {})},
            umask=STATE_UMASK,
        )
    except FileNotFoundError:
        raise PulumiError('pulumi is not on PATH; run: make setup, then: eval "$(make -s env)"') from None
    except subprocess.TimeoutExpired:
        raise PulumiError(f"pulumi {arguments[0]} gave no answer within {timeout_s:.0f} s") from None


def _failed(arguments: list[str], done: subprocess.CompletedProcess[str], otherwise: str = "") -> PulumiError:
    said = (done.stderr or "").strip() or otherwise
    return PulumiError(f"pulumi {arguments[0]} failed with exit code {done.returncode}: {said}")
