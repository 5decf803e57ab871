"""The documents of vLLM's API: what a request must hold, how one is refused, and what an answer is made of.

Shapes and wording are those of vLLM 0.32.0, to which `make test-engine` holds them. Of earlier releases it is
known that an error was no object of its own before 0.10.1.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet.fit.versions import VllmVersion

NESTED_ERRORS = VllmVersion(0, 10, 1)
"""Since then an error lies below `error`."""


class Refused(Exception):
    """A request that vLLM answers with an error."""

    def __init__(
        self, message: str, kind: str = "BadRequestError", status: int = 400, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self._error = {"message": message, "type": kind, "param": param, "code": status}

    def document(self, version: VllmVersion) -> dict[str, Any]:
        if version >= NESTED_ERRORS:
            return {"error": self._error}
        return {"object": "error", **self._error}


def misused(message: str, parameter: str, value: object = None) -> Refused:
    """A value that makes no sense."""
    shown = f", value={value}" if value is not None else ""
    return Refused(f"{message} (parameter={parameter}{shown})", param=parameter)


def invalid(*problems: Mapping[str, Any] | str, param: str | None = None) -> Refused:
    """A document of another form than the one that is asked for."""
    lines = "".join(f"\n  {problem}" for problem in problems)
    count = f"{len(problems)} validation error{'s' if len(problems) > 1 else ''}"
    return Refused(f"{count}:{lines}", "Bad Request", param=param)


def document(content_type: str, body: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises Refused."""
    if content_type.lower().partition(";")[0] != "application/json":
        raise invalid("Unsupported Media Type: Only 'application/json' is allowed")
    try:
        found = json.loads(body)
    except json.JSONDecodeError as error:
        at = f"body.{error.pos}"
        problem = {"type": "json_invalid", "loc": at, "msg": "JSON decode error", "input": _shown({})}
        raise invalid({**problem, "ctx": {"error": error.msg}}, param=at) from None
    if not isinstance(found, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        problem = {"type": "model_attributes_type", "loc": "body", "msg": message, "input": _shown(found)}
        raise invalid(problem, param="body")
    return found


def required(body: Mapping[str, Any], *names: str) -> None:
    """One of the names must be there. Raises Refused."""
    if not any(name in body for name in names):
        problems = [
            {"type": "missing", "loc": f"body.{name}", "msg": "Field required", "input": _shown(body)}
            for name in names
        ]
        raise invalid(*problems, param=f"body.{names[0]}")


def whole_number(body: Mapping[str, Any], name: str) -> int | None:
    """A number of a document. Raises Refused."""
    value = body.get(name)
    try:
        return None if value is None else int(value)
    except ValueError:
        message = "Input should be a valid integer, unable to parse string as an integer"
        at = f"body.{name}"
        problem = {"type": "int_parsing", "loc": at, "msg": message, "input": _shown(value)}
        raise invalid(problem, param=at) from None


def _shown(value: object) -> object:
    if isinstance(value, Mapping | list):
        return f"<{'dict' if isinstance(value, Mapping) else 'list'} of {len(value)} items>"
    return value


def check(body: Mapping[str, Any], *, chat: bool, has_tool_parser: bool) -> None:
    """What can be said of a document without a model. Raises Refused."""
    if chat:
        required(body, "messages")
    if body.get("stream_options") and not body.get("stream"):
        raise misused("Stream options can only be defined when `stream=True`.", "stream_options")
    if not chat and not body.get("prompt"):
        raise misused("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    for name in ("max_tokens", "max_completion_tokens", "n"):
        whole_number(body, name)
    if chat and body.get("tools") and body.get("tool_choice", "auto") == "auto" and not has_tool_parser:
        raise Refused(
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        )
    if chat and not body["messages"]:
        raise Refused("Cannot apply chat template to an empty conversation. Provide at least one message.")


def check_length(body: Mapping[str, Any], prompt: int, wanted: int, length: int) -> None:
    """Whether a prompt and what is to be generated have room, in tokens. Raises Refused."""
    if wanted > length:
        message = f"max_tokens={wanted} cannot be greater than max_model_len={length}."
        raise misused(f"{message} Please request fewer output tokens.", "max_tokens", wanted)
    if prompt > length:
        # What comes behind the first token too many is not counted.
        message = (
            f"This model's maximum context length is {length} tokens. However, your prompt contains at least "
            f"{length + 1} input tokens, which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt."
        )
        raise misused(message, "input_tokens", length + 1)
    wanted = min(wanted, length - prompt)
    if wanted < 1:
        raise misused(f"max_tokens must be at least 1, got {wanted}.", "max_tokens", wanted)
    temperature = float(body.get("temperature") or 0)
    if temperature < 0:
        message = f"temperature must be non-negative, got {temperature}."
        raise misused(message, "temperature", temperature)


def prompts(body: Mapping[str, Any]) -> list[list[str]]:
    """The tokens of each prompt: words and signs of a text, or those that the request counts itself."""
    if "messages" in body:
        return [_words(json.dumps(body["messages"]))]
    given = body.get("prompt", "")
    if isinstance(given, str):
        return [_words(given)]
    if all(isinstance(each, int) for each in given):
        return [[str(each) for each in given]]
    return [_words(each) if isinstance(each, str) else [str(part) for part in each] for each in given]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def form(content_type: str, body: bytes) -> dict[str, bytes]:
    """The fields of a form with a file, as `multipart/form-data`. Raises Refused."""
    boundary = re.match(r'multipart/form-data;.*boundary="?([^";]+)', content_type)
    fields: dict[str, bytes] = {}
    for part in body.split(b"--" + boundary[1].encode())[1:-1] if boundary else ():
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        if name := re.search(rb'\bname="([^"]*)"', head):
            fields[name[1].decode()] = content.removesuffix(b"\r\n")
    required(fields, "file")
    return fields


def pairs(body: Mapping[str, Any], left: str, right: str) -> list[str]:
    """What is scored, a text for each pair. Raises Refused."""
    for name in (left, right):
        required(body, name)
    one, many = (value if isinstance(value, list) else [value] for value in (body[left], body[right]))
    if not many or len(one) not in (1, len(many)):
        raise Refused("Input lengths must be either 1:1, 1:N or N:N")
    return [f"{first} {second}" for first, second in zip(one * (len(many) // len(one)), many, strict=True)]


def pooled(kind: str, model: str, rows: Sequence[Mapping[str, Any]], tokens: int) -> dict[str, Any]:
    """The answer of a model that is pooled; `kind` begins its identifier."""
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    details = {"completion_tokens": 0, "prompt_tokens_details": None}
    return {
        "id": f"{kind}-{_identifier()}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [{"index": index, **row} for index, row in enumerate(rows)],
        "usage": {**usage, **details},
    }


def reranked(model: str, documents: Sequence[str], scores: Sequence[float], tokens: int) -> dict[str, Any]:
    """The answer to a question about documents, those first that matter most."""
    order = sorted(range(len(documents)), key=lambda index: -scores[index])
    results = [
        {"index": index, "document": {"text": documents[index]}, "relevance_score": scores[index]}
        for index in order
    ]
    return {
        "id": f"rerank-{_identifier()}",
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "results": results,
    }


def model_card(name: str, root: str, parent: str | None, length: int | None, created: int) -> dict[str, Any]:
    """One entry of `/v1/models`."""
    rights = {
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    permission = {
        "id": f"modelperm-{_identifier()}",
        "object": "model_permission",
        "created": created,
        **rights,
    }
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": root,
        "parent": parent,
        "max_model_len": length,
        "permission": [permission],
    }


def _identifier() -> str:
    return uuid.uuid4().hex[:16]


@dataclass(frozen=True)
class Reply:
    """One answer, in the shapes of OpenAI's chat and completion objects."""

    chat: bool
    model: str
    prompt: str
    """Put before the answer where the request asks for an echo."""
    prompt_tokens: int
    tokens: tuple[str, ...]
    finish: str
    fingerprint: str
    choices: int = 1
    id: str = field(default_factory=_identifier)
    created: int = field(default_factory=lambda: int(time.time()))

    def usage(self) -> dict[str, int]:
        count = len(self.tokens) * self.choices
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + count,
            "completion_tokens": count,
        }

    def _document(self, kind: str, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
        }

    def whole(self) -> dict[str, Any]:
        """The answer that is not streamed."""
        text = self.prompt + "".join(self.tokens)
        unused = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
        message = {"role": "assistant", "content": text, **unused}
        only = {} if self.chat else {"prompt_logprobs": None, "prompt_token_ids": None}
        choice = {
            **({"message": message} if self.chat else {"text": text}),
            "logprobs": None,
            "finish_reason": self.finish,
            **dict.fromkeys(("stop_reason", "token_ids", "routed_experts")),
            **only,
        }
        details = dict.fromkeys(("prompt_tokens_details", "completion_tokens_details"))
        more = ("prompt_logprobs", "prompt_token_ids", "prompt_text") if self.chat else ()
        return {
            **self._document(
                "chat.completion" if self.chat else "text_completion",
                [{"index": index, **choice} for index in range(self.choices)],
            ),
            "service_tier": None,
            "system_fingerprint": self.fingerprint,
            "usage": {**self.usage(), **details},
            **dict.fromkeys((*more, "kv_transfer_params", "ec_transfer_params", "metrics")),
        }

    def first(self) -> dict[str, Any] | None:
        """What a streamed chat begins with."""
        if not self.chat:
            return None
        choice = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return {
            **self._document("chat.completion.chunk", [{"index": 0, **choice}]),
            "prompt_token_ids": None,
            "prompt_text": None,
        }

    def chunk(self, index: int, *, last: bool, usage_follows: bool) -> dict[str, Any]:
        """One token of a stream."""
        token, finish = self.tokens[index], self.finish if last else None
        if self.chat:
            ended = {"stop_reason": None} if last else {}
            choice = {"delta": {"content": token}, "logprobs": None, "finish_reason": finish, **ended}
        else:
            unused = {"stop_reason": None, "prompt_token_ids": None}
            choice = {"text": token, "logprobs": None, "finish_reason": finish, **unused}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        fingerprint = {"system_fingerprint": self.fingerprint} if last and not usage_follows else {}
        return {**self._document(kind, [{"index": 0, **choice, "token_ids": None}]), **fingerprint}

    def last(self) -> dict[str, Any]:
        """What a stream with usage ends with."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._document(kind, []), "usage": self.usage(), "system_fingerprint": self.fingerprint}
