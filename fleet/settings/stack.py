"""The whole stack, and its sections that no node has."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, model_validator

from fleet.cost import ExchangeRate, default_rate
from fleet.settings.expose import Expose, TlsKey, certificate_problem
from fleet.settings.jobs import Jobs
from fleet.settings.nodes import AnyNode, Node
from fleet.settings.observability import Observability
from fleet.settings.provision import Provision
from fleet.settings.ray import RayCluster
from fleet.settings.section import Section
from fleet.settings.serving import Fit, Serving
from fleet.settings.values import ApiKey, AsTuple, Cidr, HuggingFaceToken, NodeName, Words, wrong

WATCHING_PORTS = {3001: "Grafana", 9090: "Prometheus", 9400: "DCGM exporter"}
"""Of what watches a node."""


class Access(Section):
    """Who may reach the nodes, and with which key."""

    ssh_cidrs: Annotated[tuple[Cidr, ...], AsTuple] = Field(min_length=1)
    """Address ranges that may open SSH. There is no default: an open port is a decision."""
    ssh_private_key_path: Path
    """Private key that opens the nodes; its public half is registered with the cloud."""
    ssh_port: int = Field(default=22, ge=1, le=65535)
    """Port the nodes' SSH server listens on; every cloud's images use 22."""


class Health(Section):
    """How long the gate waits, and whether it waits at all."""

    enabled: bool = True
    """False provisions without waiting for vLLM to answer."""
    ssh_timeout_s: int = Field(default=180, ge=10, le=3600)
    """Seconds from power-on to an open SSH port; Scaleway's images need about 20."""
    install_timeout_s: int = Field(default=1800, ge=60, le=14400)
    """Seconds for cloud-init, driver and container runtime, a reboot included."""
    ready_timeout_s: int = Field(default=1800, ge=30, le=14400)
    """Seconds for image pull, model download and load."""
    first_token_timeout_s: int = Field(default=60, ge=1, le=600)
    """Seconds one generated token may take."""


class Secrets(Section):
    """Values that never appear in plain state, logs or arguments."""

    api_key: ApiKey
    """Key that clients of vLLM present."""
    previous_api_key: ApiKey | None = None
    """Key that the gateway still accepts while clients move to `api_key`."""
    tls_key: TlsKey | None = None
    """Private key of `expose.certificate`, PEM."""
    hf_token: HuggingFaceToken | None = None
    """Hugging Face token; gated models need one."""
    delivery: Literal["ssh", "cloud-init"] = "ssh"
    """`ssh` writes them to the node after first contact; `cloud-init` puts them in its user data."""


class Budget(Section):
    """The most a stack may cost. One that would cost more is not deployed."""

    max_cost_per_hour: float | None = Field(default=None, gt=0)
    """Of all nodes together, before tax."""
    max_cost_per_month: float | None = Field(default=None, gt=0)
    """Of all nodes together in 730 hours, before tax."""
    currency: Literal["EUR", "USD"] = "EUR"
    """Of the limits, and of what is shown."""
    usd_per_eur: float | None = Field(default=None, ge=0.1, le=10)
    """US dollars for a euro; the catalog's own rate if left out."""
    as_of: date | None = None
    """The day of that exchange rate."""

    @property
    def rate(self) -> ExchangeRate:
        """The exchange rate that costs are counted with."""
        if self.usd_per_eur is None or self.as_of is None:
            return default_rate()
        return ExchangeRate(self.usd_per_eur, self.as_of, "budget.usd_per_eur")

    @model_validator(mode="after")
    def _a_rate_has_its_day(self) -> Budget:
        if (self.usd_per_eur is None) != (self.as_of is None):
            raise wrong("usd_per_eur: a rate and its day belong together; give as_of with it, or neither")
        return self


class Rollout(Section):
    """How a change of what is served reaches nodes that serve already."""

    max_unavailable: int = Field(default=1, ge=1, le=1000)
    """Nodes that may be between two releases at once. Nodes that serve nothing yet are not counted."""
    canary: NodeName | None = None
    """Node that is rolled out and gated before any other."""
    min_free_disk_gb: int = Field(default=100, ge=1, le=10_000)
    """Least free disk at a node's first deployment, in 10⁹ bytes: image, weights and caches."""
    replace: Literal["changed", "force-recreate", "down"] = "changed"
    """Containers a rollout stops: those that changed, all, or all before any is started again. The last two
    need a confirmation for each deployment."""
    confirm: Words = ()
    """Confirmations, each for one deployment of one node; the error that asks for one says which."""


