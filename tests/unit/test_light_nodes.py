"""Light nodes, seen as their users see them: over SSH, with forwards, and through the fleet's own eyes."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import asyncssh
import httpx
import openai
import pytest
import yaml

from fleet.gate import GateSpec, check
from fleet.progress import Progress
from fleet.ssh import Target
from simcloud.light import LightNodes
from simcloud.light.commands import start_shell
from simcloud.light.containers import EngineMaker
from simcloud.nodes import Boot

KEY = "sk-planted"
MODEL = "Qwen/Qwen3-8B-AWQ"
IMAGE = "vllm/vllm-openai:v0.9.2"
USER_KEY = asyncssh.generate_private_key("ssh-ed25519")
DEADLINE_S = 20
T = TypeVar("T")

SERVICE = """
[Unit]
After=docker.service
[Service]
Type=oneshot
RemainAfterExit=yes
WorkingDirectory=/opt/llm
ExecStart=/usr/bin/docker compose up -d
ExecStop=/usr/bin/docker compose down
[Install]
WantedBy=multi-user.target
"""
PATH_UNIT = "[Path]\nPathExists=/opt/llm/.env\nUnit=vllm.service\n[Install]\nWantedBy=multi-user.target\n"
AGENT = "[Service]\nExecStart=/usr/bin/python3 /opt/llm/agent.py\n[Install]\nWantedBy=multi-user.target\n"


def compose(
    model: str = MODEL, image: str = IMAGE, *, publish: str = "127.0.0.1:", flags: tuple[str, ...] = ()
) -> str:
    vllm = {
        "image": image,
        "container_name": "vllm",
        "runtime": "nvidia",
        "restart": "unless-stopped",
        "env_file": [".env"],
        "ports": [f"{publish}${{PORT}}:${{PORT}}"],
        "command": ["--model", model, "--port", "${PORT}", *flags],
        "healthcheck": {"test": ["CMD", "true"]},
    }
    webui = {"image": "ghcr.io/open-webui/open-webui:v0.6.15", "ports": ["127.0.0.1:3000:8080"]}
    return yaml.safe_dump({"name": "llm", "services": {"vllm": vllm, "open-webui": webui}})


def user_data(compose_text: str = compose(), **extra: Any) -> bytes:
    files = {
        "/opt/llm/docker-compose.yml": compose_text,
        "/etc/systemd/system/vllm.service": SERVICE,
        "/etc/systemd/system/vllm-env.path": PATH_UNIT,
        "/etc/systemd/system/vllm-agent.service": AGENT,
    }
    document = {"write_files": [{"path": path, "content": text} for path, text in files.items()], **extra}
    return b"#cloud-config\n" + yaml.safe_dump(document).encode()


ENV = f"PORT='8000'\nVLLM_API_KEY='{KEY}'\n".encode()


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@dataclass
class Node:
    """A light node of a test, and how to reach it."""

    nodes: LightNodes
    boot: Boot
    port: int
    published: dict[str, bytes] = field(default_factory=dict)

    async def connect(self, username: str = "root", **options: Any) -> asyncssh.SSHClientConnection:
        """Connect as soon as the machine listens."""
        return await until(lambda: self._try(username, options), OSError)

    async def _try(self, username: str, options: dict[str, Any]) -> asyncssh.SSHClientConnection:
        return await asyncssh.connect(
            self.boot.address,
            self.port,
            username=username,
            config=[],
            **{"known_hosts": None, "client_keys": [USER_KEY], "agent_path": None, **options},
        )

    async def start(self, data: bytes | None) -> None:
        self.boot = replace(self.boot, user_data=data)
        await self.nodes.start(self.boot)

    async def serve(self, data: bytes | None = None) -> asyncssh.SSHClientConnection:
        """Start, deliver `.env` as the fleet does."""
        await self.start(data or user_data())
        connection = await self.connect()
        await run(connection, "cloud-init status --wait")
        await run(connection, "install -D -m 0600 -o root -g root /dev/stdin /opt/llm/.env.new", ENV)
        await run(connection, "mv -T /opt/llm/.env.new /opt/llm/.env")
        return connection


async def until(ask: Callable[[], Awaitable[T]], *retried: type[Exception]) -> T:
    """Ask again until there is an answer that holds."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                if answer := await ask():
                    return answer
            except retried:
                pass
            await asyncio.sleep(0.01)


