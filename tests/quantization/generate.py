"""What bitsandbytes makes of small matrices and small models, on the CPU.

    pip install torch transformers accelerate bitsandbytes safetensors gguf
    python tests/quantization/generate.py

Made with torch 2.15, transformers 5.24, bitsandbytes 0.50.2.
"""

import json
from pathlib import Path

import bitsandbytes.functional as F
import gguf
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

HERE = Path(__file__).parent


def matrices():
    """Whole blocks, blocks that begin in the middle of a row, a last block that is not whole, a block of zeros."""
    torch.manual_seed(7)
    made = {}
    for name, shape in {"whole": (8, 128), "uneven": (12, 100), "rest": (3, 65), "odd": (7, 9), "long": (264, 64)}.items():
        x = torch.randn(shape) * torch.logspace(-2, 1, shape[0]).unsqueeze(1)
        if name == "uneven":
            x.view(-1)[64:128] = 0
        made[f"{name}.values"] = x
        for kind in ("nf4", "fp4"):
            for nested in (False, True):
                codes, state = F.quantize_4bit(x, quant_type=kind, compress_statistics=nested)
                key = f"{name}.{kind}" + (".nested" if nested else "")
                made[f"{key}.codes"] = codes.flatten().clone()
                if name != "long":
                    made[f"{key}.dense"] = F.dequantize_4bit(codes, state).clone()
                made[f"{key}.absmax"] = state.absmax.clone()
                if nested:
                    made[f"{key}.nested_absmax"] = state.state2.absmax.clone()
                    made[f"{key}.offset"] = state.offset.clone().reshape(1)
        codes, scales, _ = F.int8_vectorwise_quant(x.to(torch.float16))
        made[f"{name}.int8.codes"] = codes.clone()
        made[f"{name}.int8.absmax"] = scales.clone()
        if name != "long":
            made[f"{name}.int8.dense"] = F.int8_vectorwise_dequant(codes, scales).clone()
    made["map"] = F.create_dynamic_map()
    save_file(made, HERE / "matrices.safetensors")


def blocks():
    """Blocks of eight bits as the GGUF package makes them: of all sizes, of zeros, and with ties between two codes."""
    torch.manual_seed(5)
    x = torch.randn(9, 96) * torch.logspace(-7, 3, 9).unsqueeze(1)
    x[4, 32:64] = 0
    x[5, :32] = torch.arange(32) / 2 - 8
    x[5, 0] = 127
    packed = gguf.quants.quantize(x.numpy(), gguf.GGMLQuantizationType.Q8_0)
    save_file({"values": x, "blocks": torch.from_numpy(packed)}, HERE / "q8_0.safetensors")


CONFIGS = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4": BitsAndBytesConfig(load_in_4bit=True),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}


def models():
    """A model, and the same saved packed in three ways, with the logits of the packed weights in single precision."""
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=60, hidden_size=48, intermediate_size=100, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(HERE / "dense")
    ids = torch.arange(1, 25).reshape(2, 12) % 60
    for name, quantization in CONFIGS.items():
        packed = AutoModelForCausalLM.from_pretrained(
            HERE / "dense", quantization_config=quantization, dtype=torch.float32, device_map="cpu"
        )
        packed.save_pretrained(HERE / name)
        plain = AutoModelForCausalLM.from_pretrained(HERE / "dense", dtype=torch.float32)
        values = {}
        for path, module in packed.named_modules():
            weight = getattr(module, "weight", None)
            state = getattr(weight, "quant_state", None)
            if state is not None:
                values[f"{path}.weight"] = F.dequantize_4bit(weight.data, state)
            elif getattr(weight, "SCB", None) is not None:
                values[f"{path}.weight"] = F.int8_vectorwise_dequant(weight.CB if weight.CB is not None else weight.data, weight.SCB)
        plain.load_state_dict(values, strict=False)
        print(name, len(values), "packed weights")
        with torch.no_grad():
            logits = plain(ids).logits
        save_file({"input_ids": ids, "logits": logits}, HERE / f"{name}.safetensors")
        for extra in HERE.glob("*/generation_config.json"):
            extra.unlink()


matrices()
blocks()
models()
