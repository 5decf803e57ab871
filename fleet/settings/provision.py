"""What is installed on a node beside what serves the model, in phases. Each phase is off until it is named;
`true` takes its defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fleet.fit.compatibility import least_driver
from fleet.layout import deletion_problem
from fleet.settings.section import Section
from fleet.settings.values import AsTuple, Environment, wrong

DRIVER_BRANCHES = (535, 550, 565, 570, 575, 580)
"""NVIDIA's server branches that Ubuntu 24.04 packages."""

CUDA_RELEASES = ("12.2", "12.4", "12.5", "12.6", "12.8", "12.9", "13.0")
"""Releases that NVIDIA packages for Ubuntu 22.04 or 24.04 and that one of the branches runs."""

NVIDIA_KEY = "EB693B3035CD5710E231E123A4B469963BF863CC"
"""NVIDIA's key for CUDA packages (cudatools@nvidia.com), since April 2022."""

MINICONDA = "py312_25.1.1-2"
MINICONDA_SHA256 = "4766d85b5f7d235ce250e998ebb5a8a8210cbd4f2b0fea4d2177b3ed9ea87884"
"""Of its installer for x86_64, as repo.anaconda.com/miniconda publishes it."""

RAY_VERSION = "2.53.0"
"""vLLM takes any Ray from 2.43 but 2.44 (vLLM 0.9.2, requirements/cuda.txt)."""

ROOT_VENV, ROOT_CONDA, ROOT_RAY = "/opt/python", "/opt/conda", "/opt/ray"


def _switch(value: Any) -> Any:
    """`true` is a phase with its defaults, `false` one that is off."""
    return {} if value is True else None if value is False else value


def _default_packages(value: Any) -> Any:
    return (
        {True: ("build-essential", "curl", "git"), False: ()}.get(value, value)
        if isinstance(value, bool)
        else value
    )


def _unique(what: str, names: Sequence[str]) -> None:
    for name in sorted({name for name in names if names.count(name) > 1}):
        raise wrong(
            "{what}: {name} is there {count} times; keep one", what=what, name=name, count=names.count(name)
        )


def _apt_package(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+~:-]+)?", value):
        raise wrong("is no Debian package; write it like git or git=1:2.43.0-1ubuntu7")
    return value


def _pin(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(\[[\w,-]+\])?==[\w.+!-]+", value, re.ASCII):
        raise wrong(
            "is not pinned; write name==version, for example numpy==2.3.4, so that every run gives the same"
        )
    return value


def _conda_spec(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9_][a-z0-9_.-]*(={1,2}[\w.+!]+)?", value, re.ASCII):
        raise wrong("is no Conda package; write name or name=version, for example numpy=2.1")
    return value


def _python_version(value: str) -> str:
    if not re.fullmatch(r"3\.\d{1,2}", value):
        raise wrong('is no Python version; write it in quotes like "3.12"')
    return value


def _version(value: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)*([a-z]+\d*)?", value):
        raise wrong('is no version; write it in quotes like "25.3"')
    return value


def _place(value: str) -> str:
    if not re.fullmatch(r"(/[\w.+-]+)+", value, re.ASCII) or ".." in value.split("/"):
        raise wrong("is not an absolute path of letters, digits and . _ + -; write it like /opt/python")
    return value


PythonVersion = Annotated[str, AfterValidator(_python_version)]
Version = Annotated[str, AfterValidator(_version)]
Place = Annotated[str, AfterValidator(_place)]
AptPackage = Annotated[str, AfterValidator(_apt_package)]
Packages = Annotated[
    tuple[AptPackage, ...],
    AsTuple,
    BeforeValidator(_default_packages, json_schema_input_type=bool | tuple[AptPackage, ...]),
]
Pins = Annotated[tuple[Annotated[str, AfterValidator(_pin)], ...], AsTuple]


class Ssh(Section):
    """How long to wait for the first SSH session."""

    tries: int = Field(default=30, ge=1, le=1000)
    """Logins tried before a node is given up."""
    pause_s: float = Field(default=2.0, ge=0.1, le=60)
    """Seconds between two of them."""


class Python(Section):
    """A virtual environment with the distribution's Python, first on the PATH of login shells."""

    version: PythonVersion | None = None
    """Such as 3.12; the distribution's default if left out. Others come by Conda."""
    pip: Version | None = None
    """Version of pip; the one that comes with Python if left out."""
    packages: Pins = ()
    """Packages from PyPI, pinned by `==`."""
    path: Place = ROOT_VENV
    """Where it is."""


def _environment_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", value, re.ASCII):
        raise wrong("is no name for an environment; use letters, digits and . _ -")
    if value == "base":
        raise wrong("is Conda's own environment; name another")
    return value


class CondaEnvironment(Section):
    """A named environment of Conda."""

    name: Annotated[str, AfterValidator(_environment_name)]
    """What `conda activate` is told."""
    python: PythonVersion = "3.12"
    """Its Python."""
    packages: Annotated[tuple[Annotated[str, AfterValidator(_conda_spec)], ...], AsTuple] = ()
    """Packages of the channels: name, or name=version as far as it matters."""


class Conda(Section):
    """Miniconda for everybody on the machine."""

    installer: str = Field(default=MINICONDA, pattern=r"^py3\d+_\d+\.\d+\.\d+-\d+$")
    """Release of the installer, as its file name has it."""
    sha256: str = Field(default=MINICONDA_SHA256, pattern=r"^[0-9a-f]{64}$")
    """Checksum of that file for x86_64."""
    path: Place = ROOT_CONDA
    """Where it is."""
    channels: Annotated[tuple[Annotated[str, Field(pattern=r"^[\w./:-]+$")], ...], AsTuple] = Field(
        default=("conda-forge",), min_length=1
    )
    """Where packages come from, in this order and from nowhere else. Anaconda's own channels have terms that
    somebody has to accept."""
    environments: Annotated[tuple[CondaEnvironment, ...], AsTuple] = ()
    """Named environments."""

    @model_validator(mode="after")
    def _names_and_checksum_agree(self) -> Conda:
        _unique("environments", [environment.name for environment in self.environments])
        if self.installer != MINICONDA and self.sha256 == MINICONDA_SHA256:
            raise wrong(
                "sha256: is that of {known}, not of {installer}; take it from repo.anaconda.com/miniconda",
                known=MINICONDA,
                installer=self.installer,
            )
        return self


class Docker(Section):
    """Docker and Compose, the service enabled. On a node that serves they are there already."""

    version: Version | None = None
    """Of the engine, as far as it matters; what the machine has, or else the distribution's, if left out."""
    users: Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]*$")], ...], AsTuple] = ()
    """Users who may use Docker, and with it anything on the machine. The login user always may."""


