"""What the demo leaves in a checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.demo import forget


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("bin/pulumi", "demo/id_ed25519", "rollouts/dev/round", "state/.pulumi/meta.yaml"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    return tmp_path


def test_the_demo_leaves_only_what_set_up_brought(folder: Path) -> None:
    forget(folder)
    assert [path.name for path in folder.iterdir()] == ["bin"]


def test_the_state_of_another_stack_outlives_the_demo(folder: Path) -> None:
    state = folder / "state" / ".pulumi" / "stacks" / "vllm-fleet" / "first.json"
    state.parent.mkdir(parents=True)
    state.touch()
    forget(folder)
    assert state.exists()
    assert not (folder / "demo").exists()
