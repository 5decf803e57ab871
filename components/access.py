"""How a node is reached, and which keys open it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pulumi

from components import own_state
from components.command import reached_at, run_module
from fleet import settings
from fleet.settings import Problem, SettingsError
from fleet.settings.problems import printable
from fleet.ssh import Target, fingerprint, openssh
from fleet.ssh_key import NoPublicKey, public_key

if TYPE_CHECKING:
    from components.node import GpuNodeArgs, Machine


def ssh_command(target: Target) -> str:
    """The command that opens a shell."""
    return shlex.join(openssh(target))


def tunnel_command(target: Target, ports: Iterable[int]) -> str:
    """The command that forwards these ports of the node's loopback to this machine's."""
    forwards = [part for port in ports for part in ("-L", f"127.0.0.1:{port}:127.0.0.1:{port}")]
    return shlex.join(openssh(target, "-N", "-o", "ExitOnForwardFailure=yes", *forwards))


def open_to_operators(name: str, args: GpuNodeArgs, machine: Machine, parent: pulumi.Resource) -> None:
    """Let the keys of `access.authorized_keys` in, and no others that were let in before."""
    if not args.access.authorized_keys:
        return
    run_module(
        f"{name}-operators",
        "fleet.operators",
        reached_at(machine, args.access),
        {
            "node": args.node.name,
            "cloud": args.node.cloud,
            "keys": list(args.access.authorized_keys),
            "ssh_s": args.health.ssh_timeout_s,
        },
        {},
        [machine.server_id],
        pulumi.ResourceOptions(parent=parent, depends_on=[*machine.ready_when]),
        undo="fleet.operators --none",
    )


# --- which key opens what runs ----------------------------------------------------------------------------


@lru_cache(maxsize=1)  # all nodes of a stack have the same, and some keys take long to read
def fingerprints(access: settings.Access) -> tuple[str, ...]:
    """Of every key that opens the nodes; the operator's own is left out where its public half is unknown."""
    try:
        own = [public_key(access.ssh_private_key_path)]
    except NoPublicKey:
        own = []
    return tuple(sorted({fingerprint(key) for key in (*own, *access.authorized_keys)}))


async def refuse_a_key_that_opens_nothing(
    config: settings.StackSettings, deployed: Mapping[str, Any]
) -> None:
    """Before anything is changed: nodes that run have to know the key, or everything after would fail.

    `deployed` are the outputs of the last update. Raises SettingsError.
    """
    try:
        mine = fingerprint(public_key(config.access.ssh_private_key_path))
    except NoPublicKey:
        return
    names = {machine.name for machine in config.machines}
    keys = {name: node.get("ssh_keys") for name, node in (deployed.get("nodes") or {}).items()}
    closed = [name for name in names & keys.keys() if keys[name] and mine not in keys[name]]
    if not closed or not (running := await _machines_in_state(sorted(closed))):
        return
    path = printable(config.access.ssh_private_key_path)
    problem = f"{path} is {mine}, which does not open what runs: {', '.join(running)}"
    fix = (
        "to change keys, add the new public key to access.authorized_keys and run `pulumi up` with the old "
        f"private key, then name the new one here; if the old one is lost, `fleet destroy {running[0]}` lets "
        "the next update make another machine"
    )
    raise SettingsError([Problem("access.ssh_private_key_path", problem, fix, path)])


async def _machines_in_state(names: Iterable[str]) -> list[str]:
    """The nodes that have a machine in the state: outputs stay after `fleet destroy`."""
    known = {urn.rpartition("::")[2] for urn in await own_state.resources()}
    return [name for name in names if f"{name}-server" in known]
