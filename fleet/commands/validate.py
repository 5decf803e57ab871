"""`fleet validate`: what is wrong with a stack's file, without engine, account or network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fleet.validation import Verdict


def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A stack's file, such as Pulumi.prod.yaml.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a stack's file: settings, keys, files, vLLM's flags, whether models fit, cost and policies.

    Everything wrong is said at once. What is encrypted counts as there. The exit code is 0 if nothing is
    wrong and 1 if something is.

    Example: fleet validate Pulumi.prod.yaml
    """
    from fleet.validation import validate as judge  # noqa: PLC0415  --help does without

    verdict = judge(file)
    typer.echo(json.dumps(document(verdict), indent=1) if as_json else "\n".join(lines(file, verdict)))
    raise typer.Exit(0 if verdict.ok else 1)


def document(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON has it."""
    problems = [
        {"field": each.path, "value": each.value, "problem": each.problem, "fix": each.fix}
        for each in verdict.problems
    ]
    return {"ok": verdict.ok, "problems": problems, "warnings": list(verdict.warnings)}


def lines(file: Path, verdict: Verdict) -> list[str]:
    """The verdict for people."""
    count = len(verdict.problems)
    head = f"{file}: ok" if verdict.ok else f"{file}: {count} problem{'s' if count > 1 else ''}"
    said = [
        line
        for each in verdict.problems
        for line in (f"  {each.path}: {each.problem}", *([f"    Fix: {each.fix}"] if each.fix else []))
    ]
    return [head, *said, *(f"  Warning: {warning}" for warning in verdict.warnings)]
