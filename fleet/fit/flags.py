"""What `vllm serve` understands in which release, so that a pinned image is given only flags it knows.

Read off the argument parsers of the releases (`vllm/engine/arg_utils.py`, `vllm/entrypoints/**/cli_args.py`)
at 0.6.6, 0.9.2, 0.10.2, 0.11.0, 0.12.0, 0.15.1, 0.18.1, 0.20.2, 0.22.1, 0.26.0 and 0.33.0. `since` is the
first of these that has the flag (0.0 where the first read has it already), `until` the first that has it no
more.
"""

from __future__ import annotations

from dataclasses import dataclass

from fleet.fit.versions import VllmVersion

_FIRST = VllmVersion(0, 0)


@dataclass(frozen=True, slots=True)
class Flag:
    """The life of a flag. `instead` says what does its work afterwards, or why nothing need to."""

    name: str
    since: VllmVersion = _FIRST
    until: VllmVersion | None = None
    instead: str = ""

    def in_release(self, version: VllmVersion) -> bool:
        return self.since <= version and (self.until is None or version < self.until)


_FLAGS = {
    flag.name: flag
    for flag in (
        Flag("--swap-space", until=VllmVersion(0, 18), instead="nothing: V1 recomputes instead of swapping"),
        Flag("--enable-reasoning", until=VllmVersion(0, 10), instead="--reasoning-parser alone"),
        Flag("--reasoning-parser", since=VllmVersion(0, 7)),
        Flag("--enable-log-requests", since=VllmVersion(0, 10)),
        Flag("--disable-log-requests", until=VllmVersion(0, 18), instead="nothing: it is the default"),
        Flag("--guided-decoding-backend", until=VllmVersion(0, 12), instead="--structured-outputs-config"),
        Flag("--structured-outputs-config", since=VllmVersion(0, 11)),
        Flag("--max-seq-len-to-capture", until=VllmVersion(0, 11), instead="nothing: V1 goes by batch size"),
        Flag("--cuda-graph-sizes", VllmVersion(0, 9, 2), VllmVersion(0, 15), "--cudagraph-capture-sizes"),
        Flag("--cudagraph-capture-sizes", since=VllmVersion(0, 12)),
        Flag("--num-scheduler-steps", until=VllmVersion(0, 10), instead="--async-scheduling"),
        Flag("--async-scheduling", since=VllmVersion(0, 10)),
        Flag("--device", until=VllmVersion(0, 10), instead="nothing: the platform is detected"),
        Flag("--use-v2-block-manager", until=VllmVersion(0, 10), instead="nothing: it is the only one"),
        Flag("--worker-use-ray", until=VllmVersion(0, 9), instead="--distributed-executor-backend ray"),
        Flag("--preemption-mode", until=VllmVersion(0, 11), instead="nothing: V1 always recomputes"),
        Flag("--scheduler-delay-factor", until=VllmVersion(0, 11), instead="nothing: V1 has no such delay"),
        Flag("--num-lookahead-slots", until=VllmVersion(0, 12), instead="--speculative-config"),
        Flag("--speculative-model", until=VllmVersion(0, 9), instead="--speculative-config"),
        Flag("--speculative-config", since=VllmVersion(0, 8)),
        Flag("--enable-prompt-adapter", until=VllmVersion(0, 10), instead="nothing"),
        Flag("--tokenizer-pool-size", until=VllmVersion(0, 10), instead="nothing"),
        Flag("--rope-scaling", until=VllmVersion(0, 12), instead="--hf-overrides"),
        Flag("--task", until=VllmVersion(0, 15), instead="--runner"),
        Flag("--runner", since=VllmVersion(0, 10)),
        Flag("--disable-mm-preprocessor-cache", _FIRST, VllmVersion(0, 15), "--mm-processor-cache-gb 0"),
        Flag("--mm-processor-cache-gb", since=VllmVersion(0, 10)),
        Flag("--kv-cache-memory-bytes", since=VllmVersion(0, 10, 2)),
        Flag("--disable-hybrid-kv-cache-manager", since=VllmVersion(0, 9, 1)),
        Flag("--attention-backend", since=VllmVersion(0, 13)),
        Flag("--language-model-only", since=VllmVersion(0, 16)),
        Flag("--max-num-partial-prefills", until=VllmVersion(0, 33), instead="nothing: it never left V0"),
        Flag("--calculate-kv-scales", until=VllmVersion(0, 33), instead="scales in the checkpoint"),
        Flag("--logits-processor-pattern", until=VllmVersion(0, 18), instead="--logits-processors"),
        Flag("--override-attention-dtype", until=VllmVersion(0, 33), instead="nothing"),
    )
}  # fmt: skip

KNOWN_FLAGS = frozenset(_FLAGS)
"""Flags that some releases lack."""


def supported(flag: str, version: VllmVersion) -> bool:
    """Whether that release takes the flag. Flags without an entry have been there throughout."""
    life = _FLAGS.get(flag)
    return life is None or life.in_release(version)


def unsupported_flag(flag: str, version: VllmVersion) -> str | None:
    """Why that release refuses the flag, with the mend; None if it takes it."""
    if supported(flag, version):
        return None
    life = _FLAGS[flag]
    if version < life.since:
        return (
            f"{flag} exists since vLLM {life.since}, the image has {version}; leave it out or pin a newer one"
        )
    return f"{flag} is gone since vLLM {life.until}, the image has {version}; instead: {life.instead}"
