#!/usr/bin/env python3
"""Writes the fixtures of this folder with Hugging Face PEFT: the numbers that `peft` must reproduce.

    python3 -m venv .ref && .ref/bin/pip install torch transformers==5.23.0 peft==0.21.2 safetensors
    .ref/bin/python tests/golden/generate.py [PART OF A CASE'S NAME]

A case is a folder `ARCHITECTURE.TASK.VARIANT`: a random model, an adapter as PEFT saves it with every trainable tensor moved
away from its start, inputs with labels, and what PEFT computes from them in evaluation mode.
"""
import json, os, pathlib, shutil, sys, zlib

os.environ["HF_HUB_OFFLINE"] = "1"
import peft, torch, transformers as tf
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
SIZES = dict(vocab_size=41, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=24)
GROUPED = dict(num_key_value_heads=2, pad_token_id=0)
T5 = dict(vocab_size=41, d_model=8, d_kv=3, d_ff=12, num_layers=2, num_decoder_layers=1, num_heads=2, decoder_start_token_id=0, relative_attention_num_buckets=8, relative_attention_max_distance=6)
BART = dict(vocab_size=41, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=10, max_position_embeddings=12, forced_eos_token_id=None)
DEBERTA_V3 = dict(relative_attention=True, position_buckets=4, pos_att_type=["p2c", "c2p"], share_att_key=True, norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0)
CONFIGS = {
    "albert": lambda **k: tf.AlbertConfig(**SIZES | dict(embedding_size=8) | k),
    "bert": lambda **k: tf.BertConfig(**SIZES, **k),
    "deberta-v2": lambda **k: tf.DebertaV2Config(**SIZES | DEBERTA_V3 | k),
    "modernbert": lambda **k: tf.ModernBertConfig(**SIZES | dict(num_hidden_layers=3, local_attention=4, pad_token_id=0, norm_eps=1e-5) | k),
    "distilbert": lambda **k: tf.DistilBertConfig(vocab_size=41, dim=16, hidden_dim=24, n_layers=2, n_heads=4, max_position_embeddings=24, **k),
    "electra": lambda **k: tf.ElectraConfig(**SIZES | dict(embedding_size=8) | k),
    "gpt2": lambda **k: tf.GPT2Config(vocab_size=41, n_embd=16, n_layer=2, n_head=4, n_inner=24, n_positions=24, pad_token_id=0, **k),
    "gpt_neox": lambda **k: tf.GPTNeoXConfig(pad_token_id=0, **(SIZES | k)),
    "opt": lambda **k: tf.OPTConfig(vocab_size=41, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=24, pad_token_id=0, **k),
    "llama": lambda **k: tf.LlamaConfig(**(GROUPED | SIZES | k)),
    "mistral": lambda **k: tf.MistralConfig(sliding_window=5, **(GROUPED | SIZES | k)),
    "qwen2": lambda **k: tf.Qwen2Config(use_sliding_window=True, sliding_window=5, max_window_layers=1, **(GROUPED | SIZES | k)),
    "qwen3": lambda **k: tf.Qwen3Config(head_dim=6, use_sliding_window=True, sliding_window=5, max_window_layers=1, **(GROUPED | SIZES | k)),
    "gemma": lambda **k: tf.GemmaConfig(head_dim=6, **(GROUPED | SIZES | k)),
    "gemma2": lambda **k: tf.Gemma2Config(head_dim=6, query_pre_attn_scalar=9, sliding_window=5, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, **(GROUPED | SIZES | k)),
    "gemma3_text": lambda **k: tf.Gemma3TextConfig(head_dim=6, query_pre_attn_scalar=9, sliding_window=5, layer_types=["sliding_attention", "full_attention"], **(GROUPED | SIZES | k)),
    "phi3": lambda **k: tf.Phi3Config(bos_token_id=1, eos_token_id=2, **(GROUPED | SIZES | k)),
    "roberta": lambda **k: tf.RobertaConfig(type_vocab_size=1, **SIZES, **k),
    "xlm-roberta": lambda **k: tf.XLMRobertaConfig(type_vocab_size=1, **SIZES, **k),
    "t5": lambda **k: tf.T5Config(**T5, **k),
    "mt5": lambda **k: tf.MT5Config(**T5, **k),
    "bart": lambda **k: tf.BartConfig(pad_token_id=0, decoder_start_token_id=2, **BART, **k),
    "mbart": lambda **k: tf.MBartConfig(pad_token_id=0, **BART, **k),
    "marian": lambda **k: tf.MarianConfig(pad_token_id=0, eos_token_id=2, decoder_start_token_id=0, activation_function="swish", **dict(BART, **k)),
}
HEADS = {
    "SEQ_CLS": tf.AutoModelForSequenceClassification, "TOKEN_CLS": tf.AutoModelForTokenClassification,
    "QUESTION_ANS": tf.AutoModelForQuestionAnswering, "CAUSAL_LM": tf.AutoModelForCausalLM, "SEQ_2_SEQ_LM": tf.AutoModelForSeq2SeqLM,
    "FEATURE_EXTRACTION": tf.AutoModel, "none": tf.AutoModel,
}
LORA = dict(r=3, lora_alpha=5)
FUSED = dict(LORA, target_modules=["qkv_proj", "gate_up_proj"])


