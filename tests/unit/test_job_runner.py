"""The runner of a job machine, as its user data installs it, on a light machine; its share is a folder."""

from __future__ import annotations

import ast
import asyncio
import gzip
import json
import os
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet.jobs.userdata import JobSpec
from fleet.userdata import FILES, UserDataTooLarge
from simcloud.aws.jobs import JobBoot, JobMachines

SPEC = JobSpec(
    id="job-1",
    pipeline="test-jobs",
    script="app/work.sh",
    args=("two words", "$HOME"),
    minutes=16,
    type="g6e.xlarge",
    price_per_hour=1.861,
    region="us-east-1",
    file_system="fs-1",
    mount_path="/home/ec2-user/recordings",
    log_group="/test",
)


@dataclass
class Trial:
    """A light machine and its share."""

    directory: Path
    spec: JobSpec = SPEC
    age_s: float = 0.0
    """How long ago the machine was launched."""
    off: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        (self.share / "app").mkdir(parents=True)
        self.machines = JobMachines(self._off)

    async def _off(self, _: str) -> None:
        self.off.set()

    @property
    def share(self) -> Path:
        return self.directory / "shares/fs-1"

    @property
    def disk(self) -> Path:
        return self.directory / "machine/root"

    def script(self, *lines: str) -> None:
        (self.share / "app/work.sh").write_text("\n".join(lines))

    def start(self) -> None:
        self.machines.start(
            JobBoot(
                instance_id="i-1",
                user_data=self.spec.user_data(),
                launched=time.time() - self.age_s,
                directory=self.directory / "machine",
                shares=self.directory / "shares",
                api_url="http://127.0.0.1:9/aws",
                access_key=None,
            )
        )

    async def end(self) -> dict[str, Any]:
        """The result, once the machine has gone off."""
        await asyncio.wait_for(self.off.wait(), 60)
        result: dict[str, Any] = json.loads((self.share / "jobs/job-1/result.json").read_text())
        return result

    @property
    def log(self) -> str:
        return (self.share / "jobs/job-1/log").read_text()

    async def says(self, text: str) -> None:
        """Until the log on the share has it."""
        await until(self.share / "jobs/job-1/log", text)

    def runner(self) -> int:
        """The process id of the runner."""
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            words = process.read_text().split("\0")
            if words[1:3] == [f"{self.disk}/opt/vllm-fleet/job.py", "run"]:
                return int(process.parent.name)
        raise AssertionError("no runner runs")


async def until(log: Path, text: str) -> None:
    async with asyncio.timeout(60):
        # Another process writes it; nothing tells when.
        while not log.exists() or text not in log.read_text():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.05)


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


async def test_a_script_gets_its_arguments_and_a_result_says_how_it_ended(trial: Trial) -> None:
    trial.script('printf "%s|" "$@" "$PWD" "$JOB_ID"', "echo; echo done >&2")
    trial.start()
    result = await trial.end()
    assert (result["reason"], result["exit_code"]) == ("succeeded", 0)
    assert f"two words|$HOME|{trial.share}|job-1|\ndone\n" in trial.log
    assert result["cost"] == round(1.861 * result["seconds"] / 3600, 4) >= 0.031  # at least a minute
    assert (trial.disk / "var/lib/vllm-fleet/job/result.json").exists()


async def test_a_failing_script_is_told_with_its_exit_code(trial: Trial) -> None:
    trial.script("echo before; exit 3")
    trial.start()
    result = await trial.end()
    assert (result["reason"], result["exit_code"]) == ("script-failed", 3)
    assert "before" in trial.log


async def test_the_log_is_on_the_share_while_the_script_runs(trial: Trial) -> None:
    trial.script("echo first", f"while [ ! -e {trial.directory}/go ]; do sleep 0.1; done")
    trial.start()
    await trial.says("first")
    (trial.directory / "go").touch()
    assert (await trial.end())["reason"] == "succeeded"


async def test_a_script_is_ended_with_all_it_started_before_the_machines_last_minute(trial: Trial) -> None:
    # 16 minutes are what $0.50 pay for; the script has all but the last half minute.
    trial.age_s = 16 * 60 - 30 - 3
    trial.script("sleep 600 & echo $! > child", "trap '' TERM", "wait")
    trial.start()
    result = await trial.end()
    assert result["reason"] == "timeout"
    assert 16 * 60 - 30 <= result["seconds"] <= 16 * 60
    assert result["cost"] <= 0.50
    with pytest.raises(ProcessLookupError):
        os.kill(int((trial.share / "child").read_text()), 0)


