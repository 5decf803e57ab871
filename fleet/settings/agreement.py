"""Whether the sections of a stack agree: names that refer to nodes, ports, keys that belong together."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from pydantic import SecretStr

from fleet.served_files import MOUNT
from fleet.settings.expose import Expose, certificate_problem
from fleet.settings.nodes import BaseNode, Node
from fleet.settings.problems import Problem, printable
from fleet.settings.ray import RayMachines
from fleet.settings.stack import WATCHING_CONTAINERS, WATCHING_PORTS, Secrets, StackSettings
from fleet.vllm_arguments import paths, render

IN_CONTAINER = ("/models/", "/cache/", "/vllm-workspace/", "/tmp/", "/dev/shm/")  # noqa: S108  (not ours)
"""Folders of vLLM's container in which something may be: mounted, the image's own, or made by vLLM."""

LEFT_TO_NETWORK = "leave it out; network.no_proxy names what is reached directly"


def disagreements(
    settings: StackSettings, names: Collection[str], unknown: Collection[str]
) -> Iterator[Problem]:
    """What is wrong between sections.

    `names` are those of all nodes that the stack declares, `unknown` the paths whose values are stand-ins.
    """
    yield from _canary(settings, names)
    yield from _ports(settings)
    yield from _proxies(settings)
    yield from _names(settings)
    yield from _renamed(settings, names)
    yield from _ways_in(settings)
    if settings.expose is not None:
        yield from _gateway(settings.expose, settings.ray, names)
        yield from _upstreams(settings.expose, settings.nodes)
        yield from _one_task(settings.nodes)
    yield from _containers(settings)
    yield from _served_files(settings)
    if settings.secrets is not None:
        yield from _variables(settings, settings.secrets)
        yield from _keys(settings.expose, settings.secrets)
        if settings.expose is not None and settings.expose.certificate is not None:
            known_key = None if "secrets.tls_key" in unknown else settings.secrets.tls_key
            yield from _certificate(settings.expose, settings.expose.certificate, known_key)


def _canary(settings: StackSettings, names: Collection[str]) -> Iterator[Problem]:
    canary = settings.rollout.canary
    if canary is not None and canary not in names:
        yield Problem(
            "rollout.canary",
            f"no node is named {canary}",
            f"name one of {', '.join(names)}" if names else "leave it out",
            canary,
        )


def _ports(settings: StackSettings) -> Iterator[Problem]:
    if not settings.observability.enabled:
        return
    for machine in settings.machines:
        owner = WATCHING_PORTS.get(machine.serving.port)
        if owner:
            port = machine.serving.port
            taken = f"{port} of {machine.name} is {owner}'s while observability is on"
            yield Problem("serving.port", taken, "use 8000", str(port))
            return


def _containers(settings: StackSettings) -> Iterator[Problem]:
    """vLLM's container has a name that no container beside it has."""
    watching = dict.fromkeys(WATCHING_CONTAINERS if settings.observability.enabled else (), "observability")
    for machine in settings.machines:
        name = machine.serving.container_name
        taken = {
            **watching,
            **({"caddy": "the gateway"} if settings.expose else {}),
            **({"open-webui": "Open WebUI"} if machine.serving.webui else {}),
        }
        if name in taken:
            problem = f"{name} of {machine.name} is the container of {taken[name]}"
            fix = f"leave it out, or write for example vllm-{machine.name}"
            yield Problem("serving.container_name", problem, fix, name)
            return


def _served_files(settings: StackSettings) -> Iterator[Problem]:
    """What vLLM is to read in its container is where the container sees something."""
    for cluster in settings.ray:
        if cluster.serving.files:
            problem = f"vLLM of the Ray cluster {cluster.name} runs without a container that could see them"
            yield Problem("serving.files", problem, "leave it out; provision.files copies to the machines")
            return
    for node in settings.nodes:
        serving = node.serving
        if serving.files and settings.secrets and settings.secrets.delivery == "cloud-init":
            problem = "are delivered over SSH, so a node must not begin to serve by its user data"
            yield Problem("serving.files", problem, "set secrets.delivery: ssh")
            return
        named = [("serving.model", "", serving.model)] if serving.model.startswith("/") else []
        version = serving.vllm_version
        for at, words in (("args", render(serving.args, version)[0]), ("extra_args", serving.extra_args)):
            named += [(f"serving.{at}", f"{flag} ", path) for flag, path in paths(words, version)]
        for field, flag, path in named:
            if wrong := _not_mounted(path, serving.files):
                yield Problem(field, f"{flag}{printable(path)} of {node.name} {wrong[0]}", wrong[1], path)


def _not_mounted(path: str, files: Collection[str]) -> tuple[str, str] | None:
    """What is wrong with a path in vLLM's container, and the fix; None where something may be there."""
    whole = posixpath.normpath(path)
    top, name = [*whole.split("/"), "", ""][1:3]
    if whole.startswith("/") and top == MOUNT.removeprefix("/"):
        if name in files or (not name and files):
            return None
        known = f"; there are {', '.join(sorted(files))}" if files else ""
        fix = f"add it: serving.files: {{{name or 'NAME'}: ./local/path}}{known}"
        return "is in no entry of serving.files", fix
    if whole.startswith(IN_CONTAINER):
        return None
    last = posixpath.basename(whole) or "NAME"
    return (
        "is not a path that vLLM's container has",
        f"deliver it: serving.files: {{{last}: {printable(path)}}}, and write {MOUNT}/{last} here; weights "
        f"on the node are in /models, and what the image brings in /vllm-workspace",
    )


