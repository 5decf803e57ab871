"""The provisioning phases as a part of the stack: run by `up` when something of them changed."""

from __future__ import annotations

import json

from fleets import Fleet

PHASES = "a-provisioning-phases"


def test_phases_run_before_what_is_served_and_again_only_when_they_change(fleet: Fleet) -> None:
    script = fleet.stack.folder / "setup.sh"
    script.write_text("#!/bin/bash\ntrue\n")
    fleet.config["provision"] = {"packages": True, "docker": True, "scripts": ["setup.sh"]}
    up = fleet.run("up")
    created = [name for name, operations in up.operations.items() if "create" in operations]
    assert created.index(PHASES) < created.index("a-serving-rollout")
    assert "scripts setup.sh: applied" in up.stdout

    assert fleet.run("preview").operations == {}
    planned = fleet.command("provision", "a", "--plan", "--json")
    assert planned.returncode == 0, planned.stderr
    (report,) = json.loads(planned.stdout)
    assert [(phase["phase"], phase["outcome"]) for phase in report["phases"]] == [
        *(("machine", "unchanged"), ("ssh", "unchanged"), ("packages", "unchanged")),
        *(("docker", "unchanged"), ("scripts setup.sh", "unchanged")),
    ]

    script.write_text("#!/bin/bash\ntrue again\n")
    again = fleet.run("up")
    assert set(again.operations) == {PHASES}
    assert "packages: unchanged" in again.stdout
    assert "scripts setup.sh: applied" in again.stdout