def encoder(arch, lora):
    """The four heads of an encoder."""
    return [(f"{arch}.{task}.default", {}, lora, "classes" if task == "SEQ_CLS" else None) for task in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")]


# (case, options of the model, options of LoRA, kind of SEQ_CLS labels)
CASES = [
    ("bert.SEQ_CLS.default", {}, LORA, "classes"),
    ("bert.SEQ_CLS.regression", dict(num_labels=1), LORA, "float"),
    ("bert.SEQ_CLS.multi-label", {}, LORA, "floats"),
    ("bert.SEQ_CLS.all-linear-bias-all", {}, dict(LORA, target_modules="all-linear", bias="all"), "classes"),
    ("bert.SEQ_CLS.bias-lora-only-rslora", {}, dict(LORA, bias="lora_only", use_rslora=True), "classes"),
    ("bert.SEQ_CLS.embedding", {}, dict(LORA, target_modules=["word_embeddings", "query"]), "classes"),
    ("bert.SEQ_CLS.excluded-layers", {}, dict(LORA, target_modules=["query", "key", "dense"], exclude_modules=["pooler.dense"], layers_to_transform=[1]), "classes"),
    ("bert.SEQ_CLS.dora-embedding", {}, dict(LORA, use_dora=True, target_modules=["word_embeddings", "query", "dense"]), "classes"),
    ("gpt2.CAUSAL_LM.dora", {}, dict(LORA, use_dora=True), None),
    ("llama.CAUSAL_LM.dora-all-linear", {}, dict(LORA, use_dora=True, target_modules="all-linear"), None),
    ("bert.TOKEN_CLS.default", {}, LORA, None),
    ("bert.QUESTION_ANS.default", {}, LORA, None),
    ("bert.FEATURE_EXTRACTION.default", {}, LORA, None),
    ("bert.none.default", {}, LORA, None),
    *encoder("roberta", LORA),
    ("roberta.SEQ_CLS.all-linear-bias-all", {}, dict(LORA, target_modules="all-linear", bias="all"), "classes"),
    ("roberta.TOKEN_CLS.left-padded", dict(pad_token_id=0), LORA, None),
    ("xlm-roberta.SEQ_CLS.default", {}, LORA, "classes"),
    ("xlm-roberta.none.default", {}, LORA, None),
    *encoder("distilbert", dict(LORA, target_modules=["q_lin", "v_lin"])),
    ("distilbert.SEQ_CLS.every-projection", {}, dict(LORA, target_modules=["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"]), "classes"),
    *encoder("electra", LORA),
    ("electra.SEQ_CLS.equal-widths", dict(embedding_size=16), dict(LORA, target_modules=["query", "dense"]), "classes"),
    *encoder("albert", dict(LORA, target_modules=["query", "value", "ffn"])),
    ("albert.SEQ_CLS.groups-all-linear", dict(num_hidden_layers=3, num_hidden_groups=2, inner_group_num=2, intermediate_size=8), dict(LORA, target_modules="all-linear"), "classes"),
    *encoder("deberta-v2", LORA),
    ("deberta-v2.SEQ_CLS.xlarge-all-linear", dict(conv_kernel_size=3, conv_act="gelu", embedding_size=8, position_biased_input=True, type_vocab_size=2, share_att_key=False, position_buckets=-1, max_relative_positions=5, norm_rel_ebd="none"), dict(LORA, target_modules="all-linear"), "classes"),
    ("deberta-v2.none.absolute", dict(relative_attention=False, position_biased_input=True), LORA, None),
    *encoder("modernbert", dict(LORA, target_modules=["Wqkv", "Wo"])),
    ("modernbert.SEQ_CLS.mean-all-linear-biases", dict(classifier_pooling="mean", attention_bias=True, mlp_bias=True, norm_bias=True, classifier_bias=True, layer_types=["sliding_attention", "full_attention", "sliding_attention"], rope_parameters=dict(full_attention=dict(rope_type="default", rope_theta=500.0), sliding_attention=dict(rope_type="default", rope_theta=50.0))), dict(LORA, target_modules="all-linear"), "classes"),
    ("llama.CAUSAL_LM.default", {}, LORA, None),
    ("llama.CAUSAL_LM.tied-all-linear", dict(tie_word_embeddings=True), dict(LORA, target_modules="all-linear"), None),
    ("llama.CAUSAL_LM.patterns", {}, dict(LORA, target_modules="all-linear", rank_pattern={"layers.0.*q_proj": 2}, alpha_pattern={"v_proj": 7}), None),
    ("llama.CAUSAL_LM.rope-llama3", dict(rope_parameters=dict(rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=12)), LORA, None),
    ("llama.SEQ_CLS.default", {}, LORA, "classes"),
    ("gpt2.CAUSAL_LM.default", {}, LORA, None),
    ("gpt2.CAUSAL_LM.all-linear-scaled-by-depth", dict(scale_attn_by_inverse_layer_idx=True), dict(LORA, target_modules="all-linear"), None),
    ("gpt2.SEQ_CLS.default", {}, LORA, "classes"),
    ("gpt2.TOKEN_CLS.default", {}, LORA, None),
    ("gpt2.QUESTION_ANS.default", {}, LORA, None),
    ("gpt2.SEQ_CLS.left-padded", {}, LORA, "classes"),
    ("gpt_neox.CAUSAL_LM.default", dict(hidden_size=32), LORA, None),
    ("gpt_neox.CAUSAL_LM.in-sequence-all-linear", dict(use_parallel_residual=False, rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5)), dict(LORA, target_modules="all-linear"), None),
    ("gpt_neox.SEQ_CLS.default", dict(hidden_size=32), LORA, "classes"),
    ("gpt_neox.TOKEN_CLS.default", dict(hidden_size=32), LORA, None),
    ("gpt_neox.QUESTION_ANS.default", dict(hidden_size=32), LORA, None),
    ("opt.CAUSAL_LM.default", {}, LORA, None),
    ("opt.CAUSAL_LM.norms-after-projected", dict(do_layer_norm_before=False, word_embed_proj_dim=12), dict(LORA, target_modules="all-linear"), None),
    ("opt.SEQ_CLS.left-padded", {}, LORA, "classes"),
    ("opt.QUESTION_ANS.default", {}, LORA, None),
    ("llama.TOKEN_CLS.default", {}, LORA, None),
    ("llama.QUESTION_ANS.default", {}, LORA, None),
    ("llama.CAUSAL_LM.rope-dynamic", dict(max_position_embeddings=6, rope_parameters=dict(rope_type="dynamic", rope_theta=500.0, factor=2.0)), LORA, None),
    ("llama.CAUSAL_LM.rope-yarn", dict(rope_parameters=dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=6)), LORA, None),
    ("llama.SEQ_CLS.left-padded", {}, LORA, "classes"),
    ("mistral.CAUSAL_LM.default", {}, LORA, None),
    ("mistral.SEQ_CLS.left-padded", {}, LORA, "classes"),
    ("mistral.TOKEN_CLS.default", {}, LORA, None),
    ("mistral.QUESTION_ANS.default", {}, LORA, None),
    ("qwen2.CAUSAL_LM.default", {}, LORA, None),
    ("qwen2.SEQ_CLS.left-padded", {}, LORA, "classes"),
    ("qwen2.TOKEN_CLS.default", {}, LORA, None),
    ("qwen2.QUESTION_ANS.default", {}, LORA, None),
    ("qwen3.CAUSAL_LM.default", {}, LORA, None),
    ("qwen3.SEQ_CLS.left-padded", {}, LORA, "classes"),
    ("qwen3.TOKEN_CLS.default", {}, LORA, None),
    ("qwen3.QUESTION_ANS.default", {}, LORA, None),
    ("gemma.CAUSAL_LM.default", {}, LORA, None),
    ("gemma.SEQ_CLS.default", {}, LORA, "classes"),
    ("gemma.TOKEN_CLS.default", {}, LORA, None),
    ("gemma2.CAUSAL_LM.default", {}, LORA, None),
    ("gemma2.CAUSAL_LM.embedding", dict(tie_word_embeddings=False), dict(LORA, target_modules=["embed_tokens", "down_proj"]), None),
    ("gemma2.SEQ_CLS.left-padded", {}, LORA, "classes"),
    ("gemma2.TOKEN_CLS.default", {}, LORA, None),
    ("gemma2.none.default", {}, LORA, None),
    ("gemma3_text.CAUSAL_LM.default", {}, LORA, None),
    ("gemma3_text.SEQ_CLS.left-padded", {}, LORA, "classes"),
    ("gemma3_text.none.rope-linear", dict(rope_parameters=dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=900.0), sliding_attention=dict(rope_type="default", rope_theta=70.0))), LORA, None),
    ("phi3.CAUSAL_LM.default", {}, FUSED, None),
    ("phi3.CAUSAL_LM.longrope", dict(max_position_embeddings=24, original_max_position_embeddings=6, rope_parameters=dict(rope_type="longrope", rope_theta=500.0, short_factor=[1.0, 1.1], long_factor=[1.5, 2.5])), FUSED, None),
    ("phi3.SEQ_CLS.left-padded", dict(sliding_window=5), FUSED, "classes"),
    ("phi3.TOKEN_CLS.partial-rotary", dict(rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5)), FUSED, None),
    ("t5.SEQ_2_SEQ_LM.default", {}, LORA, None),
    ("t5.SEQ_2_SEQ_LM.gated-all-linear", dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False), dict(LORA, target_modules="all-linear"), None),
    ("t5.SEQ_2_SEQ_LM.saved-embeddings", {}, dict(LORA, modules_to_save=["embed_tokens"]), None),
    ("t5.SEQ_2_SEQ_LM.relative-bias", {}, dict(LORA, target_modules=["relative_attention_bias", "k", "wi"], bias="all"), None),
    ("t5.SEQ_CLS.default", {}, LORA, "classes"),
    ("t5.TOKEN_CLS.default", {}, LORA, None),
    ("t5.QUESTION_ANS.default", {}, LORA, None),
    ("t5.none.default", {}, LORA, None),
    ("mt5.SEQ_2_SEQ_LM.default", {}, LORA, None),
    ("bart.SEQ_2_SEQ_LM.default", {}, LORA, None),
    ("bart.SEQ_2_SEQ_LM.all-linear-bias-all", dict(scale_embedding=True), dict(LORA, target_modules="all-linear", bias="all"), None),
    ("bart.SEQ_2_SEQ_LM.saved-output", dict(scale_embedding=True), dict(LORA, modules_to_save=["lm_head"]), None),
    ("bart.SEQ_CLS.default", {}, LORA, "classes"),
    ("bart.QUESTION_ANS.default", {}, LORA, None),
    ("bart.none.default", {}, LORA, None),
    ("mbart.SEQ_2_SEQ_LM.default", {}, dict(LORA, target_modules=["q_proj", "fc1"]), None),
    ("mbart.SEQ_CLS.default", {}, dict(LORA, target_modules=["v_proj"]), "classes"),
    ("mbart.none.default", {}, dict(LORA, target_modules=["v_proj"]), None),
    ("marian.SEQ_2_SEQ_LM.default", {}, dict(LORA, target_modules=["q_proj", "v_proj"]), None),
    ("marian.SEQ_2_SEQ_LM.two-vocabularies", dict(share_encoder_decoder_embeddings=False, decoder_vocab_size=37, scale_embedding=True), dict(LORA, target_modules=["out_proj"]), None),
    ("marian.SEQ_2_SEQ_LM.saved-embeddings", {}, dict(LORA, target_modules=["v_proj"], modules_to_save=["embed_tokens"]), None),
    ("marian.none.default", {}, dict(LORA, target_modules=["k_proj"]), None),
]
ENCODER_DECODERS = EOS = dict(t5=1, mt5=1, bart=2, mbart=2, marian=2)


