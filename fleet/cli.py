"""`fleet`: the commands for daily work. A command's module is loaded when that command is run, not before."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS: dict[str, tuple[str, str]] = {
    "adopt": ("adopt:adopt", "Take a machine of a node's name into the stack instead of buying another."),
    "catalog": ("catalog:app", "GPU types of the clouds, their prices and stock."),
    "check": ("check:check", "Clouds and nodes of a stack, every failure with its fix."),
    "cost-report": ("cost_report:cost_report", "What a stack is billed for."),
    "destroy": ("destroy:destroy", "Remove one node from its cloud and from the state."),
    "diagnose": ("diagnose:diagnose", "Why vLLM did not start, from its own log."),
    "drift": ("drift:drift", "Where clouds and nodes are no longer what the state says."),
    "exec": ("exec:execute", "Run a command on nodes, side by side."),
    "fit": ("fit:fit", "Whether a model fits a GPU, and what would."),
    "job": ("job:app", "GPU jobs on AWS: run a script, follow it, end what is overdue."),
    "logs": ("logs:logs", "Follow what vLLM, cloud-init and the agent write."),
    "plan": ("plan:plan", "The cheapest way to serve a model, over all clouds."),
    "preview": ("preview:preview", "A preview with policies, fit and cost, as a comment."),
    "provision": ("provision:provision", "What nodes are given in phases: Python, Conda, CUDA, Ray, …"),
    "reap": ("reap:reap", "Destroy the nodes that have outlived their ttl_hours."),
    "ssh": ("ssh:ssh", "A shell on a node, its host key verified."),
    "state": ("state:app", "A state in a folder that a crash or a full disk has damaged."),
    "sync": ("sync:sync", "Copy files to nodes with rsync."),
    "top": ("top:top", "GPU and KV-cache use, requests and tokens a second, live."),
    "tunnel": ("tunnel:tunnel", "A node's vLLM and Open WebUI on this machine."),
    "up": ("up:up", "Bring the stack up, with a live view of its nodes."),
    "validate": ("validate:validate", "What is wrong with a stack's file, without engine or account."),
}
"""Name → where it is (module of `fleet.commands` : function or group) and one line of help."""


class LazyGroup(TyperGroup):
    """A group that knows its commands by name and help; the rest of one is loaded when it is run."""

    def __init__(self, **attributes: Any) -> None:
        known = {name: TyperCommand(name, short_help=line) for name, (_, line) in COMMANDS.items()}
        super().__init__(**{**attributes, "commands": known})

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, found, rest = super().resolve_command(ctx, args)
        return name, load(name) if name is not None and found else None, rest


def load(name: str) -> Any:
    """The whole command of that name, ready to run."""
    module, attribute = COMMANDS[name][0].split(":")
    target = getattr(import_module(f"fleet.commands.{module}"), attribute)
    if isinstance(target, typer.Typer):
        target.rich_markup_mode = None
        return typer.main.get_group(target)
    alone = _typer(add_completion=False)
    alone.command(name)(target)
    return typer.main.get_command(alone)


def _typer(**settings: Any) -> typer.Typer:
    # Plain help: loading the library for decorated text would take longer than everything else here.
    return typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"max_content_width": 110},
        **settings,
    )


app = _typer(cls=LazyGroup, name="fleet", no_args_is_help=True)


@app.callback()
def main() -> None:
    """GPU nodes that serve language models: choose, price, check, watch, fix.

    Example: fleet plan --model Qwen/Qwen3-8B-AWQ

    Completion in your shell: fleet --install-completion
    """
