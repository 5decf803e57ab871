"""What a rollout keeps on the node: releases, what is served, the journal, the lock, the watchdog.

Everything lies below `/opt/llm`, readable by root alone where it may hold a secret. Files are replaced whole,
so that whoever comes next, after whatever ended the last one, finds each old or new.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from fleet.layout import (
    COMPOSE_PATH,
    DIRECTORY,
    DOCKER_CONFIG_PATH,
    ENV_PATH,
    FILES_DIRECTORY,
    UNITS_DIRECTORY,
)
from fleet.layout import ROLLOUT_DIRECTORY as ROLLOUT
from fleet.progress import SYSTEM_CLOCK, Clock, pause_s
from fleet.rollout.release import Release
from fleet.rollout.session import Session
from fleet.ssh import CommandFailed, Connection

RELEASES = f"{DIRECTORY}/releases"
JOURNAL = f"{ROLLOUT}/journal"
SERVED = f"{ROLLOUT}/served.json"
LOGINS = f"{ROLLOUT}/registries.json"
"""Registries whose logins Docker has from rollouts."""
LOCK = f"{ROLLOUT}/lock"
OWNER = f"{LOCK}/owner.json"
NEXT = f"{ROLLOUT}/next"
"""Where files wait to be moved to where they are served from."""

WATCHDOG = "vllm-rollout-watchdog.service"
WATCHDOG_FILES = {
    "rollout-watchdog.sh": f"{ROLLOUT}/watchdog.sh",
    WATCHDOG: f"{UNITS_DIRECTORY}/{WATCHDOG}",
}

RELEASES_KEPT = 5

REMOVAL_S = 300.0
"""Seconds for the removal of files: a model's weights among them."""

BEAT_S = 15.0
"""Seconds between two signs of life of a rollout."""
LEASE_S = 90
"""Seconds without one after which a rollout counts as dead: its lock may be taken, the watchdog undoes it.
Also said in rollout-watchdog.sh."""


class Locked(Exception):
    """Another owner's rollout of this node is under way; the message says whose, and since when."""


class Superseded(Exception):
    """The lock is not this rollout's any more."""


@dataclass(frozen=True)
class Journal:
    """A rollout that has begun to switch and is not committed."""

    phase: str
    release: str
    previous: str

    @classmethod
    def parse(cls, text: str) -> Journal:
        """From lines of NAME=value, which the watchdog's shell reads as well."""
        values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        return cls(values.get("PHASE", ""), values.get("RELEASE", ""), values.get("PREVIOUS", ""))

    def __str__(self) -> str:
        return f"PHASE={self.phase}\nRELEASE={self.release}\nPREVIOUS={self.previous}\n"


@dataclass(frozen=True)
class Served:
    """What the node is known to serve well."""

    release: str = ""
    serial: int = 0
    """Rollouts committed on this node so far."""
    history: tuple[str, ...] = ()
    """Releases, newest first."""


@dataclass(frozen=True)
class _Owner:
    owner: str
    run: str
    host: str


def _document(found: Any) -> dict[str, Any]:
    """A JSON object, as text or as it is; empty where it is something else."""
    try:
        document = json.loads(found) if isinstance(found, bytes) else found
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


