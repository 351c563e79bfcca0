"""How far PyTorch's bf16 is from f64, per tensor, on the models of model.py, for crates/temper-model/tests/golden.rs.

Run by hand, after model.py, with torch 2.13.0 and transformers 5.23.0:  python tests/golden/model_bf16.py
Writes tests/golden/model/bf16.json: relative L2 errors of the logits and of each parameter's gradient.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent / "model"


def relative(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def errors(name):
    want = load_file(HERE / name / "golden.safetensors")
    model = AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.bfloat16, attn_implementation="sdpa")
    logits, total = [], 0.0
    for i in range(3):
        ids, weight = want[f"ids.{i}"].long()[None], want[f"weight.{i}"]
        rows = model(ids).logits[0]
        logp = torch.log_softmax(rows[:-1].float(), -1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
        total = total - (weight[1:] * logp).sum()
        logits.append(rows.detach())
    total.backward()
    found = {"logits": relative(torch.cat(logits), torch.cat([want[f"logits.{i}"] for i in range(3)]))}
    return found | {n: relative(p.grad, want[f"grad.{n}"]) for n, p in model.named_parameters()}


found = {name: errors(name) for name in ("llama", "mistral", "short")}
(HERE / "bf16.json").write_text(json.dumps(found, indent=1) + "\n")
print({name: (max(e.values()), min(e.values())) for name, e in found.items()})
