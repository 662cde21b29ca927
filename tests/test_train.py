"""Training: a run that is cut off goes on exactly, every option does what it says, every mistake is one sentence, and the
loop learns.

Most tests are whole runs through `train.main` on a model of 44,000 weights, two to five steps of eight dialogues each.
`launch` makes them quick: verdicts are at hand at once (letter for letter), and the report at the end is left out.
"""

import ast
import copy
import json
import math
import os
import re
import resource
import shutil
import signal
import sys
import threading
import traceback
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import settled, small_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

import data
import evaluate
import ppo
import support.run
import train
from data import Problem
from data.chat import Chat
from data.dialogues import Attempt, Dialogues
from data.miniature import Riddle, build_tokenizer
from data.optimizer import Optimizer
from reward import extract_boxed, reward
from rollout import rollout
from support import cli

TIMING = {"rollout_tokens_per_second", "score_tokens_per_second", "update_tokens_per_second", "seconds"}


# ---------------------------------------------------------------------------------------------------------------------
# Tiny runs


class InstantGrader:
    """In place of the grader: equal means the same letters."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, answer, gold):
        return settled(answer == gold)


@pytest.fixture(scope="module")
def tokenizer():
    """Made from riddles that stand here, so that no change of the miniature's changes a run of these tests."""
    drawn = [(Riddle(bound, modulus, 5), 5 + modulus) for modulus in range(7, 13) for bound in (35, 36, 47)]
    return build_tokenizer(drawn)


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory):
    """A folder with a base model that likes to write boxes (base/) and questions it sometimes gets right.

    An ordinary Llama has no bias that could make it like boxes: here every token's embedding has the same large first
    entry, so the first column of the output weights acts as one.
    """
    folder = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.1,
            tie_word_embeddings=False,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 4.0
        for text, bias in (("}", 6.0), (". \\boxed{", 6.0), ("5", 6.0), ("17", 6.0), ("<|im_end|>", 3.5)):
            model.lm_head.weight[tokenizer(text, add_special_tokens=False)["input_ids"], 0] = bias / 4
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [{"question": f"Question {i}" + ", is it?" * (i % 3), "answer": ["5", "17"][i % 2]} for i in range(12)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"question": f"Another {i}", "answer": "5"} for i in range(4)]
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def calm():
    """Leave the process's signal handling as it was."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def arguments(place, out, **options) -> list[str]:
    """The command line of a tiny run."""
    tiny = dict(
        model=place / "base",
        data=place / "questions.jsonl",
        eval_data="none",
        out=out,
        steps=2,
        dialogues=8,
        minibatches=2,
        max_attempts=3,
        max_new_tokens=48,
        max_attempt_tokens=14,
        slots=8,
        lr=1e-3,
        critic_lr=1e-2,
        save_every=2,
        show_every=1,
        device="cpu",
        dtype="float32",
    )
    return [word for name, value in (tiny | options).items() for word in (f"--{name}", str(value))]


def read_config(argv: list[str]) -> train.Config:
    return cli.parse_run(train.Config, train.PRESETS, argv)


def launch(argv: list[str], **replaced) -> SimpleNamespace:
    """train.main(argv) with some names of train.py replaced: what the run was and left behind."""
    seen = SimpleNamespace(run=None, rollouts=[])

    def watched(*args, **kwargs):
        seen.rollouts.append(rollout(*args, **kwargs))
        return seen.rollouts[-1]

    def report(config, run, held_out, grade):
        seen.run = run

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (dict(Grader=InstantGrader, report=report, rollout=watched) | replaced).items():
            patch.setattr(train, name, value)
        train.main([str(word) for word in argv])
    folder = Path(argv[argv.index("--out") + 1])
    return SimpleNamespace(folder=folder, rows=metrics(folder), **vars(seen))


def metrics(folder: Path, timing: bool = False) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if timing or name not in TIMING} for row in rows]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def weights(model) -> torch.Tensor:
    return torch.cat([weight.detach().flatten().float() for weight in model.parameters()])


def same(a, b) -> bool:
    """Equal bit for bit, through all nesting."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def same_run(a: Path, b: Path, last: str) -> None:
    """Both folders hold the same run, bit for bit but for the measured times."""
    states = [torch.load(folder / f"checkpoint-{last}.pt") for folder in (a, b)]
    parts = {"actor", "critic", "actor_optimizer", "critic_optimizer", "step"}
    grouped = json.loads((a / "config.json").read_text())["group_size"] > 1
    assert states[0].keys() == {part for part in parts if not (grouped and "critic" in part)}
    for part in states[0]:
        assert same(states[0][part], states[1][part]), f"{part} differs"
    assert metrics(a) == metrics(b)
    a_names, b_names = ([name for name in names(folder) if "checkpoint" not in name] for folder in (a, b))
    assert a_names == b_names  # a run that was stopped has saved at other steps
    for path in sorted([*a.glob("model/*"), *a.glob("dialogues/*")]):
        assert path.read_bytes() == (b / path.relative_to(a)).read_bytes(), f"{path.name} differs"


# ---------------------------------------------------------------------------------------------------------------------
# Cut off and resumed


FOUR = dict(steps=4, epochs=2, warmup=0.25)
BFLOAT16 = FOUR | dict(dtype="bfloat16")  # with masters and copies to restore


@pytest.fixture(scope="module")
def four_steps(place, tmp_path_factory):
    """(options, folder) of four steps in one go."""
    return whole_run(place, tmp_path_factory.mktemp("whole") / "run", FOUR)


def whole_run(place, folder, options):
    whole = launch(arguments(place, folder, **options))
    assert [row["step"] for row in whole.rows] == [1, 2, 3, 4]
    assert 0 < sum(row["accuracy"] for row in whole.rows) < 4  # otherwise the tests below would compare little
    return options, folder


def cut_before(step):
    """Replacements that stop a run before this step's update."""

    def update(*args, seed, **kwargs):
        if seed[1] == step:
            raise KeyboardInterrupt
        return ppo.update(*args, seed=seed, **kwargs)

    return {"update": update}


def cut_after(step):
    """Replacements that stop a run after this step's update: its weights have moved, nobody has written them down."""

    def update(*args, seed, **kwargs):
        losses = ppo.update(*args, seed=seed, **kwargs)
        if seed[1] == step:
            raise KeyboardInterrupt
        return losses

    return {"update": update}


def cut_recorded(step):
    """Replacements that stop a run when this step stands in the metrics and in no checkpoint."""

    class Run(train.Run):
        def record(self, *args):
            super().record(*args)
            if self.step == step:
                raise KeyboardInterrupt

    return {"Run": Run}


def terminated(step):
    """By the signal that a scheduler sends: the step is finished and saved."""

    def update(*args, seed, **kwargs):
        if seed[1] == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return ppo.update(*args, seed=seed, **kwargs)

    return {"update": update}


def stopped_twice(step):
    """Ctrl-C twice: the second stops at once."""

    def update(*args, seed, **kwargs):
        losses = ppo.update(*args, seed=seed, **kwargs)
        if seed[1] == step:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return losses

    return {"update": update}


@pytest.mark.parametrize(
    "cut, left",
    [
        (cut_before(3), 2),
        (cut_after(3), 2),
        (cut_recorded(4), 4),
        (terminated(3), 3),
        (terminated(4), 4),
        (stopped_twice(3), 2),
    ],
    ids=[
        "before an update",
        "after an update",
        "before a checkpoint",
        "terminated",
        "terminated at the end",
        "Ctrl-C twice",
    ],
)
def test_two_steps_and_two_more_equal_four(four_steps, cut, left, place, tmp_path, capsys):
    options, whole = four_steps
    cut_and_resumed(place, tmp_path, capsys, options, whole, cut, left)


