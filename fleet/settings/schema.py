"""A JSON Schema of `Pulumi.<stack>.yaml`, made from the settings: editors complete and check by it."""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise
from typing import Any

from pydantic import BaseModel

from fleet import stackfile
from fleet.settings import (
    PROJECT,
    expose,
    jobs,
    network,
    nodes,
    observability,
    provision,
    ray,
    serving,
    stack,
)
from fleet.settings.serving import Serving
from fleet.settings.stack import StackSettings

SECTIONS = (stack, serving, nodes, ray, jobs, expose, observability, provision, network)
"""The modules with the sections of a stack."""


ENCRYPTED = {"type": "object", "properties": {"secure": {"type": "string"}}, "required": ["secure"]}
"""A value that Pulumi has encrypted."""


def json_schema() -> dict[str, Any]:
    """A JSON Schema of `Pulumi.<stack>.yaml` for editors, generated from these models."""
    root = StackSettings.model_json_schema(ref_template="#/$defs/{model}")
    definitions = root.pop("$defs")
    properties = root["properties"]
    # A node states only the serving keys that differ, so none is required there.
    definitions["ServingOverride"] = {**definitions["Serving"], "required": [], "title": "ServingOverride"}
    for name, definition in definitions.items():
        if name.endswith(("Node", "RayCluster")):
            definition["properties"]["serving"] = {"$ref": "#/$defs/ServingOverride"}
            definition["required"] = [key for key in definition["required"] if key != "serving"]
    _describe(definitions)
    for key in ("serving", "secrets", "expose", "jobs"):
        properties[key]["anyOf"].append({"type": "object", "maxProperties": 0, "title": "as if left out"})
    properties["secrets"]["anyOf"].append(ENCRYPTED)
    for key, schema in definitions["Secrets"]["properties"].items():
        if key != "delivery":
            definitions["Secrets"]["properties"][key] = {
                "description": schema.get("description", ""),
                "anyOf": [
                    ENCRYPTED,
                    {"type": "string"},
                ],
            }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{PROJECT} stack configuration",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **{key: {} for key in stackfile.KEYS if key != "config"},
            "config": {
                "type": "object",
                "properties": {f"{PROJECT}:{key}": value for key, value in properties.items()},
                # Providers' keys are theirs; one of this project that is no setting is a typo.
                "propertyNames": {
                    "anyOf": [
                        {"not": {"pattern": f"^({PROJECT}:|[^:]*$)"}},
                        {"enum": [f"{PROJECT}:{key}" for key in properties]},
                    ]
                },
            },
        },
        "$defs": definitions,
    }


def _describe(definitions: dict[str, Any]) -> None:
    """Add the docstring below each field as its description.

    Pydantic can do it itself, but reads the sources to do so whenever the classes are made: at every preview.
    """
    for module in SECTIONS:
        for section in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(section, ast.ClassDef):
                for field, text in pairwise(section.body):
                    match field, text:
                        case (
                            ast.AnnAssign(target=ast.Name(id=name)),
                            ast.Expr(value=ast.Constant(value=str(description))),
                        ):
                            _describe_field(definitions, section.name, name, inspect.cleandoc(description))


def _describe_field(definitions: dict[str, Any], section: str, field: str, description: str) -> None:
    """Describe a field where it is declared and where it is inherited."""
    found = {kind for module in SECTIONS for kind in vars(module).values() if isinstance(kind, type)}
    kinds = [kind for kind in found if issubclass(kind, BaseModel)]
    for kind in kinds:
        declared_in = next(
            (base.__name__ for base in kind.__mro__ if field in inspect.get_annotations(base)), ""
        )
        names = [kind.__name__] + (["ServingOverride"] if kind is Serving else [])
        for name in names:
            if declared_in == section and field in definitions.get(name, {}).get("properties", {}):
                definitions[name]["properties"][field].setdefault("description", description)
