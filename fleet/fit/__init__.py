"""The fit planner: weights, cache and overheads of a model on given cards, as vLLM counts them."""

from fleet.fit.architecture import Architecture, ConfigError
from fleet.fit.gpus import Gpu, gpu, gpu_from_memory
from fleet.fit.planner import FitReport, FitRequest, nearest_fit, plan
from fleet.fit.versions import DEFAULT_VERSION, VllmVersion

__all__ = [
    "DEFAULT_VERSION",
    "Architecture",
    "ConfigError",
    "FitReport",
    "FitRequest",
    "Gpu",
    "VllmVersion",
    "gpu",
    "gpu_from_memory",
    "nearest_fit",
    "plan",
]
