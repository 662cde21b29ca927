"""The paper's comparison, small: multi-attempt training against single-attempt training, over several seeds.

    python bench/reproduce.py --seeds 0 1 2 3 4         # make reproduce SEEDS="0 1 2 3 4": the miniature
    python bench/reproduce.py --preset smollm2          # make reproduce PRESET=smollm2: without the longest arm

All arms start from the same base model, train on the same questions with the same settings, and answer the same test
questions greedily:

    multi-attempt      1 to 5 attempts allowed in a dialogue (smollm2: 1 to 3)
    single-attempt     the paper's baseline: as many steps and dialogues, always one attempt
    ... same tokens    (miniature) the baseline trained for more steps, until it has seen as many tokens as the
                       multi-attempt arm

Controls, none of which the paper has:

    base                                           before any training
    base, pass@k of 20 samples                     k answers that know nothing of each other, at temperature 1
    single-attempt, pass@k of 20 samples           the same after training, which has made its answers more alike
    multi-attempt, uninformative feedback          as long as the real one, without a word on the answer: is it read?

Two processes of one thread each go side by side. What is finished is not repeated, so an interrupted call can be given
again, and a finished one only draws again. Writes into --out:

    summary.json                 accuracy of each arm, control and seed at each number of attempts
    training.json                reward, first-attempt accuracy and repeated answers of each step, by arm and seed
    table.md, accuracy.png, training.png
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from data.miniature import chances, draw_riddles  # noqa: E402
from support.cli import fail, save_json  # noqa: E402
from support.plots import COLOURS, plot_accuracy, table  # noqa: E402

ARMS = ("multi-attempt", "single-attempt")
SAME_TOKENS = "single-attempt, same tokens"
SAMPLES = 20  # of a question, for pass@k
PASS_AT_K = ["--samples", str(SAMPLES)], ", pass@k of independent samples"
CONTROLS = {  # name: (arm whose run it belongs to, options of evaluate.py, suffix of the model's name in its results)
    f"base, pass@k of {SAMPLES} samples": ("single-attempt", *PASS_AT_K),
    f"single-attempt, pass@k of {SAMPLES} samples": ("single-attempt", *PASS_AT_K),
    "multi-attempt, uninformative feedback": ("multi-attempt", ["--feedback", "uninformative"], ""),
}
CURVES = {"reward": "reward", "accuracy_first": "solved by the first attempt (%)", "repeated": "repeated answers (%)"}
T_95 = (0, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, by degrees of freedom


def process(command: list[str], log: Path) -> None:
    """A python process of one thread, with all it prints in a file. RuntimeError when it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file:
        done = subprocess.run(
            [sys.executable, *command], env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=file, stderr=file
        )
    if done.returncode:
        raise RuntimeError(f"{log.with_suffix('')} failed: see {log}")
    print(f"{log.with_suffix('')} is done", flush=True)


def run(folder: Path, options: list[str]) -> None:
    """One training run, unless it is there already; one that was cut off is resumed."""
    if not (folder / "evaluation.json").exists():
        resume = ["--resume"] if (folder / "config.json").exists() else options
        process(["train.py", "--out", str(folder), *resume], folder.with_name(f"{folder.name}.log"))


def place(arm: Path, name: str) -> tuple[Path, str]:
    """The folder of a control in the folder of its run, and the model that it asks."""
    folder = name.removeprefix(f"{CONTROLS[name][0]}, ").replace(", ", "-").replace(" ", "-")
    base = json.loads((arm / "config.json").read_text())["model"]
    return arm / folder, base if name.startswith("base") else str(arm / "model")


def control(arm: Path, name: str) -> None:
    """One control of a finished run, unless it is there already, on the run's test questions."""
    out, model = place(arm, name)
    if not (out / "results.json").exists():
        config = json.loads((arm / "config.json").read_text())
        options = ["--attempts", str(config["eval_attempts"]), "--data", config["eval_data"]]
        for option in ("seed", "slots", "max_new_tokens", "max_attempt_tokens", "chat_template", "device", "dtype"):
            options += [f"--{option}", str(config[option])]
        command = ["evaluate.py", "--model", model, "--out", str(out), *options, *CONTROLS[name][1]]
        process(command, out.with_name(f"{out.name}.log"))


