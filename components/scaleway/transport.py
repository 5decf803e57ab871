"""One HTTP call to Scaleway: timeouts, repetition, and errors as `ScalewayError`.

Apart from `api` because the HTTP library takes longer to load than all else here, and most runs of a provider
process compare two states without a single call.
"""

from __future__ import annotations

import json
import logging
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import tenacity

from components.scaleway.errors import (
    DeadlineExceeded,
    NotFound,
    PreconditionFailed,
    ScalewayError,
    UnexpectedReply,
    Unreachable,
    error_from_reply,
)

if TYPE_CHECKING:
    from components.scaleway.calls import RetryPolicy, Timeouts
    from components.scaleway.credentials import Credentials

T = TypeVar("T")
Params = Mapping[str, str | int | Sequence[str]]
logger = logging.getLogger(__name__)

UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What parsing raises for a body that is not what the API documents."""

LAG_S = 60.0
"""For so long a 404 about an object just made is taken for the API's own lag: it is written in one place and
read in another."""

# The request never left, so it cannot have had an effect.
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


class Transport:
    """Sends requests. Safe to share between threads."""

    def __init__(
        self,
        credentials: Credentials,
        zone: str,
        *,
        timeouts: Timeouts,
        retry: RetryPolicy,
        transport: httpx.BaseTransport | None,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._zone = zone
        self._api_url = credentials.api_url
        self._secret_key = credentials.secret_key
        self._retry = retry
        self._clock = clock
        self._sleep = sleep
        self._made: dict[str, float] = {}
        self._http = httpx.Client(
            headers={"X-Auth-Token": credentials.secret_key, "User-Agent": "vllm-fleet"},
            timeout=httpx.Timeout(timeouts.read_s, connect=timeouts.connect_s),
            # A proxy of the environment cannot reach this machine's own loopback.
            trust_env=not credentials.on_loopback,
            transport=transport,
        )

    def close(self) -> None:
        self._http.close()

    def made(self, *ids: str) -> None:
        """Take note of objects that were just made: the API may not know of them yet."""
        self._made.update(dict.fromkeys(ids, self._clock()))

    def unmade(self, id_: str) -> None:
        """Take note that an object is about to be deleted: from now on a 404 is true."""
        self._made.pop(id_, None)

    def look(self, find: Callable[[], T | None], pauses: Sequence[float]) -> T | None:
        """What `find` finds, at once or after one of the pauses in seconds; None if it never does."""
        for pause in (0.0, *pauses):
            if pause:
                self._sleep(pause)
            found = find()
            if found is not None:
                return found
        return None

    def perform(
        self,
        call: str,
        resource: str,
        method: str,
        path: str,
        read: Callable[[httpx.Response], T],
        *,
        params: Params | None = None,
        body: object = None,
        content: bytes | None = None,
        settle: Callable[[], T | None] | None = None,
        repeatable: bool = True,
    ) -> T:
        """Send until it succeeds, cannot succeed, or the policy ends it; return what `read` makes of it.

        `call` and `resource` say in errors and logs what was asked of what.
        `settle` belongs to calls that must not take effect twice. It is asked after a failure that may hide a
        success, before anything is sent again, and returns the outcome if the effect is there.
        `repeatable=False`: there is no way to tell, so such a failure is final.
        """
        request = self._http.build_request(
            method,
            self._api_url + path,
            params=params,
            json=body,
            content=content,
            headers={"Content-Type": "text/plain"} if content is not None else None,
        )
        started = self._clock()
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._exchange(call, resource, request, read)
            except ScalewayError as error:
                failure = error
            pause = self._pause(attempt, failure)
            failure.attempts, failure.elapsed_s = attempt, self._clock() - started
            final = (
                not (failure.retriable or self._lags(failure, path))
                or attempt >= min(self._retry.attempts, failure.most_attempts)
                or failure.elapsed_s + pause > self._retry.budget_s
                or (failure.effect_unknown and not repeatable)
            )
            if not final:
                logger.info("%s; trying again in %.1f s", failure, pause)
                self._sleep(pause)
            if settle is not None and (failure.effect_unknown or isinstance(failure, PreconditionFailed)):
                try:
                    outcome = settle()
                except ScalewayError as error:
                    raise failure from error
                if outcome is not None:
                    return outcome
            if final:
                raise failure

    def poll(
        self,
        look: Callable[[], T],
        until: Callable[[T], bool],
        *,
        deadline_s: float,
        failure: Callable[[T, float], tuple[str, str, str, str]],
    ) -> T:
        """Look at once, after 0.1 s, and then ever less often, at last every 5 s, until what is seen will do.

        `failure` gives call, resource, message and fix of the `DeadlineExceeded` raised after `deadline_s`
        seconds, from what was seen last and the seconds waited.
        """
        started = self._clock()

        def left() -> float:
            return deadline_s - (self._clock() - started)

        def give_up(state: tenacity.RetryCallState) -> T:
            assert state.outcome is not None
            call, resource, message, fix = failure(state.outcome.result(), self._clock() - started)
            raise DeadlineExceeded(call, resource, self._zone, message, fix=fix)

        backoff = tenacity.wait_exponential_jitter(multiplier=0.1, exp_base=1.6, max=5, jitter=0.05)
        return tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda seen: not until(seen)),
            # The last look falls on the deadline itself.
            wait=lambda state: max(0.0, min(backoff(state), left())),
            stop=lambda _: left() <= 0,
            sleep=self._sleep,
            retry_error_callback=give_up,
        )(look)

    def _lags(self, failure: ScalewayError, path: str) -> bool:
        """Whether something is said not to exist that was made a moment ago."""
        # An empty 404 is about a key of a server's user data, which the machine may not have written yet.
        if not isinstance(failure, NotFound) or not failure.api_message:
            return False
        moments = [self._made.get(part) for part in (*path.split("/"), failure.resource_id)]
        return any(moment is not None and self._clock() - moment < LAG_S for moment in moments)

    def _pause(self, attempt: int, failure: ScalewayError) -> float:
        if failure.retry_after_s is not None:
            return min(failure.retry_after_s, self._retry.retry_after_max_s)
        longest = min(self._retry.first_s * 2.0 ** (attempt - 1), self._retry.max_s)
        return longest * random.uniform(0.5, 1.0)  # noqa: S311  # spreads callers, guards nothing

    def _exchange(
        self, call: str, resource: str, request: httpx.Request, read: Callable[[httpx.Response], T]
    ) -> T:
        try:
            response = self._http.send(request)
        except httpx.RequestError as error:
            raise self._unreachable(call, resource, error) from None
        if response.is_success:
            try:
                return read(response)
            except UNREADABLE as error:
                what = f"HTTP {response.status_code} with content that is not as documented ({error!r:.80})"
                raise UnexpectedReply(
                    call, resource, self._zone, self._scrub(what), status=response.status_code
                ) from None
        raise self._refused(call, resource, response)

    def _refused(self, call: str, resource: str, response: httpx.Response) -> ScalewayError:
        try:
            body: Any = json.loads(self._scrub(response.text))
        except (ValueError, RecursionError):
            body = None
        error = error_from_reply(
            call,
            resource,
            self._zone,
            status=response.status_code,
            body=body,
            request_id=response.headers.get("x-request-id"),
        )
        error.retry_after_s = _retry_after_s(response.headers.get("retry-after"))
        return error

    def _scrub(self, text: str) -> str:
        """A misbehaving proxy may echo the request's headers."""
        return text.replace(self._secret_key, "[secret]")

    def _unreachable(self, call: str, resource: str, error: httpx.RequestError) -> Unreachable:
        if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
            seen = "no connection in time"
        elif isinstance(error, httpx.TimeoutException):
            seen = "no reply in time"
        else:
            seen = str(error) or type(error).__name__
        untrusted = isinstance(_root_cause(error), ssl.SSLCertVerificationError)
        unreachable = Unreachable(
            call,
            resource,
            self._zone,
            self._scrub(f"{self._api_url}: {seen}"),
            fix="trust the certificate's issuer (SSL_CERT_FILE) or correct api_url"
            if untrusted
            else "check the network and that api_url is right and answers; then run the same command again",
        )
        unreachable.effect_unknown = not isinstance(error, NEVER_SENT)
        unreachable.retriable = not untrusted
        return unreachable


def _root_cause(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _retry_after_s(header: str | None) -> float | None:
    """Seconds of a Retry-After header, given as a number or as a date; None if absent or unreadable."""
    if not header:
        return None
    if header.isdigit():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