def test_two_steps_and_two_more_equal_four_in_bfloat16(place, tmp_path, capsys):
    options, whole = whole_run(place, tmp_path / "whole", BFLOAT16)
    cut_and_resumed(place, tmp_path, capsys, options, whole, cut_after(3), 2)


def test_two_steps_and_two_more_equal_four_without_a_critic(place, tmp_path, capsys):
    options, whole = whole_run(place, tmp_path / "whole", FOUR | dict(group_size=4))
    cut_and_resumed(place, tmp_path, capsys, options, whole, cut_after(3), 2)


def cut_and_resumed(place, tmp_path, capsys, options, whole, cut, left):
    argv = arguments(place, tmp_path / "run", **options)
    with pytest.raises(SystemExit) as stop:
        launch(argv, **cut)
    assert stop.value.code == 130
    assert len(metrics(tmp_path / "run")) == left and not (tmp_path / "run" / "model").exists()
    if cut["update" if "update" in cut else "Run"].__qualname__.startswith("terminated"):
        assert (tmp_path / "run" / f"checkpoint-{left:06d}.pt").exists()
    command = re.search("^stopped; go on with: python train.py (.*)$", capsys.readouterr().err, re.MULTILINE)[1]
    launch(command.split())
    same_run(whole, tmp_path / "run", "000004")


def fork(work) -> int:
    """Run work() in a forked process, much quicker than a new one; its number."""
    sys.stdout.flush(), sys.stderr.flush()
    if not (child := os.fork()):
        ended = 1
        train.tqdm.set_lock(threading.RLock())  # the usual one is shared by processes: a killed one never gives it back
        torch.set_num_threads(torch.get_num_threads())  # a new thread pool, before two threads at once ask for it
        signal.alarm(100)  # no test waits for ever
        try:
            work()
            ended = 0
        except SystemExit as stop:
            ended = stop.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(ended)
    return child


def in_child(work) -> int:
    """Run work() in a forked process; how it ended, as os.waitpid says."""
    return os.waitpid(fork(work), 0)[1]


def test_killed_at_twenty_moments(place, tmp_path):
    """Killed after a random number of function calls since its models were loaded, be it while it resumes, in a rollout,
    an update or a checkpoint; resumed, killed again, and at last allowed to finish."""
    options = dict(steps=8, save_every=1, slots=4, show_every=5)
    whole = launch(arguments(place, tmp_path / "whole", **options)).folder
    argv, done = arguments(place, tmp_path / "run", **options), []

    class Run(train.Run):
        def __init__(self, *args):
            super().__init__(*args)
            sys.setprofile(count)

    def count(frame, event, argument):
        nonlocal moment
        moment -= 1
        if moment == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    for moment in np.random.default_rng(0).integers(1, 250_000, size=20).tolist():
        assert in_child(lambda: launch(argv, Run=Run)) == signal.SIGKILL
        if (tmp_path / "run" / "config.json").exists():
            argv = ["--resume", "--out", str(tmp_path / "run")]
        done.append(max((tmp_path / "run").glob("checkpoint-*.pt"), default=None))
    assert len(set(done)) > 2, "they should come in several steps"
    assert in_child(lambda: launch(argv)) == 0
    same_run(whole, tmp_path / "run", "000008")


def test_killed_while_it_writes_a_checkpoint(four_steps, place, tmp_path, monkeypatch):
    options, whole = four_steps
    save = torch.save

    def half(state, file):
        if state["step"] == 4:
            file.write(b"half a checkpoint")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(state, file)

    monkeypatch.setattr(torch, "save", half)
    assert in_child(lambda: launch(arguments(place, tmp_path / "run", **options))) == signal.SIGKILL
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")].count("checkpoint-000004.pt.part") == 1
    assert not (tmp_path / "run" / "checkpoint-000004.pt").exists()
    launch(["--resume", "--out", str(tmp_path / "run")])
    same_run(whole, tmp_path / "run", "000004")
    assert not list((tmp_path / "run").glob("*.part"))


def test_a_run_cut_before_its_first_checkpoint_starts_again(four_steps, place, tmp_path):
    options, whole = four_steps
    argv = arguments(place, tmp_path / "run", **options)
    with pytest.raises(SystemExit):
        launch(argv, **cut_before(2))
    launch(["--resume", "--out", str(tmp_path / "run")])
    same_run(whole, tmp_path / "run", "000004")


def test_resuming_a_finished_run_changes_nothing(four_steps, tmp_path):
    _, whole = four_steps
    shutil.copytree(whole, tmp_path / "run")
    again = launch(["--resume", "--out", str(tmp_path / "run")])
    assert again.rollouts == [] and again.run.step == 4
    same_run(whole, tmp_path / "run", "000004")


def test_resume_may_repeat_options(four_steps, place, tmp_path):
    options, whole = four_steps
    shutil.copytree(whole, tmp_path / "run")
    launch([*arguments(place, tmp_path / "run", **options), "--resume", "--preset", "paper"])
    same_run(whole, tmp_path / "run", "000004")


def test_resume_survives_a_torn_last_line(four_steps, place, tmp_path):
    """A full disk or a power cut may leave half a line behind; its step comes again anyway."""
    options, whole = four_steps
    argv = arguments(place, tmp_path / "run", **options)
    with pytest.raises(SystemExit):
        launch(argv, **cut_before(3))
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "rew')
    launch(["--resume", "--out", str(tmp_path / "run")])
    same_run(whole, tmp_path / "run", "000004")


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def make_run(place, folder, **options) -> train.Run:
    config = read_config(arguments(place, folder, **options))
    folder.mkdir()
    return train.Run(config, data.load(config.data))


