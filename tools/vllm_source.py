"""Reads the arguments of `vllm serve` off vLLM's sources, without importing them.

Up to 0.8.4 every argument is one `add_argument` call. Since then most get their keywords from the fields of
configuration dataclasses (`get_kwargs` in `vllm/engine/arg_utils.py`), so the statements that build the
parser are followed one by one: what a call to `get_kwargs` returns is computed from the fields' annotations
by the rules of that function.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

SOURCES = (
    "vllm/engine/arg_utils.py",
    "vllm/config.py",
    "vllm/config/*.py",
    "vllm/model_executor/layers/quantization/__init__.py",
    "vllm/entrypoints/*cli_args.py",
    "vllm/entrypoints/cli/serve.py",
    "vllm/scripts.py",
    "vllm/utils.py",
    "vllm/utils/__init__.py",
    "vllm/utils/argparse_utils.py",
    "vllm/renderers/chat_utils.py",
    "vllm/tool_parsers/tool_strict_level.py",
    "vllm/entrypoints/anthropic/protocol.py",
)
"""What is read of a wheel: patterns of `fnmatch`, the most telling first."""

LEAST = 100
"""Arguments of any release; fewer mean that they were not found."""

Keywords = dict[str, Any]
"""Of an `add_argument` call: action, nargs, type, optional, choices, deprecated."""
Hint = tuple[str, Any]
"""A part of an annotation: its kind, and what it is made of."""

_BUILTIN = {"str", "int", "float", "bool", "dict", "list", "tuple", "set"}
_TYPES = {
    "int": "int",
    "float": "float",
    "human_readable_int": "size",
    "human_readable_int_or_auto": "size_or_auto",
    "union_dict_and_str": "json_or_text",
    "loads": "json",
}
"""Functions that convert an argument, and how the data names them."""
_DEPRECATED = re.compile(r"\s*\W*deprecated\b|[^.]{0,80}\bis deprecated\b", re.IGNORECASE)


class SourceError(ValueError):
    """Sources that do not say what the arguments are; the message says what is missing."""


def read_arguments(files: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The options of `vllm serve`, by long name, from its source files (path in the wheel → text)."""
    source = _Source(files)
    parser = _Parser(source)
    # argparse's own; it counts where a flag is abbreviated.
    parser.options["--help"] = {"also": ["-h"], "takes": "none"}
    parser.run(source.function("make_arg_parser").body, {})
    for path in ("vllm/scripts.py", "vllm/entrypoints/cli/serve.py"):
        for node in ast.walk(source.trees[path]) if path in source.trees else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "serve_parser.add_argument":
                parser.add(node, {})
    methods = source.values.get("QUANTIZATION_METHODS")
    if len(parser.options) < LEAST or "--quantization" not in parser.options or methods is None:
        raise SourceError(f"only {len(parser.options)} arguments were found; the parser is built another way")
    # The parser takes any name, the engine refuses at its start those that are not among its methods.
    parser.options["--quantization"]["choices"] = sorted(source.listed(methods) or ()) or None
    return dict(sorted(parser.options.items()))


def read_features(files: Mapping[str, str]) -> dict[str, bool]:
    """What the parser itself understands beside argparse: dotted keys, their lists, `--disable-` pairs."""
    text = "\n".join(files[path] for path in files if path.startswith("vllm/utils"))
    found = {
        "dotted": "create_nested_dict" in text,
        "lists": 'endswith("+")' in text,
        "disable": "class EnableDisableAction" in text,
    }
    return {name: True for name, has in found.items() if has}


