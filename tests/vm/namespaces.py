"""Machines that share this one's kernel: network namespaces on a bridge, where units run as they are written.

Each command of a machine has its own view of the file system: the project's scripts, `/opt/ray` and
`/etc/vllm-fleet` are where a node has them, and what it writes to `/tmp` and `/var/lib` is its own.
Needs root, as `ip netns` does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fleet.userdata import FILES
from simcloud.vm.host import cached, digest

DEADLINE_S = 400.0
"""Far beyond what was seen on two busy cores."""
BRIDGE = "vllm-fleet-ray"
SCRIPTS = FILES / "ray"

# A node's folders, over those of this machine. The environment is made at the very path it is used at.
_MOUNTS = """
for each in /opt /usr/local/lib /var/lib /dev/shm /mnt; do mount -t tmpfs tmpfs "$each"; done
mkdir -p /opt/bin /opt/ray /usr/local/lib/vllm-fleet /var/lib/ray
mount --bind "$STATE" /var/lib/ray
ln -s "$(type -P true)" /opt/bin/systemctl  # there is no systemd to tell
mount --bind "$SCRIPTS" /usr/local/lib/vllm-fleet
mount --bind "$AT_OPT_RAY" /opt/ray
cp -a /etc /mnt
cp -aT "$FILES" /mnt/etc/vllm-fleet
mount --bind /mnt/etc /etc
[[ ! -e /etc/vllm-fleet/ray.token ]] || install -m 0600 /etc/vllm-fleet/ray.token /var/lib/ray/token
mount -t tmpfs tmpfs /tmp
exec "$@"
"""
_ISOLATED = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-euc", _MOUNTS]


def _start(
    files: Path,
    at_opt_ray: Path,
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    network: str,
) -> subprocess.Popen[bytes]:
    state = files.with_name("state")
    state.mkdir(exist_ok=True)
    paths = {"SCRIPTS": SCRIPTS, "AT_OPT_RAY": at_opt_ray, "FILES": files, "STATE": state}
    # The interpreter itself, where PATH leads to something that only chooses one.
    path = f"/opt/bin:{Path(sys.base_prefix) / 'bin'}:{os.environ['PATH']}"
    within = ["ip", "netns", "exec", network] if network else []
    with log.open("ab") as output:
        return subprocess.Popen(
            [*within, *_ISOLATED, "bash", *command],
            cwd="/",  # as systemd does; this checkout may lie under a /tmp that the machine does not see
            env={"PATH": path, "HOME": "/root", **{k: str(v) for k, v in paths.items()}, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def installed(folder: Path, requirements: str) -> Path:
    """What the project's own set-up makes of requirements at `/opt/ray`; kept in the cache."""

    def install(at: Path) -> None:
        files = folder / "etc"
        files.mkdir(parents=True)
        (files / "ray-requirements.txt").write_text(requirements)
        (files / "ray.token").write_text("unused")
        log = folder / "setup.log"
        done = _start(files, at, ["/usr/local/lib/vllm-fleet/ray-setup.sh"], {}, log, network="")
        assert done.wait(DEADLINE_S) == 0, log.read_text()

    return cached("ray", digest(requirements.encode(), SCRIPTS / "ray-setup.sh"), install)


class Machine:
    """One machine: a name, an address, and what is in its `/etc/vllm-fleet`."""

    def __init__(self, name: str, address: str, folder: Path, at_opt_ray: Path) -> None:
        self.name, self.address = name, address
        self.files = folder / "etc"
        self.files.mkdir(parents=True)
        self._folder, self._at_opt_ray = folder, at_opt_ray

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], log: str
    ) -> subprocess.Popen[bytes]:
        """Run a command on the machine. Whatever it starts ends with it."""
        return _start(
            self.files, self._at_opt_ray, command, environment, self._folder / log, network=self.name
        )

    def log(self, name: str) -> str:
        """What a command, or a unit, has said."""
        return (self._folder / name).read_text(errors="replace")


class Service:
    """A unit that runs as systemd would run it: its command, its environment, and again whenever it ends."""

    def __init__(self, machine: Machine, unit: str) -> None:
        self.machine, self.unit = machine, unit
        self._settings = _service_section(unit)
        assert self._settings["Restart"] == ["always"]
        self._ending = threading.Event()
        self.held = threading.Event()
        """Set when the unit's own conditions keep it from starting again."""
        self.starts = 0
        self._process = self._start()
        self._thread = threading.Thread(target=self._keep_running)
        self._thread.start()

    @property
    def variables(self) -> dict[str, str]:
        """What the unit has in its environment."""
        words = [word for line in self._settings["Environment"] for word in line.split()]
        for file in self._settings["EnvironmentFile"]:
            words += (self.machine.files / Path(file).name).read_text().splitlines()
        return dict(word.replace("'", "").split("=", 1) for word in words)

    def kill(self) -> None:
        """End all its processes at once."""
        self._process.kill()

    def stop(self) -> None:
        """Power off."""
        self._ending.set()
        self._process.kill()
        self._thread.join(DEADLINE_S)

    def python(self, program: str) -> str:
        """The output of a program that runs beside the unit, in the same environment."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        assert children, f"{self.unit} of {self.machine.name} is only starting"
        done = subprocess.run(
            ["nsenter", "--all", "--target", children[0], "/opt/ray/bin/python", "-W", "ignore", "-"],
            input=program.encode(),
            check=False,
            env={"PATH": os.environ["PATH"], "HOME": "/root", **self.variables},
            capture_output=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        command = self._settings["ExecStart"][0].split()
        return self.machine.start(command, self.variables, self.unit)

    def _held_back(self) -> bool:
        lines = (SCRIPTS / self.unit).read_text().splitlines()
        unwanted = [line.partition("=!")[2] for line in lines if line.startswith("ConditionPathExists=!")]
        return any((self.machine.files.with_name("state") / Path(path).name).exists() for path in unwanted)

    def _keep_running(self) -> None:
        pause_s = float(self._settings["RestartSec"][0].removesuffix("s"))
        while True:
            self._process.wait()
            if self._ending.wait(pause_s):
                return
            if self._held_back():
                self.held.set()
                return
            self._process = self._start()


def _service_section(unit: str) -> dict[str, list[str]]:
    settings: dict[str, list[str]] = {"Environment": [], "EnvironmentFile": []}
    section = (SCRIPTS / unit).read_text().partition("[Service]")[2].partition("[Install]")[0]
    for line in section.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings.setdefault(key, []).append(value)
    return settings


@contextmanager
def network(folder: Path, addresses: Mapping[str, str], at_opt_ray: Path) -> Iterator[dict[str, Machine]]:
    """Machines of these names and addresses on a network of their own, /24."""
    _ip("link", "add", BRIDGE, "type", "bridge")
    made: list[str] = []
    try:
        _ip("link", "set", BRIDGE, "up")
        for name, address in addresses.items():
            _ip("netns", "add", name)
            made.append(name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth1", "netns", name)
            _ip("link", "set", name, "master", BRIDGE, "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth1")
            _ip("-n", name, "link", "set", "eth1", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield {name: Machine(name, address, folder / name, at_opt_ray) for name, address in addresses.items()}
    finally:
        for name in made:
            _ip("netns", "delete", name)
        _ip("link", "delete", BRIDGE)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=30)
