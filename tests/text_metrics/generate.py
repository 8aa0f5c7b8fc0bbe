#!/usr/bin/env python3
"""Writes `expected.json`: ROUGE by `rouge_score`, BLEU and chrF by `sacrebleu`, of texts of every awkward kind.

    .ref/bin/pip install rouge-score==0.1.2 sacrebleu==2.6.0 && .ref/bin/python tests/text_metrics/generate.py
"""
import json, logging, pathlib, random

import sacrebleu
from rouge_score import rouge_scorer

logging.disable(logging.WARNING)
PAIRS = [
    ("The cat sat on the mat.", "The cat is sitting on the mat."),
    ("A quick brown fox, jumping over 1,000.50 dogs!", "The quick brown fox jumps over 1,000.50 lazy dogs."),
    ("Er sagte: \"Guten Tag\", und ging -- um 8-9 Uhr.", "Er sagte &quot;Guten Tag&quot; und ging um 8-9 Uhr weg."),
    ("", "nothing was written"),
    ("nothing was wanted", ""),
    ("", ""),
    ("   \t\n ", "\u00a0"),
    ("two\x1cwords\u3000here", "two words here"),
    ("日本語の文章です。", "これは日本語の文です。"),
    ("naïve Ω ẞ İstanbul ΚΑΙΣ", "naive ω ß istanbul και"),
    ("hyphen-\nated line\nbreaks <skipped> &lt;b&gt; &amp;amp;", "hyphenated line breaks <b> &amp;"),
    ("e\u0301 👩\u200d👩\u200d👧 ok", "é 👩\u200d👩\u200d👧 ok"),
    ("identical text with enough words", "identical text with enough words"),
    ("a a a a b", "a b b"),
    ("a.b.c,d 1.2.3,4 $5/6 x_y `z` {q}~", "a. b. c, d 1.2.3, 4 $ 5/6 x_y z q"),
    ("word", "word"),
    ("one two three", "one two three four five six seven eight"),
    ("one two three four five six seven eight", "five six seven eight"),
    ("Hello , world . . .", "Hello, world..."),
    ("ab", "abc"),
]
dice = random.Random(5)
ALPHABET = "aab cd.,-12&<>'\"\n é漢"
PAIRS += [tuple("".join(dice.choices(ALPHABET, k=dice.randrange(40))) for _ in range(2)) for _ in range(20)]
CORPORA = [[pair] for pair in PAIRS] + [PAIRS[:3], PAIRS[3:12], PAIRS[:20], PAIRS[20:], PAIRS]

rouge = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
mean = lambda values: sum(values) / len(values)
cases = []
for pairs in CORPORA:
    written, wanted = [a for a, _ in pairs], [b for _, b in pairs]
    scores = [rouge.score(b, a) for a, b in pairs]
    cases.append(dict(
        pairs=pairs,
        rouge_1=mean([s["rouge1"].fmeasure for s in scores]), rouge_2=mean([s["rouge2"].fmeasure for s in scores]),
        rouge_l=mean([s["rougeL"].fmeasure for s in scores]),
        bleu=sacrebleu.corpus_bleu(written, [wanted]).score, chrf=sacrebleu.corpus_chrf(written, [wanted]).score,
    ))
lines = ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases)
(pathlib.Path(__file__).parent / "expected.json").write_text(f"[\n{lines}\n]\n")
