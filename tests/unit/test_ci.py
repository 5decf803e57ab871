"""`fleet check --ci`: an environment with a key is for protected branches alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fleet.check import Status
from fleet.ci import CiError, ask_github, check_environments
from fleet.cli import app

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
PROTECTED = {"deployment_branch_policy": {"protected_branches": True, "custom_branch_policies": False}}
CUSTOM = {"deployment_branch_policy": {"protected_branches": False, "custom_branch_policies": True}}
REVIEWED = {"protection_rules": [{"type": "required_reviewers"}]}


def statuses(github: dict[str, Any]) -> dict[str, Status]:
    return {finding.name: finding.status for finding in check_environments(WORKFLOWS, github.get)}


def github(**prod: Any) -> dict[str, Any]:
    """A repository in order, but for what is said of the environment `prod` and of the branch `main`."""
    sound = {f"environments/{name}": PROTECTED for name in ("staging", "prod", "drift")}
    return {
        **sound,
        "environments/preview": REVIEWED,
        **{key.replace("__", "/"): v for key, v in prod.items()},
    }


def test_every_environment_of_the_workflows_is_looked_at() -> None:
    assert statuses(github()) == dict.fromkeys(("drift", "preview", "staging", "prod"), Status.OK)


@pytest.mark.parametrize(
    ("prod", "policies", "status"),
    [
        (None, [], Status.FAILED),
        ({}, [], Status.FAILED),
        ({"deployment_branch_policy": None}, [], Status.FAILED),
        (REVIEWED, [], Status.FAILED),
        (CUSTOM, [{"name": "main", "type": "branch"}], Status.OK),
        (CUSTOM, [{"name": "main"}], Status.OK),
        (CUSTOM, [], Status.OK),
        (CUSTOM, [{"name": "*", "type": "branch"}], Status.FAILED),
        (CUSTOM, [{"name": "release/*", "type": "branch"}], Status.FAILED),
        (CUSTOM, [{"name": "main", "type": "branch"}, {"name": "wip", "type": "branch"}], Status.FAILED),
        (CUSTOM, [{"name": "main", "type": "tag"}], Status.FAILED),
    ],
)
def test_an_environment_that_an_unprotected_branch_may_use_is_named_with_the_command(
    prod: Any, policies: list[dict[str, str]], status: Status
) -> None:
    answers = github(
        environments__prod=prod,
        branches__main={"protected": True},
        branches__wip={"protected": False},
    )
    answers["environments/prod/deployment-branch-policies"] = {"branch_policies": policies}
    (found,) = [each for each in check_environments(WORKFLOWS, answers.get) if each.name == "prod"]
    assert found.status == status
    assert ("gh api --method PUT 'repos/{owner}/{repo}/environments/prod'" in found.fix) == (
        status == Status.FAILED
    )


def test_what_pull_requests_run_with_has_reviewers_or_is_warned_of() -> None:
    assert statuses(github(environments__preview=PROTECTED))["preview"] == Status.WARNING


def gh(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (folder / "gh").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "gh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_command_asks_github_and_needs_no_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    gh(tmp_path, monkeypatch, f"echo '{json.dumps(PROTECTED | REVIEWED)}'")
    done = CliRunner().invoke(app, ["check", "--ci", "--json"])
    assert done.exit_code == 0, done.output
    assert {each["status"] for each in json.loads(done.stdout)} == {"ok"}
    gh(tmp_path, monkeypatch, "echo 'gh: Not Found (HTTP 404)' >&2; exit 1")
    assert CliRunner().invoke(app, ["check", "--ci"]).exit_code == 1


@pytest.mark.parametrize("script", ["echo 'To get started, run: gh auth login' >&2; exit 4", "echo '<html>'"])
def test_a_github_that_cannot_be_asked_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    gh(tmp_path, monkeypatch, script)
    with pytest.raises(CiError, match="Fix: "):
        ask_github("environments/prod")
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(CiError, match="gh is not on PATH"):
        ask_github("environments/prod")
