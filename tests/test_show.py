"""What people see: dialogues on the terminal and on a page, tables and figures, all of records written by hand."""

import re
import runpy
import sys
from types import SimpleNamespace

import pytest
from matplotlib.text import Text

from support import plots, show
from support.statistics import mean_over, wilson

FEEDBACK = "<|im_end|>\n<|im_start|>system\nTry again.<|im_end|>\n<|im_start|>assistant\n"


def dialogue(question, allowed, *texts, gold="7", truncated=False):
    """A record of evaluate.py: every attempt is the text that is given, and its answer what follows "is "."""
    text, attempts = f"{question}\n", []
    for i, attempt in enumerate(texts):
        text += FEEDBACK if i else ""
        answer = attempt.partition("is ")[2] or None
        record = {"text": attempt, "answer": answer, "correct": answer == gold, "truncated": False, "at": len(text)}
        attempts.append(record)
        text += attempt
    text += "<|im_end|>" if answer is None else ""
    same = {"question": question, "gold": gold, "allowed": allowed, "truncated": truncated, "attempts": attempts}
    return same | {"correct": answer == gold, "text": text}


FIRST, FIXED = dialogue("a", 3, "It is 7"), dialogue("b", 3, "It is 6", "It is 7")
REPEATED, MUTE = dialogue("c", 2, "It is 5", "It is 5"), dialogue("d", 2, "No idea", "No idea")
CUT = dialogue("e", 1, "It", truncated=True)
NASTY = dialogue("<script>alert(1)</script>", 1, "A\033[2J\x9b & <i> is &", gold="<b>")
DIALOGUES = [FIRST, FIXED, REPEATED, MUTE, CUT, FIXED]


def test_kinds():
    assert show.kinds(FIRST) == ["first"] and show.kinds(FIXED) == ["fixed"]
    assert show.kinds(REPEATED) == ["never", "repeated"] and show.kinds(CUT) == ["never", "truncated"]
    assert show.kinds(MUTE) == ["never"]  # without a box there is no answer to repeat
    cut_attempt = dialogue("f", 2, "It", "It is 7")
    cut_attempt["attempts"][0]["truncated"] = True
    assert show.kinds(cut_attempt) == ["fixed", "truncated"]
    assert ("wrong", "attempt 1 is wrong: no closed box, cut off by the token budget") in show.parts(cut_attempt)


def test_parts_are_the_whole_dialogue():
    for one in [*DIALOGUES, NASTY]:
        assert "".join(text for kind, text in show.parts(one) if kind not in ("right", "wrong")) == one["text"]
    assert show.parts(FIXED) == [
        ("prompt", "b\n"),
        ("attempt", "It is 6"),
        ("wrong", "attempt 1 is wrong: answer 6"),
        ("feedback", FEEDBACK),
        ("attempt", "It is 7"),
        ("right", "attempt 2 is correct: answer 7"),
    ]
    assert show.parts(MUTE)[-2] == ("attempt", "No idea<|im_end|>")  # no feedback follows the last attempt


def test_shown_in_colour_and_plain():
    plain = show.shown(DIALOGUES, 5, "fixed", colour=False)
    assert plain.count("=== ") == 2 and "=== 2 of 2: solved by a later attempt; the gold answer is 7\n" in plain
    assert "\033" not in plain and plain.endswith("\n--- attempt 2 is correct: answer 7")
    colour = show.shown(DIALOGUES, 5, "fixed", colour=True)
    assert "\033[1;31m--- attempt 1 is wrong: answer 6\033[0m" in colour and "\033[36mIt is 7\033[0m" in colour
    assert re.sub(r"\033\[[\d;]*m", "", colour) == plain
    assert show.shown(DIALOGUES, 2, "all", colour=False).count("=== ") == 2
    none = show.shown([FIRST], 2, "truncated", colour=False)
    assert none == "no dialogue is of the kind: an attempt cut off by a token budget"
    nasty = show.shown([NASTY], 1, "all", colour=False)
    assert "A\ufffd[2J\ufffd & <i>" in nasty and "\033" not in nasty and "\x9b" not in nasty


