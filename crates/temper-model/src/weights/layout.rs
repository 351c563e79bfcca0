//! Names and shapes: which tensors a configuration asks for, in Hugging Face's spelling and in GGUF's.

use crate::config::Config;

/// The embedding matrix.
pub(crate) const EMBED: &str = "model.embed_tokens.weight";
/// The final norm.
pub(crate) const NORM: &str = "model.norm.weight";
/// The head, absent when it is tied to the embedding.
pub(crate) const HEAD: &str = "lm_head.weight";

/// Tensors of a block: Hugging Face's name and GGUF's.
const BLOCK: [(&str, &str); 9] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// One tensor that a model consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorSpec {
    /// Hugging Face's name, which is also the parameter's.
    pub(crate) name: String,
    /// GGUF's name.
    pub(crate) gguf: String,
    /// `[out, in]`, or `[C]` for a norm.
    pub(crate) shape: Vec<usize>,
    /// Whether its output is added to the residual stream (such weights start smaller).
    pub(crate) residual: bool,
    /// Whether this is a bias (the other vectors are norms).
    pub(crate) bias: bool,
    /// For query and key projections (weights and biases) the number of heads, whose rows GGUF files interleave.
    pub(crate) rotary_heads: Option<usize>,
}

/// The name of a block's tensor; `part` as in Hugging Face, for example `mlp.up_proj`.
pub(crate) fn block_name(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}.weight")
}

/// The name of the bias that belongs to [`block_name`].
pub(crate) fn bias_name(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}.bias")
}

/// All tensors in the model's own order: embedding, blocks, final norm, head if it is not tied.
pub(crate) fn tensors(c: &Config) -> Vec<TensorSpec> {
    let (v, h) = (c.vocab_size, c.hidden_size);
    let plain = |name: &str, gguf: &str, shape: Vec<usize>| TensorSpec {
        name: name.into(),
        gguf: gguf.into(),
        shape,
        residual: false,
        bias: false,
        rotary_heads: None,
    };
    let mut all = vec![plain(EMBED, "token_embd.weight", vec![v, h])];
    all.extend((0..c.num_hidden_layers).flat_map(|layer| block_tensors(c, layer)));
    all.push(plain(NORM, "output_norm.weight", vec![h]));
    if !c.tie_word_embeddings {
        all.push(plain(HEAD, "output.weight", vec![v, h]));
    }
    all
}

/// A block's tensors, each bias behind its matrix.
fn block_tensors(c: &Config, layer: usize) -> Vec<TensorSpec> {
    let mut all = Vec::new();
    for (part, gguf) in BLOCK {
        let weight = block_tensor(c, layer, part, gguf);
        let biased = part.starts_with("self_attn.") && c.attention_bias || part.starts_with("mlp.") && c.mlp_bias;
        let bias = biased.then(|| TensorSpec {
            name: bias_name(layer, part),
            gguf: format!("blk.{layer}.{gguf}.bias"),
            shape: vec![weight.shape[0]],
            bias: true,
            ..weight.clone()
        });
        all.push(weight);
        all.extend(bias);
    }
    all
}

fn block_tensor(c: &Config, layer: usize, part: &str, gguf: &str) -> TensorSpec {
    let (h, f) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let shape = match part {
        "self_attn.q_proj" => vec![q, h],
        "self_attn.k_proj" | "self_attn.v_proj" => vec![kv, h],
        "self_attn.o_proj" => vec![h, q],
        "mlp.gate_proj" | "mlp.up_proj" => vec![f, h],
        "mlp.down_proj" => vec![h, f],
        _ => vec![h],
    };
    let rotary_heads = match part {
        "self_attn.q_proj" => Some(c.num_attention_heads),
        "self_attn.k_proj" => Some(c.num_key_value_heads),
        _ => None,
    };
    TensorSpec {
        name: block_name(layer, part),
        gguf: format!("blk.{layer}.{gguf}.weight"),
        shape,
        residual: matches!(part, "self_attn.o_proj" | "mlp.down_proj"),
        bias: false,
        rotary_heads,
    }
}

/// Undoes the order of rows that llama.cpp's converter gives query and key weights of Llama models: there the two
/// halves of every head are interleaved (pair `i` is rows `2i` and `2i + 1`), in Hugging Face they follow each other.
/// `rows` is row-major `[heads * D, k]`, of values or of the bytes of a row's blocks.
pub(crate) fn deinterleave<T: Copy>(rows: &[T], heads: usize, k: usize) -> Vec<T> {
    let d = rows.len() / heads / k;
    let order = (0..heads).flat_map(|h| (0..2).flat_map(move |half| (0..d / 2).map(move |i| h * d + 2 * i + half)));
    let mut out = Vec::with_capacity(rows.len());
    order.for_each(|row| out.extend_from_slice(&rows[row * k..(row + 1) * k]));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_add_up_to_the_parameter_count() {
        let mut c = Config::llama(97, 64, 3, 4);
        c.num_key_value_heads = 2;
        for flags in 0..8 {
            (c.tie_word_embeddings, c.attention_bias, c.mlp_bias) = (flags & 1 > 0, flags & 2 > 0, flags & 4 > 0);
            let total: usize = tensors(&c).iter().map(|t| t.shape.iter().product::<usize>()).sum();
            assert_eq!(total as u64, c.parameter_count());
        }
        let names: Vec<_> = tensors(&c).into_iter().map(|t| (t.name, t.gguf)).collect();
        assert!(names.contains(&("model.layers.2.mlp.down_proj.weight".into(), "blk.2.ffn_down.weight".into())));
        assert!(names.contains(&("model.layers.1.self_attn.o_proj.bias".into(), "blk.1.attn_output.bias".into())));
    }

    #[test]
    fn deinterleaving_puts_the_first_of_each_pair_in_the_first_half() {
        // Two heads of size 4, one column: pairs (a0 b0) (a1 b1) become a0 a1 b0 b1.
        let gguf = [0.0, 10.0, 1.0, 11.0, 100.0, 110.0, 101.0, 111.0];
        assert_eq!(deinterleave(&gguf, 2, 1), [0.0, 1.0, 10.0, 11.0, 100.0, 101.0, 110.0, 111.0]);
    }
}
