"""The machine image of the embedded clouds: Debian posing as Ubuntu 24.04, partitioned as their images are.

Two variants, as the clouds have them: `plain`, and `gpu`, which already carries Docker, the driver and the
toolkit. Built once, kept under a digest of its recipe. Names of the outside world (package archives,
registries) lead to the mirrors of `simcloud.vm.mirrors`, over TLS where the vendors use it, and a vendor's
signing key to the one the mirror signs with for it, so that user data needs no word about them.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from simcloud.vm import packages, provisioning
from simcloud.vm.host import HostError, cached, digest, ensure_tools, run, step

MIRROR_ADDRESS = "169.254.80.80"
"""Where a machine finds every host of `MIRRORED_HOSTS`."""

MIRRORED_HOSTS = (
    "archive.ubuntu.com",
    "security.ubuntu.com",
    "download.docker.com",
    "nvidia.github.io",
    "developer.download.nvidia.com",
    "registry-1.docker.io",
    "ghcr.io",
    "huggingface.co",
    *provisioning.HOSTS,
)

GUEST = Path(__file__).parent / "guest"

_SUITE = "trixie"
_PACKAGES = (
    *("systemd", "systemd-sysv", "systemd-resolved", "dbus", "libpam-systemd", "udev", "kmod", "procps"),
    *("iproute2", "netplan.io", "nftables", "dhcpcd-base", "openssh-server", "rsync", "sudo"),
    *("cloud-init", "cloud-guest-utils", "fdisk", "linux-image-cloud-amd64", "initramfs-tools", "zstd"),
    *("curl", "ca-certificates", "gpg", "python3", "lsb-release"),
)
_GPU_VARIANT = ("docker.io", "docker-compose-v2", "nvidia-driver-580-server", "nvidia-container-toolkit")

_ROOT_MIB = 2560
"""Size of the root file system before cloud-init grows it; the plain variant fills about 400 MiB of it."""

FIRST_PARTITION = 1 << 20
"""Where on the disk the root file system begins, in bytes."""

_NO_DOCUMENTATION = [
    f"--dpkgopt=path-exclude=/usr/share/{where}/*" for where in ("man", "doc", "locale", "info", "lintian")
]


@dataclass(frozen=True)
class MachineImage:
    """Files of a built image."""

    directory: Path

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd.img"

    @property
    def archive(self) -> Path:
        """The apt mirror's tree: a directory a host name."""
        return self.directory / "archive"

    @property
    def mirror_certificate(self) -> Path:
        """PEM, certificate and key of the mirrored hosts; machines trust its authority."""
        return self.directory / "mirror.pem"

    def disk(self, variant: str) -> Path:
        """Base disk, qcow2, of `plain` or `gpu`."""
        return self.directory / f"{variant}.qcow2"


def machine_image() -> MachineImage:
    """The image, built on first use (about two minutes on two cores).

    Raises HostError when a tool is missing or a package cannot be had.
    """
    ensure_tools()
    here = Path(__file__).parent
    key = digest(Path(__file__), here / "packages.py", here / "provisioning.py", GUEST)
    return MachineImage(cached("machine", key, _build))


def _build(directory: Path) -> None:
    if os.geteuid() != 0:
        raise HostError(
            "building the machine image needs root, for mmdebstrap's chroot. Run it once with sudo -E."
        )
    root, debs = directory / "root", directory / "debs"
    debs.mkdir()
    with step("machine image: Debian packages (about 60 s)"):
        wanted = " ".join(packages.DEBIAN_PACKAGES)
        fetch = f"apt-get --yes install --no-install-recommends --download-only {wanted}"
        run(
            [
                "mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(_PACKAGES)}",
                '--aptopt=Apt::Install-Recommends "false"', *_NO_DOCUMENTATION, "--skip=cleanup/apt/cache",
                '--customize-hook=rm "$1"/var/cache/apt/archives/*.deb',
                f'--customize-hook=APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" {fetch}',
                f'--customize-hook=mv "$1"/var/cache/apt/archives/*.deb {debs}',
                _SUITE, root,
            ],
            timeout_s=900,
        )  # fmt: skip
    with step("machine image: apt mirror"):
        archive = directory / "archive"
        archive.mkdir()
        packages.build_archive(archive, debs)
        shutil.rmtree(debs)
    authority = _certificates(directory / "mirror.pem")
    with step("machine image: configuration and initrd"):
        _configure(root, archive, authority)
        (kernel,) = (root / "boot").glob("vmlinuz-*")
        shutil.copy(kernel, directory / "vmlinuz")
        (initrd,) = (root / "boot").glob("initrd.img-*")
        shutil.copy(initrd, directory / "initrd.img")
    with step("machine image: disks"):
        _disk(root, directory / "plain.qcow2")
        _install(root, archive, _GPU_VARIANT)
        _disk(root, directory / "gpu.qcow2")
    shutil.rmtree(root)


