#!/usr/bin/env python3
"""Golden numbers for temper-tensor: every fused operation, forward and backward, and one transformer block.

Writes tensor_ops.safetensors beside this file. Inputs are f32 numbers; everything is computed in f64 and the results
are rounded to f32. Never run in CI; run by hand when a convention is added:

    python tests/golden/tensor_ops.py

Requirements (pinned): torch==2.13.0, safetensors>=0.6, numpy. CPU only, no network.
"""
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

OUT = {}
GEN = torch.Generator().manual_seed(20250)


def rand(*shape, scale=1.0, leaf=True):
    """f32-representable normal numbers, as an f64 leaf."""
    x = (torch.randn(*shape, generator=GEN, dtype=torch.float32) * scale).double()
    return x.requires_grad_(leaf)


def put(case, **tensors):
    for name, t in tensors.items():
        t = t.detach()
        OUT[f"{case}/{name}"] = (t if t.dtype == torch.int32 else t.float()).contiguous()


def ints(values):
    return torch.tensor(values, dtype=torch.int32)


def backward(y, **leaves):
    """Random output gradient; gradients of the leaves, named d_<leaf>."""
    dy = rand(*y.shape, leaf=False)
    grads = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"dy": dy, **{f"d_{k}": g for k, g in zip(leaves, grads)}}


# Row-wise operations -------------------------------------------------------------------------------------------------

def embedding():
    w, ids = rand(37, 24), [3, 36, 0, 3, 17, 3, 35]
    y = F.embedding(torch.tensor(ids), w)
    put("embedding", w=w, ids=ints(ids), y=y, **backward(y, w=w))


def linear():
    x, w, b = rand(7, 40), rand(37, 40, scale=0.2), rand(37)
    y = F.linear(x, w, b)
    put("linear", x=x, w=w, b=b, y=y, **backward(y, x=x, w=w, b=b))


