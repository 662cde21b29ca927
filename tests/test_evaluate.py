"""Evaluation: records against the plain loop of rollout.py, counts by hand, the command, journals, mistakes."""

import copy
import errno
import json
import os
import shutil
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from unittest.mock import DEFAULT, Mock, patch

import pytest
from conftest import small_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import data
import evaluate as ev
from data import Problem
from data.chat import Chat
from rollout import rollout, rollout_one
from support import plots
from support.files import locked_folder, save_json
from support.models import load_model
from train import Config

PROBLEMS = [Problem(f"How much is {i} + {i}?", gold) for i, gold in enumerate(["5", "17", "17", "1717"])]


# -------------------- Asking and counting
@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    monkeypatch.setattr(ev, "check_model", Mock())  # tests/test_families.py is about the check at the start


@pytest.fixture(scope="module")
def model(tokenizer):
    return small_model(tokenizer)


ASKED = [
    ([1, 2, 3], 0.0, "paper", dict(max_new_tokens=60)),
    ([1, 2, 3], 0.0, "uncounted", dict(max_new_tokens=60, max_attempt_tokens=6, slots=3)),
    ([2], 0.0, "uninformative", dict(max_new_tokens=9)),
    ([1] * 5, 1.0, "paper", dict(max_new_tokens=60)),
]


@pytest.mark.parametrize("allowed, temperature, feedback, options", ASKED)
def test_records_are_those_of_the_plain_loop(allowed, temperature, feedback, options, model, tokenizer):
    config, chat = Config(**options), Chat(model, tokenizer, "chatml", feedback)
    draw = dict(temperature=temperature, seed=(5, 0))
    asked = ev.evaluate(model, chat, PROBLEMS + PROBLEMS[:1], allowed, config, **draw)
    assert asked.pop() == asked[0]  # the first question, given twice, is asked once
    assert json.loads(json.dumps(asked)) == asked
    records = [(problem, record) for problem, same in zip(PROBLEMS, asked, strict=True) for record in same]
    for i, (problem, record) in enumerate(records):
        n = allowed[i % len(allowed)]
        tokens, sampled, attempts = rollout_one(model, chat, problem, n, ev.RULES, config, **draw, index=i)
        expected = {"question": problem.question, "gold": problem.gold, "allowed": n, "text": chat.decode(tokens)}
        no_room = len(attempts) < n and not attempts[-1].correct
        expected |= {"correct": attempts[-1].correct, "truncated": attempts[-1].truncated or no_room}
        expected["tokens"] = sum(sampled)
        expected |= {"reward": sum(ev.RULES.reward(attempts, problem.gold)), "attempts": []}
        for each in map(asdict, attempts):
            at, end = (len(chat.decode(tokens[: each.pop(key)])) for key in ("start", "end"))
            expected["attempts"].append(each | {"text_start": at, "text_end": end})
        assert record == expected


def test_counts_by_hand():
    def record(allowed, *answers):
        attempts, last = [{"answer": answer, "correct": answer == "7"} for answer in answers], answers[-1]
        row = {"allowed": allowed, "attempts": attempts, "tokens": 10 * len(answers)}
        return row | {"correct": last == "7", "truncated": last is None}

    asked = [
        [record(1, "7"), record(2, "7"), record(3, "7")],
        [record(1, "6"), record(2, "6", "7"), record(3, "6", "7")],
        [record(1, "5"), record(2, "5", "5"), record(3, "5", "5", "5")],
        [record(1, "1"), record(2, "7"), record(3, "3", "3", "3")],
        [record(1, None), record(2, None, None), record(3, None, None, None)],
    ]
    one, two, three = rows = ev.accuracy_at_k(asked)["by_attempts"]
    # attempts allowed, right at first, right at all, attempts used, share of the later answers that repeat one
    by_hand = (1, 1, 1, 1.0, None), (2, 2, 3, 1.6, 1 / 2), (3, 1, 2, 2.4, 4 / 5)
    for row, (k, first, correct, used, repeated) in zip(rows, by_hand, strict=True):
        assert (row["attempts"], row["questions"], row["accuracy_first"]) == (k, 5, first / 5)
        assert (row["accuracy"], row["low"], row["high"]) == (correct / 5, *ev.wilson(correct, 5))
        assert (row["attempts_used"], row["tokens"], row["truncated"]) == pytest.approx((used, 10 * used, 1 / 5))
        assert row["repeated"] == repeated  # with 3 allowed, the later answers are 7, twice 5 again, twice 3 again
    assert "gain" not in one and (two["gain"], three["gain"]) == pytest.approx((2 / 5, 1 / 5))  # over the first
    assert three["gain_low"] == ev.gain([1, 0, 0, 0, 0], [1, 1, 0, 0, 0])["gain_low"]


