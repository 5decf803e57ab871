"""How vLLM's own parser reads its arguments, as far as guards, fit and policies depend on it.

The parser (`FlexibleArgumentParser`, on argparse) turns `_` into `-` in a flag's name, takes `--flag=value`,
knows short forms, and accepts any beginning of a flag that is not ambiguous. Everything that asks what a list
of arguments says asks here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fleet.fit.flags import KNOWN_FLAGS

SHORT_FORMS = {
    "-q": "--quantization",
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-ep": "--enable-expert-parallel",
    "-sc": "--speculative-config",
}
"""Of vLLM 0.33; older releases have fewer of them."""

OWNED = {
    "--model": "serving.model",
    "--served-model-name": "serving.served_model_name",
    "--max-model-len": "serving.max_model_len",
    "--quantization": "serving.quantization",
    "--tensor-parallel-size": "serving.tensor_parallel_size",
    "--gpu-memory-utilization": "serving.gpu_memory_utilization",
    "--distributed-executor-backend": "serving.distributed_executor_backend",
    "--swap-space": "serving.swap_space_gb",
    "--dtype": "serving.dtype",
    "--kv-cache-dtype": "serving.kv_cache_dtype",
    "--max-num-seqs": "serving.max_num_seqs",
    "--port": "serving.port",
    "--api-key": "secrets.api_key",
    "--hf-token": "secrets.hf_token",
}
"""Flags that a setting of their own gives: canonical name → that setting."""

FIXED = {
    "--host": "the container decides what vLLM listens on",
    "--uds": "the container decides what vLLM listens on",
    "--headless": "a node answers requests itself",
    "--config": "its file would set flags that nothing here has checked; write them as settings",
    "--ssl-keyfile": "the gateway ends TLS; see expose",
    "--ssl-certfile": "the gateway ends TLS; see expose",
    "--ssl-ca-certs": "the gateway ends TLS; see expose",
}
"""Flags that nobody sets: canonical name → why."""

READ_HERE = (
    "--enforce-eager",
    "--hf-overrides",
    "--max-num-batched-tokens",
    "--pipeline-parallel-size",
    "--revision",
    "--load-format",
)
"""More flags that something in this project acts upon."""

PATHS = (
    "--allowed-local-media-path",
    "--chat-template",
    "--download-dir",
    "--generation-config",
    "--hf-config-path",
    "--io-processor-plugin",
    "--log-config-file",
    "--lora-modules",
    "--mm-encoder-fp8-scale-path",
    "--mm-encoder-fp8-scale-save-path",
    "--model-loader-extra-config",
    "--prompt-adapters",
    "--qlora-adapter-name-or-path",
    "--quantization-param-path",
    "--reasoning-parser-plugin",
    "--spec-model",
    "--speculative-config",
    "--speculative-model",
    "--tokenizer",
    "--tool-parser-plugin",
)
"""Flags whose values are paths, or hold some, of any release that is known here."""

_NAMES = frozenset({*OWNED, *FIXED, *PATHS, *READ_HERE, *KNOWN_FLAGS})


@dataclass(frozen=True)
class Argument:
    """One flag of a list of arguments."""

    flag: str
    """Its long name with hyphens, whatever way it was written."""
    value: str | None
    """None for a flag without one."""
    written: str
    """The flag as it was written, without its value."""


def read(words: Sequence[str]) -> Iterator[Argument]:
    """The flags in a list of arguments, in its order. Words before the first flag belong to none."""
    waiting: tuple[str, str] | None = None
    values: list[str] = []
    for word in words:
        if not _is_flag(word):
            values.append(word)
            continue
        if waiting:
            yield Argument(waiting[0], " ".join(values) if values else None, waiting[1])
        written, separator, value = word.partition("=")
        flag, attached = _canonical(written)
        values = [value] if separator else [attached] if attached else []
        waiting = flag, written
    if waiting:
        yield Argument(waiting[0], " ".join(values) if values else None, waiting[1])


def values(words: Sequence[str]) -> dict[str, str | None]:
    """The value of each flag; of one that is given twice the last, as the parser has it."""
    return {each.flag: each.value for each in read(words)}


def paths(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The absolute and home paths, and those from `./`, that flags name, each with its flag as written.

    A dotted key (`--speculative-config.model /x`) belongs to its flag, and so does what JSON holds.
    """
    for each in read(words):
        if each.value is None or each.flag.partition(".")[0] not in PATHS:
            continue
        if each.flag == "--chat-template" and re.search(r"[{}\n]", each.value):
            continue  # the template itself, as vLLM takes it
        for text in _texts(each.value):
            if re.match(r"[/~]|\.\.?/", text):
                yield each.written, text


def _texts(value: str) -> Iterator[str]:
    """The single texts in a flag's value: words, what follows a name and =, strings in JSON."""
    rest = value.strip()
    while rest:
        try:
            document, end = json.JSONDecoder().raw_decode(rest)
        except ValueError:
            word, _, rest = rest.partition(" ")
            yield word.partition("=")[2] or word
        else:
            yield from _strings(document)
            rest = rest[end:]
        rest = rest.lstrip()


def _strings(document: object) -> Iterator[str]:
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict | list):
        for each in document.values() if isinstance(document, dict) else document:
            yield from _strings(each)


def abbreviated(flag: str) -> str | None:
    """The flag that is abbreviated here, if it is one that this project knows."""
    if flag in _NAMES or not flag.startswith("--"):
        return None
    return next((name for name in sorted(_NAMES) if name.startswith(flag)), None)


def _is_flag(word: str) -> bool:
    """Whether argparse takes the word for a flag: a negative number is a value."""
    return len(word) > 1 and word[0] == "-" and not word[1:].replace(".", "", 1).isdigit()


def _canonical(written: str) -> tuple[str, str]:
    """A flag's long name, and the value that a short form has without a space (`-qawq`)."""
    if written.startswith("--"):
        return f"--{written[2:].replace('_', '-')}", ""
    hyphened = written.replace("_", "-")
    if hyphened in SHORT_FORMS:
        return SHORT_FORMS[hyphened], ""
    # Only a short form of one letter takes its value so; a beginning of a longer one stands for it.
    if (one := hyphened[:2]) in SHORT_FORMS:
        return SHORT_FORMS[one], written[2:]
    longer = [name for name in SHORT_FORMS if name.startswith(hyphened)]
    return (SHORT_FORMS[longer[0]] if len(longer) == 1 else hyphened), ""
