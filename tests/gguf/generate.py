#!/usr/bin/env python3
"""Writes the GGUF fixtures of this folder, and what Transformers makes of them.

    .ref/bin/pip install gguf          (besides what tests/golden/generate.py needs)
    .ref/bin/python tests/gguf/generate.py [PART OF A FILE'S NAME]

A case is `NAME.gguf`, and `NAME.safetensors` with every parameter, a batch of ids and the logits, all as Transformers reads the
file, and `NAME.json` with texts and their tokens.
"""
import json, os, pathlib, sys, zlib

os.environ["HF_HUB_OFFLINE"] = "1"
import gguf, numpy as np, torch, transformers as tf
from gguf import GGMLQuantizationType as T
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
# None begins with a space: there Transformers differs from SentencePiece, from llama.cpp and from its own Llama tokenizer.
TEXTS = ["the cat sat", "a cat, the mat!", "the  3 cats 1234", "The naïve café 🙂", "it's\n\n  done<|end|>the", ""]
SCALES = {T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}


def pieces():
    """A vocabulary of SentencePiece's kind: pieces, scores and kinds."""
    words = ["the", "cat", "sat", "mat", "at", "th", "▁the", "▁cat", "▁a", "▁", "he", "s", "▁s", "▁m"] + list("abcdefhimnostTuv,!13")
    words = list(dict.fromkeys(words))
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + words
    scores = [0.0] * 259 + [-float(i) for i in range(len(words))]
    return tokens, scores, [2, 3, 3] + [6] * 256 + [1] * len(words)


