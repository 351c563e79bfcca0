"""Golden files for temper-format: what gguf-py and torch write, and the values that they read back.

    python tests/golden/formats.py          # rewrites tests/golden/format/

Versions: gguf 0.19.0, numpy 2.4.6, safetensors 0.8.0, torch 2.13.0, Python 3.11. Never run in CI.

types.gguf           one array of each type that Temper reads, metadata of each kind, and one Q6_K array, unreadable
types.safetensors    for each array NAME of types.gguf: NAME.source (f32, before quantisation, only for quantised
                     types) and NAME (f32, as gguf-py dequantises it)
torch.safetensors    written by safetensors.torch: bf16, f16, f32, i64 and bool arrays, a scalar and an empty one
torch_f32.safetensors   torch's own conversion of the float arrays to f32, and of `wide` to bf16 and f16
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Type
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file as save_torch

OUT = Path(__file__).parent / "format"
QUANTISED = [Type.Q8_0, Type.Q4_0, Type.Q4_1]


def values(rng, rows, columns):
    """Rows of very different scale, one of zeros, one of a single sign, exact halves for the rounding rules."""
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    x *= np.exp2(rng.integers(-12, 8, (rows, 1))).astype(np.float32)
    x[1] = 0
    x[2] = np.abs(x[2])
    # No -0.0: ggml and gguf-py give a block of them scales of different sign.
    x[3] = np.round(x[3] * 2) / 2 + 0.0
    return x


def write_types():
    rng = np.random.default_rng(7)
    expected = {}
    writer = gguf.GGUFWriter(OUT / "types.gguf", "llama")
    writer.add_uint8("test.u8", 200)
    writer.add_int8("test.i8", -100)
    writer.add_uint16("test.u16", 60000)
    writer.add_int16("test.i16", -30000)
    writer.add_uint32("test.u32", 4_000_000_000)
    writer.add_int32("test.i32", -2_000_000_000)
    writer.add_uint64("test.u64", 2**63 + 1)
    writer.add_int64("test.i64", -(2**62))
    writer.add_float32("test.f32", 0.1)
    writer.add_float64("test.f64", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "grüße ✓\n")
    writer.add_array("test.strings", ["a", "", "Ġb"])
    writer.add_array("test.ints", [1, -2, 3])
    writer.add_array("test.floats", [0.5, -0.25])
    for kind in [Type.F32, Type.F16, Type.BF16, *QUANTISED]:
        name = f"{kind.name.lower()}.weight"
        x = values(rng, 5, 96)
        data = gguf.quants.quantize(x, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        expected[name] = gguf.quants.dequantize(data, kind)
        if kind in QUANTISED:
            expected[f"{name}.source"] = x
    writer.add_tensor("scalars", np.arange(7, dtype=np.float32))
    expected["scalars"] = np.arange(7, dtype=np.float32)
    writer.add_tensor("q6_k.weight", rng.integers(0, 255, (2, 210), dtype=np.uint8), raw_dtype=Type.Q6_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_numpy(expected, OUT / "types.safetensors")


def write_torch():
    torch.manual_seed(7)
    x = torch.randn(6, 10) * torch.logspace(-6, 4, 6)[:, None]
    # Ties of bf16 and of f16, subnormal and huge values, infinities.
    edges = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 2**-24, 2**-25, 3 * 2**-25, 2**-26]
    edges += [65504, 65519.99, 65520, 3.3895e38, 3.4e38, 1e-40, 2**-140, float("inf"), -float("inf"), -0.0, 0.0]
    wide = torch.tensor(edges + [-v for v in edges], dtype=torch.float32)
    arrays = {
        "bf16": x.to(torch.bfloat16),
        "f16": x.to(torch.float16),
        "f32": x.clone(),
        "i64": torch.arange(-3, 4),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(0.1, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
    }
    save_torch(arrays, OUT / "torch.safetensors", metadata={"format": "pt", "note": "grüße"})
    floats = {k: v.to(torch.float32) for k, v in arrays.items() if v.is_floating_point()}
    rounded = {"wide": wide, "wide.bf16": wide.to(torch.bfloat16), "wide.f16": wide.to(torch.float16)}
    save_torch(floats | rounded, OUT / "torch_f32.safetensors")


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    write_types()
    write_torch()