def rms(x, w, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w


def rms_norm():
    x, w = rand(6, 48), rand(48)
    y = rms(x, w, 1e-5)
    assert torch.allclose(y, F.rms_norm(x, (48,), w, 1e-5))
    put("rms_norm", x=x, w=w, y=y, **backward(y, x=x, w=w))


def rotate(x, heads, positions, theta=10000.0):
    """Hugging Face convention: element i pairs with element i + D/2."""
    n, width = x.shape
    d = width // heads
    inv = theta ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angle = torch.tensor(positions, dtype=torch.float64)[:, None] * inv
    cos, sin = angle.cos().repeat(1, 2)[:, None], angle.sin().repeat(1, 2)[:, None]
    x = x.view(n, heads, d)
    half = torch.cat([-x[..., d // 2:], x[..., : d // 2]], -1)
    return (x * cos + half * sin).reshape(n, width)


def rope():
    x, positions = rand(5, 96), [0, 1, 2, 700, 1999]
    y = rotate(x, 3, positions)
    put("rope", x=x, positions=ints(positions), y=y, **backward(y, x=x))


def gates():
    for case, act in [("swiglu", F.silu), ("geglu", lambda g: F.gelu(g, approximate="tanh"))]:
        gate, up = rand(5, 40, scale=2.0), rand(5, 40)
        y = act(gate) * up
        put(case, gate=gate, up=up, y=y, **backward(y, gate=gate, up=up))


# Attention -----------------------------------------------------------------------------------------------------------

def chain_mask(segments):
    """allowed[i, j]: row j is in row i's segment at or before it, or anywhere in the segment's parent chain."""
    n = sum(length for _, length, _ in segments)
    allowed = torch.zeros(n, n, dtype=torch.bool)
    for start, length, parent in segments:
        rows = slice(start, start + length)
        allowed[rows, rows] = torch.ones(length, length).tril().bool()
        while parent is not None:
            p_start, p_len, parent = segments[parent]
            allowed[rows, p_start:p_start + p_len] = True
    return allowed


def attend(q, k, v, segments, heads, kv_heads, scale):
    n, d = q.shape[0], q.shape[1] // heads
    split = lambda x, h: x.view(n, h, d).transpose(0, 1)
    group = heads // kv_heads
    k, v = (split(x, kv_heads).repeat_interleave(group, 0) for x in (k, v))
    return F.scaled_dot_product_attention(split(q, heads), k, v, attn_mask=chain_mask(segments), scale=scale) \
        .transpose(0, 1).reshape(n, heads * d)


# (start, len, parent): a plain sequence; a prompt longer than a key block with two completions and a grandchild.
SEGMENTS = [(0, 5, None), (5, 67, None), (72, 9, 1), (81, 3, 1), (84, 4, 2)]


def attention():
    n = sum(s[1] for s in SEGMENTS)
    q, k, v = rand(n, 32), rand(n, 16), rand(n, 16)
    y = attend(q, k, v, SEGMENTS, 2, 1, 0.25)
    put("attention", q=q, k=k, v=v, y=y, **backward(y, q=q, k=k, v=v))


# Head, optimiser -----------------------------------------------------------------------------------------------------

def head():
    m, c, v, temperature = 6, 24, 53, 0.7
    hidden, w = rand(m, c), rand(v, c, scale=0.4)
    targets = [0, 52, 17, 17, 3, 40]
    logp_all = F.log_softmax(hidden @ w.T / temperature, -1)
    logp = logp_all.gather(1, torch.tensor(targets)[:, None])[:, 0]
    lse = torch.logsumexp(hidden @ w.T / temperature, -1)
    entropy = -(logp_all.exp() * logp_all).sum(-1)
    d_logp, d_entropy = rand(m, leaf=False), rand(m, leaf=False)
    d_hidden, d_w = torch.autograd.grad((logp * d_logp + entropy * d_entropy).sum(), [hidden, w])
    put("head", hidden=hidden, w=w, targets=ints(targets), logp=logp, lse=lse, entropy=entropy,
        argmax=logp_all.argmax(-1).int(), d_logp=d_logp, d_entropy=d_entropy, d_hidden=d_hidden, d_w=d_w)


def adamw():
    w, b = rand(5, 7), rand(7)
    put("adamw", w0=w, b0=b)
    groups = [{"params": [w], "weight_decay": 0.1}, {"params": [b], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.95), eps=1e-8)
    for step in range(1, 4):
        w.grad, b.grad = rand(5, 7, leaf=False), rand(7, leaf=False)
        put("adamw", **{f"gw{step}": w.grad, f"gb{step}": b.grad})
        optimiser.step()
        put("adamw", **{f"w{step}": w, f"b{step}": b})


# A whole block -------------------------------------------------------------------------------------------------------

def block():
    """Llama block with grouped-query attention over two packed sequences and a shared prompt."""
    segments = [(0, 4, None), (4, 5, None), (9, 3, 1), (12, 2, 1)]
    positions = [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 5, 6]
    c, heads, kv, d, inner, eps = 32, 2, 1, 16, 40, 1e-5
    x = rand(14, c)
    p = {
        "norm1": rand(c), "wq": rand(heads * d, c, scale=0.2), "wk": rand(kv * d, c, scale=0.2),
        "wv": rand(kv * d, c, scale=0.2), "wo": rand(c, heads * d, scale=0.2), "norm2": rand(c),
        "gate": rand(inner, c, scale=0.2), "up": rand(inner, c, scale=0.2), "down": rand(c, inner, scale=0.2),
    }
    h = rms(x, p["norm1"], eps)
    q = rotate(h @ p["wq"].T, heads, positions)
    k = rotate(h @ p["wk"].T, kv, positions)
    mid = x + attend(q, k, h @ p["wv"].T, segments, heads, kv, d ** -0.5) @ p["wo"].T
    h = rms(mid, p["norm2"], eps)
    y = mid + (F.silu(h @ p["gate"].T) * (h @ p["up"].T)) @ p["down"].T
    put("block", x=x, **p, y=y, **backward(y, x=x, **p))


def main():
    for case in (embedding, linear, rms_norm, rope, gates, attention, head, adamw, block):
        case()
    path = Path(__file__).with_name("tensor_ops.safetensors")
    save_file(OUT, path, metadata={"generator": "tests/golden/tensor_ops.py", "torch": torch.__version__})


if __name__ == "__main__":
    main()
