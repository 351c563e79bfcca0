"""How far PyTorch's bf16 is from f64, per tensor, on the models of model.py, for crates/temper-model/tests/golden.rs.

Run by hand, after model.py, with torch 2.13.0 and transformers 5.23.0:  python tests/golden/model_bf16.py
Writes tests/golden/model/*/bf16.safetensors, sequences with their logits and gradients in f64, enough of them that an error is not that
of a few tokens; and tests/golden/model/bf16.json, relative L2 errors of the logits and of each parameter's gradient.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent / "model"
VOCAB = 97
LENGTHS = (40, 9, 13, 27) * 12
SHOWN = 3  # sequences whose logits are compared


def sequences(seed):
    torch.manual_seed(seed)
    for length in LENGTHS:
        weight = torch.where(torch.rand(length) < 0.6, torch.rand(length), 0.0)
        weight[0] = 0.0
        yield torch.randint(0, VOCAB, (length,)), weight


def results(name, rows, **how):
    """Logits of the first sequences, and gradients."""
    model = AutoModelForCausalLM.from_pretrained(HERE / name, **how)
    logits, total = [], 0.0
    for ids, weight in rows:
        out = model(ids[None]).logits[0]
        logits.append(out.detach())
        out = out.float() if out.dtype == torch.bfloat16 else out
        logp = torch.log_softmax(out[:-1], -1)[torch.arange(len(ids) - 1), ids[1:]]
        total = total - (weight[1:].to(logp.dtype) * logp).sum()
    total.backward()
    return {"logits": torch.cat(logits[:SHOWN])} | {n: p.grad for n, p in model.named_parameters()}


def relative(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


def errors(name, seed):
    rows = list(sequences(seed))
    want = results(name, rows, dtype=torch.float64, attn_implementation="eager")
    got = results(name, rows, dtype=torch.bfloat16, attn_implementation="sdpa")
    arrays = {f"ids.{i}": ids.float() for i, (ids, _) in enumerate(rows)}
    arrays |= {f"weight.{i}": weight for i, (_, weight) in enumerate(rows)}
    save_file(arrays | {n: x.float().contiguous() for n, x in want.items()}, HERE / name / "bf16.safetensors")
    return {n: relative(got[n], x) for n, x in want.items()}


found = {name: errors(name, seed) for name, seed in (("llama", 12), ("mistral", 22), ("short", 32))}
(HERE / "bf16.json").write_text(json.dumps(found, indent=1) + "\n")
print({name: (max(e.values()), min(e.values())) for name, e in found.items()})
