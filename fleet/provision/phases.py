"""The phases of a node, as a pure function of its settings."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fleet.sync import Copy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fleet.settings import Provision

NAMES = (
    "machine",
    "ssh",
    "packages",
    "python",
    "conda",
    "docker",
    "gpu",
    "ray",
    "environment",
    "files",
    "scripts",
)
"""In the order in which they run. The first two are always looked at; the machine itself is the stack's."""

SCRIPTS_DIRECTORY = "/var/lib/vllm-fleet/provision/scripts"
"""Where a user's own scripts lie on a node."""


@dataclass(frozen=True)
class Upload:
    """A file of this machine that a phase needs on the node."""

    source: str
    destination: str
    sha256: str
    """Of its content when the phases were made up: another one is not run in its place."""


@dataclass(frozen=True)
class Phase:
    """One step, and what its script is told."""

    name: str
    """Of `NAMES`."""
    script: str = ""
    """In `cloudinit/provision`, without `.sh`; empty for a phase that copies files."""
    part: str = ""
    """Tells steps of the same phase apart."""
    environment: tuple[str, ...] = ()
    """`NAME=value`."""
    upload: Upload | None = None
    copy: Copy | None = None
    timeout_s: float = 1800.0

    @property
    def label(self) -> str:
        """As users see it."""
        return f"{self.name} {self.part}".rstrip()


def phases_of(provision: Provision, ssh_user: str, environment: Sequence[str] = ()) -> tuple[Phase, ...]:
    """What is to be done on a node after its first boot, in order. `environment` (`NAME=value`) is for every
    script: how it reaches the internet.

    Reads the user's own scripts, for their digests. Raises OSError if one cannot be read.
    """
    steps: list[Phase] = []

    def add(name: str, script: str, **environment: str) -> None:
        told = tuple(f"{key}={value}" for key, value in environment.items())
        steps.append(Phase(name, script, environment=told, timeout_s=provision.timeout_s))

    # What copies the files is a package like others.
    packages = [*provision.packages, *(["rsync"] if provision.files else [])]
    if packages:
        add("packages", "packages", PACKAGES=" ".join(dict.fromkeys(packages)))
    if python := provision.python:
        add(
            "python",
            "python",
            PREFIX=python.path,
            VERSION=python.version or "",
            PIP=python.pip or "",
            PINS=" ".join(python.packages),
        )
    if conda := provision.conda:
        environments = [
            " ".join([each.name, f"python={each.python}", *each.packages]) for each in conda.environments
        ]
        add(
            "conda",
            "conda",
            PREFIX=conda.path,
            INSTALLER=conda.installer,
            SHA256=conda.sha256,
            CHANNELS=" ".join(conda.channels),
            ENVIRONMENTS="\n".join(environments),
        )
    if docker := provision.docker:
        users = [*docker.users, *([] if ssh_user == "root" else [ssh_user])]
        add("docker", "docker", VERSION=docker.version or "", USERS=" ".join(dict.fromkeys(users)))
    if gpu := provision.gpu:
        add(
            "gpu",
            "gpu",
            DETECT=gpu.detect,
            BRANCH=str(gpu.driver_branch or ""),
            LEAST=str(gpu.least_branch),
            INSTALL=str(gpu.driver_branch or gpu.least_branch),
            CUDA=gpu.cuda or "",
            CUDNN=gpu.cudnn_package,
            KEY=gpu.key_fingerprint,
        )
    if ray := provision.ray:
        of_conda = ray.conda_environment or ""
        prefix = f"{provision.conda.path}/envs/{of_conda}" if provision.conda and of_conda else ray.path
        add("ray", "ray", PREFIX=prefix, VERSION=ray.version, PYTHON=ray.python or "", OF_CONDA=of_conda)
    directory = provision.working_directory or ""
    if provision.environment or directory:
        add(
            "environment",
            "environment",
            PROFILE=_profile(provision.environment, directory),
            DIRECTORY=directory,
            OWNER=ssh_user,
        )
    for file in provision.files:
        copy = Copy(str(Path(file.source).expanduser()), file.destination, file.exclude, file.delete)
        # Path drops the slash that tells a folder from its content.
        copy = _with_slash(copy) if file.source.endswith("/") else copy
        steps.append(Phase("files", part=file.destination, copy=copy, timeout_s=provision.timeout_s))
    for script in provision.scripts:
        source = script.path.expanduser()
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        upload = Upload(str(source), f"{SCRIPTS_DIRECTORY}/{source.name}", digest)
        told = (
            f"NAME={source.name}",
            f"FILE={upload.destination}",
            f"DIGEST={digest}",
            f"DIRECTORY={directory or '/root'}",
        )
        steps.append(
            Phase(
                "scripts", "script", source.name, environment=told, upload=upload, timeout_s=script.timeout_s
            )
        )
    return tuple(
        replace(step, environment=(*environment, *step.environment)) if step.script else step
        for step in steps
    )


def files_digest(provision: Provision) -> str:
    """Names the content of all that is copied to a node, so that a change of it is a change of the stack."""
    total = hashlib.sha256()
    for file in provision.files:
        source = Path(file.source).expanduser()
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.is_file():
                total.update(f"{path.relative_to(source)}\0{path.stat().st_mode:o}\0".encode())
                total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def _with_slash(copy: Copy) -> Copy:
    return Copy(f"{copy.source}/", copy.destination, copy.excludes, copy.delete)


def _profile(environment: Mapping[str, str], directory: str) -> str:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    if directory:
        lines.append(f'[ "$PWD" != "$HOME" ] || cd {shlex.quote(directory)}')
    return "\n".join(lines)
