"""What vLLM's own loader fetches and loads of a repository: runs in vLLM's environment, with HF_ENDPOINT set.

Reads a list of `{"repo": …, "load_format": …, "revision": …}` and writes for each `{"loaded": […]}`, or
`{"error": …}`; what was fetched, the hub knows.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# vLLM logs to standard output: the answer has a descriptor of its own.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from vllm.config.load import LoadConfig  # noqa: E402  its imports already write
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader  # noqa: E402


def answer(asked: dict[str, Any]) -> dict[str, object]:
    loader = DefaultModelLoader(LoadConfig(load_format=asked["load_format"]))
    try:
        folder, files, *_ = loader._prepare_weights(asked["repo"], None, asked["revision"], True, None)
    except RuntimeError as error:
        return {"error": str(error)}
    return {"loaded": sorted(str(Path(file).relative_to(folder)) for file in files)}


print(json.dumps([answer(each) for each in json.load(sys.stdin)]), file=answers)
