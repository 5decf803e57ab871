"""Stand-in for the Hugging Face hub's client: fetches a model's one file through the machine's mirror, unless
the cache holds it already, in the real client's layout. Of `allow_patterns` it knows what the real one does
(`filter_repo_objects`): a file that no pattern matches is not fetched."""

import json
import os
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

MIRROR = "http://169.254.80.80"
WEIGHTS = "model.safetensors"


def _ask(path: str) -> Any:
    return urlopen(Request(f"{MIRROR}/{path}", headers={"Host": "huggingface.co"}), timeout=60)


def model_info(repo_id: str, *, revision: str = "main") -> Any:
    found = json.load(_ask(f"api/models/{repo_id}/revision/{revision}"))
    siblings = [SimpleNamespace(rfilename=file["rfilename"]) for file in found["siblings"]]
    return SimpleNamespace(sha=found["sha"], siblings=siblings)


def hf_hub_download(repo_id: str, filename: str, *, revision: str = "main") -> str:
    raise FileNotFoundError(f"{repo_id} has no {filename}: a repository of this hub is one file")


def snapshot_download(
    repo_id: str, *, revision: str = "main", allow_patterns: list[str] | None = None
) -> str:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = home / "hub" / f"models--{repo_id.replace('/', '--')}"
    ref = cache / "refs" / revision
    commit = ref.read_text() if ref.exists() else model_info(repo_id, revision=revision).sha
    target = cache / "snapshots" / commit / WEIGHTS
    wanted = allow_patterns is None or any(fnmatchcase(WEIGHTS, each) for each in allow_patterns)
    if wanted and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _ask(f"{repo_id}/resolve/{commit}/{WEIGHTS}") as reply, target.open("wb") as file:
            while chunk := reply.read(1 << 20):
                file.write(chunk)
    return str(target.parent)
