"""bench/reproduce.py and bench/ablations.py: means over seeds by hand, and the whole scripts with tiny runs."""

import json
import statistics
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import small_model

import evaluate
import train
from bench import ablations, reproduce
from data.chat import FEEDBACKS, Chat


def row(accuracy: float, repeated: float | None = None, attempts: int = 1, **more) -> dict:
    same = dict(questions=4, truncated=0.0, tokens=9.0, low=0.1, high=0.9)
    return same | dict(attempts=attempts, accuracy=accuracy, repeated=repeated) | more


def test_over_seeds_are_means_with_a_t_interval():
    """0.2, 0.4, 0.6: mean 0.4, standard deviation 0.2, half width 4.303 * 0.2 / sqrt(3) = 0.4969."""
    runs = [[row(0.2, gain=0.1)], [row(0.4, 0.3, gain=0.3)], [row(0.6, 0.5, gain=0.5)]]
    (result,) = reproduce.over_seeds(runs)["by_attempts"]
    assert (result["attempts"], result["questions"], result["accuracy"]) == (1, 4, pytest.approx(0.4))
    assert result["repeated"] == pytest.approx(0.4)  # of the seeds that have an answer which could be repeated
    assert (result["low"], result["high"]) == pytest.approx((-0.0969, 0.8969), abs=1e-4)
    assert (result["gain_low"], result["gain_high"]) == pytest.approx((-0.1969, 0.7969), abs=1e-4)
    assert "gain_low" not in reproduce.over_seeds([[row(0.2)], [row(0.4)]])["by_attempts"][0]
    assert reproduce.over_seeds(runs[:1]) == {"by_attempts": runs[0]}  # one keeps its intervals over the questions


def test_the_optimum_is_the_chance_of_the_likeliest_candidates():
    """Equally many riddles of 2, 3, 4 and 5 candidates, each 0.7 times as likely as the one before it."""
    weights = [1, 0.7, 0.49, 0.343, 0.2401]
    expected = [sum(sum(weights[: min(k, c)]) / sum(weights[:c]) for c in (2, 3, 4, 5)) / 4 for k in (1, 2, 3, 4, 5)]
    assert reproduce.optimum(5) == pytest.approx(expected)


def test_the_controls_feedback_is_as_long_as_the_papers_and_the_uncounted_one_lacks_the_number(tokenizer):
    chats = {name: Chat(small_model(tokenizer), tokenizer, "chatml", name) for name in FEEDBACKS}
    after = {name: [chat.feedback_after(0, left) for left in (1, 3)] for name, chat in chats.items()}
    assert len(after["paper"][1]) == len(after["uninformative"][1])
    other = chats["paper"].text(after["uninformative"][1])
    assert "incorrect" not in other and "3" not in other
    assert FEEDBACKS["uncounted"] == FEEDBACKS["paper"].replace(" You have {attempts} attempts left.", "")
    assert after["uncounted"][0] == after["uncounted"][1]


def test_a_finished_run_is_not_repeated_and_a_failed_one_is_named(tmp_path, monkeypatch):
    commands, failed = [], SimpleNamespace(returncode=1)
    monkeypatch.setattr(reproduce.subprocess, "run", lambda command, **_: commands.append(command) or failed)
    finish(tmp_path / "done", [0.5], 1.0, None)
    assert reproduce.run(tmp_path / "done", ["--seed", "1"]) == [row(0.5)] and commands == []
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
        (["--seeds", "1", "1"], "--seeds takes 1 to 10 different numbers"),
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

    monkeypatch.setattr(reproduce.subprocess, "run", in_process)
    monkeypatch.setattr(train.signal, "signal", lambda *_: None)  # not possible outside of the main thread
    files = dict(model=tmp_path / "base", data=tmp_path / "train.jsonl", eval_data=tmp_path / "test.jsonl")
    tiny = dict(steps=2, dialogues=8, minibatches=1, max_attempts=2, eval_attempts=2, slots=8)
    tiny |= files | dict(max_new_tokens=60, max_attempt_tokens=8)
    extra = ["--extra", *(f"--{name}={value}" for name, value in tiny.items())]
    return SimpleNamespace(folder=tmp_path, commands=commands, extra=extra)


