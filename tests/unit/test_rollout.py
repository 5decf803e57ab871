"""Rollouts against light nodes: what changes, what does not, and what is left when something goes wrong."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_light_nodes import USER_KEY, Node, get, make_nodes, run, says, text, until, user_data

from fleet import compose, served_files
from fleet.gate import Timeouts
from fleet.layout import COMPOSE_PATH, FILES_DIRECTORY
from fleet.models.sources import written
from fleet.progress import Progress
from fleet.rollout.process import Outcome, RolloutFailed, roll_out
from fleet.rollout.release import Release
from fleet.rollout.spec import SECRET_ENVIRONMENT, Queue, RolloutSpec, ServedFile
from fleet.rollout.store import JOURNAL, LOCK, OWNER, RELEASES_KEPT, SERVED
from fleet.settings import Secrets, Serving
from fleet.ssh import Target, connect
from simcloud.light import ssh as light_ssh
from simcloud.light.machine import Machine

ROOT = Path(__file__).parents[2]
KEY = "planted-key-0123456789"
MODEL, OTHER = "Qwen/Qwen3-8B-AWQ", "Qwen/Qwen3-4B-AWQ"
IMAGE = Serving(model=MODEL).image
QUICK = Timeouts(ssh_s=10, install_s=10, ready_s=10, token_s=2, reboot_s=10)
PHASES = [
    "lock",
    "preflight",
    "backup",
    "upload",
    "validate",
    "pull",
    "prefetch",
    "turn",
    "switch",
    "gate",
    "commit",
]


class Told(io.StringIO):
    """What the user is told, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.on_line: Callable[[str], None] = lambda line: None

    def write(self, line: str) -> int:
        self.on_line(line)
        return super().write(line)


