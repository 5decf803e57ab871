"""Keeps secrets out of what is shown, written or posted: the one place that knows how a secret may look.

What comes from a node, an API or a log is not ours: it may hold any secret that the stack knows, in any form
that a program gives it, and others that only their shape or their name tells.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, TextIO
from urllib.parse import quote, quote_plus

HIDDEN = "***"
LEAST = 4
"""Characters of the shortest value that is masked: less would turn up everywhere."""
LEAST_ENCODED = 8
"""The same of one that is looked for in other forms, and of a part left where a text was cut."""
LEAST_LINE = 16
"""The same of a line of a key in PEM."""

_SECRET_WORDS = frozenset(
    {
        *("apikey", "auth", "authorization", "bearer", "cookie", "credential", "credentials", "key", "keys"),
        *(
            "passphrase",
            "passwd",
            "password",
            "passwords",
            "private",
            "pwd",
            "secret",
            "secrets",
            "signature",
        ),
        "token",
    }
)
_PUBLIC_NAMES = re.compile(
    # What splits texts, keys that anybody may have, where something lies or how much there is, KeyError.
    r"tokenizer|(?:^|[\s_.-])(?:public|host|authorized)[\s_.-]?keys?$|error$"
    r"|[_.-](?:path|file|name|dir|url|uri|header|type|ttl|timeout|count|size|length|limit|sock)s?$"
)
"""Names that are made of those words and hold no secret."""
_WORDS_OF_LOGS = frozenset({"auth", "key", "keys", "private", "secrets", "signature", "token"})
"""Names too common in what programs say for the text after them to be taken for a secret."""

_SHAPES = (
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        HIDDEN,
    ),
    (re.compile(r"\bhf_[A-Za-z0-9]{4,}"), HIDDEN),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{12,}"), HIDDEN),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), HIDDEN),
    (re.compile(r"\b((?:bearer|basic) +)[^\s'\",)\]]{6,}", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/@]+@", re.IGNORECASE), rf"\1{HIDDEN}@"),
)
"""Secrets whose value is not known here, by their shape."""
_ASSIGNMENT = re.compile(
    r"""(?P<name>[A-Za-z][\w-]*)"""
    r"""(?P<between>\\?['"]?\s*(?:[:=]|(?<=[-_]key)[ ]|(?<=[-_]token)[ ])\s*\[?\\?['"]*)"""
    # What JSON and Python write without quotes is a switch or a measure.
    r"""(?P<value>(?!(?:true|false|null|none|[\d.]+)\b)[^\s'",)\]}\\]{4,})""",
    re.IGNORECASE,
)
_ENV_LINE = re.compile(r"^[A-Za-z_]\w*=.*$")
_PLAINTEXT, _ENVELOPE = "plaintext", "4dabf18193072939515e22adb298388d"
"""A secret in the engine's state: an object with this signature and its JSON."""


def names_secret(name: str) -> bool:
    """Whether a variable, flag or setting of this name holds a secret, by the words it is made of."""
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()
    return not _PUBLIC_NAMES.search(spaced) and not _SECRET_WORDS.isdisjoint(re.split(r"[^a-z0-9]+", spaced))


class Mask:
    """Replaces secrets in a text: those given, in every form, and what has the shape or the name of one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = sorted({part for secret in secrets for part in _parts(secret)}, key=len, reverse=True)
        patterns = dict.fromkeys(form for secret in self._secrets for form in _forms(secret))
        self._known = re.compile("|".join(patterns)) if patterns else None

    def __call__(self, text: str) -> str:
        """The text without them."""
        if self._known:
            text = self._known.sub(HIDDEN, self._without_cut_ends(text))
        for pattern, replacement in _SHAPES:
            text = pattern.sub(replacement, text)
        return _ASSIGNMENT.sub(_without_value, text)

    def _without_cut_ends(self, text: str) -> str:
        """A log's last bytes may begin within a secret, and a line that was cut may end in one."""
        for secret in self._secrets:
            if text[:LEAST_ENCODED] not in secret and text[-LEAST_ENCODED:] not in secret:
                continue
            for length in range(len(secret) - 1, LEAST_ENCODED - 1, -1):
                if text.startswith(secret[-length:]):
                    text = HIDDEN + text[length:]
                if text.endswith(secret[:length]):
                    text = text[:-length] + HIDDEN
        return text


@lru_cache(maxsize=64)
def mask_of(secrets: tuple[str, ...]) -> Mask:
    """The mask of these secrets, made once."""
    return Mask(secrets)


def _without_value(found: re.Match[str]) -> str:
    name = found["name"]
    plain = name.lower() in _WORDS_OF_LOGS or not names_secret(name)
    return found[0] if plain else f"{name}{found['between']}{HIDDEN}"


def _parts(secret: str) -> Iterator[str]:
    """A secret, and each line of a key in PEM: logs and tables take texts apart."""
    text = secret.strip()
    if len(text) >= LEAST:
        yield text
    if "PRIVATE KEY-----" in text:
        lines = map(str.strip, text.splitlines())
        yield from (line for line in lines if len(line) >= LEAST_LINE and "--" not in line)


def _forms(secret: str) -> Iterator[str]:
    """Patterns of how programs write a text: plain, escaped, quoted, encoded."""
    plain = {secret, secret.replace("\n", "\\n"), secret.replace("\n", "\r\n"), secret.replace("$", "$$")}
    for text in list(plain):
        plain |= {
            json.dumps(text)[1:-1],
            json.dumps(text, ensure_ascii=False)[1:-1],
            json.dumps(json.dumps(text))[3:-3],
            repr(text)[1:-1],
            shlex.quote(text).strip("'"),
        }
    if len(secret) < LEAST_ENCODED:
        yield from map(re.escape, sorted(plain, key=len, reverse=True))
        return
    plain |= {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    yield from map(re.escape, sorted(plain, key=len, reverse=True))
    data = secret.encode()
    for url in (quote(secret, safe=""), data.hex()):
        if url != secret:
            yield f"(?i:{re.escape(url)})"
    yield from _in_base64(data)


def _in_base64(data: bytes) -> Iterator[str]:
    """In base64, of the secret alone and within a longer text, whose lines may be broken."""
    yield re.escape(base64.b64encode(data).decode())
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + data).decode()
        # Characters that neighbours have a part in are left out.
        first, last = -(-before * 8 // 6), (before + len(data)) * 8 // 6
        core = encoded[first:last]
        if len(core) >= LEAST_ENCODED:
            for alphabet in dict.fromkeys((core, core.replace("+", "-").replace("/", "_"))):
                yield r"(?:\\[nr]|\s)*".join(map(re.escape, alphabet))


CLOUD_VARIABLES = (
    *("SCW_SECRET_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "LINODE_TOKEN", "LINODE_CLI_TOKEN"),
    *("HF_TOKEN", "PULUMI_ACCESS_TOKEN"),
)
"""Variables by which tools are given secrets."""


def of_environment(environment: Mapping[str, str]) -> set[str]:
    """The secrets that a process was given in its environment."""
    given = (
        text
        for name, text in environment.items()
        if name in CLOUD_VARIABLES or (name.startswith("FLEET_") and names_secret(name))
    )
    return {value for text in given for value in _values(text)}


def of_config(printed: Mapping[str, Any]) -> set[str]:
    """The secrets of what `pulumi config --json --show-secrets` prints."""
    secret = [entry for entry in printed.values() if entry.get("secret")]
    return {
        value
        for entry in secret
        for text in _texts(entry.get("objectValue", entry.get("value")))
        for value in _values(text)
    }


def of_state(state: Any) -> set[str]:
    """The secrets of what `pulumi stack export --show-secrets` prints."""
    if isinstance(state, list):
        return {secret for entry in state for secret in of_state(entry)}
    if not isinstance(state, dict):
        return set()
    if _ENVELOPE in state and _PLAINTEXT in state:
        return {value for text in _texts(json.loads(state[_PLAINTEXT])) for value in _values(text)}
    return {secret for entry in state.values() for secret in of_state(entry)}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _texts(entry)
    elif isinstance(value, str):
        yield value


def _values(text: str) -> Iterator[str]:
    """A secret text itself, or the values of its lines where it is an `.env`, or of a JSON object."""
    if text.startswith("{"):
        try:
            yield from (value for value in _texts(json.loads(text)) if len(value) >= LEAST_ENCODED)
        except ValueError:
            yield text
        return
    lines = text.splitlines()
    if lines and all(map(_ENV_LINE.match, lines)):
        for line in lines:
            name, _, value = line.partition("=")
            value = value.strip()
            bare = value[1:-1] if value[:1] in {"'", '"'} and value[-1:] == value[:1] else value
            # The others are in the compose file as well: ports and devices.
            if names_secret(name) or len(bare) >= LEAST_LINE:
                yield bare.replace("\\n", "\n") if value[:1] == '"' else bare
    elif len(text.strip()) >= LEAST_ENCODED:
        yield text


class _MaskedOutput(io.BufferedIOBase):
    """Passes on what is written to it, masked line by line."""

    def __init__(self, stream: TextIO, mask: Mask) -> None:
        # The stream itself, too: it closes its buffer when nobody holds it any more.
        self._stream, self._output = stream, stream.buffer
        self._mask, self._held = mask, b""

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._output.isatty()

    def fileno(self) -> int:
        return self._output.fileno()

    def write(self, data: Any, /) -> int:
        lines, newline, self._held = (self._held + bytes(data)).rpartition(b"\n")
        self._pass_on(lines + newline)
        return len(data)

    def flush(self) -> None:
        held, self._held = self._held, b""
        if not self._output.closed:
            self._pass_on(held)
            self._output.flush()

    def _pass_on(self, data: bytes) -> None:
        for line in data.splitlines(keepends=True):
            text = line.decode(errors="surrogateescape")
            self._output.write(self._mask(text).encode(errors="surrogateescape"))


def guard_output(secrets: Iterable[str]) -> None:
    """Mask everything that this process prints from now on."""
    mask = Mask(secrets)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream.flush()
        masked = _MaskedOutput(stream, mask)
        # As before: lines of standard error, and of a terminal, are shown at once.
        setattr(sys, name, io.TextIOWrapper(masked, "utf-8", "backslashreplace", line_buffering=True))


def guarded(main: Callable[[], int]) -> int:
    """Run a program that Pulumi starts; what it prints is masked with the secrets it was given."""
    guard_output(of_environment(os.environ))
    try:
        return main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
