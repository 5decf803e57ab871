"""The scripts of the provisioning phases, run by bash among tools that write down how they were called."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from script_machine import ScriptMachine, complaints

from fleet.provision.process import REBOOT_NEEDED, REFUSED, SCRIPTS, script_text

PHASES = sorted(path.stem for path in SCRIPTS.glob("*.sh") if path.stem != "lib")
REAL = (
    *("bash", "cat", "chmod", "env", "grep", "head", "mkdir", "mktemp", "mv", "rm", "sed", "sha256sum"),
    *("stat", "tail", "uname", "xargs"),
)


@pytest.mark.parametrize("name", ["lib", *PHASES])
def test_scripts_pass_shellcheck(name: str) -> None:
    assert complaints(SCRIPTS / f"{name}.sh") == ""


class Machine(ScriptMachine):
    """A machine with nothing installed."""

    @property
    def installed(self) -> list[str]:
        """What apt was told to install, name by name."""
        told = [call.partition(" install ")[2] for call in self.calls if call.startswith("apt-get")]
        return [word for words in told for word in words.split() if not word.startswith("-")]

    def run(self, script: str, mode: str, **environment: str) -> subprocess.CompletedProcess[str]:
        text = self.moved(script_text(script, mode), "/var/", "/etc/", "/usr/local/", "/proc/", "/sys/")
        phase = "ssh" if script == "boot" else script
        return self.bash("-s", stdin=text, PHASE=phase, HOME=str(self.root), **environment)

    def check(self, script: str, **environment: str) -> list[str]:
        done = self.run(script, "check", **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def log(self, script: str) -> str:
        return self.path(f"/var/log/vllm-fleet/provision-{script}.log").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.real(*REAL)
    for folder in (
        "/var/lib/vllm-fleet",
        "/etc/profile.d",
        "/etc/apt/sources.list.d",
        "/etc/apt/preferences.d",
    ):
        made.path(folder).mkdir(parents=True)
    made.write("/etc/os-release", "ID=ubuntu\nVERSION_ID=24.04\n")
    have = tmp_path / "have"
    have.touch()
    # What apt installs, dpkg knows from then on.
    made.tool(
        "apt-get",
        f'case "$*" in *" install "*) printf "%s\\n" "${{@:2}}" >>{have} ;; esac',
    )
    made.tool("dpkg-query", f'grep -qx "${{@: -1}}" {have} && printf "ii 1.0\\n"')
    made.tool("apt-cache", '[[ "$*" == *no-such* ]] || echo "$2 | 1.0 | http://archive noble/main"')
    for name in ("apt-mark", "dpkg", "id", "install", "modprobe", "sleep", "usermod"):
        made.tool(name)
    return made


@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase != "boot"])
def test_a_machine_that_this_program_did_not_set_up_is_left_alone(machine: Machine, phase: str) -> None:
    machine.path("/var/lib/vllm-fleet").rmdir()
    environment = dict.fromkeys(("CUDA", "PREFIX", "NAME"), "")
    for mode in ("check", "apply"):
        done = machine.run(phase, mode, **environment)
        assert done.returncode == REFUSED
        assert "was not set up by this program" in done.stderr
    assert machine.calls == []


def test_only_packages_that_are_missing_are_installed(machine: Machine) -> None:
    (machine.root / "have").write_text("git\n")
    assert machine.check("packages", PACKAGES="curl git") == ["curl is not installed"]
    assert machine.run("packages", "apply", PACKAGES="curl git").returncode == 0
    assert machine.installed == ["curl"]
    assert machine.check("packages", PACKAGES="curl git") == []


def test_a_package_of_another_version_is_missing(machine: Machine) -> None:
    (machine.root / "have").write_text("git\n")
    assert machine.check("packages", PACKAGES="git=2.0") == ["git=2.0 is not installed"]


def test_a_package_that_no_archive_has_is_refused_before_any_is_installed(machine: Machine) -> None:
    done = machine.run("packages", "apply", PACKAGES="curl no-such")
    assert done.returncode == REFUSED
    assert "refused: the package archives of this machine have no no-such" in machine.log("packages")
    assert machine.installed == []


def test_what_another_run_has_brought_meanwhile_is_not_brought_again(machine: Machine) -> None:
    (machine.root / "have").write_text("git\n")
    assert machine.run("packages", "apply", PACKAGES="git").returncode == 0
    assert not [call for call in machine.calls if call.startswith("apt-get")]


def test_a_command_that_fails_is_named_and_its_output_kept(machine: Machine) -> None:
    machine.tool("apt-get", 'echo "E: Unable to fetch" >&2; exit 100')
    assert machine.run("packages", "apply", PACKAGES="curl").returncode == 100
    assert "E: Unable to fetch" in machine.log("packages")
    assert "command: apt --error-on=any update" in machine.log("packages")


def test_a_version_that_no_archive_has_is_refused(machine: Machine) -> None:
    assert machine.run("packages", "apply", PACKAGES="git=1.0").returncode == 0
    assert machine.run("packages", "apply", PACKAGES="curl=1.0.1").returncode == REFUSED
    assert "have no curl=1.0.1" in machine.log("packages")


def docker(machine: Machine, version: str = "26.1.5") -> None:
    machine.tool("docker", f'[[ "$*" != version* ]] || echo {version}')
    machine.tool("systemctl")


def test_docker_that_is_there_is_left_as_it_is(machine: Machine) -> None:
    docker(machine)
    assert machine.check("docker", USERS="", VERSION="26.1") == []
    assert not [call for call in machine.calls if call.startswith("apt-get")]


def test_another_docker_than_asked_for_is_refused_not_replaced(machine: Machine) -> None:
    docker(machine)
    done = machine.run("docker", "check", USERS="", VERSION="26.10")
    assert done.returncode == REFUSED
    assert "refused: this machine has Docker 26.1.5, not 26.10" in done.stderr


def test_docker_is_installed_enabled_and_opened_to_users(machine: Machine) -> None:
    machine.tool("systemctl")
    assert machine.check("docker", USERS="dev", VERSION="") == [
        "Docker is not installed",
        "dev is not in the group docker",
    ]
    assert machine.run("docker", "apply", USERS="dev", VERSION="").returncode == 0
    assert machine.installed == ["docker.io", "docker-compose-v2"]
    assert machine.calls[-2:] == ["id -nG dev", "usermod --append --groups docker dev"]
    assert "systemctl enable --now docker.service" in machine.calls


KEY = "EB693B3035CD5710E231E123A4B469963BF863CC"
GPU = {
    "DETECT": "force",
    "BRANCH": "",
    "LEAST": "550",
    "INSTALL": "550",
    "CUDA": "12.4",
    "CUDNN": "cudnn9-cuda-12",
    "KEY": KEY,
}


def nvidia_repository(machine: Machine, fingerprint: str = KEY) -> None:
    """NVIDIA's archives, of which only the one for 22.04 has this release."""
    machine.tool("curl", 'while [[ $1 != --output ]]; do shift; done; echo key >"$2"')
    machine.tool("gpg", f'printf "pub:\\nfpr:::::::::{fingerprint}:\\n"')
    sources = machine.path("/etc/apt/sources.list.d/nvidia-cuda.sources")
    in_reach = f"[[ $2 != cuda-* ]] || grep -q ubuntu2204 {sources}"
    machine.tool("apt-cache", f'if {in_reach}; then echo "$2 | 1.0 | http://archive noble/main"; fi')


