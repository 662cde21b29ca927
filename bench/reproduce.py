"""The paper's comparison, small: multi-attempt against single-attempt training, over several seeds.

    python -m bench.reproduce --seeds 0 1 2 3 4           # make reproduce SEEDS="0 1 2 3 4": the miniature
    python -m bench.reproduce --preset smollm2            # make reproduce PRESET=smollm2: without the longest arm
    python -m bench.reproduce --draw SUMMARY.json OUT     # no runs: table and figures of a finished comparison

All arms train on the same questions from the same base model, and answer the same test questions greedily:

    multi-attempt      1 to 5 attempts allowed in a dialogue (smollm2: 1 to 3)
    single-attempt     the paper's baseline: as many steps and dialogues, always one attempt
    ... same tokens    (miniature) the baseline trained until it has seen as many tokens as the multi-attempt arm

Controls, none of which the paper has:

    base                                     before any training
    base, pass@k of 20 samples               k answers that know nothing of each other, at temperature 1
    single-attempt, pass@k of 20 samples     the same after training, which has made its answers more alike
    multi-attempt, uninformative feedback    as long as the real one, without a word on the answer: is it read?

Two processes of one thread each run side by side. What is finished is not repeated: give an interrupted command again.
Written into --out: summary.json (all numbers, enough to draw the rest), table.md, accuracy.png (all arms and controls),
readme.png (four curves of it).
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from data.miniature import draw_riddles
from support.cli import fail
from support.plots import plot_accuracy, table
from support.statistics import mean

ARMS = ("multi-attempt", "single-attempt")
SAME_TOKENS = "single-attempt, same tokens"
SAMPLES = 20  # of a question, for pass@k
CONTROLS = {  # name: (arm whose run it belongs to, options of evaluate.py)
    f"base, pass@k of {SAMPLES} samples": ("single-attempt", ["--samples", str(SAMPLES)]),
    f"single-attempt, pass@k of {SAMPLES} samples": ("single-attempt", ["--samples", str(SAMPLES)]),
    "multi-attempt, uninformative feedback": ("multi-attempt", ["--feedback", "uninformative"]),
}
README = {name: f"{name} training" for name in ARMS} | {f"base, pass@k of {SAMPLES} samples": "base model, pass@k"}
T_95 = (0, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, by degrees of freedom


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
        done = subprocess.run(command, env=env, stdout=file, stderr=file)
    if done.returncode:
        raise RuntimeError(f"{out} failed: see {log}")
    print(f"{out} is done", flush=True)


def run(folder: Path, options: list[str]) -> list[dict]:
    """One training run, unless it is there already; one that was cut off is resumed. Returns its rows by attempts."""
    if not (folder / "evaluation.json").exists():
        process(["train.py", *(["--resume"] if (folder / "config.json").exists() else options)], folder)
    return read(folder / "evaluation.json")["trained"]["by_attempts"]


def control(arm: Path, name: str) -> list[dict]:
    """One control of a finished run on its test questions, unless it is there already. Returns its rows by attempts."""
    out = arm / slug(name.removeprefix(f"{CONTROLS[name][0]}, "))
    if not (out / "results.json").exists():
        config = read(arm / "config.json")
        model = config["model"] if name.startswith("base") else arm / "model"
        options = dict(model=model, data=config["eval_data"], attempts=config["eval_attempts"])
        same = ("seed", "slots", "max_new_tokens", "max_attempt_tokens", "chat_template", "device", "dtype")
        options |= {option: config[option] for option in same}
        process(["evaluate.py", *(f"--{key}={value}" for key, value in options.items()), *CONTROLS[name][1]], out)
    *_, last = read(out / "results.json")["models"].values()  # pass@k comes after the greedy answers
    return last["by_attempts"]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def metrics(folder: Path, key: str) -> list[float | None]:
    """A value for each step of a run."""
    return [json.loads(line)[key] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_seed(args: argparse.Namespace, seed: int, pool: Executor) -> dict[str, list[dict]]:
    """The runs of a seed and their controls. Returns their rows by name."""
    folders = {arm: args.out / f"{slug(arm)}-{seed}" for arm in (*ARMS, SAME_TOKENS)}
    multi, single, same_tokens = folders.values()
    options = ["--preset", args.preset, "--seed", str(seed), *args.extra]
    baseline = [*options, "--max_attempts", "1"]
    rows = dict(zip(ARMS, pool.map(run, (multi, single), (options, baseline))))
    futures = {}
    if args.preset == "miniature":  # all tokens of a dialogue count: the update goes through them all
        seen = [sum(metrics(folder, "tokens_total")) for folder in (multi, single)]
        steps = round(read(single / "config.json")["steps"] * seen[0] / seen[1])
        futures[SAME_TOKENS] = pool.submit(run, same_tokens, [*baseline, "--steps", str(steps)])
    futures |= {name: pool.submit(control, folders[arm], name) for name, (arm, _) in CONTROLS.items()}
    base = {"base": read(multi / "evaluation.json")["base"]["by_attempts"]}
    return base | rows | {name: future.result() for name, future in futures.items()}


def optimum(attempts: int) -> list[float]:
    """The best possible expected accuracy on the test riddles: k attempts at the k likeliest candidates."""
    chances = [sorted(riddle.chances, reverse=True) for riddle, _ in draw_riddles("test")]
    return [statistics.mean(float(sum(likeliest[:k])) for likeliest in chances) for k in range(1, attempts + 1)]


def compare(args: argparse.Namespace) -> dict:
    """The summary of all runs. Three seeds are under way at a time, so that the two processes always have work."""
    args.out = args.out or Path("runs/reproduce" if args.preset == "miniature" else f"runs/reproduce-{args.preset}")
    with ThreadPoolExecutor(2) as processes, ThreadPoolExecutor(3) as seeds:
        results = list(seeds.map(lambda seed: run_seed(args, seed, processes), args.seeds))
    config = read(args.out / f"multi-attempt-{args.seeds[0]}" / "config.json")
    best = {"optimum": optimum(config["eval_attempts"])} if args.preset == "miniature" else {}
    return {"data": config["eval_data"]} | best | {"seeds": dict(zip(map(str, args.seeds), results))}


# -------------------- Means over seeds
def interval(values: list[float]) -> tuple[float, float]:
    """95% t interval of the mean over the seeds; of a single one the value itself."""
    middle = statistics.mean(values)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    half = T_95[len(values) - 1] * spread / math.sqrt(len(values))
    return middle - half, middle + half


def over_seeds(runs: list[list[dict]]) -> dict:
    """Rows of several evaluations at the same attempts -> their means, with 95% t intervals over the seeds; a single
    one keeps its intervals over the questions."""
    if len(runs) == 1:
        return {"by_attempts": runs[0]}
    rows = []
    for same in zip(*runs, strict=True):
        row = {key: mean([each[key] for each in same]) for key in same[0]} | {"attempts": same[0]["attempts"]}
        for middle, low, high in (("accuracy", "low", "high"), ("gain", "gain_low", "gain_high")):
            if middle in row:
                row[low], row[high] = interval([each[middle] for each in same])
        rows.append(row)
    return {"by_attempts": rows}


# -------------------- Table and figures
def draw(summary: dict, out: Path) -> None:
    """All files but the summary itself, and the table on the screen."""
    seeds, best = summary["seeds"], summary.get("optimum", ())
    runs = list(seeds.values())
    results = {name: over_seeds([rows[name] for rows in runs]) for name in runs[0]}
    results["base"] = {"by_attempts": runs[0]["base"]}  # which is the same for all seeds
    text = f"{table(results)}\n"
    if best:
        text += f"\nBest possible at 1, 2, ... attempts: {' / '.join(f'{100 * share:.1f}' for share in best)}\n"
    (out / "table.md").write_text(text)
    plot_accuracy(results, out / "accuracy.png", best)
    plot_accuracy({label: results[name] for name, label in README.items()}, out / "readme.png", best)
    over = "seeds (base: over questions)" if len(seeds) > 1 else "questions"
    print(f"\n{summary['data']}, mean of seeds {', '.join(seeds)}, % with 95% interval over {over}\n\n{text}")


# -------------------- The command line, shared with ablations.py
def command(parser: argparse.ArgumentParser, argv: list[str] | None, measure: Callable, draw: Callable) -> None:
    """Add the options, then either measure(args) -> summary or read one, and draw(summary, folder)."""
    parser.add_argument("--seeds", type=int, nargs="+", help="one run of each kind for each")
    parser.add_argument("--draw", nargs=2, type=Path, metavar=("SUMMARY", "OUT"), help="only draw again, into OUT")
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="options of train.py; comes last")
    args = parser.parse_args(argv)
    if len(set(args.seeds)) < len(args.seeds) or len(args.seeds) > len(T_95):
        parser.error(f"--seeds takes 1 to {len(T_95)} different numbers")
    if any(word.replace("-", "_").startswith("__eval_limit") for word in args.extra):
        parser.error("all arms and controls are asked all questions of --eval_data: leave out --eval_limit")
    try:
        summary = read(args.draw[0]) if args.draw else measure(args)
        out = args.draw[1] if args.draw else args.out
        out.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError, ValueError) as error:
        fail(error)
    if not args.draw:
        lines = (f"{json.dumps(part)}: {json.dumps(value)}" for part, value in summary.items())
        (out / "summary.json").write_text("{" + ",\n".join(lines) + "}\n")
    draw(summary, out)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Multi-attempt against single-attempt training.")
    parser.add_argument("--preset", choices=("miniature", "smollm2"), default="miniature", help="of train.py")
    parser.add_argument("--out", type=Path, help="none: runs/reproduce or runs/reproduce-PRESET")
    parser.set_defaults(seeds=[0])
    command(parser, argv, compare, draw)


if __name__ == "__main__":
    main()
