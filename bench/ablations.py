"""How fast does each variant learn? The paper's recipe beside others, each one or two options away from it, on riddles.

    python -m bench.ablations --seeds 0 1 2               # make ablations
    python -m bench.ablations --seeds 0 1 2 --finished    # no runs: tables and plots of those that are finished
    python -m bench.ablations --draw SUMMARY.json OUT     # the same from a summary

In the end nearly every variant solves the riddles, so what tells them apart is the way there. Every second step the
validation riddles are answered greedily with five attempts allowed; the best possible is 100%. The tables say how much
a variant trains on until it solves 90%, and what it solves at the end. Steps, dialogues and learning rates are the same
for all; they were chosen for the paper's recipe. Processes of one thread run side by side; what is finished is not
repeated. Written into --out: summary.json (the learning curves), table.md, and a plot for each kind of riddle.
"""

import argparse
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, product
from math import inf
from pathlib import Path

import numpy as np

from bench.reproduce import command, process, read, slug
from support.cli import fail
from support.plots import COLOURS, markdown, new_panels, percent, read_metrics
from support.statistics import mean, t_interval

REFERENCE = "the paper"
VARIANTS = {
    REFERENCE: "",
    "later success is worth less": "--attempt_discount 0.8",
    "and repeats cost (UFO)": "--attempt_discount 0.8 --repeat_penalty 0.25",
    "every wrong attempt costs": "--wrong_reward -0.25",
    "N fixed at 5": "--min_attempts 5",
    "feedback without number": "--feedback uncounted",
    "groups, no critic": "--group_size 8",
    "calibrated groups (CAL-GRPO)": "--group_size 8 --calibrated",
    "Clip-Higher, no KL": "--clip_high 0.28 --kl_coef 0",
    "means over dialogues": "--loss_mean dialogues",
}
TASKS = {"miniature": ("Number riddles", 32), "cue": ("Riddles with a cue", 90)}  # by preset: title and steps
RUN = "--eval_every 2 --eval_data none --save_every 30 --keep_checkpoints 1"
TARGET = 0.9  # accuracy at 5 attempts: the best possible is 1


# -------------------- Runs
def measure(args: argparse.Namespace) -> dict[str, dict[str, dict]]:
    """{preset: {variant: {seed: learning curve}}} of all runs; with --finished of those that are there."""
    jobs = {}
    # the seeds one after another: an interrupted measurement has all variants of the first
    for seed, preset, (name, options) in product(args.seeds, TASKS, VARIANTS.items()):
        words = f"--preset {preset} --seed {seed} --steps {TASKS[preset][1]} {RUN}".split()
        folder = args.out / preset / f"{slug(name)}-{seed}"
        jobs[preset, name, str(seed)] = folder, [*words, *args.extra, *options.split()]
    if not args.finished:
        with ThreadPoolExecutor(args.processes) as processes:
            list(processes.map(run, *zip(*jobs.values())))
    summary = {preset: {name: {} for name in VARIANTS} for preset in TASKS}
    for (preset, name, seed), (folder, _) in jobs.items():
        if (folder / "model").exists():  # it is written after the last step
            summary[preset][name][seed] = curve(folder)
    if not all(by_name[REFERENCE] for by_name in summary.values()):
        raise ValueError(f"no run of '{REFERENCE}' in {args.out} is finished for {' and '.join(TASKS)}")
    return summary


def run(folder: Path, options: list[str]) -> None:
    """One training run, unless it is there already; one that was cut off is resumed."""
    if not (folder / "model").exists():
        process(["train.py", *(["--resume"] if (folder / "config.json").exists() else options)], folder)


def curve(folder: Path) -> dict[str, list]:
    """What a run knows at each of its evaluations: dialogues and tokens that the model has sampled so far, and the
    shares of `train.validate`."""
    rows, size, points = read_metrics(folder), read(folder / "config.json")["dialogues"], []
    for row, tokens in zip(rows, accumulate(row["tokens_sampled"] for row in rows)):
        if "validation_accuracy" in row:
            shares = (row[f"validation_{key}"] for key in ("accuracy", "accuracy_first", "repeated"))
            points.append((row["step"] * size, round(tokens * size), *shares))
    return dict(zip(("dialogues", "tokens", "accuracy", "first", "repeated"), zip(*points)))


