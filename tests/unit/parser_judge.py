"""A parser built on argparse as the judge of how `fleet.engine.words` reads a list of words.

The judge is a parameter: argparse itself, which vLLM's parser is made of, or vLLM's own class where it can be
had, filled with a release's options by `filled`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

from fleet.engine.releases import Release
from fleet.engine.words import Argument, Parsed, parse

Reads = Callable[[Sequence[str]], argparse.Namespace]
"""How a judge reads words. Raises argparse.ArgumentError or SystemExit for what it refuses."""
AnyParser = TypeVar("AnyParser", bound=argparse.ArgumentParser)

VALUES = st.sampled_from(
    ["1", "-1", "-0.5", "x", "auto", "None", "{}", '{"a": 1}', "fp8", "mp", "", "-", "a b"]
)
DOUBTFUL = (
    "last counts",
    "keys count",
    "one counts",
    " reads as ",
    "which is deprecated since",
    ", which is not ",
)
"""Parts of what is said of words that the judge takes all the same."""


def filled(parser: AnyParser, release: Release) -> AnyParser:
    """The parser with the release's options, each read as text."""
    counts = {"some": "+", "any": "*", "maybe": "?", "one": None}
    for option in release.options.values():
        keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": option.flag}
        if option.takes == "none" and option.pair:
            keywords["action"] = argparse.BooleanOptionalAction
        elif option.takes == "none":
            keywords["action"] = "store_true"
        else:
            count = option.takes if isinstance(option.takes, int) else counts[option.takes]
            keywords |= {"nargs": count, "action": "append" if option.repeats else "store"}
        parser.add_argument(option.flag, *option.also, **keywords)
    return parser


def hyphened(word: str) -> str:
    """`--a_b=c_d` → `--a-b=c_d`, which argparse leaves to its caller."""
    name, separator, value = word.partition("=")
    return (name.replace("_", "-") if name.startswith("--") else name) + separator + value


def word_lists(release: Release) -> st.SearchStrategy[list[str]]:
    """Lists of flags, in full and cut anywhere, and values, some of them in the wrong place."""
    names = st.sampled_from(
        [name for name in sorted(release.spellings) if name not in ("-h", "--help", "-O")]
    )
    cut = names.flatmap(lambda name: st.integers(3, max(3, len(name))).map(lambda end: name[:end]))
    flags = st.one_of(
        names,
        cut,
        names.map(lambda name: name[:2] + name[2:].replace("-", "_")),
        st.tuples(st.one_of(names, cut), VALUES).map("=".join),
        st.just("--no-such-flag"),
    )
    # vLLM's parser opens the file that --config names; nobody sets it here.
    return st.lists(st.one_of(flags, VALUES), max_size=6).filter(lambda words: "--config" not in words)


def is_dotted(words: Sequence[str]) -> bool:
    """Whether a word may be a dotted key, which argparse itself does not know."""
    return any("." in word.partition("=")[0] for word in words if word[:1] == "-")


def assert_same_reading(words: Sequence[str], release: Release, reads: Reads) -> None:
    """What the judge takes is taken with the same flags and values, and what it refuses is refused."""
    found = parse(words, release)
    refused = [each for each in found.findings if not any(part in each.problem for part in DOUBTFUL)]
    try:
        read = vars(reads(words))
    except (argparse.ArgumentError, SystemExit):
        assert refused, "the judge refuses it"
        return
    assert not refused, "the judge takes it"
    for flag, value in read.items():
        _assert_same_value(value, [each for each in found.arguments if each.flag == flag], found, release)
    assert {each.flag for each in found.arguments} == read.keys()


def _assert_same_value(value: Any, mine: Sequence[Argument], found: Parsed, release: Release) -> None:
    last = mine[-1]
    if any(each.keys for each in mine):
        assert found.values[last.flag] == json.loads(value)
    elif isinstance(value, bool):
        assert last.on is value
    elif release.options[last.flag].repeats:
        assert [each.value for each in mine] == value
    elif value is not None:
        assert last.value == (value if isinstance(value, str) else " ".join(value))
