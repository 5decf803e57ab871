"""`make demo`, `make demo-vm` and `make demo-down`: the dev stack on an embedded cloud, by the real engine.

Everything it makes lies below `.fleet/`, which `down` leaves empty of it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import yaml
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".fleet" / "demo"
CLOUD = HOME / "cloud"
STACK = "dev"
SPEED = 0.2
"""Factor on the real cloud's delays: each step stays visible, the whole stays short."""

console = Console(stderr=True, highlight=False)


class DemoError(Exception):
    """The demo cannot go on; the message says what to do."""


def main(arguments: list[str]) -> int:
    """`python -m tools.demo up|vm|break|down`."""
    commands = {"up": up, "vm": lambda: up(nodes="vm"), "break": break_it, "down": down}
    command = commands.get(arguments[0] if len(arguments) == 1 else "")
    if command is None:
        console.print("usage: python -m tools.demo up|vm|break|down")
        return 2
    try:
        command()
    except DemoError as error:
        console.print(f"[bold red]demo:[/] {error}")
        return 1
    return 0


def up(nodes: str = "light") -> None:
    """Start the embedded cloud with `nodes` behind it, bring the dev stack up, show what there is."""
    started = time.monotonic()
    url = _api_url()
    HOME.mkdir(parents=True, exist_ok=True)
    key = _ssh_key()
    _start_cloud(url, nodes)
    _register_key(key)
    _pulumi("stack", "select", STACK, "--create", quiet=True)
    console.print(f"\n[bold]pulumi up[/] — the real engine, an embedded Scaleway, {_NODES[nodes]}\n")
    _pulumi("up", "--yes", "--skip-preview", "--stack", STACK)
    _show(_outputs())
    console.print(f"\n{_NEXT}\n\nTook {time.monotonic() - started:.0f} s.", soft_wrap=True)


def break_it() -> None:
    """Switch every server off, as somebody might in the console."""
    if not _answers(_api_url()):
        raise DemoError("the embedded cloud is not running; run make demo first")
    for name, node in _outputs()["nodes"].items():
        _cloud_api(
            "POST", f"instance/v1/zones/{node['zone']}/servers/{node['id']}/action", {"action": "poweroff"}
        )
        console.print(f"{name}: switched off behind Pulumi's back")


def forget(folder: Path) -> None:
    """Remove the demo's files from a checkout's folder. The state of any other stack there stays."""
    shutil.rmtree(folder / "demo", ignore_errors=True)
    shutil.rmtree(folder / "rollouts" / STACK, ignore_errors=True)
    if not any((folder / "state" / ".pulumi" / "stacks").rglob("*.json")):
        shutil.rmtree(folder / "rollouts", ignore_errors=True)
        shutil.rmtree(folder / "state", ignore_errors=True)


def down() -> None:
    """Destroy the stack, see that nothing is left, stop the embedded cloud, remove its files."""
    url = _api_url()
    if _answers(url):
        if _stack_exists():
            _pulumi("destroy", "--yes", "--skip-preview", "--stack", STACK)
            _pulumi("stack", "rm", "--yes", "--preserve-config", STACK, quiet=True)
        left = [item for item in _admin(url, "inventory")["objects"] if item["kind"] != "ssh_key"]
        if left:
            names = ", ".join(f"{item['kind']} {item['name']}" for item in left)
            raise DemoError(
                f"still there after destroy: {names}; look into {CLOUD}, then run make demo-down again"
            )
        subprocess.run(
            [sys.executable, "-m", "simcloud", "down", "--state", str(CLOUD)], check=True, cwd=ROOT
        )
    elif _stack_exists():
        raise DemoError(
            "the embedded cloud is not running, so its stack cannot be destroyed; run make demo, then this"
        )
    forget(ROOT / ".fleet")
    console.print("Nothing is left: no server, volume, address, security group, process or file.")


_NODES = {
    "light": "a light node",
    "vm": "a virtual machine that boots, pulls and serves: minutes, not seconds",
}

