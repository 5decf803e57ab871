"""The policies, one function each: it yields what is wrong with a resource, and how to fix it.

A function's name, with hyphens, is the policy's name; the first line of its docstring is what users read.
What a preview does not know yet breaks no policy: `up` asks again, before it creates anything. The limits
are stated here again: a program that loosened its own must still be stopped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fleet import cloudconfig, gateway, layout, vllm_arguments
from fleet.cost import HOURS_PER_MONTH
from fleet.settings.images import PinnedImage
from policy.openings import openings
from policy.subject import UNKNOWN, Subject

MINIMUM_ROOT_VOLUME_GB = 150
"""Below it image, weights and caches do not fit together."""
HIGHEST_UTILIZATION = 0.95
"""Above it the driver and CUDA graphs have no room."""
GATEWAY_PORTS = {80, 443}
"""What a gateway with TLS listens on, and ACME's challenge."""
SERVICE_PORTS = {8000, layout.WEBUI_PORT, layout.AGENT_PORT}
"""vLLM, Open WebUI and the node agent: none of them is fit for the internet."""
LOOPBACK = ("127.0.0.1", "::1", "[::1]")
OWNER_TAG = "vllm-fleet-owner"
NODE_TAG = "vllm-fleet-node"

SCALEWAY_SERVER = "pulumi-python:dynamic/scaleway:Server"
SCALEWAY_SECURITY_GROUP = "pulumi-python:dynamic/scaleway:SecurityGroup"
SCALEWAY_ROOT_VOLUME = "pulumi-python:dynamic/scaleway:RootVolume"
LINODE_INSTANCE = "linode:index/instance:Instance"
LINODE_FIREWALL = "linode:index/firewall:Firewall"
AWS_INSTANCE = "aws:ec2/instance:Instance"
AWS_LAUNCH_TEMPLATE = "aws:ec2/launchTemplate:LaunchTemplate"
AWS_SECURITY_GROUP = "aws:ec2/securityGroup:SecurityGroup"
AWS_VOLUME = "aws:ebs/volume:Volume"
AWS_FILE_SYSTEM = "aws:efs/fileSystem:FileSystem"

MACHINES = {SCALEWAY_SERVER, LINODE_INSTANCE, AWS_INSTANCE}
TAGGED = {
    *MACHINES,
    SCALEWAY_SECURITY_GROUP,
    LINODE_FIREWALL,
    AWS_LAUNCH_TEMPLATE,
    AWS_SECURITY_GROUP,
    AWS_VOLUME,
    AWS_FILE_SYSTEM,
}

SECRET = re.compile(
    r"""
    \bhf_[A-Za-z0-9]{16,}         # a Hugging Face token
    | \bAKIA[0-9A-Z]{16}\b        # an AWS access key
    # a value given to such a name
    | (?:API_?KEY|TOKEN|SECRET|PASSWORD)['"]?\s*[=:]\s*['"]?[A-Za-z0-9_.~+/-]{16,}
    """,
    re.VERBOSE | re.IGNORECASE,
)

Rule = Callable[[Subject], Iterable[str]]

_PINNED_IMAGE: TypeAdapter[str] = TypeAdapter(PinnedImage)


def image_pinned(subject: Subject) -> Iterator[str]:
    """Container images are pinned by a release tag or a digest."""
    for name, service in subject.services():
        image = service.get("image", "")
        try:
            _PINNED_IMAGE.validate_python(image)
        except ValidationError as error:
            yield f"{name}: image {image!r} {error.errors()[0]['msg']}"


def gpu_memory_left(subject: Subject) -> Iterator[str]:
    """vLLM leaves a twentieth of the GPU's memory to the driver and CUDA graphs."""
    flag = "--gpu-memory-utilization"
    for name, service in subject.services():
        version = vllm_arguments.version_of(str(service.get("image", "")))
        for argument in vllm_arguments.parse(_words(service.get("command")), version).arguments:
            given = argument.value or ""
            if argument.flag == flag and not _at_most(given, HIGHEST_UTILIZATION):
                yield (
                    f"{name}: {argument.written} {given} is above {HIGHEST_UTILIZATION}; "
                    "lower serving.gpu_memory_utilization"
                )


