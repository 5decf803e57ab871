"""The gateway before vLLM, where a stack is exposed: Caddy's configuration and its part of the compose file.

Pure functions of typed values. The stack has one public door, on one of its nodes. It balances over every
node, itself included: each has a Caddy that ends TLS with a certificate of the stack's own authority and lets
in nothing but requests of what the model is served for, for who holds a key. A node that is not ready, or is
about to change what it serves, says so at `/health`, and gets no request meanwhile.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from fleet import layout
from fleet.engine import tasks

if TYPE_CHECKING:
    # A rollout reads this module, and starts once per node: it needs no pydantic.
    from fleet.settings import Expose

SERVICE = "gateway"
"""Caddy's service in the compose file."""
CONTAINER = "caddy"

READ = ("/health", "/v1/models")
"""What clients GET. Requests go to the paths of what is served, `fleet.engine.tasks.PATHS`, and to no others.
vLLM has more routes, below /v1 and elsewhere, some of them without any key: loading adapters, tokenizing,
metrics. None of those is for the outside.

Each path is allowed in this one spelling. Caddy's own `path` matcher compares a cleaned path and forwards
the raw one: `/metrics/../health` passes as `/health`, and vLLM, whose metrics are mounted on every path that
begins with `/metrics`, answers with metrics."""

NODE_NAME = "node.vllm-fleet.internal"
"""The name by which the gateway knows its nodes, whatever their addresses are."""

HTTP_PORT, HTTPS_PORT = 80, 443
NODE_PORT = 8443
"""Where Caddy, in its container, answers the gateway."""

HEALTH_INTERVAL_S = 2
HEALTH_TIMEOUT_S = 5
DIAL_TIMEOUT_S = 3
TRY_S = 5
"""Seconds in which a request that reached no node is tried with the others."""
UNNOTICED_S = 2.0 * HEALTH_INTERVAL_S
"""Seconds within which the gateway has seen that a node is draining."""
DRAIN_S = 30
"""Seconds the requests of a node, or of the gateway, are given to end once no new ones come."""

DATA_DIRECTORY = "/var/lib/llm/caddy"
"""On the node: ACME's account and certificates, kept over rollouts."""
DRAINING_DIRECTORY = "/run/rollout"
DRAINING_FILE = "journal"
"""There from a rollout's switch to its end, however that comes about: see `fleet.rollout.store`."""

CADDYFILE = "/etc/caddy/Caddyfile"
AUTHORITY = "/etc/caddy/authority.crt"
NODE_CERTIFICATE, NODE_KEY = "/etc/caddy/node.crt", "/run/secrets/node.key"
SITE_CERTIFICATE, SITE_KEY = "/etc/caddy/site.crt", "/run/secrets/site.key"
NODE_KEY_VARIABLE, SITE_KEY_VARIABLE = "GATEWAY_NODE_KEY", "GATEWAY_SITE_KEY"
PREVIOUS_KEY_VARIABLE = "VLLM_PREVIOUS_API_KEY"


@dataclass(frozen=True)
class Gateway:
    """What one node's Caddy is made from."""

    expose: Expose
    two_keys: bool
    """Whether the previous API key is still good."""
    authority: str
    """Certificate of the stack's own authority, PEM."""
    certificate: str
    """The certificate of its nodes, PEM, for NODE_NAME and the domain."""
    others: tuple[str, ...] | None
    """Addresses of the other nodes, for the node with the public door; None for one behind it."""
    task: str = tasks.GENERATE
    """What the nodes serve their model for."""

    @property
    def drains(self) -> bool:
        """Whether others take the requests while this node changes."""
        return self.others is None or bool(self.others)

    @property
    def asks_authority(self) -> bool:
        """Whether this Caddy gets its certificate by ACME."""
        return self.expose.tls == "acme" and self.others is not None

    @property
    def has_own_certificate(self) -> bool:
        """Whether this Caddy shows the certificate that the settings give."""
        return self.expose.tls == "certificate" and self.others is not None


