"""A stack's file, `Pulumi.<stack>.yaml`, read without an engine: what is encrypted in it stays unknown."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fleet.settings import own_name
from fleet.settings.problems import Problem, dotted, how_to_encrypt, printable
from fleet.settings.stand_ins import SECRETS, UNKNOWN

KEYS = ("config", "encryptedkey", "encryptionsalt", "environment", "secretsprovider")
"""What Pulumi reads in such a file."""
REFERENCE = re.compile(r"stack:(?P<stack>[\w.-]+/[\w.-]+/[\w.-]+)#(?P<output>\w+)")
"""Stands for an output of another stack."""

LARGEST_BYTES = 1_000_000
MOST_VALUES = 50_000
"""Aliases of YAML can make a short file into more values than fit into memory."""
DEEPEST = 60


class StackFileError(ValueError):
    """The file is no stack's at all. `problem` says what it is instead."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}; {fix}")
        self.problem = Problem("file", problem, fix)


@dataclass
class StackFile:
    """What a stack's file says."""

    stack: str
    """Name of the stack, by that of the file."""
    values: dict[str, Any] = field(default_factory=dict)
    """Configuration of this project by its keys, without the project's name before them."""
    unknown: set[str] = field(default_factory=set)
    """Paths of values that are there and not known here: encrypted, or another stack's."""
    problems: list[Problem] = field(default_factory=list)
    """What is wrong with the file itself."""


def read(path: Path) -> StackFile:
    """Read a stack's file. Raises StackFileError where it cannot be read as one."""
    file = StackFile(re.sub(r"^Pulumi\.|\.ya?ml$", "", path.name))
    document = _document(path, file.problems)
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise StackFileError("is not a set of keys", "begin it with config: and the settings below it")
    for key in document:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            fix = f"did you mean {near[0]}?" if near else "remove it, or put it under config"
            file.problems.append(Problem(_name(key), "is not a key of a stack's file", fix))
    config = document.get("config")
    if config is not None and not isinstance(config, dict):
        file.problems.append(Problem("config", "is not a set of keys", "write it as key: value lines"))
        config = {}
    _take(config or {}, file)
    return file


def _take(config: Mapping[Any, Any], file: StackFile) -> None:
    counter = iter(range(MOST_VALUES))
    for key, value in config.items():
        name = own_name(key) if isinstance(key, str) else None
        if not isinstance(key, str) or not re.fullmatch(r"[^:]*(:config)?(:[^:]*)?", key):
            file.problems.append(
                Problem(_name(key), "is not a configuration key", "write it as vllm-fleet:name")
            )
        elif name in file.values:
            file.problems.append(Problem(_name(key), "is there twice", "keep one"))
        elif name is not None and value is not None:
            file.values[name] = _known(_structured(value), (name,), file, counter)
    secrets = file.values.get("secrets")
    for key in secrets if isinstance(secrets, dict) else ():
        where = f"secrets.{key}"
        if key != "delivery" and not {"secrets", where} & file.unknown:
            file.problems.append(Problem(where, "is not encrypted", how_to_encrypt(str(key))))


def _name(key: Any) -> str:
    return printable(key) if str(key).strip() else repr(key)


def _structured(value: Any) -> Any:
    """Text that is JSON counts as what it says, as for the program."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _known(value: Any, place: tuple[int | str, ...], file: StackFile, counter: Iterator[int]) -> Any:
    """The value, with a stand-in for each part of it that is not known here."""
    if next(counter, None) is None or len(place) > DEEPEST:
        raise StackFileError("holds more values than a configuration has", "write it without aliases of YAML")
    if isinstance(value, Mapping):
        if value.keys() == {"secure"} and isinstance(value["secure"], str):
            file.unknown.add(dotted(place))
            return _stand_in(place)
        return {key: _known(entry, (*place, str(key)), file, counter) for key, entry in value.items()}
    if isinstance(value, list):
        return [_known(entry, (*place, index), file, counter) for index, entry in enumerate(value)]
    if isinstance(value, str) and REFERENCE.fullmatch(value):
        file.unknown.add(dotted(place))
        return _stand_in(place)
    return value


def _stand_in(place: tuple[int | str, ...]) -> Any:
    if place[0] != "secrets":
        return UNKNOWN
    return SECRETS.get(str(place[-1]), UNKNOWN) if len(place) > 1 else {"api_key": SECRETS["api_key"]}


# --- YAML ---------------------------------------------------------------------------------------------------


def _document(path: Path, problems: list[Problem]) -> Any:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StackFileError(f"cannot be read ({reason})", "name a stack's file") from None
    if len(data) > LARGEST_BYTES:
        raise StackFileError(f"has {len(data)} bytes", "name a stack's file, such as Pulumi.prod.yaml")
    try:
        text = data.decode("utf-8-sig")
        _refuse_depths(text)
        loader = _Loader(text)
        document = loader.get_single_data()
    except StackFileError:
        raise
    except UnicodeDecodeError:
        raise StackFileError("is not text in UTF-8", "save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise StackFileError(f"is not YAML ({_words(error)})", "correct that line") from None
    except (RecursionError, ValueError, OverflowError, TypeError) as error:
        # The constructors of YAML's own types: numbers of thousands of digits, days that are none.
        raise StackFileError(
            f"has a value that nothing can read ({type(error).__name__})", "write it as text, in quotes"
        ) from None
    problems += loader.repeated
    return document


def _refuse_depths(text: str) -> None:
    """The composer works by recursion in C, and would end the process rather than raise."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise StackFileError("is nested far too deep", "write it as docs/stack.schema.json has it")


def _words(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    what = printable(getattr(error, "problem", None) or str(error).splitlines()[0])
    return f"line {mark.line + 1}: {what}" if mark else what


class _Loader(yaml.CSafeLoader):
    """Notes keys that are there twice, which Pulumi refuses; days stay the text that they are."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[Problem] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    line = key.start_mark.line + 1
                    self.repeated.append(
                        Problem(_name(key.value), f"is there twice, again in line {line}", "keep one")
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_day(self, node: yaml.ScalarNode) -> str:
        return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_day)
