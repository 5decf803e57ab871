"""The commands around catalog and cost, as a user runs them."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import typer
import yaml
from small_catalog import document as small
from small_state import node, state
from typer.testing import CliRunner

from fleet import billing, settings
from fleet.catalog import CLOUDS
from fleet.commands import catalog, cost_report, pulumi, reap
from fleet.commands.plan import judge_of, plan
from fleet.jobs import Job, JobError, Status
from fleet.optimizer import Wish
from fleet.optimizer import plan as search

app = typer.Typer()
app.add_typer(catalog.app, name="catalog")
app.command("plan")(plan)
app.command("cost-report")(cost_report.cost_report)
app.command("reap")(reap.reap)

MODEL = "Qwen/Qwen3-8B-AWQ"
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9"}
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.stdout


# --- plan -----------------------------------------------------------------------------------------------


def test_plan_gives_every_way_and_every_reason_as_json() -> None:
    found = json.loads(run("plan", "--model", MODEL, "--json", "--accept-stale"))
    costs = [option["cost_per_hour"] for option in found["options"]]
    assert costs == sorted(costs)
    assert min(costs) > 0
    assert found["choice"] in found["options"]
    assert all(option["lost_by"] for option in found["options"][1:])
    assert all(entry["reason"] for entry in found["rejected"])
    assert {option["cloud"] for option in found["options"]} == {"scaleway", "aws", "linode", "gcp", "azure"}


def test_plan_over_all_clouds_takes_less_than_300_ms_after_start_up() -> None:
    taken = []
    for _ in range(3):
        began = time.process_time()
        judge = judge_of("Qwen/Qwen3-32B-AWQ", max_model_len=32768)
        search(Wish(concurrency=4, clouds=CLOUDS), judge.fit)
        taken.append(time.process_time() - began)
    assert min(taken) < 0.3


def test_plan_says_when_nothing_can_serve_the_model() -> None:
    found = json.loads(
        run("plan", "--model", "meta-llama/Llama-3.1-405B-Instruct", "--cloud", "linode", "--json", code=3)
    )
    assert found["choice"] is None
    assert found["options"] == []


def test_plan_knows_its_models_and_names_the_nearest() -> None:
    result = CliRunner().invoke(app, ["plan", "--model", "Qwen/Qwen3-8B-AWK"], env=NO_HUB)
    assert result.exit_code == 2
    assert "Qwen/Qwen3-8B-AWQ" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--cloud", "ovh", "it has scaleway, aws, linode, gcp, azure"),
        ("--currency", "GBP", "'GBP' is neither EUR nor USD"),
        ("--quantization", "zip", "zip"),
    ],
)
def test_plan_refuses_what_it_does_not_know(option: str, value: str, said: str) -> None:
    result = CliRunner().invoke(app, ["plan", "--model", MODEL, option, value])
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


def test_plan_writes_a_stack_that_the_settings_accept(tmp_path: Path) -> None:
    path = tmp_path / "Pulumi.cheap.yaml"
    scaleway = ("--cloud", "scaleway", "--accept-stale")
    run("plan", "--model", MODEL, *scaleway, "--write", str(path), "--ssh-cidr", "203.0.113.7/32")
    written = yaml.safe_load(path.read_text(encoding="utf-8"))["config"]
    config = {key.removeprefix("vllm-fleet:"): value for key, value in written.items()}
    # Nodes are checked with the stack's serving under their own, as the settings module puts it there.
    config["nodes"] = [{**entry, "serving": config["serving"]} for entry in config["nodes"]]
    stack = settings.StackSettings.model_validate({**config, "secrets": {"api_key": "k" * 32}})
    assert stack.serving.model == MODEL
    run("plan", "--model", MODEL, "--write", str(path), "--ssh-cidr", "203.0.113.7/32", code=2)


def test_plan_does_not_decide_who_may_open_ssh(tmp_path: Path) -> None:
    run("plan", "--model", MODEL, "--write", str(tmp_path / "Pulumi.x.yaml"), code=2)


# --- catalog --------------------------------------------------------------------------------------------


def test_catalog_list_prices_one_zone() -> None:
    rows = json.loads(run("catalog", "list", "scaleway", "--zone", "fr-par-2", "--gpu", "l4", "--json"))
    assert {row["type"] for row in rows} == {"L4-1-24G", "L4-2-24G", "L4-4-24G", "L4-8-24G"}
    assert {row["zone"] for row in rows} == {"fr-par-2"}


def test_catalog_refresh_leaves_the_file_alone_when_the_api_is_out_of_reach(tmp_path: Path) -> None:
    text = (catalog.DATA / "linode.json").read_text(encoding="utf-8")
    path = tmp_path / "linode.json"
    path.write_text(text, encoding="utf-8")
    refused = ("--directory", str(tmp_path), "--linode-url", "http://127.0.0.1:9", "--write")
    run("catalog", "refresh", "linode", *refused, code=1)
    assert path.read_text(encoding="utf-8") == text


def test_catalog_refresh_writes_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "linode.json"
    path.write_text((catalog.DATA / "linode.json").read_text(encoding="utf-8"), encoding="utf-8")
    plan_ = {"id": "g2-gpu-rtx4000a1-s", "gpus": 1, "price": {"hourly": 9.87}}
    row = {"region": "us-ord", "plan": plan_["id"], "available": True}

    def answer(_: httpx.Client, url: str) -> httpx.Response:
        data = [row] if "availability" in url else [plan_]
        return httpx.Response(200, json={"data": data, "pages": 1}, request=httpx.Request("GET", url))

    monkeypatch.setattr(httpx.Client, "get", answer)
    diff = run("catalog", "refresh", "linode", "--directory", str(tmp_path))
    assert '+    "g2-gpu-rtx4000a1-s": 9.87' in diff
    assert "9.87" not in path.read_text(encoding="utf-8")
    run("catalog", "refresh", "linode", "--directory", str(tmp_path), "--write")
    assert "9.87" in path.read_text(encoding="utf-8")
    assert "linode: nothing changed" in run("catalog", "refresh", "linode", "--directory", str(tmp_path))


EC2 = '<{0} xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">{1}</{0}>'


class Aws(BaseHTTPRequestHandler):
    """The Price List API and EC2's spot prices, as far as a refresh asks; each price once for all regions."""

    hourly = "0.7"
    spot = "0.3"

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if "GetProducts" in self.headers.get("X-Amz-Target", ""):
            reply = json.dumps({"PriceList": [self._product()] if "GPU instance" in asked else []})
        elif "DescribeRegions" in asked:
            reply = EC2.format(
                "DescribeRegionsResponse",
                "<regionInfo><item><regionName>us-west-1</regionName></item></regionInfo>",
            )
        else:
            reply = EC2.format(
                "DescribeSpotPriceHistoryResponse",
                "<spotPriceHistorySet><item><instanceType>g4dn.xlarge</instanceType>"
                "<productDescription>Linux/UNIX</productDescription>"
                f"<spotPrice>{self.spot}</spotPrice><availabilityZone>us-west-1a</availabilityZone>"
                "</item></spotPriceHistorySet>",
            )
        self.send_response(200)
        self.end_headers()
        self.wfile.write(reply.encode())

    def _product(self) -> str:
        dimension = {"unit": "Hrs", "pricePerUnit": {"USD": self.hourly}}
        terms = {"OnDemand": {"T": {"priceDimensions": {"D": dimension}}}}
        return json.dumps({"product": {"attributes": {"instanceType": "g4dn.xlarge"}}, "terms": terms})

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""


