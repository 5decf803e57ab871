"""The policy pack. Mandatory, but where `--policy-pack-config` says otherwise: see `config.*.json`."""

from __future__ import annotations

from typing import Any

from pulumi_policy import (
    EnforcementLevel,
    Policy,
    PolicyConfigSchema,
    PolicyPack,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    StackValidationArgs,
    StackValidationPolicy,
)

from policy.rules import RESOURCE_RULES, Rule, within_budget
from policy.subject import Subject

WAIVER: dict[str, Any] = {"type": "string", "minLength": 10}
"""Every policy can be waived for a stack, by a sentence that says why, in a file that is reviewed."""
BUDGET: dict[str, dict[str, Any]] = {
    "max_cost_per_hour": {"type": "number", "exclusiveMinimum": 0},
    "max_cost_per_month": {"type": "number", "exclusiveMinimum": 0},
    "currency": {"type": "string", "enum": ["EUR", "USD"]},
}


def resource_policy(rule: Rule) -> Policy:
    """A rule about each resource by itself, as the engine wants it."""

    def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
        _unless_waived(args)
        for violation in rule(Subject.of(args, args.get_config())):
            report(violation, None)

    schema = PolicyConfigSchema({"waiver": WAIVER})
    return ResourceValidationPolicy(_name(rule), _description(rule), validate, config_schema=schema)


def budget_policy() -> Policy:
    """What the stack as a whole costs: known when every resource is."""

    def validate(args: StackValidationArgs, report: ReportViolation) -> None:
        _unless_waived(args)
        for resource in args.resources:
            if resource.resource_type == "pulumi:pulumi:Stack":
                for violation in within_budget(Subject.of(resource, args.get_config())):
                    report(violation, None)

    schema = PolicyConfigSchema({"waiver": WAIVER, **BUDGET})
    return StackValidationPolicy(
        _name(within_budget), _description(within_budget), validate, config_schema=schema
    )


def _unless_waived(args: ResourceValidationArgs | StackValidationArgs) -> None:
    if waiver := args.get_config().get("waiver"):
        args.not_applicable(f"waived: {waiver}")


def _name(rule: Rule) -> str:
    return rule.__name__.replace("_", "-")


def _description(rule: Rule) -> str:
    return (rule.__doc__ or "").splitlines()[0]


if __name__ == "__main__":
    PolicyPack(
        "vllm-fleet",
        [*(resource_policy(rule) for rule in RESOURCE_RULES), budget_policy()],
        enforcement_level=EnforcementLevel.MANDATORY,
    )
