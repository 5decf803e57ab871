"""Images, drivers, cards and flags that go together, and those that do not."""

from __future__ import annotations

import pytest

from fleet.fit import VllmVersion, gpu
from fleet.fit.compatibility import compatible
from fleet.fit.flags import supported, unsupported_flag

V092 = VllmVersion(0, 9, 2)


@pytest.mark.parametrize(
    ("version", "card", "driver", "ok", "reason"),
    [
        ("0.9.2", "L4", 580, True, "CUDA 12.8, driver 580 serves it"),
        ("0.9.2", "L4", 535, True, "through the image's cuda-compat"),
        ("0.9.2", "L4", 565, False, "choose driver branch 570"),
        ("0.9.2", "RTX-4000-Ada", 535, False, "needs driver 570 or newer, the node gets 535"),
        ("0.8.5", "RTX-PRO-6000-Blackwell", 580, False, "too old for a RTX-PRO-6000-Blackwell"),
        ("0.23.0", "V100-16GB", 580, False, "no longer serves a V100-16GB"),
        ("0.23.0", "T4", 580, True, "CUDA 13.0, driver 580 serves it"),
    ],
)
def test_an_image_goes_with_drivers_and_cards_of_its_time(
    version: str, card: str, driver: int, ok: bool, reason: str
) -> None:
    verdict = compatible(VllmVersion.parse(version), gpu(card), driver)

    assert verdict.ok is ok
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("flag", "version", "known"),
    [
        ("--swap-space", "0.9.2", True),
        ("--swap-space", "0.18.0", False),
        ("--enable-reasoning", "0.9.2", True),
        ("--enable-reasoning", "0.10.0", False),
        ("--structured-outputs-config", "0.9.2", False),
        ("--tensor-parallel-size", "0.33.0", True),
        ("--distributed-executor-backend", "0.9.2", True),
    ],
)
def test_a_flag_is_known_where_the_release_takes_it(flag: str, version: str, known: bool) -> None:
    assert supported(flag, VllmVersion.parse(version)) is known
    assert (unsupported_flag(flag, VllmVersion.parse(version)) is None) is known


def test_a_removed_flag_names_what_does_its_work_now() -> None:
    assert "instead: --reasoning-parser alone" in str(
        unsupported_flag("--enable-reasoning", VllmVersion(0, 10))
    )
    assert "instead: --structured-outputs-config" in str(
        unsupported_flag("--guided-decoding-backend", VllmVersion(0, 12))
    )
