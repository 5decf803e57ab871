"""`make bench`: what this program costs on top of the engine, as ratios and differences within one run.

Absolute times differ from machine to machine, so each number compares two things measured side by side and
interleaved. Results go to `bench/results.json` as `{name: {"value", "aim", "unit"}}`; a value at or below its
aim is good.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from simcloud.testing import SimCloud, running_simcloud
from tools.bench_parts.boot import bench_boot
from tools.bench_parts.plan import bench_plan

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results.json"
PROJECT_FILES = ("Pulumi.yaml", "__main__.py", "components", "fleet", "cloudinit", ".venv")
SSH_PORT = 10022
API_KEY = "bench-0123456789abcdef"


@dataclass(frozen=True)
class Result:
    """One number, and the most it should be."""

    value: float
    aim: float
    unit: str


def preview_of_one_node() -> Result:
    """Preview of one node ÷ preview of an empty program: what a user waits for at each look."""
    with cloud() as simulated, stack(empty()) as nothing, stack(nodes(simulated, 1)) as one:
        return Result(ratio(one.preview, nothing.preview, runs=7), 1.5, "ratio")


def preview_of_one_node_over_plain() -> Result:
    """Preview of one node ÷ preview of a plain program with as many resources and the same plugins."""
    with cloud() as simulated, stack(nodes(simulated, 1)) as one, stack(plain(1)) as same:
        return Result(ratio(one.preview, same.preview, runs=7), 1.3, "ratio")


def preview_of_a_hundred_nodes() -> Result:
    """Preview of 100 nodes ÷ preview of a plain program with as many resources of the same kinds."""
    with cloud() as simulated, stack(nodes(simulated, 100)) as hundred, stack(plain(100)) as same:
        return Result(ratio(hundred.preview, same.preview, runs=3), 1.3, "ratio")


def up_of_one_node() -> Result:
    """`up` of one node on a cloud without delays − `up` of an empty program: our own share of it."""
    taken = []
    for _ in range(3):
        with cloud() as simulated, stack(empty()) as nothing, stack(nodes(simulated, 1)) as one:
            taken.append(timed(one.up) - timed(nothing.up))
            one.destroy()
    return Result(round(statistics.median(taken), 2), 3.0, "seconds")


def up_of_ten_nodes() -> Result:
    """`up` of ten nodes ÷ `up` of one, at a real cloud's delays: nodes come up side by side."""
    with cloud(speed=1.0) as simulated, stack(nodes(simulated, 1)) as one, stack(nodes(simulated, 10)) as ten:
        taken = timed(ten.up) / timed(one.up)
        one.destroy()
        ten.destroy()
    return Result(round(taken, 2), 1.3, "ratio")


def plan_over_the_catalog() -> Result:
    """`fleet plan` over all five clouds, once Python has started."""
    return Result(*bench_plan())


def first_boot() -> Result:
    """A machine's way from power-on to ready: our user data ÷ the plain serial order."""
    return Result(*bench_boot())


BENCHES: list[Callable[[], Result]] = [
    plan_over_the_catalog,
    preview_of_one_node,
    preview_of_one_node_over_plain,
    preview_of_a_hundred_nodes,
    up_of_one_node,
    up_of_ten_nodes,
]
BY_NAME_ALONE: list[Callable[[], Result]] = [first_boot]
"""Those that take most of an hour."""


def main(names: list[str]) -> int:
    """Run the benches named, or the quick ones; print and keep results. Exit status 1 if an aim is missed."""
    chosen = [bench for bench in BENCHES + BY_NAME_ALONE if bench.__name__ in names] if names else BENCHES
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    missed = 0
    for bench in chosen:
        result = bench()
        results[bench.__name__] = asdict(result)
        met = result.value <= result.aim
        missed += not met
        verdict = "" if met else "   ← above its aim"
        print(
            f"{bench.__name__:<30} {result.value:>6} {result.unit:<8} aim ≤ {result.aim}{verdict}", flush=True
        )
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=2) + "\n")
    return 1 if missed else 0


# --- what is measured --------------------------------------------------------------------------------------


Folder = Callable[[Path], dict[str, Any]]
"""Fills a project folder and returns the configuration of its stack."""


@contextmanager
def cloud(speed: float = 0.0) -> Iterator[SimCloud]:
    """An embedded cloud that knows the key in its own folder."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_simcloud(Path(folder, "cloud"), speed=speed) as running,
    ):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{running.state}/key"], check=True
        )
        public = Path(f"{running.state}/key.pub").read_text()
        httpx.post(
            f"{running.scaleway_url}/iam/v1alpha1/ssh-keys",
            json={"name": "bench", "public_key": public, "project_id": running.project},
            headers={"X-Auth-Token": running.secret_key},
        ).raise_for_status()
        yield running


def empty() -> Folder:
    """A program that declares nothing."""

    def fill(folder: Path) -> dict[str, Any]:
        return _program(folder, "import pulumi\n")

    return fill


def plain(count: int) -> Folder:
    """As many resources of the same kinds as `count` nodes make, with nothing to them."""

    def fill(folder: Path) -> dict[str, Any]:
        (folder / "things.py").write_text(_THINGS)
        return _program(folder, f"import things\nthings.declare({count})\n")

    return fill


_THINGS = """
import pulumi
from pulumi.dynamic import CreateResult, Resource, ResourceProvider
from pulumi_command import local


