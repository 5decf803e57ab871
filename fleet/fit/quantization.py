"""How many bits a weight takes in each quantization, and which cards can run it.

Group-wise formats carry a 16-bit scale and a zero point of the weight's own width per group. Compute
capability floors are those of vLLM 0.9.2's `get_min_capability` in
`vllm/model_executor/layers/quantization/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """Bits a stored weight takes, scales and zero points included, and the least compute capability."""

    method: str
    dense_bits: float
    expert_bits: float
    min_compute_capability: float = 7.0


# method: bits of a weight, group size (0 = one scale per channel or tensor), capability floor
_METHODS: dict[str, tuple[float, int, float]] = {
    "awq": (4, 128, 7.5),
    "awq_marlin": (4, 128, 8.0),
    "gptq": (4, 128, 6.0),
    "gptq_marlin": (4, 128, 8.0),
    "auto_round": (4, 128, 6.0),
    "auto-round": (4, 128, 6.0),
    "compressed-tensors": (8, 0, 7.5),
    "fp8": (8, 0, 8.0),
    "fbgemm_fp8": (8, 0, 8.0),
    "ptpc_fp8": (8, 0, 9.4),
    "int8": (8, 0, 7.5),
    "experts_int8": (8, 0, 8.0),
    "modelopt": (8, 0, 8.9),
    "modelopt_fp4": (4, 16, 8.0),
    "nvfp4": (4, 16, 8.0),
    "bitsandbytes": (4, 64, 7.0),
    "gguf": (4.85, 0, 6.0),  # Q4_K_M, the usual file; others differ: give the weights' size
    "mxfp4": (4, 32, 8.0),
}
_METHODS |= {
    other: _METHODS[name]
    for name, others in {
        "awq": ("auto_awq",),
        "gptq": ("auto_gptq", "inc", "moe_wna16", "gptq_bitblas", "bitblas"),
        "gptq_marlin": ("gptq_marlin_24", "marlin", "hqq", "qqq"),
        "fp8": ("modelopt_fp8", "fp8_per_tensor", "fp8_per_block", "fp8_per_channel", "deepseek_v4_fp8"),
        "int8": ("int8_per_channel_weight_only", "rtn", "quark", "torchao", "deepspeedfp"),
        "mxfp4": ("gpt_oss_mxfp4",),
    }.items()
    for other in others
}
# Methods that read one another's checkpoints; any other pair is refused by the engine.
_READS_THE_SAME = (
    {"awq", "awq_marlin", "auto_awq", "moe_wna16"},
    {"gptq", "gptq_marlin", "auto_gptq", "gptq_bitblas", "gptq_marlin_24", "marlin", "bitblas", "moe_wna16"},
    {"fp8", "modelopt_fp8", "deepseek_v4_fp8"},
    {"modelopt", "modelopt_fp4", "modelopt_fp8", "nvfp4"},
    {"auto-round", "auto_round", "inc", "awq", "awq_marlin"},
    {"auto-round", "auto_round", "inc", "gptq", "gptq_marlin"},
    {"mxfp4", "gpt_oss_mxfp4"},
    {"compressed-tensors"},
    {"bitsandbytes"},
)
_SCALE_BITS = {"modelopt_fp4": 8, "nvfp4": 8, "mxfp4": 8, "gpt_oss_mxfp4": 8, "bitsandbytes": 16}
_NO_ZERO_POINT = set(_SCALE_BITS)
_EXPERTS_ONLY = {"mxfp4", "gpt_oss_mxfp4", "experts_int8"}


def known_quantizations() -> tuple[str, ...]:
    """The `--quantization` values the planner knows, `none` for plain weights."""
    return ("none", *_METHODS)


def contradicted(quantization: str | None, checkpoint: Mapping[str, Any]) -> str | None:
    """The checkpoint's own method where vLLM refuses to load it by the one asked for, else None.

    `_verify_quantization` in `vllm/config` raises "does not match the quantization method specified".
    """
    stored = str(checkpoint.get("quant_method") or "").lower()
    if quantization is None or not stored or stored == quantization.lower():
        return None
    pair = {stored, quantization.lower()}
    known = any(stored in methods for methods in _READS_THE_SAME)
    return stored if known and not any(pair <= methods for methods in _READS_THE_SAME) else None


def weight_format(quantization: str | None, checkpoint: Mapping[str, Any], dtype_bytes: int) -> WeightFormat:
    """The format of the weights: as asked for, else as the checkpoint's `quantization_config` says.

    Raises ValueError for a quantization nobody knows.
    """
    method = (quantization or str(checkpoint.get("quant_method") or "none")).lower()
    if method == "modelopt" and str(checkpoint.get("quant_algo")).upper() == "NVFP4":
        method = "modelopt_fp4"
    plain = float(8 * dtype_bytes)
    if method == "none":
        return WeightFormat("none", plain, plain)
    if method not in _METHODS:
        raise ValueError(
            f"quantization: {method!r} is not known; give one of {', '.join(known_quantizations())}"
        )
    bits, group, capability = _METHODS[method]
    bits, group = _as_checkpoint_says(checkpoint, bits, group)
    if group:
        zero = 0.0 if method in _NO_ZERO_POINT else bits
        bits += (_SCALE_BITS.get(method, 16) + zero) / group
    return WeightFormat(method, plain if method in _EXPERTS_ONLY else bits, bits, capability)


def _as_checkpoint_says(checkpoint: Mapping[str, Any], bits: float, group: int) -> tuple[float, int]:
    for schemes in (checkpoint.get("config_groups") or {}).values():  # compressed-tensors
        weights = schemes.get("weights") or {}
        return float(weights.get("num_bits") or bits), int(weights.get("group_size") or 0)
    if checkpoint.get("load_in_8bit"):
        return 8.0, 0
    for name in ("bits", "w_bit"):
        if checkpoint.get(name):
            bits = float(checkpoint[name])
    for name in ("group_size", "q_group_size"):
        if int(checkpoint.get(name) or 0) > 0:
            group = int(checkpoint[name])
    return bits, group
