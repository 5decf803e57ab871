"""GPU jobs from submission to result, on the embedded AWS, with the keys of the control instance's role."""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from typer.testing import CliRunner

from fleet.aws import Credentials
from fleet.cli import app
from fleet.jobs import (
    Job,
    JobError,
    NoCapacity,
    Pipeline,
    Status,
    cancel,
    find,
    follow,
    jobs,
    logs,
    look,
    policies,
    reap,
    submit,
)
from fleet.jobs.price import LimitError, limits_of
from simcloud.testing import SimCloud, running_simcloud

REGION, ACCOUNT = "us-east-1", "123456789012"
AMI = "ami-0d1a0000000000002"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCloud]:
    with running_simcloud(tmp_path_factory.mktemp("cloud"), ssh_port=10822) as running:
        yield running


@pytest.fixture
def cloud(emulator: SimCloud) -> SimCloud:
    emulator.reset()
    emulator.clear_faults()
    return emulator


@pytest.fixture
def pipeline(cloud: SimCloud) -> Pipeline:
    """As its stack would have made it; spoken to with the keys of the control role."""
    ec2, iam = cloud.console("ec2"), cloud.console("iam")
    places = ec2.describe_subnets()["Subnets"][:2]
    group = ec2.create_security_group(GroupName="job", Description="job", VpcId=places[0]["VpcId"])["GroupId"]
    # A machine of the test before may still be telling of its end.
    group_of_logs = f"/test/{uuid.uuid4().hex}"
    log = cloud.console("logs")
    log.create_log_group(logGroupName=group_of_logs)
    arn = log.describe_log_groups()["logGroups"][0]["arn"]
    for name in ("job", "control"):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=policies.trust_policy())
    iam.put_role_policy(RoleName="job", PolicyName="job", PolicyDocument=policies.job_policy(arn))
    iam.create_instance_profile(InstanceProfileName="job")
    iam.add_role_to_instance_profile(InstanceProfileName="job", RoleName="job")
    mark = {"Key": policies.PIPELINE_TAG, "Value": "test-jobs"}
    volume = {"VolumeSize": 100, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
    template = ec2.create_launch_template(
        LaunchTemplateName="jobs",
        LaunchTemplateData={
            "ImageId": AMI,
            "InstanceType": "g6e.xlarge",
            "SecurityGroupIds": [group],
            "IamInstanceProfile": {"Name": "job"},
            "InstanceInitiatedShutdownBehavior": "terminate",
            "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": volume}],
            "TagSpecifications": [{"ResourceType": kind, "Tags": [mark]} for kind in ("instance", "volume")],
        },
    )["LaunchTemplate"]["LaunchTemplateId"]
    scope = policies.Scope(
        partition="aws",
        region=REGION,
        account=ACCOUNT,
        pipeline="test-jobs",
        launch_template=template,
        types=["g6e.xlarge", "g6.2xlarge", "g6.xlarge"],
        subnets=[each["SubnetId"] for each in places],
        security_groups=[group],
        job_role=f"arn:aws:iam::{ACCOUNT}:role/job",
        log_group=group_of_logs,
    )
    iam.put_role_policy(
        RoleName="control", PolicyName="control", PolicyDocument=policies.control_policy(scope)
    )
    keys = cloud.console("sts").assume_role(
        RoleArn=f"arn:aws:iam::{ACCOUNT}:role/control", RoleSessionName="test"
    )["Credentials"]
    return Pipeline(
        name="test-jobs",
        region=REGION,
        types=("g6e.xlarge", "g6.2xlarge"),
        subnets=tuple(each["SubnetId"] for each in places),
        spot=False,
        timeout_minutes=120,
        max_cost=None,
        script="app/work.sh",
        mount_path="/home/ec2-user/recordings",
        launch_template=template,
        file_system="fs-1",
        log_group=group_of_logs,
        credentials=Credentials(
            access_key=keys["AccessKeyId"],
            secret_key=keys["SecretAccessKey"],
            token=keys["SessionToken"],
            endpoints=tuple((service, cloud.aws_url) for service in ("ec2", "logs")),
        ),
    )


