"""Sends away the machines of the cluster that are not among its members any more. Runs on the head."""

import os
import subprocess
import sys
import time
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MEMBERS = Path("/etc/vllm-fleet/ray-members")
RETIRED = Path("/var/lib/ray/retired")
DEADLINE_S = 60.0


@ray.remote(num_cpus=0, max_retries=0)
def leave() -> None:
    # While this is there, ray-worker.service does not start again.
    RETIRED.touch()
    subprocess.run(["pkill", "-x", "raylet"], check=True)


def leaving() -> list[dict]:
    staying = set(MEMBERS.read_text().split())
    return [node for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] not in staying]


ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
for node in leaving():
    sys.stdout.write(f"{node['NodeManagerAddress']} leaves\n")
    # No result comes from a machine that has left.
    leave.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
until = time.monotonic() + DEADLINE_S
while leaving() and time.monotonic() < until:
    time.sleep(0.5)
if left := leaving():
    raise SystemExit(f"still in the cluster: {', '.join(node['NodeManagerAddress'] for node in left)}")
