"""`secrets.delivery: cloud-init` puts the keys into user data, which is then a secret wherever it is."""

import json
from collections.abc import Iterator
from typing import Any

from fleets import SECRETS, Fleet, every_cloud

from fleet import cloudconfig


def texts(value: Any) -> Iterator[str]:
    """Every text within a document, also as what user data in base64 or compressed holds."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from (key, *texts(entry))
    elif isinstance(value, list):
        for entry in value:
            yield from texts(entry)
    elif isinstance(value, str):
        yield from (value, cloudconfig.decoded(value))


def shown(document: Any) -> list[str]:
    """Where a document shows a key."""
    return [text[:200] for text in texts(document) if any(secret in text for secret in SECRETS.values())]


@every_cloud
def test_keys_in_user_data_are_nowhere_in_clear(fleet: Fleet) -> None:
    fleet.stack.ask("config", "set", "--path", "vllm-fleet:secrets.delivery", "cloud-init")
    # A node that the second preview shows with all it is made from.
    first = fleet.run("preview", "--json").stdout
    fleet.run("up")
    fleet.nodes("a", "b")
    fleet.config["nodes"][0]["tags"] = ["changed"]
    second = fleet.run("preview", "--json", "--show-sames", "--diff").stdout
    plain = fleet.run("preview", "--diff", "--show-sames").stdout

    for said in (first, second):
        assert shown(json.loads(said[said.index("{") :])) == []
    assert shown(plain.split()) == []
    assert shown(fleet.stack.state()) == []
    assert shown(fleet.outputs()) == []
    # They are there for who may see them, and the node serves with them.
    assert shown(fleet.stack.state(show_secrets=True))
    assert fleet.statuses() == {"ready"}
