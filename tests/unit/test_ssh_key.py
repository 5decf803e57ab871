"""The operator's key, in a file or in an agent alone; what opens no node is said before one is bought."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_node import Answer, FakeNode

from fleet import settings
from fleet.diagnosis import Context, Fault
from fleet.ssh import AuthenticationRefused, Target, connect, openssh
from fleet.ssh_key import has_passphrase, is_public, public_key

PASSPHRASE = "correct horse"


@pytest.fixture
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An agent of the test's own, empty."""
    at = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(at)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # it listens once it has said where
    monkeypatch.setenv("SSH_AUTH_SOCK", str(at))
    yield
    process.terminate()
    process.wait()


def made(at: Path, *, passphrase: str = "", kind: str = "ed25519") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", str(at)], check=True)
    return at


def held(key: Path, passphrase: str = "") -> None:
    """Put a key into the agent."""
    asker = key.with_name("asker")
    asker.write_text(f"#!/bin/sh\necho '{passphrase}'\n")
    asker.chmod(0o700)
    environment = os.environ | {"SSH_ASKPASS": str(asker), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"}
    subprocess.run(["ssh-add", "-q", str(key)], check=True, env=environment, stdin=subprocess.DEVNULL)


def problems(key: Path) -> str:
    """What a stack with this key is refused for; empty if for nothing."""
    raw: dict[str, Any] = {
        "nodes": [{"name": "a", "cloud": "scaleway", "type": "L4-1-24G"}],
        "serving": {"model": "Qwen/Qwen3-8B-AWQ"},
        "access": {"ssh_cidrs": ["203.0.113.7/32"], "ssh_private_key_path": str(key)},
        "secrets": {"api_key": "planted-api-key-0123456789"},
    }
    try:
        settings.parse(raw)
    except settings.SettingsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_key_with_a_passphrase_is_told_from_one_without(tmp_path: Path, kind: str) -> None:
    assert not has_passphrase(made(tmp_path / "open", kind=kind))
    locked = made(tmp_path / "locked", kind=kind, passphrase=PASSPHRASE)
    assert has_passphrase(locked)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-m", "PEM", "-P", PASSPHRASE, "-N", PASSPHRASE, "-f", locked], check=True
    )
    assert has_passphrase(locked)
    assert not is_public(locked)
    assert is_public(locked.with_name("locked.pub"))


@pytest.mark.usefixtures("no_agent")
def test_without_an_agent_a_passphrase_key_and_a_public_key_are_refused_with_the_command(
    tmp_path: Path,
) -> None:
    locked = made(tmp_path / "locked", passphrase=PASSPHRASE)
    assert "has a passphrase, and no agent holds it" in problems(locked)
    assert f"ssh-add {locked}" in problems(locked)
    public = locked.with_name("locked.pub")
    assert "is a public key; name the private one, usually " in problems(public)
    assert f"ssh-add {locked}" in problems(public)
    assert problems(made(tmp_path / "open")) == ""


@pytest.mark.usefixtures("agent")
def test_what_the_agent_holds_may_be_named_by_either_half(tmp_path: Path) -> None:
    locked = made(tmp_path / "locked", passphrase=PASSPHRASE)
    public = locked.with_name("locked.pub")
    held(made(tmp_path / "another"))
    assert "no agent holds it" in problems(locked)
    held(locked, PASSPHRASE)
    assert problems(locked) == ""
    locked.unlink()
    assert problems(public) == ""
    assert public_key(public) == " ".join(public.read_text().split()[:2])


@pytest.mark.usefixtures("agent")
async def test_a_key_that_is_in_the_agent_alone_opens_the_node_in_both_clients(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.commands["hostname"] = Answer("node\n")
    async with node.running():
        key = node.target.private_key_path
        assert key is not None
        target = replace(node.target, private_key_path=key.with_name("only.pub"))
        key.with_name("only.pub").write_bytes(node.user_key.export_public_key())
        with pytest.raises(AuthenticationRefused):
            async with connect(target):
                pass
        key.chmod(0o600)
        held(key)
        key.unlink()
        async with connect(target) as connection:
            assert (await connection.run(["hostname"])).stdout == "node\n"
        client = await asyncio.create_subprocess_exec(
            *openssh(target), "hostname", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await asyncio.wait_for(client.communicate(), 60)
        assert (client.returncode, said) == (0, b"node\n")


def test_no_client_reads_the_users_own_ssh_config() -> None:
    target = Target("203.0.113.7", ("ssh-ed25519 AAAA",), "ubuntu", 2222, Path("/k"))
    assert openssh(target)[:3] == ["ssh", "-F", "none"]
    for fault in Fault:
        command = Context("a", "aws", target=target).command(fault.next_command)
        assert command.count("ssh ") == command.count("ssh -F none ")
