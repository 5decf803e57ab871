"""Models small enough for a CPU, made on the spot: `python tiny_models.py FOLDER` in vLLM's own environment.

Below FOLDER lies a cache as huggingface_hub keeps it, with `tiny/qwen3` in it: two layers of Qwen3 with
random weights, a tokenizer of single bytes and a chat template. `adapter` is a LoRA adapter of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

MODEL = "tiny/qwen3"
REVISION = "0" * 40
END, START = "<|im_end|>", "<|im_start|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAYERS, HEADS, KV_HEADS, HEAD_SIZE, HIDDEN = 2, 4, 2, 32, 64
LENGTH = 2048


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, and two that frame a message."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([START, END])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=END, pad_token=END, chat_template=TEMPLATE, model_max_length=LENGTH
    )


def model(vocabulary: int, end: int) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_SIZE,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        eos_token_id=end,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config).to(torch.bfloat16)


def adapter(folder: Path, rank: int = 4) -> None:
    """A LoRA adapter of the first projection of every layer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": MODEL,
        "r": rank,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = {}
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = torch.ones(rank, HIDDEN, dtype=torch.bfloat16)
        weights[f"{name}.lora_B.weight"] = torch.ones(HEADS * HEAD_SIZE, rank, dtype=torch.bfloat16)
    save_file(weights, str(folder / "adapter_model.safetensors"))


def main(folder: Path) -> None:
    repository = folder / "hub" / f"models--{MODEL.replace('/', '--')}"
    snapshot = repository / "snapshots" / REVISION
    words = tokenizer()
    words.save_pretrained(snapshot)
    model(len(words), words.convert_tokens_to_ids(END)).save_pretrained(snapshot)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(REVISION)
    adapter(folder / "adapter")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
