"""What vLLM can serve a model for: the arguments that a task needs, the paths that clients use for it, and
the question whose answer shows that it works.

Paths, requests and answers are those of `vllm/entrypoints` in 0.9.2, 0.32.0 and 0.33.0; the arguments those
of `ModelConfig` there, in `vllm/config`.
"""

from __future__ import annotations

import io
import json
import math
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fleet.engine.releases import Release
from fleet.fit.versions import VllmVersion

Task = Literal["generate", "chat", "embed", "rerank", "score", "classify", "transcription", "pooling"]
TASKS: tuple[str, ...] = get_args(Task)
GENERATE = "generate"
CONVERSING = frozenset({GENERATE, "chat"})
"""The tasks that answer chats."""
GENERATING = frozenset({*CONVERSING, "transcription"})
"""The tasks that generate tokens; a model of another task is pooled."""

PATHS: Mapping[str, tuple[str, ...]] = {
    # A multimodal model generates, embeds or transcribes, as its release has it.
    GENERATE: (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
    ),
    "chat": ("/v1/chat/completions", "/v1/completions", "/v1/responses"),
    "embed": ("/v1/embeddings",),
    "rerank": ("/rerank", "/v1/rerank", "/v2/rerank"),
    "score": ("/score", "/v1/score"),
    "classify": ("/classify",),
    "transcription": ("/v1/audio/transcriptions", "/v1/audio/translations"),
    "pooling": ("/pooling",),
}
"""What clients of each task send requests to, by POST. Models that chat complete texts as well, and those
that transcribe translate."""

SINCE = {
    "rerank": VllmVersion(0, 7),
    "transcription": VllmVersion(0, 7, 3),
    "classify": VllmVersion(0, 9),
}
"""The first release whose server has the path of a task's question; the other paths are in every release that
is known here."""

_RUNNER = {
    "embed": ("--runner", "pooling", "--convert", "embed"),
    "classify": ("--runner", "pooling", "--convert", "classify"),
    # Pairs are scored by a classifier or by two embeddings: vLLM takes the one that the architecture has.
    "rerank": ("--runner", "pooling"),
    "score": ("--runner", "pooling"),
    "pooling": ("--runner", "pooling"),
}
_TASK = {
    "embed": ("--task", "embed"),
    "classify": ("--task", "classify"),
    "rerank": ("--task", "score"),
    "score": ("--task", "score"),
    # The hidden states as they are, which is what `/pooling` of later releases returns.
    "pooling": ("--task", "reward"),
    "transcription": ("--task", "transcription"),
}


def words(task: str, release: Release) -> tuple[str, ...]:
    """The arguments that make a release serve a model for the task: `--runner` since 0.10.1, `--task` before.

    None for the tasks that generate: vLLM takes a model that can for one that does.
    """
    return (_RUNNER if "--runner" in release.options else _TASK).get(task, ())


@dataclass(frozen=True)
class Question:
    """A request as small as can be, and what makes its answer one."""

    path: str
    content_type: str
    body: bytes
    wrong: Callable[[Mapping[str, Any]], str | None]
    """What is wrong with the document that came with status 200; None where it answers the question."""


def question(task: str, model: str) -> Question:
    """What a model that is ready for its task answers."""
    if task == "transcription":
        content_type, body = _form({"model": model, "response_format": "json"}, _silence())
        return Question(PATHS[task][0], content_type, body, _has_text)
    path, request, wrong = _QUESTIONS[task]
    body = json.dumps({"model": model, **request}).encode()
    return Question(path, "application/json", body, wrong)


def _has_choices(document: Mapping[str, Any]) -> str | None:
    return None if document.get("choices") else "no choices"


def _has_text(document: Mapping[str, Any]) -> str | None:
    # Of silence the right text is none at all.
    return None if isinstance(document.get("text"), str) else "no text"


def _has_numbers(rows: str, key: str) -> Callable[[Mapping[str, Any]], str | None]:
    """Whether the first of the rows has finite numbers there: one, a list, or a list of lists."""

    def wrong(document: Mapping[str, Any]) -> str | None:
        found = document.get(rows)
        first = found[0] if isinstance(found, list) and found else None
        if not isinstance(first, Mapping) or key not in first:
            return f"no {rows}[0].{key}"
        numbers = _flat(first[key])
        if not numbers:
            return f"{rows}[0].{key} is empty"
        if not all(_is_finite(each) for each in numbers):
            return f"{rows}[0].{key} has what is no finite number"
        return None

    return wrong


def _flat(value: object) -> list[object]:
    return [each for part in value for each in _flat(part)] if isinstance(value, list) else [value]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_ONE_TOKEN = {"max_tokens": 1, "temperature": 0}
_QUESTIONS: Mapping[str, tuple[str, Mapping[str, Any], Callable[[Mapping[str, Any]], str | None]]] = {
    # Completions: every generative model has them, with or without a chat template.
    GENERATE: ("/v1/completions", {"prompt": "1", **_ONE_TOKEN}, _has_choices),
    "chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "1"}], **_ONE_TOKEN},
        _has_choices,
    ),
    "embed": ("/v1/embeddings", {"input": "1"}, _has_numbers("data", "embedding")),
    "rerank": ("/rerank", {"query": "1", "documents": ["1"]}, _has_numbers("results", "relevance_score")),
    "score": ("/score", {"text_1": "1", "text_2": "1"}, _has_numbers("data", "score")),
    "classify": ("/classify", {"input": "1"}, _has_numbers("data", "probs")),
    "pooling": ("/pooling", {"input": "1"}, _has_numbers("data", "data")),
}

SILENCE_S = 0.5
SAMPLES_PER_S = 16_000
"""The rate that speech models work with, so that nothing has to be resampled."""


def _silence() -> bytes:
    """A WAV file of silence, 16-bit mono."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(SAMPLES_PER_S)
        sound.writeframes(b"\0\0" * round(SAMPLES_PER_S * SILENCE_S))
    return file.getvalue()


def _form(fields: Mapping[str, str], wav: bytes) -> tuple[str, bytes]:
    """A form with a file, as `multipart/form-data`: its content type and itself."""
    boundary = "vllm-fleet-readiness"
    disposition = "Content-Disposition: form-data; name="
    parts = [f'{disposition}"{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    head = f'{disposition}"file"; filename="silence.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    body = b"".join(f"--{boundary}\r\n".encode() + part + b"\r\n" for part in (*parts, head.encode() + wav))
    return f"multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode()
