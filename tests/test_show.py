"""What people see: dialogues on the terminal and on a page, tables and figures, all of records written by hand."""

import json
import re
from pathlib import Path

import pytest

from support import plots, show
from support.files import save_json
from support.statistics import mean_over, wilson

FEEDBACK = "<|im_end|>\n<|im_start|>system\nTry again.<|im_end|>\n<|im_start|>assistant\n"


def dialogue(question, allowed, *texts, gold="7", truncated=False):
    """A record of evaluate.py: every attempt is the text that is given, and its answer what follows "is "."""
    text, attempts = f"{question}\n", []
    for i, attempt in enumerate(texts):
        text += FEEDBACK if i else ""
        answer = attempt.partition("is ")[2] or None
        record = dict(text=attempt, answer=answer, correct=answer == gold, truncated=False, text_start=len(text))
        text += attempt + ("<|im_end|>" if answer is None and i + 1 == len(texts) else "")
        attempts.append(record | {"text_end": len(text)})
    same = {"question": question, "gold": gold, "allowed": allowed, "truncated": truncated, "attempts": attempts}
    same["reward"] = 1 if answer == gold else -0.5
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
    cut = dialogue("f", 2, "It", "It is 7")
    cut["attempts"][0]["truncated"] = True
    assert show.kinds(cut) == ["fixed", "truncated"]
    assert show.parts(cut)[2] == ("wrong", "attempt 1 is wrong: no closed box, cut off by the token budget")


def test_parts_are_the_whole_dialogue():
    for one in [*DIALOGUES, NASTY]:
        assert "".join(text for kind, text in show.parts(one) if kind not in ("correct", "wrong")) == one["text"]
    kinds, texts = zip(*show.parts(FIXED))
    assert kinds == ("prompt", "attempt", "wrong", "feedback", "attempt", "correct") and texts[:2] == ("b\n", "It is 6")
    assert texts[2:] == ("attempt 1 is wrong: answer 6", FEEDBACK, "It is 7", "attempt 2 is correct: answer 7")
    assert show.parts(MUTE)[-2] == ("attempt", "No idea<|im_end|>")  # no feedback follows the last attempt


def test_shown():
    plain = show.shown(DIALOGUES, 5, "fixed")
    assert plain.count("=== solved by a later attempt; gold answer 7, reward +1.00\nb\nIt is 6\n--- attempt 1 is ") == 2
    assert plain.endswith("\n--- attempt 2 is correct: answer 7")
    assert show.shown(DIALOGUES, 2, "all").count("=== ") == 2
    assert show.shown([FIRST], 2, "truncated") == "no dialogue is of the kind: cut off by a token budget"
    nasty = show.shown([NASTY], 1, "all")
    assert "A\ufffd[2J\ufffd & <i>" in nasty and "\033" not in nasty and "\x9b" not in nasty


def drawn(models: dict) -> dict:
    """What the page draws. It is data, not code: there is no tag in it."""
    page = show.page(models)
    (data,) = re.findall(r'<script type="application/json" id="data">([^<]*)</script>', page)
    assert page.count("<script") == 2 and not re.search(r"https?:|src=|@import|<link", page)
    return json.loads(data)


def test_page(monkeypatch):
    """The first model answers the questions a, b, c, d, e, b. The second one solves only the first of them."""
    others = [dialogue(one["question"], 1, f"It is {7 - i}") for i, one in enumerate(DIALOGUES)]
    data = drawn({"base": DIALOGUES, "ours": others})
    assert data["kinds"] == show.KINDS and data["count"] == len(data["questions"]) == 6
    question = data["questions"][1]
    assert (question["question"], question["gold"]) == ("b", "7")
    first, second = question["models"]
    assert [each["name"] for each in question["models"]] == ["base", "ours"]
    assert (first["answer"], first["used"], first["correct"], first["kinds"]) == ("answer 7", "2 of 3", True, ["fixed"])
    assert (second["answer"], second["used"], second["correct"]) == ("answer 6", "1 of 1", False)
    assert [tuple(part) for part in first["parts"]] == [(kind, text.strip("\n")) for kind, text in show.parts(FIXED)]
    monkeypatch.setattr(show, "MOST", 2)
    data = drawn({"base": DIALOGUES})
    assert len(data["questions"]) == 2 and data["count"] == 6


def test_a_page_runs_nothing_that_a_model_wrote():
    (question,) = drawn({"<trained>": [NASTY]})["questions"]
    assert question["question"] == "<script>alert(1)</script>" and question["models"][0]["name"] == "<trained>"


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
    expected = """\
| attempts allowed       | base                | trained              |
| ---------------------- | ------------------- | -------------------- |
| 1                      | 40.6 (37.6 to 43.7) | 41.7 (38.7 to 44.8)  |
| 2                      | 41.9 (38.9 to 45.0) | 65.4 (62.4 to 68.3)  |
| gain from 1 to 2       | +1.3                | +23.7 (-1.2 to 31.3) |
| repeated answers at 2  | 56.1                | 32.6                 |
| truncated at 2         | 0.4                 | 0.4                  |
| tokens a question at 2 | 31                  | 31                   |"""
    assert plots.table({"base": result(0.406, 0.419), "trained": trained}) == expected
    gains = [line.split() for line in plots.table({"base": result(0.5, 0.5, 0.5, 0.4)}).splitlines() if "gain" in line]
    assert [(words[5], words[7]) for words in gains] == [("2", "+0.0"), ("4", "-10.0")]
    assert re.search(r"repeated answers at 1 +\| - ", plots.table({"base": result(0.5)}))


