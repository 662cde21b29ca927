"""How fast does each variant learn? The paper's recipe and variants with one or two other options, on riddles.

    python -m bench.ablations --seeds 0 1 2    # make ablations

In the end nearly every variant solves most riddles, so they differ in how fast they learn. Every second step, the model
answers the validation riddles greedily with five attempts allowed. The tables say how much a variant trains on until it
solves 90%, and what it solves at the end. Finished runs are not repeated. --out gets summary.json, table.md, plots.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np

from bench.reproduce import command, run, run_folder
from support.files import read_json
from support.plots import COLOURS, markdown, new_panels
from support.statistics import mean, t_interval

REFERENCE = "the paper"
VARIANTS = {
    REFERENCE: "",
    "discount per attempt": "--attempt_discount 0.8",
    "discount, repeat penalty (UFO)": "--attempt_discount 0.8 --repeat_penalty 0.25",
    "penalty for wrong attempts": "--wrong_reward -0.25",
    "N fixed at 5": "--min_attempts 5",
    "feedback without number": "--feedback uncounted",
    "groups, no critic": "--group_size 8",
    "calibrated groups (CAL-GRPO)": "--group_size 8 --calibrated",
    "Clip-Higher, no KL": "--clip_high 0.28 --kl_coef 0",
    "means over dialogues": "--loss_mean dialogues",
}
TASKS = {"miniature": ("Number riddles", 32), "cue": ("Riddles with a cue", 90)}  # by preset: title and steps
EVERY_RUN = "--eval_every 2 --eval_data none --save_every 30 --keep_checkpoints 1"
TARGET = 0.9  # accuracy at 5 attempts: the best possible is 1


# -------------------- Runs
def measure(args: argparse.Namespace) -> dict[str, dict[str, dict]]:
    """{preset: {variant: {seed: learning curve}}} of all runs; with --finished, only of those that are finished."""
    folders, jobs = {}, []
    # the seeds one after another: an interrupted measurement has all variants of the first
    for seed, preset, name in product(args.seeds, TASKS, VARIANTS):
        folders[preset, name, str(seed)] = folder = run_folder(args.out / preset, name, seed)
        options = f"--preset {preset} --steps {TASKS[preset][1]} {EVERY_RUN}".split() + args.extra
        jobs.append(("train.py", [*options, "--seed", str(seed), *VARIANTS[name].split()], folder, "model"))
    if not args.finished:
        with ThreadPoolExecutor(args.processes) as pool:
            list(pool.map(run, *zip(*jobs)))
    summary = {preset: {name: {} for name in VARIANTS} for preset in TASKS}
    for (preset, name, seed), folder in folders.items():
        if (folder / "model").exists():  # it is written after the last step
            summary[preset][name][seed] = learning_curve(folder)
    if not all(by_variant[REFERENCE] for by_variant in summary.values()):
        raise ValueError(f"no run of '{REFERENCE}' in {args.out} is finished for {' and '.join(TASKS)}")
    return summary


def learning_curve(folder: Path) -> list[dict[str, float]]:
    """For each evaluation: dialogues and tokens sampled so far, and the shares of `train.validate`."""
    dialogues, tokens, points = read_json(folder / "config.json")["dialogues"], 0, []
    for row in read_json(folder / "metrics.jsonl", lines=True):
        tokens += row["tokens_sampled"] * dialogues  # a mean over the dialogues
        if "validation_accuracy" in row:
            point = {"dialogues": row["step"] * dialogues, "tokens": round(tokens)}
            points.append(point | {key: row[f"validation_{key}"] for key in ("accuracy", "accuracy_first", "repeated")})
    return points


# -------------------- Tables and plots
def with_interval(values: list[float], form: str, low: float = 0, high: float = np.inf) -> str:
    """Mean and 95% t interval over the seeds, within what is possible."""
    if len(values) < 2:
        return f"{values[0]:{form}}" if values else "-"
    low, high = np.clip(t_interval(values), low, high)
    return f"{mean(values):{form}} ({low:{form}} to {high:{form}})"


def table(by_variant: dict[str, dict[str, dict]]) -> str:
    """For one kind of riddle, a row for each variant. Differences from the paper's recipe are paired by seed."""
    rows, reference = [], {}
    for name, curves in by_variant.items():  # the paper's recipe comes first
        if not curves:
            continue
        solved = {seed: [point for point in curve if point["accuracy"] >= TARGET] for seed, curve in curves.items()}
        points = {seed: then[0] for seed, then in solved.items() if then}
        thousands = {seed: point["dialogues"] / 1e3 for seed, point in points.items()}
        reference = thousands if name == REFERENCE else reference
        saved = [thousands[seed] - reference[seed] for seed in thousands if seed in reference]
        row = {"variant": name, "option": f"`{VARIANTS[name]}`" if VARIANTS[name] else ""}
        row["thousand dialogues"] = with_interval([*thousands.values()], "z.1f")
        if len(points) < len(curves):
            row["thousand dialogues"] += f", {len(points)} of {len(curves)} seeds"
        row["difference from the paper"] = "" if name == REFERENCE else with_interval(saved, "+z.1f", low=-np.inf)
        row["million tokens"] = with_interval([point["tokens"] / 1e6 for point in points.values()], ".2f")
        row["repeated then"] = with_interval([100 * (x["repeated"] or 0) for x in points.values()], "z.1f", high=100)
        for key, head in ("accuracy", "solved at the end"), ("accuracy_first", "by the first attempt"):
            row[head] = with_interval([100 * curve[-1][key] for curve in curves.values()], "z.1f", high=100)
        rows.append(row)
    return markdown([[*rows[0]], *([*row.values()] for row in rows)])