def test_reproduce(here, capsys):
    out, drawn = here.folder / "out", here.folder / "drawn"
    argv = ["--seeds", "3", "--out", str(out), *here.extra]
    reproduce.main(argv)
    assert [command[0] for command in here.commands].count("train.py") == 3 and len(here.commands) == 6
    summary = reproduce.read(out / "summary.json")
    names = ["base", *reproduce.ARMS, reproduce.SAME_TOKENS, *reproduce.CONTROLS]
    rows = summary["seeds"]["3"]
    assert list(rows) == names and all(len(by_attempts) == 2 for by_attempts in rows.values())
    trained = reproduce.read(out / "multi-attempt-3" / "evaluation.json")["trained"]
    assert rows["multi-attempt"] == trained["by_attempts"] and "gain_low" in rows["multi-attempt"][1]

    (uninformed,) = (out / "multi-attempt-3" / "uninformative-feedback").glob("dialogues-*.json")
    second = [d["text"] for d in json.loads(uninformed.read_text()) if len(d["attempts"]) == 2]
    assert second and all(text.count("Please reason step by step") == 2 and "incorrect" not in text for text in second)
    sampled = reproduce.read(out / "single-attempt-3" / "pass@k-of-20-samples" / "results.json")
    assert sampled["options"]["samples"] == reproduce.SAMPLES and sampled["options"]["max_new_tokens"] == 60
    assert list(sampled["models"].values())[1]["by_attempts"] == rows["single-attempt, pass@k of 20 samples"]

    files = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".md", ".png")}
    assert sorted(files) == ["accuracy.png", "readme.png", "table.md"]
    text = files["table.md"].decode()
    assert text in capsys.readouterr().out and all(name in text for name in names)
    reproduce.main(argv)  # everything is there
    reproduce.main(["--draw", str(out / "summary.json"), str(drawn)])
    assert len(here.commands) == 6 and {name: (drawn / name).read_bytes() for name in files} == files
    summary["seeds"]["4"] = summary["seeds"]["3"]
    (here.folder / "two.json").write_text(json.dumps(summary))
    reproduce.main(["--draw", str(here.folder / "two.json"), str(drawn)])
    assert "mean of seeds 3, 4, % with 95% interval over seeds" in capsys.readouterr().out


def test_reproduce_with_smollm2(here, capsys):
    """Two arms, and no optimum: nobody knows it. The intervals are over the questions."""
    out = here.folder / "out"
    reproduce.main(["--preset", "smollm2", "--seeds", "0", "--out", str(out), *here.extra])
    assert [command[0] for command in here.commands].count("train.py") == 2
    assert reproduce.read(out / "single-attempt-0" / "config.json")["group_size"] == 8  # the preset's
    summary, text = (out / "summary.json").read_text(), (out / "table.md").read_text()
    assert "optimum" not in summary and reproduce.SAME_TOKENS not in summary and "est possible" not in text
    assert "test.jsonl, mean of seeds 0, % with 95% interval over questions" in capsys.readouterr().out


def finish(folder: Path, accuracy: list[float], reward: float, repeated: float | None) -> None:
    """The files of a finished run."""
    folder.mkdir(parents=True)
    rows = [row(share, repeated, k) for k, share in enumerate(accuracy, 1)]
    (folder / "evaluation.json").write_text(json.dumps({"trained": {"by_attempts": rows}}))
    rewards = [-1.0] * 5 + [reward] * ablations.FINAL
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps({"reward": reward}) for reward in rewards))


def test_ablations_of_finished_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce.subprocess, "run", lambda *_, **__: pytest.fail("this run is there already"))
    for i, name in enumerate(ablations.VARIANTS):
        for seed in (0, 1):
            place = tmp_path / ("out" if i else "reference")
            shares = [share + 0.01 * i + 0.1 * seed for share in (0.2, 0.3, 0.4, 0.4, 0.5)]
            finish(place / f"{name.replace(' ', '-')}-{seed}", shares, 0.125 * i, None if i else 0.25)
    out = tmp_path / "out"
    ablations.main(["--seeds", "0", "1", "--out", str(out), "--reference", str(tmp_path / "reference")])
    accuracy = pytest.approx([0.33, 0.43, 0.53, 0.53, 0.63])
    found = dict(accuracy=accuracy, questions=4, repeated=None, reward=0.375)
    assert reproduce.read(out / "summary.json")["no KL"]["1"] == found
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (out / "table.md").read_text().splitlines()]
    half = 12.706 * statistics.stdev([20, 30]) / 2**0.5
    assert cells[2][:3] == ["multi-attempt", "", f"25.0 ({25 - half:.1f} - {25 + half:.1f})"]
    assert cells[2][5:] == ["25.0", "0.00"] and len(cells) == 2 + len(ablations.VARIANTS)
    assert cells[5][:2] == ["no KL", "`--kl_coef 0`"] and cells[5][5:] == ["-", "0.38"]
    ablations.main(["--draw", str(out / "summary.json"), str(tmp_path / "drawn")])
    text = (tmp_path / "drawn" / "table.md").read_text()
    assert text == (out / "table.md").read_text() and text in capsys.readouterr().out


def test_an_ablation_is_the_reference_with_one_option(here, monkeypatch):
    """Two variants with real runs: the option reaches the training, and the feedback the run's own evaluation."""
    names = (ablations.REFERENCE, "feedback without number")
    monkeypatch.setattr(ablations, "VARIANTS", {name: ablations.VARIANTS[name] for name in names})
    out, reference = here.folder / "out", here.folder / "reference"
    ablations.main(["--seeds", "0", "--out", str(out), "--reference", str(reference), *here.extra])
    runs = reference / "multi-attempt-0", out / "feedback-without-number-0"
    configs = [reproduce.read(folder / "config.json") for folder in runs]
    differing = {name for name in configs[0] if configs[0][name] != configs[1][name]}
    assert differing == {"out", "feedback"} and configs[1]["feedback"] == "uncounted"
    trained = reproduce.read(runs[1] / "evaluation.json")["trained"]
    texts = [d["text"] for d in trained["dialogues"] if len(d["attempts"]) == 2]
    assert texts and all("answer is incorrect. Try an alternative." in text for text in texts)


def test_every_ablation_is_an_option_of_the_miniature():
    for options in ablations.VARIANTS.values():
        train.parse_run(train.Config, train.PRESETS, ["--preset", "miniature", *options])
