"""Makes what both sides of a GPU's case read: a Llama of random weights, an adapter, batches. Needs nothing but Python."""
import array, json, math, random, struct

import cases

# A sign and a fraction are drawn, the exponent stands: every weight is 2^-6 to 2^-5 from zero, about what a fresh model has.
BITS = {"bf16": (2, 0x807F, 0x3C80, 0x3F80, "BF16"), "f16": (2, 0x83FF, 0x2400, 0x3C00, "F16"), "f32": (4, 0x807FFFFF, 0x3C800000, 0x3F800000, "F32")}
CHUNK = 1 << 20


def repeated(bits, width, count):
    return int.from_bytes(bits.to_bytes(width, "little") * count, "little")


def drawn(generator, dtype, count):
    """`count` random numbers, in pieces."""
    width, mask, exponent, _, _ = BITS[dtype]
    whole = repeated(mask, width, CHUNK), repeated(exponent, width, CHUNK)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        keep, add = whole if size == CHUNK else (repeated(mask, width, size), repeated(exponent, width, size))
        yield (int.from_bytes(generator.randbytes(size * width), "little") & keep | add).to_bytes(size * width, "little")


def ones(_, dtype, count):
    yield BITS[dtype][3].to_bytes(BITS[dtype][0], "little") * count


def zeros(_, dtype, count):
    yield bytes(BITS[dtype][0] * count)


def write(path, tensors, seed):
    """A safetensors file of `{name: (dtype, shape, what makes it)}`."""
    generator = random.Random(seed)
    header, at = {}, 0
    for name, (dtype, shape, _) in tensors.items():
        size = math.prod(shape) * (8 if dtype == "I64" else BITS[dtype][0])
        header[name] = dict(dtype="I64" if dtype == "I64" else BITS[dtype][4], shape=shape, data_offsets=[at, at + size])
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for dtype, shape, make in tensors.values():
            for piece in make(generator, dtype, math.prod(shape)):
                file.write(piece)


def linears(config):
    """Name and `[out, in]` of each linear layer of a block."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    sizes = dict(q=(hidden, hidden), k=(keys, hidden), v=(keys, hidden), o=(hidden, hidden), gate=(inner, hidden), up=(inner, hidden), down=(hidden, inner))
    return {("self_attn." if name in "qkvo" else "mlp.") + name + "_proj": list(size) for name, size in sizes.items()}


def model(folder, name, dtype):
    config = cases.LLAMAS[name]
    hidden = config["hidden_size"]
    tensors = {"model.embed_tokens.weight": (dtype, [config["vocab_size"], hidden], drawn), "model.norm.weight": (dtype, [hidden], ones)}
    for layer in range(config["num_hidden_layers"]):
        for linear, shape in linears(config).items():
            tensors[f"model.layers.{layer}.{linear}.weight"] = (dtype, shape, drawn)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = (dtype, [hidden], ones)
    others = dict(model_type="llama", architectures=["LlamaForCausalLM"], hidden_act="silu", rms_norm_eps=1e-5, rope_theta=10000.0, max_position_embeddings=4096)
    others |= dict(tie_word_embeddings=True, attention_bias=False, mlp_bias=False, torch_dtype={"bf16": "bfloat16", "f16": "float16"}[dtype], bos_token_id=1, eos_token_id=2)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | others))
    write(folder / "model.safetensors", tensors, 0)


def adapter(folder, case):
    config, r = cases.LLAMAS[case["model"]], case["r"]
    tensors = {}
    lowest = case["target_modules"] == cases.LOWEST
    for layer in range(1 if lowest else config["num_hidden_layers"]):
        for linear, (out, wide) in linears(config).items():
            if not lowest or linear == "self_attn.v_proj":
                name = f"base_model.model.model.layers.{layer}.{linear}"
                tensors[f"{name}.lora_A.weight"] = ("f32", [r, wide], drawn)
                tensors[f"{name}.lora_B.weight"] = ("f32", [out, r], zeros)
    folder.mkdir(parents=True, exist_ok=True)
    config = dict(peft_type="LORA", task_type=case["task"], r=r, lora_alpha=2 * r, lora_dropout=0.0, target_modules=case["target_modules"], bias="none", inference_mode=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    write(folder / "adapter_model.safetensors", tensors, 1)


def batches(path, case):
    shape = [case["check_steps"], case["rows"], case["length"]]
    vocabulary = cases.LLAMAS[case["model"]]["vocab_size"]

    def ids_of_seed(_generator, _dtype, count):
        generator = random.Random(2)
        yield array.array("q", (generator.randrange(vocabulary) for _ in range(count))).tobytes()

    def mask(_generator, _dtype, count):
        yield array.array("q", [1]).tobytes() * count

    write(path, {"input_ids": ("I64", shape, ids_of_seed), "attention_mask": ("I64", shape, mask), "labels": ("I64", shape, ids_of_seed)}, 2)


def prepare(work, name, case):
    """Everything of a case that is not there yet."""
    folder = work / f"{case['model']}-{case['dtype']}"
    if not (folder / "model.safetensors").exists():
        model(folder, case["model"], case["dtype"])
    adapter(work / f"{name}.adapter", case)
    batches(work / f"{name}.safetensors", case)
