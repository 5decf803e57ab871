"""What must hold before a node is touched. Each problem is a sentence: what is wrong, and what fixes it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Iterator

from fleet import layout, vllm_arguments
from fleet.compose import PORT
from fleet.fit.architecture import Architecture
from fleet.fit.compatibility import compatible
from fleet.fit.gpus import gpu
from fleet.fit.memory import GIB, rank_weights_gib
from fleet.fit.quantization import weight_format
from fleet.models import model_config
from fleet.rollout.release import Release, Unreadable
from fleet.rollout.session import Session
from fleet.rollout.spec import RolloutSpec

REQUIRED_FLAGS = ("--model", "--port", "--max-model-len", "--gpu-memory-utilization")
REQUIRED_VARIABLES = ("PORT", "NVIDIA_VISIBLE_DEVICES", "VLLM_API_KEY")

IMAGE_GB = 32.0
"""What vLLM's image takes unpacked, in 10⁹ bytes: 30 GiB, as the fit planner reckons."""
SPARE_GB = 10.0
"""For compile caches and logs, in 10⁹ bytes."""
GPU_SHARE = 0.5
"""Of a GPU's memory that others than this node's vLLM may hold."""


def of_files(release: Release) -> Iterator[str]:
    """Problems that the two files show by themselves."""
    variables = release.variables
    for name in REQUIRED_VARIABLES:
        if not variables.get(name):
            yield f".env sets no {name}; set secrets.api_key, serving.port and serving.visible_devices"
    token = variables.get("HF_TOKEN")
    if token is not None and not re.fullmatch(r"hf_[A-Za-z0-9]{4,}", token):
        yield "HF_TOKEN in .env is malformed: it must begin with hf_; correct secrets.hf_token"
    try:
        flags, images = release.flags, release.images
    except Unreadable as error:
        yield f"{error}; see `pulumi preview --diff`"
        return
    for flag in REQUIRED_FLAGS:
        if flag not in flags:
            yield f"vLLM's arguments lack {flag}; it comes from the serving settings"
    for image in images:
        tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in image and tag in {"", "latest", "nightly"}:
            yield f"image {image} is not pinned; name a release tag or a digest"
    words = [word.replace(PORT, variables.get("PORT", "")) for word in release.words]
    for finding in vllm_arguments.parse(words, release.vllm_version).findings:
        if not finding.is_warning:
            yield f"vLLM's arguments: {finding}"


async def of_disk(node: Session, spec: RolloutSpec, release: Release, *, first: bool) -> AsyncIterator[str]:
    """Whether image and weights find room: `min_free_gb` at first, later what is not there yet."""
    done = await node.run(["df", "-B", "1", "--output=avail", "/"])
    free_gb = int(done.stdout.split()[-1]) / 1e9
    needed_gb = spec.min_free_gb if first else await _missing_gb(node, release)
    if free_gb < needed_gb:
        yield (
            f"{free_gb:.0f} GB of disk are free, image, weights and caches need {needed_gb:.0f}; raise "
            "root_volume_gb, or delete models that are not served any more: "
            f"du -sh {layout.MODELS_DIRECTORY}/hub/*"
        )


async def _missing_gb(node: Session, release: Release) -> float:
    image = await node.run(["docker", "image", "inspect", release.image], check=False)
    folder = f"{layout.MODELS_DIRECTORY}/hub/models--{release.model.replace('/', '--')}"
    weights = await node.run(["test", "-e", folder], check=False)
    missing = 0.0 if image.exit_status == 0 else IMAGE_GB
    missing += 0.0 if weights.exit_status == 0 else _weights_gb(release)
    return missing + SPARE_GB


def _weights_gb(release: Release) -> float:
    """Size of the weights in 10⁹ bytes; 0 for a model whose shape is not known here."""
    try:
        shape = Architecture.from_config(model_config(release.model))
        kept = weight_format(release.flags.get("--quantization"), shape.quantization, shape.dtype_bytes)
    except ValueError:
        return 0.0
    whole = rank_weights_gib(shape, kept, tensor_parallel_size=1, pipeline_parallel_size=1, total_gib=None)
    return whole * GIB / 1e9


