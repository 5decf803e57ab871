"""A JSON Schema of `Pulumi.<stack>.yaml`, made from the settings: editors complete and check by it."""

from __future__ import annotations

from typing import Any

from fleet.settings import PROJECT
from fleet.settings.models import StackSettings


def json_schema() -> dict[str, Any]:
    """A JSON Schema of `Pulumi.<stack>.yaml` for editors, generated from these models."""
    root = StackSettings.model_json_schema(ref_template="#/$defs/{model}")
    definitions = root.pop("$defs")
    properties = root["properties"]
    # A node states only the serving keys that differ, so none is required there.
    definitions["ServingOverride"] = {**definitions["Serving"], "required": [], "title": "ServingOverride"}
    for name, definition in definitions.items():
        if name.endswith("Node"):
            definition["properties"]["serving"] = {"$ref": "#/$defs/ServingOverride"}
            definition["required"] = [key for key in definition["required"] if key != "serving"]
    for key, schema in definitions["Secrets"]["properties"].items():
        if key != "delivery":
            definitions["Secrets"]["properties"][key] = {
                "description": schema.get("description", ""),
                "anyOf": [
                    {"type": "object", "properties": {"secure": {"type": "string"}}, "required": ["secure"]},
                    {"type": "string"},
                ],
            }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{PROJECT} stack configuration",
        "type": "object",
        "properties": {
            "config": {
                "type": "object",
                "properties": {f"{PROJECT}:{key}": value for key, value in properties.items()},
            }
        },
        "$defs": definitions,
    }
