"""Patterns that name a fault in what vLLM, Docker, NVIDIA's tools and Ray write; see `fleet.engine_log`.

Those of vLLM, huggingface_hub and transformers are the wording of raise sites, read in vLLM 0.6.3, 0.9.2,
0.14.1 and 0.32.0, huggingface_hub 2.4 and transformers 5.24; the comments name releases where it changed.
Those of Docker, registries, NVIDIA, torch and Ray come from logs that users published, or are known wording.
Gaps are bounded, so that a hostile line costs no more than its length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fleet.diagnosis import Fault


@dataclass(frozen=True)
class Sign:
    """The wording that gives a fault away."""

    fault: Fault
    pattern: re.Pattern[str]


def _signs(*table: tuple[Fault, str]) -> tuple[Sign, ...]:
    return tuple(Sign(fault, re.compile(pattern, re.IGNORECASE)) for fault, pattern in table)


EXCEPTIONS = _signs(
    # V0 (0.6.3, 0.9.2) names the tokens that fit, V1 the memory, and the length that fits (0.9.2 and later).
    (
        Fault.KV_CACHE_TOO_SMALL,
        r"max seq len \(\d+\).{0,120}larger than the "
        r"(?:available KV cache memory|maximum number of tokens that can be stored)"
        r"|No available memory for the cache blocks|Cannot auto-fit max_model_len",
    ),
    (Fault.GPU_MEMORY_SAMPLER, r"CUDA out of memory occurred when warming up (?:sampler|pooler)"),
    (
        Fault.OUT_OF_GPU_MEMORY,
        r"CUDA out of memory|torch\.(?:cuda\.)?OutOfMemoryError|CUDA error: out of memory",
    ),
    # "Initial free memory": another process gave memory back while vLLM counted it (0.6.3 to 0.32.0).
    (
        Fault.GPU_MEMORY_TAKEN,
        r"Free memory on device.{0,120}is less than (?:desired GPU memory|the engine's budget)"
        r"|Error in memory profiling\. Initial free memory",
    ),
    (
        Fault.DISK_FULL,
        r"^(?!.{0,1000}/dev/shm).{0,1500}No space left on device|\[Errno 122\] Disk quota exceeded",
    ),
    (
        Fault.HUB_OFFLINE,
        r"OfflineModeIsEnabled|offline mode is enabled|outgoing traffic has been disabled",
    ),
    # requests' wording, then httpx's, hub 1.0 and later, and the Rust client's.
    (
        Fault.HUB_RATE_LIMITED,
        r"\b429 (?:Client Error|Too Many Requests)|Client error '429 |HTTP status client error \(429 ",
    ),
    (Fault.HUB_FAILING, r"\b50[0-4] Server Error|Server error '50[0-4] |HTTP status server error \(50[0-4] "),
    (
        Fault.TOKEN_REFUSED,
        r"GatedRepoError|Cannot access gated repo|trying to access a gated repo|is a gated repository"
        r"|Access to model .{1,200} is restricted|Invalid user token"
        r"|Invalid credentials in Authorization header|User Access Token .{0,80}is expired"
        r"|LocalTokenNotFoundError",
    ),
    (
        Fault.MODEL_PATH_MISSING,
        r"(?:^|[:,] )['\"]?[./~]\S{0,300} is not a local folder"
        r"|Repo id must .{0,120}: '[./~]|Incorrect path_or_model_id: '[./~]"
        r"|local directory specified: '[./~]"
        r"|(?:^|[:,] )/\S{1,300} does not appear to have a file named config\.json",
    ),
    (
        Fault.MODEL_NOT_FOUND,
        r"RepositoryNotFoundError|Repository Not Found for url|is not a valid model identifier"
        r"|HFValidationError|Incorrect path_or_model_id: '",
    ),
    (
        Fault.TOKEN_REFUSED,
        r"\b401 Client Error|\b403 (?:Client Error|Forbidden)|Client error '40[13] |Unauthorized for url: https://hugg",
    ),
    (
        Fault.CONFIG_MISSING,
        r"does not appear to have a file named config\.json|Could not detect config format"
        r"|No supported config format found in",
    ),
    (Fault.HUB_CERTIFICATE_UNKNOWN, r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"),
    (
        Fault.HUB_UNREACHABLE,
        r"We couldn't connect to '?https?://|LocalEntryNotFoundError|CAS service error"
        r"|trying to locate the files? on the Hub"
        r"|HTTPS?ConnectionPool\(host='[\w.-]{0,80}(?:huggingface\.co|hf\.co)'",
    ),
    (Fault.CONTEXT_TOO_LONG, r"User-specified max_model_len \(\d+\) is greater than the derived"),
    (
        Fault.BATCH_TOO_SMALL,
        r"max_num_batched_tokens \(\d+\) (?:is smaller than max_model_len"
        r"|must be greater than or equal to max_num_seqs)",
    ),
    (
        Fault.QUANTIZATION_UNKNOWN,
        r"(?:Unknown|Invalid) quantization method: |Found unknown quantization=|Unknown ModelOpt quant algo",
    ),
    (
        Fault.QUANTIZATION_MISMATCH,
        r"does not match the quantization method specified in the|Cannot find the config file for \w+",
    ),
    (
        Fault.QUANTIZATION_UNSUPPORTED,
        r"The quantization method .{1,80} is not supported for the current GPU"
        r"|torch\.\w+ is not supported for quantization method",
    ),
    (
        Fault.HEADS_NOT_DIVISIBLE,
        r"Total number of attention heads \(\d+\) must be divisible by tensor parallel size",
    ),
    # A model that is in the list all the same could not be imported: that is another fault.
    (
        Fault.ARCHITECTURE_UNKNOWN,
        r"Model architectures \['(?P<name>\w{1,80})'[^\]]{0,300}\] are not supported for now(?!.*'(?P=name)')"
        r"|Transformers does not recognize this architecture|was supported in vLLM until v"
        r"|is not supported in-tree anymore|has no vLLM implementation and the Transformers implementation",
    ),
    (
        Fault.REMOTE_CODE_NOT_TRUSTED,
        r"requires you to execute (?:the \w{1,20} file|custom code)"
        r"|contains custom code which must be executed|consider setting `trust_remote_code=True`",
    ),
    (
        Fault.WEIGHTS_MISSING,
        r"Cannot find any (?:safetensors )?model weights with|No model weights found in: ",
    ),
    (
        Fault.WEIGHTS_DAMAGED,
        r"SafetensorError: (?:Error while deserializing header|.{0,60}(?:IncompleteBuffer|HeaderToo))"
        r"|PytorchStreamReader failed reading zip archive",
    ),
    # "helper … not found" in 0.6.3 and 0.9.2, "parser … not found" in 0.14.1 and 0.32.0.
    (
        Fault.REASONING_PARSER_UNKNOWN,
        r"invalid reasoning parser: |Reasoning parser '.{1,80}' not found"
        r"|reasoning helper: '.{1,80}' not found|reasoning_parser=.{1,80} has not been registered",
    ),
    (
        Fault.TOOL_PARSER_UNKNOWN,
        r"invalid tool call parser: |Tool parser '.{1,80}' not found|tool helper: '.{1,80}' not found"
        r"|tool_parser:'.{1,80}' which has not been registered",
    ),
    (Fault.TOOL_PARSER_MISSING, r"--enable-auto-tool-choice requires --tool-call-parser"),
    (
        Fault.CHAT_TEMPLATE_MISSING,
        r"default chat template is no longer allowed|supplied chat template path doesn't exist"
        r"|supplied chat template .{0,300}(?:but doesn't exist|but it failed to be opened)",
    ),
    (Fault.DTYPE_UNSUPPORTED, r"Bfloat16 is only supported on GPUs with compute capability of at least 8\.0"),
    (
        Fault.FABRIC_MANAGER_MISSING,
        r"\bError 802: |CUDA error 802\b|CUDA error: system not yet initialized",
    ),
    (
        Fault.DRIVER_MISMATCH,
        r"Driver/library version mismatch|NVMLError_LibRmVersionMismatch|NVML/RM version mismatch",
    ),
    (Fault.GPU_LOST, r"Failed to initialize NVML: Unknown Error|NVMLError_Unknown\b"),
    (
        Fault.DRIVER_TOO_OLD,
        r"\bError 80[34]: |CUDA error 80[34]\b|driver on your system is too old"
        r"|CUDA driver version is insufficient|forward compatibility was attempted",
    ),
    (
        Fault.GPU_MISSING,
        r"No CUDA GPUs are available|Failed to infer device type|Found no NVIDIA driver on your system"
        r"|no CUDA-capable device is detected",
    ),
    (Fault.KERNELS_MISSING, r"no kernel image is available for execution on the device"),
    (
        Fault.TOO_FEW_GPUS,
        r"required (?:GPU|device)s exceeds the total number of available"
        r"|Cannot provide a placement group|is not included in a placement group"
        r"|Ray does not allocate any GPUs on the driver node|Current node has no GPU available"
        r"|Not enough resources to allocate .{0,40}placement groups"
        r"|world size .{0,40}larger than the \d+ GPUs|local rank \d+ is out of bounds"
        r"|CUDA error: invalid device ordinal",
    ),
    (Fault.PORT_TAKEN, r"\[Errno 98\]"),
    (
        Fault.OUT_OF_HOST_MEMORY,
        r"^MemoryError:?$|MemoryError: Unable to allocate|\[Errno 12\] Cannot allocate memory"
        r"|DefaultCPUAllocator: (?:can't allocate|not enough)|killed due to the node running low on memory",
    ),
    (Fault.NCCL_FAILED, r"NCCL error\b|\bnccl(?:System|UnhandledCuda|Internal)Error\b"),
)
"""What an exception's text says. The first entry that fits one of the last exceptions wins: what is exact
comes before what is general."""

TOOLS = _signs(
    (Fault.AMBIGUOUS_FLAG, r": error: ambiguous option: "),
    (Fault.QUANTIZATION_UNKNOWN, r": error: argument --quantization\S{0,20}: invalid choice: "),
    (Fault.REASONING_PARSER_UNKNOWN, r": error: argument --reasoning-parser: invalid choice: "),
    (Fault.TOOL_PARSER_UNKNOWN, r": error: argument --tool-call-parser: invalid choice: "),
    (
        Fault.BAD_JSON_ARGUMENT,
        r": error: argument \S{1,100}: (?:Value .{0,1000} cannot be converted to <function \S{0,60}loads"
        r"|invalid (?:json\.)?loads value|\d+ validation errors? for )",
    ),
    (
        Fault.BAD_FLAG,
        r": error: (?:unrecognized arguments: |argument \S{1,100}: |the following arguments are required: )",
    ),
    (Fault.CONTAINER_NAME_TAKEN, r"The container name .{1,200} is already in use by container"),
    (Fault.REGISTRY_RATE_LIMITED, r"toomanyrequests: |reached your (?:unauthenticated )?pull rate limit"),
    (Fault.REGISTRY_PLAIN_HTTP, r"server gave HTTP response to HTTPS client"),
    (
        Fault.REGISTRY_CERTIFICATE_UNKNOWN,
        r"x509: (?:certificate|cannot validate certificate|negative serial)",
    ),
    # Docker Hub says this of a repository that does not exist, too.
    (
        Fault.IMAGE_REFUSED,
        r"pull access denied for |manifest unknown|manifest for .{1,300} not found"
        r"|repository \S{1,300} not found|no matching manifest for "
        r"|failed to resolve reference .{1,300}: not found",
    ),
    (
        Fault.REGISTRY_LOGIN_DENIED,
        r"unauthorized: (?:authentication required|incorrect username|unauthenticated|access )"
        r"|no basic auth credentials|error from registry: denied|/v2/\S{0,300} unauthorized$"
        r"|\bdenied: (?:denied|requested access|permission[_ ]|installation not|User: |access forbidden"
        r"|Your authorization)"
        r"|(?:Head|Get) \"https?://\S{1,300}\": .{0,100}401 Unauthorized",
    ),
    (
        Fault.REGISTRY_UNREACHABLE,
        r"(?:lookup|dial tcp)\b.{1,300}(?:no such host|connection refused|i/o timeout|no route to host"
        r"|network is unreachable|server misbehaving)|TLS handshake timeout"
        r"|Get \"https?://\S{1,300}\": (?:context deadline exceeded|net/http|EOF|proxyconnect)",
    ),
    (Fault.DISK_FULL, r"^(?!.{0,1000}/dev/shm).{0,1500}no space left on device"),
    (Fault.PORT_TAKEN, r"port is already allocated|address already in use"),
    (Fault.DRIVER_NOT_LOADED, r"nvml error: driver not loaded|couldn't communicate with the NVIDIA driver"),
    (Fault.DRIVER_MISMATCH, r"driver/library version mismatch"),
    (Fault.GPU_LOST, r"Failed to initialize NVML: Unknown Error"),
    (
        Fault.DRIVER_TOO_OLD,
        r"nvidia-container-cli: requirement error|unsatisfied condition: cuda"
        r"|forward compatibility was attempted",
    ),
    (
        Fault.GPU_MISSING,
        r"nvidia-container-cli: (?:initialization|device|detection) error"
        r"|unknown or invalid runtime name: nvidia|could not select device driver",
    ),
    (
        Fault.COMPOSE_INVALID,
        r"docker-compose\.yml: |yaml: (?:line \d|unmarshal|control char|did not find|invalid)"
        r"|additional propert(?:y|ies) .{0,80}not allowed"
        r"|invalid compose project|services\.\S{1,80} must be|has neither an image nor a build"
        r"|undefined (?:volume|network)|env file .{1,200} not found",
    ),
    (Fault.DOCKER_DEAD, r"Cannot connect to the Docker daemon"),
    (
        Fault.OUT_OF_HOST_MEMORY,
        r"exited with code 137\b|\"OOMKilled\": ?true|\bout of memory: kill(?:ed)? process"
        r"|\boom-kill:|^Killed$"
        r"|Failed core proc\(s\): \{.{0,300}: -9[,}]",
    ),
)
"""What a line outside of exceptions says: argument parsers, Docker, registries, NVIDIA's tools, kernel."""

