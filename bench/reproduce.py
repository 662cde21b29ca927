"""The paper's comparison, small: multi-attempt against single-attempt training, over several seeds.

    python -m bench.reproduce --seeds 0 1 2 3 4         # on both kinds of riddles (`make reproduce`)
    python -m bench.reproduce --preset smollm2          # on a pretrained model
    python -m bench.reproduce --draw SUMMARY.json OUT   # no runs: tables and figures of a finished comparison

All arms train from the same base model and answer the same test questions greedily. Controls: k independent samples
(pass@k) in place of k attempts, and feedback that says nothing about the attempt. Finished runs are not repeated, so an
interrupted command can be given again. --out gets summary.json (all verdicts), table.md, and PRESET.png.
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

from data import RIDDLES, load_sets
from data.miniature import best_possible
from evaluate import RUN_OPTIONS, file_name
from support.cli import fail
from support.files import make_folder, read_json, save_json, save_text
from support.plots import interval, markdown, percent, plot_accuracy, table
from support.run import parse_run
from support.statistics import crossed_interval, mean, pass_chance, t_interval
from train import Config

TASKS = "cue", "miniature", "smollm2"  # the longest runs first: all processes have work until the end
MULTI, SINGLE, SAME_TOKENS = "multi-attempt", "single-attempt", "single-attempt, same sampled tokens"
# with their options of train.py; the discounts are tried on the riddles with a cue
DISCOUNTS = {f"{MULTI}, discount {value}": ["--attempt_discount", value] for value in ("0.8", "0.6")}
ARMS = {MULTI: [], SINGLE: ["--max_attempts", "1"]} | DISCOUNTS | {SAME_TOKENS: ["--max_attempts", "1"]}
UNINFORMED = f"{MULTI}, uninformative feedback"


# -------------------- Runs
def run_folder(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def run(script: str, options: list[str], out: Path, result: str) -> None:
    """Run train.py or evaluate.py in a process of one thread, unless its `result` is there. An interrupted training run
    is resumed. OUT.log has options and output. ValueError if the options differ, RuntimeError if the process fails."""
    log, given = Path(f"{out}.log"), repr([script, *options])
    if out.exists() and log.exists() and log.read_text(errors="replace").split("\n")[0] != given:
        raise ValueError(f"{out} was made with other options or paths, see {log}: choose another --out")
    if (out / result).exists():
        return
    if (out / "config.json").exists():  # only train.py writes one
        options = ["--resume"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file:
        print(given, file=file, flush=True)
        command, env = [sys.executable, script, *options, "--out", str(out)], os.environ | {"OMP_NUM_THREADS": "1"}
        if subprocess.run(command, env=env, stdout=file, stderr=file).returncode:
            raise RuntimeError(f"{out} failed: see {log}")
    print(f"{out} is done", flush=True)


def train_and_evaluate(config: Config, extra: list[str], out: Path, name: str, seed: int) -> None:
    """Train an arm, and evaluate it or the base model on the test questions."""
    folder = run_folder(out, name, seed)
    if name in ARMS:
        options = ["--preset", config.preset, *extra, "--seed", str(seed), "--eval_data", "none", *ARMS[name]]
        if name == SAME_TOKENS:
            paths = (run_folder(out, arm, seed) / "metrics.jsonl" for arm in (MULTI, SINGLE))
            multi, single = ([row["tokens_sampled"] for row in read_json(path, lines=True)] for path in paths)
            options += ["--steps", str(round(len(single) * sum(multi) / sum(single)))]
        run("train.py", options, folder, "model")
    asked = {key: getattr(config, key) for key in (*RUN_OPTIONS, "device", "dtype")}
    asked |= dict(data=config.eval_data, attempts=config.eval_attempts, seed=seed)
    asked["model"] = folder / "model" if name in ARMS else config.model
    samples = {"samples": 4 * config.eval_attempts} if name in ("base", SINGLE) else {}
    controls = {UNINFORMED: {"feedback": "uninformative"}} if name == MULTI else {}
    for what, more in ({name: samples} | controls).items():
        options = [f"--{key}={value}" for key, value in (asked | more).items()]
        run("evaluate.py", options, run_folder(out / "evaluations", what, seed), "results.json")


# -------------------- The summary, its tables and its figure
def verdicts(result: dict, dialogues: list[dict]) -> dict:
    """What the summary keeps of an evaluation: a text for each number of attempts, with a digit for each question.
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
    """The probability that each question of this part was solved, (K, S, Q), from the digits of `verdicts`."""

    def chances(run: dict) -> list[list[float]]:
        rows = enumerate(run[key], 1)
        return [[pass_chance(int(digit, 36), run["samples"], k) for digit in digits[part]] for k, digits in rows]

    return np.array(list(map(chances, runs))).swapaxes(0, 1)


