"""The part of Linode's API v4 that its own provider leaves to us: stock, what a crash left, and who is
behind a firewall."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import httpx
import tenacity

from components.linode.credentials import Credentials
from components.linode.errors import AGAIN, BUSY, PASSING, LinodeError, fix_of

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = float(os.environ.get("LINODE_READ_TIMEOUT_S", "30"))
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
"""Between two tries of a call: the first one, and what it doubles to."""
PATIENCE_S = 60.0
"""How long a call that may succeed a little later is sent again."""
LAG_S = 20.0
"""How long an object that was just made, or just seen, may be said not to exist."""
DELETE_DEADLINE_S = 600.0
"""What Linode's own provider allows; a machine that is just being made cannot be deleted before it is up."""
PAGE_SIZE = 500
"""The largest that Linode gives."""

OUT_OF_SCOPE = "not authorized to use this endpoint"
"""Part of the refusal, with 401, of a valid token made without the scope needed (linode-cli #142)."""


@dataclass(frozen=True)
class Instance:
    """A machine."""

    id: int
    label: str
    status: str
    tags: tuple[str, ...]
    region: str
    type: str
    image: str | None

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Self:
        """Raises KeyError or TypeError where the row lacks what it must have."""
        return cls(
            id=_typed(row, "id", int),
            label=_typed(row, "label", str),
            status=_typed(row, "status", str),
            tags=tuple(_texts(row, "tags")),
            region=_typed(row, "region", str),
            type=_typed(row, "type", str),
            image=row.get("image"),
        )


@dataclass(frozen=True)
class Firewall:
    """A firewall."""

    id: int
    label: str
    tags: tuple[str, ...]

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Self:
        """Raises KeyError or TypeError where the row lacks what it must have."""
        return cls(_typed(row, "id", int), _typed(row, "label", str), tuple(_texts(row, "tags")))


@dataclass(frozen=True)
class Profile:
    """What a machine boots with, and what people wrote beside it."""

    id: int
    comments: str

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Self:
        """Raises KeyError or TypeError where the row lacks what it must have."""
        return cls(_typed(row, "id", int), _typed(row, "comments", str))


