"""Settings that another stack knows: `stack:organization/network/prod#subnet` stands for that stack's output.

Resolved before settings are checked, so that what comes from there is checked like everything else, and a
node's structure may depend on it. The engine reads the other stack; nothing is written to it.
"""

from __future__ import annotations

import json
import os
from functools import cache
from typing import Any

import pulumi
from tenacity import Retrying

from components.own_state import PATIENTLY
from fleet.settings import Problem, SettingsError, own_name
from fleet.settings.problems import how_to_encrypt
from fleet.stackfile import REFERENCE


class Resolved:
    """The program's configuration, in which every reference is replaced by what it stands for."""

    def __init__(self, source: pulumi.Config) -> None:
        self._source = source

    def names(self) -> list[str]:
        """The keys of this project that are set, known or not, without its name before them."""
        # pulumi.Config gives the value of a key, and no list of them.
        known = {**pulumi.runtime.get_config_env(), **pulumi.runtime.config.CONFIG.get()}
        return [name for key in known if (name := own_name(key)) is not None]

    def get_object(self, key: str) -> Any:
        """The structured value of a key, or None.

        Raises SettingsError for a reference that leads nowhere and for secrets that are not encrypted.
        """
        if key == "secrets" and _in_clear(self._source.full_key(key)):
            raise SettingsError([Problem(key, "are not encrypted", how_to_encrypt("api_key"))])
        if ":" in key:
            return ""  # of another namespace, and refused for that
        try:
            value = self._source.get_object(key) if self._source.get(key) else None
        except pulumi.ConfigTypeError:
            value = self._source.get(key)  # plain text: the check of all settings says what is wrong with it
        return _resolved(value, key)


def _in_clear(key: str) -> bool:
    """Whether a value has reached the program unencrypted; a test's mocked engine does not say."""
    encrypted = os.environ.get("PULUMI_CONFIG_SECRET_KEYS")
    given = pulumi.runtime.get_config_env().get(key)
    return encrypted is not None and given not in (None, "{}") and key not in json.loads(encrypted)


def _resolved(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(entry, f"{path}.{key}") for key, entry in value.items()}
    if isinstance(value, list):
        return [_resolved(entry, f"{path}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, str) and (found := REFERENCE.fullmatch(value)):
        outputs, secret = _outputs(found["stack"])
        if found["output"] in secret:
            fix = f"give the value itself with: pulumi config set --secret --path vllm-fleet:{path}"
            raise SettingsError([Problem(path, f"{value} is a secret there", fix)])
        if found["output"] not in outputs:
            known = ", ".join(sorted(outputs)) or "no outputs; is its name right, and is it up?"
            raise SettingsError([Problem(path, f"{value} leads nowhere", f"that stack has {known}")])
        return outputs[found["output"]]
    return value


@cache
def _outputs(stack: str) -> tuple[dict[str, Any], set[str]]:
    """A stack's outputs, and the names of those that are secret."""
    asked = Retrying(**PATIENTLY)(pulumi.runtime.invoke, "pulumi:pulumi:readStackOutputs", {"name": stack})
    reply = asked.value or {}
    return dict(reply.get("outputs") or {}), set(reply.get("secretOutputNames") or ())
