"""What a node boots with: each variant as a snapshot, its limits, and what changes a machine."""

from __future__ import annotations

import base64
import gzip
import subprocess
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

from fleet import layout, userdata
from fleet.models.sources import script
from fleet.settings import ScalewayNode, Secrets
from fleet.userdata import FILES, STATIC_FILES, AptSource, HostKey, HostPart, UserDataTooLarge
from fleet.weights import read

API_KEY, HF_TOKEN = "sk-planted-0123456789", "hf_planted0123456789"
HOST_KEY = HostKey("-----BEGIN OPENSSH PRIVATE KEY-----\nplanted\n", "ssh-ed25519 AAAA")
LIMIT = 16 * 1024
STATIC = [FILES / name for name in (*STATIC_FILES, "nvidia-container-toolkit.asc")]


def node(**serving: Any) -> ScalewayNode:
    settings = {"model": "Qwen/Qwen3-8B-AWQ", **serving}
    return ScalewayNode.model_validate(
        {"cloud": "scaleway", "name": "l4-a", "type": "L4-2-24G", "serving": settings}
    )


def secrets(**changed: Any) -> Secrets:
    return Secrets.model_validate({"api_key": API_KEY, "hf_token": HF_TOKEN, **changed})


def scaleway(delivery: str = "ssh", **serving: Any) -> HostPart:
    return HostPart.scaleway(node(**serving), secrets(delivery=delivery))


def linode(delivery: str = "ssh", driver_branch: int | None = 580, **serving: Any) -> HostPart:
    return HostPart.linode(node(**serving), secrets(delivery=delivery), HOST_KEY, driver_branch)


