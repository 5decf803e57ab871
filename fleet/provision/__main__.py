"""Entry point of the Command resource: 0 when every phase is there, 1 when one failed."""

from __future__ import annotations

import json
import sys

from fleet import lifeline
from fleet import spec as specs
from fleet.masking import guarded
from fleet.progress import Progress
from fleet.provision.process import provision
from fleet.provision.spec import ProvisionSpec


def main() -> int:
    """Read a spec on standard input."""
    spec = specs.parse(ProvisionSpec, json.load(sys.stdin))
    try:
        report = lifeline.run(provision(spec, Progress(spec.node)))
    except KeyboardInterrupt:
        sys.stderr.write(f"{spec.node}: interrupted; the next `pulumi up` goes on from there\n")
        return lifeline.INTERRUPTED
    if report.failed:
        sys.stderr.write(f"{report.failure_text()}\n")
        return 1
    sys.stdout.write(
        json.dumps({"node": spec.node, "phases": [phase.phase for phase in report.phases]}) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
