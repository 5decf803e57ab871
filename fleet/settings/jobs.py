"""GPU jobs on AWS."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fleet.settings.nodes import aws_type
from fleet.settings.section import Section
from fleet.settings.values import AsTuple, NodeName

Minutes = Annotated[int, Field(ge=1, le=2880)]
InstanceId = Annotated[str, Field(pattern=r"^i-[0-9a-f]{8,17}$")]
SubnetId = Annotated[str, Field(pattern=r"^subnet-[0-9a-f]{8,17}$")]
SecurityGroupId = Annotated[str, Field(pattern=r"^sg-[0-9a-f]{8,17}$")]

JOB_AMI_PARAMETER = (
    "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id"
)
CONTROL_AMI_PARAMETER = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
"""Public parameters whose values are the newest images of a job and of the control instance."""


class ControlInstance(Section):
    """The permanent machine that starts jobs."""

    existing: InstanceId | None = None
    """An instance that is there already: it is given the role, and nothing else of it is touched."""
    type: str = Field(default="t3.large", pattern=r"^[a-z0-9-]+\.[a-z0-9]+$")
    """Instance type."""
    volume_gb: int = Field(default=30, ge=8, le=16_384)
    """Size of its encrypted root volume in GiB."""
    protect: bool = True
    """Refuse to terminate it, or to delete the share that was made, with what is on it."""
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
    type: Annotated[str, AfterValidator(aws_type)] = "g6e.xlarge"
    """Instance type of a job."""
    fallback_types: Annotated[tuple[Annotated[str, AfterValidator(aws_type)], ...], AsTuple] = ()
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
