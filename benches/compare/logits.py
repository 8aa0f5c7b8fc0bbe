#!/usr/bin/env python3
"""What Python PEFT says for an adapter folder: random ids in, logits out, for `peft forward` to be compared with.

    logits.py MODEL ADAPTER OUT   writes OUT.in.safetensors, runs Python PEFT, writes OUT.safetensors with `logits`
"""
import os, sys

os.environ["HF_HUB_OFFLINE"] = "1"
import peft, torch, transformers as tf
from safetensors.torch import load_file, save_file

model, adapter, out = sys.argv[1:4]
rows = load_file(os.path.join(adapter, "adapter_model.safetensors"))["base_model.model.classifier.weight"].shape[0]
base = tf.AutoModelForSequenceClassification.from_pretrained(model, num_labels=rows, dtype=torch.float32)
net = peft.PeftModel.from_pretrained(base, adapter).eval()
g = torch.Generator().manual_seed(0)
ids = torch.randint(1000, 8000 if base.config.vocab_size > 8000 else base.config.vocab_size, (4, 24), generator=g)
mask = torch.ones_like(ids)
mask[1, 15:] = 0
save_file(dict(input_ids=ids, attention_mask=mask), out + ".in.safetensors")
with torch.no_grad():
    save_file(dict(logits=net(input_ids=ids, attention_mask=mask).logits.contiguous()), out + ".safetensors")
