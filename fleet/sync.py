"""Files to nodes by rsync, over SSH that trusts the pinned host key alone."""

from __future__ import annotations

import asyncio
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from fleet.inventory import FleetNode, InventoryError
from fleet.layout import deletion_problem
from fleet.lifeline import end_with_parent
from fleet.ssh import Target, openssh

MISSING = "rsync is not on PATH here, and it is what copies; install it, on Debian with: apt install rsync"
MISSING_THERE = (
    "rsync is missing on the node; install it there: fleet exec {node} -- apt-get install -y rsync"
)
COMMAND_NOT_FOUND = 127
CONNECT_TIMEOUT_S = 15
CONTENT_ALONE = ("--copy-links", "--no-owner", "--no-group", "--chmod=D755,F644", "--partial")
SILENCE_TIMEOUT_S = 60
"""Seconds without a byte after which rsync gives a node up."""


class RsyncMissing(Exception):
    """There is no rsync on this machine; the message says how to get it."""

    def __init__(self) -> None:
        super().__init__(MISSING)


@dataclass(frozen=True)
class Copy:
    """What goes where, and how."""

    source: str
    """As rsync takes it: with a slash at the end, the folder's content instead of the folder."""
    destination: str
    """On the nodes."""
    excludes: tuple[str, ...] = ()
    delete: bool = False
    """Remove at the destination what the source does not have."""
    dry_run: bool = False
    content_alone: bool = False
    """Files as links lead to them, readable to all, whoever owns them here; what was cut off goes on."""

    def __post_init__(self) -> None:
        """Raises InventoryError where files of others would be deleted."""
        if self.delete and (problem := deletion_problem(self.destination)):
            raise InventoryError(f"--delete: {self.destination!r} {problem}, or leave --delete out")


@dataclass(frozen=True)
class Synced:
    """How the copy to one node went. `output` is rsync's list of what changed."""

    node: str
    exit_status: int
    output: str
    error: str = ""


def split(where: str) -> tuple[str, str]:
    """`NODES:DST` as its two parts. Raises InventoryError."""
    nodes, colon, destination = where.partition(":")
    if not (nodes and colon and destination):
        raise InventoryError(f"{where!r} is no NODES:DST; write for example l4-a:/opt/llm/prompts")
    return nodes, destination


def rsync(target: Target, copy: Copy) -> list[str]:
    """The words of the rsync command for one node."""
    shell = openssh(target, "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}")[:-1]
    return [
        *("rsync", "--archive", "--compress", "--itemize-changes", f"--timeout={SILENCE_TIMEOUT_S}"),
        # rsync splits this into words itself, minding quotes.
        *("--rsh", shlex.join(shell)),
        *([] if target.user == "root" else ["--rsync-path", "sudo -n rsync"]),
        *(f"--exclude={pattern}" for pattern in copy.excludes),
        *(["--delete"] if copy.delete else []),
        *(CONTENT_ALONE if copy.content_alone else []),
        *(["--dry-run"] if copy.dry_run else []),
        *("--", copy.source, f"{target.user}@{target.host}:{copy.destination}"),
    ]


async def sync(nodes: Sequence[FleetNode], copy: Copy, *, max_parallel: int = 8) -> list[Synced]:
    """Copy to every node, at most `max_parallel` at once. A node's failure is a result, never raised.

    Raises RsyncMissing.
    """
    if shutil.which("rsync") is None:
        raise RsyncMissing
    free = asyncio.Semaphore(max_parallel)

    async def one(node: FleetNode) -> Synced:
        async with free:
            return await _sync_one(node, copy)

    return await asyncio.gather(*map(one, nodes))


async def _sync_one(node: FleetNode, copy: Copy) -> Synced:
    try:
        return await copy_to(node.name, node.reachable(), copy)
    except InventoryError as error:
        return Synced(node.name, 255, "", str(error))


async def copy_to(name: str, target: Target, copy: Copy) -> Synced:
    """Copy to the node of that name. Raises RsyncMissing."""
    try:
        process = await asyncio.create_subprocess_exec(
            *rsync(target, copy),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=end_with_parent,
        )
    except FileNotFoundError:
        raise RsyncMissing from None
    try:
        stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode is not None
    said = stderr.decode(errors="replace").strip()
    if process.returncode == COMMAND_NOT_FOUND:
        said = MISSING_THERE.format(node=name)
    return Synced(name, process.returncode, stdout.decode(errors="replace"), said)
