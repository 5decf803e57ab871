"""The workflows' own steps, run on this machine against an embedded cloud."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fleets import Fleet
from harness import ROOT, TIMEOUT_S

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs(workflow: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each job of a workflow with each of its steps."""
    for job in yaml.safe_load((ROOT / ".github" / "workflows" / workflow).read_text())["jobs"].values():
        for step in job["steps"]:
            yield job, step


def run_steps(fleet: Fleet, workflow: str, **settings: str) -> int:
    """Run what a workflow runs on a stack, as the runner would; the exit code of the first that failed."""
    known = {
        "matrix.stack": fleet.stack.name,
        "vars.STATE_BACKEND": fleet.stack.env["PULUMI_BACKEND_URL"],
        "github.token": "a token",
        "github.event.pull_request.number": "7",
    }

    def environment(*sections: dict[str, str]) -> dict[str, str]:
        merged = {name: value for section in sections for name, value in section.items()}
        return {name: filled(value) for name, value in merged.items()}

    def filled(text: str) -> str:
        return re.sub(r"\$\{\{ ([\w.]+) \}\}", lambda found: known[found[1]], text)

    def runs(step: dict[str, Any]) -> bool:
        """After one that failed, only what says so; and what asks for a file, only if it is there."""
        condition = step.get("if", "")
        files = re.findall(r"hashFiles\('(.+?)'\)", condition)
        there = all((fleet.stack.folder / name).exists() for name in files)
        return "run" in step and there and (code == 0 or "always()" in condition)

    code = 0
    for job, step in jobs(workflow):
        if runs(step):
            done = subprocess.run(
                ["bash", "-eo", "pipefail", "-c", filled(step["run"])],
                cwd=fleet.stack.folder,
                env=fleet.stack.env | environment(job.get("env", {}), step.get("env", {})) | settings,
                timeout=TIMEOUT_S,
                check=False,
            )
            code = code or done.returncode
    return code


@pytest.fixture
def gh(fleet: Fleet, tmp_path: Path) -> Path:
    """GitHub's command line, which notes what it is asked. One comment of ours is there already."""
    for name in ("Makefile", "tools", "policy", ".github"):
        (fleet.stack.folder / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    noted = tmp_path / "asked"
    script = tmp_path / "bin" / "gh"
    script.write_text(
        f'#!/bin/sh\necho "$*" >>{noted}\n'
        f'for word; do case $word in body=@*) cat "${{word#body=@}}" >>{noted};; esac; done\n'
        'case "$*" in *"run list"*) echo ${UPDATES-0};; *--jq*) echo 4711;; esac\n'
    )
    script.chmod(0o755)
    # Set-up puts the checkout's programs first; this one is found before anything else of its name.
    fleet.stack.env["PATH"] = f"{script.parent}{os.pathsep}{fleet.stack.env['PATH']}"
    fleet.stack.env["GITHUB_REPOSITORY"] = "owner/fleet"
    return noted


def told(gh: Path) -> list[str]:
    """What people hear of."""
    return [line for line in gh.read_text().splitlines() if line.startswith("issue create")]


def test_a_pull_request_gets_its_comment_and_a_night_its_report(fleet: Fleet, gh: Path) -> None:
    fleet.run("up")
    fleet.config["nodes"][0]["root_volume_gb"] = 300
    fleet.write()
    seen = fleet.cloud.log()[-1]["seq"]
    assert run_steps(fleet, "preview.yml") == 0
    comment = gh.read_text()
    assert "--method PATCH repos/owner/fleet/issues/comments/4711" in comment
    assert "<!-- vllm-fleet preview -->\n### `test`: " in comment
    assert "| update in place | `a-root-volume` |" in comment
    assert "size_gb" in comment
    assert "EUR an hour" in comment or "EUR/h" in comment, "it tells the cost"

    fleet.config["nodes"][0]["root_volume_gb"] = 200
    fleet.write()
    gh.unlink()
    nightly = {"SEEN": str(gh.parent / "seen.json")}
    assert run_steps(fleet, "drift.yml", **nightly) == 0
    assert told(gh) == [], "nobody hears of no drift"
    assert {call["method"] for call in fleet.cloud.calls(after=seen)} == {"GET"}

    (server,) = fleet.cloud.inventory("server")
    httpx.patch(
        f"{fleet.cloud.scaleway_url}/instance/v1/zones/fr-par-2/servers/{server['id']}",
        json={"name": "mine now"},
        headers={"X-Auth-Token": fleet.cloud.secret_key},
    ).raise_for_status()
    report = fleet.stack.folder / "drift.md"
    assert run_steps(fleet, "drift.yml", **nightly) != 0
    assert told(gh) == ["issue create --title Drift in test --body-file drift.md"]
    assert "| cloud | a | a-server | name | test-a | mine now |" in report.read_text()
    report.unlink()  # a runner's checkout is fresh
    assert run_steps(fleet, "drift.yml", **nightly) != 0
    assert len(told(gh)) == 1, "the same drift is told once"
    assert run_steps(fleet, "drift.yml", UPDATES="1", **nightly) == 0, "an update is under way"


def groups(workflow: str) -> set[str]:
    document = yaml.safe_load((ROOT / ".github" / "workflows" / workflow).read_text())
    return {job["concurrency"]["group"] for job in document["jobs"].values()}


def test_no_other_workflow_can_drop_an_update_that_waits() -> None:
    others = [groups(workflow) for workflow in ("drift.yml", "reap.yml")]
    patterns = [
        re.escape(group).replace(re.escape("${{ matrix.stack }}"), ".*") for each in others for group in each
    ]
    assert [up for up in groups("up.yml") for pattern in patterns if re.fullmatch(pattern, up)] == []


def when_unlocked(tmp_path: Path, refusals: int, text: str, **environment: str) -> tuple[int, int]:
    """The exit code, and how often the command ran, of one that is refused so often and then ends with 7."""
    count = tmp_path / "count"
    command = tmp_path / "command"
    command.write_text(
        f"#!/bin/sh\necho x >>{count}\n"
        f"[ $(wc -l <{count}) -le {refusals} ] && {{ echo '{text}' >&2; exit 255; }}\nexit 7\n"
    )
    command.chmod(0o755)
    done = subprocess.run(
        [ROOT / ".github" / "when-unlocked.sh", command],
        env=os.environ | {"PAUSE_S": "0"} | environment,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.returncode, len(count.read_text().splitlines())


LOCKED = "error: the stack is currently locked by 1 lock(s)."


def test_an_update_waits_for_the_lock_and_for_nothing_else(tmp_path: Path) -> None:
    for folder in ("waits", "other", "late"):
        (tmp_path / folder).mkdir()
    assert when_unlocked(tmp_path / "waits", 3, LOCKED) == (7, 4)
    assert when_unlocked(tmp_path / "other", 3, "error: quota exceeded") == (255, 1)
    assert when_unlocked(tmp_path / "late", 3, LOCKED, WAIT_S="0") == (255, 1)


def test_every_action_is_pinned_to_a_commit_and_every_job_bounded() -> None:
    for workflow in WORKFLOWS:
        document = yaml.safe_load(workflow.read_text())
        assert "permissions" in document, workflow.name
        for job in document["jobs"].values():
            assert job["timeout-minutes"] <= 120
    texts = [path.read_text() for path in (*WORKFLOWS, *(ROOT / ".github" / "actions").rglob("*.yml"))]
    used = [found for text in texts for found in re.findall(r"uses: (\S+)", text)]
    assert used
    assert [
        name for name in used if not re.search(r"@[0-9a-f]{40}$", name) and not name.startswith("./")
    ] == []
