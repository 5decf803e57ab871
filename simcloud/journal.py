"""What was asked of the embedded clouds and what happened in them, in one sequence.

A request takes its number when it arrives and an event when it happens, so the order of effects can be proven
from the numbers alone. Each line is JSON; a request is written on arrival and again with its status, and the
later line counts.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Journal:
    """The log of one emulator, kept in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[int, Entry] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                # A killed writer can leave half a line; what it described was never answered.
                if line.endswith("}"):
                    entry = json.loads(line)
                    self._entries[entry["seq"]] = entry
        self._last = max(self._entries, default=0)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    @property
    def last(self) -> int:
        """The number of the newest entry, 0 when there is none."""
        return self._last

    def request(
        self, *, cloud: str, call: str, method: str, path: str, query: str, body: Any, node: str | None
    ) -> Entry:
        """Notes that a request arrived. Bodies must come without secrets."""
        return self._append(
            {
                "type": "request",
                "cloud": cloud,
                "call": call,
                "method": method,
                "path": path,
                "query": query,
                "body": body,
                "node": node,
                "status": None,
                "fault": None,
            }
        )

    def answered(self, entry: Entry, *, status: int | None, fault: str | None) -> None:
        """Notes the reply; `status` is None when no reply was sent."""
        entry |= {"status": status, "fault": fault, "answered": time.time()}
        self._write(entry)

    def event(self, *, cloud: str, kind: str, id: str, what: str, node: str | None) -> None:
        """Notes a change of an object, such as `running` of a server."""
        self._append({"type": "event", "cloud": cloud, "kind": kind, "id": id, "what": what, "node": node})

    def after(self, seq: int) -> list[Entry]:
        """Entries with a number above `seq`, in order."""
        return [self._entries[number] for number in range(seq + 1, self._last + 1) if number in self._entries]

    def clear(self) -> None:
        """Forgets all entries; numbers go on rising."""
        self._entries.clear()
        self._file.truncate(0)

    def close(self) -> None:
        self._file.close()

    def _append(self, entry: Entry) -> Entry:
        self._last += 1
        entry = {"seq": self._last, "time": time.time(), **entry}
        self._entries[self._last] = entry
        self._write(entry)
        return entry

    def _write(self, entry: Entry) -> None:
        self._file.write(json.dumps(entry) + "\n")
