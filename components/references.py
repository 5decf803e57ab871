"""Settings that another stack knows: `stack:organization/network/prod#subnet` stands for that stack's output.

Resolved before settings are checked, so that what comes from there is checked like everything else, and a
node's structure may depend on it. The engine reads the other stack; nothing is written to it.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pulumi

from fleet.settings import ConfigSource, Problem, SettingsError

REFERENCE = re.compile(r"stack:(?P<stack>[\w.-]+/[\w.-]+/[\w.-]+)#(?P<output>\w+)")


class Resolved:
    """A configuration in which every reference is replaced by what it stands for."""

    def __init__(self, source: ConfigSource) -> None:
        self._source = source

    def get_object(self, key: str) -> Any:
        """The structured value of a key, or None. Raises SettingsError for a reference that leads nowhere."""
        return _resolved(self._source.get_object(key), key)


def _resolved(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(entry, f"{path}.{key}") for key, entry in value.items()}
    if isinstance(value, list):
        return [_resolved(entry, f"{path}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, str) and (found := REFERENCE.fullmatch(value)):
        outputs, secret = _outputs(found["stack"])
        if found["output"] in secret:
            mend = "is a secret there; give the value itself with: pulumi config set --secret --path"
            raise SettingsError([Problem(path, f"{value} {mend} vllm-fleet:{path}")])
        if found["output"] not in outputs:
            known = ", ".join(sorted(outputs)) or "no outputs; is its name right, and is it up?"
            raise SettingsError([Problem(path, f"{value} leads nowhere; that stack has {known}")])
        return outputs[found["output"]]
    return value


@cache
def _outputs(stack: str) -> tuple[dict[str, Any], set[str]]:
    """A stack's outputs, and the names of those that are secret."""
    reply = pulumi.runtime.invoke("pulumi:pulumi:readStackOutputs", {"name": stack}).value or {}
    return dict(reply.get("outputs") or {}), set(reply.get("secretOutputNames") or ())
