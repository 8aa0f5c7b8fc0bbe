#!/usr/bin/env python3
"""Writes the folders here with Hugging Face PEFT: prompts of every method on models of `../golden/`.

    python3 -m venv .ref && .ref/bin/pip install torch transformers==5.23.0 peft==0.21.2 safetensors
    .ref/bin/python tests/prompts/generate.py [PART OF A CASE'S NAME]

A case is a folder `ARCHITECTURE.TASK.METHOD`: an adapter as PEFT saves it, beside it `prompt_encoder.safetensors` with the tensors
that PEFT trains and does not save, and what PEFT computes from the inputs of `../golden/ARCHITECTURE.TASK.default` in evaluation
mode: outputs, loss, gradients, and for models that write, the tokens they write greedily.
"""
import json, os, pathlib, shutil, sys, zlib

os.environ["HF_HUB_OFFLINE"] = "1"
import peft, torch, transformers as tf
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE.parent / "golden"
AUTO = {
    "SEQ_CLS": tf.AutoModelForSequenceClassification, "TOKEN_CLS": tf.AutoModelForTokenClassification,
    "QUESTION_ANS": tf.AutoModelForQuestionAnswering, "CAUSAL_LM": tf.AutoModelForCausalLM, "SEQ_2_SEQ_LM": tf.AutoModelForSeq2SeqLM,
    "FEATURE_EXTRACTION": tf.AutoModel,
}
TOKENS = dict(num_virtual_tokens=3)
METHODS = {
    "prompt_tuning": lambda: peft.PromptTuningConfig(**TOKENS),
    "prefix_tuning": lambda: peft.PrefixTuningConfig(**TOKENS),
    "prefix_projection": lambda: peft.PrefixTuningConfig(**TOKENS, prefix_projection=True, encoder_hidden_size=5),
    "p_tuning": lambda: peft.PromptEncoderConfig(**TOKENS, encoder_hidden_size=5),
    "p_tuning_lstm": lambda: peft.PromptEncoderConfig(**TOKENS, encoder_hidden_size=4, encoder_reparameterization_type="LSTM", encoder_num_layers=3),
    "multitask": lambda: peft.MultitaskPromptTuningConfig(**TOKENS, num_tasks=2, num_ranks=2),
    "cpt": lambda: peft.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[7, 3, 12, 30, 9], cpt_mask=[1] * 5, cpt_tokens_type_mask=[1, 2, 3, 4, 4], opt_weighted_loss_type="decay", opt_loss_decay_factor=0.7),
}
ALL = ["prompt_tuning", "prefix_tuning", "prefix_projection", "p_tuning", "p_tuning_lstm"]
BOTH = ["prompt_tuning", "prefix_tuning"]
CASES = [
    *[("bert", "SEQ_CLS", method) for method in ALL], *[("bert", task, method) for task in ("TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION") for method in BOTH],
    *[("roberta", task, method) for task in ("SEQ_CLS", "QUESTION_ANS") for method in BOTH], ("electra", "TOKEN_CLS", "prefix_tuning"), ("deberta-v2", "SEQ_CLS", "p_tuning"),
    ("modernbert", "FEATURE_EXTRACTION", "prompt_tuning"), ("gpt2", "SEQ_CLS", "prompt_tuning"), ("llama", "SEQ_CLS", "prefix_tuning"),
    *[(arch, "CAUSAL_LM", method) for arch in ("gpt2", "llama") for method in [*ALL, "multitask", "cpt"]],
    *[(arch, "CAUSAL_LM", method) for arch in ("qwen2", "qwen3", "opt", "gemma2", "gemma3_text", "gpt_neox", "mistral", "phi3") for method in BOTH],
    *[(arch, "SEQ_2_SEQ_LM", method) for arch in ("t5", "bart") for method in [*ALL, "multitask"]],
    *[(arch, "SEQ_2_SEQ_LM", method) for arch in ("mbart", "marian") for method in BOTH],
]
PROMPTS = [[5, 9, 17, 22, 8], [30, 11], [7, 7, 12, 3]]


