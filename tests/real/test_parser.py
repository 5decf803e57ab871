"""`fleet.engine` and its data, judged by vLLM's own parser."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from vllm_node import Judge

from fleet.engine import releases
from fleet.engine.releases import Option
from fleet.engine.words import Argument, parse
from fleet.fit.versions import VllmVersion
from tools.vllm_cpu import VERSION

RELEASE = releases.release(VllmVersion.parse(VERSION))
TYPES = {
    "human_readable_int": "size",
    "human_readable_int_or_auto": "size_or_auto",
    "loads": "json",
    "parse_dataclass": "json",
    "union_dict_and_str": "json_or_text",
    "int": "int",
    "float": "float",
}
COUNTS = {"+": "some", "*": "any", "?": "maybe", None: "one", 0: "none"}
DIFFERENT = {
    "--quantization": "choices",  # any name is taken, and the engine refuses those it does not know
    "--disable-cascade-attn": "deprecated",  # by its documentation
    "--log-config-file": "deprecated",  # by the action that it has
    "--mm-processor-device": "choices",  # which GPUs add to
}
"""Where the data says something else than the parser does, and what."""


def as_read(described: dict[str, Any]) -> dict[str, Any]:
    """An option of vLLM's parser in the words of our data."""
    reader = described["type"] or ""
    long = [name for name in described["names"] if name.startswith("--")]
    pair = described["action"] == "BooleanOptionalAction"
    others = {name for name in described["names"] if name != long[0]}
    return {
        "flag": long[0],
        "also": {name for name in others if not (pair and name.startswith("--no-"))},
        "takes": COUNTS.get(described["nargs"], described["nargs"]),
        "type": _type(described),
        "optional": reader.startswith("optional "),
        "choices": set(described["choices"] or ()) - {None},
        "pair": pair,
        "repeats": described["action"] == "_AppendAction",
        "deprecated": described["deprecated"],
    }


def _type(described: dict[str, Any]) -> str:
    if described["action"] == "LoRAParserAction":
        return "adapter"
    reader = (described["type"] or "").removeprefix("optional ")
    return "lowered" if reader == "<lambda>" and described["choices"] else TYPES.get(reader, "text")


def test_every_option_is_as_the_data_says(judge: Judge) -> None:
    theirs = {read["flag"]: read for read in map(as_read, judge.options)}
    assert theirs.keys() == RELEASE.options.keys()
    differences = {
        (flag, key): (ours[key], read[key])
        for flag, read in theirs.items()
        for ours in [_ours(RELEASE.options[flag])]
        for key in read
        if ours[key] != read[key] and DIFFERENT.get(flag) != key
    }
    assert differences == {}


def _ours(option: Option) -> dict[str, Any]:
    return {**option._asdict(), "also": set(option.also), "choices": set(option.choices)}


def _values(option: Option) -> st.SearchStrategy[str]:
    """Values of an option: good ones, and some that are not."""
    good = {
        "int": st.integers(-3, 99).map(str),
        "float": st.floats(0, 2).map(str),
        "size": st.sampled_from(["8", "8k", "8K", "1.5k", "2M"]),
        "size_or_auto": st.sampled_from(["8", "8k", "auto", "-1"]),
        "json": st.sampled_from(["{}", '{"a": 1}', '{"a": {"b": "c d"}}']),
        "json_or_text": st.sampled_from(["{}", '{"a": 1}', "name"]),
    }.get(option.type, st.sampled_from(option.choices or ("name", "a=b", "/a/b.c", "x y")).map(str))
    return st.one_of(good, good, st.sampled_from(["", "word", "1", "{bad", "None", "-1", "1.5", "8k"]))


@st.composite
def spelled(draw: st.DrawFn) -> list[str]:
    """One flag in one of the ways that it can be written, with values or without."""
    # `--model` is taken out of the words before they are read, help ends the reading; devices differ.
    names = sorted(RELEASE.spellings.keys() - {"--model", "--help", "-h", "--mm-processor-device"})
    name = draw(st.sampled_from(names))
    option = RELEASE.spellings[name][0]
    written = name
    if name.startswith("--"):
        written = name[: draw(st.integers(4, len(name)))] if draw(st.booleans()) else name
        if draw(st.booleans()):
            written = f"--{written[2:].replace('-', '_')}"
    if "json" in option.type and name.startswith("--") and draw(st.booleans()):
        written = f"{name}.{draw(st.sampled_from(['a', 'a.b', 'a-b', 'list+']))}"
    values = draw(st.lists(_values(option), max_size=2))
    if values and draw(st.booleans()):
        return [f"{written}={values[0]}", *values[1:]]
    return [written, *values]


@settings(max_examples=3000, suppress_health_check=list(HealthCheck))
@given(words=st.lists(spelled(), min_size=1, max_size=2).map(lambda each: [*chain(*each)]))
def test_every_spelling_is_read_as_the_same_flag(judge: Judge, words: list[str]) -> None:
    """What it takes is taken, as the same flags with the same values; what it refuses is found fault with."""
    assume(not any(word.partition("=")[0] in ("--model", "--config", "--help") for word in words))
    theirs, ours = judge(words), parse(words, RELEASE)
    blame = [each for each in ours.findings if not (each.is_warning or each.is_abbreviation)]
    if "error" in theirs:
        assert blame or _goes_on(theirs["error"])
        return
    flags = {_destination(judge, each) for each in ours.arguments}
    assert flags == theirs["values"].keys()
    assert {
        flag: (value, read)
        for flag, value in ours.values.items()
        if (read := theirs["values"][judge.names[flag]]) != value and type(read) is type(value)
    } == {}


def _destination(judge: Judge, argument: Argument) -> str | None:
    return judge.names.get(argument.flag)


def _goes_on(error: str) -> bool:
    """Whether the parser has stopped at something that only the configuration's own classes know."""
    return "validation error" in error


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--help=all"]], ids=str)
def test_help_is_help(judge: Judge, words: list[str]) -> None:
    assert "usage: vllm serve" in judge(words)["error"]
