#!/usr/bin/env python3
"""Prompts and completions of `self_instruct`, as one text each, so that both sides read the same.

    self_instruct.py FOLDER   writes self-instruct-train.jsonl and self-instruct-dev.jsonl here
"""
import json, pathlib, sys

for part, most in (("train", None), ("dev", 20)):
    rows = [json.loads(line) for line in pathlib.Path(sys.argv[1], part + ".jsonl").read_text(encoding="utf-8").splitlines()]
    with open(f"self-instruct-{part}.jsonl", "w", encoding="utf-8") as out:
        for r in rows[:most]:
            question = r["instruction"] + ("\n" + r["input"] if r["input"] else "")
            print(json.dumps(dict(prompt=question + "\nAnswer:", completion=" " + r["output"]), ensure_ascii=False), file=out)
