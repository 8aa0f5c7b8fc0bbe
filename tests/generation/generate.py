#!/usr/bin/env python3
"""Writes `*.json` of this folder: the token ids that Transformers' `generate` gives for models of `../golden/`.

    .ref/bin/python tests/generation/generate.py

A new family is a line in MODELS. Each file names its model, what is changed in its configuration and in its weights, and holds
cases: options, prompts, answers.
"""
import json, os, pathlib, tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import torch, transformers as tf
tf.logging.set_verbosity_error()
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
# Random models hardly look at what they read: matrices whose name holds a key are multiplied by the number.
CROSS, CROSS_T5 = {"encoder_attn": 10.0}, {"EncDecAttention": 10.0}
# (file, model, changes of its configuration, factors of its weights)
MODELS = [
    ("llama", "llama.CAUSAL_LM.default", {}, {}),
    ("llama.rope-dynamic", "llama.CAUSAL_LM.rope-dynamic", {}, {}),
    ("llama.rope-yarn", "llama.CAUSAL_LM.rope-yarn", {}, {}),
    ("mistral", "mistral.CAUSAL_LM.default", {}, {}),
    ("qwen2", "qwen2.CAUSAL_LM.default", {}, {}),
    ("qwen3", "qwen3.CAUSAL_LM.default", {}, {}),
    ("gemma", "gemma.CAUSAL_LM.default", {}, {".layers.": 3.0}),
    ("gemma2", "gemma2.CAUSAL_LM.default", {}, {}),
    ("gemma3_text", "gemma3_text.CAUSAL_LM.default", {}, {}),
    ("phi3", "phi3.CAUSAL_LM.default", {}, {}),
    ("phi3.sliding", "phi3.CAUSAL_LM.default", dict(sliding_window=5), {}),
    ("phi3.longrope", "phi3.CAUSAL_LM.longrope", {}, {}),
    ("gpt2", "gpt2.CAUSAL_LM.default", {}, {".h.": 3.0}),
    ("gpt_neox", "gpt_neox.CAUSAL_LM.default", {}, {}),
    ("opt", "opt.CAUSAL_LM.default", {}, {}),
    ("opt.projected", "opt.CAUSAL_LM.norms-after-projected", {}, {}),
    ("t5", "t5.SEQ_2_SEQ_LM.default", {}, CROSS_T5),
    ("t5.gated", "t5.SEQ_2_SEQ_LM.gated-all-linear", {}, CROSS_T5),
    ("mt5", "mt5.SEQ_2_SEQ_LM.default", {}, CROSS_T5),
    ("bart", "bart.SEQ_2_SEQ_LM.default", {}, CROSS),
    ("mbart", "mbart.SEQ_2_SEQ_LM.default", {}, CROSS),
    ("marian", "marian.SEQ_2_SEQ_LM.default", {}, {"encoder_attn": 4.0}),
    ("marian.two-vocabularies", "marian.SEQ_2_SEQ_LM.two-vocabularies", {}, {"encoder_attn": 30.0, "_proj": 3.0, ".fc": 3.0}),
]
ONE, ALIKE, PADDED = [[5, 9, 17]], [[5, 9, 17], [30, 11, 6]], [[5, 9, 17, 22, 8], [30, 11], [7, 7, 12, 3]]
BEAMS = dict(num_beams=3, max_new_tokens=6)
CASES = [
    (ONE, dict(max_new_tokens=8)),
    (PADDED, dict(max_new_tokens=6)),
    # No end before all is full: far beyond every sliding window, which is 5.
    (PADDED, dict(max_new_tokens=18, min_new_tokens=18)),
    (PADDED, dict(max_new_tokens=18, min_new_tokens=18, use_cache=False)),
    (ALIKE, dict(max_new_tokens=7, repetition_penalty=1.7)),
    (PADDED, dict(max_new_tokens=7, repetition_penalty=0.6)),
    (PADDED, dict(max_new_tokens=8, no_repeat_ngram_size=2)),
    (ONE, dict(max_new_tokens=5, min_new_tokens=3, suppress_tokens=[4, 20], bad_words_ids=[[6], [9, 12]], forced_eos_token_id=3)),
    (ALIKE, BEAMS),
    (PADDED, BEAMS | dict(max_new_tokens=14, min_new_tokens=12)),
    (PADDED, BEAMS | dict(use_cache=False)),
    (PADDED, BEAMS | dict(length_penalty=2.0, num_return_sequences=3)),
    (PADDED, BEAMS | dict(length_penalty=-1.0)),
    (PADDED, BEAMS | dict(early_stopping=True, num_return_sequences=2)),
    (PADDED, BEAMS | dict(early_stopping="never", length_penalty=0.5)),
    (ALIKE, BEAMS | dict(no_repeat_ngram_size=2, repetition_penalty=1.3)),
]
# mBART is told its language by the first token that it must write.
CROSSED = [
    (PADDED, dict(max_new_tokens=6, forced_bos_token_id=33)),
    (PADDED, BEAMS | dict(forced_bos_token_id=33, forced_eos_token_id=3, begin_suppress_tokens=[7, 13, 26])),
]


def load(name, config, factors):
    golden = HERE.parent / "golden" / name / "model"
    auto = tf.AutoModelForSeq2SeqLM if "SEQ_2_SEQ" in name else tf.AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "config.json").write_text(json.dumps(json.loads((golden / "config.json").read_text()) | config))
        weights = load_file(golden / "model.safetensors")
        for key, factor in factors.items():
            weights = {n: w * factor if key in n and w.dim() > 1 else w for n, w in weights.items()}
        save_file(weights, folder / "model.safetensors", metadata=dict(format="pt"))
        return auto.from_pretrained(folder, attn_implementation="eager").eval()


