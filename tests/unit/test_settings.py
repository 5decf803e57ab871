"""Every wrong value is named with its path and its fix, all at once, before anything is registered."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fleet import settings
from fleet.settings.schema import json_schema

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Any]:
    return configuration(tmp_path)


def configuration(folder: Path) -> dict[str, Any]:
    """The least that is right."""
    key = folder / "id_ed25519"
    key.write_text("a key")
    key.chmod(0o600)
    return {
        "nodes": [{"name": "l4-a", "cloud": "scaleway"}],
        "serving": {"model": "Qwen/Qwen3-8B-AWQ"},
        "access": {"ssh_cidrs": ["203.0.113.7/32"], "ssh_private_key_path": str(key)},
        "secrets": {"api_key": "0123456789abcdef"},
    }


def put(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The document with one value replaced; `DELETE` removes it. Path steps are separated by dots."""
    changed = copy.deepcopy(document)
    *parents, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    at: Any = changed
    for step in parents:
        at = at.setdefault(step, {}) if isinstance(at, dict) else at[step]
    if value is DELETE:
        del at[last]
    else:
        at[last] = value
    return changed


DELETE = "(removed)"
EXPOSED = {"domain": "llm.example.com", "cidrs": ["203.0.113.0/24"], "tls": "internal"}
LOGIN = {"username": "me", "password": "planted-password"}
PEM_KEY = "-----BEGIN PRIVATE KEY-----\nMC4CAQ==\n-----END PRIVATE KEY-----\n"