@pytest.mark.parametrize("terminal, no_color, wanted", [(True, "", True), (True, "1", False), (False, "", False)])
def test_colour_is_for_terminals(terminal, no_color, wanted, monkeypatch):
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: terminal))
    monkeypatch.setenv("NO_COLOR", no_color)
    assert show.wants_colour() == wanted


def test_page(monkeypatch):
    page = show.page({"base": DIALOGUES, "<trained>": [NASTY]})
    assert "<h2>&lt;trained&gt;</h2>" in page and "A\ufffd[2J\ufffd &amp; &lt;i&gt;" in page
    assert "alert(1)</script>" not in page and "&lt;script&gt;alert(1)" in page and "<code>&lt;b&gt;</code>" in page
    assert page.count("<script>") == 1 and not re.search(r"https?:|src=|@import|<link|\$", page)
    buttons = dict(re.findall(r'<button data-kind="(\w+)">[^<]*\((\d+)\)', page))
    assert buttons == {"all": "7", "first": "1", "fixed": "2", "never": "4", "repeated": "1", "truncated": "1"}
    assert page.count('<details data-kinds="all ') == 7 and page.count('<details data-kinds="all fixed">') == 2
    assert page.count("<details") == page.count("</details>") and page.count("<pre") == page.count("</pre>")
    monkeypatch.setattr(show, "PER_KIND", 1)
    page = show.page({"base": DIALOGUES})
    kinds = re.findall(r'<details data-kinds="all ([\w ]+)">', page)
    assert kinds == ["first", "fixed", "never repeated", "never truncated"]
    assert "<p>4 of 6, at most the first 1 of each kind and model</p>" in page


def result(*accuracies, n=1000):
    rows = []
    for k, accuracy in enumerate(accuracies, 1):
        row = {"attempts": k, "questions": n, "accuracy": accuracy, "repeated": None if k == 1 else 0.98 - accuracy}
        row |= zip(("low", "high"), wilson(round(accuracy * n), n))
        rows.append(row | {"truncated": 0.004, "attempts_used": 1.5, "tokens": 31.4})
    return {"questions": n, "by_attempts": rows}


def test_table():
    trained = result(0.417, 0.654)
    trained["by_attempts"][1] |= {"gain": 0.237, "gain_low": -0.012, "gain_high": 0.313}
    assert (
        plots.table({"base": result(0.406, 0.419), "trained": trained})
        == """\
| attempts allowed       | base               | trained             |
| ---------------------- | ------------------ | ------------------- |
| 1                      | 40.6 (37.6 - 43.7) | 41.7 (38.7 - 44.8)  |
| 2                      | 41.9 (38.9 - 45.0) | 65.4 (62.4 - 68.3)  |
| gain from 1 to 2       | +1.3               | +23.7 (-1.2 - 31.3) |
| repeated answers at 2  | 56.1               | 32.6                |
| truncated at 2         | 0.4                | 0.4                 |
| tokens a question at 2 | 31                 | 31                  |"""
    )
    gains = [line.split() for line in plots.table({"base": result(0.5, 0.5, 0.5, 0.4)}).splitlines() if "gain" in line]
    assert [(words[5], words[7]) for words in gains] == [("2", "+0.0"), ("4", "-10.0")]
    single = plots.table({"base": result(0.5)})
    assert "gain" not in single and re.search(r"repeated answers at 1 +\| - ", single)


def test_tables_of_several_data_sets_and_models():
    one, two = result(0.5, n=10), result(0.1, n=10)
    by_data = {"base": {"a": one, "my/b.jsonl": two}, "trained": {"a": two, "my/b.jsonl": one}}
    results = {name: mean_over(sets) for name, sets in by_data.items()}
    paired = {"base : trained": {"all": [{"attempts": 1, "only_first": 2, "only_second": 8, "p": 0.109375}]}}
    assert (
        plots.tables("two sets", results, paired)
        == """\
two sets, % with 95% interval

| model   | attempts | a    | b    | mean               | repeated answers | truncated | tokens a question |
| ------- | -------- | ---- | ---- | ------------------ | ---------------- | --------- | ----------------- |
| base    | 1        | 50.0 | 10.0 | 30.0 (16.2 - 50.1) | -                | 0.4       | 31                |
| trained | 1        | 10.0 | 50.0 | 30.0 (16.2 - 50.1) | -                | 0.4       | 31                |

base : trained, questions that only the one or the other solved, exact McNemar test

| attempts allowed | all             |
| ---------------- | --------------- |
| 1                | 2 : 8, p = 0.11 |"""
    )
    assert plots.tables("one set", {"base": one}, {}) == f"one set, % with 95% interval\n\n{plots.table({'base': one})}"


