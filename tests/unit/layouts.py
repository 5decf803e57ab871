"""Repositories as they are on the hub, file by file; the content of a weight is its name, many times over."""

from __future__ import annotations

import json

INDEX = "model.safetensors.index.json"
SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def weight(name: str) -> bytes:
    return (name.encode() + b"\n") * (12_000 // len(name))


def repository(*names: str, **indexes: tuple[str, ...]) -> dict[str, bytes]:
    """Files of these names; `indexes` are names of index files, with the shards that each lists."""
    listing = {
        f"{name}.safetensors.index.json": json.dumps(
            {"metadata": {}, "weight_map": {f"layer.{i}": shard for i, shard in enumerate(shards)}}
        ).encode()
        for name, shards in indexes.items()
    }
    return {
        **{name: weight(name) if is_weight(name) else json.dumps({name: 0}).encode() for name in names},
        **listing,
    }


def is_weight(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5"))


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
LAYOUTS: dict[str, dict[str, bytes]] = {
    # openai/gpt-oss-20b: a second copy in original/, one level deep.
    "sharded with original": repository(
        *SMALL,
        *SHARDS,
        "README.md",
        "LICENSE",
        "original/model.safetensors",
        "original/dtypes.json",
        "metal/deep/model.bin",
        model=SHARDS,
    ),
    # Older models: the same weights as pickles, as TensorFlow and as Flax.
    "safetensors and bin": repository(
        *SMALL,
        "model.safetensors",
        "pytorch_model.bin",
        "tf_model.h5",
        "flax_model.msgpack",
        "training_args.bin",
    ),
    "bin alone": repository(
        *SMALL,
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "training_args.bin",
        "optimizer.pt",
    ),
    # mistralai/Mistral-7B-Instruct-v0.3.
    "mistral": repository(
        *SMALL,
        *SHARDS,
        "consolidated.safetensors",
        "params.json",
        "tokenizer.model",
        "tokenizer.model.v3",
        model=SHARDS,
    ),
    # mistralai/Mistral-Large: shards in both forms.
    "mistral sharded": repository(
        *SMALL,
        *SHARDS,
        "consolidated-00001-of-00002.safetensors",
        "consolidated-00002-of-00002.safetensors",
        "params.json",
        "tekken.json",
        model=SHARDS,
        consolidated=("consolidated-00001-of-00002.safetensors", "consolidated-00002-of-00002.safetensors"),
    ),
    # meta-llama/Llama-3: PyTorch's own files in original/, two of them deeper.
    "llama": repository(
        *SMALL,
        "model.safetensors",
        "original/consolidated.00.pth",
        "original/params.json",
        "original/mp16/consolidated.safetensors.bin",
    ),
    "pt alone": repository(*SMALL, "weights.pt"),
    "embedder": repository(
        *SMALL,
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "model.safetensors",
        "onnx/model.onnx",
        "openvino/model.bin",
        "2_Dense/model.safetensors",
        "2_Dense/config.json",
    ),
    "subfolder": repository("config.json", "text_encoder/model.safetensors", "unet/weights.bin"),
    "consolidated below": repository(*SMALL, "model.safetensors", "original/consolidated.safetensors"),
    # bartowski's and unsloth's: small quantizations on top, large ones in folders.
    "gguf": repository(
        "config.json",
        "README.md",
        "model-Q2_K.gguf",
        "model-Q4_K_M.gguf",
        "model-Q4_K_S.gguf",
        "Q8_0/model-Q8_0-00001-of-00002.gguf",
        "Q8_0/model-Q8_0-00002-of-00002.gguf",
    ),
    "adapter": repository("adapter_config.json", "adapter_model.safetensors", "README.md", "optimizer.pt"),
    "odd names": repository("config.json", "model [v1] *é.safetensors", "note?.json", "a b/c#d%20.json"),
}