async def test_a_runner_that_is_killed_leaves_a_result_all_the_same(trial: Trial) -> None:
    trial.script("echo begun; sleep 600")
    trial.start()
    await trial.says("begun")
    os.kill(trial.runner(), signal.SIGKILL)
    result = await trial.end()
    assert result["reason"] == "runner-killed"
    assert "signal killed KILL" in result["detail"]
    assert "begun" in trial.log


async def test_a_machine_that_is_told_to_end_ends_its_script_and_says_so(trial: Trial) -> None:
    trial.script("echo begun; sleep 600")
    trial.start()
    await trial.says("begun")
    await trial.machines.stop("i-1")
    assert json.loads((trial.share / "jobs/job-1/result.json").read_text())["reason"] == "cancelled"


async def test_a_share_that_is_lost_ends_the_job_and_is_mounted_again_for_its_result(trial: Trial) -> None:
    trial.script("echo begun; sleep 600")
    trial.start()
    await trial.says("begun")
    (trial.disk / SPEC.mount_path[1:]).unlink()
    result = await trial.end()
    assert result["reason"] == "share-lost"
    assert "is not mounted any more" in result["detail"]


async def test_a_share_that_cannot_be_mounted_ends_the_job_in_time(trial: Trial) -> None:
    trial.spec = replace(SPEC, file_system="fs-2")
    trial.age_s = 16 * 60 - 30 - 3
    trial.start()
    await asyncio.wait_for(trial.off.wait(), 60)
    kept = json.loads((trial.disk / "var/lib/vllm-fleet/job/result.json").read_text())
    assert kept["reason"] == "mount-failed"
    assert "fs-2 could not be mounted: mount.nfs4: Connection timed out" in kept["detail"]


async def test_a_share_that_comes_late_is_waited_for(trial: Trial) -> None:
    trial.script("exit 0")
    (trial.directory / "shares/fs-1").rename(trial.directory / "shares/later")
    trial.start()
    await until(trial.disk / "var/lib/vllm-fleet/job/log", "waiting for the share")
    (trial.directory / "shares/later").rename(trial.directory / "shares/fs-1")
    assert (await trial.end())["reason"] == "succeeded"


async def test_a_script_that_is_not_there_is_named(trial: Trial) -> None:
    trial.start()
    result = await trial.end()
    assert (result["reason"], result["detail"]) == ("script-missing", "there is no app/work.sh on fs-1")


async def test_requirements_that_do_not_install_end_the_job(trial: Trial) -> None:
    trial.script("echo never")
    (trial.share / "requirements_gpu.txt").write_text("not/a requirement\n")
    trial.start()
    result = await trial.end()
    assert result["reason"] == "requirements-failed"
    assert "never" not in trial.log


async def test_a_restarted_machine_does_not_run_its_job_again(trial: Trial) -> None:
    trial.script("echo once >> count")
    trial.start()
    await trial.end()
    trial.off.clear()
    (trial.disk / "var/lib/vllm-fleet/job/outcome.json").unlink()
    await trial.machines.stop("i-1")
    trial.start()
    assert (await trial.end())["reason"] == "restarted"
    assert (trial.share / "count").read_text() == "once\n"


def test_the_runner_is_written_for_the_python_of_amazon_linux() -> None:
    ast.parse((FILES / "job/job.py").read_text(), feature_version=(3, 9))


def test_the_first_thing_a_machine_does_is_to_set_its_last_second() -> None:
    document = yaml.safe_load(SPEC.cloud_config())
    assert next(iter(document)) == "bootcmd"
    (command,) = document["bootcmd"]
    assert command[-4:] == ["systemctl", "poweroff", "--force", "--force"]
    assert "--on-boot=16min" in command
    unit = {file["path"]: file["content"] for file in document["write_files"]}[
        "/etc/systemd/system/vllm-fleet-job.service"
    ]
    assert {"SuccessAction=poweroff-force", "FailureAction=poweroff-force"} <= set(unit.splitlines())


def test_user_data_is_the_same_for_the_same_job_and_never_longer_than_ec2_takes() -> None:
    assert SPEC.user_data() == SPEC.user_data()
    assert gzip.decompress(SPEC.user_data()).decode() == SPEC.cloud_config()
    noise = tuple(os.urandom(40).hex() for _ in range(400))
    with pytest.raises(UserDataTooLarge, match=r"args: .* put the arguments into a file on the share"):
        replace(SPEC, args=noise).user_data()
