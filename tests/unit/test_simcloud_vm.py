"""What can be set from outside about virtual machines, before any runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from simcloud.app import make_app
from simcloud.vm import FAULTS, VmNodes
from simcloud.vm.mirrors import Condition, Fault, Mirror


@pytest.fixture
def backend() -> VmNodes:
    return VmNodes(ssh_port=10022)


@pytest.fixture
def client(backend: VmNodes, tmp_path: Path) -> Iterator[TestClient]:
    app = make_app(tmp_path, clouds=lambda _: [], backend=backend, ssh_port=10022, speed=0)
    with TestClient(app, base_url="http://127.0.0.1/_sim") as made:
        yield made


def test_a_mirror_is_slowed_for_one_machine_alone_and_before_it_exists(
    client: TestClient, backend: VmNodes
) -> None:
    reply = client.put("/mirrors/a/registry", json={"bandwidth": 1000, "fault": "cut", "path": "/blobs/"})
    assert reply.status_code == 200
    assert backend.mirrors("a")[Mirror.REGISTRY] == Condition(bandwidth=1000, fault=Fault.CUT, path="/blobs/")
    assert client.get("/mirrors/a").json()["apt"] == Condition().model_dump()
    assert backend.mirrors("b")[Mirror.REGISTRY] == Condition()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/mirrors/a/floppy", {}, 404),
        ("/mirrors/a/apt", {"bandwidth": -1}, 400),
        ("/mirrors/a/apt", {"speed": 1}, 400),
        ("/nodes/a/fault", {"fault": "nonsense"}, 400),
    ],
)
def test_what_there_is_not_cannot_be_set(client: TestClient, path: str, body: object, status: int) -> None:
    assert client.put(path, json=body).status_code == status


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_injected_and_healed(client: TestClient, fault: str) -> None:
    for value in (fault, None):
        assert client.put("/nodes/a/fault", json={"fault": value}).status_code == 200
    conditions = client.get("/mirrors/a").json()
    assert {each["fault"] for each in conditions.values()} == {None}
