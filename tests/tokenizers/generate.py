"""Writes what Transformers makes of tokenizer files and settings: `expected.json`, and the files in `files/`.

    python generate.py        (transformers, tokenizers, sentencepiece, protobuf; no torch)
"""
import io, json, os, shutil, tempfile

os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1")
import sentencepiece
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
FILES = os.path.join(HERE, "files")
CORPUS = [
    "The film was great and the actors were good, friend.", "A bad film, hello world!", "Hello World, hello friend",
    "Zoë and Ada live in New York and London.", "café naïve 123 45", "don't stop, it's 1,000 good films",
    "the end of the world is near", "actors act in films and worlds",
] * 4
TEXTS = [
    "Hello World", "The film was GREAT, friend", "Zoë's café", " two  spaces ", "don't 1,000 \u4e2d\u6587 \U0001f600",
    "a<tool>b", "Hello <tool> World", "x</s>y [SEP] z", "line\nbreak\tand tab", "``quoted''", "", "\ufb01ne",
]
PAIR = ["Hello World", "The film"]
WORDS = ["Ada", "lives", "in", "New", "York", "café!"]


def write(name, content):
    with open(os.path.join(FILES, name), "wb") as f:
        f.write(content if isinstance(content, bytes) else content.encode())


def wordpiece():
    """A vocabulary of words and letters, lower and upper case."""
    letters = [chr(c) for c in range(97, 123)] + ["H", "W", "\u4e2d", "\u6587", "\u00eb", "\u00e9", "'", ",", ".", "!", "1", "0", "<", ">", "`"]
    words = ["hello", "world", "Hello", "World", "film", "great", "the", "friend", "zoe", "cafe", "good", "don", "and"]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + words + letters + ["##" + c for c in letters]
    write("vocab.txt", "\n".join(vocab) + "\n")
    return {token: at for at, token in enumerate(vocab)}


def sentence_piece(name, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, hard_vocab_limit=False, num_threads=1, minloglevel=2, **options
    )
    write(name, model.getvalue())


def make_files():
    shutil.rmtree(FILES, ignore_errors=True)
    os.makedirs(FILES)
    vocab = wordpiece()
    for name, lower in [("bert.json", True), ("cased.json", False)]:
        t = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
        t.normalizer = normalizers.BertNormalizer(lowercase=lower)
        t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        t.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        t.decoder = decoders.WordPiece()
        t.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
        write(name, t.to_str())
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    t = tokenizers.Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.train_from_iterator(CORPUS, trainer)
    t.decoder = decoders.ByteLevel()
    write("gpt2.json", t.to_str())
    t.model.save(FILES)
    t.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    write("roberta.json", t.to_str())
    rule = "/tmp/peft-tokenizers-rule.tsv"  # A model holds its name.
    with open(rule, "w") as f:
        f.write("FB01\t66 69\n2019\t27\n")
    unigram = dict(model_type="unigram", vocab_size=110, normalization_rule_tsv=rule)
    sentence_piece("t5.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, **unigram)
    sentence_piece("albert.model", pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, pad_piece="<pad>",
                   control_symbols=["[CLS]", "[SEP]"], user_defined_symbols=["[MASK]"], **unigram)
    sentence_piece("xlmr.model", unk_id=0, bos_id=1, eos_id=2, pad_id=-1, **unigram)
    sentence_piece("deberta.model", pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]",
                   unk_piece="[UNK]", **unigram)
    bpe = dict(model_type="bpe", vocab_size=400, normalization_rule_name="identity", byte_fallback=True,
               remove_extra_whitespaces=False, split_digits=True)
    sentence_piece("llama.model", unk_id=0, bos_id=1, eos_id=2, pad_id=-1, **bpe)
    sentence_piece("gemma.model", pad_id=0, eos_id=1, bos_id=2, unk_id=3, user_defined_symbols=["<mask>"], **bpe)
    for model, file in [("T5Tokenizer", "t5"), ("XLMRobertaTokenizer", "xlmr"), ("LlamaTokenizer", "llama")]:
        folder = tempfile.mkdtemp()
        cls = getattr(transformers, model)
        shutil.copy(os.path.join(FILES, file + ".model"), os.path.join(folder, cls.vocab_files_names["vocab_file"]))
        cls.from_pretrained(folder).backend_tokenizer.save(os.path.join(FILES, file + ".json"))