# -------------------- The command
@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """Small models, one of them without the special tokens of any chat template, and questions."""
    folder, tokenizer = tmp_path_factory.mktemp("place"), copy.deepcopy(tokenizer)
    tokenizer.add_tokens([f"<|{name}|>" for name in ("begin_of_text", "eot_id", "start_header_id", "end_header_id")])
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    for seed, (name, its_own) in enumerate({"base": tokenizer, "trained": tokenizer, "plain": plain}.items()):
        small_model(tokenizer, seed=seed).save_pretrained(folder / name)
        its_own.save_pretrained(folder / name)
    for name, numbers in {"a": range(3), "b": range(2, 5)}.items():  # they share a question
        rows = [json.dumps({"question": f"How much is {i} + 1?", "answer": i + 1}) for i in numbers]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    return folder


ASK = "--model base --data a.jsonl,b.jsonl --attempts 2 --samples 3 --slots 2 --max_new_tokens 24 --out out --seed 3"
FULL, LARGE = OSError(errno.ENOSPC, "No space left on device"), OSError("the key/value cache takes 9 GB")
ALL = [4, 4, 2, 4, 4, 4, 3]  # dialogues of each rollout: 5 questions with 2 numbers of attempts, and with 3 samples


@pytest.fixture
def evaluation(place, tmp_path, monkeypatch):
    """The command, in a folder with the models. Returns how many dialogues each call of the rollout was asked for;
    evaluation.calls has the calls."""
    for path in place.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ev, "PER_SLOT_CPU", 2)
    drawn = Mock()  # drawing is slow
    monkeypatch.setattr(ev, "plot_accuracy", drawn, raising=False)

    def run(more="", ask=ASK):
        with patch("evaluate.rollout", wraps=ev.rollout) as watched:
            run.calls = watched.call_args_list
            ev.main([*ask.split(), *more.split()])
        return [len(call.args[2]) for call in run.calls]

    return run


def files():
    return {path.name: path.read_bytes() for path in Path("out").iterdir()}


def test_the_files_of_two_models_and_two_data_sets(evaluation, monkeypatch, capsys):
    """One of the models has a label."""
    monkeypatch.setattr(ev, "plot_accuracy", plots.plot_accuracy)
    evaluation("--model base,ours=trained/ --show 1 --show_what all")
    found, (printed, progress) = json.loads(files()["results.json"]), capsys.readouterr()
    assert "base, greedy, 4 of 10 finished\n" in progress and "ours, samples, 0 of 15 finished\n" in progress
    names = [f"{name}{what}" for name in ("base", "ours") for what in ("", ", pass@k of independent samples")]
    assert list(found["models"]) == names and found["options"]["samples"] == 3
    for name, result in found["models"].items():
        assert [row["questions"] for row in result["by_data"].values()] == [3, 3]
        assert result["by_data"]["a.jsonl"].get("samples") == (3 if "pass@k" in name else None)
    assert list(found["paired"]["base : ours"]) == ["all", "a.jsonl", "b.jsonl"]
    text = plots.tables("a.jsonl, b.jsonl", found["models"], found["paired"]) + "\n"
    assert printed.startswith(text) and files()["table.md"].decode() == text
    assert printed.count("=== ") == 2 and "You have 2 attempts to answer" in printed
    base, ours = (json.loads(files()[f"dialogues-{name}.json"]) for name in ("base", "ours"))
    assert len(base) == len(ours) == 6 * 2 and base != ours  # without the samples
    page = files()["dialogues.html"].decode()  # those with the most attempts
    assert page.count('"name": "base"') == page.count('"name": "ours"') == 6
    names = {f"{kind}-{name}" for kind in ("dialogues", "greedy", "samples") for name in ("base", "ours")}
    assert {path.stem for path in Path("out").iterdir()} - {"accuracy"} == names | {"results", "table", "dialogues"}
    assert evaluation("--model base,ours=trained --data a.jsonl --samples 0") == []
    assert capsys.readouterr().out.startswith("a.jsonl: 3 q") and files()["accuracy.png"].startswith(b"\x89PNG")