def test_tables_of_several_data_sets_and_models():
    one, two = result(0.5, n=10), result(0.1, n=10)
    by_data = {"base": {"a": one, "my/b.jsonl": two}, "trained": {"a": two, "my/b.jsonl": one}}
    results = {name: mean_over(sets) for name, sets in by_data.items()}
    paired = {"base : trained": {"all": [{"attempts": 1, "only_first": 2, "only_second": 8, "p": 0.109375}]}}
    found = plots.tables("a, my/b.jsonl", results, paired).split("\n\n")
    titles = ["mean of a, my/b.jsonl: 20", "a: 10", "my/b.jsonl: 10"]
    assert found[:6:2] == [f"{title} questions, % with 95% interval" for title in titles]
    assert found[1] == plots.table(results) and "| 30.0 (16.2 to 50.1) | 30.0 (16.2 to 50.1) |" in found[1]
    assert found[3] == plots.table({"base": one, "trained": two})
    assert found[6] == "base : trained, questions that only one of them solved, exact McNemar test"
    assert found[7].splitlines()[2] == "| 1                | 2 : 8, p = 0.11 |"
    single = plots.tables("one set", {"base": one}, {})
    assert single == f"one set: 10 questions, % with 95% interval\n\n{plots.table({'base': one})}"


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


def test_plot_of_accuracy(plotted):
    others = {"one": (45.6, 52.5, 51.7), "another": (42.3, 43.2)}
    results = {"base": result(0.4, 0.42), "base, pass@k": result(0.4, 0.6)}
    figure, panels = plotted(plots.plot_accuracy, results, references=others)
    (axes,), (legend,) = panels.values(), figure.legends
    curves = [40, 42, 40, 60, 45.6, 52.5, 42.3, 43.2]  # the paper's as far as we have attempts
    assert [y for line in axes.lines for y in line.get_ydata()] == pytest.approx(curves)
    assert [line.get_linestyle() for line in axes.lines[:2]] == ["-", ":"] and len(axes.collections) == 2  # bands
    assert [text.get_text() for text in legend.get_texts()] == [*results, *others]
    assert axes.get_window_extent().x1 < legend.get_window_extent().x0 and axes.get_window_extent().width > 600


def test_plot_of_training(plotted):
    """A dot for every row that has the key, and a line. Several runs are overlaid."""
    rows = [{"step": i, "reward": i / 80, "kl": None} for i in range(1, 81)] + [{"step": 81}]
    figure, panels = plotted(plots.plot_training, {"": rows})
    dots, line = panels["reward"].lines
    assert list(dots.get_ydata()) == [i / 80 for i in range(1, 81)] and not len(panels["kl"].lines[1].get_xdata())
    assert line.get_ydata()[[0, 9]] == pytest.approx([2 / 80, 10 / 80]) and figure.legends == []
    names = "reward accuracy accuracy_first repeated kl entropy clipfrac explained_variance grad_norm"
    assert [axes.get_title() for axes in panels.values()] == names.split()
    figure, panels = plotted(plots.plot_training, {"runs/a": rows, "runs/b": rows[:3]})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["runs/a", "runs/b"]
    assert [len(line.get_xdata()) for line in panels["reward"].lines] == [80, 80, 3, 3]
    many = plotted(plots.plot_training, {f"${i}": rows for i in range(9)})[1]["reward"].lines[1::2]
    assert len({(line.get_color(), line.get_linestyle()) for line in many}) == 9
    assert "validation_accuracy" in plotted(plots.plot_training, {"": [{"step": 1, "validation_accuracy": 0.5}]})[1]
    plotted(plots.plot_training, {"": []})


def test_runs_laid_over_each_other(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, lr in (("a", 0.1), ("b", 0.2)):
        Path(name).mkdir()
        save_json({"lr": lr, "seed": 0, "made_with": {"torch": "2", "commit": name}}, f"{name}/config.json")
        Path(name, "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    plots.main(["a", "b", "--out", "c"])
    cells = [re.split(r" *\| *", line.strip("| ")) for line in capsys.readouterr().out.splitlines()]
    assert [cells[0], *cells[2:4]] == [["option", *"ab"], ["made with commit", *"ab"], ["lr", "0.1", "0.2"]]
    assert Path("c").stat().st_size > 10_000
    with pytest.raises(SystemExit, match="2"):
        plots.main(["a", "nowhere"])
    assert "nowhere" in capsys.readouterr().err
