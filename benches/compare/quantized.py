#!/usr/bin/env python3
"""Training on packed weights against the formulas of bitsandbytes in Python: same adapter, batches and optimiser.

    quantized.py WORK SMOLLM2_GGUF COMPARE_SIDE [--steps 50] [--shuffle]

The Python side trains with Transformers and PEFT on a model whose linear layers hold what bitsandbytes gives back after packing
them; the other side is `compare-side` with the model packed while it is loaded, with its table of words in eight bits too
(`table`), and dense for the times. Needs what compare.py needs, and bitsandbytes. Prints a line of JSON for each side and the
largest distance of the losses from Python's.

The GGUF file has the table of words as Q8_0, which packing it again does not change. `--shuffle`, in a WORK of its own, puts the
model's dimensions in another order: a model that computes the same, and no block of which is as in the file.
"""
import argparse, json, os, pathlib, subprocess, sys, time

os.environ["HF_HUB_OFFLINE"] = "1"
HERE = pathlib.Path(__file__).resolve().parent
ap = argparse.ArgumentParser()
ap.add_argument("work", type=pathlib.Path)
ap.add_argument("gguf")
ap.add_argument("side")
ap.add_argument("--steps", type=int, default=50)
ap.add_argument("--shuffle", action="store_true")
ap.add_argument("--only", choices=["python", "nf4", "table", "nested", "int8", "gguf", "dense"], action="append")
a = ap.parse_args()
a.work.mkdir(parents=True, exist_ok=True)
CASE = dict(kind="train", model="smollm2", task="CAUSAL_LM", rows=2, length=256, target_modules="all-linear", r=8, dtype="f32", check_steps=a.steps)
FOLDER, PACKED = a.work / "smollm2-f32", a.work / "smollm2-nf4-unpacked"


def prepare():
    (a.work / "cases.json").write_text(json.dumps({"packed": CASE}))
    subprocess.run([sys.executable, HERE / "prepare.py", a.work, ".", a.gguf, a.work / "cases.json"], check=True)
    if a.shuffle:
        shuffle(FOLDER / "model.safetensors")


def shuffle(path):
    import numpy as np
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    order = np.random.default_rng(3).permutation(tensors["model.embed_tokens.weight"].shape[1])
    for name, weight in tensors.items():
        is_output = name.endswith(("norm.weight", "o_proj.weight", "down_proj.weight"))
        tensors[name] = np.ascontiguousarray(weight[order] if is_output else weight[:, order])
    save_file(tensors, path, metadata={"format": "pt"})


def unpacked():
    import bitsandbytes.functional as F, torch, transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight.data = F.dequantize_4bit(*F.quantize_4bit(module.weight.data, quant_type="nf4"))
    model.save_pretrained(PACKED)


def run(name, command, model, quantization=None):
    case = dict(
        kind="train", model=str(model), adapter=str(a.work / "packed.adapter"), adapters=1, lora="ours", dtype="f32",
        batches=str(a.work / "packed.safetensors"), steps=a.steps, save=None, started=time.time(),
        training=dict(learning_rate=1e-3, weight_decay=0.01, max_grad_norm=1.0),
    )
    if quantization:
        case["quantization"] = quantization
    path = a.work / f"{name}.case.json"
    path.write_text(json.dumps(case))
    out = json.loads(subprocess.run([*command, path], check=True, capture_output=True, text=True).stdout)
    (a.work / f"{name}.result.json").write_text(json.dumps(out))
    return out


if not (a.work / "packed.safetensors").exists():
    prepare()
if not PACKED.exists():
    unpacked()
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")
RUNS = {
    "dense": ([a.side], FOLDER, None),
    "nf4": ([a.side], FOLDER, NF4),
    "table": ([a.side], FOLDER, dict(NF4, load_embeddings_in_8bit=True)),
    "nested": ([a.side], FOLDER, dict(NF4, bnb_4bit_use_double_quant=True)),
    "int8": ([a.side], FOLDER, dict(load_in_8bit=True)),
    "gguf": ([a.side], a.gguf, NF4),
    "python": ([sys.executable, HERE / "python_side.py"], PACKED, None),
}
for name in a.only or RUNS:
    out = run(name, *RUNS[name])
    seconds = sorted(out["step_seconds"])
    print(json.dumps(dict(
        side=name, first=out["losses"][0], last=out["losses"][-1], step=seconds[len(seconds) // 2],
        **{key: out[key] for key in ("base_bytes", "loaded_rss_bytes", "peak_rss_bytes") if key in out},
    )), flush=True)
losses = {path.name.split(".")[0]: json.loads(path.read_text())["losses"] for path in a.work.glob("*.result.json")}
for name in ("nf4", "table"):
    if name in losses and "python" in losses:
        largest = max(abs(x - y) / y for x, y in zip(losses[name], losses["python"]))
        print(name, "largest relative distance of the losses", largest)