class GpuDriver(Section):
    """NVIDIA driver, CUDA compiler and libraries, cuDNN, all on PATH and LD_LIBRARY_PATH of login shells."""

    detect: Literal["auto", "force"] = "auto"
    """`auto` does nothing on a machine without an NVIDIA card, `force` does not look for one."""
    driver_branch: Literal[DRIVER_BRANCHES] | None = None  # type: ignore[valid-type]
    """Branch of `nvidia-driver-<branch>-server`. Left out: the one the machine has, or the oldest that runs
    this CUDA, which is 535 for 12.2."""
    cuda: Literal[CUDA_RELEASES] | None = "12.2"  # type: ignore[valid-type]
    """Release of the CUDA compiler and libraries; none if null."""
    cudnn: bool = True
    """Install cuDNN 9 too."""
    key_fingerprint: str = Field(default=NVIDIA_KEY, pattern=r"^[0-9A-F]{40}$")
    """Of the key that signs NVIDIA's packages; another one for a mirror that signs anew."""

    @property
    def least_branch(self) -> int:
        """The oldest driver branch that runs this CUDA."""
        return _least_branch(self.cuda)

    @property
    def cudnn_package(self) -> str:
        """The package of cuDNN for this CUDA; empty for none."""
        return f"cudnn9-cuda-{self.cuda.partition('.')[0]}" if self.cudnn and self.cuda else ""

    @model_validator(mode="after")
    def _the_driver_runs_this_cuda(self) -> GpuDriver:
        if self.driver_branch is not None:
            refused = too_old(self, self.driver_branch)
            if refused:
                raise refused
        return self


def _least_branch(cuda: str | None) -> int:
    if cuda is None:
        return DRIVER_BRANCHES[0]
    major, minor = cuda.split(".")
    needed = least_driver((int(major), int(minor)))
    return next(branch for branch in DRIVER_BRANCHES if branch >= needed)


def too_old(gpu: GpuDriver, branch: int) -> PydanticCustomError | None:
    """What is wrong with that branch for the CUDA asked for, if anything."""
    if branch >= gpu.least_branch:
        return None
    fits = [release for release in CUDA_RELEASES if _least_branch(release) <= branch]
    return wrong(
        "cuda: {cuda} needs driver {least} or newer, not {branch}; use {fits}",
        cuda=gpu.cuda,
        least=gpu.least_branch,
        branch=branch,
        fits=f"{fits[-1]} at most, or a newer driver" if fits else "a newer driver",
    )