def inputs(task, arch, pad_id, labels, left, g):
    ids = torch.randint(3, 41, (3, 9), generator=g)
    mask = torch.ones_like(ids)
    for row, pad in ((1, 2), (2, 4)):
        padding = slice(0, pad) if left else slice(9 - pad, 9)
        ids[row, padding], mask[row, padding] = pad_id, 0
    x = dict(input_ids=ids, attention_mask=mask)
    if arch in ("albert", "bert", "electra"):
        x["token_type_ids"] = (torch.arange(9) > 4).long().expand(3, 9).contiguous()
    if arch in ENCODER_DECODERS and task == "SEQ_CLS":
        ids[torch.arange(3), mask.sum(1) - 1] = EOS[arch]
        ids[:, :2] = torch.where(ids[:, :2] == EOS[arch], 7, ids[:, :2])
    if arch in ENCODER_DECODERS and task == "none":
        x["decoder_input_ids"] = torch.randint(3, 41, (3, 5), generator=g)
        x["decoder_attention_mask"] = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    if task == "SEQ_2_SEQ_LM":
        x["labels"] = torch.randint(3, 37, (3, 6), generator=g)
        x["labels"][1, 4:] = -100
        x["labels"][2, 3:] = -100
    if task == "SEQ_CLS":
        x["labels"] = {"classes": torch.tensor([0, 2, 1]), "float": torch.tensor([0.5, -1.0, 2.0]), "floats": torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0]])}[labels]
    if task == "TOKEN_CLS":
        x["labels"] = torch.where(mask == 1, torch.randint(0, 3, (3, 9), generator=g), -100)
    if task == "CAUSAL_LM":
        x["labels"] = torch.where(mask == 1, ids, -100)
    if task == "QUESTION_ANS":
        x["start_positions"], x["end_positions"] = torch.tensor([1, 2, 30]), torch.tensor([3, 2, 4])
    return x


