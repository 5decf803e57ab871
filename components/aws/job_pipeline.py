"""GPU jobs on AWS: the machine that starts them, what they are started from, and what they share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi import Input, Output, ResourceHookBinding, ResourceOptions
from pulumi_aws import cloudwatch, ec2, efs, iam

from components.aws import ec2 as calls
from components.aws.network import Network, look_up
from components.aws.node import fingerprint, ssh_rule
from components.aws.resources import ProfileAssociation, program_client
from components.tags import NODE_TAG
from fleet import settings
from fleet.aws import Credentials
from fleet.jobs.policies import PIPELINE_TAG, Scope, control_policy, job_policy, trust_policy
from fleet.settings.jobs import CONTROL_AMI_PARAMETER, JOB_AMI_PARAMETER
from fleet.ssh_key import public_key

NFS_PORT = 2049


@dataclass(frozen=True)
class GpuJobPipelineArgs:
    """Everything a pipeline is made from, already checked."""

    jobs: settings.Jobs
    access: settings.Access
    network: settings.Network = settings.DIRECT
    """How the machines of jobs reach the internet."""


class GpuJobPipeline(pulumi.ComponentResource):
    """Share and log → job role and launch template → control role → control instance.

    The control instance may start, watch and end instances of this pipeline and no others
    (`fleet.jobs.policies`). A job instance ends by shutting down: its volume goes with it.
    """

    control_instance_id: Output[str]
    control_public_ip: Output[str]
    """Empty for an instance that was there already."""
    launch_template_id: Output[str]
    file_system_id: Output[str]
    log_group: Output[str]

    def __init__(self, name: str, args: GpuJobPipelineArgs, opts: ResourceOptions | None = None) -> None:
        super().__init__("vllm-fleet:aws:GpuJobPipeline", name, None, opts)
        jobs = args.jobs
        label = f"{pulumi.get_stack()}-{jobs.name}"
        self._name, self._label, self._child = name, label, ResourceOptions(parent=self)
        self._tags = {"Name": label, NODE_TAG: f"{pulumi.get_stack()}/{jobs.name}"}
        network = look_up(jobs)

        control_group = jobs.control.security_group or self._control_group(network, args.access)
        job_group = jobs.security_group or self._job_group(network)
        self.file_system_id = (
            Output.from_input(jobs.file_system)
            if jobs.file_system
            else self._share(network, [control_group, job_group], protect=jobs.control.protect)
        )
        log = cloudwatch.LogGroup(
            f"{name}-log",
            name=f"/vllm-fleet/{label}",
            retention_in_days=jobs.log_retention_days,
            tags=self._tags,
            opts=self._child,
        )
        job_profile, job_role = self._profile("job", "GPU jobs", log.arn.apply(job_policy))
        template = self._template(jobs, job_profile.name, job_group)
        scope = Output.all(
            template=template.id,
            group=job_group,
            role=job_role.arn,
            log=log.name,
            subnets=network.subnets,
            account=network.account,
        )
        control_profile, _ = self._profile(
            "control",
            "starts GPU jobs",
            scope.apply(
                lambda known: control_policy(
                    Scope(
                        partition="aws",
                        region=jobs.region,
                        account=known["account"],
                        pipeline=label,
                        launch_template=known["template"],
                        types=[jobs.type, *jobs.fallback_types],
                        subnets=known["subnets"],
                        security_groups=[known["group"]],
                        job_role=known["role"],
                        log_group=known["log"],
                        spot=jobs.spot,
                    )
                )
            ),
        )
        if jobs.control.existing:
            ProfileAssociation(
                f"{name}-control-role-of-instance",
                region=jobs.region,
                instance_id=jobs.control.existing,
                profile=control_profile.name,
                opts=self._child,
            )
            self.control_instance_id = Output.from_input(jobs.control.existing)
            self.control_public_ip = Output.from_input("")
        else:
            control = self._control(args, control_profile.name, control_group, network)
            self.control_instance_id, self.control_public_ip = control.id, control.public_ip
        self.launch_template_id, self.log_group = template.id, log.name
        self._plain = {
            "region": jobs.region,
            "pipeline": label,
            "types": [jobs.type, *jobs.fallback_types],
            "spot": jobs.spot,
            "timeout_minutes": jobs.timeout_minutes,
            "max_cost": jobs.max_cost,
            "mount_path": jobs.mount_path,
            "script": jobs.script,
        }
        if args.network != settings.DIRECT:
            self._plain["network"] = args.network.model_dump(mode="json")
        self._subnets = network.subnets
        self.register_outputs(self.outputs())

    def outputs(self) -> dict[str, Any]:
        """What `fleet job` needs, as `pulumi stack output jobs` shows it."""
        return {
            **self._plain,
            "subnets": self._subnets,
            "control_instance_id": self.control_instance_id,
            "control_public_ip": self.control_public_ip,
            "launch_template_id": self.launch_template_id,
            "file_system_id": self.file_system_id,
            "log_group": self.log_group,
        }

    def _control_group(self, network: Network, access: settings.Access) -> Output[str]:
        return self._group("control", f"SSH to {self._label}-control", network, [ssh_rule(access)])

    def _job_group(self, network: Network) -> Output[str]:
        return self._group("job", f"Jobs of {self._label}: nothing comes in", network, [])

    def _group(
        self, what: str, description: str, network: Network, ingress: list[ec2.SecurityGroupIngressArgs]
    ) -> Output[str]:
        everywhere = ec2.SecurityGroupEgressArgs(
            protocol="-1", from_port=0, to_port=0, cidr_blocks=["0.0.0.0/0"]
        )
        group = ec2.SecurityGroup(
            f"{self._name}-{what}-group",
            name_prefix=f"{self._label}-{what}-",  # it can be replaced while machines are in it
            description=description,
            vpc_id=network.vpc,
            ingress=ingress,
            egress=[everywhere] if what != "share" else [],
            tags=self._tags,
            opts=self._child,
        )
        id_: Output[str] = group.id
        return id_

    def _share(self, network: Network, clients: Sequence[Input[str]], *, protect: bool) -> Output[str]:
        """An encrypted file system that the two groups alone reach, and by NFS alone."""
        nfs = ec2.SecurityGroupIngressArgs(
            description="nfs", protocol="tcp", from_port=NFS_PORT, to_port=NFS_PORT, security_groups=clients
        )
        group = self._group("share", f"NFS to the recordings of {self._label}", network, [nfs])
        system = efs.FileSystem(
            f"{self._name}-share",
            # The same again after an interrupted run: EFS then gives back the one it made.
            creation_token=self._label,
            encrypted=True,
            throughput_mode="elastic",
            tags=self._tags,
            # The recordings are nowhere else; and no change of names may make a new share in place of theirs.
            opts=ResourceOptions(parent=self, protect=protect, ignore_changes=["creationToken"]),
        )
        for index, subnet in enumerate(network.one_subnet_a_zone):
            efs.MountTarget(
                f"{self._name}-share-{index}",
                file_system_id=system.id,
                subnet_id=subnet,
                security_groups=[group],
                opts=self._child,
            )
        id_: Output[str] = system.id
        return id_

    def _profile(
        self, what: str, description: str, policy: Input[str]
    ) -> tuple[iam.InstanceProfile, iam.Role]:
        """An instance profile whose role has one policy."""
        role = iam.Role(
            f"{self._name}-{what}-role",
            name=f"{self._label}-{what}",
            description=f"{self._label}: {description}",
            assume_role_policy=trust_policy(),
            tags=self._tags,
            opts=self._child,
        )
        granted = iam.RolePolicy(
            f"{self._name}-{what}-policy", name=what, role=role.name, policy=policy, opts=self._child
        )
        profile = iam.InstanceProfile(
            f"{self._name}-{what}-profile",
            name=f"{self._label}-{what}",
            role=role.name,
            tags=self._tags,
            # Whoever gets the profile gets its rights with it.
            opts=ResourceOptions(parent=self, depends_on=[granted]),
        )
        return profile, role

    def _template(self, jobs: settings.Jobs, profile: Input[str], group: Input[str]) -> ec2.LaunchTemplate:
        # The provider's default tags stop at the template; every job is to carry them, whoever starts it.
        default_tags = Credentials.of(pulumi.Config("aws").get).default_tags
        marks = {**dict(default_tags), **self._tags, "Name": f"{self._label}-job", PIPELINE_TAG: self._label}
        return ec2.LaunchTemplate(
            f"{self._name}-template",
            name=self._label,
            image_id=jobs.ami or newest(JOB_AMI_PARAMETER),
            instance_type=jobs.type,
            vpc_security_group_ids=[group],
            iam_instance_profile=ec2.LaunchTemplateIamInstanceProfileArgs(name=profile),
            # The end of the work is the end of the machine and of its volume; it needs no right for it.
            instance_initiated_shutdown_behavior="terminate",
            metadata_options=ec2.LaunchTemplateMetadataOptionsArgs(
                http_endpoint="enabled", http_tokens="required", http_put_response_hop_limit=1
            ),
            block_device_mappings=[
                ec2.LaunchTemplateBlockDeviceMappingArgs(
                    device_name="/dev/xvda",  # Amazon Linux's root
                    ebs=ec2.LaunchTemplateBlockDeviceMappingEbsArgs(
                        volume_type="gp3",
                        volume_size=jobs.volume_gb,
                        encrypted="true",
                        delete_on_termination="true",
                    ),
                )
            ],
            instance_market_options=(
                ec2.LaunchTemplateInstanceMarketOptionsArgs(market_type="spot") if jobs.spot else None
            ),
            tag_specifications=[
                ec2.LaunchTemplateTagSpecificationArgs(resource_type=kind, tags=marks)
                for kind in ("instance", "volume")
            ],
            update_default_version=True,
            tags=self._tags,
            opts=ResourceOptions(
                parent=self,
                # A newer image is taken when the configuration names it, never unasked.
                ignore_changes=[] if jobs.ami else ["imageId"],
                hooks=ResourceHookBinding(before_create=[_look_before(f"{self._name}-look", jobs)]),
            ),
        )

    def _control(
        self, args: GpuJobPipelineArgs, profile: Input[str], group: Input[str], network: Network
    ) -> ec2.Instance:
        control = args.jobs.control
        public = public_key(args.access.ssh_private_key_path)
        key = ec2.KeyPair(
            f"{self._name}-key",
            key_name=f"{self._label}-{fingerprint(public)}",
            public_key=public,
            tags=self._tags,
            opts=self._child,
        )
        tags: Mapping[str, str] = {**self._tags, "Name": f"{self._label}-control"}
        return ec2.Instance(
            f"{self._name}-control",
            ami=newest(CONTROL_AMI_PARAMETER),
            instance_type=control.type,
            subnet_id=network.subnets[0],
            associate_public_ip_address=True,
            vpc_security_group_ids=[group],
            key_name=key.key_name,
            iam_instance_profile=profile,
            metadata_options=ec2.InstanceMetadataOptionsArgs(
                http_endpoint="enabled", http_tokens="required", http_put_response_hop_limit=1
            ),
            root_block_device=ec2.InstanceRootBlockDeviceArgs(
                volume_type="gp3",
                volume_size=control.volume_gb,
                encrypted=True,
                delete_on_termination=True,
            ),
            volume_tags=tags,
            disable_api_termination=control.protect,
            tags=tags,
            opts=ResourceOptions(
                parent=self,
                protect=control.protect,
                # It is kept up to date from inside; a newer image would replace a machine that people set up.
                # A key pair acts at the first boot alone.
                ignore_changes=["ami", "keyName"],
            ),
        )


def newest(parameter: str) -> Output[str]:
    """The image that a public parameter names now."""
    from pulumi_aws import ssm  # noqa: PLC0415

    value: Output[str] = ssm.get_parameter_output(name=parameter).value
    return value


def _look_before(name: str, jobs: settings.Jobs) -> pulumi.ResourceHook:
    """A hook that refuses in words, at preview, what EC2 or EFS would refuse."""

    async def hook(args: pulumi.ResourceHookArgs) -> None:
        await asyncio.to_thread(run, args.new_inputs or {})

    def run(inputs: Mapping[str, Any]) -> None:
        api = program_client("ec2", jobs.region, "jobs.")
        for subnet in jobs.subnets or [None]:
            calls.check_place(api, "jobs.", type_=jobs.type, subnet=subnet, public=None, key="subnets")
        calls.check_image(api, "jobs.", type_=jobs.type, ami=inputs["imageId"])
        if jobs.file_system:
            efs = program_client("efs", jobs.region)
            calls.check_share(efs, api, jobs.file_system, jobs.subnets)
        if (existing := jobs.control.existing) and not calls.instance(api, existing):
            raise calls.Ec2Error(
                f"jobs.control.existing: {existing} does not exist in {jobs.region}; leave it out to make one"
            )

    return pulumi.ResourceHook(name, hook, pulumi.ResourceHookOptions(on_dry_run=True))
