"""Whether the sections of a stack agree: names that refer to nodes, ports, keys that belong together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from pydantic import SecretStr

from fleet.settings.expose import Expose, certificate_problem
from fleet.settings.problems import Problem
from fleet.settings.ray import RayMachines
from fleet.settings.stack import WATCHING_CONTAINERS, WATCHING_PORTS, Secrets, StackSettings

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
    if settings.expose is not None:
        yield from _gateway(settings.expose, settings.ray, names)
    yield from _containers(settings)
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
