#!/usr/bin/env python3
"""Writes `tokenizer.json` and `tokenizer_config.json` of this folder: a token for each printable ASCII character, and `</s>` at the end."""
import json, pathlib

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, decoders, processors

HERE = pathlib.Path(__file__).parent
words = ["<pad>", "</s>", "<unk>"] + [chr(c) for c in range(32, 127)]
tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
tok.add_special_tokens(words[:3])
tok.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
tok.decoder = decoders.Fuse()
tok.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
tok.save(str(HERE / "tokenizer.json"))
config = dict(tokenizer_class="PreTrainedTokenizerFast", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", clean_up_tokenization_spaces=False)
(HERE / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
