"""Runs the phases of a node over SSH: look, bring what is missing, look again."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shlex
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from fleet.diagnosis import INSTALL_MARKS, Fault, marked, quote, ssh_fault
from fleet.progress import HEARTBEAT_S, SYSTEM_CLOCK, Clock, Progress, Stage, pause_s
from fleet.provision.phases import Phase
from fleet.provision.spec import ProvisionSpec
from fleet.rollout.session import Session
from fleet.ssh import (
    AuthenticationRefused,
    Completed,
    KeyUnusable,
    NothingListens,
    SshError,
    Timeout,
    Unreachable,
    connect,
)
from fleet.sync import RsyncMissing, copy_to

SCRIPTS = Path(__file__).parents[2] / "cloudinit" / "provision"
LOGS = "/var/log/vllm-fleet"
LOCK = "/run/lock/vllm-fleet-provision.lock"
BOOT_ID = "/proc/sys/kernel/random/boot_id"

LOCK_S = 900
"""Seconds to wait for a run that is under way, such as one that a lost connection left behind."""
CHECK_S = 120
"""Seconds a phase may take to look."""
SSH_AGAIN_S = 180.0
"""Least seconds for a connection that was lost to come back, a restart of the machine included."""
REBOOT_S = 300.0
"""Seconds for a restart that loads a driver; servers with many GPUs take minutes to start."""
TAIL_LINES = 12
"""Last lines of a phase's output that a failure quotes."""
FORCED_END_S = 10
"""Seconds between the polite signal and the final one at a phase's deadline."""

TIMED_OUT, KILLED, LOCKED, REFUSED, REBOOT_NEEDED = 124, 137, 75, 20, 30
"""Exit statuses: of `timeout` (the second where the final signal was needed), of `flock` as it is told to,
and of the phases' own scripts."""

REFUSED_MARK, FIX_MARK, COMMAND_MARK = "refused: ", "fix: ", "command: "
"""How the scripts begin the lines that are meant for here."""

FIXES = (
    (r"No matching distribution found", "correct the name or version: PyPI has no such one for this Python"),
    (
        r"PackagesNotFoundError",
        "correct the name or version, or add the channel that has it: conda.channels",
    ),
    (r"Could not resolve host|Failed to connect|timed out", "let the node reach the host that is named"),
)
"""What helps against what pip, conda and curl say; what apt says is in `fleet.diagnosis`."""

STAGE = Stage.WORKER_SSH_ACCESSIBLE


class Outcome(StrEnum):
    """What became of a phase."""

    UNCHANGED = "unchanged"
    APPLIED = "applied"
    WOULD_RUN = "would run"
    FAILED = "failed"
    NOT_REACHED = "not reached"
    """A phase before it failed."""


@dataclass(frozen=True)
class Failure:
    """Why a phase failed."""

    command: str
    """What was being run."""
    status: str
    """How it ended, in words."""
    output: tuple[str, ...]
    """Its last lines, secrets masked."""
    fix: str


@dataclass(frozen=True)
class PhaseReport:
    """How a phase went."""

    phase: str
    outcome: Outcome
    seconds: float = 0.0
    missing: tuple[str, ...] = ()
    """What the phase found missing before it did anything."""
    note: str = ""
    failure: Failure | None = None


@dataclass(frozen=True)
class Report:
    """How the provisioning of a node went."""

    node: str
    phases: tuple[PhaseReport, ...]

    @property
    def failed(self) -> PhaseReport | None:
        """The phase that failed, if one did."""
        return next((phase for phase in self.phases if phase.failure), None)

    def failure_text(self) -> str:
        """The failure for people, in several lines; empty where there is none."""
        if self.failed is None or self.failed.failure is None:
            return ""
        failure = self.failed.failure
        lines = [
            f"{self.node}: phase {self.failed.phase} failed: {failure.status}",
            f"  command: {failure.command}",
            *(f"  output:  {line}" for line in failure.output),
            f"  fix:    {failure.fix}",
            f"  then:    fleet provision {self.node}   (it goes on with {self.failed.phase})",
        ]
        return "\n".join(lines)


