"""`fleet validate`: wrong files are refused with field, value and fix; right ones pass."""

from __future__ import annotations

import json
import subprocess
import sys
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
from test_settings import ran
from typer.testing import CliRunner

from fleet.cli import app
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


def test_everything_wrong_is_said_at_once(folder: Path) -> None:
    config = base()
    config["nodes"].append({"name": "b", "cloud": "scaleway", "zone": "fr-par-9"})
    config["nodes"].append({"name": "c", "cloud": "scaleway", "serving": {"model": "Qwen/Qwen3-32B"}})
    config["serving"]["port"] = 80
    config["access"] = {"ssh_cidrs": ["home"], "ssh_private_key_path": "gone"}
    config["bugdet"] = {}
    config["rollout"] = {"canary": "z"}
    config["provision"] = {"scripts": ["gone.sh"]}
    del config["secrets"]
    said = {problem.path for problem in judged(folder, config).problems}
    assert said == {
        *("nodes[1].zone", "serving.port", "access.ssh_cidrs[0]", "bugdet", "secrets", "rollout.canary"),
        *("access.ssh_private_key_path", "provision.scripts[0].path"),
    }
    del config["serving"]["port"]
    del config["nodes"][1]
    said = {problem.path for problem in judged(folder, config).problems}
    assert "nodes[1].serving" in said, "a model that does not fit is found beside what is wrong elsewhere"


def test_places_count_in_the_list_as_it_was_written(folder: Path) -> None:
    config = base()
    config["nodes"] = [
        {"name": "Bad_Name", "cloud": "scaleway"},
        {"name": "b", "cloud": "scaleway", "serving": {"model": "Qwen/Qwen3-32B"}},
    ]
    assert [each.path for each in judged(folder, config).problems] == ["nodes[0].name", "nodes[1].serving"]


