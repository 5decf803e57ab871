"""What went wrong on the way to a ready node: the fault, what was seen, why, and the next command to run.

One table of faults, one of the log marks that betray them. A diagnosis is four short lines, with secrets
masked, whoever finds it: the provider, the gate or a rollout.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from fleet.masking import mask_of
from fleet.progress import Stage
from fleet.ssh import (
    AuthenticationRefused,
    HostKeyMismatch,
    KeyUnusable,
    SshError,
    Target,
    Unreachable,
)

QUOTED_LINES = 3
QUOTED_LENGTH = 200
"""Characters of a log line that are quoted."""


class Fault(Enum):
    """Everything with a diagnosis of its own: what is wrong, the likely cause, the next command."""

    VOLUME_NOT_GROWN = (
        "the root volume did not grow",
        "the API key may not change block volumes, the server runs while the cloud wants it stopped, or the "
        "volume is in a state that cannot be resized",
        "{show_volume}",
    )
    SERVER_NOT_STARTED = (
        "the server does not start",
        "its root volume does not hold the image's snapshot, a local volume is attached to a type that "
        "accepts none, or the type is out of stock",
        "{show_server}",
    )
    HOST_KEY_NOT_PUBLISHED = (
        "the node's SSH host key is not known, so no connection was made",
        "cloud-init did not get as far as publishing it: the machine did not boot, or user data did not run",
        "{show_host_keys}",
    )
    SSH_SILENT = (
        "SSH does not answer on {host} port {port}",
        "is there a rule for port {port} from here? is the server running? is {host} its address?",
        "{show_server} && {show_rules}",
    )
    SSH_REFUSED = (
        "{host} is up but refuses SSH on port {port}",
        "sshd did not start, or listens elsewhere: is the server still booting? is {host} its address? does "
        "the rule name port {port}?",
        "{show_server} && {show_rules}",
    )
    HOST_KEY_MISMATCH = (
        "the machine at {host} is not the one that was made: its SSH host key differs",
        "the address belongs to another machine now, this one was reinstalled, or somebody is in between; "
        "nothing was sent to it",
        "{show_host_keys}",
    )
    AUTHENTICATION_REFUSED = (
        "{host} accepts no key we offer for user {user}",
        "the public half is not among the cloud's SSH keys of this project, or the user's name is another; "
        "a key with a passphrase must be in the SSH agent",
        "{ssh} true",
    )
    KEY_UNUSABLE = (
        "the SSH private key cannot be used",
        "access.ssh_private_key_path names a file that is missing, unreadable or no private key",
        "ssh-keygen -y -f {key}",
    )
    REBOOT_LOST = (
        "the node went away and did not come back",
        "its reboot hangs or failed (driver, boot loader, disk), or the network to it is cut",
        "{show_server}",
    )
    CLOUD_INIT_CRASHED = (
        "cloud-init failed",
        "a module or script of the user data ended with an error; the machine is only partly set up",
        "{sudo} cloud-init status --long && {sudo} tail -n 50 /var/log/cloud-init-output.log",
    )
    CLOUD_INIT_DEGRADED = (
        "cloud-init finished with recoverable errors",
        "part of the user data was refused or failed; what depends on it is missing",
        "{sudo} cloud-init status --long && {sudo} cloud-init schema --system",
    )
    INSTALL_TIMEOUT = (
        "the worker's installation did not end in time",
        "a download hangs or is slow, or a package waits for input; health.install_timeout_s is the limit",
        "{sudo} tail -n 50 /var/log/cloud-init-output.log",
    )
    APT_UNREACHABLE = (
        "a package source does not answer",
        "the apt mirror or its repository is down, or the node has no way out to the internet",
        "{sudo} apt-get update",
    )
    PACKAGE_MISSING = (
        "a package is not to be had",
        "no package source carries it for this release: a driver branch that is gone, or a missing source",
        "{sudo} apt-cache policy 'nvidia-driver-*-server' nvidia-container-toolkit",
    )
    APT_LOCKED = (
        "the package manager stayed locked",
        "unattended-upgrades or another apt holds the lock; the next `pulumi up` tries again",
        "{sudo} fuser -v /var/lib/dpkg/lock-frontend",
    )
    DRIVER_NOT_LOADED = (
        "the NVIDIA driver does not answer",
        "the driver is not installed for the running kernel, or needs the reboot that did not happen",
        "{sudo} nvidia-smi; {sudo} dkms status; {sudo} dmesg --level=err,warn",
    )
    DOCKER_DEAD = (
        "dockerd does not run",
        "its configuration is broken (/etc/docker/daemon.json), or its disk is full",
        "{sudo} journalctl -u docker -n 50 --no-pager",
    )
    ENV_MISSING = (
        "/opt/llm/.env is not there, so vllm.service waits for it",
        "the delivery of the serving files failed or has not run",
        "pulumi up",
    )
    COMPOSE_INVALID = (
        "the compose file is invalid",
        "/opt/llm/docker-compose.yml was changed by hand, or a setting does not fit this compose version",
        "{sudo} docker compose --project-directory /opt/llm config -q",
    )
    IMAGE_REFUSED = (
        "the container image is refused",
        "serving.image names a repository or tag that does not exist, or that needs a login",
        "{sudo} docker compose --project-directory /opt/llm pull",
    )
    REGISTRY_UNREACHABLE = (
        "the image registry does not answer",
        "it is down or limits the rate, or the node has no way out to the internet",
        "{sudo} docker compose --project-directory /opt/llm pull",
    )
    DISK_FULL = (
        "the node's disk is full",
        "image, weights and caches need more than the root volume has; raise root_volume_gb",
        "{sudo} df -h / && {sudo} docker system df",
    )
    PORT_TAKEN = (
        "the port is taken on the node",
        "another process or container listens there; stop it, or choose another serving.port",
        "{sudo} ss -ltnp",
    )
    SERVICE_FAILED = (
        "vllm.service failed",
        "`docker compose up` ended with an error",
        "{sudo} journalctl -u vllm.service -n 50 --no-pager",
    )
    OUT_OF_GPU_MEMORY = (
        "vLLM ran out of GPU memory",
        "weights, activations and KV cache do not fit, or another process holds memory: lower "
        "serving.max_model_len or max_num_seqs, take a smaller quantization, or a larger GPU",
        "{sudo} nvidia-smi",
    )
    KV_CACHE_TOO_SMALL = (
        "the KV cache is too small for one request of full length",
        "too little memory is left beside the weights: lower serving.max_model_len to the length named, "
        "raise gpu_memory_utilization (at most 0.95), or take a larger GPU",
        "{logs}",
    )
    OUT_OF_HOST_MEMORY = (
        "the container was killed for want of main memory",
        "loading the weights or serving.swap_space_gb needs more RAM than the type has",
        "{sudo} free -h && {sudo} dmesg --level=err,warn",
    )
    MODEL_NOT_FOUND = (
        "the model does not exist on the hub, or is not visible without a token",
        "serving.model is misspelt, or secrets.hf_token is missing for a private model",
        "{logs}",
    )
    TOKEN_REFUSED = (
        "the Hugging Face hub refuses access to the model",
        "secrets.hf_token is wrong or expired, or its owner has not accepted the model's terms",
        "{logs}",
    )
    BAD_FLAG = (
        "vLLM refuses its arguments",
        "serving.args or serving.extra_args holds a flag or value this image's vLLM does not know",
        "{logs}",
    )
    DRIVER_TOO_OLD = (
        "the NVIDIA driver is too old for the image's CUDA",
        "the image needs a newer driver branch than the node has; pin an older image or a newer driver",
        "{sudo} nvidia-smi",
    )
    GPU_MISSING = (
        "the container sees no GPU",
        "Docker lacks the NVIDIA container runtime, or serving.visible_devices names none that is there",
        "{sudo} docker info && {sudo} nvidia-smi",
    )
    EXIT_LOOP = (
        "the vLLM container keeps exiting",
        "its own log says why; none of the known marks is in it",
        "{logs}",
    )
    LOADING_TIMEOUT = (
        "vLLM did not become ready in time",
        "the model's download or load hangs or is slow; health.ready_timeout_s is the limit",
        "{logs}",
    )
    WRONG_MODEL = (
        "another model is served than was asked for",
        "an older release still runs, or serving.served_model_name differs from what the container was given",
        "{logs}",
    )
    KEY_REFUSED = (
        "vLLM refuses the API key of this stack",
        "the container runs with an older key than /opt/llm/.env holds",
        "{sudo} systemctl restart vllm.service",
    )
    OPEN_WITHOUT_KEY = (
        "vLLM answers without a key",
        "VLLM_API_KEY did not reach the container: anyone who reaches the port can use it",
        "{sudo} grep -c ^VLLM_API_KEY=. /opt/llm/.env && {sudo} systemctl restart vllm.service",
    )
    GATEWAY_FAILED = (
        "the gateway does not let clients through",
        "Caddy does not run, or cannot use its configuration or its certificate; its log says which",
        "{sudo} docker logs --tail 50 caddy",
    )
    HUNG = (
        "vLLM is healthy but generates nothing",
        "the engine hangs behind a live /health (vllm-project/vllm issue 36960); a restart mostly helps",
        "{sudo} systemctl restart vllm.service",
    )
    COMPLETION_FAILED = (
        "vLLM cannot complete a request",
        "the engine fails at the first generation, or the model is not a generative one",
        "{logs}",
    )
    UNSTABLE = (
        "vLLM answered, then did not stay up",
        "the engine died after its first request, or the container was restarted meanwhile",
        "{logs}",
    )

    def __init__(self, summary: str, cause: str, next_command: str) -> None:
        self.summary = summary
        self.cause = cause
        self.next_command = next_command


SERVING_MARKS: tuple[tuple[Fault, str], ...] = (
    (Fault.DISK_FULL, r"no space left on device"),
    (Fault.BAD_FLAG, r"error: (unrecognized arguments|argument .+: (invalid|expected|not allowed))"),
    (
        Fault.KV_CACHE_TOO_SMALL,
        r"max(imum)? (seq|model) len.* is larger than|larger than the available KV cache memory"
        r"|No available memory for the cache blocks",
    ),
    (
        Fault.OUT_OF_GPU_MEMORY,
        r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError|CUDA error: out of memory"
        r"|Free memory on device .* is less than desired",
    ),
    (
        Fault.DRIVER_TOO_OLD,
        r"CUDA error 80[34]|Error 80[34]:|driver on your system is too old"
        r"|CUDA driver version is insufficient|unsatisfied condition: cuda"
        r"|forward compatibility was attempted",
    ),
    (
        Fault.GPU_MISSING,
        r"No CUDA GPUs are available|Failed to infer device type|nvidia-container-cli: initialization error"
        r"|unknown or invalid runtime name: nvidia|could not select device driver|unknown device",
    ),
    (
        Fault.MODEL_NOT_FOUND,
        r"RepositoryNotFoundError|Repository Not Found for url|is not a valid model identifier"
        r"|404 Client Error",
    ),
    (
        Fault.TOKEN_REFUSED,
        r"GatedRepoError|gated repo|Invalid user token|Invalid credentials in Authorization header"
        r"|40[13] Client Error|Access to model .* is restricted",
    ),
    (
        Fault.IMAGE_REFUSED,
        r"pull access denied|manifest unknown|manifest for .* not found|repository .* not found"
        r"|requested access to the resource is denied|unauthorized: |no basic auth credentials",
    ),
    (
        Fault.REGISTRY_UNREACHABLE,
        r"toomanyrequests|error response from daemon: Get \"https?://|TLS handshake timeout"
        r"|(lookup|dial tcp) .*(no such host|connection refused|i/o timeout|no route to host)",
    ),
    (Fault.PORT_TAKEN, r"port is already allocated|address already in use"),
    (
        Fault.COMPOSE_INVALID,
        r"docker-compose\.yml: |yaml: |additional propert(y|ies) .*not allowed|invalid compose project"
        r"|services\.\S+ must be|has neither an image nor a build|undefined (volume|network)"
        r"|env file .* not found",
    ),
    (Fault.DOCKER_DEAD, r"Cannot connect to the Docker daemon"),
)
"""Lines of vLLM's and compose's logs that name their fault; the first entry found in a log wins."""

INSTALL_MARKS: tuple[tuple[Fault, str], ...] = (
    (Fault.DISK_FULL, r"no space left on device"),
    (
        Fault.PACKAGE_MISSING,
        r"Unable to locate package|has no installation candidate|Couldn't find any package",
    ),
    (Fault.APT_LOCKED, r"Could not get lock|Unable to acquire the dpkg frontend lock"),
    (
        Fault.APT_UNREACHABLE,
        r"Failed to fetch|Temporary failure resolving|Could not connect to|Unable to connect to"
        r"|Some index files failed to download|does not have a Release file|is not signed",
    ),
    (Fault.IMAGE_REFUSED, r"pull access denied|manifest unknown|manifest for .* not found"),
    (Fault.DOCKER_DEAD, r"Job for docker\.service failed|Cannot connect to the Docker daemon"),
)
"""Lines of cloud-init's log that name their fault."""

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class Hints:
    """What a diagnosis may say of the cloud's side; empty where not known."""

    zone: str = ""
    region: str = ""
    server_id: str = ""
    volume_id: str = ""
    security_group: str = ""
    console_url: str = ""


