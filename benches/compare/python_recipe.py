#!/usr/bin/env python3
"""The other side of the comparison: the fine-tune that a recipe of `peft train` asks for, with Transformers and Python PEFT.

    python_recipe.py RECIPE.toml [section.key=value]… [--threads 2] [--seed N] [--model FOLDER] [--save FOLDER] [--prompt TEXT] [--no-answers]

Prints the evaluation metrics and the time as one JSON line; with `--prompt` also what the model says to it before and after. The order
of the rows differs from ours. PEFT 0.21.2's PREFIX_TUNING needs a Transformers before 5.24.
"""
import argparse, csv, json, math, os, pathlib, random, re, resource, string, sys, time, tomllib
from collections import Counter

START = time.perf_counter()
os.environ["HF_HUB_OFFLINE"] = "1"
import peft, torch, transformers as tf

ap = argparse.ArgumentParser()
ap.add_argument("recipe", type=pathlib.Path)
ap.add_argument("overrides", nargs="*", metavar="section.key=value")
ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--seed", type=int)
ap.add_argument("--model", help="in place of the recipe's")
ap.add_argument("--save", help="where to write the model or the adapter")
ap.add_argument("--prompt")
ap.add_argument("--no-answers", action="store_true", help="measure no written answers (SEQ_2_SEQ_LM)")
a = ap.parse_intermixed_args()
R = tomllib.loads(a.recipe.read_text())
for given in a.overrides:
    key, value = given.split("=", 1)
    section, key = key.split(".")
    try:
        R[section][key] = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        R[section][key] = value
data, training, task = R["data"], R["training"], R["adapter"]["task_type"]
LENGTH, BATCH = data.get("max_length", 512), training.get("per_device_train_batch_size", 8)
seed = training.get("seed", 0) if a.seed is None else a.seed
torch.manual_seed(seed), random.seed(seed), torch.set_num_threads(a.threads)
def locate(given):
    """Beside the recipe first, then in the working directory, as `peft train` has it."""
    beside = a.recipe.parent / given
    return str(beside) if beside.exists() else os.path.abspath(given)


name = locate(a.model or R["model"].get("model_name_or_path") or R["model"]["config"])
gguf = dict(gguf_file=os.path.basename(name)) if name.endswith(".gguf") else {}
name = os.path.dirname(name) if gguf else name
tok = tf.AutoTokenizer.from_pretrained(locate(R["model"]["tokenizer"]) if "tokenizer" in R["model"] else name, **gguf)
col = lambda role: data.get(role, role)


def rows(path):
    path = locate(path)
    text = open(path, encoding="utf-8", newline="\n").read()
    if path.endswith(".tsv"):
        return list(csv.DictReader(text.split("\n")[:-1], delimiter="\t", quoting=csv.QUOTE_NONE))
    if path.endswith(".jsonl"):
        return [json.loads(l) for l in text.splitlines() if l.strip()]
    if path.endswith(".json"):
        return [dict(q, context=p["context"]) for d in json.loads(text)["data"] for p in d["paragraphs"] for q in p["qas"]]
    pick = 3 if path.endswith(".conllu") else -1
    out = []
    for block in text.split("\n\n"):
        lines = [l.split("\t") for l in block.split("\n") if l and not (l.startswith("# ") and path.endswith("u"))]
        lines = [l for l in lines if not path.endswith("u") or l[0].isdigit()]
        if lines:
            out.append(dict(tokens=[l[1 if path.endswith("u") else 0] for l in lines], tags=[l[pick] for l in lines]))
    return out


train, dev = rows(data["train"]), rows(data["eval"])
options = {}
if task == "SEQ_CLS":
    labels = sorted({r[col("label")] for r in train})
if task == "TOKEN_CLS":
    labels = sorted({t for r in train for t in r["tags"]})
if task in ("SEQ_CLS", "TOKEN_CLS"):
    options = dict(num_labels=len(labels), id2label=dict(enumerate(labels)), label2id={l: i for i, l in enumerate(labels)})
AUTO = dict(SEQ_CLS=tf.AutoModelForSequenceClassification, TOKEN_CLS=tf.AutoModelForTokenClassification, QUESTION_ANS=tf.AutoModelForQuestionAnswering,
            CAUSAL_LM=tf.AutoModelForCausalLM, SEQ_2_SEQ_LM=tf.AutoModelForSeq2SeqLM, FEATURE_EXTRACTION=tf.AutoModel)
