"""The gateway: its configuration as reviewed, and the real Caddy with it before simulated models."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from light_fleet import LightFleet, light_fleet, until
from pydantic import SecretStr
from raw_http import Answer, Http1, Http2
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

from fleet import authority, compose, layout
from fleet.authority import Issued, issue
from fleet.check import Finding, Status, check_node
from fleet.engine import tasks
from fleet.gateway import NODE_NAME, Gateway, caddyfile
from fleet.inventory import FleetNode
from fleet.settings import Expose, Secrets, Serving
from fleet.settings.expose import certificate_problem
from fleet.ssh import NothingListens, connect
from simcloud.caddy import caddy

DOMAIN = "llm.example.com"
KEY, OLD_KEY = "sk-planted-0123456789", "sk-planted-before-0123"
SERVING = Serving(model="Qwen/Qwen3-8B-AWQ")


def expose(**changed: Any) -> Expose:
    given = {"domain": DOMAIN, "cidrs": ["0.0.0.0/0"], "max_body_mb": 1, **changed}
    return Expose.model_validate(given)


class _Caddyfile(SingleFileSnapshotExtension):
    _write_mode = WriteMode.TEXT
    file_extension = "Caddyfile"


VARIANTS = {
    "alone": Gateway(expose(tls="internal"), False, "", "", ()),
    "before_another_node": Gateway(
        expose(email="ops@example.com", requests_per_minute=600, image="example.com/caddy:2.10.2"),
        True,
        "",
        "",
        ("203.0.113.8",),
    ),
    "behind_the_gateway": Gateway(expose(), True, "", "", None),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_configuration_is_what_was_reviewed(variant: str, snapshot: SnapshotAssertion) -> None:
    assert caddyfile(VARIANTS[variant], 8000) == snapshot(extension_class=_Caddyfile)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_paths_of_the_task_are_open_and_no_others(task: str) -> None:
    document = compose.compose_document(Serving(model="acme/model", task=task), VARIANTS["alone"])
    text = str(document["configs"]["gateway_caddyfile"]["content"])
    opened = re.findall(r"\^\(\?:([^)]*)\)", text)
    assert [each.replace("\\", "").split("|") for each in opened] == [
        ["/health", "/v1/models"],
        list(tasks.PATHS[task]),
    ]


@dataclass
class Clients:
    """What the outside sees of two nodes, the first of which is the gateway."""

    fleet: LightFleet
    issued: Issued
    """To the nodes."""
    site: Issued
    """To the domain, by somebody else."""
    http: httpx.AsyncClient

    async def serve(self, *, two_keys: bool = True, **changed: Any) -> None:
        """Bring both nodes to what the settings say; `changed` are those of the gateway."""
        addresses = [boot.address for boot in self.fleet.boots]
        secrets = Secrets(
            api_key=SecretStr(KEY),
            previous_api_key=SecretStr(OLD_KEY) if two_keys else None,
            tls_key=SecretStr(self.site.key),
        )
        wanted = expose(tls="certificate", certificate=self.site.certificate, **changed)
        for index, others in ((0, tuple(addresses[1:])), (1, None)):
            door = Gateway(wanted, two_keys, self.issued.authority, self.issued.certificate, others)
            environment = {
                **compose.plain_environment(SERVING),
                **compose.secret_environment(secrets),
                **compose.gateway_environment(secrets, self.issued.key, public=door.others is not None),
            }
            async with connect(self.fleet.target(index)) as node:
                await node.run(["install", "-d", layout.DIRECTORY])
                await node.write_file(layout.COMPOSE_PATH, compose.compose_file(SERVING, door).encode())
                await node.write_file(layout.ENV_PATH, compose.env_file(environment).encode())
        await self.up(0)
        await self.up(1)

    async def up(self, index: int) -> None:
        await self.on(index, "docker", "compose", "--project-directory", layout.DIRECTORY, "up", "-d")

    async def on(self, index: int, *argv: str) -> str:
        async with connect(self.fleet.target(index)) as node:
            return (await node.run(argv)).stdout

    async def ask(self, method: str, path: str, key: str | None = KEY, **request: Any) -> int:
        headers = {"Host": DOMAIN, **({"Authorization": f"Bearer {key}"} if key else {})}
        url = f"https://{self.fleet.boots[0].address}{path}"
        named = {"sni_hostname": DOMAIN}
        return (
            await self.http.request(method, url, headers=headers, extensions=named, **request)
        ).status_code

    async def complete(self, key: str = KEY) -> int:
        """A completion; 0 where the connection was lost."""
        request = {"model": SERVING.model, "prompt": "1", "max_tokens": 1}
        try:
            return await self.ask("POST", "/v1/completions", key, json=request)
        except httpx.TransportError:
            return 0

    async def until_ready(self) -> None:
        async def ready() -> bool:
            try:
                async with connect(self.fleet.target(1)) as node:
                    behind = (await node.http("GET", layout.GATEWAY_CHECK_PORT, "/health")).status
                return behind == await self.ask("GET", "/health", None) == 200
            except (NothingListens, httpx.TransportError):
                return False

        await until(ready)

    async def served(self) -> list[float]:
        """Completions that each node has finished."""
        return await self.counted("vllm:request_success_total")

    async def counted(self, metric: str) -> list[float]:
        """A metric of vLLM's on each node."""
        found = []
        for index in range(2):
            async with connect(self.fleet.target(index)) as node:
                metrics = (await node.http("GET", 8000, "/metrics")).body.decode()
            lines = [line for line in metrics.splitlines() if line.startswith(metric)]
            found.append(sum(float(line.split()[-1]) for line in lines))
        return found


