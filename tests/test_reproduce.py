"""bench/reproduce.py and bench/ablations.py: the numbers they make of several runs, by hand, and the whole scripts with
tiny runs in this process."""

import json
import statistics
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import small_model

import evaluate
import train
from data.chat import CHAT_TEMPLATES, FEEDBACKS, Chat, feedback_text

# at the end: bench/reward.py and bench/rollout.py must not stand before the stages of the same name
sys.path.append(str(Path(__file__).parents[1] / "bench"))
import ablations  # noqa: E402
import reproduce  # noqa: E402


def row(accuracy: float, repeated: float | None = None, attempts: int = 1) -> dict:
    return dict(
        attempts=attempts,
        accuracy=accuracy,
        low=0.1,
        high=0.9,
        repeated=repeated,
        truncated=0.0,
        tokens=9.0,
        questions=4,
    )


def test_over_seeds_is_the_mean_with_a_t_interval():
    """0.2, 0.4, 0.6: mean 0.4, standard deviation 0.2, half width 4.303 * 0.2 / sqrt(3) = 0.4969."""
    (result,) = reproduce.over_seeds([[row(0.2)], [row(0.4, 0.3)], [row(0.6, 0.5)]])["by_attempts"]
    assert result["accuracy"] == pytest.approx(0.4)
    assert result["repeated"] == pytest.approx(0.4)  # of the seeds that have an answer which could be repeated
    assert result["low"] == pytest.approx(-0.0969, abs=1e-4) and result["high"] == pytest.approx(0.8969, abs=1e-4)


def test_a_single_seed_keeps_its_interval_over_the_questions():
    (result,) = reproduce.over_seeds([[row(0.5)]])["by_attempts"]
    assert (result["accuracy"], result["low"], result["high"], result["repeated"]) == (0.5, 0.1, 0.9, None)
    assert "gain_low" not in result


def test_the_gain_has_the_same_kinds_of_interval():
    gains = [dict(gain=gain, gain_low=0.05, gain_high=0.55) for gain in (0.1, 0.3, 0.5)]
    (result,) = reproduce.over_seeds([[row(0.5) | gain] for gain in gains])["by_attempts"]
    assert (result["gain_low"], result["gain_high"]) == pytest.approx((-0.1969, 0.7969), abs=1e-4)
    (result,) = reproduce.over_seeds([[row(0.5) | gains[0]]])["by_attempts"]
    assert (result["gain_low"], result["gain_high"]) == (0.05, 0.55)


def test_the_optimum_is_the_chance_of_the_likeliest_candidates():
    """Equally many riddles of 2, 3, 4 and 5 candidates, each 0.7 times as likely as the one before it."""
    weights = [1, 0.7, 0.49, 0.343, 0.2401]
    expected = [sum(sum(weights[: min(k, c)]) / sum(weights[:c]) for c in (2, 3, 4, 5)) / 4 for k in (1, 2, 3, 4, 5)]
    assert reproduce.optimum(5) == pytest.approx(expected)


def test_smoothed():
    assert reproduce.smoothed([1, 2, None, 6, 8], reach=1) == [1.5, 1.5, 4, 7, 7]
    assert reproduce.smoothed([None, None], reach=2) == [None, None]


def test_the_uninformative_feedback_is_as_long_as_the_papers(tokenizer):
    paper, other = (feedback_text(CHAT_TEMPLATES["chatml"], 3, name) for name in ("paper", "uninformative"))
    chats = [Chat(small_model(tokenizer), tokenizer, "chatml", name) for name in ("paper", "uninformative")]
    assert len(chats[0].feedback_after(0, 3)) == len(chats[1].feedback_after(0, 3))
    assert abs(len(paper) - len(other)) <= 2 and "incorrect" not in other and "3" not in other


def test_the_uncounted_feedback_is_the_papers_without_the_number(tokenizer):
    assert FEEDBACKS["uncounted"] == FEEDBACKS["paper"].replace(" You have {attempts} attempts left.", "")
    chat = Chat(small_model(tokenizer), tokenizer, "chatml", "uncounted")
    assert chat.feedback_after(0, 1) == chat.feedback_after(0, 4)
    assert "incorrect. Try an alternative.<|im_end|>" in chat.text(chat.feedback_after(0, 1))


