"""What runs and evaluations show: tables, accuracy against attempts, training curves."""

from collections.abc import Iterable, Sequence
from itertools import cycle
from math import ceil
from pathlib import Path

BENCHMARK_NAMES = {
    "aime24": "AIME 2024",
    "math500": "MATH-500",
    "amc23": "AMC 2023",
    "minerva": "Minerva Math",
    "olympiadbench": "OlympiadBench",
}

# Okabe-Ito: told apart with every kind of colour vision; the markers do the same in print.
COLOURS, MARKERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"), "osD^vPX"

# Mean accuracy (%) over its five benchmarks when 1, 2, ... 7 attempts are allowed, in Chung, Du and Fu, "Learning from
# Failures in Multi-Attempt Reinforcement Learning", arXiv 2503.04808. The first two numbers of each curve stand in the
# paper; the others are read off its plot, to about half a point.
PAPER_CURVES = {
    "paper, multi-attempt training": (45.6, 52.5, 51.7, 53.8, 51.6, 52.0, 52.4),
    "paper, single-attempt training": (42.3, 43.2, 44.3, 44.0, 43.8, 44.6, 42.9),
}


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def with_interval(row: dict) -> str:
    return f"{percent(row['accuracy'])} ({percent(row['low'])} - {percent(row['high'])})"


def gain_from(first: dict, row: dict) -> str:
    """With its own interval where the same questions were asked; independent samples have none."""
    gain = f"{100 * (row['accuracy'] - first['accuracy']):+.1f}"
    return f"{gain} ({percent(row['gain_low'])} - {percent(row['gain_high'])})" if "gain_low" in row else gain


