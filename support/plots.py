"""Tables and figures of runs and evaluations: accuracy against attempts allowed, training curves."""

from argparse import ArgumentParser
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean

from support.cli import fail
from support.files import read_json

# The colours of Okabe and Ito are told apart with every kind of colour vision; markers tell the curves apart in print.
COLOURS, MARKERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"), "osD^vPX"
STYLES = [style for style in ("-", "--", ":", "-.") for _ in COLOURS]  # of lines without markers
# The paper's mean accuracy (%) over its five benchmarks with 1, 2, ... attempts (from 3 on read to half a point).
PAPER_CURVES = {
    "paper, multi-attempt (from 3 on read off its plot)": (45.6, 52.5, 51.7, 53.8, 51.6, 52.0, 52.4),
    "paper, single-attempt (from 3 on read off its plot)": (42.3, 43.2, 44.3, 44.0, 43.8, 44.6, 42.9),
}


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:z.1f}"  # z: 0.0, and never -0.0


def interval(low: float, high: float) -> str:
    return f"({percent(low)} to {percent(high)})"


def markdown(lines: list[Sequence[str]]) -> str:
    """Lines of cells, the heads first -> a markdown table that reads as plain text."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join("| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in lines)


def table(results: dict[str, dict]) -> str:
    """Results of one data set by model name, in %: a column for each model."""
    columns = []
    for name, result in results.items():
        rows, cells = result["by_attempts"], {"attempts allowed": name}
        first, last = rows[0], rows[-1]
        for row in rows:
            cells[str(row["attempts"])] = f"{percent(row['accuracy'])} {interval(row['low'], row['high'])}"
        for row in rows[1:2] + rows[2:][-1:]:
            ends = " " + interval(row["gain_low"], row["gain_high"]) if "gain_low" in row else ""
            gain = f"{100 * (row['accuracy'] - first['accuracy']):+z.1f}"
            cells[f"gain from 1 to {row['attempts']}"] = gain + ends
        cells[f"repeated answers at {last['attempts']}"] = percent(last["repeated"])
        cells[f"truncated at {last['attempts']}"] = percent(last["truncated"])
        cells[f"tokens a question at {last['attempts']}"] = "-" if last["tokens"] is None else f"{last['tokens']:.0f}"
        columns.append(cells)
    return markdown([[head, *(cells[head] for cells in columns)] for head in columns[0]])


def tables(title: str, results: dict[str, dict], paired: dict[str, dict]) -> str:
    """All tables of an evaluation: the mean over several data sets, each data set by itself, and the comparison of
    every two models (`paired`: rows by data set)."""
    texts, sets = [], next(iter(results.values())).get("by_data", {})
    by_title = {f"mean of {title}" if sets else title: results}
    by_title |= {data: {name: each["by_data"][data] for name, each in results.items()} for data in sets}
    for heading, models in by_title.items():
        questions = next(iter(models.values()))["questions"]
        texts.append(f"{heading}: {questions} questions, % with 95% interval\n\n{table(models)}")
    for pair, by_data in paired.items():
        lines = [["attempts allowed", *by_data]]
        for rows in zip(*by_data.values(), strict=True):
            cells = (f"{row['only_first']} : {row['only_second']}, p = {row['p']:.2g}" for row in rows)
            lines.append([str(rows[0]["attempts"]), *cells])
        texts.append(f"{pair}, questions that only one of them solved, exact McNemar test\n\n{markdown(lines)}")
    return "\n\n".join(texts)


def new_panels(names: list[str], width: float, height: float):
    """A figure of this size in inches with a panel for each name, three in a row."""
    from matplotlib.figure import Figure  # imported late, as it is slow; without pyplot, it needs no display

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    names = names + ["."] * (-len(names) % 3 if len(names) > 3 else 0)
    panels = figure.subplot_mosaic([names[i : i + 3] for i in range(0, len(names), 3)])
    for axes in panels.values():
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def plot_accuracy(results: dict, path: str | Path, references: dict[str, Sequence[float]] = {}) -> None:
    """Accuracy against attempts allowed: a line for each model, its 95% interval as a band. The controls, pass@k of
    independent samples, are dotted. Broad and grey: `references`, curves in % by name."""
    longest = max(map(len, "\n".join([*results, *references]).splitlines()))
    figure, panels = new_panels([""], 6 + 0.08 * longest, 4.5)
    axes = panels[""]
    for (name, result), colour, marker in zip(results.items(), cycle(COLOURS), cycle(MARKERS)):
        rows = result["by_attempts"]
        allowed = [row["attempts"] for row in rows]
        middle, low, high = ([100 * row[key] for row in rows] for key in ("accuracy", "low", "high"))
        axes.fill_between(allowed, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(allowed, middle, ":" if "pass@k" in name else "-", color=colour, marker=marker, lw=2, label=name)
    for name, curve in references.items():
        curve = curve[: len(allowed)]
        axes.plot(range(1, len(curve) + 1), curve, color="0.75", linewidth=7, zorder=1.5, label=name)
    axes.set(xlabel="attempts allowed", xticks=allowed, ylabel="questions solved (%), 95% interval", ylim=(0, None))
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path)


METRICS = "reward accuracy accuracy_first repeated kl entropy clipfrac explained_variance grad_norm".split()


def plot_training(runs: dict[str, list[dict]], path: str | Path) -> None:
    """Curves of METRICS (docs/metrics.md) by name of the run: dots for steps, lines for running means."""
    validated = any("validation_accuracy" in row for rows in runs.values() for row in rows)
    figure, panels = new_panels(METRICS + ["validation_accuracy"] * validated, 12, 8)
    for key, axes in panels.items():
        for (name, rows), colour, style in zip(runs.items(), cycle(COLOURS), cycle(STYLES)):
            rows = [row for row in rows if row.get(key) is not None]
            steps, values = [row["step"] for row in rows], [row[key] for row in rows]
            reach = len(values) // 40  # the running mean includes this many steps on both sides
            means = [fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]
            axes.plot(steps, values, ".", color=colour, alpha=0.3, markersize=3)
            axes.plot(steps, means, style, color=colour, linewidth=2, label=name.replace("$", r"\$"))
        axes.set(xlabel="step", title=key)
    if len(runs) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", frameon=False)  # of one panel
    figure.savefig(path, format=Path(path).suffix[1:] or "png")  # else matplotlib writes `path`.png


def main(argv: list[str] | None = None) -> None:
    """Overlay the curves of several runs; print the options in which they differ, and what else they were made with."""
    parser = ArgumentParser(description=main.__doc__)
    parser.add_argument("runs", nargs="+", help="folders that train.py wrote")
    parser.add_argument("--out", default="runs/training.png", help="the figure (default: runs/training.png)")
    args = parser.parse_args(argv)
    try:
        configs = [read_json(Path(run, "config.json")) for run in args.runs]
        plot_training({run: read_json(Path(run, "metrics.jsonl"), lines=True) for run in args.runs}, args.out)
    except (OSError, ValueError) as error:
        fail(error)
    options = [{f"made with {key}": x for key, x in each.pop("made_with").items()} | each for each in configs]
    rows = [[name, *(str(each.get(name)) for each in options)] for name in options[0] if name != "out"]
    print(markdown([["option", *args.runs], *(row for row in rows if len(set(row[1:])) > 1)]))
    print(f"\nthe curves are in {args.out}")


if __name__ == "__main__":
    main()
