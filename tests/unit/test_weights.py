"""Weights fetched ahead: which files, by vLLM's release, and that node and hub's client fetch just those.

The expectations are vLLM's: what `_prepare_weights` (`vllm/model_executor/model_loader/default_loader.py`) of
each release downloads and returns for these repositories. Lines are those of the wheels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from layouts import INDEX, LAYOUTS, SHARDS, is_weight, weight
from local_hub import COMMIT, Hub
from local_hub import serving as hub_of
from pydantic import ValidationError

from fleet import layout
from fleet.models.sources import refs, script, written
from fleet.settings import Serving
from fleet.weights import Choice, Source, chosen, index_of, is_safe, read, shards

MODEL, TOKEN = "acme/model", "hf_planted0123456789"
OLD, NEW = (0, 9, 2), (0, 32, 0)


def choice(files: dict[str, bytes], source: Source) -> Choice:
    index = index_of(source, files)
    return chosen(source, files, shards(json.loads(files[index])) if index else None)


def weights(names: frozenset[str]) -> set[str]:
    return {name for name in names if is_weight(name) or name.endswith(".onnx")}


BIN = {"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"}
CONSOLIDATED = {"consolidated-00001-of-00002.safetensors", "consolidated-00002-of-00002.safetensors"}
BOTH = {*SHARDS, "consolidated.safetensors"}
# Layout, release, more of the source: the weights that are downloaded, and those of them that are loaded.
EXPECTED: list[tuple[str, tuple[int, ...], dict[str, Any], set[str], set[str]]] = [
    # 0.9.2 weight_utils.py:286-290 takes the first pattern that the top folder has, and 297 downloads it from
    # every folder; LoadConfig's `original/**/*` (config.py:1762) wants a folder more. 371-374 loads the
    # index's.
    ("sharded with original", OLD, {}, {*SHARDS, "original/model.safetensors"}, {*SHARDS}),
    # 0.32.0 weight_utils.py:476-490 downloads the files of the index alone.
    ("sharded with original", NEW, {}, {*SHARDS}, {*SHARDS}),
    # But looks for it as owner/name/FILE, which the listing of another revision than main does not have.
    ("sharded with original", NEW, {"revision": COMMIT}, {*SHARDS, "original/model.safetensors"}, {*SHARDS}),
    ("sharded with original", OLD, {"ignore": ("original/*",)}, {*SHARDS}, {*SHARDS}),
    # 0.9.2 default_loader.py:108: *.safetensors before *.bin.
    ("safetensors and bin", OLD, {}, {"model.safetensors"}, {"model.safetensors"}),
    ("safetensors and bin", NEW, {}, {"model.safetensors"}, {"model.safetensors"}),
    # 0.9.2 default_loader.py:119: npcache is *.bin; weight_utils.py:385 leaves training_args.bin unread.
    (
        "safetensors and bin",
        OLD,
        {"load_format": "npcache"},
        {"pytorch_model.bin", "training_args.bin"},
        {"pytorch_model.bin"},
    ),
    ("bin alone", OLD, {}, {*BIN, "training_args.bin"}, BIN),
    ("bin alone", NEW, {}, {*BIN, "training_args.bin"}, BIN),
    # 0.9.2 knows the format where it is asked for alone; it downloads both copies and loads the index's.
    ("mistral", OLD, {}, BOTH, {*SHARDS}),
    ("mistral", OLD, {"load_format": "mistral"}, {"consolidated.safetensors"}, {"consolidated.safetensors"}),
    # 0.12.0 default_loader.py: `auto` is the mistral format where there is a consolidated file.
    ("mistral", (0, 11, 2), {}, BOTH, {*SHARDS}),
    ("mistral", (0, 12, 0), {}, {"consolidated.safetensors"}, {"consolidated.safetensors"}),
    ("mistral", NEW, {"load_format": "hf"}, {*SHARDS}, {*SHARDS}),
    ("mistral sharded", OLD, {}, {*SHARDS, *CONSOLIDATED}, {*SHARDS}),
    ("mistral sharded", NEW, {}, CONSOLIDATED, CONSOLIDATED),
    # PyTorch's .pth are no pattern of any release.
    ("llama", OLD, {}, {"model.safetensors"}, {"model.safetensors"}),
    ("llama", NEW, {}, {"model.safetensors"}, {"model.safetensors"}),
    ("pt alone", OLD, {}, {"weights.pt"}, {"weights.pt"}),
    # 0.24.0: no .pt where safetensors are asked for.
    ("pt alone", (0, 23, 0), {"load_format": "safetensors"}, {"weights.pt"}, {"weights.pt"}),
    ("pt alone", (0, 24, 0), {"load_format": "safetensors"}, set(), set()),
    ("embedder", OLD, {}, {"model.safetensors", "2_Dense/model.safetensors"}, {"model.safetensors"}),
    # Without weights in the top folder: every pattern at once, since 0.10.2 one by one; and none is loaded.
    ("subfolder", OLD, {}, {"text_encoder/model.safetensors", "unet/weights.bin"}, set()),
    ("subfolder", NEW, {}, {"text_encoder/model.safetensors", "unet/weights.bin"}, set()),
    ("gguf", (0, 14, 1), {"gguf": "Q4_K_M"}, {"model-Q4_K_M.gguf"}, {"model-Q4_K_M.gguf"}),
    (
        "gguf",
        (0, 14, 1),
        {"gguf": "Q8_0"},
        {"Q8_0/model-Q8_0-00001-of-00002.gguf", "Q8_0/model-Q8_0-00002-of-00002.gguf"},
        {"Q8_0/model-Q8_0-00001-of-00002.gguf", "Q8_0/model-Q8_0-00002-of-00002.gguf"},
    ),
    ("gguf", (0, 10, 2), {"gguf": "model-Q2_K.gguf"}, {"model-Q2_K.gguf"}, {"model-Q2_K.gguf"}),
    ("safetensors and bin", OLD, {"load_format": "dummy"}, set(), set()),
    ("safetensors and bin", OLD, {"takes": "small"}, set(), set()),
    # vllm/lora/utils.py: an adapter is downloaded whole.
    ("adapter", OLD, {"takes": "all"}, {"adapter_model.safetensors", "optimizer.pt"}, set()),
]


@pytest.mark.parametrize(("name", "release", "more", "downloaded", "loaded"), EXPECTED)
def test_the_weights_are_those_that_the_release_takes(
    name: str, release: tuple[int, ...], more: dict[str, Any], downloaded: set[str], loaded: set[str]
) -> None:
    found = choice(LAYOUTS[name], Source(MODEL, release, **more))
    assert (weights(found.downloaded), found.loaded) == (downloaded, loaded)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("embedder", {"modules.json", "1_Pooling/config.json", "2_Dense/config.json", "chat_template.jinja"}),
        ("mistral", {"params.json", "tokenizer.model", "tokenizer.model.v3", INDEX}),
    ],
)
def test_small_files_come_along_and_pictures_and_other_frameworks_weights_do_not(
    name: str, files: set[str]
) -> None:
    for release in (OLD, NEW):
        found = choice(LAYOUTS[name], Source(MODEL, release)).downloaded
        assert files <= found
        assert not {each for each in found if each.endswith((".onnx", ".h5", ".png"))}
    # Since 0.32 tokenizers are loaded from a snapshot of all that is not a weight.
    readme = Source(MODEL, OLD), Source(MODEL, NEW)
    assert ["README.md" in choice(LAYOUTS["sharded with original"], each).downloaded for each in readme] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    "name", ["../up", "/etc/x", "a/../b", "a//b", "a\\b", "a\nb", "a\0b", "", ".", "x" * 300, 7, None]
)
def test_a_name_that_leaves_its_folder_is_none_of_them(name: Any) -> None:
    assert not is_safe(name)
    assert chosen(Source(MODEL, OLD, takes="all"), [name, "config.json"]).downloaded == {"config.json"}
    with pytest.raises(ValueError, match="no weight_map"):
        shards({"weight_map": {"layer": name}})


@pytest.mark.parametrize("index", [None, [], {}, {"weight_map": []}, {"weight_map": {"layer": ["a"]}}])
def test_an_index_of_another_shape_is_refused(index: Any) -> None:
    with pytest.raises(ValueError, match="no weight_map"):
        shards(index)


# --- what the engine's arguments say ------------------------------------------------------------------------


def serving(**given: Any) -> Serving:
    return Serving.model_validate({"model": MODEL, **given})


def image(release: str) -> str:
    return f"vllm/vllm-openai:v{release}"


def taken(**given: Any) -> list[tuple[str, str, str]]:
    return [(each.repo, each.revision, each.takes) for each in serving(**given).weights]


def test_a_model_is_taken_at_main_or_at_the_revision_that_is_asked_for() -> None:
    assert taken() == [(MODEL, "main", "model")]
    for given in ({"args": {"revision": "v1"}}, {"extra_args": ["--revision=v1"]}):
        assert taken(**given) == [(MODEL, "v1", "model")]
    assert taken(args={"tokenizer_revision": "v2"}) == [(MODEL, "main", "model"), (MODEL, "v2", "small")]


def test_tokenizer_draft_model_and_adapters_are_repositories_of_their_own() -> None:
    assert taken(
        image=image("0.12.0"),
        args={
            "tokenizer": "acme/base",
            "revision": "v1",
            "speculative_config": {"model": "acme/draft", "revision": "v3", "num_speculative_tokens": 3},
            "lora_modules": [
                "sql=acme/lora",
                '{"name": "x", "path": "acme/lora-x", "base_model_name": "a/b"}',
                "own=/files/lora",
            ],
        },
    ) == [
        (MODEL, "v1", "model"),
        ("acme/base", "v1", "small"),
        ("acme/draft", "v3", "model"),
        ("acme/lora", "main", "all"),
        ("acme/lora-x", "main", "all"),
    ]


@pytest.mark.parametrize(
    "given",
    [
        {"args": {"load_format": "runai_streamer"}},
        {"args": {"download_dir": "/models/elsewhere"}},
        {"environment": {"VLLM_USE_MODELSCOPE": "1"}},
        {"model": "/files/model"},
    ],
)
def test_what_is_not_fetched_from_the_hub_is_not_fetched_ahead(given: dict[str, Any]) -> None:
    assert taken(**given) == []
    assert written(serving(**given).weights) == ""


def test_a_gguf_file_is_named_as_its_release_names_it() -> None:
    (by_name,) = serving(image=image("0.10.2"), model="acme/model/model-Q2_K.gguf").weights
    assert (by_name.repo, by_name.gguf) == (MODEL, "model-Q2_K.gguf")
    (by_kind,) = serving(image=image("0.14.1"), model="acme/model:Q4_K_M").weights
    assert (by_kind.repo, by_kind.gguf) == (MODEL, "Q4_K_M")
    for release, model in (("0.9.2", "acme/model/x.gguf"), ("0.11.0", "acme/model:Q4_K_M")):
        with pytest.raises(ValidationError, match="names a GGUF file on the hub, which vLLM downloads from"):
            serving(image=image(release), model=model)


def test_both_ways_to_a_node_carry_the_same_sources_and_the_same_rule() -> None:
    from test_userdata import file, linode

    sourced = file(linode(), layout.PREFETCH_SETTINGS_PATH)["content"]
    shell = f'{sourced}printf %s "$WEIGHTS"'
    on_node = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    wanted = Serving(model="Qwen/Qwen3-8B-AWQ")
    assert on_node == written(wanted.weights)
    assert tuple(read(on_node)) == wanted.weights
    assert file(linode(), layout.PREFETCH_SCRIPT_PATH)["content"] == script()


def test_a_nodes_script_has_the_code_and_not_what_people_read() -> None:
    yaml.safe_dump(script())
    assert '"""' not in script()
    space: dict[str, Any] = {"__name__": "weights"}
    sys.modules["weights"] = sys.modules[__name__]  # where dataclasses look up what they are made in
    exec(compile(script(), "weights.py", "exec"), space)
    files = LAYOUTS["mistral"]
    assert (
        space["chosen"](Source(MODEL, NEW), files).downloaded == chosen(Source(MODEL, NEW), files).downloaded
    )