def test_catalog_refresh_follows_what_changes_at_aws_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    facts = {"gpu": "T4", "gpu_count": 1, "vcpus": 4, "ram_gib": 16}
    before = [{"zone": "us-west-1", "source": "https://x", "as_of": None, "hourly": {"g4dn.xlarge": None}}]
    path = tmp_path / "aws.json"
    path.write_text(json.dumps(small("aws", types={"g4dn.xlarge": facts}, price_lists=before)))
    with ThreadingHTTPServer(("127.0.0.1", 0), Aws) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        asked = ("catalog", "refresh", "aws", "--directory", str(tmp_path), "--aws-url", url, "--write")
        run(*asked)
        lists = json.loads(path.read_text(encoding="utf-8"))["price_lists"]
        assert [(entry.get("spot", False), entry["hourly"]) for entry in lists] == [
            (False, {"g4dn.xlarge": 0.7}),
            (True, {"g4dn.xlarge": 0.3}),
        ]
        assert run(*asked) == "aws: nothing changed\n"
        monkeypatch.setattr(Aws, "spot", "0.25")
        changed = [line for line in run(*asked).splitlines() if line[:1] in "+-" and line[1:2] == " "]
        assert changed == ['-    "g4dn.xlarge": 0.3', '+    "g4dn.xlarge": 0.25']
        server.shutdown()


