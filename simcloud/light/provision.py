"""Provisioning on a light machine: nothing is installed, but what was asked for is remembered.

The phases' scripts are not run: they would change the host. A phase that was applied is there from then on,
with the very settings it was applied with.
"""

from __future__ import annotations

import json

from simcloud.light.commands import Call, Failed, handles

STATE = "/var/lib/vllm-fleet/provision.json"
BOOT = "ssh"


@handles("flock")
async def _flock(call: Call) -> int:
    """A phase is run under a lock, by `env NAME=value… bash -s` with the script on standard input."""
    if "env" not in call.args or call.args[-2:] != ["bash", "-s"]:
        raise Failed("flock: only the phases of provisioning are simulated", 2)
    settings = call.args[call.args.index("env") + 1 : -2]
    phase = settings[0].removeprefix("PHASE=")
    mode = (await call.stdin()).decode().rstrip().splitlines()[-1].split()[1]
    if phase == BOOT:
        status = call.machine.cloud_init.status
        if status == "running":
            call.out(f"cloud-init is {status}")
        return 0
    disk = call.machine.disk
    applied = json.loads(disk.read(STATE)) if disk.exists(STATE) else {}
    if mode == "apply":
        disk.write(STATE, json.dumps({**applied, phase: settings}).encode())
    elif applied.get(phase) != settings:
        call.out(f"{phase} is not there")
    return 0