def test_a_branch_has_a_commit_to_look_up_on_the_node_and_a_commit_has_none() -> None:
    hub = f"{layout.MODELS_DIRECTORY}/hub"
    assert refs(serving().weights) == {"acme/model@main": f"{hub}/models--acme--model/refs/main"}
    assert refs(serving(args={"revision": COMMIT}).weights) == {}
    assert refs(serving(args={"revision": "../../../etc/shadow"}).weights) == {}


# --- what is fetched ----------------------------------------------------------------------------------------

SOURCES = {
    "sharded with original": Source("acme/sharded", OLD),
    "safetensors and bin": Source("acme/both", OLD),
    "bin alone": Source("acme/bin", OLD),
    "mistral": Source("acme/mistral", NEW),
    "gguf": Source("acme/gguf", (0, 14, 1), gguf="Q4_K_M"),
    "adapter": Source("acme/adapter", OLD, takes="all"),
    "embedder": Source("acme/embedder", NEW),
    "subfolder": Source("acme/sub", NEW, revision=COMMIT),
    "odd names": Source("acme/odd", NEW),
}
HOSTILE = {"../escape.json": b"{}", "/escape.json": b"{}", "x/../../escape.json": b"{}"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {source.repo: LAYOUTS[name] | HOSTILE for name, source in SOURCES.items()}
    with hub_of(files) as made:
        yield made


def fetch(hub: Hub, home: Path, how: str, *sources: Source) -> subprocess.CompletedProcess[str]:
    (home / "weights.py").write_text(script())
    # The client is in the environment of the tests; the node's own Python is without it.
    isolated = ["-I", "-S"] if how == "node" else []
    return subprocess.run(
        [sys.executable, *isolated, str(home / "weights.py"), how, written(sources)],
        env={
            "PATH": os.environ["PATH"],
            "HF_HOME": str(home),
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_TELEMETRY": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def cached(home: Path, repo: str) -> Path:
    return home / "hub" / f"models--{repo.replace('/', '--')}"


def lying(home: Path, repo: str) -> dict[str, bytes]:
    snapshot = cached(home, repo) / "snapshots" / COMMIT
    return {
        str(path.relative_to(snapshot)): path.read_bytes() for path in snapshot.rglob("*") if path.is_file()
    }


def wanted(name: str) -> dict[str, bytes]:
    files = LAYOUTS[name]
    return {each: files[each] for each in choice(files, SOURCES[name]).downloaded}


@pytest.mark.parametrize("how", ["node", "client"])
def test_the_node_and_the_hubs_client_fetch_just_what_the_rule_says(
    hub: Hub, tmp_path: Path, how: str
) -> None:
    done = fetch(hub, tmp_path, how, *SOURCES.values())
    assert done.returncode == 0, done.stderr
    assert {name: lying(tmp_path, source.repo) for name, source in SOURCES.items()} == {
        name: wanted(name) for name in SOURCES
    }
    assert hub.fetched() == {
        f"{source.repo}/{each}" for name, source in SOURCES.items() for each in wanted(name)
    }
    assert not list(tmp_path.rglob("escape.json"))


def test_the_client_finds_what_the_node_fetched_and_fetches_nothing(hub: Hub, tmp_path: Path) -> None:
    assert fetch(hub, tmp_path, "node", *SOURCES.values()).returncode == 0
    hub.asked.clear()
    done = fetch(hub, tmp_path, "client", *SOURCES.values())
    assert done.returncode == 0, done.stderr
    assert hub.fetched() == set()


def test_a_branch_is_remembered_and_a_commit_names_itself(hub: Hub, tmp_path: Path) -> None:
    assert fetch(hub, tmp_path, "node", *SOURCES.values()).returncode == 0
    assert (cached(tmp_path, "acme/both") / "refs/main").read_text() == COMMIT
    assert not (cached(tmp_path, "acme/sub") / "refs").exists()


def test_the_token_goes_to_the_hub_and_not_on_to_its_storage(hub: Hub, tmp_path: Path) -> None:
    fetch(hub, tmp_path, "node", SOURCES["safetensors and bin"])
    assert any(path.startswith("/storage") for _, path, _ in hub.asked)
    for _, path, authorization in hub.asked:
        assert authorization == (None if path.startswith("/storage") else f"Bearer {TOKEN}")


def test_what_is_there_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    fetch(hub, tmp_path, "node", SOURCES["mistral"])
    hub.asked.clear()
    assert fetch(hub, tmp_path, "node", SOURCES["mistral"]).returncode == 0
    assert [path for _, path, _ in hub.asked] == ["/api/models/acme/mistral/revision/main"]


def test_a_file_that_was_cut_short_is_none_and_the_next_try_gets_it(hub: Hub, tmp_path: Path) -> None:
    source = SOURCES["safetensors and bin"]
    hub.cut = True
    done = fetch(hub, tmp_path, "node", source)
    assert done.returncode != 0
    assert TOKEN not in done.stderr
    assert not list(cached(tmp_path, source.repo).rglob("*.safetensors"))
    assert not (cached(tmp_path, source.repo) / "refs/main").exists()
    hub.cut = False
    assert fetch(hub, tmp_path, "node", source).returncode == 0
    assert lying(tmp_path, source.repo)["model.safetensors"] == weight("model.safetensors")
