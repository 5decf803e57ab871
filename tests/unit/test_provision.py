"""Provisioning: what the settings say, what the phases become, and how a run of them goes."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import pytest_asyncio
from fake_node import Answer, FakeNode, FastClock
from light_fleet import light_fleet
from typer.testing import CliRunner

from fleet import settings
from fleet import spec as specs
from fleet.cli import app
from fleet.commands.provision import specs_of, table
from fleet.inventory import InventoryError, nodes_of
from fleet.progress import Progress
from fleet.provision import process
from fleet.provision.phases import Phase, files_digest, phases_of
from fleet.provision.process import BOOT_ID, REBOOT_NEEDED, REFUSED, TIMED_OUT, Outcome, Report, provision
from fleet.provision.spec import ProvisionSpec
from fleet.settings.schema import json_schema
from fleet.ssh import Target
from fleet.sync import Copy, Synced

# --- Settings ---------------------------------------------------------------------------------------------


def stack(key: Path, given: dict[str, Any], **node: Any) -> settings.StackSettings:
    key.touch(mode=0o600)
    return settings.parse(
        {
            "nodes": [{"name": "l4-a", "cloud": "scaleway", **node}],
            "serving": {"model": "Qwen/Qwen3-8B-AWQ"},
            "access": {"ssh_cidrs": ["203.0.113.7/32"], "ssh_private_key_path": str(key)},
            "secrets": {"api_key": "key-0123456789abcdef"},
            "provision": given,
        }
    )


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"cuda": True}, "provision.cuda: is not a setting"),
        ({"pythn": True}, "provision.pythn: is not a setting; did you mean python?"),
        ({"docker": "yes"}, "provision.docker: 'yes' is not a set of keys"),
        ({"packages": ["Git"]}, "provision.packages[0]: 'Git' is no Debian package; write it like git"),
        ({"python": {"version": "3"}}, "provision.python.version: '3' is no Python version"),
        ({"python": {"packages": ["numpy"]}}, "'numpy' is not pinned; write name==version"),
        ({"conda": {"environments": [{"name": "a b"}]}}, "environments[0].name: 'a b' is no name"),
        ({"conda": {"environments": [{"name": "base"}]}}, "'base' is Conda's own environment; name another"),
        (
            {"conda": {"environments": [{"name": "a"}, {"name": "a"}]}},
            "provision.conda.environments: a is there 2 times; keep one",
        ),
        ({"conda": {"installer": "py313_25.9.1-3"}}, "provision.conda.sha256: is that of py312_25.1.1-2"),
        ({"gpu": {"cuda": "11.8"}}, "provision.gpu.cuda: '11.8' is not one of the choices; use '12.2'"),
        (
            {"gpu": {"cuda": "12.4", "driver_branch": 535}},
            "provision.gpu.cuda: 12.4 needs driver 550 or newer, not 535; use 12.2 at most",
        ),
        ({"ray": {"conda_environment": "x"}}, "conda_environment: no environment is named x; add it"),
        ({"environment": {"HF_TOKEN": "x"}}, "carries HF_TOKEN, which looks like a secret"),
        ({"scripts": ["nowhere.sh"]}, "provision.scripts[0].path: nowhere.sh is not a file"),
        (
            {"files": [{"source": "nowhere", "destination": "/srv"}]},
            "provision.files[0].source: nowhere is not there",
        ),
        ({"working_directory": "srv"}, "provision.working_directory: 'srv' is not an absolute path"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_fix(
    tmp_path: Path, given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(settings.SettingsError) as raised:
        stack(tmp_path / "key", given)
    (found,) = raised.value.problems
    assert problem in str(found)


def test_a_driver_that_the_image_does_not_bring_is_refused_before_anything_is_paid(tmp_path: Path) -> None:
    with pytest.raises(settings.SettingsError, match="this node gets driver 580, not 550; leave it out"):
        stack(tmp_path / "key", {"gpu": {"driver_branch": 550}})
    linode = {"cloud": "linode", "region": "us-ord", "driver_branch": 535}
    with pytest.raises(settings.SettingsError, match=r"gpu\.cuda: 12\.8 needs driver 570 or newer, not 535"):
        stack(tmp_path / "key", {"gpu": {"cuda": "12.8"}}, **linode)


def test_a_node_has_the_stacks_phases_with_its_own_put_over_them(tmp_path: Path) -> None:
    given = {"packages": True, "ray": True}
    (node,) = stack(tmp_path / "key", given, provision={"ray": False, "docker": True}).nodes
    wanted = [phase.name for phase in phases_of(node.provision, "root")]
    assert wanted == ["packages", "docker"]
    assert stack(tmp_path / "key", given).nodes[0].provision.packages == ("build-essential", "curl", "git")


def test_editors_take_the_short_forms_too() -> None:
    short = {"packages": True, "python": False, "gpu": {"cuda": None}, "scripts": ["a.sh", {"path": "b.sh"}]}
    jsonschema.validate({"config": {"vllm-fleet:provision": short}}, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"config": {"vllm-fleet:provision": {"docker": 1}}}, json_schema())


# --- Phases -----------------------------------------------------------------------------------------------


def given(**phases: Any) -> settings.Provision:
    return settings.Provision.model_validate(phases)


def test_nothing_is_done_unless_it_is_named() -> None:
    assert phases_of(given(), "root") == ()
    assert not given(ssh={"tries": 5}).named
    assert given(docker=True).named


def told(phases: tuple[Phase, ...], name: str) -> dict[str, str]:
    (phase,) = [phase for phase in phases if phase.name == name]
    return dict(word.split("=", 1) for word in phase.environment)


@pytest.mark.parametrize(
    ("cuda", "branch"), [("12.2", "535"), ("12.4", "550"), ("12.6", "565"), (None, "535")]
)
def test_the_driver_installed_is_the_oldest_that_runs_the_cuda(cuda: str | None, branch: str) -> None:
    gpu = told(phases_of(given(gpu={"cuda": cuda}), "root"), "gpu")
    assert (gpu["INSTALL"], gpu["BRANCH"], gpu["DETECT"]) == (branch, "", "auto")
    assert gpu["CUDNN"] == ("cudnn9-cuda-12" if cuda else "")


def test_the_login_user_may_use_docker_and_owns_where_shells_begin() -> None:
    phases = phases_of(given(docker={"users": ["dev"]}, working_directory="/srv/work"), "ubuntu")
    assert told(phases, "docker")["USERS"] == "dev ubuntu"
    assert told(phases, "environment")["OWNER"] == "ubuntu"


def test_values_of_variables_are_quoted_for_the_shell() -> None:
    profile = told(phases_of(given(environment={"A": "it's $HOME; x"}), "root"), "environment")["PROFILE"]
    assert profile == """export A='it'"'"'s $HOME; x'"""


def test_a_changed_script_or_file_is_a_change_of_the_stack(tmp_path: Path) -> None:
    script, folder = tmp_path / "a.sh", tmp_path / "data"
    folder.mkdir()
    (folder / "one").write_text("1")
    wanted = given(scripts=[str(script)], files=[{"source": f"{folder}/", "destination": "/srv"}])
    seen = set()
    for text in ("one", "two"):
        script.write_text(text)
        seen.add(told(phases_of(wanted, "root"), "scripts")["DIGEST"])
    digests = {files_digest(wanted)}
    (folder / "one").write_text("2")
    assert len(seen) == len(digests | {files_digest(wanted)}) == 2


def test_files_bring_rsync_and_keep_the_slash_that_means_the_content() -> None:
    packages, files = phases_of(given(files=[{"source": "prompts/", "destination": "/srv/p"}]), "root")
    assert packages.environment == ("PACKAGES=rsync",)
    assert files.copy == Copy("prompts/", "/srv/p")


# --- A run ------------------------------------------------------------------------------------------------


class Node(FakeNode):
    """A machine on which nothing is installed. It answers what the phases' scripts would."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.there: set[str] = set()
        self.applied: list[str] = []
        self.on_apply: dict[str, Callable[[], Answer]] = {}
        self.files[BOOT_ID] = b"one\n"
        self.log = ""

    def _file_command(self, argv: list[str], stdin: bytes) -> Answer | None:
        if argv[0] == "flock":
            phase = next(word for word in argv if word.startswith("PHASE=")).removeprefix("PHASE=")
            mode = stdin.decode().splitlines()[-1].split()[1]
            return self._check(phase) if mode == "check" else self._apply(phase)
        if argv[0] == "tail":
            return Answer(self.log)
        if argv[0] == "sh" and "reboot" in argv[2]:
            assert argv[3] == "one"
            self.files[BOOT_ID] = b"two\n"
            return Answer()
        return super()._file_command(argv, stdin)

    def _check(self, phase: str) -> Answer:
        return Answer() if phase in self.there | {"ssh"} else Answer(f"no {phase}\n")

    def _apply(self, phase: str) -> Answer:
        self.applied.append(phase)
        if phase in self.on_apply:
            return self.on_apply[phase]()
        self.there.add(phase)
        return Answer()


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with Node(tmp_path).running() as running:
        assert isinstance(running, Node)
        yield running


