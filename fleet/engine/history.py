"""Why a release does not have a flag that others have."""

from __future__ import annotations

from fleet.engine.releases import life, release
from fleet.fit.versions import VllmVersion

INSTEAD = {
    "--swap-space": "nothing: V1 recomputes instead of swapping",
    "--enable-reasoning": "--reasoning-parser alone",
    "--disable-log-requests": "nothing: it is the default",
    "--guided-decoding-backend": "--structured-outputs-config",
    "--max-seq-len-to-capture": "nothing: V1 goes by batch size",
    "--cuda-graph-sizes": "--cudagraph-capture-sizes",
    "--num-scheduler-steps": "--async-scheduling",
    "--device": "nothing: the platform is detected",
    "--use-v2-block-manager": "nothing: it is the only one",
    "--worker-use-ray": "--distributed-executor-backend ray",
    "--preemption-mode": "nothing: V1 always recomputes",
    "--scheduler-delay-factor": "nothing: V1 has no such delay",
    "--num-lookahead-slots": "--speculative-config",
    "--speculative-model": "--speculative-config",
    "--num-speculative-tokens": "--speculative-config",
    "--enable-prompt-adapter": "nothing",
    "--tokenizer-pool-size": "nothing",
    "--rope-scaling": "--hf-overrides",
    "--rope-theta": "--hf-overrides",
    "--task": "--runner",
    "--disable-mm-preprocessor-cache": "--mm-processor-cache-gb 0",
    "--max-num-partial-prefills": "nothing: it never left V0",
    "--calculate-kv-scales": "scales in the checkpoint",
    "--logits-processor-pattern": "--logits-processors",
    "--override-attention-dtype": "nothing",
}
"""What does the work of a flag that later releases lack, where that is known. The wheels do not say."""


def unsupported(flag: str, version: VllmVersion) -> tuple[str, str] | None:
    """Why that release refuses a flag that others have, and the fix; None where it takes it."""
    found = release(version)
    lived = life(flag)
    if flag in found.spellings or lived is None:
        return None
    return elsewhere(flag, lived, version)


def elsewhere(
    flag: str, lived: tuple[VllmVersion, VllmVersion | None], version: VllmVersion
) -> tuple[str, str]:
    """What is wrong with a flag that other releases have, from their life of it, and the fix."""
    since, until = lived
    if version < since:
        why = f"{flag} exists since vLLM {since}, the image has {version}"
        return why, "leave it out or pin a newer one"
    why = f"{flag} is gone since vLLM {until}, the image has {version}"
    return why, way_out(flag)


def way_out(flag: str) -> str:
    """What to do without a flag."""
    return f"instead: {INSTEAD[flag]}" if flag in INSTEAD else "leave it out"
