"""Questions to the HTTP server of vLLM, and what of an answer the simulator must have in common with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

KEY = "planted-key-0123456789"
MODEL = "qwen"
"""What the model is served as."""
LENGTH = 1024
"""Its maximum context, in tokens."""


@dataclass(frozen=True)
class Question:
    """One request."""

    name: str
    method: str
    path: str
    body: Any = None
    """A document, or the bytes themselves."""
    key: str | None = KEY
    headers: Mapping[str, str] = field(default_factory=dict)


def _ask(**changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "Say something.", "max_tokens": 4, "temperature": 0, **changes}


def _chat(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Say something."}]
    return {"model": MODEL, "messages": messages, "max_tokens": 4, "temperature": 0, **changes}


JSON = {"Content-Type": "application/json"}
LONG = "word " * 2 * LENGTH
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
COMPLETIONS, CHAT, MODELS = "/v1/completions", "/v1/chat/completions", "/v1/models"

QUESTIONS = (
    Question("health", "GET", "/health", key=None),
    Question("health, POST", "POST", "/health", key=None),
    Question("health, HEAD", "HEAD", "/health", key=None),
    Question("health with a slash", "GET", "/health/", key=None),
    Question("ping", "GET", "/ping", key=None),
    Question("ping, POST", "POST", "/ping", key=None),
    Question("version", "GET", "/version", key=None),
    Question("load", "GET", "/load", key=None),
    Question("root", "GET", "/", key=None),
    Question("unknown path", "GET", "/nosuch", key=None),
    Question("unknown path below v1", "GET", "/v1/nosuch"),
    Question("unknown path below v1 without key", "GET", "/v1/nosuch", key=None),
    Question("metrics with a slash", "GET", "/metrics/", key=None),
    Question("models", "GET", MODELS),
    Question("models with a slash", "GET", "/v1/models/"),
    Question("models without key", "GET", MODELS, key=None),
    Question("models with a wrong key", "GET", MODELS, key="wrong"),
    Question("models, POST", "POST", MODELS),
    Question("models, OPTIONS", "OPTIONS", MODELS, key=None),
    Question(
        "models, key in lower case", "GET", MODELS, key=None, headers={"Authorization": f"bearer {KEY}"}
    ),
    Question("models, key alone", "GET", MODELS, key=None, headers={"Authorization": KEY}),
    Question("one model", "GET", f"/v1/models/{MODEL}"),
    Question("v1 alone without key", "GET", "/v1", key=None),
    Question("completion", "POST", COMPLETIONS, _ask()),
    Question("completion without model", "POST", COMPLETIONS, {"prompt": "Hi", "max_tokens": 2}),
    Question("completion without key", "POST", COMPLETIONS, _ask(), key=None),
    Question("completion of another model", "POST", COMPLETIONS, _ask(model="other")),
    Question("completion, GET", "GET", COMPLETIONS),
    Question("completion without prompt", "POST", COMPLETIONS, {"model": MODEL, "max_tokens": 1}),
    Question(
        "completion of no JSON", "POST", COMPLETIONS, b"{bad", headers={"Content-Type": "application/json"}
    ),
    Question("completion of a list", "POST", COMPLETIONS, []),
    Question("completion without body", "POST", COMPLETIONS),
    Question("completion as plain text", "POST", COMPLETIONS, b"hi", headers={"Content-Type": "text/plain"}),
    Question("completion of a long prompt", "POST", COMPLETIONS, _ask(prompt=LONG)),
    Question("completion of too many tokens", "POST", COMPLETIONS, _ask(max_tokens=LENGTH + 1)),
    Question("prompt that leaves less", "POST", COMPLETIONS, _ask(prompt=[1] * 1020, max_tokens=8)),
    Question("prompt that leaves none", "POST", COMPLETIONS, _ask(prompt=[1] * LENGTH)),
    Question("completion of no tokens", "POST", COMPLETIONS, _ask(max_tokens=0)),
    Question("completion of negative tokens", "POST", COMPLETIONS, _ask(max_tokens=-1)),
    Question("completion of words for tokens", "POST", COMPLETIONS, _ask(max_tokens="many")),
    Question("completion too hot", "POST", COMPLETIONS, _ask(temperature=-1)),
    Question("completion, unknown field", "POST", COMPLETIONS, _ask(nosuch=1)),
    Question("completion, two prompts", "POST", COMPLETIONS, _ask(prompt=["one", "two"])),
    Question("completion, two answers", "POST", COMPLETIONS, _ask(n=2, temperature=1)),
    Question("completion of token ids", "POST", COMPLETIONS, _ask(prompt=[1, 2, 3])),
    Question("completion, echo", "POST", COMPLETIONS, _ask(echo=True)),
    Question("completion streamed", "POST", COMPLETIONS, _ask(stream=True)),
    Question(
        "completion streamed with usage",
        "POST",
        COMPLETIONS,
        _ask(stream=True, stream_options={"include_usage": True}),
    ),
    Question("stream of another model", "POST", COMPLETIONS, _ask(model="other", stream=True)),
    Question("stream options alone", "POST", COMPLETIONS, _ask(stream_options={"include_usage": True})),
    Question("chat", "POST", CHAT, _chat()),
    Question("chat without messages", "POST", CHAT, {"model": MODEL}),
    Question("chat of no messages", "POST", CHAT, _chat(messages=[])),
    Question("chat without model", "POST", CHAT, {"messages": _chat()["messages"], "max_tokens": 2}),
    Question("chat of another model", "POST", CHAT, _chat(model="other")),
    Question("chat streamed", "POST", CHAT, _chat(stream=True)),
    Question(
        "chat streamed with usage", "POST", CHAT, _chat(stream=True, stream_options={"include_usage": True})
    ),
    Question("chat of a long prompt", "POST", CHAT, _chat(messages=[{"role": "user", "content": LONG}])),
    Question("chat, max_completion_tokens", "POST", CHAT, _chat(max_completion_tokens=2)),
    Question(
        "chat, tool_choice without parser",
        "POST",
        CHAT,
        _chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]),
    ),
    Question("tokenize", "POST", "/tokenize", {"model": MODEL, "prompt": "two words"}, key=None),
    Question("tokenize another model", "POST", "/tokenize", {"model": "other", "prompt": "hi"}, key=None),
    Question("tokenize without prompt", "POST", "/tokenize", {"model": MODEL}, key=None),
    Question("detokenize", "POST", "/detokenize", {"model": MODEL, "tokens": [1, 2]}, key=None),
    Question("detokenize without tokens", "POST", "/detokenize", {"model": MODEL}, key=None),
    Question("embeddings", "POST", "/v1/embeddings", {"model": MODEL, "input": "hi"}),
    Question("score", "POST", "/score", {"model": MODEL, "text_1": "a", "text_2": "b"}, key=None),
    Question("rerank", "POST", "/rerank", {"model": MODEL, "query": "a", "documents": ["b"]}, key=None),
    Question("pooling", "POST", "/pooling", {"model": MODEL, "input": "hi"}, key=None),
    Question("classify", "POST", "/classify", {"model": MODEL, "input": "hi"}, key=None),
    Question("transcriptions", "POST", "/v1/audio/transcriptions", {"model": MODEL}),
    Question("responses", "POST", "/v1/responses", {"model": MODEL, "input": "hi", "max_output_tokens": 4}),
    Question(
        "messages", "POST", "/v1/messages", {"model": MODEL, "max_tokens": 4, "messages": _chat()["messages"]}
    ),
    Question("invocations", "POST", "/invocations", _chat(), key=None),
    Question("load an adapter", "POST", "/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "/x"}),
    Question("sleep", "POST", "/sleep", key=None),
    Question("reset prefix cache", "POST", "/reset_prefix_cache", key=None),
    Question("server info", "GET", "/server_info", key=None),
    Question("docs", "GET", "/docs", key=None),
    Question("docs, HEAD", "HEAD", "/docs", key=None),
    Question("dots in the path", "GET", "/health/../v1/models", key=None),
    Question("two slashes", "GET", "//v1/models", key=None),
    Question("upper case", "GET", "/V1/models", key=None),
)


@dataclass(frozen=True)
class Answer:
    """What is compared: of documents their shape, since texts, times and identifiers are an engine's own."""

    status: int
    content_type: str
    shape: Any
    said: str = ""
    """The words of an error."""
    answers: int = 0
    """How many choices there are."""
    allow: str = ""
    location: str = ""