async def run(
    connection: asyncssh.SSHClientConnection, command: str, stdin: bytes = b"", check: bool = True
) -> asyncssh.SSHCompletedProcess:
    given: dict[str, Any] = {"input": stdin} if stdin else {"stdin": asyncssh.DEVNULL}
    return await connection.run(command, **given, encoding=None, check=check, timeout=DEADLINE_S)


async def text(connection: asyncssh.SSHClientConnection, command: str) -> str:
    done = await run(connection, command, check=False)
    return (done.stdout or b"").decode().strip()  # type: ignore[union-attr]


async def says(connection: asyncssh.SSHClientConnection, command: str, words: str) -> None:
    """Wait until a command's output holds the words."""

    async def ask() -> bool:
        return words in await text(connection, command)

    await until(ask)


async def get(
    connection: asyncssh.SSHClientConnection, port: int, path: str, key: str = ""
) -> httpx.Response:
    listener = await connection.forward_local_port("127.0.0.1", 0, "127.0.0.1", port)
    try:
        async with httpx.AsyncClient() as client:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            return await client.get(f"http://127.0.0.1:{listener.get_port()}{path}", headers=headers)
    finally:
        listener.close()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with make_nodes(tmp_path, 1) as (only,):
        yield only


class make_nodes:
    """Nodes of one backend, on addresses of their own."""

    def __init__(
        self, directory: Path, count: int, speed: float = 0.0, engine: EngineMaker | None = None
    ) -> None:
        # The addresses differ per test process, so that parallel ones do not meet.
        self._nodes: list[Node] = []
        port = free_port("127.0.77.1")
        backend = LightNodes(ssh_port=port, speed=speed, engine=engine)
        for index in range(count):
            folder = directory / f"node-{index}"
            folder.mkdir()
            boot = Boot(
                cloud="scaleway",
                server_id=f"0000000{index}-1111",
                name=f"l4-{index}",
                address=f"127.0.77.{index + 1}",
                user_data=None,
                authorized_keys=(USER_KEY.export_public_key().decode(),),
                gpu_model="L4",
                gpu_count=1,
                gpu_memory_mib=23034,
                disk_gb=200,
                directory=folder,
                publish=self._publish(index),
            )
            self._nodes.append(Node(backend, boot, port))

    def _publish(self, index: int) -> Callable[[str, bytes], Awaitable[None]]:
        async def publish(key: str, value: bytes) -> None:
            self._nodes[index].published[key] = value

        return publish

    async def __aenter__(self) -> list[Node]:
        return self._nodes

    async def __aexit__(self, *exc: object) -> None:
        await self._nodes[0].nodes.close()


async def test_from_power_on_to_a_chat_through_the_tunnel(node: Node) -> None:
    connection = await node.serve()
    await says(connection, "docker inspect vllm --format '{{.State.Health.Status}}'", "healthy")
    listener = await connection.forward_local_port("127.0.0.1", 0, "localhost", 8000)
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{listener.get_port()}/v1", api_key=KEY
    ) as client:
        reply = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}]
        )
    assert reply.choices[0].message.content
    assert (await get(connection, 8000, "/v1/models")).status_code == 401
    assert "Open WebUI" in (await get(connection, 3000, "/")).text
    assert (await get(connection, 8080, "/health")).json()["status"] == "ok"
    assert "vllm_fleet_vllm_up 1" in (await get(connection, 8080, "/metrics")).text
    assert await text(connection, "systemctl is-active vllm.service") == "active"
    assert "SubState=exited" in await text(connection, "systemctl show vllm.service -p SubState")
    assert await text(connection, "stat -c '%a %U:%G' /opt/llm/.env") == "600 root:root"
    stages = [
        json.loads(line)
        for line in (await text(connection, "cat /var/lib/vllm-fleet/stages.jsonl")).splitlines()
    ]
    assert {"docker", "image_pull"} <= {line["stage"] for line in stages}
    assert all(line.keys() == {"stage", "at", "seconds"} for line in stages)


async def test_only_the_machines_own_loopback_reaches_what_is_bound_there(node: Node) -> None:
    connection = await node.serve()
    await says(connection, "docker compose --project-directory /opt/llm ps", "(healthy)")
    sockets = await text(connection, "ss -ltnH")
    assert "127.0.0.1:8000" in sockets
    assert "0.0.0.0:8000" not in sockets
    for port in (8000, 3000, 8080):
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection(node.boot.address, port)
    for host, port in (("127.0.0.1", 22222), ("192.0.2.1", 8000)):
        with pytest.raises(asyncssh.ChannelOpenError, match="refused"):
            await connection.open_connection(host, port)