THREE = tuple(Phase(name, name) for name in ("packages", "docker", "ray"))


async def run(node: Node, phases: tuple[Phase, ...] = THREE, **how: Any) -> Report:
    spec = ProvisionSpec("l4-a", "scaleway", node.target, phases, ssh_tries=3)
    return await provision(spec, Progress("l4-a"), clock=FastClock().clock(), **how)


def outcomes(report: Report) -> dict[str, str]:
    return {phase.phase: str(phase.outcome) for phase in report.phases[2:]}


def reason(report: Report) -> process.Failure:
    assert report.failed is not None and report.failed.failure is not None
    return report.failed.failure


async def test_a_second_run_changes_nothing_and_says_so(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node.there = {"docker"}
    assert outcomes(await run(node)) == {"packages": "applied", "docker": "unchanged", "ray": "applied"}
    capsys.readouterr()
    report = await run(node)
    assert outcomes(report) == dict.fromkeys(("packages", "docker", "ray"), "unchanged")
    assert node.applied == ["packages", "ray"]
    assert "docker: unchanged" in capsys.readouterr().err
    assert table([report])[2] == "l4-a  packages  unchanged"


async def test_a_plan_only_looks(node: Node) -> None:
    node.there = {"docker"}
    report = await run(node, plan=True)
    assert outcomes(report) == {"packages": "would run", "docker": "unchanged", "ray": "would run"}
    assert report.phases[2].missing == ("no packages",)
    assert node.applied == []


async def test_a_plan_looks_at_what_comes_after_a_phase_that_cannot_be(node: Node) -> None:
    check = node._check
    refused = Answer(
        status=REFUSED, stderr="refused: this machine has Docker 26, not 20\nfix: another image\n"
    )
    node._check = lambda phase: refused if phase == "docker" else check(phase)  # type: ignore[method-assign]
    report = await run(node, plan=True)
    assert outcomes(report) == {"packages": "would run", "docker": "failed", "ray": "would run"}
    assert reason(report).status == "this machine has Docker 26, not 20"


async def test_only_the_named_phase_is_run(node: Node) -> None:
    await run(node, only=["ray"])
    assert node.applied == ["ray"]


async def test_a_failure_tells_phase_command_output_and_fix_and_a_rerun_goes_on_there(node: Node) -> None:
    node.on_apply["docker"] = lambda: Answer(status=100)
    node.log = "Reading lists\nE: Could not get lock hf_abcdefgh\ncommand: apt --error-on=any update\n"
    report = await run(node)
    assert outcomes(report) == {"packages": "applied", "docker": "failed", "ray": "not reached"}
    failure = reason(report)
    assert (failure.command, failure.status) == ("apt --error-on=any update", "exit status 100")
    assert failure.output == ("Reading lists", "E: Could not get lock ***")
    assert "unattended-upgrades" in failure.fix
    assert "phase docker failed: exit status 100" in report.failure_text()
    assert "fleet provision l4-a" in report.failure_text()

    del node.on_apply["docker"]
    assert outcomes(await run(node)) == {"packages": "unchanged", "docker": "applied", "ray": "applied"}


async def test_what_a_script_refuses_comes_with_its_own_fix(node: Node) -> None:
    node.on_apply["docker"] = lambda: Answer(status=REFUSED)
    node.log = "refused: there is no user dev\nfix: correct docker.users\n"
    failure = reason(await run(node))
    assert (failure.status, failure.fix, failure.output) == (
        "there is no user dev",
        "correct docker.users",
        (),
    )


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("ERROR: No matching distribution found for ray==9.9.9", "PyPI has no such one for this Python"),
        ("PackagesNotFoundError: The following packages are not available", "add the channel that has it"),
        ("no space left on device", "raise root_volume_gb"),
        ("something new", "read all it said: fleet exec l4-a -- cat /var/log/vllm-fleet/provision-ray.log"),
    ],
)
async def test_what_tools_say_comes_with_a_fix(node: Node, said: str, fix: str) -> None:
    node.on_apply["ray"] = lambda: Answer(status=1)
    node.log = f"{said}\n"
    assert fix in reason(await run(node, THREE[2:])).fix


