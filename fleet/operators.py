"""Entry point of the Command resource: the public keys of `access.authorized_keys` open a node, or none do.

They have a file of their own, which OpenSSH reads beside the first one: that one is the
cloud's, and its programs rewrite it at every boot.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace

from fleet import lifeline
from fleet import spec as specs
from fleet.diagnosis import Hints
from fleet.masking import guarded
from fleet.progress import Progress, Stage
from fleet.ssh import Connection, SshError, Target, fingerprint, wait_for_ssh

LEAVING_S = 10.0
"""Seconds for a machine to answer when keys are taken back: it may be gone."""
FILE = "authorized_keys2"
"""In `~/.ssh`; by default sshd's AuthorizedKeysFile names it second."""


@dataclass(frozen=True)
class OperatorsSpec:
    """Whom a node lets in."""

    node: str
    cloud: str
    target: Target
    keys: tuple[str, ...]
    ssh_s: float
    hints: Hints = field(default_factory=Hints)


class NotRead(Exception):
    """The machine's sshd reads no second file of keys, or not even its settings; the message has the fix."""


async def let_in(spec: OperatorsSpec, progress: Progress) -> None:
    """Make these keys, and no others, what the file of operators' keys holds. Raises SshError, NotRead."""
    node = await wait_for_ssh(spec.target, spec.ssh_s, progress)
    try:
        path = f"{_home(spec.target.user)}/.ssh/{FILE}"
        if not spec.keys:
            await node.run(["rm", "-f", path])
            return
        await _refuse_if_unread(node, spec)
        # Readable for the login user, as whom sshd reads it.
        await node.write_file(path, "".join(f"{key}\n" for key in spec.keys).encode(), mode=0o644)
    finally:
        await node.close()


async def _refuse_if_unread(node: Connection, spec: OperatorsSpec) -> None:
    shown = await node.run(["sshd", "-T"], check=False)
    if shown.exit_status != 0:
        (said, *_) = [*shown.stderr.splitlines()[-1:], "no message"]
        raise NotRead(
            f"{spec.node}: `sshd -T` fails there ({said.strip()[:200]}), so it may read no key and not start "
            "again; correct /etc/ssh/sshd_config, then run `pulumi up` again"
        )
    (read, *_) = [*(line for line in shown.stdout.splitlines() if line.startswith("authorizedkeysfile ")), ""]
    if FILE not in read:
        raise NotRead(
            f"{spec.node}: its sshd reads only {read.partition(' ')[2]!r}; let AuthorizedKeysFile in "
            f"/etc/ssh/sshd_config name .ssh/{FILE} too, or leave access.authorized_keys out"
        )


def _home(user: str) -> str:
    return "/root" if user == "root" else f"/home/{user}"


def main() -> int:
    """Read a spec on standard input; `--none` lets none of its keys in."""
    spec = specs.parse(OperatorsSpec, json.load(sys.stdin))
    if sys.argv[1:] == ["--none"]:
        spec = replace(spec, keys=(), ssh_s=min(spec.ssh_s, LEAVING_S))
    progress = Progress(spec.node)
    try:
        lifeline.run(let_in(spec, progress))
    except (SshError, NotRead) as error:
        if not spec.keys:
            # The machine may be gone by now, and its keys with it.
            progress.note(Stage.WORKER_SSH_ACCESSIBLE, f"operators' keys were not taken back: {error}")
            return 0
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{spec.node}: interrupted; the next `pulumi up` sets the operators' keys again\n")
        return lifeline.INTERRUPTED
    sys.stdout.write(json.dumps([fingerprint(key) for key in spec.keys]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
