"""The Linode stand-in under the real engine: what of pulumi-linode the contract of nodes does not show."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Stack

from simcloud.testing import SimCloud, running_simcloud

USER_DATA = base64.b64encode(b"#cloud-config\n# planted-host-key\n").decode()
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGqDL2uu2vYdbMQtRIzRPCe7nPLdTm1BrxtX1lA1dVYz me"
MACHINE = """
    import os, pulumi, pulumi_linode as linode

    given = os.environ.get
    firewall = linode.Firewall(
        "firewall",
        label="dev-a",
        tags=["wall"],
        inbound_policy="DROP",
        outbound_policy="ACCEPT",
        inbounds=[linode.FirewallInboundArgs(
            label="ssh", action="ACCEPT", protocol="TCP", ports="22", ipv4s=[given("CIDR", "203.0.113.7/32")]
        )],
    )
    machine = linode.Instance(
        "machine",
        label=given("LABEL", "dev-a"),
        region="us-ord",
        type="g2-gpu-rtx4000a1-s",
        image=given("IMAGE", "linode/ubuntu24.04"),
        authorized_keys=[given("KEY")],
        firewall_id=firewall.id.apply(int),
        booted=given("BOOTED", "yes") == "yes",
        tags=["Beta", "alpha"],
        metadatas=[linode.InstanceMetadataArgs(user_data=pulumi.Output.secret(given("USER_DATA")))],
        opts=pulumi.ResourceOptions(delete_before_replace=True),
    )
    pulumi.export("ip", machine.ip_address)
    pulumi.export("status", machine.status)
    pulumi.export("disk", machine.specs[0].disk)
"""


@pytest.fixture
def stack(cloud: SimCloud, pulumi: Callable[..., Stack]) -> Stack:
    env = {**cloud.environment, "USER_DATA": USER_DATA, "KEY": KEY}
    return pulumi(MACHINE, env=env)


def test_user_data_is_secret_in_the_state_and_in_what_is_shown(stack: Stack) -> None:
    shown = stack.run("up", "--diff").stdout
    assert USER_DATA not in shown
    assert USER_DATA not in str(stack.state())
    assert USER_DATA in str(stack.state(show_secrets=True))


def test_a_change_is_made_in_place_or_replaces_as_the_real_provider_does(stack: Stack) -> None:
    stack.run("up")
    replaced = {"machine": ["create-replacement", "delete-replaced", "replace"]}
    env: dict[str, str] = {}
    for change, expected in [
        ({"LABEL": "dev-b"}, {"machine": ["update"]}),
        ({"BOOTED": "no"}, {"machine": ["update"]}),
        ({"CIDR": "198.51.100.0/24"}, {"firewall": ["update"]}),
        ({"IMAGE": "linode/debian12"}, replaced),
        ({"USER_DATA": "eA=="}, replaced),
    ]:
        env |= change
        done = stack.run("up", env=env).operations
        assert {name: sorted(each) for name, each in done.items()} == expected
    assert stack.outputs()["status"] == "offline"
    assert stack.run("up", env=env).changes == {}


@pytest.fixture
def slow_cloud(tmp_path: Path) -> Iterator[SimCloud]:
    """Nothing that takes time ends here."""
    with running_simcloud(tmp_path / "slow", nodes="none", speed=100) as running:
        yield running


def test_an_interrupt_ends_the_wait_for_a_machine(slow_cloud: SimCloud, pulumi: Callable[..., Stack]) -> None:
    stack = pulumi(MACHINE, env={**slow_cloud.environment, "USER_DATA": USER_DATA, "KEY": KEY})
    running = stack.start("up")
    running.wait_until(lambda: slow_cloud.inventory("server"), "the machine to be created")
    running.interrupt()
    result = running.wait()
    assert result.code != 0
    assert "interrupted" in result.stdout


def test_a_property_that_is_not_served_is_refused_before_anything_is_made(
    cloud: SimCloud, pulumi: Callable[..., Stack]
) -> None:
    stack = pulumi(
        """
        import pulumi_linode as linode

        linode.Instance("machine", label="ab", region="us-ord", swap_size=1024)
        """,
        env=cloud.environment,
    )
    refused = stack.run("up", expect_failure=True)
    assert "swapSize" in refused.stdout and "does not serve it" in refused.stdout
    assert "'ab' has 2 characters" in refused.stdout
    assert cloud.inventory() == []