async def test_a_phase_that_does_not_end_is_ended_on_the_node_and_told(node: Node) -> None:
    node.on_apply["ray"] = lambda: Answer(status=TIMED_OUT)
    report = await run(node, (Phase("ray", "ray", timeout_s=7),))
    assert reason(report).status == "no end within 7 s"
    limited = r"flock .* timeout --kill-after=\d+ 7 env PHASE=ray bash -s"
    assert any(re.search(limited, ran) for ran in node.ran)


async def test_a_phase_that_brings_something_else_has_failed(node: Node) -> None:
    node.on_apply["ray"] = Answer
    failure = reason(await run(node))
    assert failure.output == ("no ray",)
    assert "correct the version" in failure.fix


async def test_a_driver_is_loaded_by_a_restart(node: Node) -> None:
    def installed() -> Answer:
        node.there.add("gpu")
        return Answer(status=REBOOT_NEEDED)

    node.on_apply["gpu"] = installed
    report = await run(node, (Phase("gpu", "gpu"),))
    assert (report.phases[2].outcome, report.phases[2].note) == ("applied", "the machine was restarted")
    assert node.files[BOOT_ID] == b"two\n"


async def test_a_connection_lost_meanwhile_is_made_again(node: Node) -> None:
    def lost() -> Answer:
        if len(node.applied) == 1:
            node.hang_up()
        node.there.add("packages")
        return Answer()

    node.on_apply["packages"] = lost
    assert outcomes(await run(node, THREE[:1])) == {"packages": "applied"}


