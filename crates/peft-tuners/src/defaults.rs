//! Where each architecture is adapted when a configuration does not say, as PEFT has it.

/// The default `target_modules` of LoRA and the tuners that share its table, by `model_type`.
pub fn lora(model_type: &str) -> Option<&'static [&'static str]> {
    Some(match model_type {
        "t5" | "mt5" => &["q", "v"],
        "bart" | "opt" | "gptj" | "gpt_neo" | "llama" | "llama4" | "mistral" | "mixtral" | "gemma" | "gemma2"
        | "gemma3_text" | "qwen2" | "qwen3" | "stablelm" => &["q_proj", "v_proj"],
        "gpt2" | "gpt_bigcode" => &["c_attn"],
        "bloom" | "gpt_neox" | "falcon" | "RefinedWeb" | "RefinedWebModel" | "chatglm" => &["query_key_value"],
        "blip-2" => &["q", "v", "q_proj", "v_proj"],
        "bert" | "roberta" | "xlm-roberta" | "electra" | "layoutlm" => &["query", "value"],
        "deberta-v2" => &["query_proj", "value_proj"],
        "deberta" => &["in_proj"],
        "phi" => &["q_proj", "v_proj", "fc1", "fc2"],
        "mpt" => &["Wqkv"],
        "btlm" => &["c_proj", "c_attn"],
        "codegen" => &["qkv_proj"],
        "nemotron_h" => &["q_proj", "k_proj", "v_proj", "o_proj"],
        "rwkv" => &["key", "value", "receptance", "output"],
        "rwkv7" => &["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"],
        _ => return None,
    })
}