# (path to change, wrong value, path the error names, what it must say)
WRONG: list[tuple[str, Any, str, str]] = [
    ("nodes", DELETE, "nodes", "is missing"),
    ("nodes", [], "nodes", "is empty; give at least one"),
    ("nodes", "l4-a", "nodes", "is not a list"),
    ("nodes.0", "l4-a", "nodes[0]", "is not a set of keys"),
    ("nodes.0.cloud", DELETE, "nodes[0]", "has no cloud; add one of: scaleway"),
    ("nodes.0.cloud", "gcp", "nodes[0]", "cloud: 'gcp' is not supported"),
    ("nodes.0.name", DELETE, "nodes[0].name", "is missing; set it: pulumi config set --path"),
    ("nodes.0.name", "L4_A", "nodes[0].name", "'L4_A' is not a node name"),
    ("nodes.0.name", "a" * 31, "nodes[0].name", "1 to 30"),
    ("nodes.0.name", "ends-", "nodes[0].name", "not ending with a hyphen"),
    ("nodes.0.zone", "fr-par-9", "nodes[0].zone", "'fr-par-9' is not one of the choices; use 'fr-par-1'"),
    ("nodes.0.type", "L4-1-24", "nodes[0].type", "did you mean L4-1-24G"),
    ("nodes.0.type", "DEV1-S", "nodes[0].type", "'DEV1-S' is not a GPU type of scaleway"),
    ("nodes.0.image", "ubuntu_noble", "nodes[0].image", "'ubuntu_noble' is malformed"),
    (
        "nodes.0.root_volume_gb",
        120,
        "nodes[0].root_volume_gb",
        "120 is below Scaleway's working minimum of 150",
    ),
    ("nodes.0.root_volume_gb", 20000, "nodes[0].root_volume_gb", "20000 is above the maximum of 10000"),
    ("nodes.0.root_volume_gb", "200GB", "nodes[0].root_volume_gb", "'200GB' is not a whole number"),
    ("nodes.0.root_volume_gb", 200.5, "nodes[0].root_volume_gb", "200.5 is not a whole number"),
    ("nodes.0.root_volum_gb", 200, "nodes[0].root_volum_gb", "did you mean root_volume_gb?"),
    ("nodes.0.protect", "perhaps", "nodes[0].protect", "is neither true nor false"),
    ("nodes.0.tags", "team-a", "nodes[0].tags", "is not a list"),
    ("nodes.0.ttl_hours", 0, "nodes[0].ttl_hours", "0 must be above 0"),
    ("nodes.0.ttl_hours", "two days", "nodes[0].ttl_hours", "is not a number"),
    ("nodes.0.fit", {"overide": "x"}, "nodes[0].fit.overide", "did you mean override?"),
    ("nodes.0.fit", {"override": True}, "nodes[0].fit.override", "True is not text"),
    ("fit.override", "", "fit.override", "is empty; write something"),
    (
        "nodes.0",
        {"name": "a", "cloud": "aws", "spot": {}, "protect": True},
        "nodes[0].protect",
        "AWS ends when it needs the capacity; leave out protect or spot",
    ),
    (
        "nodes.0",
        {"name": "a", "cloud": "aws", "volume_throughput": 1000},
        "nodes[0].volume_throughput",
        "1000 MiB/s need 4000 operations a second",
    ),
    ("nodes.0", {"name": "a", "cloud": "aws", "type": "g5g.xlarge"}, "nodes[0].type", "is of a family"),
    ("nodes.0", {"name": "a", "cloud": "aws", "type": "g6.larg"}, "nodes[0].type", "did you mean g6."),
    (
        "nodes.0",
        {"name": "a", "cloud": "aws", "ami_source": {"owner": "self"}},
        "nodes[0].ami_source",
        "give parameter, or owner and name",
    ),
    ("jobs", {"timeout_minutes": 0}, "jobs.timeout_minutes", "0 is below the minimum of 1"),
    ("jobs", {"type": "t3.large"}, "jobs.type", "is not a GPU type of aws"),
    ("jobs", {"control": {"existing": "mine"}}, "jobs.control.existing", "is malformed"),
    ("jobs", {"timeout": 5}, "jobs.timeout", "did you mean timeout_minutes?"),
    ("nodes.0", {"name": "a", "cloud": "aws", "spot": {"price": 1}}, "nodes[0].spot.price", "did you mean"),
    (
        "nodes.0",
        {"name": "a", "cloud": "cheapest", "zone": "fr-par-2"},
        "nodes[0].zone",
        "is not a setting",
    ),
    ("nodes.0", {"name": "a", "cloud": "cheapest", "clouds": []}, "nodes[0].clouds", "give at least one"),
    (
        "nodes.0",
        {"name": "a", "cloud": "cheapest", "clouds": ["ovh"]},
        "nodes[0].clouds[0]",
        "'ovh' is not one",
    ),
    (
        "nodes.0",
        {
            "name": "a",
            "cloud": "cheapest",
            "pinned": {"cloud": "scaleway", "location": "fr-par-9", "type": "L4-1-24G"},
        },
        "nodes[0].zone",
        "'fr-par-9' is not one of the choices",
    ),
    ("rollout.canary", "l4-z", "rollout.canary", "no node is named l4-z"),
    ("rollout.max_unavailable", 0, "rollout.max_unavailable", "0 is below the minimum of 1"),
    ("rollout.canari", "l4-a", "rollout.canari", "did you mean canary?"),
    ("budget.max_cost_per_hour", 0, "budget.max_cost_per_hour", "0 must be above 0"),
    ("budget.max_cost_per_month", "500 EUR", "budget.max_cost_per_month", "is not a number"),
    ("budget.max_cost", 5, "budget.max_cost", "is not a setting"),
    ("budget.currency", "GBP", "budget.currency", "use 'EUR' or 'USD'"),
    ("budget.usd_per_eur", 1.1, "budget.usd_per_eur", "give as_of with it"),
    ("budget", {"usd_per_eur": 1.1, "as_of": "today"}, "budget.as_of", "'today' is not a day; write it like"),
    (
        "nodes.0.serving",
        {"tensor_parallel_size": 2},
        "nodes[0].serving.tensor_parallel_size",
        "L4-1-24G has 1",
    ),
    (
        "nodes.0.serving",
        {"max_model_len": 1},
        "nodes[0].serving.max_model_len",
        "1 is below the minimum of 256",
    ),
    ("serving", DELETE, "serving", "is missing"),
    ("serving.model", DELETE, "serving.model", "is missing"),
    ("serving.model", "Qwen3-8B", "serving.model", "neither a Hugging Face model (owner/name"),
    ("serving.modle", "a/b", "serving.modle", "did you mean model?"),
    ("serving.image", "vllm/vllm-openai", "serving.image", "has no tag"),
    ("serving.image", "vllm/vllm-openai:latest", "serving.image", "moves under you; pin a release tag"),
    ("serving.image", "vllm/vllm-openai:nightly-abc", "serving.image", "moves under you"),
    ("serving.image", "vllm/vllm-openai@sha256:12", "serving.image", "copy it from the registry"),
    ("serving.image", "vllm vllm:v1", "serving.image", "is not an image reference"),
    ("serving.gpu_memory_utilization", 0.97, "serving.gpu_memory_utilization", "above the maximum of 0.95"),
    ("serving.gpu_memory_utilization", "much", "serving.gpu_memory_utilization", "write for example 0.9"),
    ("serving.quantization", "awq-marlin", "serving.quantization", "is not one of the choices; use 'awq'"),
    ("serving.distributed_executor_backend", "mpi", "serving.distributed_executor_backend", "'mp' or 'ray'"),
    ("serving.max_model_len", 0, "serving.max_model_len", "0 is below the minimum of 256"),
    ("serving.port", 80, "serving.port", "80 is below the minimum of 1024"),
    ("serving.port", 8080, "serving.port", "is the node agent's"),
    ("serving.visible_devices", [1], "nodes[0].serving.visible_devices", "no GPU 1, L4-1-24G has 1"),
    ("serving.visible_devices", [0, 0], "serving.visible_devices", "each once"),
    ("serving.extra_args", ["--model=x"], "serving.extra_args", "set serving.model instead"),
    ("serving.extra_args", ["--host", "::"], "serving.extra_args", "leave it out"),
    ("serving.extra_args", "--enforce-eager", "serving.extra_args", "is not a list"),
    (
        "serving",
        {
            "model": "a/b",
            "image": "vllm/vllm-openai:v0.18.0",
            "extra_args": ["--disable-log-requests"],
        },
        "serving.extra_args",
        "--disable-log-requests is gone since vLLM 0.17.0, the image has 0.18.0; instead: nothing",
    ),
    (
        "serving",
        {"model": "a/b", "image": "vllm/vllm-openai:v0.9.2", "extra_args": ["--async-scheduling"]},
        "serving.extra_args",
        "exists since vLLM 0.10.0, the image has 0.9.2",
    ),
    ("serving.architecture", {"config": "/no/config.json"}, "serving.architecture.config", "is not a file"),
    (
        "serving.architecture",
        {"weights_gib": 5},
        "serving.architecture.config",
        "is missing; set it: pulumi config set --path",
    ),
    ("serving.environment", {"HF_TOKEN": "hf_abcd"}, "serving.environment", "carries HF_TOKEN"),
    ("serving.environment", {"A-B": "1"}, "serving.environment", "no shell accepts"),
    ("serving.start_period_s", 30, "serving.start_period_s", "30 is below the minimum of 60"),
    ("access", DELETE, "access", "is missing"),
    ("access.ssh_cidrs", DELETE, "access.ssh_cidrs", "is missing"),
    ("access.ssh_cidrs", [], "access.ssh_cidrs", "is empty"),
    ("access.ssh_cidrs", ["203.0.113.7"], "access.ssh_cidrs[0]", "write 203.0.113.7/32"),
    ("access.ssh_cidrs", ["203.0.113.7/24"], "access.ssh_cidrs[0]", "203.0.113.7/32 for that one address"),
    ("access.ssh_cidrs", ["home/32"], "access.ssh_cidrs[0]", "is not an address range"),
    ("access.ssh_private_key_path", "/no/such/key", "access.ssh_private_key_path", "make one: ssh-keygen"),
    ("access.ssh_port", 0, "access.ssh_port", "below the minimum of 1"),
    ("health.enabled", "maybe", "health.enabled", "is neither true nor false"),
    ("health.ready_timeout_s", 5, "health.ready_timeout_s", "5 is below the minimum of 30"),
    ("health.ready_timeout", 900, "health.ready_timeout", "did you mean ready_timeout_s?"),
    ("secrets", DELETE, "secrets", "pulumi config set --secret --path"),
    ("secrets.api_key", "short", "secrets.api_key", "openssl rand -hex 32"),
    ("secrets.hf_token", "sk-abcdefgh", "secrets.hf_token", "must begin with hf_"),
    ("secrets.previous_api_key", "an-older-key-0123", "secrets.previous_api_key", "needs expose"),
    ("secrets.previous_api_key", "short", "secrets.previous_api_key", "16 to 256 characters"),
    ("secrets.tls_key", PEM_KEY, "secrets.tls_key", "belongs to expose.certificate"),
    ("secrets.tls_key", "a key", "secrets.tls_key", "must be an unencrypted private key in PEM"),
    ("expose", {"cidrs": ["0.0.0.0/0"]}, "expose.domain", "is missing"),
    ("expose", {"domain": "llm.example.com"}, "expose.cidrs", "is missing"),
    ("expose", EXPOSED | {"domain": "https://llm.example.com"}, "expose.domain", "is no domain name"),
    ("expose", EXPOSED | {"domain": "llm.example.com {"}, "expose.domain", "is no domain name"),
    ("expose", EXPOSED | {"cidrs": []}, "expose.cidrs", "is empty; give at least one"),
    ("expose", EXPOSED | {"gateway": "l4-z"}, "expose.gateway", "no node is named l4-z; name one of l4-a"),
    ("expose", EXPOSED | {"tls": "acme"}, "expose.tls", "acme needs ports 80 and 443 open to Let's Encrypt"),
    ("expose", EXPOSED | {"tls": "certificate"}, "expose.certificate", "give both or neither"),
    ("expose", EXPOSED | {"tls": "off"}, "expose.tls", "'off' is not one of the choices"),
    ("expose", EXPOSED | {"certificate": "a file"}, "expose.certificate", "is no PEM certificate"),
    ("expose", EXPOSED | {"email": "me}\n"}, "expose.email", "is malformed"),
    ("expose", EXPOSED | {"requests_per_minute": 60}, "expose.requests_per_minute", "has no rate limit"),
    ("expose", EXPOSED | {"image": "caddy:latest"}, "expose.image", "moves under you"),
    ("expose", EXPOSED | {"max_body_mb": 0}, "expose.max_body_mb", "0 is below the minimum of 1"),
    ("expose", EXPOSED | {"domein": "a.b"}, "expose.domein", "did you mean domain?"),
    ("secrets.environment", {"A B": "x"}, "secrets.environment", "no shell accepts"),
    ("secrets.environment", {"HF_TOKEN": "x"}, "secrets.environment", "set secrets.hf_token instead"),
    ("secrets.environment", {"VLLM_API_KEY": "x"}, "secrets.environment", "set secrets.api_key instead"),
    ("secrets.environment", {"PORT": "1"}, "secrets.environment", "set serving.port instead"),
    ("secrets.environment", {"HF_HOME": "/x"}, "secrets.environment", "weights are kept in /models"),
    ("secrets.environment", {"AWS_KEY": "it's"}, "secrets.environment", "has a quote or a line break"),
    ("secrets.environment", {"AWS_KEY": "a\nb"}, "secrets.environment", "has a quote or a line break"),
    ("secrets.environment", {"AWS_KEY": ""}, "secrets.environment", "has no value for AWS_KEY"),
    ("serving.environment", {"AWS_SECRET_ACCESS_KEY": "abcd"}, "serving.environment", "secrets.environment"),
    (
        "secrets.registries",
        {"https://ghcr.io": LOGIN},
        "secrets.registries.https://ghcr.io",
        "is not a registry's host",
    ),
    (
        "secrets.registries",
        {"ghcr.io/me": LOGIN},
        "secrets.registries.ghcr.io/me",
        "is not a registry's host",
    ),
    (
        "secrets.registries",
        {"ghcr.io": {"username": "me"}},
        "secrets.registries.ghcr.io.password",
        "is missing",
    ),
    (
        "secrets.registries",
        {"ghcr.io": LOGIN | {"password": "a b"}},
        "secrets.registries.ghcr.io.password",
        "holds spaces",
    ),
    ("secrets.delivery", "mail", "secrets.delivery", "'mail' is not one of the choices"),
]


