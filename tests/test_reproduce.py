"""bench/reproduce.py: means over seeds by hand, and the whole script with tiny runs."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import small_model

import evaluate
import train
from bench import ablations, reproduce
from data.chat import FEEDBACKS, Chat
from data.miniature import best_possible
from support import statistics as seeds
from support.plots import read_metrics


def test_the_t_interval_over_seeds():
    """0.2, 0.4, 0.6: mean 0.4, standard deviation 0.2, half width 4.303 * 0.2 / sqrt(3) = 0.4969."""
    assert seeds.t_interval([0.2, 0.4, 0.6]) == pytest.approx((-0.0969, 0.8969), abs=1e-4)
    assert seeds.t_interval([0.5]) == (0.5, 0.5)


def test_the_crossed_interval_by_hand():
    """Two seeds, three questions. Seeds have means 0 and 1/3, which gives the mean the variance 1/36, with 1 degree of
    freedom. Questions have means -1, 1/2, 1: 13/36, 2 degrees. The interaction, mean square 1/6: 1/36, 2 degrees."""
    value_SQ = np.array([[-1.0, 0, 1], [-1, 1, 1]])
    freedom = 13**2 / (1 + 13**2 / 2 + 1 / 2)
    half = seeds.T_95[1] * (13 / 36) ** 0.5
    assert 1 < freedom < 2 and seeds.crossed_interval(value_SQ) == pytest.approx((1 / 6 - half, 1 / 6 + half))
    # one seed: the t interval over its questions; and where all questions agree, one is taken to differ
    half = seeds.T_95[2] * (1 / 3) ** 0.5
    assert seeds.crossed_interval(value_SQ[:1]) == pytest.approx((-half, half))
    assert seeds.crossed_interval(np.zeros((3, 200))) == pytest.approx(
        (-seeds.T_95[50] / 200, seeds.T_95[50] / 200), rel=0.02
    )


@pytest.mark.parametrize("S, Q, by_seed, by_question", [(5, 200, 0.1, 0.3), (5, 200, 0.0, 0.3), (4, 100, 0.1, 0.0)])
def test_the_crossed_interval_covers_the_truth(S, Q, by_seed, by_question):
    """In about 95 of 100 experiments, wherever the noise comes from; more when there is less of it than there seems."""
    rng = np.random.default_rng(0)

    def experiment():
        noise_SQ = by_seed * rng.normal(size=(S, 1)) + by_question * rng.normal(size=Q) + 0.3 * rng.normal(size=(S, Q))
        low, high = seeds.crossed_interval(noise_SQ)
        return low < 0 < high

    assert 0.93 < np.mean([experiment() for _ in range(600)]) < 0.99


def test_rows_over_seeds():
    solved_SKQ = np.array([[[0, 0, 1, 1], [0, 1, 1, 1]], [[0, 0, 0, 1], [0, 1, 0, 1]]], float)
    first, second = seeds.rows_over_seeds(solved_SKQ)
    assert (first["attempts"], first["accuracy"], second["attempts"], second["accuracy"]) == (1, 0.375, 2, 0.625)
    assert (second["low"], second["high"]) == (0, 1)  # an accuracy cannot be below or above
    assert (second["gain_low"], second["gain_high"]) == seeds.crossed_interval(np.array([[0, 1.0, 0, 0]] * 2))
    many_SKQ = np.tile(solved_SKQ, 100)
    (first, _), (only, _) = (seeds.rows_over_seeds(x) for x in (many_SKQ[[0, 0, 1, 0]], many_SKQ[:1]))
    assert (first["low"], first["high"]) == seeds.t_interval([0.5, 0.5, 0.25, 0.5])
    assert (only["low"], only["high"]) == seeds.crossed_interval(many_SKQ[:1, 0])


def test_verdicts_of_a_summary():
    """Two questions, two attempts. Of pass@k, the first question has 1 right sample of 20 and the second has 20."""
    rows = [{}, dict(repeated=0.2, truncated=0.0, tokens=9.0)]
    attempts = [[False], [False, True], [True], [True]]
    dialogues = [{"correct": right[-1], "attempts": [{"correct": one} for one in right]} for right in attempts]
    greedy = reproduce.kept({"by_attempts": rows}, dialogues)
    assert greedy == dict(samples=1, solved=["01", "11"], first=["01", "01"], repeated=0.2, truncated=0.0, tokens=9.0)
    by_data = {"a": {"samples": 20, "right": [1]}, "b": {"samples": 20, "right": [20]}}
    sampled = reproduce.kept({"by_attempts": rows, "by_data": by_data}, [])
    assert (sampled["samples"], sampled["solved"]) == (20, ["1K", "1K"])
    both = reproduce.shares([greedy, sampled], slice(None))
    assert both == pytest.approx(np.array([[[0, 1], [1, 1]], [[0.05, 1], [0.1, 1]]]))
    assert (reproduce.shares([greedy, sampled], slice(0, 1)) == both[..., :1]).all()


def test_differences_are_of_the_same_seeds_and_questions():
    """At 1 attempt the multi-attempt arm solves one question of two more in seed 0, none more in seed 1; seed 2 of the
    other arm has not been run."""
    first = dict(zip("012", ("11", "01", "11")))
    results = {
        "base": {seed: dict(samples=1, solved=["00", "00"], first=["00", "00"]) for seed in "012"},
        reproduce.MULTI: {
            seed: dict(samples=1, solved=[first[seed], "11"], first=[first[seed], "10"]) for seed in "012"
        },
        reproduce.SINGLE: {seed: dict(samples=1, solved=["01", "01"], first=["01", "01"]) for seed in "01"},
    }
    first_of = {what: cells for what, *cells in reproduce.differences(results, slice(None), "first")}
    solved = {what: cells for what, *cells in reproduce.differences(results, slice(None), "solved")}
    low, high = seeds.crossed_interval(np.array([[1.0, 0], [0, 0]]))
    assert solved["multi-attempt less single-attempt"][0] == f"+25.0 ({100 * low:.1f} - {100 * high:.1f})"
    means = {what: [cell.split(" ")[0] for cell in solved[what] + cells] for what, cells in first_of.items()}
    assert means == {
        "multi-attempt less base": ["+83.3", "+100.0", "+83.3", "+50.0"],
        "single-attempt less base": ["+50.0", "+50.0", "+50.0", "+50.0"],
        "multi-attempt less single-attempt": ["+25.0", "+50.0", "+25.0", "+0.0"],
    }


def test_the_controls_feedback_is_as_long_as_the_papers_and_the_uncounted_one_lacks_the_number(tokenizer):
    chats = {name: Chat(small_model(tokenizer), tokenizer, "chatml", name) for name in FEEDBACKS}
    after = {name: [chat.feedback_after(0, left, None, "") for left in (1, 3)] for name, chat in chats.items()}
    assert len(after["paper"][1]) == len(after["uninformative"][1])
    other = chats["paper"].text(after["uninformative"][1])
    assert "incorrect" not in other and "3" not in other
    assert FEEDBACKS["uncounted"] == FEEDBACKS["paper"].replace(" You have {attempts} attempts left.", "")
    assert after["uncounted"][0] == after["uncounted"][1]


def test_a_finished_run_is_not_repeated_and_a_failed_one_is_named(tmp_path, monkeypatch):
    commands, failed = [], SimpleNamespace(returncode=1)
    monkeypatch.setattr(reproduce.subprocess, "run", lambda command, **_: commands.append(command) or failed)
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "evaluation.json").touch()
    reproduce.run(tmp_path / "done", ["--seed", "1"])
    assert commands == []
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").touch()
    for name, expected in (("cut", ["--resume"]), ("new", ["--seed", "1"])):
        with pytest.raises(RuntimeError, match=f"{name} failed: see .*{name}.log"):
            reproduce.run(tmp_path / name, ["--seed", "1"])
        assert commands.pop()[1:] == ["train.py", *expected, "--out", str(tmp_path / name)]


@pytest.mark.parametrize("script", [reproduce, ablations])
@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["--seeds", "1", "1"], "--seeds takes different numbers"),
        (["--extra", "--eval_limit", "5"], "leave out --eval_limit"),
        (["--draw", "nowhere.json", "out"], "nowhere.json"),
    ],
)
def test_mistakes_are_refused(script, argv, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(argv)
    assert stop.value.code == 2 and sentence in capsys.readouterr().err


# -------------------- The whole scripts
@pytest.fixture
def here(tmp_path, tokenizer, monkeypatch):
    """Processes are function calls, one at a time, and their commands are kept. `extra` makes the runs tiny."""
    small_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for split in ("train", "test"):
        problems = [json.dumps({"question": f"{split} {i}?", "answer": "5"}) for i in range(4)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(problems))
    commands, lock = [], threading.Lock()

    def in_process(command, **_):
        with lock:
            commands.append(command[1:])
            {"train.py": train.main, "evaluate.py": evaluate.main}[command[1]](command[2:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=in_process))  # git is called as ever
    monkeypatch.setattr(train.signal, "signal", lambda *_: None)  # not possible outside of the main thread
    files = dict(model=tmp_path / "base", data=tmp_path / "train.jsonl", eval_data=tmp_path / "test.jsonl")
    tiny = dict(steps=2, dialogues=8, minibatches=1, max_attempts=2, eval_attempts=2, slots=8)
    tiny |= files | dict(max_new_tokens=60, max_attempt_tokens=8)
    extra = ["--extra", *(f"--{name}={value}" for name, value in tiny.items())]
    return SimpleNamespace(folder=tmp_path, commands=commands, extra=extra)


def test_reproduce(here, capsys):
    out, drawn = here.folder / "out", here.folder / "drawn"
    argv = ["--preset", "cue", "--seeds", "3", "--out", str(out), *here.extra]
    reproduce.main(argv)
    assert [command[0] for command in here.commands].count("train.py") == 5 and len(here.commands) == 8
    summary = reproduce.read(out / "summary.json")
    names = ["base", *reproduce.ARMS, *reproduce.CONTROLS]
    assert list(summary["results"]) == names and summary["sets"] == {str(here.folder / "test.jsonl"): 4}
    assert summary["best possible"] == best_possible(True, 2)
    results = {name: result["3"] for name, result in summary["results"].items()}
    assert all(list(map(len, result["solved"])) == [4, 4] for result in results.values())
    trained = reproduce.read(out / "multi-attempt-3" / "evaluation.json")["trained"]["by_attempts"]
    (shares,) = reproduce.shares([results["multi-attempt"]], slice(None)).mean(2).tolist()
    assert shares == [row["accuracy"] for row in trained]

    configs = {name: reproduce.read(out / f"{reproduce.slug(name)}-3" / "config.json") for name in reproduce.ARMS}
    assert [config["attempt_discount"] for config in configs.values()] == [1, 1, 1, 0.8, 0.6]
    assert [config["max_attempts"] for config in configs.values()] == [2, 1, 1, 2, 2]
    multi, single = (read_metrics(out / f"{name}-3") for name in ("multi-attempt", "single-attempt"))
    ratio = sum(row["tokens_sampled"] for row in multi) / sum(row["tokens_sampled"] for row in single)
    assert configs[reproduce.SAME_TOKENS]["steps"] == round(2 * ratio) > 2

    (uninformed,) = (out / "multi-attempt-uninformative-feedback-3").glob("dialogues-*.json")
    second = [d["text"] for d in json.loads(uninformed.read_text()) if len(d["attempts"]) == 2]
    assert second and all(text.count("Please reason step by step") == 2 and "incorrect" not in text for text in second)
    options = reproduce.read(out / "single-attempt-pass@k-of-20-samples-3" / "results.json")["options"]
    assert (options["samples"], options["max_new_tokens"], options["seed"]) == (20, 60, 3)

    files = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".json", ".md", ".png")}
    assert sorted(files) == ["accuracy.png", "summary.json", "table.md"]
    text = files["table.md"].decode()
    assert text in capsys.readouterr().out and all(f"{name}, seeds 3" in text for name in names)
    reproduce.main(argv)  # everything is there
    reproduce.main(["--draw", str(out / "summary.json"), str(drawn)])
    assert len(here.commands) == 8 and {name: (drawn / name).read_bytes() for name in files} == files


def test_reproduce_with_smollm2_on_two_sets(here, capsys):
    """The best possible is not known. Both test sets are in one evaluation, and have their own tables as well."""
    out, sets = here.folder / "out", [str(here.folder / "test.jsonl"), str(here.folder / "more.jsonl")]
    (here.folder / "more.jsonl").write_text("".join(f'{{"question": "{i}?", "answer": "5"}}\n' for i in range(2)))
    argv = ["--preset", "smollm2", "--seeds", "0", "1", "--out", str(out), *here.extra, f"--eval_data={','.join(sets)}"]
    with pytest.raises(SystemExit):
        reproduce.main(["--finished", *argv])
    assert "no multi-attempt run in" in capsys.readouterr().err and here.commands == []
    reproduce.main(argv)
    assert reproduce.read(out / "single-attempt-0" / "config.json")["group_size"] == 8  # the preset's
    summary, text = reproduce.read(out / "summary.json"), (out / "table.md").read_text()
    assert summary["sets"] == dict(zip(sets, (4, 2))) and "best possible" not in summary
    assert [line for line in text.splitlines() if line.endswith(", %")] == [
        f"{x}, %" for x in (" and ".join(sets), *sets)
    ]
    finished = len(here.commands)
    (out / "single-attempt-1" / "evaluation.json").unlink()
    capsys.readouterr()
    reproduce.main(["--finished", *argv])
    assert len(here.commands) == finished and "| single-attempt, seeds 0 " in capsys.readouterr().out