def service(gateway: Gateway, port: int) -> dict[str, Any]:
    """The gateway's part of a compose file: `services`, `configs` and `secrets`. `port` is vLLM's."""
    expose = gateway.expose
    public = gateway.others is not None
    configs = {
        CADDYFILE: caddyfile(gateway, port),
        NODE_CERTIFICATE: gateway.certificate,
        **({AUTHORITY: gateway.authority} if public else {}),
        **({SITE_CERTIFICATE: expose.certificate or ""} if gateway.has_own_certificate else {}),
    }
    keys = {
        NODE_KEY: NODE_KEY_VARIABLE,
        **({SITE_KEY: SITE_KEY_VARIABLE} if gateway.has_own_certificate else {}),
    }
    ports = [f"{HTTPS_PORT}:{HTTPS_PORT if public else NODE_PORT}"]
    ports += [f"{HTTP_PORT}:{HTTP_PORT}"] if gateway.asks_authority else []
    caddy = {
        "image": expose.image,
        "container_name": CONTAINER,
        "restart": "unless-stopped",
        "environment": dict.fromkeys(
            ["VLLM_API_KEY", *([PREVIOUS_KEY_VARIABLE] if gateway.two_keys else [])]
        ),
        "ports": [*ports, f"127.0.0.1:{layout.GATEWAY_CHECK_PORT}:{layout.GATEWAY_CHECK_PORT}"],
        "volumes": [f"{DATA_DIRECTORY}:/data", f"{layout.ROLLOUT_DIRECTORY}:{DRAINING_DIRECTORY}:ro"],
        "configs": [{"source": _name(path), "target": path} for path in configs],
        "secrets": [{"source": _name(path), "target": path} for path in keys],
        # Compose recreates a container when its service changes; what its files hold is no part of that.
        "labels": {"vllm-fleet.gateway": _digest(configs.values())},
        "cap_drop": ["ALL"],
        "cap_add": ["NET_BIND_SERVICE"],
        "security_opt": ["no-new-privileges:true"],
        "stop_grace_period": f"{DRAIN_S + 5}s",
        "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "4"}},
    }
    return {
        "services": {SERVICE: caddy},
        "configs": {_name(path): {"content": text.replace("$", "$$")} for path, text in configs.items()},
        "secrets": {_name(path): {"environment": variable} for path, variable in keys.items()},
    }


def caddyfile(gateway: Gateway, port: int) -> str:
    """Caddy's configuration. It names the keys' variables and is never resolved to their values, so that it
    may be shown, whether as written here or as Caddy adapts it."""
    blocks = [_options(gateway), _api(gateway), *_node(gateway, port)]
    if gateway.others is not None:
        blocks.append(_public_site(gateway, gateway.others))
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _name(path: str) -> str:
    return f"gateway_{PurePosixPath(path).name.lower().replace('.', '_')}"


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


Lines = list[str]


def _block(head: str, *parts: str | Lines) -> Lines:
    inside = [line for part in parts for line in ([part] if isinstance(part, str) else part)]
    return [f"{head} {{".lstrip(), *(f"    {line}" for line in inside), "}"]


def _options(gateway: Gateway) -> Lines:
    expose = gateway.expose
    acme = [
        *([f"email {expose.email}"] if expose.email else []),
        *([f"acme_ca {expose.acme_directory}"] if expose.acme_directory else []),
    ]
    return _block(
        "",
        "admin off",
        # Else Caddy keeps a copy of its configuration on disk, which nothing here resumes from.
        "persist_config off",
        # ACME's challenges come to port 80, and browsers are sent on from there. Else nothing listens there.
        *(acme if gateway.asks_authority else ["auto_https disable_redirects"]),
        # While it stops, answers under way are finished.
        f"grace_period {DRAIN_S:.0f}s",
        _block(
            "servers",
            "protocols h1 h2",
            "max_header_size 64KB",
            # No limit for writing: a long answer takes its time.
            _block("timeouts", "read_header 10s", "read_body 60s", "idle 2m"),
        ),
    )


