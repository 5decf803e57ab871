"""Reads off vLLM's sources, without importing them, which models and which parsers a release registers.

Models are tables of `vllm/model_executor/models/registry.py`. Parsers register themselves: by a decorator up
to 0.11.0, since then by a table beside them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch

from tools.vllm_source import SourceError

REGISTRY = "vllm/model_executor/models/registry.py"
PARSERS = {
    "--reasoning-parser": ("vllm/reasoning", "vllm/entrypoints/openai/reasoning_parsers"),
    "--tool-call-parser": ("vllm/tool_parsers", "vllm/entrypoints/openai/tool_parsers"),
}
"""Flag → the folders whose files register what it may name, one or the other in each release."""
CONFIGURATIONS = "vllm/transformers_utils/config.py"
SOURCES = (
    REGISTRY,
    CONFIGURATIONS,
    "vllm/config/__init__.py",
    "vllm/config/model.py",
    *(f"{folder}/*.py" for folders in PARSERS.values() for folder in folders),
    "vllm-*.dist-info/METADATA",
)
"""What is read of a wheel: patterns of `fnmatch`."""

KINDS = {
    "_TEXT_GENERATION_MODELS": "generate",
    "_EMBEDDING_MODELS": "embed",
    "_CROSS_ENCODER_MODELS": "score",
    "_LATE_INTERACTION_MODELS": "score",
    "_REWARD_MODELS": "reward",
    "_TOKEN_CLASSIFICATION_MODELS": "classify",
    "_SEQUENCE_CLASSIFICATION_MODELS": "classify",
    "_MULTIMODAL_MODELS": "multimodal",
    "_SPECULATIVE_DECODING_MODELS": "draft",
    "_FALLBACK_MODEL": "transformers",
    "_TRANSFORMERS_MODELS": "transformers",
    "_TRANSFORMERS_SUPPORTED_MODELS": "transformers",
    "_TRANSFORMERS_BACKEND_MODELS": "transformers",
}
"""Tables of the registry, and what the models in them are for. Its multimodal models may also transcribe or
embed: their classes alone say so."""

LEAST = 100
"""Models of any release; fewer mean that they were not found."""


def read_models(files: Mapping[str, str]) -> dict[str, str]:
    """Architecture → what it is for, several words with blanks between."""
    tables = _assigned(ast.parse(files.get(REGISTRY, "")))
    merged = tables.get("_VLLM_MODELS")
    if not isinstance(merged, ast.Dict):
        raise SourceError(f"{REGISTRY} has no _VLLM_MODELS; models are registered another way")
    kinds: dict[str, set[str]] = {}
    for part in merged.values:
        name = ast.unparse(part)
        if name not in KINDS:
            raise SourceError(f"the registry has the models of {name}, which are of no kind known here")
        for architecture in _architectures(tables[name], tables):
            kinds.setdefault(architecture, set()).add(KINDS[name])
    if len(kinds) < LEAST:
        raise SourceError(f"only {len(kinds)} models were found; they are registered another way")
    return {name: " ".join(sorted(each)) for name, each in sorted(kinds.items())}


def _architectures(table: ast.expr, tables: Mapping[str, ast.expr]) -> Iterator[str]:
    """The keys of a table: its own, and those that it takes over from another by their class."""
    if isinstance(table, ast.Dict):
        for key, value in zip(table.keys, table.values, strict=True):
            if isinstance(key, ast.Constant):
                yield str(key.value)
            else:
                yield from _architectures(value, tables)
        return
    # {k: (mod, arch) for k, (mod, arch) in _TABLE.items() if arch == "Class"}
    if isinstance(table, ast.DictComp) and len(table.generators) == 1:
        (loop,) = table.generators
        source = tables.get(ast.unparse(loop.iter).removesuffix(".items()"))
        wanted = [
            each.comparators[0].value
            for each in loop.ifs
            if isinstance(each, ast.Compare) and isinstance(each.comparators[0], ast.Constant)
        ]
        if isinstance(source, ast.Dict) and len(wanted) == 1:
            for key, value in zip(source.keys, source.values, strict=True):
                if isinstance(value, ast.Tuple) and ast.literal_eval(value)[1] == wanted[0]:
                    yield str(ast.literal_eval(key)) if key else ""
            return
    raise SourceError(f"a table of models is written in another way: {ast.unparse(table)[:80]}")


def read_suffixes(files: Mapping[str, str]) -> list[str]:
    """Endings of an architecture's name that stand for each other: a model of one is converted to another."""
    for path in ("vllm/config/model.py", "vllm/config/__init__.py"):
        table = _assigned(ast.parse(files.get(path, ""))).get("_SUFFIX_TO_DEFAULTS")
        if isinstance(table, ast.List):
            return [str(ast.literal_eval(each)[0]) for each in table.elts]
    # 0.10.0 had this one conversion, written out.
    pair = ["ForSequenceClassification", "ForCausalLM"]
    written = [node.value for node in ast.walk(ast.parse(files[REGISTRY])) if isinstance(node, ast.Constant)]
    return pair if set(pair) <= set(written) else []


