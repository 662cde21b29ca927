"""Evaluation: the numbers, what a prompt allows, the table, the plots, and a command line that fails in one sentence.

A scripted model stands in for a network. It goes through the real rollout engine: the engine gives a model a cache with
an `update` method that returns all that its row has been fed, and this model stores the token ids themselves in it.
"""

import errno
import json
import re
import struct
import sys
from collections import defaultdict
from concurrent.futures import Future
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.hf_argparser import HfArg

import data
import evaluate as ev
from data import Problem
from reward import is_equal
from rollout import rollout
from support import cli, journal, plots

CHARACTERS = [chr(c) for c in range(32, 127)] + ["\n"]
SPECIAL = ["<unk>", "<|im_start|>", "<|im_end|>"]


def characters_as_tokens(**special):
    vocabulary = {text: i for i, text in enumerate(SPECIAL + CHARACTERS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **special)


@pytest.fixture(scope="module")
def tokenizer():
    """One token a character, and ChatML's special tokens; no pad token."""
    return characters_as_tokens(eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"])


class ScriptedModel:
    """Writes, letter by letter, what `script(question, allowed, attempt)` says, then an end token."""

    def __init__(self, tokenizer, script):
        self.tokenizer, self.script = tokenizer, script
        self.device, self.dtype, self.generation_config = torch.device("cpu"), torch.float32, None
        self.config = SimpleNamespace(
            num_hidden_layers=1,
            num_key_value_heads=1,
            head_dim=1,
            hidden_size=1,
            num_attention_heads=1,
            vocab_size=len(tokenizer),
            max_position_embeddings=4096,
            model_type="scripted",
        )

    def set_attn_implementation(self, name):
        pass

    def base_model(self, input_ids, past_key_values, **_):
        ids = input_ids[:, None, :, None].float()
        return past_key_values.update(ids, ids, 0)[0][:, 0, :, 0].long()

    def __call__(self, input_ids, position_ids, past_key_values, **_):
        fed = self.base_model(input_ids, past_key_values)
        logits = torch.zeros(len(fed), 1, self.config.vocab_size)
        for row, (tokens, position) in enumerate(zip(fed, position_ids[:, 0].tolist())):
            logits[row, 0, self.next(self.tokenizer.decode(tokens[: position + 1].tolist()))] = 50.0
        return SimpleNamespace(logits=logits)

    def next(self, text: str) -> int:
        _, *attempts = text.split("<|im_start|>assistant\n")
        if not attempts:  # an empty slot, or a prompt that is still being fed
            return 0
        question = re.search(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", text, re.DOTALL)[1]
        allowed = int(re.search(r"You have (\d+) attempts to answer", text)[1])
        target, written = self.script(question, allowed, len(attempts) - 1), len(attempts[-1])
        return self.tokenizer.convert_tokens_to_ids(target[written] if written < len(target) else "<|im_end|>")


ANSWERS = {"first": "77", "second": "67", "repeats": "555"}  # one digit an attempt
GOLDS = {"first": "7", "second": "7", "repeats": "7", "named": "2", "mute": "7"}
PROBLEMS = [Problem(question, gold) for question, gold in GOLDS.items()]


def script(question, allowed, attempt):
    if question == "mute":
        return "I do not know."
    answer = str(allowed) if question == "named" else ANSWERS[question][attempt]
    return f"So \\boxed{{{answer}}}"


def grade(answer, gold):
    future = Future()
    future.set_result(is_equal(answer, gold))
    return future


# ---- The numbers


def test_the_gain_is_that_over_the_first_number_of_attempts():
    asked = [
        [
            {"allowed": k, "correct": correct, "truncated": False, "tokens": 1, "attempts": []}
            for k, correct in enumerate(solved, 1)
        ]
        for solved in ((True, True, True), (False, True, True), (False, False, True))
    ]
    first, second, third = ev.accuracy_at_k(asked)["by_attempts"]
    assert "gain" not in first and (second["gain"], third["gain"]) == pytest.approx((1 / 3, 2 / 3))
    for row, solved in ((second, [1, 1, 0]), (third, [1, 1, 1])):
        assert row["gain_low"] == ev.gain([1, 0, 0], solved)["gain_low"]


# ---- A whole evaluation


@pytest.fixture(scope="module")
def result(tokenizer):
    model = ScriptedModel(tokenizer, script)
    return ev.evaluate(model, tokenizer, PROBLEMS, attempts=3, grade=grade, max_new_tokens=500)


def test_evaluate_counts(result):
    one, two, three = result["by_attempts"]
    # solved: "first" always, "second" from 2 on, "named" when 2 attempts are allowed, the others never
    assert [row["correct"] for row in (one, two, three)] == [1, 3, 2]
    assert [row["attempts"] for row in (one, two, three)] == [1, 2, 3]
    assert all(row["questions"] == result["questions"] == 5 and row["truncated"] == 0 for row in (one, two, three))
    assert two["accuracy"] == 0.6 and (two["low"], two["high"]) == ev.wilson(3, 5)
    # later answers with 3 allowed: 7 (second), 5, 5 (repeats), 3, 3 (named)
    assert (one["repeated"], two["repeated"], three["repeated"]) == (None, 0.5, 0.8)
    assert [row["attempts_used"] for row in (one, two, three)] == pytest.approx([1, 8 / 5, 12 / 5])
    # "So \boxed{7}" is 12 tokens, cut at the brace; "I do not know." is 14 and its end token
    assert one["tokens"] == pytest.approx((4 * 12 + 15) / 5)


def test_every_dialogue_is_recorded(result):
    dialogues = result["dialogues"]
    assert [(d["question"], d["allowed"]) for d in dialogues] == [(p.question, k) for p in PROBLEMS for k in (1, 2, 3)]
    for d in dialogues:
        assert f"You have {d['allowed']} attempts to answer" in d["text"]
        assert d["text"].count("Your answer is incorrect.") == len(d["attempts"]) - 1
        assert all(attempt["text"] in d["text"] for attempt in d["attempts"])
    second = dialogues[5]
    assert second["gold"] == "7" and second["correct"] and second["reward"] == 1.0 and not second["truncated"]
    assert [(a["answer"], a["correct"]) for a in second["attempts"]] == [("6", False), ("7", True)]
    assert second["text"].endswith(
        "<|im_start|>assistant\nSo \\boxed{6}<|im_end|>\n"
        "<|im_start|>system\nYour answer is incorrect. You have 2 attempts left. Try an alternative.<|im_end|>\n"
        "<|im_start|>assistant\nSo \\boxed{7}"
    )
    mute = dialogues[-1]
    assert [a["answer"] for a in mute["attempts"]] == [None] * 3 and mute["reward"] == -1.0
    assert json.loads(json.dumps(result)) == result


def test_slots_and_duplicates_change_nothing(tokenizer, result):
    model = ScriptedModel(tokenizer, script)
    doubled = ev.evaluate(model, tokenizer, PROBLEMS * 2, attempts=3, grade=grade, slots=4, max_new_tokens=500)
    assert doubled["dialogues"] == result["dialogues"] * 2
    assert [row["correct"] for row in doubled["by_attempts"]] == [2, 6, 4]


def test_budgets_reach_the_rollout(tokenizer):
    model = ScriptedModel(tokenizer, script)
    short = ev.evaluate(model, tokenizer, PROBLEMS[:1], attempts=1, grade=grade, max_new_tokens=5)
    assert short["by_attempts"][0]["truncated"] == 1.0 and short["by_attempts"][0]["tokens"] == 5
    cut = ev.evaluate(model, tokenizer, PROBLEMS[:1], attempts=2, grade=grade, max_new_tokens=500, max_attempt_tokens=5)
    assert [attempt["text"] for attempt in cut["dialogues"][1]["attempts"]] == ["So \\b", "So \\b"]


def test_feedback_reaches_the_dialogues(tokenizer):
    model = ScriptedModel(tokenizer, script)
    options = dict(attempts=2, grade=grade, feedback="uninformative", max_new_tokens=500)
    text = ev.evaluate(model, tokenizer, PROBLEMS[1:2], **options)["dialogues"][1]["text"]
    assert "incorrect" not in text and text.count("Please reason step by step") == 2
    assert text.count("<|im_start|>system") == 2


class SamplingModel(ScriptedModel):
    """At the only digit of its answer, `chances[question]` gives the probability of a 7; otherwise it is a 6."""

    chances = {"always": 1.0, "never": 0.0, "half": 0.5}

    def __call__(self, input_ids, position_ids, past_key_values, **_):
        fed = self.base_model(input_ids, past_key_values)
        logits = torch.full((len(fed), 1, self.config.vocab_size), -100.0)
        for row, (tokens, position) in enumerate(zip(fed, position_ids[:, 0].tolist())):
            text = self.tokenizer.decode(tokens[: position + 1].tolist())
            logits[row, 0, self.next(text)] = 0.0
            if text.endswith("\\boxed{"):
                chance = self.chances[re.search(r"user\n(.*?)<", text)[1]]
                for digit, share in (("7", chance), ("6", 1 - chance)):
                    logits[row, 0, self.tokenizer.convert_tokens_to_ids(digit)] = torch.tensor(share).log()
        return SimpleNamespace(logits=logits)


def test_pass_at_k(tokenizer):
    model = SamplingModel(tokenizer, lambda *_: "So \\boxed{7}")
    problems = [Problem(question, "7") for question in SamplingModel.chances]

    def draw(seed):
        drawing = dict(temperature=1.0, seed=(seed, 0), grade=grade, max_new_tokens=60)
        dialogues = ev.ask(model, tokenizer, [(problem, 1) for problem in problems for _ in range(20)], **drawing)
        return [dialogues[i : i + 20] for i in (0, 20, 40)]

    asked = draw(3)
    result = ev.pass_at_k(asked, attempts=3)
    always, never, c = (sum(dialogue["correct"] for dialogue in same) for same in asked)
    assert (always, never) == (20, 0) and 3 < c < 17  # every sample has its own random numbers
    for k, row in enumerate(result["by_attempts"], 1):
        missed = 1.0
        for i in range(k):  # k different samples, all of them wrong
            missed *= (20 - c - i) / (20 - i)
        middle = (1 + 0 + 1 - missed) / 3
        assert row["accuracy"] == pytest.approx(middle) and row["attempts"] == k and row["questions"] == 3
        assert (row["low"], row["high"]) == pytest.approx(ev.wilson(3 * middle, 3))
        assert row["tokens"] == 12 * k and row["repeated"] is None
    assert {dialogue["allowed"] for same in asked for dialogue in same} == {1} and result["samples"] == 20
    assert draw(3) == asked and any(draw(seed) != asked for seed in (4, 5, 6))
    none = ev.pass_at_k(asked[1:2], attempts=3)["by_attempts"]  # 0 of 20 samples of a single question
    assert {(row["low"], row["high"]) for row in none} == {ev.wilson(0, 1)}  # are no certainty


# ---- Showing


def png_size(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) > 10_000  # an empty frame is smaller
    return struct.unpack(">II", content[16:24])


def test_save_json_replaces_the_whole_file(tmp_path):
    path = tmp_path / "a.json"
    cli.save_json({"a": 1}, path)
    with pytest.raises(TypeError):
        cli.save_json({"a": object()}, path)
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


# ---- The command line


@dataclass
class Some:
    model: str = HfArg(help="needed")
    max_steps: int | None = HfArg(default=None, help="optional")
    rate: float = HfArg(default=0.5, help="a number")
    resume: bool = HfArg(default=False, help="a flag")


def test_parse():
    assert cli.parse(Some, ["--model", "a"]) == Some("a", None, 0.5, False)
    assert cli.parse(Some, ["--model=a", "--max-steps", "3", "--resume", "--rate", "-1"]) == Some("a", 3, -1.0, True)
    assert cli.parse(Some, ["--model", "a"], {"max_steps": 7, "rate": 2.0}) == Some("a", 7, 2.0, False)
    assert cli.parse(Some, ["--model", "a", "--max_steps", "none"], {"max_steps": 7}) == Some("a", None, 0.5, False)


@pytest.mark.parametrize(
    "argv, sentence",
    [
        ([], "the following arguments are required: --model"),
        (["--modle", "a"], "there is no option --modle: did you mean --model?"),
        (["--model", "a", "--max_step=3"], "there is no option --max_step: did you mean --max_steps?"),
        (["--model", "a", "--xyzzy"], "there is no option --xyzzy, see --help"),
        (["--model", "a", "--max_steps", "3.5"], "argument --max_steps/--max-steps: invalid int value: '3.5'"),
        (["--model", "a", "b"], "'b' belongs to no option, see --help"),
        (["--model"], "argument --model: expected one argument"),
    ],
)
def test_parse_refuses_in_one_sentence(argv, sentence, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["folder/train.py"])
    with pytest.raises(SystemExit) as stop:
        cli.parse(Some, argv)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"train.py: {sentence}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A folder with tiny random models, one of them without the special tokens of any chat template, and questions."""
    folder = tmp_path_factory.mktemp("cli")
    for seed, name in enumerate(("base", "trained", "plain")):
        torch.manual_seed(seed)
        config = LlamaConfig(  # of a Qwen2 folder, AutoTokenizer would replace our tokenizer's rules by its own
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        (characters_as_tokens() if name == "plain" else tokenizer).save_pretrained(folder / name)
    rows = [{"question": f"How much is {i} + 1?", "answer": str(i + 1)} for i in range(3)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"question": f"How much is {i} - 1?", "answer": str(i - 1)} for i in range(2)]
    (folder / "differences.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "broken.jsonl").write_text('{"question": "q", "answer": "1"}\n{"question": "r"}\n')
    (folder / "file").write_text("in the way")
    (folder / "empty").mkdir()
    return folder


def test_main_with_two_models(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert PreTrainedTokenizerFast.from_pretrained("base").pad_token is None  # nothing needs one
    options = "--attempts 2 --limit 2 --max_new_tokens 8 --slots 3 --out out/a"
    ev.main(["--model", "base,trained/", "--data", "sums.jsonl", *options.split()])
    saved = json.loads((folder / "out/a/results.json").read_text())
    assert saved["options"]["limit"] == 2 and list(saved["models"]) == ["base", "trained"]
    assert plots.table(saved["models"]) in capsys.readouterr().out
    png_size(folder / "out/a/accuracy.png")
    asked = [json.loads((folder / f"out/a/dialogues-{name}.json").read_text()) for name in saved["models"]]
    assert [len(dialogues) for dialogues in asked] == [4, 4] and asked[0] != asked[1]
    assert [d["question"] for d in asked[0]] == [d["question"] for d in asked[1]]
    assert asked[0][1]["text"].startswith("<|im_start|>system\nPlease reason step by step,")
    assert "have 2 attempts to" in asked[0][1]["text"]
    keys = {"question", "gold", "allowed", "correct", "reward", "truncated", "tokens", "text", "attempts"}
    assert keys == asked[0][0].keys()
    names = {f"{kind}-{name}" for kind in ("dialogues", "greedy") for name in ("base", "trained")}
    names |= {"results", "table", "accuracy", "dialogues"}
    assert {path.stem for path in (folder / "out/a").iterdir()} == names  # and nothing left behind


def test_main_over_data_sets(folder, monkeypatch, capsys):
    """The mean has every data set at the same weight, though one has 3 questions and the other 2."""
    monkeypatch.chdir(folder)
    drawn = []
    monkeypatch.setattr(ev, "plot_benchmarks", lambda *args: drawn.append(args) or plots.plot_benchmarks(*args))
    options = "--attempts 2 --samples 2 --max_new_tokens 8 --out out/d"
    ev.main(["--model", "base,trained", "--data", "sums.jsonl, differences.jsonl", *options.split()])
    saved = json.loads((folder / "out/d/results.json").read_text())
    assert list(saved["models"]["base"]["by_data"]) == ["sums.jsonl", "differences.jsonl"]
    assert [found["questions"] for found in saved["models"]["base"]["by_data"].values()] == [3, 2]
    assert saved["models"]["base"]["questions"] == 5
    sampled = saved["models"]["trained, pass@k of independent samples"]["by_data"]["sums.jsonl"]
    assert sampled["samples"] == 2 and sampled["questions"] == 3
    assert list(saved["paired"]) == ["base : trained"]
    assert list(saved["paired"]["base : trained"]) == ["all", "sums.jsonl", "differences.jsonl"]
    printed = capsys.readouterr().out
    title = "sums, differences: 5 questions"
    assert printed.startswith(plots.tables(title, saved["models"], saved["paired"]) + "\n")
    assert printed.startswith((folder / "out/d/table.md").read_text())
    assert len(json.loads((folder / "out/d/dialogues-base.json").read_text())) == 10
    assert drawn[0][2] == {}  # the paper's curves belong to its own five alone
    png_size(folder / "out/d/accuracy.png")


def test_the_papers_curves_are_drawn_with_its_five_benchmarks(folder, monkeypatch):
    monkeypatch.chdir(folder)
    drawn = []
    monkeypatch.setattr(ev, "plot_benchmarks", lambda *args: drawn.append(args))
    sets = {name: [Problem("How much is 1 + 1?", "2")] for name in data.PAPER}
    monkeypatch.setattr(ev, "load_sets", lambda names: sets)
    ev.main("--model base --data paper --attempts 1 --max_new_tokens 8".split())
    assert drawn[0][2] == plots.PAPER_CURVES and {len(curve) for curve in plots.PAPER_CURVES.values()} == {7}
    assert (folder / "runs/evaluate/base-paper/results.json").exists()


def test_main_with_samples(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    options = "--attempts 2 --samples 3 --feedback uncounted --max_new_tokens 8 --out out/s"
    ev.main(["--model", "base", "--data", "sums.jsonl", *options.split()])
    saved = json.loads((folder / "out/s/results.json").read_text())["models"]
    assert list(saved) == ["base", "base, pass@k of independent samples"]
    sampled = saved["base, pass@k of independent samples"]
    assert sampled["samples"] == 3 and [row["attempts"] for row in sampled["by_attempts"]] == [1, 2]
    assert "| base, pass@k of independent samples |" in capsys.readouterr().out
    dialogues = json.loads((folder / "out/s/dialogues-base.json").read_text())
    assert len(dialogues) == 6  # of the greedy evaluation alone


def test_limit_is_a_seeded_shuffle(folder, monkeypatch):
    monkeypatch.chdir(folder)

    def take(limit, seed):
        options = ev.Options(model="base", data="sums.jsonl", limit=limit, seed=seed, max_new_tokens=8, out="out/b")
        return [problem.question for problem in ev.prepare(options)[0]["sums.jsonl"]]

    assert take(None, 0) == [f"How much is {i} + 1?" for i in range(3)]
    assert take(2, 0) == take(2, 0) == take(3, 0)[:2] and sorted(take(9, 0)) == take(None, 0)
    assert len({tuple(take(3, seed)) for seed in range(8)}) > 1


def test_file_names():
    assert ev.file_name("/runs/base") == ev.file_name("runs/base/") == "runs-base"


# ---- Started again

ASK = "--data sums.jsonl,differences.jsonl --attempts 2 --samples 3 --slots 2 --max_new_tokens 8 --out out --model"


class Watched:
    """Stands in the rollout's place: counts the dialogues of each call, and stops the program in call `stop`."""

    def __init__(self, drawn, stop=None):
        self.drawn, self.stop, self.calls = drawn, stop, []

    def __call__(self, model, tokenizer, questions, *args, temperature, seed, first, **kwargs):
        self.calls.append(len(questions))
        if len(self.calls) == self.stop:
            raise KeyboardInterrupt
        if temperature:
            streams = {(*seed, first + d) for d in range(len(questions))}
            assert not streams & self.drawn  # no two samples draw the same random numbers
            self.drawn |= streams
        return rollout(model, tokenizer, questions, *args, temperature=temperature, seed=seed, first=first, **kwargs)


@pytest.fixture
def evaluation(folder, tmp_path, monkeypatch):
    """evaluation(name, stop=None, more=""): evaluates in the folder `name`; dialogues of each rollout, at most 4."""
    drawn = defaultdict(set)  # in each folder, over all its evaluations
    monkeypatch.setattr(ev, "CHUNK_CPU", 2)
    monkeypatch.setattr(ev, "plot_benchmarks", lambda *_: None)  # slow, and tested elsewhere
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)

    def run(name, stop=None, more=""):
        (tmp_path / name).mkdir(exist_ok=True)
        for file in ("base", "sums.jsonl", "differences.jsonl"):
            if not (tmp_path / name / file).exists():
                (tmp_path / name / file).symlink_to(folder / file)
        monkeypatch.chdir(tmp_path / name)
        watched = Watched(drawn[name], stop)
        monkeypatch.setattr(ev, "rollout", watched)
        ev.main([*ASK.split(), "base", *more.split()])
        return watched.calls

    return run


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


ALL = [4, 4, 2, 4, 4, 4, 3]  # 5 questions with 2 numbers of attempts, and with 3 samples


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 7])
def test_started_again_it_asks_only_what_is_missing(stop, evaluation, tmp_path, capsys):
    assert evaluation("whole") == ALL
    with pytest.raises(SystemExit) as stopped:
        evaluation("killed", stop=stop)
    assert stopped.value.code == 130
    assert "stopped; what is finished is kept, start again to go on" in capsys.readouterr().err
    assert not (tmp_path / "killed/out/results.json").exists()
    assert evaluation("killed") == ALL[stop - 1 :]
    assert files(tmp_path / "killed/out") == files(tmp_path / "whole/out")
    assert evaluation("killed") == []
    assert files(tmp_path / "killed/out") == files(tmp_path / "whole/out")


def test_stopped_before_the_first_question(evaluation, tmp_path, monkeypatch, capsys):
    def stopped(_):
        raise KeyboardInterrupt  # in a download, say

    monkeypatch.setattr(ev, "load_sets", stopped)
    with pytest.raises(SystemExit) as stop:
        evaluation("a")
    assert stop.value.code == 130 and capsys.readouterr().err == "\nstopped\n"
    assert not (tmp_path / "a/out").exists()


def test_a_full_disk_is_one_sentence(evaluation, tmp_path, monkeypatch, capsys):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(journal.os, "fsync", full)
        evaluation("full")
    assert stop.value.code == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith(": [Errno 28] No space left on device; what is finished is kept, start again to go on")
    )
    evaluation("full")
    evaluation("whole")
    assert files(tmp_path / "full/out") == files(tmp_path / "whole/out")


@pytest.mark.parametrize("left", [0, 1, 50, -1])
def test_half_written_lines_are_asked_again(left, evaluation, tmp_path):
    """The kill came in the middle of an append: of the last line only so many bytes are there."""
    evaluation("whole")
    evaluation("killed")
    path = tmp_path / "killed/out/greedy-base.jsonl"
    *lines, last, _ = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines, last[:left]]))
    assert evaluation("killed") == [2]
    assert files(tmp_path / "killed/out") == files(tmp_path / "whole/out")
    path.write_bytes(lines[0][:20])  # not even the settings
    assert evaluation("killed") == [4, 4, 2]
    assert files(tmp_path / "killed/out") == files(tmp_path / "whole/out")