@pytest.fixture
def share(cloud: SimCloud) -> Path:
    folder = cloud.state / "shares/fs-1"
    (folder / "app").mkdir(parents=True, exist_ok=True)
    return folder


def script(share: Path, *lines: str) -> None:
    (share / "app/work.sh").write_text("\n".join(lines))


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def over(pipeline: Pipeline, job: Job) -> Job:
    """The job, once it has its result."""

    def ended() -> Job | None:
        now = find(pipeline, job.id)
        return now if now and now.status.over and now.result else None

    found: Job = until(ended)
    return found


def machines(cloud: SimCloud) -> list[dict[str, Any]]:
    """Every instance that was ever launched."""
    found = cloud.console("ec2").describe_instances()["Reservations"]
    return [each for one in found for each in one["Instances"]]


def written(pipeline: Pipeline, directory: Path) -> Path:
    """The file by which a control instance knows its pipeline: the stack's outputs."""
    output = {
        "pipeline": pipeline.name,
        "region": REGION,
        "types": ["g6e.xlarge"],
        "subnets": pipeline.subnets,
        "spot": False,
        "timeout_minutes": 120,
        "max_cost": None,
        "script": pipeline.script,
        "mount_path": "/nowhere",
        "launch_template_id": pipeline.launch_template,
        "file_system_id": "fs-1",
        "log_group": pipeline.log_group,
    }
    file = directory / "pipeline.json"
    file.write_text(json.dumps({"jobs": output}))
    return file


def test_a_job_is_followed_from_launch_to_result_and_leaves_nothing(
    cloud: SimCloud, pipeline: Pipeline, share: Path
) -> None:
    script(share, "echo the answer is $1", "exit ${2:-0}")
    job = submit(pipeline, args=["42"], max_cost=0.5)
    seen = list(follow(pipeline, job.id, every_s=0.2))
    told = [each for each in seen if isinstance(each, str)]
    assert told == [
        f"vllm-fleet: job {job.id}: app/work.sh on g6e.xlarge",
        "the answer is 42",
        "vllm-fleet: succeeded",
    ]
    last = seen[-1]
    assert isinstance(last, Job)
    assert (last.status, last.minutes) == (Status.SUCCEEDED, 16)
    assert last.result is not None
    assert (last.result.exit_code, last.cost(datetime.now(UTC))) == (0, last.result.cost)
    assert (share / "jobs" / job.id / "log").read_text().splitlines() == told

    (machine,) = machines(cloud)
    assert (machine["State"]["Name"], machine["StateReason"]["Code"]) == (
        "terminated",
        "Client.InstanceInitiatedShutdown",
    )
    assert [thing["kind"] for thing in cloud.inventory() if thing["kind"] in ("server", "volume")] == []


def test_ten_jobs_submitted_twice_at_once_are_ten(cloud: SimCloud, pipeline: Pipeline, share: Path) -> None:
    script(share, "exit 0")
    tokens = [f"order-{number}" for number in range(10)] * 2
    with ThreadPoolExecutor(8) as pool:
        submitted = list(pool.map(lambda token: submit(pipeline, token=token), tokens))
    assert [job.id for job in submitted[:10]] == [job.id for job in submitted[10:]]
    assert len({job.instance_id for job in submitted}) == len(machines(cloud)) == 10


