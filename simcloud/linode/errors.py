"""Linode's refusals, in the shape its API sends: a list of reasons, some with the field they are about."""

from __future__ import annotations

from collections.abc import Mapping

from simcloud.cloud import ApiError, Reply


def refused(
    status: int, reason: str, field: str | None = None, *, headers: Mapping[str, str] | None = None
) -> ApiError:
    error = {"reason": reason} if field is None else {"reason": reason, "field": field}
    return ApiError(Reply(status, {"errors": [error]}, headers or {}))


def invalid(field: str, reason: str) -> ApiError:
    return refused(400, reason, field)


def invalid_token() -> ApiError:
    return refused(401, "Invalid Token")


def unauthorized() -> ApiError:
    """What a restricted user without the grant reads."""
    return refused(403, "Unauthorized")


def not_found() -> ApiError:
    return refused(404, "Not found")


def busy() -> ApiError:
    """The machine is between two states; the same call works a little later."""
    return refused(400, "Linode busy.")


def limit_reached() -> ApiError:
    return refused(400, "Account Limit reached. Please open a support ticket.")


def no_stock() -> ApiError:
    # The sentence is known from linode/manager #6461; the status is what that thread suggests.
    return refused(403, "There is no availability for the selected plan in the selected region.")


def rate_limited() -> ApiError:
    return refused(429, "Too many requests", headers={"X-Ratelimit-Limit": "5"})


def internal() -> ApiError:
    return refused(500, "Internal Server Error")


def unavailable() -> ApiError:
    return refused(503, "Service temporarily unavailable. Please try again later.")
