#!/usr/bin/env python3
"""Step time of `peft train` against Python PEFT on 16 rows of 128 tokens: separate processes, alternating.

    step_time.py PEFT_BINARY PYTHON_OF_A_VENV_WITH_PEFT MODEL [PAIRS]
"""
import json, pathlib, statistics, subprocess, sys, tempfile

binary, python, model, pairs = *sys.argv[1:4], int(sys.argv[4]) if len(sys.argv) > 4 else 5
here = pathlib.Path(__file__).parent
with tempfile.TemporaryDirectory() as tmp:
    tmp = pathlib.Path(tmp)
    words = "the quick brown fox jumps over the lazy dog and runs away again ".split()
    rows = [" ".join(words[(i + j) % len(words)] for j in range(200)) + f"\t{'ab'[i % 2]}" for i in range(160)]
    (tmp / "train.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    (tmp / "recipe.toml").write_text(f"""
[model]
model_name_or_path = {json.dumps(model)}
[adapter]
peft_type = "LORA"
task_type = "SEQ_CLS"
r = 8
lora_alpha = 16
target_modules = ["query", "value"]
[data]
train = "train.tsv"
max_length = 128
overflow = "truncate"
[training]
output_dir = {json.dumps(str(tmp / "out"))}
max_steps = 6
per_device_train_batch_size = 16
learning_rate = 2e-4
""")
    def ours():
        out = subprocess.run([binary, "train", str(tmp / "recipe.toml"), "--json"], capture_output=True, text=True, check=True)
        return json.loads(out.stdout.strip().splitlines()[-1])
    def theirs():
        out = subprocess.run([python, str(here / "python_peft.py"), "--model", model, "--train", str(tmp / "train.tsv"), "--max-steps", "6"], capture_output=True, text=True, check=True)
        return json.loads(out.stdout.strip().splitlines()[-1])
    ratios, memory = [], []
    for pair in range(pairs):
        first, second = (ours, theirs) if pair % 2 == 0 else (theirs, ours)
        x, y = first(), second()
        o, t = (x, y) if pair % 2 == 0 else (y, x)
        ratios.append(t["step_seconds_median"] / o["step_seconds_median"])
        memory.append(o["peak_rss_bytes"] / t["peak_rss_bytes"])
        print(f"ours {o['step_seconds_median']:.3f} s, PyTorch {t['step_seconds_median']:.3f} s, speed {ratios[-1]:.2f}x; memory {o['peak_rss_bytes'] / 2**20:.0f} against {t['peak_rss_bytes'] / 2**20:.0f} MiB", flush=True)
    print(f"speed {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}), memory {statistics.median(memory):.2f} ({min(memory):.2f} to {max(memory):.2f})")
