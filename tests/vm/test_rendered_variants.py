"""Every variant of the user data, judged by the machine's own cloud-init, systemd, compose, apt and bash.

Nothing boots here: the programs run on the unpacked image of the embedded clouds' GPU machines.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import asyncssh
import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from fleet import cloudconfig, layout
from fleet.authority import issue
from fleet.compose import (
    compose_file,
    env_file,
    gateway_environment,
    plain_environment,
    secret_environment,
)
from fleet.gateway import CADDYFILE, NODE_NAME, Gateway, caddyfile
from fleet.settings import AwsNode, Expose, LinodeNode, Node, ScalewayNode, Secrets
from fleet.userdata import FILES, LIMIT_BYTES, STATIC_FILES, AptSource, HostKey, HostPart
from simcloud.vm import build
from simcloud.vm.host import HostError
from simcloud.vm.image import machine_image
from simcloud.vm.testing import Unpacked

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

KINDS: dict[str, tuple[type[Node], dict[str, Any]]] = {
    "scaleway": (ScalewayNode, {"zone": "fr-par-2", "type": "L4-2-24G"}),
    "linode": (LinodeNode, {"region": "us-ord", "type": "g2-gpu-rtx4000a2-s"}),
    "aws": (AwsNode, {"type": "g6.12xlarge"}),
}
BRANCHES = (535, 550, 565, 570, 575, 580)
HOSTILE = "' \" \\ $(false) `false` ${PATH} $$ {{x}} #no: [a, *b] %s é 世界 \t"


def _host_key() -> HostKey:
    key = asyncssh.generate_private_key("ssh-ed25519")
    return HostKey(key.export_private_key().decode(), key.export_public_key().decode().strip())


HOST_KEY = _host_key()


def host(cloud: str, driver: int | None = None, delivery: str = "ssh", **serving: Any) -> HostPart:
    kind, place = KINDS[cloud]
    settings = {"model": "Qwen/Qwen3-8B-AWQ", **serving}
    node = kind.model_validate({"cloud": cloud, "name": "l4-a", "serving": settings, **place})
    secrets = Secrets.model_validate(
        {"api_key": "planted-0123456789", "hf_token": "hf_planted0123456789", "delivery": delivery}
    )
    match cloud:
        case "scaleway":
            return HostPart.scaleway(node, secrets)
        case "linode":
            return HostPart.linode(node, secrets, HOST_KEY, driver)
    return HostPart.aws(node, secrets, HOST_KEY)


SERVED: dict[str, dict[str, Any]] = {
    "one GPU": {"visible_devices": [0]},
    "two GPUs": {"visible_devices": [0, 1], "tensor_parallel_size": 2},
    "hostile texts": {
        "environment": {"HOSTILE": HOSTILE},
        "extra_args": ["--chat-template", HOSTILE],
    },
}
VARIANTS = {
    f"{cloud}, driver {driver}, {served}, webui {webui}, secrets by {delivery}": (
        host(cloud, driver, delivery, webui=webui, **SERVED[served])
    )
    for cloud, drivers in {"scaleway": [None], "linode": [None, 580], "aws": [None]}.items()
    for driver, served, webui, delivery in itertools.product(
        drivers, SERVED, (False, True), ("ssh", "cloud-init")
    )
} | {f"linode, driver {branch}": host("linode", branch) for branch in BRANCHES}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    build()
    return Unpacked(machine_image(), "gpu", tmp_path_factory.mktemp("machine"))


# `cloud-init schema --config-file`, without starting Python for each.
SCHEMA = """
import sys
from cloudinit.cmd.main import main
for path in sys.argv[1:]:
    main(["cloud-init", "schema", "--config-file", path])