class Provider(ResourceProvider):
    serialize_as_secret_always = False

    def create(self, props):
        return CreateResult("id", props)


class Thing(Resource):
    def __init__(self, name, props, opts):
        super().__init__(Provider(), name, props, opts)


class Component(pulumi.ComponentResource):
    def __init__(self, kind, name, opts=None):
        super().__init__(f"plain:index:{kind}", name, None, opts)


def declare(count):
    for number in range(count):
        node = Component("Node", f"n{number}")
        for kind in range(6):
            Thing(f"n{number}-{kind}", {"a": "b"}, pulumi.ResourceOptions(parent=node))
        serving = Component("Serving", f"n{number}-serving", pulumi.ResourceOptions(parent=node))
        for kind in range(2):
            args = local.CommandArgs(create="true", stdin="x", environment={"A": pulumi.Output.secret("b")})
            local.Command(f"n{number}-command-{kind}", args, pulumi.ResourceOptions(parent=serving))
        serving.register_outputs({})
        node.register_outputs({})
"""


def _program(folder: Path, text: str) -> dict[str, Any]:
    (folder / ".venv").symlink_to(ROOT / ".venv")
    runtime = {"name": "python", "options": {"virtualenv": ".venv"}}
    (folder / "Pulumi.yaml").write_text(yaml.safe_dump({"name": "plain", "runtime": runtime}))
    (folder / "__main__.py").write_text(text)
    return {}


def nodes(simulated: SimCloud, count: int) -> Folder:
    """This project with `count` nodes."""

    def fill(folder: Path) -> dict[str, Any]:
        for name in PROJECT_FILES:
            (folder / name).symlink_to(ROOT / name)
        each = {"cloud": "scaleway", "zone": "fr-par-2", "type": "L4-1-24G"}
        return {
            "vllm-fleet:nodes": [{"name": f"n{number}", **each} for number in range(count)],
            "vllm-fleet:serving": {"model": "Qwen/Qwen3-8B-AWQ"},
            "vllm-fleet:access": {
                "ssh_cidrs": ["127.0.0.1/32"],
                "ssh_private_key_path": f"{simulated.state}/key",
                "ssh_port": SSH_PORT,
            },
            "scaleway:apiUrl": simulated.scaleway_url,
            "scaleway:secretKey": simulated.secret_key,
            "scaleway:projectId": simulated.project,
            "scaleway:accessKey": "SCWXXXXXXXXXXXXXXXXX",
        }

    return fill


@dataclass(frozen=True)
class Stack:
    """A stack of its own project and state."""

    folder: Path
    environment: dict[str, str]

    def preview(self) -> None:
        self._pulumi("preview")

    def up(self) -> None:
        self._pulumi("up", "--yes", "--skip-preview")

    def destroy(self) -> None:
        self._pulumi("destroy", "--yes", "--skip-preview")

    def _pulumi(self, *arguments: str) -> None:
        done = subprocess.run(
            ["pulumi", *arguments, "--stack", "bench", "--non-interactive"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"pulumi {arguments[0]} failed in {self.folder}:\n{done.stdout}{done.stderr}")


@contextmanager
def stack(fill: Folder) -> Iterator[Stack]:
    """A stack on a backend of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, state = Path(temporary, "project"), Path(temporary, "state")
        folder.mkdir()
        state.mkdir()
        config = fill(folder)
        own = {"PULUMI_BACKEND_URL": f"file://{state}", "PULUMI_CONFIG_PASSPHRASE": "bench"}
        made = Stack(folder, {**os.environ, **own})
        made._pulumi("stack", "init")
        made._pulumi("config", "set", "--secret", "--path", "vllm-fleet:secrets.api_key", API_KEY)
        path = folder / "Pulumi.bench.yaml"
        document = yaml.safe_load(path.read_text())
        document["config"].update(config)
        path.write_text(yaml.safe_dump(document))
        yield made


def ratio(numerator: Callable[[], None], denominator: Callable[[], None], runs: int) -> float:
    """Median of one ÷ median of the other, taken in turns so that a slow moment of the machine meets both."""
    pairs = [(timed(numerator), timed(denominator)) for _ in range(runs)]
    above = statistics.median(first for first, _ in pairs)
    below = statistics.median(second for _, second in pairs)
    return round(above / below, 2)


def timed(work: Callable[[], None]) -> float:
    """Seconds that something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
