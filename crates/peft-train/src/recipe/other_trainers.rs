//! Keys as TRL, Transformers, axolotl, LLaMA-Factory and mlx-lm call them, and what they are here.

/// What a key of another program is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Here {
    /// A key of a section.
    Key(&'static str, &'static str),
    /// Something else, in a sentence.
    Else(&'static str),
}

use Here::{Else, Key};

const NO_COUNTERPART: Here = Else("it has no counterpart here: leave it out");
const WEIGHT_TYPE: Here = Else(
    "the type of the base model's weights is dtype = \"bf16\" (or \"f16\", \"f32\") in [model]; an adapter is always f32",
);

#[rustfmt::skip]
const KEYS: &[(&[&str], Here)] = &[
    (&["model", "model_name", "base_model", "model_id", "model_path", "pretrained_model_name_or_path", "base_model_name_or_path",
       "model_name_or_id"], Key("model", "model_name_or_path")),
    (&["tokenizer_name", "tokenizer_path", "tokenizer_config"], Key("model", "tokenizer")),
    (&["torch_dtype", "precision", "model_dtype", "weight_dtype"], Key("model", "dtype")),
    (&["bf16", "fp16", "fp32", "tf32", "pure_bf16", "half", "mixed_precision", "bf16_full_eval", "fp16_full_eval"], WEIGHT_TYPE),
    (&["quantization_bit", "quantize", "quantization", "bits", "load_in_4_bit", "load_4bit", "use_4bit", "qlora", "use_qlora"],
     Key("model", "load_in_4bit")),
    (&["load_in_8_bit", "load_8bit", "use_8bit"], Key("model", "load_in_8bit")),
    (&["quant_type", "quantization_type", "bnb_quant_type", "bnb_4bit_type"], Key("model", "bnb_4bit_quant_type")),
    (&["double_quant", "double_quantization", "use_nested_quant", "use_double_quant"], Key("model", "bnb_4bit_use_double_quant")),
    (&["bnb_4bit_compute_dtype", "compute_dtype"],
     Else("packed weights are multiplied in f32 whatever the model's type, so that it is not needed: leave it out")),
    (&["bnb_4bit_quant_storage"], Else("codes are always kept in bytes: leave it out")),
    (&["device_map", "attn_implementation", "use_flash_attention_2", "flash_attention", "flash_attn", "trust_remote_code",
       "low_cpu_mem_usage", "use_cache", "xformers_attention", "sdp_attention", "model_type", "tokenizer_type",
       "local_files_only", "use_fast", "use_auth_token"], NO_COUNTERPART),

    (&["rank", "lora_r", "lora_rank", "lora_dim", "lora_attention_dim"], Key("adapter", "r")),
    (&["alpha", "lora_a"], Key("adapter", "lora_alpha")),
    (&["dropout", "lora_drop", "lora_dropout_p"], Key("adapter", "lora_dropout")),
    (&["lora_target", "lora_target_modules", "lora_modules", "target_layers", "modules"],
     Key("adapter", "target_modules")),
    (&["lora_target_linear", "target_all_linear", "all_linear"],
     Else("every linear layer but the head is target_modules = \"all-linear\" in [adapter]")),
    (&["additional_target", "lora_modules_to_save", "additional_trainable_modules"], Key("adapter", "modules_to_save")),
    (&["lora_layers", "num_layers", "layers_to_tune", "num_lora_layers"], Key("adapter", "layers_to_transform")),
    (&["peft_method", "peft", "method", "adapter_type", "tuner", "tuner_type", "finetuning_type", "fine_tune_type", "train_type"],
     Key("adapter", "peft_type")),
    (&["task", "task_name"], Key("adapter", "task_type")),
    (&["dora", "peft_use_dora"], Key("adapter", "use_dora")),
    (&["rslora", "use_rs_lora", "peft_use_rslora"], Key("adapter", "use_rslora")),
    (&["init_weights", "init_lora", "peft_init_lora_weights"], Key("adapter", "init_lora_weights")),
    (&["lora_bias_type", "train_bias"], Key("adapter", "bias")),
    (&["num_prefix_tokens", "prefix_length", "prompt_length", "pre_seq_len", "num_soft_tokens", "prompt_tokens"],
     Key("adapter", "num_virtual_tokens")),
    (&["use_lora", "use_peft", "lora"], Else("the tuner is peft_type = \"LORA\" in [adapter]")),

    (&["dataset", "datasets", "dataset_path", "dataset_name", "data", "data_path", "train_file", "train_dataset", "train_data",
       "train_data_path", "training_data"], Key("data", "train")),
    (&["eval_file", "eval_dataset", "validation_file", "validation", "val_file", "valid_file", "val_data", "valid", "eval_data",
       "test_file", "test_dataset", "dev"], Key("data", "eval")),
    (&["val_size", "val_set_size", "validation_split", "validation_ratio", "eval_size", "test_size", "eval_ratio",
       "eval_dataset_size", "validation_split_percentage"], Key("data", "eval_split")),
    (&["max_seq_length", "max_seq_len", "cutoff_len", "sequence_len", "sequence_length", "max_len", "model_max_length",
       "block_size", "seq_length", "seq_len", "max_source_length", "max_input_length", "max_prompt_length", "max_tokens",
       "max_sequence_length"],
     Key("data", "max_length")),
    (&["max_target_len", "max_output_length", "val_max_target_length", "max_completion_length"], Key("data", "max_target_length")),
    (&["truncation", "truncate", "truncation_mode"], Else("longer rows are cut by overflow = \"truncate\" in [data]")),
    (&["sample_packing", "pack", "pack_sequences", "neat_packing", "group_texts"], Key("data", "packing")),
    (&["text_column", "text_column_name", "text_field", "dataset_text_field", "text_key"], Key("data", "text")),
    (&["label_column", "label_column_name", "label_field", "label_key"], Key("data", "label")),
    (&["prompt_column", "prompt_field"], Key("data", "prompt")),
    (&["completion_column", "response_column", "completion_field"], Key("data", "completion")),
    (&["messages_column", "field_messages", "chat_feature"], Key("data", "messages")),
    (&["summary_column", "target_column"], Key("data", "target")),
    (&["mask_prompt", "completion_only", "train_on_completions_only", "train_on_completions"], Key("data", "completion_only_loss")),
    (&["train_on_inputs", "train_on_prompt"],
     Else("its opposite is completion_only_loss in [data]: completion_only_loss = false learns the prompt as well")),
    (&["train_on_responses_only", "assistant_only", "train_on_assistant_only"], Key("data", "assistant_only_loss")),
    (&["prefix", "input_prefix"], Key("data", "source_prefix")),
    (&["stride", "window_stride"], Key("data", "doc_stride")),
    (&["template", "prompt_template", "chat_template", "prompt_style"],
     Else("conversations are written by the chat template of the model's tokenizer (chat_template.jinja)")),
    (&["shuffle", "shuffle_dataset", "dataset_num_proc", "preprocessing_num_workers", "overwrite_cache", "streaming",
       "dataset_prepared_path", "dataset_kwargs"], NO_COUNTERPART),

    (&["lr", "learningrate", "base_lr", "peak_lr", "max_lr"], Key("training", "learning_rate")),
    (&["epochs", "epoch", "num_epochs", "n_epochs", "num_train_epoch", "max_epochs", "train_epochs"],
     Key("training", "num_train_epochs")),
    (&["batch_size", "train_batch_size", "micro_batch_size", "per_gpu_train_batch_size", "mini_batch_size", "bs",
       "per_device_batch_size", "batchsize"], Key("training", "per_device_train_batch_size")),
    (&["eval_batch_size", "per_gpu_eval_batch_size", "val_batch_size", "test_batch_size"],
     Key("training", "per_device_eval_batch_size")),
    (&["grad_accum", "grad_accumulation", "gradient_accumulation", "accumulation_steps", "grad_accumulation_steps",
       "grad_accum_steps", "accumulate_grad_batches"], Key("training", "gradient_accumulation_steps")),
    (&["lr_scheduler", "scheduler", "lr_schedule", "scheduler_type", "lr_decay_style"], Key("training", "lr_scheduler_type")),
    (&["warmup", "num_warmup_steps", "lr_warmup_steps"], Key("training", "warmup_steps")),
    (&["warmup_proportion", "warmup_fraction", "lr_warmup_ratio"], Key("training", "warmup_ratio")),
    (&["clip_grad", "grad_clip", "max_norm", "gradient_clipping", "gradient_clip_val", "clip_grad_norm", "gradient_clip"],
     Key("training", "max_grad_norm")),
    (&["log_every", "log_steps", "logging_interval", "steps_per_report", "log_interval", "log_every_n_steps"],
     Key("training", "logging_steps")),
    (&["evaluation_strategy"], Key("training", "eval_strategy")),
    (&["val_steps", "steps_per_eval", "eval_every", "eval_interval", "evaluation_steps"], Key("training", "eval_steps")),
    (&["save_every", "checkpoint_steps", "save_interval", "checkpointing_steps"], Key("training", "save_steps")),
    (&["iters", "steps", "num_steps", "max_iters", "train_steps", "total_steps", "num_train_steps", "max_train_steps"],
     Key("training", "max_steps")),
    (&["output", "out_dir", "output_folder", "output_path", "save_dir", "adapter_path", "out"], Key("training", "output_dir")),
    (&["random_seed", "random_state", "data_seed"], Key("training", "seed")),
    (&["use_gradient_checkpointing", "grad_checkpoint", "activation_checkpointing", "gradient_checkpoint"],
     Key("training", "gradient_checkpointing")),
    (&["wd"], Key("training", "weight_decay")),
    (&["beta1", "adam_b1"], Key("training", "adam_beta1")),
    (&["beta2", "adam_b2"], Key("training", "adam_beta2")),
    (&["eps", "epsilon", "adam_eps"], Key("training", "adam_epsilon")),
    (&["max_checkpoints", "keep_checkpoints", "save_total"], Key("training", "save_total_limit")),
    (&["load_best_model", "save_best"], Key("training", "load_best_model_at_end")),
    (&["best_metric", "metric"], Key("training", "metric_for_best_model")),
    (&["optim", "optimizer", "optimiser"], Else("the optimiser is AdamW, with weight_decay and adam_* in [training]: leave it out")),
    (&["early_stopping_patience", "early_stopping", "patience"],
     Else("a run is not ended early; load_best_model_at_end = true in [training] keeps the best adapter")),
    (&["resume_from_checkpoint", "resume", "auto_resume_from_checkpoints", "resume_adapter_file"],
     Else("peft train --resume goes on from the last checkpoint")),
    (&["generation_num_beam", "num_beams"], Key("training", "generation_num_beams")),
    (&["device", "use_cpu", "no_cuda"], Else("the device is chosen by --device cpu, --device cuda or --device wgpu")),
    (&["do_train", "do_eval", "do_predict", "report_to", "run_name", "logging_dir", "push_to_hub", "hub_model_id", "hub_token",
       "deepspeed", "fsdp", "fsdp_config", "ddp_timeout", "ddp_find_unused_parameters", "local_rank", "world_size",
       "dataloader_num_workers", "dataloader_pin_memory", "dataloader_drop_last", "remove_unused_columns", "disable_tqdm",
       "overwrite_output_dir", "group_by_length", "torch_compile", "logging_first_step", "wandb_project", "wandb_entity",
       "gradient_checkpointing_kwargs", "include_num_input_tokens_seen", "plot_loss", "ddp_backend", "special_tokens",
       "use_liger_kernel", "hub_strategy", "save_safetensors"], NO_COUNTERPART),
];

