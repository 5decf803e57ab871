"""The provisioning phases on a machine that has nothing, with real apt, pip, systemd, restart and SSH."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fleet.progress import Progress
from fleet.provision.phases import phases_of
from fleet.provision.process import Outcome, Report, provision
from fleet.provision.spec import ProvisionSpec
from fleet.settings import Provision
from fleet.ssh import Target
from simcloud.vm.provisioning import MINICONDA
from simcloud.vm.testing import SSH_PORT, Guest, Lab

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1800)]

FIRST_BOOT = b"""#cloud-config
runcmd:
- [mkdir, -p, /var/lib/vllm-fleet]
- [useradd, dev]
"""

WATCHED = "/etc /opt /usr /srv /var/lib/dpkg"


@dataclass
class Bench:
    """A machine, and what it is to be given."""

    guest: Guest
    target: Target
    here: Path
    given: dict[str, Any]

    async def run(self, *, plan: bool = False, **changed: object) -> Report:
        wanted = Provision.model_validate({**self.given, **changed})
        spec = ProvisionSpec("node", "linode", self.target, phases_of(wanted, "root"))
        return await provision(spec, Progress("node"), plan=plan)

    def script(self, name: str, text: str) -> str:
        path = self.here / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        return str(path)

    async def touched_since(self, mark: str) -> str:
        return await self.guest.run(f"find {WATCHED} -newer {mark} -not -type d")


def _fingerprint(key: Path) -> str:
    show = ["gpg", "--batch", "--show-keys", "--with-colons", str(key)]
    listed = subprocess.run(show, check=True, capture_output=True, text=True, timeout=60).stdout
    return next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))


def outcomes(report: Report) -> dict[str, Outcome]:
    return {phase.phase: phase.outcome for phase in report.phases}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bench(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    here = tmp_path_factory.mktemp("provision")
    archive = lab.ground.image.archive
    installer = archive / f"repo.anaconda.com/miniconda/Miniconda3-{MINICONDA}-Linux-x86_64.sh"
    fingerprint = _fingerprint(archive / "keys/nvidia.asc")
    guest = await lab.boot("linode", FIRST_BOOT)
    host_key = await guest.until("cat /etc/ssh/ssh_host_ed25519_key.pub", deadline_s=240)
    guest.key.write_private_key(here / "id")
    (here / "id").chmod(0o600)
    (here / "prompts").mkdir()
    (here / "prompts/one.txt").write_text("Say hello.\n")
    bench = Bench(guest, Target(guest.boot.address, (host_key,), "root", SSH_PORT, here / "id"), here, {})
    bench.given = {
        "packages": True,
        "python": {"packages": ["tomli==2.3.0"]},
        "conda": {
            "sha256": hashlib.sha256(installer.read_bytes()).hexdigest(),
            "environments": [{"name": "train", "python": "3.11", "packages": ["numpy=2.1"]}],
        },
        "docker": {"users": ["dev"]},
        "gpu": {"detect": "force", "key_fingerprint": fingerprint},
        "ray": {"version": "2.49.2"},
        "environment": {"DATASET": "/srv/my data"},
        "working_directory": "/srv/work",
        "files": [{"source": f"{here}/prompts/", "destination": "/srv/shared/prompts"}],
        "scripts": [bench.script("note.sh", 'echo "$DATASET in $PWD" >>/srv/note')],
    }
    yield bench


REACHED = {"machine": Outcome.UNCHANGED, "ssh": Outcome.UNCHANGED}
PHASES = ("packages", "python", "conda", "docker", "gpu", "ray", "environment")
STEPS = (*PHASES, "files /srv/shared/prompts", "scripts note.sh")


async def test_a_plan_names_what_would_run_and_changes_nothing(bench: Bench) -> None:
    await bench.guest.until("cloud-init status --wait && touch /run/before-plan", deadline_s=240)
    report = await bench.run(plan=True)
    assert report.failure_text() == ""
    assert outcomes(report) == REACHED | dict.fromkeys(STEPS, Outcome.WOULD_RUN)
    assert await bench.touched_since("/run/before-plan") == ""


async def test_every_phase_is_applied_and_a_second_run_changes_nothing(bench: Bench) -> None:
    report = await bench.run()
    assert report.failure_text() == ""
    assert outcomes(report) == REACHED | dict.fromkeys(STEPS, Outcome.APPLIED)
    run = bench.guest.run
    shell = "echo $DATASET; pwd; echo $LD_LIBRARY_PATH; command -v nvcc; type -t conda; python -m tomli.none"
    assert (await run(f"bash -lc {shlex.quote(shell)} 2>&1 || true")).splitlines() == [
        *("/srv/my data", "/srv/work", "/usr/local/cuda-12.2/lib64", "/usr/local/cuda-12.2/bin/nvcc"),
        *("function", "/opt/python/bin/python: No module named tomli.none"),
    ]
    assert (await run("nvidia-smi --query-gpu=driver_version --format=csv,noheader")).startswith("535.")
    assert "nvidia-driver-535-server" in await run("apt-mark showhold")
    assert "docker" in (await run("id -nG dev")).split()
    assert await run("/opt/ray/bin/ray --version") == "ray, version 2.49.2\n"
    assert await run("cat /srv/shared/prompts/one.txt /srv/note") == "Say hello.\n/srv/my data in /srv/work\n"

    await run("touch /run/before-second")
    second = await bench.run()
    assert set(outcomes(second).values()) == {Outcome.UNCHANGED}
    assert await bench.touched_since("/run/before-second") == ""


@pytest.mark.parametrize(
    ("phase", "wrong", "said"),
    [
        ("packages", {"packages": ["no-such-package"]}, "have no no-such-package"),
        ("python", {"python": {"version": "3.9"}}, "have no python3.9"),
        ("conda", {"conda": {"environments": [{"name": "x", "packages": ["nothing=1"]}]}}, "nothing=1"),
        ("docker", {"docker": {"version": "20.10"}}, "not 20.10"),
        ("gpu", {"gpu": {"detect": "force", "driver_branch": 550}}, "has driver 535, not 550"),
        ("ray", {"ray": {"version": "9.9.9"}}, "ray[default]==9.9.9"),
    ],
)
async def test_a_phase_that_cannot_be_says_why_and_ends_the_run(
    bench: Bench, phase: str, wrong: dict[str, Any], said: str
) -> None:
    if phase == "conda":
        wrong["conda"]["sha256"] = bench.given["conda"]["sha256"]
    report = await bench.run(**wrong)
    failed = report.failed
    assert failed is not None and failed.phase == phase
    text = report.failure_text()
    assert said in text and "fix:" in text and "command:" in text, text
    after = list(outcomes(report).values())[list(outcomes(report)).index(phase) + 1 :]
    assert set(after) == {Outcome.NOT_REACHED}


async def test_a_script_that_fails_is_quoted_and_a_rerun_goes_on_with_it(bench: Bench) -> None:
    first = bench.given["scripts"][0]
    broken = bench.script("weights.sh", "echo fetching the weights\necho no room >&2\nexit 1")
    report = await bench.run(scripts=[first, broken])
    assert report.failed is not None and report.failed.failure is not None
    assert (report.failed.phase, report.failed.failure.status) == ("scripts weights.sh", "exit status 1")
    assert report.failed.failure.output == ("fetching the weights", "no room")
    bench.script("weights.sh", "echo fetched >>/srv/fetched")
    again = await bench.run(scripts=[first, broken])
    changed = {phase for phase, outcome in outcomes(again).items() if outcome is not Outcome.UNCHANGED}
    assert changed == {"scripts weights.sh"}


async def test_a_script_whose_connection_is_cut_goes_on_and_is_not_run_twice(bench: Bench) -> None:
    cut = bench.script(
        "cut.sh", "echo begun >>/srv/cut\npkill -f 'sshd.*: root' || true\nsleep 5\necho ended >>/srv/cut"
    )
    report = await bench.run(scripts=[bench.given["scripts"][0], cut])
    assert report.failure_text() == ""
    assert await bench.guest.run("cat /srv/cut") == "begun\nended\n"
