"""What compare.py compares: the cases of the processor and those of a GPU, and which of them show how a step grows."""

LLAMAS = {
    "llama-0.5b": dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, vocab_size=151936),
    "llama-1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, vocab_size=128256),
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# It has gradients pass all the layers above it, and costs nothing itself: what a step takes without LoRA.
LOWEST = r"model\.layers\.0\.self_attn\.v_proj"


def training(model, task, rows, length, target_modules, r=8, dtype="f32", adapters=1, by_rows=False, burn=False, dropout=False, tolerance=1e-3):
    given = locals()
    # PEFT trains no rows of different adapters.
    sides = ["python"] * (not by_rows) + ["burn", "burn-plain"] * burn + ["ours"]
    return dict(given, kind="train", sides=sides)


def minilm(**others):
    return training(**(dict(model="minilm", task="SEQ_CLS", rows=16, length=128, target_modules=["query", "value"]) | others))


def smollm2(**others):
    return training(**(dict(model="smollm2", task="CAUSAL_LM", rows=2, length=256, target_modules="all-linear") | others))


PROCESSOR = {
    "minilm": minilm(burn=True),
    # Checked without dropout, measured with what the model's configuration has.
    "minilm-dropout": minilm(burn=True, dropout=True),
    "minilm-r64": minilm(r=64),
    "minilm-length64": minilm(length=64),
    "minilm-length256": minilm(length=256),
    "minilm-together8": minilm(adapters=8, by_rows=True),
    "smollm2": smollm2(burn=True),
    # Half precision rounds at other places on the two sides.
    "smollm2-bf16": smollm2(dtype="bf16", tolerance=2e-2),
    "smollm2-r64": smollm2(r=64),
    "smollm2-length128": smollm2(length=128),
    "smollm2-length512": smollm2(length=512),
    "smollm2-adapters2": smollm2(adapters=2),
    "smollm2-adapters4": smollm2(adapters=4),
    "generation": dict(kind="generate", model="smollm2", dtype="f32", prompt=32, max_new_tokens=64, sides=["python", "ours"]),
}


def gpu(cuda):
    """The cases of a GPU: models of random weights in half precision, made where they run."""

    def llama(model="llama-0.5b", **others):
        given = dict(model=model, task="CAUSAL_LM", rows=4, length=512, target_modules=LINEAR, r=16, tolerance=2e-2)
        case = training(**(given | dict(dtype="bf16" if cuda else "f16") | others))
        # PyTorch has no WGPU.
        return case if cuda else dict(case, sides=[side for side in case["sides"] if side != "python"])

    return {
        "llama-0.5b": llama(burn=True),
        "llama-0.5b-frozen": llama(target_modules=LOWEST, r=1),
        "llama-0.5b-r8": llama(r=8),
        "llama-0.5b-r64": llama(r=64),
        "llama-0.5b-8rows": llama(rows=8, length=256),
        "llama-0.5b-together8": llama(rows=8, length=256, adapters=8, by_rows=True),
        "llama-1b": llama(model="llama-1b", length=2048, burn=True),
    }


GROWTH = [
    ("rank 8 to 64", "minilm", "minilm-r64"),
    ("length 64 to 128", "minilm-length64", "minilm"),
    ("length 128 to 256", "minilm", "minilm-length256"),
    ("one adapter for all rows to 8", "minilm", "minilm-together8"),
    ("rank 8 to 64", "smollm2", "smollm2-r64"),
    ("length 128 to 256", "smollm2-length128", "smollm2"),
    ("length 256 to 512", "smollm2", "smollm2-length512"),
    ("1 adapter to 2", "smollm2", "smollm2-adapters2"),
    ("1 adapter to 4", "smollm2", "smollm2-adapters4"),
    ("no LoRA to LoRA", "llama-0.5b-frozen", "llama-0.5b"),
    ("rank 8 to 64", "llama-0.5b-r8", "llama-0.5b-r64"),
    ("one adapter for all rows to 8", "llama-0.5b-8rows", "llama-0.5b-together8"),
]


def of(device):
    """The cases of a device."""
    if device == "cpu":
        return PROCESSOR
    return gpu(device.startswith("cuda"))
