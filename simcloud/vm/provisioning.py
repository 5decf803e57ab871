"""What provisioning finds in the outside world: stand-ins for Miniconda, packages of PyPI, and CUDA.

Files of the mirror's tree, next to nothing in themselves, but installed by the real pip, apt and bash.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

from simcloud.vm.debs import Package

GUEST = Path(__file__).parent / "guest"

HOSTS = ("repo.anaconda.com", "pypi.org", "files.pythonhosted.org")
"""The hosts that answer for it."""

DEBIAN_PACKAGES = ("git", "make", "python3-venv")
"""Debian packages that provisioning installs."""

MINICONDA = "py312_25.1.1-2"
RAY_VERSIONS = ("2.48.0", "2.49.2")
WHEELS = (*(("ray", version) for version in RAY_VERSIONS), ("tomli", "2.2.1"), ("tomli", "2.3.0"))
"""What the stand-in for PyPI has."""

CUDA_OF_SYSTEM = {
    "ubuntu2204": ("12.2", "12.4", "12.6", "12.8"),
    "ubuntu2404": ("12.5", "12.6", "12.8", "12.9"),
}
"""NVIDIA never made the releases before 12.5 for Ubuntu 24.04."""

BUILD_ESSENTIAL = Package("build-essential", "12.10ubuntu1", depends=["make"])
"""Of the compilers that it brings only make is worth a machine's time."""


def cuda(system: str) -> Iterable[Package]:
    """CUDA and cuDNN as NVIDIA's repository for a system has them."""
    for release in CUDA_OF_SYSTEM[system]:
        place, name = f"/usr/local/cuda-{release}", release.replace(".", "-")
        nvcc = f'#!/bin/sh\necho "Cuda compilation tools, release {release}, V{release}.99"\n'
        yield Package(f"cuda-compiler-{name}", f"{release}.1-1", files={f"{place}/bin/nvcc": nvcc.encode()})
        runtime = {f"{place}/lib64/libcudart.so.12": b"stand-in\n"}
        yield Package(f"cuda-libraries-dev-{name}", f"{release}.1-1", files=runtime)
    yield Package("libcudnn9-cuda-12", "9.10.2.21-1")
    yield Package("cudnn9-cuda-12", "9.10.2.21-1", depends=["libcudnn9-cuda-12"])
    # Newer than any of the distribution's, as in the real one: nobody may take the driver from here.
    yield Package("nvidia-driver-535-server", "999.0-1")


def build(archive: Path) -> None:
    """Add Miniconda's installer and the packages of PyPI to the mirror's tree."""
    version = MINICONDA.partition("_")[2].partition("-")[0]
    installer = (GUEST / "miniconda").read_text().replace("@VERSION@", version)
    place = archive / "repo.anaconda.com/miniconda" / f"Miniconda3-{MINICONDA}-Linux-x86_64.sh"
    place.parent.mkdir(parents=True)
    place.write_text(installer.replace("@CONDA@", (GUEST / "conda").read_text().rstrip()))
    files, simple = archive / "files.pythonhosted.org/packages", archive / "pypi.org/simple"
    files.mkdir(parents=True)
    for name in sorted({name for name, _ in WHEELS}):
        wheels = [_wheel(files, name, version).name for each, version in WHEELS if each == name]
        links = [f'<a href="https://files.pythonhosted.org/packages/{wheel}">{wheel}</a>' for wheel in wheels]
        (simple / name).mkdir(parents=True)
        (simple / name / "index.html").write_text("\n".join(["<!DOCTYPE html>", *links]))


def _wheel(directory: Path, name: str, version: str) -> Path:
    """A package with nothing in it but its version, and a program of its name that prints it."""
    module = f'__version__ = "{version}"\n\ndef main():\n    print("{name}, version", __version__)\n'
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": module,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        "Provides-Extra: default\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: here\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, content)
    return wheel
