"""Who may use the keys of continuous integration: GitHub's environments, as the workflows here name them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fleet.check import Finding, Status

ASK_TIMEOUT_S = 30

Ask = Callable[[str], Any]
"""The JSON at a path of GitHub's API, relative to the repository; None for what is not there."""

REPOSITORY = "repos/{owner}/{repo}"
"""`gh` puts in the names itself."""


class CiError(Exception):
    """GitHub cannot be asked; the message says why and what to do."""


def check_environments(workflows: Path, ask: Ask) -> list[Finding]:
    """A finding for each environment that a workflow in the folder uses. Raises CiError."""
    wanted: dict[str, bool] = {}
    for file in sorted(workflows.glob("*.yml")):
        for name, for_pull_requests in _environments(file):
            wanted[name] = wanted.get(name, False) or for_pull_requests
    return [
        _for_pull_requests(name, ask) if for_pull_requests else _for_branches(name, ask)
        for name, for_pull_requests in wanted.items()
    ]


def _environments(file: Path) -> Iterator[tuple[str, bool]]:
    """Each environment of a workflow, and whether what a pull request proposes runs in it."""
    import yaml  # noqa: PLC0415  --help does without

    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    # YAML 1.1 takes the key `on` for true.
    events = document.get("on", document.get(True)) or ()
    for job in document["jobs"].values():
        named = job.get("environment")
        name = str(named.get("name") if isinstance(named, Mapping) else named or "")
        stacks = job.get("strategy", {}).get("matrix", {}).get("stack", [""])
        for stack in stacks if name else ():
            yield name.replace("${{ matrix.stack }}", stack), "pull_request" in events


def _for_branches(name: str, ask: Ask) -> Finding:
    """Keys that may change something, or log in to nodes, are for what was reviewed and merged."""
    found = ask(f"environments/{name}")
    fix = (
        f"gh api --method PUT '{REPOSITORY}/environments/{name}' "
        "-F 'deployment_branch_policy[protected_branches]=true' "
        "-F 'deployment_branch_policy[custom_branch_policies]=false'"
    )
    if found is None:
        return Finding("github", name, Status.FAILED, "there is no such environment", fix)
    policy = found.get("deployment_branch_policy") or {}
    if policy.get("protected_branches"):
        return Finding("github", name, Status.OK, "for protected branches alone")
    if not policy.get("custom_branch_policies"):
        return Finding("github", name, Status.FAILED, "any branch may use its keys", fix)
    listed = ask(f"environments/{name}/deployment-branch-policies") or {}
    open_ = [each["name"] for each in listed.get("branch_policies", []) if not _is_protected(each, ask)]
    if open_:
        return Finding("github", name, Status.FAILED, f"unprotected {', '.join(open_)} may use its keys", fix)
    return Finding("github", name, Status.OK, "for protected branches alone, by name")


def _is_protected(policy: Mapping[str, Any], ask: Ask) -> bool:
    if policy.get("type", "branch") != "branch" or "*" in policy["name"]:
        return False
    branch = ask(f"branches/{policy['name']}")
    return bool(branch and branch.get("protected"))


def _for_pull_requests(name: str, ask: Ask) -> Finding:
    """What a pull request proposes runs with these keys before anybody has read it, unless somebody must."""
    found = ask(f"environments/{name}") or {}
    rules = {rule.get("type") for rule in found.get("protection_rules", [])}
    if "required_reviewers" in rules:
        return Finding("github", name, Status.OK, "reviewers allow each run")
    fix = (
        "give it required reviewers, unless everybody who may push may read the stacks' settings; "
        "docs/environments.md"
    )
    seen = "whoever may push can run code with its keys, by a pull request"
    return Finding("github", name, Status.WARNING, seen, fix)


def ask_github(path: str) -> Any:
    """Ask through GitHub's command line, which has the user's own login. Raises CiError."""
    try:
        done = subprocess.run(
            ["gh", "api", f"{REPOSITORY}/{path}"],
            capture_output=True,
            text=True,
            timeout=ASK_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise CiError("gh is not on PATH. Fix: install it from cli.github.com, then: gh auth login") from None
    except subprocess.TimeoutExpired:
        raise CiError(f"GitHub gave no answer within {ASK_TIMEOUT_S} s. Fix: try again") from None
    if "HTTP 404" in done.stderr:
        return None
    if done.returncode:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise CiError(f"gh api: {said}. Fix: gh auth login, as somebody who may read the settings")
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise CiError("gh api answered something else than JSON. Fix: try again, with a current gh") from None
