"""Brings vLLM up on the head of a cluster: a spec on standard input, its secrets in the environment."""

from __future__ import annotations

import sys

from fleet.masking import guarded
from fleet.progress import Progress
from fleet.ray.process import run_command
from fleet.ray.release import serve
from fleet.ray.spec import SECRETS_VARIABLE, ServeSpec


async def _serve(spec: ServeSpec, secrets: str) -> dict[str, str]:
    # What depends on it runs again exactly when vLLM was started anew.
    return {"node": spec.node, "release": await serve(spec, secrets, Progress(spec.node))}


if __name__ == "__main__":
    sys.exit(guarded(lambda: run_command(ServeSpec, SECRETS_VARIABLE, _serve)))
