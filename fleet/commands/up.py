"""`fleet up`: `pulumi up` with a live view of the nodes. The same engine, the same state."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
) -> None:
    """Bring the stack up, with a progress bar, the time and the cost of each node.

    Without a terminal it prints plain lines. Ctrl-C lets what is under way end and then stops; a second one
    stops at once.

    Example: fleet up --yes --stack dev
    """
    from rich.console import Console  # noqa: PLC0415  --help does without

    from fleet.live import Board  # noqa: PLC0415

    console = Console()
    with nodes.told():
        name = stack or pulumi.selected_stack()
        board = Board(declared(pulumi.config(name)))
        if not (yes or console.is_terminal):
            raise pulumi.PulumiError("nobody can be asked here; give --yes, after a look at: pulumi preview")
        if not yes:
            pulumi.preview(stack=name)
            typer.confirm("Bring it up?", abort=True)
        with _view(board, console) as (tell, warn):
            code = bring_up(name, board, tell, warn)
    for line in summary(board):
        console.print(line, markup=False, highlight=False)
    raise typer.Exit(code)


def declared(config: Mapping[str, object]) -> dict[str, tuple[str, float | None]]:
    """The nodes of the configuration: name → cloud, and cost per hour in EUR. None of a wrong one: the engine
    says what is wrong with it."""
    from fleet import settings  # noqa: PLC0415  --help does without
    from fleet.cost import default_rate  # noqa: PLC0415

    try:
        placed = settings.load(nodes.Config(config)).machines
    except settings.SettingsError:
        return {}
    return {
        node.name: (node.cloud, node.cost_per_hour().into("EUR", default_rate()).total) for node in placed
    }


def bring_up(name: str, board: Board, tell: Tell, warn: Tell) -> int:
    """Run the update of the stack of that name and tell the board how it goes; the exit code.

    `tell` gets the engine's lines, `warn` what becomes of an interruption. Raises PulumiError.
    """
    from pulumi import automation  # noqa: PLC0415  takes a second to load

    from fleet.commands.engine import Engine  # noqa: PLC0415

    engine = Engine()
    options = automation.LocalWorkspaceOptions(pulumi_command=engine)
    try:
        stack = automation.select_stack(name, work_dir=".", opts=options)
    except automation.StackNotFoundError:
        raise pulumi.PulumiError(f"there is no stack {name}; make it: pulumi stack init {name}") from None
    with _interruptible(engine, warn) as interrupted:
        code = 0
        try:
            stack.up(on_event=lambda event: feed(board, event, tell), show_secrets=False)
        except automation.CommandError:
            code = INTERRUPTED if interrupted else 1
            if (
                not board.failed_anywhere
            ):  # it did not come to the first event: a lock, a passphrase, a plugin
                board.other_failures += engine.complaints
    board.finish()
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
    if not console.is_terminal:

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
            lines.append(f"{node.name} failed after {node.stage.label}")
            lines += [f"  {line.strip()}" for line in node.failure]
    lines += board.other_failures
    phases = [str(node.phase) for node in board.nodes.values()]
    counts = ", ".join(f"{phases.count(phase)} {phase}" for phase in dict.fromkeys(phases))
    return [*lines, f"{counts or 'no nodes'}; cost so far {board.cost():.4f} {board.currency}"]