def ssh_from_known_addresses(subject: Subject) -> Iterator[str]:
    """SSH answers named addresses, not the internet."""
    for opening in openings(subject):
        others = set(range(opening.first, opening.last + 1)) - GATEWAY_PORTS - SERVICE_PORTS
        if opening.from_everywhere and others:
            yield f"{opening} is open to the internet; name the addresses in access.ssh_cidrs"


def vllm_behind_gateway(subject: Subject) -> Iterator[str]:
    """vLLM, Open WebUI and the node agent are reached through a tunnel or the gateway alone."""
    for opening in openings(subject):
        for port in sorted(SERVICE_PORTS & set(range(opening.first, opening.last + 1))):
            yield f"{opening} lets clients at port {port} without the gateway; use expose, or the tunnel"
    for name, service in subject.services():
        for port in service.get("ports") or ():
            address, published = _published(port)
            outside = published in GATEWAY_PORTS and name == gateway.SERVICE
            if address not in LOOPBACK and not outside:
                yield f"{name}: {port} is published on every address; publish it on 127.0.0.1"


def volumes_encrypted(subject: Subject) -> Iterator[str]:
    """Volumes and file systems on AWS are encrypted."""
    if subject.type == AWS_INSTANCE:
        root = subject.props.get("rootBlockDevice")
        disks = {"rootBlockDevice": {} if root is None else root, **_disks(subject, "ebsBlockDevices")}
    elif subject.type == AWS_LAUNCH_TEMPLATE:
        mappings = _disks(subject, "blockDeviceMappings")
        disks = {path: mapping["ebs"] for path, mapping in mappings.items() if mapping.get("ebs")}
    else:
        disks = {subject.type: subject.props} if subject.type in (AWS_VOLUME, AWS_FILE_SYSTEM) else {}
    for path, disk in disks.items():
        # The launch template's own values are words.
        if isinstance(disk, Mapping) and disk.get("encrypted") not in (True, "true", UNKNOWN):
            yield f"{path}: encrypted is {disk.get('encrypted')}; set it to true"


def metadata_needs_token(subject: Subject) -> Iterator[str]:
    """Instances on AWS answer metadata requests by IMDSv2 alone."""
    if subject.type not in (AWS_INSTANCE, AWS_LAUNCH_TEMPLATE):
        return
    options = subject.props.get("metadataOptions") or {}
    tokens = options.get("httpTokens") if isinstance(options, Mapping) else options
    if tokens not in ("required", UNKNOWN):
        yield f'metadataOptions.httpTokens is {tokens}; set it to "required"'


def owner_tagged(subject: Subject) -> Iterator[str]:
    """What is billed carries its owner and its node as tags, so that nothing is left unseen."""
    if subject.type not in TAGGED:
        return
    tags = subject.props.get("tags") or ()
    if tags is UNKNOWN or (isinstance(tags, Sequence) and UNKNOWN in tags):
        return
    # Tags are `name=value` words but on AWS, and Scaleway's resources add the owner's themselves.
    names = set(tags) if isinstance(tags, Mapping) else {str(tag).partition("=")[0] for tag in tags}
    if subject.props.get("owner"):
        names.add(OWNER_TAG)
    if subject.type.startswith("aws:") and NODE_TAG in names:
        return  # a pipeline of GPU jobs has no owner's id: its name is all that its parts share
    wanted = (OWNER_TAG,) if subject.type.startswith("aws:") else (OWNER_TAG, NODE_TAG)
    for tag in wanted:
        if tag not in names:
            yield f"tags: {tag} is missing; make it through a node of this project, or add the tag"


def root_volume_large_enough(subject: Subject) -> Iterator[str]:
    """A root volume on Scaleway holds image, weights and caches: 150 GB at least."""
    size = subject.props.get("size_gb")
    if subject.type != SCALEWAY_ROOT_VOLUME or size is UNKNOWN:
        return
    if not isinstance(size, int | float) or size < MINIMUM_ROOT_VOLUME_GB:
        yield f"size_gb: {size} is below {MINIMUM_ROOT_VOLUME_GB}; raise root_volume_gb"


