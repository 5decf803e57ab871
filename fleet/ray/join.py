"""Brings one machine into its cluster: a spec on standard input, the cluster's token in the environment."""

from __future__ import annotations

import sys

from fleet.masking import guarded
from fleet.progress import Progress
from fleet.ray.process import join, run_command
from fleet.ray.spec import TOKEN_VARIABLE, JoinSpec


async def _join(spec: JoinSpec, token: str) -> dict[str, str]:
    await join(spec, token, Progress(spec.node))
    return {"node": spec.node, "address": spec.address}


if __name__ == "__main__":
    sys.exit(guarded(lambda: run_command(JoinSpec, TOKEN_VARIABLE, _join)))
