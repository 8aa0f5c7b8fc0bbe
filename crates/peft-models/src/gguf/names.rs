//! Tensors of GGUF by the names that Transformers has for them, and how their rows lie.

use serde_json::{Map, Value};

/// What was done to a tensor's values when the file was made, to be undone.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Layout {
    /// Rows of each of so many heads alternate between its first and second half: what llama.cpp's rotation takes.
    pub(crate) interleaved_heads: Option<usize>,
    /// One was added: norms that Transformers keeps around zero.
    pub(crate) plus_one: bool,
}

impl Layout {
    /// The values as Transformers has them, rows of the first dimension of `shape`.
    pub(crate) fn undo(self, mut values: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        if self.plus_one {
            values.iter_mut().for_each(|value| *value -= 1.0);
        }
        match shape.first() {
            Some(rows) => self.ordered(values, *rows),
            None => values,
        }
    }

    /// Rows in the order of Transformers, of values or of the bytes that they are packed in.
    pub(crate) fn ordered<T: Copy>(self, values: Vec<T>, rows: usize) -> Vec<T> {
        let Some(heads) = self.interleaved_heads else { return values };
        let (row, half) = (values.len() / rows.max(1), rows / heads.max(1) / 2);
        if row == 0 || half == 0 {
            return values;
        }
        let mut ordered = Vec::with_capacity(values.len());
        for head in values.chunks(2 * half * row) {
            for side in 0..2 {
                head.chunks(row).skip(side).step_by(2).for_each(|row| ordered.extend_from_slice(row));
            }
        }
        ordered
    }
}

/// The name of a tensor in Transformers' class with the causal head, and its layout; none for what is no parameter.
pub(crate) fn translate(name: &str, architecture: &str, config: &Map<String, Value>) -> Option<(String, Layout)> {
    let is_gemma = architecture.starts_with("gemma");
    let (module, suffix) = name.rsplit_once('.')?;
    let plus_one = is_gemma && module.ends_with("norm");
    let plain = Layout { plus_one, ..Layout::default() };
    let top = match module {
        "token_embd" => Some("model.embed_tokens"),
        "output_norm" => Some("model.norm"),
        "output" => Some("lm_head"),
        _ => None,
    };
    if let Some(top) = top {
        return Some((format!("{top}.{suffix}"), plain));
    }
    let (layer, part) = module.strip_prefix("blk.")?.split_once('.')?;
    let heads = |key: &str| {
        let count = config.get(key).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
        Layout { interleaved_heads: count.filter(|_| architecture == "llama"), ..Layout::default() }
    };
    let (own, layout) = match part {
        "attn_q" => ("self_attn.q_proj", heads("num_attention_heads")),
        "attn_k" => ("self_attn.k_proj", heads("num_key_value_heads")),
        "attn_v" => ("self_attn.v_proj", plain),
        "attn_output" => ("self_attn.o_proj", plain),
        "attn_q_norm" => ("self_attn.q_norm", plain),
        "attn_k_norm" => ("self_attn.k_norm", plain),
        "ffn_gate" => ("mlp.gate_proj", plain),
        "ffn_up" => ("mlp.up_proj", plain),
        "ffn_down" => ("mlp.down_proj", plain),
        "attn_norm" => ("input_layernorm", plain),
        "ffn_norm" if is_gemma => ("pre_feedforward_layernorm", plain),
        "ffn_norm" => ("post_attention_layernorm", plain),
        "post_attention_norm" => ("post_attention_layernorm", plain),
        "post_ffw_norm" => ("post_feedforward_layernorm", plain),
        _ => return None,
    };
    Some((format!("model.layers.{layer}.{own}.{suffix}"), layout))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    #[test]
    fn rows_of_a_head_come_apart() {
        let layout = Layout { interleaved_heads: Some(2), plus_one: false };
        let rows: Vec<f32> = (0_u8..8).flat_map(|row| [f32::from(row), f32::from(row) + 0.5]).collect();
        let firsts: Vec<f32> = layout.undo(rows, &[8, 2]).into_iter().step_by(2).collect();
        assert_eq!(firsts, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        let shifted = Layout { plus_one: true, ..Layout::default() }.undo(vec![1.5, 1.0], &[2]);
        assert_eq!(shifted, [0.5, 0.0]);
    }

    #[test]
    fn names_depend_on_the_family() {
        let config = json!({ "num_attention_heads": 9, "num_key_value_heads": 3 });
        let find = |name: &str, architecture: &str| translate(name, architecture, config.as_object()?);
        let (name, layout) = find("blk.7.attn_k.weight", "llama").unwrap();
        assert_eq!((name.as_str(), layout.interleaved_heads), ("model.layers.7.self_attn.k_proj.weight", Some(3)));
        assert_eq!(find("blk.7.attn_k.bias", "qwen2").unwrap().1, Layout::default());
        let (name, layout) = find("blk.0.ffn_norm.weight", "gemma2").unwrap();
        assert_eq!((name.as_str(), layout.plus_one), ("model.layers.0.pre_feedforward_layernorm.weight", true));
        assert_eq!(find("rope_freqs.weight", "llama"), None);
    }
}
