"""The development passphrase and state are for the embedded clouds' stack; every other has its own."""

from __future__ import annotations

import base64
import copy
import hashlib
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fleet import safekeeping
from fleet.check import Status, check_keeping
from fleet.safekeeping import refusals

ROOT = Path(__file__).parents[2]
DEVELOPMENT = {"PULUMI_CONFIG_PASSPHRASE": "development"}
MIXED = {"aws:endpoints": [{"ec2": "http://127.0.0.1:1", "iam": "https://iam.amazonaws.com"}]}
KMS = {"secretsprovider": "awskms://alias/vllm-fleet", "encryptedkey": "AAAA"}


def dev(**config: Any) -> dict[str, Any]:
    """The repository's own stack file, with other settings."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "Pulumi.dev.yaml").read_text())
    document["config"] |= config
    return document


def nodes(*clouds: str) -> list[dict[str, str]]:
    return [{"name": cloud, "cloud": cloud} for cloud in clouds]


def written(folder: Path, stack: str, document: dict[str, Any]) -> Path:
    (folder / f"Pulumi.{stack}.yaml").write_text(yaml.safe_dump(document))
    return folder


@pytest.mark.parametrize(
    ("stack", "document"),
    [
        ("first", {"encryptionsalt": "v1:…"}),
        ("first", {}),
        ("first", dev()),
        ("Dev", dev()),
        ("dev", dev(**{"scaleway:apiUrl": "https://api.scaleway.com"})),
        ("dev", dev(**{"scaleway:apiUrl": "http://127.0.0.1.example.com"})),
        ("dev", dev(**{"scaleway:apiUrl": "http://[::1"})),
        ("dev", dev(**{"vllm-fleet:nodes": nodes("scaleway", "linode")})),
        ("dev", dev(**{"vllm-fleet:nodes": nodes("scaleway", "cheapest")})),
        ("dev", dev(**{"vllm-fleet:nodes": nodes("aws")})),
        ("dev", dev(**{"vllm-fleet:jobs": {"type": "g6e.xlarge"}})),
        ("dev", dev(**{"vllm-fleet:ray": nodes("linode")})),
        ("dev", dev(**{"vllm-fleet:nodes": nodes("aws"), **MIXED})),
        ("dev", {}),
    ],
)  # fmt: skip
def test_a_stack_off_the_embedded_clouds_is_refused_with_the_development_passphrase(
    stack: str, document: dict[str, Any], tmp_path: Path
) -> None:
    (problem,) = refusals(stack, DEVELOPMENT, written(tmp_path, stack, document))
    assert problem.path == "PULUMI_CONFIG_PASSPHRASE"
    assert f"pulumi stack change-secrets-provider --stack {stack} passphrase" in problem.message


@pytest.mark.parametrize(
    ("stack", "document"),
    [
        ("dev", dev()),
        ("dev", dev(**{"vllm-fleet:nodes": nodes("linode"), "linode:url": "http://localhost:8/v4"})),
        ("dev", dev(**{"vllm-fleet:nodes": nodes("aws"), "aws:endpoints": [{"ec2": "http://[::1]:1"}]})),
        ("first", KMS),
    ],
)
def test_the_embedded_clouds_stack_and_one_without_a_passphrase_are_not_refused(
    stack: str, document: dict[str, Any], tmp_path: Path
) -> None:
    assert refusals(stack, DEVELOPMENT, written(tmp_path, stack, document)) == []


def test_a_passphrase_in_a_file_counts_as_well_and_one_of_the_users_own_does_not(tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_text("development\n")
    assert refusals("first", {"PULUMI_CONFIG_PASSPHRASE_FILE": str(file)}, tmp_path)
    assert not refusals("first", {"PULUMI_CONFIG_PASSPHRASE": "correct horse"}, tmp_path)
    assert not refusals("first", {"PULUMI_CONFIG_PASSPHRASE_FILE": str(tmp_path / "none")}, tmp_path)
    assert not refusals("first", {}, tmp_path)


@pytest.mark.parametrize("query", ["", "?metadata=skip"])
def test_a_real_stack_keeps_no_state_in_the_checkouts_development_folder(tmp_path: Path, query: str) -> None:
    backend = {"PULUMI_BACKEND_URL": f"file://{tmp_path}/x/../.fleet/state{query}"}
    (problem,) = refusals("first", backend, tmp_path)
    assert problem.path == "PULUMI_BACKEND_URL"
    assert "a backend of its own" in problem.message
    for elsewhere in ("s3://bucket", f"file://{tmp_path}/state", "https://api.pulumi.com", "file://~"):
        assert not refusals("first", {"PULUMI_BACKEND_URL": elsewhere}, tmp_path)
    assert not refusals("dev", backend, written(tmp_path, "dev", dev()))


def salt(passphrase: str) -> str:
    """What the engine writes as `encryptionsalt`."""
    seed, nonce = os.urandom(8), os.urandom(12)
    key = hashlib.pbkdf2_hmac("sha256", passphrase.encode(), seed, 1_000_000)
    words = (seed, nonce, AESGCM(key).encrypt(nonce, b"pulumi", None))
    return "v1:{}:v1:{}:{}".format(*(base64.b64encode(word).decode() for word in words))


@pytest.mark.parametrize(
    ("encrypted", "status"),
    [
        ({"encryptionsalt": dev()["encryptionsalt"]}, Status.FAILED),
        ({"encryptionsalt": salt("")}, Status.FAILED),
        ({"encryptionsalt": salt("correct horse")}, Status.OK),
        ({"encryptionsalt": "v1:nonsense"}, Status.OK),
        ({"encryptionsalt": 7}, Status.OK),
        (KMS, Status.OK),
        ({}, Status.OK),
    ],
)
def test_check_names_a_stack_that_a_published_passphrase_opens_whatever_the_environment_says(
    encrypted: dict[str, Any], status: Status, tmp_path: Path
) -> None:
    document = copy.deepcopy({**encrypted, "config": {}})
    findings = check_keeping("first", {"PULUMI_CONFIG_PASSPHRASE": "x"}, written(tmp_path, "first", document))
    (secrets,) = [finding for finding in findings if finding.name == "secrets"]
    assert secrets.status == status
    assert ("change-secrets-provider --stack first" in secrets.fix) == (status == Status.FAILED)


def test_check_names_a_state_that_others_can_read_and_its_advice_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "a state"
    stacks = state / ".pulumi" / "stacks"
    stacks.mkdir(parents=True)
    (stacks / "first.json").write_text("{}")
    (stacks / "first.json").chmod(0o644)
    # Where a test's own folders lie, nobody else gets in.
    monkeypatch.setattr(safekeeping, "OTHERS_ENTER", stat.S_IXUSR)
    environment = {"PULUMI_BACKEND_URL": f"file://{state}?metadata=skip"}

    def looked_at() -> list[Any]:
        return [each for each in check_keeping("first", environment, tmp_path) if each.name == "state"]

    (finding,) = looked_at()
    assert "1 files" in finding.seen and "first.json" in finding.seen
    subprocess.run(["sh", "-c", finding.fix.partition(";")[0]], check=True)
    assert looked_at() == []
