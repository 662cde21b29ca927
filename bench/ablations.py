"""How fast does each variant learn? The paper's recipe beside others, each one or two options away from it, on riddles.

    python -m bench.ablations --seeds 0 1 2               # make ablations
    python -m bench.ablations --seeds 0 1 2 --finished    # no runs: tables and plots of those that are finished
    python -m bench.ablations --draw SUMMARY.json OUT     # the same from a summary

In the end nearly every variant solves the riddles, so what tells them apart is the way there. Every second step the
validation riddles are answered greedily with five attempts allowed. A riddle has at most five candidates, so the best
possible is 100%. The tables say how many dialogues, and sampled tokens, a variant trains on until its accuracy is
within 10 points of that, what share of its answers is repeated then, and what it solves at the end of the run. On
riddles with a cue the first attempt can get better too. All runs of a kind have the same steps, dialogues and learning
rates, which were chosen for the paper's recipe.

Processes of one thread run side by side; what is finished is not repeated. Written into --out: summary.json (the
learning curves, enough to draw the rest), table.md, and a plot for each kind of riddle.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from math import inf
from pathlib import Path
from statistics import fmean

from bench.reproduce import command, process, read, slug
from support.cli import fail
from support.plots import COLOURS, markdown, new_panels, percent
from support.seeds import t_interval
from support.statistics import mean

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
TASKS = {"miniature": "Number riddles", "cue": "Riddles with a cue"}  # by preset
STEPS = {"miniature": "32", "cue": "90"}
RUN = "--eval_every 2 --eval_data none --save_every 30 --keep_checkpoints 1"
TARGET = 0.9  # accuracy at 5 attempts: the best possible is 1


# -------------------- Runs
def measure(args: argparse.Namespace) -> dict[str, dict[str, dict]]:
    """{preset: {variant: {seed: learning curve}}} of all runs; with --finished of those that are there."""
    jobs = {}
    for seed in args.seeds:  # the seeds one after another: an interrupted measurement has all variants of the first
        for preset in TASKS:
            for name, options in VARIANTS.items():
                folder = args.out / preset / f"{slug(name)}-{seed}"
                words = ["--preset", preset, "--seed", str(seed), "--steps", STEPS[preset], *RUN.split()]
                jobs[preset, name, str(seed)] = folder, [*words, *args.extra, *options.split()]
    if not args.finished:
        with ThreadPoolExecutor(args.processes) as processes:
            list(processes.map(run, *zip(*jobs.values())))
    summary = {preset: {name: {} for name in VARIANTS} for preset in TASKS}
    for (preset, name, seed), (folder, _) in jobs.items():
        if is_finished(folder):
            summary[preset][name][seed] = curve(folder)
    if not all(by_name[REFERENCE] for by_name in summary.values()):
        raise ValueError(f"no run of '{REFERENCE}' in {args.out} is finished for {' and '.join(TASKS)}")
    return summary


def is_finished(folder: Path) -> bool:
    return (folder / "model").exists()  # it is written after the last step


def run(folder: Path, options: list[str]) -> None:
    """One training run, unless it is there already; one that was cut off is resumed."""
    if not is_finished(folder):
        process(["train.py", *(["--resume"] if (folder / "config.json").exists() else options)], folder)


def curve(folder: Path) -> dict[str, list]:
    """What a run knows at each of its evaluations: dialogues and tokens that the model has sampled so far, and the
    shares of `train.validate`."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    size, points = read(folder / "config.json")["dialogues"], []
    for row, tokens in zip(rows, accumulate(row["tokens_sampled"] for row in rows)):
        if "validation_accuracy" in row:
            shares = (row[f"validation_{key}"] for key in ("accuracy", "accuracy_first", "repeated"))
            points.append((row["step"] * size, round(tokens * size), *shares))
    return dict(zip(("dialogues", "tokens", "accuracy", "first", "repeated"), zip(*points)))


