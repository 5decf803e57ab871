"""The node's own fetching of a model: what it asks the hub for, and what it leaves in the cache."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fleet.userdata import FILES

MODEL, COMMIT, TOKEN = "Qwen/Qwen3-8B-AWQ", "c0ffee" * 6 + "cafe", "hf_planted0123456789"
CONTENTS = {"config.json": b"{}", "model 1.safetensors": b"weights" * 100_000, "sub/tokenizer.json": b"[]"}
UNWANTED = ["README.md", "pytorch_model.bin", "../escape.json"]


class Hub(ThreadingHTTPServer):
    """A hub that keeps large files elsewhere, as the real one does; it notes who asked for what."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.cut = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        if self.path == f"/api/models/{MODEL}/revision/main":
            names = [*CONTENTS, *UNWANTED]
            return self.reply(
                json.dumps({"sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}).encode()
            )
        name = self.path.replace("%20", " ").removeprefix("/storage")
        name = name.removeprefix(f"/{MODEL}/resolve/{COMMIT}/")
        if name.endswith(".safetensors") and not self.path.startswith("/storage"):
            self.send_response(302)
            self.send_header("Location", f"{self.server.url}/storage{self.path}")
            return self.end_headers()
        return self.reply(CONTENTS[name])

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.server.cut and len(body) > 1000 else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def fetch(hub: Hub, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", FILES / "weights.py", MODEL],
        env={"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def cached(home: Path) -> Path:
    return home / "hub" / f"models--{MODEL.replace('/', '--')}"


def test_a_model_lies_where_the_hubs_client_looks_for_it(hub: Hub, tmp_path: Path) -> None:
    done = fetch(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    snapshot = cached(tmp_path) / "snapshots" / COMMIT
    files = {
        str(path.relative_to(snapshot)): path.read_bytes() for path in snapshot.rglob("*") if path.is_file()
    }
    assert files == CONTENTS
    assert (cached(tmp_path) / "refs/main").read_text() == COMMIT
    assert not (tmp_path / "hub" / "escape.json").exists()


def test_the_token_goes_to_the_hub_and_not_on_to_its_storage(hub: Hub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    for path, authorization in hub.asked:
        assert authorization == (None if path.startswith("/storage") else f"Bearer {TOKEN}")


def test_what_is_there_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    hub.asked.clear()
    assert fetch(hub, tmp_path).returncode == 0
    assert [path for path, _ in hub.asked] == [f"/api/models/{MODEL}/revision/main"]


def test_a_file_that_was_cut_short_is_none_and_the_next_try_gets_it(hub: Hub, tmp_path: Path) -> None:
    hub.cut = True
    done = fetch(hub, tmp_path)
    assert done.returncode != 0
    assert TOKEN not in done.stderr
    assert not list(cached(tmp_path).rglob("*.safetensors"))
    assert not (cached(tmp_path) / "refs/main").exists()
    hub.cut = False
    assert fetch(hub, tmp_path).returncode == 0
