"""Set-up, the language host and the engine together."""

import os
import shutil
import subprocess
import sys

import pytest
from fleets import running_fleet
from harness import ROOT, TIMEOUT_S, alive, descendants, wait_for

from tools import langhost, setup
from tools.protocol import language_pb2_grpc

INSTALL_S = 900
"""Seconds for pip to install and compile 55 packages, one of which has ten thousand files."""

DYNAMIC = """
    import pulumi
    from pulumi.dynamic import CreateResult, ReadResult, Resource, ResourceProvider

    class Provider(ResourceProvider):
        def create(self, props):
            return CreateResult("one", props)

        def read(self, id_, props):
            found = {"size": int(open("size").read())}
            return ReadResult(id_, found, found)

    class Disk(Resource):
        size: pulumi.Output[int]

        def __init__(self, name, size):
            super().__init__(Provider(), name, {"size": size})

    pulumi.export("size", Disk("disk", 20).size)
"""

POLICY = """
    from pulumi_policy import EnforcementLevel, PolicyPack, ResourceValidationPolicy
    from limit import LARGEST

    def small(args, report):
        if args.props.get("size", 0) > LARGEST:
            report(f"a disk of {args.props['size']:g} is larger than {LARGEST}")

    PolicyPack("sizes", [ResourceValidationPolicy(
        name="small", description="Disks are small.", enforcement_level=EnforcementLevel.MANDATORY,
    validate=small, )])
"""


