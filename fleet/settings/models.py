"""The sections of a stack's configuration."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    field_validator,
    model_validator,
)

from fleet.catalog import InstanceType, catalog
from fleet.cost import Cost, ExchangeRate, default_rate, node_cost_per_hour
from fleet.fit.flags import unsupported_flag
from fleet.fit.versions import VllmVersion
from fleet.layout import GATEWAY_CHECK_PORT
from fleet.settings.expose import Expose, TlsKey, certificate_problem
from fleet.settings.observability import Observability
from fleet.settings.provision import DRIVER_BRANCHES as PACKAGED_BRANCHES
from fleet.settings.provision import RAY_VERSION, Provision, too_old
from fleet.settings.section import Section
from fleet.settings.values import (
    ApiKey,
    AsTuple,
    Cidr,
    Environment,
    HuggingFaceToken,
    ModelReference,
    NodeName,
    PinnedImage,
    PrivateNetwork,
    VisibleDevices,
    VllmArguments,
    Words,
    wrong,
)

CLOUDS = ("scaleway", "linode", "aws")
CHEAPEST = "cheapest"
"""What stands for a cloud where the choice is left to the catalog."""

SCALEWAY_GPU_IMAGE = "5c3d28db-33ce-4997-8572-f49506339283"
"""Ubuntu Noble GPU OS 13 passthrough: its root is an `sbs_snapshot`, and it carries the NVIDIA driver."""

SCALEWAY_ZONES = (
    "fr-par-1",
    "fr-par-2",
    "fr-par-3",
    "nl-ams-1",
    "nl-ams-2",
    "nl-ams-3",
    "pl-waw-1",
    "pl-waw-2",
    "pl-waw-3",
)

LINODE_REGIONS = (
    "ap-south",
    "ap-west",
    "de-fra-2",
    "fr-par",
    "id-cgk",
    "jp-osa",
    "sg-sin-2",
    "us-ord",
    "us-sea",
    "us-southeast",
)
"""Regions in which the catalog knows GPU plans; each has the metadata service."""

DRIVER_BRANCHES = (*PACKAGED_BRANCHES, "none")
"""What may be installed at the first boot; nothing on an image that brings its own driver."""

WATCHING_PORTS = {3001: "Grafana", 9090: "Prometheus", 9400: "DCGM exporter"}
PORTS_IN_USE = {22: "SSH", 3000: "Open WebUI", 8080: "the node agent", GATEWAY_CHECK_PORT: "the gateway"}


class ModelArchitecture(Section):
    """What a model is like, for one that neither the bundled table nor the Hugging Face hub knows."""

    config: Path
    """The model's own config.json on this machine."""
    weights_gib: float | None = Field(default=None, gt=0)
    """Size of its weights in GiB; counted from the config if left out."""