if R["model"].get("init") == "random":
    base = AUTO[task].from_config(tf.AutoConfig.from_pretrained(name, **options), dtype=torch.float32)
else:
    base = AUTO[task].from_pretrained(name, **options, **gguf, dtype=torch.float32)
kind = R["adapter"]["peft_type"]
config = {k: v for k, v in R["adapter"].items() if k != "peft_type"}
model = base if kind == "FULL" else peft.get_peft_model(base, peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind](**config))
# Vectors before the input, which the model answers as well.
VIRTUAL = kind in ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")
pad = tok.pad_token_id if tok.pad_token_id is not None else tok.eos_token_id


def examples(part):
    """One dict of lists an example; `row` says where it came from."""
    out = []
    for i, r in enumerate(part):
        if task == "SEQ_CLS":
            out.append(dict(tok(r[col("text")], truncation=True, max_length=LENGTH), labels=labels.index(r[col("label")])))
        elif task == "TOKEN_CLS":
            x = tok(r["tokens"], is_split_into_words=True, truncation=True, max_length=LENGTH)
            words, seen, ys = x.word_ids(), set(), []
            for w in words:
                ys.append(labels.index(r["tags"][w]) if w is not None and w not in seen and r["tags"][w] in labels else -100)
                seen.add(w)
            out.append(dict(x, labels=ys))
        elif task == "QUESTION_ANS":
            x = tok(r["question"], r["context"], truncation="only_second", max_length=LENGTH, stride=data.get("doc_stride", 128),
                    return_overflowing_tokens=True, return_offsets_mapping=True)
            start = r["answers"][0]["answer_start"]
            end = start + len(r["answers"][0]["text"])
            for w in range(len(x["input_ids"])):
                spans = [o if s == 1 else None for o, s in zip(x["offset_mapping"][w], x.sequence_ids(w))]
                inside = [t for t, s in enumerate(spans) if s]
                first = max((t for t in inside if spans[t][0] <= start), default=0)
                last = min((t for t in inside if spans[t][1] >= end), default=0)
                if not first or not last or first > last:
                    first = last = 0
                out.append({k: x[k][w] for k in ("input_ids", "attention_mask", "token_type_ids") if k in x} | dict(start_positions=first, end_positions=last, spans=spans))
        elif task == "CAUSAL_LM":
            prompt, answer = r[col("prompt")], r[col("completion")]
            x = tok(prompt + answer, return_offsets_mapping=True)
            ids = x["input_ids"] + [tok.eos_token_id]
            # A token that reaches into the answer belongs to it.
            ys = [t if end > len(prompt) else -100 for t, (_, end) in zip(x["input_ids"], x["offset_mapping"])] + [tok.eos_token_id]
            if len(ids) > LENGTH and data.get("overflow") == "drop":
                continue
            out.append(dict(input_ids=ids[:LENGTH], attention_mask=[1] * len(ids[:LENGTH]), labels=ys[:LENGTH]))
        elif task == "SEQ_2_SEQ_LM":
            x = tok(data.get("source_prefix", "") + r[col("source")], truncation=True, max_length=LENGTH)
            out.append(dict(input_ids=x["input_ids"], attention_mask=x["attention_mask"], labels=tok(text_target=r[col("target")])["input_ids"]))
        elif task == "FEATURE_EXTRACTION":
            for side in ("text", "text_pair"):
                out.append(dict(tok(r[col(side)], truncation=True, max_length=LENGTH), labels=float(r[col("score")])))
        out[-1]["row"] = i
        for e in reversed(out):
            if "row" in e and e["row"] == i:
                continue
            if "row" in e:
                break
            e["row"] = i
    return out


FILL = dict(input_ids=pad, attention_mask=0, token_type_ids=0, labels=-100)


def batch(part):
    longest, x = max(len(e["input_ids"]) for e in part), {}
    for k in part[0]:
        if k in ("row", "spans"):
            continue
        wide = max(len(e[k]) for e in part) if k == "labels" and task == "SEQ_2_SEQ_LM" else longest
        v = [e[k] + [FILL[k]] * (wide - len(e[k])) if isinstance(e[k], list) else e[k] for e in part]
        x[k] = torch.tensor(v)
    if kind == "MULTITASK_PROMPT_TUNING":
        x["task_ids"] = torch.zeros(len(part), dtype=torch.long)
    return x


