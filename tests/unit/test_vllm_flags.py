"""The tool that reads arguments, models and parsers off vLLM's wheels, on a small one written as theirs."""

from __future__ import annotations

import io
import json
import re
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from tools import pypi, transformers_source, vllm_registry, vllm_source
from tools.pypi import RemoteFile, Wheel
from tools.vllm_flags import PARTS, SOURCES, compressed, expanded, main, releases, unread
from tools.vllm_source import SourceError, read_arguments, read_features

CONFIG = '''
MODES = Literal["fast", "slow"]
Size: TypeAlias = Literal[1, 8]

@config
@dataclass
class Inner:
    x: int = 0

@config
@dataclass
class ModelConfig:
    mode: MODES = "fast"
    open_mode: Union[str, MODES] = "fast"
    size: Size = 1
    count: SkipValidation[int] = None
    tokens: Optional[int] = None
    ratio: float | None = None
    names: list[str] | None = None
    pair: tuple[int, int] = (0, 0)
    parts: tuple[int, ...] = ()
    on: bool = True
    inner: Inner = field(default_factory=Inner)
    overrides: dict[str, Any] | str = ""
    extra: dict[str, Any] = None
    old: str = ""
    """Deprecated: does nothing."""
'''
FIELDS = "open_mode size count tokens ratio names pair parts on inner overrides extra old".split()  # noqa: SIM905
ARG_UTILS = '''
if TYPE_CHECKING:
    from vllm.quantization import QuantizationMethods
else:
    QuantizationMethods = Any

def _compute_kwargs(cls):
    for field in fields(cls):
        kwargs["action"] = argparse.BooleanOptionalAction
        if name in {"tokens"}:
            kwargs["type"] = human_readable_int

class EngineArgs:
    @staticmethod
    def add_cli_args(parser):
        kwargs = get_kwargs(ModelConfig)
        group = parser.add_argument_group(title="Model")
        if True:
            group.add_argument("--mode", "-m", **kwargs["mode"])
        kwargs["open_mode"]["choices"] = ["a", *MODES_LIST]
        del kwargs["names"]["nargs"]
''' + "".join(
    f'        group.add_argument("--{name.replace("_", "-")}", **{{**kwargs["{name}"], "default": None}})\n'
    for name in FIELDS
) + '''
        group.add_argument("--quantization", "-q", type=nullable_str)
        for arg, type in [("--one", str), ("--two", bool)]:
            group.add_argument(arg, type=type, help=f"[DEPRECATED] {arg}", deprecated=True)
        return parser

class AsyncEngineArgs(EngineArgs):
    @staticmethod
    def add_cli_args(parser):
        parser = EngineArgs.add_cli_args(parser)
        parser.add_argument("--enable-log-requests", action="store_true", help="...")
        return parser
'''  # fmt: skip
CLI_ARGS = '''
MODES_LIST = ["b"]

@config
@dataclass
class FrontendArgs:
    host: str | None = None
    middleware: list[str] = field(default_factory=list)

    @classmethod
    def _customize_cli_kwargs(cls, frontend_kwargs):
        frontend_kwargs["middleware"]["action"] = "append"
        if "nargs" in frontend_kwargs["middleware"]:
            del frontend_kwargs["middleware"]["nargs"]
        return frontend_kwargs

    @classmethod
    def add_cli_args(cls, parser):
        frontend_kwargs = get_kwargs(cls)
        frontend_kwargs = cls._customize_cli_kwargs(frontend_kwargs)
        for key, value in frontend_kwargs.items():
            parser.add_argument(f"--{key.replace('_', '-')}", **value)
        return parser

def make_arg_parser(parser):
    parser.add_argument("model_tag", nargs="?")
''' + "".join(f'    parser.add_argument("--filler-{index}")\n' for index in range(100)) + '''
    parser = FrontendArgs.add_cli_args(parser)
    parser = AsyncEngineArgs.add_cli_args(parser)
    return parser
'''  # fmt: skip
FILES = {
    "vllm/engine/arg_utils.py": ARG_UTILS,
    "vllm/config/model.py": CONFIG,
    "vllm/entrypoints/openai/cli_args.py": CLI_ARGS,
    "vllm/entrypoints/cli/serve.py": 'def f():\n    serve_parser.add_argument("--config", help="A file")\n',
    "vllm/model_executor/layers/quantization/__init__.py": (
        'QuantizationMethods = Literal["awq", "fp8"]\n'
        "QUANTIZATION_METHODS: list[str] = list(get_args(QuantizationMethods))\n"
    ),
    "vllm/utils/__init__.py": 'def create_nested_dict(): ...\nprocessed_arg.endswith("+")\n',
    "vllm/model_executor/models/registry.py": """
_TEXT_GENERATION_MODELS = {
    "AquilaForCausalLM": ("llama", "LlamaForCausalLM"),
    "LlamaForCausalLM": ("llama", "LlamaForCausalLM"),
    "OPTForCausalLM": ("opt", "OPTForCausalLM"),
"""
    + "".join(f'    "Filler{index}ForCausalLM": ("filler", "Filler"),\n' for index in range(100))
    + """}
_EMBEDDING_MODELS = {
    "BertModel": ("bert", "BertEmbeddingModel"),
    **{k: (mod, arch) for k, (mod, arch) in _TEXT_GENERATION_MODELS.items() if arch == "LlamaForCausalLM"},
}
_VLLM_MODELS = {**_TEXT_GENERATION_MODELS, **_EMBEDDING_MODELS}
""",
    "vllm/transformers_utils/config.py": """
_CONFIG_REGISTRY: dict[str, type[PretrainedConfig]] = LazyConfigDict(chatglm="ChatGLMConfig")
""",
    "vllm/reasoning/__init__.py": '_REASONING_PARSERS_TO_REGISTER = {"deepseek_r1": ("file", "Class")}\n',
    "vllm/entrypoints/openai/tool_parsers/hermes.py": """
@ToolParserManager.register_module("hermes")
class Hermes(ToolParser): ...

@ToolParserManager.register_module(["granite", "granite4"])
class Granite(ToolParser): ...
""",
    "vllm-0.99.0.dist-info/METADATA": "Name: vllm\nRequires-Dist: transformers<6,>=5.1\n",
    "vllm/worker.py": "this is not read",
}

