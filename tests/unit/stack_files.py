"""Stack files for tests: what is right about sixty of them, and wrong about the others."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

DELETE = "(removed)"
SECURE = {"secure": "v1:9ykn6D+SlxVletZB:97xypI"}
DAMAGED = "-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n"
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
HOP = {"host": "bastion.example.com", "host_keys": [PUBLIC_KEY]}
DIGEST = "@sha256:" + "0123456789abcdef" * 4


def base() -> dict[str, Any]:
    """The least that is right, as the `config` of a stack's file; files named in it lie beside it."""
    return {
        "nodes": [{"name": "l4-a", "cloud": "scaleway"}],
        "serving": {"image": "vllm/vllm-openai:v0.9.2", "model": "Qwen/Qwen3-8B-AWQ"},
        "access": {"ssh_cidrs": ["203.0.113.7/32"], "ssh_private_key_path": "id_ed25519"},
        "secrets": {"api_key": SECURE},
    }


def put(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The document with one value replaced; `DELETE` removes it. Path steps are separated by dots."""
    changed = copy.deepcopy(document)
    *parents, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    at: Any = changed
    for step in parents:
        at = at.setdefault(step, {}) if isinstance(at, dict) else at[step]
    if value == DELETE:
        del at[last]
    else:
        at[last] = value
    return changed


def folder_with_files(at: Path) -> Path:
    """A folder with the files that stack files here name."""
    key = at / "id_ed25519"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    key.chmod(0o600)
    key.with_suffix(".pub").write_text(PUBLIC_KEY)
    (at / "open_key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    (at / "open_key").chmod(0o644)
    (at / "setup.sh").write_text("true\n")
    (at / "ca.pem").write_text(authority())
    (at / "data").mkdir()
    return at


def authority() -> str:
    """The certificate of an authority of one's own."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime(2026, 1, 1, tzinfo=UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example authority")])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=3650))
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def write(folder: Path, config: Any, stack: str = "test") -> Path:
    """A stack's file with that configuration of this project."""
    path = folder / f"Pulumi.{stack}.yaml"
    named = {key if ":" in key else f"vllm-fleet:{key}": value for key, value in config.items()}
    path.write_text(yaml.safe_dump({"config": named, "encryptionsalt": "v1:x"}), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Wrong:
    """A file that is wrong in one place."""

    path: str
    value: Any
    named: str
    """The field that has to be named."""
    said: str
    """Part of what is said of it."""
    more: dict[str, Any] = field(default_factory=dict, compare=False)
    """Further changes, which are right."""


def node(cloud: str, **more: Any) -> dict[str, Any]:
    return {"name": "a", "cloud": cloud, **({"region": "us-ord"} if cloud == "linode" else {}), **more}


PROXIED = {"http_proxy": "http://proxy.example.com:3128", "https_proxy": "http://[2001:db8::5]:3128/"}
EXPOSED = {"domain": "llm.example.com", "cidrs": ["203.0.113.0/24"], "tls": "internal"}
INTERNAL = {"expose": EXPOSED}
PUBLIC_DOOR = EXPOSED | {"tls": "acme", "cidrs": ["0.0.0.0/0"]}
JUMPING = {"access.jump_host": HOP}
NETWORK = "51b656e3-4865-41e8-adbc-0c45bdd780db"
HIDDEN = node("scaleway", public_ip=False, private_network=NETWORK)
HIDDEN_AWS = node("aws", public_ip=False, subnet="subnet-0123456789abcdef0")
ARGS = "serving.extra_args"
ENVIRONMENT = "serving.environment"
IMAGE = "serving.image"
CIDRS = "access.ssh_cidrs"
KEY = "access.ssh_private_key_path"
TAGS = "nodes.0.tags"


def args(*words: str, said: str) -> Wrong:
    return Wrong(ARGS, list(words), ARGS, said)


def variable(name: str, said: str, value: str = "x") -> Wrong:
    return Wrong(ENVIRONMENT, {name: value}, ENVIRONMENT, said)


def image(reference: str, said: str = "moves under you") -> Wrong:
    return Wrong(IMAGE, reference, IMAGE, said)


def cidr(value: Any, said: str) -> Wrong:
    return Wrong(CIDRS, [value], f"{CIDRS}[0]", said)


def tag(value: str, said: str = "a stack knows its own", cloud: str = "scaleway") -> Wrong:
    return Wrong("nodes.0", node(cloud, tags=[value]), "nodes[0].tags", said)


WRONG = [
    # owned flags, however they are written
    args("--api_key", "X", said="set secrets.api_key instead"),
    args("--api-k", "X", said="set secrets.api_key instead"),
    args("--api-key=X", said="set secrets.api_key instead"),
    args("--api_key=X", said="set secrets.api_key instead"),
    args("--api_k=X", said="set secrets.api_key instead"),
    args("--api-key X", said="set secrets.api_key instead"),
    args("--hos", "::", said="leave it out"),
    args("--host=0.0.0.0", said="leave it out"),
    args("--uds", "/tmp/vllm.sock", said="leave it out"),
    args("--gpu_memory_utilization", "0.99", said="set serving.gpu_memory_utilization instead"),
    args("--gpu-memory-utilization=0.99", said="set serving.gpu_memory_utilization instead"),
    args("--gpu_mem", "0.99", said="set serving.gpu_memory_utilization instead"),
    args("--gpu-memory_util=0.99", said="set serving.gpu_memory_utilization instead"),
    args("--enforce-eager", "--max_model_len", "9000", said="set serving.max_model_len instead"),
    args("--max-model=9000", said="set serving.max_model_len instead"),
    args("--served_model_name", "x", said="set serving.served_model_name instead"),
    args("-tp", "4", said="set serving.tensor_parallel_size instead"),
    args("-tp=4", said="set serving.tensor_parallel_size instead"),
    args("-t", "4", said="set serving.tensor_parallel_size instead"),
    args("--tensor_parallel_size=4", said="set serving.tensor_parallel_size instead"),
    args("-q", "awq", said="set serving.quantization instead"),
    args("-qawq", said="set serving.quantization instead"),
    args("--quant", "awq", said="set serving.quantization instead"),
    args("--dt=float16", said="set serving.dtype instead"),
    args("--kv_cache_dtype", "fp8", said="set serving.kv_cache_dtype instead"),
    args("--max-num-s", "4", said="set serving.max_num_seqs instead"),
    args("--swap_space", "4", said="set serving.swap_space_gb instead"),
    args("--distributed_executor_backend", "ray", said="set serving.distributed_executor_backend instead"),
    args("--por", "9000", said="set serving.port instead"),
    args("--mod", "a/b", said="write the whole name: --model, --model-"),
    args("--hf_token", "hf_x", said="set secrets.hf_token instead"),
    args("--hf-tok=hf_x", said="set secrets.hf_token instead"),
    args("--config", "/models/all.yaml", said="leave it out"),
    args("--conf=/models/all.yaml", said="write the whole name: --config, --config-format"),
    args("--ssl_keyfile", "/k", said="leave it out"),
    args("--disable-log", said="write the whole name: --disable-log-requests, --disable-log-stats"),
    args("--", "--enforce-eager", said="leave it out"),
    args("Qwen/Qwen3-4B", said="before its value"),
    args("--swap_spa", "1", said="set serving.swap_space_gb instead"),
    # flags of other releases, in every spelling
    args("--async_scheduling", said="exists since vLLM 0.10.0"),
    args(
        "--logits-processor-pattern",
        "x",
        "--disable-log-stats",
        "--structured-outputs-config",
        "{}",
        said="0.11.0",
    ),
    # values that vLLM's parser refuses
    args("--max-num-batched-tokens", "many", said="write digits"),
    args("--seed", said="without a value"),
    args("--seed", "1", "2", said="belongs to no flag"),
    args("--enforce-eager=1", said="leave the value out, or write --no-enforce-eager"),
    args("--scheduling-policy", "lifo", said="use fcfs, priority"),
    args("--speculative-config", "{model: x}", said="is not JSON"),
    args("--seed", "1", "--seed=2", said="leave one out"),
    args("--enable-prefix-caches", said="did you mean --enable-prefix-caching?"),
    # the same as a mapping
    Wrong("serving.args", {"max_model_len": 9000}, "serving.args", "set serving.max_model_len instead"),
    Wrong("serving.args", {"host": "::"}, "serving.args", "leave it out"),
    Wrong("serving.args", {"seed": True}, "serving.args", "is not a whole number"),
    Wrong("serving.args", {"seed": None}, "serving.args", "has no value for seed"),
    Wrong("serving.args", {"enforce_eager": "yes"}, "serving.args", "belongs to no flag"),
    Wrong("serving.args", {"speculative-config": "{"}, "serving.args", "is not JSON"),
    Wrong("serving.args", {"async_scheduling": True}, "serving.args", "exists since vLLM 0.10.0"),
    Wrong("serving.args", {"max num": 1}, "serving.args", "is no flag's name"),
    Wrong("serving.args", ["--seed"], "serving.args", "is not a set of keys"),
    Wrong(
        "serving.args",
        {"seed": 1},
        ARGS,
        "leave one of the two out",
        {"serving.extra_args": ["--seed", "2"]},
    ),
    # values that the release does not take
    Wrong(
        "serving.quantization",
        "bitsandbytes",
        "serving.quantization",
        "vLLM 0.28.0 takes",
        {"serving.image": "vllm/vllm-openai:v0.28.0"},
    ),
    # owned variables
    variable("NVIDIA_VISIBLE_DEVICES", "set serving.visible_devices instead"),
    variable("CUDA_VISIBLE_DEVICES", "set serving.visible_devices instead", "0"),
    variable("VLLM_API_KEY", "set secrets.api_key instead"),
    variable("HF_TOKEN", "set secrets.hf_token instead"),
    variable("HUGGING_FACE_HUB_TOKEN", "set secrets.hf_token instead"),
    variable("HF_HOME", "leave it out", "/root/.cache"),
    variable("HF_HUB_CACHE", "leave it out", "/root/.cache"),
    variable("TRANSFORMERS_CACHE", "leave it out", "/root/.cache"),
    variable("VLLM_CACHE_ROOT", "leave it out", "/tmp"),
    variable("GITHUB_TOKEN", "looks like a secret"),
    variable("AWS_SECRET_ACCESS_KEY", "looks like a secret"),
    variable("DB_PASSWORD", "looks like a secret"),
    variable("OPENAI_API_KEY", "looks like a secret"),
    variable("A-B", "no shell accepts"),
    variable("A", "line break", "one\ntwo"),
    # images
    image("vllm/vllm-openai", "has no tag"),
    *(
        image(f"vllm/vllm-openai:{moving}")
        for moving in (
            *("main", "dev", "stable", "LATEST", "Latest", "latest-cu128", "nightly", "v1", "v0.9"),
            *("v0.9.2-dev", "v0.9.2-nightly", "own", "edge", "12.8-base"),
        )
    ),
    *(
        image(broken, "is not an image reference")
        for broken in (
            *(f"$(id){DIGEST}", f"`id`{DIGEST}", f"vllm;id{DIGEST}", f"VLLM/openai{DIGEST}"),
            *("vllm/vllm-openai:v0.9.2 ", "https://ghcr.io/a/b:v1.2.3", "a//b:v1.2.3", "a/b:-v1.2.3"),
            *(f"a/b:{'1.2.3' * 30}", f"{'a/' * 140}b:v1.2.3", "a/b@sha256", "a__.b:v1.2.3", "[::1/a:v1.2.3"),
        )
    ),
    image("vllm/vllm-openai@sha256:12", "copy it from the registry"),
    image("vllm/vllm-openai:v0.9.2@md5:" + "0" * 32, "copy it from the registry"),
    image(f"vllm/vllm-openai@sha256:{'A' * 64}", "copy it from the registry"),
    Wrong("observability", {"grafana_image": "grafana/grafana:main"}, "observability.grafana_image", "moves"),
    Wrong("expose", EXPOSED | {"image": "caddy:2"}, "expose.image", "moves under you"),
    # what the model is served for
    Wrong("serving.task", "embedding", "serving.task", "'embed'"),
    Wrong(
        "serving.task", "embed", "serving.webui", "Open WebUI chats with the model", {"serving.webui": True}
    ),
    Wrong("serving.task", "classify", "serving.task", "an image of 0.9", {IMAGE: "vllm/vllm-openai:v0.8.5"}),
    args("--task", "embed", said="set serving.task instead"),
    Wrong(
        ARGS, ["--runner", "pooling"], ARGS, "set serving.task instead", {IMAGE: "vllm/vllm-openai:v0.33.0"}
    ),
    Wrong(
        "serving.args",
        {"convert": "embed"},
        "serving.args",
        "set serving.task instead",
        {IMAGE: "vllm/vllm-openai:v0.33.0"},
    ),
    Wrong(
        "nodes",
        [node("scaleway"), {**node("scaleway"), "name": "b", "serving": {"task": "embed"}}],
        "expose",
        "the gateway balances over both",
        INTERNAL,
    ),
    Wrong("serving.webui_image", "open-webui:main", "serving.webui_image", "moves under you"),
    # addresses
    cidr("my-ip", "is not an address range"),
    cidr("203.0.113.7", "write 203.0.113.7/32"),
    cidr("2001:db8::", "write 2001:db8::/128"),
    cidr("2001:db8::1/64", "write 2001:db8::1/128 for that one address or 2001:db8::/64"),
    cidr("203.0.113.7/33", "is not an address range"),
    cidr("fe80::1%eth0/64", "interface"),
    cidr("", "is not an address range"),
    cidr(7, "is not text"),
    # tags
    *(
        tag(reserved, cloud=cloud)
        for cloud in ("scaleway", "linode", "aws")
        for reserved in (
            "vllm-fleet-owner=x",
            "VLLM-Fleet-node=b",
            " vllm-fleet-owner=x",
            "vllm_fleet-pending=1",
        )
    ),
    tag("vllm‐fleet-owner=x".replace("‐", "\N{FULLWIDTH HYPHEN-MINUS}")),
    tag("vllm-fleet-job=job-1", cloud="aws"),
    tag("", "has an empty tag"),
    tag("   ", "has an empty tag"),
    tag("a\tb", "control character"),
    tag("ab", "Linode's tags have 3 to 50 characters", "linode"),
    tag("aws:createdBy=me", "AWS keeps keys", "aws"),
    tag("k" * 129, "shorten it", "aws"),
    tag("k=" + "v" * 257, "shorten it", "aws"),
    Wrong("nodes.0", node("aws", tags=["a=1", "a=2"]), "nodes[0].tags", "keep one"),
    # keys that are none
    Wrong("bugdet", {"max_cost_per_hour": 5}, "bugdet", "did you mean budget?"),
    Wrong("serving.modle", "a/b", "serving.modle", "did you mean model?"),
    Wrong("serving\\model", "a/b", "serving\\model", "is not a setting"),
    Wrong(
        "vllm-flet:budget", {"max_cost_per_hour": 5}, "vllm-flet:budget", "did you mean vllm-fleet:budget?"
    ),
    Wrong("VLLM-fleet:budget", {}, "VLLM-fleet:budget", "did you mean vllm-fleet:budget?"),
    Wrong("nodes.0", node("aws", elastc_ip=True), "nodes[0].elastc_ip", "did you mean elastic_ip?"),
    Wrong("nodes.0", node("linode", zone="fr-par-2"), "nodes[0].zone", "only of scaleway; remove it"),
    Wrong("nodes.0", node("aws", zone="fr-par-2"), "nodes[0].zone", "only of scaleway; remove it"),
    Wrong(
        "nodes.0", node("scaleway", region="us-ord"), "nodes[0].region", "only of linode and aws; remove it"
    ),
    Wrong("nodes.0", node("cheapest", zone="fr-par-2"), "nodes[0].zone", "remove it"),
    Wrong(
        "nodes.0", node("linode", driver_brnach=580), "nodes[0].driver_brnach", "did you mean driver_branch?"
    ),
    Wrong("nodes.0", node("scaleway", max_model_len=9), "nodes[0].max_model_len", "serving.max_model_len"),
    Wrong("serving.(x[0]", 1, "serving.(x[0]", "is not a setting"),
    Wrong("webui", True, "webui", "did you mean serving.webui?"),
    Wrong("nodes.0", node("aws", spot={"maxprice": 1}), "nodes[0].spot.maxprice", "did you mean max_price?"),
    Wrong("provision", {"conda": {"chanels": []}}, "provision.conda.chanels", "did you mean channels?"),
    Wrong("provision", {"gpu": {"cudda": "12.2"}}, "provision.gpu.cudda", "did you mean cuda?"),
    Wrong("jobs", {"control": {"volum_gb": 9}}, "jobs.control.volum_gb", "did you mean volume_gb?"),
    # files and keys
    Wrong(KEY, "no/such/key", KEY, "make one: ssh-keygen"),
    Wrong(KEY, "a" * 5000, KEY, "is not a file"),
    Wrong(KEY, "~nobody-of-that-name/key", KEY, "is not a file"),
    Wrong(KEY, "data", KEY, "is a folder"),
    Wrong(KEY, "id_ed25519.pub", KEY, "is a public key; name the private one, usually id_ed25519"),
    Wrong(KEY, "open_key", KEY, "run: chmod 600 open_key"),
    Wrong("provision", {"scripts": ["gone.sh"]}, "provision.scripts[0].path", "is not a file"),
    Wrong("provision", {"scripts": ["x" * 3000]}, "provision.scripts[0].path", "is not a file"),
    Wrong(
        "provision",
        {"files": [{"source": "gone", "destination": "/opt/a"}]},
        "provision.files[0].source",
        "is not there",
    ),
    Wrong("serving.architecture", {"config": "gone.json"}, "serving.architecture.config", "is not a file"),
    # the way to the internet
    Wrong("network", {"http_proxy": "http://me:hunter2@proxy:3128"}, "network.http_proxy", "leave them out"),
    Wrong("network", {"http_proxy": "me:hunter2@proxy:3128"}, "network.http_proxy", "leave them out"),
    Wrong(
        "network", {"https_proxy": "proxy.example.com:3128"}, "network.https_proxy", "write it like http://"
    ),
    Wrong("network", {"https_proxy": "socks5://proxy:1080"}, "network.https_proxy", "write it like http://"),
    Wrong("network", {"https_proxy": "http://proxy"}, "network.https_proxy", "add it, such as :3128"),
    Wrong("network", {"https_proxy": "http://proxy:99999"}, "network.https_proxy", "write it like http://"),
    Wrong("network", {"http_proxy": 'http://proxy:3128/"; x'}, "network.http_proxy", "write it like http://"),
    Wrong("network", {"no_proxy": ["*.example.com"]}, "network.no_proxy[0]", "like .example.com"),
    Wrong("network", {"no_proxy": "10.0.0.0/8, a b"}, "network.no_proxy[1]", "write it like"),
    Wrong("network", {"ca_certificates": "gone.pem"}, "network.ca_certificates", "'gone.pem' is not a file"),
    Wrong("network", {"ca_certificates": "data"}, "network.ca_certificates", "'data' is not a file"),
    Wrong("network", {"ca_certificates": "setup.sh"}, "network.ca_certificates", "holds no certificate"),
    Wrong("network", {"ca_certificates": "id_ed25519"}, "network.ca_certificates", "holds a private key"),
    Wrong("network", {"ca_certificates": DAMAGED}, "network.ca_certificates", "damaged"),
    Wrong("network", {"registry_mirrors": ["http://mirror"]}, "network.registry_mirrors[0]", "is not HTTPS"),
    Wrong(
        "network", {"registry_mirrors": ["mirror"]}, "network.registry_mirrors[0]", "write it like https://"
    ),
    Wrong("network", {"registry_mirrors": ["https://m/v2"]}, "network.registry_mirrors[0]", "without a path"),
    Wrong("network", {"registry_mirrors": ["https://a@m"]}, "network.registry_mirrors[0]", "leave them out"),
    Wrong("network", {"htp_proxy": "http://proxy:3128"}, "network.htp_proxy", "did you mean http_proxy?"),
    Wrong(
        ENVIRONMENT,
        {"HTTPS_PROXY": "http://other:3128"},
        ENVIRONMENT,
        "carries HTTPS_PROXY for l4-a, which network gives",
        {"network": {"https_proxy": "http://proxy:3128"}},
    ),
    # fit, disk, cost, policies
    Wrong("serving.model", "Qwen/Qwen3-32B", "nodes[0].serving", "does not fit L4-1-24G"),
    Wrong("budget", {"max_cost_per_hour": 0.5}, "budget.max_cost_per_hour", "raise it to 0."),
    Wrong("budget", {"max_cost_per_month": 100}, "budget.max_cost_per_month", "raise it to"),
    Wrong("jobs", {"max_cost": 0.03}, "jobs.max_cost", "allow at least 0.0311"),
    cidr("0.0.0.0/0", "open to the internet"),
    cidr("::/0", "open to the internet"),
    Wrong("secrets.delivery", "cloud-init", "secrets.delivery", "deliver it over SSH"),
    Wrong("secrets.api_key", "0123456789abcdef", "secrets.api_key", "is not encrypted"),
    Wrong("secrets.hf_token", "hf_abcdefgh", "secrets.hf_token", "is not encrypted"),
    # numbers and texts that are none
    Wrong("budget.max_cost_per_hour", float("inf"), "budget.max_cost_per_hour", "finite"),
    Wrong("budget.max_cost_per_hour", float("nan"), "budget.max_cost_per_hour", ""),
    Wrong("nodes.0.root_volume_gb", 10**30, "nodes[0].root_volume_gb", ""),
    Wrong("nodes.0.ttl_hours", "for ever", "nodes[0].ttl_hours", "is not a number"),
    Wrong("serving", [], "serving", "is not a set of keys"),
    Wrong("access", "open", "access", "is not a set of keys"),
    Wrong("access.authorized_keys", ["ssh-ed25519 AAAA"], "access.authorized_keys[0]", "is no public key"),
    Wrong("access.authorized_keys", ["id_ed25519.pub"], "access.authorized_keys[0]", "is no public key"),
    Wrong(
        "access.authorized_keys",
        ["-----BEGIN X"],
        "access.authorized_keys[0]",
        "public",
    ),
    Wrong("access.jump_host", {"host": "bastion"}, "access.jump_host.host_keys", "missing"),
    Wrong("access.jump_host", {**HOP, "host": "-oX"}, "access.jump_host.host", "is malformed"),
    Wrong("access.jump_host", {**HOP, "user": "a b"}, "access.jump_host.user", "is malformed"),
    # without a public address
    Wrong("nodes.0", node("scaleway", public_ip=False), "nodes[0].public_ip", "add the id", JUMPING),
    Wrong(
        "nodes.0", node("scaleway", private_network=NETWORK), "nodes[0].private_network", "public_ip: false"
    ),
    Wrong("nodes.0", HIDDEN | {"private_network": "pn-1"}, "nodes[0].private_network", "malformed", JUMPING),
    Wrong("nodes.0", HIDDEN, "access.jump_host", "is missing, and a has no public address"),
    Wrong("nodes.0", node("aws", public_ip=False), "nodes[0].public_ip", "add subnet", JUMPING),
    Wrong("nodes.0", HIDDEN_AWS, "access.jump_host", "is missing, and a has no public address"),
    Wrong("nodes.0", HIDDEN_AWS | {"elastic_ip": True}, "nodes[0].elastic_ip", "one of the two", JUMPING),
    Wrong("nodes.0", node("linode", public_ip=False), "nodes[0].public_ip", "only of scaleway and aws"),
    Wrong(
        "nodes.0",
        HIDDEN,
        "access.jump_host.user",
        "is malformed",
        {"access.jump_host": {**HOP, "user": "a b"}},
    ),
    Wrong("nodes", [HIDDEN, {**HIDDEN_AWS, "name": "b"}], "expose", "of its own cloud", JUMPING | INTERNAL),
    Wrong("nodes", [HIDDEN, node("aws") | {"name": "b"}], "expose", "the same public_ip", JUMPING | INTERNAL),
    Wrong("nodes.0", HIDDEN, "expose.tls", "no node has one", JUMPING | {"expose": PUBLIC_DOOR}),
    Wrong(
        "ray",
        [{"name": "pool", "cloud": "scaleway", "public_ip": False}],
        "ray[0].public_ip",
        "of its own",
        JUMPING,
    ),
    Wrong("access.ssh_private_key_path", "id_%h", "access.ssh_private_key_path", "rename the file"),
    Wrong("serving.model", "/opt/models/own", "serving.model", "write /files/own here"),
    Wrong("serving.files", {"a/b": "setup.sh"}, "serving.files", "letters, digits"),
    Wrong("serving.files", {"a.sh": "gone.sh"}, "serving.files.a.sh", "is not there"),
    Wrong("nodes", {"name": "a"}, "nodes", "is not a list"),
    Wrong("nodes", [], "nodes", "is empty"),
    Wrong("secrets", DELETE, "secrets", "pulumi config set --secret"),
    Wrong("expose", EXPOSED | {"tls": "acme"}, "expose.tls", "from anywhere"),
    Wrong("expose", EXPOSED | {"gateway": "l4-z"}, "expose.gateway", "name one of l4-a"),
    Wrong("rollout.canary", "l4-z", "rollout.canary", "name one of l4-a"),
    Wrong(
        "ray", [{"name": "pool", "cloud": "scaleway", "network": "10.0.0.1"}], "ray[0].network", "/16 to /26"
    ),
]
"""Each wrong in one place alone."""

PEM = "-----BEGIN CERTIFICATE-----"

RIGHT: list[dict[str, Any]] = [
    {},
    {"nodes.0.zone": "fr-par-1"},
    {"nodes.0.type": "L40S-1-48G"},
    {"nodes.0.root_volume_gb": 150},
    {"nodes.0.tags": ["team=search", "cost-centre=42"]},
    {"nodes.0.tags": ["fleet-of-vllm"]},
    {"nodes.0.protect": True},
    {"nodes.0.ttl_hours": 1.5},
    {"nodes.0": node("linode")},
    {"nodes.0": node("linode", tags=["team=search"], driver_branch="none")},
    {"nodes.0": node("linode", type="g2-gpu-rtx4000a1-m")},
    {"nodes.0": node("aws")},
    {"nodes.0": node("aws", tags=["team=search", "alone"])},
    {"nodes.0": node("aws", spot={})},
    {"nodes.0": node("aws", elastic_ip=True, session_manager=True)},
    {"nodes.0": node("aws", subnet="stack:organization/network/prod#subnet")},
    {"nodes.0": node("aws", ami="ami-0123456789abcdef0", ssh_user="ec2-user")},
    {"nodes.0": node("aws", volume_iops=6000, volume_throughput=1000)},
    {"nodes.0": node("cheapest")},
    {"nodes.0": node("cheapest", clouds=["scaleway"], concurrency=2)},
    {"nodes.0": node("cheapest", pinned={"cloud": "scaleway", "location": "fr-par-2", "type": "L4-1-24G"})},
    {"nodes": [node("scaleway"), {**node("aws"), "name": "b"}, {**node("linode"), "name": "c"}]},
    {"nodes.0.serving": {"model": "Qwen/Qwen3-4B"}},
    {"serving": DELETE, "nodes.0.serving": {"model": "Qwen/Qwen3-4B"}},
    {"nodes.0.serving": {"served_model_name": "small"}},
    {"serving.model": "acme/nobody-knows-it"},
    {"serving.image": "vllm/vllm-openai:v0.10.2"},
    {"serving.image": f"vllm/vllm-openai:latest{DIGEST}"},
    {"serving.image": f"registry.example.com:5000/mirror/vllm{DIGEST}"},
    {"serving.image": "localhost:5000/vllm:v0.9.2"},
    {"serving.image": "ghcr.io/acme/vllm__own.build-1:0.9.2-cu128"},
    {"serving.image": "vllm/vllm-openai:v0.8.5.post1"},
    {"serving.image": "nvcr.io/nvidia/vllm:25.09-py3"},
    {"serving.webui": True},
    {"serving.webui": True, "serving.task": "chat"},
    {"serving.task": "generate"},
    {"serving.task": "embed", "expose": EXPOSED},
    {"serving.task": "rerank", "serving.image": "vllm/vllm-openai:v0.33.0"},
    {"serving.task": "transcription", "serving.model": "openai/whisper-large-v3"},
    {"serving.webui": True, "observability": {"enabled": True}, "expose": EXPOSED},
    {"serving.dry_run": True},
    {"serving.visible_devices": [0]},
    {"serving.max_model_len": 4096, "serving.max_num_seqs": 8},
    {"serving.swap_space_gb": 4},
    {"serving.extra_args": ["--enforce-eager"]},
    {"serving.extra_args": ["--enforce"]},
    {"serving.extra_args": ["--enforce_eager", "--max_num_batched_tokens=4096"]},
    {"serving.extra_args": ["--max-num-batched-tokens", "4096", "--seed", "-1"]},
    {"serving.extra_args": ["--tokenizer", "Qwen/Qwen3-8B", "--trust-remote-code"]},
    {"serving.extra_args": ["--chat-template-content-format", "openai"]},
    {"serving.args": {"max_num_batched_tokens": 8192, "enable-prefix-caching": False, "seed": -1}},
    {"serving.args": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}},
    {"serving.args": {"lora_modules": [{"name": "a", "path": "b/c"}], "max_num_batched_tokens": "8k"}},
    {
        "serving.extra_args": [
            "--speculative-config.method",
            "ngram",
            "--speculative_config.num_speculative_tokens=3",
        ]
    },
    {"serving.image": f"vllm/vllm-openai{DIGEST}", "serving.extra_args": ["--flag-of-tomorrow", "1"]},
    {"serving.image": "vllm/vllm-openai:v0.99.0", "serving.args": {"flag_of_tomorrow": [1, 2]}},
    {"serving.extra_args": ["--rope-scaling", '{"rope_type": "yarn", "factor": 2.0}']},
    {"serving.environment": {"TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_LEVEL": "DEBUG"}},
    {"serving.environment": {"MAX_TOKENS_PER_BATCH": "8", "HF_HUB_OFFLINE": "1", "NCCL_DEBUG": "INFO"}},
    {"serving.environment": {"PROXY_ADDRESS": SECURE}},
    {"access.ssh_cidrs": ["203.0.113.0/28", "2001:db8::/48"]},
    {"access.ssh_cidrs": ["2001:db8::1/128"]},
    {"access.ssh_port": 2222},
    {"expose": EXPOSED},
    {"expose": EXPOSED | {"tls": "acme", "cidrs": ["0.0.0.0/0"], "email": "ops@example.com"}},
    {"expose": EXPOSED | {"gateway": "l4-a", "max_requests": 64}},
    {"expose": EXPOSED, "secrets.previous_api_key": SECURE},
    {"secrets": SECURE},
    {"secrets.hf_token": SECURE},
    {"secrets.hf_token": SECURE, "secrets.delivery": "ssh"},
    {"network": {}},
    {"network": PROXIED},
    {"network": {**PROXIED, "no_proxy": "10.0.0.0/8, .example.com, 2001:db8::1"}},
    {"network": {"ca_certificates": "ca.pem", "registry_mirrors": ["https://mirror.example.com:5000"]}},
    {"serving.environment": {"HTTPS_PROXY": "http://proxy:3128"}},
    {"health": {"enabled": False}},
    {"rollout": {"canary": "l4-a", "max_unavailable": 2}},
    {"budget": {"max_cost_per_hour": 5, "max_cost_per_month": 3000, "currency": "USD"}},
    {"budget": {"usd_per_eur": 1.1, "as_of": "2026-11-01"}},
    {"budget": {"usd_per_eur": 1.1, "as_of": "2026-11-01 00:00:00 +0000 UTC"}},
    {"serving.model": "Qwen/Qwen3-32B", "fit": {"override": "measured by hand"}},
    {"provision": {"packages": True, "python": True, "conda": {"environments": [{"name": "tools"}]}}},
    {"provision": {"scripts": ["setup.sh"], "files": [{"source": "data/", "destination": "/opt/data"}]}},
    {"provision": {"environment": {"HF_HOME": "/opt/hf"}, "docker": True, "ray": True}},
    {"jobs": {"max_cost": 5, "fallback_types": ["g6e.2xlarge"]}},
    {"nodes": [], "serving": DELETE, "secrets": DELETE, "jobs": {"region": "us-east-1"}},
    {"nodes": DELETE, "serving": DELETE, "secrets": DELETE, "jobs": {"spot": True}},
    {"nodes": [], "serving": {}, "secrets": {}, "expose": {}, "jobs": {"timeout_minutes": 5}},
    {"access.authorized_keys": [f"{PUBLIC_KEY} anna@example.com"]},
    {
        "access.jump_host": {
            "host": "bastion.example.com",
            "host_keys": [PUBLIC_KEY],
            "user": "hop",
            "port": 2222,
        }
    },
    {"nodes.0": HIDDEN, "access.jump_host": HOP},
    {"nodes.0": HIDDEN_AWS, "access.jump_host": HOP},
    {
        "nodes": [HIDDEN, {**HIDDEN_AWS, "name": "b"}, {**node("linode"), "name": "c"}],
        "access.jump_host": HOP,
    },
    {"nodes": [HIDDEN, {**HIDDEN, "name": "b"}], "expose": EXPOSED, "access.jump_host": HOP},
    {
        "nodes": [],
        "ray": [{"name": "pool", "cloud": "aws", "public_ip": False, "subnet": "subnet-0123456789abcdef0"}],
        "access.jump_host": HOP,
    },
    {
        "serving.files": {"tool.jinja": "setup.sh"},
        "serving.extra_args": ["--chat-template", "/files/tool.jinja"],
    },
    {"nodes": [], "ray": [{"name": "pool", "cloud": "scaleway", "type": "L4-2-24G"}]},
    {"nodes": [], "ray": [{"name": "pool", "cloud": "scaleway", "serve": False, "count": 0}]},
    {"scaleway:projectId": "00000000-0000-0000-0000-000000000000", "aws:region": "eu-west-3"},
    {"pulumi:tags": {"team": "search"}},
]
"""Changes of the base that leave it right."""


def right(changes: dict[str, Any]) -> dict[str, Any]:
    """The base with those changes."""
    config = base()
    for path, value in changes.items():
        config = {**config, path: value} if ":" in path else put(config, path, value)
    return config
