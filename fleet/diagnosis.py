"""What went wrong on the way to a ready node: the fault, what was seen, why, and the next command to run.

One table of faults; the patterns that find them in the engine's log are in `fleet.engine_faults`, those of an
installation's log here. A diagnosis is four short lines, with secrets masked, whoever finds it: the provider,
the gate or a rollout.
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
        "restart the node (fleet ssh NODE -- sudo reboot); where that does not help, replace it",
    )
    DOCKER_DEAD = (
        "dockerd does not run",
        "its configuration is broken (/etc/docker/daemon.json), or its disk is full",
        "{sudo} journalctl -u docker -n 50 --no-pager",
        "correct its configuration or free its disk; its log: fleet ssh NODE -- sudo journalctl -u docker",
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
        "correct the setting that the line names; `pulumi up` puts the stack's own compose file back",
    )
    IMAGE_REFUSED = (
        "the container image is refused",
        "serving.image names a repository or tag that does not exist, or that needs a login",
        "{sudo} docker compose --project-directory /opt/llm pull",
        "correct serving.image; a private registry needs its login in secrets.registries",
    )
    REGISTRY_UNREACHABLE = (
        "the image registry does not answer",
        "it is down, or the node has no way out to the internet",
        "{sudo} docker compose --project-directory /opt/llm pull",
        "set network.https_proxy or network.registry_mirrors if the node needs one; otherwise run "
        "`pulumi up` again",
    )
    REGISTRY_LOGIN_DENIED = (
        "the image registry refuses its login",
        "the registry wants a login that it was not given, or the one given is wrong or may not pull",
        "{sudo} docker compose --project-directory /opt/llm pull",
        "set or correct the registry's login in secrets.registries",
    )
    REGISTRY_RATE_LIMITED = (
        "the image registry limits the rate",
        "too many pulls from this address in a short time; Docker Hub counts them by address without a login",
        "{sudo} docker compose --project-directory /opt/llm pull",
        "set a login in secrets.registries, or a mirror in network.registry_mirrors, or try again in "
        "some hours",
    )
    REGISTRY_CERTIFICATE_UNKNOWN = (
        "the node does not trust the image registry's certificate",
        "an authority of your own signed it, it has expired, or it is for another name",
        "{sudo} docker compose --project-directory /opt/llm pull",
        "add the authority to network.ca_certificates",
    )
    REGISTRY_PLAIN_HTTP = (
        "the image registry speaks plain HTTP",
        "Docker asks registries by HTTPS alone, and that port answers without TLS",
        "{sudo} docker compose --project-directory /opt/llm pull",
        "give the registry a certificate, or name its HTTPS port in serving.image",
    )
    DISK_FULL = (
        "the node's disk is full",
        "image, weights and caches need more than the root volume has",
        "{sudo} df -h / && {sudo} docker system df",
        "raise root_volume_gb",
    )
    PORT_TAKEN = (
        "the port is taken on the node",
        "another process or container listens there",
        "{sudo} ss -ltnp",
        "stop what listens there, or choose another serving.port",
    )
    CONTAINER_NAME_TAKEN = (
        "another container has the name already",
        "a container that this stack did not make is called serving.container_name",
        "{sudo} docker ps -a",
        "remove that container, or choose another serving.container_name",
    )
    SERVICE_FAILED = (
        "vllm.service failed",
        "`docker compose up` ended with an error",
        "{sudo} journalctl -u vllm.service -n 50 --no-pager",
    )
    OUT_OF_GPU_MEMORY = (
        "vLLM ran out of GPU memory",
        "weights, activations and KV cache do not fit, or another process holds memory",
        "{sudo} nvidia-smi",
        "lower serving.max_model_len or serving.max_num_seqs, serve a smaller quantization, or take a "
        "larger GPU",
    )
    GPU_MEMORY_LOADING = (
        "vLLM ran out of GPU memory while it loaded the weights",
        "the weights alone do not fit the GPUs that this model is spread over",
        "{sudo} nvidia-smi",
        "raise serving.tensor_parallel_size, serve a smaller quantization, or take a larger GPU",
    )
    GPU_MEMORY_PROFILING = (
        "vLLM ran out of GPU memory in its first trial run",
        "the weights fit, but one full batch of activations does not",
        "{sudo} nvidia-smi",
        "lower serving.max_num_seqs or serving.max_model_len, or --max-num-batched-tokens in "
        "serving.extra_args",
    )
    GPU_MEMORY_SAMPLER = (
        "vLLM ran out of GPU memory while it warmed up the sampler",
        "serving.max_num_seqs requests need more memory at once than is left beside the KV cache",
        "{sudo} nvidia-smi",
        "lower serving.max_num_seqs (256 is a good start) or serving.gpu_memory_utilization",
    )
    GPU_MEMORY_GRAPHS = (
        "vLLM ran out of GPU memory while it captured CUDA graphs",
        "graphs take memory that serving.gpu_memory_utilization does not count",
        "{sudo} nvidia-smi",
        "lower serving.gpu_memory_utilization or serving.max_num_seqs, or add --enforce-eager to "
        "serving.extra_args",
    )
    GPU_MEMORY_TAKEN = (
        "the GPU's memory is taken before vLLM starts",
        "another process holds it, or an earlier container has not ended yet",
        "{sudo} nvidia-smi",
        "end the other process, or lower serving.gpu_memory_utilization",
    )
    KV_CACHE_TOO_SMALL = (
        "the KV cache is too small for one request of full length",
        "too little GPU memory is left beside the weights",
        "{logs}",
        "lower serving.max_model_len, raise serving.gpu_memory_utilization (at most 0.95), or take a "
        "larger GPU",
    )
    OUT_OF_HOST_MEMORY = (
        "the container was killed for want of main memory",
        "loading the weights or serving.swap_space_gb needs more RAM than the type has",
        "{sudo} free -h && {sudo} dmesg --level=err,warn",
        "lower serving.swap_space_gb, or take a type with more RAM",
    )
    CONTEXT_TOO_LONG = (
        "serving.max_model_len is above what the model was made for",
        "the model's own config gives a shorter length (max_position_embeddings, model_max_length)",
        "{logs}",
        "lower serving.max_model_len to the model's own length",
    )
    BATCH_TOO_SMALL = (
        "a batch holds fewer tokens than one request may have",
        "--max-num-batched-tokens in serving.extra_args is below serving.max_model_len, or below "
        "serving.max_num_seqs",
        "{logs}",
        "raise --max-num-batched-tokens in serving.extra_args, or lower serving.max_model_len",
    )
    HUB_UNREACHABLE = (
        "the Hugging Face hub does not answer",
        "the node has no way out to huggingface.co, its name does not resolve, or the hub is down",
        "{sudo} curl -sSI https://huggingface.co",
        "set network.https_proxy if the node needs one, or deliver the weights with serving.files",
    )
    HUB_RATE_LIMITED = (
        "the Hugging Face hub limits the rate",
        "too many requests from this address or token in a short time (429)",
        "{logs}",
        "set secrets.hf_token, which raises the limit, and run `pulumi up` again some minutes later",
    )
    HUB_CERTIFICATE_UNKNOWN = (
        "vLLM does not trust the certificate that it is shown for the Hugging Face hub",
        "a proxy on the way opens TLS with an authority of its own",
        "{sudo} curl -sSI https://huggingface.co",
        "add that authority to network.ca_certificates",
    )
    HUB_FAILING = (
        "the Hugging Face hub answers with an error of its own",
        "the hub has an outage (5xx)",
        "{logs}",
        "run `pulumi up` again later (status.huggingface.co says when), or deliver the weights with "
        "serving.files",
    )
    HUB_OFFLINE = (
        "the model is not on the node, and offline mode forbids its download",
        "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set in serving.environment or in the image",
        "{logs}",
        "remove it from serving.environment, or deliver the weights with serving.files",
    )
    MODEL_PATH_MISSING = (
        "serving.model is a path that holds no model",
        "nothing is there inside the container, or not a model's config.json",
        "{logs}",
        "deliver the model with serving.files and name it /files/NAME in serving.model",
    )
    CONFIG_MISSING = (
        "the model has no config.json",
        "serving.model names a repository of adapters, GGUF files or something else than a model's weights",
        "{logs}",
        "name a repository or folder in serving.model that holds config.json and the weights beside it",
    )
    WEIGHTS_MISSING = (
        "the model has no weights that vLLM can read",
        "its repository or folder holds a config, but no *.safetensors, *.bin or *.pt of the format "
        "asked for",
        "{logs}",
        "correct serving.model, or --load-format in serving.extra_args",
    )
    WEIGHTS_DAMAGED = (
        "a file of the model's weights is damaged or incomplete",
        "its download was cut off, or git-lfs left a pointer in its place",
        "{logs}",
        "remove the model from the node's cache and run `pulumi up` again, or deliver it again with "
        "serving.files",
    )
    ARCHITECTURE_UNKNOWN = (
        "this image's vLLM does not know the model's architecture",
        "the model is newer than the image, or of a kind that vLLM does not serve",
        "{logs}",
        "pin a newer serving.image, or serve another model",
    )
    REMOTE_CODE_NOT_TRUSTED = (
        "the model brings code of its own, and vLLM was not told to run it",
        "its repository holds Python files that it needs",
        "{logs}",
        "read that code; if you trust it, add --trust-remote-code to serving.extra_args",
    )
    QUANTIZATION_UNKNOWN = (
        "this image's vLLM does not know the quantization",
        "serving.quantization, or the model's own config, names a method that this release does not have",
        "{logs}",
        "leave serving.quantization out, or pin a serving.image whose vLLM has the method",
    )
    QUANTIZATION_MISMATCH = (
        "serving.quantization does not fit the model",
        "the model's weights are quantized in another way, or not at all",
        "{logs}",
        "leave serving.quantization out: vLLM reads the method from the model's config",
    )
    QUANTIZATION_UNSUPPORTED = (
        "the quantization does not work on this GPU or with this dtype",
        "the method needs a newer GPU, or another type of activations",
        "{logs}",
        "set serving.dtype to one that the log names, serve another quantization, or take a newer GPU",
    )
    DTYPE_UNSUPPORTED = (
        "bfloat16 does not work on this GPU",
        "its compute capability is below 8.0 (Turing, as the T4, or older)",
        "{logs}",
        "set serving.dtype: half, or take a newer GPU",
    )
    HEADS_NOT_DIVISIBLE = (
        "the model cannot be divided among that many GPUs",
        "its attention heads are not a multiple of serving.tensor_parallel_size",
        "{logs}",
        "set serving.tensor_parallel_size to a divisor of the number of heads that the log names",
    )
    TOO_FEW_GPUS = (
        "the model is to be spread over more GPUs than there are",
        "serving.tensor_parallel_size is above the number of GPUs that vLLM or Ray sees",
        "{sudo} nvidia-smi",
        "lower serving.tensor_parallel_size, show more GPUs in serving.visible_devices, or take a "
        "larger type",
    )
    REASONING_PARSER_UNKNOWN = (
        "this image's vLLM does not know the reasoning parser",
        "--reasoning-parser in serving.extra_args names none that it has",
        "{logs}",
        "name one of those that the log lists in serving.extra_args, or pin a newer serving.image",
    )
    TOOL_PARSER_UNKNOWN = (
        "this image's vLLM does not know the tool-call parser",
        "--tool-call-parser in serving.extra_args names none that it has",
        "{logs}",
        "name one of those that the log lists in serving.extra_args, or pin a newer serving.image",
    )
    TOOL_PARSER_MISSING = (
        "automatic tool choice is on, but no parser is named",
        "serving.extra_args has --enable-auto-tool-choice without --tool-call-parser",
        "{logs}",
        "add --tool-call-parser NAME to serving.extra_args",
    )
    CHAT_TEMPLATE_MISSING = (
        "the model has no chat template",
        "its tokenizer brings none, or --chat-template names a file that is not in the container",
        "{logs}",
        "deliver a template with serving.files, and add --chat-template /files/NAME to serving.extra_args",
    )
    MODEL_NOT_FOUND = (
        "the model does not exist on the hub, or is not visible without a token",
        "serving.model is misspelt, or secrets.hf_token is missing for a private model",
        "{logs}",
        "correct serving.model, or set secrets.hf_token",
    )
    TOKEN_REFUSED = (
        "the Hugging Face hub refuses access to the model",
        "secrets.hf_token is missing, wrong or expired, or its owner has not accepted the model's terms",
        "{logs}",
        "accept the model's terms on its page on the hub, and set secrets.hf_token to a token of that "
        "account",
    )
    BAD_FLAG = (
        "vLLM refuses its arguments",
        "serving.args or serving.extra_args holds a flag or value this image's vLLM does not know",
        "{logs}",
        "correct or remove that flag in serving.extra_args, or pin a serving.image whose vLLM has it",
    )
    AMBIGUOUS_FLAG = (
        "a flag in serving.extra_args may mean several",
        "it is the beginning of more than one flag of this image's vLLM",
        "{logs}",
        "write the flag in full in serving.extra_args",
    )
    BAD_JSON_ARGUMENT = (
        "vLLM cannot read an argument that must be JSON",
        "its value in serving.extra_args is no valid JSON, or not of the shape that the flag takes",
        "{logs}",
        "write that value in serving.extra_args as one word of valid JSON, with double quotes inside",
    )
    DRIVER_TOO_OLD = (
        "the NVIDIA driver is too old for the image's CUDA",
        "the image needs a newer driver branch than the node has",
        "{sudo} nvidia-smi",
        "pin an older serving.image, or take a node with a newer driver_branch",
    )
    DRIVER_MISMATCH = (
        "the NVIDIA driver in the kernel is not the one on disk",
        "the driver was upgraded without a reboot",
        "{sudo} nvidia-smi; {sudo} cat /proc/driver/nvidia/version",
        "restart the node: fleet ssh NODE -- sudo reboot",
    )
    FABRIC_MANAGER_MISSING = (
        "the GPUs wait for NVIDIA's fabric manager",
        "GPUs joined by NVSwitch need nvidia-fabricmanager, of the driver's own version (CUDA error 802)",
        "{sudo} systemctl status nvidia-fabricmanager",
        "start nvidia-fabricmanager on the node, or replace the node by one whose image brings it",
    )
    KERNELS_MISSING = (
        "the image has no code for this GPU",
        "its CUDA kernels were not built for the GPU's compute capability",
        "{sudo} nvidia-smi",
        "pin a serving.image that supports the GPU (a newer one for a new GPU), or take another GPU",
    )
    GPU_MISSING = (
        "the container sees no GPU",
        "Docker lacks the NVIDIA container runtime, or serving.visible_devices names none that is there",
        "{sudo} docker info && {sudo} nvidia-smi",
        "correct serving.visible_devices; where the runtime is missing, replace the node",
    )
    GPU_LOST = (
        "the container has lost its GPU",
        "systemd was reloaded while the container ran, which takes away its devices (NVML: Unknown Error)",
        "{sudo} nvidia-smi && {sudo} systemctl restart vllm.service",
        "restart vLLM: fleet ssh NODE -- sudo systemctl restart vllm.service",
    )
    NCCL_FAILED = (
        "the GPUs cannot talk to each other (NCCL)",
        "too little shared memory, a wrong network interface between nodes, or a GPU that fails",
        "{sudo} nvidia-smi topo -m",
        "raise serving.shm_size_gb; set NCCL_DEBUG: INFO in serving.environment to see which call fails",
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
        "the engine fails at the first request, or the model is not one for serving.task",
        "{logs}",
    )
    TASK_UNSUPPORTED = (
        "the model is not served for what serving.task says",
        "its release has no route of that task for this model: it is made for another one",
        "{logs}",
        "set serving.task to what the model is made for, or serve another model",
    )
    UNSTABLE = (
        "vLLM answered, then did not stay up",
        "the engine died after its first request, or the container was restarted meanwhile",
        "{logs}",
    )

    def __init__(self, summary: str, cause: str, next_command: str, fix: str = "") -> None:
        self.summary = summary
        self.cause = cause
        self.next_command = next_command
        self.fix = fix
        """The change that helps, as this project's settings; empty where the next command comes first."""


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

_CONTROL = re.compile(
    r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)
"""Colours, control characters, and those that turn the direction of text."""


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
    fix: str = ""
    """The change that helps, as settings; empty where the next command comes first."""

    @property
    def next_step(self) -> str:
        """What to do now: the change that helps, or the command that shows more."""
        return self.fix or self.next_command

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.node} stopped at {self.stage}: {self.summary}",
                f"  seen:  {' | '.join(self.seen) or 'nothing more'}",
                f"  cause: {self.cause}",
                f"  next:  {self.next_step}",
            ]
        )


class Failed(Exception):
    """Raised where a fault is found, with the lines that prove it."""

    def __init__(self, fault: Fault, seen: Iterable[str] = (), fix: str = "") -> None:
        super().__init__(fault.summary)
        self.fault = fault
        self.seen = tuple(seen)
        self.fix = fix or fault.fix
        """The fault's own, or one with figures from its proof."""


def diagnose(
    fault: Fault, stage: Stage, context: Context, seen: Iterable[str] = (), fix: str = ""
) -> Diagnosis:
    """The diagnosis of a fault found on the way to `stage`; `fix` is one more exact than the fault's own."""
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
        fix=fix or fault.fix,
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
