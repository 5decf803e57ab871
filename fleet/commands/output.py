"""How tables reach people: on a terminal they fit and wrap, in a pipe each row is one whole line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

UNLIMITED = 100_000
"""Columns for what is read by a program, or kept in a file."""


def console() -> Console:
    """A console on standard output. Rich gives a pipe 80 columns and cuts what is longer."""
    from rich.console import Console  # noqa: PLC0415  the JSON forms do without

    made = Console(highlight=False)
    if not made.file.isatty():
        made.width = UNLIMITED
    return made


def whole(table: Table) -> Table:
    """The table with cells that a narrow terminal wraps where Rich would end them with an ellipsis."""
    for column in table.columns:
        column.overflow = "fold"
    return table
