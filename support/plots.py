"""Tables and figures of runs and evaluations: accuracy against attempts allowed, training curves."""

from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean

# The colours of Okabe and Ito are told apart with every kind of colour vision; markers tell the curves apart in print.
COLOURS, MARKERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"), "osD^vPX"

# The five benchmarks of the paper, arXiv 2503.04808: the name of the data set here, and what the paper calls it.
BENCHMARK_NAMES = {
    "aime24": "AIME 2024",
    "math500": "MATH-500",
    "amc23": "AMC 2023",
    "minerva": "Minerva Math",
    "olympiadbench": "OlympiadBench",
}
# The paper's mean accuracy (%) over the five, with 1, 2, ... 7 attempts allowed. Its plot is read to half a point.
PAPER_CURVES = {
    "paper, multi-attempt (from 3 on read off its plot)": (45.6, 52.5, 51.7, 53.8, 51.6, 52.0, 52.4),
    "paper, single-attempt (from 3 on read off its plot)": (42.3, 43.2, 44.3, 44.0, 43.8, 44.6, 42.9),
}


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def accuracy_cell(row: dict) -> str:
    return f"{percent(row['accuracy'])} ({percent(row['low'])} - {percent(row['high'])})"


def gain_cell(first: dict, row: dict) -> str:
    """Independent samples (pass@k) have no interval of their gain."""
    gain = f"{100 * (row['accuracy'] - first['accuracy']):+.1f}"
    return f"{gain} ({percent(row['gain_low'])} - {percent(row['gain_high'])})" if "gain_low" in row else gain


def other_cells(row: dict) -> list[str]:
    return [percent(row["repeated"]), percent(row["truncated"]), f"{row['tokens']:.0f}"]