@contextmanager
def full_disk(size: int):
    """No file may grow beyond this size: writing fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_checkpoint_that_cannot_be_written_leaves_the_others(place, tmp_path):
    run = make_run(place, tmp_path / "run", keep_checkpoints=2)
    for run.step in (1, 2):
        run.save()
    kept = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    run.step = 3
    with full_disk(100_000), pytest.raises(OSError, match="checkpoint-000003.pt cannot be written .* are intact"):
        run.save()
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == kept  # and no half-written file
    run.save()
    assert names(run.folder) == ["checkpoint-000002.pt", "checkpoint-000003.pt"]


def test_a_full_disk_ends_the_run_in_one_sentence(four_steps, place, tmp_path, capsys):
    options, whole = four_steps

    class Run(train.Run):
        def save(self):
            with full_disk(100_000) if self.step == 4 else nullcontext():
                super().save()

    with pytest.raises(SystemExit) as stop:
        launch(arguments(place, tmp_path / "run", **options), Run=Run)
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        stop.value.code == 2
        and re.search(": step 4: .*4.pt cannot be written", last)
        and last.endswith(f"--resume --out {tmp_path / 'run'}")
    )
    launch(["--resume", "--out", str(tmp_path / "run")])
    same_run(whole, tmp_path / "run", "000004")


def test_too_little_memory_on_the_way_ends_the_run_in_one_sentence(four_steps, place, tmp_path, capsys):
    """As a checkpoint is there, it can go on, say when another program has left the GPU."""
    options, whole = four_steps

    def update(*args, seed, **kwargs):
        if seed[1] == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore than one line.")
        return ppo.update(*args, seed=seed, **kwargs)

    with pytest.raises(SystemExit) as stop:
        launch(arguments(place, tmp_path / "run", **options), update=update)
    last = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and ": step 3: CUDA out of memory. Tried to allocate 2.00 GiB.; go on with: " in last
    launch(["--resume", "--out", str(tmp_path / "run")])
    same_run(whole, tmp_path / "run", "000004")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_ends_quietly(number, place, tmp_path, capfd):
    class Run(train.Run):
        def __init__(self, *args):
            os.kill(os.getpid(), number)
            raise AssertionError("too late")

    before = signal.signal(number, signal.default_int_handler)  # a shell lets what runs in the background ignore Ctrl-C
    try:
        with pytest.raises(SystemExit) as stop:
            launch(arguments(place, tmp_path / "run"), Run=Run)
    finally:
        signal.signal(number, before)
    assert stop.value.code == 130 and "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "a changed byte", "garbage", "empty"])
def test_a_corrupt_checkpoint_is_named_and_the_one_before_it_used(damage, four_steps, tmp_path, capsys):
    _, whole = four_steps
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint-000004.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    broken = {"truncated": content[:-1000], "a changed byte": content, "garbage": b"garbage" * 100, "empty": b""}
    path.write_bytes(broken[damage])
    again = launch(["--resume", "--out", str(tmp_path / "run")])
    assert f"{path} is corrupt (" in capsys.readouterr().err and len(again.rollouts) == 2
    (tmp_path / "run" / "checkpoint-000004.corrupt").unlink()
    same_run(whole, tmp_path / "run", "000004")


def test_a_run_without_a_sound_checkpoint_is_not_begun_anew(four_steps, tmp_path, capsys):
    _, whole = four_steps
    shutil.copytree(whole, tmp_path / "run")
    for path in (tmp_path / "run").glob("checkpoint-*.pt"):
        path.write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        launch(["--resume", "--out", str(tmp_path / "run")])
    assert stop.value.code == 2 and "no checkpoint in" in capsys.readouterr().err
    assert metrics(tmp_path / "run") == metrics(whole)


def test_the_last_checkpoints_stay(place, tmp_path):
    run = make_run(place, tmp_path / "run", keep_checkpoints=3)
    for run.step in (9, 10, 99, 100, 101):
        run.save()
    assert names(run.folder) == [f"checkpoint-{step:06d}.pt" for step in (99, 100, 101)]


def test_restore_takes_the_last_checkpoint_and_cuts_the_metrics(place, tmp_path):
    run = make_run(place, tmp_path / "run")
    for run.step in (2, 10):
        with torch.no_grad():
            run.actor.lm_head.weight.fill_(run.step)
        run.save()
    lines = [json.dumps({"step": step, "reward": 0.1 * step}) + "\n" for step in range(1, 13)]
    (run.folder / "metrics.jsonl").write_text("".join(lines))
    fresh = train.Run(run.config, run.problems)
    fresh.restore()
    assert fresh.step == 10 and (fresh.actor.lm_head.weight == 10).all()
    assert (run.folder / "metrics.jsonl").read_text() == "".join(lines[:10])
    assert not list(run.folder.glob("*.part"))


# ---------------------------------------------------------------------------------------------------------------------
# What a run leaves behind


def test_run_folder(place, tmp_path, capsys):
    """A whole run with the real grader, the evaluation and the plots."""
    argv = arguments(
        place, tmp_path / "run", eval_data=place / "held_out.jsonl", eval_limit=3, eval_attempts=2, show_every=2
    )
    train.main(argv)
    folder = tmp_path / "run"
    assert names(folder) == [
        "accuracy.png",
        "checkpoint-000002.pt",
        "config.json",
        "dialogues",
        "evaluation.json",
        "metrics.jsonl",
        "model",
        "training.png",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config == asdict(read_config([*argv, "--resume"])) | {"resume": False}
    results = json.loads((folder / "evaluation.json").read_text())
    assert list(results) == ["base", "trained"]
    for result in results.values():
        assert result["questions"] == 3 and [row["attempts"] for row in result["by_attempts"]] == [1, 2]
        assert {d["question"] for d in result["dialogues"]} == {"Another 0", "Another 1", "Another 2"}
    output = capsys.readouterr().out
    size = AutoModelForCausalLM.from_pretrained(folder / "model").num_parameters()
    assert f"{size:,} parameters, 12 questions" in output and "| attempts allowed" in output
    assert (folder / "training.png").read_bytes()[:4] == b"\x89PNG"

    rows = metrics(folder, timing=True)
    expected = (
        "step reward accuracy accuracy_first accuracy_by_attempt attempts_used repeated truncated tokens_sampled "
        "tokens_total explained_variance policy_loss value_loss kl entropy approx_kl clipfrac ratio padding "
        "skipped grad_norm critic_grad_norm lr critic_lr learned"
    )
    for step, row in enumerate(rows, 1):
        assert row["step"] == step and set(row) == {*expected.split(), *TIMING}
        assert all(row[name] > 0 for name in TIMING)


def test_a_dialogue_is_shown_whole(place, tmp_path):
    result = launch(arguments(place, tmp_path / "run", steps=3, show_every=2))
    assert names(result.folder / "dialogues") == ["step-000002.txt"]
    dialogues = result.rollouts[1]
    d = dialogues.used_D.tolist().index(dialogues.used_D.max())
    shown = (result.folder / "dialogues" / "step-000002.txt").read_text(encoding="utf-8")
    text, *verdicts = re.split("^----- ", shown, flags=re.MULTILINE)
    assert text.rstrip("\n") == result.run.tokenizer.decode(dialogues.tokens_DT[d, : dialogues.length_D[d]]).rstrip(
        "\n"
    )
    assert (
        text.startswith("<|im_start|>system\n")
        and text.count("Your answer is incorrect.") == dialogues.used_D.max() - 1
    )
    assert verdicts[0] == f"step 2: reward {dialogues.reward_D[d]:+.2f}\n"
    for i, (line, attempt) in enumerate(zip(verdicts[1:], dialogues.attempts[d], strict=True), 1):
        verdict = "correct" if attempt.correct else "out of tokens" if attempt.truncated else "incorrect"
        assert line == f"attempt {i}: {verdict}, answer {attempt.answer!r}\n"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_exported_model_is_the_trained_one(dtype, place, tmp_path):
    result = launch(arguments(place, tmp_path / "run", lr=1e-2, dtype=dtype))
    model = AutoModelForCausalLM.from_pretrained(result.folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(result.folder / "model")
    assert model.dtype == getattr(torch, dtype)  # which no option named
    assert same(model.state_dict(), result.run.actor.state_dict())
    assert not same(model.state_dict(), result.run.reference.state_dict())
    config = (result.folder / "model" / "config.json").read_text()
    assert "slots" not in config  # the engine's own attention is none of a user's business
    questions = [problem.question for problem in result.run.problems]

    def greedy(model, tokenizer):
        return rollout(
            model,
            tokenizer,
            questions,
            ["no"] * 12,
            [3] * 12,
            extract=extract_boxed,
            grade=InstantGrader().submit,
            reward=reward,
            max_new_tokens=40,
            max_attempt_tokens=10,
            temperature=0,
        ).tokens_DT

    loaded = greedy(model, tokenizer)
    assert torch.equal(loaded, greedy(result.run.actor, result.run.tokenizer))
    assert not torch.equal(loaded, greedy(result.run.reference, result.run.tokenizer))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_evaluate_finds_in_the_exported_model_what_the_run_found(dtype, place, tmp_path, monkeypatch):
    options = dict(eval_data=place / "held_out.jsonl", eval_attempts=3, lr=1e-2, dtype=dtype)
    monkeypatch.setattr(train, "plot_accuracy", lambda *_: None)  # slow, and tested elsewhere
    monkeypatch.setattr(train, "plot_training", lambda *_: None)
    run = launch(arguments(place, tmp_path / "run", **options), report=train.report)
    of_the_run = json.loads((run.folder / "evaluation.json").read_text())
    monkeypatch.setattr(evaluate, "Grader", InstantGrader)
    monkeypatch.setattr(evaluate, "plot_accuracy", lambda *_: None)
    command = dict(
        model=run.folder / "model",
        data=place / "held_out.jsonl",
        attempts=3,
        max_new_tokens=48,
        max_attempt_tokens=14,
        slots=8,
        device="cpu",
        dtype=dtype,
        out=tmp_path / "evaluation",
    )
    evaluate.main([f"--{name}={value}" for name, value in command.items()])
    (found,) = json.loads((tmp_path / "evaluation" / "results.json").read_text())["models"].values()
    (path,) = (tmp_path / "evaluation").glob("dialogues-*.json")
    assert found | {"dialogues": json.loads(path.read_text())} == of_the_run["trained"]
    assert found["by_attempts"] != of_the_run["base"]["by_attempts"]
    assert any(len(dialogue["attempts"]) > 1 for dialogue in of_the_run["trained"]["dialogues"])


def test_the_base_model_stays_as_it_was(place, tmp_path):
    result = launch(arguments(place, tmp_path / "run", lr=1e-2))
    base = AutoModelForCausalLM.from_pretrained(place / "base")
    assert same(result.run.reference.state_dict(), base.state_dict())
    assert not any(weight.requires_grad for weight in result.run.reference.parameters())


def test_the_critic_starts_at_zero_and_has_no_dropout(place, tmp_path):
    run = make_run(place, tmp_path / "run")
    tokens = torch.arange(20)[None]
    assert (run.critic(input_ids=tokens).logits == 0).all()
    assert not run.critic.training and not run.actor.training


def test_gradients_that_stay_infinite_end_the_run(place, tmp_path, capsys):
    """From step 3 on, every one of its two minibatches: the fifth is the first of step 5."""

    def score(dialogues, *args):
        reference_DT, value_DT = ppo.score(dialogues, *args)
        return (reference_DT + torch.inf if len(metrics_so_far()) >= 2 else reference_DT), value_DT

    def metrics_so_far():
        path = tmp_path / "run" / "metrics.jsonl"
        return path.read_text().splitlines() if path.exists() else []

    with pytest.raises(SystemExit) as stop:
        launch(arguments(place, tmp_path / "run", steps=9), score=score)
    assert stop.value.code == 2
    assert "step 5: in 5 optimiser steps in a row the loss or its gradient was not finite" in capsys.readouterr().err
    assert [row["skipped"] for row in metrics(tmp_path / "run")] == [0, 0, 2, 2]
    kept = torch.load(tmp_path / "run" / "checkpoint-000004.pt")["actor"]
    assert all(weight.isfinite().all() for weight in kept.values())


# ---------------------------------------------------------------------------------------------------------------------
# The parts of a step


def test_draw_asks_each_question_once_in_a_pass():
    problems = [Problem(str(i), "") for i in range(7)]
    config = train.Config(dialogues=3, seed=5)
    asked = [p.question for step in range(1, 15) for p in train.draw(config, problems, step)[0]]
    passes = [tuple(asked[i : i + 7]) for i in range(0, 42, 7)]
    assert all(sorted(order) == list("0123456") for order in passes)
    assert len(set(passes)) == 6  # every pass in another order
    wide = train.Config(dialogues=21, seed=5)  # one step of three passes: the same sequence
    assert [p.question for step in (1, 2) for p in train.draw(wide, problems, step)[0]] == asked


def test_the_dialogues_of_a_group_are_neighbours_with_the_same_question_and_attempts():
    problems = [Problem(str(i), "") for i in range(7)]
    single, grouped = train.Config(dialogues=3, seed=5), train.Config(dialogues=12, group_size=4, seed=5)
    for step in range(1, 6):  # passes count questions, not copies
        (asked, allowed), (copies, copied) = (train.draw(config, problems, step) for config in (single, grouped))
        assert copies == [problem for problem in asked for _ in range(4)]
        assert copied == [n for n in allowed for _ in range(4)]


def test_draw_depends_on_seed_and_step_alone():
    problems = [Problem(str(i), "") for i in range(50)]
    config = train.Config(dialogues=20, seed=1)
    third = train.draw(config, problems, 3)
    torch.rand(3), np.random.rand(3)
    assert train.draw(config, problems, 3) == third
    assert train.draw(config, problems, 4)[1] != third[1]
    other = train.draw(train.Config(dialogues=20, seed=2), problems, 3)
    assert other[0] != third[0] and other[1] != third[1]


@pytest.mark.parametrize("low, high", [(1, 5), (2, 4), (3, 3)])
def test_draw_allows_attempts_uniformly(low, high):
    config = train.Config(dialogues=1000, min_attempts=low, max_attempts=high)
    counts = Counter(n for step in range(1, 11) for n in train.draw(config, [Problem("", "")], step)[1])
    assert sorted(counts) == list(range(low, high + 1)) and all(type(n) is int for n in counts)
    expected = 10_000 / (high - low + 1)
    assert all(abs(count - expected) < 0.08 * expected for count in counts.values())


def test_draw_allows_attempts_whatever_the_question():
    config = train.Config(dialogues=10, max_attempts=2)
    problems = [Problem(str(i), "") for i in range(10)]
    counts = Counter(pair for step in range(1, 401) for pair in zip(*train.draw(config, problems, step)))
    assert len(counts) == 20 and all(150 < count < 250 for count in counts.values())


def test_no_stream_of_random_numbers_serves_two_purposes(place, tmp_path, monkeypatch):
    """Numpy seeds (a, b) and (a, b, 0) are the same stream: numbers of two purposes would not be independent."""
    purposes, make = {}, np.random.default_rng

    def recorded(seed):
        caller = sys._getframe(1)
        purpose = f"{caller.f_code.co_name}, line {caller.f_lineno}"
        state = tuple(np.random.SeedSequence(seed).generate_state(4))
        if caller.f_code.co_name != "rollout":
            purposes.setdefault(state, set()).add(purpose)
        else:  # one stream a dialogue
            purposes.setdefault(state, set()).add(f"rollout {seed}")
        return make(seed)

    monkeypatch.setattr(np.random, "default_rng", recorded)
    launch(arguments(place, tmp_path / "run", steps=3))
    shared = [sorted(used) for used in purposes.values() if len(used) > 1]
    assert len(purposes) > 3 * 8 and not shared


def attempts_of(*answers, correct=False, truncated=False) -> list[Attempt]:
    """The attempts of a dialogue; only the last may be correct or truncated."""
    last = len(answers) - 1
    return [Attempt(0, 1, "", a, truncated and i == last, correct and i == last) for i, a in enumerate(answers)]


def dialogues_of(*rows) -> Dialogues:
    """Dialogues by hand from (attempts, allowed, reward, sampled tokens, tokens)."""
    attempts, allowed, rewards, sampled, lengths = zip(*rows)
    longest, lengths = max(lengths), torch.tensor(lengths)
    position = torch.arange(longest)
    sampled_DT = (position < lengths[:, None]) & (position >= (lengths - torch.tensor(sampled))[:, None])
    return Dialogues(
        tokens_DT=torch.zeros(len(rows), longest, dtype=torch.long),
        sampled_DT=sampled_DT,
        logp_DT=torch.zeros(len(rows), longest),
        length_D=lengths,
        prompt_length_D=torch.ones(len(rows), dtype=torch.long),
        allowed_D=torch.tensor(allowed),
        used_D=torch.tensor([len(a) for a in attempts]),
        reward_D=torch.tensor(rewards),
        truncated_D=torch.tensor([a[-1].truncated for a in attempts]),
        attempts=list(attempts),
    )


def test_summarise_by_hand():
    dialogues = dialogues_of(
        (attempts_of("1", correct=True), 1, 1.0, 2, 10),
        (attempts_of("1"), 1, -0.5, 4, 20),
        (attempts_of("1", "2", correct=True), 2, 1.0, 6, 30),
        (attempts_of("1", "1", None, truncated=True), 4, -1.0, 8, 40),
        (attempts_of(None, "2", "2", "3", correct=True), 4, 1.0, 10, 50),
    )
    summary = train.summarise(dialogues)
    assert summary.pop("accuracy_by_attempt") == pytest.approx([1 / 5, 1 / 3, 0 / 2, 1 / 2])
    assert summary == pytest.approx(
        {
            "reward": 0.3,
            "accuracy": 3 / 5,
            "accuracy_first": 1 / 5,
            "attempts_used": 11 / 5,
            "repeated": 2 / 5,  # 2; 1 again; 2, 2 again, 3
            "truncated": 1 / 5,
            "tokens_sampled": 6.0,
            "tokens_total": 30.0,
        }
    )
    json.dumps(summary, allow_nan=False)


def test_summarise_of_a_single_attempt():
    summary = train.summarise(
        dialogues_of((attempts_of("1"), 1, -0.5, 1, 2), (attempts_of("1", correct=True), 1, 1.0, 1, 2))
    )
    assert summary["accuracy_by_attempt"] == [0.5] and summary["repeated"] is None


def test_speeds():
    dialogues = dialogues_of((attempts_of("1"), 1, -0.5, 20, 80), (attempts_of("1"), 1, -0.5, 40, 120))
    half = dialogues.select(torch.tensor([1]))
    rates = train.speeds(dialogues, half, [10.0, 12.0, 16.0, 26.0])
    assert (rates["rollout_tokens_per_second"], rates["score_tokens_per_second"]) == (30.0, 30.0)
    assert train.speeds(dialogues, dialogues, [10.0, 12.0, 16.0, 26.0]) == {
        "rollout_tokens_per_second": 30.0,
        "score_tokens_per_second": 50.0,
        "update_tokens_per_second": 20.0,
        "seconds": 16.0,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Every option does what it says


def config_reads(module) -> set[str]:
    """Names that the file reads as config.NAME, self.config.NAME or Config.NAME, outside of Config and of check()."""
    tree, found = ast.parse(Path(module.__file__).read_text()), set()
    body = [node for node in tree.body if getattr(node, "name", None) not in ("Config", "check")]
    for node in (node for top in body for node in ast.walk(top)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            if getattr(owner, "id", getattr(owner, "attr", None)) in ("config", "Config") and not (
                isinstance(owner, ast.Attribute) and getattr(owner.value, "id", None) != "self"
            ):
                found.add(node.attr)
    return found


def test_every_option_is_read_and_every_name_read_is_an_option():
    options = {field.name for field in fields(train.Config)}
    read = config_reads(train) | config_reads(ppo) | config_reads(support.run)
    assert options - read == {"preset"}, "options that nothing reads"  # that one is read by parse_run
    assert read - options == set(), "names that are no options"


def test_the_defaults_are_the_papers():
    config = train.Config()
    paper = dict(
        model="Qwen/Qwen2.5-Math-1.5B",
        steps=1280,
        dialogues=1024,
        minibatches=8,
        epochs=1,
        min_attempts=1,
        max_attempts=5,
        temperature=1.0,
        max_prompt_tokens=1024,
        max_new_tokens=3000,
        max_attempt_tokens=None,
        attempt_discount=1.0,
        gamma=1.0,
        gae_lambda=0.99,
        clip=0.2,
        value_clip=0.2,
        kl_coef=0.01,
        lr=5e-7,
        critic_lr=1e-5,
        warmup=0.03,
        max_grad_norm=1.0,
        drop_truncated=False,
        chat_template="chatml",
        group_size=1,
        unboxed_reward=-1.0,
        feedback="paper",
    )
    assert {name: getattr(config, name) for name in paper} == paper
    assert train.PRESETS["paper"] == {}


@pytest.mark.parametrize("preset", train.PRESETS)
def test_presets(preset, tmp_path):
    assert set(train.PRESETS[preset]) <= {field.name for field in fields(train.Config)} - {"preset", "out", "resume"}
    config = read_config(["--preset", preset, "--out", str(tmp_path / "run")])
    train.check(config)
    assert asdict(config) == asdict(train.Config(preset=preset, out=str(tmp_path / "run"))) | train.PRESETS[preset]
    assert config.data in [*data.RIDDLES, *data.EASY, *data.SETS] and config.eval_data in [
        *data.RIDDLES,
        *data.EASY,
        *data.SETS,
    ]
    if config.data in data.RIDDLES:
        train.load_questions(config)


def test_the_command_line_goes_before_the_preset_and_the_preset_before_the_defaults(tmp_path):
    config = read_config(["--preset=smoke", "--steps", "7", "--eval_limit", "none", "--out", str(tmp_path / "run")])
    assert (config.steps, config.eval_limit, config.dialogues, config.clip) == (7, None, 8, 0.2)
    unnamed = read_config(["--preset", "smoke"])
    assert re.fullmatch(r"runs/smoke-\d{8}-\d{6}", unnamed.out)


@pytest.fixture(scope="module")
def plain(place, tmp_path_factory):
    """The run that those below are compared with, by changing one option."""
    return launch(arguments(place, tmp_path_factory.mktemp("plain") / "run", **PLAIN))


PLAIN = dict(steps=1, epochs=2, lr=3e-3)


def changed(place, tmp_path, **options):
    return launch(arguments(place, tmp_path / "run", **(PLAIN | options)))


def test_the_same_options_give_the_same_run(plain, place, tmp_path):
    same_run(plain.folder, changed(place, tmp_path).folder, "000001")


@pytest.mark.parametrize(
    "option, value",
    [
        ("kl_estimator", "k3_weighted"),
        ("gamma", 0.9),
        ("gae_lambda", 0.5),
        ("clip", 0.001),
        ("kl_coef", 1.0),
        ("max_grad_norm", 0.01),
        ("temperature", 0.7),
    ],
)
def test_the_actor_learns_otherwise_with_another(option, value, plain, place, tmp_path):
    other = changed(place, tmp_path, **{option: value})
    assert not torch.equal(weights(plain.run.actor), weights(other.run.actor))


@pytest.mark.parametrize("option, value", [("value_clip", 0.001), ("critic_lr", 1e-3), ("max_grad_norm", 0.01)])
def test_the_critic_learns_otherwise_with_another(option, value, plain, place, tmp_path):
    other = changed(place, tmp_path, **{option: value})
    assert not torch.equal(weights(plain.run.critic), weights(other.run.critic))
    if option != "max_grad_norm":  # in the first step, nothing of the critic's reaches the actor
        assert torch.equal(weights(plain.run.actor), weights(other.run.actor))


def test_seed(plain, place, tmp_path):
    other = changed(place, tmp_path, seed=1)
    assert not torch.equal(plain.rollouts[0].tokens_DT, other.rollouts[0].tokens_DT)


@pytest.mark.parametrize("option, value", [("slots", 3), ("micro_batch_tokens", 1)])
def test_memory_options_change_no_result(option, value, plain, place, tmp_path):
    other = changed(place, tmp_path, **{option: value})
    for a, b in zip(plain.rollouts, other.rollouts, strict=True):
        assert torch.equal(a.tokens_DT, b.tokens_DT)
    for a, b in zip(plain.rows, other.rows, strict=True):
        assert a["accuracy_by_attempt"] == b["accuracy_by_attempt"]
        numbers = a.keys() - {"accuracy_by_attempt", "padding"}
        assert {name: a[name] for name in numbers} == pytest.approx(
            {name: b[name] for name in numbers}, rel=1e-3, abs=1e-5
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("option", ["gradient_checkpointing", "offload"])
def test_options_for_less_memory_change_no_bit(option, dtype, place, tmp_path):
    options = PLAIN | dict(steps=2, dtype=dtype)
    one = launch(arguments(place, tmp_path / "one", **options))
    other = launch(arguments(place, tmp_path / "other", **options, **{option: True}))
    same_run(one.folder, other.folder, "000002")


def test_offload_parks_what_is_not_used(place, tmp_path, monkeypatch):
    """Moves to and from the device, by step: the base model for the scores, the optimisers for the update."""
    seen, runs = [], []

    class Run(train.Run):
        def __init__(self, *args):
            runs.append(self)
            super().__init__(*args)

    def move(tensors, device):
        run, moved = runs[-1], {id(x) for x in tensors}
        groups = dict(
            base=run.reference.parameters(),
            masters=[m for _, m in run.actor_optimizer.copies + run.critic_optimizer.copies],
            moments=run.actor_optimizer.parked()[: -len(run.actor_optimizer.copies)],
        )
        seen.append(" ".join(name for name, group in groups.items() if {id(x) for x in group} & moved))

    def stage(name, function):
        return lambda *args, **kwargs: seen.append(name) or function(*args, **kwargs)

    monkeypatch.setattr(support.run, "move", move)
    stages = {name: stage(name, getattr(train, name)) for name in ("rollout", "score", "update")}
    argv = arguments(place, tmp_path / "run", steps=2, offload=True, dtype="bfloat16")
    launch(argv, Run=Run, **stages)
    everything, step = ["base masters"] * 2, ["rollout", "base", "score", "base"]
    first, second = ["masters", "update", "masters moments"], ["masters moments", "update", "masters moments"]
    assert seen == everything + step + first + step + second


def test_the_memory_plan_of_a_run(place, tmp_path):
    run = make_run(place, tmp_path / "run", slots=5, offload=True)
    gigabyte = 10**9
    assert "it fits" in run.memory(3 * gigabyte, 100)
    assert run.memory(int(2.5 * gigabyte), 1_000_000).endswith(
        "try --slots 2"
    )  # 128 MB of cache for each, see base/config.json


def test_kl_coef_holds_the_actor_near_the_base_model(place, tmp_path):
    free, held = (
        launch(arguments(place, tmp_path / str(coefficient), steps=4, epochs=2, lr=3e-3, kl_coef=coefficient)).rows[-1][
            "kl"
        ]
        for coefficient in (0.0, 10.0)
    )
    assert 0 < held < 0.5 * free


def test_attempt_discount_lowers_the_reward_of_later_attempts(place, tmp_path):
    full, halved = (
        launch(arguments(place, tmp_path / str(discount), attempt_discount=discount, steps=1, dialogues=64))
        for discount in (1.0, 0.5)
    )
    a, b = full.rollouts[0], halved.rollouts[0]
    assert torch.equal(a.tokens_DT, b.tokens_DT)
    later_D = a.correct_D & (a.used_D > 1)
    assert later_D.any() and (a.correct_D & ~later_D).any()
    assert torch.equal(b.reward_D, torch.where(later_D, 0.5 ** (a.used_D - 1), a.reward_D))
    assert full.rows[0]["reward"] > halved.rows[0]["reward"] == b.reward_D.mean().item()


def test_unboxed_reward_is_that_of_a_failure_without_a_box(place, tmp_path):
    result = launch(arguments(place, tmp_path / "run", unboxed_reward=-0.25, steps=1, dialogues=64))
    kinds = set()
    for reward_, attempts in zip(result.rollouts[0].reward_D.tolist(), result.rollouts[0].attempts):
        last = attempts[-1]
        assert reward_ == (1.0 if last.correct else -0.25 if last.answer is None else -0.5)
        kinds.add(reward_)
    assert kinds == {1.0, -0.25, -0.5}


def test_feedback_is_that_of_training_and_of_the_evaluation(place, tmp_path):
    """The run's own evaluation says what the training said."""
    options = dict(feedback="uncounted", steps=1, eval_data=place / "held_out.jsonl", eval_attempts=2)
    result = launch(arguments(place, tmp_path / "run", **options), report=train.report)
    (dialogues,) = result.rollouts
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    texts = [tokenizer.decode(row[:n]) for row, n in zip(dialogues.tokens_DT, dialogues.length_D)]
    results = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    texts += [d["text"] for name in ("base", "trained") for d in results[name]["dialogues"]]
    answered = [text for text in texts if "answer is incorrect." in text]
    assert len(answered) > 4 and all("attempts left" not in text for text in answered)