def write(arch, task, method):
    source, folder = GOLDEN / f"{arch}.{task}.default", HERE / f"{arch}.{task}.{method}"
    config = METHODS[method]()
    config.task_type = peft.TaskType(task)
    base = AUTO[task].from_pretrained(source / "model", attn_implementation="eager", dtype=torch.float32).eval()
    if method.startswith("prefix") and arch in ("t5", "bart", "mbart", "marian"):
        # What PEFT would take is the encoder's, with which it fails on decoders of other sizes.
        c = base.config
        config.num_layers = c.num_decoder_layers if arch == "t5" else c.decoder_layers
        config.num_attention_heads = c.num_heads if arch == "t5" else c.decoder_attention_heads
        config.token_dim = c.num_heads * c.d_kv if arch == "t5" else c.d_model
    x = {name: value for name, value in load_file(source / "inputs.safetensors").items()}
    if method == "multitask": x["task_ids"] = torch.tensor([i % 2 for i in range(len(x["input_ids"]))])
    seed = zlib.crc32(folder.name.encode()) % 1000
    torch.manual_seed(seed)
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad: p.add_(torch.randn(p.shape) * (0.3 if "prompt_encoder" in name else 0.1))
    model.eval()
    if task == "TOKEN_CLS" and method == "prompt_tuning":
        # PEFT does not shift the labels, so that it has no loss here; ours is that of the words.
        labels = x["labels"]
        out = model(**{k: v for k, v in x.items() if k != "labels"})
        loss = torch.nn.functional.cross_entropy(out.logits[:, 3:].flatten(0, 1), labels.flatten())
    else:
        out = model(**x)
        loss = out.loss if "loss" in out else out.last_hidden_state.square().mean()
    loss.backward()
    names = ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output", "encoder_last_hidden_state")
    expected = {name: out[name].detach().clone().contiguous() for name in names if out.get(name) is not None}
    expected["loss"] = loss.detach().clone()

    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink()
    encoder = model.prompt_encoder["default"]
    stored = {"embedding.weight": "prompt_embeddings"} if method in ("prompt_tuning", "prefix_tuning", "multitask") else {}
    stored |= {name: name for name in ("prefix_task_cols", "prefix_task_rows")}
    own = {name: p.detach().clone().contiguous() for name, p in encoder.named_parameters() if name not in stored}
    if own: save_file(own, folder / "adapter" / "prompt_encoder.safetensors")
    for name, p in model.named_parameters():
        if not p.requires_grad: continue
        key = name.replace("prompt_encoder.default.", "") if "prompt_encoder" in name else None
        key = stored.get(key, f"prompt_encoder.{key}") if key else name.replace(".modules_to_save.default", "")
        expected[f"grad.{key}"] = torch.zeros_like(p) if p.grad is None else p.grad.contiguous().clone()
    save_file(expected, folder / "expected.safetensors")

    trainable, total = model.get_nb_trainable_parameters()
    facts = dict(wrapper=type(model).__name__, trainable_params=trainable, all_params=total, num_transformer_submodules=config.num_transformer_submodules, num_virtual_tokens=config.num_virtual_tokens)
    if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") and method not in ("multitask", "cpt"):
        facts["generation"] = [generation(model, rows, crossed=task == "SEQ_2_SEQ_LM") for rows in ([PROMPTS[0]], PROMPTS)]
    (folder / "expected.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(folder.name)


def generation(model, rows, crossed):
    longest = max(map(len, rows))
    pad = lambda row, with_: row + [with_] * (longest - len(row)) if crossed else [with_] * (longest - len(row)) + row
    x = dict(input_ids=torch.tensor([pad(p, 0) for p in rows]), attention_mask=torch.tensor([pad([1] * len(p), 0) for p in rows]))
    options = dict(max_new_tokens=6, eos_token_id=[40], pad_token_id=0) | (dict(decoder_start_token_id=2) if crossed else {})
    model.base_model.generation_config = model.generation_config = tf.GenerationConfig()
    run = lambda cache: model.generate(**x, generation_config=tf.GenerationConfig(**options, do_sample=False, use_cache=cache)).tolist()
    out = run(True)
    try:
        if run(False) != out: print("  without a cache it writes something else:", run(False), out)
    except (RuntimeError, IndexError) as error:
        # With a prefix and no cache PEFT's mask has the wrong length.
        print("  fails without a cache:", str(error)[:80])
    start = 1 if crossed else longest
    answers = [row[start:] for row in out]
    return dict(options=options, prompts=rows, answers=answers)


part = sys.argv[1] if len(sys.argv) > 1 else ""
for case in CASES:
    if part in ".".join(case): write(*case)