async def test_a_port_published_on_every_address_is_reached_from_outside(node: Node) -> None:
    port = free_port(node.boot.address)
    connection = await node.serve(user_data(compose(publish="").replace("${PORT}", str(port))))
    await says(connection, "docker ps", "healthy")
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://{node.boot.address}:{port}/health")).status_code == 200


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        ("docker ps", "permission denied while trying to connect to the Docker daemon socket"),
        ("docker logs --tail 5 vllm", "permission denied"),
        ("systemctl restart vllm.service", "Interactive authentication required"),
        ("reboot", "Interactive authentication required"),
        ("cat /opt/llm/.env", "/opt/llm/.env: Permission denied"),
        ("rm -rf /opt/llm", "Permission denied"),
        ("mkdir -p /opt/other", "Permission denied"),
    ],
)
async def test_a_login_user_needs_sudo_for_what_root_alone_may_do(
    node: Node, command: str, refusal: str
) -> None:
    (await node.serve()).close()
    for user in ("ubuntu", "ec2-user"):
        connection = await node.connect(user)
        done = await connection.run(command)
        assert done.exit_status != 0
        assert refusal in str(done.stderr)
        connection.close()
    if command != "reboot":
        connection = await node.connect("ubuntu")
        assert (await connection.run(f"sudo -n {command}")).exit_status == 0
        connection.close()


async def test_a_login_user_may_look_without_sudo(node: Node) -> None:
    (await node.serve()).close()
    connection = await node.connect("ubuntu")
    for command in (
        *("systemctl is-active docker", "cloud-init status", "nvidia-smi", "df -h /"),
        *("journalctl -u vllm.service -n 5", "cat /opt/llm/docker-compose.yml", "mkdir -p /tmp/own"),
    ):
        assert (await connection.run(command)).exit_status == 0, command
    connection.close()


async def test_only_the_clouds_keys_and_users_are_let_in(node: Node) -> None:
    await node.start(None)
    for username in ("root", "ubuntu", "ec2-user"):
        assert await text(await node.connect(username), "sudo -n hostname") == "l4-0"
    stranger = asyncssh.generate_private_key("ssh-ed25519")
    with pytest.raises(asyncssh.PermissionDenied):
        await node.connect(client_keys=[stranger])
    with pytest.raises(asyncssh.PermissionDenied):
        await node.connect("admin")
    with pytest.raises(asyncssh.PermissionDenied):
        await node.connect(client_keys=[], password="secret")


async def test_the_published_host_key_is_the_one_served_and_survives_a_restart(node: Node) -> None:
    await node.start(None)
    first = await node.connect()
    published = node.published["ssh-host-public-keys"].decode()
    served = first.get_server_host_key()
    assert served is not None
    assert published.split()[:2] == served.export_public_key().decode().split()[:2]
    await node.nodes.stop(node.boot.server_id)
    await node.start(None)
    again = (await node.connect()).get_server_host_key()
    assert again is not None
    assert again.public_data == served.public_data


async def test_a_host_key_in_the_user_data_is_used(node: Node) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    await node.start(user_data(ssh_keys={"ed25519_private": key.export_private_key().decode()}))
    served = (await node.connect()).get_server_host_key()
    assert served is not None
    assert served.public_data == key.public_data


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
async def test_write_files_land_as_cloud_init_writes_them(node: Node, packed: bool) -> None:
    hostile = "a 'quoted' \"line\"\n$(touch /tmp/x) ünïcode\n"
    data = (
        b"#cloud-config\n"
        + yaml.safe_dump(
            {
                "write_files": [
                    {"path": "/srv/plain", "content": hostile, "permissions": "0640"},
                    {
                        "path": "/srv/b64",
                        "content": base64.b64encode(hostile.encode()).decode(),
                        "encoding": "b64",
                    },
                    {
                        "path": "/srv/gz",
                        "content": base64.b64encode(gzip.compress(hostile.encode())).decode(),
                        "encoding": "gz+b64",
                        "defer": True,
                    },
                ],
                "runcmd": [["apt-mark", "hold", "nvidia-driver-580-server"]],
            }
        ).encode()
    )
    await node.start(gzip.compress(data) if packed else data)
    connection = await node.connect()
    await run(connection, "cloud-init status --wait")
    for path in ("/srv/plain", "/srv/b64", "/srv/gz"):
        assert (await run(connection, f"cat {path}")).stdout == hostile.encode()
    assert await text(connection, "stat -c %a /srv/plain") == "640"
    assert await text(connection, "apt-mark showhold") == "nvidia-driver-580-server"