@pytest.mark.parametrize("sets, curves", [(data.PAPER, True), (["math500", "a"], False)])
def test_the_papers_curves_are_drawn_with_its_five_benchmarks(sets, curves, evaluation, monkeypatch):
    monkeypatch.setattr(ev, "load_sets", lambda names: dict.fromkeys(sets, PROBLEMS[:1]))
    evaluation("--samples 0")
    (call,) = ev.plot_accuracy.call_args_list
    assert (plots.PAPER_CURVES in [*call.args, *call.kwargs.values()]) == curves


def test_limit_is_a_seeded_shuffle(evaluation):
    def take(limit, seed):
        _, sets, paths, out = ev.read_inputs(dict(model="base", data="./a.jsonl", limit=limit, seed=seed))
        assert paths == {"base": "base"} and out == Path("runs/evaluate/base-.-a")  # where --out does not say
        return [problem.gold for problem in sets["./a.jsonl"]]

    assert take(None, 0) == ["1", "2", "3"] == sorted(take(9, 0))
    assert take(2, 0) == take(2, 0) == take(3, 0)[:2]
    assert len({tuple(take(3, seed)) for seed in range(8)}) > 1


def test_a_model_of_a_run_is_asked_as_in_the_run(evaluation, capsys):
    its_own = dict(max_new_tokens=50, max_attempt_tokens=9, feedback="uncounted", chat_template="llama3")
    for name, config in {"a": Config(**its_own), "b": Config(max_new_tokens=60)}.items():
        shutil.copytree("base", f"runs/{name}/model")
        save_json(asdict(config), f"runs/{name}/config.json")
    os.symlink("runs/b/model", "link")

    def asked(more):
        evaluation(f"--model runs/a/model,link --data a.jsonl --attempts 1 {more}", ask="")
        for _, chat, _, _, _, config, *_ in (call.args for call in evaluation.calls):
            said = chat.decode(chat.feedback_after(-1, 1, Mock(answer="1"), ""))
            feedback = "paper" if "1 attempts left" in said else "uncounted"
            yield config.max_new_tokens, config.max_attempt_tokens, feedback, chat.template.end

    assert list(asked("--out own")) == [(50, 9, "uncounted", "<|eot_id|>"), (60, None, "paper", "<|im_end|>")]
    results, said = (Path("own", name).read_text() for name in ("results.json", "table.md"))
    assert json.loads(results)["asked_with"]["runs/a/model"] == its_own and "different --max_new_tokens" in said
    line = "--out said --max_new_tokens 55 --max_attempt_tokens none --feedback paper"
    assert list(asked(line)) == [(55, None, "paper", "<|eot_id|>"), (55, None, "paper", "<|im_end|>")]
    Path("runs/b/config.json").write_text("{")
    with pytest.raises(SystemExit, match="2"):
        list(asked("--out damaged"))
    assert "runs/b/config.json is not JSON: " in capsys.readouterr().err


def test_one_process_at_a_time_writes_to_a_folder(evaluation, capsys):
    with locked_folder("out"), pytest.raises(SystemExit, match="2"):
        evaluation()
    assert "another process writes to out: wait for its end, or choose another --out" in capsys.readouterr().err


# -------------------- Started again
KEPT = "; what is finished is kept: repeat the command to resume\n"
ENDS = [  # what ends an evaluation, how (DEFAULT: a rollout as it is), its last words, and what is left to ask
    *[("evaluate.rollout", [*[DEFAULT] * n, KeyboardInterrupt], f"\nstopped{KEPT}", ALL[n:]) for n in (0, 2, 5)],
    ("evaluate.load_sets", KeyboardInterrupt, "\nstopped\n", ALL),  # in a download, say
    ("os.fsync", FULL, f": {FULL.strerror}{KEPT}", ALL[1:]),
    ("evaluate.save_json", FULL, f": {FULL.strerror}{KEPT}", []),
    ("evaluate.rollout", [DEFAULT, LARGE], f": {LARGE}{KEPT}", ALL[1:]),
]


