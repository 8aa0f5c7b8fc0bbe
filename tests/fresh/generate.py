#!/usr/bin/env python3
"""Writes `values.json`: how the parameters of new models of Transformers are spread, by family and head.

    .ref/bin/python tests/fresh/generate.py

A model is made SEEDS times. For each parameter all its values are taken together: mean, standard deviation, largest absolute value, and
the rows that are zero in every model. `generate.py` in `tests/golden` has the sizes. Layers of one kind are one entry (`layer.*`); of a
model with a head only what is not the backbone's is kept.
"""
import json, pathlib, re, sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "golden"))
import torch, transformers as tf
from generate import CONFIGS, HEADS

SEEDS = 48
# What sizes so small ask for.
NEEDED = {"gpt_neox": dict(rotary_pct=0.5)}
# Options under which a family begins otherwise.
VARIANTS = [(family, {}) for family in CONFIGS] + [
    ("t5", dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, initializer_factor=0.5)),
    ("gpt2", dict(initializer_range=0.1)),
    ("bart", dict(init_std=0.1)),
    ("opt", dict(init_std=0.1, word_embed_proj_dim=8)),
    ("distilbert", dict(sinusoidal_pos_embds=True)),
    ("modernbert", dict(initializer_range=0.1, initializer_cutoff_factor=1.0)),
    ("deberta-v2", dict(conv_kernel_size=3, position_biased_input=True, type_vocab_size=2)),
    ("roberta", dict(pad_token_id=4)),
    ("bert", dict(pad_token_id=None, initializer_range=0.1)),
]


def measured(config, auto):
    """Values of each parameter by its name, over all seeds."""
    found = {}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        model = auto.from_config(config)
        for name, value in model.named_parameters():
            found.setdefault(name, []).append(value.detach().double())
    return model, {name: torch.stack(values) for name, values in found.items()}


out = []
for family, options in VARIANTS:
    for task, auto in HEADS.items():
        # The heads that `peft` builds have golden cases.
        if task != "none" and not any((HERE.parent / "golden").glob(f"{family}.{task}.*")):
            continue
        if task == "FEATURE_EXTRACTION" or (options and task not in ("none", "SEQ_2_SEQ_LM", "SEQ_CLS")):
            continue
        config = CONFIGS[family](**NEEDED.get(family, {}), **options)
        model, values = measured(config, auto)
        prefix = model.base_model_prefix + "."
        groups = {}
        for name, value in values.items():
            if task == "none" or not name.startswith(prefix):
                groups.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(value)
        params = {}
        for name, group in groups.items():
            flat = torch.cat([value.flatten() for value in group])
            zero = [r for r in range(group[0].shape[1]) if group[0].dim() > 2 and (group[0][:, r] == 0).all() and (flat != 0).any()]
            params[name] = [float(f"{x:.4g}") for x in (flat.mean(), flat.std(), flat.abs().max())] + [zero] * bool(zero)
        kept = dict(config.to_dict(), architectures=None)
        out.append(dict(family=family, auto_class=auto.__name__, config=kept, params=params))
        print(family, task, len(params))
line = lambda case: json.dumps(case, sort_keys=True)
(HERE / "values.json").write_text("[\n" + ",\n".join(map(line, out)) + "\n]\n")
