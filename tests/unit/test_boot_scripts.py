"""The scripts of the first boot, run by bash among tools that write down how they were called."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from script_machine import ScriptMachine, complaints

from fleet import layout
from fleet.userdata import FILES

SCRIPTS = sorted(FILES.glob("*.sh"))
REAL = ("bash", "cat", "mkdir", "rm", "touch", "env", "sed", "xargs", "uname", "timeout")
MOVED = ("/usr/local/lib", "/var/lib", "/etc/vllm-fleet", "/etc/ssh", "/opt/llm")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script: Path) -> None:
    assert complaints(script) == ""


class Node(ScriptMachine):
    """A machine with the scripts in their place."""

    @property
    def stages(self) -> list[str]:
        path = self.path(layout.STAGES_PATH)
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        assert all(line.keys() == {"stage", "at", "seconds"} and line["seconds"] >= 0 for line in lines)
        return [line["stage"] for line in lines]

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.bash(str(self.path(f"{layout.SCRIPTS_DIRECTORY}/{script}")), *arguments)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A machine whose image brings driver, Docker and toolkit, as a GPU OS image does."""
    made = Node(tmp_path)
    made.real(*REAL)
    for path in SCRIPTS:
        made.write(f"{layout.SCRIPTS_DIRECTORY}/{path.name}", made.moved(path.read_text(), *MOVED))
    made.write(layout.HOST_SETTINGS_PATH, "DRIVER_BRANCH=\n")
    made.write(
        layout.PREFETCH_SETTINGS_PATH,
        "IMAGES=(vllm/vllm-openai:v0.9.2)\nWEIGHTS='[{}]'\nENVIRONMENT=(HF_HOME=/var/lib/llm/models)\n",
    )
    for name in ("apt-get", "apt-mark", "install", "nvidia-ctk", "nvidia-smi", "sleep", "systemctl", "curl"):
        made.tool(name)
    made.tool("apt-cache", "exit 100")
    made.tool("docker", """[ "$1" != info ] || echo '{"nvidia":{},"runc":{}}'""")
    made.tool(
        "dpkg-query", "printf 'ii nvidia-driver-580-server\\nun nvidia-driver-570\\nii docker.io\\n'; exit 1"
    )
    return made


def bare(node: Node, branch: int = 580) -> Node:
    """The same machine with a plain Ubuntu image: its programs come with the packages."""
    node.write(layout.HOST_SETTINGS_PATH, f"DRIVER_BRANCH={branch}\n")
    packages = {
        "docker.io": "docker",
        "nvidia-container-toolkit": "nvidia-ctk",
        "nvidia-driver": "nvidia-smi",
    }
    node.real("mv")
    told = f"{node.root}/told"
    # Just installed, it lacks Compose, and knows no runtime of NVIDIA's until it reads its settings again.
    node.tool(
        "docker",
        f"""case $1 in
        info) [ ! -e {told} ] || echo '{{"nvidia":{{}},"runc":{{}}}}' ;;
        compose) exit 1 ;;
    esac""",
    )
    node.tool("systemctl", f'case "$*" in *docker.service) touch {told} ;; esac')
    bring = ""
    for package, program in packages.items():
        (node.root / "bin" / program).rename(node.root / program)
        bring += f'case "$*" in *install*{package}*) mv {node.root}/{program} {node.root}/bin/ ;; esac\n'
    node.tool("apt-get", bring)
    return node


def position(calls: list[str], words: str) -> int:
    """Where the first call with these words is."""
    return next(index for index, call in enumerate(calls) if words in call)


def test_an_image_that_brings_everything_is_set_up_without_any_package(node: Node) -> None:
    done = node.run("setup.sh")
    assert done.returncode == 0, done.stderr
    assert not [call for call in node.calls if call.startswith("apt-get")]
    assert not node.path(layout.REBOOT_MARK_PATH).exists()
    assert "systemctl start vllm-agent.service vllm-env.path" in node.calls
    assert node.stages == ["boot", "docker", "toolkit", "units"]


def test_a_plain_image_gets_docker_driver_and_toolkit_and_asks_for_a_reboot(node: Node) -> None:
    done = bare(node).run("setup.sh")
    assert done.returncode == 0, done.stderr
    installs = [call for call in node.calls if " install " in call and call.startswith("apt-get")]
    assert [call.partition(" install ")[2] for call in installs] == [
        "docker.io",
        "docker-compose-v2 nvidia-container-toolkit",
        "nvidia-driver-580-server",
    ]
    assert all("DPkg::Lock::Timeout=300" in call for call in installs)
    assert node.path(layout.REBOOT_MARK_PATH).exists()
    assert node.stages == ["boot", "docker", "toolkit", "driver", "units", "prefetch"]


