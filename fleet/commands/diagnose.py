"""`fleet diagnose`: why vLLM did not start, from its own log: one that was pasted, or a node's."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from fleet.commands import nodes
from fleet.commands.nodes import StackName, complete

if TYPE_CHECKING:
    from fleet.engine_log import Reading

NOT_NAMED = 3
"""Exit code when the log holds none of the known faults."""
UNREACHED = 1
"""Exit code when the node's log could not be read."""
NODE_LINES = 5000
"""Last lines of a node's log that are read: several starts of eight workers."""
NODE_S = 60.0
"""Seconds for a node to hand over its log."""
LONGEST = 16_000_000
"""Bytes of a log's end that are read."""
CHUNK = 1_000_000


def diagnose(
    node: Annotated[
        str | None, typer.Argument(help="Node whose log is read.", autocompletion=complete)
    ] = None,
    log: Annotated[
        str | None,
        typer.Option("--log", metavar="FILE", help="A log on this machine; - is standard input."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    stack: StackName = None,
) -> None:
    """Name why vLLM did not start, with its proof and a fix as settings.

    Reads the log of a node over SSH, or one that was saved or pasted, for which neither engine nor account is
    needed. The exit code is 0 if the cause is named and 3 if not.

    Example: fleet diagnose --log vllm.log
    """
    from fleet import engine_log  # noqa: PLC0415  --help does without

    if (node is None) == (log is None):
        raise typer.BadParameter("name a node, or give a log with --log FILE (--log - reads standard input)")
    if log is not None:
        text = _saved(log)
    else:
        assert node is not None
        text = _of_node(node, stack)
    reading = engine_log.read(text)
    found = document(reading)
    typer.echo(json.dumps(found, indent=1, ensure_ascii=False) if as_json else "\n".join(lines(found)))
    raise typer.Exit(0 if reading.fault else NOT_NAMED)


def document(reading: Reading) -> dict[str, Any]:
    """What was found, as JSON has it: bounded lines, secrets masked."""
    from fleet.diagnosis import quote  # noqa: PLC0415  --help does without
    from fleet.masking import of_environment  # noqa: PLC0415

    secrets = sorted(of_environment(os.environ))
    fault = reading.fault
    return {
        "fault": fault.name.lower() if fault else None,
        "seen": [quote(line, secrets) for line in reading.seen],
        "cause": f"{fault.summary}: {fault.cause}" if fault else "",
        "fix": reading.fix if fault else "",
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    seen = [f"  seen:  {line}" for line in found["seen"]]
    if not found["fault"]:
        return ["not named: the log holds none of the known causes", *seen]
    return [found["fault"], *seen, f"  cause: {found['cause']}", f"  fix:   {found['fix']}"]


def _saved(log: str) -> str:
    """The end of a log on this machine."""
    if log == "-":
        return _end(sys.stdin.buffer)
    try:
        with Path(log).open("rb") as file:
            return _end(file)
    except OSError as error:
        raise typer.BadParameter(
            f"{log} cannot be read: {error.strerror}; name a log file, or - for standard input",
            param_hint="--log",
        ) from None


def _end(stream: BinaryIO) -> str:
    """The last bytes of a stream of any length, as text."""
    kept = b""
    while chunk := stream.read(CHUNK):
        kept = (kept + chunk)[-LONGEST:]
    return kept.decode(errors="replace")


def _of_node(name: str, stack: str | None) -> str:
    """The end of a node's log; what is printed from then on holds none of the stack's secrets."""
    import asyncio  # noqa: PLC0415  --help does without

    from fleet.commands.logs import Source, log_command  # noqa: PLC0415
    from fleet.commands.running import failures  # noqa: PLC0415
    from fleet.diagnosis import quote  # noqa: PLC0415
    from fleet.runner import Job, Outcome, run  # noqa: PLC0415

    with nodes.told():
        nodes.guard_output(stack)
        node = nodes.find_one(name, stack)
        # One stream keeps tracebacks, which go to standard error, in their place among the other lines.
        command = f"{log_command(node, Source.VLLM, NODE_LINES, follow=False)} 2>&1"
        job = Job(node.name, node, command)
    written: list[bytes] = []
    results = asyncio.run(run([job], lambda _, __, more: written.extend(more), timeout_s=NODE_S))
    if results[0].outcome != Outcome.OK:
        said = [each.decode(errors="replace") for each in written[-1:]]
        for line in [*failures(results), *(f"  {quote(each)}" for each in said)]:
            typer.echo(line, err=True)
        raise typer.Exit(UNREACHED)
    return b"\n".join(written).decode(errors="replace")
