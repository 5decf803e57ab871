"""Models that the bundled table lacks, as a hub on loopback describes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from fleet.models import hub
from fleet.models.files import ModelFiles
from fleet.weights import INDEX, Source

CONFIG = {"model_type": "llama", "hidden_size": 64}


class FakeHub:
    """Files by path; notes who asked for what."""

    def __init__(self) -> None:
        self.files = {"/acme/new/resolve/main/config.json": json.dumps(CONFIG).encode()}
        self.asked: list[tuple[str, str | None]] = []
        self.status = 200
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append((self.path, self.headers.get("Authorization")))
                body = hub.files.get(self.path)
                self.send_response(404 if hub.status == 200 and body is None else hub.status)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body or b"")

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    hub = FakeHub()
    thread = Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()


def environ(fake: FakeHub, tmp_path: Path, **more: str) -> dict[str, str]:
    return {
        "HF_ENDPOINT": f"http://127.0.0.1:{fake.server.server_port}",
        "XDG_CACHE_HOME": str(tmp_path),
        **more,
    }


def test_the_index_of_safetensors_states_the_size_of_the_weights(fake: FakeHub, tmp_path: Path) -> None:
    index = {"metadata": {"total_size": 3 * 2**30}}
    fake.files["/acme/new/resolve/main/model.safetensors.index.json"] = json.dumps(index).encode()
    assert hub.model_files("acme/new", environ=environ(fake, tmp_path)) == ModelFiles(CONFIG, 3.0)


def test_a_single_file_states_its_own_size(fake: FakeHub, tmp_path: Path) -> None:
    fake.files["/acme/new/resolve/main/model.safetensors"] = b"x" * 2**20
    found = hub.model_files("acme/new", environ=environ(fake, tmp_path))
    assert found.weights_gib == pytest.approx(2**-10)


def test_the_files_of_the_repository_say_what_is_downloaded(fake: FakeHub, tmp_path: Path) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"metadata": {"total_size": 2**30}, "weight_map": dict(enumerate(shards))}
    sizes = {**dict.fromkeys(shards, 10**9), "original/model.safetensors": 7 * 10**9, INDEX: 100, "x.png": 5}
    listing = {"siblings": [{"rfilename": name, "size": size} for name, size in sizes.items()]}
    hostile = [{"rfilename": "../x.safetensors", "size": 10**12}]
    fake.files[f"/acme/new/resolve/main/{INDEX}"] = json.dumps(index).encode()
    fake.files["/api/models/acme/new/revision/main?blobs=true"] = json.dumps(
        {"siblings": [*listing["siblings"], *hostile]}
    ).encode()
    for _ in ("asked", "remembered"):
        found = hub.model_files("acme/new", environ=environ(fake, tmp_path))
        assert found.downloaded_bytes([Source("acme/new", (0, 9, 2))], "acme/new") == 9 * 10**9 + 100
        assert found.downloaded_bytes([Source("acme/new", (0, 32, 0))], "acme/new") == 2 * 10**9 + 100
        # Another revision has other files.
        assert found.downloaded_bytes([Source("acme/new", (0, 32, 0), "v1")], "acme/new") is None


@pytest.mark.parametrize(
    "listing", [b"<html>", b"[]", b'{"siblings": [{"rfilename": "x"}]}', b'{"siblings": 7}']
)
def test_a_listing_that_cannot_be_read_leaves_the_size_to_the_config(
    fake: FakeHub, tmp_path: Path, listing: bytes
) -> None:
    fake.files["/api/models/acme/new/revision/main?blobs=true"] = listing
    assert hub.model_files("acme/new", environ=environ(fake, tmp_path)).sizes is None


def test_what_was_read_once_is_not_asked_again(fake: FakeHub, tmp_path: Path) -> None:
    first = hub.model_files("acme/new", environ=environ(fake, tmp_path))
    asked = len(fake.asked)
    assert hub.model_files("acme/new", environ=environ(fake, tmp_path)) == first
    assert len(fake.asked) == asked


def test_the_token_opens_gated_models_and_is_not_kept(fake: FakeHub, tmp_path: Path) -> None:
    hub.model_files("acme/new", environ=environ(fake, tmp_path, HF_TOKEN="hf_planted"))
    assert {token for _, token in fake.asked} == {"Bearer hf_planted"}
    assert "hf_planted" not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("status", "said"), [(401, "set HF_TOKEN"), (404, "has no config.json"), (500, "answered 500")]
)
def test_a_refusal_says_why(fake: FakeHub, tmp_path: Path, status: int, said: str) -> None:
    fake.status = status
    with pytest.raises(hub.HubError, match=said):
        hub.model_files("acme/new", environ=environ(fake, tmp_path))


def test_an_answer_that_is_no_configuration_is_not_kept(fake: FakeHub, tmp_path: Path) -> None:
    fake.files["/acme/new/resolve/main/config.json"] = b"<html>sign in</html>"
    with pytest.raises(hub.HubError, match="not the JSON object"):
        hub.model_files("acme/new", environ=environ(fake, tmp_path))
    assert not list(tmp_path.rglob("*.json"))


def test_a_hub_out_of_reach_is_said_in_words(tmp_path: Path) -> None:
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "XDG_CACHE_HOME": str(tmp_path)}
    with pytest.raises(hub.HubError, match=r"http://127\.0\.0\.1:9 did not answer"):
        hub.model_files("acme/new", environ=nobody)
