"""The paper's comparison, small: multi-attempt against single-attempt training, over several seeds.

    python -m bench.reproduce --preset cue --seeds 0 1 2 3 4    # or miniature, smollm2; `make reproduce` is shorter
    python -m bench.reproduce --draw SUMMARY.json OUT           # no runs: tables and figure of a finished comparison

All arms train from the same base model and answer the same test questions greedily. Controls: k independent samples
(pass@k) in place of k attempts, and feedback as long as the real one without a word on the answer. What is finished is
not repeated: give an interrupted command again. Into --out go summary.json (all verdicts), table.md, accuracy.png.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data import load_sets
from data.miniature import best_possible
from support.cli import fail
from support.files import save_json, save_text
from support.plots import interval, markdown, percent, plot_accuracy, read_metrics, table
from support.statistics import crossed_interval, over_seeds, shares

MULTI, SINGLE, SAME_TOKENS = "multi-attempt", "single-attempt", "single-attempt, same sampled tokens"
ARMS = {MULTI: [], SINGLE: ["--max_attempts", "1"], SAME_TOKENS: ["--max_attempts", "1"]}  # options of train.py
ARMS |= {f"{MULTI}, discount {value}": ["--attempt_discount", value] for value in ("0.8", "0.6")}
CONTROLS = {  # name: (arm whose run it belongs to, options of evaluate.py)
    "base, pass@k of 20 samples": (SINGLE, ["--samples", "20"]),
    f"{SINGLE}, pass@k of 20 samples": (SINGLE, ["--samples", "20"]),
    f"{MULTI}, uninformative feedback": (MULTI, ["--feedback", "uninformative"]),
}


# -------------------- Runs
def slug(name: str) -> str:
    """The name as one of a folder."""
    return name.replace(", ", "-").replace(" ", "-")


def process(command: list[str], out: Path) -> None:
    """A Python process of one thread. What it prints goes into a file beside `out`. RuntimeError when it fails."""
    log = Path(f"{out}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command, env = [sys.executable, *command, "--out", str(out)], os.environ | {"OMP_NUM_THREADS": "1"}
    with open(log, "w") as file:
        if subprocess.run(command, env=env, stdout=file, stderr=file).returncode:
            raise RuntimeError(f"{out} failed: see {log}")
    print(f"{out} is done", flush=True)


def run(folder: Path, options: list[str]) -> None:
    """One training run, unless it is there already; one that was cut off is resumed."""
    if not (folder / "evaluation.json").exists():
        process(["train.py", *(["--resume"] if (folder / "config.json").exists() else options)], folder)


def control(folder: Path, name: str, arm: Path) -> None:
    """One control of a finished run on its test questions, unless it is there already."""
    if not (folder / "results.json").exists():
        config = read(arm / "config.json")
        same = ("seed", "max_new_tokens", "max_attempt_tokens", "chat_template", "device", "dtype")
        options = {"model": config["model"] if name.startswith("base") else arm / "model", "data": config["eval_data"]}
        options |= {"attempts": config["eval_attempts"]} | {key: config[key] for key in same}
        process(["evaluate.py", *(f"--{key}={value}" for key, value in options.items()), *CONTROLS[name][1]], folder)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def run_folders(args: argparse.Namespace, seed: int) -> dict[str, Path]:
    """The folder of every run and control of a seed. The discounts are tried on the riddles with a cue."""
    names = [name for name in (*ARMS, *CONTROLS) if args.preset == "cue" or "discount" not in name]
    return {name: args.out / f"{slug(name)}-{seed}" for name in names}


def run_seed(args: argparse.Namespace, seed: int, pool: Executor) -> None:
    """The runs of a seed and their controls: first the two on which the others depend."""
    folders, same = run_folders(args, seed), ["--preset", args.preset, "--seed", str(seed), *args.extra]
    options = {name: [*same, *more] for name, more in ARMS.items()}
    list(pool.map(run, (folders[MULTI], folders[SINGLE]), (options[MULTI], options[SINGLE])))
    multi, single = ([row["tokens_sampled"] for row in read_metrics(folders[name])] for name in (MULTI, SINGLE))
    options[SAME_TOKENS] += ["--steps", str(round(len(single) * sum(multi) / sum(single)))]
    jobs = [(run, folders[name], options[name]) for name in folders if name in options]
    jobs += [(control, folders[name], name, folders[arm]) for name, (arm, _) in CONTROLS.items()]
    for future in [pool.submit(*job) for job in jobs]:
        future.result()


# -------------------- The summary, its tables and its figure
def kept(result: dict, dialogues: list[dict]) -> dict:
    """What the summary keeps: texts for each number of attempts, with a digit for each question. `solved`: how many of
    the `samples` were right (base 36). `first`: was the first attempt right?"""
    rows, parts = result["by_attempts"], list(result.get("by_data", {"": result}).values())
    same = {key: rows[-1][key] for key in ("repeated", "truncated", "tokens")}
    if "right" in parts[0]:
        digits = "".join(np.base_repr(right, 36) for part in parts for right in part["right"])
        return same | {"samples": parts[0]["samples"], "solved": [digits] * len(rows)}
    for key, judged in ("solved", dialogues), ("first", [dialogue["attempts"][0] for dialogue in dialogues]):
        digits = "".join(str(int(each["correct"])) for each in judged)
        same[key] = [digits[k :: len(rows)] for k in range(len(rows))]
    return same | {"samples": 1}


def compare(args: argparse.Namespace) -> dict:
    """Runs what is missing, unless --finished. Returns the summary of what is there."""
    args.out = args.out or Path(f"runs/reproduce-{args.preset}")
    if not args.finished:
        with ThreadPoolExecutor(args.processes) as processes, ThreadPoolExecutor(len(args.seeds)) as seeds:
            list(seeds.map(lambda seed: run_seed(args, seed, processes), args.seeds))
    results = {"base": {}}
    for seed in map(str, args.seeds):
        for name, folder in run_folders(args, seed).items():
            if (folder / "evaluation.json").exists():
                config, evaluation = read(folder / "config.json"), read(folder / "evaluation.json")
                for model, result in ("base", evaluation["base"]), (name, evaluation["trained"]):
                    results.setdefault(model, {})[seed] = kept(result, result["dialogues"])
            elif (folder / "results.json").exists():
                *_, last = read(folder / "results.json")["models"].values()  # pass@k comes after the greedy answers
                results.setdefault(name, {})[seed] = kept(last, read(*folder.glob("dialogues-*.json")))
    if MULTI not in results:
        raise ValueError(f"no {MULTI} run in {args.out} is finished")
    sets = {name: len(problems) for name, problems in load_sets(config["eval_data"]).items()}
    best = [] if "smollm2" in args.preset else best_possible(args.preset == "cue", config["eval_attempts"])
    return {"sets": sets, "best possible": best, "results": results}


def differences(results: dict[str, dict], part: slice, key: str) -> list[list[str]]:
    """Lines of a table: all trainings less the base, multi-attempt training less all others, by seed and question."""
    trainings, lines = [name for name in results if name in ARMS], []
    for name, other in [(name, "base") for name in trainings] + [(MULTI, name) for name in trainings if name != MULTI]:
        one, two = results[name], results[other]
        if both := [seed for seed in one if key in one[seed] and key in two.get(seed, ())]:
            apart_SKQ = np.subtract(*(shares([runs[seed] for seed in both], part, key) for runs in (one, two)))
            apart_KSQ = apart_SKQ.swapaxes(0, 1)
            cells = [f"{100 * x_SQ.mean():+z.1f} {interval(*crossed_interval(x_SQ))}" for x_SQ in apart_KSQ]
            lines.append([f"{name} less {other}", *cells])
    return lines


def draw(summary: dict, out: Path) -> None:
    """The tables, on the screen as well, and the figure. Curves that are the same in whole percent are drawn once."""
    results, sets, best = summary["results"], summary["sets"], summary["best possible"]
    shown = results | {"base": dict([*results["base"].items()][:1])}  # which is the same for all seeds
    ends, texts, same = np.cumsum([0, *sets.values()]).tolist(), [], {}
    parts = {" and ".join(sets): slice(None)} | dict(zip(sets, map(slice, ends, ends[1:])))
    for data, part in parts.items():
        tabled = {f"{name}, seeds {' '.join(runs)}": over_seeds(runs, part) for name, runs in shown.items()}
        texts += [f"{data}, %", table(tabled)]
        for key, what in (("solved", "allowed"), ("first", "allowed, first attempt alone")):
            if lines := differences(results, part, key):
                texts.append(markdown([[f"attempts {what}", *map(str, range(1, len(lines[0])))], *lines]))
    texts += [f"Best possible at 1, 2, ... attempts: {' / '.join(map(percent, best))}"] if best else []
    text = "\n\n".join(texts) + "\n"
    save_text(text, out / "table.md")
    print(f"\n{text}")
    for name in [name for name in shown if name not in list(CONTROLS)[1:]]:
        curve = over_seeds(shown[name], slice(None))
        same.setdefault(tuple(round(100 * row["accuracy"]) for row in curve["by_attempts"]), {})[name] = curve
    curves = {"\n".join(by_name): next(iter(by_name.values())) for by_name in same.values()}
    plot_accuracy(curves, out / "accuracy.png", {"best possible": [100 * share for share in best]} if best else {})


# -------------------- The command line, shared with ablations.py
def command(parser: argparse.ArgumentParser, argv: list[str] | None, measure: Callable, draw: Callable) -> None:
    """Add the options, then either measure(args) -> summary or read one, and draw(summary, folder)."""
    parser.add_argument("--seeds", type=int, nargs="+", help="one run of each kind for each")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side (default 2)")
    parser.add_argument("--draw", nargs=2, type=Path, metavar=("SUMMARY", "OUT"), help="only draw again, into OUT")
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="options of train.py; comes last")
    args = parser.parse_args(argv)
    if len(set(args.seeds)) < len(args.seeds) or args.processes < 1:
        parser.error("--seeds takes different numbers, --processes 1 or more")
    if any(word.replace("-", "_").startswith("__eval_limit") for word in args.extra):
        parser.error("all arms and controls are asked all questions of --eval_data: leave out --eval_limit")
    try:
        summary = read(args.draw[0]) if args.draw else measure(args)
        out = args.draw[1] if args.draw else args.out
        out.mkdir(parents=True, exist_ok=True)
        save_json(summary, out / "summary.json")
    except (RuntimeError, OSError, ValueError) as error:
        fail(error)
    draw(summary, out)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Multi-attempt against single-attempt training.")
    presets = "miniature", "cue", "smollm2", "smollm2-gpu"
    parser.add_argument("--preset", choices=presets, default="miniature", help="of train.py")
    parser.add_argument("--out", type=Path, help="none: runs/reproduce-PRESET")
    parser.add_argument("--finished", action="store_true", help="no runs: the tables of those that are finished")
    parser.set_defaults(seeds=[0])
    command(parser, argv, compare, draw)


if __name__ == "__main__":
    main()