def test_a_group_has_no_critic(place, tmp_path):
    result = launch(arguments(place, tmp_path / "run", group_size=4, lr=1e-2))
    assert not [name for name in result.rows[0] if "critic" in name or "value" in name or "explained" in name]
    assert "policy_loss" in result.rows[0] and "lr" in result.rows[0]
    assert not torch.equal(weights(result.run.actor), weights(result.run.reference))
    for dialogues in result.rollouts:
        prompts = [row[:n].tolist() for row, n in zip(dialogues.tokens_DT, dialogues.prompt_length_D)]
        assert prompts == [prompts[d - d % 4] for d in range(8)]
        assert len(dialogues.tokens_DT.unique(dim=0)) > 2  # the same question, other random numbers


@pytest.mark.parametrize("low, high", [(1, 1), (2, 3)])
def test_attempts_allowed(low, high, place, tmp_path):
    result = launch(arguments(place, tmp_path / "run", min_attempts=low, max_attempts=high))
    allowed_D = torch.cat([dialogues.allowed_D for dialogues in result.rollouts])
    assert allowed_D.unique().tolist() == list(range(low, high + 1))
    for dialogues in result.rollouts:
        assert (dialogues.used_D <= dialogues.allowed_D).all()
        for d, n in enumerate(dialogues.allowed_D.tolist()):
            prompt = result.run.tokenizer.decode(dialogues.tokens_DT[d, : dialogues.prompt_length_D[d]])
            assert f"You have {n} attempts to answer" in prompt
    assert len(result.rows[0]["accuracy_by_attempt"]) == high