def _variables(settings: StackSettings, secrets: Secrets) -> Iterator[Problem]:
    for machine in settings.machines:
        for name in sorted(secrets.environment.keys() & machine.serving.environment.keys()):
            problem = f"{name} of {machine.name} is in secrets.environment too"
            yield Problem("serving.environment", problem, "leave one of the two out")
            return


def _proxies(settings: StackSettings) -> Iterator[Problem]:
    given = settings.network.variables
    secret = settings.secrets.environment.keys() if settings.secrets else set()
    for name in sorted(given & secret):
        yield Problem("secrets.environment", f"carries {name}, which network gives", LEFT_TO_NETWORK)
    for machine in settings.machines:
        for name in sorted(given & machine.serving.environment.keys()):
            problem = f"carries {name} for {machine.name}, which network gives"
            yield Problem("serving.environment", problem, LEFT_TO_NETWORK)
            return


def _names(settings: StackSettings) -> Iterator[Problem]:
    members = [member.name for cluster in settings.ray for member in cluster.members]
    counted = Counter([*(node.name for node in settings.nodes), *members])
    for name in sorted(name for name, count in counted.items() if count > 1):
        yield Problem(
            "nodes", f"the name {name} is used {counted[name]} times", "give each node its own", name
        )


def _renamed(settings: StackSettings, names: Collection[str]) -> Iterator[Problem]:
    for node in settings.nodes:
        if node.renamed_from is not None and node.renamed_from in names:
            yield Problem(
                "nodes",
                f"{node.name} is renamed_from {node.renamed_from}, which is declared as well",
                f"leave renamed_from out, or the node {node.renamed_from}",
                node.renamed_from,
            )


def _ways_in(settings: StackSettings) -> Iterator[Problem]:
    """A machine without a public address is reached through the jump host."""
    alone = [machine.name for machine in settings.machines if not machine.has_public_address]
    if alone and settings.access.jump_host is None:
        yield Problem(
            "access.jump_host",
            f"is missing, and {alone[0]} has no public address (public_ip: false)",
            "name the machine through which its private address is reached, or leave public_ip out",
        )


def _upstreams(expose: Expose, nodes: Sequence[BaseNode]) -> Iterator[Problem]:
    """The gateway reaches its nodes at the addresses that they have."""
    placed = [node for node in nodes if isinstance(node, Node)]
    private = [node for node in placed if not node.has_public_address]
    if not private:
        return
    public = [node for node in placed if node.has_public_address]
    if public:
        yield Problem(
            "expose",
            f"{private[0].name} has no public address (public_ip: false) and {public[0].name} has one, so "
            "the gateway reaches one of them only",
            "give all nodes of the stack the same public_ip",
        )
    elif len({node.cloud for node in private}) > 1:
        first, other = private[0], next(node for node in private if node.cloud != private[0].cloud)
        yield Problem(
            "expose",
            f"{first.name} on {first.cloud} and {other.name} on {other.cloud} have private addresses alone "
            "(public_ip: false), and the gateway reaches those of its own cloud",
            "give each cloud a stack of its own, or leave public_ip out",
        )
    elif expose.tls == "acme" and expose.acme_directory is None:
        yield Problem(
            "expose.tls",
            "acme needs a public address for Let's Encrypt's challenges, and no node has one "
            "(public_ip: false)",
            "use certificate or internal, or name an authority of your own in expose.acme_directory",
            "acme",
        )


def _one_task(nodes: Sequence[BaseNode]) -> Iterator[Problem]:
    """The gateway sends a request to any of its nodes, and lets through the paths of one task."""
    for node in nodes[1:]:
        first, other = nodes[0].serving.task, node.serving.task
        if first != other:
            yield Problem(
                "expose",
                f"{nodes[0].name} has serving.task {first} and {node.name} {other}, and the gateway balances "
                "over both",
                "give each task a stack of its own, or leave expose out",
            )
            return


def _keys(expose: Expose | None, secrets: Secrets) -> Iterator[Problem]:
    certificate = expose.certificate if expose else None
    if (certificate is None) != (secrets.tls_key is None):
        yield Problem(
            "secrets.tls_key",
            "belongs to expose.certificate",
            "give both, with tls: certificate, or neither",
        )
    if secrets.previous_api_key is None:
        return
    if expose is None:
        yield Problem(
            "secrets.previous_api_key",
            "needs expose, whose gateway accepts both keys",
            "leave it out: vLLM takes one",
        )
    if secrets.previous_api_key == secrets.api_key:
        yield Problem(
            "secrets.previous_api_key", "is api_key itself", "give the one before it, or leave it out"
        )


def _gateway(expose: Expose, clusters: Sequence[RayMachines], names: Collection[str]) -> Iterator[Problem]:
    for cluster in clusters:
        if cluster.serve:
            yield Problem(
                "expose",
                f"the gateway does not reach vLLM on the Ray cluster {cluster.name}",
                "give the cluster a stack of its own without expose, and reach it by: "
                f"fleet tunnel {cluster.name}-head",
            )
            return
    gateway = expose.gateway
    if not names:
        yield Problem("expose.gateway", "needs a node that carries it", "declare one under nodes")
    elif gateway is not None and gateway not in names:
        yield Problem(
            "expose.gateway", f"no node is named {gateway}", f"name one of {', '.join(names)}", gateway
        )


def _certificate(expose: Expose, certificate: str, key: SecretStr | None) -> Iterator[Problem]:
    problem = certificate_problem(certificate, key, expose.domain)
    if problem:
        yield Problem.said("expose.certificate", problem)
