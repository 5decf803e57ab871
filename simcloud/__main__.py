"""`python -m simcloud`: the embedded clouds on this machine's loopback."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from simcloud.aws import Aws
from simcloud.cloud import Cloud, Simulation
from simcloud.linode import DEV_TOKEN, Linode
from simcloud.machines import NoNodes
from simcloud.nodes import NodeBackend
from simcloud.scaleway import DEV_PROJECT_ID, DEV_SECRET_KEY, Scaleway
from simcloud.server import SimcloudError, down, serve, spawn

DEFAULT_PORT = 18480
DEFAULT_SSH_PORT = 10022


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        status: int = given.run(given)
    except SimcloudError as error:
        print(error, file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="simcloud", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("serve", help="serve the embedded clouds")
    up.set_defaults(run=_serve)
    up.add_argument("--state", type=Path, required=True, help="directory that keeps everything")
    up.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="TCP port on 127.0.0.1; 0 takes a free one"
    )
    up.add_argument(
        "--speed", type=float, default=1.0, help="factor on the real clouds' delays; 0: no delays"
    )
    up.add_argument(
        "--nodes", choices=["light", "vm", "none"], default="light", help="what runs behind a server"
    )
    up.add_argument("--ssh-port", type=int, default=DEFAULT_SSH_PORT, help="port of the nodes' SSH servers")
    up.add_argument(
        "--scaleway-secret-key", action="append", metavar="UUID", help="an accepted key; may be given again"
    )
    up.add_argument("--scaleway-project", default=DEV_PROJECT_ID, metavar="UUID")
    up.add_argument("--linode-token", action="append", metavar="TOKEN", help="an accepted token; likewise")
    up.add_argument("--detach", action="store_true", help="go on in the background once it answers")

    end = commands.add_parser("down", help="end a detached emulator and remove its state")
    end.set_defaults(run=_down)
    end.add_argument("--state", type=Path, required=True)
    return parser


def _serve(given: argparse.Namespace) -> int:
    state: Path = given.state.resolve()
    if given.nodes == "vm":
        _build_machines()
    if given.detach:
        arguments = [
            f"--port={given.port}",
            f"--speed={given.speed}",
            f"--nodes={given.nodes}",
            f"--ssh-port={given.ssh_port}",
            f"--scaleway-project={given.scaleway_project}",
            *(f"--scaleway-secret-key={key}" for key in given.scaleway_secret_key or []),
            *(f"--linode-token={token}" for token in given.linode_token or []),
        ]
        _, running = spawn(state, arguments, detached=True)
        print(f"simcloud ready on {running.base_url} (process {running.pid})")
        return 0

    def backend() -> NodeBackend:
        if given.nodes == "none":
            return NoNodes()
        # Imported here: whoever needs no machines does not wait for their libraries.
        if given.nodes == "vm":
            from simcloud.vm import VmNodes  # noqa: PLC0415

            return VmNodes(ssh_port=given.ssh_port)
        from simcloud.light import LightNodes  # noqa: PLC0415

        return LightNodes(ssh_port=given.ssh_port, speed=given.speed)

    def clouds(simulation: Simulation) -> list[Cloud]:
        secret_keys = given.scaleway_secret_key or [DEV_SECRET_KEY]
        return [
            Scaleway(simulation, secret_keys=secret_keys, project=given.scaleway_project),
            Linode(simulation, tokens=given.linode_token or [DEV_TOKEN]),
            Aws(simulation),
        ]

    serve(
        state,
        port=given.port,
        clouds=clouds,
        make_backend=backend,
        ssh_port=given.ssh_port,
        speed=given.speed,
    )
    return 0


def _build_machines() -> None:
    from simcloud.vm import build  # noqa: PLC0415
    from simcloud.vm.host import HostError  # noqa: PLC0415

    try:
        # Before the process goes to the background: it takes minutes the first time and says what it does.
        build()
    except HostError as error:
        raise SimcloudError(f"--nodes vm: {error}") from error


def _down(given: argparse.Namespace) -> int:
    state: Path = given.state.resolve()
    print(f"simcloud of {state} ended" if down(state) else f"no simcloud was running on {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