# --- the state of a stack -------------------------------------------------------------------------------


class Stack:
    """A stack that the Pulumi CLI would know: what it is asked, and what it answers."""

    def __init__(self, current: dict[str, Any], versions: dict[str, dict[str, Any]] | None = None) -> None:
        self.current = current
        self.versions = versions or {}
        self.url = "s3://bucket"
        self.nodes = [{"name": "a", "ttl_hours": "24.0"}, {"name": "b", "ttl_hours": 1000}, {"name": "c"}]
        self.destroyed: list[list[str]] = []

    def read(self, *arguments: str, stack: str | None = None) -> Any:
        match arguments:
            case ("stack", "export"):
                return self.current
            case ("stack", "export", "--version", version):
                if version not in self.versions:
                    raise pulumi.PulumiError("versions are not kept")
                return self.versions[version]
            case ("stack", "history", "--json"):
                # A backend that keeps no versions calls them all 0.
                months = {3: 11, 2: 10, 1: 9} if self.versions else {0: 11}
                return [
                    {"version": version, "endTime": f"2026-{month:02}-21T00:00:00.000Z"}
                    for version, month in months.items()
                ]
            case ("whoami", "--verbose", "--json"):
                return {"url": self.url}
            case ("config", "get", "vllm-fleet:nodes"):
                return self.nodes
            case ("config", "--json", "--show-secrets"):
                return {}
        raise AssertionError(arguments)

    def destroy(self, urns: list[str], *, stack: str | None = None) -> None:
        self.destroyed.append(urns)
        kept = [entry for entry in self.current["deployment"]["resources"] if entry["urn"] not in urns]
        self.current = {"version": 3, "deployment": {"resources": kept}}


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Stack:
    long_ago = (datetime.now(UTC) - timedelta(hours=500)).isoformat()
    fake = Stack(state(*(part for name in "abc" for part in node(name, created=long_ago))))
    monkeypatch.setattr(pulumi, "read", fake.read)
    monkeypatch.setattr(pulumi, "destroy", fake.destroy)
    return fake


def test_reap_is_dry_by_default(stack: Stack) -> None:
    said = run("reap")
    assert "a: 500.0 h old, ttl_hours is 24: would be destroyed with --yes" in said
    assert stack.destroyed == []


def test_reap_destroys_just_what_is_due_and_twice_is_once(stack: Stack) -> None:
    run("reap", "--yes")
    assert stack.destroyed == [[entry["urn"] for entry in node("a")]]
    assert "Nothing has outlived" in run("reap", "--yes")
    assert len(stack.destroyed) == 1


def test_reap_leaves_a_protected_node_and_fails_so_that_someone_looks(stack: Stack) -> None:
    long_ago = (datetime.now(UTC) - timedelta(hours=500)).isoformat()
    stack.current = state(*node("a", created=long_ago, protect=True))
    run("reap", "--yes", code=1)
    assert stack.destroyed == []


