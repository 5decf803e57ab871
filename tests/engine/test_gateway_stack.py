"""A stack with a gateway, by the real engine: who is let in, and clients that notice nothing of a rollout."""

from __future__ import annotations

import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from fleets import SECRETS, Fleet

DOMAIN = "llm.example.com"
OLD_KEY, KEY = SECRETS["api_key"], "another-planted-key-0123"


class Client(threading.Thread):
    """Asks for completions through the gateway, one after the other, for as long as it is let."""

    def __init__(self, gateway: dict[str, str], key: str) -> None:
        super().__init__()
        self._gateway, self._key = gateway, key
        self._leave = threading.Event()
        self.answers: Counter[int | str] = Counter()

    def ask(self, http: httpx.Client) -> int | str:
        """Status of one request; the name of the error where there was no answer."""
        try:
            return http.post(
                f"https://{self._gateway['address']}/v1/completions",
                headers={"Host": DOMAIN, "Authorization": f"Bearer {self._key}"},
                json={"prompt": "1", "max_tokens": 1},
                extensions={"sni_hostname": DOMAIN},
            ).status_code
        except httpx.TransportError as error:
            return type(error).__name__

    def once(self) -> int | str:
        with self._http() as http:
            return self.ask(http)

    def run(self) -> None:
        with self._http() as http:
            while not self._leave.wait(0.02):
                self.answers[self.ask(http)] += 1

    def leave(self) -> None:
        self._leave.set()
        self.join()

    def _http(self) -> httpx.Client:
        return httpx.Client(verify=ssl.create_default_context(cadata=self._gateway["authority"]), timeout=30)


@contextmanager
def asking(gateway: dict[str, str], key: str) -> Iterator[Client]:
    client = Client(gateway, key)
    client.start()
    try:
        yield client
    finally:
        client.leave()


def openings(fleet: Fleet) -> dict[str, set[tuple[int, str]]]:
    """Ports and ranges that each node's security group lets in."""
    return {
        resource["outputs"]["node"]: {
            (int(rule["port"]), rule["cidr"]) for rule in resource["outputs"]["rules"]
        }
        for resource in fleet.stack.state()
        if resource["type"].endswith("scaleway:SecurityGroup")
    }


def test_clients_of_the_gateway_notice_neither_a_rollout_nor_a_new_key(fleet: Fleet) -> None:
    fleet.nodes("a", "b")
    fleet.run("up")
    assert {port for rules in openings(fleet).values() for port, _ in rules} == {10022}

    fleet.config["expose"] = {"domain": DOMAIN, "cidrs": ["203.0.113.0/24"], "tls": "internal"}
    fleet.run("up")
    gateway = fleet.outputs()["gateway"]
    assert (gateway["node"], gateway["url"]) == ("a", f"https://{DOMAIN}/v1")
    assert openings(fleet) == {
        "a": {(10022, "127.0.0.1/32"), (443, "203.0.113.0/24")},
        "b": {(10022, "127.0.0.1/32"), (443, f"{gateway['address']}/32")},
    }
    assert fleet.drift() is None

    with asking(gateway, OLD_KEY) as client:
        fleet.config["serving"]["max_model_len"] = 8192
        fleet.run("up")
    assert set(client.answers) == {200}

    for secret, value in (("api_key", KEY), ("previous_api_key", OLD_KEY)):
        fleet.stack.ask("config", "set", "--secret", "--path", f"vllm-fleet:secrets.{secret}", value)
    fleet.run("up")
    assert [Client(gateway, key).once() for key in (OLD_KEY, KEY)] == [200, 200]

    fleet.stack.ask("config", "rm", "--path", "vllm-fleet:secrets.previous_api_key")
    fleet.run("up")
    assert [Client(gateway, key).once() for key in (OLD_KEY, KEY)] == [401, 200]