def test_a_token_starts_one_job_however_its_launch_was_cut_off(
    cloud: SimCloud, pipeline: Pipeline, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(share, "exit 0")
    cloud.set_fault("RunInstances", "lost_reply")
    first = submit(pipeline, token="once")
    over(pipeline, first)
    assert submit(pipeline, token="once").instance_id == first.instance_id
    monkeypatch.setattr(look, "instances", lambda *_: [])
    forgotten = submit(pipeline, token="once")
    assert (forgotten.id, forgotten.status, forgotten.script) == (first.id, Status.SUCCEEDED, "app/work.sh")
    assert len(machines(cloud)) == 1


def test_a_token_of_another_job_is_refused(pipeline: Pipeline, share: Path) -> None:
    script(share, "exit 0")
    submit(pipeline, token="once", args=["a"])
    with pytest.raises(
        JobError, match=r"token: once has started job-\w+ with app/work.sh and other arguments"
    ):
        submit(pipeline, token="once", args=["b"])


def test_what_is_out_of_stock_is_taken_elsewhere_first_in_subnets_then_in_types(
    cloud: SimCloud, pipeline: Pipeline, share: Path
) -> None:
    script(share, "exit 0")
    zones = {
        each["SubnetId"]: each["AvailabilityZone"]
        for each in cloud.console("ec2").describe_subnets()["Subnets"]
    }
    first, second = (zones[each] for each in pipeline.subnets)
    cloud.set_stock(first, "g6e.xlarge", "shortage", cloud="aws")
    job = submit(pipeline, token="a")
    assert machines(cloud)[0]["Placement"]["AvailabilityZone"] == second
    assert job.type == "g6e.xlarge"
    cloud.set_stock(second, "g6e.xlarge", "shortage", cloud="aws")
    assert submit(pipeline, token="b").type == "g6.2xlarge"
    with pytest.raises(
        NoCapacity, match=r"g6e.xlarge in subnet-\w+ is out of stock there .*; .*fallback_types"
    ):
        submit(replace(pipeline, types=("g6e.xlarge",)), token="c")


def test_two_submissions_that_found_two_places_leave_one_machine(
    cloud: SimCloud, pipeline: Pipeline, share: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(share, "sleep 600")
    first = submit(pipeline, token="once")
    # Neither did the other submission see the first, nor did it find capacity in the same subnet.
    monkeypatch.setattr(look, "find", lambda *_: None)
    late = submit(replace(pipeline, subnets=tuple(reversed(pipeline.subnets))), token="once")
    assert late.id == first.id
    states = {each["InstanceId"]: each["State"]["Name"] for each in machines(cloud)}
    assert states.pop(late.instance_id) in ("pending", "running")
    assert list(states.values()) == ["terminated"]


def test_a_failed_job_says_why_and_a_list_tells_all(pipeline: Pipeline, share: Path) -> None:
    script(share, "exit $1")
    failed, good = submit(pipeline, args=["3"]), submit(pipeline, args=["0"])
    assert (result := over(pipeline, failed).result) and (result.reason, result.exit_code) == (
        "script-failed",
        3,
    )
    over(pipeline, good)
    assert {job.id: job.status for job in jobs(pipeline)} == {
        failed.id: Status.FAILED,
        good.id: Status.SUCCEEDED,
    }
    assert list(logs(pipeline, failed.id))[-1] == "vllm-fleet: script-failed"
    # A job nobody followed, on a machine that EC2 has forgotten.
    later = datetime.now(UTC) + timedelta(days=3)
    assert {job.status for job in jobs(replace(pipeline, name="nobody"), now=later)} == {
        Status.FAILED,
        Status.SUCCEEDED,
    }
    assert jobs(pipeline, days=1, now=later) == []


def test_a_cancelled_job_ends_and_says_so(cloud: SimCloud, pipeline: Pipeline, share: Path) -> None:
    script(share, "echo begun; sleep 600")
    job = submit(pipeline)
    until(lambda: "begun" in list(logs(pipeline, job.id)))
    cancel(pipeline, job.id)
    result = over(pipeline, job).result
    assert result and result.reason == "cancelled"
    with pytest.raises(JobError, match=f"{job.id} is over already: failed"):
        cancel(pipeline, job.id)
    with pytest.raises(JobError, match="there is no job job- in test-jobs"):
        cancel(pipeline, "job-")


def test_a_machine_that_was_taken_back_without_a_result_is_lost_and_its_cost_unknown() -> None:
    now = datetime.now(UTC)
    tags = {look.JOB_TAG: "job-1", look.PRICE_TAG: "1.861", look.MINUTES_TAG: "120"}
    instance = {
        "InstanceId": "i-1",
        "InstanceType": "g6e.xlarge",
        "LaunchTime": now - timedelta(minutes=30),
        "State": {"Name": "terminated"},
        "StateReason": {"Message": "Server.SpotInstanceTermination: Spot instance termination"},
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }
    (lost,) = look.of_instances([instance], now)
    assert (lost.status, lost.cost(now)) == (Status.LOST, None)
    assert "Spot instance termination" in lost.why
    (living,) = look.of_instances([instance | {"State": {"Name": "running"}}], now)
    assert (living.status, living.cost(now)) == (Status.RUNNING, 0.9305)


def test_a_machine_that_outlived_its_deadline_is_reaped_once(
    cloud: SimCloud, pipeline: Pipeline, share: Path
) -> None:
    script(share, "sleep 600")
    short, long = submit(pipeline, timeout_minutes=5), submit(pipeline)
    ec2, soon = cloud.console("ec2"), datetime.now(UTC) + timedelta(minutes=8)
    (due,) = reap(ec2, now=soon)
    assert (due.job.id, due.error, round(due.late.total_seconds() / 60)) == (short.id, "", 3)
    assert [each["State"]["Name"] for each in machines(cloud)] == ["running", "running"], "only looked"
    assert reap(ec2, pipeline="another", now=soon, end=True) == []
    cloud.set_fault("TerminateInstances", "403")
    (refused,) = reap(ec2, now=soon, end=True)
    assert "UnauthorizedOperation" in refused.error
    assert len(reap(pipeline.ec2, now=soon, end=True)) == 1, "by the control role itself, too"
    assert reap(ec2, now=soon, end=True) == []
    running = [each["InstanceId"] for each in machines(cloud) if each["State"]["Name"] == "running"]
    assert running == [long.instance_id]


def test_a_celery_task_that_is_delivered_again_finds_its_job(
    cloud: SimCloud, pipeline: Pipeline, share: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(share, "exit $1")
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    celery = SimpleNamespace(
        Celery=lambda *_, **__: SimpleNamespace(
            task=lambda **_: lambda function: function, conf=SimpleNamespace(update=lambda **_: None)
        )
    )
    monkeypatch.setitem(sys.modules, "celery", celery)
    example = runpy.run_path(str(ROOT / "docs/examples/celery_jobs.py"))
    monkeypatch.setitem(example["process"].__globals__, "PIPELINE", written(pipeline, tmp_path))
    states: list[Any] = []
    task = SimpleNamespace(
        request=SimpleNamespace(id="task-1"),
        update_state=lambda **state: states.append(state["meta"]["status"]),
    )
    first = example["process"](task, "app/work.sh", ["3"])
    assert (first["status"], first["reason"], first["exit_code"]) == ("failed", "script-failed", 3)
    assert states[-1] == "failed"
    assert example["process"](task, "app/work.sh", ["3"]) == first
    assert len(machines(cloud)) == 1


HOSTILE_MINUTES = (
    *(
        "",
        "abc",
        "-5",
        "0",
        "1.5",
        "nan",
        "1e9",
        " 7",
        "999999999",
        "9" * 5000,
        "\u0661\u0662",
        "\x1b[2J",
        "120m",
    ),
)
HOSTILE_PRICES = ("abc", "nan", "inf", "-1", "1e999", "\u221e")
HOSTILE_IDS = ("../../etc", "", ".", "a/b", "\x1b[31m", "a" * 200, "job 1")


def machine_with(**tags: str) -> dict[str, Any]:
    """A running instance of a pipeline with these tags, as EC2 describes it; launched in 2026."""
    names = {"id": look.JOB_TAG, "minutes": look.MINUTES_TAG, "price": look.PRICE_TAG}
    known = {"id": "job-1", "minutes": "120", "price": "1.861"} | tags
    return {
        "InstanceId": "i-1",
        "InstanceType": "g6e.xlarge",
        "LaunchTime": datetime(2026, 11, 1, tzinfo=UTC),
        "State": {"Name": "running"},
        "Tags": [{"Key": names[name], "Value": value} for name, value in known.items()],
    }


def described(*instances: dict[str, Any]) -> Any:
    """A client of EC2 that describes these instances."""
    pages = [{"Reservations": [{"Instances": [each]} for each in instances]}]
    return SimpleNamespace(
        get_paginator=lambda _: SimpleNamespace(paginate=lambda **_: pages),
        terminate_instances=lambda **_: {},
    )


def test_a_malformed_tag_keeps_no_machine_of_the_region_from_being_reaped() -> None:
    instances = [machine_with(minutes=value) for value in HOSTILE_MINUTES]
    instances += [machine_with(price=value) for value in HOSTILE_PRICES]
    instances += [machine_with(id=value) for value in HOSTILE_IDS]
    for number, instance in enumerate(instances):
        instance["InstanceId"] = f"i-{number}"
    now = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(minutes=2883)
    due = reap(described(*instances), now=now, end=True)
    assert [each.job.instance_id for each in due] == [each["InstanceId"] for each in instances]
    soon = now - timedelta(minutes=30)
    told = [each.job for each in reap(described(*instances), now=soon)]
    assert len(told) == len(HOSTILE_PRICES + HOSTILE_IDS), "others may live for as long as any job may"


@pytest.mark.parametrize("id_", HOSTILE_IDS)
def test_an_id_that_could_lead_elsewhere_is_the_instances_own_instead(id_: str) -> None:
    (job,) = look.of_instances([machine_with(id=id_)], datetime(2026, 11, 1, tzinfo=UTC))
    assert job.id == "i-1"


def test_a_malformed_price_is_none_and_malformed_minutes_are_said() -> None:
    now = datetime(2026, 11, 1, tzinfo=UTC)
    for price in HOSTILE_PRICES:
        assert look.of_instances([machine_with(price=price)], now)[0].price_per_hour is None
    for minutes in HOSTILE_MINUTES:
        (job,) = look.of_instances([machine_with(minutes=minutes)], now)
        assert job.minutes == 2880
        assert ("no number of minutes" in job.why) == (not minutes.startswith("99"))


HOSTILE_RESULTS = (
    *(
        "not JSON",
        "",
        "null",
        "[]",
        "7",
        "{}",
        '{"reason": 7}',
        "[" * 100_000,
        "\x00",
        '{"reason": "succeeded"}',
    ),
    '{"reason": "x", "launched": 1e300, "ended": 1, "seconds": 1}',
    '{"reason": "x", "launched": "1", "ended": true, "seconds": 1}',
    '{"reason": "x", "launched": 1, "ended": 1, "seconds": NaN}',
)


def test_what_a_job_wrote_instead_of_a_result_is_said_and_the_others_are_listed(
    cloud: SimCloud, pipeline: Pipeline, share: Path
) -> None:
    script(share, "exit 0")
    good = submit(pipeline)
    over(pipeline, good)
    log = cloud.console("logs")
    now = int(time.time() * 1000)

    def write(job_id: str, *lines: str) -> None:
        for stream, texts in ((f"log/{job_id}", ("x",)), (f"result/{job_id}", lines)):
            log.create_log_stream(logGroupName=pipeline.log_group, logStreamName=stream)
            log.put_log_events(
                logGroupName=pipeline.log_group,
                logStreamName=stream,
                logEvents=[{"timestamp": now, "message": text or " "} for text in texts],
            )

    for number, text in enumerate(HOSTILE_RESULTS):
        write(f"job-{number}", text)
    whole = {"reason": "late\x1b[2J", "launched": 1e9, "ended": 1e9 + 60, "seconds": 60, "minutes": 10**9}
    write("job-late", "not JSON", json.dumps({**whole, "cost": -5, "price_per_hour": "x", "script": ["a"]}))
    told = {job.id: job for job in jobs(pipeline)}
    assert told[good.id].status == Status.SUCCEEDED
    for number in range(len(HOSTILE_RESULTS)):
        job = told[f"job-{number}"]
        assert (job.result, job.status) == (None, Status.LOST)
        assert find(pipeline, job.id) is not None
    late = find(pipeline, "job-late")
    assert late and late.result and late.minutes == 2880
    assert (late.result.reason, late.result.cost, late.script) == ("late\\x1b[2J", None, "")


def test_a_result_on_the_share_is_a_small_file_of_its_own_or_none(pipeline: Pipeline, tmp_path: Path) -> None:
    place = replace(pipeline, mount_path=str(tmp_path))
    told = {"reason": "stolen", "detail": "", "launched": 1, "ended": 1, "seconds": 1}
    (tmp_path / "secret.json").write_text(json.dumps(told))
    cases: dict[str, Callable[[Path], None]] = {
        "job-pipe": os.mkfifo,
        "job-link": lambda at: at.symlink_to(tmp_path / "secret.json"),
        "job-folder": lambda at: at.mkdir(),
        "job-large": lambda at: at.write_text(json.dumps(told) + " " * 10**6) and None,
    }
    for job_id, make in cases.items():
        (tmp_path / "jobs" / job_id).mkdir(parents=True)
        make(tmp_path / "jobs" / job_id / "result.json")
        assert look._shared_result(place, job_id) == ()
    (tmp_path / "result.json").write_text(json.dumps(told))
    assert look._shared_result(place, "..") == ()


def test_a_log_cannot_command_the_terminal(cloud: SimCloud, pipeline: Pipeline, share: Path) -> None:
    script(share, r"printf 'a\033]52;c;eA==\007b\tc\n'")
    job = submit(pipeline)
    over(pipeline, job)
    assert "a\\x1b]52;c;eA==\\x07b\tc" in list(logs(pipeline, job.id))


def test_the_log_of_a_job_that_does_not_exist_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(JobError, match=r"there is no job nope in test-jobs\. Fix: see `fleet job list`"):
        list(logs(pipeline, "nope"))


def test_a_job_never_gets_more_than_its_pipeline_allows(
    cloud: SimCloud, pipeline: Pipeline, share: Path
) -> None:
    script(share, "exit 0")
    strict = replace(pipeline, max_cost=0.5, timeout_minutes=60)
    job = submit(strict, max_cost=500, timeout_minutes=100_000)
    assert (job.minutes, job.at_most) == (16, 0.4963)
    assert submit(replace(strict, max_cost=None), max_cost=500, timeout_minutes=100_000).minutes == 60
    assert submit(strict, max_cost=0.1).minutes == 3
    assert submit(strict, timeout_minutes=5).minutes == 5


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), float("-inf"), 0.0, -1.0])
@pytest.mark.parametrize("own", [None, 5.0])
def test_what_is_no_amount_of_money_is_refused_before_anything_is_bought(
    cloud: SimCloud, pipeline: Pipeline, cost: float, own: float | None
) -> None:
    with pytest.raises(JobError, match=r"^max_cost: .* is not an amount of dollars\. Fix: "):
        submit(replace(pipeline, max_cost=own), max_cost=cost)
    with pytest.raises(JobError, match=r"^timeout_minutes: .* is not a number of minutes\. Fix: "):
        submit(pipeline, timeout_minutes=int(cost) if abs(cost) <= 1 else -7)
    assert machines(cloud) == []


