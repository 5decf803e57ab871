"""The stack's `network` section as machines read it: variables, apt's, Docker's and systemd's files.

Pure functions of the settings; without the section all of them are empty.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from fleet import gateway, layout
from fleet.settings import DIRECT, Network
from fleet.settings.network import TRUST_VARIABLES

STATIC_FILES = Path(__file__).parent.parent / "cloudinit"

UNIT = "vllm-network.service"
"""Brings into force what `machine_files` writes; what fetches anything waits for it."""
DIRECTORY = "/etc/vllm-fleet"
BUNDLE_PATH = f"{DIRECTORY}/ca-bundle.crt"
"""Public and own authorities together, on the machine and in its containers."""

NEVER_PROXIED = (
    *("localhost", "127.0.0.1", "::1"),
    "169.254.169.254",  # metadata of AWS and Linode
    *("169.254.42.42", "fd00:42::42"),  # metadata of Scaleway
    *("vllm", "open-webui", gateway.SERVICE),  # the services of the compose file
)
"""What is on the machine, or only reachable from it. The healthcheck and the gate ask it."""


def proxies(network: Network) -> dict[str, str]:
    """The proxies' variables, in both cases: some programs read only the one, some only the other."""
    given = {"http_proxy": network.http_proxy, "https_proxy": network.https_proxy}
    lower = {name: url for name, url in given.items() if url}
    if lower:
        lower["no_proxy"] = ",".join(dict.fromkeys([*NEVER_PROXIED, *network.no_proxy]))
    return {**lower, **{name.upper(): value for name, value in lower.items()}}


def environment(network: Network) -> dict[str, str]:
    """What programs that fetch something need in their environment."""
    trusted = dict.fromkeys(TRUST_VARIABLES, BUNDLE_PATH)
    return {**proxies(network), **(trusted if network.ca_certificates else {})}


def machine_files(network: Network) -> dict[str, tuple[str, str]]:
    """Files of a machine of any kind, by path: content and mode."""
    if network == DIRECT:
        return {}
    files = {
        f"{layout.SCRIPTS_DIRECTORY}/network.sh": ((STATIC_FILES / "network.sh").read_text(), "0755"),
        f"{layout.UNITS_DIRECTORY}/{UNIT}": ((STATIC_FILES / UNIT).read_text(), "0644"),
        f"{DIRECTORY}/network.env": ("".join(f"{line}\n" for line in lines(network)), "0644"),
    }
    for index, certificate in enumerate(network.authorities):
        files[f"{DIRECTORY}/ca/vllm-fleet-{index}.crt"] = (certificate, "0644")
    if network.registry_mirrors:
        mirrors = {"registry-mirrors": list(network.registry_mirrors)}
        files[f"{DIRECTORY}/docker.json"] = (json.dumps(mirrors) + "\n", "0644")
    if proxied := proxies(network):
        # The daemon pulls, not the client. It is no part of the ordering: the unit restarts it.
        files[_drop_in("docker.service")] = (_service(proxied), "0644")
    return files


def node_files(network: Network) -> dict[str, tuple[str, str]]:
    """The same for a node, with its package manager and what its boot fetches."""
    files = machine_files(network)
    if not files:
        return {}
    if network.http_proxy or network.https_proxy:
        files["/etc/apt/apt.conf.d/53vllm-fleet-proxy"] = (_apt(network), "0644")
    for unit in ("vllm-prefetch@.service", "vllm-setup.service"):
        files[_drop_in(unit)] = (_ORDERED, "0644")
    return files


def unit_files(network: Network, *units: str) -> dict[str, tuple[str, str]]:
    """What gives systemd units the environment, and starts them after the network is set up."""
    if network == DIRECT:
        return {}
    return {_drop_in(unit): (_ORDERED + _service(environment(network)), "0644") for unit in units}


def lines(network: Network) -> list[str]:
    """The environment as `NAME=value`."""
    return [f"{name}={value}" for name, value in environment(network).items()]


_ORDERED = f"[Unit]\nRequires={UNIT}\nAfter={UNIT}\n"


def _drop_in(unit: str) -> str:
    return f"{layout.UNITS_DIRECTORY}/{unit}.d/network.conf"


def _service(variables: dict[str, str]) -> str:
    # Checked to hold no quote, blank or %, which systemd would read.
    return "[Service]\n" + "".join(f'Environment="{name}={value}"\n' for name, value in variables.items())


def _apt(network: Network) -> str:
    text = ""
    for scheme, url in (("http", network.http_proxy), ("https", network.https_proxy)):
        if url:
            text += f'Acquire::{scheme}::Proxy "{url}";\n'
            # apt has it by exact host; domains and ranges it takes from no_proxy, where that is set.
            direct = [host for host in network.no_proxy if not re.search(r"^\.|[/:]", host)]
            text += "".join(f'Acquire::{scheme}::Proxy::{host} "DIRECT";\n' for host in direct)
    return text