@dataclass
class Operator:
    """Rolls out on one light node, as the Command resource does."""

    node: Node
    directory: Path
    api_key: str = KEY
    timeouts: Timeouts = QUICK

    def __post_init__(self) -> None:
        self.key_path = self.directory / "id_ed25519"
        USER_KEY.write_private_key(self.key_path)
        self.key_path.chmod(0o600)
        self.told = Told()

    @property
    def machine(self) -> Machine:
        return self.node.nodes._machines[self.node.boot.server_id]

    def spec(self, serving: dict[str, Any], **changes: Any) -> RolloutSpec:
        wanted = Serving(**{"model": MODEL, **serving})
        digest = served_files.digest(wanted.files)
        host_key = self.node.published["ssh-host-public-keys"].decode().strip()
        spec = RolloutSpec(
            "l4-0",
            "scaleway",
            Target(self.node.boot.address, (host_key,), "root", self.node.port, self.key_path),
            compose.compose_file(wanted, files=digest),
            compose.env_file(compose.plain_environment(wanted)),
            files=tuple(ServedFile(name, path) for name, path in wanted.files.items()),
            files_digest=digest,
            prefetch=written(wanted.weights),
            timeouts=self.timeouts,
            queue=Queue(self.directory / "queue", limit_s=10),
        )
        return replace(spec, **changes)

    @property
    def secrets(self) -> str:
        return compose.env_file({"VLLM_API_KEY": self.api_key})

    def release(self, serving: dict[str, Any]) -> Release:
        return self.spec(serving).release(self.secrets)

    async def roll_out(
        self, serving: dict[str, Any], registries: dict[str, str] | None = None, **changes: Any
    ) -> Outcome:
        spec = self.spec(serving, **changes)
        release, progress = spec.release(self.secrets), Progress("l4-0", self.told)
        return await roll_out(spec, release, progress, registries=registries)

    async def write(self, path: str, text: str) -> None:
        async with connect(self.spec({}).target) as node:
            await node.run(["install", "-d", str(Path(path).parent)])
            await node.write_file(path, text.encode())

    async def fails(self, serving: dict[str, Any], **changes: Any) -> str:
        with pytest.raises(RolloutFailed) as failure:
            await self.roll_out(serving, **changes)
        return str(failure.value)

    async def start(self, serving: dict[str, Any]) -> asyncio.subprocess.Process:
        """Roll out in a process of its own, that can be killed."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fleet.rollout"),
            cwd=ROOT,
            env=os.environ | {SECRET_ENVIRONMENT: self.secrets},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(self.spec(serving)), default=str).encode())
        process.stdin.write_eof()
        return process

    async def models(self) -> list[str]:
        """What `/v1/models` lists to who holds the key; none while nothing answers."""
        connection = await self.node.connect()
        try:
            reply = await get(connection, 8000, "/v1/models", self.api_key)
            return [model["id"] for model in reply.json()["data"]]
        except (httpx.HTTPError, KeyError):
            return []
        finally:
            connection.close()

    async def on_node(self, command: str) -> str:
        connection = await self.node.connect()
        try:
            return await text(connection, command)
        finally:
            connection.close()

    async def is_untouched(self, report: str) -> None:
        """After a failure: the first release serves, and nothing of the rollout is left."""
        assert f"{self.release({}).digest} serves, gated in" in report
        assert await self.models() == [MODEL]
        assert await self.left() == []

    async def left(self) -> list[str]:
        """What of a rollout under way is on the node."""
        return [path for path in (JOURNAL, LOCK) if await self.on_node(f"ls {path}")]


@pytest.fixture
async def operator(tmp_path: Path) -> AsyncIterator[Operator]:
    """A node that serves its first release."""
    async with make_nodes(tmp_path, 1) as (node,):
        operator = Operator(node, tmp_path)
        await node.start(user_data(compose.compose_file(Serving(model=MODEL))))
        connection = await node.connect()
        await run(connection, "cloud-init status --wait")
        assert (await operator.roll_out({})).note.startswith("delivered")
        await says(connection, "docker inspect vllm --format '{{.State.Health.Status}}'", "healthy")
        connection.close()
        yield operator


async def test_a_change_is_committed_and_the_same_again_is_nothing_to_do(operator: Operator) -> None:
    before = operator.release({})
    outcome = await operator.roll_out({"model": OTHER})
    assert await operator.models() == [OTHER]
    assert "startup complete" in outcome.note
    served = json.loads(await operator.on_node(f"cat {SERVED}"))
    assert served == {
        "release": outcome.release,
        "serial": 1,
        "history": [outcome.release, before.digest],
    }
    assert await operator.on_node("stat -c %a /opt/llm/.env") == "600"
    kept = (await operator.on_node(f"ls /opt/llm/releases/{before.digest}")).split()
    assert {"docker-compose.yml", ".env", "inspect.json", "vllm.log", "nvidia-smi.txt"} <= set(kept)
    assert await operator.left() == []
    assert (await operator.roll_out({"model": OTHER})).note == "files are up to date"


async def test_files_are_on_the_node_whole_before_the_switch_and_go_with_their_last_release(
    operator: Operator, tmp_path: Path
) -> None:
    adapter, template = tmp_path / "sql", tmp_path / "chat.jinja"
    (adapter / "deep").mkdir(parents=True)
    (adapter / "deep" / "weights").write_bytes(b"weights")
    (adapter / "config.json").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("{}")
    template.write_text("first")
    template.chmod(0o600)
    wanted = {
        "files": {"sql": adapter, "tool.jinja": template},
        "extra_args": ("--chat-template", "/files/tool.jinja"),
    }
    folders: list[str] = []

    async def delivered() -> list[str]:
        return (await operator.on_node(f"ls {FILES_DIRECTORY}")).split()

    for content in ("first", "second"):
        template.write_text(content)
        outcome = await operator.roll_out(wanted)
        folder = f"{FILES_DIRECTORY}/{served_files.digest(wanted['files'])}"
        folders.append(folder.rpartition("/")[2])
        mounts = (await operator.on_node(f"cat {COMPOSE_PATH}")).splitlines()
        assert f"    - {folder}:/files:ro" in mounts
        there = {"tool.jinja": content, "sql/deep/weights": "weights", "sql/config.json": "{}"}
        for name, held in there.items():
            assert await operator.on_node(f"cat {folder}/{name}") == held
        assert await operator.on_node(f"stat -c %a {folder}/tool.jinja") == "644"
        assert await operator.on_node(f"test -L {folder}/sql/config.json || echo a file") == "a file"
    assert sorted(await delivered()) == sorted(folders)
    assert (await operator.roll_out(wanted)).note == "files are up to date"

    # Its content is another by the time it is sent.
    report = await operator.fails({**wanted, "max_model_len": 2048}, files_digest="0" * 16)
    assert "changed after the update began; run `pulumi up` again" in report
    assert f"{outcome.release} serves, gated in" in report

    for length in range(1024, 1024 + RELEASES_KEPT):
        await operator.roll_out({"max_model_len": length})
    assert await delivered() == []


PRIVATE = "registry.example.com:5000/vllm/vllm-openai:v0.9.2"
DOCKER_CONFIG = "/root/.docker/config.json"


async def test_an_image_of_a_private_registry_is_pulled_with_the_login_that_the_settings_give(
    operator: Operator,
) -> None:
    secrets = Secrets.model_validate(
        {
            "api_key": KEY,
            "registries": {
                "registry.example.com:5000": {"username": "me", "password": "planted-password"},
                "docker.io": {"username": "hub", "password": "planted-hub"},
            },
        }
    )
    logins = compose.registry_logins(secrets)
    assert "pull access denied" in await operator.fails({"image": PRIVATE})
    by_hand = {"auths": {"ghcr.io": {"auth": "bWU6aGFuZA=="}}, "credHelpers": {"ecr": "ecr-login"}}
    await operator.write(DOCKER_CONFIG, json.dumps(by_hand))

    await operator.roll_out({"image": PRIVATE}, registries=logins)
    config = json.loads(await operator.on_node(f"cat {DOCKER_CONFIG}"))
    assert config["auths"] == {
        "ghcr.io": {"auth": "bWU6aGFuZA=="},
        "registry.example.com:5000": {"auth": b64encode(b"me:planted-password").decode()},
        "https://index.docker.io/v1/": {"auth": b64encode(b"hub:planted-hub").decode()},
    }
    assert config["credHelpers"] == {"ecr": "ecr-login"}
    assert await operator.on_node(f"stat -c %a {DOCKER_CONFIG}") == "600"
    assert "planted" not in "".join(operator.told)

    # A password that changed, and a registry that is not wanted any more, without any other change.
    changed = {"registry.example.com:5000": b64encode(b"me:another").decode()}
    assert (await operator.roll_out({"image": PRIVATE}, registries=changed)).note == "files are up to date"
    config = json.loads(await operator.on_node(f"cat {DOCKER_CONFIG}"))
    assert config["auths"] == {
        "ghcr.io": {"auth": "bWU6aGFuZA=="},
        "registry.example.com:5000": {"auth": changed["registry.example.com:5000"]},
    }
    await operator.roll_out({"image": PRIVATE}, registries={})
    assert json.loads(await operator.on_node(f"cat {DOCKER_CONFIG}"))["auths"] == by_hand["auths"]


async def test_the_old_model_answers_every_request_until_the_switch(operator: Operator) -> None:
    answers: list[list[str]] = []
    switched_at: list[int] = []
    operator.told.on_line = lambda line: (
        switched_at.append(len(answers)) if "rollout: switch" in line else None
    )

    async def ask() -> None:
        while True:
            answers.append(await operator.models())

    asking = asyncio.create_task(ask())
    await operator.roll_out({"model": OTHER})
    await until(lambda: _holds(answers[-1] == [OTHER]))
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    assert all(answer == [MODEL] for answer in answers[: switched_at[0]])
    order = [answer for n, answer in enumerate(answers) if n == 0 or answers[n - 1] != answer]
    assert order in ([[MODEL], [OTHER]], [[MODEL], [], [OTHER]])


async def _holds(value: bool) -> bool:
    return value


async def test_a_new_key_is_rolled_out_and_neither_is_shown(operator: Operator) -> None:
    operator.api_key = "rotated-key-9876543210"
    await operator.roll_out({})
    assert await operator.models() == [MODEL]
    told = operator.told.getvalue()
    assert "VLLM_API_KEY=*** (changed)" in told
    assert KEY not in told and operator.api_key not in told


async def test_only_the_last_five_releases_are_kept(operator: Operator) -> None:
    for length in range(4096, 4096 + 6):
        await operator.roll_out({"max_model_len": length})
    kept = (await operator.on_node("ls /opt/llm/releases")).split()
    assert len(kept) == 5
    assert operator.release({"max_model_len": 4101}).digest in kept


def _with_image(image: str) -> Callable[[Operator], dict[str, Any]]:
    def change(operator: Operator) -> dict[str, Any]:
        return {"compose": operator.spec({}).compose.replace(IMAGE, image)}

    return change


def _with_unknown_key(operator: Operator) -> dict[str, Any]:
    return {"compose": operator.spec({}).compose.replace("ipc: host", "ipcs: host")}


def _with_old_flag(operator: Operator) -> dict[str, Any]:
    return {"compose": operator.spec({}).compose.replace("- --host", "- --worker-use-ray\n    - --host")}


BAD = {
    "image that does not exist": ({"image": "vllm/vllm-openai:v0.99.0"}, "pull", "image is refused"),
    "image that moves": (_with_image("vllm/vllm-openai:latest"), "preflight", "not pinned"),
    "model not found": ({"model": "Qwen/does-not-exist"}, "prefetch", "does not exist on the hub"),
    "token refused": ({"model": "meta-llama/Llama-3.1-8B"}, "prefetch", "refuses access"),
    "unknown flag": ({"model": "fault/bad-flag"}, "gate", "refuses its arguments"),
    "flag the image has no more": (_with_old_flag, "preflight", "--worker-use-ray is gone since"),
    "out of GPU memory": ({"model": "fault/oom"}, "gate", "ran out of GPU memory"),
    "context that does not fit": ({"max_model_len": 5_000_000}, "gate", "KV cache is too small"),
    "hang in loading": ({"model": "fault/hang-loading"}, "gate", "did not become ready in time"),
    "hang in generating": ({"model": "fault/hung"}, "gate", "generates nothing"),
    "exit again and again": ({"model": "fault/exit-loop"}, "gate", "keeps exiting"),
    "another model": ({"model": "fault/wrong-model"}, "gate", "another model is served"),
    "key mismatch": ({"model": "fault/key-refused"}, "gate", "refuses the API key"),
    "open without a key": ({"model": "fault/no-auth"}, "gate", "answers without a key"),
    "GPU missing": ({"visible_devices": [3]}, "preflight", "GPU 3 is not on the node"),
    "invalid compose file": (_with_unknown_key, "validate", "compose file is invalid"),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_rollout_leaves_the_release_before_it_serving_and_gated(
    operator: Operator, bad: str
) -> None:
    change, phase, why = BAD[bad]
    serving, more = ({}, change(operator)) if callable(change) else (change, {})
    timeouts = Timeouts(ssh_s=10, install_s=10, ready_s=3 if "hang" in bad else 10, token_s=2, reboot_s=10)
    report = await operator.fails(serving, timeouts=timeouts, **more)
    assert f"failed at {phase}" in report and why in report
    assert "rolled back; release" in report if phase == "gate" else "nothing was switched" in report
    await operator.is_untouched(report)

    await operator.roll_out({"model": OTHER})
    assert await operator.models() == [OTHER]


async def test_a_full_disk_is_seen_before_anything_is_touched(operator: Operator) -> None:
    await operator.node.nodes.inject("l4-0", "disk_full")
    report = await operator.fails({"image": "vllm/vllm-openai:v0.10.2"})
    assert "failed at preflight" in report and "GB of disk are free" in report and "root_volume_gb" in report
    await operator.is_untouched(report)

    await operator.node.nodes.inject("l4-0", None)
    await operator.roll_out({"image": "vllm/vllm-openai:v0.10.2"})
    assert await operator.models() == [MODEL]


async def test_a_port_of_somebody_else_is_seen_before_anything_is_touched(operator: Operator) -> None:
    connection = await operator.node.connect()
    other = {"services": {"web": {"image": "nginx:1.29", "ports": ["127.0.0.1:8001:80"]}}}
    await run(connection, "install -D -m 0644 /dev/stdin /srv/web/compose.yaml", json.dumps(other).encode())
    await run(connection, "docker compose --project-directory /srv/web up -d")
    connection.close()
    report = await operator.fails({"port": 8001})
    assert "port 8001 is taken on the node" in report and "ss -ltnp" in report
    await operator.is_untouched(report)

    await operator.roll_out({"model": OTHER})
    assert await operator.models() == [OTHER]


async def test_a_malformed_token_never_reaches_the_node(operator: Operator) -> None:
    spec = operator.spec({"model": OTHER})
    release = spec.release(operator.secrets + "HF_TOKEN='planted-nonsense'\n")
    with pytest.raises(RolloutFailed, match="must begin with hf_") as failure:
        await roll_out(spec, release, Progress("l4-0", operator.told))
    assert "planted-nonsense" not in str(failure.value) + operator.told.getvalue()


@pytest.mark.parametrize("phase", PHASES)
async def test_a_killed_operator_leaves_a_serving_node_and_the_next_run_converges(
    operator: Operator, phase: str
) -> None:
    process = await operator.start({"model": OTHER})
    assert process.stderr is not None
    async for line in process.stderr:
        if f"rollout: {phase}" in line.decode():
            process.send_signal(signal.SIGKILL)
            break
    await process.communicate()
    # The last phases may be over before the signal arrives.
    assert process.returncode == -signal.SIGKILL or (process.returncode == 0 and phase in PHASES[-2:])
    assert await until(operator.models) in ([MODEL], [OTHER])

    await operator.roll_out({"model": OTHER})
    assert await operator.models() == [OTHER]
    assert await operator.left() == []


async def test_an_interrupted_operator_says_so_and_lets_the_next_run_in(operator: Operator) -> None:
    # The gate would be done before the signal arrives.
    await operator.node.nodes.inject("l4-0", "hang_loading")
    process = await operator.start({"model": OTHER})
    assert process.stderr is not None
    said = ""
    async for line in process.stderr:
        said += line.decode()
        if "rollout: gate" in line.decode():
            process.send_signal(signal.SIGINT)
            break
    _, rest = await process.communicate()
    assert "l4-0: interrupted" in rest.decode() and process.returncode == 130, said + rest.decode()
    assert await operator.left() == [JOURNAL]
    await operator.node.nodes.inject("l4-0", None)
    await operator.roll_out({"model": OTHER})
    assert "taking up the rollout" in operator.told.getvalue()
    assert await operator.models() == [OTHER]


@pytest.mark.parametrize("phase", ["gate", "restore"])
async def test_a_bad_release_of_a_killed_operator_is_undone_by_the_next_run(
    operator: Operator, phase: str
) -> None:
    process = await operator.start({"model": "fault/oom"})
    assert process.stderr is not None
    async for line in process.stderr:
        if f"rollout: {phase}" in line.decode():
            process.send_signal(signal.SIGKILL)
            break
    await process.communicate()
    # Not the same release again, and a bad one as well: it has to end with the first, not with fault/oom.
    report = await operator.fails({"model": "fault/exit-loop"})
    assert "undoing the rollout" in operator.told.getvalue()
    assert f"{operator.release({}).digest} serves, gated in" in report
    assert await operator.models() == [MODEL]


async def test_a_release_once_found_serving_is_put_back_even_if_it_is_down_now(operator: Operator) -> None:
    await operator.fails({"image": "vllm/vllm-openai:v0.99.0"})
    await operator.on_node("docker stop vllm")
    report = await operator.fails({"model": "fault/oom"})
    assert "rolled back; release" in report
    assert await operator.models() == [MODEL]


@pytest.mark.parametrize("phase", PHASES)
async def test_a_cut_connection_is_taken_up_again(operator: Operator, phase: str) -> None:
    def cut(line: str) -> None:
        if line.rstrip().endswith(f"rollout: {phase}"):
            for connection in list(operator.machine.connections):
                connection.abort()

    operator.told.on_line = cut
    await operator.roll_out({"model": OTHER})
    assert await operator.models() == [OTHER]
    assert await operator.left() == []


@pytest.mark.parametrize("phase", PHASES)
async def test_a_connection_that_stays_away_fails_and_the_next_run_converges(
    operator: Operator, phase: str
) -> None:
    machine = operator.machine
    # A rollout that waits for its turn asks the node nothing: it finds out at the switch.
    switched = PHASES.index(phase) >= PHASES.index("turn")
    said = "puts the release before it back by itself" if switched else "nothing was switched"

    def cut(line: str) -> None:
        if f"rollout: {phase}" in line and machine._ssh:
            machine._ssh.close()
            machine._ssh = None
            for connection in list(machine.connections):
                connection.abort()

    operator.told.on_line = cut
    timeouts = Timeouts(ssh_s=0.5, install_s=10, ready_s=2, token_s=2, reboot_s=0.5)
    report = await operator.fails({"model": OTHER}, timeouts=timeouts)
    assert said in report and "SSH" in report

    operator.told.on_line = lambda line: None
    machine._ssh = await light_ssh.listen(machine, machine._host_key())
    assert await until(operator.models) in ([MODEL], [OTHER])
    await operator.roll_out({"model": OTHER})
    assert await operator.models() == [OTHER]
    assert await operator.left() == []


async def test_another_owner_waits_for_a_living_rollout_and_takes_over_a_dead_one(operator: Operator) -> None:
    connection = await operator.node.connect()
    holder = json.dumps({"owner": "vllm-fleet/elsewhere", "run": "1", "host": "desk"}).encode()
    await run(connection, f"install -D -m 0600 /dev/stdin {OWNER}", holder)
    owner = operator.machine.disk.locate(OWNER)

    rolling = asyncio.create_task(operator.roll_out({"model": OTHER}))
    await until(lambda: _holds("rollout: lock" in operator.told.getvalue()))
    await asyncio.wait({rolling}, timeout=1)
    assert await operator.models() == [MODEL] and not rolling.done()
    os.utime(owner, (0, 0))  # nothing was heard of it since 1970
    await rolling
    assert await operator.models() == [OTHER]
    connection.close()


async def test_visible_devices_change_only_with_a_confirmation_that_serves_once(operator: Operator) -> None:
    wanted = {"visible_devices": [0]}
    report = await operator.fails(wanted)
    assert "visible devices change from all to 0" in report
    word = report.split("rollout.confirm[0]' ")[1].split()[0]
    await operator.roll_out(wanted, confirm=(word,))
    assert "NVIDIA_VISIBLE_DEVICES='0'" in await operator.on_node("cat /opt/llm/.env")

    assert "needs a confirmation" in await operator.fails({}, confirm=(word,))
    back = (await operator.fails({})).split("rollout.confirm[0]' ")[1].split()[0]
    await operator.roll_out({}, confirm=(word, back))
    assert "needs a confirmation" in await operator.fails(wanted, confirm=(word, back))


@pytest.mark.parametrize("replace", ["force-recreate", "down"])
async def test_containers_that_did_not_change_are_stopped_only_when_confirmed(
    operator: Operator, replace: str
) -> None:
    before = await operator.on_node("docker inspect vllm --format '{{.State.StartedAt}}'")
    report = await operator.fails({}, replace=replace)
    assert "stops every container" in report
    assert await operator.on_node("docker inspect vllm --format '{{.State.StartedAt}}'") == before
    word = report.split("rollout.confirm[0]' ")[1].split()[0]
    await operator.roll_out({}, replace=replace, confirm=(word,))
    assert await operator.on_node("docker inspect vllm --format '{{.State.StartedAt}}'") != before
    assert await operator.models() == [MODEL]


async def test_a_dry_run_shows_every_difference_and_changes_nothing(operator: Operator) -> None:
    before = await operator.on_node("sha256sum /opt/llm/docker-compose.yml /opt/llm/.env")
    outcome = await operator.roll_out(
        {"max_model_len": 8192, "image": "vllm/vllm-openai:v0.10.2"}, dry_run=True
    )
    told = operator.told.getvalue()
    assert "--max-model-len: 16384 → 8192" in told
    assert f"-    image: {IMAGE}" in told and "+    image: vllm/vllm-openai:v0.10.2" in told
    assert KEY not in told
    assert outcome.release == operator.release({}).digest
    assert await operator.on_node("sha256sum /opt/llm/docker-compose.yml /opt/llm/.env") == before
    assert "needs a confirmation" in await operator.fails({"visible_devices": [0]}, dry_run=True)


async def test_a_first_release_that_never_served_is_replaced_without_a_word(tmp_path: Path) -> None:
    async with make_nodes(tmp_path, 1) as (node,):
        operator = Operator(node, tmp_path)
        await node.start(user_data(compose.compose_file(Serving(model="fault/oom"))))
        connection = await node.connect()
        await run(connection, "cloud-init status --wait")
        await operator.roll_out({"model": "fault/oom"})
        await says(connection, "docker logs vllm", "CUDA out of memory")
        assert (await operator.roll_out({})).note.startswith("delivered")
        await says(connection, "docker inspect vllm --format '{{.State.Health.Status}}'", "healthy")
        assert await operator.models() == [MODEL]
        connection.close()


async def test_a_node_without_the_disk_for_a_first_deployment_is_told_at_once(tmp_path: Path) -> None:
    async with make_nodes(tmp_path, 1) as (node,):
        operator = Operator(node, tmp_path)
        node.boot = replace(node.boot, disk_gb=80)
        await node.start(user_data(compose.compose_file(Serving(model=MODEL))))
        (await node.connect()).close()
        assert "image, weights and caches need 100" in await operator.fails({})