"""


def document(variant: HostPart) -> bytes:
    """The cloud-config, as cloud-init has it once it has undone compression."""
    data = variant.user_data().encode()
    data = data if variant.cloud == "scaleway" else base64.b64decode(data)
    assert len(data) <= LIMIT_BYTES[variant.cloud]
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def test_cloud_init_accepts_every_variant(machine: Unpacked) -> None:
    for index, variant in enumerate(VARIANTS.values()):
        machine.write(f"/tmp/user-data/{index}", document(variant))
    told = machine.run("python3", "-c", SCHEMA, *(f"/tmp/user-data/{i}" for i in range(len(VARIANTS))))
    assert told.decode().count("Valid schema") == len(VARIANTS)


def test_compose_reads_every_variant_as_it_was_meant(machine: Unpacked) -> None:
    files = [cloudconfig.written_files(document(each).decode()) for each in VARIANTS.values()]
    for compose in {each[layout.COMPOSE_PATH] for each in files}:
        services = composed(machine, compose)["services"].values()
        assert {port["host_ip"] for service in services for port in service["ports"]} == {"127.0.0.1"}


def test_compose_gives_the_gateway_its_files_and_vllm_none_of_its_keys(machine: Unpacked) -> None:
    issued = issue("test", NODE_NAME)
    expose = Expose.model_validate({"domain": "llm.example.com", "cidrs": ["0.0.0.0/0"]})
    door = Gateway(expose, True, issued.authority, issued.certificate, ("203.0.113.8",))
    secrets = Secrets.model_validate({"api_key": "x" * 16, "previous_api_key": "planted-before-0123"})
    serving = host("scaleway").serving
    environment = gateway_environment(secrets, issued.key, public=True)
    read = composed(machine, compose_file(serving, door), environment)
    vllm, caddy = read["services"]["vllm"], read["services"]["gateway"]
    given = {"VLLM_API_KEY", "HF_TOKEN", "NVIDIA_VISIBLE_DEVICES", "HF_HOME", "VLLM_CACHE_ROOT"}
    assert set(vllm["environment"]) == given
    assert vllm["environment"]["VLLM_API_KEY"] == "planted-0123456789"
    assert caddy["environment"]["VLLM_PREVIOUS_API_KEY"] == "planted-before-0123"
    configs = {use["target"]: read["configs"][use["source"]]["content"] for use in caddy["configs"]}
    assert configs[CADDYFILE].replace("$$", "$") == caddyfile(door, serving.port)
    assert [read["secrets"][use["source"]]["environment"] for use in caddy["secrets"]] == ["GATEWAY_NODE_KEY"]
    # What a secret holds, Compose shows nobody but a container: PEM keeps its lines in .env.
    shown = composed(machine, "services: {a: {image: b, environment: [GATEWAY_NODE_KEY]}}", environment)
    assert shown["services"]["a"]["environment"]["GATEWAY_NODE_KEY"] == issued.key


def composed(
    machine: Unpacked, compose: str, more: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """What `docker compose` makes of a compose file beside the `.env` of these tests."""
    node = host("scaleway").serving
    secrets = Secrets.model_validate({"api_key": "planted-0123456789", "hf_token": "hf_planted0123456789"})
    machine.write(layout.COMPOSE_PATH, compose)
    environment = {**plain_environment(node), **secret_environment(secrets), **more}
    machine.write(layout.ENV_PATH, env_file(environment))
    config = ("docker", "compose", "--project-directory", layout.DIRECTORY, "config", "--format", "json")
    read: dict[str, Any] = json.loads(machine.run(*config))
    return read


def test_systemd_accepts_every_unit(machine: Unpacked) -> None:
    units = [name for name, (where, _) in STATIC_FILES.items() if where == layout.UNITS_DIRECTORY]
    for name, (directory, mode) in STATIC_FILES.items():
        machine.write(f"{directory}/{name}", (FILES / name).read_bytes(), int(mode, 8))
    machine.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=one", *units)


def test_apt_trusts_the_pinned_publisher_and_no_other(machine: Unpacked) -> None:
    written = cloudconfig.written_files(document(host("linode", 580)).decode())
    source = written[f"{layout.SCRIPTS_DIRECTORY}/nvidia-container-toolkit.sources"]
    published = machine_image().archive / "nvidia.github.io/libnvidia-container/stable/deb/amd64"
    for file in ("InRelease", "Release", "Release.gpg", "Packages"):
        machine.write(f"/srv/toolkit/{file}", (published / file).read_bytes())
    local = source.replace(AptSource.nvidia_container_toolkit().uri, "file:/srv/toolkit/")
    assert local != source
    machine.write("/etc/apt/sources.list.d/toolkit.sources", local)
    key = "/etc/apt/keyrings/nvidia-container-toolkit.asc"
    update = ("apt-get", "--error-on=any", "update")

    machine.write(key, written[f"{layout.SCRIPTS_DIRECTORY}/nvidia-container-toolkit.asc"])
    machine.run(*update)
    machine.write(key, machine_image().archive.joinpath("keys/docker.asc").read_bytes())
    with pytest.raises(HostError, match="Missing key"):
        machine.run(*update)


# What settings refuse, or a process could not be given; NEL is no text that YAML 1.1 keeps.
TEXTS = st.text(st.characters(exclude_characters="\n\0\x85", exclude_categories=["Cs"]), max_size=60)

WRITE_FILES = """
import sys
from cloudinit import util
from cloudinit.config import cc_write_files
document = util.load_yaml(util.decomp_gzip(sys.stdin.buffer.read()))
cc_write_files.write_files("write_files", document["write_files"], "root:root")
"""


@trials(max_examples=25, deadline=None)
@given(value=TEXTS, words=st.lists(TEXTS, max_size=3))
def test_hostile_texts_reach_the_container_intact(machine: Unpacked, value: str, words: list[str]) -> None:
    given_words = [f"--middleware={word}" for word in (*words, HOSTILE)]
    variant = host("linode", 580, environment={"HOSTILE": value}, extra_args=given_words)
    machine.run("python3", "-c", WRITE_FILES, stdin=base64.b64decode(variant.user_data()))
    compose = (machine.root / layout.COMPOSE_PATH.lstrip("/")).read_text()
    service = composed(machine, compose)["services"]["vllm"]
    assert service["environment"]["HOSTILE"].replace("$$", "$") == value.replace("$$", "$")
    assert [word.replace("$$", "$") for word in service["command"]][-len(given_words) :] == given_words
    shell = f'. {layout.PREFETCH_SETTINGS_PATH}; printf "%s\\0" "${{ENVIRONMENT[@]}}"'
    assert f"HOSTILE={value}" in machine.run("bash", "-c", shell).decode().split("\0")
