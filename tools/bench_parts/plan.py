"""How long `fleet plan` takes over the whole catalog, once Python has started and loaded it."""

from __future__ import annotations

import statistics
import time

from typer.testing import CliRunner

from fleet.cli import app

RUNS = 7
COMMAND = (
    "plan",
    "--model",
    "Qwen/Qwen3-32B-AWQ",
    "--max-model-len",
    "32768",
    "--concurrency",
    "4",
    "--json",
)


def bench_plan() -> tuple[float, float, str]:
    """The median of several runs over all five clouds, printing included, with its aim and unit."""
    taken = []
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        result = CliRunner().invoke(app, [*COMMAND, "--accept-stale"])
        taken.append(time.perf_counter() - began)
        assert result.exit_code == 0, result.output
    # The first run loads modules and the catalog's files.
    return round(statistics.median(taken[1:]) * 1000), 300, "ms"
