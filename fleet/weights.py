"""Which files of a Hugging Face repository vLLM reads, and their download ahead of it.

The rule is vLLM's own, by release, read off its wheels from 0.6.6 to 0.33.0. In
`vllm/model_executor/model_loader`: `_prepare_weights` of `default_loader.py` (before 0.9 `loader.py`),
`gguf_loader.py` and `bitsandbytes_loader.py`, `download_weights_from_hf` of `weight_utils.py`; and
`_snapshot_non_weight_files` of `vllm/transformers_utils/repo_utils.py`.

This one file is the rule wherever it is needed: `fleet` imports it to size disks, the first boot runs it on
the machine's own Python, a rollout runs it inside the new image. So it needs the standard library alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

INDEX = "model.safetensors.index.json"
SAFETENSORS = {"safetensors", "fastsafetensors", "instanttensor"}
PATTERNS = {
    "hf": ["*.safetensors", "*.bin"],
    "bitsandbytes": ["*.safetensors", "*.bin", "*.pt"],
    "mistral": ["consolidated*.safetensors"],
    "pt": ["*.pt"],
    "npcache": ["*.bin"],
    **{each: ["*.safetensors"] for each in SAFETENSORS},
}
"""Load format → the weights that vLLM looks for, the best first."""
FORMATS = {"auto", "dummy", *PATTERNS}
"""Load formats that this rule knows."""
TRAINING = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
"""Downloaded with the weights, but not loaded."""
SMALL = [
    *("*.json", "*.txt", "*.model", "*.model.v*", "*.jinja", "*.py"),
    *("*.tiktoken", "*.bpe", "*.spm", "*.vocab"),
]
"""Configuration, tokenizer, chat template, processor and code: what is asked for by name before 0.32."""
LARGE = [
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx"),
    *("*.onnx_data", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp", "*.mp3", "*.mp4", "*.wav", "*.flac"),
    *("*.parquet", "*.arrow", "*.ipynb", "*.zip", "*.tar*"),
]
"""All but these is downloaded since 0.32."""

AT_ONCE = 4
"""Files fetched side by side: one connection to the hub does not fill a GPU machine's network."""
SILENCE_S = 30.0
"""Seconds without a byte after which a connection counts as dead."""
LIST_BYTES = 64 << 20
"""Longest list of files, and longest index, that is read."""


@dataclass(frozen=True)
class Source:
    """A repository that vLLM reads from, and what it takes of it."""

    repo: str
    """owner/name."""
    release: tuple[int, ...]
    """Of vLLM."""
    revision: str = "main"
    takes: str = "model"
    """`model`: weights and small files; `small`: those alone; `all`: every file."""
    load_format: str = "auto"
    gguf: str = ""
    """A GGUF file's name, or a quantization, whose file is looked for; empty for other weights."""
    ignore: tuple[str, ...] = ("original/**/*",)
    """Patterns of weights that are not downloaded; this is vLLM's default."""


@dataclass(frozen=True)
class Choice:
    """What vLLM does with the files of a repository."""

    downloaded: frozenset[str]
    """Everything that it fetches, small files included."""
    loaded: frozenset[str]
    """The weights among them that it loads."""


def is_safe(name: object) -> bool:
    """Whether a name from the hub is a plain relative path, to be written below a folder."""
    return (
        isinstance(name, str)
        and len(name) < 1024
        and not re.search(r"[\x00-\x1f\x7f\\]", name)
        and all(part not in ("", ".", "..") and len(part.encode()) < 250 for part in name.split("/"))
    )


def index_of(source: Source, names: Iterable[str]) -> str | None:
    """The file among `names` that lists the shards which `chosen` must know; None without one."""
    names = set(names)
    index = "consolidated.safetensors.index.json" if _format(source, names) == "mistral" else INDEX
    return index if source.takes == "model" and not source.gguf and index in names else None


def shards(index: Any) -> frozenset[str]:
    """The files that an index lists. Raises ValueError where it is none."""
    weights = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weights, dict) or not all(is_safe(name) for name in weights.values()):
        raise ValueError("the index of the weights has no weight_map of tensors and files")
    return frozenset(weights.values())


def chosen(source: Source, names: Iterable[str], listed: frozenset[str] | None = None) -> Choice:
    """What vLLM fetches and loads of a repository with these files.

    `listed` are the shards in the index that `index_of` names, None where there is none. Names that are no
    plain relative paths are left out.
    """
    names = sorted(name for name in names if is_safe(name))
    if source.takes == "all":
        return Choice(frozenset(names), frozenset())
    small = {name for name in names if _is_small(source, name)}
    if source.takes == "small" or source.load_format == "dummy":
        return Choice(frozenset(small), frozenset())
    fetched, loaded = _gguf(source, names) if source.gguf else _weights(source, names, listed)
    return Choice(frozenset(small | fetched), frozenset(loaded))


def _is_small(source: Source, name: str) -> bool:
    return not _any(name, LARGE) if source.release >= (0, 32) else _any(name, SMALL)


def _format(source: Source, names: Iterable[str]) -> str:
    """The load format, of `auto` the one that vLLM takes for these files."""
    if source.load_format != "auto":
        return source.load_format
    mistral = source.release >= (0, 12) and any(
        fnmatchcase(name.rpartition("/")[2], "consolidated*.safetensors") for name in names
    )
    return "mistral" if mistral else "hf"