async def test_the_reboot_asked_for_by_user_data_happens_once(node: Node) -> None:
    await node.start(user_data(power_state={"mode": "reboot", "condition": True}))
    boots = set()

    async def second_boot() -> bool:
        connection = await node.connect()
        boots.add(await text(connection, "cat /proc/sys/kernel/random/boot_id"))
        return await text(connection, "systemctl is-active vllm-env.path") == "active"

    await until(second_boot, asyncssh.Error, OSError)
    first = await until(node.connect)
    await says(first, "systemctl is-active vllm-agent.service", "active")
    assert await text(first, "cat /proc/sys/kernel/random/boot_id") in boots


async def test_everything_comes_back_after_the_hosting_process_restarts(node: Node) -> None:
    await says(await node.serve(), "docker ps", "healthy")
    await node.nodes.close()
    node.nodes = LightNodes(ssh_port=node.port, speed=0)
    await node.nodes.start(node.boot)
    connection = await node.connect()
    await says(connection, "docker ps", "healthy")
    assert (await get(connection, 8000, "/v1/models", KEY)).json()["data"][0]["id"] == MODEL
    await node.nodes.close()


@pytest.mark.parametrize(
    ("fault", "command", "status", "mark"),
    [
        ("driver_missing", "nvidia-smi", 9, "couldn't communicate with the NVIDIA driver"),
        ("docker_dead", "docker ps", 1, "Cannot connect to the Docker daemon"),
        ("docker_dead", "systemctl is-active docker", 3, "failed"),
        ("cloud_init_error", "cloud-init status --wait --format json", 1, '"status": "error"'),
    ],
)
async def test_faults_of_the_host_show_as_on_a_real_one(
    node: Node, fault: str, command: str, status: int, mark: str
) -> None:
    await node.nodes.inject("l4-0", fault)
    await node.start(user_data())
    done = await run(await node.connect(), command, check=False)
    assert done.exit_status == status
    assert mark.encode() in bytes(done.stdout or b"") + bytes(done.stderr or b"")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fault", "compose_text", "mark"),
    [
        ("disk_full", compose(), "no space left on device"),
        ("driver_missing", compose(), "driver not loaded"),
        ("port_taken", compose(), "port is already allocated"),
        (None, compose(image="vllm/vllm-openai:v9.9.9"), "manifest unknown"),
        (None, compose(image="nobody/vllm:v1"), "pull access denied"),
        (None, compose().replace("runtime:", "rumtime:"), "additional properties 'rumtime' not allowed"),
        (
            None,
            compose().replace("${PORT}", "${PROT:?set the port}", 1),
            "required variable PROT is missing a value",
        ),
    ],
)
async def test_what_stops_compose_fails_the_unit_and_stands_in_its_journal(
    node: Node, fault: str | None, compose_text: str, mark: str
) -> None:
    await node.nodes.inject("l4-0", fault)
    connection = await node.serve(user_data(compose_text))
    await says(connection, "systemctl is-active vllm.service", "failed")
    assert mark in await text(connection, "journalctl -u vllm.service -n 20 --no-pager -o cat")


@pytest.mark.parametrize(
    ("fault", "model", "mark"),
    [
        ("oom", MODEL, "CUDA out of memory"),
        ("exit_loop", MODEL, "Engine core initialization failed"),
        (None, "fault/token_refused", "Cannot access gated repo"),
        (None, "org/does-not-exist", "is not a valid model identifier"),
    ],
)
async def test_a_crashing_server_is_restarted_by_docker_and_its_log_says_why(
    node: Node, fault: str | None, model: str, mark: str
) -> None:
    await node.nodes.inject("l4-0", fault)
    connection = await node.serve(user_data(compose(model)))
    await says(connection, "docker inspect vllm --format '{{.State.Status}}'", "restarting")
    assert int(await text(connection, "docker inspect --format '{{.RestartCount}}' vllm")) > 0
    assert mark in await text(connection, "docker logs --tail 50 vllm")