class _PhaseFailed(Exception):
    def __init__(self, failure: Failure, missing: Sequence[str] = ()) -> None:
        super().__init__(failure.status)
        self.failure = failure
        self.missing = tuple(missing)


def chosen(phases: Sequence[Phase], only: Sequence[str]) -> tuple[Phase, ...]:
    """The phases of those names; all of them where none is named."""
    return tuple(phase for phase in phases if not only or phase.name in only)


async def provision(
    spec: ProvisionSpec,
    progress: Progress,
    *,
    plan: bool = False,
    only: Sequence[str] = (),
    clock: Clock = SYSTEM_CLOCK,
) -> Report:
    """Run the phases in order and stop at the first that fails; with `plan`, only look.

    A failure is in the report, never raised.
    """
    return await _Run(spec, progress, clock, plan=plan).run(chosen(spec.phases, only))


def script_text(name: str, mode: str) -> str:
    """What bash is given on standard input to `check` or `apply` a phase's script."""
    parts = [(SCRIPTS / f"{part}.sh").read_text() for part in ("lib", name)]
    # No command in it may read standard input, which is the script itself.
    return "\n".join([*parts, f"main {mode} </dev/null; exit"]) + "\n"


class _Run:
    """One pass over a node."""

    def __init__(self, spec: ProvisionSpec, progress: Progress, clock: Clock, *, plan: bool) -> None:
        self._spec = spec
        self._progress = progress
        self._clock = clock
        self._plan = plan
        self._done: list[PhaseReport] = []

    async def run(self, phases: Sequence[Phase]) -> Report:
        # The address is known, so the machine is there: the stack has made it.
        self._done = [PhaseReport("machine", Outcome.UNCHANGED, note=self._spec.target.host)]
        if await self._step("ssh", self._reach()) and phases:
            try:
                await self._all(phases)
            except SshError as error:
                self._add(PhaseReport(phases[0].label, Outcome.FAILED, failure=self._lost(error)))
        reached = {report.phase for report in self._done}
        rest = [phase.label for phase in phases if phase.label not in reached]
        return Report(
            self._spec.node, (*self._done, *(PhaseReport(label, Outcome.NOT_REACHED) for label in rest))
        )

    async def _all(self, phases: Sequence[Phase]) -> None:
        """Run the phases up to the first that fails, look at all of them. Raises SshError before any."""
        async with self._session() as node:
            for phase in phases:
                if not await self._step(phase.label, self._phase(node, phase)) and not self._plan:
                    return

    async def _step(self, label: str, work: Coroutine[Any, Any, PhaseReport]) -> bool:
        """Add what became of one phase; whether the next may follow."""
        started = self._clock.now()
        try:
            report = await work
        except _PhaseFailed as failed:
            report = PhaseReport(label, Outcome.FAILED, missing=failed.missing, failure=failed.failure)
        except SshError as error:
            report = PhaseReport(label, Outcome.FAILED, failure=self._lost(error))
        self._add(replace(report, seconds=round(self._clock.now() - started, 1)))
        return report.outcome is not Outcome.FAILED

    def _add(self, report: PhaseReport) -> None:
        self._done.append(report)
        took = f" after {report.seconds:.0f} s" if report.outcome in {Outcome.APPLIED, Outcome.FAILED} else ""
        note = f" ({report.note})" if report.note else ""
        self._progress.note(STAGE, f"{report.phase}: {report.outcome}{took}{note}")

    # --- The machine is there ---

    def _session(self) -> Session:
        patience_s = max(self._spec.ssh_tries * self._spec.ssh_pause_s, SSH_AGAIN_S)
        return Session(self._spec.target, patience_s, self._progress, self._clock)

    async def _reach(self) -> PhaseReport:
        """Log in, after as many tries as are allowed, and see the first boot through."""
        attempt = 1
        while not await self._answers(attempt):
            attempt += 1
            await self._clock.sleep(self._spec.ssh_pause_s)
        async with self._session() as node:
            await self._booted(node)
        return PhaseReport("ssh", Outcome.UNCHANGED, note="" if attempt == 1 else f"at try {attempt}")

    async def _answers(self, attempt: int) -> bool:
        tries, pause_s = self._spec.ssh_tries, self._spec.ssh_pause_s
        try:
            async with connect(self._spec.target):
                return True
        except ValueError as error:
            fix = self._words(Fault.HOST_KEY_NOT_PUBLISHED)
            raise _PhaseFailed(Failure(f"ssh {self._spec.target}", str(error), (), fix)) from None
        except KeyUnusable:
            raise
        except (Unreachable, AuthenticationRefused) as error:
            if attempt >= tries:
                raise
            seen = f"{error} (try {attempt} of {tries})"
            waited_s, limit_s = attempt * pause_s, tries * pause_s
            self._progress.waiting(STAGE, "SSH", seen, waited_s=waited_s, limit_s=limit_s)
            return False

    async def _booted(self, node: Session) -> None:
        """Wait for the end of the first boot, which installs packages too."""
        started = self._clock.now()
        while missing := (await self._check(node, Phase("ssh", "boot")))[0]:
            waited_s = self._clock.now() - started
            if waited_s >= self._spec.boot_s:
                said = f"not through after {waited_s:.0f} s"
                fix = "read what it does: tail -f /var/log/cloud-init-output.log on the node"
                raise _PhaseFailed(Failure("cloud-init", said, missing, fix))
            seen = "; ".join(missing)
            self._progress.waiting(
                STAGE, "the first boot", seen, waited_s=waited_s, limit_s=self._spec.boot_s
            )
            await self._clock.sleep(pause_s(waited_s, least=1.0, most=5.0))

    def _lost(self, error: SshError) -> Failure:
        context = self._spec.context
        fault = ssh_fault(error).fault
        command = f"ssh {self._spec.target}"
        summary = fault.summary.format_map(context.words())
        return Failure(command, summary, (quote(str(error)),), self._words(fault))

    # --- A phase ---

    async def _phase(self, node: Session, phase: Phase) -> PhaseReport:
        if phase.copy:
            return await self._copied(node, phase)
        missing, note = await self._check(node, phase)
        if not missing:
            return PhaseReport(phase.label, Outcome.UNCHANGED, note=note)
        if self._plan:
            return PhaseReport(phase.label, Outcome.WOULD_RUN, missing=missing, note="; ".join(missing))
        self._progress.note(STAGE, f"{phase.label}: {'; '.join(missing)}")
        try:
            restarted = await self._applied(node, phase)
            still, _ = await self._check(node, phase)
        except _PhaseFailed as failed:
            raise _PhaseFailed(failed.failure, missing) from None
        if still:
            fix = "what was installed is not what is asked for: read the log, correct the version"
            failure = Failure(f"check {phase.script}", "it ended well, yet something is missing", still, fix)
            raise _PhaseFailed(failure, missing)
        note = "the machine was restarted" if restarted else ""
        return PhaseReport(phase.label, Outcome.APPLIED, missing=missing, note=note)

    async def _check(self, node: Session, phase: Phase) -> tuple[tuple[str, ...], str]:
        """What the phase finds missing, and what else it has to say."""
        done = await self._script(node, phase, "check", CHECK_S)
        if done.exit_status != 0:
            raise _PhaseFailed(self._failure(phase, done, done.stderr.splitlines(), CHECK_S))
        missing = tuple(quote(line) for line in done.stdout.splitlines() if line.strip())
        return missing, quote(done.stderr.strip().partition("\n")[0])

    async def _applied(self, node: Session, phase: Phase) -> bool:
        """Bring what is missing; whether the machine was restarted for it."""
        if phase.upload:
            data = await asyncio.to_thread(Path(phase.upload.source).read_bytes)
            if hashlib.sha256(data).hexdigest() != phase.upload.sha256:
                said = f"{phase.upload.source} was changed meanwhile"
                raise _PhaseFailed(Failure(phase.upload.source, said, (), "start once more"))
            await node.write_file(phase.upload.destination, data, mode=0o755)
        running = asyncio.create_task(self._script(node, phase, "apply", phase.timeout_s))
        try:
            done = await self._watched(node, phase, running)
        finally:
            running.cancel()
        if done.exit_status == 0:
            return False
        if done.exit_status == REBOOT_NEEDED:
            await self._restart(node, phase)
            return True
        log = await node.run(["tail", "-n", "50", _log(phase)], check=False)
        lines = [*done.stderr.splitlines(), *log.stdout.splitlines()]
        raise _PhaseFailed(self._failure(phase, done, lines, phase.timeout_s))

    async def _watched(self, node: Session, phase: Phase, running: asyncio.Task[Completed]) -> Completed:
        """Wait for the end of a phase, and tell what it says meanwhile."""
        started = self._clock.now()
        while True:
            await asyncio.wait({running}, timeout=HEARTBEAT_S)
            if running.done():
                return running.result()
            try:
                log = await node.run(["tail", "-n", "1", _log(phase)], check=False)
                seen = quote(log.stdout) or "nothing yet"
            except Timeout as error:
                # A machine that is busy with the phase; that has a deadline of its own.
                seen = str(error)
            waited_s = self._clock.now() - started
            self._progress.waiting(STAGE, phase.label, seen, waited_s=waited_s, limit_s=phase.timeout_s)

    async def _script(self, node: Session, phase: Phase, mode: str, limit_s: float) -> Completed:
        """Run a phase's script, on standard input so that nothing is left on the node."""
        # One at a time on a node. A check waits too: what it looks at is being changed.
        lock = ["flock", "--close", "--timeout", str(LOCK_S), "--conflict-exit-code", str(LOCKED), LOCK]
        limit = ["timeout", f"--kill-after={FORCED_END_S}", f"{limit_s:g}"]
        told = ["env", f"PHASE={_slug(phase)}", *phase.environment]
        return await node.run(
            [*lock, *limit, *told, "bash", "-s"],
            stdin=script_text(phase.script, mode).encode(),
            timeout_s=LOCK_S + limit_s + 2 * FORCED_END_S,
            check=False,
        )

    def _failure(self, phase: Phase, done: Completed, lines: Sequence[str], limit_s: float) -> Failure:
        told = {
            mark: next((line.removeprefix(mark) for line in reversed(lines) if line.startswith(mark)), "")
            for mark in (REFUSED_MARK, FIX_MARK, COMMAND_MARK)
        }
        ended = {
            TIMED_OUT: f"no end within {limit_s:g} s",
            KILLED: f"no end within {limit_s:g} s, nor when told to",
            LOCKED: f"another run holds {LOCK} for longer than {LOCK_S} s",
            REFUSED: told[REFUSED_MARK],
        }
        output = [quote(line) for line in lines if line.strip() and not line.startswith(tuple(told))][
            -TAIL_LINES:
        ]
        whole = f"fleet exec {self._spec.node} -- {shlex.join(['cat', _log(phase)])}"
        return Failure(
            command=quote(told[COMMAND_MARK]) or f"{phase.label}",
            status=ended.get(done.exit_status) or f"exit status {done.exit_status}",
            output=tuple(output),
            fix=told[FIX_MARK] or self._fix(output) or f"read all it said: {whole}",
        )

    def _fix(self, output: Sequence[str]) -> str:
        """What helps against what was said; empty where that is not known."""
        if known := marked(output, INSTALL_MARKS):
            return self._words(known.fault)
        return next((fix for pattern, fix in FIXES if re.search(pattern, "\n".join(output))), "")

    def _words(self, fault: Fault) -> str:
        words = self._spec.context.words()
        helps = fault.fix or f"look with: {fault.next_command}"
        return f"{fault.cause}; {helps}".format_map(words)

    async def _restart(self, node: Session, phase: Phase) -> None:
        """Restart the machine and wait until it is back."""
        before = (await node.run(["cat", BOOT_ID])).stdout
        self._progress.note(STAGE, f"{phase.label}: restarting the machine")
        # Once, even where the connection is lost before the answer and the command is given again.
        once = f'grep -q "$0" {BOOT_ID} && systemctl --no-block reboot'
        await node.run(["sh", "-c", once, before.strip()], check=False)
        started = self._clock.now()
        while (waited_s := self._clock.now() - started) < REBOOT_S:
            await self._clock.sleep(2.0)
            try:
                async with connect(self._spec.target) as fresh:
                    after = (await fresh.run(["cat", BOOT_ID])).stdout
            except (Unreachable, AuthenticationRefused, NothingListens, Timeout) as error:
                seen = str(error)
            else:
                if after != before:
                    return
                seen = "still the boot of before"
            self._progress.waiting(STAGE, "the restart", seen, waited_s=waited_s, limit_s=REBOOT_S)
        said = f"the machine did not come back within {REBOOT_S:.0f} s"
        raise _PhaseFailed(Failure("systemctl reboot", said, (), "look at its console in the cloud"))

    # --- Files ---

    async def _copied(self, node: Session, phase: Phase) -> PhaseReport:
        assert phase.copy is not None
        parent = str(PurePosixPath(phase.copy.destination).parent)
        missing: tuple[str, ...] = (f"there is no {parent}",)
        if (await node.run(["test", "-d", parent], check=False)).exit_status == 0:
            missing = await self._rsync(phase, dry_run=True)
        if not missing:
            return PhaseReport(phase.label, Outcome.UNCHANGED)
        note = f"{len(missing)} changes" if len(missing) > 1 else missing[0]
        if self._plan:
            return PhaseReport(phase.label, Outcome.WOULD_RUN, missing=missing, note=note)
        await node.run(["mkdir", "-p", parent])
        await self._rsync(phase, dry_run=False)
        return PhaseReport(phase.label, Outcome.APPLIED, missing=missing, note=note)

    async def _rsync(self, phase: Phase, *, dry_run: bool) -> tuple[str, ...]:
        """What rsync would change, or has changed."""
        assert phase.copy is not None
        copy = replace(phase.copy, dry_run=dry_run)
        try:
            async with asyncio.timeout(phase.timeout_s):
                done = await copy_to(self._spec.node, self._spec.target, copy)
        except RsyncMissing as error:
            said = str(error)
            raise _PhaseFailed(Failure("rsync", "rsync is missing here", (said,), said)) from None
        except TimeoutError:
            said = f"no end within {phase.timeout_s:g} s"
            fix = "raise provision.timeout_s, or copy less"
            raise _PhaseFailed(Failure(f"rsync {copy.source}", said, (), fix)) from None
        if done.exit_status:
            said = f"exit status {done.exit_status}"
            fix = "correct the source, or what the network or the disk refuses, by what rsync says"
            lines = tuple(quote(line) for line in done.error.splitlines()[-TAIL_LINES:])
            raise _PhaseFailed(Failure(f"rsync {copy.source}", said, lines, fix))
        return tuple(quote(line) for line in done.output.splitlines() if line.strip())


def _slug(phase: Phase) -> str:
    return phase.label.replace(" ", "-").replace("/", "-")


def _log(phase: Phase) -> str:
    return f"{LOGS}/provision-{_slug(phase)}.log"