def answer(x):
    """Outputs and loss where the text stands, measured here behind virtual tokens, where PEFT fails (TOKEN_CLS) or counts the prompt (CPT)."""
    if not VIRTUAL or task not in ("TOKEN_CLS", "CAUSAL_LM"):
        return model(**x)
    shift, y = int(task == "CAUSAL_LM"), x["labels"]
    o = model(**{k: v for k, v in x.items() if k != "labels"})
    o.logits = o.logits[:, -y.shape[1]:]
    o.loss = torch.nn.functional.cross_entropy(o.logits[:, :y.shape[1] - shift].flatten(0, 1), y[:, shift:].flatten())
    return o


def vectors(x):
    h = model(input_ids=x["input_ids"], attention_mask=x["attention_mask"]).last_hidden_state
    m = x["attention_mask"].unsqueeze(-1)
    return (h * m).sum(1) / m.sum(1)


def loss_of(x):
    if task != "FEATURE_EXTRACTION":
        return (answer(x) if task == "TOKEN_CLS" else model(**x)).loss
    v = vectors(x)
    return torch.nn.functional.mse_loss(torch.nn.functional.cosine_similarity(v[0::2], v[1::2]), x["labels"][0::2] / data.get("score_scale", 5.0))


def entities(tags):
    """The spans of a BIO sequence as seqeval's default mode counts them."""
    out, start, kind = set(), None, None
    for i, t in enumerate(list(tags) + ["O"]):
        p, _, k = t.partition("-")
        if kind is not None and (p in "BO" or k != kind):
            out.add((kind, start, i))
            kind = None
        if p == "B" or (p == "I" and kind is None):
            start, kind = i, k
    return out


def plain(s):
    s = "".join(c for c in s.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())


def evaluate():
    model.eval()
    ex, total, weight, logits, right, exact = examples(dev), 0.0, 0.0, [], 0, 0
    with torch.no_grad():
        for at in range(0, len(ex), 32):
            part = ex[at:at + 32]
            x = batch(part)
            if task == "FEATURE_EXTRACTION":
                logits += list(vectors(x))
                continue
            o = answer(x)
            n = (x["labels"][:, 1:] != -100).sum().item() if task == "CAUSAL_LM" else (x["labels"] != -100).sum().item() if task in ("TOKEN_CLS", "SEQ_2_SEQ_LM") else len(part)
            total, weight = total + o.loss.item() * n, weight + n
            if task == "QUESTION_ANS":
                logits += list(zip(o.start_logits, o.end_logits))
            elif task == "SEQ_2_SEQ_LM":
                counted = x["labels"] != -100
                right += (o.logits.argmax(-1) == x["labels"])[counted].sum().item()
                if a.no_answers:
                    continue
                said = tok.batch_decode(model.generate(**x, max_new_tokens=LENGTH, do_sample=False), skip_special_tokens=True)
                exact += sum(s == dev[e["row"]][col("target")] for s, e in zip(said, part))
            elif task != "CAUSAL_LM":
                logits += list(o.logits)
    model.train()
    m = dict(eval_loss=total / weight) if weight else {}
    if task == "SEQ_CLS":
        m["accuracy"] = sum(l.argmax().item() == e["labels"] for l, e in zip(logits, ex)) / len(ex)
    if task == "TOKEN_CLS":
        got, want, right, count = [], [], 0, 0
        for l, e in zip(logits, ex):
            ids = l.argmax(-1).tolist()
            own = [t for t in range(len(e["labels"])) if e["labels"][t] != -100]
            g, w = [labels[ids[t]] for t in own], [labels[e["labels"][t]] for t in own]
            right, count = right + sum(a == b for a, b in zip(g, w)), count + len(own)
            got.append(entities(g)), want.append(entities(w))
        both = sum(len(g & w) for g, w in zip(got, want))
        p, r = both / max(1, sum(map(len, got))), both / max(1, sum(map(len, want)))
        m |= dict(accuracy=right / count, f1=2 * p * r / (p + r) if p + r else 0.0)
    if task == "QUESTION_ANS":
        best = {}
        for (s, e), x in zip(logits, ex):
            inside = [t for t, o in enumerate(x["spans"]) if o]
            S, E = sorted(inside, key=lambda t: -s[t])[:20], sorted(inside, key=lambda t: -e[t])[:20]
            for i in S:
                for j in E:
                    if i <= j < i + 30 and (v := (s[i] + e[j]).item()) > best.get(x["row"], (-1e9,))[0]:
                        best[x["row"]] = (v, dev[x["row"]]["context"][x["spans"][i][0]:x["spans"][j][1]])
        f, em = 0.0, 0
        for i, r in enumerate(dev):
            got, g = best.get(i, (0, ""))[1], 0.0
            for ans in r["answers"]:
                p, w = plain(got).split(), plain(ans["text"]).split()
                same = sum((Counter(p) & Counter(w)).values())
                g = max(g, 2 * same / (len(p) + len(w)) if same else 0.0)
            f, em = f + g, em + any(plain(got) == plain(x["text"]) for x in r["answers"])
        m |= dict(f1=100 * f / len(dev), exact_match=100 * em / len(dev))
    if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        m["perplexity"] = math.exp(m["eval_loss"])
    if task == "SEQ_2_SEQ_LM":
        m |= dict(token_accuracy=right / weight) | ({} if a.no_answers else dict(exact_match=exact / len(dev)))
    if task == "FEATURE_EXTRACTION":
        c = [torch.cosine_similarity(a, b, dim=0).item() for a, b in zip(logits[::2], logits[1::2])]
        y = [e["labels"] for e in ex[::2]]
        rank = lambda v: torch.tensor(v).argsort().argsort().double()

        def mean_rank(v):
            s = sorted(v)
            at = {x: (s.index(x) + len(s) - 1 - s[::-1].index(x)) / 2 for x in set(v)}
            return [at[x] for x in v]
        corr = lambda u, v: torch.corrcoef(torch.tensor([u, v], dtype=torch.float64))[0, 1].item()
        m |= dict(pearson=corr(c, y), spearman=corr(mean_rank(c), mean_rank(y)))
    return m


