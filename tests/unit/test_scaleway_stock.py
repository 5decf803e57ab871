"""The stock of a zone, as a Scaleway on loopback tells it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit

import pytest

from components.scaleway.credentials import Credentials
from components.scaleway.stock import availability


class Api(BaseHTTPRequestHandler):
    """250 server types in pages; `/elsewhere/…` redirects there."""

    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("X-Auth-Token")))
        if self.path.startswith("/elsewhere/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/elsewhere"))
            self.end_headers()
            return
        page = int(parse_qs(urlsplit(self.path).query)["page"][0])
        words = {
            f"type-{i}": {"availability": "scarce"} for i in range(page * 100 - 100, min(page * 100, 250))
        }
        body = json.dumps({"servers": words}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Api.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def credentials(url: str) -> Credentials:
    return Credentials(secret_key="planted", project_id="p", api_url=url)


def test_every_page_of_the_stock_is_read(url: str) -> None:
    found = availability("fr-par-2", credentials(url))
    assert (len(found), found["type-249"]) == (250, "scarce")
    assert all(path.startswith("/instance/v1/zones/fr-par-2/products/") for path, _ in Api.asked)


def test_the_key_follows_no_redirect(url: str) -> None:
    with pytest.raises(HTTPError, match="302") as caught:
        availability("fr-par-2", credentials(f"{url}/elsewhere"))
    assert len(Api.asked) == 1
    assert "planted" not in str(caught.value)
