"""vLLM's arguments: what each release takes, how its parser reads a list of words, and what is refused."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import parser_judge
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import settings as trials
from hypothesis import strategies as st
from pydantic import ValidationError

from fleet import compose, vllm_arguments
from fleet.engine import releases
from fleet.engine.mapping import rendered
from fleet.engine.releases import Option, Release
from fleet.engine.words import parse
from fleet.fit.versions import VllmVersion
from fleet.settings import Serving

DATA = Path(__file__).parent.parent / "data" / "vllm_flags_by_release.yaml"
OVERLOOKED = {
    "0.6.6": {"--config"},
    "0.9.0": {"--data-parallel-start-rank", "-dpr"},
    "0.9.1": {"--data-parallel-start-rank", "-dpr", "--api-server-count", "-asc"},
    "0.9.2": {"--data-parallel-start-rank", "-dpr", "--api-server-count", "-asc"},
}
"""Flags that `vllm serve` itself adds there, in single quotes, which that reading did not look for."""

V092, V033 = releases.release(VllmVersion(0, 9, 2)), releases.release(VllmVersion(0, 33))
RELEASES = st.sampled_from(releases.known()).map(releases.release)


# --- which release has which flag -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "expected"), yaml.safe_load(DATA.read_text()).items())
def test_each_release_takes_the_flags_that_another_reading_of_its_wheel_found(
    name: str, expected: list[Any]
) -> None:
    version = VllmVersion.parse(name)
    options = releases.release(version).options.values()
    names = {each for option in options for each in (option.flag, *option.also)}
    names -= {"--help", "-h"} | OVERLOOKED.get(str(version), set())
    assert [len(names), hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:12]] == expected


def test_the_data_is_read_when_it_is_first_asked_for() -> None:
    code = (
        "import fleet.vllm_arguments; from fleet.engine import releases; "
        "assert not releases._data.cache_info().currsize"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_release_that_was_never_read_is_judged_by_the_one_before_it() -> None:
    assert releases.release(VllmVersion(0, 27, 9)).version == VllmVersion(0, 27, 1)
    assert releases.release(VllmVersion(0, 27, 9)).exact
    assert not releases.release(VllmVersion(25, 9)).exact
    assert not releases.release(None).exact
    assert releases.release(None).version == releases.newest()
    assert "older than all" in str(vllm_arguments.doubt(VllmVersion(0, 5)))
    assert "newer than all" in str(vllm_arguments.doubt(VllmVersion(25, 9)))
    assert vllm_arguments.doubt(VllmVersion(0, 33)) is None


# --- how words are read ---------------------------------------------------------------------------------


@st.composite
def spellings(draw: st.DrawFn) -> tuple[Release, Option, str, bool]:
    """A release, one of its options, and a way to write it with a value that fits."""
    release = draw(RELEASES)
    name = draw(st.sampled_from(sorted(release.spellings)))
    option, on = release.spellings[name]
    if name.startswith("--"):
        end = draw(st.integers(3, len(name)))
        begun = name[:end]
        if sum(each.startswith(begun) for each in release.spellings) == 1:
            name = begun
        name = "--" + "".join(draw(st.sampled_from("-_")) if each == "-" else each for each in name[2:])
    return release, option, name, on


def value_for(option: Option) -> str:
    if option.choices:
        return str(option.choices[0])
    return {"json": "{}", "float": "0.5", "text": "x", "lowered": "x"}.get(option.type, "1")


@trials(max_examples=400, deadline=None)
@given(spelling=spellings(), attached=st.booleans())
def test_any_spelling_of_a_flag_is_read_as_that_flag(
    spelling: tuple[Release, Option, str, bool], attached: bool
) -> None:
    release, option, name, on = spelling
    value = value_for(option)
    count = option.takes if isinstance(option.takes, int) else 1
    words = [name] if option.takes == "none" else [name, *[value] * count]
    if attached and len(words) == 2:
        words = [f"{name}={value}"]
    (argument,) = parse(words, release).arguments
    assert (argument.flag, argument.on, argument.written) == (option.flag, on, name)
    if option.takes != "none":
        assert argument.value == " ".join([value] * count)


@cache
def argparse_of(version: VllmVersion) -> argparse.ArgumentParser:
    return parser_judge.filled(
        argparse.ArgumentParser(add_help=False, exit_on_error=False), releases.release(version)
    )


@trials(max_examples=400, deadline=None)
@given(data=st.data())
def test_argparse_finds_the_same_flags_and_values(data: st.DataObject) -> None:
    release = data.draw(st.sampled_from([V092, releases.release(VllmVersion(0, 20, 2))]))
    words = data.draw(parser_judge.word_lists(release))
    assume(not parser_judge.is_dotted(words))

    def reads(words: Sequence[str]) -> argparse.Namespace:
        return argparse_of(release.version).parse_args([parser_judge.hyphened(word) for word in words])

    parser_judge.assert_same_reading(words, release, reads)


@trials(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_beginning_is_read_as_its_flag_and_refused_where_it_has_several(data: st.DataObject) -> None:
    release = data.draw(RELEASES)
    name = data.draw(st.sampled_from([each for each in sorted(release.spellings) if each[:2] == "--"]))
    begun = name[: data.draw(st.integers(3, len(name)))]
    meant = {begun} & release.spellings.keys() or {
        each for each in release.spellings if each.startswith(begun)
    }
    option, _ = release.spellings[name]
    value = [] if option.takes == "none" else [value_for(option)]
    found = parse([begun, *value * (option.takes if isinstance(option.takes, int) else 1)], release)
    if len(meant) > 1:
        assert found.findings[0].problem == f"carries {begun}, which is ambiguous"
        assert not found.findings[0].is_warning
    else:
        option, _ = release.spellings[meant.pop()]
        assert found.arguments[0].flag == option.flag
        said = [each for each in found.findings if each.is_abbreviation]
        assert [each.is_warning for each in said] == ([] if begun in release.spellings else [True])


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--max-num-batched-tokens", "8k"], {"--max-num-batched-tokens": 8000}),
        (["--max-num-batched-tokens=8K"], {"--max-num-batched-tokens": 8192}),
        (["--seed", "-1"], {"--seed": -1}),
        (["--seed", "1", "--seed", "2"], {"--seed": 2}),
        (
            ["--enforce-eager", "--no-enable-prefix-caching"],
            {"--enforce-eager": True, "--enable-prefix-caching": False},
        ),
        (
            ["--speculative-config.method", "ngram", "--speculative_config.n=3"],
            {"--speculative-config": {"method": "ngram", "n": 3}},
        ),
        (
            ["--hf-overrides.a.b", "1", "--hf-overrides.a.c+", "x,y", "--hf-overrides.a.c+=z"],
            {"--hf-overrides": {"a": {"b": 1, "c": ["x", "y", "z"]}}},
        ),
        (
            ["--lora-modules", "a=b", '{"name": "c", "path": "d"}'],
            {"--lora-modules": ["a=b", '{"name": "c", "path": "d"}']},
        ),
        (["--middleware", "a", "--middleware", "b"], {"--middleware": ["a", "b"]}),
        (["-O3"], {"--compilation-config": 3}),
        (["-tp=2", "-pp", "3"], {"--tensor-parallel-size": 2, "--pipeline-parallel-size": 3}),
        (["--revision", "None"], {}),
    ],
)
def test_values_are_those_that_vllm_reads(words: list[str], values: dict[str, Any]) -> None:
    assert parse(words, V092).values == values


def test_what_is_short_in_one_release_is_unknown_or_another_in_the_next() -> None:
    assert parse(["-O3"], V033).values == {"--optimization-level": "3"}
    assert parse(["-sc", "{}"], V033).values == {"--speculative-config": {}}
    assert parse(["-sc", "{}"], V092).findings[0].flag == "-sc"
    assert parse(["--disable-prefix-caching"], V033).values == {"--enable-prefix-caching": False}
    assert parse(["--device-memory-utilization", "0.9"], V033).values == {"--gpu-memory-utilization": 0.9}


# --- what is wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "problem", "fix"),
    [
        (
            ["--max-num-batched-token-s", "1"],
            "which vLLM 0.9.2 does not have",
            "did you mean --max-num-batched-tokens?",
        ),
        (["--no-async-scheduling"], "exists since vLLM 0.10.0, the image has 0.9.2", "pin a newer one"),
        (["--speculative-model", "x"], "is gone since vLLM 0.8.3", "instead: --speculative-config"),
        (
            ["--max-logprobs", "many"],
            "carries --max-logprobs 'many', which is not a whole number",
            "write digits",
        ),
        (["--cpu-offload-gb", "x"], "which is not a number", "0.9"),
        (["--scheduling-policy", "lifo"], "not one of its choices", "use fcfs, priority"),
        (["--max-num-batched-tokens", "1.5K"], "decimals before the binary K", "8k"),
        (["--seed"], "carries --seed without a value", "as in --seed VALUE"),
        (["--seed", "--enforce-eager"], "carries --seed without a value", "as in --seed VALUE"),
        (["--enforce-eager=1"], "with a value, which it does not take", "or write --no-enforce-eager"),
        (["--enforce-eager", "yes"], "has the word 'yes', which belongs to no flag", "leave the word out"),
        (["--speculative-config", "{model: x}"], "which is not JSON", '{"key": "value"}'),
        (["--speculative-config.", "x"], "has an empty key", "after each dot"),
        (["--speculative-config.method"], "without a value", "as in --speculative-config.method VALUE"),
        (["--enforce-eager.x", "1"], "has no keys", "leave the key out"),
        (
            ["--speculative-config", "{}", "--speculative-config.method", "ngram"],
            "as JSON and by keys",
            "in one way",
        ),
        (["--seed", "1", "--seed=2"], "carries --seed twice", "leave one out"),
        (["--model-impl", "auto", "--seed 1"], "has --seed and its value in one word", "as two words"),
        (["--disable-log"], "ambiguous", "--disable-log-requests, --disable-log-stats"),
        (["--cpu-offload-gb=1", "-0.5"], "takes for a flag with a key", "as in --flag=-0.5"),
        (["--", "x"], "after which vLLM reads no flags", "leave it out"),
    ],
)
def test_a_mistake_is_named_with_its_fix(words: list[str], problem: str, fix: str) -> None:
    found = parse(words, V092).findings[0]
    assert problem in found.problem
    assert fix in found.fix
    assert not found.is_warning


def test_a_beginning_of_one_flag_alone_is_a_warning_with_the_whole_name() -> None:
    found = parse(["--enforce"], V092)
    assert found.values == {"--enforce-eager": True}
    assert [str(each) for each in found.findings] == [
        "carries --enforce, which vLLM 0.9.2 reads as --enforce-eager; "
        "write --enforce-eager: in another release the beginning may be ambiguous"
    ]
    assert found.findings[0].is_warning
    # Flags that settings own are refused however they are written.
    assert not next(iter(vllm_arguments.problems(["--quant", "awq"], V092.version))).is_warning


def test_a_deprecated_flag_is_a_warning_with_the_release_that_said_so() -> None:
    (found,) = parse(["--enable-reasoning"], V092).findings
    assert found.is_warning
    assert "deprecated since vLLM 0.9.0" in found.problem
    assert found.fix == "instead: --reasoning-parser alone"


def test_what_only_the_newest_known_release_refuses_is_a_warning_for_a_newer_one() -> None:
    tomorrow = VllmVersion(0, 99)
    kinds = {
        str(each.flag): each.is_warning
        for each in vllm_arguments.problems(
            ["--of-tomorrow", "--seed", "x", "--host", "::", "--enforce"], tomorrow
        )
    }
    assert kinds == {"--of-tomorrow": True, "--seed": True, "--host": False, "--enforce-eager": True}


def test_a_value_that_looks_like_a_secret_is_not_repeated() -> None:
    for words in (["--seed", "hf_abcdefghijkl"], ["hf_abcdefghijkl"], ["--tokenizer hf_abcdefghijkl"]):
        assert "hf_" not in "".join(map(str, parse(words, V092).findings))


# --- arguments as a mapping -----------------------------------------------------------------------------


def serving(**changed: Any) -> Serving:
    return Serving.model_validate(
        {"image": "vllm/vllm-openai:v0.9.2", "model": "Qwen/Qwen3-8B-AWQ", **changed}
    )


def test_a_mapping_comes_after_what_settings_own_and_before_the_words() -> None:
    words = compose.serve_arguments(
        serving(
            args={
                "max_num_batched_tokens": 8192,
                "enable-prefix-caching": True,
                "enforce_eager": False,
                "disable_fastapi_docs": False,
                "speculative_config": {"method": "ngram", "num_speculative_tokens": 3},
                "lora_modules": [{"name": "a", "path": "b/c"}, "d=e/f"],
                "middleware": ["a", "b"],
                "response_role": "-x",
                "cpu_offload_gb": 0.5,
            },
            extra_args=["--seed", "1"],
        )
    )
    assert words[words.index("--gpu-memory-utilization") + 2 :] == [
        *("--max-num-batched-tokens", "8192"),
        "--enable-prefix-caching",
        "--no-enforce-eager",
        # Its switch has no opposite: off is its absence.
        *("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3}'),
        *("--lora-modules", '{"name": "a", "path": "b/c"}', "d=e/f"),
        *("--middleware", "a", "--middleware", "b"),
        "--response-role=-x",
        *("--cpu-offload-gb", "0.5"),
        *("--seed", "1"),
    ]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@trials(max_examples=200, deadline=None)
@given(release=RELEASES, document=st.dictionaries(st.text(min_size=1), JSON, max_size=3))
def test_a_mapping_arrives_as_it_is(release: Release, document: dict[str, Any]) -> None:
    flag = next(name for name in ("--additional-config", "--hf-overrides") if name in release.options)
    words, wrong = rendered({flag[2:].replace("-", "_"): document}, release)
    assert not wrong
    found = parse(words, release)
    assert not found.findings
    assert found.values == {flag: document}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"seed": None}, "has no value for seed; give one or leave it out"),
        ({"lora_modules": []}, "has an empty list for lora-modules"),
        ({"hf_overrides": {"x": float("nan")}}, "that JSON does not have"),
        ({"__import__": 1}, "is no flag's name"),
        ({"seed": [1, 2]}, "carries --seed twice"),
        ({"served_model_name": ["a"]}, "set serving.served_model_name instead"),
        ({"no_such_flag": 1}, "which vLLM 0.9.2 does not have"),
    ],
)
def test_a_mapping_that_says_no_arguments_is_refused(args: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match="args") as refused:
        serving(args=args)
    assert said in str(refused.value)


def test_the_added_arguments_count_wherever_they_are_given() -> None:
    for given_so in ({"args": {"revision": "main"}}, {"extra_args": ["--revision=main"]}):
        assert serving(**given_so).added.values == {"--revision": "main"}
    doubtful = serving(image="vllm/vllm-openai:v0.9.2", args={"enable_reasoning": True})
    assert [setting for setting, _ in doubtful.argument_warnings()] == ["serving.args"]


@pytest.mark.parametrize(
    ("image", "key", "value", "fine"),
    [
        ("v0.27.1", "quantization", "bitsandbytes", True),
        ("v0.28.0", "quantization", "bitsandbytes", False),
        ("v0.99.0", "quantization", "bitsandbytes", True),
        ("v0.9.2", "kv_cache_dtype", "fp8", True),
        ("v0.33.0", "distributed_executor_backend", "mp", True),
    ],
)
def test_a_value_is_one_of_those_that_the_release_takes(image: str, key: str, value: str, fine: bool) -> None:
    given_so = {"image": f"vllm/vllm-openai:{image}", key: value}
    if fine:
        serving(**given_so)
    else:
        with pytest.raises(ValidationError, match=f"{key}: {value} is not one of those that vLLM"):
            serving(**given_so)


def test_every_flag_that_this_project_names_is_one_of_some_release() -> None:
    named = {*vllm_arguments.OWNED, *vllm_arguments.FIXED, *vllm_arguments.PATHS}
    assert [flag for flag in sorted(named) if releases.life(flag) is None] == []


# --- parsers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "args", "said"),
    [
        (
            "v0.9.2",
            {"enable_auto_tool_choice": True, "tool_call_parser": "hermez"},
            "carries --tool-call-parser 'hermez', which vLLM 0.9.2 does not have; "
            "use hermes, or give a parser of your own by --tool-parser-plugin",
        ),
        (
            "v0.9.2",
            {"reasoning_parser": "gemma4"},
            "carries --reasoning-parser 'gemma4', which vLLM 0.9.2 does not have before 0.19.0; "
            "pin an image of vLLM 0.19.0 or later",
        ),
        (
            "v0.33.0",
            {"reasoning_parser": "xyzzy"},
            "does not have; see `vllm serve --help` of the image for the names",
        ),
    ],
)
def test_a_parser_that_the_release_does_not_have_is_refused(
    image: str, args: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        serving(image=f"vllm/vllm-openai:{image}", args=args)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("image", "args"),
    [
        ("v0.9.2", {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}),
        ("v0.33.0", {"reasoning_parser": "gemma4"}),
        ("v0.33.0", {"reasoning_parser": ""}),
        (
            "v0.9.2",
            {"tool_call_parser": "mine", "enable_auto_tool_choice": True, "tool_parser_plugin": "x.py"},
        ),
        ("v0.33.0", {"reasoning_parser": "mine", "reasoning_parser_plugin": "x.py"}),
    ],
)
def test_a_parser_of_the_release_or_of_a_plugin_is_taken(image: str, args: dict[str, Any]) -> None:
    assert not list(serving(image=f"vllm/vllm-openai:{image}", args=args).argument_warnings())


def test_a_plugin_among_the_words_brings_a_parser_among_the_arguments() -> None:
    given_so = {"args": {"reasoning_parser": "mine"}, "extra_args": ["--reasoning-parser-plugin", "x.py"]}
    assert not list(serving(image="vllm/vllm-openai:v0.33.0", **given_so).argument_warnings())


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("v0.33.0", ["--tool-call-parser", "hermez"]),  # nothing uses it
        ("v0.7.3", ["--reasoning-parser", "mine"]),  # without --enable-reasoning
        ("v0.99.0", ["--reasoning-parser", "of_tomorrow"]),  # nobody knows that release
    ],
)
def test_a_parser_that_is_not_certain_to_be_refused_is_a_warning(image: str, words: list[str]) -> None:
    (found,) = [
        each
        for setting, each in serving(image=f"vllm/vllm-openai:{image}", extra_args=words).argument_warnings()
        if setting == "serving.extra_args"
    ]
    assert "does not have" in found.problem


def test_the_data_files_are_what_their_tool_writes() -> None:
    from tools.vllm_flags import PARTS, TARGET, expanded, written

    for name, parts in PARTS.items():
        data = json.loads((TARGET / name).read_text())
        assert written({part: expanded(data, part) for part in parts}) == (TARGET / name).read_text()