def over_seeds(runs: dict[str, dict], part: slice) -> dict:
    """What support/plots.py shows of a model, with a row for each number of attempts. The interval of an accuracy is
    over the seeds, or with a single seed over its questions; that of a gain is over both."""
    rows, solved_KSQ = [], shares(runs.values(), part)
    whole = runs.values() if part == slice(None) else ()  # these are of all sets together
    constant = {key: mean([run[key] for run in whole]) for key in ("repeated", "truncated", "tokens")}
    for attempts, solved_SQ in enumerate(solved_KSQ, 1):
        ends = t_interval(solved_SQ.mean(1)) if len(runs) > 1 else crossed_interval(solved_SQ)
        low, high = np.clip(ends, 0, 1).tolist()
        row = {"attempts": attempts, "accuracy": float(solved_SQ.mean()), "low": low, "high": high}
        gain_low, gain_high = crossed_interval(solved_SQ - solved_KSQ[0])
        rows.append(constant | row | {"gain_low": gain_low, "gain_high": gain_high})
    return {"by_attempts": rows}


def measure(args: argparse.Namespace) -> dict[str, dict]:
    """Runs what is missing, unless --finished. Returns a summary for each preset."""
    configs = {preset: parse_run(Config, ["--preset", preset, *args.extra]) for preset in args.preset}
    if any(config.eval_limit is not None for config in configs.values()):
        raise ValueError("all models are asked all questions of --eval_data: leave out --eval_limit")
    for names in ([MULTI, SINGLE, *DISCOUNTS, "base"], [SAME_TOKENS]):  # the last counts tokens of the first two
        jobs = [
            (configs[preset], args.extra, args.out / preset, name, seed)
            for seed, name, preset in product([] if args.finished else args.seeds, names, args.preset)
            if preset == "cue" or name not in DISCOUNTS
        ]
        with ThreadPoolExecutor(args.processes) as pool:
            list(pool.map(train_and_evaluate, *zip(*jobs)))
    return {preset: summarise(args.out / preset, config, args.seeds) for preset, config in configs.items()}


def summarise(out: Path, config: Config, seeds: list[int]) -> dict:
    """The verdicts of all evaluations that are finished."""
    results = {}
    for name, seed in product(["base", *ARMS, UNINFORMED], seeds):
        folder = run_folder(out / "evaluations", name, seed)
        if (folder / "results.json").exists():
            dialogues, found = read_json(*folder.glob("dialogues-*.json")), read_json(folder / "results.json")
            if (found["options"]["data"], found["options"]["attempts"]) != (config.eval_data, config.eval_attempts):
                raise ValueError(f"{folder} asked something else: repeat its --extra, or choose another --out")
            for label, result in zip((name, f"{name}, pass@k"), found["models"].values()):
                results.setdefault(label, {})[str(seed)] = verdicts(result, dialogues)
    if not {"base", MULTI} <= results.keys():
        raise ValueError(f"{out} has no finished evaluation of the base model, or none of a {MULTI} run")
    sets = {name: len(problems) for name, problems in load_sets(config.eval_data).items()}
    best = best_possible("cue" in config.eval_data, config.eval_attempts) if config.eval_data in RIDDLES else []
    return {"sets": sets, "best possible": best, "results": results}