WRAPPERS = re.compile(
    r"Engine core initialization failed|Engine process failed to start|WorkerProc initialization failed"
    r"|EngineDeadError|EngineCore encountered|Engine loop is not running|Worker failed with error"
    r"|^ray\.exceptions\.(?:RayTaskError|RayActorError|ActorDiedError|ActorUnavailable|WorkerCrashed)"
    r"|^(?:\w+\.)*(?:SystemExit|KeyboardInterrupt|CancelledError|BrokenPipeError|EOFError|DistNetworkError"
    r"|ConnectionResetError|ConnectionRefusedError|CalledProcessError|DistStoreError|ChildProcessError)\b"
    r"|Connection closed by peer|connection reset by peer|Broken pipe|ncclRemoteError"
    r"|Exception: Call to \w+ method failed|RuntimeError: cancelled"
    r"|failed to be inspected\. Please check the logs",
    re.IGNORECASE,
)
"""Exceptions that say no more than that something else failed, here or in another process."""

CUDA_WARNING = "UserWarning: CUDA initialization: "
"""What torch writes before vLLM says that there is no GPU."""

FIT_LENGTH = re.compile(
    r"estimated maximum model length is (\d{1,9})|can be stored in KV cache \((\d{1,9})\)", re.IGNORECASE
)
"""The tokens that the KV cache has room for, where the message names them."""

MODEL_LENGTH = re.compile(r"the derived max_model_len \(\w+=(\d{1,9})", re.IGNORECASE)
"""The tokens that the model was made for."""

PHASES = (
    (Fault.GPU_MEMORY_SAMPLER, re.compile(r"_dummy_sampler_run|_dummy_pooler_run")),
    (Fault.GPU_MEMORY_GRAPHS, re.compile(r"capture_model|_capture_cudagraphs|capture_graphs?")),
    (
        Fault.GPU_MEMORY_PROFILING,
        re.compile(r"profile_run|determine_available_memory|determine_num_available_blocks"),
    ),
    (Fault.GPU_MEMORY_LOADING, re.compile(r"load_model|load_weights")),
)
"""The functions that stand in the traceback of an out-of-memory error, by what vLLM was doing."""
