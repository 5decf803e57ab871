"""What can go wrong with a call to Scaleway: one class per kind, one readable line per error.

The kinds follow the `type` field of the API's error replies; a reply without one is judged by its status.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

Json = Mapping[str, Any]


class ScalewayError(Exception):
    """A call that did not succeed.

    `call` and `resource` say what was asked of what, `status` is the HTTP status if a reply came, `message`
    says what is wrong, `api_message` is the API's own sentence, `fix` says what to do about it, `request_id`
    is what Scaleway's support asks for. Neither headers nor secrets are kept.
    """

    label: ClassVar[str] = "failed"
    default_fix: ClassVar[str] = "read the API's message; the same call may work later"
    retriable: bool = False
    """Whether the same call may succeed a little later."""
    effect_unknown: bool = False
    """Whether the call may have had its effect although it failed."""
    most_attempts: ClassVar[int] = 1000
    """Where trying again is of little use: how often at most, whatever the policy allows."""
    attempts: int = 1
    elapsed_s: float = 0.0
    retry_after_s: float | None = None

    def __init__(
        self,
        call: str,
        resource: str,
        zone: str,
        message: str,
        *,
        fix: str | None = None,
        status: int | None = None,
        api_message: str = "",
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.call = call
        self.resource = resource
        self.zone = zone
        self.message = message
        self.fix = fix or self.default_fix
        self.status = status
        self.api_message = api_message
        self.request_id = request_id

    def __str__(self) -> str:
        seen, fix = self.told
        return f"{seen}. Fix: {fix}"

    @property
    def told(self) -> tuple[str, str]:
        """What is wrong with which call, and the fix; a line each."""
        subject = f"{self.call} {self.resource}".rstrip()
        effort = (
            f" (gave up after {self.attempts} attempts in {self.elapsed_s:.0f} s)"
            if self.attempts > 1
            else ""
        )
        request = f" [request id {self.request_id}]" if self.request_id else ""
        problem = f"{self.label}: {self.message.rstrip('.')}{effort}"
        seen = " ".join(f"{subject} ({self.zone}): {problem}".split())
        return seen, " ".join(f"{self.fix}{request}".split())


class AuthenticationFailed(ScalewayError):
    """401: the secret key is unknown, expired or revoked."""

    label = "authentication failed"
    default_fix = "check secret_key (SCW_SECRET_KEY) and that the key is neither expired nor revoked"


class PermissionDenied(ScalewayError):
    """403: the key is good, its policy does not allow this."""

    label = "permission denied"
    default_fix = "give the API key's IAM policy InstancesFullAccess on this project"


class QuotaExceeded(ScalewayError):
    """403: the organization may not have more of this."""

    label = "quota exceeded"
    default_fix = "ask Scaleway support for a higher quota, or delete what is no longer needed"


class OutOfStock(ScalewayError):
    """412 or 503: the zone has none of these left at the moment."""

    label = "out of stock"
    default_fix = "choose another zone or type for this node, or try again later"


class InvalidArguments(ScalewayError):
    """400: the request itself is wrong."""

    label = "invalid argument"
    default_fix = "correct the named setting of this node"


class PreconditionFailed(ScalewayError):
    """400 or 412: the resource is not in the state that this call needs."""

    label = "precondition failed"
    default_fix = "bring the resource into the state named and run the same command again"


class TransientState(ScalewayError):
    """409: the resource is just changing."""

    label = "resource is changing"
    default_fix = "wait until it has settled and run the same command again"
    retriable = True


class NotFound(ScalewayError):
    """404: there is no such thing, or not in this zone or project."""

    label = "not found"
    default_fix = "check the id and the zone; if it was deleted by hand, `pulumi refresh` takes note of it"
    resource_id: str = ""
    """Of what is missing, as the reply names it."""


class RateLimited(ScalewayError):
    """429: too many calls. The request was not carried out."""

    label = "rate limited"
    default_fix = "run fewer deployments at once with this API key, or try again in a minute"
    retriable = True


class ServerError(ScalewayError):
    """5xx: a failure on Scaleway's side. The request may or may not have been carried out."""

    label = "server error"
    default_fix = "look at status.scaleway.com and run the same command again"
    effect_unknown = True

    @property
    def retriable(self) -> bool:  # type: ignore[override]
        """Whether the status is one of those that pass."""
        return self.status in {500, 502, 503, 504}


class UnexpectedReply(ScalewayError):
    """A success whose content is not what the API documents, as from a proxy's login page."""

    label = "unexpected reply"
    effect_unknown = True
    retriable = True
    most_attempts = 3
    default_fix = "check that api_url is Scaleway's API and that no proxy answers in its place"


class Unreachable(ScalewayError):
    """No usable reply: refused, reset, timed out, name unknown, certificate not trusted."""

    label = "unreachable"
    retriable = True


class DeadlineExceeded(ScalewayError):
    """A resource did not reach the awaited state in time."""

    label = "deadline exceeded"


class StartFailed(ScalewayError):
    """A server began to start and stopped again by itself."""

    label = "did not start"
    default_fix = (
        "check that its root volume holds the image's snapshot, that no local volume is attached, and that "
        "the zone has the type in stock; then run `pulumi up` again"
    )


