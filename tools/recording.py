"""`make recording`: docs/images/fleet-up.svg, drawn from a real `fleet up` of ten light nodes.

One node is made to run out of GPU memory, so that a failure is to be seen too.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import yaml
from rich.console import Console

from fleet.commands.up import bring_up, declared, summary, table
from fleet.live import Board
from simcloud.testing import SimCloud, running_simcloud

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "images" / "fleet-up.svg"
PROJECT_FILES = ("Pulumi.yaml", "__main__.py", "components", "fleet", "cloudinit", "tools", ".venv")
STACK = "ten"
NODES = [f"l4-{letter}" for letter in "abcdefghij"]
FAILING = "l4-g"
SPEED = 0.3
FRAME_S = 2.0
"""Least seconds between two frames."""
LAST_FRAME_S = 5.0
WIDTH = 112

FRAME = """<g class="frame" style="animation-name: {unique_id}"><defs>{lines}</defs>
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g><style>{styles}</style></g>"""
"""A frame in Rich's words; the class and the clip path carry the frame's own id."""

DOCUMENT = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<style>
text {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 20px; white-space: pre; }}
.frame {{ visibility: hidden; animation: {seconds}s step-end infinite; }}
{keyframes}
</style>
<rect width="100%" height="100%" rx="8" fill="#292929"/>
{frames}
</svg>
"""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="fleet-recording-") as name:
        folder = Path(name)
        with running_simcloud(folder / "cloud", speed=SPEED) as cloud:
            project = _project(folder, cloud)
            os.chdir(project)
            try:
                frames = _record()
            finally:
                _pulumi("destroy", "--yes", "--skip-preview", "--stack", STACK)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(_draw(frames), encoding="utf-8")
    print(f"{TARGET.relative_to(ROOT)}: {len(frames)} frames over {frames[-1][0]:.0f} s")
    return 0


def _project(folder: Path, cloud: SimCloud) -> Path:
    """This project with a stack of its own: ten nodes on the embedded cloud."""
    project = folder / "project"
    key = project / ".fleet" / "id_ed25519"
    key.parent.mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    body = {"name": "me", "public_key": key.with_suffix(".pub").read_text(), "project_id": cloud.project}
    headers = {"X-Auth-Token": cloud.secret_key}
    httpx.post(f"{cloud.scaleway_url}/iam/v1alpha1/ssh-keys", json=body, headers=headers).raise_for_status()
    cloud.set_node_fault(FAILING, "oom")

    for name in PROJECT_FILES:
        (project / name).symlink_to(ROOT / name)
    (folder / "state").mkdir()
    os.environ |= {
        "PULUMI_BACKEND_URL": f"file://{folder / 'state'}",
        "PULUMI_CONFIG_PASSPHRASE": "recording",
    }
    os.chdir(project)
    _pulumi("stack", "init", STACK)
    _pulumi("config", "set", "--secret", "--path", "vllm-fleet:secrets.api_key", "a-key-for-the-recording")
    _pulumi("config", "set", "--secret", "scaleway:secretKey", cloud.secret_key)
    path = project / f"Pulumi.{STACK}.yaml"
    document = yaml.safe_load(path.read_text())
    document["config"] |= {
        "scaleway:apiUrl": cloud.scaleway_url,
        "scaleway:projectId": cloud.project,
        "vllm-fleet:nodes": [{"name": name, "cloud": "scaleway", "zone": "fr-par-2"} for name in NODES],
        "vllm-fleet:serving": {"model": "Qwen/Qwen3-8B-AWQ", "max_model_len": 16384},
        "vllm-fleet:access": {
            "ssh_cidrs": ["127.0.0.1/32"],
            "ssh_private_key_path": str(key.relative_to(project)),
            "ssh_port": 10022,
        },
    }
    path.write_text(yaml.safe_dump(document))
    return project


def _record() -> list[tuple[float, str]]:
    """Seconds since the start, and the view as Rich's SVG, for each frame."""
    config = json.loads(_pulumi("config", "--json", "--show-secrets", "--stack", STACK))
    board = Board(declared(config))
    started = time.monotonic()
    frames: list[tuple[float, str]] = []

    def shoot(lines: list[str] | None = None) -> None:
        console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
        console.print(table(board))
        for line in lines or ():
            console.print(line, markup=False, highlight=False)
        drawn = console.export_svg(code_format=FRAME, unique_id=f"frame{len(frames)}")
        frames.append((time.monotonic() - started, drawn))

    def tell(_: str) -> None:
        if time.monotonic() - started - frames[-1][0] >= FRAME_S:
            shoot()

    shoot()
    bring_up(STACK, board, tell, print)
    shoot(summary(board))
    return frames


def _draw(frames: list[tuple[float, str]]) -> str:
    """One picture that shows the frames at their times, over and over; the last one stays a little."""
    seconds = frames[-1][0] + LAST_FRAME_S
    ends = [start for start, _ in frames[1:]] + [seconds]
    keyframes = []
    for index, ((start, _), end) in enumerate(zip(frames, ends, strict=True)):
        first = "visible" if index == 0 else "hidden"
        shown = f"{100 * start / seconds:.3f}% {{ visibility: visible }}" if index else ""
        keyframes.append(
            f"@keyframes frame{index} {{ 0% {{ visibility: {first} }} {shown} "
            f"{100 * end / seconds:.3f}% {{ visibility: hidden }} }}"
        )
    return DOCUMENT.format(
        width=WIDTH * 12.2 + 20,
        height=24.4 * (len(NODES) + 12),
        seconds=f"{seconds:.1f}",
        keyframes="\n".join(keyframes),
        frames="\n".join(drawn for _, drawn in frames),
    )


def _pulumi(*arguments: str) -> str:
    return subprocess.run(["pulumi", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
