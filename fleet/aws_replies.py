"""Replies that come in AWS's place: a proxy's page, half a body, or one without what callers rely on.

botocore's parser raises an error of its own over some of them and takes others for an empty result. Here
they are tried again like a server's error, and in the end refused with the code `UNREADABLE`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from xml.etree import ElementTree

UNREADABLE = "UnreadableReply"
"""The code of such a refusal; AWS has no such code."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
"""Between two tries."""

RELIED_ON: Mapping[str, tuple[str, ...]] = {
    "Instance": ("InstanceId", "State"),
    "InstanceState": ("Name",),
    "Address": ("AllocationId", "PublicIp"),
    "Volume": ("VolumeId", "State", "Size"),
    "SecurityGroup": ("GroupId",),
    "NetworkInterface": ("NetworkInterfaceId",),
    "KeyPairInfo": ("KeyName",),
    "Subnet": ("SubnetId", "VpcId", "AvailabilityZone"),
    "Image": ("ImageId", "Architecture"),
    "InstanceTypeOffering": ("Location",),
    "IamInstanceProfileAssociation": ("AssociationId", "IamInstanceProfile"),
    "FileSystemDescription": ("FileSystemId",),
    "MountTargetDescription": ("MountTargetId",),
    "GetCallerIdentityResponse": ("Account", "Arn"),
    "Parameter": ("Value",),
    "ServiceQuota": ("Value",),
}
"""Members of AWS's shapes without which a reply is of no use; its own models require none of them."""

Event = Any
"""What botocore's events carry is not typed."""


def guard(client: Any, attempts: int) -> None:
    """Make a client of boto3 try calls again whose reply is not AWS's, `attempts` times in all."""
    client.meta.events.register("before-parse", _keep_parsable)
    client.meta.events.register("needs-retry", partial(_pause_s, attempts_allowed=attempts))
    client.meta.events.register("after-call", _refuse)


def problem(operation: Event, status: int, parsed: Mapping[str, Any]) -> str:
    """What is wrong with a reply that is not AWS's; empty for one that is, refusals included."""
    error = parsed.get("Error") or {}
    if error.get("Code") == UNREADABLE:
        return str(error["Message"])
    shape = operation.output_shape
    # What a deletion answers depends on the age of the API; the next look shows its effect.
    if status >= 300 or shape is None or not shape.members or operation.name.startswith("Delete"):
        return ""
    if not parsed.keys() & shape.members.keys():
        return "a reply without content"
    lacking = next(_lacking(shape, parsed), "")
    return f"a reply without {lacking}" if lacking else ""


def _keep_parsable(
    operation_model: Event,
    response_dict: dict[str, Any],
    customized_response_dict: dict[str, Any],
    **_: Any,
) -> None:
    """Replaces a body that the parser would stumble over, or take for something else, by our refusal."""
    status, body = response_dict["status_code"], response_dict["body"]
    if (status >= 500 and not body) or not isinstance(body, bytes):
        return  # the parser knows an empty error; a stream is for its reader
    protocol, shape = str(operation_model.service_model.resolved_protocol), operation_model.output_shape
    readable = _is_json(shape, body) if "json" in protocol else _is_xml(operation_model.name, status, body)
    if readable and _parses(protocol, response_dict, shape):
        return
    kind = response_dict["headers"].get("content-type", "no content type")
    message = f"HTTP {status} with {len(body)} bytes that are not a reply of AWS ({kind})"
    response_dict.update(status_code=500, body=b"")
    customized_response_dict["Error"] = {"Code": UNREADABLE, "Message": message}


def _is_xml(call: str, status: int, body: bytes) -> bool:
    try:
        root = ElementTree.fromstring(body)  # noqa: S314  expat limits what entities expand to
    except ElementTree.ParseError:
        return False
    if not any((each.text or "").strip() for each in root.iter()):
        return False  # the id of the request, at least, is a text
    name = root.tag.rpartition("}")[2]
    return name in ("Response", "ErrorResponse") if status >= 300 else name == f"{call}Response"


def _parses(protocol: str, response: dict[str, Any], shape: Event) -> bool:
    from botocore.parsers import create_parser  # noqa: PLC0415  loaded by now

    try:
        create_parser(protocol).parse(response, shape)
    except Exception:  # whatever it stumbles over: a number or a date that is none, besides its own error
        return False
    return True


def _is_json(shape: Event, body: bytes) -> bool:
    if not body.strip():
        return shape is None or not shape.members
    try:
        return isinstance(json.loads(body), dict)
    except ValueError:
        return False


def _pause_s(
    response: tuple[Any, dict[str, Any]] | None,
    operation: Event,
    attempts: int,
    *,
    attempts_allowed: int,
    **_: Any,
) -> float | None:
    """Seconds until another try; None for a reply that is AWS's, and after the last try."""
    if response is None or attempts >= attempts_allowed:
        return None
    if not problem(operation, response[0].status_code, response[1]):
        return None
    return min(FIRST_PAUSE_S * 2.0**attempts, LONGEST_PAUSE_S)


def _refuse(model: Event, http_response: Any, parsed: Mapping[str, Any], **_: Any) -> None:
    from botocore.exceptions import ClientError  # noqa: PLC0415  loaded by now

    if wrong := problem(model, http_response.status_code, parsed):
        raise ClientError({"Error": {"Code": UNREADABLE, "Message": wrong}}, model.name)


def _lacking(shape: Any, value: Any) -> Iterator[str]:
    """What is relied on and is not there, as Shape.Member."""
    if shape.type_name == "list":
        for each in value or ():
            yield from _lacking(shape.member, each)
    elif shape.type_name == "structure":
        yield from (f"{shape.name}.{name}" for name in RELIED_ON.get(shape.name, ()) if not value.get(name))
        for name, member in shape.members.items():
            if name in value:
                yield from _lacking(member, value[name])