def test_token_budgets(place, tmp_path):
    result = launch(arguments(place, tmp_path / "run", max_new_tokens=30, max_attempt_tokens=9, dialogues=32, steps=1))
    (dialogues,) = result.rollouts
    written_D = dialogues.length_D - dialogues.prompt_length_D
    assert written_D.max() <= 30 and dialogues.truncated_D.any()
    lengths = [attempt.end - attempt.start for attempts in dialogues.attempts for attempt in attempts]
    assert max(lengths) == 9
    free = launch(
        arguments(place, tmp_path / "free", max_new_tokens=30, max_attempt_tokens="none", dialogues=32, steps=1)
    )
    assert max(a.end - a.start for attempts in free.rollouts[0].attempts for a in attempts) > 9


def test_long_questions_are_left_out_and_counted(place, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    whole = make_run(place, tmp_path / "whole")
    assert len(whole.problems) == 12 and "left out" not in capsys.readouterr().out
    chat = Chat(whole.actor, tokenizer, "chatml")
    lengths = sorted(len(chat.prompt(problem.question, 3)) for problem in whole.problems)
    limit = lengths[7]
    fitting = sum(length <= limit for length in lengths)
    assert fitting < 12
    result = launch(arguments(place, tmp_path / "run", max_prompt_tokens=limit, steps=3))
    assert f"left out {12 - fitting} questions with prompts of more than {limit} tokens" in capsys.readouterr().out
    assert len(result.run.problems) == fitting
    assert max(int(dialogues.prompt_length_D.max()) for dialogues in result.rollouts) == limit


def test_drop_truncated_leaves_them_out_of_the_loss(place, tmp_path):
    for dropped in (False, True):  # a single token closes no box, so all dialogues are cut off
        options = dict(max_new_tokens=1, drop_truncated=dropped, steps=1, minibatches=1)
        result = launch(arguments(place, tmp_path / f"{dropped}", **options))
        assert (result.rows[0]["reward"], result.rows[0]["truncated"]) == (-1, 1)
        assert (result.run.critic.score.weight == 0).all() == dropped
        assert ("policy_loss" in result.rows[0]) == (not dropped)
        assert torch.equal(weights(result.run.actor), weights(result.run.reference))  # equal rewards: advantages are 0


def test_drop_equal_learns_from_groups_with_different_rewards_alone(place, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "score", lambda learned, *rest: seen.append(learned) or ppo.score(learned, *rest))
    options = dict(group_size=2, drop_equal=True, steps=3, kl_coef=0.0, micro_batch_tokens=100_000)
    result = launch(arguments(place, tmp_path / "run", **options))
    for row, written, learned in zip(result.rows, result.rollouts, seen, strict=True):
        pairs = [(d, d + 1) for d in range(0, 8, 2) if written.reward_D[d] != written.reward_D[d + 1]]
        kept = [d for pair in pairs for d in pair]
        assert row["learned"] == len(kept) / 8
        for name, value in vars(written).items():
            chosen = value[kept] if torch.is_tensor(value) else [value[d] for d in kept]
            assert torch.equal(getattr(learned, name), chosen) if torch.is_tensor(value) else learned.attempts == chosen
    assert {row["learned"] for row in result.rows} - {0, 1}  # otherwise this run shows nothing


def test_drop_equal_without_any_difference_changes_nothing(place, tmp_path):
    options = dict(group_size=2, drop_equal=True, max_new_tokens=1, steps=2)  # no token closes a box: all fail alike
    result = launch(arguments(place, tmp_path / "run", **options))
    assert [row["learned"] for row in result.rows] == [0, 0] and "policy_loss" not in result.rows[0]
    assert torch.equal(weights(result.run.actor), weights(result.run.reference))


def test_optimiser_steps(place, tmp_path):
    result = launch(arguments(place, tmp_path / "run", steps=3, minibatches=4, epochs=2))
    for optimizer in (result.run.actor_optimizer, result.run.critic_optimizer):
        assert {int(state["step"]) for state in optimizer.adamw.state_dict()["state"].values()} == {3 * 4 * 2}


def test_learning_rates_rise_and_fall(place, tmp_path):
    options = dict(steps=5, minibatches=2, warmup=0.4, lr=1e-3, critic_lr=1e-2)
    rows = launch(arguments(place, tmp_path / "run", **options)).rows
    shares = []  # of the peak, for the next optimiser step: 10 in all, 4 of them rising
    for done in (2, 4, 6, 8, 10):
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (done - 4) / 6))
        shares.append(done / 4 if done <= 4 else cosine)
    assert [row["lr"] for row in rows] == pytest.approx([1e-3 * share for share in shares])
    assert [row["critic_lr"] for row in rows] == pytest.approx([1e-2 * share for share in shares])
    assert shares[1] == 1 and shares[-1] == pytest.approx(0.1)