def test_the_image_is_pulled_from_the_moment_docker_is_there_and_nothing_cuts_the_pull(node: Node) -> None:
    bare(node).run("setup.sh")
    pull = position(node.calls, "systemctl start --no-block vllm-prefetch@images.service")
    assert position(node.calls, " install docker.io") < pull
    told = position(node.calls, "nvidia-ctk runtime configure --runtime=docker")
    assert pull < told < position(node.calls, "systemctl reload-or-restart docker.service")
    assert pull < position(node.calls, "nvidia-driver-580-server")


def test_a_daemon_that_does_not_take_nvidias_runtime_stops_the_set_up(node: Node) -> None:
    bare(node).tool("systemctl")
    done = node.run("setup.sh")
    assert done.returncode != 0
    assert "vllm-fleet: toolkit failed: docker_knows_nvidia: " in done.stderr


def test_the_weights_are_fetched_while_docker_is_installed(node: Node) -> None:
    bare(node).run("setup.sh")
    fetch = position(node.calls, "systemctl start --no-block vllm-prefetch@weights.service")
    assert fetch < position(node.calls, " install docker.io")


def test_nothing_is_started_before_the_reboot_that_brings_the_driver(node: Node) -> None:
    bare(node).run("setup.sh")
    started = [call for call in node.calls if call.startswith("systemctl start")]
    assert all("vllm-prefetch@" in call for call in started)


def test_what_the_model_runs_on_is_held(node: Node) -> None:
    node.run("setup.sh")
    assert "apt-mark hold nvidia-driver-580-server docker.io" in node.calls


def test_headers_come_along_where_the_archive_has_them(node: Node) -> None:
    bare(node).tool("apt-cache")
    node.run("setup.sh")
    assert f"nvidia-driver-580-server linux-headers-{os.uname().release}" in " ".join(node.calls)


def test_a_package_that_cannot_be_had_stops_the_set_up_and_says_where(node: Node) -> None:
    bare(node)
    node.tool("apt-get", "case $* in *driver*) echo 'E: Unable to locate package' >&2; exit 100;; esac")
    node.tool("docker", """[ "$1" != info ] || echo '{"nvidia":{}}'""")
    node.tool("nvidia-ctk")
    done = node.run("setup.sh")
    assert done.returncode != 0
    assert "E: Unable to locate package" in done.stderr
    assert "vllm-fleet: driver failed: " in done.stderr
    assert not node.path(layout.REBOOT_MARK_PATH).exists()


def test_an_archive_that_is_down_for_a_moment_is_asked_again(node: Node) -> None:
    bare(node)
    once = f"{node.root}/once"
    with Path(node.root / "bin/apt-get").open("a") as tool:
        tool.write(f'case "$*" in *update) [ -e {once} ] || {{ touch {once}; exit 100; }} ;; esac\n')
    assert node.run("setup.sh").returncode == 0
    assert len([call for call in node.calls if call.endswith(" update")]) == 2


def test_an_image_that_lacks_compose_alone_gets_it_from_lists_that_are_asked_for_again(node: Node) -> None:
    node.tool("docker", """case $1 in info) echo '{"nvidia":{}}' ;; compose) exit 1 ;; esac""")
    once = f"{node.root}/once"
    node.tool("apt-get", f'case "$*" in *update) [ -e {once} ] || {{ touch {once}; exit 100; }} ;; esac')
    assert node.run("setup.sh").returncode == 0
    asked = [call.rpartition(" ")[2] for call in node.calls if call.startswith("apt-get")]
    assert asked == ["update", "update", "docker-compose-v2"]


def test_a_set_up_that_got_no_further_than_the_driver_is_taken_up_after_the_restart(node: Node) -> None:
    node.write(layout.HOST_SETTINGS_PATH, "DRIVER_BRANCH=580\n")
    node.write(layout.REBOOT_MARK_PATH, "")
    assert node.run("setup.sh").returncode == 0
    assert not node.path(layout.REBOOT_MARK_PATH).exists()
    assert "systemctl start --no-block vllm.service" in node.calls


