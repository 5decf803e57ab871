"""The whole stack, and its sections that no node has."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, model_validator

from fleet.cost import ExchangeRate, default_rate
from fleet.settings.expose import Expose, TlsKey
from fleet.settings.jobs import Jobs
from fleet.settings.network import DIRECT, Network
from fleet.settings.nodes import AnyNode, Node
from fleet.settings.observability import Observability
from fleet.settings.provision import Provision
from fleet.settings.ray import RayCluster
from fleet.settings.section import Section
from fleet.settings.serving import Fit, Serving
from fleet.settings.values import (
    ApiKey,
    AsTuple,
    Cidr,
    HuggingFaceToken,
    NodeName,
    PublicKey,
    RegistryHost,
    RegistryPassword,
    SecretEnvironment,
    Words,
    wrong,
)

WATCHING_CONTAINERS = ("prometheus", "grafana", "dcgm-exporter")
WATCHING_PORTS = {3001: "Grafana", 9090: "Prometheus", 9400: "DCGM exporter"}
"""Of what watches a node."""


class JumpHost(Section):
    """A machine through which nodes are reached."""

    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?$", max_length=253)]
    """Its name or address."""
    host_keys: Annotated[tuple[PublicKey, ...], AsTuple] = Field(min_length=1)
    """Its public host keys, as in `ssh-ed25519 AAAA…`; its administrator knows them."""
    user: str = Field(default="root", pattern=r"^[a-z_][a-z0-9_-]{0,31}$")
    """Whom to log in as there."""
    port: int = Field(default=22, ge=1, le=65535)
    """Port of its SSH server."""
    ssh_private_key_path: Path | None = None
    """Private key that opens it; the nodes' own if left out."""


class Access(Section):
    """Who may reach the nodes, and with which key."""

    ssh_cidrs: Annotated[tuple[Cidr, ...], AsTuple] = Field(min_length=1)
    """Address ranges that may open SSH. There is no default: an open port is a decision."""
    ssh_private_key_path: Path
    """Private key that opens the nodes; its public half is registered with the cloud."""
    authorized_keys: Annotated[tuple[PublicKey, ...], AsTuple] = ()
    """Public keys that open the nodes beside that one: other operators', or the next one before a change."""
    jump_host: JumpHost | None = None
    """The machine through which nodes are reached, its address in `ssh_cidrs`; straight if left out."""
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


class Registry(Section):
    """A login at a container registry."""

    username: str = Field(min_length=1, max_length=255, pattern=r"^[^:\x00-\x1f\x7f]+$")
    """Who logs in; registries of clouds have fixed ones, as `oauth2accesstoken` or `nologin`."""
    password: RegistryPassword
    """Password or access token."""


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
    environment: SecretEnvironment = Field(default_factory=dict)
    """More environment variables of the vLLM container that nobody may see, as AWS keys for s3://."""
    registries: dict[RegistryHost, Registry] = Field(default_factory=dict)
    """Logins at container registries, by the host that images name; `docker.io` is Docker Hub."""
    delivery: Literal["ssh", "cloud-init"] = "ssh"
    """`ssh` writes them to the node after first contact; `cloud-init` puts them in its user data."""


def _unquoted_day(value: Any) -> Any:
    """A day without quotes is a moment by the time that the engine hands it over."""
    return value.removesuffix(" 00:00:00 +0000 UTC") if isinstance(value, str) else value


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
    as_of: Annotated[date | None, BeforeValidator(_unquoted_day)] = None
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


OrNone = BeforeValidator(lambda given: None if given == {} else given)
"""A section that is empty, as a project's defaults are, counts as left out."""


class StackSettings(Section):
    """The whole stack."""

    nodes: Annotated[tuple[AnyNode, ...], AsTuple] = ()
    ray: Annotated[tuple[Annotated[RayCluster, Discriminator("cloud")], ...], AsTuple] = ()
    """Ray clusters, each of a head and workers that serve one model together."""
    jobs: Annotated[Jobs | None, OrNone] = None
    """GPU jobs on AWS; none if left out or empty."""
    serving: Annotated[Serving | None, OrNone] = None
    """What the nodes serve; a stack of jobs alone has none."""
    access: Access
    expose: Annotated[Expose | None, OrNone] = None
    """The gateway; if left out or empty, nothing but SSH is open."""
    health: Health = Health()
    network: Network = DIRECT
    """How the machines reach the internet; directly if left out."""
    rollout: Rollout = Rollout()
    fit: Fit = Fit()
    provision: Provision = Provision()
    """What every node is given beside what serves the model."""
    observability: Observability = Observability()
    """What watches the nodes, on their own loopback."""
    budget: Budget = Budget()
    secrets: Annotated[Secrets | None, OrNone] = None
    """Keys and tokens; a stack of jobs alone has none."""

    @property
    def keys(self) -> Secrets:
        """The secrets of a stack that serves, which has them."""
        assert self.secrets is not None, "a stack that serves and has no API key is refused when it is read"
        return self.secrets

    @property
    def machines(self) -> tuple[Node, ...]:
        """Every machine whose cloud is chosen: the nodes, and the members of Ray clusters."""
        placed = tuple(node for node in self.nodes if isinstance(node, Node))
        return (*placed, *(member for cluster in self.ray for member in cluster.members))
