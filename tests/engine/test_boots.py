"""From `pulumi up` to a generated token on machines that really boot, one for each cloud.

The engine is real, the user data is the program's own, and so are cloud-init, apt, dockerd, compose, systemd
and the reboot. A boot takes minutes: everything to be seen of one is looked at in one test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from fleets import SECRETS, Fleet
from harness import Stack, wait_for
from machines import Node, booting_fleet, up

from fleet import observability
from fleet.settings.observability import Observability

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3000)]

DRIVER = "nvidia-driver-580-server"


def on(cloud_name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("fleet", [cloud_name], indirect=True)


@pytest.fixture
def fleet(pulumi: Callable[..., Stack], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """This project's stack with one node of a cloud, whose machine really boots."""
    with booting_fleet(pulumi, tmp_path, request.param) as fleet:
        yield fleet


def first_up(fleet: Fleet) -> Node:
    fleet.config["serving"] |= {"webui": True, "environment": {"VLLM_SIM_SPEED": "0"}}
    assert "100 % READY" in up(fleet).stdout
    return Node(fleet)


def look_inside(node: Node) -> None:
    """What holds of every node that is ready."""
    assert '"status": "done"' in node.run("cloud-init status --format json")
    assert node.run("systemctl --failed --plain --no-legend") == ""
    units = node.run("systemctl show --property=ActiveState,SubState --value vllm.service")
    assert units.split() == ["active", "exited"]
    assert node.run("docker ps --format '{{.Names}}' | sort").split() == ["open-webui", "vllm"]
    listening = node.run("ss --no-header --listening --tcp --numeric | awk '{print $4}'").split()
    outside = {each for each in listening if not each.startswith("127.")}
    assert {each.rpartition(":")[2] for each in outside} == {"22"}
    assert {"127.0.0.1:8000", "127.0.0.1:3000", "127.0.0.1:8080"} <= set(listening)
    assert node.run("stat --format '%a %U' /opt/llm/.env") == "600 root\n"
    # The metadata service answers the machine, and no container of it.
    asked = "curl -s --max-time 5 -o /dev/null http://169.254.169.254/"
    assert node.attempt(asked).returncode == 0
    for container in ("vllm", "open-webui"):
        assert node.attempt(f"docker exec {container} {asked}").returncode == 28
    capabilities = node.run("docker exec vllm cat /proc/1/status")
    assert "CapBnd:\t0000000000000000\n" in capabilities
    assert "NoNewPrivs:\t1\n" in capabilities
    held = node.run("apt-mark showhold").split()
    assert {DRIVER, "nvidia-container-toolkit", "docker.io"} <= set(held)
    # Root file system grown to its volume.
    size = int(node.run("df --output=size --block-size=1 / | tail -1"))
    assert size > 0.92 * node.outputs["root_volume_gb"] * 10**9


def talk(node: Node) -> None:
    """A completion by OpenAI's own client, and Open WebUI's page."""
    with node.tunnel():
        client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=SECRETS["api_key"], timeout=120)
        completion = client.chat.completions.create(
            model=node.outputs["model"], messages=[{"role": "user", "content": "Hello"}], max_tokens=8
        )
        assert completion.choices[0].message.content
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="another-key-0123456789").models.list()
        assert "Open WebUI" in httpx.get("http://127.0.0.1:3000/", timeout=60).text


def monitor(node: Node) -> None:
    """Containers in the network of the monitoring read metrics of the node's loopback, and in no other."""
    settings = Observability(enabled=True)
    files = observability.files("a", 8000, settings)
    units = {path: text for path, text in files.items() if path.startswith("/")}
    for path, text in units.items():
        node.run(f"cat >{path} <<'END'\n{text}END\n")
    sockets = " ".join(Path(path).name for path in units if path.endswith(".socket"))
    node.run(f"systemctl daemon-reload && systemctl enable --now {sockets}")
    network = f"--subnet {observability.SUBNET} --gateway {observability.GATEWAY}"
    node.run(f"docker network create {network} watching")
    ask = "--rm --entrypoint curl vllm/vllm-openai:v0.9.2 -fsS --max-time 30"
    for watched, port, metric in (
        ("agent", 8080, "vllm_fleet_docker_up"),
        ("vllm", 8000, "vllm:num_requests"),
    ):
        address = f"http://{observability.GATEWAY}:{port}/metrics"
        assert metric in node.run(f"docker run --network watching {ask} {address}"), watched
        assert node.attempt(f"docker run --network bridge {ask} http://127.0.0.1:{port}/metrics").returncode


def restart(node: Node) -> None:
    """A reboot that nobody prepared: the node comes back serving, by itself."""
    before = node.boots()
    node.attempt("systemctl reboot")

    def back() -> bool:
        done = node.attempt("journalctl --list-boots --quiet && curl -fsS http://127.0.0.1:8000/health")
        return done.returncode == 0 and len(done.stdout.splitlines()) == before + 1

    wait_for(back, "the node to serve again", timeout_s=1200)


@on("linode")
def test_a_linode_node_installs_everything_reboots_once_and_serves_again_after_another(fleet: Fleet) -> None:
    node = first_up(fleet)
    look_inside(node)
    assert node.boots() == 2
    talk(node)
    restart(node)
    look_inside(node)
    talk(node)
    assert fleet.run("preview", "--expect-no-changes").changes == {}


@on("scaleway")
def test_a_scaleway_node_proves_itself_by_its_published_key_and_needs_no_reboot(fleet: Fleet) -> None:
    node = first_up(fleet)
    look_inside(node)
    assert node.boots() == 1
    talk(node)
    monitor(node)


@on("aws")
def test_an_aws_node_is_entered_as_its_images_user_and_needs_no_reboot(fleet: Fleet) -> None:
    node = first_up(fleet)
    look_inside(node)
    assert node.boots() == 1
    talk(node)