class Serving(Section):
    """What vLLM serves and with which flags. A change is rolled out in place; it never replaces a machine."""

    image: PinnedImage = "vllm/vllm-openai:v0.9.2"
    """Container image, pinned by tag or digest."""
    model: ModelReference
    """Hugging Face model (owner/name) or an absolute path on the node."""
    architecture: ModelArchitecture | None = None
    """What the model is like, where nobody else can tell whether it fits."""
    served_model_name: str | None = Field(default=None, min_length=1, pattern=r"^\S+$")
    """Name clients ask for; the model's own name if left out."""
    max_model_len: int = Field(default=16384, ge=256, le=10_000_000)
    """Longest context in tokens."""
    quantization: (
        Literal[
            "awq",
            "awq_marlin",
            "gptq",
            "gptq_marlin",
            "fp8",
            "bitsandbytes",
            "compressed-tensors",
            "modelopt",
        ]
        | None
    ) = None
    """Weight quantization; read from the model's own config if left out."""
    dtype: Literal["auto", "half", "float16", "bfloat16", "float32"] = "auto"
    """Type of weights and activations."""
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] = "auto"
    """Type of the KV cache."""
    gpu_memory_utilization: float = Field(default=0.90, ge=0.1, le=0.95)
    """Share of each GPU's memory that vLLM takes; above 0.95 the driver and CUDA graphs have no room."""
    tensor_parallel_size: int = Field(default=1, ge=1, le=16)
    """GPUs that one copy of the model is spread over."""
    distributed_executor_backend: Literal["mp", "ray"] | None = None
    """How tensor-parallel workers are run; vLLM chooses if left out."""
    max_num_seqs: int | None = Field(default=None, ge=1, le=4096)
    """Most requests in one batch; vLLM's default if left out."""
    swap_space_gb: int | None = Field(default=None, ge=0, le=1024)
    """CPU swap per GPU in GiB; only vLLM before 0.18 has it."""
    extra_args: VllmArguments = ()
    """More `vllm serve` arguments, as a list of words."""
    environment: Environment = Field(default_factory=dict)
    """More environment variables of the vLLM container. No secrets."""
    visible_devices: VisibleDevices = "all"
    """GPUs the container sees, by index."""
    container_name: str = Field(default="vllm", pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,62}$")
    """Name of the vLLM container."""
    port: int = Field(default=8000, ge=1024, le=65535)
    """Port vLLM listens on, on the node's loopback only."""
    shm_size_gb: int = Field(default=16, ge=1, le=1024)
    """Shared memory of the container in GiB; NCCL needs it across GPUs."""
    start_period_s: int = Field(default=300, ge=60, le=7200)
    """Seconds Docker's own healthcheck waits before it counts failures; a 32B model needs about 300."""
    webui: bool = False
    """Run Open WebUI beside vLLM, on port 3000 of the node's loopback."""
    webui_image: PinnedImage = "ghcr.io/open-webui/open-webui:v0.6.18"
    """Open WebUI image, pinned by tag or digest."""
    dry_run: bool = False
    """Check and compare with what is served, change nothing; the gate is left out meanwhile."""

    @property
    def served_name(self) -> str:
        """The model name a client puts in its requests."""
        return self.served_model_name or self.model

    @property
    def vllm_version(self) -> VllmVersion | None:
        """The vLLM release of the image by its tag; None where the tag names none."""
        try:
            return VllmVersion.parse(self.image)
        except ValueError:
            return None

    @field_validator("port")
    @classmethod
    def _port_is_free(cls, port: int) -> int:
        if port in PORTS_IN_USE:
            raise wrong(
                "is {owner}'s on the node; choose another, for example 8000", owner=PORTS_IN_USE[port]
            )
        return port

    @model_validator(mode="after")
    def _the_image_knows_its_flags(self) -> Serving:
        for word in self.extra_args:
            refused = self.vllm_version and unsupported_flag(word.partition("=")[0], self.vllm_version)
            if refused:
                raise wrong("extra_args: {refused}", refused=refused)
        return self

    @model_validator(mode="after")
    def _visible_devices_suffice(self) -> Serving:
        if self.visible_devices != "all" and self.tensor_parallel_size > len(self.visible_devices):
            raise wrong(
                "tensor_parallel_size: {tp} GPUs needed, visible_devices shows {count}; make them agree",
                tp=self.tensor_parallel_size,
                count=len(self.visible_devices),
            )
        return self


class Fit(Section):
    """What to do about a model that does not fit its GPUs."""

    override: str | None = Field(default=None, min_length=1)
    """Why a node is deployed although its model does not fit. Every preview repeats it."""


class BaseNode(Section):
    """What every node has, even before its cloud is chosen."""

    cloud: str
    """The cloud the node lives on."""
    name: NodeName
    """Name of the node: unique in the stack, its host name in the cloud."""
    root_volume_gb: int = Field(default=200, le=10_000)
    """Size of the root volume in GB (10⁹ bytes). Grows in place; never shrinks."""
    tags: Words = ()
    """More tags on everything the node consists of."""
    protect: bool = False
    """Refuse to delete or replace the node's machine until this is false again."""
    ttl_hours: float | None = Field(default=None, gt=0, le=87_600)
    """Hours its server may live; then `fleet reap` destroys the node. For ever if left out."""
    fit: Fit = Fit()
    """What to do if this node's model does not fit; the stack's if left out."""
    provision: Provision = Provision()
    """What it is given beside what serves the model: the stack's, with the keys given here put over it."""
    serving: Serving
    """This node's serving: the stack's, with the keys given here put over it."""


