"""Reads a list of arguments as vLLM's own parser does: `FlexibleArgumentParser`, on argparse.

It turns `_` into `-` in a flag's name, takes `--flag=value`, any beginning of a flag that is not ambiguous,
and short forms with their value attached (`-qawq`). `--speculative-config.method ngram` sets a key of a JSON
value, `--speculative-config.layers+ 1,2` adds to a list in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fleet.engine import history, releases, values
from fleet.engine.releases import Option, Release

_NUMBER = re.compile(r"-\d+|-\d*\.\d+")


class Finding(NamedTuple):
    """Something wrong with one flag. `str` is a sentence: what is wrong, and after a semicolon the fix."""

    flag: str
    """Its long name; as it was written, of one that is unknown."""
    problem: str
    fix: str
    is_warning: bool = False
    """Whether vLLM takes it all the same, or it is not known whether this release does."""
    is_abbreviation: bool = False
    """Whether it is only that the flag is not written in full."""

    def __str__(self) -> str:
        return f"{self.problem}; {self.fix}"


class Argument(NamedTuple):
    """One flag of a list of arguments."""

    flag: str
    """Its long name with hyphens, whatever way it was written."""
    value: str | None
    """As written, several with blanks between; None for a flag without one."""
    written: str
    """The flag as it was written, without its value."""
    keys: tuple[str, ...] = ()
    """`--flag.a.b` sets this part of its value."""
    typed: Any = None
    """The value as vLLM reads it; None where it cannot, and for a dotted key."""
    on: bool = True
    """False for `--no-…`."""

    @property
    def name(self) -> str:
        """The long name with what belongs to it: `--flag.key`, `--no-flag`."""
        name = self.flag if self.on else f"--no-{self.flag[2:]}"
        return ".".join((name, *self.keys))


class Parsed(NamedTuple):
    """What a list of arguments says."""

    arguments: tuple[Argument, ...]
    findings: tuple[Finding, ...]
    values: Mapping[str, Any]
    """Long name → value as vLLM reads it, the last of those that are given; of a switch True or False."""


def parse(words: Sequence[str], release: Release) -> Parsed:
    """What the words say to that release, and what is wrong with them."""
    return _Reader(release).read(words)


class _Flag(NamedTuple):
    """A word that is a flag, as it was written, and what it is."""

    written: str
    option: Option | None
    on: bool = True
    attached: str | None = None
    """The value in the same word."""
    keys: tuple[str, ...] = ()
    meant: tuple[str, ...] = ()
    """The flags that an abbreviation stands for."""
    adds: bool = False
    """`--flag.key+`: whether the value is the elements of a list."""


class _Reader:
    def __init__(self, release: Release) -> None:
        self.release = release
        self.arguments: list[Argument] = []
        self.findings: list[Finding] = []
        self.values: dict[str, Any] = {}
        self.nested: dict[tuple[str, str], dict[str, Any]] = {}
        self.seen: set[tuple[str, tuple[str, ...]]] = set()

    def read(self, words: Sequence[str]) -> Parsed:
        index = 0
        while index < len(words):
            word = words[index]
            index += 1
            if not self._is_flag(word):
                why = f"has the word {values.shown(word)}, which belongs to no flag"
                self._found(word, why, "write the flag before its value, or leave the word out")
                continue
            if word == "--":
                self._found(word, "has the word --, after which vLLM reads no flags", "leave it out")
                continue
            flag = self._flag(word)
            # What has a dot takes the next word, whatever it looks like.
            end = index + 1 if flag.keys and flag.attached is None else index
            while not flag.keys and end < len(words) and not self._is_flag(words[end]):
                end += 1
            index += self._take(flag, list(words[index:end]))
        self.values |= {flag: value for (flag, _), value in self.nested.items()}
        return Parsed(tuple(self.arguments), tuple(self.findings), self.values)

    # --- which flag it is -------------------------------------------------------------------------------

    def _is_flag(self, word: str) -> bool:
        """Whether vLLM takes the word for a flag: where it knows dotted keys, -0.5 is one."""
        dotted = "dotted" in self.release.features and word[:1] == "-" and "." in word.partition("=")[0]
        return is_flag(word) or dotted

    def _flag(self, word: str) -> _Flag:
        written, separator, attached = word.partition("=")
        if re.search(r"\s", written):
            written = written.split()[0]
            why = f"has {written} and its value in one word"
            self._found(written, why, "write them as two words, or with = between")
        name, dot, keys = written.partition(".")
        adds = dot != "" and keys.endswith("+") and "lists" in self.release.features
        if dot and "dotted" not in self.release.features:
            name, dot, keys = written, "", ""
        name = _hyphened(name)
        if name.startswith("-O") and not dot and "--optimization-level" in self.release.options:
            option = self.release.options["--optimization-level"]
            return _Flag("-O", option, attached=attached if separator else name[2:] or None)
        return self._resolved(
            name,
            written,
            attached if separator else None,
            tuple(keys.rstrip("+").split(".")) if dot else (),
            adds,
        )

    def _resolved(
        self, name: str, written: str, attached: str | None, keys: tuple[str, ...], adds: bool
    ) -> _Flag:
        spellings = self.release.spellings
        if name in spellings:
            option, on = spellings[name]
            return _Flag(written, option, on, attached, keys, adds=adds)
        begun = [each for each in spellings if each.startswith(name)]
        # A short form of one letter takes its value attached.
        short = name[:2] if attached is None and not name.startswith("--") and name[:2] in spellings else None
        if short:
            option, on = spellings[short]
            return _Flag(short, option, on, written[2:], keys, adds=adds)
        if len(begun) == 1:
            option, on = spellings[begun[0]]
            return _Flag(written, option, on, attached, keys, (begun[0],), adds)
        return _Flag(written, None, True, attached, keys, tuple(begun), adds)

    # --- its value --------------------------------------------------------------------------------------

    def _take(self, flag: _Flag, following: list[str]) -> int:
        """Take in a flag with the words after it that are no flags; returns how many are its own."""
        option = flag.option
        if option is None:
            self._unknown(flag)
            own = following if flag.attached is None else [flag.attached]
            name = _hyphened(flag.written.partition(".")[0])
            self.arguments.append(Argument(name, " ".join(own) or None, flag.written, flag.keys))
            return len(following) if flag.attached is None else 0
        self._odd(flag, option)
        self.seen.add((option.flag, flag.keys))
        if flag.keys:
            return self._take_key(flag, option, following)
        given = following[: _most(option)] if flag.attached is None else [flag.attached]
        typed = self._typed(flag, option, given)
        value = " ".join(given) if given else None
        self.arguments.append(Argument(option.flag, value, flag.written, typed=typed, on=flag.on))
        if typed is not None:
            before = self.values.get(option.flag, [])
            self.values[option.flag] = [*before, typed] if option.repeats else typed
        return len(given) if flag.attached is None else 0

    def _take_key(self, flag: _Flag, option: Option, following: list[str]) -> int:
        name, written = option.flag, flag.written
        text = flag.attached if flag.attached is not None else _as_word(following[0]) if following else None
        self.arguments.append(Argument(name, text, written, flag.keys))
        if "" in flag.keys:
            self._found(name, f"carries {written}, which has an empty key", "write a name after each dot")
        elif text is None:
            self._found(name, f"carries {written} without a value", f"give it one, as in {written} VALUE")
        elif "json" not in option.type:
            self._found(name, f"carries {written}, but {name} has no keys", "leave the key out")
        else:
            value: Any = text.split(",") if flag.adds else values.of_key(text)
            # Each spelling makes a value of its own.
            base = _hyphened(written.partition(".")[0])
            self._merge(self.nested.setdefault((name, base), {}), flag.keys, value)
        return 0 if flag.attached is not None or text is None else 1

    @staticmethod
    def _merge(into: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
        *way, last = keys
        for key in way:
            below = into.get(key)
            into[key] = below if isinstance(below, dict) else {}
            into = into[key]
        before = into.get(last)
        into[last] = [*before, *value] if isinstance(before, list) and isinstance(value, list) else value

    def _typed(self, flag: _Flag, option: Option, given: list[str]) -> Any:
        """The value as vLLM reads it, or None and what is wrong with it."""
        name = option.flag
        if option.takes == "none":
            if flag.attached is not None:
                why = f"carries {flag.written} with a value, which it does not take"
                other = _opposite(option) if flag.on else name
                self._found(name, why, "leave the value out" + (f", or write {other}" if other else ""))
            return flag.on
        needed = option.takes if isinstance(option.takes, int) else int(option.takes in ("one", "some"))
        if len(given) < needed:
            many = f"{needed} values" if needed > 1 else "a value"
            self._found(name, f"carries {flag.written} without {many}", f"give it {many}, as in {name} VALUE")
            return None
        read: list[Any] = []
        for text in given:
            try:
                read.append(values.converted(text, option))
            except ValueError as error:
                why = f"carries {flag.written} {values.shown(text)}, {error}"
                self._found(name, why, values.advice(option), unsure=True)
                return None
        if option.takes in ("one", "maybe"):
            return read[0] if read else True
        return read

    # --- what is wrong ----------------------------------------------------------------------------------

    def _odd(self, flag: _Flag, option: Option) -> None:
        """What can be said of a flag whatever its value."""
        name, written = option.flag, flag.written
        if flag.meant:
            meant = flag.meant[0] if flag.meant[0].startswith("--") else name
            why = f"carries {written}, which vLLM {self.release.version} reads as {meant}"
            fix = f"write {meant}: in another release the beginning may be ambiguous"
            self.findings.append(Finding(name, why, fix, is_warning=True, is_abbreviation=True))
        if option.deprecated:
            since = releases.deprecated_since(name, self.release.version)
            why = f"carries {written}, which is deprecated since vLLM {since}"
            self._found(name, why, history.way_out(name), warning=True)
        if (name, flag.keys) in self.seen and not option.repeats and not flag.adds:
            why = f"carries {'.'.join((name, *flag.keys))} twice, of which only the last counts"
            self._found(name, why, "leave one out")
        elif any(each == name and bool(keys) != bool(flag.keys) for each, keys in self.seen):
            why = f"carries {name} as JSON and by keys, of which only the keys count"
            self._found(name, why, "write all of it in one way")
        elif flag.keys and any(
            each == name and base != _hyphened(written.partition(".")[0]) for each, base in self.nested
        ):
            why = f"carries keys of {name} by two names of it, of which only one counts"
            self._found(name, why, "write one name")

    def _unknown(self, flag: _Flag) -> None:
        written, version = flag.written, self.release.version
        if _NUMBER.fullmatch(written):
            why = f"carries {written} as a word, which vLLM {version} takes for a flag with a key"
            self._found(written, why, f"write it after its flag and =, as in --flag={written}")
            return
        if len(flag.meant) > 1:
            few = ", ".join(sorted(flag.meant)[:4]) + (", …" if len(flag.meant) > 4 else "")
            self._found(written, f"carries {written}, which is ambiguous", f"write the whole name: {few}")
            return
        name = _hyphened(written.partition(".")[0])
        positive = name if releases.life(name) else re.sub("^--no-", "--", name)
        if lived := releases.life(positive):
            self._found(written, *history.elsewhere(positive, lived, version), unsure=True)
            return
        import difflib  # noqa: PLC0415  for what is wrong alone

        near = difflib.get_close_matches(
            name, [each for each in self.release.spellings if each[:2] == "--"], 1
        )
        fix = f"did you mean {near[0]}?" if near else "leave it out, or see `vllm serve --help` of the image"
        self._found(written, f"carries {written}, which vLLM {version} does not have", fix, unsure=True)

    def _found(
        self, flag: str, problem: str, fix: str, *, warning: bool = False, unsure: bool = False
    ) -> None:
        """`unsure` is what another release than the one that is known here may see otherwise."""
        is_warning = warning or (unsure and not self.release.exact)
        self.findings.append(Finding(flag, problem, fix, is_warning))


def is_flag(word: str) -> bool:
    """Whether argparse takes the word for a flag: a negative number is a value."""
    return len(word) > 1 and word[0] == "-" and not _NUMBER.fullmatch(word)


def _opposite(option: Option) -> str:
    return f"--no-{option.flag[2:]}" if option.pair else ""


def _hyphened(name: str) -> str:
    return f"--{name[2:].replace('_', '-')}" if name.startswith("--") else name


def _as_word(text: str) -> str:
    """A value after a dotted key: vLLM turns hyphens in it as in a flag, before it knows that it is none."""
    name, separator, value = text.partition("=")
    head, dot, keys = name.partition(".")
    return f"{_hyphened(head)}{dot}{keys}{separator}{value}"


def _most(option: Option) -> int | None:
    """How many values it takes; None for as many as there are."""
    if isinstance(option.takes, int):
        return option.takes
    return {"none": 0, "one": 1, "maybe": 1}.get(option.takes)
