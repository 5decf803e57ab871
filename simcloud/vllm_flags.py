"""The command line of `vllm serve`, read as a release's own parser reads it and refused in its words.

Which arguments a release takes comes from `fleet.engine`; they are read by argparse, of which vLLM's parser
is made (`FlexibleArgumentParser` in `vllm/utils/argparse_utils.py`): `_` for `-`, dotted keys, `-O3`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from fleet.engine import releases
from fleet.engine.releases import Option, Release
from fleet.fit.versions import VllmVersion

SERVE_ENTRYPOINT = VllmVersion(0, 11)
"""Since then the image starts `vllm serve`; before, the module `api_server`, which errors begin with."""
ANY_QUANTIZATION = VllmVersion(0, 32)
"""Seen in that release: the parser takes any name, and the engine refuses those that it does not know."""
_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class BadFlags(Exception):
    """The command line is not vLLM's: the message is what vLLM prints before it exits with status 2."""


@dataclass(frozen=True)
class Options:
    """What of a serve command line matters here."""

    model: str
    served_names: tuple[str, ...]
    host: str
    port: int
    api_keys: tuple[str, ...]
    max_model_len: int
    """0: what the model was made for."""
    tensor_parallel_size: int
    pipeline_parallel_size: int
    gpu_memory_utilization: float
    quantization: str | None
    tool_parser: str | None
    adapters: Mapping[str, str]
    """LoRA adapters: name → path."""
    pools: str | None
    """What the flags make of the model beside a generative one: `embed` or `classify`, `auto` for whichever
    it is by its name; None: it generates, or transcribes."""
    given: Mapping[str, Any]
    """Every argument that was given, by destination."""


def parse_options(argv: Sequence[str], environment: Mapping[str, str], version: str = "0.9.2") -> Options:
    """Read a serve command line, without the program's name, as the given vLLM version does.

    Raises `BadFlags` for a flag or value that version refuses.
    """
    release = releases.release(VllmVersion.parse(version))
    words = _spelled(argv, "--optimization-level" in release.options)
    if "dotted" in release.features:
        words = _dotted(words)
    given = vars(_parser(release).parse_args(words))
    model = given.get("model_tag") or given.get("model") or "Qwen/Qwen3-0.6B"
    keys = given.get("api_key") or environment.get("VLLM_API_KEY") or ()
    length = given.get("max_model_len") or 0
    return Options(
        model=model,
        served_names=tuple(given.get("served_model_name") or [model]),
        host=given.get("host") or "0.0.0.0",
        port=int(given.get("port", 8000)),
        api_keys=(keys,) if isinstance(keys, str) else tuple(keys),
        max_model_len=max(length, 0),
        tensor_parallel_size=given.get("tensor_parallel_size", 1),
        pipeline_parallel_size=given.get("pipeline_parallel_size", 1),
        gpu_memory_utilization=given.get("gpu_memory_utilization", 0.9),
        quantization=given.get("quantization"),
        tool_parser=given.get("tool_call_parser"),
        adapters=dict(map(_adapter, given.get("lora_modules") or ())),
        pools=_pools(given),
        given=given,
    )


def _pools(given: Mapping[str, Any]) -> str | None:
    """By `--runner` and `--convert`, or by `--task` as releases before 0.13 have it: `ModelConfig` in
    `vllm/config`."""
    tasks = {
        "embedding": "embed",
        "embed": "embed",
        "classify": "classify",
        "score": "auto",
        "reward": "auto",
    }
    task, convert = tasks.get(given.get("task") or ""), given.get("convert") or "auto"
    if task or given.get("runner") != "pooling":
        return task
    return convert if convert in ("embed", "classify") else "auto"


def quantizations(version: VllmVersion) -> tuple[str, ...]:
    """The methods that a release knows by itself."""
    return tuple(map(str, releases.release(version).options["--quantization"].choices))


class _Parser(argparse.ArgumentParser):
    """Arguments that are left over are refused by the program, all others by its command."""

    def __init__(self, release: Release) -> None:
        serve = release.version >= SERVE_ENTRYPOINT
        super().__init__(
            prog="vllm serve" if serve else "api_server.py",
            usage="vllm serve [model_tag] [options]" if serve else "api_server.py [-h] [--model MODEL] …",
            add_help=False,
            argument_default=argparse.SUPPRESS,
        )
        self._program = "vllm" if serve else self.prog

    def error(self, message: str) -> NoReturn:
        program = self._program if message.startswith("unrecognized arguments") else self.prog
        raise BadFlags(f"{self.format_usage()}{program}: error: {message}")