def test_an_account_without_the_role_for_spare_capacity_is_told_how_to_make_it(
    cloud: SimCloud, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        said = {"Error": {"Code": "AuthFailure.ServiceLinkedRoleCreationNotPermitted", "Message": "…"}}
        raise ClientError(said, "RunInstances")

    spare = replace(pipeline, spot=True)
    monkeypatch.setattr(spare.ec2, "run_instances", refuse)
    with pytest.raises(JobError, match=r"Fix: .*aws iam create-service-linked-role .*spot\.amazonaws\.com"):
        submit(spare)


def test_the_commands_need_no_stack(
    cloud: SimCloud, pipeline: Pipeline, share: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VLLM_FLEET_PIPELINE", str(written(pipeline, tmp_path)))
    monkeypatch.setenv("COLUMNS", "200")

    def fleet(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["job", *words])
        return done.exit_code, done.output

    assert fleet("run", "--estimate", "--max-cost", "0.5") == (
        0,
        "g6e.xlarge: off after 16 min, $0.4963 at most\n",
    )
    assert machines(cloud) == []
    assert fleet("list") == (0, "no jobs in 7 days\n")
    script(share, "echo begun; exit 7")
    code, said = fleet("run", "--token", "a", "--timeout", "5")
    assert code == 7
    assert "begun\n" in said
    assert re.search(r"job-\w+: script-failed; 1\.0 of 5 min, \$0\.0310", said)
    job_id = re.findall(r"job-\w{12}", said)[0]
    row = rf"{job_id} +failed +script-failed +app/work.sh +g6e.xlarge .* of 5 +\$0\.0310"
    assert re.search(row, fleet("list")[1])
    assert "begun\n" in fleet("logs", job_id)[1]
    code, said = fleet("logs", "job-ffffffffffff")
    assert (code, "there is no job job-ffffffffffff in " in said) == (2, True)
    assert fleet("cancel", job_id) == (2, f"fleet: {job_id} is over already: failed\n")
    assert fleet("reap", "--region", REGION, "--yes") == (0, "No job instance has outlived its deadline\n")
    code, said = fleet("run", "--max-cost", "nan")
    assert (code, said) == (
        2,
        "fleet: max_cost: nan is not an amount of dollars. Fix: give for example 2.50\n",
    )
    assert fleet("logs", "nope")[0] == 2
    code, said = fleet("run", "--max-cost", "0.01")
    assert code == 2
    assert "max_cost: 0.01 pays for less than a minute of g6e.xlarge" in said


@pytest.mark.parametrize(
    ("timeout", "most", "expected"),
    [
        (120, None, (120, 3.722)),
        (120, 0.50, (16, 0.4963)),
        (10, 0.50, (10, 0.3102)),
        (120, 1.861, (60, 1.861)),
    ],
)
def test_a_job_may_take_what_its_timeout_and_its_cost_both_allow(
    timeout: int, most: float | None, expected: tuple[int, float]
) -> None:
    found = limits_of("g6e.xlarge", REGION, timeout_minutes=timeout, max_cost=most)
    assert (found.minutes, found.at_most) == expected


def test_a_cost_that_cannot_be_held_is_refused() -> None:
    with pytest.raises(
        LimitError, match=r"max_cost: 0.01 pays for less than a minute .* allow at least 0.03"
    ):
        limits_of("g6e.xlarge", REGION, timeout_minutes=120, max_cost=0.01)
    with pytest.raises(LimitError, match="max_cost: 1 cannot be held: nobody knows the price"):
        limits_of("g6e.xlarge", "af-south-1", timeout_minutes=120, max_cost=1)
    assert limits_of("g6e.xlarge", "af-south-1", timeout_minutes=120).at_most is None
    # Never more than on demand, so that much is sure.
    assert limits_of("g6e.xlarge", REGION, timeout_minutes=120, max_cost=0.5, spot=True).minutes >= 16