def test_max_grad_norm_bounds_what_adam_sees(place, tmp_path):
    result = launch(arguments(place, tmp_path / "run", steps=1, minibatches=1, max_grad_norm=0.125))
    for name in ("actor", "critic"):
        optimizer = getattr(result.run, f"{name}_optimizer").adamw
        moments = torch.cat([state["exp_avg"].flatten() for state in optimizer.state_dict()["state"].values()])
        assert moments.norm().item() == pytest.approx(0.1 * 0.125, rel=1e-3)  # 1 - beta1 of the clipped gradient


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_sampling_and_training_share_the_temperature(temperature, place, tmp_path):
    """One minibatch and one epoch: nothing has moved yet, so every ratio is 1 and the KL to the base model 0."""
    options = dict(temperature=temperature, steps=1, minibatches=1, warmup=0)
    row = launch(arguments(place, tmp_path / "run", **options)).rows[0]
    assert row["approx_kl"] == pytest.approx(0, abs=1e-7) and row["kl"] == pytest.approx(0, abs=1e-7)
    assert row["clipfrac"] == 0 and row["policy_loss"] == pytest.approx(0, abs=1e-5)


def test_saving_and_showing(place, tmp_path):
    result = launch(arguments(place, tmp_path / "run", steps=5, save_every=2, keep_checkpoints=2, show_every=3))
    assert [path for path in names(result.folder) if "checkpoint" in path] == [
        "checkpoint-000004.pt",
        "checkpoint-000005.pt",
    ]
    assert names(result.folder / "dialogues") == ["step-000003.txt"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype(dtype, place, tmp_path):
    result = launch(arguments(place, tmp_path / "run", dtype=dtype, steps=1))
    for model in (result.run.actor, result.run.critic, result.run.reference):
        assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}
    for optimizer in (result.run.actor_optimizer, result.run.critic_optimizer):
        assert {master.dtype for master in optimizer.masters} == {torch.float32}
    assert json.loads((result.folder / "model" / "config.json").read_text())["dtype"] == dtype


