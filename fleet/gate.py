"""Is this node ready? `python -m fleet.gate` reads a spec on standard input and answers by its exit status.

Ready means that the node lets us in over SSH, is set up, answers `/health`, lists the model to who holds
the key and to nobody else, answers a request of its task in time, and stays up. `/health` alone says
little: the engine can hang behind it (vllm-project/vllm issue 36960). Everything is asked over SSH on the
node's loopback, so vLLM needs no public port.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from fleet import lifeline
from fleet import spec as specs
from fleet.diagnosis import (
    INSTALL_MARKS,
    Context,
    Diagnosis,
    Failed,
    Fault,
    Hints,
    diagnose,
    marked,
    ssh_fault,
)
from fleet.engine import tasks
from fleet.masking import guarded
from fleet.progress import SYSTEM_CLOCK, Clock, Progress, Stage, pause_s
from fleet.ssh import (
    CommandFailed,
    Connection,
    ConnectionLost,
    HttpReply,
    NothingListens,
    SshError,
    Target,
    Timeout,
    wait_for_ssh,
)
from fleet.watch import UNIT, ContainerWatch, UnitWatch, Watch

API_KEY_VARIABLE = "FLEET_API_KEY"
STAGES_PATH = "/var/lib/vllm-fleet/stages.jsonl"
INSTALL_LOG = "/var/log/cloud-init-output.log"

SETUP_UNIT = "vllm-setup.service"
"""Sets a machine up again whose first boot did not get through."""

SETTLE_S = 90.0
"""Seconds after cloud-init's end in which Docker or the driver may still be missing: the reboot that brings
the driver is under way by then (cloud-init waits 30 s at most before it)."""

HTTP_TIMEOUT_S = 10.0
GATEWAY_S = 60.0
"""Seconds for the gateway to answer, once the model does."""
STABLE_S = 30.0
"""Seconds within which a node that has generated a token must answer `/health` once more."""

NO_CHAT_TEMPLATE = "default chat template is no longer allowed"
"""vLLM's words, 0.6.6 to 0.33.0, for a chat with a model that has no template."""

HARMLESS_LEVELS = {"DEBUG", "INFO", "DEPRECATED"}
"""Levels of cloud-init's recoverable errors that take nothing from the machine."""

EXAMPLE = {
    "node": "l4-a",
    "cloud": "scaleway",
    "target": {
        "host": "203.0.113.7",
        "port": 22,
        "user": "root",
        "private_key_path": "~/.ssh/id_ed25519",
        "host_keys": ["ssh-ed25519 AAAA…"],
    },
    "served_model": "Qwen/Qwen3-8B-AWQ",
    "vllm_port": 8000,
    "container_name": "vllm",
    "hints": {"zone": "fr-par-2", "server_id": "…", "security_group": "…"},
    "timeouts": {"ssh_s": 180, "install_s": 1200, "ready_s": 1800, "token_s": 60, "reboot_s": 300},
}


@dataclass(frozen=True)
class Timeouts:
    """How long each part of the way may take, in seconds."""

    ssh_s: float = 180.0
    """From the start to an open SSH session."""
    install_s: float = 1200.0
    """cloud-init, Docker and driver, the reboot included."""
    ready_s: float = 1800.0
    """Image pull, model download and load, until the model is listed."""
    token_s: float = 60.0
    """One generated token, or what else the model answers."""
    reboot_s: float = 300.0
    """From a lost connection to the next session."""


@dataclass(frozen=True)
class Ref:
    """A branch or tag of a repository that the node serves from."""

    name: str
    """owner/name@revision."""
    path: str
    """The file on the node that holds its commit."""