def markdown(lines: list[list[str]]) -> str:
    """Rows of cells, the first one the heads -> a markdown table that reads as plain text."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join("| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in lines)


def table(results: dict[str, dict]) -> str:
    """Results of evaluate() by model name: a column a model, in %."""
    models = [result["by_attempts"] for result in results.values()]
    lines = [["attempts allowed", *results]]
    for rows in zip(*models, strict=True):
        lines.append([str(rows[0]["attempts"]), *map(with_interval, rows)])
    for i in sorted({1, len(models[0]) - 1}) if len(models[0]) > 1 else ():
        lines.append([f"gain from 1 to {models[0][i]['attempts']}", *(gain_from(rows[0], rows[i]) for rows in models)])
    at = f"at {models[0][-1]['attempts']}"
    for label, key in (("repeated answers", "repeated"), ("truncated", "truncated")):
        lines.append([f"{label} {at}", *(percent(rows[-1][key]) for rows in models)])
    lines.append([f"tokens a question {at}", *(f"{rows[-1]['tokens']:.0f}" for rows in models)])
    return markdown(lines)


def short(sets: Iterable[str]) -> list[str]:
    """Names of data sets for tables and plots: the paper's for its benchmarks; of a path only the file's name, unless
    two are called the same."""
    stems = [BENCHMARK_NAMES.get(name, Path(name).stem) for name in sets]
    return stems if len(set(stems)) == len(stems) else list(sets)


def benchmark_table(results: dict[str, dict]) -> str:
    """Results over several data sets: a row a model and number of attempts, a column a data set, then their means."""
    sets = list(next(iter(results.values()))["by_data"])
    lines = [["model", "attempts", *short(sets), "mean", "repeated", "truncated", "tokens"]]
    for name, result in results.items():
        for i, row in enumerate(result["by_attempts"]):
            cells = (percent(result["by_data"][data]["by_attempts"][i]["accuracy"]) for data in sets)
            means = percent(row["repeated"]), percent(row["truncated"]), f"{row['tokens']:.0f}"
            lines.append([name, str(row["attempts"]), *cells, with_interval(row), *means])
    return markdown(lines)


def paired_table(paired: dict[str, list[dict]]) -> str:
    """A comparison of two models: a row for each number of attempts, a column for all questions and each data set."""
    lines = [["attempts allowed", *short(paired)]]
    for rows in zip(*paired.values(), strict=True):
        cells = (f"{row['only_first']} : {row['only_second']}, p = {row['p']:.2g}" for row in rows)
        lines.append([str(rows[0]["attempts"]), *cells])
    return markdown(lines)


def tables(title: str, results: dict[str, dict], paired: dict[str, dict]) -> str:
    """All tables of an evaluation; `paired` holds the comparison of every two models."""
    if "by_data" in next(iter(results.values())):
        texts = [
            f"{title}, % solved; over the data sets the mean with 95% interval, % of repeated answers and of "
            "truncated dialogues, tokens a question",
            benchmark_table(results),
        ]
    else:
        texts = [f"{title}, % with 95% interval", table(results)]
    for pair, rows in paired.items():
        texts += [f"{pair}, questions that only the one or the other solved, exact McNemar test", paired_table(rows)]
    return "\n\n".join(texts)


def draw(axes, results: dict[str, dict], labelled: bool = True) -> None:
    """A line a model, its 95% interval as a band; dotted the controls, pass@k of independent samples."""
    # lines that coincide stay visible: each is a little wider than the one before it, and lies under it
    for i, ((name, result), colour, marker) in enumerate(zip(results.items(), cycle(COLOURS), cycle(MARKERS))):
        width, layer = 2 + 0.5 * i, 3 - i / 100
        allowed = [row["attempts"] for row in result["by_attempts"]]
        middle, low, high = ([100 * row[key] for row in result["by_attempts"]] for key in ("accuracy", "low", "high"))
        axes.fill_between(allowed, low, high, color=colour, alpha=0.15, linewidth=0)
        style = ":" if "pass@k" in name else "-"
        axes.plot(
            allowed,
            middle,
            style,
            color=colour,
            marker=marker,
            linewidth=width,
            markersize=4 + width,
            zorder=layer,
            label=name if labelled else None,
        )
    axes.set(xticks=allowed)
    axes.grid(axis="y", alpha=0.3)


def save_with_legend(figure, path: str | Path) -> None:
    """Save the figure, made higher for a legend below it: the lines would leave it no room."""
    names = [name for axes in figure.axes for name in axes.get_legend_handles_labels()[1]]
    width, needed = figure.get_figwidth(), 0.7 + 0.085 * max(map(len, names))  # inches, of the figure and the longest
    columns = 2 if 2 * needed < width else 1
    figure.set_figheight(figure.get_figheight() + 0.25 * ceil(len(names) / columns))
    size = 10 * min(1, width / needed)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=size)
    figure.savefig(path)


def plot_accuracy(results: dict[str, dict], path: str | Path, optimum: Sequence[float] = ()) -> None:
    """Accuracy against attempts allowed (the paper's main figure); dashed what is possible at best, where that is
    known."""
    from matplotlib.figure import Figure  # without pyplot: needs no display, leaves no state behind

    axes = Figure(figsize=(6.4, 4.25), dpi=160, layout="constrained").subplots()
    draw(axes, results)
    if optimum:
        allowed = [row["attempts"] for row in next(iter(results.values()))["by_attempts"]]
        best = [100 * share for share in optimum]
        axes.plot(allowed, best, color="0.5", linestyle="--", zorder=4, label="best possible")
    axes.set(xlabel="attempts allowed", ylabel="questions solved (%), 95% interval")
    save_with_legend(axes.figure, path)


def plot_benchmarks(results: dict[str, dict], path: str | Path, paper: dict[str, Sequence[float]]) -> None:
    """Large the mean over several data sets against attempts allowed, with the paper's curves; small each data set."""
    from matplotlib.figure import Figure

    sets = list(next(iter(results.values()))["by_data"])
    columns = (len(sets) + 1) // 2
    figure = Figure(figsize=(5.6 + 2.3 * columns, 4.7), dpi=160, layout="constrained")
    grid = figure.add_gridspec(2, columns + 1, width_ratios=[2.4] + [1] * columns)
    axes = figure.add_subplot(grid[:, 0])
    draw(axes, results)
    allowed = [row["attempts"] for row in next(iter(results.values()))["by_attempts"]]
    for (name, curve), grey, marker in zip(paper.items(), ("0.25", "0.6"), "^v"):
        curve = curve[: len(allowed)]
        # white markers for all, then the paper's own two numbers filled
        axes.plot(
            allowed[: len(curve)],
            curve,
            color=grey,
            marker=marker,
            markerfacecolor="white",
            linestyle="--",
            label=f"{name} (hollow: read off its plot)",
        )
        axes.plot(allowed[:2], curve[:2], color=grey, marker=marker, linestyle="none")
    axes.set(xlabel="attempts allowed", ylabel="accuracy (%), 95% interval", title=f"mean over {len(sets)} data sets")
    for i, (data, label) in enumerate(zip(sets, short(sets))):
        panel = figure.add_subplot(grid[i // columns, 1 + i % columns])
        draw(panel, {name: result["by_data"][data] for name, result in results.items()}, labelled=False)
        questions = next(iter(results.values()))["by_data"][data]["questions"]
        panel.set_title(f"{label}, {questions} questions", fontsize="medium")
    save_with_legend(figure, path)


def plot_training(metrics: list[dict], path: str | Path) -> None:
    """Training curves from the rows of metrics.jsonl: thin as measured, thick their running mean."""
    from matplotlib.figure import Figure

    panels = {
        "reward": {"reward": "reward"},
        "dialogues solved (%)": {"accuracy": "by the last attempt", "accuracy_first": "by the first attempt"},
        "repeated answers (%)": {"repeated": "repeated answers"},
    }
    figure = Figure(figsize=(9.6, 3), dpi=160, layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels)), panels.items()):
        for (key, label), colour in zip(curves.items(), COLOURS):
            rows = [row for row in metrics if row.get(key) is not None]
            steps, values = [row["step"] for row in rows], [row[key] * (100 if "%" in title else 1) for row in rows]
            reach = len(values) // 40  # the running mean looks so far to both sides
            windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
            mark = "." if len(values) < 20 else None  # a line through a single point would be invisible
            axes.plot(steps, [sum(w) / len(w) for w in windows], color=colour, marker=mark, linewidth=2, label=label)
        axes.set(xlabel="step", title=title)
        axes.grid(axis="y", alpha=0.3)
        if len(curves) > 1:
            axes.legend()
    figure.savefig(path)