def markdown(lines: list[Sequence[str]]) -> str:
    """Lines of cells, the heads first -> a markdown table that reads as plain text."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join("| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in lines)


def table(results: dict[str, dict]) -> str:
    """Results of one data set by model name, in %: a column for each model."""
    columns = []
    for name, result in results.items():
        first, *later = rows = result["by_attempts"]
        gains = later[:1] + later[1:][-1:]  # to 2 attempts and to the most; all models have the same
        cells = [*map(accuracy_cell, rows), *(gain_cell(first, row) for row in gains), *other_cells(rows[-1])]
        columns.append([name, *cells])
    others = [f"{what} at {rows[-1]['attempts']}" for what in ("repeated answers", "truncated", "tokens a question")]
    heads = [*(str(row["attempts"]) for row in rows), *(f"gain from 1 to {row['attempts']}" for row in gains), *others]
    return markdown(list(zip(["attempts allowed", *heads], *columns, strict=True)))


def short(sets: Iterable[str]) -> list[str]:
    """Data sets as tables and figures call them: a benchmark as in the paper, a path by its file if that is unique."""
    names = [BENCHMARK_NAMES.get(name, Path(name).stem) for name in sets]
    return names if len(set(names)) == len(names) else list(sets)


def benchmark_table(results: dict[str, dict]) -> str:
    """Results of several data sets by model name, in %: a row for each model and number of attempts."""
    sets = list(next(iter(results.values()))["by_data"])
    lines = [["model", "attempts", *short(sets), "mean", "repeated answers", "truncated", "tokens a question"]]
    for name, result in results.items():
        for i, row in enumerate(result["by_attempts"]):
            cells = (percent(result["by_data"][data]["by_attempts"][i]["accuracy"]) for data in sets)
            lines.append([name, str(row["attempts"]), *cells, accuracy_cell(row), *other_cells(row)])
    return markdown(lines)


def tables(title: str, results: dict[str, dict], paired: dict[str, dict]) -> str:
    """All tables of an evaluation; `paired` holds the comparison of every two models, rows by data set."""
    several = "by_data" in next(iter(results.values()))
    texts = [f"{title}, % with 95% interval", benchmark_table(results) if several else table(results)]
    for pair, by_data in paired.items():
        lines = [["attempts allowed", *short(by_data)]]
        for rows in zip(*by_data.values(), strict=True):
            cells = (f"{row['only_first']} : {row['only_second']}, p = {row['p']:.2g}" for row in rows)
            lines.append([str(rows[0]["attempts"]), *cells])
        texts += [f"{pair}, questions that only the one or the other solved, exact McNemar test", markdown(lines)]
    return "\n\n".join(texts)


def new_panels(rows: list[list[str]], width: float, height: float, ratios: Sequence[float] | None = None):
    """A figure in inches, and its panels by the names in `rows`, in which "." leaves a place empty."""
    from matplotlib.figure import Figure  # imported late, as it is slow; without pyplot, it needs no display

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    panels = figure.subplot_mosaic(rows, width_ratios=ratios)
    for axes in panels.values():
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def draw(axes, results: dict[str, dict]) -> None:
    """A line for each model, its 95% interval as a band. The controls, pass@k of independent samples, are dotted."""
    for (name, result), colour, marker in zip(results.items(), cycle(COLOURS), cycle(MARKERS)):
        rows = result["by_attempts"]
        allowed = [row["attempts"] for row in rows]
        middle, low, high = ([100 * row[key] for row in rows] for key in ("accuracy", "low", "high"))
        axes.fill_between(allowed, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(allowed, middle, ":" if "pass@k" in name else "-", color=colour, marker=marker, lw=2, label=name)
    axes.set_xticks(allowed)


def name_lines(axes) -> None:
    """Write the name of each line beside its right end, from the top down, lower where two names would overlap."""
    (_, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    height, place = (top - bottom) / 18, float("inf")  # of a line of text, and where the name above is
    for line in sorted(axes.lines, key=lambda line: -line.get_ydata()[-1]):
        end = line.get_xydata()[-1]
        place = min(end[1], place - height)
        pointer = {"arrowstyle": "-", "color": line.get_color(), "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 6}
        axes.annotate(line.get_label(), end, (right, place), va="center", arrowprops=pointer)


def plot_accuracy(results: dict, path: str | Path, optimum: Sequence[float] = (), paper: dict = {}) -> None:
    """Accuracy against attempts allowed, as in the paper's main figure; of several data sets, their mean and each one.
    Broad and grey: `optimum`, the shares that are possible at best, and `paper`, its curves (%) by name."""
    sets = next(iter(results.values())).get("by_data", {})
    names, half, title = list(sets), (len(sets) + 1) // 2, f"mean over {len(sets)} data sets" if sets else ""
    rows = [[title, *names[:half]], [title, *names[half:], *["."] * (len(names) % 2)]]
    references = paper | ({"best possible": [100 * share for share in optimum]} if optimum else {})
    width = 6 + 0.08 * max(map(len, [*results, *references])) + 2.6 * half
    figure, panels = new_panels(rows, width, 4.5, [3.4] + [1] * half)
    axes = panels[title]
    draw(axes, results)
    for name, curve in references.items():
        curve = curve[: len(axes.get_xticks())]
        axes.plot(range(1, len(curve) + 1), curve, color="0.75", linewidth=7, zorder=1.5, label=name)
    axes.set(xlabel="attempts allowed", ylabel="questions solved (%), 95% interval", title=title, ylim=(0, None))
    name_lines(axes)
    for data, label in zip(sets, short(sets)):
        draw(panels[data], {name: result["by_data"][data] for name, result in results.items()})
        panels[data].set_title(f"{label}, {sets[data]['questions']} questions", fontsize="medium")
    figure.savefig(path)


def plot_training(metrics: list[dict], path: str | Path) -> None:
    """Training curves from the rows of metrics.jsonl: a dot for each step, a line for the running mean."""
    solved = {"accuracy": "by the last attempt", "accuracy_first": "by the first attempt"}
    curves = {"reward": {"reward": ""}, "dialogues solved (%)": solved, "repeated answers (%)": {"repeated": ""}}
    figure, panels = new_panels([list(curves)], 9.6, 3)
    for title, axes in panels.items():
        for (key, label), colour in zip(curves[title].items(), COLOURS):
            rows, scale = [row for row in metrics if row.get(key) is not None], 100 if "%" in title else 1
            steps, values = [row["step"] for row in rows], [scale * row[key] for row in rows]
            reach = len(values) // 40  # the running mean takes in this many steps on both sides
            means = [fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]
            axes.plot(steps, values, ".", color=colour, alpha=0.3, markersize=3)
            axes.plot(steps, means, color=colour, linewidth=2, label=label)
        axes.set(xlabel="step", title=title)
    panels["dialogues solved (%)"].legend(frameon=False)
    figure.savefig(path)