@dataclass(frozen=True)
class GateSpec:
    """The node to look at and what it must serve."""

    node: str
    cloud: str
    target: Target
    served_model: str
    api_key: str = field(default="", repr=False)
    """May be left out of the JSON and given in the environment as FLEET_API_KEY."""
    vllm_port: int = 8000
    container_name: str = "vllm"
    unit: str = ""
    """The systemd unit that runs vLLM itself; empty: Docker does, in the container."""
    gateway_port: int | None = None
    """Where the node's gateway answers on its loopback; none is expected if left out."""
    refs: tuple[Ref, ...] = ()
    """What is served from the hub."""
    hints: Hints = field(default_factory=Hints)
    timeouts: Timeouts = field(default_factory=Timeouts)
    task: str = tasks.GENERATE
    """What the model is served for; its answer to a request of that task is the last question."""
    more_served: tuple[str, ...] = ()
    """Names beside it that have to be listed and to answer: LoRA adapters."""

    @classmethod
    def parse(cls, text: str, api_key: str = "") -> GateSpec:
        """From JSON; `api_key` counts where the JSON has none. Raises SpecError naming every wrong field."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise specs.SpecError(f"the spec is not JSON: {error}") from None
        spec = specs.parse(cls, raw)
        key = spec.api_key or api_key
        if not (key and key.isascii() and key.isprintable()):
            raise specs.SpecError(
                f"api_key: missing, or not printable ASCII; give it here or as {API_KEY_VARIABLE}"
            )
        if spec.task not in tasks.TASKS:
            raise specs.SpecError(f"task: must be one of {', '.join(tasks.TASKS)}")
        return replace(spec, api_key=key)

    @property
    def context(self) -> Context:
        """What a diagnosis of this node speaks of."""
        return Context(
            self.node,
            self.cloud,
            self.hints,
            self.target,
            self.container_name,
            unit=self.unit,
            secrets=(self.api_key,),
        )


@dataclass(frozen=True)
class StageTime:
    """A stage reached."""

    name: str
    percent: int
    seconds: float
    """Since the stage before it."""


@dataclass(frozen=True)
class Report:
    """What the gate found."""

    node: str
    ready: bool
    served_model: str
    seconds: float
    """The gate's own duration."""
    stages: tuple[StageTime, ...]
    boot: tuple[dict[str, Any], ...]
    """Stage times the node wrote while it booted, as it wrote them."""
    first_token_s: float | None
    diagnosis: Diagnosis | None
    commits: dict[str, str] = field(default_factory=dict)
    """The commit of each of the spec's `refs` that the node knows."""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)


async def check(spec: GateSpec, progress: Progress, *, clock: Clock = SYSTEM_CLOCK) -> Report:
    """Take the node through stages 50 to 100; the report holds a diagnosis if it does not get there.

    A node's failure is never raised, always reported. Lasts no longer than the spec's timeouts together.
    """
    return await _Gate(spec, progress, clock).run()


class _Wait:
    """A wait with a limit, in seconds."""

    def __init__(self, clock: Clock, limit_s: float) -> None:
        self._clock = clock
        self._started = clock.now()
        self.limit_s = limit_s

    @property
    def waited_s(self) -> float:
        return self._clock.now() - self._started

    @property
    def left_s(self) -> float:
        return self.limit_s - self.waited_s


Look = Callable[[Connection], Awaitable[str | None]]
"""One look at the node: None when what is waited for is there, else what was seen instead."""


