#!/usr/bin/env python3
"""Writes `*.json` of this folder: the token ids that Transformers' `generate` gives for models of `../golden/`.

    .ref/bin/python tests/generation/generate.py

A new family is a line in MODELS. Each file names its model and holds cases: options, prompts, answers.
"""
import json, os, pathlib

os.environ["HF_HUB_OFFLINE"] = "1"
import torch, transformers as tf

HERE = pathlib.Path(__file__).parent
MODELS = [
    "llama.CAUSAL_LM.default", "gpt2.CAUSAL_LM.default", "mistral.CAUSAL_LM.default", "qwen3.CAUSAL_LM.default", "gemma2.CAUSAL_LM.default",
    "opt.CAUSAL_LM.default", "gpt_neox.CAUSAL_LM.default", "t5.SEQ_2_SEQ_LM.default", "bart.SEQ_2_SEQ_LM.default",
]
ONE, ALIKE, PADDED = [[5, 9, 17]], [[5, 9, 17], [30, 11, 6]], [[5, 9, 17, 22, 8], [30, 11], [7, 7, 12, 3]]
BEAMS = dict(num_beams=3, max_new_tokens=6)
CASES = [
    (ONE, dict(max_new_tokens=8)),
    (PADDED, dict(max_new_tokens=6)),
    (ALIKE, dict(max_new_tokens=7, repetition_penalty=1.7)),
    (PADDED, dict(max_new_tokens=7, repetition_penalty=0.6)),
    (PADDED, dict(max_new_tokens=8, no_repeat_ngram_size=2)),
    (ONE, dict(max_new_tokens=5, min_new_tokens=3, suppress_tokens=[4, 20], bad_words_ids=[[6], [9, 12]], forced_eos_token_id=3)),
    (ALIKE, BEAMS),
    (PADDED, BEAMS | dict(length_penalty=2.0, num_return_sequences=3)),
    (PADDED, BEAMS | dict(length_penalty=-1.0)),
    (PADDED, BEAMS | dict(early_stopping=True, num_return_sequences=2)),
    (PADDED, BEAMS | dict(early_stopping="never", length_penalty=0.5)),
    (ALIKE, BEAMS | dict(no_repeat_ngram_size=2, repetition_penalty=1.3)),
]

for name in MODELS:
    folder = HERE.parent / "golden" / name / "model"
    crossed = "SEQ_2_SEQ" in name
    auto = tf.AutoModelForSeq2SeqLM if crossed else tf.AutoModelForCausalLM
    model = auto.from_pretrained(folder, attn_implementation="eager").eval()
    cases = []
    for prompts, options in CASES:
        # Two of the likely tokens end an answer, so that answers do end.
        ids = lambda rows: torch.tensor(rows)
        longest = max(map(len, prompts))
        pad = lambda row, with_: row + [with_] * (longest - len(row)) if crossed else [with_] * (longest - len(row)) + row
        x = dict(input_ids=ids([pad(p, 0) for p in prompts]), attention_mask=ids([pad([1] * len(p), 0) for p in prompts]))
        first = model.generate(**x, max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0, **(dict(decoder_start_token_id=2) if crossed else {}))
        common = dict(eos_token_id=[int(first[0, -1]), 3], pad_token_id=0) | (dict(decoder_start_token_id=2) if crossed else {})
        options = common | options
        # Of the model's own nothing is to remain.
        model.generation_config = tf.GenerationConfig()
        out = model.generate(**x, generation_config=tf.GenerationConfig(**options, do_sample=False))
        start = 1 if crossed else longest
        cases.append(dict(options=options, prompts=prompts, answers=[row[start:] for row in out.tolist()]))
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    (HERE / f"{name}.json").write_text(f'{{"model": "{name}", "cases": [\n{lines}\n]}}\n')
    print(name)

# Filtered probabilities of the draw.
torch.manual_seed(3)
draws = []
for options in (dict(temperature=0.7), dict(top_k=5), dict(top_p=0.8), dict(min_p=0.1), dict(temperature=1.5, top_k=8, top_p=0.9, min_p=0.05)):
    logits = torch.randn(1, 24) * 2
    p = tf.generation.logits_process
    config = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=None) | options
    warpers = [p.TemperatureLogitsWarper(config["temperature"])]
    if config["top_k"]: warpers.append(p.TopKLogitsWarper(config["top_k"]))
    if config["top_p"] < 1: warpers.append(p.TopPLogitsWarper(config["top_p"]))
    if config["min_p"]: warpers.append(p.MinPLogitsWarper(config["min_p"]))
    scores = logits
    for warper in warpers:
        scores = warper(torch.zeros(1, 1, dtype=torch.long), scores)
    draws.append(dict(options=config, logits=logits[0].tolist(), probabilities=scores.softmax(-1)[0].tolist()))
(HERE / "sampling").mkdir(exist_ok=True)
(HERE / "sampling/probabilities.json").write_text("[\n" + ",\n".join(map(json.dumps, draws)) + "\n]\n")
