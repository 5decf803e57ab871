"""vLLM's own parser of `vllm serve`, as a judge: runs in vLLM's environment, one JSON object a line.

The first line it writes describes every option. For each list of words that it then reads, it writes what
they set: `{"values": {option: value}}`, or `{"error": …}` with what the parser printed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from typing import Any

# vLLM logs to standard output: answers have a descriptor of their own.
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

from vllm.entrypoints.cli.serve import ServeSubcommand  # noqa: E402  its imports already write
from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: E402


def reader(function: Any) -> str | None:
    """The name of the function that reads a value; with `optional` before it if `None` is taken as well."""
    inside = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    name = getattr(function, "__name__", None)
    if name in ("_optional_type", "_parse_type"):
        within = next(reader(each) for each in inside if callable(each))
        return f"optional {within}" if name == "_optional_type" else within
    return name


def described(action: argparse.Action, deprecated: bool) -> dict[str, Any]:
    return {
        "names": list(action.option_strings),
        "dest": action.dest,
        "action": type(action).__name__,
        "nargs": action.nargs,
        "choices": None if action.choices is None else list(action.choices),
        "type": reader(action.type),
        "deprecated": deprecated,
    }


def answer(parser: argparse.ArgumentParser, words: list[str]) -> dict[str, Any]:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            # A model comes first, as the parser wants it where `--served-model-name` is given.
            values = vars(parser.parse_args(["serve", "model", *words]))
    except SystemExit:
        return {"error": printed.getvalue()}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "values": {name: value for name, value in values.items() if name not in ("subparser", "model_tag")}
    }


def main() -> None:
    parser = FlexibleArgumentParser(prog="vllm")
    serve = ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    options = [each for each in serve._actions if each.option_strings]
    print(json.dumps([described(each, each in serve._deprecated) for each in options]), file=answers)
    for action in serve._actions:
        action.default = argparse.SUPPRESS
    for line in sys.stdin:
        print(json.dumps(answer(parser, json.loads(line)), default=repr), file=answers)


if __name__ == "__main__":
    main()
