"""The nodes of a stack: what they have in common, and what each cloud adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, model_validator

from fleet.catalog import InstanceType, catalog
from fleet.cost import Cost, node_cost_per_hour
from fleet.settings.provision import DRIVER_BRANCHES as PACKAGED_BRANCHES
from fleet.settings.provision import Provision, too_old
from fleet.settings.section import Section
from fleet.settings.serving import Fit, Serving
from fleet.settings.values import AsTuple, NodeName, Tags, Words, wrong

CLOUDS = ("scaleway", "linode", "aws")
CHEAPEST = "cheapest"
"""What stands for a cloud where the choice is left to the catalog."""

SCALEWAY_GPU_IMAGE = "5c3d28db-33ce-4997-8572-f49506339283"
"""Ubuntu Noble GPU OS 13 passthrough: its root is an `sbs_snapshot`, and it carries the NVIDIA driver."""

UUID = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"

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


class BaseNode(Section):
    """What every node has, even before its cloud is chosen."""

    cloud: str
    """The cloud the node lives on."""
    name: NodeName
    """Name of the node: unique in the stack, its host name in the cloud."""
    renamed_from: NodeName | None = None
    """Former name of the node, after a change of `name`: its machine is kept. Leave it out once an update has
    succeeded."""
    root_volume_gb: int = Field(default=200, le=10_000)
    """Size of the root volume in GB (10⁹ bytes). Grows in place; never shrinks."""
    tags: Tags = ()
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

    @property
    def has_public_address(self) -> bool:
        """Whether the node is reached at a public address; else at its private one, by the jump host."""
        return True

    def instance_type(self) -> InstanceType:
        """The catalog's entry for the node's type."""
        found = catalog().find(self.cloud, self.type)
        assert found is not None, "a type that is not in the catalog is refused when settings are read"
        return found

    def cost_per_hour(self) -> Cost:
        """What the node costs, in the currency of its cloud."""
        return node_cost_per_hour(
            self.cloud,
            self.location,
            self.type,
            self.root_volume_gb,
            public_address=self.has_public_address,
        )

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
            fix = f"did you mean {' or '.join(near)}?" if near else "see: fleet catalog list"
            raise wrong("is not a GPU type of {cloud}; {fix}", cloud=cloud, fix=fix)
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
    image: str = Field(default=SCALEWAY_GPU_IMAGE, pattern=UUID)
    """Image id in this zone; its root must be an `sbs_snapshot`."""
    public_ip: bool = True
    """Give the node a public address. Without one it is reached through `access.jump_host`, and the internet
    through a Public Gateway of `private_network`. A change makes a new machine."""
    private_network: str | None = Field(default=None, pattern=UUID)
    """Id of the private network of a node without a public address, in the region of `zone`; the jump host
    reaches it. A change makes a new machine."""

    @property
    def location(self) -> str:
        return str(self.zone)

    @property
    def has_public_address(self) -> bool:
        return self.public_ip

    @model_validator(mode="after")
    def _one_address_to_be_reached_at(self) -> ScalewayNode:
        if not self.public_ip and self.private_network is None:
            raise wrong(
                "public_ip: false leaves the machine without an address; add the id of the private_network "
                "that the jump host reaches (scw vpc private-network list), or leave public_ip out"
            )
        if self.public_ip and self.private_network is not None:
            raise wrong(
                "private_network: {network} is for nodes without a public address; set public_ip: false, or "
                "leave private_network out",
                network=self.private_network,
            )
        return self

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
    tags: Annotated[Tags, AfterValidator(_linode_tags)] = ()
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


def aws_type(value: str) -> str:
    """Check that EC2 has the type, with GPUs that are served."""
    known = _gpu_type("aws")(value)
    if value.partition(".")[0] not in AWS_FAMILIES:
        raise wrong(
            "is of a family that is not served; use one of: {families}", families=", ".join(AWS_FAMILIES)
        )
    return known


DLAMI_PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
"""Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04): driver, Docker and container toolkit are in
it."""


def _aws_tags(value: tuple[str, ...]) -> tuple[str, ...]:
    keys = [tag.partition("=")[0] for tag in value]
    for tag, key in zip(value, keys, strict=True):
        if not 1 <= len(key) <= 128 or len(tag) - len(key) > 257:
            raise wrong(
                "has the tag {tag}, and AWS takes 128 characters before the = and 256 after it; shorten it",
                tag=tag,
            )
        if key.lower().startswith("aws:"):
            raise wrong(
                "has the tag {tag}, and AWS keeps keys that begin with aws: to itself; rename it", tag=tag
            )
        if keys.count(key) > 1:
            raise wrong("has the key {key} twice, and AWS takes each once; keep one", key=key)
    return value


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
    type: Annotated[str, AfterValidator(aws_type)] = "g6.xlarge"
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
    tags: Annotated[Tags, AfterValidator(_aws_tags)] = ()
    """More tags on everything the node consists of, as `key=value` or `key`."""
    elastic_ip: bool = False
    """Give the node an address that stays when the machine is stopped or replaced. Billed when unused too."""
    public_ip: bool = True
    """Give the node a public address. Without one it is reached through `access.jump_host`, and the internet
    through the NAT gateway that its `subnet` routes to. A change makes a new machine."""
    session_manager: bool = False
    """Let people in through Systems Manager too, without an open port: the machine gets a role with just the
    rights of its agent."""
    spot: Spot | None = None
    """Use spare capacity; on demand if left out."""

    @property
    def location(self) -> str:
        return self.region

    @property
    def has_public_address(self) -> bool:
        return self.public_ip

    @model_validator(mode="after")
    def _no_address_is_no_elastic_ip(self) -> AwsNode:
        if not self.public_ip and self.elastic_ip:
            raise wrong(
                "elastic_ip: true is a public address, and public_ip is false; leave one of the two out"
            )
        if not self.public_ip and self.subnet is None:
            raise wrong(
                "public_ip: false needs a subnet that routes to a NAT gateway, and default subnets route to "
                "an internet gateway; add subnet, or leave public_ip out"
            )
        return self

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
