"""A real Ray cluster, from the units' own command lines, on machines that are network namespaces."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from namespaces import DEADLINE_S, SCRIPTS, Machine, Service, installed, network

from fleet import ray
from fleet.settings.provision import RAY_VERSION

pytestmark = pytest.mark.vm

HEAD = "10.77.0.10"
ADDRESSES = {"ray-head": HEAD, "ray-w0": "10.77.0.20", "ray-w1": "10.77.0.21", "ray-w2": "10.77.0.22"}
TOKEN = "0123456789abcdef" * 4

RUN_ON_EACH = """
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

@ray.remote
def where():
    return ray.util.get_node_ip_address()

ray.init(address="auto", log_to_driver=False)
alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
print(*sorted(ray.get([where.options(scheduling_strategy=On(node, soft=False)).remote() for node in alive])))
"""
ASK = """
import json, urllib.request
with open("/var/lib/ray/token") as file:
    headers = {"Authorization": "Bearer " + file.read().strip()}
request = urllib.request.Request("http://127.0.0.1:8265/api/v0/nodes", headers=headers)
print(urllib.request.urlopen(request, timeout=30).read().decode())
"""
RAYLET_LOG = """
with open("/tmp/ray/session_latest/logs/raylet.out") as file:
    print(file.read()[-2000:])
"""
DIAL = """
import socket
try:
    socket.create_connection(("10.77.0.10", 8265), timeout=10)
    print("open")
except ConnectionRefusedError:
    print("refused")
"""
WITHOUT_TOKEN = """
import os
os.environ["RAY_AUTH_MODE"] = "disabled"
import ray
try:
    ray.init(address="10.77.0.10:6379")
    print("let in")
except Exception:
    print("kept out")
"""


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[dict[str, Machine]]:
    environment = installed(tmp_path / "setup", ray.requirements(RAY_VERSION, None))
    with network(tmp_path, ADDRESSES, environment) as machines:
        for machine in machines.values():
            (machine.files / "ray.env").write_text(ray.settings_file(machine.address, HEAD))
            (machine.files / "ray.token").write_text(TOKEN)
        yield machines


class Cluster:
    def __init__(self, machines: dict[str, Machine]) -> None:
        self._machines = machines
        self.services: dict[str, Service] = {}

    def start(self, name: str) -> Service:
        unit = ray.HEAD_UNIT if name == "ray-head" else ray.WORKER_UNIT
        self.services[name] = Service(self._machines[name], unit)
        return self.services[name]

    def stop(self, name: str) -> None:
        self.services.pop(name).stop()

    def alive(self) -> set[str]:
        """Addresses of the members, as the head's dashboard tells them."""
        return set(ray.members(json.loads(self.services["ray-head"].python(ASK))))

    def wait_for(self, *names: str) -> None:
        wanted = {ADDRESSES[name] for name in names}
        until(lambda: self.alive() == wanted, f"the members to be {', '.join(names)}", self)

    def logs(self) -> str:
        return "\n".join(
            f"{each.machine.log(each.unit)[-1000:]}\n{each.python(RAYLET_LOG)}"
            for each in self.services.values()
        )


def until(condition: Callable[[], bool], what: str, cluster: Cluster) -> None:
    deadline, last = time.monotonic() + DEADLINE_S, None
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (AssertionError, OSError) as error:  # not up yet
            last = error
        time.sleep(2)
    pytest.fail(f"waited {DEADLINE_S:.0f} s for {what}; {last}\n{cluster.logs()}")


@pytest.fixture
def cluster(machines: dict[str, Machine]) -> Iterator[Cluster]:
    cluster = Cluster(machines)
    yield cluster
    for service in cluster.services.values():
        service.stop()


def test_a_head_and_its_workers_form_a_cluster_that_heals_and_changes_its_size(cluster: Cluster) -> None:
    head, worker, _ = (cluster.start(name) for name in ("ray-head", "ray-w0", "ray-w1"))
    cluster.wait_for("ray-head", "ray-w0", "ray-w1")
    assert head.python(RUN_ON_EACH).split() == [HEAD, "10.77.0.20", "10.77.0.21"]
    assert worker.python(DIAL).strip() == "refused", "the dashboard answers on the head's loopback alone"
    assert worker.python(WITHOUT_TOKEN).strip() == "kept out"

    # A worker dies: its unit brings it back.
    worker.kill()
    until(lambda: worker.starts == 2, "the unit to start again", cluster)
    cluster.wait_for("ray-head", "ray-w0", "ray-w1")

    # One more, and none of the others starts anew.
    before = {name: service.starts for name, service in cluster.services.items()}
    cluster.start("ray-w2")
    cluster.wait_for("ray-head", "ray-w0", "ray-w1", "ray-w2")
    assert {name: cluster.services[name].starts for name in before} == before

    # The head dies: its workers find the new one by themselves.
    head.kill()
    until(lambda: head.starts == 2, "the head's unit to start again", cluster)
    cluster.wait_for("ray-head", "ray-w0", "ray-w1", "ray-w2")
    assert len(head.python(RUN_ON_EACH).split()) == 4

    # Two are to go: they leave at once and do not come back, before anybody takes the machines away.
    staying = f"{HEAD}\n10.77.0.20\n"
    script = (SCRIPTS / ray.RETIRE_SCRIPT).read_text()
    head.python(f"open({ray.MEMBERS_PATH!r}, 'w').write({staying!r})\n{script}")
    for name in ("ray-w1", "ray-w2"):
        assert cluster.services[name].held.wait(DEADLINE_S)
        cluster.stop(name)
    cluster.wait_for("ray-head", "ray-w0")
    assert head.python(RUN_ON_EACH).split() == [HEAD, "10.77.0.20"]
