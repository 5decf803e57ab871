"""The policy pack. Mandatory, but where `--policy-pack-config` says otherwise: see `config.*.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pulumi_policy import (
    EnforcementLevel,
    Policy,
    PolicyConfigSchema,
    PolicyPack,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
)

from policy.rules import RESOURCE_RULES
from policy.subject import Subject

WAIVER: dict[str, Any] = {"type": "string", "minLength": 10}
"""Every policy can be waived for a stack, by a sentence that says why, in a file that is reviewed."""


def resource_policy(rule: Callable[[Subject], Iterable[str]]) -> Policy:
    """A rule about single resources, as the engine wants it."""

    def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
        config = args.get_config()
        if config.get("waiver"):
            args.not_applicable(f"waived: {config['waiver']}")
        for violation in rule(Subject.of(args, config)):
            report(violation, None)

    return ResourceValidationPolicy(_name(rule), _description(rule), validate, config_schema=_schema(rule))


def _name(rule: Callable[..., object]) -> str:
    return rule.__name__.replace("_", "-")


def _description(rule: Callable[..., object]) -> str:
    return (rule.__doc__ or "").splitlines()[0]


def _schema(rule: Callable[..., object]) -> PolicyConfigSchema:
    return PolicyConfigSchema({"waiver": WAIVER})


if __name__ == "__main__":
    PolicyPack(
        "vllm-fleet",
        [resource_policy(rule) for rule in RESOURCE_RULES],
        enforcement_level=EnforcementLevel.MANDATORY,
    )
