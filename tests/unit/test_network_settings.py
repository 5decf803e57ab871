"""The `network` section reaches everything on a machine that fetches something, and nothing else."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from stack_files import PROXIED, authority, base, folder_with_files, put
from test_job_runner import SPEC
from test_settings import ran

from fleet import cloudconfig, compose, layout, network
from fleet.jobs.pipeline import Pipeline
from fleet.jobs.userdata import UNIT as JOB_UNIT
from fleet.provision.phases import phases_of
from fleet.settings import (
    AwsNode,
    LinodeNode,
    Network,
    Provision,
    ScalewayNode,
    Secrets,
    Serving,
    SettingsError,
    parse,
)
from fleet.userdata import FILES, HostKey, HostPart

PROXY = "http://proxy.example.com:3128"
AUTHORITIES = [authority(), authority()]
WHOLE = Network.model_validate(
    {
        **PROXIED,
        "no_proxy": ["10.0.0.0/8", ".example.com", "mirror.example.com"],
        "ca_certificates": "".join(AUTHORITIES),
        "registry_mirrors": ["https://mirror.example.com/"],
    }
)
SERVING = {"model": "Qwen/Qwen3-8B-AWQ", "webui": True}
SECRETS = Secrets.model_validate({"api_key": "0123456789abcdef"})
KEY = HostKey("-----BEGIN OPENSSH PRIVATE KEY-----\nplanted\n", "ssh-ed25519 AAAA")
NODES: dict[str, Callable[[], HostPart]] = {
    "scaleway": lambda: HostPart.scaleway(
        ScalewayNode(cloud="scaleway", name="a", serving=Serving(**SERVING)), SECRETS
    ),
    "linode": lambda: HostPart.linode(
        LinodeNode(cloud="linode", name="a", region="us-ord", serving=Serving(**SERVING)), SECRETS, KEY
    ),
    "aws": lambda: HostPart.aws(AwsNode(cloud="aws", name="a", serving=Serving(**SERVING)), SECRETS, KEY),
}
CONTAINER = ("vllm", "open-webui")


def files(host: HostPart) -> dict[str, str]:
    return cloudconfig.written_files(cloudconfig.decoded(host.user_data()))


def direct(variables: dict[str, Any]) -> set[str]:
    assert variables["no_proxy"] == variables["NO_PROXY"]
    return set(variables["no_proxy"].split(","))


def job_document(section: Network) -> dict[str, Any]:
    text = gzip.decompress(replace(SPEC, network=section).user_data()).decode()
    document: dict[str, Any] = yaml.safe_load(text)
    return document


@pytest.mark.parametrize("cloud", NODES)
def test_without_the_section_a_node_is_the_same_as_ever(cloud: str) -> None:
    host = NODES[cloud]()
    assert replace(host, network=Network()).user_data() == host.user_data()
    assert "proxy" not in "".join(path for path in files(host))
    assert network.UNIT not in cloudconfig.decoded(host.user_data())


def test_without_the_section_no_container_job_or_phase_is_told_of_it() -> None:
    for service in compose.compose_document(Serving(**SERVING))["services"].values():
        assert not {name for name in service["environment"] if "proxy" in name.lower() or "CERT" in name}
    assert replace(SPEC, network=Network()).user_data() == SPEC.user_data()
    assert network.UNIT not in SPEC.cloud_config()
    assert '"network"' not in SPEC.cloud_config()
    (phase,) = phases_of(Provision.model_validate({"packages": True}), "root")
    assert phase.environment == ("PACKAGES=build-essential curl git",)


@pytest.mark.parametrize("cloud", NODES)
@pytest.mark.parametrize(
    ("path", "lines"),
    [
        (
            "/etc/apt/apt.conf.d/53vllm-fleet-proxy",
            [
                f'Acquire::http::Proxy "{PROXY}";',
                'Acquire::https::Proxy "http://[2001:db8::5]:3128";',
                'Acquire::https::Proxy::mirror.example.com "DIRECT";',
            ],
        ),
        (
            "/etc/systemd/system/docker.service.d/network.conf",
            [f'Environment="HTTP_PROXY={PROXY}"', 'Environment="HTTPS_PROXY=http://[2001:db8::5]:3128"'],
        ),
        ("/etc/vllm-fleet/docker.json", ['{"registry-mirrors": ["https://mirror.example.com"]}']),
        ("/etc/vllm-fleet/ca/vllm-fleet-0.crt", AUTHORITIES[0].splitlines()),
        ("/etc/vllm-fleet/ca/vllm-fleet-1.crt", AUTHORITIES[1].splitlines()),
        ("/etc/systemd/system/vllm-prefetch@.service.d/network.conf", [f"Requires={network.UNIT}"]),
        ("/etc/systemd/system/vllm-setup.service.d/network.conf", [f"After={network.UNIT}"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_section_reaches_the_machine(cloud: str, path: str, lines: list[str]) -> None:
    written = files(replace(NODES[cloud](), network=WHOLE))
    assert set(lines) <= set(written[path].splitlines())


@pytest.mark.parametrize("cloud", NODES)
def test_it_is_in_force_before_anything_is_installed(cloud: str) -> None:
    document = cloudconfig.document(cloudconfig.decoded(replace(NODES[cloud](), network=WHOLE).user_data()))
    *_, connected, set_up = document["runcmd"]
    assert connected == ["systemctl", "start", network.UNIT]
    assert set_up == [f"{layout.SCRIPTS_DIRECTORY}/setup.sh"]


def test_the_weights_are_fetched_by_the_proxy() -> None:
    settings = files(replace(NODES["scaleway"](), network=WHOLE))[layout.PREFETCH_SETTINGS_PATH]
    script = f'{settings}\nenv -i "${{ENVIRONMENT[@]}}" env'
    seen = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    variables = dict(line.split("=", 1) for line in seen.stdout.splitlines())
    assert variables["http_proxy"] == variables["HTTP_PROXY"] == PROXY
    assert variables["https_proxy"] == variables["HTTPS_PROXY"] == "http://[2001:db8::5]:3128"
    assert variables["SSL_CERT_FILE"] == network.BUNDLE_PATH
    assert {"localhost", "10.0.0.0/8"} <= direct(variables)


@pytest.mark.parametrize("name", CONTAINER)
def test_containers_have_the_proxies_and_trust_the_authorities(name: str) -> None:
    service = yaml.safe_load(compose.compose_file(Serving(**SERVING), network=WHOLE))["services"][name]
    variables = service["environment"]
    assert variables["https_proxy"] == variables["HTTPS_PROXY"] == "http://[2001:db8::5]:3128"
    assert f"{network.BUNDLE_PATH}:{network.BUNDLE_PATH}:ro" in service["volumes"]
    assert variables["SSL_CERT_FILE"] == variables["REQUESTS_CA_BUNDLE"] == network.BUNDLE_PATH


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "169.254.169.254", *CONTAINER, "gateway"])
def test_what_is_on_the_machine_is_never_asked_by_a_proxy(host: str) -> None:
    section = Network.model_validate({**PROXIED, "no_proxy": "mirror.example.com"})
    service = compose.compose_document(Serving(**SERVING), network=section)["services"]["vllm"]
    assert {host, "mirror.example.com"} <= direct(service["environment"])
    assert "http://127.0.0.1" in service["healthcheck"]["test"][-1]


def test_the_agent_is_given_no_proxy() -> None:
    written = files(replace(NODES["scaleway"](), network=WHOLE))
    assert not [path for path in written if "agent" in path and path.endswith("network.conf")]


def test_a_job_machine_has_it_all_too() -> None:
    document = job_document(WHOLE)
    written = {entry["path"]: entry["content"] for entry in document["write_files"]}
    unit = written[f"/etc/systemd/system/{JOB_UNIT}.d/network.conf"]
    assert f'Environment="https_proxy={WHOLE.https_proxy}"' in unit
    assert f'Environment="REQUESTS_CA_BUNDLE={network.BUNDLE_PATH}"' in unit
    assert f"Requires={network.UNIT}" in unit
    assert {"/etc/vllm-fleet/docker.json", "/etc/vllm-fleet/ca/vllm-fleet-1.crt"} <= written.keys()
    assert "/etc/systemd/system/docker.service.d/network.conf" in written


def test_jobs_learn_it_from_the_stacks_outputs() -> None:
    outputs: dict[str, Any] = {
        "jobs": {
            **dict.fromkeys(("pipeline", "region", "script", "mount_path", "launch_template_id"), "x"),
            **dict.fromkeys(("file_system_id", "log_group"), "x"),
            "types": [],
            "subnets": [],
            "spot": False,
            "timeout_minutes": 1,
            "max_cost": None,
            "network": WHOLE.model_dump(mode="json"),
        }
    }
    assert Pipeline.of(outputs).network == WHOLE


def test_every_phase_with_a_script_has_it() -> None:
    wanted = Provision.model_validate({"packages": True, "conda": True, "docker": True})
    for phase in phases_of(wanted, "root", network.lines(WHOLE)):
        assert f"https_proxy={WHOLE.https_proxy}" in phase.environment
        assert f"SSL_CERT_FILE={network.BUNDLE_PATH}" in phase.environment


def test_a_change_of_it_replaces_the_machine() -> None:
    host = NODES["scaleway"]()
    digests = {
        replace(host, network=section).digest()
        for section in (Network(), WHOLE, Network(https_proxy=PROXY), Network(ca_certificates=AUTHORITIES[0]))
    }
    assert len(digests) == 4


def test_a_machine_of_a_ray_cluster_has_it_in_its_units() -> None:
    written = files(replace(NODES["scaleway"](), network=WHOLE, serves=False))
    for unit in ("ray-head.service", "ray-worker.service", "vllm-ray.service"):
        assert f'"https_proxy={WHOLE.https_proxy}"' in written[f"/etc/systemd/system/{unit}.d/network.conf"]


def test_a_machine_keeps_what_its_image_has_set_up(tmp_path: Path) -> None:
    for path, content in {
        "etc/environment": "PATH=/usr/bin",
        "etc/docker/daemon.json": '{"runtimes": {"nvidia": {}}}',
        "etc/ssl/certs/ca-certificates.crt": "public and own\n",
        **{path.lstrip("/"): content for path, (content, _) in network.node_files(WHOLE).items()},
    }.items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("systemctl", "update-ca-certificates", "dockerd"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{tmp_path}/calls\n')
        (programs / name).chmod(0o755)
    script = (FILES / "network.sh").read_text().replace("/etc/", f"{tmp_path}/etc/")
    script = script.replace("/usr/local/share/", f"{tmp_path}/share/")
    for _ in range(2):
        subprocess.run(
            ["bash", "-c", script], env={"PATH": f"{programs}:{os.environ['PATH']}"}, check=True, timeout=60
        )
    assert json.loads((tmp_path / "etc/docker/daemon.json").read_text()) == {
        "runtimes": {"nvidia": {}},
        "registry-mirrors": ["https://mirror.example.com"],
    }
    environment = (tmp_path / "etc/environment").read_text().splitlines()
    assert environment == ["PATH=/usr/bin", *network.lines(WHOLE)]
    assert (tmp_path / "share/ca-certificates/vllm-fleet-1.crt").read_text() == AUTHORITIES[1]
    assert (tmp_path / f".{network.BUNDLE_PATH}").read_text() == "public and own\n"
    assert "systemctl try-restart docker.service" in (tmp_path / "calls").read_text()


def test_certificates_come_as_text_or_from_a_file(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("# Example authorities\r\n" + "".join(AUTHORITIES).replace("\n", "\r\n"))
    assert Network(ca_certificates=str(bundle)) == Network(ca_certificates="".join(AUTHORITIES))


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"serving.environment": {"no_proxy": "x"}}, "serving.environment"),
        ({"secrets.environment": {"HTTPS_PROXY": "http://me:hunter2@proxy:3128"}}, "secrets.environment"),
    ],
)
def test_what_the_section_gives_is_given_once(
    changes: dict[str, Any], path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder_with_files(tmp_path))
    config = {**base(), "secrets": {"api_key": "0123456789abcdef"}, "network": PROXIED}
    for key, value in changes.items():
        config = put(config, key, value)
    with pytest.raises(SettingsError) as refused:
        parse(config)
    assert f"{path}: carries" in str(refused.value)
    assert "which network gives; leave it out" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_proxys_password_is_not_repeated() -> None:
    with pytest.raises(ValidationError) as refused:
        Network(https_proxy="http://me:hunter2@proxy:3128")
    assert "hunter2" not in str(refused.value)


def test_the_program_hands_it_to_every_machine(tmp_path: Path) -> None:
    folder_with_files(tmp_path)
    config = put(base(), "access.ssh_private_key_path", str(tmp_path / "id_ed25519"))
    config |= {
        "secrets": {"api_key": "0123456789abcdef"},
        "nodes": [
            {"name": "s", "cloud": "scaleway"},
            {"name": "a", "cloud": "aws"},
        ],
        "ray": [{"name": "pool", "cloud": "scaleway", "type": "L4-2-24G"}],
        "jobs": {"spot": True},
        "network": {"https_proxy": PROXY},
    }
    before, done = ran([{**config, "network": {}}, config])
    assert done["exit"] == 0, done["said"]
    assert not [name for name, inputs in before["inputs"].items() if PROXY in inputs]
    told = {name for name, inputs in done["inputs"].items() if PROXY in inputs}
    assert {"s-server", "pool-head-server", "pool-w0-server"} <= told
    # User data is not known before its host key; what replaces the machine is.
    assert _digest(before) != _digest(done)


def _digest(run: dict[str, Any]) -> str:
    return str(json.loads(run["inputs"]["a-first-boot"])["digest"])