def _typed(row: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = row[key]
    if not isinstance(value, kind):
        raise TypeError(f"{key} is {type(value).__name__}")
    return value


def _texts(row: Mapping[str, Any], key: str) -> list[str]:
    values: list[str] = _typed(row, key, list)
    if not all(isinstance(value, str) for value in values):
        raise TypeError(f"{key} is no list of texts")
    return values


class LinodeClient:
    """A typed client. Safe to share between threads."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        transport: httpx.BaseTransport | None = None,
        patience_s: float = PATIENCE_S,
        first_pause_s: float = FIRST_PAUSE_S,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._url = credentials.api_url
        self._token = credentials.token
        self._patience_s = patience_s
        self._first_pause_s = first_pause_s
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {credentials.token}", "User-Agent": "vllm-fleet"},
            timeout=httpx.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S),
            # A proxy of the environment cannot reach this machine's own loopback.
            trust_env=not credentials.on_loopback,
            transport=transport,
        )

    def instances(self, tag: str, *, or_label: str | None = None) -> list[Instance]:
        """The account's instances that carry a tag, or else a label."""
        wanted: Mapping[str, Any] = {"tags": tag}
        if or_label is not None:
            wanted = {"+or": [wanted, {"label": or_label}]}
        found = self._list("/linode/instances", Instance.parse, wanted)
        return [each for each in found if tag in each.tags or each.label == or_label]

    def find_instance(self, id_: int) -> Instance | None:
        """An instance; None where neither it nor the list of all instances shows it."""
        found = self._find(f"/linode/instances/{id_}", Instance.parse)
        if found is not None:
            return found
        # One 404 alone is no proof: an API has been seen to answer so about what exists.
        listed = self._list("/linode/instances", Instance.parse, {"id": id_})
        return next((each for each in listed if each.id == id_), None)

    def update_instance(self, id_: int, **changes: object) -> None:
        """Change an instance's label or tags."""
        self._call("PUT", f"/linode/instances/{id_}", changes, exists=True)

    def profile(self, instance_id: int) -> Profile | None:
        """The configuration profile that an instance boots with; None where somebody deleted it."""
        profiles = self._list(f"/linode/instances/{instance_id}/configs", Profile.parse, exists=True)
        return min(profiles, key=lambda profile: profile.id, default=None)

    def annotate(self, instance_id: int, profile: Profile, comments: str) -> None:
        """Write the comments of a configuration profile."""
        path = f"/linode/instances/{instance_id}/configs/{profile.id}"
        self._call("PUT", path, {"comments": comments}, exists=True)

    def delete_instance(self, id_: int, *, deadline_s: float = DELETE_DEADLINE_S) -> None:
        """Delete an instance and wait until it is gone, and its label free.

        Raises LinodeError after `deadline_s` seconds.
        """
        call = f"DELETE /linode/instances/{id_}"

        def gone() -> bool:
            found = self.find_instance(id_)
            if found is None:
                return True
            if found.status != "deleting":
                try:
                    self._once("DELETE", f"/linode/instances/{id_}")
                except LinodeError as error:
                    # Between two states it cannot be deleted; that passes.
                    if not error.passing and error.status != 404:
                        raise
            return False

        def give_up(state: tenacity.RetryCallState) -> bool:
            raise LinodeError(
                call,
                f"still there {state.seconds_since_start:.0f} s after the first try",
                f"delete it in Linode's Cloud Manager, then {AGAIN}",
                status=None,
                passing=False,
            )

        tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda done: not done),
            wait=tenacity.wait_exponential_jitter(multiplier=0.1, exp_base=1.6, max=5, jitter=0.05),
            stop=tenacity.stop_after_delay(deadline_s),
            retry_error_callback=give_up,
        )(gone)

    def firewalls(self, tag: str | None = None) -> list[Firewall]:
        """The account's firewalls, or those that carry a tag."""
        found = self._list("/networking/firewalls", Firewall.parse)
        return [each for each in found if tag is None or tag in each.tags]

    def delete_firewall(self, id_: int) -> None:
        """Delete a firewall; one that is gone already counts as deleted."""
        try:
            self._call("DELETE", f"/networking/firewalls/{id_}")
        except LinodeError as error:
            if error.status != 404:
                raise

    def behind_firewall(self, firewall_id: int, *, exists: bool = False) -> set[int] | None:
        """Ids of the instances behind a firewall; None where there is no such firewall.

        With `exists`, the firewall is known to be there: that there is none is not believed at once.
        """

        def device(row: Mapping[str, Any]) -> tuple[str, int]:
            return row["entity"]["type"], _typed(row["entity"], "id", int)

        try:
            devices = self._list(f"/networking/firewalls/{firewall_id}/devices", device, exists=exists)
        except LinodeError as error:
            if error.status == 404 and not exists:
                return None
            raise
        return {id_ for kind, id_ in devices if kind == "linode"}

    def put_behind(self, firewall_id: int, instance_id: int) -> None:
        """Put an instance behind a firewall, in one step in place of another one that it is behind."""
        body = {"firewall_ids": [firewall_id]}
        self._call("PUT", f"/linode/instances/{instance_id}/firewalls", body, exists=True)

    def update_firewall(self, id_: int, **changes: object) -> None:
        """Change a firewall's label or tags."""
        self._call("PUT", f"/networking/firewalls/{id_}", changes, exists=True)

    def available(self, region: str, plan: str) -> bool | None:
        """Whether a plan can be had in a region now; None where Linode does not say."""

        def place(row: Mapping[str, Any]) -> tuple[str, str, bool]:
            return row["region"], row["plan"], _typed(row, "available", bool)

        rows = self._list("/regions/availability", place, {"region": region, "plan": plan})
        return next((there for *where, there in rows if where == [region, plan]), None)

    def capabilities(self, image: str) -> list[str] | None:
        """What an image can do; None where there is no such image."""
        return self._find(f"/images/{image}", lambda row: _texts(row, "capabilities"))

    def may(self, method: str, path: str) -> bool:
        """Whether the token may make a call, which must be one that cannot take effect: it is sent without a
        body.

        Raises LinodeError where that could not be found out.
        """
        try:
            self._call(method, path, {} if method != "GET" else None)
        except LinodeError as error:
            if error.status == 403:
                return False
            if error.status not in (400, 404):
                raise
        return True

    def _find(self, path: str, parse: Callable[[Mapping[str, Any]], T]) -> T | None:
        try:
            return self._call("GET", path, read=parse)
        except LinodeError as error:
            if error.status == 404:
                return None
            raise

    def _list(
        self,
        path: str,
        parse: Callable[[Mapping[str, Any]], T],
        wanted: Mapping[str, Any] | None = None,
        *,
        exists: bool = False,
    ) -> list[T]:
        def read(reply: Mapping[str, Any]) -> tuple[list[T], int]:
            return [parse(row) for row in reply["data"]], _typed(reply, "pages", int)

        rows: list[T] = []
        page, pages = 1, 1
        while page <= pages:
            query = f"{path}?page={page}&page_size={PAGE_SIZE}"
            found, pages = self._call("GET", query, wanted=wanted, read=read, exists=exists)
            rows += found
            page += 1
        return rows

    def _call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        wanted: Mapping[str, Any] | None = None,
        read: Callable[[Any], T] = lambda reply: reply,
        exists: bool = False,
    ) -> T:
        """Send until it succeeds, cannot succeed, or the patience ends; return what `read` makes of it.

        Sent twice, each of these calls does what it does once. With `exists`, what it is about is known to be
        there, and a 404 passes. Raises LinodeError.
        """

        def passes(error: BaseException) -> bool:
            return isinstance(error, LinodeError) and (error.passing or _lags(error))

        def _lags(error: LinodeError) -> bool:
            return exists and error.status == 404

        def stop(state: tenacity.RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            lagging = isinstance(error, LinodeError) and _lags(error)
            patience_s = min(self._patience_s, LAG_S) if lagging else self._patience_s
            return (state.seconds_since_start or 0.0) >= patience_s

        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception(passes),
            wait=tenacity.wait_exponential_jitter(
                multiplier=self._first_pause_s, exp_base=2, max=LONGEST_PAUSE_S, jitter=self._first_pause_s
            ),
            stop=stop,
            reraise=True,
        )
        made: T = patiently(self._once, method, path, body, wanted, read)
        return made

    def _once(
        self,
        method: str,
        path: str,
        body: object = None,
        wanted: Mapping[str, Any] | None = None,
        read: Callable[[Any], T] = lambda reply: reply,
    ) -> T:
        call = f"{method} {path.partition('?')[0]}"
        headers = {"X-Filter": json.dumps(wanted)} if wanted else {}
        try:
            response = self._http.request(method, self._url + path, json=body, headers=headers)
        except httpx.RequestError as error:
            reason = f"no reply from {self._url} ({type(error).__name__})"
            fix = f"check the network and that linode:url is right, then {AGAIN}"
            raise LinodeError(call, reason, fix, status=None, passing=True) from None
        if response.is_success:
            try:
                return read(response.json())
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                kind = response.headers.get("content-type", "no type").partition(";")[0]
                reason = f"the reply is not as Linode's API documents it ({response.status_code}, {kind})"
                fix = f"check that linode:url is right and that no proxy answers in its place, then {AGAIN}"
                raise LinodeError(call, reason, fix, status=None, passing=True) from None
        raise self._refused(call, response)

    def _refused(self, call: str, response: httpx.Response) -> LinodeError:
        # A misbehaving proxy may echo the request's headers.
        reasons = "; ".join(_reasons(response)).replace(self._token, "[secret]")
        status = response.status_code
        if status == 401 and OUT_OF_SCOPE in reasons:
            status = 403
        return LinodeError(
            call,
            f"Linode refused ({response.status_code}): {reasons}",
            fix_of(call.partition(" ")[0], status, reasons),
            status=status,
            passing=status in PASSING or status >= 500 or BUSY in reasons,
        )


def _reasons(response: httpx.Response) -> list[str]:
    try:
        return [str(error["reason"]) for error in response.json()["errors"]]
    except (ValueError, KeyError, TypeError):
        return [response.reason_phrase or "no reason given"]
