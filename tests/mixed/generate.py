#!/usr/bin/env python3
"""Writes the folders beside it: batches whose rows use different adapters, as PEFT computes them (`adapter_names`).

    .ref/bin/python tests/mixed/generate.py

A folder is named after the model of `../golden/` that its adapters are for. It holds the adapters of these names as PEFT saves
them, and `expected.safetensors`: the rows' `input_ids` and `attention_mask`, and what comes out with the names of `expected.json`
and without any adapter; of decoders also what PEFT writes, by greedy and by beam search.
"""
import json, os, pathlib, shutil, zlib

os.environ["HF_HUB_OFFLINE"] = "1"
import peft, torch, transformers as tf
from safetensors.torch import load_file, save_file

tf.logging.set_verbosity_error()
HERE = pathlib.Path(__file__).parent
HEADS = {
    "SEQ_CLS": tf.AutoModelForSequenceClassification, "TOKEN_CLS": tf.AutoModelForTokenClassification,
    "CAUSAL_LM": tf.AutoModelForCausalLM, "SEQ_2_SEQ_LM": tf.AutoModelForSeq2SeqLM,
}
ADAPTERS = ["red", "green", "blue"]
NAMES = ["green", "red", "__base__", "red", "blue", "green"]
# Different ranks and layers.
CASES = {
    "bert.SEQ_CLS.default": [
        dict(r=3, lora_alpha=5), dict(r=5, lora_alpha=2, target_modules="all-linear"),
        dict(r=1, lora_alpha=4, target_modules=["key", "word_embeddings"]),
    ],
    "llama.CAUSAL_LM.default": [
        # PEFT needs the saved module in all of them.
        dict(r=2, lora_alpha=8, modules_to_save=["lm_head"]),
        dict(r=7, lora_alpha=7, use_rslora=True, target_modules="all-linear", modules_to_save=["lm_head"]),
        dict(r=1, lora_alpha=2, target_modules=["down_proj", "embed_tokens"], modules_to_save=["lm_head"]),
    ],
    "gpt2.SEQ_CLS.default": [
        dict(r=2, lora_alpha=8), dict(r=4, lora_alpha=4, target_modules=["c_proj", "c_fc"]), dict(r=3, lora_alpha=6),
    ],
    "t5.SEQ_2_SEQ_LM.default": [
        dict(r=2, lora_alpha=8), dict(r=4, lora_alpha=4, target_modules=["wi", "wo", "o"]), dict(r=1, lora_alpha=6, target_modules=["k"]),
    ],
}


def write(case, variants):
    task = case.split(".")[1]
    folder, golden = HERE / case, HERE.parent / "golden" / case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    base = HEADS[task].from_pretrained(golden / "model", dtype=torch.float32).eval()
    model = None
    for name, options in zip(ADAPTERS, variants):
        config = peft.LoraConfig(task_type=task, **options)
        if model is None:
            model = peft.get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    generator = torch.Generator().manual_seed(zlib.crc32(case.encode()))
    for key, value in model.named_parameters():
        if "lora_" in key or "modules_to_save" in key:
            value.data += torch.randn(value.shape, generator=generator) * 0.2
    model.eval()
    model.save_pretrained(folder, selected_adapters=ADAPTERS, save_embedding_layers=False)
    (folder / "README.md").unlink()
    rows = len(NAMES)
    ids = torch.randint(3, 41, (rows, 7), generator=generator)
    mask = torch.ones_like(ids)
    for row, padding in [(1, 2), (4, 3)]:
        pad = slice(0, padding) if task == "CAUSAL_LM" else slice(7 - padding, 7)
        ids[row, pad], mask[row, pad] = 0, 0
    tensors = dict(input_ids=ids, attention_mask=mask)
    inputs = dict(tensors)
    if task == "CAUSAL_LM":
        inputs["position_ids"] = tensors["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    if task == "SEQ_2_SEQ_LM":
        inputs["decoder_input_ids"] = tensors["decoder_input_ids"] = torch.randint(3, 41, (rows, 4), generator=generator)
    with torch.no_grad():
        tensors["logits"] = model(**inputs, adapter_names=NAMES).logits
        with model.disable_adapter():
            tensors["base.logits"] = model(**inputs).logits
        facts = dict(names=NAMES, peft=peft.__version__, transformers=tf.__version__)
        if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
            # Rows that end are filled up; none ends here.
            options = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
            written = lambda **more: model.generate(input_ids=ids, attention_mask=mask, adapter_names=NAMES, **options, **more)
            skip = ids.shape[1] if task == "CAUSAL_LM" else 1
            facts["greedy"] = written()[:, skip:].tolist()
            facts["beams"] = written(num_beams=3)[:, skip:].tolist()
        problems = {}
        for what, names in [("unknown", ["violet"] + NAMES[1:]), ("length", NAMES[:3])]:
            try:
                model(**inputs, adapter_names=names)
            except ValueError as error:
                problems[what] = str(error)
        facts["refused_by_peft"] = problems
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps(facts) + "\n")
    print(case, problems, facts.get("greedy"), facts.get("beams"))


for case, variants in CASES.items():
    write(case, variants)