def test_image_and_weights_are_fetched_and_the_token_is_in_no_argument(node: Node) -> None:
    node.write(layout.ENV_PATH, "HF_TOKEN='hf_planted0123456789'\n")
    node.tool("python3", f'printf "%s %s" "$HF_HOME" "$HF_TOKEN" >{node.root}/given')
    done = [node.run("prefetch.sh", what) for what in ("images", "weights")]
    assert [each.returncode for each in done] == [0, 0], done
    weights = f"python3 -I {node.root}{layout.SCRIPTS_DIRECTORY}/weights.py node [{{}}]"
    assert node.calls == ["docker pull --quiet vllm/vllm-openai:v0.9.2", weights]
    assert (node.root / "given").read_text() == "/var/lib/llm/models hf_planted0123456789"
    assert "hf_planted" not in "".join(each.stdout + each.stderr for each in done)
    assert node.stages == ["image_pull", "weights"]


def test_a_fetch_that_fails_is_said(node: Node) -> None:
    node.tool("docker", "echo 'pull access denied' >&2; exit 1")
    done = node.run("prefetch.sh", "images")
    assert done.returncode != 0
    assert "pull access denied" in done.stderr
    assert "vllm-fleet: image_pull failed: " in done.stderr


def test_host_keys_are_published_from_a_privileged_port(node: Node) -> None:
    for kind in ("ed25519", "rsa"):
        node.write(f"/etc/ssh/ssh_host_{kind}_key.pub", f"ssh-{kind} AAAA\n")
        node.write(f"/etc/ssh/ssh_host_{kind}_key", "private")
    node.tool("curl", f"cat >{node.root}/body")
    assert node.run("publish-host-keys.sh").returncode == 0
    (call,) = node.calls
    first, last = map(int, call.partition("--local-port ")[2].split()[0].split("-"))
    # The first ports are those cloud-init used moments ago.
    assert 512 <= first <= last == 1023
    assert "--request PATCH" in call
    assert call.endswith("http://169.254.42.42/user_data/ssh-host-public-keys")
    assert (node.root / "body").read_text() == "ssh-ed25519 AAAA\nssh-rsa AAAA\n"


def test_host_keys_are_published_by_ipv6_where_the_machine_has_no_public_ipv4(node: Node) -> None:
    node.write("/etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAA\n")
    node.tool("curl", f'[[ "$*" == *fd00:42::42* ]] && cat >{node.root}/body')
    assert node.run("publish-host-keys.sh").returncode == 0
    first, second = node.calls
    assert first.endswith("http://169.254.42.42/user_data/ssh-host-public-keys")
    assert second.endswith("http://[fd00:42::42]/user_data/ssh-host-public-keys")
    assert (node.root / "body").read_text() == "ssh-ed25519 AAAA\n"


def test_a_metadata_service_that_never_answers_is_given_up(node: Node) -> None:
    node.write("/etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAA\n")
    node.tool("curl", "exit 7")
    done = node.run("publish-host-keys.sh")
    assert done.returncode != 0
    assert "vllm-fleet: host_keys failed: " in done.stderr


METADATA = {
    "iptables": ["169.254.169.254", "169.254.42.42"],
    "ip6tables": ["fd00:42::42", "fd00:ec2::254", "fd00:a9fe:a9fe::1"],
}


def test_containers_are_kept_from_every_clouds_metadata_and_each_rule_is_there_once(node: Node) -> None:
    for tool in METADATA:
        # Keeps its rules in a file, as the kernel would.
        rules = f"{node.root}/{tool}"
        node.tool(
            tool,
            f"""touch {rules}
            words=$*
            case $words in
                *--check*) grep -qxF -- "${{words#*--check }}" {rules} ;;
                *) echo "${{words#*--insert }}" >>{rules} ;;
            esac""",
        )
    node.real("grep")
    for _ in range(2):
        assert node.run("guard-metadata.sh").returncode == 0
    for tool, addresses in METADATA.items():
        wanted = [f"PREROUTING --destination {address} --jump DROP" for address in addresses]
        assert (node.root / tool).read_text().splitlines() == wanted
    asked = [call for call in node.calls if "tables " in call]
    assert all(" --wait --table raw " in call for call in asked)


def test_nothing_is_served_before_containers_are_kept_from_the_metadata() -> None:
    serving, guard = ((FILES / name).read_text() for name in ("vllm.service", "vllm-metadata-guard.service"))
    assert "Requires=docker.service vllm-metadata-guard.service\n" in serving
    assert "Before=docker.service\n" in guard
    assert "WantedBy=multi-user.target" in guard
