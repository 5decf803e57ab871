"""The real Caddy, for light nodes and tests: what it answers is not for a stand-in to say."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


class NoCaddy(RuntimeError):
    """It is neither here nor to be had; the text, one line, says why and how to get it."""


def caddy() -> Path:
    """The executable: the one on PATH, else that of the distribution's package, unpacked into the cache.

    The package is not installed: it would start a web server. Raises NoCaddy.
    """
    from simcloud.vm.host import cached  # noqa: PLC0415  the machines' package wants Caddy as well

    found = shutil.which("caddy")
    return Path(found) if found else cached("caddy", "1", _unpack) / "usr/bin/caddy"


def _unpack(folder: Path) -> None:
    download = ["apt-get", "-q", "download", "caddy"]
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    # Package lists are missing in a fresh container, and may be old anywhere.
    for argv in (download, [*sudo, "apt-get", "-q", "update"], download):
        last = _run(argv, folder)
        if argv == download and (packages := [*folder.glob("caddy_*.deb")]):
            _run(["dpkg-deb", "-x", packages[0].name, "."], folder)
            packages[0].unlink()
            return
    raise NoCaddy(f"caddy is missing: it answers as the gateway of light nodes. Install it ({last})")


def _run(argv: list[str], folder: Path) -> str:
    """The last line of what a command says."""
    try:
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    except OSError as error:
        return str(error)
    return "".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-1:])