@pytest.mark.parametrize(
    "less, asked, rest",
    [
        ("--limit 1", 2 * (2 + 3), 3 * (2 + 3)),
        ("--data differences.jsonl", 2 * (2 + 3), 3 * (2 + 3)),
        ("--attempts 1", 5 * (1 + 3), 5),
        ("--samples 2", 5 * (2 + 2), 5),
        ("--attempts 1 --samples 0", 5, 5 + 5 * 3),
        ("--limit 1 --attempts 1 --samples 2 --data sums.jsonl", 1 + 2, 10 + 15 - 3),
    ],
)
def test_asking_for_more_asks_only_what_is_missing(less, asked, rest, evaluation, tmp_path):
    def found(name):
        content = files(tmp_path / name / "out")
        return json.loads(content["results.json"])["models"]["base"], content["dialogues-base.json"]

    assert sum(evaluation("grown", more=less)) == asked
    before = found("grown")
    assert sum(evaluation("grown")) == rest
    evaluation("whole")
    assert found("grown") == found("whole")
    assert evaluation("grown", more=less) == [] and found("grown") == before  # and less is there already
    assert evaluation("grown", more="--slots 7 --show 1") == []


@pytest.mark.parametrize(
    "more, sentence",
    [
        ("--max_new_tokens 9", "max_new_tokens (8 there, 9 here)"),
        ("--max_attempt_tokens 4", "max_attempt_tokens (None there, 4 here)"),
        ("--feedback uncounted", "feedback (paper there, uncounted here)"),
        ("--seed 1", "seed (0 there, 1 here)"),
        ("--dtype bfloat16", "dtype (torch.float32 there, torch.bfloat16 here)"),
    ],
)
def test_another_configuration_is_refused(more, sentence, evaluation, tmp_path, capsys):
    evaluation("a", more="--limit 1")
    before = files(tmp_path / "a/out")
    with pytest.raises(SystemExit) as stop:
        evaluation("a", more=more)
    assert stop.value.code == 2 and files(tmp_path / "a/out") == before
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search("(greedy|samples)-base.jsonl holds an evaluation with other settings, ", error)
    assert sentence in error and error.endswith(": choose another --out, or delete it")


