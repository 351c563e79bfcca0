"""How far PyTorch's bf16 is from f64, per tensor, on the models of model.py and the adapters of adapter.py, for
crates/temper-model/tests/golden.rs and adapter.rs.

Run by hand, after these, with torch 2.13.0, transformers 5.23.0 and peft 0.21.2:  python tests/golden/model_bf16.py
Writes tests/golden/model/*/bf16.safetensors, sequences with their logits and gradients in f64, enough of them that an error is not that
of a few tokens, and tests/golden/adapter/*/bf16.safetensors, logits and gradients of the adapters on the same sequences; and
tests/golden/model/bf16.json, relative L2 errors of the logits and of each parameter's gradient. PEFT keeps adapters of a bf16 model in f32.
"""

import json
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent / "model"
ADAPTERS = Path(__file__).parent / "adapter"
VOCAB = 97
LENGTHS = (40, 9, 13, 27) * 12
SHOWN = 3  # sequences whose logits are compared


def sequences(seed):
    torch.manual_seed(seed)
    for length in LENGTHS:
        weight = torch.where(torch.rand(length) < 0.6, torch.rand(length), 0.0)
        weight[0] = 0.0
        yield torch.randint(0, VOCAB, (length,)), weight


def results(name, rows, adapter, **how):
    """Logits of the first sequences, and gradients of what is trained."""
    model = AutoModelForCausalLM.from_pretrained(HERE / name, **how)
    if adapter:
        model = PeftModel.from_pretrained(model, ADAPTERS / adapter, is_trainable=True)
        model = model.double() if how["dtype"] == torch.float64 else model
    logits, total = [], 0.0
    for ids, weight in rows:
        out = model(ids[None]).logits[0]
        logits.append(out.detach())
        out = out.float() if out.dtype == torch.bfloat16 else out
        logp = torch.log_softmax(out[:-1], -1)[torch.arange(len(ids) - 1), ids[1:]]
        total = total - (weight[1:].to(logp.dtype) * logp).sum()
    total.backward()
    return {"logits": torch.cat(logits[:SHOWN])} | {
        n.replace(".default", ""): p.grad for n, p in model.named_parameters() if p.requires_grad
    }


def relative(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


def errors(name, seed, adapter=None):
    rows = list(sequences(seed))
    want = results(name, rows, adapter, dtype=torch.float64, attn_implementation="eager")
    got = results(name, rows, adapter, dtype=torch.bfloat16, attn_implementation="sdpa")
    arrays = {n: x.float().contiguous() for n, x in want.items()}
    if not adapter:
        arrays |= {f"ids.{i}": ids.float() for i, (ids, _) in enumerate(rows)}
        arrays |= {f"weight.{i}": weight for i, (_, weight) in enumerate(rows)}
    save_file(arrays, (ADAPTERS / adapter if adapter else HERE / name) / "bf16.safetensors")
    return {n: relative(got[n], x) for n, x in want.items()}


found = {name: errors(name, seed) for name, seed in (("llama", 12), ("mistral", 22), ("short", 32))}
found |= {adapter: errors(name, seed, adapter) for adapter, name, seed in (("plain", "llama", 12), ("rslora", "short", 32))}
(HERE / "bf16.json").write_text(json.dumps(found, indent=1) + "\n")
print({name: (max(e.values()), min(e.values())) for name, e in found.items()})
