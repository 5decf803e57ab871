"""How calls to Scaleway are made: paths, pages, what is asked before something is created, and patience."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

from components.scaleway.credentials import Credentials
from components.scaleway.errors import NotFound
from components.scaleway.models import PrivateNetwork, PrivateNic, SecurityGroup, Server, Volume

if TYPE_CHECKING:
    import httpx

    from components.scaleway.transport import Params, Transport

T = TypeVar("T")
Owned = TypeVar("Owned", Server, SecurityGroup, PrivateNetwork, PrivateNic)
Tagged = TypeVar("Tagged", Server, SecurityGroup, Volume)

CONFIRM_S = (0.5, 1.0)
"""Pauses before a 404 is believed: one wrong answer must not make anybody forget a machine that serves."""
SETTLE_S = (0.5, 1.0, 1.5)
"""Pauses of a look for what a request may have made: a list may show it a little later."""
REMOVALS = 3
"""How often a removal is asked for that is answered 404 although the object is there."""

PAGE_SIZE = 100
"""The most that the Instance and Block APIs put on one page."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds for one attempt of one call."""

    connect_s: float = 5.0
    read_s: float = 20.0
    """Without a byte received or taken; creating a server takes the API a few seconds."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long a failing call is tried again, with pauses that double from `first_s` to `max_s` seconds."""

    attempts: int = 8
    budget_s: float = 60.0
    """No attempt begins later than this many seconds after the first."""
    first_s: float = 0.5
    max_s: float = 10.0
    retry_after_max_s: float = 30.0
    """The longest pause that a Retry-After header can ask for."""


class Calls:
    """The calls of one zone, as one API key may make them. Each part of the API adds its own."""

    def __init__(
        self,
        credentials: Credentials,
        zone: str,
        *,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`transport`, `clock` and `sleep` stand in for the network and time in tests."""
        from components.scaleway.transport import Transport  # noqa: PLC0415  # the HTTP library is loaded at the first client

        self.zone = zone
        self._project = credentials.project_id
        self._transport: Transport = Transport(
            credentials,
            zone,
            timeouts=timeouts or Timeouts(),
            retry=retry or RetryPolicy(),
            transport=transport,
            clock=clock,
            sleep=sleep,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections kept open."""
        self._transport.close()

    @property
    def _region(self) -> str:
        return self.zone.rpartition("-")[0]

    def _vpc(self, *parts: str) -> str:
        return path_of("vpc", "v2", "regions", self._region, *parts)

    def _instance(self, *parts: str) -> str:
        return path_of("instance", "v1", "zones", self.zone, *parts)

    def _block(self, *parts: str) -> str:
        return path_of("block", "v1", "zones", self.zone, "volumes", *parts)

    def _get(self, call: str, resource: str, path: str, parse: Callable[[Any], T]) -> T:
        return self._transport.perform(call, resource, "GET", path, lambda response: parse(response.json()))

    def _write(
        self,
        call: str,
        resource: str,
        method: str,
        path: str,
        parse: Callable[[Any], T],
        *,
        body: object,
        settle: Callable[[], T | None] | None = None,
        repeatable: bool = True,
    ) -> T:
        return self._transport.perform(
            call,
            resource,
            method,
            path,
            lambda response: parse(response.json()),
            body=body,
            settle=settle,
            repeatable=repeatable,
        )

    def _create(
        self,
        call: str,
        resource: str,
        path: str,
        body: object,
        parse: Callable[[Any], Owned],
        *,
        find: Callable[[], Sequence[Owned]],
    ) -> Owned:
        """Post once, whatever happens on the way: what `find` finds first is taken instead."""

        def existing() -> Owned | None:
            return next(iter(find()), None)

        def settled() -> Owned | None:
            return self._transport.look(existing, SETTLE_S)

        found = existing()
        if found is None:
            found = self._write(call, resource, "POST", path, parse, body=body, settle=settled)
            self._transport.made(found.id)
        return found

    def _find(self, get: Callable[[], T], listed: Callable[[], Iterable[T]] = tuple) -> T | None:
        """What there is, or None where the API says more than once that it does not exist.

        `listed` gives the object from a list, if it is there: asked last, for a list is answered elsewhere.
        """
        found = self._transport.look(lambda: or_none(get), CONFIRM_S)
        return next(iter(listed()), None) if found is None else found

    def _delete(self, call: str, resource: str, path: str) -> None:
        """Delete what is at a path; what is gone already is fine."""
        self._transport.unmade(path.rpartition("/")[2])
        look = call.replace("delete_", "get_")
        self._remove(
            lambda: self._transport.perform(call, resource, "DELETE", path, lambda _: None),
            lambda: self._find(lambda: self._get(look, resource, path, bool)),
        )

    @staticmethod
    def _remove(ask: Callable[[], object], find: Callable[[], object]) -> None:
        """Ask for a removal. A 404 is believed where the object is looked for and not found either."""
        for attempt in range(1, REMOVALS + 1):
            try:
                ask()
            except NotFound:
                if find() is None:
                    return
                if attempt == REMOVALS:
                    raise
            else:
                return

    def _list(
        self,
        call: str,
        resource: str,
        path: str,
        key: str,
        parse: Callable[[Any], T],
        *,
        filters: Params | None = None,
        size: str = "per_page",
    ) -> list[T]:
        """All rows of all pages; of a map, the rows are its items.

        The Instance API gives the total in a header, the others in the body, and some replies nowhere: a page
        that is not full is then the last.
        """

        def read(response: httpx.Response) -> tuple[list[T], int | None]:
            body = response.json()
            page = body[key]
            total = response.headers.get("x-total-count", body.get("total_count"))
            rows = page.items() if isinstance(page, dict) else page
            return [parse(row) for row in rows], None if total is None else int(total)

        found: list[T] = []
        for number in itertools.count(1):
            params = {**(filters or {}), "page": number, size: PAGE_SIZE}
            page, total = self._transport.perform(call, resource, "GET", path, read, params=params)
            found += page
            if not page or (len(found) >= total if total is not None else len(page) < PAGE_SIZE):
                break
        return found


def path_of(*parts: str) -> str:
    """A path in which no part can reach beyond its place. Raises `ValueError` for an empty part."""
    if not all(parts):
        raise ValueError(f"an empty id in the path {'/'.join(parts)}")
    return "/" + "/".join(quote(part, safe="") for part in parts)


def given(**fields: Any) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def filters_of(tags: Collection[str], name: str | None) -> dict[str, Any]:
    """The Instance API's list filters: tags in one parameter, and a name that also matches longer ones."""
    return given(tags=",".join(tags) or None, name=name)


def merged(tags: Collection[str], marks: Iterable[str]) -> list[str]:
    """The tags and then the marks, each once."""
    return list(dict.fromkeys([*tags, *marks]))


def matching(found: Iterable[Tagged], tags: Collection[str], name: str | None) -> tuple[Tagged, ...]:
    """Those that carry all `tags` and have just that name, if one is given; the oldest first."""
    wanted = set(tags)
    exact = [item for item in found if wanted <= set(item.tags) and name in {None, item.name}]
    return tuple(sorted(exact, key=lambda item: item.created))


def or_none(get: Callable[[], T]) -> T | None:
    """What there is, or None where the API says that it does not exist."""
    try:
        return get()
    except NotFound:
        return None


def one_of(states: AbstractSet[str]) -> str:
    """In words."""
    return " or ".join(sorted(states))