def test_the_same_name_with_other_weights_is_refused(evaluation, folder, tmp_path, capsys):
    evaluation("a", more="--limit 1")
    (tmp_path / "a/base").unlink()
    (tmp_path / "a/base").symlink_to(folder / "trained")
    with pytest.raises(SystemExit):
        evaluation("a", more="--limit 1")
    assert re.search(r"other settings, model content \(\w{16} there, \w{16} here\): choose", capsys.readouterr().err)


def finished(path, problems, size, settings={"k": 1}, attempts=1):
    """Through the journal, with 1, ... `attempts` attempts allowed; the chunks that were asked."""
    chunks = []

    def asked(chunk, first):
        chunks.append((first, [problem.question for problem, _ in chunk]))
        return [{"question": p.question, "gold": p.answer, "allowed": k, "correct": p.answer == "1"} for p, k in chunk]

    rows = journal.finish(path, settings, problems, range(1, attempts + 1), size, asked, "test")
    assert [[(row["question"], row["gold"], row["allowed"]) for row in same] for same in rows] == [
        [(p.question, p.answer, k) for k in range(1, attempts + 1)] for p in problems
    ]
    return chunks


def test_journal_asks_a_repeated_question_once_and_a_changed_one_again(tmp_path, capsys):
    path, a, b, c = tmp_path / "j.jsonl", Problem("a", "1"), Problem("b\n\u2028", "2"), Problem("c", "1")
    assert finished(path, [a, b, a, c], 2) == [(0, ["a", "b\n\u2028"]), (2, ["c"])]
    assert "correct_at_1=66.7%" in capsys.readouterr().err  # of the different questions
    assert finished(path, [c, b, a], 2) == [] and "correct_at_1=66.7%" in capsys.readouterr().err
    changed = Problem("c", "7")  # another gold answer, another verdict
    assert finished(path, [a, changed], 2) == [(3, ["c"])]
    with pytest.raises(ValueError, match=r"other settings, k \(1 there, 2 here\)"):
        finished(path, [a], 2, {"k": 2})
    with pytest.raises(ValueError, match=r"other settings, k \(1 there, None here\)"):
        finished(path, [a], 2, {})


