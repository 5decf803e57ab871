"""What the simulator publishes at `/metrics`: the families of a release, with the values that it has.

`vllm_metrics.txt` is what vLLM 0.32.0 itself published, its values taken out; `make test-engine` compares.
Earlier releases publish those of its families that 0.9.2 had; what came in between is left out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from fleet.fit.versions import VllmVersion

RECORDED = VllmVersion(0, 32)
KV_CACHE_RENAMED = VllmVersion(0, 10)
"""`gpu_cache_usage_perc` before, `kv_cache_usage_perc` since."""

_FAMILIES_OF_0_9 = frozenset(
    {
        *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions"),
        *("prompt_tokens", "generation_tokens", "request_success", "request_prompt_tokens"),
        *("request_generation_tokens", "iteration_tokens_total", "request_max_num_generation_tokens"),
        *("request_params_n", "request_params_max_tokens", "time_to_first_token_seconds"),
        *("e2e_request_latency_seconds", "request_queue_time_seconds", "request_inference_time_seconds"),
        *("request_prefill_time_seconds", "request_decode_time_seconds", "cache_config_info"),
    }
)
_BOUND = re.compile(r',?le="([^"]+)"')


@dataclass
class Measured:
    """What an engine has counted."""

    model: str
    created: float = field(default_factory=time.time)
    running: int = 0
    kv_cache: float = 0.0
    """Used share, from 0 to 1."""
    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "abort": 0})
    observed: dict[str, list[float]] = field(default_factory=dict)
    """What each histogram has seen, by its name without `vllm:`."""

    def observe(self, **values: float) -> None:
        """Add one value to each histogram."""
        for name, value in values.items():
            self.observed.setdefault(name, []).append(value)

    def _values(self) -> dict[str, float]:
        finished = {f"request_success_total {reason}": count for reason, count in self.finished.items()}
        return {
            "num_requests_running": self.running,
            "kv_cache_usage_perc": self.kv_cache,
            "prompt_tokens_total": self.prompt_tokens,
            "prompt_tokens_by_source_total local_compute": self.prompt_tokens,
            "prefix_cache_queries_total": self.prompt_tokens,
            "generation_tokens_total": self.generation_tokens,
            **finished,
        }

    def published(self, version: VllmVersion) -> str:
        """The text of `/metrics`."""
        values = self._values()
        lines = [line if line.startswith("#") else self._sample(line, values) for line in _lines(version)]
        text = "\n".join(lines) + "\n"
        return text if version >= KV_CACHE_RENAMED else text.replace("kv_cache_usage", "gpu_cache_usage")

    def _sample(self, line: str, values: Mapping[str, float]) -> str:
        head, _, value = line.rpartition(" ")
        name = head.partition("{")[0].removeprefix("vllm:")
        label = re.search(r'(?:finished_reason|source)="([^"]+)"', head)
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        if (key := f"{name} {label[1]}" if label else name) in values:
            value = str(float(values[key]))
        elif value == "CREATED":
            value = str(self.created)
        elif family in self.observed:
            value = str(_of_histogram(name, head, self.observed[family]))
        return f"{head.replace('MODEL', self.model)} {value}"


def _of_histogram(name: str, head: str, seen: list[float]) -> float:
    if name.endswith("_sum"):
        return float(sum(seen))
    bound = _BOUND.search(head)
    return float(sum(each <= float(bound[1]) for each in seen) if bound else len(seen))


@cache
def _lines(version: VllmVersion) -> tuple[str, ...]:
    """The lines that a release publishes."""
    lines = Path(__file__).with_suffix(".txt").read_text().splitlines()
    return tuple(lines if version >= RECORDED else _of_0_9(lines))


def _of_0_9(lines: list[str]) -> Iterator[str]:
    for line in lines:
        name = line.split()[2] if line.startswith("#") else re.split(r"[{ ]", line)[0]
        family = re.sub(r"_(total|created|bucket|sum|count)$", "", name.removeprefix("vllm:"))
        known = {family, f"{family}_total"} & _FAMILIES_OF_0_9
        if not name.startswith("vllm:") or known or name.removeprefix("vllm:") in _FAMILIES_OF_0_9:
            yield line
