"""Whatever a stack's file holds, it is judged: no file ends in a traceback. `make fuzz` tries 20,000."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mutations import spoilt
from stack_files import RIGHT, folder_with_files, right

from fleet.commands.validate import document, lines
from fleet.validation import validate

FILES = int(os.environ.get("FUZZED_FILES", "320"))
SHARES = 8


@pytest.mark.parametrize("share", range(SHARES))
def test_a_file_that_is_spoilt_is_judged_all_the_same(share: int, tmp_path: Path) -> None:
    folder = folder_with_files(tmp_path)
    path = folder / "Pulumi.test.yaml"
    for seed in range(share, FILES, SHARES):
        path.write_bytes(spoilt(right(RIGHT[seed % len(RIGHT)]), seed))
        try:
            verdict = validate(path)
            said = "\n".join(lines(path, verdict)) + repr(document(verdict))
            said.encode()  # every terminal takes it
            assert all(problem.path and problem.problem for problem in verdict.problems)
            assert all(problem.fix for problem in verdict.problems), verdict.problems
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r}\n{path.read_bytes().decode(errors='backslashreplace')}")