def test_journal_asks_every_question_with_the_numbers_that_are_missing(tmp_path):
    path, a, b, c = tmp_path / "j.jsonl", *(Problem(question, "1") for question in "abc")
    assert finished(path, [a, b], 9) == [(0, ["a", "b"])]
    assert finished(path, [a], 9, attempts=3) == [(2, ["a", "a"])]
    assert finished(path, [c, b, a], 3, attempts=3) == [(4, ["c", "c", "c"]), (7, ["b", "b"])]  # [c1 c2 c3] [b2 b3]
    assert finished(path, [a, b, c], 9, attempts=2) == []


@pytest.mark.parametrize("content", ['{"k": 1}\n[{"quest\n[]\n', '{"k": 1}\n[[]]\n', '{"k": 1}\n[{}]\n', "[]\n"])
def test_damaged_journal(content, tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        journal.read_journal(path, {"k": 1})
    assert str(error.value).startswith(f"{path} is damaged (") and str(error.value).endswith(
        "): delete it, and its questions are asked again"
    )


def test_progress_shows_the_fewest_and_the_most_attempts():
    rows = [{"allowed": 1, "correct": False}, {"allowed": 2, "correct": False}, {"allowed": 3, "correct": True}]
    assert journal.running(rows + rows[:2]) == {"correct_at_1": "0.0%", "correct_at_3": "100.0%"}
    assert journal.running(rows[:1]) == {"correct_at_1": "0.0%"} and journal.running([]) == {}


# ---- Dialogues to look at


def test_main_shows_dialogues(evaluation, tmp_path, capsys):
    evaluation("a", more="--limit 1 --show 1 --show_what never")
    printed = capsys.readouterr().out
    assert printed.count("=== ") == 1 and "You have 2 attempts to answer" in printed and "\033" not in printed
    assert (tmp_path / "a/out/dialogues.html").read_text().count("<details ") == 2  # those with the most attempts
    assert evaluation("a", more="--limit 1 --show 5 --show_what all") == []  # without asking again
    assert capsys.readouterr().out.count("=== ") == 2
    evaluation("a", more="--limit 1")
    assert "=== " not in capsys.readouterr().out


GOOD = {"model": "base", "data": "sums.jsonl", "max_new_tokens": 8, "out": "out/c", "device": "cpu"}


@pytest.mark.parametrize(
    "changed, sentence",
    [
        ({"attempts": 0}, "--attempts must be 1 or more, not 0"),
        ({"limit": -1}, "--limit must be 1 or more, not -1"),
        ({"limit": 0}, "--limit must be 1 or more, not 0"),
        ({"slots": 0}, "--slots must be 1 or more, not 0"),
        ({"samples": -1}, "--samples must be 0 or at least --attempts, not -1"),
        ({"samples": 4}, "--samples must be 0 or at least --attempts, not 4"),
        ({"feedback": "kind"}, "unknown feedback 'kind': choose one of paper, uncounted, uninformative"),
        ({"seed": -1}, "--seed must be 0 or more, not -1"),
        ({"model": "base,base/"}, "--model must name models, each once, separated by commas, not 'base,base/'"),
        ({"model": ""}, "--model must name models, each once, separated by commas, not ''"),
        ({"model": "base,missing"}, "there is no model folder missing: "),
        ({"model": "empty"}, "the model empty cannot be loaded: "),
        ({"data": "missing.jsonl"}, "missing.jsonl is missing "),
        ({"data": "broken.jsonl"}, "broken.jsonl, line 2: 'answer' is missing (expected text or a number)"),
        ({"data": "sums.jsonl,gsm8k-tset"}, "no data set is called 'gsm8k-tset' (did you mean gsm8k-test?)"),
        ({"data": "sums.jsonl,sums.jsonl"}, "data sets must be named each once, separated by commas, not '"),
        ({"data": "amc23"}, "amc23.jsonl, line 1: 'answer' is missing (expected text or a number)"),
        ({"show": -1}, "--show must be 0 or more, not -1"),
        ({"show_what": "odd"}, "--show_what must be one of first, fixed, never, repeated, truncated or all, not odd"),
        ({"data": "gsm8k-tset"}, "no data set is called 'gsm8k-tset' (did you mean gsm8k-test?)"),
        ({"out": "file"}, "the output folder file cannot be written (File exists): choose another --out"),
        ({"out": "file/a"}, "the output folder file/a cannot be written (Not a directory): choose another --out"),
        ({"model": "plain"}, "the tokenizer does not know the token <|im_end|> of the chat template 'chatml': choose "),
        ({"data": "aime24"}, "aime24.jsonl is missing and http://127.0.0.1:1/DualityRL/multi-attempt/"),
        ({"chat_template": "alpaca"}, "unknown chat template 'alpaca': choose one of chatml, llama3"),
        ({"chat_template": "llama3"}, "the tokenizer does not know the token <|eot_id|> of the chat template 'llama3'"),
        ({"max_new_tokens": 3000}, "the longest prompt ("),
        ({"device": "abacus"}, "device 'abacus' is not available here: "),
        ({"dtype": "int3"}, "dtype 'int3' is not supported: "),
        ({"attemps": 3}, "there is no option --attemps: did you mean --attempts?"),
    ],
)
def test_main_refuses_in_one_sentence_before_it_starts(changed, sentence, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    content = b'{"problem": "1 + 1?"}\n'
    (folder / "amc23.jsonl").write_bytes(content)  # in the cache, a benchmark with a broken row
    published = data.SOURCES["amc23.jsonl"]._replace(blob=data._blob(content))
    monkeypatch.setitem(data.SOURCES, "amc23.jsonl", published)
    monkeypatch.setenv("MULTI_ATTEMPT_CACHE", ".")
    monkeypatch.setenv("MULTI_ATTEMPT_DATA_URL", "http://127.0.0.1:1")  # where nobody answers
    monkeypatch.setattr(ev, "ask", lambda *_, **__: pytest.fail("the long work has started"))
    with pytest.raises(SystemExit) as stop:
        ev.main([word for name, value in (GOOD | changed).items() for word in (f"--{name}", str(value))])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("Loading weights")]
    assert len(lines) == 1 and lines[0].startswith(f"evaluate.py: {sentence}")