/// Names of sections, as other programs group their keys.
const SECTIONS: &[(&[&str], &str)] = &[
    (&["base_model", "quantization", "quantization_config", "bnb", "bnb_config"], "model"),
    (&["lora", "peft", "lora_config", "peft_config", "lora_parameters", "tuner", "adapters_config"], "adapter"),
    (&["dataset", "datasets", "columns", "dataloader"], "data"),
    (
        &[
            "train",
            "trainer",
            "training_args",
            "training_arguments",
            "sft",
            "optimizer",
            "optim",
            "scheduler",
            "hyperparameters",
        ],
        "training",
    ),
];

/// What a key of another program is here.
pub(crate) fn key(name: &str) -> Option<Here> {
    let name = name.to_lowercase().replace('-', "_");
    KEYS.iter().find(|(names, _)| names.contains(&name.as_str())).map(|(_, here)| *here)
}

/// The section that another program calls so.
pub(crate) fn section(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase().replace('-', "_");
    SECTIONS.iter().find(|(names, _)| names.contains(&name.as_str())).map(|(_, here)| *here)
}

/// What to write for a method that is no tuner of its own, but options of one.
pub(crate) fn peft_type(word: &str) -> Option<&'static str> {
    Some(match word.to_uppercase().replace(['-', ' '], "_").as_str() {
        "QLORA" | "Q_LORA" => {
            "QLoRA is LoRA on a base model in four bits: write peft_type = \"LORA\" here and load_in_4bit = true with \
             bnb_4bit_quant_type = \"nf4\" in [model]"
        }
        "DORA" | "QDORA" => "DoRA is an option of LoRA: write peft_type = \"LORA\" and use_dora = true",
        "RSLORA" | "RS_LORA" => {
            "rank-stabilised LoRA is an option of LoRA: write peft_type = \"LORA\" and use_rslora = true"
        }
        "SFT" | "NONE" | "FULL_FINETUNING" | "FULL_FINE_TUNING" | "FFT" => {
            "training of every weight is peft_type = \"FULL\"; of an adapter \"LORA\""
        }
        _ => return None,
    })
}