def say(prompt):
    model.eval()
    ids = tok(prompt, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=80, do_sample=False)[0]
    model.train()
    return tok.decode(out if task == "SEQ_2_SEQ_LM" else out[ids["input_ids"].shape[1]:], skip_special_tokens=True)


if __name__ == "__main__":
    figures = dict(before=evaluate() if R["model"].get("init") != "random" else {})
    if a.prompt:
        figures["said_before"] = say(a.prompt)
    ex = examples(train)
    pairs = task == "FEATURE_EXTRACTION"
    groups = [ex[i:i + 2] for i in range(0, len(ex), 2)] if pairs else [[e] for e in ex]
    trained = [p for p in model.parameters() if p.requires_grad]
    optim = torch.optim.AdamW(trained, lr=training["learning_rate"], weight_decay=0.0)
    per = BATCH
    epochs = training.get("num_train_epochs", 3)
    steps = training.get("max_steps", 0) if training.get("max_steps", 0) > 0 else math.ceil(epochs * -(-len(groups) // per))
    schedule = tf.get_scheduler("linear", optim, training.get("warmup_steps", 0), steps)
    model.train()
    done, losses, seconds = 0, [], []
    while done < steps:
        random.shuffle(groups)
        for at in range(0, len(groups), per):
            if done == steps:
                break
            x = batch([e for g in groups[at:at + per] for e in g])
            t = time.perf_counter()
            loss = loss_of(x)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optim.step(), schedule.step(), optim.zero_grad()
            losses.append(loss.item()), seconds.append(time.perf_counter() - t)
            if done % training.get("logging_steps", 500) == 0:
                print(f"step {done} loss {losses[-1]:.4f}", file=sys.stderr, flush=True)
            done += 1
    figures |= dict(after=evaluate(), steps=steps, train_loss=sum(losses) / len(losses), step_seconds=sum(seconds) / len(seconds),
                    wall=time.perf_counter() - START, peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    if a.prompt:
        figures["said_after"] = say(a.prompt)
    if a.save:
        model.save_pretrained(a.save), tok.save_pretrained(a.save)
    print(json.dumps(figures))