def test_no_evaluation_when_there_is_no_data_for_it(place, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "evaluate", None)  # would fail if called
    launch(arguments(place, tmp_path / "run", eval_data="none", steps=1), report=train.report)
    assert "evaluation.json" not in names(tmp_path / "run") and "training.png" in names(tmp_path / "run")


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes: one sentence on stderr, exit code 2, nothing done yet


def refused(capsys, argv, **replaced) -> str:
    def too_late(*_):
        raise AssertionError("the work has begun")

    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        launch(argv, **{"train": too_late, **replaced})
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"preset": "huge"}, "there is no preset 'huge': choose one of paper, miniature, smollm2, smoke"),
        ({"step": 3}, "there is no option --step: did you mean --steps?"),
        ({"steps": "many"}, "--steps: invalid int value: 'many'"),
        ({"steps": 0}, "--steps must be greater than 0, not 0"),
        ({"temperature": 0}, "--temperature must be greater than 0, not 0.0"),
        ({"lr": "nan"}, "--lr must be greater than 0, not nan"),
        ({"max_attempt_tokens": -3}, "--max_attempt_tokens must be greater than 0, not -3"),
        ({"gamma": 1.5}, "--gamma must lie between 0 and 1, not 1.5"),
        ({"attempt_discount": -1}, "--attempt_discount must lie between 0 and 1, not -1.0"),
        ({"drop_equal": True}, "--drop_equal must be false without --group_size"),
        ({"group_size": 3}, "--group_size must divide --dialogues 8, not 3"),
        ({"group_size": 0}, "--group_size must be greater than 0, not 0"),
        ({"unboxed_reward": 0.5}, "--unboxed_reward must lie between -1 and 0, not 0.5"),
        ({"unboxed_reward": "nan"}, "--unboxed_reward must lie between -1 and 0, not nan"),
        ({"feedback": "kind"}, "unknown feedback 'kind': choose one of paper, uncounted, uninformative"),
        ({"kl_coef": -0.1}, "must be 0 or more, not"),
        ({"seed": -1}, "must be 0 or more, not"),
        ({"min_attempts": 4}, "--max_attempts must be at least --min_attempts, not 3"),
        ({"minibatches": 9}, "--minibatches must be at most --dialogues, not 9"),
        ({"data": "gsm9k-train"}, "no data set is called 'gsm9k-train' (did you mean gsm8k-train?)"),
        ({"eval_data": "riddles"}, "no data set is called 'riddles'"),
        ({"data": "missing.jsonl"}, "missing.jsonl is missing"),
        ({"model": "./no/such/folder"}, "there is no model folder ./no/such/folder"),
        ({"dtype": "float16"}, "dtype 'float16' is not supported: choose auto, float32 or bfloat16"),
        ({"device": "abacus"}, "device 'abacus' is not available here"),
        ({"chat_template": "llama4"}, "unknown chat template 'llama4': choose one of chatml, llama3"),
        ({"chat_template": "llama3"}, "the tokenizer does not know the token <|eot_id|> of the chat template 'llama3'"),
        ({"max_prompt_tokens": 5}, "has a prompt of at most 5 tokens"),
        ({"kl_estimator": "k1"}, "--kl_estimator must be k3 or k3_weighted, not k1"),
        ({"log_to": "paper"}, "--log_to must be tensorboard, wandb or none, not paper"),
    ],
    ids=lambda case: "-".join(map(str, *case.items())) if isinstance(case, dict) else "",
)
def test_mistakes_are_one_sentence(options, sentence, place, tmp_path, capsys):
    assert sentence in refused(capsys, arguments(place, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name",
    "eval_limit eval_attempts steps dialogues min_attempts max_attempts max_prompt_tokens max_new_tokens max_attempt_tokens "
    "minibatches epochs micro_batch_tokens slots save_every keep_checkpoints show_every".split(),
)
def test_nothing_is_counted_from_zero(name, place, tmp_path, capsys):
    assert f"--{name} " in refused(capsys, arguments(place, tmp_path / "run", **{name: 0}))


def test_an_option_without_its_value(capsys, tmp_path):
    assert "--preset" in refused(capsys, ["--out", str(tmp_path / "run"), "--preset"])
    assert "--steps" in refused(capsys, ["--out", str(tmp_path / "run"), "--steps"])


def test_shared_questions_are_refused(place, tmp_path, capsys):
    (tmp_path / "eval.jsonl").write_text(
        '{"question": "New", "answer": "1"}\n{"question": "Question 0", "answer": "5"}\n'
    )
    error = refused(capsys, arguments(place, tmp_path / "run", eval_data=tmp_path / "eval.jsonl"))
    assert "1 questions of --eval_data" in error and "the first: 'Question 0'" in error


def test_prompts_beyond_the_models_positions_are_refused(place, tmp_path, capsys):
    """The model has 512 positions; both the training and the evaluation must fit."""
    error = refused(capsys, arguments(place, tmp_path / "run", max_new_tokens=500))
    assert "exceed the model's 512 positions" in error


def test_evaluation_prompts_beyond_the_models_positions_are_refused(place, tmp_path, capsys):
    (tmp_path / "long.jsonl").write_text(json.dumps({"question": "Why? " * 500, "answer": "1"}) + "\n")
    error = refused(capsys, arguments(place, tmp_path / "run", eval_data=tmp_path / "long.jsonl"))
    assert "exceed the model's 512 positions" in error


def test_a_folder_in_use_is_refused(place, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    error = refused(capsys, arguments(place, tmp_path / "run"))
    assert "run is not empty: continue that run with --resume, or choose another --out" in error
    (tmp_path / "run" / "notes.txt").unlink()
    (tmp_path / "run" / "config.json.part").write_text('{"st')  # of a process that was killed right at the start
    launch(arguments(place, tmp_path / "run", steps=1))  # as good as empty
    assert "config.json.part" not in names(tmp_path / "run")


def test_a_file_as_the_folder_is_refused(place, tmp_path, capsys):
    (tmp_path / "run").write_text("")
    assert "run" in refused(capsys, arguments(place, tmp_path / "run"))


def test_resume_needs_a_folder(capsys):
    assert "--resume needs the folder of the run: --out runs/NAME" in refused(capsys, ["--resume", "--preset", "smoke"])


@pytest.mark.parametrize("exists", [False, True])
def test_resume_needs_a_run(exists, tmp_path, capsys):
    if exists:
        (tmp_path / "run").mkdir()
    error = refused(capsys, ["--resume", "--out", str(tmp_path / "run")])
    assert f"there is no run to resume in {tmp_path / 'run'}" in error


def test_resume_takes_no_other_options(plain, capsys):
    error = refused(capsys, ["--resume", "--out", str(plain.folder), "--steps", "9", "--lr", "0.003", "--seed", "4"])
    assert "has other options: seed (0 there, 4 here), steps (1 there, 9 here); leave these out" in error
    assert "lr" not in error.replace(str(plain.folder), "")  # that one is the run's own value


# ---------------------------------------------------------------------------------------------------------------------
# Logs elsewhere


def test_tensorboard(place, tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            assert folder == str(tmp_path / "run")

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    rows = launch(arguments(place, tmp_path / "run", log_to="tensorboard")).rows
    assert {step for *_, step in written} == {1, 2}
    for row in rows:
        for name in ("reward", "accuracy", "policy_loss", "kl"):
            assert (name, row[name], row["step"]) in written
    assert all(isinstance(value, (int, float)) for _, value, _ in written)


def test_wandb(place, tmp_path, monkeypatch):
    calls = []
    module = ModuleType("wandb")
    module.init = lambda **options: calls.append(options)
    module.log = lambda metrics, step: calls.append((step, {k: v for k, v in metrics.items() if k not in TIMING}))
    monkeypatch.setitem(sys.modules, "wandb", module)
    result = launch(arguments(place, tmp_path / "run", log_to="wandb"))
    assert calls[0]["name"] == "run" and calls[0]["config"] == asdict(result.run.config)
    assert calls[1:] == [(row["step"], row) for row in result.rows]


@pytest.mark.parametrize("name, module", [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_log_that_is_not_installed(name, module, place, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    error = refused(capsys, arguments(place, tmp_path / "run", log_to=name))
    assert f"--log_to {name} needs a package that is not installed" in error
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------------------------
# It learns


def learn(tokenizer, golds, allowed, steps, seed=0, **options) -> list[float]:
    """The accuracy at each of so many steps of the loop, on one question again and again. An answer is right when the
    gold number is the only one in it."""
    actor = small_model(tokenizer, seed=1)
    with torch.no_grad():
        actor.lm_head.bias[actor.lm_head.bias >= 4] += 3  # boxes and both numbers are almost all it writes
    reference = copy.deepcopy(actor).requires_grad_(False)
    critic_config = copy.deepcopy(actor.config)
    critic_config.num_labels = 1
    critic = AutoModelForTokenClassification.from_config(critic_config).eval()
    torch.nn.init.zeros_(critic.score.weight)
    config = train.Config(**options)
    updates = steps * config.epochs * config.minibatches
    optimizers = [
        Optimizer(model, lr, 0, updates, config.max_grad_norm)
        for model, lr in ((actor, config.lr), (critic, config.critic_lr))
    ]
    accuracies = []
    for step in range(steps):
        dialogues = rollout(
            actor,
            tokenizer,
            ["Which?"] * len(golds),
            golds,
            allowed,
            extract=extract_boxed,
            grade=lambda answer, gold: settled(re.findall(r"\d+", answer) == [gold]),
            reward=reward,
            max_new_tokens=config.max_new_tokens,
            max_attempt_tokens=config.max_attempt_tokens,
            seed=(seed, step),
        )
        scores = ppo.score(dialogues, reference, critic, 1.0, config.micro_batch_tokens)
        ppo.update(actor, critic, *optimizers, dialogues, *scores, config, seed=(seed, step))
        accuracies.append(dialogues.correct_D.float().mean().item())
    return accuracies


def test_it_learns_from_failures(tokenizer):
    """The gold answer is 5 or 17, as a coin falls, and nothing but the feedback tells which. Two attempts that do not look
    back solve half of the dialogues with one answer for ever, three quarters at random; all of them are solved only by
    who changes an answer that was called incorrect."""
    accuracies = learn(
        tokenizer,
        ["5", "17"] * 32,
        [2] * 64,
        steps=28,
        minibatches=4,
        lr=1e-2,
        critic_lr=1e-2,
        kl_coef=0.02,
        max_new_tokens=26,
        max_attempt_tokens=6,
    )
    assert max(accuracies[:2]) < 0.3 and sum(accuracies[-4:]) / 4 > 0.85, accuracies


def test_on_the_cpu_no_verdict_comes_late():
    """Its moment would decide which rows share a batch. This pair needs a worker, which takes a while to start."""
    with train.Grader(workers=1) as grader:
        late = train.graded_now(grader, "\\sqrt{8}", "2\\sqrt2")
        assert late.done() and late.result() is True