def _weights(source: Source, names: list[str], listed: frozenset[str] | None) -> tuple[set[str], set[str]]:
    load_format = _format(source, names)
    patterns = list(PATTERNS[load_format])
    if load_format == "bitsandbytes":
        # It looks for the first kind in all folders, and then downloads that one.
        patterns = next(([each] for each in patterns if any(fnmatchcase(name, each) for name in names)), [])
    elif load_format not in SAFETENSORS | {"mistral"} or source.release < (0, 24):
        patterns.append("*.pt")
    fetched = _download(source, names, patterns, listed if load_format != "mistral" else None)
    top = [name for name in fetched if "/" not in name and not name.startswith(".")]
    kinds = ({name for name in top if fnmatchcase(name, each)} for each in patterns)
    loaded: set[str] = next((kind for kind in kinds if kind), set())
    if listed is not None and any(name.endswith(".safetensors") for name in loaded):
        return fetched, loaded & listed
    return fetched, {name for name in loaded if not name.endswith(TRAINING)}


def _gguf(source: Source, names: list[str]) -> tuple[set[str], set[str]]:
    if source.gguf.endswith(".gguf"):
        found = {source.gguf} & set(names)
        return found, found
    ends = (f"*-{source.gguf}.gguf", f"*-{source.gguf}-*.gguf")
    found = _download(source, names, [*ends, *(f"*/{end}" for end in ends)], None)
    return found, found


def _download(
    source: Source, names: list[str], patterns: list[str], listed: frozenset[str] | None
) -> set[str]:
    """What `download_weights_from_hf` fetches. It looks for the first pattern that matches in the top folder
    alone, by full paths, which no pattern with a name before its `*` matches; then it downloads that pattern
    from all folders."""
    kept = [name for name in names if not _any(name, source.ignore)]
    # Full paths have the revision in them where it is another than main, and the index is not found then.
    if listed and source.release >= (0, 14) and source.revision == "main" and "*.safetensors" in patterns:
        return {name for name in kept if name in listed}
    top = [name for name in names if "/" not in name]
    first = [each for each in patterns if any(fnmatchcase(f"{source.repo}/{name}", each) for name in top)][:1]
    found: set[str] = set()
    for pattern in first or patterns:
        found |= {name for name in kept if fnmatchcase(name, pattern)}
        # What it finds ends the search, but only since 0.10.2, and only at the pattern's own depth.
        if source.release >= (0, 10, 2) and any(
            fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for name in found
        ):
            break
    return found


def _any(name: str, patterns: Iterable[str]) -> bool:
    # As the hub's client matches: `*` takes slashes too.
    return any(fnmatchcase(name, each) for each in patterns)


# --- on a node ----------------------------------------------------------------------------------------------


def read(text: str) -> list[Source]:
    """The sources that a rollout or the first boot is given as JSON."""
    given = json.loads(text)
    return [Source(**{**each, "release": tuple(each["release"])}) for each in given]


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


def with_standard_library(source: Source) -> None:
    """Fetch a source into HF_HOME, in the layout that the hub's client keeps where links cannot be had:
    `refs/main` names a commit, `snapshots/COMMIT/` holds its files, and the client finds them."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    with ask(f"{hub}/api/models/{source.repo}/revision/{quote(source.revision, safe='')}") as reply:
        text = reply.read(LIST_BYTES + 1)
    if len(text) > LIST_BYTES:
        raise ValueError(f"the list of the files of {source.repo} is longer than {LIST_BYTES} bytes")
    found = json.loads(text)
    commit, names = str(found["sha"]), [file["rfilename"] for file in found["siblings"]]
    if not re.fullmatch("[0-9a-f]{40}", commit) or not is_safe(source.revision):
        raise ValueError(f"{source.repo}: {source.revision} at {commit} is not a commit's name")
    cache = Path(os.environ["HF_HOME"], "hub", f"models--{source.repo.replace('/', '--')}")
    snapshot = cache / "snapshots" / commit

    def get(name: str) -> Path:
        fetch(f"{hub}/{source.repo}/resolve/{commit}/{quote(name)}", snapshot / name)
        return snapshot / name

    wanted = chosen(source, names, _listed(source, names, get)).downloaded
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(get, sorted(wanted)):
            pass
    if source.revision != commit:
        ref = cache / "refs" / source.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)


def with_client(source: Source) -> None:
    """Fetch a source with the hub's own client, of the version that vLLM will use."""
    from huggingface_hub import hf_hub_download, model_info, snapshot_download  # noqa: PLC0415  in the image

    found = model_info(source.repo, revision=source.revision)
    names = [file.rfilename for file in found.siblings or []]
    listed = _listed(source, names, lambda name: hf_hub_download(source.repo, name, revision=found.sha))
    wanted = sorted(chosen(source, names, listed).downloaded)
    # Names, not patterns; an empty list would be all files.
    exact = [re.sub(r"([*?[])", r"[\1]", name) for name in wanted]
    if exact:
        snapshot_download(source.repo, revision=source.revision, allow_patterns=exact)


def _listed(source: Source, names: list[str], get: Any) -> frozenset[str] | None:
    index = index_of(source, filter(is_safe, names))
    if index is None:
        return None
    path = Path(get(index))
    if path.stat().st_size > LIST_BYTES:
        raise ValueError(f"{source.repo}: {index} is longer than {LIST_BYTES} bytes")
    return shards(json.loads(path.read_text(encoding="utf-8")))


def main(how: str, sources: str) -> None:
    """Fetch everything, the model first."""
    for source in read(sources):
        with_client(source) if how == "client" else with_standard_library(source)


if __name__ == "__main__":
    main(*sys.argv[1:])