def test_a_finished_run_is_not_repeated_and_a_failed_one_is_named(tmp_path, monkeypatch):
    calls = []
    failed = SimpleNamespace(returncode=1)
    monkeypatch.setattr(reproduce.subprocess, "run", lambda command, **options: calls.append(command) or failed)
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "evaluation.json").write_text("{}")
    options = ["--preset", "miniature", "--seed", "1"]
    reproduce.run(tmp_path / "done", options)
    assert calls == []
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").write_text("{}")
    for name, expected in (("cut", ["--resume"]), ("new", options)):
        with pytest.raises(RuntimeError, match=f"{name} failed: see .*{name}.log"):
            reproduce.run(tmp_path / name, options)
        assert calls.pop()[4:] == expected


@pytest.mark.parametrize("script", [reproduce, ablations])
@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["--seeds", "1", "1"], "--seeds takes 1 to 10 different numbers"),
        (["--extra", "--eval_limit", "5"], "leave out --eval_limit"),
    ],
)
def test_mistakes_are_refused(script, argv, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(argv)
    assert stop.value.code == 2 and sentence in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# The whole scripts


@pytest.fixture
def here(tmp_path, tokenizer, monkeypatch):
    """Processes are function calls, one at a time; commands as they came are returned. Everything is in `tmp_path`."""
    small_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    for split in ("train", "test"):
        lines = [json.dumps({"question": f"{split} {i}?", "answer": "5"}) + "\n" for i in range(4)]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    commands, lock = [], threading.Lock()

    def in_process(command, **_):
        with lock:
            commands.append(command[1:])
            {"train.py": train.main, "evaluate.py": evaluate.main}[command[1]](command[2:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(reproduce.subprocess, "run", in_process)
    monkeypatch.setattr(train.signal, "signal", lambda *_: None)  # not possible outside of the main thread
    return SimpleNamespace(folder=tmp_path, commands=commands)


def tiny(here) -> list[str]:
    options = dict(
        model=here.folder / "base",
        data=here.folder / "train.jsonl",
        eval_data=here.folder / "test.jsonl",
        steps=2,
        dialogues=8,
        minibatches=1,
        max_attempts=2,
        eval_attempts=2,
        max_new_tokens=60,
        max_attempt_tokens=8,
        slots=8,
    )
    return ["--extra", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def test_reproduce(here, capsys):
    out = here.folder / "out"
    argv = ["--seeds", "3", "--out", str(out), "--json", str(here.folder / "figures.json"), *tiny(here)]
    reproduce.main(argv)
    assert [command[0] for command in here.commands].count("train.py") == 3 and len(here.commands) == 6
    summary = json.loads((out / "summary.json").read_text())
    assert summary == json.loads((here.folder / "figures.json").read_text())
    arms = (*reproduce.ARMS, reproduce.SAME_TOKENS)
    assert list(summary) == ["base", *arms, *reproduce.CONTROLS, "optimum"]
    for name in (*arms, *reproduce.CONTROLS):
        assert summary[name]["3"]["questions"] == 4 and len(summary[name]["3"]["accuracy"]) == 2
    trained = json.loads((out / "multi-attempt-3" / "evaluation.json").read_text())["trained"]
    assert summary["multi-attempt"]["3"]["accuracy"] == [row["accuracy"] for row in trained["by_attempts"]]
    training = json.loads((out / "training.json").read_text())
    assert {arm: list(seeds) for arm, seeds in training.items()} == {arm: ["3"] for arm in reproduce.ARMS}
    rows = reproduce.steps_of(out / "single-attempt-3")
    assert training["single-attempt"]["3"]["reward"] == pytest.approx([row["reward"] for row in rows], abs=5e-5)
    assert training["single-attempt"]["3"]["repeated"] == [None, None]

    (uninformed,) = (out / "multi-attempt-3" / "uninformative-feedback").glob("dialogues-*.json")
    second = [d["text"] for d in json.loads(uninformed.read_text()) if len(d["attempts"]) == 2]
    assert second and all(text.count("Please reason step by step") == 2 and "incorrect" not in text for text in second)
    (found,) = (out / "single-attempt-3").glob("pass@k-of-*-samples/results.json")
    sampled = json.loads(found.read_text())
    assert sampled["options"]["samples"] == reproduce.SAMPLES and sampled["options"]["max_new_tokens"] == 60
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in ("accuracy.png", "training.png"))
    text = (out / "table.md").read_text()
    assert text in capsys.readouterr().out and all(name in text for name in summary if name != "optimum")

    (out / "training.json").unlink()
    reproduce.main(argv)  # everything is there: it only draws again
    assert len(here.commands) == 6 and json.loads((out / "training.json").read_text()) == training


def test_reproduce_with_smollm2(here, capsys):
    """Two arms, and no optimum: nobody knows it."""
    out = here.folder / "out"
    reproduce.main(["--preset", "smollm2", "--seeds", "0", "--out", str(out), *tiny(here)])
    trained = [command for command in here.commands if command[0] == "train.py"]
    assert len(trained) == 2 and all(command[command.index("--preset") + 1] == "smollm2" for command in trained)
    assert json.loads((out / "single-attempt-0" / "config.json").read_text())["group_size"] == 8  # the preset's
    assert list(json.loads((out / "summary.json").read_text())) == ["base", *reproduce.ARMS, *reproduce.CONTROLS]
    text = (out / "table.md").read_text()
    assert "est possible" not in text and f"{here.folder / 'test.jsonl'}, mean of seeds [0]" in capsys.readouterr().out


def finish(folder: Path, accuracy: list[float], reward: float, repeated: float | None) -> None:
    """The files of a finished run."""
    folder.mkdir(parents=True)
    rows = [row(share, repeated, k) for k, share in enumerate(accuracy, 1)]
    (folder / "evaluation.json").write_text(json.dumps({"trained": {"by_attempts": rows}}))
    steps = [{"reward": -1.0}] * 5 + [{"reward": reward}] * ablations.FINAL
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))


def test_ablations_of_finished_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce.subprocess, "run", lambda *_, **__: pytest.fail("this run is there already"))
    for i, name in enumerate(ablations.VARIANTS):
        for seed in (0, 1):
            place = "reference" if i == 0 else "out"
            shares = [share + 0.01 * i + 0.1 * seed for share in (0.2, 0.3, 0.4, 0.4, 0.5)]
            finish(tmp_path / place / f"{name.replace(' ', '-')}-{seed}", shares, 0.125 * i, None if i else 0.25)
    out = tmp_path / "out"
    ablations.main(["--seeds", "0", "1", "--out", str(out), "--reference", str(tmp_path / "reference")])
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary) == list(ablations.VARIANTS)
    assert summary["no KL"]["1"]["accuracy"] == pytest.approx([0.33, 0.43, 0.53, 0.53, 0.63])
    assert summary["no KL"]["1"]["reward"] == 0.375 and summary["no KL"]["1"]["questions"] == 4
    lines = (out / "table.md").read_text().splitlines()
    half = 12.706 * statistics.stdev([20, 30]) / 2**0.5
    assert lines[2].startswith(f"| multi-attempt |  | 25.0 ({25 - half:.1f} - {25 + half:.1f}) | 35.0 (")
    assert lines[2].endswith(" | 25.0 | 0.00 |")
    assert lines[5].startswith("| no KL | `--kl_coef 0` | 28.0 (") and lines[5].endswith(" | - | 0.38 |")
    assert len(lines) == 2 + len(ablations.VARIANTS) and lines[-1] in capsys.readouterr().out