class Node(BaseNode):
    """A node whose cloud, place and type are known."""

    type: str
    """Instance type, in its cloud's own words."""

    @property
    def driver_branch_of_image(self) -> int | None:
        """The NVIDIA driver branch that the node's image brings; None where that is not known."""
        return None

    @property
    def location(self) -> str:
        """The zone or region the node lives in, as its cloud names it."""
        raise NotImplementedError

    def instance_type(self) -> InstanceType:
        """The catalog's entry for the node's type."""
        found = catalog().find(self.cloud, self.type)
        assert found is not None, "a type that is not in the catalog is refused when settings are read"
        return found

    def cost_per_hour(self) -> Cost:
        """What the node costs, in the currency of its cloud."""
        return node_cost_per_hour(self.cloud, self.location, self.type, self.root_volume_gb)

    @model_validator(mode="after")
    def _gpus_suffice(self) -> Node:
        found = self.instance_type()
        needed = self.serving.tensor_parallel_size
        if needed > found.gpu_count:
            raise wrong(
                "serving.tensor_parallel_size: {tp} GPUs are needed but {type} has {count}; "
                "lower it or choose a larger type",
                tp=needed,
                type=self.type,
                count=found.gpu_count,
            )
        devices = self.serving.visible_devices
        if devices != "all" and max(devices) >= found.gpu_count:
            raise wrong(
                "serving.visible_devices: no GPU {index}, {type} has {count}; use indices below that",
                index=max(devices),
                type=self.type,
                count=found.gpu_count,
            )
        return self

    @model_validator(mode="after")
    def _the_driver_is_the_images(self) -> Node:
        gpu, branch = self.provision.gpu, self.driver_branch_of_image
        if gpu is None or branch is None:
            return self
        if gpu.driver_branch not in {None, branch}:
            raise wrong(
                "provision.gpu.driver_branch: this node gets driver {branch}, not {wanted}; leave it out, or "
                "choose the node's image by it",
                branch=branch,
                wanted=gpu.driver_branch,
            )
        if refused := too_old(gpu, branch):
            raise wrong("provision.gpu.{refused}", refused=refused.message())
        return self


def _gpu_type(cloud: str) -> Callable[[str], str]:
    """A check that the catalog has the type."""

    def check(value: str) -> str:
        if catalog().find(cloud, value) is None:
            near = catalog().suggest(cloud, value)
            mend = f"did you mean {' or '.join(near)}?" if near else "see: fleet catalog list"
            raise wrong("is not a GPU type of {cloud}; {mend}", cloud=cloud, mend=mend)
        return value

    return check


def _scaleway_root_volume(value: int) -> int:
    if value < 150:
        raise wrong("is below Scaleway's working minimum of 150 (image, weights, caches); use 150 or more")
    return value


