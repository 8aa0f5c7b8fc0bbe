#!/usr/bin/env python3
"""Writes the weights of two golden cases, and an adapter, as PyTorch's own files: the fixtures of this folder.

    .ref/bin/python tests/pytorch/generate.py          (needs what tests/golden/generate.py needs)

- `zip.bin`, `legacy.bin`: `bert.SEQ_CLS.default` in today's format and in the pickle of before PyTorch 1.6;
- `sharded/`: `llama.CAUSAL_LM.tied-all-linear` in two files and an index, as Transformers writes them;
- `adapter_model.bin`: the adapter of `bert.SEQ_CLS.default`, saved by PEFT with `safe_serialization=False`;
- `hostile.bin`: a state dict beside an object whose making would write a file `hostile.ran`.
"""
import json, os, pathlib, tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE.parent / "golden"
BERT, LLAMA = GOLDEN / "bert.SEQ_CLS.default", GOLDEN / "llama.CAUSAL_LM.tied-all-linear"


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile.ran",)


state = load_file(BERT / "model/model.safetensors")
name = "bert.encoder.layer.0.attention.self.query.weight"
state[name] = state[name].T.contiguous().T  # what lies turned in the file is the same tensor
torch.save(state, HERE / "zip.bin")
torch.save(state, HERE / "legacy.bin", _use_new_zipfile_serialization=False)
torch.save({"weight": torch.ones(2), "other": Hostile()}, HERE / "hostile.bin", _use_new_zipfile_serialization=False)

state = load_file(LLAMA / "model/model.safetensors")
state["lm_head.weight"] = state["model.embed_tokens.weight"]  # PyTorch's files have a shared tensor under both names
names = sorted(state)
half = len(names) // 2
(HERE / "sharded").mkdir(exist_ok=True)
weight_map = {}
for number, part in [(1, names[:half]), (2, names[half:])]:
    file = f"pytorch_model-{number:05}-of-00002.bin"
    torch.save({name: state[name] for name in part}, HERE / "sharded" / file)
    weight_map |= dict.fromkeys(part, file)
index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weight_map}
(HERE / "sharded/pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")

base = AutoModelForSequenceClassification.from_pretrained(BERT / "model")
model = PeftModel.from_pretrained(base, BERT / "adapter")
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder, safe_serialization=False)
    (HERE / "adapter_model.bin").write_bytes((pathlib.Path(folder) / "adapter_model.bin").read_bytes())
