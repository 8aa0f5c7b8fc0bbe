#!/usr/bin/env python3
"""Writes the Parquet fixtures of this folder, and the rows that they hold as JSON lines.

    .ref/bin/pip install pyarrow
    .ref/bin/python tests/parquet/generate.py

- `snappy.parquet`: what `datasets` writes, with its description of the columns in the metadata; `snappy.jsonl` has its rows;
- `zstd.parquet`: the same rows in several row groups, in pages of version 2, without the description; `zstd.jsonl`;
- `gzip.parquet`: a compression that is not read;
- `classes.parquet`: a class that the description does not name, in its second row.
"""
import json, pathlib
import pyarrow as pa, pyarrow.parquet as pq

HERE = pathlib.Path(__file__).parent
NAMES, TAGS = ["negative", "positive"], ["O", "B-PER", "I-PER"]

rows = [
    {"text": "good", "label": 1, "score": 4.5, "small": 0.1, "count": 2**40, "flag": True, "tokens": ["Ada", "Lovelace"],
     "tags": [1, 2], "answers": {"text": ["Ada"], "answer_start": [0]},
     "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "bytes": b"plain", "none": None},
    {"text": "schlecht, naïve 🙂\n\"so\"", "label": 0, "score": -1.0, "small": 2.5, "count": -3, "flag": False, "tokens": [],
     "tags": [], "answers": {"text": [], "answer_start": []}, "messages": [], "bytes": b"\xff\xfe", "none": None},
    {"text": None, "label": -1, "score": None, "small": None, "count": 0, "flag": None, "tokens": ["a", None, ""],
     "tags": [0, 1, 0], "answers": {"text": ["x", "y"], "answer_start": [3, 7]},
     "messages": [{"role": "system", "content": None}], "bytes": None, "none": None},
]
schema = pa.schema({
    "text": pa.string(), "label": pa.int64(), "score": pa.float64(), "small": pa.float32(), "count": pa.int64(), "flag": pa.bool_(),
    "tokens": pa.list_(pa.string()), "tags": pa.list_(pa.int64()),
    "answers": pa.struct({"text": pa.list_(pa.string()), "answer_start": pa.list_(pa.int32())}),
    "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.large_string()})), "bytes": pa.binary(), "none": pa.null(),
})
string = {"dtype": "string", "_type": "Value"}
features = {
    "text": string, "label": {"names": NAMES, "_type": "ClassLabel"}, "tokens": {"feature": string, "_type": "List"},
    "tags": {"feature": {"names": TAGS, "_type": "ClassLabel"}, "_type": "Sequence"},
    "messages": [{"role": string, "content": string}],
}
described = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def expected(row, named):
    row = dict(row)
    row["bytes"] = {b"plain": "plain"}.get(row["bytes"])
    if named:
        row["label"] = NAMES[row["label"]] if row["label"] >= 0 else None
        row["tags"] = [TAGS[tag] for tag in row["tags"]]
    return json.dumps(row, ensure_ascii=False) + "\n"


pq.write_table(pa.Table.from_pylist(rows, described), HERE / "snappy.parquet", compression="snappy", write_page_index=True)
(HERE / "snappy.jsonl").write_text("".join(expected(row, True) for row in rows))
table = pa.Table.from_pylist(rows * 2, schema)
pq.write_table(table, HERE / "zstd.parquet", compression="zstd", row_group_size=2, data_page_version="2.0")
(HERE / "zstd.jsonl").write_text("".join(expected(row, False) for row in rows * 2))
pq.write_table(table, HERE / "gzip.parquet", compression="gzip")
pq.write_table(pa.Table.from_pylist([rows[0], {**rows[1], "label": 2}], described), HERE / "classes.parquet")
