"""Stand-in for Open WebUI: its page and its health, on the port it listens on."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/health":
            kind, body = "application/json", json.dumps({"status": True}).encode()
        else:
            kind, body = (
                "text/html",
                b"<!doctype html><title>Open WebUI</title><h1>Open WebUI (stand-in)</h1>",
            )
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("", 8080), Page).serve_forever()