@dataclass(frozen=True)
class Context:
    """The node a diagnosis speaks of."""

    node: str
    cloud: str
    hints: Hints = field(default_factory=Hints)
    target: Target | None = None
    container: str = "vllm"
    unit: str = ""
    """The systemd unit that runs vLLM itself; empty: Docker does, in the container."""
    secrets: tuple[str, ...] = ()
    """Values that must not be quoted."""

    def words(self) -> dict[str, str]:
        """What the table's texts may name."""
        target = self.target or Target(host="its address", host_keys=())
        key = shlex.quote(str(target.private_key_path)) if target.private_key_path else "~/.ssh/id_ed25519"
        ssh = ["ssh", "-F", "none"]
        ssh += ["-i", key] if target.private_key_path else []
        ssh += ["-p", str(target.port)] if target.port != 22 else []
        login = " ".join([*ssh, shlex.quote(f"{target.user}@{target.host}")])
        sudo = f"{login} {self._privileged}".rstrip()
        container = shlex.quote(self.container)
        return {
            "host": target.host,
            "port": str(target.port),
            "user": target.user,
            "key": key,
            "ssh": login,
            "sudo": sudo,
            "container": container,
            "logs": f"{sudo} journalctl -u {shlex.quote(self.unit)} -n 100 --no-pager"
            if self.unit
            else f"{sudo} docker logs --tail 100 {container}",
            **self._console(),
        }

    @property
    def _privileged(self) -> str:
        return "sudo " if self.target and self.target.user != "root" else ""

    def command(self, text: str) -> str:
        """A command of the table, ready to be copied. Several on the node make one SSH session."""
        if text.count("{sudo}") > 1:
            return f"{self.words()['ssh']} {shlex.quote(text.replace('{sudo} ', self._privileged))}"
        return text.format_map(self.words())

    def _console(self) -> dict[str, str]:
        """The commands that ask the cloud itself, by its own client."""
        hints = self.hints
        place, server = hints.zone or hints.region, hints.server_id
        fallback = f"open {hints.console_url}" if hints.console_url else "pulumi refresh --preview-only"
        commands = {
            "scaleway": {
                "show_server": f"scw instance server get {server} zone={place}",
                "show_rules": f"scw instance security-group get {hints.security_group} zone={place}",
                "show_volume": f"scw block volume get {hints.volume_id} zone={place}",
                "show_host_keys": f"scw instance user-data get server-id={server} key=ssh-host-public-keys "
                f"zone={place}",
            },
            "linode": {
                "show_server": f"linode-cli linodes view {server}",
                "show_rules": f"linode-cli firewalls rules-list {hints.security_group}",
                "show_volume": f"linode-cli linodes disks-list {server}",
                "show_host_keys": f"linode-cli linodes view {server}",
            },
            "aws": {
                "show_server": f"aws ec2 describe-instances --region {place} --instance-ids {server}",
                "show_rules": f"aws ec2 describe-security-groups --region {place} --group-ids "
                f"{hints.security_group}",
                "show_volume": f"aws ec2 describe-volumes-modifications --region {place} --volume-ids "
                f"{hints.volume_id}",
                "show_host_keys": f"aws ec2 get-console-output --region {place} --instance-id {server}",
            },
        }.get(self.cloud, {})
        needs = {
            "show_server": server,
            "show_rules": hints.security_group,
            "show_volume": hints.volume_id or (server if self.cloud == "linode" else ""),
            "show_host_keys": server,
        }
        return {name: commands.get(name, fallback) if needs[name] else fallback for name in needs}