def test_a_variable_that_only_looks_like_a_secret_is_accepted_and_a_secret_has_its_place(
    good: dict[str, Any],
) -> None:
    harmless = {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "AWS_SHARED_CREDENTIALS_FILE": "/models/credentials",
    }
    secret = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "planted/+=", "MY_OWN": "x"}
    given = put(put(good, "serving.environment", harmless), "secrets.environment", secret)
    read = settings.parse(put(given, "secrets.registries", {"ghcr.io": LOGIN, "my.registry:5000": LOGIN}))
    assert read.nodes[0].serving.environment == harmless
    assert read.secrets.environment["MY_OWN"].get_secret_value() == "x"
    assert "planted" not in repr(read)
    twice = put(given, "serving.environment.MY_OWN", "y")
    with pytest.raises(settings.SettingsError, match="MY_OWN of l4-a is in secrets"):
        settings.parse(twice)


BESIDE = [
    ("caddy", {"expose": EXPOSED}, "caddy of l4-a is the container of the gateway"),
    ("open-webui", {"serving.webui": True}, "open-webui of l4-a is the container of Open WebUI"),
    *(
        (name, {"observability": {"enabled": True}}, f"{name} of l4-a is the container of observability")
        for name in ("prometheus", "grafana", "dcgm-exporter")
    ),
]