def plot(title: str, by_variant: dict[str, dict[str, dict]], path: Path) -> None:
    """A panel for each variant: the curve of each seed and their mean, over the grey ones of the paper's recipe."""
    names = [name for name, curves in by_variant.items() if curves and name != REFERENCE] or [REFERENCE]
    figure, panels = new_panels(names, 10, 0.6 + 2.2 * np.ceil(len(names) / 3))
    runs = [curve for curves in by_variant.values() for curve in curves.values()]
    lowest = 100 * min(point["accuracy"] for curve in runs for point in curve)
    for name, axes in panels.items():
        for shown, colour in ((REFERENCE, "0.6"), (name, COLOURS[0])):
            curves = by_variant[shown].values()
            thousands = np.array([[point["dialogues"] / 1000 for point in curve] for curve in curves])
            solved = np.array([[100 * point["accuracy"] for point in curve] for curve in curves])
            axes.plot(thousands.T, solved.T, color=colour, lw=0.6)
            axes.plot(thousands[0], solved.mean(axis=0), color=colour, lw=2)
        axes.axhline(100 * TARGET, color="0.8", lw=0.8, ls=":")
        axes.set(title=name, ylim=(lowest - 2, 102))
    figure.suptitle(f"{title}: validation riddles solved with five attempts (%). Grey: the paper's recipe")
    figure.supxlabel("thousand dialogues trained on")
    figure.savefig(path)


def draw(summary: dict[str, dict[str, dict]], out: Path) -> str:
    """Draws the plots. Returns the tables."""
    texts = []
    for preset, by_variant in summary.items():
        title, seeds = TASKS[preset][0], ", ".join(by_variant[REFERENCE])
        texts.append(f"{title}: until {100 * TARGET:.0f}% are solved with five attempts. Seeds {seeds}.")
        texts.append(table(by_variant))
        plot(title, by_variant, out / f"{preset}.png")
    return "\n\n".join(texts) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How fast variants of the paper's recipe learn.")
    command("ablations", parser, argv, measure, draw)


if __name__ == "__main__":
    main()
