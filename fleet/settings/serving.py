"""What a node serves, and what is to be done about a model that does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fleet import vllm_arguments
from fleet.engine import releases, tasks
from fleet.engine.tasks import Task
from fleet.engine.words import Finding, Parsed
from fleet.fit.versions import VllmVersion
from fleet.layout import GATEWAY_CHECK_PORT
from fleet.models.sources import gguf_releases, sources
from fleet.served_files import MOUNT
from fleet.settings.images import PinnedImage
from fleet.settings.section import Section
from fleet.settings.values import (
    ContainerEnvironment,
    ModelReference,
    ServedFiles,
    VisibleDevices,
    Words,
    wrong,
)
from fleet.weights import Source

PORTS_IN_USE = {22: "SSH", 3000: "Open WebUI", 8080: "the node agent", GATEWAY_CHECK_PORT: "the gateway"}
"""Of a node, beside vLLM's."""


ELSEWHERE = {"HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "VLLM_USE_MODELSCOPE"}
"""Variables that make vLLM look for the model in another place than the one it is fetched to."""

CHOSEN = {
    "quantization": "--quantization",
    "dtype": "--dtype",
    "kv_cache_dtype": "--kv-cache-dtype",
    "distributed_executor_backend": "--distributed-executor-backend",
}
"""Settings of which each release takes its own values, with their flags."""


class ModelArchitecture(Section):
    """What a model is like, for one that neither the bundled table nor the Hugging Face hub knows."""

    config: Path
    """The model's own config.json on this machine."""
    weights_gib: float | None = Field(default=None, gt=0)
    """Size of its weights in GiB; counted from the config if left out."""


class Serving(Section):
    """What vLLM serves and with which flags. A change is rolled out in place; it never replaces a machine."""

    image: PinnedImage = "vllm/vllm-openai:v0.33.0"
    """Container image, pinned by tag or digest. The default is the newest that driver 580 carries."""
    model: ModelReference
    """Hugging Face model (owner/name; of GGUF owner/name:Q4_K_M or owner/name/file.gguf) or an absolute path
    on the node."""
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
    files: ServedFiles = Field(default_factory=dict)
    """Files and folders of this machine that vLLM sees as `/files/NAME`, by that name: chat templates,
    adapters, weights. They are delivered over SSH, with checksums, before what is served is switched."""
    args: dict[str, Any] = Field(default_factory=dict)
    """More arguments of `vllm serve`, as in vLLM's own configuration file: `max_num_batched_tokens: 8192`.
    Switches are true or false; what takes JSON is given as keys and lists."""
    extra_args: Words = ()
    """More arguments of `vllm serve`, as a list of words, after those of `args`."""
    environment: ContainerEnvironment = Field(default_factory=dict)
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
    task: Task = "generate"
    """What clients ask of the model. vLLM is started for it, a node is ready once the model has answered a
    request of it, and the gateway lets such requests through and no others: text (generate), chats (chat),
    embeddings (embed), documents by relevance (rerank), scores of pairs (score), classes (classify), speech
    as text (transcription), hidden states (pooling)."""
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
    def model_folder(self) -> Path | None:
        """Where the model lies on this machine, of one that is delivered by `files`."""
        top, _, inside = self.model.removeprefix(f"{MOUNT}/").partition("/")
        delivered = self.model.startswith(f"{MOUNT}/") and top in self.files
        return self.files[top].expanduser() / inside if delivered else None

    @property
    def more_served(self) -> tuple[str, ...]:
        """The names beside it that have to answer: those of LoRA adapters."""
        return vllm_arguments.adapters(self.added)

    @property
    def vllm_version(self) -> VllmVersion | None:
        """The vLLM release of the image by its tag; None where the tag names none."""
        return vllm_arguments.version_of(self.image)

    @property
    def added_words(self) -> tuple[str, ...]:
        """The arguments of `args` and `extra_args`, one word each."""
        return (*vllm_arguments.render(self.args, self.vllm_version)[0], *self.extra_args)

    @property
    def added(self) -> Parsed:
        """The same as vLLM reads them."""
        return vllm_arguments.parse(self.added_words, self.vllm_version)

    def argument_warnings(self) -> Iterator[tuple[str, Finding]]:
        """What is doubtful about `args` and `extra_args`, each with the setting that has it."""
        version = self.vllm_version
        rendered, _ = vllm_arguments.render(self.args, version)
        for setting, words in (("serving.args", rendered), ("serving.extra_args", self.extra_args)):
            found = vllm_arguments.problems(words, version)
            yield from ((setting, each) for each in found if each.is_warning)
        for each in vllm_arguments.unregistered(self.added, version):
            if each.is_warning:
                yield f"serving.{self._setting_with(each.flag)}", each

    def _setting_with(self, flag: str) -> str:
        """The setting that gives an argument."""
        rendered, _ = vllm_arguments.render(self.args, self.vllm_version)
        given = vllm_arguments.parse(rendered, self.vllm_version).arguments
        return "args" if any(each.flag == flag for each in given) else "extra_args"

    @property
    def weights(self) -> tuple[Source, ...]:
        """What vLLM fetches from the hub, so that it can be fetched before it starts; empty where it takes
        its weights from elsewhere, or in a way that is not known."""
        if self.environment.keys() & ELSEWHERE:
            return ()
        version = self.vllm_version or releases.newest()
        return sources(self.model, self.quantization, self.added.values, version)

    @field_validator("port")
    @classmethod
    def _port_is_free(cls, port: int) -> int:
        if port in PORTS_IN_USE:
            raise wrong(
                "is {owner}'s on the node; choose another, for example 8000", owner=PORTS_IN_USE[port]
            )
        return port

    @field_validator("args")
    @classmethod
    def _args_are_right(cls, args: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        version = vllm_arguments.version_of(info.data.get("image", ""))
        words, findings = vllm_arguments.render(args, version)
        _refuse([*findings, *vllm_arguments.problems(words, version)])
        return args

    @field_validator("extra_args")
    @classmethod
    def _extra_args_are_right(cls, words: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        version = vllm_arguments.version_of(info.data.get("image", ""))
        _refuse(vllm_arguments.problems(words, version))
        rendered, _ = vllm_arguments.render(info.data.get("args", {}), version)
        both = {each.flag for each in vllm_arguments.parse(rendered, version).arguments}
        for each in vllm_arguments.parse(words, version).arguments:
            if each.flag in both:
                raise wrong(
                    "carries {written}, which is in serving.args too; leave one of the two out",
                    written=each.written,
                )
        return words

    @model_validator(mode="after")
    def _the_image_takes_its_values(self) -> Serving:
        release = releases.release(self.vllm_version)
        for key, flag in CHOSEN.items():
            value, option = getattr(self, key), release.options.get(flag)
            if value is None or option is None or not release.exact or not option.choices:
                continue
            if value not in option.choices:
                known = type(self).model_fields[key].annotation
                raise wrong(
                    "{key}: {value} is not one of those that vLLM {version} takes; use {choices}",
                    key=key,
                    value=value,
                    version=str(release.version),
                    choices=", ".join(str(each) for each in option.choices if repr(each) in str(known)),
                )
        return self

    @model_validator(mode="after")
    def _the_image_has_its_task(self) -> Serving:
        version, since = self.vllm_version, tasks.SINCE.get(self.task)
        if version and since and version < since:
            raise wrong(
                "task: vLLM {version}, the image's release, does not serve {task}; use an image of {since} "
                "or later",
                version=str(version),
                task=self.task,
                since=str(since),
            )
        return self

    @model_validator(mode="after")
    def _open_webui_can_chat(self) -> Serving:
        if self.webui and self.task not in tasks.CONVERSING:
            raise wrong(
                "webui: Open WebUI chats with the model, and task is {task}; leave webui out, or serve a "
                "model that chats, with task: chat",
                task=self.task,
            )
        return self

    @model_validator(mode="after")
    def _the_image_reads_gguf(self) -> Serving:
        version, reading = self.vllm_version, gguf_releases(self.model)
        if version and reading and not reading[0] <= version < reading[1]:
            raise wrong(
                "model: {model} names a GGUF file on the hub, which vLLM downloads from {since} on and "
                "before {until}; use such an image, or the model's safetensors",
                model=self.model,
                since=str(reading[0]),
                until=str(reading[1]),
            )
        return self

    @model_validator(mode="after")
    def _the_image_has_its_parsers(self) -> Serving:
        for found in vllm_arguments.unregistered(self.added, self.vllm_version):
            if not found.is_warning:
                raise wrong(
                    "{key}: {problem}; {fix}",
                    key=self._setting_with(found.flag),
                    problem=found.problem,
                    fix=found.fix,
                )
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


def _refuse(findings: Iterable[Finding]) -> None:
    """Raise the first that is more than a warning."""
    for finding in findings:
        if not finding.is_warning:
            raise wrong("{problem}; {fix}", problem=finding.problem, fix=finding.fix)


class Fit(Section):
    """What to do about a model that does not fit its GPUs."""

    override: str | None = Field(default=None, min_length=1)
    """Why a node is deployed although its model does not fit. Every preview repeats it."""
