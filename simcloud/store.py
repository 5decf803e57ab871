"""Everything an embedded cloud knows, in memory and on disk.

Documents are read from memory and written through to SQLite, so that a killed emulator carries on where it
stood. Writes are not synced to the medium: they outlive the process, not the machine, and cost microseconds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """One stored object. Change its fields, then `put` it back."""

    model_config = ConfigDict(extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    id: str


D = TypeVar("D", bound=Document)


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
        self._tables: list[Callable[[], None]] = []

    def table(self, kind: str, model: type[D]) -> Table[D]:
        """The documents of one kind, for instance `scaleway/server`."""
        table = Table(self._db, kind, model)
        self._tables.append(table.clear)
        return table

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
            for clear in self._tables:
                clear()

    def close(self) -> None:
        self._db.close()


class Table(Generic[D]):
    """Documents of one kind by id, in the order they were first stored."""

    def __init__(self, db: sqlite3.Connection, kind: str, model: type[D]) -> None:
        self._db = db
        self._kind = kind
        rows = db.execute("SELECT body FROM documents WHERE kind = ? ORDER BY rowid", (kind,))
        documents = [model.model_validate_json(body) for (body,) in rows]
        self._documents = {document.id: document for document in documents}

    def __iter__(self) -> Iterator[D]:
        return iter(list(self._documents.values()))

    def get(self, document_id: str) -> D | None:
        return self._documents.get(document_id)

    def put(self, document: D) -> None:
        self._documents[document.id] = document
        self._db.execute(
            "INSERT INTO documents VALUES (?, ?, ?)"
            " ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body",
            (self._kind, document.id, document.model_dump_json()),
        )

    def remove(self, document_id: str) -> None:
        self._documents.pop(document_id, None)
        self._db.execute("DELETE FROM documents WHERE kind = ? AND id = ?", (self._kind, document_id))

    def clear(self) -> None:
        self._documents.clear()
        self._db.execute("DELETE FROM documents WHERE kind = ?", (self._kind,))
