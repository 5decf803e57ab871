"""Everything an embedded cloud knows, in memory and on disk.

Documents are read from memory and written through to SQLite, so that a killed emulator carries on where it
stood. Writes are not synced to the medium: they outlive the process, not the machine, and cost microseconds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """One stored object. Change its fields, then `put` it back."""

    model_config = ConfigDict(extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    id: str


D = TypeVar("D", bound=Document)


class Hiding(Protocol):
    """Says which documents a reader must not see (see `simcloud.faults.Lag`)."""

    def hides(self, object_id: str, *, listed: bool) -> bool:
        """Whether this one is hidden from a look-up, or from a list."""


def utc_now() -> datetime:
    return datetime.now(UTC)


class Store:
    """The database of one emulator: one table of documents for each kind of object."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Made in one thread and used in another, the event loop's, but never in two at once.
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS documents (kind TEXT, id TEXT, body TEXT, PRIMARY KEY (kind, id))"
        )
        self._tables: list[Table[Any]] = []
        self._hiding: list[Hiding] = []

    def table(self, kind: str, model: type[D]) -> Table[D]:
        """The documents of one kind, for instance `scaleway/server`."""
        table = Table(self._db, kind, model, self._hides)
        self._tables.append(table)
        return table

    def ids(self, prefix: str) -> frozenset[str]:
        """Of all documents whose kind begins with the prefix."""
        return frozenset(key for table in self._tables if table.kind.startswith(prefix) for key in table.ids)

    @contextmanager
    def hiding(self, hiding: Sequence[Hiding]) -> Iterator[None]:
        """Keep some documents from being read in the block; writes are as ever."""
        self._hiding = [*hiding]
        try:
            yield
        finally:
            self._hiding = []

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Makes several writes one. It commits after an error too: the disk must say what memory says."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    def clear(self) -> None:
        with self.transaction():
            for table in self._tables:
                table.clear()

    def close(self) -> None:
        self._db.close()

    def _hides(self, object_id: str, *, listed: bool) -> bool:
        return any(each.hides(object_id, listed=listed) for each in self._hiding)


class Table(Generic[D]):
    """Documents of one kind by id, in the order they were first stored."""

    def __init__(self, db: sqlite3.Connection, kind: str, model: type[D], hides: Callable[..., bool]) -> None:
        self._db = db
        self.kind = kind
        self._hides = hides
        rows = db.execute("SELECT body FROM documents WHERE kind = ? ORDER BY rowid", (kind,))
        documents = [model.model_validate_json(body) for (body,) in rows]
        self._documents = {document.id: document for document in documents}

    def __iter__(self) -> Iterator[D]:
        return iter([each for key, each in self._documents.items() if not self._hides(key, listed=True)])

    @property
    def ids(self) -> Iterable[str]:
        """Of all documents, hidden ones included."""
        return self._documents.keys()

    def get(self, document_id: str) -> D | None:
        found = self._documents.get(document_id)
        return None if found is None or self._hides(document_id, listed=False) else found

    def put(self, document: D) -> None:
        self._documents[document.id] = document
        self._db.execute(
            "INSERT INTO documents VALUES (?, ?, ?)"
            " ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body",
            (self.kind, document.id, document.model_dump_json()),
        )

    def remove(self, document_id: str) -> None:
        self._documents.pop(document_id, None)
        self._db.execute("DELETE FROM documents WHERE kind = ? AND id = ?", (self.kind, document_id))

    def clear(self) -> None:
        self._documents.clear()
        self._db.execute("DELETE FROM documents WHERE kind = ?", (self.kind,))