def byte_pairs():
    """A vocabulary of GPT-2's kind: tokens, merges and kinds."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    merges = ["t h", "th e", "c a", "ca t", "Ġ the", "Ġ cat", "s a", "sa t", "Ġ Ġ", "1 2"]
    tokens = list(bytes_to_unicode().values()) + [m.replace(" ", "") for m in merges] + ["<|start|>", "<|end|>"]
    return tokens, merges, [1] * (len(tokens) - 2) + [3, 3]


def tensor(writer, rng, name, shape, kind):
    if kind == T.F32:
        around = 1.0 if name.endswith("norm.weight") else 0.0
        return writer.add_tensor(name, (around + 0.1 * rng.standard_normal(shape)).astype(np.float32))
    if kind in SCALES:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (shape[0] * shape[1] // block, size), dtype=np.uint8)
        for at in SCALES[kind]:
            blocks[:, at:at + 2] = (rng.uniform(1e-4, 3e-4, (len(blocks), 1))).astype(np.float16).view(np.uint8)
        data = blocks.reshape(shape[0], -1)
    else:
        data = gguf.quants.quantize((0.1 * rng.standard_normal(shape)).astype(np.float32), kind)
    writer.add_tensor(name, data, raw_dtype=kind)


def write(name, arch, options, kinds, tokenizer, hidden=16, inner=24, heads=4, key_heads=2, dim=4, layers=1, extra=()):
    path = HERE / f"{name}.gguf"
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    w = gguf.GGUFWriter(path, arch)
    w.add_block_count(layers), w.add_context_length(64), w.add_embedding_length(hidden), w.add_feed_forward_length(inner)
    w.add_head_count(heads), w.add_head_count_kv(key_heads), w.add_layer_norm_rms_eps(1e-5), w.add_rope_freq_base(5000.0)
    if arch == "llama":
        w.add_rope_dimension_count(dim)
    else:
        w.add_key_length(dim), w.add_value_length(dim)
    for key, value in options.items():
        getattr(w, key)(value)
    if tokenizer == "llama":
        tokens, scores, types = pieces()
        w.add_tokenizer_model("llama"), w.add_token_list(tokens), w.add_token_scores(scores), w.add_token_types(types)
        w.add_bos_token_id(1), w.add_eos_token_id(2), w.add_unk_token_id(0), w.add_add_space_prefix(not arch.startswith("gemma"))
    else:
        tokens, merges, types = byte_pairs()
        w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre(tokenizer), w.add_token_list(tokens), w.add_token_merges(merges)
        w.add_token_types(types), w.add_bos_token_id(len(tokens) - 2), w.add_eos_token_id(len(tokens) - 1), w.add_pad_token_id(len(tokens) - 1)
        w.add_add_bos_token(False)
    w.add_chat_template("{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}")
    kind = lambda part: kinds.get(part, kinds.get("*", T.F32))
    put = lambda part, shape, prefix="": tensor(w, rng, prefix + part, shape, T.F32 if len(shape) == 1 else kind(part.split(".")[0]))
    put("token_embd.weight", (len(tokens), hidden))
    for layer in range(layers):
        at = f"blk.{layer}."
        put("attn_q.weight", (heads * dim, hidden), at), put("attn_k.weight", (key_heads * dim, hidden), at)
        put("attn_v.weight", (key_heads * dim, hidden), at), put("attn_output.weight", (hidden, heads * dim), at)
        put("ffn_gate.weight", (inner, hidden), at), put("ffn_up.weight", (inner, hidden), at), put("ffn_down.weight", (hidden, inner), at)
        put("attn_norm.weight", (hidden,), at), put("ffn_norm.weight", (hidden,), at)
        for part, size in extra:
            put(part, (dict(hidden=hidden, dim=dim, q=heads * dim, k=key_heads * dim)[size],), at)
    put("output_norm.weight", (hidden,))
    if "output" in kinds:
        put("output.weight", (len(tokens), hidden))
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()

    # Transformers reads past the size of a head in some families' metadata, and what Gemma's scores are scaled by.
    config = tf.AutoConfig.from_pretrained(HERE, gguf_file=path.name)
    config.head_dim = config.query_pre_attn_scalar = dim
    model = tf.AutoModelForCausalLM.from_pretrained(HERE, gguf_file=path.name, config=config, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.from_numpy(rng.integers(3, len(tokens), (2, 7)))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    state = {k: v.clone().contiguous() for k, v in model.state_dict().items() if k not in tied and v.numel() < 20_000}
    save_file(state | {"input_ids": ids, "logits": logits}, HERE / f"{name}.safetensors")
    tok = tf.AutoTokenizer.from_pretrained(HERE, gguf_file=path.name)
    texts = [dict(text=t, ids=tok(t)["input_ids"]) for t in TEXTS]
    (HERE / f"{name}.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n")
    print(name, model.config.model_type, path.stat().st_size)


K = dict(hidden=256, inner=32, heads=2, key_heads=1, dim=4)
ALL = {"attn_q": T.Q2_K, "attn_k": T.Q3_K, "attn_v": T.Q4_K, "ffn_gate": T.Q5_K, "ffn_up": T.Q6_K, "ffn_down": T.Q4_0, "token_embd": T.Q8_0}
QKV = [("attn_q.bias", "q"), ("attn_k.bias", "k"), ("attn_v.bias", "k")]
GEMMA = [("post_attention_norm.weight", "hidden"), ("post_ffw_norm.weight", "hidden")]
NORMS = [("attn_q_norm.weight", "dim"), ("attn_k_norm.weight", "dim")]
CASES = [
    ("llama-k-quants", "llama", {}, ALL, "llama", K),
    ("llama-old-quants", "llama", {}, {"*": T.Q4_1, "attn_q": T.Q5_0, "attn_k": T.Q5_1, "ffn_up": T.F16, "output": T.BF16, "attn_output": T.F32, "ffn_down": T.F16}, "default", dict(hidden=32, layers=2)),
    ("qwen2", "qwen2", {}, {}, "qwen2", dict(extra=QKV)),
    ("qwen3", "qwen3", {}, {"output": T.F16}, "qwen2", dict(extra=NORMS, dim=8)),
    ("gemma2", "gemma2", dict(add_sliding_window=4), {}, "llama", dict(extra=GEMMA, dim=8, layers=2)),
    ("gemma3", "gemma3", dict(add_sliding_window=4), {}, "llama", dict(extra=GEMMA + NORMS, dim=8, layers=2)),
]
for name, arch, options, kinds, tokenizer, sizes in CASES:
    if not sys.argv[1:] or sys.argv[1] in name:
        write(name, arch, options, kinds, tokenizer, **sizes)