def _parser(release: Release) -> _Parser:
    parser = _Parser(release)
    parser.add_argument("model_tag", nargs="?")
    for option in release.options.values():
        if option.flag != "--help":
            known = _keywords(option)
            if option.flag == "--quantization" and release.version >= ANY_QUANTIZATION:
                known["choices"] = None
            parser.add_argument(option.flag, *option.also, **known)
    return parser


def _keywords(option: Option) -> dict[str, Any]:
    if option.takes == "none":
        return {"action": argparse.BooleanOptionalAction if option.pair else "store_true"}
    counts = {"some": "+", "any": "*", "maybe": "?", "one": None}
    count = option.takes if isinstance(option.takes, int) else counts[option.takes]
    return {
        "nargs": count,
        "action": "append" if option.repeats else "store",
        "type": _optional(_READERS[option.type]) if option.optional else _READERS[option.type],
        "choices": _choices(option),
    }


def _choices(option: Option) -> list[Any] | None:
    if not option.choices:
        return None
    return [*option.choices, None] if option.optional else list(option.choices)


def _optional(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def converted(text: str) -> Any:
        return None if text in ("", "None") else read(text)

    converted.__name__ = getattr(read, "__name__", "")
    return converted


def _size(text: str) -> int:
    """`16384`, and as vLLM takes it `16k` (10³) or `16K` (2¹⁰)."""
    unit = _UNITS.get(text[-1:])
    return int(text) if unit is None else int(float(text[:-1]) * unit)


def _size_or_auto(text: str) -> int:
    return -1 if text.strip().lower() in ("-1", "auto") else _size(text)


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        message = f"Value {text} cannot be converted to {json.loads}."
        raise argparse.ArgumentTypeError(message) from None


def _json_or_text(text: str) -> Any:
    return _loads(text) if re.fullmatch(r"\s*\{.*\}\s*", text, re.DOTALL) else text


def _lowered(text: str) -> str:
    return text.lower().replace("-", "_")


_READERS: dict[str, Callable[[str], Any]] = {
    "text": str,
    "lowered": _lowered,
    "int": int,
    "float": float,
    "size": _size,
    "size_or_auto": _size_or_auto,
    "json": _loads,
    "json_or_text": _json_or_text,
    "adapter": str,
}


def _adapter(word: str) -> tuple[str, str]:
    """The name and the path of a LoRA adapter: `NAME=PATH`, or JSON."""
    if "=" in word and "," not in word:
        name, _, path = word.partition("=")
        return name, path
    try:
        found = json.loads(word)
        return found["name"], found["path"]
    except ValueError:
        raise BadFlags(f"vllm serve: error: Invalid JSON format for --lora-modules: {word}") from None
    except (KeyError, TypeError):
        raise BadFlags(f"vllm serve: error: Invalid fields for --lora-modules: {word}") from None


def _spelled(argv: Sequence[str], has_levels: bool) -> list[str]:
    """Underscores in the names of flags are hyphens, up to the first dot; `-O3` may be a flag of its own."""
    words: list[str] = []
    for word in argv:
        if word.startswith("--"):
            words.append(re.sub(r"^--[^.=]*", lambda name: name[0].replace("_", "-"), word))
        elif has_levels and re.match(r"-O=?.", word):
            words += ["--optimization-level", word[2:].removeprefix("=")]
        else:
            words.append(word)
    return words


def _dotted(words: list[str]) -> list[str]:
    """`--flag.key value` as JSON, behind all other words."""
    plain: list[str] = []
    nested: dict[str, dict[str, Any]] = {}
    rest = iter(words)
    for word in rest:
        name, separator, value = word.partition("=")
        if not (name.startswith("-") and "." in name) or re.fullmatch(r"-[\d.]+", name):
            plain.append(word)
            continue
        text = value if separator else next(rest, "")
        flag, *keys = name.removesuffix("+").split(".")
        into = nested.setdefault(flag, {})
        for key in keys[:-1]:
            into = into.setdefault(key, {})
        into[keys[-1]] = text.split(",") if name.endswith("+") else _of_key(text)
    return [*plain, *(part for flag, value in nested.items() for part in (flag, json.dumps(value)))]


def _of_key(text: str) -> Any:
    for read in (json.loads, _size):
        try:
            return read(text)
        except ValueError:
            continue
    return text