async def test_a_network_that_carries_no_run_is_told_with_the_phase(node: Node) -> None:
    def lost() -> Answer:
        node.hang_up()
        return Answer()

    node.on_apply["docker"] = lost
    report = await run(node)
    assert outcomes(report) == {"packages": "applied", "docker": "failed", "ray": "not reached"}
    assert "lost" in reason(report).output[0]


async def test_a_node_that_does_not_answer_is_given_up_after_its_tries(tmp_path: Path) -> None:
    node, clock = Node(tmp_path), FastClock()
    async with node.running():
        target = node.target
    spec = ProvisionSpec("l4-a", "scaleway", target, THREE, ssh_tries=3, ssh_pause_s=2)
    report = await provision(spec, Progress("l4-a"), clock=clock.clock())
    assert clock.seconds == 4
    assert report.phases[1].outcome is Outcome.FAILED
    assert outcomes(report) == dict.fromkeys(("packages", "docker", "ray"), "not reached")
    assert "connection refused" in reason(report).output[0]


async def test_the_first_boot_is_seen_through_before_anything_is_installed(node: Node) -> None:
    looks = iter([Answer("cloud-init is running\n"), Answer()])
    check = node._check
    node._check = lambda phase: next(looks) if phase == "ssh" else check(phase)  # type: ignore[method-assign]
    assert outcomes(await run(node, THREE[:1])) == {"packages": "applied"}
    assert next(looks, None) is None