@dataclass(frozen=True)
class Diagnosis:
    """A failure explained."""

    fault: str
    """The fault's name in the table, in lower case."""
    node: str
    stage: str
    summary: str
    seen: tuple[str, ...]
    """What proves it: quoted lines, secrets masked."""
    cause: str
    next_command: str

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.node} stopped at {self.stage}: {self.summary}",
                f"  seen:  {' | '.join(self.seen) or 'nothing more'}",
                f"  cause: {self.cause}",
                f"  next:  {self.next_command}",
            ]
        )


class Failed(Exception):
    """Raised where a fault is found, with the lines that prove it."""

    def __init__(self, fault: Fault, seen: Iterable[str] = ()) -> None:
        super().__init__(fault.summary)
        self.fault = fault
        self.seen = tuple(seen)


def diagnose(fault: Fault, stage: Stage, context: Context, seen: Iterable[str] = ()) -> Diagnosis:
    """The diagnosis of a fault found on the way to `stage`."""
    words = context.words()
    return Diagnosis(
        fault=fault.name.lower(),
        node=context.node,
        stage=stage.label,
        summary=fault.summary.format_map(words),
        seen=tuple(dict.fromkeys(quote(line, context.secrets) for line in seen if line.strip()))[
            :QUOTED_LINES
        ],
        cause=fault.cause.format_map(words),
        next_command=context.command(fault.next_command),
    )


