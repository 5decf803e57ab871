"""What the arguments of vLLM say to this project: which flags are its own, and what guards, fit and policies
depend on. How vLLM reads them, and which release has which, is in `fleet.engine`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from fleet.engine import mapping, registry, releases, values, words
from fleet.engine.releases import Release
from fleet.engine.words import Argument, Finding, Parsed
from fleet.fit.versions import VllmVersion

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
    "--task": "serving.task",
    "--runner": "serving.task",
    "--convert": "serving.task",
    "--port": "serving.port",
    "--api-key": "secrets.api_key",
    "--hf-token": "secrets.hf_token",
}
"""Flags that a setting of their own gives: canonical name → that setting."""

FIXED = {
    "--host": "the container decides what vLLM listens on",
    "--uds": "the container decides what vLLM listens on",
    "--headless": "a node answers requests itself",
    "--config": "its file would set flags that nothing here has checked; write them as serving.args",
    "--ssl-keyfile": "the gateway ends TLS; see expose",
    "--ssl-certfile": "the gateway ends TLS; see expose",
    "--ssl-ca-certs": "the gateway ends TLS; see expose",
    "--help": "vLLM would print its flags and end",
}
"""Flags that nobody sets: canonical name → why."""

PATHS = (
    "--allowed-local-media-path",
    "--chat-template",
    "--download-dir",
    "--generation-config",
    "--hf-config-path",
    "--io-processor-plugin",
    "--log-config-file",
    "--logging-config",
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

PLUGINS = {
    "--reasoning-parser": "--reasoning-parser-plugin",
    "--tool-call-parser": "--tool-parser-plugin",
}
"""Flags that name a parser, each with the one that brings more of them."""


@lru_cache(maxsize=256)
def _parsed(given: tuple[str, ...], version: VllmVersion | None) -> Parsed:
    return words.parse(given, releases.release(version))


def parse(given: Sequence[str], version: VllmVersion | None = None) -> Parsed:
    """What a list of arguments says to a release; without one, to the newest that is known."""
    return _parsed(tuple(given), version)


def version_of(image: str) -> VllmVersion | None:
    """The vLLM release of an image by its tag; None where the tag names none."""
    try:
        return VllmVersion.parse(image)
    except ValueError:
        return None


def problems(given: Sequence[str], version: VllmVersion | None = None) -> Iterator[Finding]:
    """Everything that is wrong with arguments that a setting adds, those first that it must not add."""
    found = parse(given, version)
    for each in found.arguments:
        if refused := _not_set_here(each, found):
            yield refused
    refused_flags = {each.flag for each in found.arguments if each.flag in {*OWNED, *FIXED}}
    yield from (each for each in found.findings if each.flag not in refused_flags)


def unregistered(found: Parsed, version: VllmVersion | None) -> Iterator[Finding]:
    """The parsers that arguments name and that the release does not have, of all arguments together."""
    release = releases.release(version)
    for flag, plugin in PLUGINS.items():
        name = found.values.get(flag)
        if not isinstance(name, str) or not name or plugin in found.values:
            continue
        if flag in release.options and name not in registry.parsers(flag, release.version):
            yield _unregistered(flag, name, found, release, is_known=release.version == version)


def _unregistered(flag: str, name: str, found: Parsed, release: Release, *, is_known: bool) -> Finding:
    why = f"carries {flag} {values.shown(name)}, which vLLM {release.version} does not have"
    lived = registry.parser_life(flag, name)
    if lived and lived[0] > release.version:
        why, fix = f"{why} before {lived[0]}", f"pin an image of vLLM {lived[0]} or later"
    elif lived:
        why, fix = (
            f"{why} since {lived[1]}",
            f"leave it out, or pin an image of an earlier vLLM than {lived[1]}",
        )
    else:
        import difflib  # noqa: PLC0415  for what is wrong alone

        near = difflib.get_close_matches(name, sorted(registry.parsers(flag, release.version)), 3)
        named = f"use {' or '.join(near)}" if near else "see `vllm serve --help` of the image for the names"
        fix = f"{named}, or give a parser of your own by {PLUGINS[flag]}"
    if not _is_used(flag, found, release):
        fix = f"{fix}; nothing uses it now"
    return Finding(flag, why, fix, is_warning=not is_known or not _is_used(flag, found, release))


def _is_used(flag: str, found: Parsed, release: Release) -> bool:
    """Whether vLLM looks the parser up when it starts (`validate_api_server_args`)."""
    if flag == "--tool-call-parser":
        return found.values.get("--enable-auto-tool-choice") is True
    return release.version >= (0, 8, 5) or found.values.get("--enable-reasoning") is True


def _not_set_here(argument: Argument, found: Parsed) -> Finding | None:
    flag, written = argument.flag, argument.written
    owner, why = OWNED.get(flag), FIXED.get(flag)
    if owner is None and why is None:
        return None
    fix = f"set {owner} instead" if owner else f"leave it out: {why}"
    short = next((each for each in found.findings if each.flag == flag and each.is_abbreviation), None)
    if short:
        return Finding(flag, short.problem, fix)
    if owner and "secrets" in owner:
        return Finding(flag, f"carries {written}, a secret in an argument is readable by every process", fix)
    return Finding(flag, f"carries {written}, which is not set here", fix)


def render(args: Mapping[str, Any], version: VllmVersion | None) -> tuple[list[str], list[Finding]]:
    """The words for a mapping in the spelling of vLLM's own configuration file, and what is wrong with it."""
    return mapping.rendered(args, releases.release(version))


def doubt(version: VllmVersion | None) -> str | None:
    """Why it is not known which flags a release has, and what is assumed; None where it is known."""
    found = releases.release(version)
    if found.exact:
        return None
    if version is None:
        return f"its flags as those of vLLM {found.version}, the newest that is known"
    where = "newer" if version > found.version else "older"
    return (
        f"vLLM {version} is {where} than all whose flags are known; they are judged as vLLM {found.version}'s"
    )


def paths(given: Sequence[str], version: VllmVersion | None = None) -> Iterator[tuple[str, str]]:
    """The absolute and home paths, and those from `./`, that flags name, each with its flag as written.

    A dotted key (`--speculative-config.model /x`) belongs to its flag, and so does what JSON holds.
    """
    for each in parse(given, version).arguments:
        if each.value is None or each.flag not in PATHS:
            continue
        if each.flag == "--chat-template" and re.search(r"[{}\n]", each.value):
            continue  # the template itself, as vLLM takes it
        for text in _texts(each.value):
            if re.match(r"[/~]|\.\.?/", text):
                yield each.written, text


def adapters(found: Parsed) -> tuple[str, ...]:
    """The names of the LoRA adapters of `--lora-modules`, each served as a model of its own."""
    return tuple(name for name, _ in values.adapters(found.values.get("--lora-modules")) if name)


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