def shape(value: Any) -> Any:
    """The keys of a document with the kinds of their values; of a list the first element's."""
    if isinstance(value, Mapping):
        return {key: shape(each) for key, each in sorted(value.items())}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


async def ask(client: httpx.AsyncClient, question: Question) -> Answer:
    """Put one question."""
    headers = dict(question.headers)
    if question.key is not None:
        headers["Authorization"] = f"Bearer {question.key}"
    given: dict[str, Any] = {"headers": headers}
    if isinstance(question.body, bytes):
        given["content"] = question.body
    elif question.body is not None:
        given["json"] = question.body
    # The path as it stands: the client would resolve its dots.
    given["extensions"] = {"target": question.path.encode()}
    return _answer(await client.request(question.method, "/", **given))


def _answer(reply: httpx.Response) -> Answer:
    content_type = reply.headers.get("content-type", "")
    said, found, answers = "", None, 0
    if content_type.startswith("application/json") and reply.content:
        document = reply.json()
        found = shape(document)
        answers = len(document.get("choices", ())) if isinstance(document, dict) else 0
        error = document.get("error", document) if isinstance(document, dict) else {}
        if reply.status_code >= 400 and isinstance(error, dict):
            message = error.get("message", error.get("detail"))
            said = f"{error.get('type')} {error.get('param')} {error.get('code')}: {message}"
    elif content_type.startswith("text/event-stream"):
        found = _events(reply.text)
    return Answer(
        reply.status_code,
        content_type,
        found,
        said,
        answers,
        reply.headers.get("allow", ""),
        re.sub(r"//[^/]*", "//host", reply.headers.get("location", "")),
    )


def _events(text: str) -> list[Any]:
    """The shapes of a stream's events, each run of the same once."""
    found: list[Any] = []
    for event in text.strip().split("\n\n"):
        words = event.removeprefix("data: ")
        each = words if words == "[DONE]" else shape(json.loads(words))
        if not found or found[-1] != each:
            found.append(each)
    return found


def families(metrics: str) -> dict[str, str]:
    """The kind of each family at `/metrics`, by name."""
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", metrics, re.MULTILINE))
