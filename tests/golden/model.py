"""Reference logits and gradients of small random models, in f64, for crates/temper-model/tests/golden.rs.

Run by hand with torch 2.13.0 and transformers 5.23.0:  python tests/golden/model.py
Writes tests/golden/model/{llama,mistral,short}/: a Hugging Face directory, and golden.safetensors beside its files.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

HERE = Path(__file__).parent / "model"
VOCAB = 97
SHAPE = dict(
    vocab_size=VOCAB, num_hidden_layers=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
    initializer_range=0.2,
)
LLAMA = LlamaConfig(
    **SHAPE, hidden_size=64, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
    tie_word_embeddings=True, rms_norm_eps=1e-5,
    rope_parameters=dict(
        rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64,
    ),
)
# Heads larger than hidden_size / heads, one kv head for all, an untied head.
MISTRAL = MistralConfig(
    **SHAPE, hidden_size=48, intermediate_size=40, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
    tie_word_embeddings=False, rms_norm_eps=1e-6, sliding_window=None, rope_parameters=dict(rope_type="default", rope_theta=50000.0),
)
# Heads of 8, an odd width everywhere else, biases, YaRN with its factor on the scores, a prompt beyond the old context.
SHORT = LlamaConfig(
    **SHAPE, hidden_size=21, intermediate_size=11, num_attention_heads=3, num_key_value_heads=1, head_dim=8,
    tie_word_embeddings=False, rms_norm_eps=1e-5, attention_bias=True, mlp_bias=True,
    rope_parameters=dict(
        rope_type="yarn", rope_theta=1000.0, factor=8.0, original_max_position_embeddings=32, beta_fast=4.0, beta_slow=1.0,
    ),
)
LENGTHS = (40, 9, 13)


def randomise_vectors(model):
    """Norm weights start at 1 and biases at 0; anything else tests that they are applied."""
    for name, p in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.normal_(p, mean=1.0, std=0.2)
        elif name.endswith(".bias"):
            torch.nn.init.normal_(p, std=0.2)


def golden(model, seed):
    """Logits of every position, the masked loss and its gradients, by plain f64 arithmetic."""
    torch.manual_seed(seed)
    arrays, total = {}, torch.zeros((), dtype=torch.float64)
    for i, length in enumerate(LENGTHS):
        ids = torch.randint(0, VOCAB, (1, length))
        weight = torch.where(torch.rand(length) < 0.6, torch.rand(length, dtype=torch.float64), 0.0)
        weight[0] = 0.0
        logits = model(ids).logits[0]
        logp = torch.log_softmax(logits[:-1], -1)[torch.arange(length - 1), ids[0, 1:]]
        total = total - (weight[1:] * logp).sum()
        arrays[f"ids.{i}"], arrays[f"weight.{i}"] = ids[0].float(), weight.float()
        arrays[f"logits.{i}"] = logits.detach().float()
    total.backward()
    arrays["loss"] = total.detach().float().reshape(1)
    arrays |= {f"grad.{n}": p.grad.float().contiguous() for n, p in model.named_parameters()}
    return arrays


def make(name, model_class, config, dtype, seed):
    torch.manual_seed(seed)
    model = model_class(config)
    randomise_vectors(model)
    model.to(dtype).save_pretrained(HERE / name)
    # Loaded afresh: `to` has rounded the rotary frequencies too.
    model = model_class.from_pretrained(HERE / name, dtype=torch.float64, attn_implementation="eager")
    save_file(golden(model, seed + 1), HERE / name / "golden.safetensors")
    print(name, json.dumps({f.name: f.stat().st_size for f in sorted((HERE / name).iterdir())}))


make("llama", LlamaForCausalLM, LLAMA, torch.bfloat16, 11)
make("mistral", MistralForCausalLM, MISTRAL, torch.float16, 21)
make("short", LlamaForCausalLM, SHORT, torch.float16, 31)
