"""Programs of `fleet` as Commands: each runs exactly when its inputs changed, and one that failed never
enters state, so that the next `up` runs it again."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi import Input, Output
from pulumi_command import local

from fleet import settings
from fleet.ssh import Target

if TYPE_CHECKING:
    from components.node import Machine


def reached_at(machine: Machine, access: settings.Access) -> Output[dict[str, object]]:
    """The part of a spec that is known once the machine is there: how to reach it, and what diagnoses quote.

    One output of all of it, rather than one of each leaf of a spec.
    """
    known_later = Output.all(
        host=machine.address, host_keys=machine.host_keys, hints=Output.all(**machine.hints)
    )
    return known_later.apply(
        lambda known: {
            "target": described(target_of(access, machine.ssh_user, known["host"], known["host_keys"])),
            "hints": known["hints"],
        }
    )


def target_of(access: settings.Access, user: str, host: str, host_keys: Sequence[str]) -> Target:
    """A machine as SSH reaches it."""
    own, jump, through = access.ssh_private_key_path, access.jump_host, None
    if jump:
        key = jump.ssh_private_key_path or own
        through = Target(jump.host, jump.host_keys, jump.user, jump.port, key)
    return Target(host, tuple(host_keys), user, access.ssh_port, own, through)


def described(target: Target) -> dict[str, Any]:
    """The fields of a target as plain values."""
    fields = {
        "host": target.host,
        "port": target.port,
        "user": target.user,
        "private_key_path": str(target.private_key_path),
        "host_keys": list(target.host_keys),
    }
    return {**fields, "jump": described(target.jump)} if target.jump else fields


def run_module(
    name: str,
    module: str,
    machine: Output[dict[str, object]],
    spec: Mapping[str, object],
    secret_environment: dict[str, Output[str]],
    triggers: list[Input[object]],
    opts: pulumi.ResourceOptions,
    *,
    undo: str | None = None,
) -> local.Command:
    """`python -m MODULE` with a spec on stdin: nothing is interpolated into a shell, no secret is in it.

    `undo` is run so with the same spec when the resource is deleted.
    """
    return local.Command(
        name,
        local.CommandArgs(
            create=_command(module),
            delete=_command(undo) if undo else None,
            stdin=machine.apply(lambda known: json.dumps({**spec, **known}, sort_keys=True)),
            environment=secret_environment,
            triggers=triggers,
            # Progress goes to stderr and is shown; the report on stdout is for the state alone.
            logging=local.Logging.STDERR,
        ),
        opts,
    )


def _command(module: str) -> str:
    """The shell's command for `python -m MODULE`.

    `exec`, because an interrupt kills the shell that pulumi-command started and nothing below it: a child
    of that shell would live on, hold the pipe, and keep the engine waiting.
    """
    return f"exec {shlex.quote(_python())} -m {module}"


def _python() -> str:
    """This interpreter, relative to the project where it can be, so that checkouts can share a stack."""
    inside = Path(sys.executable).is_relative_to(Path.cwd())
    return str(Path(sys.executable).relative_to(Path.cwd()) if inside else sys.executable)
