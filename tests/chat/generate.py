"""Writes expected.json and tokenizer/: what Transformers makes of conversations with the templates beside this script;
and anew what it makes of the templates in expressions.json, with SHORT as the conversation (null: it refuses).

    python tests/chat/generate.py        # transformers 5.23
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
MARKS = """<s> </s> <|im_start|> <|im_end|> <|start_header_id|> <|end_header_id|> <|eot_id|> <start_of_turn>
<end_of_turn> [INST] [/INST] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]""".split()

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
bare = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bare.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")
tokenizer.add_special_tokens({"additional_special_tokens": MARKS[2:]})
tokenizer.save_pretrained(HERE / "tokenizer")

def turn(role, content, **more):
    return {"role": role, "content": content, **more}

SHORT = [turn("user", "What is 2 + 2?"), turn("assistant", " Four.\n")]
LONG = [turn("system", "Be brief."), turn("user", "Who wrote \"Émile\"?"), turn("assistant", "Rousseau."),
        turn("user", "Was it  1762? 🙂"), turn("assistant", "Yes – it was.")]
OPEN = LONG[:4]
PARTS = [turn("user", [{"type": "text", "text": " Look: "}, {"type": "image"}, {"type": "text", "text": "this"}]),
         turn("assistant", "I see.")]
CALL = [turn("user", "Weather in Åbo?"),
        turn("assistant", "", tool_calls=[{"type": "function", "function": {"name": "weather", "arguments": {"place": "Åbo", "days": 1}}}]),
        turn("tool", "{\"rain\": true}"), turn("assistant", "Rain.")]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "How it is", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": []}}}]
WRONG = [turn("user", "a"), turn("user", "b")]
ODD = [turn("narrator", "Once")]

CASES = [(name, messages, None) for name in ("chatml", "chatml-plain", "llama3", "mistral", "gemma") for messages in (SHORT, LONG, OPEN)]
CASES += [("gemma", PARTS, None), ("gemma", WRONG, None), ("llama3", ODD, None), ("llama3", CALL, TOOLS), ("mistral", CALL, None),
          ("values", SHORT, None)]
RICH = [{"type": "function", "function": {"name": "weather", "description": "How it \"is\" – <b>", "parameters": {"type": "object", "properties": {
    "place": {"type": "string"}, "share": {"type": ["number", "null"], "default": 1e-05}, "items": {"type": "array", "default": []},
    "more": {"type": "object", "properties": {"x": {"type": "boolean", "default": True}}}, "any": {"default": 1e22}}, "required": []}}}]
ARGUMENTS = [turn("user", "Weather?"), turn("assistant", None, tool_calls=[
    {"type": "function", "function": {"name": "weather", "arguments": {"place": "Åbo 'x'", "share": 1e-07, "items": [1, 2.0, None], "more": {"x": True}, "big": 1e16}}},
    {"type": "function", "function": {"name": "now", "arguments": "{}"}}]), turn("tool", "{\"rain\": 1e-7}"), turn("assistant", "Rain.")]
THOUGHT = [turn("user", "3+3?"), turn("assistant", "6", reasoning_content="easy\n"), turn("user", "4+4?"), turn("assistant", "8", thinking="hm"),
           turn("user", "5+5?"), turn("assistant", "<think>\nten\rthen</think>\n10", reasoning=None), turn("assistant", "", thinking=None, reasoning="r")]
CASES += [("tools", messages, tools) for messages, tools in ((ARGUMENTS, RICH), (ARGUMENTS, None), (THOUGHT, None), (PARTS, []), (LONG, TOOLS))]

expected = []
for name, messages, tools in CASES:
    template = (HERE / "templates" / f"{name}.jinja").read_text()
    for add_generation_prompt in (False, True):
        case = {"template": name, "messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        options = {"tools": tools, "add_generation_prompt": add_generation_prompt, "chat_template": template}
        try:
            case["text"] = tokenizer.apply_chat_template(messages, tokenize=False, **options)
            marked = "generation" in template.replace("add_generation_prompt", "")
            out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=marked, **options)
            case["input_ids"] = out["input_ids"]
            case["assistant_masks"] = out.get("assistant_masks")
        except Exception as error:
            case["error"] = str(error)
        expected.append(case)
lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in expected)
(HERE / "expected.json").write_text(f"[\n{lines}\n]\n")

expressions = []
for template, _ in json.loads((HERE / "expressions.json").read_text()):
    try:
        text = tokenizer.apply_chat_template(SHORT, tokenize=False, chat_template=template)
    except Exception:
        text = None
    expressions.append(json.dumps([template, text], ensure_ascii=False))
(HERE / "expressions.json").write_text("[\n" + ",\n".join(expressions) + "\n]\n")