def test_short_names_of_data_sets():
    assert plots.short(["math500", "amc23", "mine/a.jsonl"]) == ["MATH-500", "AMC 2023", "a"]
    assert plots.short(["mine/a.jsonl", "b.jsonl", "yours/a.jsonl"]) == ["mine/a.jsonl", "b.jsonl", "yours/a.jsonl"]


@pytest.fixture
def plotted(monkeypatch, tmp_path):
    """plotted(plot, data): the figure and the panels that this call of plots.py draws, with its file checked."""
    made, new_panels = [], plots.new_panels
    monkeypatch.setattr(plots, "new_panels", lambda *args: made.append(new_panels(*args)) or made[-1])

    def run(plot, data, **options):
        plot(data, tmp_path / "a.png", **options)
        assert (tmp_path / "a.png").stat().st_size > 10_000  # an empty frame is smaller
        return made[-1]

    return run


@pytest.mark.parametrize("name", ["{}", "runs/reproduce/multi-attempt-{}/model, pass@k of 20 independent samples" * 2])
def test_names_are_beside_their_lines_and_do_not_overlap(name, plotted):
    models = {name.replace("{}", str(i)): result(0.47, last) for i, last in enumerate((0.5, 0.5, 0.5, 0.96))}
    figure, panels = plotted(plots.plot_accuracy, models, optimum=[0.5, 1.0])
    (axes,) = panels.values()
    assert [line.get_ydata()[-1] for line in axes.lines] == pytest.approx([50, 50, 50, 96, 100])
    assert [text.get_text() for text in axes.texts] == ["best possible", *(list(models)[i] for i in (3, 0, 1, 2))]
    frame, boxes = axes.get_window_extent(), [Text.get_window_extent(text) for text in axes.texts]
    assert all(above.y0 >= below.y1 for above, below in zip(boxes, boxes[1:]))
    assert all(frame.x1 < box.x0 + 1 and box.x1 <= figure.bbox.width and 0 <= box.y0 for box in boxes)
    assert frame.width > 4 * figure.dpi and len(axes.collections) == 4  # bands


def test_plot_of_several_data_sets(plotted):
    shares = {"base": (0.4, 0.42), "base, pass@k": (0.4, 0.6)}
    results = {name: mean_over({data: result(*two) for data in plots.BENCHMARK_NAMES}) for name, two in shares.items()}
    _, panels = plotted(plots.plot_accuracy, results, paper=plots.PAPER_CURVES)
    titles = [f"{name}, 1000 questions" for name in plots.BENCHMARK_NAMES.values()]
    assert [axes.get_title() for axes in panels.values()] == ["mean over 5 data sets", *titles]
    ours, paper = [40, 42, 40, 60], [45.6, 52.5, 42.3, 43.2]  # as far as we have attempts
    for title, curves in (("mean over 5 data sets", ours + paper), ("aime24", ours)):
        assert [y for line in panels[title].lines for y in line.get_ydata()] == pytest.approx(curves)
        assert [line.get_linestyle() for line in panels[title].lines[:2]] == ["-", ":"]


def test_plot_of_training(plotted):
    metrics = [{"step": i, "reward": i / 80, "accuracy": 0.5, "accuracy_first": None} for i in range(1, 81)]
    _, panels = plotted(plots.plot_training, metrics + [{"step": 81}])  # a key may be None, or missing
    dots, line = panels["reward"].lines
    assert list(dots.get_ydata()) == [row["reward"] for row in metrics]
    assert line.get_ydata()[[0, 9]] == pytest.approx([2 / 80, 10 / 80])  # before the first step there is nothing
    assert set(panels["dialogues solved (%)"].lines[1].get_ydata()) == {50}
    plotted(plots.plot_training, [])


def test_matplotlib_is_imported_only_to_plot(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it fails from here on
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    runpy.run_path(plots.__file__)
    with pytest.raises(ImportError):
        plots.plot_training([], "nowhere.png")