@pytest.fixture
async def clients(tmp_path: Path) -> AsyncIterator[Clients]:
    caddy()  # where it cannot be had, the test says so at once
    issued, site = issue("vllm-fleet test", NODE_NAME), issue("a public authority", DOMAIN)
    trust = ssl.create_default_context(cadata=site.authority)
    async with light_fleet(tmp_path, 2) as fleet, httpx.AsyncClient(verify=trust, timeout=20) as http:
        clients = Clients(fleet, issued, site, http)
        await clients.serve()
        await clients.until_ready()
        yield clients


async def test_the_openai_api_is_there_for_who_holds_a_key_and_nothing_else_is(clients: Clients) -> None:
    assert await clients.complete(KEY) == 200
    assert await clients.complete(OLD_KEY) == 200
    assert await clients.complete("sk-somebody-elses-key") == 401
    assert await clients.ask("GET", "/v1/models", key=None) == 401
    for method, path in (
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("POST", "/tokenize"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/../tokenize"),
        ("GET", "/V1/MODELS/../../metrics"),
        ("DELETE", "/v1/models"),
        ("POST", "/health"),
    ):
        assert await clients.ask(method, path) == 404, (method, path)
    assert await clients.ask("POST", "/v1/completions", content=b"x" * 1_100_000) == 413
    assert await clients.complete() == 200  # nothing of that counts against the nodes


UP = ("..", "%2e%2e", ".%2e", "%2E.", "%252e%252e")
SLASH = ("/", "//", "/./", "%2f", "%2F", "%5c")
SPELLINGS = [
    # Cleaned, it is an allowed path; as sent, it begins with what vLLM mounts its metrics on.
    *(f"/metrics{slash}{up}/health" for up in UP for slash in SLASH),
    *(f"/metrics/{up}{slash}v1/models" for up in UP for slash in SLASH),
    "/metrics",
    "/metrics/",
    "//metrics",
    "/./metrics",
    "/metrics?/health",
    "/metrics%3f/health",
    "/metrics%00/../health",
    "/metrics;/../health",
    "/metrics#/../health",
    "/metricsx/../health",
    "/%6detrics/../health",
    "/%6d%65%74%72%69%63%73",
    "/%6Detrics",
    "/metrics%0a",
    "/metrics/x/../../health",
    "/metrics/../../../health",
    "/metrics/../HEALTH",
    "/health/../metrics",
    "/health/..%2fmetrics",
    "/health%2f..%2fmetrics",
    "/v1/models/../../metrics",
    "/v1/models/%2e%2e/%2e%2e/metrics",
    "/v1/../metrics",
    f"https://{DOMAIN}/metrics",
    f"https://{DOMAIN}/metrics/../health",
    f"http://{DOMAIN}/metrics/../health",
    "/V1/MODELS",
    "/v1/models/",
    "/v1/models/Qwen",
    "/v1//models",
    "//v1/models",
    "/v1/%6dodels",
    "/v1%2fmodels",
    "/v1/models%3f",
    "/v1/models%00",
    "/v1/models%20",
    "/v1/models;x",
    "/v1/./models",
    "/v1/x/../models",
    "/Health",
    "/health/",
    "/health%20",
    "/hea%6cth",
    "/docs/../health",
    "/openapi.json/../health",
    "/load/../health",
    "/ping",
    "/invocations",
    "/invocations/../v1/completions",
    "/tokenize/../v1/completions",
    "/v1/completions/../../tokenize",
    "/v1/completions/../../invocations",
    "/v1/load_lora_adapter/../completions",
    "*",
    "/",
]
"""Request targets that are not to reach vLLM: none is spelt as the list of allowed paths has it."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.mark.parametrize("client", [Http1, Http2])
async def test_a_path_is_let_in_only_as_it_is_listed_however_else_it_is_spelt(
    clients: Clients, client: type[Http1] | type[Http2]
) -> None:
    address = clients.fleet.boots[0].address
    trust = ssl.create_default_context(cadata=clients.site.authority)
    trust.set_alpn_protocols(["h2" if client is Http2 else "http/1.1"])

    def refused(answer: Answer) -> bool:
        """By the gateway, or by the web server in it; not by vLLM."""
        body = answer.body in (b'{"error":"Not Found"}', b"") or answer.body.startswith(b"400 Bad Request")
        return answer.status in (0, 400, 404) and body

    def ask_all() -> list[tuple[object, ...]]:
        let_in = []
        with closing(client(address, 443, DOMAIN, trust)) as http:
            for key in (None, KEY):
                headers = {"Host": DOMAIN, **({"Authorization": f"Bearer {key}"} if key else {})}
                for path in ("/health", "/health?verbose=1", "/v1/models", "/v1/models?x=/../metrics"):
                    public = path.startswith("/health")
                    assert http.ask("GET", path, headers).status == (200 if key or public else 401)
                for method, target in product(METHODS, SPELLINGS):
                    # The web server itself answers `OPTIONS *`, with nothing.
                    if (method, target) != ("OPTIONS", "*"):
                        answer = http.ask(method, target, headers)
                        if not refused(answer):
                            let_in.append((key, method, target, answer))
        return let_in

    assert await asyncio.to_thread(ask_all) == []


async def test_a_retired_key_is_refused_and_the_new_one_goes_on(clients: Clients) -> None:
    await clients.serve(two_keys=False)
    await clients.until_ready()
    assert await clients.complete(KEY) == 200
    assert await clients.complete(OLD_KEY) == 401


async def test_requests_go_to_every_node_that_is_ready(clients: Clients) -> None:
    async def both() -> bool:
        assert await clients.complete() == 200
        return all(await clients.served())

    await until(both)

    # A rollout's journal takes the node out before anything of it is stopped.
    journal = f"{layout.ROLLOUT_DIRECTORY}/journal"
    async with connect(clients.fleet.target(1)) as node:
        await node.run(["install", "-d", layout.ROLLOUT_DIRECTORY])
        await node.write_file(journal, b"PHASE=switch\n")

    async def drained() -> bool:
        before = await clients.served()
        assert [await clients.complete() for _ in range(20)] == [200] * 20
        return (await clients.served())[1] == before[1]

    await until(drained)
    await clients.on(1, "docker", "stop", "vllm")
    assert [await clients.complete() for _ in range(6)] == [200] * 6

    await clients.up(1)
    await clients.on(1, "rm", journal)
    await until(both)


async def test_requests_beyond_what_the_nodes_may_work_on_are_turned_away(clients: Clients) -> None:
    await clients.serve(max_requests=1)
    for index in range(2):
        await clients.fleet.backend.inject(f"n-{index}", "hung")
        await clients.on(index, "docker", "restart", "vllm")
    await clients.until_ready()
    held: set[asyncio.Task[int]] = set()

    async def full() -> bool:
        # A node counts only once the gateway has seen that it is back.
        held.difference_update([request for request in held if request.done()])
        held.update(asyncio.create_task(clients.complete()) for _ in range(2 - len(held)))
        return all(await clients.counted("vllm:num_requests_running"))

    await until(full)
    assert await clients.complete() == 503
    for request in held:
        request.cancel()


async def test_the_node_sees_its_gateway_from_within(clients: Clients) -> None:
    async with connect(clients.fleet.target(1)) as node:
        headers = {"Authorization": f"Bearer {OLD_KEY}"}
        for given, status in ((headers, 200), ({}, 401)):
            reply = await node.http("GET", layout.GATEWAY_CHECK_PORT, "/v1/models", headers=given)
            assert reply.status == status


async def test_a_check_says_how_long_the_certificate_holds(clients: Clients) -> None:
    async def found(index: int, name: str) -> Finding:
        node = replace(clients.fleet.nodes[index], certificate_name=name, ports={})
        return next(each for each in await check_node(node, None) if each.name == "certificate")

    for index, name in enumerate((DOMAIN, NODE_NAME)):
        finding = await found(index, name)
        assert (finding.status, finding.seen) == (Status.OK, f"for {name}, 3649 days left")
    wrong = await found(0, "other.example.org")
    assert wrong.status is Status.FAILED and "port 443 shows none" in wrong.seen
    await clients.on(1, "docker", "stop", "caddy")
    gone = await found(1, NODE_NAME)
    assert gone.status is Status.FAILED and "docker logs --tail 50 caddy" in gone.fix


async def shown_certificate(node: FleetNode) -> Finding:
    """What the check finds once the new Caddy listens."""
    found: list[Finding] = []

    async def shown() -> bool:
        found[:] = [each for each in await check_node(node, None) if each.name == "certificate"]
        return "shows none" not in found[0].seen

    await until(shown)
    return found[0]


async def test_a_check_warns_of_a_certificate_that_is_not_renewed_and_fails_when_it_is_about_to_expire(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = replace(clients.fleet.nodes[0], certificate_name=DOMAIN, ports={})
    for days, status in ((15, Status.WARNING), (5, Status.FAILED)):
        monkeypatch.setattr(authority, "VALID", timedelta(days=days, hours=1))
        clients.site = issue("a public authority", DOMAIN)
        await clients.serve()
        finding = await shown_certificate(node)
        assert (finding.status, finding.seen) == (status, f"for {DOMAIN}, {days} days left")
        assert "docs/runbooks/certificate.md" in finding.fix


def test_a_certificate_is_for_the_domain_and_has_its_key() -> None:
    issued, other = issue("test", DOMAIN), issue("test", "*.example.org")
    key, other_key = SecretStr(issued.key), SecretStr(other.key)
    assert certificate_problem(issued.certificate, key, DOMAIN) is None
    assert certificate_problem(other.certificate, other_key, "llm.example.org") is None
    assert "and not for expose.domain" in (certificate_problem(issued.certificate, key, "a.org") or "")
    assert "belongs to another key" in (certificate_problem(issued.certificate, other_key, DOMAIN) or "")
    assert "cannot be read" in (certificate_problem(issued.certificate, SecretStr("none"), DOMAIN) or "")
