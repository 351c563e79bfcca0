//! A model as a GGUF file. Shared with the tests of the command line.
#![allow(unreachable_pub)] // there the module is private

use std::collections::BTreeMap;
use std::path::Path;

use temper_format::{ArrayData, ArrayRef, DType, GgufValue, write_gguf};
use temper_model::Model;
use temper_tensor::Cpu;

/// As llama.cpp's converter writes it: its names, rows of query and key heads interleaved; matrices are of type `dtype`. `more` comes
/// after what the model's shape says.
pub fn write_gguf_of(model: &Model, path: &Path, dtype: DType, more: &[(&str, GgufValue)]) {
    let c = &model.config;
    let int = |n: usize| GgufValue::U32(n as u32);
    let mut metadata: BTreeMap<String, GgufValue> = [
        ("general.architecture", GgufValue::String("llama".into())),
        ("llama.context_length", int(c.max_position_embeddings)),
        ("llama.embedding_length", int(c.hidden_size)),
        ("llama.block_count", int(c.num_hidden_layers)),
        ("llama.feed_forward_length", int(c.intermediate_size)),
        ("llama.attention.head_count", int(c.num_attention_heads)),
        ("llama.attention.head_count_kv", int(c.num_key_value_heads)),
        ("llama.attention.key_length", int(c.head_dim)),
        ("llama.attention.layer_norm_rms_epsilon", GgufValue::F32(c.rms_norm_eps as f32)),
        ("llama.rope.freq_base", GgufValue::F32(c.rope_theta as f32)),
    ]
    .map(|(k, v)| (k.to_string(), v))
    .into();
    metadata.extend(more.iter().map(|(k, v)| (k.to_string(), v.clone())));
    let ops = Cpu::new();
    let arrays: Vec<(String, Vec<usize>, Vec<f32>)> = model
        .params
        .iter()
        .map(|(id, p)| {
            let values = model.params.values(&ops, id).unwrap();
            let (n, k) = p.shape();
            let heads = if p.name.contains("q_proj") { c.num_attention_heads } else { c.num_key_value_heads };
            let rotary = p.name.contains("q_proj") || p.name.contains("k_proj");
            let columns = if n == 1 { 1 } else { k };
            let values = if rotary { interleaved(&values, heads, columns) } else { values };
            (gguf_name(&p.name), if n == 1 { vec![k] } else { vec![n, k] }, values)
        })
        .collect();
    let refs: Vec<ArrayRef> = arrays
        .iter()
        .map(|(name, shape, data)| {
            let dtype = if shape.len() == 2 { dtype } else { DType::F32 };
            ArrayRef { name, dtype, shape, data: ArrayData::F32(data) }
        })
        .collect();
    write_gguf(path, &metadata, &refs).unwrap();
}

/// `reshape(heads, 2, D/2, k).swapaxes(1, 2)`, as the converter says.
fn interleaved(rows: &[f32], heads: usize, k: usize) -> Vec<f32> {
    let half = rows.len() / heads / k / 2;
    let mut out = vec![0.0; rows.len()];
    for (h, part, i) in (0..heads).flat_map(|h| (0..2).flat_map(move |p| (0..half).map(move |i| (h, p, i)))) {
        let (from, to) = ((h * 2 + part) * half + i, (h * half + i) * 2 + part);
        out[to * k..(to + 1) * k].copy_from_slice(&rows[from * k..(from + 1) * k]);
    }
    out
}

fn gguf_name(name: &str) -> String {
    let pairs = [
        ("model.embed_tokens", "token_embd"),
        ("model.layers", "blk"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
    ];
    pairs.iter().fold(name.to_string(), |n, (from, to)| n.replace(from, to))
}
