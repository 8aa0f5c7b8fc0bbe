#!/usr/bin/env python3
"""The Python side of one case of compare.py: reads the case, does it, prints what it came to as a line of JSON.

    python_side.py CASE.json
"""
import json, os, pathlib, resource, sys, time, warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore")
import torch, transformers
from transformers import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(os.cpu_count())
case = json.loads(pathlib.Path(sys.argv[1]).read_text())
dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[case["dtype"]]
device = torch.device(case.get("device", "cpu"))
AUTO = {"SEQ_CLS": "AutoModelForSequenceClassification", "CAUSAL_LM": "AutoModelForCausalLM"}


def timed(f):
    start = time.perf_counter()
    value = f()
    return value, time.perf_counter() - start


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def train():
    import peft
    from safetensors.torch import load_file

    task = json.loads((pathlib.Path(case["adapter"]) / "adapter_config.json").read_text())["task_type"]
    base = getattr(transformers, AUTO[task]).from_pretrained(case["model"], dtype=dtype).to(device)
    # A decoder would fill a cache that no step reads.
    base.config.use_cache = False
    names = [f"adapter{number}" for number in range(case["adapters"])]
    model = peft.PeftModel.from_pretrained(base, case["adapter"], adapter_name=names[0], is_trainable=True)
    for name in names[1:]:
        model.load_adapter(case["adapter"], name, is_trainable=True)
    if len(names) > 1:
        model.base_model.set_adapter(names)
    model.train()
    batches = load_file(case["batches"])
    count = len(batches["input_ids"])
    trained = [p for p in model.parameters() if p.requires_grad]
    options = case["training"]
    # What Transformers' Trainer takes where PyTorch has it.
    adamw = torch.optim.AdamW(trained, lr=options["learning_rate"], weight_decay=options["weight_decay"], fused=True)
    losses, step_seconds = [], []
    for step in range(case["steps"]):
        batch = {name: values[step % count].to(device) for name, values in batches.items()}
        start = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, options["max_grad_norm"])
        adamw.step()
        adamw.zero_grad()
        losses.append(loss.item())
        step_seconds.append(time.perf_counter() - start)
        if step == 0:
            first = time.time() - case["started"]
    figures = dict(losses=losses, step_seconds=step_seconds, tokens=batches["input_ids"][0].numel(), peak_rss_bytes=peak(), first_step_seconds=first)
    if device.type == "cuda":
        figures["device_bytes"] = torch.cuda.max_memory_reserved()
    if case.get("save"):
        folder = pathlib.Path(case["save"])
        _, figures["save_seconds"] = timed(lambda: model.save_pretrained(folder, selected_adapters=[names[0]]))
        _, figures["load_seconds"] = timed(lambda: model.load_adapter(folder / names[0], "again"))
        # As safe as ours: both look whether the result is finite.
        _, figures["merge_seconds"] = timed(lambda: model.merge_and_unload(safe_merge=True))
    return figures


def generate():
    model = transformers.AutoModelForCausalLM.from_pretrained(case["model"], dtype=dtype).to(device).eval()
    prompt = torch.tensor([case["prompt"]], device=device)
    options = transformers.GenerationConfig(max_new_tokens=case["max_new_tokens"], do_sample=False, pad_token_id=0)
    # No token ends it.
    model.generation_config = options
    model.config.eos_token_id = None
    seconds = []
    for time_ in range(case["times"]):
        out, took = timed(lambda: model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=options))
        seconds.append(took)
        if time_ == 0:
            first = time.time() - case["started"]
    return dict(tokens=out[0, prompt.shape[1]:].tolist(), generate_seconds=seconds, peak_rss_bytes=peak(), first_answer_seconds=first)


print(json.dumps({"train": train, "generate": generate}[case["kind"]]()))
