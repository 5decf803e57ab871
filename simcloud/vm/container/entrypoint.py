"""Starts the simulator with what the machine says of its GPUs and of the fault it should have."""

import json
import os
import runpy
import sys
from urllib.request import urlopen

try:
    with urlopen("http://169.254.80.81/vllm", timeout=3) as reply:
        os.environ.update(json.load(reply))
except OSError as error:
    print(f"no word from the machine, going on without: {error}", file=sys.stderr)
sys.argv[0] = "/opt/vllm_sim.py"
runpy.run_path("/opt/vllm_sim.py", run_name="__main__")
