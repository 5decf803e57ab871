"""A machine as shell scripts see it: a folder, and tools that write down how they were called."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TOOL = """#!/bin/bash
printf '%s\\n' "${{0##*/}} $*" >>{calls}
"""


@dataclass
class ScriptMachine:
    """Its root is a folder; what it has on PATH is in `bin`."""

    root: Path

    def __post_init__(self) -> None:
        (self.root / "bin").mkdir()

    @property
    def calls(self) -> list[str]:
        """Command lines, in order."""
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def real(self, *names: str) -> None:
        """Put programs of this machine on PATH."""
        for name in names:
            (self.root / "bin" / name).symlink_to(str(shutil.which(name)))

    def tool(self, name: str, script: str = "", directory: str = "/bin") -> None:
        """Put a stand-in in a directory, on PATH by default; `script` follows its note in `calls`."""
        path = f"{directory}/{name}"
        self.path(path).unlink(missing_ok=True)
        self.write(path, TOOL.format(calls=self.root / "calls") + script + "\n", 0o755)

    def path(self, path: str) -> Path:
        """Where this machine keeps what the scripts know by an absolute path."""
        return Path(f"{self.root}{path}")

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path(path).write_text(content)
        self.path(path).chmod(mode)

    def moved(self, script: str, *directories: str) -> str:
        """A script that finds these directories in the machine's folder."""
        for directory in directories:
            script = script.replace(directory, f"{self.root}{directory}")
        return script

    def bash(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run bash with this machine's PATH and no other environment."""
        return subprocess.run(
            ["bash", *arguments],
            check=False,
            input=stdin,
            env={"PATH": f"{self.root}/bin", **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )


def complaints(script: Path) -> str:
    """What shellcheck has to say of a script and of those that it sources; empty if nothing."""
    command = [Path(sys.executable).with_name("shellcheck"), "--external-sources"]
    done = subprocess.run(
        [*command, "--source-path", script.parents[1], script],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr
