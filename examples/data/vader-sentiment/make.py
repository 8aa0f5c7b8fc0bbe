#!/usr/bin/env python3
"""Makes train.tsv, dev.tsv and LICENSE of this folder out of the rated snippets
that the source package of vaderSentiment 3.3.2 (MIT) carries.

    python make.py            # needs pip and a package index, nothing else
"""
import hashlib, html, io, pathlib, random, re, subprocess, sys, tarfile, tempfile

HERE = pathlib.Path(__file__).resolve().parent
PACKAGE = "vaderSentiment==3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SOURCES = ("tweets", "amazonReviewSnippets")
MIN_RATING = 1.25  # |mean rating|, on a scale from -4 to 4; what is nearer to 0 is left out
DEV_PER_LABEL = 200
SEED = 20140601
CRUDE = re.compile(r"f+u+c*k|\bshit|bullshit|\bcunt|nigg|\bfag|\bwhore|\bslut|\bbitch|\brape|\bcock\b|\bdick\b|\bpussy|\btwat|\bretard", re.I)


def sdist():
    """The package's source archive, downloaded by name and checked."""
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:",
                        "-d", tmp, PACKAGE], check=True)
        data = next(pathlib.Path(tmp).iterdir()).read_bytes()
    assert hashlib.sha256(data).hexdigest() == SHA256, "the package is not the one this script was written for"
    return tarfile.open(fileobj=io.BytesIO(data))


def clean(text):
    return " ".join(html.unescape(html.unescape(text)).split())


def key(text):
    """Two texts with the same key count as the same text."""
    return re.sub(r"[^a-z]+", " ", text.lower()).strip()


def snippets(archive, source):
    """(id, mean rating, text) of each snippet of one source."""
    inner = tarfile.open(fileobj=archive.extractfile(INNER))
    text = inner.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt").read().decode("utf-8-sig", "replace")
    for line in text.splitlines():
        cells = line.split("\t")
        if len(cells) == 3:
            yield cells[0], float(cells[1]), clean(cells[2])


def main():
    archive, rng, seen = sdist(), random.Random(SEED), set()
    (HERE / "LICENSE").write_bytes(archive.extractfile("vaderSentiment-3.3.2/LICENSE.txt").read().replace(b"\r\n", b"\n"))
    train, dev = [], []
    for source in SOURCES:
        rows = {"negative": [], "positive": []}
        for ident, rating, text in snippets(archive, source):
            if abs(rating) < MIN_RATING or "\ufffd" in text or CRUDE.search(text):
                continue
            if len(text.split()) < 2 or len(text) > 240 or key(text) in seen:
                continue
            seen.add(key(text))
            rows["positive" if rating > 0 else "negative"].append(text)
        count = min(map(len, rows.values()))  # as many of one label as of the other
        for label, texts in rows.items():
            picked = [(text, label) for text in rng.sample(texts, count)]
            held = DEV_PER_LABEL // len(SOURCES)
            dev += picked[:held]
            train += picked[held:]
    for name, rows in (("train", train), ("dev", dev)):
        rng.shuffle(rows)
        lines = ["text\tlabel"] + [f"{text}\t{label}" for text, label in rows]
        (HERE / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        print(name, len(rows), {label: sum(l == label for _, l in rows) for label in ("negative", "positive")})


if __name__ == "__main__":
    main()