class _Gate:
    def __init__(self, spec: GateSpec, progress: Progress, clock: Clock) -> None:
        self._spec = spec
        self._progress = progress
        self._clock = clock
        self._stage = Stage.WORKER_SSH_ACCESSIBLE
        self._started = self._stage_started = clock.now()
        self._stages: list[StageTime] = []
        self._boot: tuple[dict[str, Any], ...] = ()
        self._first_token_s: float | None = None
        self._commits: dict[str, str] = {}
        self._connection: Connection | None = None
        self._watch: Watch = (
            UnitWatch(spec.unit, clock) if spec.unit else ContainerWatch(spec.container_name, clock)
        )
        self._next_look_at = clock.now()
        self._inside = ""
        self._settling_since: float | None = None
        self._missing: Failed | None = None
        self._saw_first_boot = False
        self._earlier: Failed | None = None
        self._restarts: int | None = None

    async def run(self) -> Report:
        diagnosis = None
        try:
            await self._through_the_stages()
        except Failed as failed:
            diagnosis = diagnose(failed.fault, self._stage, self._spec.context, failed.seen, failed.fix)
        finally:
            await self._drop()
        return Report(
            node=self._spec.node,
            ready=diagnosis is None,
            served_model=self._spec.served_model,
            seconds=round(self._clock.now() - self._started, 3),
            stages=tuple(self._stages),
            boot=self._boot,
            first_token_s=self._first_token_s,
            diagnosis=diagnosis,
            commits=self._commits,
        )

    async def _through_the_stages(self) -> None:
        target, timeouts = self._spec.target, self._spec.timeouts
        if not target.host_keys:
            raise Failed(Fault.HOST_KEY_NOT_PUBLISHED, ["no host key was given to compare with"])
        await self._open(timeouts.ssh_s)
        self._reached(str(target))

        self._stage = Stage.WORKER_SSH_INSTALL
        await self._until("the installation", timeouts.install_s, self._installed, Fault.INSTALL_TIMEOUT)
        self._boot = await self._boot_times()
        self._reached(", ".join(f"{stage['stage']} {stage['seconds']:.0f} s" for stage in self._boot))
        # One that Docker's failure kept from starting does not start by itself; for others this is nothing.
        await self._until("vllm.service", timeouts.install_s, self._begin_serving, Fault.INSTALL_TIMEOUT)

        self._stage = Stage.WORKER_VLLM_HTTP_OK
        loading = _Wait(self._clock, timeouts.ready_s)
        await self._until("/health", loading, self._healthy, Fault.LOADING_TIMEOUT)
        self._reached("/health 200")

        self._stage = Stage.WORKER_MODEL_LOADED
        await self._until("/v1/models", loading, self._listed, Fault.LOADING_TIMEOUT)
        if self._spec.gateway_port is not None:
            await self._until("the gateway", GATEWAY_S, self._admitted, Fault.GATEWAY_FAILED)
        self._reached(f"lists {self._spec.served_model}, refuses calls without the key")

        self._stage = Stage.WORKER_VLLM_WARMUP
        what = "one token" if self._spec.task in tasks.CONVERSING else "an answer"
        await self._until(what, timeouts.token_s, self._answers, Fault.COMPLETION_FAILED)
        self._reached(f"{what} in {self._first_token_s:.2f} s")
        for name in self._spec.more_served:
            what = f"an answer of {name}"
            await self._until(
                what, timeouts.token_s, partial(self._answers, model=name), Fault.COMPLETION_FAILED
            )

        self._stage = Stage.HEALTH_CHECK
        await self._until("/health", STABLE_S, self._stable, Fault.UNSTABLE)
        self._reached("still healthy, no restart")

        self._commits = await self._served_commits()
        self._stage = Stage.READY
        self._reached(f"ready after {self._clock.now() - self._started:.0f} s")

    def _reached(self, note: str) -> None:
        now = self._clock.now()
        self._stages.append(StageTime(self._stage.name, self._stage, round(now - self._stage_started, 3)))
        self._stage_started = now
        self._progress.reached(self._stage, note)

    # --- The session ---

    async def _open(self, limit_s: float) -> Connection:
        try:
            self._connection = await wait_for_ssh(
                self._spec.target, limit_s, self._progress, stage=self._stage, clock=self._clock
            )
        except SshError as error:
            raise ssh_fault(error) from None
        except ValueError as error:
            raise Failed(Fault.HOST_KEY_NOT_PUBLISHED, [str(error)]) from None
        return self._connection

    async def _reopen(self, limit_s: float) -> Connection:
        try:
            return await self._open(limit_s)
        except Failed as failed:
            if failed.fault in {Fault.SSH_SILENT, Fault.SSH_REFUSED}:
                raise Failed(Fault.REBOOT_LOST, failed.seen) from None
            raise

    async def _drop(self) -> None:
        if self._connection:
            await self._connection.close()
        self._connection = None

    async def _until(self, what: str, limit: float | _Wait, look: Look, expired: Fault) -> None:
        """Look again and again until `look` is content; over a reboot too. Raises Failed."""
        wait = limit if isinstance(limit, _Wait) else _Wait(self._clock, limit)
        seen: str | None = None
        while True:
            if wait.left_s <= 0 and seen:
                raise self._missing or Failed(expired, [seen, *await self._last_words(expired)])
            try:
                node = self._connection or await self._reopen(min(wait.left_s, self._spec.timeouts.reboot_s))
                seen = await look(node)
            except ConnectionLost as error:
                await self._drop()
                self._settling_since, self._missing, seen = None, None, str(error)
                self._progress.note(self._stage, f"{error}; waiting for the node to come back")
            except Timeout as error:
                seen = str(error)
            if seen is None:
                self._missing = None
                return
            self._progress.waiting(self._stage, what, seen, waited_s=wait.waited_s, limit_s=wait.limit_s)
            await self._clock.sleep(min(pause_s(wait.waited_s), max(wait.left_s, 0.0)))

    async def _last_words(self, expired: Fault) -> list[str]:
        """The last line of the log that stands still, when a wait is over."""
        if expired is Fault.LOADING_TIMEOUT:
            return [f"last log line: {self._watch.last_line}"]
        if expired is Fault.INSTALL_TIMEOUT and self._connection:
            return await _tail(self._connection, 1)
        return []

    # --- Stage 60: the machine is set up ---

    async def _installed(self, node: Connection) -> str | None:
        try:
            return await (self._again(node, self._earlier) if self._earlier else self._first_boot(node))
        except Failed as failed:
            # What failed before this gate began is tried once more; what fails under its eyes is reported.
            if self._saw_first_boot or self._earlier:
                raise
            begun = await node.run(["systemctl", "start", "--no-block", SETUP_UNIT], check=False)
            if begun.exit_status != 0:
                raise
            self._earlier, self._settling_since, self._missing = failed, None, None
            why = diagnose(failed.fault, self._stage, self._spec.context, failed.seen)
            self._progress.note(self._stage, f"{why.summary} earlier; setting the machine up again")
            return f"{SETUP_UNIT} begun"

    async def _again(self, node: Connection, earlier: Failed) -> str | None:
        shown = await node.run(["systemctl", "show", "--property=ActiveState", "--value", SETUP_UNIT])
        match shown.stdout.strip():
            case "activating" | "deactivating":
                return f"{SETUP_UNIT}: {' '.join(await _tail(node, 1))}"
            case "failed":
                raise marked(await _tail(node, 200), INSTALL_MARKS) or earlier
        return await self._has_docker_and_driver(node)

    async def _first_boot(self, node: Connection) -> str | None:
        status = await node.run(["cloud-init", "status", "--format", "json"], check=False)
        try:
            cloud_init: dict[str, Any] = json.loads(status.stdout)
        except ValueError:
            said = status.stderr.strip() or "said nothing"
            return await self._settling(Fault.CLOUD_INIT_CRASHED, f"cloud-init status: {said}")
        await self._judge_cloud_init(node, cloud_init)
        if cloud_init.get("status") not in {"done", "disabled"}:
            self._saw_first_boot = True
            return f"cloud-init {cloud_init.get('status')}: {cloud_init.get('detail') or 'no detail'}"
        return await self._has_docker_and_driver(node)

    async def _has_docker_and_driver(self, node: Connection) -> str | None:
        docker = (await node.run(["systemctl", "is-active", "docker"], check=False)).stdout.strip()
        if docker != "active":
            return await self._settling(Fault.DOCKER_DEAD, f"docker is {docker or 'unknown'}")
        query = ["nvidia-smi", "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]
        gpus = await node.run(query, check=False)
        if gpus.exit_status != 0 or not gpus.stdout.strip():
            said = (gpus.stderr.strip() or gpus.stdout.strip() or "lists no GPU").splitlines()[0]
            return await self._settling(Fault.DRIVER_NOT_LOADED, f"nvidia-smi: {said}")
        return None

    async def _settling(self, fault: Fault, seen: str) -> str:
        """Something is missing although cloud-init is through: give the machine time for its reboot."""
        now = self._clock.now()
        self._settling_since = now if self._settling_since is None else self._settling_since
        self._missing = Failed(fault, [seen])
        if now - self._settling_since >= SETTLE_S:
            raise self._missing
        return seen

    async def _judge_cloud_init(self, node: Connection, status: dict[str, Any]) -> None:
        errors = [str(error) for error in status.get("errors") or ()]
        recoverable = [
            f"{level}: {message}"
            for level, messages in (status.get("recoverable_errors") or {}).items()
            if level not in HARMLESS_LEVELS
            for message in messages
        ]
        crashed = status.get("status") == "error"
        if not crashed and not (recoverable and status.get("status") == "done"):
            return
        said, tail = [*errors, *recoverable], await _tail(node, 200)
        fault = Fault.CLOUD_INIT_CRASHED if crashed else Fault.CLOUD_INIT_DEGRADED
        raise marked([*said, *tail], INSTALL_MARKS) or Failed(
            fault, [*said[:2], *tail[-1:]] or [f"cloud-init status: {status.get('detail')}"]
        )

    async def _boot_times(self) -> tuple[dict[str, Any], ...]:
        if not self._connection:
            return ()
        try:
            lines = (await self._connection.read_file(STAGES_PATH)).decode(errors="replace").splitlines()
        except (CommandFailed, ConnectionLost, Timeout):
            return ()  # times are worth knowing, not worth failing for
        return tuple(stage for line in lines if (stage := _boot_stage(line)))

    async def _served_commits(self) -> dict[str, str]:
        """The commits that the node holds for what it serves, by the hub's client's own notes."""
        found: dict[str, str] = {}
        for ref in self._spec.refs:
            if not self._connection:
                break
            with suppress(CommandFailed, ConnectionLost, Timeout):  # worth knowing, not worth failing for
                commit = (await self._connection.read_file(ref.path)).decode(errors="replace").strip()
                if re.fullmatch("[0-9a-f]{40}", commit):
                    found[ref.name] = commit
        return found

    # --- Stages 70 to 95: the model answers ---

    async def _begin_serving(self, node: Connection) -> None:
        await node.run(["systemctl", "start", "--no-block", self._spec.unit or UNIT], check=False)

    async def _healthy(self, node: Connection) -> str | None:
        reply = await self._get(node, "/health")
        if isinstance(reply, HttpReply) and reply.status == 200:
            self._restarts = await self._watch.restarts(node)
            return None
        return await self._or_why_not(node, _said("/health", reply))

    async def _listed(self, node: Connection) -> str | None:
        reply = await self._get(node, "/v1/models", with_key=True)
        if not isinstance(reply, HttpReply) or reply.status >= 500:
            return await self._or_why_not(node, _said("/v1/models", reply))
        if reply.status in {401, 403}:
            raise Failed(Fault.KEY_REFUSED, [f"GET /v1/models with the key: {reply.status}"])
        names = [str(model.get("id")) for model in _document(reply).get("data") or ()]
        for wanted in (self._spec.served_model, *self._spec.more_served):
            if wanted not in names:
                listed = ", ".join(names) or f"nothing ({reply.status})"
                raise Failed(Fault.WRONG_MODEL, [f"asked for {wanted}, listed: {listed}"])
        keyless = await self._get(node, "/v1/models")
        if not isinstance(keyless, HttpReply) or keyless.status >= 500:
            return await self._or_why_not(node, _said("/v1/models without the key", keyless))
        if keyless.status not in {401, 403}:
            raise Failed(Fault.OPEN_WITHOUT_KEY, [f"GET /v1/models without a key: {keyless.status}"])
        return None

    async def _admitted(self, node: Connection) -> str | None:
        """The gateway does what vLLM does: it answers who holds the key, and nobody else."""
        port = self._spec.gateway_port
        with_key = await self._get(node, "/v1/models", with_key=True, port=port)
        keyless = await self._get(node, "/v1/models", port=port)
        replies = [reply.status if isinstance(reply, HttpReply) else 0 for reply in (with_key, keyless)]
        if replies == [200, 401]:
            return None
        return f"{_said('with the key', with_key)}, {_said('without', keyless)}"

    async def _answers(self, node: Connection, model: str = "") -> str | None:
        started, limit_s = self._clock.now(), self._spec.timeouts.token_s
        asked = tasks.question(self._spec.task, model or self._spec.served_model)
        headers = {"Content-Type": asked.content_type, **self._key()}
        try:
            reply = await node.http(
                "POST",
                self._spec.vllm_port,
                asked.path,
                headers=headers,
                body=asked.body,
                timeout_s=limit_s,
            )
        except Timeout:
            what = "token" if self._spec.task in tasks.CONVERSING else "answer"
            raise Failed(Fault.HUNG, [f"no {what} in {limit_s:g} s, while /health says 200"]) from None
        except NothingListens as error:
            return await self._or_why_not(node, str(error))
        said = _said(asked.path, reply)
        if fault := _refusal(reply):
            raise Failed(fault, [f"serving.task is {self._spec.task}", said])
        if reply.status >= 500:
            return await self._or_why_not(node, said)
        if reply.status != 200:
            raise Failed(Fault.COMPLETION_FAILED, [said])
        if wrong := asked.wrong(_document(reply)):
            raise Failed(Fault.COMPLETION_FAILED, [wrong, said])
        if self._first_token_s is None:
            self._first_token_s = round(self._clock.now() - started, 3)
        return None

    async def _stable(self, node: Connection) -> str | None:
        reply = await self._get(node, "/health")
        restarts = await self._watch.restarts(node)
        if restarts != self._restarts:
            raise Failed(Fault.UNSTABLE, ["the container restarted", *(await self._watch.log(node))[-2:]])
        if isinstance(reply, HttpReply) and reply.status == 200:
            return None
        return _said("/health", reply)

    async def _or_why_not(self, node: Connection, seen: str) -> str:
        """What was seen, with what the node itself says about it; asked at most as often as is useful."""
        now = self._clock.now()
        if now >= self._next_look_at:
            self._inside = await self._watch.look(node)
            # Docker's and systemd's clients cost a busy machine more than a closed port does.
            self._next_look_at = now + pause_s(now - self._stage_started, least=1.0, most=10.0)
        return f"{seen}; {self._inside}"

    async def _get(
        self, node: Connection, path: str, *, with_key: bool = False, port: int | None = None
    ) -> HttpReply | str:
        """The reply of vLLM, or of who listens on another port; or why there was none."""
        headers = self._key() if with_key else {}
        try:
            return await node.http(
                "GET", port or self._spec.vllm_port, path, headers=headers, timeout_s=HTTP_TIMEOUT_S
            )
        except NothingListens:
            return "nothing listens"
        except Timeout:
            return f"no answer in {HTTP_TIMEOUT_S:g} s"

    def _key(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._spec.api_key}"}


async def _tail(node: Connection, count: int) -> list[str]:
    """The last lines of cloud-init's log; none if it cannot be read."""
    try:
        return (await node.run(["tail", "-n", str(count), INSTALL_LOG], check=False)).stdout.splitlines()
    except (ConnectionLost, Timeout):
        return []


def _said(path: str, reply: HttpReply | str) -> str:
    if isinstance(reply, str):
        return f"{path}: {reply}"
    body = " ".join(reply.body.decode(errors="replace").split())[:120]
    return f"{path}: {reply.status} {body}".rstrip()


def _refusal(reply: HttpReply) -> Fault | None:
    """What vLLM has against the request as such, where it says so: no chat template, or another task than its
    model's. Since 0.32 a route of another task does not exist (404), before it says "The model does not
    support … API" (400 or 501)."""
    text = reply.body.decode(errors="replace")
    if reply.status == 400 and NO_CHAT_TEMPLATE in text:
        return Fault.CHAT_TEMPLATE_MISSING
    no_route = reply.status == 404 and _document(reply).get("detail") == "Not Found"
    if no_route or (
        reply.status in {400, 501} and re.search(r"[Tt]he model does not support [\w ()]+ API", text)
    ):
        return Fault.TASK_UNSUPPORTED
    return None


def _document(reply: HttpReply) -> dict[str, Any]:
    try:
        document = json.loads(reply.body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _boot_stage(line: str) -> dict[str, Any] | None:
    """A stage the node wrote down; None for a line cut short by a power-off."""
    try:
        stage = json.loads(line)
        return {"stage": str(stage["stage"]), "at": float(stage["at"]), "seconds": float(stage["seconds"])}
    except (ValueError, KeyError, TypeError):
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when the node is ready, 1 when it is not, 2 when the spec is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m fleet.gate",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Waits until a node serves its model. Reads a spec (JSON) on standard input, writes\n"
        "progress to standard error and one line of JSON, the report, to standard output.",
        epilog=f"The API key is taken from {API_KEY_VARIABLE} or the field api_key. Example spec:\n"
        + json.dumps(EXAMPLE, indent=2, ensure_ascii=False),
    )
    parser.parse_args(arguments)
    try:
        spec = GateSpec.parse(sys.stdin.read(), os.environ.get(API_KEY_VARIABLE, ""))
    except specs.SpecError as error:
        return _say(f"fleet.gate: {error}", 2)
    try:
        report = lifeline.run(check(spec, Progress(spec.node)))
    except KeyboardInterrupt:
        return _say(f"{spec.node}: interrupted", lifeline.INTERRUPTED)
    sys.stdout.write(report.to_json() + "\n")
    return _say(str(report.diagnosis), 1) if report.diagnosis else 0


def _say(text: str, status: int) -> int:
    sys.stderr.write(text + "\n")
    return status


if __name__ == "__main__":
    sys.exit(guarded(main))