async def test_a_script_that_was_changed_meanwhile_is_not_run(node: Node, tmp_path: Path) -> None:
    script = tmp_path / "setup.sh"
    script.write_text("one")
    phases = phases_of(given(scripts=[str(script)]), "root")
    script.write_text("two")
    assert "changed meanwhile" in reason(await run(node, phases)).status
    assert node.applied == []


async def test_files_are_copied_where_a_dry_run_finds_a_difference(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[Copy] = []

    async def copy_to(name: str, _target: Target, copy: Copy) -> Synced:
        changed = "<f+++ one.txt\n" if len(copied) < 2 else ""
        copied.append(copy)
        return Synced(name, 0, changed)

    monkeypatch.setattr(process, "copy_to", copy_to)
    node.commands |= {"test -d /srv": Answer(), "mkdir -p /srv": Answer()}
    phases = (Phase("files", part="/srv/p", copy=Copy("p/", "/srv/p")),)
    assert outcomes(await run(node, phases)) == {"files /srv/p": "applied"}
    assert outcomes(await run(node, phases)) == {"files /srv/p": "unchanged"}
    assert [copy.dry_run for copy in copied] == [True, False, True]


async def test_a_light_node_remembers_what_it_was_given_and_runs_none_of_it_here(tmp_path: Path) -> None:
    wanted = given(packages=["no-such-package"], environment={"A": "a; b | c"})
    async with light_fleet(tmp_path, 1) as fleet:

        async def once() -> Report:
            phases = phases_of(wanted, "root")
            return await provision(ProvisionSpec("n-0", "scaleway", fleet.target(0), phases), Progress("n-0"))

        assert set(outcomes(await once()).values()) == {"applied"}
        assert set(outcomes(await once()).values()) == {"unchanged"}


# --- The command ------------------------------------------------------------------------------------------


def test_the_commands_spec_goes_through_json(tmp_path: Path) -> None:

    script = tmp_path / "a.sh"
    script.touch()
    wanted = given(docker=True, scripts=[str(script)], files=[{"source": "p", "destination": "/srv/p"}])
    target = Target("127.0.0.1", ("ssh-ed25519 AAAA",), private_key_path=tmp_path / "key")
    spec = ProvisionSpec("l4-a", "scaleway", target, phases_of(wanted, "root"))
    assert specs.parse(ProvisionSpec, json.loads(json.dumps(asdict(spec), default=str))) == spec


def test_a_phase_that_there_is_not_is_named_with_those_there_are() -> None:
    result = CliRunner().invoke(app, ["provision", "all", "--only", "cuda"], prog_name="fleet")
    assert result.exit_code == 2
    assert "'cuda' is no phase; use one of: machine, ssh, packages, python" in " ".join(result.stderr.split())


def test_a_node_that_the_configuration_does_not_have_is_named(tmp_path: Path) -> None:

    key = tmp_path / "key"
    key.touch(mode=0o600)
    config = {
        "vllm-fleet:nodes": {"objectValue": [{"name": "l4-a", "cloud": "scaleway"}]},
        "vllm-fleet:serving": {"objectValue": {"model": "Qwen/Qwen3-8B-AWQ"}},
        "vllm-fleet:access": {
            "objectValue": {"ssh_cidrs": ["203.0.113.7/32"], "ssh_private_key_path": str(key)}
        },
        "vllm-fleet:secrets": {"objectValue": {"api_key": "key-0123456789abcdef"}},
        "vllm-fleet:provision": {"objectValue": {"docker": True, "ssh": {"tries": 5}}},
    }
    entry = {"id": "1", "cloud": "scaleway", "zone": "z", "type": "t", "container": "vllm", "ports": {}}
    ssh = {"host": "127.0.0.1", "port": 22, "user": "root", "private_key_path": str(key), "host_keys": ["k"]}
    nodes = nodes_of({"nodes": {name: {**entry, "model": "m", "ssh": ssh} for name in ("l4-a", "gone")}})
    (spec,) = specs_of(nodes[:1], config)
    assert (spec.ssh_tries, [phase.name for phase in spec.phases]) == (5, ["docker"])
    with pytest.raises(InventoryError, match="gone is not in the configuration any more"):
        specs_of(nodes, config)
