"""What all tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from simcloud.testing import SimCloud

# A machine under load is slow, not wrong: no example has a time limit.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# A shell without job control starts what runs in the background with SIGINT ignored, and all that is started
# from there inherits it: a process that a test interrupts would go on.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimCloud]:
    """The embedded clouds without machines behind their servers, started once for a module."""
    from simcloud.testing import running_simcloud  # loading it takes longer than many a test

    with running_simcloud(tmp_path_factory.mktemp("cloud"), nodes="none") as running:
        yield running


@pytest.fixture
def cloud(emulator: SimCloud) -> SimCloud:
    """The same, with nothing in them."""
    emulator.reset()
    return emulator
