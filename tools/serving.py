"""Serves one gRPC service to the engine that started this process, for as long as the engine lives."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import grpc

# States and programs travel in one message each: the limit that Pulumi's own plugins set.
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 400 << 20),
    ("grpc.max_send_message_length", 400 << 20),
    ("grpc.enable_http_proxy", 0),  # the engine is on this machine
]


def serve(register: Callable[[grpc.Server], object], on_stop: Callable[[], None]) -> NoReturn:
    """Prints the port, as the engine expects, and serves until interrupted or until the engine is gone.

    `register` adds the service to the server; `on_stop` ends what its calls wait for.
    """
    # Calls wait for commands and clouds: each may hold a thread for minutes, and threads are made only when
    # needed.
    server = grpc.server(ThreadPoolExecutor(max_workers=1024), options=CHANNEL_OPTIONS)
    register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    stopped = threading.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: stopped.set())
    server.start()
    print(port, flush=True)
    threading.Thread(target=_follow_engine, args=[stopped], daemon=True).start()
    stopped.wait()
    on_stop()
    # The engine waits for this at the end of every command, and tearing down Python would save nothing.
    os._exit(0)


def _follow_engine(stopped: threading.Event) -> None:
    """The engine holds the other end of standard input: it closes when the engine is gone, even if killed."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    stopped.set()
