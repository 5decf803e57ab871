"""Names, tags and rules of a Linode node, and its settings."""

from __future__ import annotations

import ipaddress
import re
import subprocess
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pulumi import Output

from components.gateway import Opening
from components.linode.node import SUFFIX, inbound, label, unique, vlan_address
from components.linode.owned import node_tag
from components.node import Member
from fleet import settings
from fleet.ssh_key import NoPublicKey, public_key


def cluster(network: str) -> settings.RayCluster:
    """No more of a cluster than its network."""
    return settings.LinodeRayCluster.model_construct(network=network)


STACKS = st.from_regex(r"[A-Za-z0-9._-]{1,100}", fullmatch=True)
NODES = st.from_regex(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?", fullmatch=True)


@given(STACKS, NODES, st.sampled_from([32, 50]))
def test_every_label_is_one_that_linode_takes(stack: str, node: str, longest: int) -> None:
    made = label(stack, node, longest)
    assert 3 <= len(made) <= longest
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?", made)
    assert not re.search(r"--|__|\.\.", made)


def test_a_label_is_the_plain_name_where_it_can_be_and_different_where_names_differ() -> None:
    assert label("dev", "rtx-a", 32) == "dev-rtx-a"
    assert label("dev", "a--b", 32) != label("dev", "a-b", 32) == "dev-a-b"
    long = "s" * 40
    assert label(long, "a", 32) != label(long, "b", 32)


@given(STACKS, NODES, st.sampled_from([32, 50]))
def test_labels_of_a_node_s_machines_differ_and_are_ones_that_linode_takes(
    stack: str, node: str, longest: int
) -> None:
    one, other = (unique(label(stack, node, longest - SUFFIX), token) for token in ("0a1b2c3d", "00000000"))
    assert one != other
    assert len(one) <= longest
    assert not re.search(r"--|__|\.\.|[-_.]{2}", one)


@given(STACKS, NODES)
def test_the_node_tag_fits_and_ends_in_the_whole_name(stack: str, node: str) -> None:
    tag = node_tag(f"{stack}/{node}")
    assert len(tag) <= 50
    assert tag.endswith(f"/{node}")


def test_node_tags_of_stacks_whose_long_names_begin_alike_differ() -> None:
    node = "a" * 21
    assert node_tag(f"production-paris/{node}") != node_tag(f"production-milan/{node}")
    assert node_tag(f"prod/{node}") == f"vllm-fleet-node=prod/{node}"


async def test_a_machine_and_its_successor_have_different_addresses_on_their_vlan() -> None:
    for network, size in (("10.77.0.0/24", 32), ("10.77.0.0/26", 20)):
        members = [
            Member(cluster(network), index, "vlan", Output.from_input(""), None) for index in range(size)
        ]
        addresses = [vlan_address(member, generation) for member in members for generation in (4, 5)]
        assert len(set(addresses)) == len(addresses)
        own = {ipaddress.ip_interface(address).network for address in addresses}
        assert own == {ipaddress.ip_network(network)}
        assert not {ipaddress.ip_interface(each).ip for each in addresses} & {
            ipaddress.ip_network(network)[0],
            ipaddress.ip_network(network)[-1],
        }


def test_the_rule_lets_ssh_in_from_each_family_and_leaves_out_what_is_empty() -> None:
    rule: Any = inbound(Opening("ssh", 22, ("203.0.113.7/32", "2001:db8::/64")))
    assert (rule.ports, rule.ipv4s, rule.ipv6s) == ("22", ["203.0.113.7/32"], ["2001:db8::/64"])
    without: Any = inbound(Opening("ssh", 22, ("203.0.113.7/32",)))
    assert without.ipv6s is None


class TestPublicKey:
    @pytest.fixture
    def key(self) -> asyncssh.SSHKey:
        return asyncssh.generate_private_key("ssh-ed25519", comment="me")

    def test_it_is_read_from_the_private_key_or_from_the_file_beside_it(
        self, tmp_path: Path, key: asyncssh.SSHKey
    ) -> None:
        path = tmp_path / "id_ed25519"
        path.write_bytes(key.export_private_key())
        wanted = " ".join(key.export_public_key().decode().split()[:2])
        assert public_key(path) == wanted
        path.write_text("something else")
        path.with_name("id_ed25519.pub").write_bytes(key.export_public_key())
        assert public_key(path) == wanted

    def test_a_key_with_a_passphrase_needs_its_public_half_beside_it(self, tmp_path: Path) -> None:
        path = tmp_path / "id_ed25519"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(path)], check=True)
        assert public_key(path).startswith("ssh-ed25519 ")
        path.with_name("id_ed25519.pub").unlink()
        with pytest.raises(NoPublicKey, match=r"passphrase\); put that beside it: ssh-keygen -y"):
            public_key(path)


class TestSettings:
    @pytest.fixture
    def good(self, tmp_path: Path) -> dict[str, Any]:
        key = tmp_path / "id_ed25519"
        key.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
        key.chmod(0o600)
        return {
            "nodes": [{"name": "a", "cloud": "linode", "region": "us-ord"}],
            "serving": {"model": "Qwen/Qwen3-8B-AWQ"},
            "access": {"ssh_cidrs": ["203.0.113.7/32"], "ssh_private_key_path": str(key)},
            "secrets": {"api_key": "0123456789abcdef"},
        }

    def test_a_region_is_enough(self, good: dict[str, Any]) -> None:
        [node] = settings.parse(good).nodes
        assert isinstance(node, settings.LinodeNode)
        assert (node.type, node.image, node.driver) == ("g2-gpu-rtx4000a1-s", "linode/ubuntu24.04", 580)

    def test_an_image_that_brings_its_driver_gets_none(self, good: dict[str, Any]) -> None:
        good["nodes"][0]["driver_branch"] = "none"
        [node] = settings.parse(good).nodes
        assert isinstance(node, settings.LinodeNode)
        assert node.driver is None

    @pytest.mark.parametrize(
        ("key", "value", "says"),
        [
            ("region", "us-iad", "'us-iad' is not one of the choices"),
            ("type", "g2-gpu-rtx4000", "is not a GPU type of linode; did you mean"),
            ("driver_branch", 545, "is not one of the choices; use 535"),
            ("image", "ubuntu24.04", "is malformed"),
            ("tags", ["ab"], "Linode's tags have 3 to 50 characters"),
            ("root_volume_gb", 600, "is more than the disk of g2-gpu-rtx4000a1-s, 549 GB"),
        ],
    )
    def test_a_wrong_value_is_named_with_its_fix(
        self, good: dict[str, Any], key: str, value: Any, says: str
    ) -> None:
        good["nodes"][0][key] = value
        with pytest.raises(settings.SettingsError) as refused:
            settings.parse(good)
        [problem] = refused.value.problems
        assert problem.path.startswith(f"nodes[0].{key}")
        assert says in str(problem)

    def test_a_key_that_has_no_public_half_is_named_before_anything_is_made(
        self, good: dict[str, Any]
    ) -> None:
        Path(good["access"]["ssh_private_key_path"]).write_text("no key")
        with pytest.raises(
            settings.SettingsError, match=r"access\.ssh_private_key_path: .*gives no public half"
        ):
            settings.parse(good)