@pytest.mark.parametrize(("name", "beside", "said"), BESIDE, ids=[name for name, *_ in BESIDE])
def test_vllms_container_has_no_name_that_a_container_beside_it_has(
    name: str, beside: dict[str, Any], said: str, good: dict[str, Any]
) -> None:
    named = put(good, "serving.container_name", name)
    settings.parse(named)
    for path, value in beside.items():
        named = put(named, path, value)
    with pytest.raises(settings.SettingsError, match=f"serving.container_name.*{said}"):
        settings.parse(named)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the program itself does with each configuration of WRONG."""
    good = configuration(tmp_path_factory.mktemp("refused"))
    # The first is right, to show that what is registered would be seen.
    return ran([good, *(put(good, path, value) for path, value, _, _ in WRONG)])


def ran(configurations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("mocked_program.py"))],
        input=json.dumps(configurations),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


def test_a_right_configuration_is_registered(refused: list[dict[str, Any]]) -> None:
    assert refused[0]["exit"] == 0
    assert "l4-a-server" in refused[0]["registered"]


@pytest.mark.parametrize("row", range(len(WRONG)), ids=[f"{w[0]}={w[1]!r:.30}" for w in WRONG])
def test_a_wrong_value_is_named_with_its_path_and_fix(
    good: dict[str, Any], refused: list[dict[str, Any]], row: int
) -> None:
    path, value, named, said = WRONG[row]
    with pytest.raises(settings.SettingsError) as caught:
        settings.parse(put(good, path, value))
    assert [problem.path for problem in caught.value.problems] == [named]
    assert said in caught.value.problems[0].message

    result = refused[1 + row]
    assert result["exit"] == 1
    assert named in result["said"]
    assert result["registered"] == []


def test_every_wrong_value_is_reported_in_one_go(good: dict[str, Any]) -> None:
    wrong = put(
        put(put(good, "nodes.0.root_volume_gb", 120), "serving.port", 3000), "secrets.api_key", "short"
    )
    with pytest.raises(settings.SettingsError, match="3 wrong values in the stack configuration"):
        settings.parse(wrong)


def test_two_nodes_of_one_name_are_refused(good: dict[str, Any]) -> None:
    twice = put(good, "nodes", [good["nodes"][0], good["nodes"][0]])
    with pytest.raises(settings.SettingsError, match="nodes: the name l4-a is used 2 times"):
        settings.parse(twice)


@pytest.mark.parametrize("secret", ["hf_!planted!", "planted secret"])
def test_a_refused_secret_is_never_quoted(good: dict[str, Any], secret: str) -> None:
    for path in ("secrets.api_key", "secrets.hf_token"):
        with pytest.raises(settings.SettingsError) as caught:
            settings.parse(put(good, path, secret))
        assert secret not in str(caught.value)
    with pytest.raises(settings.SettingsError) as caught:
        settings.parse(put(good, "serving.environment", {"HF_TOKEN": secret}))
    assert secret not in str(caught.value)


def test_a_key_others_can_read_is_refused(good: dict[str, Any]) -> None:
    Path(good["access"]["ssh_private_key_path"]).chmod(0o644)
    with pytest.raises(settings.SettingsError, match="chmod 600"):
        settings.parse(good)


def test_a_node_inherits_the_stacks_serving_and_puts_its_own_keys_over_it(good: dict[str, Any]) -> None:
    good["serving"]["max_model_len"] = 4096
    good["nodes"].append({"name": "l4-b", "cloud": "scaleway", "serving": {"model": "Qwen/Qwen3-4B"}})
    first, second = settings.parse(good).nodes
    assert (first.serving.model, first.serving.max_model_len) == ("Qwen/Qwen3-8B-AWQ", 4096)
    assert (second.serving.model, second.serving.max_model_len) == ("Qwen/Qwen3-4B", 4096)


def test_repr_of_settings_shows_no_secret(good: dict[str, Any]) -> None:
    assert good["secrets"]["api_key"] not in repr(settings.parse(good))


def test_the_schema_accepts_a_good_stack_file_and_refuses_a_misspelt_key(good: dict[str, Any]) -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    stack = {"config": {f"vllm-fleet:{key}": value for key, value in good.items()}}
    stack["config"]["vllm-fleet:secrets"] = {"api_key": {"secure": "v1:abc"}}
    jsonschema.validate(stack, schema)
    stack["config"]["vllm-fleet:nodes"][0]["zoen"] = "fr-par-2"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(stack, schema)


@pytest.mark.parametrize("key", ["vllm-fleet:bugdet", "vllm-fleet:serving.model", "bugdet", "nodes"])
def test_the_schema_refuses_keys_of_this_project_that_are_none(good: dict[str, Any], key: str) -> None:
    named = {f"vllm-fleet:{name}": value for name, value in good.items()}
    elsewhere = {"scaleway:anything": 1, "aws:region": "eu-west-3", "pulumi:tags": {}}
    jsonschema.validate({"config": named | elsewhere}, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"config": named | {key: {}}}, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"confg": named}, json_schema())


def test_a_stack_of_jobs_alone_needs_neither_model_nor_key(good: dict[str, Any]) -> None:
    alone = {"access": good["access"], "jobs": {"region": "eu-west-3"}}
    with pytest.raises(settings.SettingsError, match="gives no public half"):
        settings.parse(alone)
    public = Path(good["access"]["ssh_private_key_path"]).with_suffix(".pub")
    public.write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
    # As the engine gives it, with the project's own defaults.
    defaults = {"nodes": [], "ray": [], "serving": {}, "secrets": {}, "expose": {}, "fit": {}}
    for config in (alone, defaults | alone):
        found = settings.parse(config)
        assert (found.nodes, found.serving, found.secrets) == ((), None, None)
    results = ran([alone, defaults | alone])
    assert [(result["exit"], result["said"]) for result in results] == [(0, "")] * 2
    assert all("jobs-control" in result["registered"] for result in results)
    with pytest.raises(settings.SettingsError, match=r"expose.gateway: needs a node that carries it"):
        settings.parse({**alone, "expose": EXPOSED})


ODD: list[tuple[str, Any]] = [
    ("serving.model", "a/\ud800"),
    ("access.ssh_private_key_path", "\udcff"),
    ("nodes.0.tags", ["\ud800"]),
    ("nodes.0.\ud800", 1),
    ("access.ssh_private_key_path", "k" * 5000),
    ("access.ssh_private_key_path", "~no-such-user-here/key"),
    ("serving.architecture", {"config": "c" * 5000}),
    ("nodes.0.tags", [[[]] * 3]),
]


def test_what_no_file_system_and_no_terminal_takes_is_refused_in_plain_words(good: dict[str, Any]) -> None:
    spoilt = [put(good, path, value) for path, value in ODD]
    for config, result in zip(spoilt, ran(spoilt), strict=True):
        with pytest.raises(settings.SettingsError) as caught:
            settings.parse(config)
        assert all(problem.fix for problem in caught.value.problems)
        str(caught.value).encode()
        assert (result["exit"], str(caught.value)) == (1, result["said"])


@pytest.mark.parametrize("day", ["2026-11-01", "2026-11-01 00:00:00 +0000 UTC"])
def test_a_day_without_quotes_is_what_the_engine_makes_of_it(good: dict[str, Any], day: str) -> None:
    good["budget"] = {"usd_per_eur": 1.1, "as_of": day}
    assert str(settings.parse(good).budget.as_of) == "2026-11-01"


def test_no_message_names_a_page_that_is_not_there() -> None:
    sources = [*ROOT.glob("fleet/**/*.py"), *ROOT.glob("components/**/*.py"), *ROOT.glob("policy/*.py")]
    named = {page for path in sources for page in re.findall(r"docs/[\w./-]+\.(?:md|json)", path.read_text())}
    assert named
    assert [page for page in sorted(named) if not (ROOT / page).exists()] == []


def test_a_node_has_the_stacks_fit_unless_it_has_its_own(good: dict[str, Any]) -> None:
    good["fit"] = {"override": "tried"}
    good["nodes"].append({"name": "b", "cloud": "scaleway", "fit": {"override": None}})
    assert [node.fit.override for node in settings.parse(good).nodes] == ["tried", None]


def test_a_pinned_choice_is_a_node_of_the_chosen_cloud(good: dict[str, Any]) -> None:
    chosen = {"cloud": "scaleway", "location": "fr-par-1", "type": "L4-2-24G", "tensor_parallel_size": 2}
    written = {"name": "a", "cloud": "cheapest", "concurrency": 4, "ttl_hours": 8, "pinned": chosen}
    node = settings.parse({**good, "nodes": [written]}).nodes[0]
    assert isinstance(node, settings.ScalewayNode)
    assert (node.zone, node.type, node.ttl_hours) == ("fr-par-1", "L4-2-24G", 8)
    assert node.serving.tensor_parallel_size == 2

    written.pop("pinned")
    unpinned = {**good, "nodes": [written]}
    assert isinstance(settings.parse(unpinned).nodes[0], settings.CheapestNode)
    assert settings.parse(unpinned, {"a": settings.Pin.model_validate(chosen)}).nodes[0] == node