ARGUMENTS = pypi.matching(FILES, vllm_source.SOURCES)


def wheel() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    return content.getvalue()


@pytest.mark.parametrize(
    ("flag", "option"),
    [
        ("--mode", {"also": ["-m"], "choices": ["fast", "slow"]}),
        ("--open-mode", {"choices": ["a", "b"]}),
        ("--size", {"type": "int", "choices": [1, 8]}),
        ("--count", {"type": "int"}),
        ("--tokens", {"type": "size", "optional": True}),
        ("--ratio", {"type": "float", "optional": True}),
        ("--names", {"optional": True}),
        ("--pair", {"takes": 2, "type": "int"}),
        ("--parts", {"takes": "some", "type": "int"}),
        ("--on", {"takes": "none", "pair": True}),
        ("--inner", {"type": "json"}),
        ("--overrides", {"type": "json_or_text"}),
        ("--extra", {"type": "json"}),
        ("--old", {"deprecated": True}),
        ("--quantization", {"also": ["-q"], "optional": True, "choices": ["awq", "fp8"]}),
        ("--two", {"deprecated": True}),
        ("--enable-log-requests", {"takes": "none"}),
        ("--host", {"optional": True}),
        ("--middleware", {"repeats": True}),
        ("--config", {}),
        ("--help", {"also": ["-h"], "takes": "none"}),
    ],
)
def test_an_argument_is_what_its_definition_makes_of_it(flag: str, option: dict[str, object]) -> None:
    assert read_arguments(ARGUMENTS)[flag] == option