class _Source:
    """The names that the files define on their first level."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.trees = {path: ast.parse(text) for path, text in files.items()}
        self.values: dict[str, ast.expr] = {}
        self.classes: dict[str, ast.ClassDef] = {}
        self.functions: dict[str, ast.FunctionDef] = {}
        for tree in self.trees.values():
            for node in _statements(tree.body):
                self._define(node)

    def _define(self, node: ast.stmt) -> None:
        if isinstance(node, ast.ClassDef):
            self.classes.setdefault(node.name, node)
        elif isinstance(node, ast.FunctionDef):
            self.functions.setdefault(node.name, node)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and ast.unparse(node.value) not in ("Any", "str"):
                self.values.setdefault(target.id, node.value)

    def function(self, name: str) -> ast.FunctionDef:
        if name not in self.functions:
            raise SourceError(f"no function {name} was found")
        return self.functions[name]

    def method(self, class_name: str, name: str) -> ast.FunctionDef | None:
        """A method of a class, or of the class it is derived from."""
        node = self.classes.get(class_name)
        for statement in node.body if node else ():
            if isinstance(statement, ast.FunctionDef) and statement.name == name:
                return statement
        found = (self.method(base, name) for base in self.bases(class_name))
        return next((each for each in found if each), None)

    def bases(self, class_name: str) -> list[str]:
        node = self.classes.get(class_name)
        bases = (
            [base.value if isinstance(base, ast.Subscript) else base for base in node.bases] if node else []
        )
        return [_last(base) for base in bases]

    def fields(self, class_name: str) -> dict[str, tuple[ast.expr, str]]:
        """The fields of a dataclass: annotation and documentation, those of its bases first."""
        found: dict[str, tuple[ast.expr, str]] = {}
        for base in self.bases(class_name):
            found |= self.fields(base)
        body = self.classes[class_name].body if class_name in self.classes else []
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                said = after.value if isinstance(after, ast.Expr) else None
                text = said.value if isinstance(said, ast.Constant) else ""
                found[node.target.id] = node.annotation, str(text)
        return found

    # --- annotations ------------------------------------------------------------------------------------

    def hints(self, node: ast.expr) -> Iterator[Hint]:
        """The parts of an annotation, as `get_type_hints` of `arg_utils.py` has them."""
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                yield from self.hints(ast.parse(node.value, mode="eval").body)
            else:
                yield "None", None
        elif isinstance(node, ast.BinOp):
            yield from self.hints(node.left)
            yield from self.hints(node.right)
        elif isinstance(node, ast.Subscript):
            yield from self._subscript(node)
        else:
            yield from self._named(_last(node))

    def _named(self, name: str) -> Iterator[Hint]:
        if name in self.values and name not in _BUILTIN:
            yield from self.hints(self.values[name])
        elif name in self.classes:
            decorators = " ".join(ast.unparse(each) for each in self.classes[name].decorator_list)
            is_config = "config" in decorators or "dataclass" in decorators
            yield ("dataclass" if is_config else "dict" if "dict" in self.bases(name) else "other"), name
        else:
            yield (name if name in _BUILTIN else "other"), None

    def _subscript(self, node: ast.Subscript) -> Iterator[Hint]:
        origin, inside = _last(node.value), node.slice
        parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
        if origin == "Optional":
            yield from (*self.hints(inside), ("None", None))
        elif origin == "Union":
            for part in parts:
                yield from self.hints(part)
        elif origin in ("Annotated", "SkipValidation", "ClassVar", "InitVar", "Final"):
            yield from self.hints(parts[0])
        elif origin == "Literal":
            yield "Literal", [value for part in parts for value in self._literals(part)]
        elif origin.lower() in ("list", "tuple", "set", "sequence"):
            yield origin.lower().replace("sequence", "list"), parts
        else:
            yield ("dict" if origin.lower() == "dict" else "other"), None

    def _literals(self, node: ast.expr) -> Iterator[Any]:
        if isinstance(node, ast.Constant):
            yield node.value
        else:
            for kind, values in self.hints(node):
                if kind == "Literal":
                    yield from values

    # --- values -----------------------------------------------------------------------------------------

    def listed(self, node: ast.expr) -> list[Any] | None:
        """The values that an expression lists; None where the source alone does not say."""
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            parts = [
                self.listed(each.value) if isinstance(each, ast.Starred) else _constant(each)
                for each in node.elts
            ]
            return None if None in parts else [value for part in parts if part for value in part]
        if isinstance(node, ast.BinOp):
            left, right = self.listed(node.left), self.listed(node.right)
            return None if left is None or right is None else left + right
        if isinstance(node, ast.Name) and node.id in self.values:
            return self.listed(self.values[node.id])
        if isinstance(node, ast.Call):
            return self._called(node)
        return self._keys_or_members(node) or list(self._literals(node)) or None

    def _keys_or_members(self, node: ast.expr) -> list[Any] | None:
        if isinstance(node, ast.Dict):
            return [key.value for key in node.keys if isinstance(key, ast.Constant)]
        if isinstance(node, ast.ListComp):
            return self._enumerated(_last(node.generators[0].iter))
        return None

    def _called(self, node: ast.Call) -> list[Any] | None:
        name = _last(node.func)
        if name == "get_args":
            return list(self._literals(node.args[0])) or None
        if name in ("list", "sorted", "tuple") and node.args:
            return self.listed(node.args[0])
        return (
            self.listed(node.func.value) if isinstance(node.func, ast.Attribute) and name == "keys" else None
        )

    def _enumerated(self, name: str) -> list[Any] | None:
        body = self.classes[name].body if name in self.classes else []
        values = [each.value for each in body if isinstance(each, ast.Assign)]
        return [each.value for each in values if isinstance(each, ast.Constant)] or None


class _Parser:
    """Follows the statements that build the parser."""

    def __init__(self, source: _Source) -> None:
        self.source = source
        self.options: dict[str, dict[str, Any]] = {}
        functions = source.functions
        found = functions.get("_compute_kwargs") or functions.get("get_kwargs")
        self.rules = ast.unparse(found) if found else ""

    def run(self, body: Iterable[ast.stmt], names: dict[str, Any]) -> None:
        """Follow statements. Both ways of a condition count: which is taken, the command line decides."""
        for node in body:
            if isinstance(node, ast.If):
                self.run([*node.body, *node.orelse], names)
            elif isinstance(node, ast.For):
                self._loop(node, names)
            elif isinstance(node, ast.Assign):
                self._assign(node.targets[0], node.value, names)
            elif isinstance(node, ast.AugAssign):
                self._extend(node.target, node.value, names)
            elif isinstance(node, ast.Delete):
                for target in node.targets:
                    self._delete(target, names)
            elif isinstance(node, ast.Expr | ast.Return) and isinstance(node.value, ast.Call):
                self._call(node.value, names)

    def _loop(self, node: ast.For, names: dict[str, Any]) -> None:
        """`for key, value in kwargs.items()`, where every field becomes an argument, or over a list."""
        call = node.iter
        if isinstance(call, ast.List) and isinstance(node.target, ast.Tuple):
            for each in call.elts:
                values = each.elts if isinstance(each, ast.Tuple) else []
                own = {
                    _last(to): value.value
                    for to, value in zip(node.target.elts, values, strict=False)
                    if isinstance(value, ast.Constant)
                }
                self.run(node.body, names | own)
        if (
            isinstance(call, ast.Call)
            and _last(call.func) == "items"
            and isinstance(call.func, ast.Attribute)
        ):
            fields = self._value(call.func.value, names)
            for name, keywords in fields.items() if isinstance(fields, dict) else ():
                self._register([f"--{name.replace('_', '-')}"], keywords)

    def _assign(self, target: ast.expr, value: ast.expr, names: dict[str, Any]) -> None:
        if isinstance(target, ast.Name):
            found = self._value(value, names)
            if found is not None:
                names[target.id] = found
        elif isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
            keywords = self._value(target.value, names)
            if isinstance(keywords, dict):
                self._set(keywords, str(target.slice.value), value)

    def _extend(self, target: ast.expr, value: ast.expr, names: dict[str, Any]) -> None:
        if isinstance(target, ast.Subscript) and _constant(target.slice) == ["choices"]:
            keywords, more = self._value(target.value, names), self.source.listed(value)
            if isinstance(keywords, dict) and keywords.get("choices"):
                keywords["choices"] = keywords["choices"] + more if more else None

    def _delete(self, target: ast.expr, names: dict[str, Any]) -> None:
        if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
            keywords = self._value(target.value, names)
            if isinstance(keywords, dict):
                keywords.pop(str(target.slice.value), None)

    def _call(self, node: ast.Call, names: dict[str, Any]) -> Any:
        name = _last(node.func)
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        if name == "add_argument":
            self.add(node, names)
        elif name == "get_kwargs":
            return self._fields(names.get("cls", "") if _last(node.args[0]) == "cls" else _last(node.args[0]))
        elif name in ("remove", "pop", "append") and owner is not None and node.args:
            self._change(name, owner, node.args[0], names)
        elif name in ("add_cli_args", "_customize_cli_kwargs") and owner is not None:
            return self._method(name, owner, node, names)
        return None

    def _change(self, how: str, owner: ast.expr, argument: ast.expr, names: dict[str, Any]) -> None:
        values, given = self._value(owner, names), self.source.listed(ast.List([argument])) or []
        if isinstance(values, dict) and how == "pop":
            values.pop(given[0], None) if given else None
        elif isinstance(values, list) and how == "remove":
            # A value that is named by a constant of another file: whichever it is, it is not refused here.
            for value in given or self.source.listed(argument) or []:
                if value in values:
                    values.remove(value)
        elif isinstance(values, list) and how == "append":
            values.extend(given)

    def _method(self, name: str, owner: ast.expr, node: ast.Call, names: dict[str, Any]) -> Any:
        written = ast.unparse(owner)
        within = names.get("cls", "")
        if written == "super()":
            method = next(
                filter(None, (self.source.method(base, name) for base in self.source.bases(names["within"]))),
                None,
            )
            holder = self.source.bases(names["within"])[0] if method else ""
        else:
            holder = within if written == "cls" else written
            method = self.source.method(holder, name)
        if method is None:
            return None
        own = {
            "cls": within if written in ("super()", "cls") else holder,
            "within": self._holder(holder, name),
        }
        parameters = [each.arg for each in method.args.args if each.arg not in ("self", "cls")]
        for parameter, argument in zip(parameters, node.args, strict=False):
            own[parameter] = self._value(argument, names)
        self.run(method.body, own)
        return own.get(parameters[0]) if parameters else None

    def _holder(self, class_name: str, method: str) -> str:
        """The class whose body has the method."""
        node = self.source.classes[class_name]
        if any(isinstance(each, ast.FunctionDef) and each.name == method for each in node.body):
            return class_name
        return next(self._holder(base, method) for base in self.source.bases(class_name))

    def _value(self, node: ast.expr, names: dict[str, Any]) -> Any:
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Call):
            return self._call(node, names)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            holder = self._value(node.value, names)
            return holder.get(node.slice.value) if isinstance(holder, dict) else None
        if isinstance(node, ast.Dict):
            made: Keywords = {}
            for key, value in zip(node.keys, node.values, strict=True):
                if key is None:
                    made |= self._value(value, names) or {}
                elif isinstance(key, ast.Constant):
                    self._set(made, str(key.value), value)
            return made
        return None

    # --- one argument -----------------------------------------------------------------------------------

    def add(self, node: ast.Call, names: dict[str, Any]) -> None:
        """An `add_argument` call."""
        written = [
            each.value if isinstance(each, ast.Constant) else names.get(_last(each)) for each in node.args
        ]
        keywords: Keywords = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                keywords |= self._value(keyword.value, names) or {}
            else:
                self._set(keywords, keyword.arg, keyword.value)
        spellings = [each for each in written if isinstance(each, str) and each.startswith("-")]
        if spellings:
            self._register(spellings, keywords)

    def _set(self, keywords: Keywords, name: str, value: ast.expr) -> None:
        """A keyword as it is written: those that say how a value is read."""
        if name == "type":
            keywords["optional"] = "optional" in ast.unparse(value) or "nullable" in ast.unparse(value)
            keywords["type"] = self._type(value)
        elif name == "action":
            keywords["action"] = str(value.value) if isinstance(value, ast.Constant) else _last(value)
        elif name == "nargs":
            keywords["nargs"] = value.value if isinstance(value, ast.Constant) else None
        elif name == "choices":
            keywords["choices"] = self.source.listed(value)
        elif name == "deprecated":
            keywords["deprecated"] = _constant(value) == [True]
        elif name == "help" and _DEPRECATED.match(self._text(value)):
            keywords["deprecated"] = True

    def _text(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name) and node.id in self.source.values:
            return self._text(self.source.values[node.id])
        return str(node.value) if isinstance(node, ast.Constant) else ""

    def _type(self, node: ast.expr) -> str:
        if isinstance(node, ast.Call) and node.args:
            return self._type(node.args[0])
        if isinstance(node, ast.Lambda):
            return "lowered" if ".lower().replace('-', '_')" in ast.unparse(node) else "text"
        name = _last(node)
        if name == "from_cli" and isinstance(node, ast.Attribute):
            method = self.source.method(_last(node.value), name)
            return "text" if method is None or "eval(" in ast.unparse(method) else "json"
        return _TYPES.get(name, "text")

    def _register(self, spellings: list[str], keywords: Keywords) -> None:
        option = _option(keywords)
        spellings = [*keywords.get("flags", ()), *spellings]
        long = [each for each in spellings if each.startswith("--")]
        if long:
            name = long[0].replace("_", "-")
            others = sorted(each.replace("_", "-") for each in spellings if each != long[0])
            self.options[name] = ({"also": others} if others else {}) | option

    # --- what get_kwargs makes of a dataclass -----------------------------------------------------------

    def _fields(self, class_name: str) -> dict[str, Keywords]:
        found = self.source.fields(class_name)
        return {name: self._keywords(name, *field) for name, field in found.items()}

    def _keywords(self, name: str, annotation: ast.expr, documentation: str) -> Keywords:
        hints = list(self.source.hints(annotation))
        kinds = dict(hints)
        keywords: Keywords = {"deprecated": True} if _DEPRECATED.match(documentation) else {}
        if set(kinds) == {"bool", "str", "None"} and "{bool, str, type(None)}" in self.rules:
            return keywords | {"nargs": "?"}
        if "dataclass" not in kinds and "bool" in kinds:
            pair = "BooleanOptionalAction" in self.rules
            return keywords | {"action": "BooleanOptionalAction" if pair else "store_true"}
        keywords["optional"] = "None" in kinds
        return keywords | self._reading(name, kinds, hints)

    def _reading(self, name: str, kinds: Mapping[str, Any], hints: list[Hint]) -> Keywords:
        if "dataclass" in kinds:
            method = self.source.method(str(kinds["dataclass"]), "from_cli")
            return {"type": "text" if method and "eval(" in ast.unparse(method) else "json"}
        if "Literal" in kinds:
            return _of_literals(
                [value for kind, values in hints if kind == "Literal" for value in values], kinds
            )
        for kind in ("tuple", "list", "set"):
            if kind in kinds:
                return self._collection(kind, kinds[kind] or [])
        for kind in ("int", "float"):
            if kind in kinds:
                return {"type": self._number(name) if kind == "int" else kind}
        if "dict" in kinds:
            return {"type": "json_or_text" if kinds.keys() & {"str", "other"} else "json"}
        return {"type": "text"}

    def _collection(self, kind: str, parts: list[ast.expr]) -> Keywords:
        element = dict(self.source.hints(parts[0])) if parts else {}
        open_end = any(isinstance(each, ast.Constant) and each.value is ... for each in parts)
        many = "+" if kind != "tuple" or open_end else len(parts)
        if "Literal" in element and len(element) == 1:
            return {"nargs": many, **_of_literals(element["Literal"], element)}
        single = next(iter(element)) if len(element) == 1 else "str"
        return {"nargs": many, "type": single if single in ("int", "float") else "text"}

    def _number(self, name: str) -> str:
        if f"'{name}'" not in self.rules:
            return "int"
        return "size_or_auto" if f"name == '{name}'" in self.rules and "or_auto" in self.rules else "size"


def _of_literals(values: list[Any], kinds: Mapping[str, Any]) -> Keywords:
    """Of literals beside `str`, as for names that plugins add to, none is refused."""
    values = [value for value in values if value is not None]
    type_ = "int" if values and all(isinstance(value, int) for value in values) else "text"
    return {"type": type_} if "str" in kinds else {"type": type_, "choices": sorted(values)}


def _option(keywords: Keywords) -> dict[str, Any]:
    """An argument as the data has it; what goes without saying is left out."""
    option: dict[str, Any] = {}
    action = str(keywords.get("action", ""))
    if action in ("store_true", "store_false", "BooleanOptionalAction", "StoreBoolean"):
        option["takes"] = "maybe" if action == "StoreBoolean" else "none"
        if action == "BooleanOptionalAction":
            option["pair"] = True
    else:
        counts = {"+": "some", "*": "any", "?": "maybe"}
        if (count := keywords.get("nargs")) is not None:
            option["takes"] = counts.get(count, count)
        if action == "LoRAParserAction":
            option["type"] = "adapter"
        elif keywords.get("type", "text") != "text":
            option["type"] = keywords["type"]
        if keywords.get("optional"):
            option["optional"] = True
        if keywords.get("choices"):
            option["choices"] = sorted({each for each in keywords["choices"] if each not in (None, "None")})
        if action == "append":
            option["repeats"] = True
    if keywords.get("deprecated") or action.startswith("Deprecated"):
        option["deprecated"] = True
    return option


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Those on the first level and in its conditions; of `if TYPE_CHECKING` the part that has the types."""
    for node in body:
        if isinstance(node, ast.If):
            checking = ast.unparse(node.test) == "TYPE_CHECKING"
            yield from _statements(node.body if checking else [*node.body, *node.orelse])
        else:
            yield node


def _last(node: ast.expr) -> str:
    """`a.b.c` → `c`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _constant(node: ast.expr) -> list[Any] | None:
    return [node.value] if isinstance(node, ast.Constant) else None
