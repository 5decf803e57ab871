"""A typed client of the Scaleway APIs this program uses: Instance v1, Block v1, and IAM's SSH keys.

Every method raises `ScalewayError` (see `errors`), names itself in it, and repeats what may be repeated:
after a 429, a passing 5xx, a `transient_state`, a timeout or a broken connection. A call that must not take
effect twice is never sent again before the client has looked whether the first one did; objects are found by
a tag that only they carry. Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

from components.scaleway.calls import RetryPolicy, Timeouts
from components.scaleway.credentials import Credentials, CredentialsError
from components.scaleway.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    InvalidArguments,
    NotFound,
    OutOfStock,
    PermissionDenied,
    PreconditionFailed,
    QuotaExceeded,
    RateLimited,
    ScalewayError,
    ServerError,
    StartFailed,
    TransientState,
    UnexpectedReply,
    Unreachable,
)
from components.scaleway.models import (
    Image,
    Ip,
    Rule,
    SecurityGroup,
    Server,
    ServerVolume,
    SshKey,
    Volume,
    same_rules,
    sbs_root_volume_id,
)
from components.scaleway.networks import Networks
from components.scaleway.servers import Servers
from components.scaleway.volumes import Volumes

__all__ = [
    "AuthenticationFailed",
    "Credentials",
    "CredentialsError",
    "DeadlineExceeded",
    "Image",
    "InvalidArguments",
    "Ip",
    "NotFound",
    "OutOfStock",
    "PermissionDenied",
    "PreconditionFailed",
    "QuotaExceeded",
    "RateLimited",
    "RetryPolicy",
    "Rule",
    "ScalewayClient",
    "ScalewayError",
    "SecurityGroup",
    "Server",
    "ServerError",
    "ServerVolume",
    "SshKey",
    "StartFailed",
    "Timeouts",
    "TransientState",
    "UnexpectedReply",
    "Unreachable",
    "Volume",
    "same_rules",
    "sbs_root_volume_id",
]


class ScalewayClient(Servers, Volumes, Networks):
    """The APIs of one zone, as one API key sees them. Safe to share between threads."""
