"""A state in a folder: damage is found, the newest whole copy is taken, a lack of room is told first."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fleet import state_files
from fleet.state_files import StateError, StateFiles

WHOLE = json.dumps({"version": 3, "checkpoint": {"stack": "s", "latest": {"resources": [{}, {}]}}})
DAMAGED = ("", "{", WHOLE[:-9], "null", "[]", "{}", "\0" * 100, '{"version": 3}', "\ufeff")


class Files:
    """The files of a stack after three updates, the oldest copies first."""

    def __init__(self, folder: Path) -> None:
        self.files = StateFiles(folder, "project", "s")
        inside = folder / ".pulumi"
        self.state = inside / "stacks/project/s.json"
        self.bak = inside / "stacks/project/s.json.bak"
        self.old = inside / "history/project/s/s-1.checkpoint.json"
        self.backup = inside / "backups/project/s/s.2.json"
        for at, file in enumerate((self.old, self.backup, self.bak, self.state)):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(WHOLE)
            os.utime(file, (at, at))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_state_is_restored_from_the_newest_whole_copy_and_kept(files: Files, text: str) -> None:
    for damaged, expected in ((files.state, files.bak), (files.bak, files.backup), (files.backup, files.old)):
        damaged.write_text(text)
        files.state.write_text(text)
        found = files.files.damage()
        assert found.restore is not None and found.restore.file == expected
        files.files.repair(found)
        assert files.state.read_text() == WHOLE
        assert files.state.with_name("s.json.damaged").read_text() == text
        assert files.state.stat().st_mode & 0o077 == 0
        assert not files.files.damage()
    files.old.write_text(text)
    files.state.write_text(text)
    with pytest.raises(StateError, match=r"no whole copy of it is left\. Fix: "):
        files.files.damage()


def test_a_state_that_is_missing_beside_its_copies_is_restored(files: Files) -> None:
    files.state.unlink()
    files.files.repair(files.files.damage())
    assert files.state.read_text() == WHOLE


def test_unreadable_attributes_are_removed_and_whole_ones_stay(files: Files) -> None:
    empty = files.state.with_name("s.json.attrs")
    whole = files.state.with_name("s.json.bak.attrs")
    others = files.state.with_name("other.json.attrs")
    empty.touch()
    others.touch()
    whole.write_text('{"md5": "x"}')
    found = files.files.damage()
    assert found.state is None
    files.files.repair(found)
    assert [file.exists() for file in (empty, whole, others)] == [False, True, True]
    assert files.state.read_text() == WHOLE


def test_a_whole_state_is_left_alone(files: Files) -> None:
    assert not files.files.damage()


def test_a_stack_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"holds no stack s of project project\. Fix: "):
        StateFiles(tmp_path, "project", "s").damage()


@pytest.mark.parametrize(
    ("lock", "holds"),
    [
        ({"pid": os.getpid(), "hostname": socket.gethostname(), "username": "me"}, True),
        ({"pid": 2**22 + 1, "hostname": socket.gethostname(), "username": "me"}, False),
        ({"pid": 2**22 + 1, "hostname": "elsewhere", "username": "me"}, True),
        ({}, True),
    ],
)
def test_who_holds_the_lock_and_may_still_write_is_told(
    files: Files, tmp_path: Path, lock: dict[str, Any], holds: bool
) -> None:
    at = tmp_path / ".pulumi/locks/organization/project/s/1.json"
    at.parent.mkdir(parents=True)
    at.write_text(json.dumps(lock))
    assert bool(files.files.held_by()) == holds


@pytest.mark.parametrize(
    ("disk", "lacks"),
    [
        ({}, None),
        ({"f_bavail": 0}, "0 MB are free"),
        ({"f_bavail": 10_000}, "41 MB are free"),
        ({"f_files": 100, "f_favail": 0}, "inodes"),
        ({"f_files": 0, "f_favail": 0}, None),
    ],
)
def test_an_update_is_refused_while_its_state_finds_no_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, disk: dict[str, int], lacks: str | None
) -> None:
    found = {"f_bavail": 10**7, "f_frsize": 4096, "f_files": 10**6, "f_favail": 10**5} | disk
    monkeypatch.setattr(state_files.os, "statvfs", lambda _: SimpleNamespace(**found))
    environment = {"PULUMI_BACKEND_URL": f"file://{tmp_path}/not/there?metadata=skip"}
    problems = state_files.refusals("s", environment, tmp_path)
    assert len(problems) == (2 if lacks else 0)
    assert all(lacks in problem.message and "Fix:" in problem.message for problem in problems if lacks)
    # Elsewhere, only what this program writes itself has to find room here.
    assert len(state_files.refusals("s", {"PULUMI_BACKEND_URL": "s3://b"}, tmp_path)) == bool(lacks)


def test_a_large_state_needs_more_room(monkeypatch: pytest.MonkeyPatch, files: Files, tmp_path: Path) -> None:
    disk = SimpleNamespace(f_bavail=60 * 10**6, f_frsize=1, f_files=0, f_favail=0)
    monkeypatch.setattr(state_files.os, "statvfs", lambda _: disk)
    environment = {"PULUMI_BACKEND_URL": f"file://{tmp_path}"}
    assert state_files.refusals("s", environment, tmp_path) == []
    with files.state.open("a") as file:
        file.truncate(2 * 10**6)
    assert "may need 70 MB" in state_files.refusals("s", environment, tmp_path)[0].message
