"""The view of an update: percentages only rise, end at 100 or at the failure, and cost and time are told."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fleet.commands.up import summary, table
from fleet.live import Board, Phase
from fleet.progress import Progress, Stage, parse_line

NODE = "urn:pulumi:dev::vllm-fleet::vllm-fleet:scaleway:GpuNode::{}"
PART = "urn:pulumi:dev::vllm-fleet::vllm-fleet:scaleway:GpuNode${}::{}"
SERVER = "pulumi-python:dynamic/scaleway:Server"


@dataclass
class Time:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


def board(*names: str, time: Time | None = None, per_hour: float | None = 3.6) -> Board:
    return Board(dict.fromkeys(names or ("a",), ("scaleway", per_hour)), now=time or Time())


def line(node: str, stage: Stage, note: str = "") -> str:
    """As providers and commands print it."""
    stream = io.StringIO()
    Progress(node, stream).reached(stage, note)
    return stream.getvalue()


@pytest.mark.parametrize("stage", Stage)
def test_a_line_of_progress_is_read_as_it_was_meant(stage: Stage) -> None:
    told = parse_line(line("l4-a", stage, "in 3 s: 50 % X").rstrip())
    assert told is not None
    assert (told.node, told.stage, told.note) == ("l4-a", stage, "in 3 s: 50 % X")


def test_a_machine_of_a_cluster_is_a_node_like_any_other() -> None:
    seen = board("pool-head")
    urn = "urn:pulumi:dev::vllm-fleet::vllm-fleet:ray:RayCluster$vllm-fleet:aws:GpuNode::pool-head"
    seen.began(urn, "create")
    assert seen.nodes["pool-head"].phase is Phase.RUNNING


def test_other_lines_are_not_progress() -> None:
    for other in ("", "b stopped at 70 % WORKER_VLLM_HTTP_OK: exits", "disk 20 % FULL", "  seen:  50 %"):
        assert parse_line(other) is None


def test_what_is_said_of_a_node_names_it_and_an_error_says_what_it_says() -> None:
    seen = board("a", "b")
    assert seen.said(NODE.format("b"), "warning", "cost: 1 EUR an hour") == "b: cost: 1 EUR an hour"
    stage = line("b", Stage.PROVIDER_CREATE).rstrip()
    assert seen.said(PART.format(SERVER, "b-server"), "info", stage) == stage
    urn = PART.format(SERVER, "b-server")
    seen.said(urn, "error", "create failed: create_server: none. Fix: wait")
    assert seen.nodes["b"].failure == ["create_server: none. Fix: wait"]


@pytest.mark.parametrize("cloud", ["scaleway", "linode", "aws"])
def test_every_cloud_has_an_expected_time(cloud: str) -> None:
    assert Board({"a": (cloud, 1.0)}).nodes["a"].expected_s()


def test_a_node_goes_through_its_stages_to_100() -> None:
    seen = board()
    seen.began(NODE.format("a"), "create")
    shown = []
    for stage in Stage:
        seen.said("", "info#err", line("a", stage, "x") + "\n")
        shown.append(seen.nodes["a"].percent)
    seen.done(NODE.format("a"), "create")
    assert shown == [int(stage) for stage in Stage]
    assert seen.nodes["a"].phase == Phase.DONE


def test_a_node_without_a_gate_ends_at_100_too() -> None:
    seen = board()
    seen.said("", "info", line("a", Stage.WORKER_SSH_ACCESSIBLE))
    seen.done(NODE.format("a"), "create")
    assert seen.nodes["a"].percent == 100


def test_a_node_in_which_nothing_changes_is_said_to_be_unchanged() -> None:
    seen = board()
    seen.began(PART.format(SERVER, "a-server"), "refresh")
    seen.done(NODE.format("a"), "refresh")
    assert seen.nodes["a"].phase == Phase.WAITING
    seen.began(PART.format(SERVER, "a-server"), "same")
    seen.done(NODE.format("a"), "same")
    assert seen.nodes["a"].phase == Phase.UNCHANGED


def test_a_failure_stays_where_it_happened_with_its_reason() -> None:
    seen = board("a", "a-b")
    seen.said("", "info", line("a-b", Stage.WORKER_SSH_INSTALL))
    part = PART.format("command:local:Command", "a-b-serving-gate")
    why = (
        "exit status 1:\n"
        + line("a-b", Stage.WORKER_SSH_INSTALL)
        + '{"report": 1}\na-b stopped: no GPU\n  next:  look\n'
    )
    seen.said(part, "error", why)
    seen.failed(part)
    seen.said("", "info", line("a-b", Stage.READY))  # a line that came late
    seen.done(NODE.format("a-b"), "create")
    node = seen.nodes["a-b"]
    assert (node.phase, node.percent) == (Phase.FAILED, 60)
    assert seen.nodes["a"].phase == Phase.WAITING
    told = summary(seen)
    assert told[0] == "a-b failed after 60 % WORKER_SSH_INSTALL"
    assert told[1:3] == ["  a-b stopped: no GPU", "  next:  look"]
    assert told[-1].startswith("1 waiting, 1 failed")


def test_what_belongs_to_no_node_is_told_too() -> None:
    seen = board()
    seen.said("", "error", "the stack is locked\n")
    assert "the stack is locked" in summary(seen)


def test_what_is_cut_off_is_neither_done_nor_failed() -> None:
    seen = board("a", "b")
    seen.began(PART.format(SERVER, "a-server"), "create")
    seen.finish()
    assert [node.phase for node in seen.nodes.values()] == [Phase.CANCELLED, Phase.WAITING]


def test_cost_counts_from_the_server_and_time_from_the_first_step() -> None:
    time = Time()
    seen = board("a", "b", time=time)
    seen.said("", "info", line("a", Stage.REQUEST_CREATE))
    time.seconds = 10
    seen.said("", "info", line("a", Stage.PROVIDER_CREATE))
    time.seconds = 110
    node = seen.nodes["a"]
    assert node.elapsed_s(110) == 110
    assert seen.cost() == pytest.approx(0.1)  # 100 s at 3.6 an hour
    assert board(per_hour=None).nodes["a"].cost(0) is None


def test_the_expected_time_follows_the_nodes_own_pace() -> None:
    time = Time()
    seen = board(time=time)
    assert seen.nodes["a"].expected_s() == 600
    seen.began(PART.format(SERVER, "a-server"), "create")
    time.seconds = 130  # the table says 65
    seen.said("", "info", line("a", Stage.WORKER_SSH_ACCESSIBLE))
    assert seen.nodes["a"].expected_s() == pytest.approx(1200)


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("line"), st.sampled_from(list(Stage))),
        st.tuples(
            st.sampled_from(["began", "done"]), st.sampled_from(["create", "same", "refresh", "update"])
        ),
        st.tuples(st.just("failed"), st.just("")),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(EVENTS)
def test_whatever_comes_in_whatever_order_percentages_only_rise(events: list[tuple[str, object]]) -> None:
    seen = board()
    before, failed = 0, False
    for what, more in events:
        if what == "line":
            assert isinstance(more, Stage)
            seen.said("", "info", line("a", more))
        elif what == "began":
            seen.began(PART.format(SERVER, "a-server"), str(more))
        elif what == "done":
            seen.done(NODE.format("a"), str(more))
        else:
            seen.failed(PART.format(SERVER, "a-server"))
        node = seen.nodes["a"]
        assert node.percent >= before
        assert not (failed and node.phase != Phase.FAILED)
        before, failed = node.percent, node.phase == Phase.FAILED
        assert node.phase not in {Phase.DONE, Phase.UNCHANGED} or node.percent == 100


def test_the_table_shows_each_node_with_stage_time_and_cost() -> None:
    time = Time()
    seen = board("a", "b", time=time)
    seen.said("", "info", line("a", Stage.PROVIDER_START, "starting [1/2]"))
    time.seconds = 60
    console = Console(width=120, file=io.StringIO(), color_system=None)
    console.print(table(seen, ["cancelling: …"]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "30 % PROVIDER_START" in shown
    assert "1:00 / " in shown
    assert "starting [1/2]" in shown
    assert "0.0600" in shown
    assert "cancelling" in shown
