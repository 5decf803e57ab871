"""The apt mirror: signed repositories under the vendors' own names, with stand-ins for what needs a GPU.

Docker comes from Debian's real packages, offered by Debian's, Ubuntu's and Docker's names. The NVIDIA
driver, the container toolkit, CUDA and cuDNN are stand-ins with the effects a deployment can see: files,
`nvidia-smi` (only after a reboot), the Docker runtime, packages that can be held.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from simcloud.vm import provisioning
from simcloud.vm.debs import Package
from simcloud.vm.host import run

GUEST = Path(__file__).parent / "guest"

DRIVER_VERSIONS = {
    "535": ("535.274.02", "12.2"),
    "550": ("550.163.01", "12.4"),
    "565": ("565.57.01", "12.7"),
    "570": ("570.195.03", "12.8"),
    "575": ("575.57.08", "12.9"),
    "580": ("580.95.05", "13.0"),
}
"""Driver branch → (version, newest CUDA it runs), as NVIDIA's release notes pair them."""

TOOLKIT_VERSION = "1.17.8-1"

# SHA256 alone: apt checks every digest it is given, and an emulated processor is slow at it.
_INDEX = ["apt-ftparchive", *(f"-oAPT::FTPArchive::{digest}=false" for digest in ("MD5", "SHA1", "SHA512"))]

# Debian's containerd carries tools no node uses: a third of what would be downloaded and unpacked.
_LEFT_OUT = ("ctr", "containerd-stress", "containerd-shim", "containerd-shim-runc-v1")

DEBIAN_PACKAGES = ("docker.io", "docker-cli", "docker-compose", "jq", *provisioning.DEBIAN_PACKAGES)
"""Debian packages, fetched with what they depend on, that a node installs."""

KEYS = ("archive", "docker", "nvidia")
"""One signing key a publisher, so that trusting one of them trusts no other."""

VENDOR_KEYS = {
    "9DC858229FC7DD38854AE2D88D81803C0EBFCD88": "docker",
    "C95B321B61E88C1809C4F759DDCAE044F796ECB0": "nvidia",
    "EB693B3035CD5710E231E123A4B469963BF863CC": "nvidia",
}
"""Fingerprint of a vendor's own key, as it publishes it, → whose key of `KEYS` machines take for it: Docker's
apt repository, NVIDIA's container toolkit, CUDA."""

# The effect of a driver that is installed but not loaded: the boot that installed it does not see the GPU. In
# the building of an image nothing is booted, and the first boot finds the driver in place.
_DRIVER_INSTALLED = """#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    cp /proc/sys/kernel/random/boot_id /var/lib/nvidia-stand-in/boot-id
    touch /run/reboot-required
fi
"""

# A real driver's module is compiled for minutes; here it takes what the machine is told, by default nothing.
_MODULE_BUILT = """#!/bin/sh
seconds=$(curl -sf -m 3 http://169.254.80.81/driver-build-seconds) || exit 0
sleep "$seconds"
"""


def _driver(branch: str) -> Iterable[Package]:
    version, cuda = DRIVER_VERSIONS[branch]
    full = f"{version}-0ubuntu0.24.04.1"
    others = [other for other in DRIVER_VERSIONS if other != branch]
    state = "/var/lib/nvidia-stand-in"
    yield Package(
        f"nvidia-utils-{branch}-server",
        full,
        conflicts=[f"nvidia-utils-{other}-server" for other in others],
        depends=["curl", "procps"],
        files={"/usr/bin/nvidia-smi": (GUEST / "nvidia-smi").read_bytes()},
    )
    yield Package(f"nvidia-dkms-{branch}-server", full, depends=["curl"], postinst=_MODULE_BUILT)
    yield Package(f"libnvidia-compute-{branch}-server", full)
    yield Package(
        f"nvidia-driver-{branch}-server",
        full,
        conflicts=[f"nvidia-driver-{other}-server" for other in others],
        depends=[
            f"{name}-{branch}-server (= {full})"
            for name in ("nvidia-utils", "nvidia-dkms", "libnvidia-compute")
        ],
        files={
            f"{state}/branch": branch.encode(),
            f"{state}/version": version.encode(),
            f"{state}/cuda": cuda.encode(),
        },
        postinst=_DRIVER_INSTALLED,
    )


def _toolkit() -> Iterable[Package]:
    yield Package(
        "nvidia-container-toolkit-base",
        TOOLKIT_VERSION,
        depends=["python3"],
        files={
            f"/usr/bin/{name}": (GUEST / name).read_bytes()
            for name in ("nvidia-ctk", "nvidia-container-runtime")
        },
    )
    yield Package("libnvidia-container1", TOOLKIT_VERSION)
    yield Package("libnvidia-container-tools", TOOLKIT_VERSION, depends=["libnvidia-container1"])
    yield Package(
        "nvidia-container-toolkit",
        TOOLKIT_VERSION,
        depends=["nvidia-container-toolkit-base", "libnvidia-container-tools"],
    )


_DOCKER_BY_UBUNTU = (Package("docker-compose-v2", "2.26.1", depends=["docker-cli", "docker-compose"]),)
_DOCKER_BY_DOCKER = (
    Package("docker-ce", "5:26.1.5-1", depends=["docker.io", "docker-cli"]),
    Package("docker-ce-cli", "5:26.1.5-1", depends=["docker-cli"]),
    Package("containerd.io", "1.7.24-1", depends=["containerd"]),
    Package("docker-compose-plugin", "2.26.1-1", depends=["docker-compose"]),
    Package("docker-buildx-plugin", "0.13.1-1"),
)