def _configure(root: Path, archive: Path, authority: bytes) -> None:
    """What makes Debian's files an image of the embedded clouds."""

    def put(path: str, content: bytes) -> None:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(0o755 if content.startswith(b"#!") else 0o644)

    def guest(name: str, path: str) -> None:
        put(path, (GUEST / name).read_bytes())

    guest("os-release", "usr/lib/os-release")
    guest("90_image.cfg", "etc/cloud/cloud.cfg.d/90_image.cfg")
    guest("before-docker", "usr/lib/embedded-cloud/before-docker")
    guest("docker.conf", "etc/systemd/system/docker.service.d/10-embedded-cloud.conf")
    services = ("early-netfilter", "metadata-guard")
    for name in services:
        guest(f"{name}.nft", f"usr/lib/embedded-cloud/{name}.nft")
        guest(f"{name}.service", f"etc/systemd/system/{name}.service")
    (root / "usr/bin/sqv").rename(root / "usr/lib/embedded-cloud/sqv")
    guest("sqv", "usr/bin/sqv")
    for fingerprint, publisher in packages.VENDOR_KEYS.items():
        put(
            f"usr/lib/embedded-cloud/keys/{fingerprint}.asc", (archive / f"keys/{publisher}.asc").read_bytes()
        )
    hosts = f"127.0.0.1 localhost\n{MIRROR_ADDRESS} {' '.join(MIRRORED_HOSTS)}\n"
    put("etc/hosts", hosts.encode())
    put("usr/local/share/ca-certificates/embedded-cloud.crt", authority)
    put("etc/systemd/resolved.conf.d/10-ubuntu.conf", b"[Resolve]\nLLMNR=no\nMulticastDNS=no\n")
    put("etc/fstab", b"/dev/vda1 / ext4 defaults 0 1\n")
    # dpkg's fsyncs guard against nothing on a disk that outlives no crash of the host.
    put("etc/dpkg/dpkg.cfg.d/90-unsafe-io", b"force-unsafe-io\n")
    keyring = run(["gpg", "--dearmor"], stdin=(archive / "keys/archive.asc").read_bytes(), timeout_s=30)
    put("usr/share/keyrings/ubuntu-archive-keyring.gpg", keyring)
    # Only what the emulated hardware needs: a small initrd unpacks seconds sooner on an emulated processor.
    put("etc/initramfs-tools/conf.d/modules", b"MODULES=list\nCOMPRESS=zstd\n")
    put("etc/initramfs-tools/modules", b"virtio_pci\nvirtio_blk\next4\n")
    for stale in (*root.glob("etc/ssh/ssh_host_*"), *root.glob("etc/apt/sources.list*")):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    for name in ("etc/machine-id", "etc/hostname"):
        put(name, b"")
    (root / "etc/apt/sources.list.d").mkdir()
    inside: list[str | Path] = ["chroot", root]
    run([*inside, "update-ca-certificates"], timeout_s=60)
    run([*inside, "update-initramfs", "-u"], timeout_s=120)
    # Timers of the distribution would take the processor from what is tried.
    run([*inside, "systemctl", "mask", "apt-daily.timer", "apt-daily-upgrade.timer", "fstrim.timer",
         "e2scrub_all.timer", "man-db.timer"], timeout_s=30)  # fmt: skip
    enabled = [f"{name}.service" for name in (*services, "systemd-networkd")]
    run([*inside, "systemctl", "enable", *enabled], timeout_s=30)


def _install(root: Path, archive: Path, names: tuple[str, ...]) -> None:
    """Install packages of the mirror into the image, as the cloud's own image builder did."""
    inside: list[str | Path] = ["chroot", root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
    mirror = root / "srv/archive"
    shutil.copytree(archive, mirror, copy_function=os.link)
    sources = root / "etc/apt/sources.list.d/build.list"
    refuse = root / "usr/sbin/policy-rc.d"
    refuse.write_text("#!/bin/sh\nexit 101\n")
    refuse.chmod(0o755)
    sources.write_text(
        "deb [trusted=yes] file:/srv/archive/archive.ubuntu.com/ubuntu noble universe restricted\n"
        "deb [trusted=yes] file:/srv/archive/nvidia.github.io/libnvidia-container/stable/deb/amd64 ./\n"
    )
    try:
        run([*inside, "update"], timeout_s=120)
        run([*inside, "install", "-y", "--no-install-recommends", *names], timeout_s=300)
        run(["chroot", root, "nvidia-ctk", "runtime", "configure", "--runtime=docker"], timeout_s=30)
    finally:
        sources.unlink()
        refuse.unlink()
        shutil.rmtree(mirror)
    for path in root.glob("var/lib/apt/lists/*_*"):
        path.unlink()


def _disk(root: Path, target: Path) -> None:
    """A GPT disk whose one partition holds the root file system, so that growpart has its real work to do."""
    raw = target.with_suffix(".raw")
    with raw.open("wb") as disk:
        disk.truncate((_ROOT_MIB << 20) + 2 * FIRST_PARTITION)
    layout = f"label: gpt\nstart={FIRST_PARTITION >> 20}MiB, size={_ROOT_MIB}MiB, type=linux\n"
    run(["sfdisk", "--quiet", raw], stdin=layout.encode(), timeout_s=30)
    # An inode for 64 KiB: growing to hundreds of gigabytes then writes a quarter of the usual tables.
    options = f"offset={FIRST_PARTITION},lazy_itable_init=1"
    run(["mkfs.ext4", "-q", "-F", "-i", "65536", "-L", "cloudimg-rootfs", "-d", root, "-E", options,
         raw, f"{_ROOT_MIB}M"], timeout_s=300)  # fmt: skip
    run(["qemu-img", "convert", "-O", "qcow2", raw, target], timeout_s=300)
    raw.unlink()


def _certificates(target: Path) -> bytes:
    """Write the mirrored hosts' certificate and key; the authority's certificate (its key is not kept)."""

    def name(common: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])

    now = datetime.now(UTC)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def certificate(subject: str, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("Embedded cloud mirrors"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=3650))
        )

    # All that a strict client (Python's from 3.13 on) wants to see.
    signs = x509.KeyUsage(
        key_cert_sign=True, crl_sign=False, digital_signature=False, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip
    authority_public = authority_key.public_key()
    authority = (
        certificate("Embedded cloud mirrors", authority_public)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signs, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_public), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.DNSName(host) for host in MIRRORED_HOSTS])
    leaf = (
        certificate("mirrors", key.public_key())
        .add_extension(names, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_public), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    target.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + leaf.public_bytes(pem)
    )
    return authority.public_bytes(pem)