def test_a_cost_report_follows_the_versions_of_the_state(stack: Stack) -> None:
    stack.versions = {"1": state(), "2": state(*node("a")), "3": state(*node("a"), *node("b"))}
    past, complete = cost_report.history(None, NOW, stack.current)
    assert complete
    # The state of 21 October was in force when November began; the one of September no longer.
    assert past == [
        (datetime(2026, 10, 21, tzinfo=UTC), stack.versions["2"]),
        (datetime(2026, 11, 21, tzinfo=UTC), stack.versions["3"]),
    ]


def test_a_cost_report_reads_the_checkpoints_of_a_file_backend(stack: Stack, tmp_path: Path) -> None:
    stack.url = f"file://{tmp_path}"
    folder = tmp_path / ".pulumi" / "history" / "vllm-fleet" / "dev"
    folder.mkdir(parents=True)
    for day, resources in ((1, node("a")), (5, [])):
        ended = datetime(2026, 11, day, tzinfo=UTC)
        latest = state(*resources)["deployment"] if resources else {"manifest": {}}
        name = f"dev-{int(ended.timestamp()) * 10**9}.checkpoint.json"
        (folder / name).write_text(
            json.dumps({"version": 3, "checkpoint": {"latest": latest}}), encoding="utf-8"
        )
    past, complete = cost_report.history(None, NOW, stack.current)
    assert complete
    assert [(ended.day, len(billing.billed(seen))) for ended, seen in past] == [(1, 1), (5, 0)]


def test_a_ttl_that_is_no_number_is_named(stack: Stack) -> None:
    stack.nodes = [{"name": "a", "ttl_hours": "two days"}]
    result = CliRunner().invoke(app, ["reap"])
    assert result.exit_code == 2
    assert "nodes.a.ttl_hours: 'two days' is no number" in " ".join(result.output.split())


def test_a_cost_report_without_versions_bills_what_is_there_now(stack: Stack) -> None:
    printed = json.loads(run("cost-report", "--json"))
    assert printed["history_complete"] is False
    assert [entry["status"] for entry in printed["nodes"]] == ["running"] * 3
    assert printed["per_hour"] == pytest.approx(3 * printed["nodes"][0]["per_hour"], abs=1e-6)
    assert printed["month_to_date"] > 0


def with_jobs(stack: Stack) -> None:
    """The stack gets a pipeline of GPU jobs."""
    stack.current["deployment"]["resources"][0]["outputs"] = {"jobs": {"pipeline": "dev-jobs"}}


def test_a_cost_report_tells_of_the_pipelines_jobs(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    with_jobs(stack)
    launched = datetime.now(UTC) - timedelta(minutes=30)
    running = Job("job-1", Status.RUNNING, "train.sh", launched, "g6.xlarge", price_per_hour=0.8)
    monkeypatch.setattr("fleet.commands.job.find", lambda file, stack: "the pipeline")
    monkeypatch.setattr("fleet.jobs.jobs", lambda pipeline, **_: [running] if pipeline else [])
    printed = json.loads(run("cost-report", "--json", "--currency", "USD"))
    assert [(job["job"], job["status"], job["per_hour"]) for job in printed["jobs"]] == [
        ("job-1", "running", 0.8)
    ]
    nodes = sum(entry["per_hour"] for entry in printed["nodes"])
    assert printed["per_hour"] == pytest.approx(nodes + 0.8, abs=1e-5)
    assert "job-1" in run("cost-report")


def test_a_cost_report_says_when_aws_does_not_tell_of_jobs(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_jobs(stack)

    def refuse(*_: Any) -> None:
        raise JobError("no credentials")

    monkeypatch.setattr("fleet.commands.job.find", refuse)
    printed = json.loads(run("cost-report", "--json"))
    assert printed["unknown"] == ["jobs: AWS does not tell what they cost: no credentials"]
    assert (printed["jobs"], len(printed["nodes"])) == ([], 3)


def test_a_missing_pulumi_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    result = CliRunner().invoke(app, ["reap"])
    assert result.exit_code == 1
    assert "pulumi is not on PATH" in result.output
