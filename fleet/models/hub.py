"""A model as the Hugging Face hub describes it: its `config.json` and the size of its weights.

Asked only for what the bundled table lacks; what was read once is kept under the user's cache folder.
`HF_ENDPOINT` names a mirror and `HF_TOKEN` opens gated models, as in the hub's own client.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet.models.files import ModelFiles
from fleet.weights import is_safe, shards

if TYPE_CHECKING:
    import httpx

ENDPOINT = "https://huggingface.co"
INDEXES = ("model.safetensors.index.json", "consolidated.safetensors.index.json")
TIMEOUT_S = 3.0
"""For each of at most six small requests; a preview must not hang on a hub out of reach."""


class HubError(ValueError):
    """The hub did not say what the model is like; the message says why."""


def model_files(
    model: str, *, token: str | None = None, environ: Mapping[str, str] | None = None
) -> ModelFiles:
    """The newest description of `model` (owner/name), from the cache if it was read before.

    `token` stands in for `HF_TOKEN`. Raises HubError.
    """
    environ = os.environ if environ is None else environ
    try:
        return remembered(model, environ=environ)
    except HubError:
        files = _ask(model, environ.get("HF_ENDPOINT") or ENDPOINT, token or environ.get("HF_TOKEN"))
        _keep(_cached(model, environ), files)
        return files


def remembered(model: str, *, environ: Mapping[str, str] | None = None) -> ModelFiles:
    """What the hub said of `model` before, without asking it again. Raises HubError."""
    try:
        cached = _cached(model, os.environ if environ is None else environ)
        return ModelFiles(**json.loads(cached.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # absent, or not ours
        raise HubError("the Hugging Face hub was not asked") from None


def _ask(model: str, endpoint: str, token: str | None) -> ModelFiles:
    import httpx  # noqa: PLC0415  slow to load, and most models are in the bundled table

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    base = f"{endpoint.rstrip('/')}/{model}/resolve/main/"
    try:
        # A client drops the token by itself when a redirect leads to another host.
        with httpx.Client(base_url=base, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as hub:
            config = _json(hub.get("config.json"), model)
            weights_gib = _loaded_gib(config, _weights_gib(hub, model))
            sizes = _sizes(hub, f"{endpoint.rstrip('/')}/api/models/{model}/revision/main")
            indexes = {name: _shards(hub, name) for name in INDEXES if sizes and name in sizes}
            listed = {name: shards for name, shards in indexes.items() if shards is not None}
            return ModelFiles(config, weights_gib, sizes, listed or None)
    except httpx.HTTPError as error:
        raise HubError(f"{endpoint} did not answer ({type(error).__name__})") from None


def _loaded_gib(config: Mapping[str, Any], stored_gib: float | None) -> float | None:
    """What vLLM makes of the files: single precision is halved while it is loaded."""
    single = str(config.get("torch_dtype") or config.get("dtype")) == "float32"
    return stored_gib / 2 if single and stored_gib is not None else stored_gib


def _weights_gib(hub: httpx.Client, model: str) -> float | None:
    """The index states the sum of many files; a single file states its own size."""
    index = hub.get("model.safetensors.index.json")
    if index.is_success:
        size = _json(index, model).get("metadata", {}).get("total_size")
    else:
        file = hub.head("model.safetensors")
        size = file.headers.get("content-length") if file.is_success else None
    return int(size) / 2**30 if size else None


def _sizes(hub: httpx.Client, url: str) -> dict[str, int] | None:
    """Every file with its bytes; None where the hub does not say, which fails nothing."""
    import httpx  # noqa: PLC0415  slow to load, and most models are in the bundled table

    try:
        files = hub.get(url, params={"blobs": "true"}).raise_for_status().json()["siblings"]
        return {file["rfilename"]: max(int(file["size"]), 0) for file in files if is_safe(file["rfilename"])}
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None


def _shards(hub: httpx.Client, index: str) -> list[str] | None:
    import httpx  # noqa: PLC0415  slow to load, and most models are in the bundled table

    try:
        return sorted(shards(hub.get(index).raise_for_status().json()))
    except (httpx.HTTPError, ValueError):
        return None


def _json(reply: httpx.Response, model: str) -> dict[str, Any]:
    if reply.status_code in (401, 403):
        raise HubError(f"the hub does not show {model} without a token that may read it: set HF_TOKEN")
    if reply.status_code == 404:
        raise HubError(f"the hub has no {reply.request.url.path.rsplit('/', 1)[-1]} of {model}")
    if not reply.is_success:
        raise HubError(f"the hub answered {reply.status_code} for {model}")
    try:
        document = reply.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise HubError(f"the hub's answer for {model} is not the JSON object that was asked for")
    return document


def _cached(model: str, environ: Mapping[str, str]) -> Path:
    folder = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm-fleet" / "models"
    return folder / f"{model.replace('/', '--')}.json"


def _keep(path: Path, files: ModelFiles) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place: another process may be reading it.
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(asdict(files)), encoding="utf-8")
        draft.replace(path)
    except OSError:
        pass  # a cache that cannot be written costs the next run a request, nothing more