def _api(gateway: Gateway) -> Lines:
    """Who gets through: the same at the public door and at each node."""
    keys = ["VLLM_API_KEY", *(["VLLM_PREVIOUS_API_KEY"] if gateway.two_keys else [])]
    open_paths = {"GET": READ, "POST": tasks.PATHS[gateway.task]}
    allowed = [_block("not", f"method {method}", _exactly(paths)) for method, paths in open_paths.items()]
    return _block(
        "(api)",
        _block("@elsewhere", *allowed),
        _block(
            "@keyless",
            "not path /health",
            _block("not", *(f'header Authorization "Bearer {{env.{key}}}"' for key in keys)),
        ),
        'respond @elsewhere `{"error":"Not Found"}` 404',
        'respond @keyless `{"error":"Unauthorized"}` 401',
        # Nothing is forwarded but what was matched: the path. No route here reads a query.
        "rewrite * ?",
        _block("request_body", f"max_size {gateway.expose.max_body_mb}MB"),
    )


def _exactly(paths: Iterable[str]) -> str:
    """Matches a request target that is one of the paths, as sent; a query may follow."""
    return rf"vars_regexp {{http.request.uri}} ^(?:{'|'.join(map(re.escape, paths))})(?:\?.*)?$"


def _node(gateway: Gateway, port: int) -> list[Lines]:
    """This node's own vLLM: for the gateway, and for who looks from within the node."""
    draining: list[str | Lines] = [
        _block(
            "@draining",
            "path /health",
            _block("file", f"root {DRAINING_DIRECTORY}", f"try_files {DRAINING_FILE}"),
        ),
        'respond @draining `{"error":"Draining"}` 503',
    ]
    checks = draining if gateway.drains else []
    return [
        _block(
            "(vllm)",
            # Whichever key the client has, vLLM takes one alone.
            _block(f"reverse_proxy vllm:{port}", 'header_up Authorization "Bearer {env.VLLM_API_KEY}"'),
        ),
        _block(
            f":{NODE_PORT}",
            f"tls {NODE_CERTIFICATE} {NODE_KEY}",
            _block("route", "import api", *checks, "import vllm"),
        ),
        _block(f"http://:{layout.GATEWAY_CHECK_PORT}", _block("route", "import api", "import vllm")),
    ]


def _public_site(gateway: Gateway, others: tuple[str, ...]) -> Lines:
    expose = gateway.expose
    certificate = {
        "acme": [],
        "certificate": [f"tls {SITE_CERTIFICATE} {SITE_KEY}"],
        "internal": [f"tls {NODE_CERTIFICATE} {NODE_KEY}"],
    }
    zone = _block("zone clients", "key {remote_host}", f"events {expose.requests_per_minute}", "window 1m")
    limit = [_block("rate_limit", zone)] if expose.requests_per_minute else []
    nodes = [f"https://127.0.0.1:{NODE_PORT}", *(f"https://{address}:{HTTPS_PORT}" for address in others)]
    balance = _block(
        f"reverse_proxy {' '.join(nodes)}",
        "lb_policy least_conn",
        # A request that no node has seen is tried with the next; one that may have begun is not.
        f"lb_try_duration {TRY_S}s",
        "health_uri /health",
        f"health_interval {HEALTH_INTERVAL_S}s",
        f"health_timeout {HEALTH_TIMEOUT_S}s",
        # A failed request says more of its client (too large, gone) than of the node: only /health counts.
        "max_fails 1",
        f"unhealthy_request_count {expose.max_requests}",
        _block(
            "transport http",
            "versions 1.1",
            f"dial_timeout {DIAL_TIMEOUT_S}s",
            f"tls_trusted_ca_certs {AUTHORITY}",
            f"tls_server_name {NODE_NAME}",
        ),
    )
    return _block(
        expose.domain,
        *certificate[expose.tls],
        _block("route", *limit, "import api", balance),
    )
