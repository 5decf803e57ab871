"""Secrets in every form that a program gives them, and what is no secret although it looks like one."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
import sys
import urllib.parse
from collections.abc import Callable

import pytest

from fleet import authority, masking
from fleet.diagnosis import quote
from fleet.masking import Mask, names_secret

SECRETS = {
    "letters": "sk-planted-0123456789",
    "odd": "pl4nted/key+with'odd\"$chars\\==0123",
    "umlaut": "plänted-schlüssel-0123",
    "short": "pass",
    "pem": authority.issue("test", "llm.example.com").key,
}


def _base64(text: str, before: str = "", after: str = "") -> str:
    return base64.b64encode(f"{before}{text}{after}".encode()).decode()


def _wrapped(text: str, width: int = 24) -> str:
    encoded = _base64(text)
    return "\n".join(encoded[at : at + width] for at in range(0, len(encoded), width))


FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "within words": lambda text: f"start{text}end",
    "JSON": json.dumps,
    "JSON with umlauts": lambda text: json.dumps(text, ensure_ascii=False),
    "JSON in JSON": lambda text: json.dumps(json.dumps({"a": text})),
    "Python": repr,
    "shell": shlex.quote,
    "compose": lambda text: text.replace("$", "$$"),
    "env file": lambda text: text.replace("\n", "\\n"),
    "lines of Windows": lambda text: text.replace("\n", "\r\n"),
    "URL": lambda text: urllib.parse.quote(text, safe=""),
    "URL's path": urllib.parse.quote,
    "URL in lower case": lambda text: urllib.parse.quote(text, safe="").replace("%2F", "%2f"),
    "form": urllib.parse.quote_plus,
    "hex": lambda text: text.encode().hex(),
    "base64": _base64,
    "base64 after one": lambda text: _base64(text, "x", "\n"),
    "base64 after two": lambda text: _base64(text, "KEY=", "\n"),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "base64 in lines": _wrapped,
}
ENCODED = {form for form in FORMS if form.startswith(("base64", "hex"))}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_masked_in_every_form(name: str, form: str) -> None:
    secret = SECRETS[name]
    if name == "short" and form in ENCODED:
        return  # four characters are looked for as they are
    told = FORMS[form](secret)
    shown = Mask([secret])(f"before {told} after")
    assert shown.startswith("before ") and shown.endswith(" after")
    assert masking.HIDDEN in shown
    # Nothing of it is left that is worth having: only edges which base64 shares with the text around it.
    for at in range(len(told) - 12):
        assert told[at : at + 12] not in shown or form == "within words"


def test_a_secret_that_a_cut_log_begins_or_ends_in_is_masked() -> None:
    mask = Mask([SECRETS["letters"]])
    assert mask("nted-0123456789 and then") == "*** and then"
    assert mask("the key is sk-planted-01") == "the key is ***"
    assert mask("89 and sk-p") == "89 and sk-p"  # two or four characters are any text's


def test_each_line_of_a_private_key_is_masked_wherever_it_turns_up() -> None:
    lines = SECRETS["pem"].splitlines()
    for line in lines[1:-1]:
        assert Mask([SECRETS["pem"]])(f"  {line} |") == "  *** |"


UNKNOWN = [
    "HF_TOKEN=hf_abcdefgh0123",
    "downloading with hf_abcdefghijklmnop",
    "Authorization: Bearer 0123456789abcdef",
    "curl -H 'authorization: basic dXNlcjpwYXNz0123'",
    "VLLM_API_KEY: planted0123",
    '"api_key": ["planted0123"]',
    "api_key='planted0123', port=8000",
    "--api-key planted0123 --port 8000",
    "--api-key=planted0123",
    "AWS_SECRET_ACCESS_KEY=planted0123",
    '{"secretAccessKey": "planted0123"}',
    "PASSWORD: planted0123",
    "https://user:planted0123@proxy.example.com:3128/",
    "socks5://:planted0123@proxy",
    "-----BEGIN PRIVATE KEY-----\nplanted0123\n-----END PRIVATE KEY-----",
    "-----BEGIN OPENSSH PRIVATE KEY-----\nplanted0123",
    "sk-planted01234567",
    "eyJhbGciOiJIUzI1NiJ9.planted0123456.planted0123456",
]
UNKNOWN_VALUES = ("planted0123", "hf_abcdefgh", "0123456789abcdef", "dXNlcjpwYXNz", "planted01234567")
HARMLESS = [
    "TOKENIZERS_PARALLELISM=false",
    "max_tokens=4096, tokenizer_mode=auto",
    "num_tokens: 16384, prompt_tokens: 12",
    "KeyError: 'model_type'",
    "access.ssh_private_key_path: /home/op/.ssh/id_ed25519",
    "SSH host key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7dHqyhm6lYkmKYHZ4PXzGgW2U9YbWPz0m1oBvQe3gK",
    "CUDA out of memory. Tried to allocate 2.00 GiB",
    "GET http://127.0.0.1:8000/v1/models 401",
    "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt AWS_SHARED_CREDENTIALS_FILE=/models/credentials",
    "key: value",
    '{"first_token": 2.5, "use_auth": true, "api_key": null}',
    "the KV cache of each token: 131072 bytes",
    "Missing key(s) in state_dict: lm_head.weight",
]


@pytest.mark.parametrize("text", UNKNOWN)
def test_a_secret_that_nobody_has_told_is_masked_by_its_shape_or_name(text: str) -> None:
    shown = Mask()(text)
    assert not [value for value in UNKNOWN_VALUES if value in shown]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert Mask(["sk-planted-0123456789"])(text) == text


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *(
            (name, True)
            for name in ("api_key", "VLLM_API_KEY", "--api-key", "apiKey", "HF_TOKEN", "DB_PASSWORD")
        ),
        *((name, True) for name in ("api_key", "VLLM_API_KEY", "--api-key", "apiKey", "HF_TOKEN")),
        *((name, True) for name in ("DB_PASSWORD", "AWS_SECRET_ACCESS_KEY", "Authorization", "pwd")),
        *((name, False) for name in ("TOKENIZERS_PARALLELISM", "max_tokens", "--tokenizer", "KEYBOARD")),
        *((name, False) for name in ("host key", "public_key", "HF_TOKEN_PATH", "SSL_KEYFILE", "KeyError")),
    ],
)
def test_a_name_tells_a_secret_by_its_words(name: str, secret: bool) -> None:
    assert names_secret(name) is secret


def test_a_quoted_line_holds_no_secret_in_any_form() -> None:
    key = SECRETS["odd"]
    assert quote(f"got {_base64(key)} and {json.dumps(key)}", [key]) == 'got *** and "***"'


def test_the_secrets_of_a_state_are_those_that_the_engine_marks() -> None:
    def secret(value: object) -> dict[str, str]:
        signature = "1b47061264138c4ac30d75fd1eb44270"
        return {masking._ENVELOPE: signature, "plaintext": json.dumps(value)}

    lines = "PORT='8000'\nVLLM_API_KEY='planted-key'\nHF_TOKEN='hf_planted'\n"
    state = {
        "deployment": {
            "resources": [
                {
                    "inputs": {
                        "environment": {"FLEET_SECRET_ENVIRONMENT": secret(lines)},
                        "open": "seen by all",
                    }
                },
                {"outputs": {"key": secret("-----BEGIN"), "deep": [secret({"password": "planted-too"})]}},
            ]
        }
    }
    assert masking.of_state(state) == {"planted-key", "hf_planted", "-----BEGIN", "planted-too"}


def test_the_secrets_of_a_configuration_are_those_that_it_encrypts() -> None:
    printed = {
        "vllm-fleet:secrets": {"value": "…", "objectValue": {"api_key": "planted-key"}, "secret": True},
        "scaleway:secretKey": {"value": "planted-cloud", "secret": True},
        "vllm-fleet:serving": {"value": "…", "objectValue": {"model": "Qwen/Qwen3-8B-AWQ"}, "secret": False},
    }
    assert masking.of_config(printed) == {"planted-key", "planted-cloud"}


PROGRAM = """
import json, os, sys
from fleet.masking import guarded
def main():
    key = "planted-key-0123"
    sys.stdout.write("one " + key[:9]); sys.stdout.write(key[9:] + " two\\n")
    print(json.dumps({"report": key, "ok": True}))
    sys.stdout.buffer.write(b"bytes " + key.encode() + b" \\xff\\n")
    print("error", key, file=sys.stderr)
    raise RuntimeError(key)
guarded(main)
"""


def test_a_guarded_program_prints_no_secret_even_where_it_breaks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"FLEET_SECRET_ENVIRONMENT": "VLLM_API_KEY='planted-key-0123'\n", "PATH": "/usr/bin"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.splitlines() == [b"one *** two", b'{"report": "***", "ok": true}', b"bytes *** \xff"]
    assert b"planted" not in done.stderr
    assert b"RuntimeError: ***" in done.stderr
