"""Keys and ways to the nodes: who is let in, how a key is changed, and who would be locked out."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fleets import Fleet

from fleet.ssh_key import public_key


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def opens(fleet: Fleet, key: Path) -> bool:
    """Whether a key opens the node, by the command that its output gives."""
    known = str(fleet.config["access"]["ssh_private_key_path"])
    command = fleet.outputs()["nodes"]["a"]["ssh_command"].replace(known, str(key))
    done = subprocess.run(
        f"{command} -o BatchMode=yes true", shell=True, timeout=60, capture_output=True, check=False
    )
    return done.returncode == 0


def test_a_key_is_changed_by_way_of_the_authorized_keys_and_never_at_once(
    fleet: Fleet, tmp_path: Path
) -> None:
    first, second, third = (
        Path(fleet.config["access"]["ssh_private_key_path"]),
        make_key(tmp_path / "second"),
        make_key(tmp_path / "third"),
    )
    access = fleet.config["access"]
    fleet.run("up")
    assert (opens(fleet, first), opens(fleet, second)) == (True, False)
    machine, seen = fleet.parts(), fleet.seen()

    access["ssh_private_key_path"] = str(second)
    for command in ("preview", "up"):
        refused = fleet.run(command, expect_failure=True).stdout
        assert "which does not open what runs: a" in refused
        assert "add the new public key to access.authorized_keys" in refused
    assert fleet.written(after=seen) == []

    access |= {
        "ssh_private_key_path": str(first),
        "authorized_keys": [f"{public_key(key)} {key.name}@example" for key in (second, third)],
    }
    done = fleet.run("up")
    assert done.operations == {"a-operators": ["create"]}
    assert all(opens(fleet, key) for key in (first, second, third))

    access |= {"ssh_private_key_path": str(second), "authorized_keys": [public_key(second)]}
    fleet.run("up")
    assert (opens(fleet, second), opens(fleet, third)) == (True, False)
    assert fleet.parts() == machine
    assert fleet.run("up").operations == {}

    # Without the list nothing would open the running machine: the second key is no other's.
    access["authorized_keys"] = []
    access["ssh_private_key_path"] = str(first)
    fleet.run("destroy")
    assert fleet.left() == []


def test_who_would_be_locked_out_is_warned_and_a_longer_wait_is_no_new_release(fleet: Fleet) -> None:
    fleet.run("up")
    assert fleet.outputs()["nodes"]["a"]["reached_from"] == "127.0.0.1"
    fleet.config["access"]["ssh_cidrs"] = ["203.0.113.7/32"]
    warned = fleet.run("preview").stdout
    assert "a was last reached from 127.0.0.1, which is in none of 203.0.113.7/32" in warned
    assert "Add 127.0.0.1/32" in warned

    fleet.config["access"]["ssh_cidrs"] = ["127.0.0.0/8"]
    assert "locks you out" not in fleet.run("preview").stdout
    fleet.config["health"]["ready_timeout_s"] = 70
    promised = fleet.run("preview").operations
    assert promised["a-serving-gate"] == ["update"]
    assert fleet.run("up").operations == promised