class StackSettings(Section):
    """The whole stack."""

    nodes: Annotated[tuple[AnyNode, ...], AsTuple]
    ray: Annotated[tuple[Annotated[RayCluster, Discriminator("cloud")], ...], AsTuple] = ()
    """Ray clusters, each of a head and workers that serve one model together."""
    jobs: Annotated[Jobs | None, BeforeValidator(lambda given: given or None)] = None
    """GPU jobs on AWS; none if left out or empty."""
    serving: Serving
    access: Access
    expose: Annotated[Expose | None, BeforeValidator(lambda given: given or None)] = None
    """The gateway; if left out or empty, nothing but SSH is open."""
    health: Health = Health()
    rollout: Rollout = Rollout()
    fit: Fit = Fit()
    provision: Provision = Provision()
    """What every node is given beside what serves the model."""
    observability: Observability = Observability()
    """What watches the nodes, on their own loopback."""
    budget: Budget = Budget()
    secrets: Secrets

    @property
    def machines(self) -> tuple[Node, ...]:
        """Every machine whose cloud is chosen: the nodes, and the members of Ray clusters."""
        placed = tuple(node for node in self.nodes if isinstance(node, Node))
        return (*placed, *(member for cluster in self.ray for member in cluster.members))

    @model_validator(mode="after")
    def _names_agree(self) -> StackSettings:
        if not (self.nodes or self.ray):
            raise wrong("nodes: is empty; give at least one")
        names = [node.name for node in self.nodes]
        if self.rollout.canary not in {None, *names}:
            raise wrong(
                "rollout.canary: no node is named {canary}; name one of {names}",
                canary=self.rollout.canary,
                names=", ".join(names),
            )
        if self.observability.enabled:
            for machine in self.machines:
                if machine.serving.port in WATCHING_PORTS:
                    raise wrong(
                        "serving.port: {port} of {name} is {owner}'s while observability is on; use 8000",
                        port=machine.serving.port,
                        name=machine.name,
                        owner=WATCHING_PORTS[machine.serving.port],
                    )
        names += [member.name for cluster in self.ray for member in cluster.members]
        for name in sorted({name for name in names if names.count(name) > 1}):
            raise wrong(
                "nodes: the name {name} is used {count} times; give each node its own",
                name=name,
                count=names.count(name),
            )
        for node in self.nodes:
            if node.renamed_from in names:
                raise wrong(
                    "nodes: {name} is renamed_from {former}, which is declared as well; leave renamed_from "
                    "out, or the node {former}",
                    name=node.name,
                    former=node.renamed_from,
                )
        return self

    @model_validator(mode="after")
    def _the_gateway_has_all_it_needs(self) -> StackSettings:
        expose, secrets = self.expose, self.secrets
        given = expose.certificate if expose else None
        if (given is None) != (secrets.tls_key is None):
            raise wrong(
                "secrets.tls_key: belongs to expose.certificate; give both, with tls: certificate, or neither"
            )
        if secrets.previous_api_key is not None and expose is None:
            raise wrong(
                "secrets.previous_api_key: needs expose, whose gateway accepts both keys; vLLM takes one"
            )
        if secrets.previous_api_key == secrets.api_key:
            raise wrong(
                "secrets.previous_api_key: is api_key itself; give the one before it, or leave it out"
            )
        if expose is None:
            return self
        for cluster in self.ray:
            if cluster.serve:
                raise wrong(
                    "expose: the gateway does not reach vLLM on the Ray cluster {name}; give the cluster a "
                    "stack of its own without expose, and reach it by: fleet tunnel {name}-head",
                    name=cluster.name,
                )
        names = [node.name for node in self.nodes]
        if not names or expose.gateway not in {None, *names}:
            raise wrong(
                "expose.gateway: no node is named {gateway}; name one of {names}",
                gateway=expose.gateway or "so",
                names=", ".join(names) or "those to be declared under nodes",
            )
        if given is not None and secrets.tls_key is not None:
            problem = certificate_problem(given, secrets.tls_key, expose.domain)
            if problem:
                raise wrong("expose.certificate: {problem}", problem=problem)
        return self