def test_started_again_it_asks_only_what_is_missing(evaluation, capsys):
    assert evaluation() == ALL
    whole = files()
    for where, error, words, rest in ENDS:
        shutil.rmtree("out")
        with patch(where, wraps=rollout, side_effect=error), pytest.raises(SystemExit) as stop:
            evaluation()
        assert stop.value.code == (130 if "\nstopped" in words else 2) and capsys.readouterr().err.endswith(words)
        assert not Path("out/results.json").exists()
        assert evaluation() == rest and files() == whole
    assert evaluation() == [] and files() == whole


LESS = [
    ("--limit 1", 2 * (2 + 3), 3 * (2 + 3)),
    ("--data b.jsonl --samples 0", 3 * 2, 2 * 2 + 5 * 3),
    ("--attempts 1 --samples 2", 5 * (1 + 2), 5 * (1 + 1)),
    ("--limit 1 --attempts 1 --samples 2 --data a.jsonl", 1 + 2, 10 + 15 - 3),
]


@pytest.mark.parametrize("less, asked, rest", LESS)
def test_asking_for_more_asks_only_what_is_missing(less, asked, rest, evaluation):
    def found():
        return json.loads(files()["results.json"])["models"]["base"], files()["dialogues-base.json"]

    assert sum(evaluation(less)) == asked
    before, calls = found(), evaluation.calls
    assert sum(evaluation()) == rest
    streams = []
    for call in calls + evaluation.calls:
        seed, first, temperature = (call.kwargs[key] for key in ("seed", "first_index", "temperature"))
        streams += [(*seed, first + d) for d in range(len(call.args[2])) if temperature]
    assert streams == [(3, 0, i) for i in range(15)]  # no two samples draw the same random numbers
    grown = found()
    assert evaluation(less) == [] and found() == before  # less is there already
    assert evaluation("--slots 7 --show 1") == []
    shutil.rmtree("out")
    evaluation()
    assert found() == grown


OTHERS = [
    ("--max_new_tokens 25", None, "max_new_tokens"),
    ("--max_attempt_tokens 4", None, "max_attempt_tokens"),
    ("--seed 1", None, "seed"),
    ("--dtype bfloat16", None, "model content, dtype"),
    ("--feedback uncounted", None, "feedback"),
    ("", patch.dict(data.chat.FEEDBACKS, paper=data.chat.FEEDBACKS["paper"].replace("{attempts}", "1")), "feedback"),
    ("", patch.object(data.chat, "SYSTEM", "Be quick."), "prompt"),
    ("", patch("evaluate.RULES", ev.RULES._replace(is_equal=small_model)), "sources"),
    ("", patch("evaluate.load_model", lambda _, *rest: load_model("trained", *rest)), "model content"),
]


@pytest.mark.parametrize("more, change, difference", OTHERS)
def test_another_configuration_is_refused(more, change, difference, evaluation, capsys):
    evaluation("--limit 1")
    before = files()
    with change or nullcontext(), pytest.raises(SystemExit, match="2"):
        evaluation(more)
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"-base.jsonl has other settings ({difference}): " in error
    assert error.endswith(": choose another --out, or delete it") and files() == before


# -------------------- Mistakes
MISTAKES = [
    ("--attempts 0", "--attempts must be a number greater than 0, not 0"),
    ("--samples 1", "--samples must be 0 or at least --attempts, not 1"),
    ("--feedback kind", "unknown feedback 'kind': choose one of paper, uncounted, uninformative"),
    *[
        (f"--model {names}", "--model must give each model once, under its own label")
        for names in ("base,base/", "a=b,a=c", "=b", "a|b=c", "$a=c")
    ],
    ("--model base,missing", "there is no model folder missing: "),
    ("--model .", "the model . cannot be loaded: "),
    ("--model plain", "the tokenizer does not know the token <|im_end|> of the chat template 'chatml': choose "),
    ("--data a.jsonl,gsm8k-tset", "no data set is called 'gsm8k-tset': expected a path that ends in .jsonl, or "),
    ("--out base", "base is the folder of a run or a model: choose another --out"),
    ("--out a.jsonl", "the output folder a.jsonl cannot be written (File exists): "),
    ("--max_new_tokens 3000", "the longest prompt ("),
]


@pytest.mark.parametrize("more, sentence", MISTAKES)
def test_mistakes_are_one_sentence_before_the_long_work(more, sentence, evaluation, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    with patch("evaluate.evaluate", side_effect=AssertionError), pytest.raises(SystemExit, match="2"):
        evaluation(more)
    error = capsys.readouterr().err
    assert error.startswith(f"evaluate.py: {sentence}") and error.count("\n") == 1
