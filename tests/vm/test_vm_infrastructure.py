"""The machines themselves: that they boot as the clouds' do, and fail as they are told to.

The user data here is written for these tests, after the plainest way to set up such a node: install
everything, then reboot, then let systemd start the containers.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import yaml

from fleet.userdata import FILES
from simcloud.vm import Snapshot
from simcloud.vm.mirrors import Condition, Fault, Mirror
from simcloud.vm.testing import Guest, Lab

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

COMPOSE = {
    "services": {
        "vllm": {
            "image": "vllm/vllm-openai:v0.9.2",
            "container_name": "vllm",
            "runtime": "nvidia",
            "restart": "unless-stopped",
            "ports": ["127.0.0.1:8000:8000"],
            "command": ["--model", "Qwen/Qwen3-8B-AWQ", "--max-model-len", "16384"],
            "environment": {"VLLM_SIM_SPEED": "0"},
        },
        "open-webui": {
            "image": "ghcr.io/open-webui/open-webui:v0.6.18",
            "container_name": "open-webui",
            "ports": ["127.0.0.1:3000:8080"],
        },
    }
}

UNIT = """\
[Unit]
After=docker.service
Requires=docker.service

[Service]
Type=oneshot
RemainAfterExit=yes
WorkingDirectory=/opt/llm
ExecStart=/usr/bin/docker compose up -d
ExecStop=/usr/bin/docker compose down