def production_protected(subject: Subject) -> Iterator[str]:
    """Machines of a production stack are protected against deletion."""
    production = re.fullmatch(r"prod(uction)?([-_.].*)?", subject.stack)
    if production and subject.type in MACHINES and not subject.protected:
        yield f"the machine of stack {subject.stack} can be deleted by mistake; set protect: true on its node"


def user_data_without_secrets(subject: Subject) -> Iterator[str]:
    """User data holds no secret: whoever can read the machine's metadata can read it."""
    user_data = subject.user_data()
    for path, content in cloudconfig.written_files(user_data).items():
        if path == layout.ENV_PATH or SECRET.search(content):
            yield f"user data writes {path} with a secret in it; deliver it over SSH (secrets.delivery: ssh)"
    if not cloudconfig.document(user_data) and SECRET.search(user_data):
        yield "user data holds a secret; let the machine fetch it instead"


def driver_held(subject: Subject) -> Iterator[str]:
    """The GPU driver is held: an unattended upgrade under a running model ends it."""
    files = cloudconfig.written_files(subject.user_data())
    if layout.COMPOSE_PATH not in files:
        return
    if not any("apt-mark hold" in content for content in files.values()):
        yield "user data does not hold the driver's packages; let a script run apt-mark hold on them"
    if not any("Package-Blacklist" in text and "nvidia" in text for text in files.values()):
        yield "user data lets unattended upgrades change the driver; put it on their blacklist"


def within_budget(subject: Subject) -> Iterator[str]:
    """The stack costs no more than its environment's limit."""
    hourly, currency = subject.props.get("cost_per_hour"), subject.props.get("currency")
    limits = {"max_cost_per_hour": 1, "max_cost_per_month": HOURS_PER_MONTH}
    for key, hours in limits.items():
        limit = subject.config.get(key)
        if limit is None or hourly is UNKNOWN:
            continue
        if hourly is None:
            yield f"{key}: {limit:g} cannot be kept: the stack's cost is unknown; see fleet cost-report"
        elif currency != subject.config.get("currency", "EUR"):
            yield f"{key}: the stack is billed in {currency}; give the limit in it, with currency: {currency}"
        elif hourly * hours > limit:
            cost = f"{hourly:.4f}" if hours == 1 else f"{hourly:.4f} * {hours} h = {hourly * hours:.2f}"
            yield f"{key}: {limit:g} {currency} is below {cost}; take fewer or smaller nodes"


RESOURCE_RULES: tuple[Rule, ...] = (
    image_pinned,
    gpu_memory_left,
    ssh_from_known_addresses,
    vllm_behind_gateway,
    volumes_encrypted,
    metadata_needs_token,
    owner_tagged,
    root_volume_large_enough,
    production_protected,
    user_data_without_secrets,
    driver_held,
)


def _words(command: Any) -> list[str]:
    """A container's command as words; Compose takes one text too."""
    if isinstance(command, str):
        return command.split()
    return [str(word) for word in command] if isinstance(command, Sequence) else []


def _at_most(text: str, limit: float) -> bool:
    """False for what is no number, too: vLLM would refuse it on a machine that is paid for."""
    try:
        return 0 < float(text) <= limit
    except ValueError:
        return False


def _published(port: Any) -> tuple[str, int | None]:
    """Address and port that a compose port is published on; no address where it is left out."""
    if isinstance(port, Mapping):
        address, published = str(port.get("host_ip", "")), str(port.get("published", ""))
    else:
        found = re.fullmatch(r"(?:(\[.*?\]|\d+(?:\.\d+){3}):)?(?:(\d+)|.*?):?[^:]*", str(port))
        address, published = (found[1] or "", found[2] or "") if found else ("", "")
    return address, int(published) if published.isdecimal() else None


def _disks(subject: Subject, key: str) -> dict[str, Mapping[str, Any]]:
    disks = subject.props.get(key)
    entries = enumerate(disks) if isinstance(disks, list) else ()
    return {f"{key}[{i}]": disk for i, disk in entries if isinstance(disk, Mapping)}