def test_a_parser_that_is_built_another_way_is_an_error() -> None:
    with pytest.raises(SourceError, match="no function make_arg_parser"):
        read_arguments({"vllm/engine/arg_utils.py": ""})
    few = ARGUMENTS | {"vllm/entrypoints/openai/cli_args.py": "def make_arg_parser(parser):\n    pass\n"}
    with pytest.raises(SourceError, match="built another way"):
        read_arguments(few)


def test_what_did_not_change_is_written_once_and_comes_back() -> None:
    table = {"0.9.0": {"a": {}, "b": {}}, "0.10.0": {"a": {}}, "0.11.0": {"a": {"type": "int"}, "b": {}}}
    changes = compressed(table)
    assert changes == {
        "a": {"0.9.0": {}, "0.11.0": {"type": "int"}},
        "b": {"0.9.0": {}, "0.10.0": None, "0.11.0": {}},
    }
    assert expanded({"releases": list(table), "flags": changes}, "flags") == table


def test_a_wheel_on_this_machine_joins_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = transformers_source.Known("5.9.0", frozenset({"llama"}), frozenset({"NewForCausalLM"}))
    monkeypatch.setattr(transformers_source.Reader, "of", lambda *_: known)
    given = tmp_path / "vllm-0.99.0-cp38-abi3-manylinux1_x86_64.whl"
    given.write_bytes(wheel())
    assert main(["--wheel", str(given), "--target", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "arguments.json").read_text())
    assert data["releases"] == ["0.99.0"]
    assert data["parser"] == {name: {"0.99.0": True} for name in sorted(read_features(FILES))}
    assert data["flags"]["--size"] == {"0.99.0": {"type": "int", "choices": [1, 8]}}
    data = json.loads((tmp_path / "registry.json").read_text())
    assert data["--tool-call-parser"].keys() == {"granite", "granite4", "hermes"}
    assert data["transformers"] == {"newest": {"0.99.0": "5.9.0"}}
    assert data["model_types"].keys() == {"chatglm", "llama"}
    # This release has no --model-impl, so what Transformers knows is of no use to it.
    assert "NewForCausalLM" not in data["architectures"]
    assert data["architectures"]["LlamaForCausalLM"] == {"0.99.0": "embed generate"}


def test_of_a_wheel_that_is_far_away_only_blocks_are_fetched() -> None:
    content = b"\0" * (3 << 20) + wheel()
    asked: list[int] = []

    def serve(request: httpx.Request) -> httpx.Response:
        first, last = map(int, re.findall(r"\d+", request.headers["Range"]))
        asked.append(first)
        return httpx.Response(206, content=content[first : last + 1])

    with httpx.Client(transport=httpx.MockTransport(serve)) as client:
        remote = RemoteFile(client, "https://files.example/vllm.whl", len(content))
        assert pypi.read(remote, SOURCES).keys() == FILES.keys() - {"vllm/worker.py"}
    assert len(asked) == len(set(asked)) <= 2


def test_the_last_wheel_of_the_same_numbers_is_the_one_that_is_read() -> None:
    names = [
        *("vllm-0.8.5-cp38-abi3-manylinux1_x86_64.whl", "vllm-0.8.5.post1-cp38-abi3-manylinux1_x86_64.whl"),
        *("vllm-0.10.0-cp38-abi3-manylinux1_x86_64.whl", "vllm-0.9.2.tar.gz", "vllm-0.3.0-py3-none-any.whl"),
        "vllm-0.10.0-cp38-abi3-manylinux1_aarch64.whl",
    ]
    files = [{"filename": name, "url": f"https://files.example/{name}", "size": 1} for name in names]
    reply = httpx.MockTransport(lambda request: httpx.Response(200, json={"files": files}))
    with httpx.Client(transport=reply) as client:
        found = releases(pypi.wheels(client, "vllm"))
    assert list(found) == ["0.8.5", "0.8.5.post1", "0.10.0"]
    tables = {part: {} for parts in PARTS.values() for part in parts}
    assert unread(found, tables) == ["0.8.5.post1", "0.10.0"]
    assert unread(found, {part: {"0.8.5": {}} for part in tables}) == ["0.10.0"]
    assert unread(found, {**{part: {"0.8.5": {}} for part in tables}, "flags": {}}) == [
        "0.8.5.post1",
        "0.10.0",
    ]