def test_it_prints_json_and_ends_with_one_where_something_is_wrong(folder: Path) -> None:
    wrong = write(folder, put(base(), "nodes.0.root_volume_gb", 120))
    result = CliRunner().invoke(app, ["validate", str(wrong), "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "ok": False,
        "problems": [
            {
                "field": "nodes[0].root_volume_gb",
                "value": "120",
                "problem": "120 is below Scaleway's working minimum of 150 (image, weights, caches)",
                "fix": "use 150 or more",
            }
        ],
        "warnings": [],
    }
    printed = CliRunner().invoke(app, ["validate", str(wrong)])
    assert printed.exit_code == 1
    assert "Fix: use 150 or more" in printed.stdout

    unknown = write(folder, put(base(), "serving.model", "acme/nobody-knows-it"))
    result = CliRunner().invoke(app, ["validate", str(unknown), "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["ok"], found["problems"]) == (True, [])
    assert "whether acme/nobody-knows-it fits is unknown" in found["warnings"][0]


def test_it_needs_neither_engine_nor_account_nor_network(folder: Path) -> None:
    path = write(folder, put(base(), "serving.model", "acme/nobody-knows-it"))
    program = f"""
import socket, sys
def refuse(*_): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
from typer.testing import CliRunner
from fleet.cli import app
result = CliRunner().invoke(app, ["validate", {str(path)!r}])
assert result.exit_code == 0, result.output
slow = [name for name in ("pulumi", "pulumi_policy", "httpx", "boto3", "asyncssh") if name in sys.modules]
assert not slow, slow
"""
    environment = {"PATH": "/nowhere", "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("", "nodes", "is missing"),
        ("[]", "file", "is not a set of keys"),
        ("config: []", "config", "is not a set of keys"),
        ("confg: {}", "confg", "did you mean config?"),
        ("config:\n\ta: 1", "file", "is not YAML (line 2"),
        ("config: {a: 1", "file", "is not YAML"),
        ("config: {}\nconfig: {}", "config", "is there twice, again in line 2; keep one"),
        ("config:\n  vllm-fleet:ray: []\n  vllm-fleet:ray: []", "vllm-fleet:ray", "is there twice"),
        ("config: {'a:b:c:d': 1}", "a:b:c:d", "is not a configuration key"),
        ("config: {'vllm-fleet:nodes': [&a [*a]]}", "file", "more values than a configuration has"),
        ("[" * 100_000, "file", "nested far too deep"),
        ("config: {'vllm-fleet:nodes': !!python/object:os.system x}", "file", "is not YAML"),
        ("config: {a: " + "9" * 5000 + "}", "file", "has a value that nothing can read"),
        ('config: {"vllm-fleet:fit": {"override": "\\ud800"}}', "file", "is not YAML"),
        ("x: " + "y" * 1_100_000, "file", "bytes"),
    ],
    ids=range(15),
)
def test_a_file_that_is_no_stacks_is_refused(folder: Path, text: str, field: str, said: str) -> None:
    path = folder / "Pulumi.odd.yaml"
    path.write_text(text)
    found = {problem.path: problem.message for problem in validate(path).problems}
    assert said in found[field]


def test_aliases_that_make_billions_of_values_are_refused(folder: Path) -> None:
    lines = ["x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"x{at}: &x{at} [{', '.join([f'*x{at - 1}'] * 10)}]" for at in range(1, 10)]
    path = folder / "Pulumi.bomb.yaml"
    path.write_text("config:\n" + "\n".join(f"  {line}" for line in lines))
    assert "more values" in validate(path).problems[0].message


@pytest.mark.parametrize("data", [b"\xff\xfe", b"config: \xe9", b"\x00"])
def test_a_file_that_is_not_text_is_refused(folder: Path, data: bytes) -> None:
    path = folder / "Pulumi.binary.yaml"
    path.write_bytes(data)
    assert [problem.path for problem in validate(path).problems] == ["file"]
    assert [problem.path for problem in validate(folder / "gone.yaml").problems] == ["file"]
    assert [problem.path for problem in validate(folder).problems] == ["file"]


def test_policies_are_as_strict_as_their_file_for_the_stack_says(folder: Path) -> None:
    config = put(base(), "access.ssh_cidrs", ["0.0.0.0/0"])
    policies = folder / "policy"
    policies.mkdir()
    (policies / "config.dev.json").write_text('{"all": "advisory"}')
    (policies / "config.off.json").write_text('{"ssh-from-known-addresses": "disabled"}')
    (policies / "config.why.json").write_text('{"ssh-from-known-addresses": {"waiver": "a honeypot"}}')
    (policies / "config.small.json").write_text('{"within-budget": {"max_cost_per_month": 10}}')
    assert "ssh-from-known-addresses" in judged(folder, config, "test").problems[0].problem
    advised = judged(folder, config, "dev")
    assert advised.ok
    assert "open to the internet" in advised.warnings[0]
    for stack in ("off", "why"):
        assert judged(folder, config, stack) == Verdict((), ())
    assert [each.path for each in judged(folder, base(), "small").problems] == ["nodes"]


def test_machines_of_production_are_protected(folder: Path) -> None:
    assert [each.path for each in judged(folder, base(), "prod").problems] == ["nodes[0].protect"]
    assert judged(folder, put(base(), "nodes.0.protect", True), "prod").ok


def test_paths_in_a_file_count_from_its_folder(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert judged(folder, base()).ok


def test_a_secret_is_never_shown(folder: Path) -> None:
    secret = "hf_plantedplantedplanted"
    for path in ("secrets.hf_token", "secrets.hftoken", "serving.hf_token", "serving.model", "access.key"):
        path_of = write(folder, put(base(), path, secret))
        for flags in ((), ("--json",)):
            result = CliRunner().invoke(app, ["validate", str(path_of), *flags])
            assert result.exit_code == 1
            assert secret not in result.output


def test_a_preview_says_the_same(folder: Path) -> None:
    cases = [case for case in WRONG if asked_of_the_program(case)]
    assert len(cases) > 120
    configurations = [as_the_program_gets_it(changed(case), folder) for case in cases]
    for case, result in zip(cases, ran(configurations), strict=True):
        (problem,) = judged(folder, changed(case)).problems
        assert str(problem) in result["said"]
        assert result["exit"] == 1
        assert result["registered"] == []


def asked_of_the_program(case: Wrong) -> bool:
    """Secrets and policies are the engine's to refuse; JSON knows no infinity; a path is its folder's."""
    engines = case.path.startswith("secrets") or "internet" in case.said or ":" in case.path
    relative = case.path in ("access.ssh_private_key_path", "provision")
    relative |= case.named == "network.ca_certificates"
    return not (engines or relative or isinstance(case.value, float))


def as_the_program_gets_it(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """With secrets in clear."""
    if "secrets" in config:
        config["secrets"] = {"api_key": "0123456789abcdef"}
    if isinstance(config.get("access"), dict):
        config["access"]["ssh_private_key_path"] = str(folder / "id_ed25519")
    return config