[Install]
WantedBy=multi-user.target
"""

SERVING = "curl -fsS http://127.0.0.1:8000/health"


def serial_install(toolkit_key: str) -> bytes:
    """User data of a node that brings nothing: driver, Docker and toolkit by apt, then one reboot."""
    document = {
        "apt": {
            "sources": {
                "nvidia-container-toolkit": {
                    "source": "deb [signed-by=$KEY_FILE] "
                    "https://nvidia.github.io/libnvidia-container/stable/deb/amd64 /",
                    "key": toolkit_key,
                }
            }
        },
        "package_update": True,
        "packages": [
            "docker.io",
            "docker-compose-v2",
            "nvidia-driver-580-server",
            "nvidia-container-toolkit",
        ],
        "write_files": [
            {"path": "/etc/systemd/system/vllm.service", "content": UNIT},
            {"path": "/opt/llm/docker-compose.yml", "content": yaml.safe_dump(COMPOSE)},
            {"path": "/opt/llm/umlaut ä.txt", "content": "quotes ' \" $(false) 世界\n"},
        ],
        "runcmd": [
            ["nvidia-ctk", "runtime", "configure", "--runtime=docker"],
            ["apt-mark", "hold", "nvidia-driver-580-server"],
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", "vllm.service"],
        ],
        "power_state": {"mode": "reboot", "condition": True},
    }
    return b"#cloud-config\n" + yaml.safe_dump(document, allow_unicode=True).encode()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def installed(lab: Lab) -> AsyncIterator[tuple[Guest, Snapshot]]:
    """A Linode machine that went from nothing to serving, and its state then."""
    guest = await lab.boot("linode", serial_install((FILES / "nvidia-container-toolkit.asc").read_text()))
    await guest.until(SERVING, deadline_s=600)
    yield guest, await lab.snapshot(guest, "serving")


@pytest_asyncio.fixture(loop_scope="session")
async def serving(lab: Lab, installed: tuple[Guest, Snapshot]) -> AsyncIterator[Guest]:
    """A machine of its own for each test, started where the installed one was."""
    original, snapshot = installed
    guest = await lab.boot_from(snapshot, original)
    await guest.until("true", deadline_s=60)
    yield guest
    await lab.backend.inject(guest.boot.name, None)


async def test_a_plain_machine_installs_by_apt_reboots_once_and_serves(
    installed: tuple[Guest, Snapshot],
) -> None:
    guest, _ = installed
    assert '"status": "done"' in await guest.run("cloud-init status --format json")
    assert len((await guest.run("journalctl --list-boots -q")).splitlines()) == 2
    assert (await guest.run("systemctl show -P ActiveState -P SubState vllm")).split() == ["active", "exited"]
    assert "Open WebUI" in await guest.run("curl -fsS http://127.0.0.1:3000/")
    assert await guest.run("apt-mark showhold") == "nvidia-driver-580-server\n"
    query = "nvidia-smi --query-gpu=index,name,memory.total --format=csv,noheader,nounits"
    assert await guest.run(query) == "0, NVIDIA L4, 23034\n1, NVIDIA L4, 23034\n"


async def test_the_machine_gets_the_very_bytes_of_the_user_data(serving: Guest) -> None:
    assert serving.boot.user_data is not None
    received = await serving.run("base64 -w0 /var/lib/cloud/instance/user-data.txt")
    assert base64.b64decode(received) == serving.boot.user_data
    assert await serving.run("cat '/opt/llm/umlaut ä.txt'") == "quotes ' \" $(false) 世界\n"


async def test_the_file_system_grows_to_the_volume(serving: Guest) -> None:
    size = int((await serving.run("df --output=size -B1 / | tail -1")).strip())
    assert size > 185 * 10**9


async def test_nothing_but_ssh_listens_outside_and_nothing_but_the_mirrors_is_reached(serving: Guest) -> None:
    listening = (await serving.run("ss -Hltn | awk '{print $4}'")).split()
    assert {address.rsplit(":", 1)[1] for address in listening if not address.startswith("127.")} == {"22"}
    assert {"127.0.0.1:8000", "127.0.0.1:3000"} <= set(listening)
    outside = await serving.attempt("curl -sS -m 5 http://169.254.0.2:22/")
    assert outside.exit_status != 0


async def test_an_unasked_reboot_comes_back_serving(serving: Guest) -> None:
    boot = await serving.run("cat /proc/sys/kernel/random/boot_id")
    await serving.attempt("systemctl reboot")
    again = f"[ $(cat /proc/sys/kernel/random/boot_id) != {boot.strip()} ] && {SERVING}"
    await serving.until(again, deadline_s=300)


async def test_mirrors_fail_as_they_are_told_and_heal(lab: Lab, serving: Guest) -> None:
    mirrors = lab.backend.mirrors(serving.boot.name)
    pull = "docker pull -q vllm/vllm-openai:v0.10.0"
    # apt keeps what it has fetched.
    install = "apt-get clean && apt-get install -qy --reinstall nvidia-utils-580-server 2>&1"

    async def refused(command: str, mirror: Mirror, fault: Fault, path: str = "") -> str:
        mirrors[mirror] = Condition(fault=fault, path=path)
        done = await serving.attempt(command)
        assert done.exit_status != 0
        mirrors[mirror] = Condition()
        return f"{done.stdout}{done.stderr}"

    assert "no basic auth credentials" in await refused(pull, Mirror.REGISTRY, Fault.UNAUTHORIZED)
    assert "EOF" in await refused(pull, Mirror.REGISTRY, Fault.DOWN)
    assert "404" in await refused(install, Mirror.APT, Fault.NOT_FOUND, "nvidia-utils")
    await refused(install, Mirror.APT, Fault.DOWN)
    await serving.run(pull)
    await serving.run(install)


async def test_a_machine_can_lose_its_gpu_and_its_docker_daemon(lab: Lab, serving: Guest) -> None:
    await lab.backend.inject(serving.boot.name, "driver_missing")
    assert (await serving.attempt("nvidia-smi")).exit_status == 9
    started = await serving.attempt("docker restart vllm")
    assert "driver not loaded" in str(started.stderr)
    await lab.backend.inject(serving.boot.name, "docker_dead")
    assert (await serving.attempt("systemctl restart docker.service")).exit_status != 0
    await lab.backend.inject(serving.boot.name, None)
    # It took its containers' unit along, which took the containers away.
    await serving.run("systemctl reset-failed docker.service; systemctl start vllm.service")
    await serving.until(SERVING, deadline_s=60)


async def test_a_machine_that_never_comes_back_from_its_reboot_is_gone(lab: Lab, serving: Guest) -> None:
    await lab.backend.inject(serving.boot.name, "reboot_never_returns")
    await serving.attempt("systemctl reboot")
    await lab.backend.wait_off(serving.boot.server_id, deadline_s=120)


async def test_a_scaleway_machine_brings_the_driver_and_publishes_its_host_key(lab: Lab) -> None:
    publish = "curl -fsS --local-port 1-1023 -X PATCH --data-binary @/etc/ssh/ssh_host_ed25519_key.pub {}"
    key = "http://169.254.42.42/user_data/ssh-host-public-keys"
    guest = await lab.boot("scaleway", f"#!/bin/sh\n{publish.format(key)}\n".encode())
    await guest.until("cloud-init status --wait", deadline_s=240)
    own = await guest.run("cat /etc/ssh/ssh_host_ed25519_key.pub")
    assert guest.published == {"ssh-host-public-keys": own.encode()}
    assert (await guest.attempt(f"curl -fsS --local-port 2000-3000 {key}")).exit_status != 0
    assert "DataSourceScaleway" in await guest.run(
        "cloud-init query cloud_name; cat /run/cloud-init/result.json"
    )
    await guest.run("nvidia-smi && docker info --format '{{json .Runtimes}}' | grep nvidia")


async def test_an_aws_machine_is_found_by_ec2s_own_means(lab: Lab) -> None:
    guest = await lab.boot("aws", b"#!/bin/sh\ntouch /run/user-data-ran\n")
    await guest.until("cloud-init status --wait && test -e /run/user-data-ran", user="ubuntu", deadline_s=240)
    assert "DataSourceEc2" in await guest.run("cat /run/cloud-init/result.json")
    # It ends with 2 where anything was amiss.
    await guest.run("cloud-init status")