for file, name, config, factors in MODELS:
    crossed = "SEQ_2_SEQ" in name
    model = load(name, config, factors)
    model.generation_config = tf.GenerationConfig()
    start = dict(decoder_start_token_id=2) if crossed else {}
    # As far as the positions reach: dynamic scaling has them grow to twice as many.
    room = 12 if "dynamic" in name else getattr(model.config, "max_position_embeddings", None) or 24
    cases = []
    for prompts, options in CASES + (CROSSED if crossed else []):
        ids = lambda rows: torch.tensor(rows)
        longest = max(map(len, prompts))
        read = 1 if crossed else longest
        for key in ("max_new_tokens", "min_new_tokens"):
            if key in options:
                options = options | {key: min(options[key], room - read)}
        pad = lambda row, with_: row + [with_] * (longest - len(row)) if crossed else [with_] * (longest - len(row)) + row
        x = dict(input_ids=ids([pad(p, 0) for p in prompts]), attention_mask=ids([pad([1] * len(p), 0) for p in prompts]))
        # A token that comes late ends an answer as well, so that answers do end.
        free = model.generate(**x, max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0, **start)[0, read:].tolist()
        late = next((token for token in reversed(free) if token != free[0]), 3)
        options = dict(eos_token_id=sorted({late, 3}), pad_token_id=0) | start | options
        out = model.generate(**x, generation_config=tf.GenerationConfig(**options, do_sample=False))
        cases.append(dict(options=options, prompts=prompts, answers=[row[read:] for row in out.tolist()]))
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    what = json.dumps(dict(model=name, config=config, factors=factors))
    (HERE / f"{file}.json").write_text(f'{what[:-1]}, "cases": [\n{lines}\n]}}\n')
    print(file)

# Filtered probabilities of the draw.
torch.manual_seed(3)
draws = []
BEAMS = dict(num_beams=2, eos_token_id=[3, 4])
for options in (
    dict(temperature=0.7), dict(top_k=5), dict(top_p=0.8), dict(min_p=0.1), dict(temperature=1.5, top_k=8, top_p=0.9, min_p=0.05),
    BEAMS | dict(top_k=1), BEAMS | dict(top_p=0.1), BEAMS | dict(min_p=0.9), dict(num_beams=2, top_p=0.1), BEAMS | dict(temperature=1.5, top_k=8, top_p=0.9),
):
    logits = torch.randn(1, 24) * 2
    p = tf.generation.logits_process
    config = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=None) | options
    # Beams that end leave one that goes on, as in `_get_logits_processor`.
    keep = dict(min_tokens_to_keep=len(options.get("eos_token_id", [0])) + 1 if "num_beams" in options else 1)
    warpers = [p.TemperatureLogitsWarper(config["temperature"])]
    if config["top_k"]: warpers.append(p.TopKLogitsWarper(config["top_k"], **keep))
    if config["top_p"] < 1: warpers.append(p.TopPLogitsWarper(config["top_p"], **keep))
    if config["min_p"]: warpers.append(p.MinPLogitsWarper(config["min_p"], **keep))
    scores = logits
    for warper in warpers:
        scores = warper(torch.zeros(1, 1, dtype=torch.long), scores)
    draws.append(dict(options=config, logits=logits[0].tolist(), probabilities=scores.softmax(-1)[0].tolist()))
(HERE / "sampling").mkdir(exist_ok=True)
(HERE / "sampling/probabilities.json").write_text("[\n" + ",\n".join(map(json.dumps, draws)) + "\n]\n")

# Stop strings, with a tokenizer whose tokens overlap them in every way.
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)] + ["Ġ", "Ċ", "Ã", "©", "!"]
MERGES = [("s", "t"), ("o", "p"), ("st", "op"), ("Ġ", "t"), ("h", "e"), ("e", "r"), ("op", "er"), ("k", "w"), ("Ã", "©")]
vocab = {token: at for at, token in enumerate(LETTERS + ["".join(pair) for pair in MERGES] + ["<end>"])}
assert len(vocab) == 41
tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens(["<end>"])
(HERE / "stops").mkdir(exist_ok=True)
tokenizer.save(str(HERE / "stops/tokenizer.json"))
fast = tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
model = load("llama.CAUSAL_LM.default", {}, {})
model.generation_config = tf.GenerationConfig()
cases = []
for prompts, options in [(ONE, {}), (PADDED, {}), (PADDED, dict(num_beams=3)), (ALIKE, dict(num_beams=2, num_return_sequences=2))]:
    longest = max(map(len, prompts))
    x = dict(
        input_ids=torch.tensor([[0] * (longest - len(p)) + p for p in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
    )
    common = dict(max_new_tokens=10, eos_token_id=[40], pad_token_id=0, **options)
    free = model.generate(**x, generation_config=tf.GenerationConfig(**common, do_sample=False))
    # Half a character is no text that a stop string could hold.
    text = fast.decode(free[0, longest:]).replace("\ufffd", "é")
    end = fast.decode(free[0, longest - 1 : longest + 1])
    for stop in ([text[2:4]], [text[3]], [text[1:5], "zzzz"], ["x" + text[:3]], [end], [text[4:6], text[5:7]], ["<end>", "é"]):
        config = tf.GenerationConfig(**common, stop_strings=stop, do_sample=False)
        out = model.generate(**x, generation_config=config, tokenizer=fast)
        cases.append(dict(options=common | dict(stop_strings=stop), prompts=prompts, answers=[row[longest:] for row in out.tolist()]))
lines = ",\n".join("  " + json.dumps(case) for case in cases)
(HERE / "stops/cases.json").write_text(f"[\n{lines}\n]\n")
