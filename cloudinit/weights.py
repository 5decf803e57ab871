"""Fetches a model into this node's Hugging Face cache, beside the pull of the image that will serve it.

The layout is the one the hub's own client keeps where links cannot be had: `refs/main` names a commit,
`snapshots/COMMIT/` holds its files, and vLLM finds them. HF_HOME, HF_ENDPOINT and HF_TOKEN are read from the
environment, as by the hub's client. Standard library only, since it runs on the machine's own Python.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from http.client import HTTPResponse
from pathlib import Path, PurePosixPath
from urllib.parse import quote
from urllib.request import Request, urlopen

KINDS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py")
AT_ONCE = 4
"""Files fetched side by side: one connection to the hub does not fill a GPU machine's network."""
SILENCE_S = 30.0
"""Seconds without a byte after which a connection counts as dead."""


def ask(url: str) -> HTTPResponse:
    request = Request(url)  # noqa: S310  (the hub's address is the operator's own setting)
    if token := os.environ.get("HF_TOKEN"):
        # Not sent on to the storage that the hub redirects to.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    reply: HTTPResponse = urlopen(request, timeout=SILENCE_S)  # noqa: S310
    return reply


def fetch(url: str, target: Path) -> None:
    """One file, whole or not at all."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with ask(url) as reply, part.open("wb") as file:
        shutil.copyfileobj(reply, file, 1 << 20)
        size = reply.headers.get("Content-Length")
        if size is not None and file.tell() != int(size):
            raise ConnectionError(f"{url}: {file.tell()} of {size} bytes, then the connection ended")
    part.rename(target)


def main(model: str) -> None:
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    with ask(f"{hub}/api/models/{model}/revision/main") as reply:
        revision = json.load(reply)
    commit = str(revision["sha"])
    cache = Path(os.environ["HF_HOME"], "hub", f"models--{model.replace('/', '--')}")
    names = [str(file["rfilename"]) for file in revision["siblings"]]
    wanted = [
        name
        for name in names
        if any(fnmatch(name, kind) for kind in KINDS) and not ({"..", "/"} & set(PurePosixPath(name).parts))
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(
            lambda name: fetch(
                f"{hub}/{model}/resolve/{commit}/{quote(name)}", cache / "snapshots" / commit / name
            ),
            wanted,
        ):
            pass
    main_ref = cache / "refs" / "main"
    main_ref.parent.mkdir(parents=True, exist_ok=True)
    main_ref.write_text(commit)


if __name__ == "__main__":
    main(sys.argv[1])