class Store:
    """A node's releases and the state of its rollouts."""

    def __init__(self, session: Session, owner: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._session = session
        self._me = _Owner(owner, secrets.token_hex(8), socket.gethostname())
        self._clock = clock

    # --- Registries ---

    async def log_in(self, registries: Mapping[str, str]) -> None:
        """Give Docker these logins, and take back those that an earlier rollout gave it. Others stay."""
        before = await self._session.read_file(LOGINS)
        ours = json.loads(before) if before else []
        if not (registries or ours):
            return
        found = _document(await self._session.read_file(DOCKER_CONFIG_PATH))
        auths = _document(found.get("auths"))
        others = {host: entry for host, entry in auths.items() if host not in ours}
        wanted = {**found, "auths": {**others, **{host: {"auth": auth} for host, auth in registries.items()}}}
        if wanted != found:
            folder = str(PurePosixPath(DOCKER_CONFIG_PATH).parent)
            await self._session.run(["install", "-d", "-m", "0700", folder])
            # Who is to be forgotten is written down first: a rollout may end at any moment.
            await self._session.write_file(LOGINS, json.dumps(sorted({*ours, *registries})).encode())
            await self._session.write_file(DOCKER_CONFIG_PATH, json.dumps(wanted, indent=2).encode())
        await self._session.write_file(LOGINS, json.dumps(sorted(registries)).encode())

    # --- Releases ---

    async def current(self) -> Release | None:
        """The files the node serves from now; None if they are not both there."""
        return await self._read(COMPOSE_PATH, ENV_PATH)

    async def release(self, digest: str) -> Release | None:
        """A release kept on the node."""
        return await self._read(f"{RELEASES}/{digest}/docker-compose.yml", f"{RELEASES}/{digest}/.env")

    async def keep(self, release: Release) -> str:
        """Put a release beside the others; returns its folder."""
        folder = f"{RELEASES}/{release.digest}"
        await self._session.run(["install", "-d", "-m", "0700", RELEASES, folder])
        await self._session.write_file(f"{folder}/docker-compose.yml", release.compose, mode=0o644)
        await self._session.write_file(f"{folder}/.env", release.environment)
        return folder

    async def drop(self, digest: str) -> None:
        """Forget a release."""
        await self._session.run(["rm", "-rf", f"{RELEASES}/{digest}"])

    async def put_in_place(self, release: Release) -> None:
        """Make a release the one the node serves from, both files in one move."""
        files = [f"{NEXT}/{PurePosixPath(path).name}" for path in (COMPOSE_PATH, ENV_PATH)]

        async def move(node: Connection) -> None:
            await node.run(["install", "-d", "-m", "0700", ROLLOUT, NEXT])
            await node.write_file(files[0], release.compose)
            await node.write_file(files[1], release.environment, mode=0o600)
            await node.run(["mv", *files, DIRECTORY])

        await self._session.do(move)

    async def _read(self, compose: str, environment: str) -> Release | None:
        files = [await self._session.read_file(path) for path in (compose, environment)]
        return Release(files[0], files[1]) if files[0] is not None and files[1] is not None else None

    # --- What is served, what is under way ---

    async def served(self) -> Served:
        """What was committed last."""
        data = await self._session.read_file(SERVED)
        document = json.loads(data) if data else {}
        return Served(
            document.get("release", ""), document.get("serial", 0), tuple(document.get("history", ()))
        )

    async def vouch_for(self, release: Release) -> None:
        """Say that a release was found serving, whoever brought it: it stays worth going back to."""
        served = await self.served()
        if served.release != release.digest:
            await self._write_served(replace(served, release=release.digest))

    async def commit(self, release: Release, previous: Release) -> None:
        """Say that a release serves well; what is older than the last few is forgotten."""
        before = await self.served()
        known = dict.fromkeys([release.digest, previous.digest, *before.history])
        served = Served(release.digest, before.serial + 1, tuple(known)[:RELEASES_KEPT])
        await self._write_served(served)
        await self.close_journal()
        there = await self._session.run(["ls", "-1", RELEASES], check=False)
        for digest in there.stdout.split():
            if digest not in served.history:
                await self.drop(digest)
        await self._drop_files(served.history)

    async def _drop_files(self, history: Iterable[str]) -> None:
        """Forget the files that no release kept serves with."""
        there = await self._session.run(["ls", "-1", FILES_DIRECTORY], check=False)
        if not (found := there.stdout.split()):
            return
        kept = [release.files for digest in history if (release := await self.release(digest))]
        if unused := [f"{FILES_DIRECTORY}/{name}" for name in found if name not in kept]:
            await self._session.run(["rm", "-rf", "--", *unused], timeout_s=REMOVAL_S)

    async def _write_served(self, served: Served) -> None:
        await self._session.write_file(SERVED, json.dumps(asdict(served)).encode(), mode=0o644)

    async def journal(self) -> Journal | None:
        """The rollout that somebody began to switch and did not finish."""
        data = await self._session.read_file(JOURNAL)
        return Journal.parse(data.decode()) if data else None

    async def write_journal(self, journal: Journal) -> None:
        """From now on the node itself undoes this rollout, should nobody be heard of any more."""
        await self._session.write_file(JOURNAL, str(journal).encode(), mode=0o644)

    async def close_journal(self) -> None:
        """Nothing is under way any more."""
        await self._session.run(["rm", "-f", JOURNAL])
        await self._session.run(["systemctl", "disable", "--now", WATCHDOG], check=False, timeout_s=60)

    async def arm_watchdog(self) -> None:
        """Start what undoes this rollout in our absence; it is there again after a reboot."""
        for name, path in WATCHDOG_FILES.items():
            await self._session.write_file(path, (_files() / name).read_bytes(), mode=0o644)
        await self._session.run(["systemctl", "daemon-reload"])
        await self._session.run(["systemctl", "enable", "--now", WATCHDOG], timeout_s=60)

    # --- The lock ---

    async def lock(self, waiting: Callable[[str, float, float], None]) -> None:
        """Become the only one who rolls out on this node. Raises Locked.

        A lock of this same owner, or one whose owner has not been heard of for LEASE_S, is taken over.
        """
        started = self._clock.now()
        limit_s = LEASE_S + 2 * BEAT_S
        while True:
            if await self._session.do(self._take):
                return
            holder = await self._holder()
            age_s = await self._age_s()
            waited_s = self._clock.now() - started
            # Nobody keeps a lock without a name in it: that is the moment of its making or its removal.
            abandoned = age_s > LEASE_S if holder else waited_s >= limit_s
            if abandoned or (holder and holder.owner == self._me.owner):
                await self._write_owner()
                return
            whose = f"{holder.owner} on {holder.host}" if holder else "somebody"
            if waited_s >= limit_s:
                raise Locked(f"{whose} is rolling out here, heard of {age_s:.0f} s ago")
            waiting(whose, waited_s, limit_s)
            await self._clock.sleep(pause_s(waited_s, least=1.0))

    async def beat(self) -> None:
        """Show that this rollout lives. Raises Superseded."""
        await self.still_mine()
        await self._write_owner()

    async def still_mine(self) -> None:
        """Raises Superseded when another one, or the watchdog, has taken over."""
        holder = await self._holder()
        if holder != self._me:
            raise Superseded(holder.owner if holder else "the node itself")

    async def unlock(self) -> None:
        """Let the next one in."""
        if await self._holder() == self._me:
            await self._session.run(["rm", "-rf", LOCK])

    async def _take(self, node: Connection) -> bool:
        """One try: a folder that holds its owner's name is moved to where only one can be."""
        mine = f"{LOCK}.{self._me.run}"
        await node.run(["install", "-d", "-m", "0700", ROLLOUT, mine])
        await node.write_file(f"{mine}/owner.json", self._signed())
        try:
            await node.run(["mv", "-T", mine, LOCK])
        except CommandFailed:
            await node.run(["rm", "-rf", mine])
            return False
        return True

    async def _holder(self) -> _Owner | None:
        data = await self._session.read_file(OWNER)
        return _Owner(**json.loads(data)) if data else None

    async def _age_s(self) -> float:
        """Since the holder's last sign of life, by the node's own clock."""
        written = await self._session.run(["stat", "-c", "%Y", OWNER], check=False)
        now = await self._session.run(["date", "+%s"])
        return float(now.stdout) - float(written.stdout or now.stdout)

    async def _write_owner(self) -> None:
        await self._session.write_file(OWNER, self._signed())

    def _signed(self) -> bytes:
        return json.dumps(asdict(self._me)).encode()


def _files() -> Path:
    return Path(__file__).parent.parent.parent / "cloudinit"