def text(host: HostPart) -> str:
    """The document as cloud-init will read it, whatever the cloud wraps around it."""
    data = host.user_data().encode() if host.cloud == "scaleway" else base64.b64decode(host.user_data())
    return (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()


def document(host: HostPart) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(text(host))
    return parsed


def file(host: HostPart, path: str) -> dict[str, str]:
    (found,) = (entry for entry in document(host)["write_files"] if entry["path"] == path)
    return found


class _Yaml(SingleFileSnapshotExtension):
    _write_mode = WriteMode.TEXT
    file_extension = "yaml"


VARIANTS: dict[str, Callable[[], HostPart]] = {
    "scaleway": scaleway,
    "scaleway_webui_secrets_in_user_data": lambda: scaleway("cloud-init", webui=True),
    "linode": linode,
    "linode_image_with_driver": lambda: linode(driver_branch=None),
    "linode_webui_two_gpus_secrets_in_user_data": lambda: linode(
        "cloud-init", 570, webui=True, visible_devices=[0, 1], environment={"HF_ENDPOINT": "http://m'irror"}
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_is_what_was_reviewed(variant: str, snapshot: SnapshotAssertion) -> None:
    shown = text(VARIANTS[variant]())
    # The static files are reviewed where they are.
    for path in STATIC:
        indented = "".join(f"    {line}" if line.strip() else line for line in path.open())
        shown = shown.replace(f"content: |\n{indented}", f"content: # cloudinit/{path.name}\n")
    indented = textwrap.indent(script(), "    ")
    shown = shown.replace(f"content: |\n{indented}", "content: # fleet/weights.py\n")
    assert shown == snapshot(extension_class=_Yaml)


@pytest.mark.parametrize("variant", VARIANTS)
def test_static_files_arrive_unchanged(variant: str) -> None:
    entries = document(VARIANTS[variant]())["write_files"]
    contents = {Path(entry["path"]).name: entry["content"] for entry in entries}
    for path in STATIC:
        assert contents[path.name] == path.read_text()


@pytest.mark.parametrize("variant", VARIANTS)
def test_user_data_is_the_same_every_time(variant: str) -> None:
    assert VARIANTS[variant]().user_data() == VARIANTS[variant]().user_data()


@pytest.mark.parametrize("make", [scaleway, linode])
def test_no_secret_is_in_the_default_user_data(make: Callable[[], HostPart]) -> None:
    assert API_KEY not in text(make())
    assert HF_TOKEN not in text(make())
    assert layout.ENV_PATH not in [entry["path"] for entry in document(make())["write_files"]]


@pytest.mark.parametrize("make", [scaleway, linode])
def test_secrets_go_into_user_data_only_when_asked_and_root_alone_may_read_them(
    make: Callable[[str], HostPart],
) -> None:
    entry = file(make("cloud-init"), layout.ENV_PATH)
    assert entry["permissions"] == "0600"
    assert f"VLLM_API_KEY='{API_KEY}'\n" in entry["content"]
    assert f"HF_TOKEN='{HF_TOKEN}'\n" in entry["content"]


def test_secret_variables_and_logins_come_the_way_that_the_keys_come() -> None:
    given = {
        "environment": {"AWS_SECRET_ACCESS_KEY": "planted-aws"},
        "registries": {"ghcr.io": {"username": "me", "password": "planted-password"}},
    }
    auth = base64.b64encode(b"me:planted-password").decode()
    for delivery in ("ssh", "cloud-init"):
        host = HostPart.scaleway(node(), secrets(**given, delivery=delivery))
        # The container takes the variable from .env, whenever that comes.
        assert "AWS_SECRET_ACCESS_KEY: null" in file(host, layout.COMPOSE_PATH)["content"]
        assert "planted" not in repr(host)
        if delivery == "ssh":
            assert not {"planted-aws", "planted-password", auth} & set(text(host).split("'"))
            assert layout.DOCKER_CONFIG_PATH not in text(host)
            continue
        assert "AWS_SECRET_ACCESS_KEY='planted-aws'\n" in file(host, layout.ENV_PATH)["content"]
        logins = file(host, layout.DOCKER_CONFIG_PATH)
        assert logins["permissions"] == "0600"
        assert yaml.safe_load(logins["content"]) == {"auths": {"ghcr.io": {"auth": auth}}}


def test_what_is_secret_is_not_in_the_repr() -> None:
    shown = repr(linode("cloud-init"))
    assert API_KEY not in shown
    assert "PRIVATE KEY" not in shown


def test_a_machine_that_is_given_its_host_key_publishes_none() -> None:
    assert document(linode())["ssh_keys"]["ed25519_private"] == HOST_KEY.private
    assert "publish" not in str(document(linode())["runcmd"])
    assert "ssh_keys" not in document(scaleway())


def test_the_host_key_is_published_before_anything_that_takes_time() -> None:
    first, *_ = document(scaleway())["runcmd"]
    assert first == [f"{layout.SCRIPTS_DIRECTORY}/publish-host-keys.sh"]


def test_the_weights_are_begun_before_cloud_inits_later_stages() -> None:
    for made in (scaleway(), linode()):
        (early,) = document(made)["bootcmd"]
        # Once, not at every boot; and not before the files it needs are written, which is after `bootcmd`.
        assert early[:2] == ["cloud-init-per", "instance"]
        assert "--property=After=cloud-config.target" in early
        assert early[-3:] == ["start", "--no-block", "vllm-prefetch@weights.service"]


def test_only_a_machine_that_installs_its_driver_restarts() -> None:
    assert document(linode())["power_state"]["mode"] == "reboot"
    assert "power_state" not in document(linode(driver_branch=None))
    assert "power_state" not in document(scaleway())


def test_linodes_user_data_fits_its_metadata_service_by_compression() -> None:
    data = base64.b64decode(linode(webui=True).user_data())
    assert len(data) <= LIMIT
    assert len(text(linode(webui=True))) > LIMIT
    assert data.startswith(b"\x1f\x8b")


def test_scaleways_user_data_stays_readable() -> None:
    assert scaleway().user_data().startswith("#cloud-config\n")


def test_user_data_that_does_not_fit_even_compressed_is_refused_with_its_size() -> None:
    random = [base64.b64encode(bytes(range(i, i + 96))).decode() * 3 for i in range(160)]
    noise = "".join(str(hash((i, word))) for i, word in enumerate(random * 8))
    with pytest.raises(
        UserDataTooLarge, match=r"l4-a: \d{5,} bytes are more than the 16384 that linode takes"
    ):
        linode(environment={"NOISE": noise}).user_data()


# What settings refuse, or a process could not be given.
REFUSED = "\n\r\0"
TEXTS = st.text(st.characters(exclude_characters=REFUSED, exclude_categories=["Cs"]), max_size=40)
# The compose file's own dumper loses NEL, which no setting has a use for.
PRINTABLE = st.text(
    st.characters(exclude_characters=f"{REFUSED}\x85", exclude_categories=["Cs"]), max_size=40
)


@trials(max_examples=60, deadline=None)
@given(value=PRINTABLE, words=st.lists(PRINTABLE, max_size=3))
def test_hostile_texts_reach_the_node_intact(value: str, words: list[str]) -> None:
    host = linode(environment={"HOSTILE": value}, extra_args=[f"--middleware={word}" for word in words])
    service = yaml.safe_load(file(host, layout.COMPOSE_PATH)["content"])["services"]["vllm"]
    assert service["environment"]["HOSTILE"].replace("$$", "$") == value
    given_words = [word.replace("$$", "$") for word in service["command"]]
    assert given_words[len(given_words) - len(words) :] == [f"--middleware={word}" for word in words]


@trials(max_examples=30, deadline=None)
@given(value=TEXTS)
def test_hostile_texts_reach_the_shell_as_one_word(value: str) -> None:
    sourced = file(linode(environment={"HOSTILE": value}), layout.PREFETCH_SETTINGS_PATH)["content"]
    script = f'{sourced}printf "%s\\0" "${{IMAGES[@]}}" "$WEIGHTS" "${{ENVIRONMENT[@]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, timeout=30)
    images, weights, *options = done.stdout.decode().split("\0")[:-1]
    assert images == "vllm/vllm-openai:v0.33.0"
    assert [source.repo for source in read(weights)] == ["Qwen/Qwen3-8B-AWQ"]
    assert f"HOSTILE={value}" in options


BASE = linode()
REPLACING: dict[str, Callable[[], HostPart]] = {
    "driver branch": lambda: linode(driver_branch=570),
    "no driver": lambda: linode(driver_branch=None),
    "package source": lambda: replace(BASE, toolkit=replace(BASE.toolkit, uri="https://mirror.example/")),
    "host keys made by the machine": lambda: replace(BASE, publish_host_keys=True),
}
IN_PLACE: dict[str, Callable[[], HostPart]] = {
    "model": lambda: linode(model="Qwen/Qwen3-32B-AWQ"),
    "serving image": lambda: linode(image="vllm/vllm-openai:v0.10.0"),
    "flags": lambda: linode(extra_args=["--enforce-eager"], max_model_len=4096),
    "port": lambda: linode(port=5002),
    "Open WebUI": lambda: linode(webui=True),
    "way of the secrets": lambda: linode("cloud-init"),
    "API key": lambda: HostPart.linode(node(), secrets(api_key="another-0123456789"), HOST_KEY),
    "host key": lambda: replace(BASE, host_key=HostKey("another", "ssh-ed25519 BBBB")),
}


@pytest.mark.parametrize("change", REPLACING)
def test_a_change_of_the_host_part_changes_the_digest(change: str) -> None:
    assert REPLACING[change]().digest() != BASE.digest()


@pytest.mark.parametrize("change", IN_PLACE)
def test_a_change_of_what_is_served_leaves_the_digest_alone(change: str) -> None:
    assert IN_PLACE[change]().digest() == BASE.digest()


@pytest.mark.parametrize("name", [path.name for path in STATIC])
def test_a_change_of_any_static_file_changes_the_digest(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = linode().digest()
    for path in STATIC:
        (tmp_path / path.name).write_text(path.read_text() + ("\n" if path.name == name else ""))
    monkeypatch.setattr(userdata, "FILES", tmp_path)
    assert linode().digest() != before


def test_static_files_name_the_paths_that_the_layout_names() -> None:
    read = {path.name: path.read_text() for path in STATIC}
    assert f"PathChanged={layout.ENV_PATH}\n" in read["vllm-env.path"]
    assert f"ConditionPathExists={layout.ENV_PATH}\n" in read["vllm.service"]
    assert f"WorkingDirectory={layout.DIRECTORY}\n" in read["vllm.service"]
    assert f"{layout.DIRECTORY}/agent.py --port {layout.AGENT_PORT}\n" in read["vllm-agent.service"]
    assert layout.STAGES_PATH == "/var/lib/vllm-fleet/stages.jsonl"
    assert "readonly STATE=/var/lib/vllm-fleet\n" in read["stages.sh"]
    assert '"$STATE/stages.jsonl"' in read["stages.sh"]
    assert layout.REBOOT_MARK_PATH == "/var/lib/vllm-fleet/reboot-required"
    assert '"$STATE/reboot-required"' in read["setup.sh"]
    assert f". {layout.HOST_SETTINGS_PATH} " in read["setup.sh"]
    assert f". {layout.PREFETCH_SETTINGS_PATH} " in read["prefetch.sh"]


def test_nvidias_key_is_the_one_it_publishes(tmp_path: Path) -> None:
    key = AptSource.nvidia_container_toolkit().key
    shown = subprocess.run(
        ["gpg", "--homedir", tmp_path, "--show-keys", "--with-colons"],
        input=key.encode(),
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout.decode()
    assert "fpr:::::::::C95B321B61E88C1809C4F759DDCAE044F796ECB0:" in shown