AGAIN = "run the same command again, which goes on where this one ended; what is left still bills"
BY_HAND = f"{AGAIN}. If it ends here again, delete it in Scaleway's console"
SUPPORT = f"{AGAIN}. If it ends here again, ask Scaleway support: a deletion needs neither stock nor quota"
UNCHANGED = "nothing was changed: run the same command again"
FIXES: Mapping[str, Mapping[type[ScalewayError], str]] = {
    "delete": {
        ScalewayError: BY_HAND,
        InvalidArguments: BY_HAND,
        OutOfStock: SUPPORT,
        QuotaExceeded: SUPPORT,
        PreconditionFailed: f"free it from what holds it, in Scaleway's console; then {AGAIN}",
        TransientState: f"wait until it has settled; then {AGAIN}",
        NotFound: f"check that the API key is of the project it was made in; then {AGAIN}",
        DeadlineExceeded: AGAIN,
        StartFailed: AGAIN,
    },
    "read": {
        ScalewayError: UNCHANGED,
        InvalidArguments: UNCHANGED,
        OutOfStock: UNCHANGED,
        QuotaExceeded: f"{UNCHANGED}. If it ends here again, ask Scaleway support: reading needs no quota",
        PreconditionFailed: UNCHANGED,
        NotFound: f"{UNCHANGED}; if the object was deleted by hand, that takes note of it",
    },
}
"""Fixes for the operations that a kind's own does not fit: it speaks to whoever creates or changes."""


def in_operation(error: Exception, operation: str) -> Exception:
    """An error with the fix that fits the operation it ended: `create`, `read`, `update` or `delete`."""
    if isinstance(error, ScalewayError) and error.fix == error.default_fix:
        error.fix = FIXES.get(operation, {}).get(type(error), error.fix)
    return error


@contextmanager
def doing(operation: str) -> Iterator[None]:
    """Gives what fails meanwhile the fix of an operation."""
    try:
        yield
    except ScalewayError as error:
        in_operation(error, operation)
        raise


BY_TYPE: Mapping[str, type[ScalewayError]] = {
    "denied_authentication": AuthenticationFailed,
    "permissions_denied": PermissionDenied,
    "quotas_exceeded": QuotaExceeded,
    "out_of_stock": OutOfStock,
    "invalid_arguments": InvalidArguments,
    "invalid_request_error": InvalidArguments,
    "precondition_failed": PreconditionFailed,
    "transient_state": TransientState,
    "not_found": NotFound,
}

# 409 is left out on purpose: without `transient_state` it is a lasting conflict, which waiting does not fix.
BY_STATUS: Mapping[int, type[ScalewayError]] = {
    400: InvalidArguments,
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: NotFound,
    412: PreconditionFailed,
    429: RateLimited,
}


def error_from_reply(
    call: str, resource: str, zone: str, *, status: int, body: object, request_id: str | None = None
) -> ScalewayError:
    """The error for a reply that is no success; `body` is its decoded JSON, or None if it had none."""
    reply: Json = body if isinstance(body, Mapping) else {}
    kind = (
        BY_TYPE.get(str(reply.get("type")))
        or BY_STATUS.get(status)
        or (ServerError if status >= 500 else ScalewayError)
    )
    api_message = str(reply.get("message") or "")
    error = kind(
        call,
        resource,
        zone,
        _explain(kind, reply) or api_message or f"HTTP {status}",
        fix=_fix(kind, call, reply),
        status=status,
        api_message=api_message,
        request_id=request_id,
    )
    if isinstance(error, NotFound):
        error.resource_id = str(reply.get("resource_id") or "")
    return error


def _explain(kind: type[ScalewayError], reply: Json) -> str:
    """What the reply's details say; empty if it has none."""
    details = reply.get("details")
    rows = [row for row in details if isinstance(row, Mapping)] if isinstance(details, list) else []
    each = _EXPLAIN_DETAIL.get(kind)
    if rows and each:
        return "; ".join(map(each, rows))
    whole = _EXPLAIN_REPLY.get(kind)
    return whole(reply) if whole else ""


def _fields(reply: Json) -> str:
    """The Instance API's older validation errors: `{"fields": {"rules.2.dest_port_to": ["…"]}}`."""
    fields = reply.get("fields")
    if not isinstance(fields, Mapping):
        return ""
    return "; ".join(f"{name}: {', '.join(map(str, reasons))}" for name, reasons in fields.items())


def _words(reply: Json, *names: str) -> str:
    return " ".join(str(reply[name]) for name in names if reply.get(name))


_EXPLAIN_DETAIL: Mapping[type[ScalewayError], Callable[[Json], str]] = {
    InvalidArguments: lambda row: (
        f"{row.get('argument_name')}: {row.get('help_message') or row.get('reason')}"
    ),
    PermissionDenied: lambda row: f"may not {row.get('action')} {row.get('resource')}",
    QuotaExceeded: lambda row: f"{row.get('resource')} {row.get('current')} of {row.get('quota')} used",
}

_EXPLAIN_REPLY: Mapping[type[ScalewayError], Callable[[Json], str]] = {
    InvalidArguments: _fields,
    AuthenticationFailed: lambda reply: ": ".join(
        filter(None, (_words(reply, "message"), _words(reply, "method", "reason")))
    ),
    PreconditionFailed: lambda reply: _words(reply, "help_message"),
    TransientState: lambda reply: (
        f"{_words(reply, 'resource', 'resource_id')} is {reply.get('current_state')}"
    ),
    NotFound: lambda reply: _words(reply, "resource", "resource_id"),
    OutOfStock: lambda reply: _words(reply, "resource"),
}


def _fix(kind: type[ScalewayError], call: str, reply: Json) -> str | None:
    """A fix more exact than the kind's own, where the call or the reply allows it."""
    if kind is PermissionDenied and call.endswith(("_volume", "_volumes")):
        return "give the API key's IAM policy BlockStorageFullAccess on this project"
    if kind is PermissionDenied and call == "list_ssh_keys":
        return "give the API key's IAM policy SSHKeysReadOnly on this project"
    if kind is NotFound and reply.get("resource") == "instance_image":
        return "choose an image that exists in this zone, or leave image out to get the default GPU image"
    return None
