"""`fleet validate`: wrong files are refused with field, value and fix; right ones pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stack_files import (
    RIGHT,
    WRONG,
    Wrong,
    base,
    folder_with_files,
    put,
    right,
    write,
)
from test_settings import WRONG as WRONG_SETTINGS

from fleet.validation import Verdict, validate

ROOT = Path(__file__).parents[2]
OTHERS = [
    Wrong(path, value, named, said)
    for path, value, named, said in WRONG_SETTINGS
    # Encrypted values are not looked at, and paths there are the test's own.
    if not path.startswith("secrets") and value != "/no/such/key"
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with_files(tmp_path_factory.mktemp("stack"))


def judged(folder: Path, config: Any, stack: str = "test") -> Verdict:
    return validate(write(folder, config, stack))


def changed(case: Wrong) -> dict[str, Any]:
    config = base()
    for path, value in {case.path: case.value, **case.more}.items():
        config = {**config, path: value} if ":" in path else put(config, path, value)
    return config


def names(cases: list[Wrong]) -> list[str]:
    return [f"{case.path}={case.value!r:.40}" for case in cases]


def test_there_are_files_enough() -> None:
    assert len(WRONG) + len(OTHERS) >= 150
    assert len(RIGHT) >= 60


@pytest.mark.parametrize("case", [*WRONG, *OTHERS], ids=names([*WRONG, *OTHERS]))
def test_a_wrong_file_is_refused_with_field_and_fix(folder: Path, case: Wrong) -> None:
    verdict = judged(folder, changed(case))
    assert [problem.path for problem in verdict.problems] == [case.named]
    problem = verdict.problems[0]
    assert case.said in problem.message
    assert problem.problem
    assert problem.fix


@pytest.mark.parametrize("changes", RIGHT, ids=[f"{changes!r:.60}" for changes in RIGHT])
def test_a_right_file_passes(folder: Path, changes: dict[str, Any]) -> None:
    assert judged(folder, right(changes)).problems == ()