def case(name, files, config=None, model_type=None, **more):
    """Files by their name in the folder; what Transformers makes of the folder."""
    folder = tempfile.mkdtemp()
    for there, own in files.items():
        shutil.copy(os.path.join(FILES, own), os.path.join(folder, there))
    documents = dict(more)
    if config is not None:
        documents["tokenizer_config.json"] = config
    if model_type is not None:
        documents["config.json"] = {"model_type": model_type}
    for there, document in documents.items():
        with open(os.path.join(folder, there), "w") as f:
            json.dump(document, f)
    row = {"name": name, "files": files, "documents": documents}
    try:
        t = AutoTokenizer.from_pretrained(folder)
        row["ids"] = [t(text)["input_ids"] for text in TEXTS]
        row["pair"] = t(*PAIR)["input_ids"]
        row["words"] = t(WORDS, is_split_into_words=True)["input_ids"]
        row["cut"] = t(TEXTS[1], max_length=6, truncation=True)["input_ids"]
        row["cut_pair"] = t(*PAIR, max_length=6, truncation=True)["input_ids"]
        row["decoded"] = [t.decode(ids, skip_special_tokens=True) for ids in row["ids"]]
        roles = ["bos_token", "eos_token", "unk_token", "pad_token"]
        row["roles"] = {role: getattr(t, role + "_id") for role in roles}
        row["class"] = type(t).__name__
    except BaseException as error:
        row["error"] = f"{type(error).__name__}: {str(error)[:100]}"
    return row