class RayInstallation(Section):
    """Ray, in an environment of its own."""

    version: Version = RAY_VERSION
    """Of `ray[default]` on PyPI."""
    python: PythonVersion | None = None
    """The distribution's Python of that version; its default if left out."""
    conda_environment: str | None = None
    """Put it into that environment of Conda instead."""
    path: Place = ROOT_RAY
    """Where its own environment is."""

    @model_validator(mode="after")
    def _one_python(self) -> RayInstallation:
        if self.python and self.conda_environment:
            raise wrong(
                "python: the environment {name} has its own; leave out one of the two",
                name=self.conda_environment,
            )
        return self


class FileSync(Section):
    """Files of this machine, copied by rsync."""

    source: str = Field(min_length=1)
    """File or folder here; with a slash at the end, the folder's content."""
    destination: Place
    """On the node."""
    exclude: Annotated[tuple[str, ...], AsTuple] = ()
    """Patterns to leave out, as rsync reads them."""
    delete: bool = False
    """Remove there what is not here; never in a folder that holds more than this."""

    @model_validator(mode="after")
    def _deletes_what_is_its_own(self) -> FileSync:
        if self.delete and (problem := deletion_problem(self.destination)):
            raise wrong(
                "delete: {destination} {problem}, or leave delete out",
                destination=self.destination,
                problem=problem,
            )
        return self


class SetupScript(Section):
    """A script of your own. It is run as root, once for each version of it."""

    path: Path
    """On this machine."""
    timeout_s: int = Field(default=1800, ge=1, le=86_400)
    """Seconds it may take."""


def _script(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class Provision(Section):
    """What a node is given beside what serves the model. A phase that is switched off later leaves what it
    has installed."""

    ssh: Ssh = Ssh()
    """Waiting for the machine."""
    packages: Packages = ()
    """System packages, each with `=version` if it matters; `true` is build-essential, curl and git."""
    python: Annotated[
        Python | None, BeforeValidator(_switch, json_schema_input_type=bool | Python | None)
    ] = None
    conda: Annotated[Conda | None, BeforeValidator(_switch, json_schema_input_type=bool | Conda | None)] = (
        None
    )
    docker: Annotated[
        Docker | None, BeforeValidator(_switch, json_schema_input_type=bool | Docker | None)
    ] = None
    gpu: Annotated[
        GpuDriver | None, BeforeValidator(_switch, json_schema_input_type=bool | GpuDriver | None)
    ] = None
    ray: Annotated[
        RayInstallation | None, BeforeValidator(_switch, json_schema_input_type=bool | RayInstallation | None)
    ] = None
    environment: Environment = Field(default_factory=dict)
    """Environment variables of login shells and of the scripts below. No secrets."""
    working_directory: Place | None = None
    """Where login shells begin and the scripts below run. It belongs to the login user."""
    files: Annotated[tuple[FileSync, ...], AsTuple] = ()
    """What is copied to the node."""
    scripts: Annotated[
        tuple[
            Annotated[SetupScript, BeforeValidator(_script, json_schema_input_type=str | SetupScript)], ...
        ],
        AsTuple,
    ] = ()
    """Scripts of your own, run at the end, in this order."""
    timeout_s: int = Field(default=1800, ge=10, le=14_400)
    """Seconds that each phase may take."""

    @field_validator("files")
    @classmethod
    def _each_place_once(cls, files: tuple[FileSync, ...]) -> tuple[FileSync, ...]:
        _unique("destination", [file.destination for file in files])
        return files

    @field_validator("scripts")
    @classmethod
    def _each_name_once(cls, scripts: tuple[SetupScript, ...]) -> tuple[SetupScript, ...]:
        # The note that a script has run carries its name.
        _unique("name", [PurePosixPath(script.path).name for script in scripts])
        return scripts

    @property
    def named(self) -> bool:
        """Whether any phase is."""
        return self != Provision(ssh=self.ssh, timeout_s=self.timeout_s)

    def local_paths(self) -> Iterator[tuple[str, Path, bool]]:
        """What of this machine is copied or run there: key, path, and whether a folder will do."""
        for index, script in enumerate(self.scripts):
            yield f"scripts[{index}].path", script.path, False
        for index, file in enumerate(self.files):
            yield f"files[{index}].source", Path(file.source), True

    @model_validator(mode="after")
    def _ray_has_its_environment(self) -> Provision:
        wanted = self.ray.conda_environment if self.ray else None
        known = [environment.name for environment in self.conda.environments] if self.conda else []
        if wanted is not None and wanted not in known:
            raise wrong(
                "ray.conda_environment: no environment is named {wanted}; {fix}",
                wanted=wanted,
                fix=f"use one of: {', '.join(known)}" if known else "add it to conda.environments",
            )
        return self


SECTIONS: dict[str, type[Section]] = {
    "provision": Provision,
    "ssh": Ssh,
    "python": Python,
    "conda": Conda,
    "environments": CondaEnvironment,
    "docker": Docker,
    "gpu": GpuDriver,
    "ray": RayInstallation,
}
"""What a key of the configuration holds."""
