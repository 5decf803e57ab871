"""`fleet up`: `pulumi up` with a live view of the nodes. The same engine, the same state."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleet.commands import nodes, pulumi
from fleet.commands.nodes import StackName

if TYPE_CHECKING:
    from pulumi import automation
    from rich.console import Console, RenderableType

    from fleet.commands.engine import Engine
    from fleet.live import Board, NodeProgress

INTERRUPTED = 130
FRAMES_A_SECOND = 4
BAR_WIDTH = 20
COLOURS = {"done": "green", "unchanged": "dim", "failed": "red", "cancelled": "yellow"}

Tell = Callable[[str], None]


def up(
    stack: StackName = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not show a preview and ask first.")] = False,
    svg: Annotated[
        Path | None, typer.Option(help="Write the view at its start, middle and end to this SVG file.")
    ] = None,
) -> None:
    """Bring the stack up, with a progress bar, the time and the cost of each node.

    Without a terminal it prints plain lines. Ctrl-C lets what is under way end and then stops; a second one
    stops at once.

    Example: fleet up --yes --stack dev
    """
    from rich.console import Console  # noqa: PLC0415  --help does without

    console = Console(record=svg is not None, width=110 if svg else None)
    with nodes.told():
        name = stack or pulumi.selected_stack()
        declared = _declared(pulumi.config(name))
        if not (yes or console.is_terminal):
            raise pulumi.PulumiError("nobody can be asked here; give --yes, after a look at: pulumi preview")
        code = _bring_up(name, declared, console, ask=not yes)
    if svg is not None:
        svg.write_text(console.export_svg(title=f"fleet up --stack {name}"), encoding="utf-8")
    raise typer.Exit(code)


def _declared(config: Mapping[str, object]) -> dict[str, tuple[str, float | None]]:
    """The nodes of the configuration: name → cloud, and cost per hour in EUR. None of a wrong one: the engine
    says what is wrong with it."""
    from fleet import settings  # noqa: PLC0415  --help does without
    from fleet.cost import default_rate, node_cost_per_hour  # noqa: PLC0415

    try:
        found = settings.load(nodes.Config(config)).nodes
    except settings.SettingsError:
        return {}
    placed = [node for node in found if isinstance(node, settings.Node)]
    costs = {
        node.name: node_cost_per_hour(node.cloud, node.location, node.type, node.root_volume_gb)
        for node in placed
    }
    return {node.name: (node.cloud, costs[node.name].into("EUR", default_rate()).total) for node in placed}


def _bring_up(
    name: str, declared: Mapping[str, tuple[str, float | None]], console: Console, *, ask: bool
) -> int:
    from pulumi import automation  # noqa: PLC0415  takes a second to load

    from fleet.commands.engine import Engine  # noqa: PLC0415
    from fleet.live import Board  # noqa: PLC0415

    engine = Engine()
    options = automation.LocalWorkspaceOptions(pulumi_command=engine)
    try:
        stack = automation.select_stack(name, work_dir=".", opts=options)
    except automation.StackNotFoundError:
        raise pulumi.PulumiError(f"there is no stack {name}; make it: pulumi stack init {name}") from None
    if ask:
        stack.preview(on_output=console.print, color="always")
        if not typer.confirm("Bring it up?"):
            return 0
    board = Board(declared)
    with _view(board, console) as (tell, warn), _interruptible(engine, warn) as interrupted:
        code = 0
        try:
            stack.up(on_event=lambda event: feed(board, event, tell), show_secrets=False)
        except automation.CommandError:
            code = INTERRUPTED if interrupted else 1
        board.finish()
    for line in summary(board):
        console.print(line, markup=False, highlight=False)
    return code


@contextmanager
def _interruptible(engine: Engine, warn: Tell) -> Iterator[list[int]]:
    """Signals cancel the engine instead of ending this program; gives those that came."""
    came: list[int] = []

    def cancel(number: int, _: object) -> None:
        came.append(number)
        engine.interrupt()
        warn(
            "cancelling: waiting for what is under way to end; once more to end at once"
            if len(came) == 1
            else "ending at once; what was under way is pending in the state, and the next run picks it up"
        )

    before = {each: signal.signal(each, cancel) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def feed(board: Board, event: automation.EngineEvent, tell: Tell) -> None:
    """Tell the board one event of the engine, and `tell` what people should read of it."""
    if event.resource_pre_event:
        board.began(event.resource_pre_event.metadata.urn, event.resource_pre_event.metadata.op)
    if event.res_outputs_event:
        board.done(event.res_outputs_event.metadata.urn, event.res_outputs_event.metadata.op)
    if event.res_op_failed_event:
        board.failed(event.res_op_failed_event.metadata.urn)
    if event.diagnostic_event:
        said = event.diagnostic_event
        line = board.said(said.urn or "", said.severity, said.message)
        if line:
            tell(line)


# --- What is seen ---


@contextmanager
def _view(board: Board, console: Console) -> Iterator[tuple[Tell, Tell]]:
    """A live table on a terminal, else plain lines. Gives what takes the engine's lines, and our own."""
    if not (console.is_terminal or console.record):

        def show(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        yield show, show
        return
    from rich.live import Live  # noqa: PLC0415  plain lines do without

    warnings: list[str] = []
    with Live(
        get_renderable=lambda: table(board, warnings), console=console, refresh_per_second=FRAMES_A_SECOND
    ):
        yield lambda _: None, warnings.append


def table(board: Board, warnings: Sequence[str] = ()) -> RenderableType:
    """The nodes as they are now."""
    from rich.console import Group  # noqa: PLC0415  plain lines do without
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    now = board.now()
    rows = Table(box=None, pad_edge=False, expand=True)
    for title, more in (
        ("node", {"no_wrap": True}),
        ("", {"width": BAR_WIDTH}),
        ("stage", {"no_wrap": True}),
        ("elapsed / expected", {"justify": "right", "no_wrap": True}),
        (board.currency, {"justify": "right"}),
        ("", {"no_wrap": True, "ratio": 1, "overflow": "ellipsis"}),
    ):
        rows.add_column(title, **more)
    for node in board.nodes.values():
        colour = COLOURS.get(node.phase, "cyan")
        cost = node.cost(now)
        rows.add_row(
            node.name,
            ProgressBar(100, node.percent, width=BAR_WIDTH, complete_style=colour, finished_style=colour),
            Text(f"{node.percent:>3} % {node.stage.name}", style=colour),
            _time(node, now),
            "?" if cost is None else f"{cost:.4f}",
            Text(node.phase if node.phase in COLOURS else node.note),
        )
    total = f"cost so far: {board.cost():.4f} {board.currency}"
    return Group(rows, Text(total), *(Text(line, style="yellow") for line in warnings))


def _time(node: NodeProgress, now: float) -> str:
    if node.started_at is None:
        return "-"
    elapsed, expected = node.elapsed_s(now), node.expected_s()
    if node.ended_at is not None or expected is None:
        return _clock(elapsed)
    return f"{_clock(elapsed)} / {_clock(max(expected, elapsed))}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def summary(board: Board) -> list[str]:
    """How it ended: each failed node with where and why, then one line of counts."""
    lines = []
    for node in board.nodes.values():
        if node.phase == "failed":
            lines.append(f"{node.name} failed at {node.stage.label}")
            lines += [f"  {line.strip()}" for line in node.failure]
    lines += board.other_failures
    phases = [str(node.phase) for node in board.nodes.values()]
    counts = ", ".join(f"{phases.count(phase)} {phase}" for phase in dict.fromkeys(phases))
    return [*lines, f"{counts or 'no nodes'}; cost so far {board.cost():.4f} {board.currency}"]
