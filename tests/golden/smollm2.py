"""Logits of a real model in f64, for the ignored tests of crates/temper-model/tests/real.rs.

Run by hand with torch 2.13.0 and transformers 5.23.0:
    python tests/golden/smollm2.py MODEL_DIR OUT.safetensors
    TEMPER_SMOLLM2=MODEL_DIR TEMPER_SMOLLM2_GOLDEN=OUT.safetensors cargo test -p temper-model --release -- --ignored
"""

import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
TEXT = (
    "The capital of France is Paris. Water boils at 100 degrees Celsius at sea level; a train that leaves at 14:05 and "
    "arrives at 16:20 has been under way for two hours and fifteen minutes. def add(a, b): return a + b"
)


def main(path, out):
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")
    ids = torch.tensor([tokenizer(TEXT).input_ids])
    prompt = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    logits = model(ids).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum")
    loss.backward()
    answer = model.generate(**prompt, max_new_tokens=32, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    print(repr(tokenizer.decode(answer)))
    names = ["model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight", "model.layers.29.mlp.down_proj.weight"]
    params = dict(model.named_parameters())
    arrays = {f"grad.{n}": params[n].grad.float().contiguous() for n in names if n in params}
    arrays |= {"ids": ids[0].float(), "prompt": prompt["input_ids"][0].float(), "answer": answer.float()}
    arrays |= {"logits": logits.detach().float(), "loss": loss.detach().float().reshape(1)}
    save_file(arrays, out)


main(*sys.argv[1:])