def cases():
    bert, roberta, gpt2 = {"tokenizer.json": "bert.json"}, {"tokenizer.json": "roberta.json"}, {"tokenizer.json": "gpt2.json"}
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tool = {"content": "<tool>", "special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}

    def berts(name, **config):
        return case("bert " + name, bert, {"tokenizer_class": "BertTokenizer", **config}, "bert")

    def robertas(name, **config):
        return case("roberta " + name, roberta, {"tokenizer_class": "RobertaTokenizer", **roles, **config}, "roberta")

    def plain(name, files=gpt2, model_type="llama", more={}, **config):
        return case("plain " + name, files, {"tokenizer_class": "PreTrainedTokenizerFast", **roles, **config}, model_type, **more)

    yield berts("as it is")
    yield berts("cased", do_lower_case=False)
    yield berts("accents kept", strip_accents=False)
    yield berts("accents stripped of cased", do_lower_case=False, strip_accents=True)
    yield berts("no Chinese", tokenize_chinese_chars=False)
    yield berts("left", truncation_side="left")
    yield berts("another cls", cls_token="[MASK]")
    yield berts("cleaned up", clean_up_tokenization_spaces=True)
    yield berts("a tool", extra_special_tokens=["<tool>"])
    yield case("bert cased file without settings", {"tokenizer.json": "cased.json"}, None, "bert")
    yield case("bert cased file of a plain class", {"tokenizer.json": "cased.json"}, {"tokenizer_class": "PreTrainedTokenizerFast"}, "bert")
    yield case("bert fast class without model", bert, {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False})
    yield case("distilbert", bert, {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": False}, "distilbert")
    yield case("electra", bert, {"tokenizer_class": "ElectraTokenizer", "do_lower_case": False}, "electra")
    yield case("bert vocab.txt", {"vocab.txt": "vocab.txt"}, {"tokenizer_class": "BertTokenizer"}, "bert")
    yield case("bert vocab.txt cased", {"vocab.txt": "vocab.txt"}, {"do_lower_case": False}, "bert")
    yield case("bert vocab.txt alone", {"vocab.txt": "vocab.txt"}, None, "bert")
    yield case("electra vocab.txt", {"vocab.txt": "vocab.txt"}, {"do_lower_case": True, "strip_accents": False}, "electra")
    yield case("bert vocab.txt added", {"vocab.txt": "vocab.txt"}, {}, "bert", **{"added_tokens.json": {"<tool>": 200}})
    yield case("bert vocab.txt map", {"vocab.txt": "vocab.txt"}, {}, "bert",
               **{"special_tokens_map.json": {"cls_token": "[MASK]", "additional_special_tokens": ["<tool>"]}})
    yield robertas("as it is")
    yield robertas("space", add_prefix_space=True)
    yield robertas("space and left", add_prefix_space=True, truncation_side="left")
    yield robertas("a tool", additional_special_tokens=["<tool>"])
    yield robertas("mask", mask_token={"__type": "AddedToken", "content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False})
    yield case("roberta without settings", roberta, None, "roberta")
    yield case("bart", roberta, {"tokenizer_class": "BartTokenizer", "add_prefix_space": True}, "bart")
    pieces = {"vocab.json": "vocab.json", "merges.txt": "merges.txt"}
    yield case("roberta pieces", pieces, {"tokenizer_class": "RobertaTokenizer"}, "roberta")
    yield case("roberta pieces with a space", pieces, {"add_prefix_space": True}, "roberta")
    yield case("gpt2 pieces", pieces, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>"}, "gpt2")
    yield case("gpt2 pieces bos", pieces, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>", "add_bos_token": True}, "gpt2")
    yield case("opt pieces", pieces, {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, **roles}, "opt")
    yield case("qwen2 pieces", pieces, {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "</s>"}, "qwen2")
    yield case("gpt_neox", gpt2, {"tokenizer_class": "GPTNeoXTokenizer", **roles, "unk_token": "</s>"}, "gpt_neox")
    yield case("gpt2 space", gpt2, {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, **roles}, "gpt2")
    yield case("gpt2 without settings", gpt2, None, "gpt2")
    yield case("qwen2", gpt2, {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "</s>", "pad_token": "<pad>"}, "qwen2")
    yield plain("space", add_prefix_space=True)
    yield plain("bos and eos", add_bos_token=True, add_eos_token=True)
    yield plain("decoder of tokens", added_tokens_decoder={"400": tool})
    yield plain("decoder of tokens, not special", added_tokens_decoder={"400": {**tool, "special": False}})
    yield plain("spaces around", added_tokens_decoder={"400": {**tool, "lstrip": True, "rstrip": True}})
    yield plain("tool of the model", tool_token="<tool>")
    yield plain("tools by name", extra_special_tokens={"tool_token": "<tool>"})
    yield plain("tools", extra_special_tokens=["<t>", "<tool>"])
    yield plain("additional", additional_special_tokens=["<tool>"])
    yield plain("added file", more={"added_tokens.json": {"<tool>": 345}})
    yield plain("map", more={"special_tokens_map.json": {"eos_token": "<tool>"}})
    yield plain("map that does not count", added_tokens_decoder={}, more={"special_tokens_map.json": {"eos_token": "<tool>"}})
    yield plain("byte pairs are not cleaned up", clean_up_tokenization_spaces=True)
    yield plain("split", split_special_tokens=True)
    yield plain("llama class of bytes", tokenizer_class="LlamaTokenizer")
    yield plain("phi3", model_type="phi3", tokenizer_class="LlamaTokenizer")
    yield plain("modernbert", files=roberta, model_type="modernbert", add_prefix_space=True)
    yield case("t5 spiece.model", {"spiece.model": "t5.model"}, {"tokenizer_class": "T5Tokenizer"}, "t5")
    yield case("t5 spiece.model alone", {"spiece.model": "t5.model"}, None, "t5")
    yield case("mt5 spiece.model", {"spiece.model": "t5.model"}, {"extra_ids": 0, "additional_special_tokens": None}, "mt5")
    yield case("t5", {"tokenizer.json": "t5.json"}, {"tokenizer_class": "T5Tokenizer"}, "t5")
    yield case("t5 cleaned up", {"tokenizer.json": "t5.json"}, {"tokenizer_class": "T5Tokenizer", "clean_up_tokenization_spaces": True}, "t5")
    yield case("t5 tools", {"tokenizer.json": "t5.json"}, {"tokenizer_class": "T5Tokenizer", "extra_special_tokens": ["<tool>"]}, "t5")
    yield case("albert spiece.model", {"spiece.model": "albert.model"}, {"tokenizer_class": "AlbertTokenizer"}, "albert")
    yield case("albert spiece.model cased", {"spiece.model": "albert.model"}, {"do_lower_case": False, "keep_accents": True}, "albert")
    yield case("xlm-roberta", {"sentencepiece.bpe.model": "xlmr.model"}, {"tokenizer_class": "XLMRobertaTokenizer"}, "xlm-roberta")
    yield case("xlm-roberta alone", {"sentencepiece.bpe.model": "xlmr.model"}, None, "xlm-roberta")
    yield case("xlm-roberta file", {"tokenizer.json": "xlmr.json"}, {"tokenizer_class": "XLMRobertaTokenizer", "truncation_side": "left"}, "xlm-roberta")
    yield case("deberta spm.model", {"spm.model": "deberta.model"}, {"tokenizer_class": "DebertaV2Tokenizer"}, "deberta-v2")
    yield case("deberta spm.model lower", {"spm.model": "deberta.model"}, {"do_lower_case": True, "split_by_punct": True}, "deberta-v2")
    yield case("mbart", {"sentencepiece.bpe.model": "xlmr.model"}, {"tokenizer_class": "MBartTokenizer"}, "mbart")
    llama = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    yield case("llama tokenizer.model", {"tokenizer.model": "llama.model"}, {**llama, "add_bos_token": True, "add_eos_token": False}, "llama")
    yield case("llama tokenizer.model ends", {"tokenizer.model": "llama.model"}, {**llama, "add_bos_token": False, "add_eos_token": True}, "llama")
    yield case("llama tokenizer.model legacy", {"tokenizer.model": "llama.model"}, {**llama, "legacy": True}, "llama")
    yield case("llama", {"tokenizer.json": "llama.json"}, llama, "llama")
    yield case("llama no space", {"tokenizer.json": "llama.json"}, {**llama, "add_prefix_space": False}, "llama")
    yield case("mistral", {"tokenizer.json": "llama.json"}, llama, "mistral")
    yield case("mistral tokenizer.model", {"tokenizer.model": "llama.model"}, {**llama, "add_bos_token": True}, "mistral")
    yield case("gemma tokenizer.model", {"tokenizer.model": "gemma.model"}, {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True}, "gemma")


if __name__ == "__main__":
    make_files()
    rows = list(cases())
    for row in rows:
        print(row["name"], "|", row.get("class"), row.get("error", ""))
    document = {"texts": TEXTS, "pair": PAIR, "words": WORDS, "cases": rows}
    with open(os.path.join(HERE, "expected.json"), "w") as f:
        f.write("{\n" + ",\n".join(f'"{k}": {json.dumps(document[k])}' for k in ["texts", "pair", "words"]))
        f.write(',\n"cases": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]}\n")