def build_archive(directory: Path, debian: Path) -> None:
    """Fill `directory`: a tree a host name, as the mirror serves it, and `keys/NAME.asc`, the public keys.

    `debian` holds the real `.deb` files to offer; they are unpacked of their compression, which an emulated
    processor takes long to undo.
    """
    signer = _Signer(directory / "keys", directory / ".gnupg")
    ubuntu = directory / "archive.ubuntu.com/ubuntu"
    scratch = directory / ".scratch"
    scratch.mkdir()

    for deb in sorted(debian.glob("*.deb")):
        _uncompressed(deb, ubuntu / "pool/universe", scratch)
    for branch in DRIVER_VERSIONS:
        _build(_driver(branch), ubuntu / "pool/restricted", scratch)
    _build(_DOCKER_BY_UBUNTU, ubuntu / "pool/universe", scratch)
    _build([provisioning.BUILD_ESSENTIAL], ubuntu / "pool/main", scratch)
    suites = ("noble", "noble-updates", "noble-backports", "noble-security")
    for suite in suites:
        _index(ubuntu, suite, "Ubuntu", ("main", "universe", "restricted", "multiverse"), suite == "noble")
        signer.sign("archive", ubuntu / f"dists/{suite}")

    docker = directory / "download.docker.com/linux/ubuntu"
    _build(_DOCKER_BY_DOCKER, docker / "pool/stable", scratch)
    _index(docker, "noble", "Docker", ("stable",), True)
    signer.sign("docker", docker / "dists/noble")
    shutil.copy(directory / "keys/docker.asc", docker / "gpg")

    for flat, packages, key in (
        ("nvidia.github.io/libnvidia-container/stable/deb/amd64", _toolkit(), "../../../gpgkey"),
        *(
            (
                f"developer.download.nvidia.com/compute/cuda/repos/{system}/x86_64",
                provisioning.cuda(system),
                "3bf863cc.pub",
            )
            for system in provisioning.CUDA_OF_SYSTEM
        ),
    ):
        repository = directory / flat
        _build(packages, repository, scratch)
        (repository / "Packages").write_bytes(run([*_INDEX, "packages", "."], cwd=repository, timeout_s=60))
        _release(repository, {"Origin": "NVIDIA", "Label": "NVIDIA"})
        signer.sign("nvidia", repository)
        shutil.copy(directory / "keys/nvidia.asc", repository / key)
    provisioning.build(directory)
    shutil.rmtree(scratch)
    signer.close()


def _build(packages: Iterable[Package], pool: Path, scratch: Path) -> None:
    pool.mkdir(parents=True, exist_ok=True)
    for package in packages:
        package.build(pool, scratch)


def _uncompressed(deb: Path, pool: Path, scratch: Path) -> None:
    pool.mkdir(parents=True, exist_ok=True)
    unpacked = scratch / deb.stem
    run(["dpkg-deb", "--raw-extract", deb, unpacked], timeout_s=120)
    if deb.name.startswith("docker.io_"):
        # Ubuntu's package of this name holds the client, which Debian's only recommends.
        control = unpacked / "DEBIAN/control"
        control.write_text(control.read_text().replace("\nDepends: ", "\nDepends: docker-cli, ", 1))
    for name in _LEFT_OUT:
        (unpacked / "usr/bin" / name).unlink(missing_ok=True)
    run(["dpkg-deb", "-Znone", "--build", unpacked, pool / deb.name], timeout_s=120)
    shutil.rmtree(unpacked)


def _index(repository: Path, suite: str, origin: str, components: Sequence[str], filled: bool) -> None:
    release = repository / "dists" / suite
    for component in components:
        binary = release / component / "binary-amd64"
        binary.mkdir(parents=True)
        pool = repository / "pool" / component
        listing = b""
        if filled and pool.is_dir():
            listing = run([*_INDEX, "packages", f"pool/{component}"], cwd=repository, timeout_s=120)
        (binary / "Packages").write_bytes(listing)
    _release(release, {"Origin": origin, "Label": origin, "Suite": suite, "Codename": suite,
                       "Components": " ".join(components), "Architectures": "amd64"})  # fmt: skip


def _release(directory: Path, fields: Mapping[str, str]) -> None:
    options = [f"-oAPT::FTPArchive::Release::{name}={value}" for name, value in fields.items()]
    content = run([*_INDEX, *options, "release", "."], cwd=directory, timeout_s=60)
    (directory / "Release").write_bytes(content)


class _Signer:
    def __init__(self, public: Path, home: Path) -> None:
        self._home = home
        home.mkdir(mode=0o700)
        public.mkdir()
        for name in KEYS:
            self._gpg("--quick-generate-key", f"Embedded cloud: {name} <{name}@localhost>",
                      "ed25519", "sign", "never")  # fmt: skip
            (public / f"{name}.asc").write_bytes(self._gpg("--armor", "--export", f"{name}@localhost"))

    def _gpg(self, *arguments: str | Path) -> bytes:
        base: list[str | Path] = [
            "gpg",
            "--homedir",
            self._home,
            "--batch",
            "--yes",
            "--pinentry-mode",
            "loopback",
        ]
        return run([*base, "--passphrase", "", *arguments], timeout_s=60)

    def sign(self, key: str, directory: Path) -> None:
        release = directory / "Release"
        user = ["--local-user", f"{key}@localhost"]
        self._gpg(*user, "--clearsign", "--output", directory / "InRelease", release)
        self._gpg(*user, "--armor", "--detach-sign", "--output", directory / "Release.gpg", release)

    def close(self) -> None:
        """End gpg's agent and forget the private keys: nothing is signed after the build."""
        run(["gpgconf", "--homedir", self._home, "--kill", "all"], timeout_s=30)
        shutil.rmtree(self._home)