def ssh_fault(error: SshError) -> Failed:
    """The fault behind an error of `fleet.ssh`, with the error as its proof."""
    fault = Fault.SSH_SILENT
    if isinstance(error, HostKeyMismatch):
        fault = Fault.HOST_KEY_MISMATCH
    elif isinstance(error, KeyUnusable):
        fault = Fault.KEY_UNUSABLE
    elif isinstance(error, AuthenticationRefused):
        fault = Fault.AUTHENTICATION_REFUSED
    elif isinstance(error, Unreachable) and error.reason == "refused":
        fault = Fault.SSH_REFUSED
    return Failed(fault, [str(error)])


def marked(lines: Sequence[str], marks: Sequence[tuple[Fault, str]]) -> Failed | None:
    """The fault that a log's lines betray, with the last of the lines that do."""
    for fault, pattern in marks:
        proof = [line for line in lines if re.search(pattern, line, re.IGNORECASE)]
        if proof:
            return Failed(fault, proof[-2:])
    return None


def quote(line: str, secrets: Iterable[str] = ()) -> str:
    """One line fit to be shown: no control characters, no secret, not too long."""
    text = _CONTROL.sub("", line).strip()
    text = mask_of(tuple(secrets))(text)
    return text if len(text) <= QUOTED_LENGTH else f"{text[: QUOTED_LENGTH - 1]}…"