/// The `task_type` of a task that other programs call so.
pub(crate) fn task_type(word: &str) -> Option<&'static str> {
    Some(match word.to_lowercase().replace(['-', ' '], "_").as_str() {
        "text_classification" | "sequence_classification" | "classification" | "sentiment_analysis" | "regression" => {
            "SEQ_CLS"
        }
        "token_classification" | "ner" | "pos" => "TOKEN_CLS",
        "question_answering" | "qa" | "extractive_qa" => "QUESTION_ANS",
        "causallm" | "text_generation" | "clm" | "sft" | "language_modeling" | "lm" => "CAUSAL_LM",
        "seq2seq" | "seq2seq_lm" | "seq2seqlm" | "text2text_generation" | "summarization" | "translation" => {
            "SEQ_2_SEQ_LM"
        }
        "feature_extraction" | "embedding" | "embeddings" | "sentence_similarity" => "FEATURE_EXTRACTION",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_stands_twice() {
        let mut names: Vec<&str> = KEYS.iter().flat_map(|(names, _)| names.iter().copied()).collect();
        names.sort_unstable();
        let twice: Vec<&[&str; 2]> = names.array_windows().filter(|[a, b]| a == b).collect();
        assert!(twice.is_empty(), "{twice:?}");
    }

    #[test]
    fn every_key_that_is_named_is_a_key_of_its_section() {
        for (names, here) in KEYS {
            if let Key(section, key) = here {
                assert!(super::super::keys::sections_of(key).contains(section), "{names:?}: {key} in [{section}]");
            }
        }
    }
}
