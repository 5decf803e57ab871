"""A Hugging Face hub on this machine: the part of its API that `huggingface_hub` 2.4.0 uses for a download.

As the original: an API path that names no revision means `main`, whose commit the reply names; a file's HEAD
has its commit, ETag and size; large files redirect to a storage of their own, which gets no token. Read in
`huggingface_hub/hf_api.py` (`model_info`, `list_repo_tree`) and `file_download.py` (`get_hf_file_metadata`).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" * 6 + "cafe"
LARGE_BYTES = 10_000
"""Files from this size on lie in the storage."""


class Hub(ThreadingHTTPServer):
    """Serves repositories: name → files, name → content. It notes who asked for what."""

    daemon_threads = True

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = {name: dict(files) for name, files in repositories.items()}
        self.asked: list[tuple[str, str, str | None]] = []
        """Method, path and token of each request."""
        self.cut = False
        """Whether large files end in the middle."""
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def fetched(self) -> set[str]:
        """The files whose content was asked for, as owner/name/path."""
        gets = (unquote(path) for method, path, _ in self.asked if method == "GET")
        return {
            path.removeprefix("/storage").lstrip("/").replace(f"/resolve/{COMMIT}/", "/")
            for path in gets
            if "/resolve/" in path
        }


@contextmanager
def serving(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[Hub]:
    """A hub that runs meanwhile."""
    with Hub(repositories) as hub:
        threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True).start()
        yield hub
        hub.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.server.asked.append((self.command, self.path, self.headers["Authorization"]))
        url = urlsplit(self.path)
        parts = unquote(url.path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:], parse_qs(url.query))
        stored = parts[0] == "storage"
        owner, name, verb, revision, *path = [*parts[stored:], "", "", "", ""]
        content = self.server.repositories.get(f"{owner}/{name}", {}).get("/".join(path).rstrip("/"))
        if verb != "resolve" or revision not in ("main", COMMIT) or content is None:
            return self._reply(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if len(content) < LARGE_BYTES or stored:
            return self._reply(200, content, headers)
        headers = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": headers["ETag"], **headers}
        return self._reply(302, b"", {**headers, "Location": f"{self.server.url}/storage{self.path}"})

    def _api(self, repo: str, rest: list[str], query: dict[str, list[str]]) -> None:
        files = self.server.repositories.get(repo)
        if files is None:
            return self._reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        verb, revision = rest[0] if rest else "revision", rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", COMMIT):
            return self._reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if verb == "tree":
            return self._json(
                _tree(files, "/".join(rest[2:]), query.get("recursive", ["false"])[0].lower() == "true")
            )
        siblings = [{"rfilename": name} for name in files]
        if query.get("blobs"):
            siblings = [{"rfilename": name, "size": len(files[name])} for name in files]  # type: ignore[dict-item]
        return self._json({"id": repo, "_id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings})

    def _json(self, document: Any) -> None:
        self._reply(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.server.cut and len(body) >= LARGE_BYTES
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def log_message(self, format: str, *args: object) -> None:
        pass


def _tree(files: Mapping[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    below = f"{folder}/" if folder else ""
    inside = {name: content for name, content in files.items() if name.startswith(below)}
    found = [
        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for name, content in inside.items()
        if recursive or "/" not in name.removeprefix(below)
    ]
    folders = {
        below + name.removeprefix(below).split("/")[0] for name in inside if "/" in name.removeprefix(below)
    }
    return [*found, *({"type": "directory", "path": name, "oid": "0" * 40} for name in sorted(folders))]
