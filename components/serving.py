"""The model on a node: its files delivered over SSH, then the gate. Both are Commands, so each runs exactly
when its inputs changed, and one that failed never enters state and runs again at the next `up`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pulumi
from pulumi import Input, Output, ResourceOptions

from components.command import reached_at, run_module
from fleet import compose, layout, served_files, settings
from fleet.engine import tasks
from fleet.gateway import Gateway
from fleet.models.sources import refs, written
from fleet.rollout.release import Release

if TYPE_CHECKING:
    from components.node import GpuNodeArgs, Machine


class ServedModel(pulumi.ComponentResource):
    """Delivers a node's serving files and waits until the model answers."""

    status: Output[str]
    """`ready`; `provisioned` with the gate switched off; `dry run` where nothing may be changed."""
    rollout: pulumi.Resource
    """The Command that delivers or rolls out."""
    reached_from: Output[str]
    """Our own address as the node saw it at the last rollout; empty where it could not tell."""
    gate: pulumi.Resource | None
    """The Command that waits until the model answers; None where it is switched off."""

    def __init__(
        self, name: str, args: GpuNodeArgs, machine: Machine, opts: ResourceOptions | None = None
    ) -> None:
        super().__init__("vllm-fleet:serving:ServedModel", name, None, opts)
        serving, health, secrets = args.node.serving, args.health, args.secrets
        timeouts = {
            "ssh_s": health.ssh_timeout_s,
            "install_s": health.install_timeout_s,
            "ready_s": health.ready_timeout_s,
            "token_s": health.first_token_timeout_s,
        }
        reached = reached_at(machine, args.access)
        files = served_files.digest(serving.files)
        compose_file = _compose_file(args, files)
        environment = compose.env_file(compose.plain_environment(serving))
        secret_environment = Output.secret(_secret_environment(args))

        rollout = self.rollout = run_module(
            f"{name}-rollout",
            "fleet.rollout",
            reached if isinstance(compose_file, str) else _with(reached, compose_file),
            {
                "node": args.node.name,
                "cloud": args.node.cloud,
                # Of an exposed node it is among what is known later.
                **({"compose": compose_file} if isinstance(compose_file, str) else {}),
                "environment": environment,
                "owner": f"{pulumi.get_project()}/{pulumi.get_stack()}",
                **_files(serving, files),
                "prefetch": written(serving.weights),
                "min_free_gb": args.rollout.min_free_disk_gb,
                "replace": args.rollout.replace,
                "confirm": [word for word in args.rollout.confirm if word.startswith(f"{args.node.name}:")],
                "dry_run": serving.dry_run,
                "drain_s": args.exposure.drain_s if args.exposure else 0.0,
                "timeouts": timeouts,
                "queue": {
                    "directory": f".fleet/rollouts/{pulumi.get_stack()}",
                    "max_unavailable": args.rollout.max_unavailable,
                    # All rollouts of an update start within this time, on a busy machine too.
                    "settle_s": 3.0,
                },
            },
            {
                "FLEET_SECRET_ENVIRONMENT": secret_environment,
                "FLEET_SECRET_REGISTRIES": Output.secret(json.dumps(compose.registry_logins(secrets))),
            },
            [machine.server_id],
            # Not on this component: a component whose dependencies failed cannot register its outputs, which
            # would end the update for every other node too.
            ResourceOptions(parent=self, depends_on=[*machine.ready_when, *args.rollout_after]),
        )
        self.reached_from = Output.unsecret(rollout.stdout).apply(_reached_from)
        if serving.dry_run or not health.enabled:
            status = "dry run" if serving.dry_run else "provisioned"
            self.status = Output.unsecret(rollout.stdout.apply(lambda _: status))
            self.gate = None
            self.register_outputs({"status": self.status})
            return

        gate = self.gate = run_module(
            f"{name}-gate",
            "fleet.gate",
            reached,
            {
                "node": args.node.name,
                "cloud": args.node.cloud,
                "vllm_port": serving.port,
                "served_model": serving.served_name,
                **asked_of(serving),
                "container_name": serving.container_name,
                "gateway_port": layout.GATEWAY_CHECK_PORT if args.exposure else None,
                "refs": [{"name": name, "path": path} for name, path in refs(serving.weights).items()],
                "timeouts": timeouts,
            },
            {
                "FLEET_API_KEY": Output.secret(secrets.api_key.get_secret_value()),
                # For the mask alone: what the node says may hold any of them.
                "FLEET_SECRET_ENVIRONMENT": secret_environment,
            },
            # A new release is a new question, even where the gate's own inputs did not change. Not what the
            # rollout reports: a preview would not know whether that will be another one.
            [machine.server_id, _release(compose_file, environment, secret_environment), *machine.starts],
            ResourceOptions(parent=self, depends_on=[rollout]),
        )
        self.status = Output.unsecret(gate.stdout.apply(lambda _: "ready"))
        self.register_outputs({"status": self.status})


def asked_of(serving: settings.Serving) -> dict[str, object]:
    """What the gate has to know of the questions beyond a completion of the model itself."""
    task = {} if serving.task == tasks.GENERATE else {"task": serving.task}
    more = list(serving.more_served)
    return {**task, **({"more_served": more} if more else {})}


def _release(compose_file: Input[str], environment: str, secret_environment: Output[str]) -> Output[str]:
    """The digest of what is to be served."""
    return Output.unsecret(
        Output.all(compose_file, secret_environment).apply(
            lambda known: Release(known[0].encode(), (environment + known[1]).encode()).digest
        )
    )


def _reached_from(report: str) -> str:
    try:
        return str(json.loads(report).get("reached_from") or "")
    except ValueError:
        return ""


def _with(reached: Output[dict[str, object]], compose_file: Output[str]) -> Output[dict[str, object]]:
    """The part of an exposed node's spec that is known later."""
    return Output.all(reached, compose_file).apply(lambda known: {**known[0], "compose": known[1]})


def _compose_file(args: GpuNodeArgs, files: str) -> str | Output[str]:
    """The compose file; of an exposed node known once its gateway is."""

    def rendered(door: Gateway | None) -> str:
        return compose.compose_file(args.node.serving, door, args.secrets.environment, args.network, files)

    return args.exposure.gateway().apply(rendered) if args.exposure else rendered(None)


def _files(serving: settings.Serving, digest: str) -> dict[str, object]:
    """What the rollout has to know of the files that the model is served with."""
    if not serving.files:
        return {}
    named = [{"name": name, "source": str(source)} for name, source in sorted(serving.files.items())]
    return {"files": named, "files_digest": digest}


def _secret_environment(args: GpuNodeArgs) -> Input[str]:
    """The secret lines of `.env`."""
    secrets = args.secrets
    needed = compose.secret_environment(secrets)
    if args.exposure is None:
        return compose.env_file(needed)
    public = args.exposure.carries
    return args.exposure.certificate.key.apply(
        lambda key: compose.env_file(needed | compose.gateway_environment(secrets, key, public=public))
    )
