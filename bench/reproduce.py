"""The paper's comparison in miniature: multi-attempt training against single-attempt training, over several seeds.

    python bench/reproduce.py --seeds 0 1 2 3 4 --out runs/reproduce        # make reproduce SEEDS="0 1 2 3 4"

All arms start from the same base model, train on the same questions with the same settings, and answer the same test
questions greedily:

    multi-attempt      1 to 5 attempts allowed in a dialogue
    single-attempt     the paper's baseline: as many steps and dialogues, always one attempt
    ... same tokens    the baseline trained for more steps, until it has seen as many tokens as the multi-attempt arm

Two runs of one thread each go side by side. A finished run is not repeated, so an interrupted call can be given again.
Writes runs/reproduce/summary.json (accuracy of each arm and seed at each number of attempts), accuracy.png, table.md.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from data.miniature import draw_riddles  # noqa: E402
from evaluate import plot_accuracy, save_json, table  # noqa: E402

ARMS = ("multi-attempt", "single-attempt", "single-attempt, same tokens")
T_95 = (0, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, by degrees of freedom


def run(folder: Path, options: list[str]) -> None:
    """One training run in a process of its own, unless it is there already; one that was cut off is resumed."""
    if (folder / "evaluation.json").exists():
        return
    resume = ["--resume"] if (folder / "config.json").exists() else ["--preset", "miniature", *options]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".log"), "w") as log:
        done = subprocess.run(
            [sys.executable, "train.py", "--out", str(folder), *resume],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
    if done.returncode:
        raise RuntimeError(f"the run in {folder} failed: see {folder.with_suffix('.log')}")
    print(f"{folder} is done", flush=True)


def tokens_seen(folder: Path) -> float:
    """Mean tokens of a dialogue, summed over the steps: all that the update of every step went through."""
    return sum(json.loads(line)["tokens_total"] for line in open(folder / "metrics.jsonl"))


def arms_of_seed(out: Path, seed: int, extra: list[str], pool: ThreadPoolExecutor) -> dict[str, Path]:
    """Start the three runs of a seed; the last one needs to know how many tokens the others saw."""
    folders = {arm: out / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}" for arm in ARMS}
    options = ["--seed", str(seed), *extra]
    first = [
        pool.submit(run, folders["multi-attempt"], options),
        pool.submit(run, folders["single-attempt"], [*options, "--max_attempts", "1"]),
    ]
    for future in first:
        future.result()
    single = folders["single-attempt"]
    steps = json.loads((single / "config.json").read_text())["steps"]
    steps = round(steps * tokens_seen(folders["multi-attempt"]) / tokens_seen(single))
    pool.submit(run, folders[ARMS[2]], [*options, "--max_attempts", "1", "--steps", str(steps)]).result()
    return folders


def over_seeds(runs: list[list[dict]]) -> dict:
    """Rows of several evaluations at the same attempts -> their means, with a 95% t interval of the accuracy over the
    seeds; a single one keeps its interval over the questions."""
    rows = []
    for same in zip(*runs, strict=True):
        accuracies = [row["accuracy"] for row in same]
        mean = statistics.mean(accuracies)
        low, high = same[0]["low"], same[0]["high"]
        if len(same) > 1:
            half = T_95[len(same) - 1] * statistics.stdev(accuracies) / math.sqrt(len(same))
            low, high = mean - half, mean + half
        means = {key: statistics.mean(row[key] or 0 for row in same) for key in ("repeated", "truncated", "tokens")}
        rows.append({"attempts": same[0]["attempts"], "accuracy": mean, "low": low, "high": high} | means)
    return {"by_attempts": rows}


def optimum(attempts: int) -> list[float]:
    """The best possible accuracy on the test questions: min(k, c) / c with c candidates."""
    counts = [len(riddle.candidates) for riddle, _ in draw_riddles("test")]
    return [statistics.mean(min(k, c) / c for c in counts) for k in range(1, attempts + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Multi-attempt against single-attempt training on the miniature.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="further options of train.py, for all arms")
    args = parser.parse_args()
    if len(set(args.seeds)) < len(args.seeds) or len(args.seeds) > len(T_95):
        parser.error(f"--seeds takes 1 to {len(T_95)} different numbers")
    # Three seeds are under way at a time, so that the two processes always have work.
    with ThreadPoolExecutor(2) as processes, ThreadPoolExecutor(3) as seeds:
        folders = list(seeds.map(lambda seed: arms_of_seed(args.out, seed, args.extra, processes), args.seeds))
    evaluations = {
        arm: [json.loads((paths[arm] / "evaluation.json").read_text()) for paths in folders] for arm in ARMS
    }
    base = evaluations["multi-attempt"][0]["base"]["by_attempts"]
    results = {"base": {"by_attempts": base}}
    summary = {"base": {"accuracy": [row["accuracy"] for row in base], "questions": base[0]["questions"]}}
    for arm, runs in evaluations.items():
        rows = [evaluation["trained"]["by_attempts"] for evaluation in runs]
        results[arm] = over_seeds(rows)
        summary[arm] = {
            str(seed): {"accuracy": [row["accuracy"] for row in run], "questions": run[0]["questions"]}
            for seed, run in zip(args.seeds, rows, strict=True)
        }
    summary["optimum"] = optimum(len(base))
    save_json(summary, args.out / "summary.json")
    best = " / ".join(f"{100 * share:.1f}" for share in summary["optimum"])
    text = f"{table(results)}\n\nBest possible at 1, 2, ... attempts: {best}\n"
    (args.out / "table.md").write_text(text)
    plot_accuracy(results, args.out / "accuracy.png")
    over = "seeds (base: over questions)" if len(args.seeds) > 1 else "questions"
    print(f"\nriddles-test, mean of seeds {args.seeds}, % with 95% interval over {over}\n\n{text}")


if __name__ == "__main__":
    main()
