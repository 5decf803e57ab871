"""A rollout from the first look at the node to its report."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from fleet import engine_log, gate
from fleet.diagnosis import (
    Context,
    Failed,
    Fault,
    diagnose,
    quote,
    ssh_fault,
)
from fleet.gateway import UNNOTICED_S
from fleet.layout import DIRECTORY, GATEWAY_CHECK_PORT
from fleet.masking import mask_of
from fleet.models.sources import script
from fleet.progress import SYSTEM_CLOCK, Clock, Progress, Stage, pause_s
from fleet.rollout import files, preflight
from fleet.rollout.gating import Within, indented, verdict
from fleet.rollout.release import SERVICE, Release, Unreadable, differences
from fleet.rollout.session import Session
from fleet.rollout.spec import RolloutSpec
from fleet.rollout.store import BEAT_S, LEASE_S, Journal, Locked, Store, Superseded
from fleet.rollout.turnstile import RoundFailed, Turnstile, TurnTimeout, WaitingFor
from fleet.ssh import CommandFailed, Completed, NothingListens, SshError, Timeout

UNIT = "vllm.service"
PULL_S = 1800.0
"""Seconds for one image: about 10 GB, at 6 MB/s half an hour. What vllm.service allows itself, too."""
SWITCH_S = 300.0
"""Seconds for Compose to stop one container and start the next."""

RUNNING = re.compile(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", re.MULTILINE)
"""In vLLM's metrics."""

SWITCHING = {"switch", "drain", "gate", "commit", "restore"}
"""Phases in which the node may be between two releases."""

SUCCESS_MARKS = ("Uvicorn running", "Application startup complete")
UNMARKED = {"config": Fault.COMPOSE_INVALID, "pull": Fault.REGISTRY_UNREACHABLE}
"""What a command of Compose has failed of, where none of the known marks is in its output."""
FATAL_PREFETCH = {Fault.MODEL_NOT_FOUND, Fault.TOKEN_REFUSED, Fault.DISK_FULL}
"""What vLLM would meet as well; anything else may be the download tool's own trouble."""


class RolloutFailed(Exception):
    """A rollout that did not happen or was undone; the message is the whole report, for people."""


@dataclass(frozen=True)
class Outcome:
    """How a rollout that did not fail ended."""

    release: str
    """Digest of the release that is served now; empty if there is none."""
    note: str
    reached_from: str = ""
    """Our own address as the node saw it; empty where it could not tell."""