def test_an_ablation_is_the_reference_with_one_option(here, monkeypatch):
    """Two variants with real runs: the option reaches the training, and the feedback the run's own evaluation."""
    names = (ablations.REFERENCE, "feedback without number")
    monkeypatch.setattr(ablations, "VARIANTS", {name: ablations.VARIANTS[name] for name in names})
    out, reference = here.folder / "out", here.folder / "reference"
    argv = ["--seeds", "0", "--out", str(out), "--reference", str(reference), "--json", str(out / "a.json")]
    ablations.main([*argv, *tiny(here)])
    configs = [
        json.loads((folder / "config.json").read_text())
        for folder in (reference / "multi-attempt-0", out / "feedback-without-number-0")
    ]
    differing = {name for name in configs[0] if configs[0][name] != configs[1][name]}
    assert differing == {"out", "feedback"} and configs[1]["feedback"] == "uncounted"
    evaluation = json.loads((out / "feedback-without-number-0" / "evaluation.json").read_text())
    texts = [d["text"] for d in evaluation["trained"]["dialogues"] if len(d["attempts"]) == 2]
    assert texts and all("answer is incorrect. Try an alternative." in text for text in texts)
    assert (out / "a.json").read_text() == (out / "summary.json").read_text()


def test_every_ablation_is_an_option_of_the_miniature():
    for options in ablations.VARIANTS.values():
        train.check(train.parse_run(train.Config, train.PRESETS, ["--preset", "miniature", *options]))