def differences(results: dict[str, dict], part: slice, key: str) -> list[list[str]]:
    """Lines of a table: training minus base, then multi-attempt minus each other kind, paired by seed and question."""
    trainings, lines = [name for name in results if name in ARMS], []
    for name, other in [(name, "base") for name in trainings] + [(MULTI, name) for name in trainings if name != MULTI]:
        one, two = results[name], results[other]
        if seeds := [seed for seed in one if key in one[seed] and key in two.get(seed, ())]:
            gap_KSQ = shares([one[s] for s in seeds], part, key) - shares([two[s] for s in seeds], part, key)
            cells = [f"{100 * gap_SQ.mean():+z.1f} {interval(*crossed_interval(gap_SQ))}" for gap_SQ in gap_KSQ]
            lines.append([f"{name} minus {other}", *cells])
    return lines


def draw(summaries: dict[str, dict], out: Path) -> str:
    """Draws a figure for each preset; curves that agree in whole percent are drawn once. Returns the tables."""
    texts = []
    for preset, summary in summaries.items():
        results, sets, best = summary["results"], summary["sets"], summary["best possible"]
        models = results | {"base": dict([*results["base"].items()][:1])}  # which is the same for all seeds
        ends = np.cumsum([0, *sets.values()]).tolist()
        parts = {" and ".join(sets): slice(None)} | dict(zip(sets if len(sets) > 1 else (), map(slice, ends, ends[1:])))
        for data, part in parts.items():
            by_model = {f"{name}, seeds {' '.join(runs)}": over_seeds(runs, part) for name, runs in models.items()}
            texts += [f"{data}, %", table(by_model)]
            for key, what in (("solved", "allowed"), ("first", "allowed, first attempt alone")):
                if lines := differences(results, part, key):
                    texts.append(markdown([[f"attempts {what}", *map(str, range(1, len(lines[0])))], *lines]))
        texts += [f"Best possible at 1, 2, ... attempts: {' / '.join(map(percent, best))}"] if best else []
        merged = {}
        for name in [name for name in models if name in (*ARMS, "base", "base, pass@k")]:
            curve = over_seeds(models[name], slice(None))
            merged.setdefault(tuple(round(100 * row["accuracy"]) for row in curve["by_attempts"]), {})[name] = curve
        curves = {"\n".join(by_name): next(iter(by_name.values())) for by_name in merged.values()}
        references = {"best possible (expected)": [100 * share for share in best]} if best else {}
        plot_accuracy(curves, out / f"{preset}.png", references)
    return "\n\n".join(texts) + "\n"


def command(name: str, parser, argv: list[str] | None, measure: Callable, draw: Callable) -> None:
    """Also used by ablations.py. measure(args) makes a summary; draw(summary, folder) draws it and returns tables."""
    parser.add_argument("--out", type=Path, help="folder of runs and results, runs/... by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="for each seed, one run of each kind")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side (default 2)")
    parser.add_argument("--finished", action="store_true", help="no runs: tables of finished ones with these options")
    parser.add_argument("--draw", nargs=2, type=Path, metavar=("SUMMARY", "OUT"), help="only draw again, into OUT")
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="options of train.py; comes last")
    args = parser.parse_args(argv)
    words = [name, *getattr(args, "preset", []), *args.extra]
    args.out = args.draw[1] if args.draw else args.out or Path("runs", file_name("-".join(words)))
    try:
        summary = read_json(args.draw[0]) if args.draw else measure(args)
        save_json(summary, make_folder(args.out) / "summary.json")
    except (RuntimeError, OSError, ValueError) as error:
        fail(error)
    except KeyboardInterrupt as error:
        fail(error, ": the same command resumes")
    tables = draw(summary, args.out)
    save_text(tables, args.out / "table.md")
    print(f"\n{tables}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Multi-attempt against single-attempt training.")
    parser.add_argument("--preset", nargs="+", choices=TASKS, default=TASKS[:2], help="default: both kinds of riddles")
    command("reproduce", parser, argv, measure, draw)


if __name__ == "__main__":
    main()
