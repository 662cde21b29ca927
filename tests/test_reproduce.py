"""bench/reproduce.py: its numbers by hand, and the whole script with tiny runs."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import small_model
from tiny_runs import in_this_process, metrics

from bench import ablations, reproduce
from data.chat import Chat
from data.miniature import best_possible
from support import statistics as stats


def test_verdicts_of_a_summary():
    """Two questions, two attempts. Of pass@k, the first question has 1 right sample of 20 and the second has 20."""
    rows = [{}, dict(repeated=0.2, truncated=0.0, tokens=9.0)]
    attempts = [[False], [False, True], [True], [True]]
    dialogues = [{"correct": right[-1], "attempts": [{"correct": one} for one in right]} for right in attempts]
    greedy = reproduce.verdicts({"by_attempts": rows}, dialogues)
    assert greedy == dict(samples=1, solved=["01", "11"], first=["01", "01"], repeated=0.2, truncated=0.0, tokens=9.0)
    by_data = {"a": {"samples": 20, "right": [1]}, "b": {"samples": 20, "right": [20]}}
    sampled = reproduce.verdicts({"by_attempts": rows, "by_data": by_data}, [])
    assert (sampled["samples"], sampled["solved"]) == (20, ["1K", "1K"])
    both = reproduce.shares([greedy, sampled], slice(None))
    assert both == pytest.approx(np.array([[[0, 1], [0.05, 1]], [[1, 1], [0.1, 1]]]))
    assert (reproduce.shares([greedy, sampled], slice(0, 1)) == both[..., :1]).all()


def test_differences_are_of_the_same_seeds_and_questions():
    """With 1 attempt, the multi-attempt arm solves one more of two questions in seed 0 and no more in seed 1. Seed 2 of
    the other arm has not been run."""
    first = dict(zip("012", ("11", "01", "11")))
    results = {
        "base": {seed: dict(samples=1, solved=["00", "00"], first=["00", "00"]) for seed in "012"},
        reproduce.MULTI: {s: dict(samples=1, solved=[first[s], "11"], first=[first[s], "10"]) for s in "012"},
        reproduce.SINGLE: {seed: dict(samples=1, solved=["01", "01"], first=["01", "01"]) for seed in "01"},
    }
    first_of = {what: cells for what, *cells in reproduce.differences(results, slice(None), "first")}
    solved = {what: cells for what, *cells in reproduce.differences(results, slice(None), "solved")}
    low, high = stats.crossed_interval(np.array([[1.0, 0], [0, 0]]))
    assert solved["multi-attempt minus single-attempt"][0] == f"+25.0 ({100 * low:.1f} to {100 * high:.1f})"
    means = {what: [cell.split(" ")[0] for cell in solved[what] + cells] for what, cells in first_of.items()}
    assert means == {
        "multi-attempt minus base": ["+83.3", "+100.0", "+83.3", "+50.0"],
        "single-attempt minus base": ["+50.0", "+50.0", "+50.0", "+50.0"],
        "multi-attempt minus single-attempt": ["+25.0", "+50.0", "+25.0", "+0.0"],
    }


def test_the_controls_feedback_is_as_long_as_the_papers(tokenizer):
    paper, other = (Chat(small_model(tokenizer), tokenizer, "chatml", name) for name in ("paper", "uninformative"))
    wrong = SimpleNamespace(answer="7")
    after = other.feedback_after(0, 3, wrong, "")
    assert len(after) == len(paper.feedback_after(0, 3, wrong, ""))
    assert "incorrect" not in paper.decode(after) and "3" not in paper.decode(after)


def test_a_finished_run_is_not_repeated_and_a_failed_one_is_named(tmp_path, monkeypatch):
    commands, failed = [], SimpleNamespace(returncode=1)
    monkeypatch.setattr(reproduce.subprocess, "run", lambda command, **_: commands.append(command) or failed)
    for name, file in (("done", "model"), ("cut", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    (tmp_path / "done.log").write_text(f"{['train.py', '--seed', '1']}\nand what it printed")
    reproduce.run("train.py", ["--seed", "1"], tmp_path / "done", "model")
    with pytest.raises(ValueError, match="done was made with other options or paths, see .*done.log"):
        reproduce.run("train.py", ["--seed", "2"], tmp_path / "done", "model")
    assert commands == []
    for name, expected in (("cut", ["--resume"]), ("new", ["--seed", "1"])):
        with pytest.raises(RuntimeError, match=f"{name} failed: see .*{name}.log"):
            reproduce.run("train.py", ["--seed", "1"], tmp_path / name, "model")
        assert commands.pop()[1:] == ["train.py", *expected, "--out", str(tmp_path / name)]


@pytest.mark.parametrize(
    "script, argv, sentence",
    [
        (reproduce, ["--extra", "--eval_limit", "5"], "leave out --eval_limit"),
        (reproduce, ["--draw", "nowhere.json", "out"], "nowhere.json"),
        (ablations, ["--draw", "nowhere.json", "out"], "nowhere.json"),
    ],
)
def test_mistakes_are_refused(script, argv, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(argv)
    assert stop.value.code == 2 and sentence in capsys.readouterr().err


# -------------------- The whole scripts
TINY = """--extra --model=base --data=questions.jsonl --eval_data=held_out.jsonl --steps=2 --dialogues=8 --minibatches=1
    --max_attempts=2 --eval_attempts=2 --slots=8 --max_new_tokens=60 --max_attempt_tokens=8""".split()


@pytest.fixture
def commands(inputs, monkeypatch):
    return in_this_process(monkeypatch)


def test_reproduce(commands, capsys, monkeypatch):
    """Of two presets; the discounts are tried with one of them. Base model and baseline are asked for samples, too."""
    argv = ["--preset", "cue", "miniature", "--seeds", "3", "--out", "out", *TINY]
    out, drawn = Path("out"), Path("drawn")
    monkeypatch.setattr(reproduce, "RIDDLES", ["held_out.jsonl"])
    reproduce.main(argv)
    runs = ["train.py"] * (5 + 3) + ["evaluate.py"] * (7 + 5)
    assert sorted(command[0] for command in commands) == sorted(runs)
    summaries = reproduce.read_json(out / "summary.json")
    summary, out = summaries["cue"], out / "cue"
    names = list(summary["results"])
    discounts = [name for name in names if "discount" in name]
    assert len(discounts) == 2 and [*summaries["miniature"]["results"]] == [x for x in names if x not in discounts]
    sampled = ["base, pass@k", "single-attempt, pass@k"]
    assert set(names) == {"base", *reproduce.ARMS, reproduce.UNINFORMED, *sampled}
    assert summary["sets"] == {"held_out.jsonl": 4}
    assert summary["best possible"] == best_possible(False, 2)
    results = {name: result["3"] for name, result in summary["results"].items()}
    assert all(list(map(len, result["solved"])) == [4, 4] for result in results.values())
    found = reproduce.read_json(out / "evaluations" / "multi-attempt-3" / "results.json")["models"]
    shares = reproduce.shares([results["multi-attempt"]], slice(None))[:, 0].mean(1).tolist()
    assert shares == [row["accuracy"] for row in found["out/cue/multi-attempt-3/model"]["by_attempts"]]

    configs = {name: reproduce.read_json(reproduce.run_folder(out, name, 3) / "config.json") for name in reproduce.ARMS}
    assert [config["attempt_discount"] for config in configs.values()] == [1, 1, 0.8, 0.6, 1]
    assert [config["max_attempts"] for config in configs.values()] == [2, 1, 2, 2, 1]
    multi, single = (metrics(out / f"{name}-3") for name in ("multi-attempt", "single-attempt"))
    ratio = sum(row["tokens_sampled"] for row in multi) / sum(row["tokens_sampled"] for row in single)
    assert configs[reproduce.SAME_TOKENS]["steps"] == round(2 * ratio) > 2

    evaluations = out / "evaluations"
    (uninformed,) = (evaluations / "multi-attempt-uninformative-feedback-3").glob("dialogues-*.json")
    second = [d["text"] for d in json.loads(uninformed.read_text()) if len(d["attempts"]) == 2]
    assert second and all(text.count("Please reason step by step") == 2 and "incorrect" not in text for text in second)
    options = reproduce.read_json(evaluations / "single-attempt-3" / "results.json")["options"]
    assert (options["samples"], options["max_new_tokens"], options["seed"]) == (8, 60, 3)

    out = out.parent
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".json", ".md", ".png")}
    assert sorted(files) == ["cue.png", "miniature.png", "summary.json", "table.md"]
    text = files["table.md"].decode()
    assert text in capsys.readouterr().out and all(f"{name}, seeds 3" in text for name in names)
    finished = len(commands)
    reproduce.main(argv)  # everything is there
    reproduce.main(["--draw", "out/summary.json", "drawn"])
    assert len(commands) == finished and {name: (drawn / name).read_bytes() for name in files} == files


def test_reproduce_with_smollm2_on_two_sets(commands, capsys):
    """The best possible is not known. Both test sets are in one evaluation, and have their own tables as well."""
    two = "held_out.jsonl", "first_three.jsonl"
    argv = ["--preset", "smollm2", "--seeds", "0", "1", "--out", "out", *TINY, f"--eval_data={','.join(two)}"]
    with pytest.raises(SystemExit):
        reproduce.main(["--finished", *argv])
    error = capsys.readouterr().err
    assert "has no finished evaluation of the base model, or none of a multi-attempt run" in error and commands == []
    reproduce.main(argv)
    assert reproduce.read_json(Path("out/smollm2/single-attempt-0/config.json"))["group_size"] == 8  # the preset's
    summary, text = reproduce.read_json(Path("out/summary.json"))["smollm2"], Path("out/table.md").read_text()
    assert summary["sets"] == dict(zip(two, (4, 3))) and summary["best possible"] == []
    titles = [line for line in text.splitlines() if line.endswith(", %")]
    assert titles == ["held_out.jsonl and first_three.jsonl, %", "held_out.jsonl, %", "first_three.jsonl, %"]
    finished = len(commands)
    assert finished == 2 * 3 + 2 * 5
    with pytest.raises(SystemExit):
        reproduce.main(["--finished", *argv, "--eval_attempts=3"])
    assert "asked something else: repeat its --extra" in capsys.readouterr().err
    Path("out/smollm2/evaluations/single-attempt-1/results.json").unlink()
    reproduce.main(["--finished", *argv])
    assert len(commands) == finished and "| single-attempt, seeds 0 " in capsys.readouterr().out


@pytest.mark.parametrize("name, script", [("reproduce", reproduce), ("smollm2", reproduce), ("ablations", ablations)])
def test_the_committed_tables_are_those_of_the_committed_verdicts(name, script, tmp_path):
    results = Path(reproduce.__file__).parent / "results" / name
    script.main(["--draw", str(results / "summary.json"), str(tmp_path)])
    assert (tmp_path / "table.md").read_text() == (results / "table.md").read_text()
