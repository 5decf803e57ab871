"""Operators' keys are put where the node's sshd is known to read them, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_node import Answer, FakeNode

from fleet.operators import NotRead, OperatorsSpec, let_in
from fleet.progress import Progress

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBnnw== ada@example.org"


def sshd(settings: str, status: int = 0, stderr: str = "") -> Answer:
    return Answer(f"port 22\nauthorizedkeysfile {settings}\n" if settings else "", status, stderr)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (sshd(".ssh/authorized_keys"), "name .ssh/authorized_keys2 too"),
        (
            sshd("", 255, "/etc/ssh/sshd_config: line 3: Bad configuration option: Foo\n"),
            "Bad configuration option",
        ),
        (sshd(""), "name .ssh/authorized_keys2 too"),
    ],
    ids=["one file", "settings that sshd refuses", "no answer"],
)
async def test_keys_that_sshd_would_not_read_are_refused(
    tmp_path: Path, answer: Answer, message: str
) -> None:
    async with FakeNode(tmp_path).running() as node:
        node.commands["sshd -T"] = answer
        with pytest.raises(NotRead, match=message):
            await let_in(OperatorsSpec("a", "scaleway", node.target, (KEY,), 30.0), Progress("a"))
        assert node.files == {}


async def test_keys_are_written_where_sshd_reads_them(tmp_path: Path) -> None:
    async with FakeNode(tmp_path).running() as node:
        node.commands["sshd -T"] = sshd(".ssh/authorized_keys .ssh/authorized_keys2")
        await let_in(OperatorsSpec("a", "scaleway", node.target, (KEY,), 30.0), Progress("a"))
        assert node.files == {"/root/.ssh/authorized_keys2": f"{KEY}\n".encode()}
