#!/usr/bin/env python3
"""The other side of the comparison: one SEQ_CLS fine-tune with Python PEFT, its figures as one JSON line.

Reads the same .tsv and takes the same recipe as `peft train`; the order of the rows differs.
"""
import argparse, csv, json, os, random, resource, statistics, time

START = time.perf_counter()
os.environ["HF_HUB_OFFLINE"] = "1"
import peft, torch, transformers as tf

ap = argparse.ArgumentParser()
ap.add_argument("--model", required=True)
ap.add_argument("--train", required=True)
ap.add_argument("--eval")
ap.add_argument("--out")
ap.add_argument("--epochs", type=int, default=1)
ap.add_argument("--max-steps", type=int, default=0)
ap.add_argument("--batch", type=int, default=16)
ap.add_argument("--max-length", type=int, default=128)
ap.add_argument("--lr", type=float, default=2e-4)
ap.add_argument("--r", type=int, default=8)
ap.add_argument("--alpha", type=int, default=16)
ap.add_argument("--targets", default="query,value")
ap.add_argument("--seed", type=int, default=0)
ap.add_argument("--threads", type=int, default=2)
a = ap.parse_args()
torch.manual_seed(a.seed)
random.seed(a.seed)
torch.set_num_threads(a.threads)


def rows(path):
    with open(path, encoding="utf-8", newline="\n") as f:
        return list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))


train = rows(a.train)
labels = sorted({r["label"] for r in train})
tok = tf.AutoTokenizer.from_pretrained(a.model)
base = tf.AutoModelForSequenceClassification.from_pretrained(a.model, num_labels=len(labels), label2id={l: i for i, l in enumerate(labels)}, id2label=dict(enumerate(labels)))
targets = a.targets if a.targets == "all-linear" else a.targets.split(",")
model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=a.r, lora_alpha=a.alpha, target_modules=targets))


def batch(part):
    x = tok([r["text"] for r in part], truncation=True, max_length=a.max_length, padding=True, return_tensors="pt")
    x["labels"] = torch.tensor([labels.index(r["label"]) for r in part])
    return x


optim = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=a.lr, weight_decay=0.0)
steps = a.max_steps or a.epochs * -(-len(train) // a.batch)
schedule = tf.get_scheduler("linear", optim, 0, steps)
model.train()
seconds, losses, first = [], [], None
while len(losses) < steps:
    random.shuffle(train)
    for at in range(0, len(train), a.batch):
        if len(losses) == steps:
            break
        x = batch(train[at:at + a.batch])
        t = time.perf_counter()
        loss = model(**x).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optim.step()
        schedule.step()
        optim.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - t)
        first = first or time.perf_counter() - START
figures = dict(steps=steps, train_loss=statistics.mean(losses), step_seconds_median=statistics.median(seconds), first_step_seconds=first, peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
if a.eval:
    model.eval()
    dev, right = rows(a.eval), 0
    with torch.no_grad():
        for at in range(0, len(dev), 32):
            x = batch(dev[at:at + 32])
            right += (model(**x).logits.argmax(-1) == x["labels"]).sum().item()
    figures["accuracy"] = right / len(dev)
if a.out:
    model.save_pretrained(a.out)
print(json.dumps(figures))
