"""The project's program on one configuration after another, against an engine that only notes.

Run as a program: configurations as a JSON list on stdin, as a list of what each led to on stdout. Each has a
process of its own, since the SDK keeps a program's state in its modules.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import pulumi.runtime
import pulumi.runtime.stack

# Loaded once here rather than in each process.
from components import node, preview  # noqa: F401
from policy.rules import RESOURCE_RULES
from policy.subject import Subject

ROOT = Path(__file__).resolve().parents[2]


ANSWERS: dict[str, dict[str, Any]] = {
    "aws:ec2/getSubnets:getSubnets": {"ids": ["subnet-0123456789abcdef0"]},
    "aws:ec2/getSubnet:getSubnet": {
        "id": "subnet-0123456789abcdef0",
        "vpcId": "vpc-1",
        "availabilityZone": "us-east-1a",
    },
    "aws:index/getCallerIdentity:getCallerIdentity": {"accountId": "123456789012"},
    "aws:ssm/getParameter:getParameter": {"value": "ami-0123456789abcdef0"},
    "aws:ec2/getAmi:getAmi": {"id": "ami-0123456789abcdef0", "rootDeviceName": "/dev/sda1"},
}
"""What the providers' functions answer, as far as the program asks."""


class Engine(pulumi.runtime.Mocks):
    """Notes what is registered."""

    def __init__(self) -> None:
        self.registered: list[str] = []
        self.inputs: dict[str, str] = {}
        """What each resource is made from, as JSON."""
        self.broken: list[str] = []
        """What policies say of what is registered, and where they crash."""

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        self.registered.append(args.name)
        self.inputs[args.name] = json.dumps(args.inputs, default=str)
        for rule in RESOURCE_RULES:
            try:
                self.broken += rule(Subject(args.typ, args.name, dict(args.inputs)))
            except Exception as error:
                self.broken.append(f"{rule.__name__} crashed on {args.name}: {error!r}")
        # Linode's ids are numbers.
        return "17" if args.typ.startswith("linode:") else f"{args.name}-id", dict(args.inputs)

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[str, Any]:
        return ANSWERS.get(args.token, {})


def run(config: dict[str, Any]) -> dict[str, Any]:
    """`exit`: the program's status; `said`: its errors; `registered`: names of resources;
    `inputs`: what each is made from, as JSON."""
    engine = Engine()
    said: Any = []
    logger = logging.getLogger("engine")
    logger.propagate = False
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    status: object = 0
    try:
        asyncio.run(_program(engine, logger, config))
    except SystemExit as end:
        status = end.code
    said = "\n".join(said)
    return {
        "exit": status,
        "said": said,
        "registered": engine.registered,
        "inputs": engine.inputs,
        "broken": engine.broken,
    }


async def _program(engine: Engine, logger: logging.Logger, config: dict[str, Any]) -> None:
    pulumi.runtime.set_mocks(engine, project="vllm-fleet", stack="test", preview=True, logger=logger)
    pulumi.runtime.set_all_config({f"vllm-fleet:{key}": json.dumps(value) for key, value in config.items()})
    # set_mocks made a stack; the program needs one of its own, still open.
    pulumi.runtime.settings.set_root_resource(None)  # type: ignore[arg-type]
    await pulumi.runtime.stack.run_in_stack(
        lambda: runpy.run_path(str(ROOT / "__main__.py"), run_name="__main__")
    )  # type: ignore[arg-type, return-value]


def apart(config: dict[str, Any]) -> dict[str, Any]:
    """`run` in a process of its own."""
    reader, writer = os.pipe()
    if not os.fork():
        os.close(reader)
        with os.fdopen(writer, "w") as pipe:
            json.dump(run(config), pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        result: dict[str, Any] = json.load(pipe)
    os.wait()
    return result


if __name__ == "__main__":
    os.chdir(ROOT)
    json.dump([apart(config) for config in json.load(sys.stdin)], sys.stdout)
