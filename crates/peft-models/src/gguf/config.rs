//! The configuration that a GGUF file's metadata means, by the names of Transformers.

use peft_core::{Error, Result};
use serde_json::{Map, Value, json};

use super::{GgmlType, GgufFile};

/// Keys that all families have, after the name of the architecture.
const KEYS: &[(&str, &str)] = &[
    ("context_length", "max_position_embeddings"),
    ("block_count", "num_hidden_layers"),
    ("feed_forward_length", "intermediate_size"),
    ("embedding_length", "hidden_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.key_length", "head_dim"),
    ("attention.sliding_window", "sliding_window"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("rope.freq_base", "rope_theta"),
];

/// Special tokens, after `tokenizer.ggml.`.
const TOKENS: &[(&str, &str)] =
    &[("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id"), ("padding_token_id", "pad_token_id")];

/// Reads the configuration.
///
/// # Errors
/// [`Error::File`] for an architecture that is not supported or a file without what every one has.
pub(crate) fn read(file: &GgufFile) -> Result<Map<String, Value>> {
    let architecture = file.architecture()?;
    let model_type = match architecture {
        "llama" | "qwen2" | "qwen3" | "gemma2" => architecture,
        "gemma3" => "gemma3_text",
        other => {
            let problem =
                format!("architecture `{other}` is not supported (supported: llama, qwen2, qwen3, gemma2, gemma3)");
            return Err(file.error(problem));
        }
    };
    let named = |key: &str| {
        let key = format!("{architecture}.{key}");
        match file.get(&key) {
            // A number that JSON does not have.
            Some(Value::Null) => Err(file.error(format!("`{key}`: not a finite number"))),
            value => Ok(value),
        }
    };
    // What is read twice was judged the first time.
    let own = |key: &str| named(key).ok().flatten();
    let mut config = Map::new();
    for (key, name) in KEYS {
        if let Some(value) = named(key)? {
            config.insert((*name).to_owned(), value);
        }
    }
    for (key, name) in TOKENS {
        if let Some(value) = file.get(&format!("tokenizer.ggml.{key}")) {
            config.insert((*name).to_owned(), value);
        }
    }
    let words = file.tensors.get("token_embd.weight").and_then(|table| table.shape.first().copied());
    let words = words.ok_or_else(|| file.error("no tensor `token_embd.weight`"))?;
    let mut set = |name: &str, value: Value| _ = config.entry(name).or_insert(value);
    set("vocab_size", words.into());
    set("model_type", model_type.into());
    set("tie_word_embeddings", (!file.tensors.contains_key("output.weight")).into());
    set("torch_dtype", "float32".into());
    if let Some(dim) = own("rope.dimension_count").filter(|_| architecture == "llama") {
        set("head_dim", dim);
    }
    if let Some(scaling) = scaling(file, &named)? {
        set("rope_scaling", scaling);
    }
    let number = |value: Option<Value>| value.and_then(|value| value.as_u64());
    match architecture {
        "llama" => set("attention_bias", file.tensors.contains_key("blk.0.attn_q.bias").into()),
        "gemma2" | "gemma3" => {
            set("hidden_activation", "gelu_pytorch_tanh".into());
            // The file does not say what the scores are scaled by. The largest model of each generation divides its width
            // by its heads, the others take the dimensions of a head.
            let largest = if architecture == "gemma2" { 46 } else { 62 };
            let sizes = [own("embedding_length"), own("attention.head_count"), own("attention.key_length")].map(number);
            let scalar = match sizes {
                [Some(width), Some(heads), _] if number(own("block_count")) == Some(largest) && heads > 0 => {
                    width / heads
                }
                [_, _, dim] => dim.unwrap_or(256),
            };
            set("query_pre_attn_scalar", scalar.into());
        }
        _ => {}
    }
    if architecture == "gemma3" {
        set("rope_theta", 1_000_000.0.into());
        set("rope_local_base_freq", 10_000.0.into());
        set("sliding_window_pattern", 6.into());
    }
    Ok(config)
}

/// How positions are scaled.
fn scaling(file: &GgufFile, own: &impl Fn(&str) -> Result<Option<Value>>) -> Result<Option<Value>> {
    let kind = own("rope.scaling.type")?;
    if let Some(kind) = kind.as_ref().and_then(Value::as_str).filter(|kind| *kind != "none") {
        let mut scaling = json!({ "rope_type": kind });
        let keys = [("factor", "factor"), ("original_context_length", "original_max_position_embeddings")];
        for (key, name) in keys {
            if let Some(value) = own(&format!("rope.scaling.{key}"))? {
                scaling[name] = value;
            }
        }
        return Ok(Some(scaling));
    }
    // Llama 3 keeps what each frequency is divided by; the numbers behind it are the same in all its models.
    let Some(factors) = file.tensors.get("rope_freqs.weight") else { return Ok(None) };
    let bytes = file.bytes.as_slice().get(factors.place.clone()).unwrap_or_default();
    if factors.kind != GgmlType::F32 {
        return Err(Error::File { path: file.path.clone(), problem: "`rope_freqs.weight` should be F32".to_owned() });
    }
    let factors = factors.kind.dequantize(bytes);
    if !factors.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
        return Err(file.error("`rope_freqs.weight` should hold numbers above 0"));
    }
    let largest = factors.into_iter().fold(1.0_f32, f32::max);
    Ok((largest > 1.0).then(|| {
        json!({
            "rope_type": "llama3",
            "factor": largest,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        })
    }))
}
