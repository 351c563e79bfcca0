"""PyTorch's side of the raw training step: forward, all logits, cross entropy, backward and AdamW on random tokens.

    raw_step.py MODEL [--dtype f32|bf16] [--rows 4] [--tokens 256] [--steps 7] [--warmup 2]
    raw_step.py --tiny [...]        the tiny shape: 4 layers, 128 wide, FFN 384, vocabulary 256, batch 64 x 64

Prints one line RESULT {...}. bf16 keeps weights and optimiser state in bf16, as peers do."""
import argparse, json, resource, statistics, time

p = argparse.ArgumentParser()
p.add_argument("model", nargs="?")
p.add_argument("--tiny", action="store_true")
p.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
p.add_argument("--rows", type=int, default=4)
p.add_argument("--tokens", type=int, default=256)
p.add_argument("--steps", type=int, default=7)
p.add_argument("--warmup", type=int, default=2)
a = p.parse_args()
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
dtype = torch.float32 if a.dtype == "f32" else torch.bfloat16
if a.tiny:
    a.rows, a.tokens = 64, 64
    config = LlamaConfig(vocab_size=256, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                         intermediate_size=384, max_position_embeddings=256, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).to(dtype)
else:
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=dtype)
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
times = []
for step in range(a.warmup + a.steps):
    ids = torch.randint(0, model.config.vocab_size, (a.rows, a.tokens))
    began = time.perf_counter()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    loss.item()
    times.append(time.perf_counter() - began)
times = times[a.warmup:]
median = statistics.median(times)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print("RESULT " + json.dumps(dict(bench="raw_step", dtype=a.dtype, tiny=a.tiny, med_s=round(median, 4),
                                  step_tok_s=[round(a.rows * a.tokens / t, 1) for t in times], step_rate=[round(1 / t, 3) for t in times], peak_rss_mb=round(peak))))
