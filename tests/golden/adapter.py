"""Reference logits, gradients and merged weights of LoRA adapters by PEFT, in f64, for crates/temper-model/tests/adapter.rs.

Run by hand with torch 2.13.0, transformers 5.23.0 and peft 0.21.2:  python tests/golden/adapter.py
Writes tests/golden/adapter/{plain,rslora}/: the adapter as PEFT saves it, and golden.safetensors beside its files. The base models are
those of model.py.

What Temper wrote is checked by PEFT with:  python tests/golden/adapter.py check BASE ADAPTER MERGED
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
VOCAB = 97
LENGTHS = (40, 9, 13)


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")


def golden(model, seed):
    """Logits of every position, the masked loss, and the gradients of what is trained."""
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
    for name, p in model.named_parameters():
        assert p.requires_grad == ("lora_" in name), name
        if p.requires_grad:
            arrays["grad." + name.replace(".default", "")] = p.grad.float().contiguous()
    return arrays


def make(name, base, seed, **settings):
    torch.manual_seed(seed)
    model = get_peft_model(load(HERE / "model" / base), LoraConfig(task_type="CAUSAL_LM", **settings))
    for key, p in model.named_parameters():
        if "lora_" in key:
            # Rounded to what is stored.
            p.data = (torch.randn_like(p) * 0.2).float().double()
    out = HERE / "adapter" / name
    model.peft_config["default"].base_model_name_or_path = f"../../model/{base}"
    arrays = golden(model, seed + 1)
    for _, p in model.named_parameters():
        p.data = p.data.float() if p.requires_grad else p.data
    model.save_pretrained(out)
    model.double()
    merged = model.merge_and_unload()
    arrays |= {f"merged.{k}": p.detach().float().contiguous() for k, p in merged.named_parameters() if "_proj.weight" in k}
    save_file(arrays, out / "golden.safetensors")
    (out / "README.md").unlink(missing_ok=True)
    print(name, json.dumps({f.name: f.stat().st_size for f in sorted(out.iterdir())}))


def check(base, adapter, merged):
    """Prints how far PEFT's logits of Temper's adapter, and transformers' of Temper's merged model, are from each other and the base."""
    torch.manual_seed(5)
    plain = load(base)
    ids = torch.randint(0, plain.config.vocab_size, (2, 50))
    with torch.no_grad():
        start = plain(ids).logits
        with_adapter = PeftModel.from_pretrained(plain, adapter).double()(ids).logits
        whole = load(merged)(ids).logits
    relative = lambda a, b: ((a - b).norm() / b.norm()).item()
    print(f"adapter against merged {relative(with_adapter, whole):.2e}, against the base {relative(with_adapter, start):.2e}")


if sys.argv[1:2] == ["check"]:
    check(*sys.argv[2:5])
else:
    make("plain", "llama", 51, r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"])
    make("rslora", "short", 61, r=3, lora_alpha=4, target_modules="all-linear", use_rslora=True)
