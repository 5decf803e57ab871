"""HTTP clients that send a request's target as it is given: browsers and libraries tidy it up first."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import h2.config
import h2.connection
import h2.events

TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Answer:
    status: int
    """0: the server ended the connection or the stream instead."""
    body: bytes


class Http1:
    """One HTTP/1.1 connection, opened again where the server closed it."""

    def __init__(self, address: str, port: int, name: str, trust: ssl.SSLContext) -> None:
        self._connection = _Connection(address, port, name, trust)

    def ask(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        try:
            self._connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self._connection.putheader(name, value)
            self._connection.endheaders(body)
            response = self._connection.getresponse()
            return Answer(response.status, response.read())
        except (http.client.HTTPException, OSError):
            self._connection.close()
            return Answer(0, b"")

    def close(self) -> None:
        self._connection.close()


class _Connection(http.client.HTTPSConnection):
    """To an address, with the name that the certificate is for."""

    def __init__(self, address: str, port: int, name: str, trust: ssl.SSLContext) -> None:
        super().__init__(address, port, timeout=TIMEOUT_S, context=trust)
        self._name, self._trust = name, trust

    def connect(self) -> None:
        plain = socket.create_connection((self.host, self.port), TIMEOUT_S)
        self.sock = self._trust.wrap_socket(plain, server_hostname=self._name)

    def _validate_path(self, url: str) -> None:
        """Everything may be sent."""


class Http2:
    """One HTTP/2 connection."""

    def __init__(self, address: str, port: int, name: str, trust: ssl.SSLContext) -> None:
        plain = socket.create_connection((address, port), TIMEOUT_S)
        self._socket = trust.wrap_socket(plain, server_hostname=name)
        assert self._socket.selected_alpn_protocol() == "h2", "trust needs set_alpn_protocols(['h2'])"
        unchecked = h2.config.H2Configuration(
            header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self._protocol = h2.connection.H2Connection(unchecked)
        self._protocol.initiate_connection()
        self._flush()

    def ask(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        stream = self._protocol.get_next_available_stream_id()
        given = {name.lower(): value for name, value in headers.items()}
        host = given.pop("host")
        pseudo = [(":method", method), (":scheme", "https"), (":authority", host), (":path", target)]
        self._protocol.send_headers(stream, [*pseudo, *given.items()], end_stream=not body)
        if body:
            self._protocol.send_data(stream, body, end_stream=True)
        self._flush()
        status, received = 0, b""
        while True:
            for event in self._protocol.receive_data(self._socket.recv(65536)):
                if isinstance(event, h2.events.ResponseReceived) and event.stream_id == stream:
                    status = int(dict(event.headers)[":status"])  # type: ignore[call-overload]
                elif isinstance(event, h2.events.DataReceived) and event.stream_id == stream:
                    received += event.data
                    self._protocol.acknowledge_received_data(event.flow_controlled_length, stream)
                elif isinstance(event, h2.events.StreamEnded) and event.stream_id == stream:
                    self._flush()
                    return Answer(status, received)
                elif isinstance(event, h2.events.StreamReset) and event.stream_id == stream:
                    return Answer(0, b"")
            self._flush()

    def close(self) -> None:
        self._socket.close()

    def _flush(self) -> None:
        self._socket.sendall(self._protocol.data_to_send())