# --- models and parsers ---------------------------------------------------------------------------------


def test_models_that_are_registered_another_way_are_an_error() -> None:
    registry = vllm_registry.REGISTRY
    for text, reason in [
        ("_MODELS = {}", "another way"),
        ("_VLLM_MODELS = {**_NEW_MODELS}\n_NEW_MODELS = {}", "of no kind known here"),
        ("_EMBEDDING_MODELS = read()\n_VLLM_MODELS = {**_EMBEDDING_MODELS}", "written in another way"),
        ("_EMBEDDING_MODELS = {}\n_VLLM_MODELS = {**_EMBEDDING_MODELS}", "only 0 models"),
    ]:
        with pytest.raises(SourceError, match=reason):
            vllm_registry.read_models({registry: text})
    with pytest.raises(SourceError, match="no tool parser"):
        vllm_registry.read_parsers({})
    with pytest.raises(SourceError, match="_CONFIG_REGISTRY"):
        vllm_registry.read_model_types({})


def test_endings_that_stand_for_each_other_are_read_where_they_are_listed() -> None:
    table = '_SUFFIX_TO_DEFAULTS: list[T] = [("ForCausalLM", ("generate", "none")), ("Model", ("pooling",))]'
    assert vllm_registry.read_suffixes({"vllm/config/model.py": table}) == ["ForCausalLM", "Model"]
    assert vllm_registry.read_suffixes(FILES) == []
    written_out = 'arch.replace("ForSequenceClassification", "ForCausalLM")'
    found = vllm_registry.read_suffixes({vllm_registry.REGISTRY: written_out})
    assert found == ["ForSequenceClassification", "ForCausalLM"]


@pytest.mark.parametrize(
    ("requirement", "release"),
    [
        ("transformers>=4.50", "5.1.0"),
        ("transformers<5,>=4.50", "4.57.0"),
        ("transformers>=4.50,!=5.1.*", "5.0.0"),
    ],
)
def test_an_image_has_the_newest_transformers_of_its_day_that_is_allowed(
    requirement: str, release: str
) -> None:
    days = {"4.57.0": 1, "4.58.0": 2, "5.0.0": 3, "5.1.0": 12, "5.2.0": 20}
    on_pypi = [
        Wheel(name, "", 1, datetime(2026, 1, day, tzinfo=UTC), name == "4.58.0") for name, day in days.items()
    ]
    vllm = Wheel("0.99.0", "", 1, datetime(2026, 1, 6, tzinfo=UTC), False)
    assert transformers_source.newest(on_pypi, requirement, vllm).release == release
    with pytest.raises(SourceError, match="no release"):
        transformers_source.newest(on_pypi, "transformers>=6", vllm)


def test_transformers_lists_its_models_in_pairs_and_in_updates() -> None:
    pairs = ", ".join(f'("type{index}", "Config")' for index in range(100))
    auto = (
        f'CONFIG_MAPPING_NAMES = OrderedDict([{pairs}])\nCONFIG_MAPPING_NAMES.update({{"mlcd": "Config"}})\n'
    )
    files = {
        "transformers/models/auto/configuration_auto.py": auto + 'OTHER = {"other": 1}\n',
        "transformers/models/opt/modeling_opt.py": "class OPTForCausalLM(X):\nclass OPTModel(X):\n",
    }
    found = transformers_source.model_types(files)
    assert len(found) == 101
    assert "mlcd" in found
    assert transformers_source.classes(files) == {"OPTForCausalLM"}
    with pytest.raises(SourceError, match="only 0 model types"):
        transformers_source.model_types({})
