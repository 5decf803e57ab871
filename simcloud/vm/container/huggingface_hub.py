"""Stand-in for the Hugging Face hub's client: fetches a model's one file through the machine's mirror, unless
the cache holds it already, in the real client's layout."""

import json
import os
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

MIRROR = "http://169.254.80.80"


def _ask(path: str) -> Any:
    return urlopen(Request(f"{MIRROR}/{path}", headers={"Host": "huggingface.co"}), timeout=60)


def snapshot_download(repo_id: str, *, allow_patterns: object = None) -> str:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = home / "hub" / f"models--{repo_id.replace('/', '--')}"
    ref = cache / "refs/main"
    commit = (
        ref.read_text() if ref.exists() else json.load(_ask(f"api/models/{repo_id}/revision/main"))["sha"]
    )
    target = cache / "snapshots" / commit / "model.safetensors"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _ask(f"{repo_id}/resolve/{commit}/model.safetensors") as reply, target.open("wb") as file:
            while chunk := reply.read(1 << 20):
                file.write(chunk)
    return str(target.parent)