_NEXT = """[bold]What to try next[/]
  eval "$(make -s env STACK=dev)"                           use this checkout's pulumi on this stack
  pulumi up                                                 nothing changes
  pulumi config set --path 'vllm-fleet:nodes[0].root_volume_gb' 300 && pulumi up
                                                            the disk grows in place
  make demo-break                                           switch the server off behind its back, then:
  pulumi refresh --preview-only --expect-no-changes         the drift is found; pulumi up fixes it
  fleet check; fleet top; fleet ssh l4-a                    look around
  make demo-down                                            and nothing is left"""


def _api_url() -> str:
    return str(_config()["scaleway:apiUrl"]).removesuffix("/scaleway")


def _ssh_key() -> Path:
    key = HOME / "id_ed25519"
    if not key.exists():
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "vllm-fleet demo", "-f", str(key)]
        subprocess.run(command, check=True)
    return key


def _start_cloud(url: str, nodes: str) -> None:
    kind = HOME / "nodes"
    if _answers(url):
        # Another checkout's is taken as it is.
        if kind.exists() and (others := kind.read_text()) != nodes:
            raise DemoError(f"the embedded cloud already runs {_NODES[others]}; run make demo-down first")
        return
    kind.write_text(nodes)
    port = httpx.URL(url).port
    command = [
        *(sys.executable, "-m", "simcloud", "serve", "--detach"),
        *("--state", str(CLOUD), "--port", str(port), "--speed", str(SPEED), "--nodes", nodes),
    ]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise DemoError(f"the embedded cloud did not start on {url}; the lines above say why")


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/_sim/health", timeout=2.0).is_success
    except httpx.TransportError:
        return False


def _admin(url: str, path: str) -> Any:
    return httpx.get(f"{url}/_sim/{path}", timeout=10.0).raise_for_status().json()


def _register_key(key: Path) -> None:
    """Scaleway installs the keys of its project on every server; this is the demo's project."""
    public = key.with_suffix(".pub").read_text().strip()
    known = _cloud_api("GET", "iam/v1alpha1/ssh-keys")["ssh_keys"]
    if all(entry["public_key"] != public for entry in known):
        body = {"name": "demo", "public_key": public, "project_id": _config()["scaleway:projectId"]}
        _cloud_api("POST", "iam/v1alpha1/ssh-keys", body)


def _cloud_api(method: str, path: str, body: Any = None) -> Any:
    """A call of the embedded Scaleway, as its console would make it."""
    config = _config()
    reply = httpx.request(
        method,
        f"{config['scaleway:apiUrl']}/{path}",
        headers={"X-Auth-Token": config["scaleway:secretKey"]},
        json=body,
        timeout=10.0,
    )
    return reply.raise_for_status().json()


def _config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / f"Pulumi.{STACK}.yaml").read_text())["config"]
    return config


def _pulumi(*arguments: str, quiet: bool = False) -> str:
    done = subprocess.run(
        ["pulumi", *arguments],
        cwd=ROOT,
        check=False,
        text=True,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
    )
    if done.returncode:
        raise DemoError(f"pulumi {arguments[0]} failed\n{done.stdout or ''}".rstrip())
    return done.stdout or ""


def _stack_exists() -> bool:
    done = subprocess.run(
        ["pulumi", "stack", "ls", "--json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and any(stack["name"] == STACK for stack in json.loads(done.stdout))


def _outputs() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(_pulumi("stack", "output", "--json", "--stack", STACK, quiet=True))
    return parsed


def _show(outputs: dict[str, Any]) -> None:
    table = Table()
    for column in ("node", "type", "IP", "volume", "model", "an hour", "status"):
        table.add_column(column)
    for name, node in outputs["nodes"].items():
        cost = node["cost_per_hour"]
        table.add_row(
            name,
            node["type"],
            node["address"],
            f"{node['root_volume_gb']} GB",
            node["model"],
            "unknown" if cost is None else f"{cost:.4f} {node['currency']}",
            "ready 100 %" if node["status"] == "ready" else node["status"],
        )
    out = Console()
    out.width = max(out.width, 110)
    out.print(table)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main(sys.argv[1:]))
