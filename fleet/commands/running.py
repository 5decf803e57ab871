"""Jobs on nodes, from a terminal: their output with the nodes' names, then what became of them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

import typer

from fleet.runner import MAX_PARALLEL, Job, Outcome, Printer, Result, run, worst

READER_GONE = 141
"""What a shell reports for a program that SIGPIPE ended."""


def run_and_report(
    jobs: Sequence[Job],
    *,
    timeout_s: float | None = None,
    max_parallel: int = MAX_PARALLEL,
    as_json: bool = False,
) -> int:
    """Run the jobs, say which failed and why, and return the exit code."""
    out = sys.stderr if as_json else sys.stdout
    colour = out.isatty() and "NO_COLOR" not in os.environ
    printer = Printer([job.label for job in jobs], out.buffer, sys.stderr.buffer, colour=colour)
    try:
        results = asyncio.run(run(jobs, printer, max_parallel=max_parallel, timeout_s=timeout_s))
    except BrokenPipeError:
        # Python would complain once more when it flushes at its own end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    if as_json:
        document = {"exit_status": worst(results), "results": [asdict(result) for result in results]}
        typer.echo(json.dumps(document, indent=1))
    for line in failures(results):
        typer.echo(line, err=True)
    return worst(results)


def failures(results: Sequence[Result]) -> list[str]:
    """One line for each job that failed, below one that counts them; none if all went well."""
    failed = [result for result in results if result.outcome != Outcome.OK]
    if not failed:
        return []
    head = f"fleet: {len(failed)} of {len(results)} failed"
    lines = [
        f"  {result.label}: {result.outcome} after {result.seconds:.1f} s: {result.error}"
        for result in failed
    ]
    unreached = any(result.outcome in {Outcome.UNREACHABLE, Outcome.REFUSED} for result in failed)
    return [head, *lines, *(["  look closer with: fleet check"] if unreached else [])]