async def test_healing_an_injected_fault_brings_the_server_up(node: Node) -> None:
    await node.nodes.inject("l4-0", "oom")
    connection = await node.serve()
    await says(connection, "docker ps", "restarting")
    await node.nodes.inject("l4-0", None)
    await says(connection, "docker ps", "healthy")
    assert await text(connection, "docker inspect --format '{{.RestartCount}}' vllm") == "0"


async def test_a_closed_ssh_port_opens_once_healed(node: Node) -> None:
    await node.nodes.inject("l4-0", "ssh_closed")
    await node.start(None)
    await until(lambda: _true(node.published))
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection(node.boot.address, node.port)
    await node.nodes.inject("l4-0", None)
    await node.connect()


async def test_a_mismatched_host_key_is_not_the_published_one(node: Node) -> None:
    await node.nodes.inject("l4-0", "host_key_mismatch")
    await node.start(None)
    served = (await node.connect()).get_server_host_key()
    assert served is not None
    assert served.export_public_key().split()[1] not in node.published["ssh-host-public-keys"]


async def test_an_unknown_fault_is_refused_with_the_known_ones(node: Node) -> None:
    with pytest.raises(ValueError, match=r"'ooom' is none of .*oom"):
        await node.nodes.inject("l4-0", "ooom")


async def test_changing_the_compose_file_and_restarting_serves_the_new_model(node: Node) -> None:
    connection = await node.serve()
    await says(connection, "docker ps", "healthy")
    new = compose("Qwen/Qwen3-4B").encode()
    await run(connection, "install -D -m 0644 /dev/stdin /opt/llm/docker-compose.yml", new)
    await run(connection, "systemctl restart vllm.service")
    await says(connection, "docker ps", "healthy")
    assert (await get(connection, 8000, "/v1/models", KEY)).json()["data"][0]["id"] == "Qwen/Qwen3-4B"


async def test_files_behave_as_under_coreutils(node: Node) -> None:
    await node.start(None)
    connection = await node.connect()
    assert (await run(connection, "cat /nowhere", check=False)).exit_status == 1
    await run(connection, "mkdir -p /opt/llm/releases/2")
    await run(connection, "install -m 0600 /dev/stdin /opt/llm/releases/2/.env", b"secret")
    await run(connection, "ln -sfn /opt/llm/releases/2 /opt/llm/current")
    assert await text(connection, "readlink /opt/llm/current") == "/opt/llm/releases/2"
    assert await text(connection, "cat /opt/llm/current/.env") == "secret"
    assert (await text(connection, "sha256sum /opt/llm/current/.env")).startswith("2bb80d537b1da3e3")
    assert (await run(connection, "test -e /opt/llm/current/.env")).exit_status == 0
    assert await text(connection, "ls /opt/llm") == "current\nreleases"
    await run(connection, "rm -f /opt/llm/current /opt/llm/absent")
    assert (await run(connection, "test -L /opt/llm/current", check=False)).exit_status == 1
    # Links and `..` never lead out of the machine.
    await run(connection, "ln -sfn ../../../../../../etc /escape")
    assert (await run(connection, "cat /escape/passwd", check=False)).exit_status == 1


async def test_gpus_and_disk_are_told_as_the_cloud_gave_them(node: Node) -> None:
    connection = await node.serve()
    await says(connection, "docker ps", "healthy")
    fields = "index,name,memory.total,memory.used,utilization.gpu"
    row = await text(connection, f"nvidia-smi --query-gpu={fields} --format=csv,noheader,nounits")
    index, name, total, used, _ = row.split(", ")
    assert (index, name, total) == ("0", "NVIDIA L4", "23034")
    assert 0.8 < int(used) / int(total) < 1
    header, available = (await text(connection, "df --output=avail -B1 /opt/llm")).split()
    assert header == "Avail"
    assert 100 * 10**9 < int(available) < 200 * 10**9