def test_a_second_set_up_does_nothing(engine_env):
    done = subprocess.run(
        ["python3", "tools/setup.py"], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def settings_of(*words, **environment):
    """What a shell has of the engine after `make env`, and the umask."""
    script = f'settings=$(make -s env {" ".join(words)}) && eval "$settings" && umask && env'
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PULUMI_")}
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    umask, _, lines = done.stdout.partition("\n")
    return (
        done,
        umask,
        {name: value for name, _, value in (line.partition("=") for line in lines.splitlines())},
    )


CHOSEN = ("PULUMI_STACK", "PULUMI_BACKEND_URL", "PULUMI_CONFIG_PASSPHRASE")


def test_the_shell_settings_name_neither_backend_nor_passphrase_but_for_the_development_stack():
    _, umask, plain = settings_of()
    assert umask == "0077"
    assert "PULUMI_HOME" in plain and not set(CHOSEN) & plain.keys()

    _, _, development = settings_of("STACK=dev")
    assert [development[name] for name in CHOSEN] == [
        "dev",
        f"file://{ROOT}/.fleet/state?metadata=skip",
        "development",
    ]
    # A shell that has been the development stack's is so no longer.
    _, _, plain = settings_of(**development)
    assert not set(CHOSEN) & plain.keys()


@pytest.mark.parametrize("shell", ["clean", "development"])
def test_a_stack_of_another_name_has_a_backend_of_its_own_or_is_refused(shell):
    before = settings_of("STACK=dev")[2] if shell == "development" else {}
    refused, _, _ = settings_of("STACK=first", **before)
    assert refused.returncode != 0
    assert "stack first has no backend" in refused.stderr and "Fix: give BACKEND=" in refused.stderr
    _, _, own = settings_of("STACK=first", "BACKEND='s3://b?region=r&x=y'", **before)
    assert [own.get(name) for name in CHOSEN] == ["first", "s3://b?region=r&x=y", None]
    _, _, own = settings_of("STACK=first", PULUMI_BACKEND_URL="s3://c", PULUMI_CONFIG_PASSPHRASE="mine")
    assert [own.get(name) for name in CHOSEN] == ["first", "s3://c", "mine"]


def test_a_missing_go_is_told_with_what_why_and_how(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(setup.SetupError, match=r"^missing: Go 1\.25 or newer, which builds .* install it"):
        setup.build_engine(tmp_path / "engine", setup.engine_version())


def test_a_release_that_is_not_the_published_one_is_refused(monkeypatch, tmp_path):
    release = tmp_path / "pulumi.tar.gz"
    release.write_bytes(b"not Pulumi")
    monkeypatch.setattr(setup, "RELEASE_URL", release.as_uri())
    with pytest.raises(OSError, match="not the published one"):
        setup.download_engine(tmp_path / "engine", setup.engine_version())
    assert not (tmp_path / "engine").exists()


def test_a_folder_is_made_whole_or_not_at_all(tmp_path):
    def fill_and_fail():
        with setup.made_whole(tmp_path / "engine") as draft:
            (draft / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_program_previews_without_a_warning(pulumi):
    result = pulumi("").run("preview")
    assert result.changes == {"create": 1}
    assert "warning" not in result.stdout


def test_the_program_sees_its_settings_and_its_prints_reach_the_user(pulumi):
    stack = pulumi(
        """
        import pulumi
        print("said by the program")
        pulumi.export("greeting", pulumi.Config().require("greeting"))
        """,
        config={"greeting": "hello"},
    )
    assert "said by the program" in stack.run("up").stdout
    assert stack.outputs() == {"greeting": "hello"}


def test_a_program_that_raises_fails_with_its_own_traceback(pulumi):
    result = pulumi("raise LookupError('the reason')").run("preview", expect_failure=True)
    assert "LookupError: the reason" in result.stdout


def test_a_virtual_environment_without_python_or_pip_is_refused_as_by_the_original(pulumi):
    stack = pulumi("")
    (stack.folder / "Pulumi.yaml").write_text(
        "name: project\nruntime: {name: python, options: {virtualenv: env}}\n"
    )
    (stack.folder / "env").mkdir()
    (stack.folder / "env" / "file").touch()
    assert "holds no Python. Fix: run `pulumi install`" in stack.run("preview", expect_failure=True).stdout
    (stack.folder / "env" / "file").unlink()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", stack.folder / "env"], check=True)
    assert "No module named pip" in stack.run("preview", expect_failure=True).stdout


def test_every_call_of_the_protocol_is_served_or_listed_as_not_served():
    calls = {name for name in vars(language_pb2_grpc.LanguageRuntimeServicer) if name[0].isupper()}
    assert {name for name in vars(langhost.PythonHost) if name[0].isupper()} == calls - langhost.NOT_SERVED


@pytest.mark.trials
def test_pulumi_install_alone_makes_an_environment_in_which_a_node_is_created_and_destroyed(tmp_path, pulumi):
    folder = tmp_path / "checkout"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0")[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    with running_fleet(pulumi, tmp_path, "scaleway", folder) as fleet:
        assert "requirements.txt" in fleet.stack.ask("install", in_stack=False, timeout_s=INSTALL_S)
        fleet.run("up")
        assert fleet.run("up").changes == {}
        fleet.run("destroy")
        assert fleet.left() == []


def test_the_packages_of_pulumi_install_are_those_of_the_lock():
    packages = (ROOT / "requirements.txt").read_text().splitlines()
    assert {line for line in packages if "==" in line} <= set(
        (ROOT / "requirements.lock").read_text().splitlines()
    )


def test_refresh_finds_drift_in_a_dynamic_resource(pulumi):
    stack = pulumi(DYNAMIC, files={"size": "20"})
    assert stack.run("up").changes == {"create": 2}
    stack.run("refresh", "--preview-only", "--expect-no-changes")
    (stack.folder / "size").write_text("30")
    drifted = stack.run("refresh", "--preview-only", "--expect-no-changes", expect_failure=True)
    assert "disk" in drifted.stdout


def test_a_mandatory_policy_stops_preview_and_finds_its_own_modules(pulumi):
    stack = pulumi(
        DYNAMIC,
        files={
            "size": "20",
            "pack/PulumiPolicy.yaml": "runtime: python\n",
            "pack/__main__.py": POLICY,
            "pack/limit.py": "LARGEST = 10\n",
        },
    )
    refused = stack.run("preview", "--policy-pack", "pack", expect_failure=True)
    assert "a disk of 20 is larger than 10" in refused.stdout
    (stack.folder / "pack" / "limit.py").write_text("LARGEST = 100\n")
    stack.run("preview", "--policy-pack", "pack")


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_an_engine_that_ends_takes_the_program_with_it(pulumi, how):
    stack = pulumi(
        """
        import pathlib, time
        pathlib.Path("started").touch()
        time.sleep(600)
        """
    )
    running = stack.start("up")
    running.wait_until((stack.folder / "started").exists, "the program to start")
    below = descendants(running.process.pid)
    if how == "kill":
        running.process.kill()
    else:
        running.interrupt()
    result = running.wait()
    assert "Traceback" not in result.stdout
    wait_for(lambda: not any(map(alive, below)), "the language host and the program to end")
    stack.unlock()
