"""What went wrong with a call to Linode, and what to do about it in the words of the operation."""

from __future__ import annotations

PASSING = frozenset({408, 409, 429})
"""Refusals after which the same call may succeed."""
BUSY = "Linode busy."
AGAIN = "run the same command again"
LIMIT_REACHED = "Account Limit reached"
NO_STOCK = "no availability"
NO_SCOPE = "give the token read and write access to Linodes and Firewalls, and read access to Events"
BAD_TOKEN = "set linode:token (or LINODE_TOKEN) to a token that is valid"  # noqa: S105  # says what to do


FIXES = {
    "DELETE": f"delete it in Linode's Cloud Manager, for it may still bill; then {AGAIN}",
    "POST": "correct the setting that Linode names; nothing was made",
    "PUT": "correct the setting that Linode names; nothing was changed",
}
"""What to do about a refusal of an operation whose cause is in what was asked for."""


def fix_of(method: str, status: int, reasons: str) -> str:
    """What to do about a refusal, in the words of the operation that met it."""
    fix = FIXES.get(method, AGAIN)
    if LIMIT_REACHED in reasons:
        fix = f"delete machines that are not needed or ask Linode for a higher limit, then {AGAIN}"
    elif NO_STOCK in reasons:
        fix = f"choose another region or type, or wait; then {AGAIN}"
    elif status == 401:
        fix = BAD_TOKEN
    elif status == 403:
        fix = NO_SCOPE
    elif status == 404:
        fix = f"what was asked for is gone; {AGAIN}, with --refresh"
    elif status == 429:
        fix = f"wait a minute, then {AGAIN}"
    elif status in PASSING or status >= 500 or BUSY in reasons:
        fix = f"look at status.linode.com, then {AGAIN}"
    return fix


class LinodeError(Exception):
    """A call that did not succeed. `status` is the reply's, a scope that lacks counted as 403; None: no reply
    came, or none that could be read."""

    def __init__(self, call: str, reason: str, fix: str, *, status: int | None, passing: bool) -> None:
        super().__init__(f"{call}: {reason.rstrip('.')}. Fix: {fix}")
        self.seen = f"{call}: {reason.rstrip('.')}"
        self.fix = fix
        self.status = status
        self.passing = passing
        """Whether the same call may succeed a little later."""
