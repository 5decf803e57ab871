"""The container registry's content: stand-in images, assembled without a Docker daemon.

Each image is one shared base layer (Python, a shell and curl from Debian) and one layer of a few files; it is
pushed to a real registry over its HTTP API.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import yaml

from simcloud.caddy import caddy
from simcloud.vllm_sim import FILES
from simcloud.vm.host import HostError, cached, digest, ensure_tools, run, step
from simcloud.vm.serving import free_port

CONTAINER = Path(__file__).parent / "container"
ROOT = Path(__file__).parents[2]
SIMULATOR = {f"opt/{name}": ROOT / name for name in FILES}

_BASE_PACKAGES = ("base-files", "python3-minimal", "libpython3-stdlib", "dash", "coreutils", "curl")
_UNUSED = (
    *(f"usr/share/{name}" for name in ("doc", "man", "locale", "perl5")),
    *(f"usr/lib/python3*/{name}" for name in ("ensurepip", "pydoc_data", "__pycache__")),
    "var/lib/apt",
    "var/cache",
)

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
# Not compressed: an emulated processor undoes gzip slower than the loopback network carries the bytes.
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class ContainerImage:
    """An image as its Dockerfile would say it, on top of the base layer."""

    repository: str
    tag: str
    files: Mapping[str, Path]
    entrypoint: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def _vllm(version: str) -> ContainerImage:
    return ContainerImage(
        "vllm/vllm-openai",
        f"v{version}",
        files={
            **SIMULATOR,
            "opt/entrypoint.py": CONTAINER / "entrypoint.py",
            "usr/lib/python3/dist-packages/huggingface_hub.py": CONTAINER / "huggingface_hub.py",
        },
        entrypoint=["python3", "/opt/entrypoint.py"],
        environment={"VLLM_SIM_VERSION": version},
    )


# It may be older than the option `persist_config` (2.7), which is left out of its configuration.
_CADDY = """
while IFS= read -r line; do
    [ "$line" = '    persist_config off' ] || printf '%s\\n' "$line"
done </etc/caddy/Caddyfile >/tmp/Caddyfile
exec caddy run --config /tmp/Caddyfile --adapter caddyfile
"""


def _images() -> tuple[ContainerImage, ...]:
    return (
        _vllm("0.9.2"),
        _vllm("0.10.0"),
        _vllm("0.33.0"),
        ContainerImage(
            "open-webui/open-webui",
            "v0.6.18",
            files={"opt/open_webui.py": CONTAINER / "open_webui.py"},
            entrypoint=["python3", "/opt/open_webui.py"],
        ),
        # The program itself, under the name of the official image.
        ContainerImage(
            "library/caddy",
            "2.10.2",
            files={"usr/bin/caddy": caddy()},
            entrypoint=["sh", "-c", _CADDY],
        ),
    )


def registry_storage() -> Path:
    """The registry's filled storage, built on first use (about 20 s)."""
    ensure_tools()
    base = cached("container-base", digest(repr((_BASE_PACKAGES, _UNUSED)).encode()), _build_base)
    key = digest(Path(__file__), CONTAINER, *SIMULATOR.values())
    return cached("registry", key, lambda directory: _fill(directory, base / "layer.tar"))


def _build_base(directory: Path) -> None:
    root = directory / "root"
    with step("container images: base layer (about 12 s)"):
        include = f"--include={','.join(_BASE_PACKAGES)}"
        run(["mmdebstrap", "--quiet", "--variant=extract", include, "trixie", root], timeout_s=600)
        for pattern in _UNUSED:
            for path in root.glob(pattern):
                shutil.rmtree(path)
        with tarfile.open(directory / "layer.tar", "w") as layer:
            for entry in sorted(root.iterdir()):
                # Devices are the container runtime's to make.
                if entry.name != "dev":
                    layer.add(entry, arcname=entry.name)
        shutil.rmtree(root)


def _fill(directory: Path, base: Path) -> None:
    with (
        step("container images: push"),
        _running(directory) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        for image in _images():
            _push(client, image, base)


def _push(client: httpx.Client, image: ContainerImage, base: Path) -> None:
    layers = [base.read_bytes(), _layer(image.files)]
    digests = [_digest(layer) for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": list(image.entrypoint),
            "Env": [
                "PATH=/usr/local/bin:/usr/bin:/bin",
                "PYTHONUNBUFFERED=1",
                *(f"{key}={value}" for key, value in image.environment.items()),
            ],
        },
        "rootfs": {"type": "layers", "diff_ids": digests},
    }
    blobs = [json.dumps(config).encode(), *layers]
    descriptors = [
        {"mediaType": kind, "size": len(blob), "digest": _digest(blob)}
        for kind, blob in zip([_CONFIG, _LAYER, _LAYER], blobs, strict=True)
    ]
    for blob in blobs:
        _push_blob(client, image.repository, blob)
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": descriptors[0],
        "layers": descriptors[1:],
    }
    client.put(
        f"/v2/{image.repository}/manifests/{image.tag}",
        content=json.dumps(manifest).encode(),
        headers={"Content-Type": _MANIFEST},
    ).raise_for_status()


def _push_blob(client: httpx.Client, repository: str, blob: bytes) -> None:
    if client.head(f"/v2/{repository}/blobs/{_digest(blob)}").status_code == 200:
        return
    place = client.post(f"/v2/{repository}/blobs/uploads/").raise_for_status().headers["Location"]
    client.put(
        httpx.URL(place).copy_merge_params({"digest": _digest(blob)}),
        content=blob,
        headers={"Content-Type": "application/octet-stream"},
    ).raise_for_status()


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _layer(files: Mapping[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for name, source in files.items():
            content = source.read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), source.stat().st_mode & 0o755 | 0o644
            layer.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _command(storage: Path, scratch: Path, port: int, *, read_only: bool) -> list[str]:
    config = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "maintenance": {"readonly": {"enabled": read_only}},
        },
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    file = scratch / f"registry-{port}.yml"
    file.write_text(yaml.safe_dump(config))
    return ["setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", str(file)]


@contextmanager
def _running(storage: Path) -> Iterator[str]:
    """A registry one can push to, as long as the block lasts."""
    port = free_port()
    with (storage / "push.log").open("wb") as log:
        process = subprocess.Popen(_command(storage, storage, port, read_only=False), stdout=log, stderr=log)
        try:
            asyncio.run(_answers(port))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=10)


@asynccontextmanager
async def running_registry(scratch: Path) -> AsyncIterator[str]:
    """The filled registry, read-only, on a port of its own; its URL."""
    storage = await asyncio.to_thread(registry_storage)
    port = free_port()
    with (scratch / "registry.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *_command(storage, scratch, port, read_only=True), stdout=log, stderr=log
        )
        try:
            await _answers(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _answers(port: int, *, deadline_s: float = 20) -> None:
    async with httpx.AsyncClient(timeout=2) as client:
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    try:
                        (await client.get(f"http://127.0.0.1:{port}/v2/")).raise_for_status()
                        return
                    except httpx.HTTPError:
                        await asyncio.sleep(0.1)
        except TimeoutError:
            raise HostError(
                f"docker-registry did not answer on port {port} within {deadline_s:.0f} s"
            ) from None
