"""vLLM over a cluster: what its head serves, how that is changed, and put back where the change fails.

The files in place are the release. A change is gated where what served before it did pass the gate; if the
change does not, the former files are put back and gated. Machines that have left the cluster do not come
back, so with fewer machines there is no way back.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from fleet import gate, ray, vllm_arguments
from fleet import spec as specs
from fleet.engine import tasks
from fleet.layout import TASK_VARIABLE
from fleet.progress import SYSTEM_CLOCK, Clock, Progress, Stage
from fleet.ray.process import ClusterFailed, place_all
from fleet.ray.spec import ServeSpec
from fleet.rollout.gating import Within, indented, verdict
from fleet.rollout.session import Session
from fleet.ssh import SshError

AT_ONCE = gate.Timeouts(ssh_s=10.0, install_s=1.0, ready_s=5.0, token_s=30.0, reboot_s=5.0)
"""The gate's limits for what is serving already."""

RETIRE_S, START_S = 150.0, 120.0


@dataclass(frozen=True)
class Release:
    """What vLLM is started with."""

    arguments: tuple[str, ...]
    environment: str = field(repr=False)
    """`NAME='value'` lines, secrets among them."""
    members: tuple[str, ...]
    """Private addresses of the machines it may use."""

    def files(self) -> dict[str, tuple[bytes, int]]:
        """Content and mode by path."""
        return {
            ray.ARGUMENTS_PATH: (json.dumps(self.arguments).encode(), 0o644),
            ray.ENVIRONMENT_PATH: (self.environment.encode(), 0o600),
            ray.MEMBERS_PATH: ("".join(f"{address}\n" for address in self.members).encode(), 0o644),
        }

    @property
    def digest(self) -> bytes:
        """Changes whenever vLLM has to be started anew."""
        content = b"\0".join(data for data, _ in self.files().values())
        return hashlib.sha256(content).hexdigest().encode()

    def value_of(self, flag: str) -> str | None:
        """The word after a flag."""
        words = dict(zip(self.arguments, self.arguments[1:], strict=False))
        return words.get(flag)

    @property
    def variables(self) -> Mapping[str, str]:
        """The environment, by name."""
        return dict(word.split("=", 1) for word in shlex.split(self.environment))


async def serve(spec: ServeSpec, secrets: str, progress: Progress, clock: Clock = SYSTEM_CLOCK) -> str:
    """Bring vLLM on the head to what the spec says; what runs already as it should is left alone.

    Returns a digest of what is served: it changes whenever vLLM was started anew. Raises ClusterFailed, once
    what served before is back where that is possible.
    """
    release = Release(spec.arguments, spec.environment + secrets, spec.members)
    try:
        async with Session(spec.target, spec.timeouts.ssh_s, progress, clock) as session:
            await _Change(spec, release, session, progress, clock).run()
    except SshError as error:
        raise ClusterFailed(f"{spec.node}: {error}; run `pulumi up` again once that is fixed") from None
    return release.digest.decode()[:16]


class _Change:
    def __init__(
        self, spec: ServeSpec, release: Release, session: Session, progress: Progress, clock: Clock
    ) -> None:
        self._spec = spec
        self._release = release
        self._session = session
        self._progress = progress
        self._clock = clock

    async def run(self) -> None:
        """Raises ClusterFailed and SshError."""
        changed = await self._session.read_file(ray.SERVING_PATH) != self._release.digest
        before = await self._before(changed=changed)
        if changed:
            if before:
                await self._session.write_file(ray.BEFORE_PATH, json.dumps(asdict(before)).encode())
            await self._put_in_place(self._release, retire=True)
        else:
            await self._session.run(["systemctl", "start", ray.SERVE_UNIT], timeout_s=START_S)
        over = f"over {len(self._release.members)} machines"
        self._say(f"vLLM {'started' if changed else 'runs already'} {over}")
        if before and self._spec.readiness:
            report = await self._gate(self._release, self._spec.readiness)
            if not report.ready:
                raise ClusterFailed(
                    f"{self._spec.node}: the change of what the cluster serves failed:\n"
                    f"{indented(report.diagnosis)}\n  node:  {await self._undo(before, self._spec.readiness)}"
                )
        await self._session.run(["rm", "-f", ray.BEFORE_PATH])

    async def _before(self, *, changed: bool) -> Release | None:
        """What to go back to, if anything: what an interrupted change left for it, else what serves now."""
        left = await self._session.read_file(ray.BEFORE_PATH)
        before = specs.parse(Release, json.loads(left)) if left else None
        if before is None and changed and self._spec.readiness:
            before = await self._served()
        if before is None or before == self._release or set(before.members) - set(self._release.members):
            return None
        return before

    async def _served(self) -> Release | None:
        """The release in place, if it is what was started last and passes the gate as it is."""
        arguments, environment, members, started = [
            await self._session.read_file(path)
            for path in (ray.ARGUMENTS_PATH, ray.ENVIRONMENT_PATH, ray.MEMBERS_PATH, ray.SERVING_PATH)
        ]
        if arguments is None or environment is None or members is None:
            return None
        found = Release(tuple(json.loads(arguments)), environment.decode(), tuple(members.decode().split()))
        if found.digest != started or not (await self._gate(found, AT_ONCE)).ready:
            return None
        return found

    async def _put_in_place(self, release: Release, *, retire: bool) -> None:
        await place_all(self._session, release.files())
        if retire:
            # Machines that are about to go must not be given a rank.
            await self._session.run(["systemctl", "start", ray.RETIRE_UNIT], timeout_s=RETIRE_S)
        await self._session.run(["systemctl", "enable", ray.SERVE_UNIT])
        await self._session.run(["systemctl", "restart", ray.SERVE_UNIT], timeout_s=START_S)
        # Only now: who is interrupted before starts it anew.
        await self._session.write_file(ray.SERVING_PATH, release.digest)

    async def _undo(self, before: Release, readiness: gate.Timeouts) -> str:
        """Put what served before back, and say how it does. Machines that have come stay: the next try wants
        them."""
        self._say("putting back what served before")
        try:
            await self._put_in_place(before, retire=False)
            report = await self._gate(before, readiness)
            await self._session.run(["rm", "-f", ray.BEFORE_PATH])
        except SshError as error:
            return f"what served before could not be put back: {error}; run `pulumi up` again"
        return f"rolled back; what served before {verdict(report)}"

    async def _gate(self, release: Release, timeouts: gate.Timeouts) -> gate.Report:
        spec = gate.GateSpec(
            self._spec.node,
            self._spec.cloud,
            self._spec.target,
            served_model=release.value_of("--served-model-name") or release.value_of("--model") or "",
            task=release.variables.get(TASK_VARIABLE, tasks.GENERATE),
            more_served=vllm_arguments.adapters(vllm_arguments.parse(release.arguments)),
            api_key=release.variables.get("VLLM_API_KEY", ""),
            vllm_port=int(release.value_of("--port") or 8000),
            unit=ray.SERVE_UNIT,
            hints=self._spec.hints,
            timeouts=timeouts,
        )
        within = Within(self._progress, self._spec.node, self._clock)
        return await gate.check(spec, within, clock=self._clock)

    def _say(self, text: str) -> None:
        self._progress.note(Stage.WORKER_SSH_INSTALL, text)
