"""Scaleway's refusals, in the shapes its APIs send."""

from __future__ import annotations

from simcloud.cloud import ApiError, Reply

RATE_LIMITED = Reply(429, headers={"X-Envoy-Ratelimited": "true"})
"""No body and no Retry-After."""
INTERNAL = Reply(500, {"message": "Internal error", "type": "internal_server_error"})
UNAVAILABLE = Reply(503, b"no healthy upstream")
"""The gateway's own words: not JSON."""
NO_SUCH_USER_DATA = Reply(404, b"")


def invalid(argument: str, help_message: str, *, reason: str = "constraint") -> ApiError:
    return invalid_arguments([(argument, reason, help_message)])


def invalid_arguments(details: list[tuple[str, str, str]]) -> ApiError:
    keys = ("argument_name", "reason", "help_message")
    return ApiError(
        Reply(
            400,
            {
                "type": "invalid_arguments",
                "message": "invalid argument(s)",
                "details": [dict(zip(keys, detail, strict=True)) for detail in details],
            },
        )
    )


def invalid_fields(fields: dict[str, list[str]]) -> ApiError:
    return ApiError(
        Reply(400, {"type": "invalid_request_error", "message": "Validation Error", "fields": fields})
    )


def precondition(
    help_message: str, *, status: int = 400, precondition: str = "resource_not_usable"
) -> ApiError:
    """The Instance API says it with 400, the Block API with 412."""
    return ApiError(
        Reply(
            status,
            {
                "help_message": help_message,
                "message": "precondition is not respected",
                "precondition": precondition,
                "type": "precondition_failed",
            },
        )
    )


def conflict(message: str) -> ApiError:
    return ApiError(Reply(409, {"message": message, "type": "conflict"}))


def transient(resource: str, resource_id: str) -> ApiError:
    """The resource is between two states, and nobody may change it meanwhile."""
    return ApiError(
        Reply(
            409,
            {
                "current_state": "configuring",
                "message": "resource is in a transient state",
                "resource": resource,
                "resource_id": resource_id,
                "type": "transient_state",
            },
        )
    )


def not_found(resource: str, resource_id: str) -> ApiError:
    return ApiError(
        Reply(
            404,
            {
                "type": "not_found",
                "message": "resource is not found",
                "resource": resource,
                "resource_id": resource_id,
            },
        )
    )


def unauthenticated() -> ApiError:
    return ApiError(
        Reply(
            401,
            {
                "message": "authentication is denied",
                "method": "api_key",
                "reason": "not_found",
                "type": "denied_authentication",
            },
        )
    )


def forbidden(resource: str, action: str) -> ApiError:
    return ApiError(
        Reply(
            403,
            {
                "message": "insufficient permissions",
                "type": "permissions_denied",
                "details": [{"resource": resource, "action": action}],
            },
        )
    )


def quota_exceeded(resource: str, *, quota: int, current: int, project: str) -> ApiError:
    return ApiError(
        Reply(
            403,
            {
                "details": [
                    {"current": current, "project_id": project, "quota": quota, "resource": resource}
                ],
                "message": "quota(s) exceeded for this resource",
                "type": "quotas_exceeded",
            },
        )
    )


def out_of_stock(resource: str) -> ApiError:
    return ApiError(
        Reply(503, {"message": "resource is out of stock", "resource": resource, "type": "out_of_stock"})
    )