def outputs(out):
    names = ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output", "encoder_last_hidden_state")
    return {n: getattr(out, n).detach().float().contiguous().clone() for n in names if getattr(out, n, None) is not None}


def write(name, model_options, lora, labels):
    arch, task, variant = name.split(".")
    torch.manual_seed(zlib.crc32(name.encode()) % 10_000)
    if task in ("SEQ_CLS", "TOKEN_CLS"):
        model_options = dict(dict(num_labels=3), **model_options)
    config = CONFIGS[arch](**model_options)
    config._attn_implementation = "eager"
    base = HEADS[task].from_config(config).eval()
    with torch.no_grad():
        for p in base.parameters():
            if p.requires_grad:  # not positions that are worked out
                p.add_(torch.randn_like(p) * 0.1)
    computed = [n for n, p in base.named_parameters() if not p.requires_grad]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    base.save_pretrained(folder / "model")
    model = peft.get_peft_model(base, peft.LoraConfig(task_type=None if task == "none" else task, **lora))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    model.eval()
    g = torch.Generator().manual_seed(1)
    x = inputs(task, arch, config.pad_token_id or 0, labels, "left-padded" in variant, g)
    out = model(**x)
    loss = out.loss if getattr(out, "loss", None) is not None else (out.last_hidden_state ** 2).mean()
    loss.backward()
    model.save_pretrained(folder / "adapter")
    saved = load_file(folder / "adapter/adapter_model.safetensors")
    expected = outputs(out) | {"loss": loss.detach().reshape(1)}
    for n, p in model.named_parameters():
        key = n.replace(".modules_to_save.default", "").replace(".default", "")
        key = key.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
        if p.grad is not None and key in saved:
            expected["grad." + key] = p.grad.float().contiguous().clone()
    with torch.no_grad(), model.disable_adapter():
        expected |= {"base." + k: v for k, v in outputs(model(**x)).items()}
    trainable, total = model.get_nb_trainable_parameters()
    facts = dict(wrapper=type(model).__name__, trainable_params=trainable, all_params=total, targeted=sorted(model.base_model.targeted_module_names), peft=peft.__version__, transformers=tf.__version__)
    merged = model.merge_and_unload()
    stored = lambda key: key.replace("lm_head.", "embed_out.") if arch == "gpt_neox" else key
    expected |= {"merged." + stored(k): v.detach().clone().contiguous() for k, v in merged.state_dict().items() if v.is_floating_point() and k not in computed}
    save_file({k: v.contiguous() for k, v in x.items()}, folder / "inputs.safetensors")
    save_file(expected, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    for extra in folder.glob("*/README.md"):
        extra.unlink()
    for extra in folder.glob("*/generation_config.json"):
        extra.unlink()


if __name__ == "__main__":
    for case in CASES:
        if not sys.argv[1:] or sys.argv[1] in case[0]:
            write(*case)
            print(case[0])
