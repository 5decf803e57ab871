"""The one laboratory of machines that the tests of this folder share; see `simcloud.vm.testing`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from simcloud.vm import VmNodes
from simcloud.vm.testing import SSH_PORT, Lab


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    backend = VmNodes(ssh_port=SSH_PORT)
    try:
        yield Lab(backend, await backend.prepare(), tmp_path_factory.mktemp("machines"))
    finally:
        await backend.close()
