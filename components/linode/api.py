"""The part of Linode's API v4 that its own provider leaves to us: stock, what a crash left, and who is
behind a firewall."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import httpx
import tenacity

from components.linode.credentials import Credentials

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = float(os.environ.get("LINODE_READ_TIMEOUT_S", "30"))
PATIENCE_S = 60.0
"""How long a call that may succeed a little later is sent again."""
DELETE_DEADLINE_S = 600.0
"""What Linode's own provider allows; a machine that is just being made cannot be deleted before it is up."""
PAGE_SIZE = 500
"""The largest that Linode gives."""

PASSING = frozenset({408, 429})
"""Refusals after which the same call may succeed."""
OUT_OF_SCOPE = "not authorized to use this endpoint"
"""Part of the refusal, with 401, of a valid token made without the scope needed (linode-cli #142)."""
AGAIN = "run the same command again"
MENDS = {
    400: "correct the value named",
    401: "set linode:token (or LINODE_TOKEN) to a token that is valid",
    403: "give the token read and write access to Linodes and Firewalls, and read access to Events",
    404: "refresh the stack: what was asked for is gone",
    429: f"wait a minute, then {AGAIN}",
}


class LinodeError(Exception):
    """A call that did not succeed. `status` is the reply's, a scope that lacks counted as 403; None: no reply
    came."""

    def __init__(self, call: str, reason: str, mend: str, *, status: int | None, passing: bool) -> None:
        super().__init__(f"{call}: {reason.rstrip('.')}. Mend: {mend}")
        self.seen = f"{call}: {reason.rstrip('.')}"
        self.mend = mend
        self.status = status
        self.passing = passing
        """Whether the same call may succeed a little later."""


@dataclass(frozen=True)
class Resource:
    """What an instance and a firewall have in common."""

    id: int
    label: str
    status: str
    tags: tuple[str, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls(row["id"], row["label"], row["status"], tuple(row["tags"]))


class LinodeClient:
    """A typed client. Safe to share between threads."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        transport: httpx.BaseTransport | None = None,
        patience_s: float = PATIENCE_S,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self._url = credentials.api_url
        self._patience_s = patience_s
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {credentials.token}", "User-Agent": "vllm-fleet"},
            timeout=httpx.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S),
            # A proxy of the environment cannot reach this machine's own loopback.
            trust_env=not credentials.on_loopback,
            transport=transport,
        )

    def instances(self, tag: str) -> list[Resource]:
        """The account's instances that carry a tag."""
        rows = map(Resource.of, self._list("/linode/instances", {"tags": tag}))
        return [row for row in rows if tag in row.tags]

    def find_instance(self, id_: int) -> Resource | None:
        row = self._find(f"/linode/instances/{id_}")
        return Resource.of(row) if row else None

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

    def firewalls(self, tag: str) -> list[Resource]:
        """The account's firewalls that carry a tag."""
        return [row for row in map(Resource.of, self._list("/networking/firewalls")) if tag in row.tags]

    def delete_firewall(self, id_: int) -> None:
        """Delete a firewall; one that is gone already counts as deleted."""
        try:
            self._call("DELETE", f"/networking/firewalls/{id_}")
        except LinodeError as error:
            if error.status != 404:
                raise

    def behind_firewall(self, firewall_id: int) -> set[int] | None:
        """Ids of the instances behind a firewall; None where there is no such firewall."""
        try:
            devices = self._list(f"/networking/firewalls/{firewall_id}/devices")
        except LinodeError as error:
            if error.status == 404:
                return None
            raise
        return {each["entity"]["id"] for each in devices if each["entity"]["type"] == "linode"}

    def put_behind(self, firewall_id: int, instance_id: int) -> None:
        """Put an instance behind a firewall, in one step in place of another one that it is behind."""
        body = {"firewall_ids": [firewall_id]}
        self._call("PUT", f"/linode/instances/{instance_id}/firewalls", body)

    def rename_firewall(self, id_: int, label: str) -> None:
        """Give a firewall another label; labels are unique in an account."""
        self._call("PUT", f"/networking/firewalls/{id_}", {"label": label})

    def available(self, region: str, plan: str) -> bool | None:
        """Whether a plan can be had in a region now; None where Linode does not say."""
        rows = self._list("/regions/availability", {"region": region, "plan": plan})
        found = [row["available"] for row in rows if (row["region"], row["plan"]) == (region, plan)]
        return bool(found[0]) if found else None

    def capabilities(self, image: str) -> list[str] | None:
        """What an image can do; None where there is no such image."""
        found = self._find(f"/images/{image}")
        return list(found["capabilities"]) if found else None

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

    def _find(self, path: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._call("GET", path)
        except LinodeError as error:
            if error.status == 404:
                return None
            raise
        return found

    def _list(self, path: str, wanted: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        page, pages = 1, 1
        while page <= pages:
            reply = self._call("GET", f"{path}?page={page}&page_size={PAGE_SIZE}", wanted=wanted)
            rows += reply["data"]
            page, pages = page + 1, reply["pages"]
        return rows

    def _call(
        self, method: str, path: str, body: object = None, wanted: Mapping[str, str] | None = None
    ) -> Any:
        """Send until it succeeds, cannot succeed, or the patience ends. Raises LinodeError.

        Sent twice, each of these calls does what it does once.
        """
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, LinodeError) and error.passing),
            wait=tenacity.wait_exponential_jitter(multiplier=0.2, exp_base=2, max=5, jitter=0.2),
            stop=tenacity.stop_after_delay(self._patience_s),
            reraise=True,
        )(self._once, method, path, body, wanted)

    def _once(
        self, method: str, path: str, body: object = None, wanted: Mapping[str, str] | None = None
    ) -> Any:
        call = f"{method} {path.partition('?')[0]}"
        headers = {"X-Filter": json.dumps(wanted)} if wanted else {}
        try:
            response = self._http.request(method, self._url + path, json=body, headers=headers)
        except httpx.RequestError as error:
            reason = f"no reply from {self._url} ({type(error).__name__})"
            mend = f"check the network and that linode:url is right, then {AGAIN}"
            raise LinodeError(call, reason, mend, status=None, passing=True) from None
        if response.is_success:
            return response.json()
        reasons = _reasons(response)
        status = response.status_code
        if status == 401 and any(OUT_OF_SCOPE in reason for reason in reasons):
            status = 403
        raise LinodeError(
            call,
            f"Linode refused ({response.status_code}): {'; '.join(reasons)}",
            MENDS.get(status, AGAIN),
            status=status,
            passing=status in PASSING or status >= 500 or "Linode busy." in reasons,
        )


def _reasons(response: httpx.Response) -> list[str]:
    try:
        return [str(error["reason"]) for error in response.json()["errors"]]
    except (ValueError, KeyError, TypeError):
        return [response.reason_phrase or "no reason given"]
