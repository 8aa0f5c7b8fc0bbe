#!/usr/bin/env python3
"""Makes what both sides of a case read: models as safetensors without dropout, adapters, batches, a prompt.

    prepare.py WORK MINILM_FOLDER SMOLLM2_GGUF CASES.json
"""
import csv, json, os, pathlib, sys, warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore")
import peft, torch, transformers
from safetensors.torch import save_file
from transformers import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
work, minilm, gguf, cases = (pathlib.Path(argument) for argument in sys.argv[1:])
repo = pathlib.Path(__file__).resolve().parents[2]
AUTO = {"SEQ_CLS": transformers.AutoModelForSequenceClassification, "CAUSAL_LM": transformers.AutoModelForCausalLM}


def model_folder(name, dtype, dropout=False):
    """The model in that type, with its own dropout or none: the weights of one side and the other are the same file."""
    folder = work / (f"{name}-{dtype}" + ("-dropout" if dropout else ""))
    if not (folder / "config.json").exists():
        source = dict(gguf_file=gguf.name) if name == "smollm2" else {}
        path = gguf.parent if name == "smollm2" else minilm
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **source)
        auto = transformers.AutoModel if name == "minilm" else transformers.AutoModelForCausalLM
        read = auto.from_pretrained(path, dtype=torch.float32, **source)
        config = read.config
        # Transformers writes no model that it knows to be from a GGUF file.
        vars(config).pop("quantization_config", None)
        for key in vars(config):
            # With dropout the losses of two implementations cannot agree.
            if key.endswith(("dropout", "dropout_prob")) and not dropout:
                setattr(config, key, 0.0)
        model = auto.from_config(config)
        model.load_state_dict(read.state_dict())
        model.to({"f32": torch.float32, "bf16": torch.bfloat16}[dtype])
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def ids_of(folder):
    """The example data set as one row of tokens."""
    with open(repo / "examples/data/vader-sentiment/train.tsv", encoding="utf-8", newline="\n") as file:
        texts = [row["text"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return torch.tensor(tokenizer("\n".join(texts), add_special_tokens=False, verbose=False)["input_ids"])


def batches(case, folder, path):
    steps, rows, length = case["check_steps"], case["rows"], case["length"]
    ids = ids_of(folder).repeat(1 + steps * rows * length // 20_000)[:steps * rows * length].view(steps, rows, length)
    labels = ids.clone()
    if case["task"] == "SEQ_CLS":
        labels = torch.randint(2, (steps, rows), generator=torch.Generator().manual_seed(0))
    save_file(dict(input_ids=ids.contiguous(), attention_mask=torch.ones_like(ids), labels=labels), path)


def adapter(case, folder, path):
    torch.manual_seed(0)
    base = AUTO[case["task"]].from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(task_type=case["task"], r=case["r"], lora_alpha=2 * case["r"], lora_dropout=0.0, target_modules=case["target_modules"])
    peft.get_peft_model(base, config).save_pretrained(path)


for name, case in json.loads(cases.read_text()).items():
    folder = model_folder(case["model"], case["dtype"])
    if case.get("dropout"):
        model_folder(case["model"], case["dtype"], dropout=True)
    if case["kind"] == "generate":
        (work / f"{name}.prompt.json").write_text(json.dumps(ids_of(folder)[:case["prompt"]].tolist()))
    else:
        adapter(case, folder, work / f"{name}.adapter")
        batches(case, folder, work / f"{name}.safetensors")
