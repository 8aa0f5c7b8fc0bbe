#!/usr/bin/env python3
"""What `peft explain` decides against what Python PEFT does, for every task and model: wrapper, adapted and saved modules, counts.

    explain.py PEFT_PROGRAM MODEL…      a model is a folder with config.json, or a .gguf file

Prints a line for each task that the model's architecture has. Ends with 1 if one differs. No weights are read or made.
"""
import json, os, pathlib, subprocess, sys, tempfile, time

os.environ["HF_HUB_OFFLINE"] = "1"
import peft, torch, transformers as tf

AUTO = dict(SEQ_CLS=tf.AutoModelForSequenceClassification, TOKEN_CLS=tf.AutoModelForTokenClassification, QUESTION_ANS=tf.AutoModelForQuestionAnswering,
            CAUSAL_LM=tf.AutoModelForCausalLM, SEQ_2_SEQ_LM=tf.AutoModelForSeq2SeqLM, FEATURE_EXTRACTION=tf.AutoModel, none=tf.AutoModel)
program, differs = sys.argv[1], False
for given in sys.argv[2:]:
    gguf = dict(gguf_file=os.path.basename(given)) if given.endswith(".gguf") else {}
    config = tf.AutoConfig.from_pretrained(os.path.dirname(given) if gguf else given, **gguf)
    for task, auto in AUTO.items():
        options = dict(peft_type="LORA", r=8, **(dict(task_type=task) if task != "none" else {}))
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "adapter_config.json"
            file.write_text(json.dumps(options))
            start = time.perf_counter()
            ran = subprocess.run([program, "explain", "--model", given, "--config", str(file), "--json"], capture_output=True, text=True)
            seconds = time.perf_counter() - start
        try:
            with torch.device("meta"):
                model = peft.get_peft_model(auto.from_config(config), peft.LoraConfig(r=8, task_type=options.get("task_type")))
        except ValueError as error:
            print(f"{config.model_type:6} {task:18} Python: {str(error).splitlines()[0][:60]}; here: {ran.stderr.strip()[:200]}")
            continue
        if ran.returncode:
            print(f"{config.model_type:6} {task:18} {type(model).__name__} in Python; here: {ran.stderr.strip()[:120]}")
            continue
        ours = json.loads(ran.stdout)
        trainable, total = model.get_nb_trainable_parameters()
        saved = sorted(n[len("base_model.model."):] for n, m in model.named_modules() if type(m).__name__ == "ModulesToSaveWrapper")
        theirs = (type(model).__name__, trainable, total, sorted(model.base_model.targeted_module_names), saved)
        same = theirs == (ours["wrapper"], ours["trainable_params"], ours["all_params"], sorted(ours["targeted"]), sorted(ours["saved"]))
        differs |= not same
        print(f"{config.model_type:6} {task:18} {theirs[0]:34} {len(theirs[3]):3} adapted, saved {','.join(saved) or '–':11} {trainable:>9,} of {total:>11,}  {'same' if same else 'DIFFERS'}  {seconds:.2f} s")
        if not same:
            print("   here:", ours["wrapper"], ours["trainable_params"], ours["all_params"], len(ours["targeted"]), ours["saved"])
sys.exit(differs)