# -------------------- Tables and plots
def when_reached(curve: dict[str, list]) -> dict[str, float] | None:
    """The first point of a curve at which the accuracy is the target's or more; None when it never is."""
    at = next((i for i, accuracy in enumerate(curve["accuracy"]) if accuracy >= TARGET), None)
    return None if at is None else {key: values[at] for key, values in curve.items()}


def cell(values: list[float], form: str, least: float = 0.0, most: float = inf) -> str:
    """Mean and 95% t interval over the seeds, within what is possible."""
    if not values:
        return "-"
    ends = [form.format(min(max(x, least), most)) for x in t_interval(values)]
    return form.format(fmean(values)) + (" ({} - {})".format(*ends) if len(values) > 1 else "")


def rows_of(by_name: dict[str, dict[str, dict]]) -> list[list[str]]:
    """The table of one kind of riddle, a row for each variant. A difference is paired by seed."""
    heads = "variant|option|thousand dialogues|less the paper|million tokens|repeated then|solved at the end"
    lines, reference = [[*heads.split("|"), "by the first attempt"]], by_name[REFERENCE]
    for name, curves in by_name.items():
        if not curves:
            continue
        points = {seed: when_reached(curve) for seed, curve in curves.items()}
        there = {seed: point for seed, point in points.items() if point}
        missing = f", {len(there)} of {len(curves)} seeds" if len(there) < len(curves) else ""
        pairs = [(point, when_reached(reference[seed])) for seed, point in there.items() if seed in reference]
        apart = [(one["dialogues"] - other["dialogues"]) / 1e3 for one, other in pairs if other]
        repeated = percent(mean(point["repeated"] for point in there.values()))
        ends = [[100 * curve[key][-1] for curve in curves.values()] for key in ("accuracy", "first")]
        lines.append([name, f"`{VARIANTS[name]}`" if VARIANTS[name] else ""])
        lines[-1] += [cell([point["dialogues"] / 1e3 for point in there.values()], "{:.1f}") + missing]
        lines[-1] += ["" if name == REFERENCE else cell(apart, "{:+.1f}", -inf)]
        lines[-1] += [cell([point["tokens"] / 1e6 for point in there.values()], "{:.2f}"), repeated]
        lines[-1] += [cell(end, "{:.1f}", most=100) for end in ends]
    return lines


def plot(title: str, by_name: dict[str, dict[str, dict]], path: Path) -> None:
    """A panel for each variant: its learning curves, one for each seed and their mean, over the grey ones of the
    paper's recipe."""
    names = [name for name, curves in by_name.items() if curves and name != REFERENCE] or [REFERENCE]
    rows = [names[i : i + 3] for i in range(0, len(names), 3)]
    rows[-1] += ["."] * (len(rows[0]) - len(rows[-1]))
    figure, panels = new_panels(rows, 10, 0.6 + 2.2 * len(rows))
    for name, axes in panels.items():
        for shown, colour in ((REFERENCE, "0.6"), (name, COLOURS[0])):
            curves = list(by_name.get(shown, {}).values())
            for each in curves:
                axes.plot(
                    [x / 1e3 for x in each["dialogues"]], [100 * y for y in each["accuracy"]], color=colour, lw=0.6
                )
            if curves:
                means = [100 * fmean(same) for same in zip(*(each["accuracy"] for each in curves))]
                axes.plot([x / 1e3 for x in curves[0]["dialogues"]][: len(means)], means, color=colour, lw=2)
        axes.axhline(100 * TARGET, color="0.8", lw=0.8, ls=":")
        axes.set_title(name, fontsize="medium")
        axes.set(ylim=(None, 102))
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
        about = f"{TASKS[preset]}: until {100 * TARGET:.0f}% are solved with five attempts. Seeds {seeds}."
        texts += [about, markdown(rows_of(by_name))]
        plot(TASKS[preset], by_name, out / f"{preset}.png")
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
