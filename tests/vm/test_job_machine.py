"""A GPU job's user data on a machine that really boots: it goes off by itself, whatever happens.

One machine boots with the very user data and waits in the job's script; every trial starts from there. Its
share is a second disk, which the stand-in for EFS's mount helper mounts and this host reads when the machine
is off.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fleet.jobs.userdata import UNIT, JobSpec
from simcloud.vm import Snapshot
from simcloud.vm.host import run
from simcloud.vm.testing import Guest, Lab

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1500)]

SPEC = JobSpec(
    id="job-1",
    pipeline="test-jobs",
    script="app/work.sh",
    args=("one",),
    minutes=5,
    type="g6e.xlarge",
    price_per_hour=1.861,
    region="us-east-1",
    file_system="fs-1",
    mount_path="/home/ec2-user/recordings",
    log_group="/test",
)

# What Amazon Linux brings and the machine's Debian does not: the default user, and EFS's mount helper.
AMAZON_LINUX = """\
#cloud-boothook
#!/bin/sh
id ec2-user 2>/dev/null || useradd --create-home ec2-user
cat >/usr/sbin/mount.efs <<'END'
#!/bin/sh
# mount.efs fs-…:/ PATH -o rw,tls
case "$1,$4" in fs-1:/,*tls*) exec mount -t ext4 /dev/vdb "$2" ;; esac
exit 1
END
chmod +x /usr/sbin/mount.efs
"""

WORK = """\
echo "begun by $(id -un) with $1"
until [ -e /run/go ]; do sleep 0.2; done
echo "going on"
. /run/go
"""


def user_data() -> bytes:
    """The job's, with what makes the machine Amazon's beside it."""
    both = MIMEMultipart()
    both.attach(MIMEText(AMAZON_LINUX, "cloud-boothook"))
    both.attach(MIMEText(SPEC.cloud_config(), "cloud-config"))
    return both.as_bytes()


@dataclass
class Trial:
    """A machine whose script waits to be told what to do."""

    lab: Lab
    guest: Guest
    directory: Path

    async def script_does(self, *lines: str) -> None:
        await self.guest.run(f"cat >/run/go.new <<'END'\n{chr(10).join(lines)}\nEND\nmv /run/go.new /run/go")

    async def off(self) -> dict[str, Any]:
        """The result on the share, when the machine has gone off by its deadline."""
        await self.lab.backend.wait_off(
            self.guest.boot.server_id, deadline_s=SPEC.minutes * 60 * self.guest.speed_factor
        )
        result: dict[str, Any] = json.loads(self.shared("result.json"))
        return result

    def shared(self, name: str) -> str:
        """A file of the job on the share, read from the disk of a machine that is off."""
        raw = self.directory / "share.raw"
        run(["qemu-img", "convert", "-O", "raw", self.guest.share, raw], timeout_s=60)
        # The journal of a machine that lost its power is played back first.
        run(["sh", "-c", 'e2fsck -p "$0" || [ $? -lt 4 ]', raw], timeout_s=60)
        return run(["debugfs", "-R", f"cat /jobs/{SPEC.id}/{name}", raw], timeout_s=60).decode()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def waiting(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Guest, Snapshot]]:
    """A machine from its first second to the point where its script waits, and its state then."""
    directory = tmp_path_factory.mktemp("share")
    (directory / "files/app").mkdir(parents=True)
    (directory / "files/app/work.sh").write_text(WORK)
    raw, share = directory / "share.raw", directory / "share.qcow2"
    run(["mkfs.ext4", "-q", "-d", directory / "files", raw, "64M"], timeout_s=60)
    run(["qemu-img", "convert", "-O", "qcow2", raw, share], timeout_s=60)
    guest = await lab.boot("aws", user_data(), share)
    begun = f"grep begun {SPEC.mount_path}/jobs/{SPEC.id}/log"
    assert await guest.until(begun, deadline_s=300) == "begun by ec2-user with one\n"
    yield guest, await lab.snapshot(guest, "job-waits")


@pytest_asyncio.fixture(loop_scope="session")
async def trial(lab: Lab, waiting: tuple[Guest, Snapshot], tmp_path: Path) -> Trial:
    original, snapshot = waiting
    guest = await lab.boot_from(snapshot, original)
    await guest.until("true", deadline_s=60)
    return Trial(lab, guest, tmp_path)


async def test_a_script_that_succeeds(trial: Trial) -> None:
    await trial.script_does("exit 0")
    result = await trial.off()
    assert (result["reason"], result["exit_code"]) == ("succeeded", 0)
    assert result["cost"] == round(1.861 * result["seconds"] / 3600, 4)
    assert trial.shared("log").endswith("begun by ec2-user with one\ngoing on\nvllm-fleet: succeeded\n")


async def test_a_script_that_fails(trial: Trial) -> None:
    await trial.script_does("exit 3")
    result = await trial.off()
    assert (result["reason"], result["exit_code"]) == ("script-failed", 3)
    assert "going on" in trial.shared("log")


async def test_a_script_that_takes_too_long(trial: Trial) -> None:
    await trial.script_does("trap '' TERM", "sleep 3600")
    result = await trial.off()
    assert result["reason"] == "timeout"
    assert result["seconds"] <= SPEC.minutes * 60
    assert "going on" in trial.shared("log")


async def test_a_share_that_is_lost(trial: Trial) -> None:
    await trial.script_does("sleep 3600")
    await trial.guest.run(f"umount --lazy {SPEC.mount_path}")
    result = await trial.off()
    assert result["reason"] == "share-lost"
    assert "begun" in trial.shared("log")


async def test_a_runner_that_is_killed(trial: Trial) -> None:
    await trial.guest.run(f"systemctl kill --kill-whom=main --signal=KILL {UNIT}")
    result = await trial.off()
    assert (result["reason"], result["exit_code"]) == ("runner-killed", None)
    assert "begun" in trial.shared("log")


async def test_a_runner_that_hangs_does_not_keep_the_machine_from_its_deadline(trial: Trial) -> None:
    await trial.guest.run(f"systemctl kill --signal=STOP {UNIT}")
    timer = await trial.guest.run("systemctl show -p TimersMonotonic vllm-fleet-job-deadline.timer")
    assert f"OnBootUSec={SPEC.minutes}min" in timer
    # What it starts then, started now.
    deadline = "systemctl start vllm-fleet-job-deadline.service"
    await trial.guest.run(f"systemd-run --on-active=2 {deadline}")
    await trial.lab.backend.wait_off(trial.guest.boot.server_id, deadline_s=60 * trial.guest.speed_factor)
    assert "begun" in trial.shared("log")