async def test_other_commands_run_for_real_with_streams_signals_and_status(node: Node) -> None:
    await node.start(None)
    connection = await node.connect()
    done = await run(connection, "seq 3; echo wrong >&2; exit 7", check=False)
    assert (done.stdout, done.stderr, done.exit_status) == (b"1\n2\n3\n", b"wrong\n", 7)
    assert await text(connection, "cat | tr a-z A-Z") == ""
    assert (await run(connection, "tr a-z A-Z", b"loud")).stdout == b"LOUD"
    process = await connection.create_process("sleep 1000")
    process.terminate()
    assert (await asyncio.wait_for(process.wait(), DEADLINE_S)).exit_status == 143


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("command", ["exec sleep 1000", "exec cat /dev/zero"])
async def test_closing_the_channel_ends_what_ran_in_it_and_nothing_else(node: Node, command: str) -> None:
    await node.start(None)
    connection = await node.connect()
    process = await connection.create_process(f"echo $$; {command}", encoding=None)
    pid = int(await process.stdout.readline())
    process.close()

    async def ended() -> bool:
        return not alive(pid)

    await until(ended)
    assert await text(connection, "hostname") == "l4-0"


async def test_logs_are_followed_until_the_reader_leaves(node: Node) -> None:
    connection = await node.serve()
    await says(connection, "docker ps", "healthy")
    async with connection.create_process("docker logs -f --tail 1 vllm") as process:
        assert "startup complete" in await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)
        await run(connection, "docker restart vllm")
        assert "Automatically detected" in await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)


async def test_the_readiness_gate_takes_a_light_node_to_the_end(node: Node, tmp_path: Path) -> None:
    await node.serve(user_data(power_state={"mode": "reboot", "condition": False}))
    key = tmp_path / "key"
    USER_KEY.write_private_key(key)
    key.chmod(0o600)
    target = Target(
        host=node.boot.address,
        host_keys=(node.published["ssh-host-public-keys"].decode().strip(),),
        port=node.port,
        private_key_path=key,
    )
    spec = GateSpec(node="l4-0", cloud="scaleway", target=target, served_model=MODEL, api_key=KEY)
    report = await check(spec, Progress("l4-0", stream=io.StringIO()))
    assert report.ready, report.diagnosis
    assert "docker" in {stage["stage"] for stage in report.boot}


async def test_fifty_nodes_in_one_process_all_serve(tmp_path: Path) -> None:
    async with make_nodes(tmp_path, 50) as nodes:
        connections = await asyncio.gather(*(node.serve() for node in nodes))
        await asyncio.gather(*(says(connection, "docker ps", "healthy") for connection in connections))


async def _true(value: object) -> bool:
    return bool(value)


async def test_a_disabled_unit_does_not_come_back_and_says_so(node: Node) -> None:
    connection = await node.serve()
    await run(connection, "systemctl disable vllm-agent.service")
    shown = await run(connection, "systemctl show -p UnitFileState --value vllm-agent.service")
    assert (shown.stdout or b"").strip() == b"disabled"
    await run(connection, "systemctl enable vllm-agent.service")
    assert ((await run(connection, "systemctl is-enabled vllm-agent.service")).stdout or b"") == b"enabled\n"


async def test_packages_that_a_script_holds_are_on_hold(node: Node) -> None:
    script = {"path": "/usr/local/lib/setup.sh", "content": "xargs apt-mark hold <<<names"}
    connection = await node.serve(b"#cloud-config\n" + yaml.safe_dump({"write_files": [script]}).encode())
    query = "dpkg-query --show --showformat='${db:Status-Abbrev}${Package}\\n' 'nvidia-*'"
    assert ((await run(connection, query)).stdout or b"") == b"ii nvidia-driver-580-server\n"
    held = (await run(connection, "apt-mark showhold")).stdout or b""
    assert b"nvidia-driver-580-server" in held


@pytest.mark.parametrize("turns", range(2, 10))
async def test_a_client_that_leaves_while_its_command_starts_leaves_nothing_behind(
    tmp_path: Path, turns: int
) -> None:
    # Holds the shell's pipes, and with them the end of the session, longer than any deadline.
    starting = asyncio.create_task(start_shell("sleep 600 & echo $$ >shell; sleep 600", tmp_path))
    for _ in range(turns):
        await asyncio.sleep(0)
    until = time.monotonic() + DEADLINE_S
    while not (tmp_path / "shell").exists():
        assert time.monotonic() < until
        time.sleep(0.01)  # noqa: ASYNC251  (the loop stands still, while the shell starts its child)
    starting.cancel()
    done, _ = await asyncio.wait({starting}, timeout=DEADLINE_S)
    assert done
    if starting.cancelled():
        return
    child = starting.result()
    os.killpg(child.pid, signal.SIGKILL)
    await child.communicate()
