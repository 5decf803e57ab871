"""Entry point of the Command resource: 0 when the node has the release, 1 when it keeps what it had."""

from __future__ import annotations

import json
import os
import sys

from fleet import lifeline
from fleet import spec as specs
from fleet.masking import guarded
from fleet.progress import Progress, Stage
from fleet.rollout.process import RolloutFailed, roll_out
from fleet.rollout.spec import SECRET_ENVIRONMENT, SECRET_REGISTRIES, RolloutSpec


def main() -> int:
    """Read a spec on standard input, the secret lines of `.env` from the environment."""
    spec = specs.parse(RolloutSpec, json.load(sys.stdin))
    release = spec.release(os.environ[SECRET_ENVIRONMENT])
    registries = json.loads(os.environ.get(SECRET_REGISTRIES, "null"))
    progress = Progress(spec.node)
    try:
        outcome = lifeline.run(roll_out(spec, release, progress, registries=registries))
    except RolloutFailed as failed:
        sys.stderr.write(f"{failed}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(
            f"{spec.node}: interrupted; the next `pulumi up` takes up or undoes what was begun\n"
        )
        return lifeline.INTERRUPTED
    progress.note(Stage.WORKER_SSH_ACCESSIBLE, outcome.note)
    report = {"node": spec.node, "release": outcome.release, "reached_from": outcome.reached_from}
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