async def of_port(node: Session, release: Release, served: Release) -> AsyncIterator[str]:
    """Whether the port is free, or served by the release that is to be replaced."""
    if release.port == served.port:
        return
    sockets = await node.run(["ss", "-H", "-l", "-t", "-n"])
    if re.search(rf":{release.port}\s", sockets.stdout):
        yield (
            f"port {release.port} is taken on the node; stop what listens there (`ss -ltnp` names it), or "
            "choose another serving.port"
        )


async def of_gpus(node: Session, release: Release, served: Release) -> AsyncIterator[str]:
    """Whether the visible GPUs are there, go with the image, and are not held by others."""
    query = [
        "nvidia-smi",
        "--query-gpu=index,uuid,memory.total,driver_version,name",
        "--format=csv,noheader,nounits",
    ]
    listed = await node.run(query, check=False)
    if listed.exit_status != 0 or not listed.stdout.strip():
        said = (listed.stderr.strip() or listed.stdout.strip() or "lists no GPU").splitlines()[0]
        yield f"the node shows no GPU: nvidia-smi: {said}; see `nvidia-smi` and `dmesg` there"
        return
    gpus = {row[0]: row for row in _rows(listed.stdout)}
    visible = list(gpus) if release.visible_devices == "all" else release.visible_devices.split(",")
    for index in visible:
        if index not in gpus:
            yield (
                f"GPU {index} is not on the node, it has {', '.join(gpus)}; correct serving.visible_devices"
            )
    others = await _held_by_others(node, served)
    for index, uuid, total, driver, name in (gpus[index] for index in visible if index in gpus):
        used_mib = others.get(uuid, 0.0)
        if used_mib > GPU_SHARE * float(total):
            yield (
                f"others hold {used_mib:.0f} of {total} MiB on GPU {index}; end them (`nvidia-smi` names "
                "them), or choose other serving.visible_devices"
            )
        reason = _incompatible(release, driver, name)
        if reason:
            yield reason


async def _held_by_others(node: Session, served: Release) -> dict[str, float]:
    """MiB held on each GPU, by its UUID, by processes that are not of the container being replaced."""
    query = ["nvidia-smi", "--query-compute-apps=gpu_uuid,pid,used_memory", "--format=csv,noheader,nounits"]
    running = await node.run(query, check=False)
    own = await node.run(["docker", "top", served.container, "-eo", "pid"], check=False)
    pids = set(own.stdout.split())
    held: dict[str, float] = {}
    # Some drivers do not tell processes apart ([N/A]); such memory is nobody's in particular.
    for uuid, pid, used in (
        row for row in _rows(running.stdout) if running.exit_status == 0 and len(row) == 3
    ):
        if pid not in pids and used.isdecimal():
            held[uuid] = held.get(uuid, 0.0) + float(used)
    return held


def _incompatible(release: Release, driver: str, name: str) -> str | None:
    version = release.vllm_version
    branch = driver.partition(".")[0]
    try:
        card = gpu(name.removeprefix("NVIDIA "))
    except ValueError:
        return None  # nothing is known of this card: vLLM's own log will tell
    if version is None or not branch.isdecimal():
        return None
    verdict = compatible(version, card, int(branch))
    return None if verdict.ok else verdict.reason


def of_confirmation(spec: RolloutSpec, release: Release, served: Release, serial: int) -> Iterator[str]:
    """What must not happen without having been confirmed for this one deployment."""
    if release.visible_devices != served.visible_devices:
        what = f"visible devices change from {served.visible_devices} to {release.visible_devices}"
        yield from _unconfirmed(spec, release, serial, "visible-devices", what)
    if spec.replace != "changed":
        what = f"rollout.replace is {spec.replace}, which stops every container of the node"
        yield from _unconfirmed(spec, release, serial, spec.replace, what)


def _unconfirmed(spec: RolloutSpec, release: Release, serial: int, kind: str, what: str) -> Iterator[str]:
    # The serial makes it a word for this one deployment: kept in the configuration, it confirms nothing more.
    deployment = hashlib.sha256(f"{spec.node} {kind} {release.digest} {serial}".encode()).hexdigest()[:8]
    word = f"{spec.node}:{kind}:{deployment}"
    if word not in spec.confirm:
        yield (
            f"{what}, which needs a confirmation for this one deployment: "
            f"pulumi config set --path 'vllm-fleet:rollout.confirm[0]' {word}"
        )


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