def read_model_types(files: Mapping[str, str]) -> set[str]:
    """Values of `model_type` that vLLM brings a configuration class for, so that it need not ask
    Transformers."""
    tables = _assigned(ast.parse(files.get(CONFIGURATIONS, "")))
    if "_CONFIG_REGISTRY" not in tables:
        raise SourceError(f"{CONFIGURATIONS} has no _CONFIG_REGISTRY; it is kept another way")
    found: set[str] = set()
    for name in ("_CONFIG_REGISTRY", "_CONFIG_REGISTRY_OVERRIDE_HF"):
        table = tables.get(name)
        if isinstance(table, ast.Dict):
            found |= {str(ast.literal_eval(key)) for key in table.keys if key}
        elif isinstance(table, ast.Call):
            found |= {each.arg for each in table.keywords if each.arg}
    return found


def read_parsers(files: Mapping[str, str]) -> dict[str, list[str]]:
    """Flag → the names that it may have without a plugin."""
    found = {
        flag: sorted({name for folder in folders for name in _registered(files, folder)})
        for flag, folders in PARSERS.items()
    }
    if not found["--tool-call-parser"]:
        raise SourceError("no tool parser was found; they are registered another way")
    return found


def _registered(files: Mapping[str, str], folder: str) -> Iterator[str]:
    for path in (each for each in files if fnmatch(each, f"{folder}/*.py")):
        tree = ast.parse(files[path])
        for name, table in _assigned(tree).items():
            if name.endswith("_TO_REGISTER") and isinstance(table, ast.Dict):
                yield from (str(ast.literal_eval(key)) for key in table.keys if key)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                for decorator in node.decorator_list:
                    yield from _named(decorator)


def _named(decorator: ast.expr) -> Iterator[str]:
    """`@ToolParserManager.register_module("name")`, or several names in a list."""
    if not isinstance(decorator, ast.Call) or not ast.unparse(decorator.func).endswith(".register_module"):
        return
    given = [*decorator.args, *(each.value for each in decorator.keywords if each.arg == "name")]
    names = ast.literal_eval(given[0]) if given else ()
    yield from [names] if isinstance(names, str) else names


def read_requirement(files: Mapping[str, str], project: str) -> str:
    """What the release requires of another project, as in `transformers>=4.56.0,<5`."""
    metadata = next((text for path, text in files.items() if path.endswith("/METADATA")), "")
    for line in metadata.splitlines():
        name, _, value = line.partition(": ")
        if name == "Requires-Dist" and value.startswith(project) and ";" not in value:
            return value
    raise SourceError(f"the wheel's METADATA does not require {project}")


def _assigned(tree: ast.Module) -> dict[str, ast.expr]:
    """What the names on a file's first level are set to."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            found[ast.unparse(target)] = node.value
    return found
