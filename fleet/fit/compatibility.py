"""Driver, CUDA of the image, and card: which go together.

Least driver of each CUDA release: the table of toolkits and drivers in NVIDIA's release notes
(https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/). Forward compatibility of data-centre cards:
https://docs.nvidia.com/deploy/cuda-compatibility/.
"""

from __future__ import annotations

from dataclasses import dataclass

from fleet.fit.gpus import Gpu
from fleet.fit.versions import VllmVersion

_LEAST_DRIVER = {
    (12, 1): 530,
    (12, 2): 535,
    (12, 3): 545,
    (12, 4): 550,
    (12, 5): 555,
    (12, 6): 560,
    (12, 8): 570,
    (12, 9): 575,
    (13, 0): 580,
    (13, 1): 590,
}

# CUDA of the vllm/vllm-openai images, by the PyTorch build each release pins (torch/version.py of 2.11.0 for
# 0.20 and of 2.14.0 for 0.33 says 13.0).
_IMAGE_CUDA: tuple[tuple[VllmVersion, tuple[int, int]], ...] = (
    (VllmVersion(0, 20), (13, 0)),
    (VllmVersion(0, 11, 1), (12, 9)),
    (VllmVersion(0, 9), (12, 8)),
    (VllmVersion(0, 5, 1), (12, 4)),
    (VllmVersion(0, 0), (12, 1)),
)

# CUDA releases that first compile for a card, and the one that stopped: 13 dropped everything before Turing.
_LEAST_CUDA = {
    7.0: (9, 0),
    7.5: (10, 0),
    8.0: (11, 0),
    8.6: (11, 1),
    8.9: (11, 8),
    9.0: (11, 8),
    10.0: (12, 8),
    10.3: (12, 9),
    12.0: (12, 8),
}
_FIRST_WITHOUT_VOLTA = (13, 0)

# Long-lived data-centre branches the images' cuda-compat package can stand on.
_FORWARD_COMPATIBLE = frozenset({535, 550, 570, 580})


@dataclass(frozen=True, slots=True)
class Compatibility:
    """Whether the image's containers start on that driver and card, and why, with the fix if not."""

    ok: bool
    reason: str


def image_cuda(version: VllmVersion) -> tuple[int, int]:
    """CUDA release of the `vllm/vllm-openai` image of that vLLM release."""
    return next(cuda for since, cuda in _IMAGE_CUDA if version >= since)


def least_driver(cuda: tuple[int, int]) -> int:
    """Oldest driver branch made for that CUDA release, or for the next one known."""
    return next((driver for release, driver in sorted(_LEAST_DRIVER.items()) if release >= cuda), 590)


def compatible(version: VllmVersion, gpu: Gpu, driver_branch: int) -> Compatibility:
    """Whether the image of that vLLM release runs with that driver branch on that card.

    An image newer than the driver is the classic failure (CUDA errors 803 and 804).
    """
    cuda = image_cuda(version)
    name = f"the image of vLLM {version} has CUDA {cuda[0]}.{cuda[1]}"
    if gpu.compute_capability < 7.0 or (gpu.compute_capability < 7.5 and cuda >= _FIRST_WITHOUT_VOLTA):
        return Compatibility(
            False,
            f"{name}, which no longer serves a {gpu.name} (compute capability {gpu.compute_capability}); "
            "pin an image before v0.20, or take a newer card",
        )
    if cuda < _LEAST_CUDA[gpu.compute_capability]:
        return Compatibility(
            False,
            f"{name}, too old for a {gpu.name} (compute capability {gpu.compute_capability}); "
            "pin v0.9.0 or later",
        )
    needed = least_driver(cuda)
    if driver_branch >= needed:
        return Compatibility(True, f"{name}, driver {driver_branch} serves it")
    # Consumer cards are refused by cuda-compat; data-centre cards run through it.
    if driver_branch in _FORWARD_COMPATIBLE and not gpu.name.startswith(("RTX", "Quadro")):
        return Compatibility(
            True,
            f"{name}, driver {driver_branch} serves it through the image's cuda-compat; {needed} needs none",
        )
    return Compatibility(
        False,
        f"{name}, which needs driver {needed} or newer, the node gets {driver_branch}; "
        f"choose driver branch {needed} or pin an older image",
    )