async def roll_out(
    spec: RolloutSpec,
    release: Release,
    progress: Progress,
    *,
    registries: Mapping[str, str] | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Outcome:
    """Bring the node to `release`, or leave it with the one it has. Raises RolloutFailed.

    `registries` are the logins with which it pulls, as Docker's configuration has them; None: as they are.

    With nothing served yet the files are delivered and nothing is waited for: that is the gate's part.
    """
    return await _Rollout(spec, release, progress, registries, clock).run()


class _Refused(Exception):
    """The preflight found problems."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _Rollout:
    def __init__(
        self,
        spec: RolloutSpec,
        release: Release,
        progress: Progress,
        registries: Mapping[str, str] | None,
        clock: Clock,
    ) -> None:
        self._spec = spec
        self._registries = registries
        self._release = release
        self._progress = progress
        self._clock = clock
        self._node = Session(spec.target, spec.timeouts.ssh_s, progress, clock)
        self._store = Store(self._node, spec.owner, clock)
        self._secrets = release.secrets
        self._phase = "connect"
        # From the first moment, so that the order is that of the names, not that of who is prepared first.
        # Kept until the process ends, so that its failure is known to all who overlap with it.
        self._turnstile = None if spec.dry_run else Turnstile(spec.queue, spec.node, clock)

    async def run(self) -> Outcome:
        try:
            async with self._node:
                self._progress.reached(Stage.WORKER_SSH_ACCESSIBLE, str(self._spec.target))
                # Now: once something is switched, no more than is needed may depend on the connection.
                from_here = await self._node.do(lambda node: node.reached_from())
                self._begin("lock")
                await self._store.lock(self._waiting("another rollout of this node"))
                try:
                    async with self._alive():
                        outcome = await self._locked()
                finally:
                    with suppress(SshError):
                        await self._store.unlock()
                return replace(outcome, reached_from=from_here)
        except SshError as error:
            left = (
                f"it puts the release before it back by itself, {LEASE_S} s after the connection was lost"
                if self._phase in SWITCHING
                else "nothing was switched"
            )
            raise RolloutFailed(
                f"{self._headline(self._explained(error))}\n  node:  {left}; `pulumi up` tries again"
            ) from None
        except Locked as locked:
            raise RolloutFailed(
                f"{self._spec.node}: {locked}; run `pulumi up` again when it is through"
            ) from None
        except Superseded as superseded:
            raise RolloutFailed(
                f"{self._spec.node}: the rollout was taken over by {superseded} at {self._phase}, because "
                f"nothing was heard of this one for more than {LEASE_S} s; run `pulumi up` again"
            ) from None
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._turnstile:
            self._turnstile.leave()
        self._turnstile = None

    async def _locked(self) -> Outcome:
        if self._registries is not None and not self._spec.dry_run:
            await self._store.log_in(self._registries)
        resumed = await self._recover()
        served = resumed or await self._store.current()
        if (
            resumed is None
            and served
            and served.digest == self._release.digest
            and self._spec.replace == "changed"
        ):
            return Outcome(served.digest, "files are up to date")
        if served is None or not (resumed or await self._serves(served)):
            self._leave()  # there is nothing to interrupt, so nobody has to wait for it
            return await self._deliver(served)
        self._secrets += served.secrets
        for line in differences(served, self._release):
            self._progress.note(Stage.WORKER_SSH_ACCESSIBLE, f"  {line}")
        if self._turnstile is None:
            return await self._rehearse(served)
        try:
            if resumed is None:
                await self._prepare(served)
            self._begin("turn")
            async with self._turnstile.turn(self._waiting("its turn after")):
                return await self._replace(served)
        except RolloutFailed:
            self._turnstile.fail()
            raise
        except RoundFailed as failed:
            raise RolloutFailed(
                f"{self._spec.node}: not rolled out, because {failed} failed; release {served.digest} still "
                "serves here. The next `pulumi up` tries both"
            ) from None
        except TurnTimeout as timeout:
            raise RolloutFailed(
                f"{self._spec.node}: waited {self._spec.queue.limit_s:.0f} s for {timeout} to be rolled out "
                f"first; release {served.digest} still serves here"
            ) from None

    # --- What an earlier rollout left ---

    async def _recover(self) -> Release | None:
        """Undo or take up a rollout that nobody finished; the release before it, if it is to be taken up."""
        journal = await self._store.journal()
        if journal is None or self._spec.dry_run:
            return None
        known = await self._store.served()
        before = await self._store.release(journal.previous)
        if known.release == journal.release or before is None:
            await self._store.close_journal()  # it was committed, or never had anything to lose
            return None
        if journal.release == self._release.digest and journal.phase != "restore":
            self._say(f"taking up the rollout of release {journal.release} that stopped at {journal.phase}")
            return before
        self._say(f"undoing the rollout of release {journal.release} that stopped at {journal.phase}")
        await self._restore(before)
        await self._store.close_journal()
        return None

    async def _serves(self, release: Release) -> bool:
        """Whether there is something to lose: the release answers, or is known to have served well."""
        try:
            if (await self._node.get(release.port, "/health")).status == 200:
                return True
        except (NothingListens, Timeout):
            pass
        except Unreadable:
            return False
        return (await self._store.served()).release == release.digest

    # --- Nothing serves yet ---

    async def _deliver(self, there: Release | None) -> Outcome:
        """Put the files where the units of the node wait for them."""
        self._begin("deliver")
        problems = list(preflight.of_files(self._release))
        if there is None:
            problems += [
                p async for p in preflight.of_disk(self._node, self._spec, self._release, first=True)
            ]
        if problems:
            raise RolloutFailed(self._headline(self._listed(problems)))
        if self._spec.dry_run:
            return Outcome("", "dry run: nothing is served yet, the files would be delivered")
        try:
            await self._send_files()
        except files.NotDelivered as error:
            raise RolloutFailed(self._headline(self._explained(error))) from None
        await self._store.put_in_place(self._release)
        state = (await self._node.run(["systemctl", "is-active", UNIT], check=False)).stdout.strip()
        if there and state not in {"inactive", "unknown"}:
            # It tries to serve what was there before, in vain so far: there is nothing to interrupt.
            await self._node.run(
                ["systemctl", "--no-block", "restart", UNIT], timeout_s=SWITCH_S, check=False
            )
        return Outcome(self._release.digest, "delivered docker-compose.yml, .env")

    # --- While the old release serves ---

    async def _prepare(self, served: Release) -> None:
        try:
            self._begin("preflight")
            await self._check(served)
            self._begin("backup")
            await self._back_up(served)
            self._begin("upload")
            folder = await self._store.keep(self._release)
            self._begin("validate")
            await self._compose(folder, "config", "-q")
            await self._send_files()
            self._begin("pull")
            await self._compose(folder, "pull", "--quiet", timeout_s=PULL_S)
            self._begin("prefetch")
            await self._prefetch(folder)
        except (Failed, _Refused, files.NotDelivered, CommandFailed, Timeout) as error:
            why = self._explained(error)
            if self._phase != "preflight" and self._release.digest != served.digest:
                await self._store.drop(self._release.digest)
            report = await self._gate(served)
            raise RolloutFailed(
                f"{self._headline(why)}\n  node:  nothing was switched; release {served.digest} "
                f"{verdict(report)}"
            ) from None

    async def _send_files(self) -> None:
        if self._spec.files:
            self._begin("files")
            await files.send(self._node, self._spec, self._say)

    async def _check(self, served: Release) -> None:
        problems = list(preflight.of_files(self._release))
        if not problems:
            checks: Iterable[AsyncIterator[str]] = (
                preflight.of_disk(self._node, self._spec, self._release, first=False),
                preflight.of_port(self._node, self._release, served),
                preflight.of_gpus(self._node, self._release, served),
            )
            problems = [problem for check in checks async for problem in check]
            serial = (await self._store.served()).serial
            problems += preflight.of_confirmation(self._spec, self._release, served, serial)
        if problems:
            raise _Refused(problems)

    async def _back_up(self, served: Release) -> None:
        """The files to go back to, and what the node looked like with them."""
        folder = await self._store.keep(served)
        await self._store.vouch_for(served)
        evidence = {
            "containers.txt": ["docker", "ps", "-a"],
            "inspect.json": ["docker", "inspect", served.container],
            "vllm.log": ["docker", "logs", "--tail", "1000", served.container],
            "nvidia-smi.txt": ["nvidia-smi"],
        }
        for name, argv in evidence.items():
            seen = await self._node.run(argv, check=False)
            await self._node.write_file(f"{folder}/{name}", f"{seen.stdout}{seen.stderr}".encode())

    async def _prefetch(self, folder: str) -> None:
        if not self._spec.prefetch:
            return
        # The image brings the hub's client, in the version that vLLM will use; its environment has the token.
        run = ["run", "--rm", "--no-deps", "-T", "--entrypoint", "python3", SERVICE, "-c", script(), "client"]
        try:
            await self._compose(folder, *run, self._spec.prefetch, timeout_s=self._spec.timeouts.ready_s)
        except Failed as failed:
            if failed.fault in FATAL_PREFETCH:
                raise
            self._say(
                f"the weights could not be fetched ahead, vLLM will do it: {quote(' '.join(failed.seen))}"
            )

    async def _rehearse(self, served: Release) -> Outcome:
        """Everything that can be known without changing what is served."""
        try:
            self._begin("preflight")
            await self._check(served)
            self._begin("validate")
            await self._compose(await self._store.keep(self._release), "config", "-q")
        except (Failed, _Refused) as error:
            raise RolloutFailed(self._headline(self._explained(error))) from None
        finally:
            if self._release.digest != served.digest:
                await self._store.drop(self._release.digest)
        return Outcome(served.digest, "dry run: nothing was changed")

    # --- From one release to the other ---

    async def _replace(self, served: Release) -> Outcome:
        release = self._release
        try:
            self._begin("switch")
            await self._store.still_mine()
            await self._store.write_journal(Journal("switch", release.digest, served.digest))
            await self._store.arm_watchdog()
            if self._spec.drain_s and served.has_gateway:
                self._begin("drain")
                await self._drain(served)
            await self._store.put_in_place(release)
            await self._start(self._spec.replace)
            self._begin("gate")
            await self._store.write_journal(Journal("gate", release.digest, served.digest))
            report = await self._gate(release)
            await self._store.still_mine()
            if not report.ready:
                raise _NotReady(report)
            self._begin("commit")
            await self._store.commit(release, served)
        except (Failed, CommandFailed, Timeout, _NotReady) as error:
            raise RolloutFailed(
                f"{self._headline(self._explained(error))}\n  node:  {await self._undo(served)}"
            ) from None
        return Outcome(release.digest, f"release {release.digest} serves: {await self._success_mark()}")

    async def _drain(self, served: Release) -> None:
        """Wait until the gateway has seen the journal, which tells it to look elsewhere, and until what it
        sent before that has ended."""
        started = self._clock.now()
        await self._clock.sleep(UNNOTICED_S)
        while running := await self._running(served):
            waited_s = self._clock.now() - started
            if waited_s >= self._spec.drain_s:
                self._say(f"{running:.0f} requests are still running and will be cut off")
                return
            self._waiting("requests to end")(f"{running:.0f}", waited_s, self._spec.drain_s)
            await self._clock.sleep(pause_s(waited_s))

    async def _running(self, served: Release) -> float:
        """Requests that vLLM is working on."""
        try:
            metrics = (await self._node.get(served.port, "/metrics")).body.decode(errors="replace")
        except (NothingListens, Timeout):
            return 0.0
        return sum(map(float, RUNNING.findall(metrics)))

    async def _undo(self, served: Release) -> str:
        """Put the release before back, and say how it does."""
        self._begin("restore")
        try:
            await self._store.write_journal(Journal("restore", self._release.digest, served.digest))
            await self._restore(served)
            report = await self._gate(served)
            await self._store.close_journal()
        except (Failed, CommandFailed, Timeout) as error:
            why = self._explained(error)
            return f"the release before it, {served.digest}, could not be put back: {why}"
        if self._release.digest != served.digest:
            await self._store.drop(self._release.digest)
        return f"rolled back; release {served.digest} {verdict(report)}"

    async def _restore(self, release: Release) -> None:
        await self._store.put_in_place(release)
        await self._start("changed")

    async def _start(self, how: str) -> None:
        """Make the containers match the files in place."""
        if how == "down":
            await self._compose(DIRECTORY, "down", timeout_s=SWITCH_S)
        state = (await self._node.run(["systemctl", "is-active", UNIT], check=False)).stdout.strip()
        if state == "active" or how != "changed":
            # Not through the unit: its restart takes everything down, Compose only what changed.
            recreate = ["--force-recreate"] if how == "force-recreate" else []
            await self._compose(DIRECTORY, "up", "-d", "--remove-orphans", *recreate, timeout_s=SWITCH_S)
        if state != "active":
            # Waited for, so that the gate does not ask a container that is about to be replaced.
            await self._node.run(["systemctl", "start", UNIT], timeout_s=SWITCH_S, check=False)

    async def _gate(self, release: Release) -> gate.Report:
        spec = gate.GateSpec(
            self._spec.node,
            self._spec.cloud,
            self._spec.target,
            served_model=release.served_model,
            task=release.task,
            more_served=release.more_served,
            api_key=release.api_key,
            vllm_port=release.port,
            container_name=release.container,
            gateway_port=GATEWAY_CHECK_PORT if release.has_gateway else None,
            hints=self._spec.hints,
            timeouts=self._spec.timeouts,
        )
        return await gate.check(spec, Within(self._progress, self._spec.node, self._clock), clock=self._clock)

    async def _success_mark(self) -> str:
        """vLLM's own word that it is up."""
        log = await self._node.run(["docker", "logs", "--tail", "200", self._release.container], check=False)
        lines = f"{log.stdout}\n{log.stderr}".splitlines()
        said = [line for line in lines if any(mark in line for mark in SUCCESS_MARKS)]
        return quote(said[-1], self._secrets) if said else "the gate passed"

    # --- Tools ---

    async def _compose(self, folder: str, *words: str, timeout_s: float = 60.0) -> Completed:
        """Run Compose in a release's folder. Raises Failed with what its output tells."""
        try:
            argv = ["docker", "compose", "--project-directory", folder, *words]
            return await self._node.run(argv, timeout_s=timeout_s)
        except CommandFailed as error:
            lines = f"{error.completed.stdout}\n{error.completed.stderr}".strip().splitlines()
            fault = UNMARKED.get(words[0], Fault.SERVICE_FAILED)
            reading = engine_log.read("\n".join(lines), ended=True)
            raise (reading.failed or Failed(fault, reading.seen or lines[-2:])) from None

    def _begin(self, phase: str) -> None:
        self._phase = phase
        self._say(phase)

    def _say(self, text: str) -> None:
        self._progress.note(Stage.WORKER_SSH_ACCESSIBLE, f"rollout: {text}")

    def _waiting(self, what: str) -> WaitingFor:
        def waiting(whom: str, waited_s: float, limit_s: float) -> None:
            self._progress.waiting(
                Stage.WORKER_SSH_ACCESSIBLE, what, whom, waited_s=waited_s, limit_s=limit_s
            )

        return waiting

    @asynccontextmanager
    async def _alive(self) -> AsyncIterator[None]:
        """Show the node, all the while, that somebody looks after it."""

        async def beat() -> None:
            while True:
                await asyncio.sleep(BEAT_S)
                # Whoever is superseded, or cannot connect any more, learns it from the next step.
                with suppress(SshError, Superseded):
                    await self._store.beat()

        beating = asyncio.create_task(beat())
        try:
            yield
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating

    @property
    def _context(self) -> Context:
        return Context(
            self._spec.node, self._spec.cloud, self._spec.hints, self._spec.target, secrets=self._secrets
        )

    def _explained(self, error: Exception) -> str:
        """Why it failed, for people."""
        if isinstance(error, _Refused):
            return self._listed(error.problems)
        if isinstance(error, files.NotDelivered):
            return self._listed([str(error)])
        if isinstance(error, _NotReady):
            return indented(error.report.diagnosis)
        if isinstance(error, Failed):
            failed = error
        elif isinstance(error, (CommandFailed, Timeout)):
            failed = Failed(UNMARKED.get(self._phase, Fault.SERVICE_FAILED), [str(error)])
        elif isinstance(error, SshError):
            failed = ssh_fault(error)
        else:
            return quote(str(error), self._secrets)
        stage = Stage.WORKER_SSH_ACCESSIBLE
        return indented(diagnose(failed.fault, stage, self._context, failed.seen, failed.fix))

    def _listed(self, problems: Iterable[str]) -> str:
        mask = mask_of(tuple(self._secrets))
        return "\n".join(f"  - {mask(problem)}" for problem in problems)

    def _headline(self, why: str) -> str:
        release = self._release.digest
        return f"{self._spec.node}: the rollout of release {release} failed at {self._phase}:\n{why}"


class _NotReady(Exception):
    """The gate did not pass."""

    def __init__(self, report: gate.Report) -> None:
        super().__init__("not ready")
        self.report = report