def test_without_a_card_nothing_is_installed_unless_forced(machine: Machine) -> None:
    machine.tool("lspci")
    done = machine.run("gpu", "check", **{**GPU, "DETECT": "auto"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no NVIDIA GPU on the PCI bus\n")
    machine.tool("lspci", 'echo "01:00.0 3D controller: NVIDIA Corporation AD104GL [L4]"')
    assert "no NVIDIA driver is loaded" in machine.check("gpu", **{**GPU, "DETECT": "auto"})


def test_driver_cuda_and_cudnn_are_installed_and_a_restart_is_asked_for(machine: Machine) -> None:
    nvidia_repository(machine)
    done = machine.run("gpu", "apply", **GPU)
    assert done.returncode == REBOOT_NEEDED, machine.log("gpu")
    assert [name for name in machine.installed if not name.startswith("linux-headers")] == [
        *("nvidia-driver-550-server", "cuda-compiler-12-4", "cuda-libraries-dev-12-4", "cudnn9-cuda-12")
    ]
    assert "Package: nvidia-* " in machine.path("/etc/apt/preferences.d/nvidia-cuda").read_text()
    profile = machine.path("/etc/profile.d/vllm-fleet-cuda.sh").read_text()
    shell = ["bash", "-c", f"{profile}echo $PATH; echo $LD_LIBRARY_PATH"]
    done = subprocess.run(shell, check=True, env={"PATH": "/bin"}, capture_output=True, text=True, timeout=60)
    cuda = f"{machine.root}/usr/local/cuda-12.4"
    assert done.stdout == f"{cuda}/bin:/bin\n{cuda}/lib64\n"


def test_packages_signed_by_another_key_are_refused(machine: Machine) -> None:
    nvidia_repository(machine, fingerprint="0" * 40)
    assert machine.run("gpu", "apply", **GPU).returncode == REFUSED
    assert f"has the fingerprint {'0' * 40}, not {KEY}" in machine.log("gpu")
    assert not machine.path("/etc/apt/sources.list.d/nvidia-cuda.sources").exists()


@pytest.mark.parametrize(
    ("branch", "asked", "said"),
    [
        ("535.274.02", "", "this machine has driver 535, and CUDA 12.4 needs 550 or newer"),
        ("580.95.05", "550", "this machine has driver 580, not 550"),
    ],
)
def test_a_driver_in_use_is_refused_not_replaced(
    machine: Machine, branch: str, asked: str, said: str
) -> None:
    machine.tool("nvidia-smi", f"echo {branch}; echo {branch}")
    done = machine.run("gpu", "check", **{**GPU, "BRANCH": asked})
    assert done.returncode == REFUSED
    assert f"refused: {said}" in done.stderr


def conda(machine: Machine, environments: str) -> dict[str, str]:
    machine.write("/installer", 'while [[ $1 != -p ]]; do shift; done; mkdir -p "$2/bin"\n')
    machine.tool(
        "curl", f'while [[ $1 != --output ]]; do shift; done; cat {machine.path("/installer")} >"$2"'
    )
    return {
        "PREFIX": str(machine.path("/opt/conda")),
        "INSTALLER": "py312_25.1.1-2",
        "SHA256": hashlib.sha256(machine.path("/installer").read_bytes()).hexdigest(),
        "CHANNELS": "conda-forge",
        "ENVIRONMENTS": environments,
    }


def test_an_installer_with_another_checksum_is_not_run(machine: Machine) -> None:
    told = conda(machine, "") | {"SHA256": "0" * 64}
    assert machine.run("conda", "apply", **told).returncode == REFUSED
    assert "not the pinned " + "0" * 64 in machine.log("conda")
    assert not machine.path("/opt/conda").exists()


def test_environments_are_made_or_changed_by_what_conda_has_noted(machine: Machine) -> None:
    told = conda(machine, "train python=3.11 numpy=2.1\nserve python=3.12")
    meta = "/opt/conda/envs/train/conda-meta"
    machine.tool("conda", directory="/opt/conda/bin")
    machine.write("/opt/conda/conda-meta/conda-25.1.1-py312h06a4308_0.json", "{}")
    machine.write(f"{meta}/python-3.11.13-h9e4cc4f_0_cpython.json", "{}")
    machine.write(f"{meta}/numpy-2.10.0-py311h5d046bc_0.json", "{}")
    machine.write(f"{meta}/numpy-base-2.1.3-0.json", "{}")
    assert machine.check("conda", **told) == [
        "numpy=2.1 is not in the environment train",
        "there is no environment serve",
        "login shells do not know conda",
    ]
    assert machine.run("conda", "apply", **told).returncode == 0
    common = "--yes --quiet --override-channels --channel conda-forge --name"
    assert [call for call in machine.calls if call.startswith("conda ")] == [
        f"conda install {common} train python=3.11 numpy=2.1",
        f"conda create {common} serve python=3.12",
    ]


def own_script(machine: Machine, text: str) -> dict[str, str]:
    machine.write("/setup.sh", f"#!/bin/bash\n{text}\n", 0o755)
    return {
        "NAME": "setup.sh",
        "FILE": str(machine.path("/setup.sh")),
        "DIGEST": hashlib.sha256(text.encode()).hexdigest(),
        "DIRECTORY": str(machine.root),
    }


def test_a_script_runs_once_for_each_version_of_it(machine: Machine) -> None:
    first = own_script(machine, "pwd >>ran")
    for _ in range(2):
        assert machine.run("script", "apply", **first).returncode == 0
    assert (machine.root / "ran").read_text() == f"{machine.root}\n"
    assert machine.check("script", **first) == []
    second = own_script(machine, "echo again >>ran")
    assert machine.check("script", **second) == ["setup.sh has not run in this version"]


def test_a_script_that_fails_has_not_run(machine: Machine) -> None:
    told = own_script(machine, "echo no room >&2; exit 3")
    assert machine.run("script", "apply", **told).returncode == 3
    assert "no room" in machine.log("script")
    assert machine.check("script", **told) == ["setup.sh has not run in this version"]


def test_the_boot_is_through_when_cloud_init_is_and_no_restart_is_due(machine: Machine) -> None:
    machine.write("/proc/stat", "cpu 1 2 3\nbtime 1700000000\n")
    machine.path("/var/lib/vllm-fleet").rmdir()
    machine.tool("cloud-init", "echo status: running")
    assert machine.check("boot") == ["cloud-init is running"]
    machine.tool("cloud-init", "echo status: done")
    machine.path("/var/lib/vllm-fleet").mkdir()
    assert machine.check("boot") == []
    machine.write("/var/lib/vllm-fleet/reboot-required", "")
    assert machine.check("boot") == ["the machine is about to restart"]
    machine.write("/proc/stat", "btime 4000000000\n")
    assert machine.check("boot") == []
