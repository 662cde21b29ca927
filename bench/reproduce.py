"""The paper's comparison, small: multi-attempt against single-attempt training, over several seeds.

    python -m bench.reproduce --preset cue --seeds 0 1 2 3 4    # or miniature, smollm2; `make reproduce` is shorter
    python -m bench.reproduce --draw SUMMARY.json OUT           # no runs: tables and figure of a finished comparison

All arms train from the same base model and answer the same test questions greedily. Controls: k independent samples
(pass@k) in place of k attempts, and feedback that says nothing of the attempt. What is finished is not repeated: give
an interrupted command again. Into --out go summary.json (all verdicts), table.md, accuracy.png.
Shapes: S seeds, K numbers of attempts, Q questions
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np

from data import load_sets
from data.miniature import best_possible
from support.cli import fail
from support.files import read_json, read_metrics, save_json, save_text
from support.plots import interval, markdown, percent, plot_accuracy, table
from support.run import parse_run
from support.statistics import crossed_interval, mean, pass_chance, t_interval
from train import Config

MULTI, SINGLE, SAME_TOKENS = "multi-attempt", "single-attempt", "single-attempt, same sampled tokens"
ARMS = {MULTI: [], SINGLE: ["--max_attempts", "1"], SAME_TOKENS: ["--max_attempts", "1"]}  # options of train.py
ARMS |= {f"{MULTI}, discount {value}": ["--attempt_discount", value] for value in ("0.8", "0.6")}
EVALUATIONS = {name: (name, []) for name in ("base", *ARMS)}  # name: (model, options of evaluate.py)
EVALUATIONS |= {
    f"{MULTI}, uninformative feedback": (MULTI, ["--feedback", "uninformative"]),
    "base, pass@k of 20 samples": ("base", ["--samples", "20"]),
    f"{SINGLE}, pass@k of 20 samples": (SINGLE, ["--samples", "20"]),
}


# -------------------- Runs
def run_folder(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def run(script: str, options: list[str], out: Path, result: str) -> None:
    """Run train.py or evaluate.py in a process of one thread, unless its `result` is there already. A training that was
    cut off is resumed. What it prints goes into a file beside `out`. RuntimeError when it fails."""
    if (out / result).exists():
        return
    if (out / "config.json").exists():  # only train.py writes one
        options = ["--resume"]
    command, log = [sys.executable, script, *options, "--out", str(out)], Path(f"{out}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file:
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        if subprocess.run(command, env=one_thread, stdout=file, stderr=file).returncode:
            raise RuntimeError(f"{out} failed: see {log}")
    print(f"{out} is done", flush=True)


def run_all(jobs: Iterable[tuple], processes: int) -> None:
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(lambda job: run(*job), jobs))


def training(args: argparse.Namespace, seed: int, arm: str) -> tuple:
    """The arguments of `run` for an arm."""
    options = ["--preset", args.preset, "--seed", str(seed), *args.extra, "--eval_data", "none", *ARMS[arm]]
    if arm == SAME_TOKENS:
        multi, single = (read_metrics(run_folder(args.out, name, seed)) for name in (MULTI, SINGLE))
        ratio = sum(row["tokens_sampled"] for row in multi) / sum(row["tokens_sampled"] for row in single)
        options += ["--steps", str(round(len(single) * ratio))]
    return "train.py", options, run_folder(args.out, arm, seed), "model"


def evaluation(args: argparse.Namespace, config: Config, seed: int, name: str) -> tuple:
    """The arguments of `run` for an evaluation on the test questions."""
    model, options = EVALUATIONS[name]
    given = {"data": config.eval_data, "attempts": config.eval_attempts, "seed": seed}
    given["model"] = config.model if model == "base" else run_folder(args.out, model, seed) / "model"
    for key in ("max_new_tokens", "max_attempt_tokens", "chat_template", "device", "dtype"):
        given[key] = getattr(config, key)
    options = [f"--{key}={value}" for key, value in given.items()] + options
    return "evaluate.py", options, run_folder(args.out / "evaluations", name, seed), "results.json"


# -------------------- The summary, its tables and its figure
def verdicts(result: dict, dialogues: list[dict]) -> dict:
    """What the summary has of an evaluation: texts for each number of attempts, with a digit for each question.
    `solved`: how many of the `samples` were right (base 36). `first`: was the first attempt right?"""
    rows, sets = result["by_attempts"], list(result.get("by_data", {"": result}).values())
    found = {key: rows[-1][key] for key in ("repeated", "truncated", "tokens")}
    if "right" in sets[0]:  # pass@k
        digits = "".join(np.base_repr(right, 36) for each in sets for right in each["right"])
        return found | {"samples": sets[0]["samples"], "solved": [digits] * len(rows)}
    for key, judged in ("solved", dialogues), ("first", [dialogue["attempts"][0] for dialogue in dialogues]):
        digits = "".join(str(int(each["correct"])) for each in judged)
        found[key] = [digits[i :: len(rows)] for i in range(len(rows))]
    return found | {"samples": 1}


def shares(runs: Iterable[dict], part: slice, key: str = "solved") -> np.ndarray:
    """How probably each of this part of the questions was solved, (K, S, Q), by the digits of `verdicts`."""

    def chances(run: dict) -> list[list[float]]:
        rows = enumerate(run[key], 1)
        return [[pass_chance(int(digit, 36), run["samples"], k) for digit in digits[part]] for k, digits in rows]

    return np.array(list(map(chances, runs))).swapaxes(0, 1)


def over_seeds(runs: dict[str, dict], part: slice) -> dict:
    """What support/plots.py shows of a model, with a row for each number of attempts. The interval of an accuracy is
    over the seeds, of a single seed over its questions; that of a gain is over both."""
    rows, solved_KSQ = [], shares(runs.values(), part)
    constant = {key: mean([run[key] for run in runs.values()]) for key in ("repeated", "truncated", "tokens")}
    for attempts, solved_SQ in enumerate(solved_KSQ, 1):
        ends = t_interval(solved_SQ.mean(1)) if len(runs) > 1 else crossed_interval(solved_SQ)
        low, high = np.clip(ends, 0, 1).tolist()
        row = {"attempts": attempts, "accuracy": float(solved_SQ.mean()), "low": low, "high": high}
        gain_low, gain_high = crossed_interval(solved_SQ - solved_KSQ[0])
        rows.append(constant | row | {"gain_low": gain_low, "gain_high": gain_high})
    return {"by_attempts": rows}


def measure(args: argparse.Namespace) -> dict:
    """Runs what is missing, unless --finished. Sets args.out if it is None. Returns the summary of what is there."""
    args.out = args.out or Path(f"runs/reproduce-{args.preset}")
    config = parse_run(Config, ["--preset", args.preset, *args.extra])
    if config.eval_limit is not None:
        raise ValueError("all models are asked all questions of --eval_data: leave out --eval_limit")
    # the discounts are tried on the riddles with a cue
    names = [name for name in EVALUATIONS if args.preset == "cue" or "discount" not in name]
    evaluations = {(name, seed): evaluation(args, config, seed, name) for name, seed in product(names, args.seeds)}
    if not args.finished:
        for arms in [name for name in names if name in ARMS and name != SAME_TOKENS], [SAME_TOKENS]:
            run_all([training(args, seed, arm) for seed, arm in product(args.seeds, arms)], args.processes)
        run_all(evaluations.values(), args.processes)
    results = {}
    for (name, seed), (*_, folder, file) in evaluations.items():
        if (folder / file).exists():
            *_, result = read_json(folder / file)["models"].values()  # pass@k comes after the greedy answers
            results.setdefault(name, {})[str(seed)] = verdicts(result, read_json(*folder.glob("dialogues-*.json")))
    if not {"base", MULTI} <= results.keys():
        raise ValueError(f"no {MULTI} run in {args.out} is finished and evaluated beside the base model")
    sets = {name: len(problems) for name, problems in load_sets(config.eval_data).items()}
    best = [] if "smollm2" in args.preset else best_possible(args.preset == "cue", config.eval_attempts)
    return {"sets": sets, "best possible": best, "results": results}


def differences(results: dict[str, dict], part: slice, key: str) -> list[list[str]]:
    """Lines of a table: all trainings minus the base, multi-attempt training minus all others, by seed and question."""
    trainings, lines = [name for name in results if name in ARMS], []
    for name, other in [(name, "base") for name in trainings] + [(MULTI, name) for name in trainings if name != MULTI]:
        one, two = results[name], results[other]
        if seeds := [seed for seed in one if key in one[seed] and key in two.get(seed, ())]:
            gap_KSQ = shares([one[s] for s in seeds], part, key) - shares([two[s] for s in seeds], part, key)
            cells = [f"{100 * gap_SQ.mean():+z.1f} {interval(*crossed_interval(gap_SQ))}" for gap_SQ in gap_KSQ]
            lines.append([f"{name} minus {other}", *cells])
    return lines


def draw(summary: dict, out: Path) -> str:
    """Draws the figure; curves that agree in whole percent are drawn once. Returns the tables."""
    results, sets, best = summary["results"], summary["sets"], summary["best possible"]
    models = results | {"base": dict([*results["base"].items()][:1])}  # which is the same for all seeds
    ends, texts = np.cumsum([0, *sets.values()]).tolist(), []
    parts = {" and ".join(sets): slice(None)} | dict(zip(sets, map(slice, ends, ends[1:])))
    for data, part in parts.items():
        by_model = {f"{name}, seeds {' '.join(runs)}": over_seeds(runs, part) for name, runs in models.items()}
        texts += [f"{data}, %", table(by_model)]
        for key, what in (("solved", "allowed"), ("first", "allowed, first attempt alone")):
            if lines := differences(results, part, key):
                texts.append(markdown([[f"attempts {what}", *map(str, range(1, len(lines[0])))], *lines]))
    texts += [f"Best possible at 1, 2, ... attempts: {' / '.join(map(percent, best))}"] if best else []
    merged = {}
    for name in [name for name in models if name in ARMS or name in ("base", "base, pass@k of 20 samples")]:
        curve = over_seeds(models[name], slice(None))
        merged.setdefault(tuple(round(100 * row["accuracy"]) for row in curve["by_attempts"]), {})[name] = curve
    curves = {"\n".join(by_name): next(iter(by_name.values())) for by_name in merged.values()}
    best = [100 * share for share in best]
    plot_accuracy(curves, out / "accuracy.png", {"best possible (expected)": best} if best else {})
    return "\n\n".join(texts) + "\n"


def command(parser: argparse.ArgumentParser, argv: list[str] | None, measure: Callable, draw: Callable) -> None:
    """For ablations.py as well: measure(args) makes a summary, draw(summary, folder) draws it, returning tables."""
    parser.add_argument("--out", type=Path, help="folder of runs and results, runs/... by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run of each kind for each")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side (default 2)")
    parser.add_argument("--finished", action="store_true", help="no runs: the tables of those that are finished")
    parser.add_argument("--draw", nargs=2, type=Path, metavar=("SUMMARY", "OUT"), help="only draw again, into OUT")
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="options of train.py; comes last")
    args = parser.parse_args(argv)
    try:
        summary = read_json(args.draw[0]) if args.draw else measure(args)
        out = args.draw[1] if args.draw else args.out
        out.mkdir(parents=True, exist_ok=True)
        save_json(summary, out / "summary.json")
    except (RuntimeError, OSError, ValueError) as error:
        fail(error)
    tables = draw(summary, out)
    save_text(tables, out / "table.md")
    print(f"\n{tables}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Multi-attempt against single-attempt training.")
    parser.add_argument("--preset", choices=("miniature", "cue", "smollm2"), default="miniature", help="of train.py")
    command(parser, argv, measure, draw)


if __name__ == "__main__":
    main()