# -------------------- Tables and plots
def when_reached(curve: dict[str, list]) -> dict[str, float] | None:
    """The first point of a curve at which the accuracy is the target's or more; None when it never is."""
    points = (dict(zip(curve, values)) for values in zip(*curve.values()))
    return next((point for point in points if point["accuracy"] >= TARGET), None)


def cell(values: Iterable[float], form: str, least: float = 0.0, most: float = inf) -> str:
    """Mean and 95% t interval over the seeds, within what is possible."""
    if not (values := list(values)):
        return "-"
    middle, *ends = (form.format(x) for x in (mean(values), *np.clip(t_interval(values), least, most)))
    return middle + (" ({} to {})".format(*ends) if len(values) > 1 else "")


def rows_of(by_name: dict[str, dict[str, dict]]) -> list[list[str]]:
    """The table of one kind of riddle, a row for each variant. A difference is paired by seed."""
    heads = "variant|option|thousand dialogues|less the paper|million tokens|repeated then|solved at the end"
    lines, reference = [[*heads.split("|"), "by the first attempt"]], {}
    for name, curves in by_name.items():  # the paper's recipe comes first
        if not curves:
            continue
        points = {seed: point for seed, curve in curves.items() if (point := when_reached(curve))}
        thousands = {seed: point["dialogues"] / 1e3 for seed, point in points.items()}
        reference = thousands if name == REFERENCE else reference
        apart = [thousands[seed] - reference[seed] for seed in thousands if seed in reference]
        missing = f", {len(points)} of {len(curves)} seeds" if len(points) < len(curves) else ""
        line = [name, f"`{VARIANTS[name]}`" if VARIANTS[name] else "", cell(thousands.values(), "{:z.1f}") + missing]
        line += ["" if name == REFERENCE else cell(apart, "{:+z.1f}", -inf)]
        line += [cell((point["tokens"] / 1e6 for point in points.values()), "{:.2f}")]
        line += [percent(mean(point["repeated"] for point in points.values()))]
        for key in ("accuracy", "first"):
            line += [cell((100 * curve[key][-1] for curve in curves.values()), "{:z.1f}", most=100)]
        lines.append(line)
    return lines


def plot(title: str, by_name: dict[str, dict[str, dict]], path: Path) -> None:
    """A panel for each variant: the curve of each seed and their mean, over the grey ones of the paper's recipe."""
    names = [name for name, curves in by_name.items() if curves and name != REFERENCE] or [REFERENCE]
    names += ["."] * (-len(names) % 3)  # panels that stay empty
    figure, panels = new_panels(np.reshape(names, (-1, 3)).tolist(), 10, 0.6 + 2.2 * len(names) / 3)
    for name, axes in panels.items():
        for shown, colour in ((REFERENCE, "0.6"), (name, COLOURS[0])):
            curves = by_name[shown].values()
            thousands = np.array([curve["dialogues"] for curve in curves]) / 1000
            solved = 100 * np.array([curve["accuracy"] for curve in curves])
            axes.plot(thousands.T, solved.T, color=colour, lw=0.6)
            axes.plot(thousands[0], solved.mean(axis=0), color=colour, lw=2)
        axes.axhline(100 * TARGET, color="0.8", lw=0.8, ls=":")
        axes.set(title=name, ylim=(None, 102))
    figure.suptitle(f"{title}: validation riddles solved with five attempts (%)")
    figure.supxlabel("thousand dialogues trained on")
    figure.savefig(path)


def draw(summary: dict[str, dict[str, dict]], out: Path) -> None:
    """All files but the summary itself, and the tables on the screen as well."""
    if not summary.keys() <= TASKS.keys():
        fail(f"the summary is not one of learning curves for {' and '.join(TASKS)}")
    texts = []
    for preset, by_name in summary.items():
        seeds = ", ".join(dict.fromkeys(seed for curves in by_name.values() for seed in curves))
        about = f"{TASKS[preset][0]}: until {100 * TARGET:.0f}% are solved with five attempts. Seeds {seeds}."
        texts += [about, markdown(rows_of(by_name))]
        plot(TASKS[preset][0], by_name, out / f"{preset}.png")
    (out / "table.md").write_text("\n\n".join(texts) + "\n")
    print("\n" + "\n\n".join(texts))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How fast variants of the paper's recipe learn.")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--finished", action="store_true", help="no runs: tables and plots of those that are finished")
    parser.set_defaults(seeds=[0, 1, 2])
    command(parser, argv, measure, draw)


if __name__ == "__main__":
    main()
