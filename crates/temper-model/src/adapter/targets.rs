//! Which linear layers an adapter is added to: name patterns.

/// The linear layers of a block.
const PARTS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// All of them; PEFT writes `all-linear`.
const ALL: [&str; 2] = ["all_linear", "all-linear"];

/// The linear layers of a model with that many blocks, in order: block and name in the block. The head is none of them, as in PEFT.
pub fn linear_layers(blocks: usize) -> impl Iterator<Item = (usize, &'static str)> {
    (0..blocks).flat_map(|layer| PARTS.map(|part| (layer, part)))
}

/// The layer's number in [`linear_layers`].
pub(super) fn place(layer: usize, part: &str) -> u64 {
    (layer * PARTS.len() + PARTS.iter().position(|p| *p == part).unwrap_or(0)) as u64
}

/// `model.layers.3.self_attn.q_proj`.
pub(super) fn module(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}")
}

/// Reads [`module`] back.
pub(super) fn parse_module(module: &str) -> Option<(usize, &'static str)> {
    let (layer, part) = module.strip_prefix("model.layers.")?.split_once('.')?;
    let part = PARTS.into_iter().find(|p| *p == part)?;
    let layer: usize = layer.parse().ok().filter(|n: &usize| n.to_string() == layer)?;
    Some((layer, part))
}

/// Whether a pattern names a layer. As in PEFT it is the name or the end of it, begun at a dot (`q_proj`,
/// `layers.3.mlp.up_proj`); `*` stands for any characters (`layers.1*.mlp.*`), `all_linear` for every layer.
pub fn matches_target(pattern: &str, layer: usize, part: &str) -> bool {
    let name = module(layer, part);
    let ends = std::iter::once(0).chain(name.match_indices('.').map(|(i, _)| i + 1));
    ALL.contains(&pattern) || ends.into_iter().any(|from| glob(pattern.as_bytes(), &name.as_bytes()[from..]))
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|from| glob(rest, &text[from..])),
        Some((c, rest)) => text.first() == Some(c) && glob(rest, &text[1..]),
    }
}

/// What a target can be.
pub(super) const TARGETS: &str = "name layers by the end of their name: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, \
     layers.3.mlp.*, or all_linear";

/// More blocks than any model has.
const MOST_BLOCKS: usize = 1 << 12;

/// The patterns that match no layer of a model with that many blocks, or of any model.
pub(super) fn idle(patterns: &[String], blocks: Option<usize>) -> Vec<&String> {
    let layers = || linear_layers(blocks.unwrap_or(MOST_BLOCKS));
    patterns.iter().filter(|p| !layers().any(|(layer, part)| matches_target(p, layer, part))).collect()
}

/// The layers that any of the patterns matches.
pub(super) fn matched(patterns: &[String], blocks: usize) -> Vec<(usize, &'static str)> {
    let any = |&(layer, part): &(usize, &str)| patterns.iter().any(|p| matches_target(p, layer, part));
    linear_layers(blocks).filter(any).collect()
}

/// PEFT's `target_modules` for these layers: short names where every block has them, else full ones.
pub(super) fn target_modules(layers: &[(usize, &'static str)], blocks: usize) -> Vec<String> {
    let everywhere = |part: &str| layers.iter().filter(|(_, p)| *p == part).count() == blocks;
    let short = |part: &str| part.rsplit('.').next().unwrap_or(part).to_owned();
    let mut names: Vec<String> = PARTS.into_iter().filter(|p| everywhere(p)).map(short).collect();
    names.extend(layers.iter().filter(|(_, p)| !everywhere(p)).map(|(layer, part)| module(*layer, part)));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(patterns: &[&str], blocks: usize) -> Vec<String> {
        let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        matched(&patterns, blocks).into_iter().map(|(l, p)| format!("{l}.{p}")).collect()
    }

    #[test]
    fn patterns_are_ends_of_names_with_stars() {
        assert_eq!(names(&["q_proj"], 2), ["0.self_attn.q_proj", "1.self_attn.q_proj"]);
        assert_eq!(
            names(&["v_proj", "layers.1.mlp.up_proj"], 2),
            ["0.self_attn.v_proj", "1.self_attn.v_proj", "1.mlp.up_proj"]
        );
        assert_eq!(names(&["model.layers.0.mlp.*"], 2), ["0.mlp.gate_proj", "0.mlp.up_proj", "0.mlp.down_proj"]);
        assert_eq!(names(&["layers.1*.o_proj"], 12).len(), 3);
        assert_eq!(names(&["all_linear"], 3).len(), 21);
        assert_eq!(names(&["*"], 3).len(), 21);
    }

    #[test]
    fn a_pattern_without_a_layer_is_named() {
        for pattern in ["proj", "q_pro", "lm_head", "layers.2.self_attn.q_proj", ""] {
            let patterns = ["q_proj".into(), pattern.to_owned()];
            assert_eq!(idle(&patterns, Some(2)), [pattern]);
            assert_eq!(idle(&patterns, None).is_empty(), pattern.contains("layers"));
        }
    }

    #[test]
    fn written_names_find_the_same_layers_again() {
        for patterns in [&["q_proj", "mlp.*"][..], &["layers.1.*", "k_proj"], &["all_linear"]] {
            let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
            let layers = matched(&patterns, 3);
            assert_eq!(matched(&target_modules(&layers, 3), 3), layers);
        }
        assert_eq!(target_modules(&matched(&["q_proj".into()], 3), 3), ["q_proj"]);
    }

    #[test]
    fn modules_are_read_back() {
        assert_eq!(parse_module(&module(12, "mlp.up_proj")), Some((12, "mlp.up_proj")));
        for wrong in ["model.layers.1.mlp", "model.layers.x.mlp.up_proj", "model.layers.+1.mlp.up_proj", "lm_head"] {
            assert_eq!(parse_module(wrong), None);
        }
        assert_eq!(place(2, "self_attn.k_proj"), 15);
    }
}
