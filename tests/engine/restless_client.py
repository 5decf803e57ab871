"""A client of vLLM that never rests. It runs on the machine under test, by its clock and without a package.

    python3 restless_client.py KEY…

Each line that it prints is a round of questions, as JSON: when it began and ended (seconds of Unix time), and
what answered, or null where something of it had no good answer. The first KEY that is accepted is used.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from typing import Any

PAUSE_S = 0.5
TIMEOUT_S = 10


def ask(method: str, path: str, key: str = "", body: object = None) -> Any:
    """The document of an answer; PermissionError where the key is refused."""
    connection = HTTPConnection("127.0.0.1", 8000, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, json.dumps(body), {"Authorization": f"Bearer {key}"})
        reply = connection.getresponse()
        document = json.load(reply)
    finally:
        connection.close()
    if reply.status == 401:
        raise PermissionError(path)
    if reply.status != 200:
        raise ConnectionError(f"{path}: {reply.status}")
    return document


def served(keys: Sequence[str]) -> dict[str, object]:
    """What answers: vLLM's version, the model, its context, and the number of the key that is accepted."""
    version = ask("GET", "/version")["version"]
    for number, key in enumerate(keys):
        try:
            (model,) = ask("GET", "/v1/models", key)["data"]
        except PermissionError:
            continue
        ask("POST", "/v1/completions", key, {"model": model["id"], "prompt": "1", "max_tokens": 1})
        return {
            "version": version,
            "model": model["id"],
            "max_model_len": model["max_model_len"],
            "key": number,
        }
    raise PermissionError("no key is accepted")


def main(keys: Sequence[str]) -> None:
    while True:
        began, answer = time.time(), None
        with suppress(OSError, HTTPException, ValueError):
            answer = served(keys)
        print(json.dumps([began, time.time(), answer]), flush=True)
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1:])