class ScalewayNode(Node):
    """A GPU node on Scaleway: an SBS root volume made from the image, grown before the first start."""

    cloud: Literal["scaleway"]
    zone: Literal[SCALEWAY_ZONES] = "fr-par-2"  # type: ignore[valid-type]
    """Scaleway zone."""
    type: Annotated[str, AfterValidator(_gpu_type("scaleway"))] = "L4-1-24G"
    """Commercial type."""
    root_volume_gb: Annotated[int, AfterValidator(_scaleway_root_volume)] = Field(default=200, le=10_000)
    """Size of the SBS root volume in GB (10⁹ bytes), 150 at least. Grows in place; never shrinks."""
    image: str = Field(default=SCALEWAY_GPU_IMAGE, pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
    """Image id in this zone; its root must be an `sbs_snapshot`."""

    @property
    def location(self) -> str:
        return str(self.zone)

    @property
    def driver_branch_of_image(self) -> int | None:
        # Its users report driver 580.159.03 (2026-06).
        return 580 if self.image == SCALEWAY_GPU_IMAGE else None


def _linode_tags(value: tuple[str, ...]) -> tuple[str, ...]:
    for tag in value:
        if not 3 <= len(tag) <= 50:
            raise wrong("has the tag {tag}, and Linode's tags have 3 to 50 characters; rename it", tag=tag)
    return value


class LinodeNode(Node):
    """A GPU node on Linode: a plain Ubuntu image on the plan's own disk; the driver is installed at the first
    boot."""

    cloud: Literal["linode"]
    region: Literal[LINODE_REGIONS]  # type: ignore[valid-type]
    """Linode region; it must have GPU Linodes and the metadata service."""
    type: Annotated[str, AfterValidator(_gpu_type("linode"))] = "g2-gpu-rtx4000a1-s"
    """Plan."""
    image: str = Field(default="linode/ubuntu24.04", pattern=r"^(linode|private)/[a-z0-9.-]+$")
    """Image id; Ubuntu 24.04, or made from it, with cloud-init."""
    driver_branch: Literal[DRIVER_BRANCHES] = 580  # type: ignore[valid-type]
    """Branch of `nvidia-driver-<branch>-server` to install; none where the image brings a driver."""
    tags: Annotated[Words, AfterValidator(_linode_tags)] = ()
    """More tags on everything the node consists of, 3 to 50 characters each."""

    @property
    def location(self) -> str:
        return str(self.region)

    @property
    def driver(self) -> int | None:
        """The driver branch to install; None for none."""
        return None if self.driver_branch == "none" else int(self.driver_branch)

    @property
    def driver_branch_of_image(self) -> int | None:
        return self.driver

    @model_validator(mode="after")
    def _the_plan_has_the_disk(self) -> LinodeNode:
        disk_gib = self.instance_type().disk_gib
        if disk_gib is not None and disk_gib * 2**30 < self.root_volume_gb * 10**9:
            raise wrong(
                "root_volume_gb: {wanted} is more than the disk of {type}, {has} GB, and Linode's disks are "
                "the plan's own; lower it or choose a larger type",
                wanted=self.root_volume_gb,
                type=self.type,
                has=disk_gib * 2**30 // 10**9,
            )
        return self


AWS_FAMILIES = ("g4dn", "g5", "g6", "g6e", "p4d", "p4de", "p5", "p5e", "p5en")
"""Families whose GPUs vLLM and the image's driver support."""


def _aws_type(value: str) -> str:
    known = _gpu_type("aws")(value)
    if value.partition(".")[0] not in AWS_FAMILIES:
        raise wrong(
            "is of a family that is not served; use one of: {families}", families=", ".join(AWS_FAMILIES)
        )
    return known


DLAMI_PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
"""Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04): driver, Docker and container toolkit are in
it."""


class AmiSource(Section):
    """Where newer images are looked for: a public parameter, or an owner and a name."""

    parameter: str | None = Field(default=None, pattern=r"^/[\w./-]+$")
    """Parameter of AWS Systems Manager whose value is an AMI id."""
    owner: str | None = Field(default=None, pattern=r"^(\d{12}|amazon|self)$")
    """Account id, `amazon` or `self`."""
    name: str | None = Field(default=None, min_length=1)
    """Name of the image; `*` stands for anything. The newest that matches counts."""

    @model_validator(mode="after")
    def _one_of_the_two(self) -> AmiSource:
        if (self.parameter is None) == (self.owner is None) or (self.owner is None) != (self.name is None):
            raise wrong("names no image; give parameter, or owner and name")
        return self


class Spot(Section):
    """Spare capacity at a lower price, which AWS takes back with two minutes' notice."""

    interruption: Literal["terminate", "stop"] = "terminate"
    """What becomes of the machine then: `terminate` ends it, and the next `up` makes a new one; `stop` keeps
    its volume, and AWS starts it again when there is capacity."""
    max_price: float | None = Field(default=None, gt=0)
    """Most to pay in dollars an hour; the on-demand price if left out."""


class AwsNode(Node):
    """A GPU node on EC2: an image that carries the driver, on one encrypted gp3 volume."""

    cloud: Literal["aws"]
    region: str = Field(default="us-east-1", pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")
    """AWS region; it must be that of `aws:region`."""
    type: Annotated[str, AfterValidator(_aws_type)] = "g6.xlarge"
    """Instance type: one of the families g4dn, g5, g6, g6e, p4 and p5."""
    subnet: str | None = Field(default=None, pattern=r"^subnet-[0-9a-f]{8,17}$")
    """Subnet, and with it the zone; a default subnet of a zone that has the type if left out."""
    ami: str | None = Field(default=None, pattern=r"^ami-[0-9a-f]{8,17}$")
    """Image the machine is made from. Left out, it is the newest of `ami_source` when the machine is made,
    and stays that. A change here makes a new machine."""
    ami_source: AmiSource = Field(default_factory=lambda: AmiSource(parameter=DLAMI_PARAMETER))
    """Where newer images are looked for. They are offered, never taken unasked."""
    ssh_user: Literal["ubuntu", "ec2-user"] = "ubuntu"
    """The image's own user: `ubuntu`, or `ec2-user` on Amazon Linux."""
    root_volume_gb: int = Field(default=200, ge=100, le=16_384)
    """Size of the root volume in AWS's GB, which are GiB (2³⁰ bytes). Grows in place; never shrinks."""
    volume_iops: int = Field(default=3000, ge=3000, le=16_000)
    """Operations a second of the root volume; up to 3000 are in its price."""
    volume_throughput: int = Field(default=125, ge=125, le=1000)
    """MiB a second of the root volume; up to 125 are in its price. Weights load no faster than this."""
    elastic_ip: bool = False
    """Give the node an address that stays when the machine is stopped or replaced. Billed when unused too."""
    session_manager: bool = False
    """Let people in through Systems Manager too, without an open port: the machine gets a role with just the
    rights of its agent."""
    spot: Spot | None = None
    """Use spare capacity; on demand if left out."""

    @property
    def location(self) -> str:
        return self.region

    @model_validator(mode="after")
    def _spot_cannot_be_protected(self) -> AwsNode:
        if self.spot and self.protect:
            raise wrong(
                "protect: true cannot keep a spot machine, which AWS ends when it needs the capacity; "
                "leave out protect or spot"
            )
        return self

    @model_validator(mode="after")
    def _throughput_needs_operations(self) -> AwsNode:
        # EBS: at most 0.25 MiB/s for each provisioned operation a second.
        if self.volume_throughput > self.volume_iops / 4:
            raise wrong(
                "volume_throughput: {throughput} MiB/s need {iops} operations a second; "
                "raise volume_iops to that",
                throughput=self.volume_throughput,
                iops=self.volume_throughput * 4,
            )
        return self


class Pin(Section):
    """What was chosen for a node with `cloud: cheapest`."""

    cloud: Literal[CLOUDS]  # type: ignore[valid-type]
    """The cloud."""
    location: str
    """The zone or region."""
    type: str
    """The instance type."""
    tensor_parallel_size: int = Field(default=1, ge=1, le=16)
    """GPUs the model is spread over."""


class CheapestNode(BaseNode):
    """A node on whatever serves its model for the least money. Chosen once, then pinned."""

    cloud: Literal["cheapest"]
    """The cloud is the catalog's choice."""
    clouds: Annotated[tuple[Literal[CLOUDS], ...], AsTuple] = Field(default=CLOUDS, min_length=1)  # type: ignore[valid-type]
    """Clouds to choose from."""
    locations: Words = ()
    """Zones or regions to choose from; any if left out."""
    concurrency: int = Field(default=1, ge=1, le=100_000)
    """Requests of full length that the node must hold at a time."""
    root_volume_gb: int = Field(default=200, ge=150, le=10_000)
    """Size of the root volume in GB (10⁹ bytes)."""
    pinned: Pin | None = None
    """The choice, written here when it was made; remove it to have the node chosen anew before it exists."""


AnyNode = Annotated[ScalewayNode | LinodeNode | AwsNode | CheapestNode, Discriminator("cloud")]


class Access(Section):
    """Who may reach the nodes, and with which key."""

    ssh_cidrs: Annotated[tuple[Cidr, ...], AsTuple] = Field(min_length=1)
    """Address ranges that may open SSH. There is no default: an open port is a decision."""
    ssh_private_key_path: Path
    """Private key that opens the nodes; its public half is registered with the cloud."""
    ssh_port: int = Field(default=22, ge=1, le=65535)
    """Port the nodes' SSH server listens on; every cloud's images use 22."""


class Health(Section):
    """How long the gate waits, and whether it waits at all."""

    enabled: bool = True
    """False provisions without waiting for vLLM to answer."""
    ssh_timeout_s: int = Field(default=180, ge=10, le=3600)
    """Seconds from power-on to an open SSH port; Scaleway's images need about 20."""
    install_timeout_s: int = Field(default=1800, ge=60, le=14400)
    """Seconds for cloud-init, driver and container runtime, a reboot included."""
    ready_timeout_s: int = Field(default=1800, ge=30, le=14400)
    """Seconds for image pull, model download and load."""
    first_token_timeout_s: int = Field(default=60, ge=1, le=600)
    """Seconds one generated token may take."""


class Secrets(Section):
    """Values that never appear in plain state, logs or arguments."""

    api_key: ApiKey
    """Key that clients of vLLM present."""
    previous_api_key: ApiKey | None = None
    """Key that the gateway still accepts while clients move to `api_key`."""
    tls_key: TlsKey | None = None
    """Private key of `expose.certificate`, PEM."""
    hf_token: HuggingFaceToken | None = None
    """Hugging Face token; gated models need one."""
    delivery: Literal["ssh", "cloud-init"] = "ssh"
    """`ssh` writes them to the node after first contact; `cloud-init` puts them in its user data."""


class Budget(Section):
    """The most a stack may cost. One that would cost more is not deployed."""

    max_cost_per_hour: float | None = Field(default=None, gt=0)
    """Of all nodes together, before tax."""
    max_cost_per_month: float | None = Field(default=None, gt=0)
    """Of all nodes together in 730 hours, before tax."""
    currency: Literal["EUR", "USD"] = "EUR"
    """Of the limits, and of what is shown."""
    usd_per_eur: float | None = Field(default=None, ge=0.1, le=10)
    """US dollars for a euro; the catalog's own rate if left out."""
    as_of: date | None = None
    """The day of that exchange rate."""

    @property
    def rate(self) -> ExchangeRate:
        """The exchange rate that costs are counted with."""
        if self.usd_per_eur is None or self.as_of is None:
            return default_rate()
        return ExchangeRate(self.usd_per_eur, self.as_of, "budget.usd_per_eur")

    @model_validator(mode="after")
    def _a_rate_has_its_day(self) -> Budget:
        if (self.usd_per_eur is None) != (self.as_of is None):
            raise wrong("usd_per_eur: a rate and its day belong together; give as_of with it, or neither")
        return self


class Rollout(Section):
    """How a change of what is served reaches nodes that serve already."""

    max_unavailable: int = Field(default=1, ge=1, le=1000)
    """Nodes that may be between two releases at once. Nodes that serve nothing yet are not counted."""
    canary: NodeName | None = None
    """Node that is rolled out and gated before any other."""
    min_free_disk_gb: int = Field(default=100, ge=1, le=10_000)
    """Least free disk at a node's first deployment, in 10⁹ bytes: image, weights and caches."""
    replace: Literal["changed", "force-recreate", "down"] = "changed"
    """Containers a rollout stops: those that changed, all, or all before any is started again. The last two
    need a confirmation for each deployment."""
    confirm: Words = ()
    """Confirmations, each for one deployment of one node; the error that asks for one says which."""


Minutes = Annotated[int, Field(ge=1, le=2880)]
InstanceId = Annotated[str, Field(pattern=r"^i-[0-9a-f]{8,17}$")]
SubnetId = Annotated[str, Field(pattern=r"^subnet-[0-9a-f]{8,17}$")]
SecurityGroupId = Annotated[str, Field(pattern=r"^sg-[0-9a-f]{8,17}$")]

JOB_AMI_PARAMETER = (
    "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id"
)
CONTROL_AMI_PARAMETER = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"


class ControlInstance(Section):
    """The permanent machine that starts jobs."""

    existing: InstanceId | None = None
    """An instance that is there already: it is given the role, and nothing else of it is touched."""
    type: str = Field(default="t3.large", pattern=r"^[a-z0-9-]+\.[a-z0-9]+$")
    """Instance type."""
    volume_gb: int = Field(default=30, ge=8, le=16_384)
    """Size of its encrypted root volume in GiB."""
    protect: bool = True
    """Refuse to terminate it."""
    security_group: SecurityGroupId | None = None
    """Its security group; one that lets SSH in from `access.ssh_cidrs` is made if left out."""


class Jobs(Section):
    """GPU jobs on AWS: a permanent control instance, and an instance for each job that ends by itself."""

    name: NodeName = "jobs"
    """Name of the pipeline; everything of it carries it."""
    region: str = Field(default="us-east-1", pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")
    """AWS region; it must be that of `aws:region`."""
    subnets: Annotated[tuple[SubnetId, ...], AsTuple] = ()
    """Subnets to launch in, all of one VPC; the first that has capacity is used. The default VPC's if left
    out."""
    type: Annotated[str, AfterValidator(_aws_type)] = "g6e.xlarge"
    """Instance type of a job."""
    fallback_types: Annotated[tuple[Annotated[str, AfterValidator(_aws_type)], ...], AsTuple] = ()
    """Types to take, in this order, where the first is not to be had."""
    ami: str | None = Field(default=None, pattern=r"^ami-[0-9a-f]{8,17}$")
    """Image of a job; the newest Deep Learning Base image on Amazon Linux 2023 when the pipeline is made, if
    left out."""
    volume_gb: int = Field(default=100, ge=50, le=16_384)
    """Size of a job's encrypted root volume in GiB; it goes with the instance."""
    spot: bool = False
    """Run jobs on spare capacity, which AWS may take back: the job then ends without a result."""
    timeout_minutes: Minutes = 120
    """A job that runs longer is ended."""
    max_cost: float | None = Field(default=None, gt=0)
    """Most that one run may cost, in dollars; it ends at the minute its price implies."""
    file_system: str | None = Field(default=None, pattern=r"^fs-[0-9a-f]{8,17}$")
    """EFS with the recordings, reachable from the subnets; an encrypted one is made if left out."""
    mount_path: str = Field(default="/home/ec2-user/recordings", pattern=r"^/[\w./-]+$")
    """Where a job mounts it."""
    script: str = Field(default="app/simulate_pipeline.sh", pattern=r"^[\w.-][\w./-]*$")
    """Script that a job runs, below `mount_path`."""
    security_group: SecurityGroupId | None = None
    """Security group of job instances; one that lets nothing in is made if left out."""
    log_retention_days: Literal[1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365] = 30
    """Days that CloudWatch keeps the logs."""
    control: ControlInstance = ControlInstance()
    """The machine that starts jobs."""


def _cluster_name(value: str) -> str:
    if len(value) > LONGEST_CLUSTER_NAME:
        raise wrong(
            "is too long: its machines are named {value}-head and {value}-w0, and a node name has up to 30 "
            "characters; use {longest} or fewer",
            value=value,
            longest=LONGEST_CLUSTER_NAME,
        )
    return value


LONGEST_CLUSTER_NAME = 25
OLDEST_RAY_WITH_TOKENS = (2, 52)
"""Ray's "Token authentication"; before it, who reaches a cluster can run anything on it."""


def _ray_version(value: str) -> str:
    major, minor, _ = value.split(".")
    if (int(major), int(minor)) < OLDEST_RAY_WITH_TOKENS:
        raise wrong("checks no token, which Ray does from 2.52; use {default}", default=RAY_VERSION)
    return value


class RayMachines(Section):
    """What a Ray cluster has beside what each of its machines has."""

    name: Annotated[NodeName, AfterValidator(_cluster_name)]
    """Name of the cluster: its machines are `name-head`, `name-w0`, `name-w1`, …"""
    count: int = Field(default=1, ge=0, le=31)
    """Workers, beside the head. A change touches the machines that come or go, and vLLM's own start."""
    serve: bool = True
    """Serve the model over all GPUs of the cluster; false leaves the cluster to other work."""
    ray_version: Annotated[str, AfterValidator(_ray_version)] = Field(
        default=RAY_VERSION, pattern=r"^\d+\.\d+\.\d+$"
    )
    """Release of Ray from PyPI."""
    network: PrivateNetwork = "10.77.0.0/24"
    """Private network of the cluster, where its cloud lets one choose: Scaleway and Linode."""

    machine: ClassVar[type[Node]]
    """What each of its machines is."""

    @property
    def head(self) -> Node:
        """The machine that the others join, and that vLLM answers on."""
        return self._member("head")

    @property
    def workers(self) -> tuple[Node, ...]:
        """The machines beside it."""
        return tuple(self._member(f"w{index}") for index in range(self.count))

    @property
    def members(self) -> tuple[Node, ...]:
        """All machines, the head first."""
        return (self.head, *self.workers)

    def _member(self, role: str) -> Node:
        own = {key: getattr(self, key) for key in self.machine.model_fields}
        return self.machine(**{**own, "name": f"{self.name}-{role}"})

    @model_validator(mode="after")
    def _vllm_has_a_release(self) -> RayMachines:
        serving: Serving = self.serving  # type: ignore[attr-defined]  # of the machine's settings
        if self.serve and serving.vllm_version is None:
            raise wrong(
                "serving.image: {image} names no vLLM release, which a cluster installs from PyPI; "
                "use a tag such as vllm/vllm-openai:v0.9.2",
                image=serving.image,
            )
        return self


class ScalewayRayCluster(RayMachines, ScalewayNode):
    """A Ray cluster on Scaleway, over a VPC private network."""

    machine = ScalewayNode


class LinodeRayCluster(RayMachines, LinodeNode):
    """A Ray cluster on Linode, over a VLAN."""

    machine = LinodeNode


class AwsRayCluster(RayMachines, AwsNode):
    """A Ray cluster on AWS, over the private addresses of its subnet."""

    machine = AwsNode


RayCluster = ScalewayRayCluster | LinodeRayCluster | AwsRayCluster


class StackSettings(Section):
    """The whole stack."""

    nodes: Annotated[tuple[AnyNode, ...], AsTuple]
    ray: Annotated[tuple[Annotated[RayCluster, Discriminator("cloud")], ...], AsTuple] = ()
    """Ray clusters, each of a head and workers that serve one model together."""
    jobs: Annotated[Jobs | None, BeforeValidator(lambda given: given or None)] = None
    """GPU jobs on AWS; none if left out or empty."""
    serving: Serving
    access: Access
    expose: Annotated[Expose | None, BeforeValidator(lambda given: given or None)] = None
    """The gateway; if left out or empty, nothing but SSH is open."""
    health: Health = Health()
    rollout: Rollout = Rollout()
    fit: Fit = Fit()
    provision: Provision = Provision()
    """What every node is given beside what serves the model."""
    observability: Observability = Observability()
    """What watches the nodes, on their own loopback."""
    budget: Budget = Budget()
    secrets: Secrets

    @property
    def machines(self) -> tuple[Node, ...]:
        """Every machine whose cloud is chosen: the nodes, and the members of Ray clusters."""
        placed = tuple(node for node in self.nodes if isinstance(node, Node))
        return (*placed, *(member for cluster in self.ray for member in cluster.members))

    @model_validator(mode="after")
    def _names_agree(self) -> StackSettings:
        if not (self.nodes or self.ray):
            raise wrong("nodes: is empty; give at least one")
        names = [node.name for node in self.nodes]
        if self.rollout.canary not in {None, *names}:
            raise wrong(
                "rollout.canary: no node is named {canary}; name one of {names}",
                canary=self.rollout.canary,
                names=", ".join(names),
            )
        if self.observability.enabled:
            for machine in self.machines:
                if machine.serving.port in WATCHING_PORTS:
                    raise wrong(
                        "serving.port: {port} of {name} is {owner}'s while observability is on; use 8000",
                        port=machine.serving.port,
                        name=machine.name,
                        owner=WATCHING_PORTS[machine.serving.port],
                    )
        names += [member.name for cluster in self.ray for member in cluster.members]
        for name in sorted({name for name in names if names.count(name) > 1}):
            raise wrong(
                "nodes: the name {name} is used {count} times; give each node its own",
                name=name,
                count=names.count(name),
            )
        return self

    @model_validator(mode="after")
    def _the_gateway_has_all_it_needs(self) -> StackSettings:
        expose, secrets = self.expose, self.secrets
        given = expose.certificate if expose else None
        if (given is None) != (secrets.tls_key is None):
            raise wrong(
                "secrets.tls_key: belongs to expose.certificate; give both, with tls: certificate, or neither"
            )
        if secrets.previous_api_key is not None and expose is None:
            raise wrong(
                "secrets.previous_api_key: needs expose, whose gateway accepts both keys; vLLM takes one"
            )
        if secrets.previous_api_key == secrets.api_key:
            raise wrong(
                "secrets.previous_api_key: is api_key itself; give the one before it, or leave it out"
            )
        if expose is None:
            return self
        for cluster in self.ray:
            if cluster.serve:
                raise wrong(
                    "expose: the gateway does not reach vLLM on the Ray cluster {name}; give the cluster a "
                    "stack of its own without expose, and reach it by: fleet tunnel {name}-head",
                    name=cluster.name,
                )
        names = [node.name for node in self.nodes]
        if not names or expose.gateway not in {None, *names}:
            raise wrong(
                "expose.gateway: no node is named {gateway}; name one of {names}",
                gateway=expose.gateway or "so",
                names=", ".join(names) or "those to be declared under nodes",
            )
        if given is not None and secrets.tls_key is not None:
            problem = certificate_problem(given, secrets.tls_key, expose.domain)
            if problem:
                raise wrong("expose.certificate: {problem}", problem=problem)
        return self