def control_rows(arm: Path, name: str) -> list[dict]:
    """What `control` found, a row for each number of attempts."""
    out, model = place(arm, name)
    return json.loads((out / "results.json").read_text())["models"][f"{model}{CONTROLS[name][2]}"]["by_attempts"]


def steps_of(folder: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tokens_seen(folder: Path) -> float:
    """Mean tokens of a dialogue, summed over the steps: all that the update of every step went through."""
    return sum(row["tokens_total"] for row in steps_of(folder))


def arms_of_seed(args: argparse.Namespace, arms: Sequence[str], seed: int, pool: Executor) -> dict[str, Path]:
    """The runs of a seed and their controls; the arm of the same tokens needs to know how many the others saw."""
    folders = {arm: args.out / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}" for arm in arms}
    options = ["--preset", args.preset, "--seed", str(seed), *args.extra]
    first = [
        pool.submit(run, folders["multi-attempt"], options),
        pool.submit(run, folders["single-attempt"], [*options, "--max_attempts", "1"]),
    ]
    for future in first:
        future.result()
    last = []
    if SAME_TOKENS in arms:
        single = folders["single-attempt"]
        steps = json.loads((single / "config.json").read_text())["steps"]
        steps = round(steps * tokens_seen(folders["multi-attempt"]) / tokens_seen(single))
        last.append(pool.submit(run, folders[SAME_TOKENS], [*options, "--max_attempts", "1", "--steps", str(steps)]))
    last += [pool.submit(control, folders[arm], name) for name, (arm, *_) in CONTROLS.items()]
    for future in last:
        future.result()
    return folders


def interval(values: list[float]) -> tuple[float, float]:
    """95% t interval of the mean over the seeds; of a single one the value itself."""
    mean = statistics.mean(values)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    half = T_95[len(values) - 1] * spread / math.sqrt(len(values))
    return mean - half, mean + half


def mean_of(values: list[float | None]) -> float | None:
    """Mean of those that are there."""
    there = [value for value in values if value is not None]
    return statistics.mean(there) if there else None


def over_seeds(runs: list[list[dict]]) -> dict:
    """Rows of several evaluations at the same attempts -> their means, with a 95% t interval of the accuracy over the
    seeds; a single one keeps its interval over the questions."""
    rows = []
    for same in zip(*runs, strict=True):
        accuracies = [row["accuracy"] for row in same]
        low, high = interval(accuracies) if len(same) > 1 else (same[0]["low"], same[0]["high"])
        means = {key: mean_of([row[key] for row in same]) for key in ("repeated", "truncated", "tokens")}
        if "gain" in same[0]:
            one = same[0]["gain_low"], same[0]["gain_high"]
            means |= zip(("gain_low", "gain_high"), interval([row["gain"] for row in same]) if len(same) > 1 else one)
        rows.append(
            {
                "attempts": same[0]["attempts"],
                "accuracy": statistics.mean(accuracies),
                "low": low,
                "high": high,
                **means,
            }
        )
    return {"by_attempts": rows}


def optimum(attempts: int) -> list[float]:
    """The best possible expected accuracy on the test questions: k attempts at the k likeliest candidates."""
    counts = [len(riddle.candidates) for riddle, _ in draw_riddles("test")]
    return [statistics.mean(float(chances(c)[:k].sum()) for c in counts) for k in range(1, attempts + 1)]


def curves_of(folder: Path) -> dict[str, list[float | None]]:
    """What a run's training curves are drawn from: a value a step, to 4 digits."""
    rows = steps_of(folder)
    return {key: [None if row[key] is None else round(row[key], 4) for row in rows] for key in CURVES}


def smoothed(values: list[float | None], reach: int) -> list[float | None]:
    """Running mean that looks so far to both sides."""
    return [mean_of(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def plot_curves(training: dict[str, dict[str, dict]], path: Path) -> None:
    """Training curves of the arms: running mean over 5 steps, mean over seeds, 95% t interval over seeds as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.2), dpi=160, layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(CURVES)), CURVES.items()):
        # the colour of an arm in accuracy.png, where the base model has the first
        for (arm, seeds), colour in zip(training.items(), COLOURS[1:]):
            scale = 100 if "%" in title else 1
            by_step = zip(*(smoothed(curves[key], reach=2) for curves in seeds.values()))
            points = [(i, [scale * v for v in values]) for i, values in enumerate(by_step, 1) if None not in values]
            if points:  # a single attempt repeats nothing
                steps, values = zip(*points)
                low, high = zip(*map(interval, values))
                axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
                axes.plot(steps, list(map(statistics.mean, values)), color=colour, linewidth=1.5, label=arm)
        axes.set(xlabel="step", title=title)
        axes.grid(axis="y", alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path)


def arguments(description: str, out: str | None, seeds: list[int]) -> argparse.ArgumentParser:
    """The options that reproduce.py and ablations.py share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--json", type=Path, help="write the figures of summary.json to this file as well")
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="options of train.py; comes last")
    return parser


def parsed(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    args = parser.parse_args(argv)
    if len(set(args.seeds)) < len(args.seeds) or len(args.seeds) > len(T_95):
        parser.error(f"--seeds takes 1 to {len(T_95)} different numbers")
    if any(word.replace("-", "_").startswith("__eval_limit") for word in args.extra):
        parser.error("all arms and controls are asked all questions of --eval_data: leave out --eval_limit")
    return args


def write(results: dict, summary: dict, training: dict, data: str, args: argparse.Namespace) -> None:
    """All files, and the table on the screen."""
    for path in (args.out / "summary.json", *([args.json] if args.json else [])):
        save_json(summary, path)
    (args.out / "training.json").write_text(json.dumps(training) + "\n")
    text, best = f"{table(results)}\n", summary.get("optimum", ())
    if best:
        text += f"\nBest possible at 1, 2, ... attempts: {' / '.join(f'{100 * share:.1f}' for share in best)}\n"
    (args.out / "table.md").write_text(text)
    plot_accuracy(results, args.out / "accuracy.png", best)
    plot_curves(training, args.out / "training.png")
    over = "seeds (base: over questions)" if len(args.seeds) > 1 else "questions"
    print(f"\n{data}, mean of seeds {args.seeds}, % with 95% interval over {over}\n\n{text}")


def main(argv: list[str] | None = None) -> None:
    parser = arguments("Multi-attempt against single-attempt training.", None, [0])
    parser.add_argument("--preset", choices=("miniature", "smollm2"), default="miniature", help="of train.py")
    args = parsed(parser, argv)
    args.out = args.out or Path("runs/reproduce" if args.preset == "miniature" else f"runs/reproduce-{args.preset}")
    arms = (*ARMS, SAME_TOKENS) if args.preset == "miniature" else ARMS
    # Three seeds are under way at a time, so that the two processes always have work.
    try:
        with ThreadPoolExecutor(2) as processes, ThreadPoolExecutor(3) as seeds:
            folders = list(seeds.map(lambda seed: arms_of_seed(args, arms, seed, processes), args.seeds))
    except RuntimeError as error:
        fail(error)
    evaluations = {arm: [json.loads((paths[arm] / "evaluation.json").read_text()) for paths in folders] for arm in arms}
    rows = {arm: [run["trained"]["by_attempts"] for run in runs] for arm, runs in evaluations.items()}
    rows |= {name: [control_rows(paths[arm], name) for paths in folders] for name, (arm, *_) in CONTROLS.items()}
    base = evaluations["multi-attempt"][0]["base"]["by_attempts"]
    summary = {"base": {"accuracy": [row["accuracy"] for row in base], "questions": base[0]["questions"]}}
    for name, runs in rows.items():
        summary[name] = {
            str(seed): {"accuracy": [row["accuracy"] for row in run], "questions": run[0]["questions"]}
            for seed, run in zip(args.seeds, runs, strict=True)
        }
    if args.preset == "miniature":
        summary["optimum"] = optimum(len(base))
    training = {
        arm: {str(seed): curves_of(paths[arm]) for seed, paths in zip(args.seeds, folders, strict=True)} for arm in ARMS
    }
    results = {"base": {"by_attempts": base}} | {name: over_seeds(runs) for name, runs in rows.items()}
    data = json.loads((folders[0]["multi-attempt"] / "config.json").read_text())["eval_data"]
    write(results, summary, training, data, args)


if __name__ == "__main__":
    main()
