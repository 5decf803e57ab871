"""State in S3 with secrets under KMS, as docs/environments.md has it, on an AWS inside this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import yaml
from fleets import Fleet, project_folder
from moto.server import ThreadedMotoServer

KEY = "awskms://alias/vllm-fleet?region=eu-west-3&awssdk=v2"
PROGRAM = """
    import pathlib, time
    import pulumi

    pulumi.export("key", pulumi.Config().require_secret("key"))
    while pathlib.Path("hold").exists():
        pathlib.Path("held").touch()
        time.sleep(0.05)
    """


@pytest.fixture
def aws() -> Iterator[dict[str, str]]:
    """Settings that lead to the embedded AWS, where the bucket and the key of the documentation exist."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    httpx.post(f"{url}/moto-api/reset").raise_for_status()  # its state outlives a server
    session = boto3.Session("test", "test", region_name="eu-west-3")
    place = {"LocationConstraint": "eu-west-3"}
    session.client("s3", endpoint_url=url).create_bucket(Bucket="state", CreateBucketConfiguration=place)
    kms = session.client("kms", endpoint_url=url)
    kms.create_alias(AliasName="alias/vllm-fleet", TargetKeyId=kms.create_key()["KeyMetadata"]["KeyId"])
    yield {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": url,
        "PULUMI_BACKEND_URL": f"s3://state?region=eu-west-3&endpoint={url}&s3ForcePathStyle=true",
    }
    server.stop()


def test_state_in_s3_is_locked_and_its_secrets_need_the_key(
    aws: dict[str, str], pulumi: Callable[..., Any]
) -> None:
    stack = pulumi(PROGRAM, env=aws)
    stack.ask("stack", "change-secrets-provider", KEY)
    stack.ask("config", "set", "--secret", "key", "planted-secret")
    hold = stack.folder / "hold"
    hold.touch()
    first = stack.start("up")
    first.wait_until((stack.folder / "held").exists, "the first update to be under way")
    refused = stack.run("up", expect_failure=True)
    assert "the stack is currently locked by 1 lock(s)" in refused.stdout

    first.kill()
    hold.unlink()
    stack.unlock()
    stack.run("up")
    assert stack.outputs(show_secrets=True) == {"key": "planted-secret"}

    bucket = (
        boto3.Session("test", "test").resource("s3", endpoint_url=aws["AWS_ENDPOINT_URL"]).Bucket("state")
    )
    kept = {item.key: item.get()["Body"].read() for item in bucket.objects.all()}
    assert any(name.endswith("stacks/project/test.json") for name in kept)
    assert [name for name, content in kept.items() if b"planted-secret" in content] == []
    assert [name for name in kept if "/locks/" in name and name.endswith(".json")] == []


def test_a_stack_under_the_published_passphrase_is_refused_until_it_has_a_provider_of_its_own(
    aws: dict[str, str], pulumi: Callable[..., Any], tmp_path: Path
) -> None:
    project = project_folder(tmp_path / "project")
    stack = pulumi(folder=project, env={**aws, "PULUMI_CONFIG_PASSPHRASE": "development"})
    with (project / "Pulumi.test.yaml").open("a") as file:
        wrong = {"vllm-fleet:nodes": [], "vllm-fleet:access": {}, "vllm-fleet:serving": {}}
        yaml.safe_dump({"config": wrong}, file)
    stack.ask("config", "set", "--secret", "--path", "vllm-fleet:secrets.api_key", "planted-key")
    refused = stack.run("preview", expect_failure=True).stdout
    assert "PULUMI_CONFIG_PASSPHRASE: is the published development passphrase" in refused
    assert "Fix: pulumi stack change-secrets-provider --stack test passphrase" in refused
    assert "Traceback" not in refused and "access" not in refused

    stack.ask("stack", "change-secrets-provider", KEY)
    # Now it is the settings that are wrong.
    refused = stack.run("preview", expect_failure=True).stdout
    assert "passphrase" not in refused and "access" in refused


def test_a_state_on_this_machine_and_its_backups_are_for_nobody_else(fleet: Fleet) -> None:
    for size in (200, 300):
        fleet.config["nodes"][0]["root_volume_gb"] = size
        fleet.write()
        # The fixture made the stack without our command.
        for made in (each for each in (fleet.stack.workspace / "state").rglob("*") if each.is_file()):
            made.unlink() if "backups" in str(made) else made.chmod(0o600)
        done = fleet.command("up", "--yes")
        assert done.returncode == 0, done.stdout + done.stderr
    files = [file for file in (fleet.stack.workspace / "state").rglob("*") if file.is_file()]
    assert {"stacks", "backups", "history"} <= {part for file in files for part in file.parts}
    assert {file.name: oct(file.stat().st_mode) for file in files if file.stat().st_mode & 0o077} == {}


DAMAGE = {
    "an empty file of attributes": lambda state: (state / "test.json.attrs").write_bytes(b""),
    "a state cut short": lambda state: os.truncate(state / "test.json", 300),
    "an empty state": lambda state: os.truncate(state / "test.json", 0),
    "an empty state and no older one beside it": lambda state: [
        os.truncate(state / name, 0) for name in ("test.json", "test.json.bak", "test.json.attrs")
    ],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_state_that_a_crash_or_a_full_disk_damaged_is_repaired(
    damage: str, pulumi: Callable[..., Any]
) -> None:
    stack = pulumi(PROGRAM)
    stack.ask("config", "set", "--secret", "key", "planted-secret")
    stack.run("up")
    before = stack.state()
    DAMAGE[damage](stack.workspace / "state" / ".pulumi" / "stacks" / "project")
    assert "failed to load" in stack.run("up", expect_failure=True).stdout

    def repair(*flags: str) -> str:
        command = [sys.executable, "-m", "fleet", "state", "repair", "--stack", "test", *flags]
        done = subprocess.run(
            command, cwd=stack.folder, env=stack.env, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    assert "Nothing is changed yet; add --yes" in repair()
    assert "Repaired" in repair("--yes")
    assert "nothing to repair" in repair("--yes")
    assert [each["urn"] for each in stack.state()] == [each["urn"] for each in before]
    assert stack.run("up").changes == {}
