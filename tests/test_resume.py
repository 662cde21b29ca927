"""A run resumes exactly, bit for bit, whenever and by whatever it was interrupted."""

import os
import re
import resource
import shutil
import signal
import sys
from functools import cache, partial
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import RESUME, assert_same_run, exit_codes, in_call, launch, metrics, names, refused

pytestmark = pytest.mark.usefixtures("inputs")
FOUR = "--steps 4 --epochs 2 --lr_warmup 0.25 "  # with a checkpoint after every second one


@cache
def whole_run(options: str = "") -> Path:
    """The folder of the four steps in one go."""
    whole = launch(f"{FOUR} {options} --out whole")
    assert 0 < sum(row["accuracy"] for row in whole.rows) < 4  # otherwise a comparison would say little
    return whole.folder


# -------------------- What may happen in a call of a function, `work`
def ctrl_c_before(work):
    raise KeyboardInterrupt


def ctrl_c_after(work):
    work()
    raise KeyboardInterrupt


def ctrl_c_twice(work):  # the second one stops at once
    work()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


def sigterm(work):  # what a scheduler sends: the step is finished and saved
    os.kill(os.getpid(), signal.SIGTERM)
    return work()


def torn_line(work):  # what a power cut may leave; its step comes again anyway
    with open("run/metrics.jsonl", "a") as file:
        file.write('{"step": 3, "rew')
    raise KeyboardInterrupt


def out_of_memory(work):  # another program may have taken the GPU's
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore than one line.")


def full_disk(work):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def killed_in_a_file(work):
    Path(work.args[1]).write_bytes(b"half a checkpoint")
    os.kill(os.getpid(), signal.SIGKILL)


STOPPED, NO_MEMORY = "\nstopped", ": step 3: CUDA out of memory. Tried to allocate 2.00 GiB."
NO_DISK = ": step 4: run/checkpoint-000004.pt cannot be written .full disk.., earlier ones are intact: .*"
INTERRUPTIONS = [  # in which call of what, the exit code and sentence, lines of metrics and checkpoint that are left
    ("train.update", 2, ctrl_c_before, 130, STOPPED, 1, None),
    ("train.update", 3, ctrl_c_before, 130, STOPPED, 2, 2),
    ("train.update", 3, ctrl_c_after, 130, STOPPED, 2, 2),
    ("train.update", 3, ctrl_c_twice, 130, STOPPED, 2, 2),
    ("train.update", 3, torn_line, 130, STOPPED, 3, 2),
    ("train.Run.record", 4, ctrl_c_after, 130, STOPPED, 4, 2),
    ("train.update", 3, sigterm, 130, STOPPED, 3, 3),
    ("train.update", 4, sigterm, 130, STOPPED, 4, 4),
    ("train.update", 3, out_of_memory, 2, NO_MEMORY, 2, 2),
    ("train.Run.save", 2, full_disk, 2, NO_DISK, 4, 2),
    ("torch.save", 2, killed_in_a_file, -signal.SIGKILL, None, 4, 2),
]


@pytest.mark.parametrize("name, call, event, code, sentence, lines, checkpoint", INTERRUPTIONS)
def test_interrupted_and_resumed(name, call, event, code, sentence, lines, checkpoint, capfd):
    whole, command = whole_run(), RESUME
    assert exit_codes(lambda: launch(FOUR, in_call(name, call, event))) == [code]
    if sentence:
        command = re.search(f"{sentence}; resume with: python train.py (--.*)\n", capfd.readouterr().err).groups()[-1]
    assert (Path("run") / "metrics.jsonl").read_text().count('"step"') == lines
    assert max(Path("run").glob("*.pt"), default=None) == (checkpoint and Path(f"run/checkpoint-{checkpoint:06d}.pt"))
    parts = [name for name in names("run") if name.endswith(".part")]
    assert parts == (["checkpoint-000004.pt.part"] if event is killed_in_a_file else []) and "model" not in names("run")
    launch(command)
    assert_same_run(whole, Path("run"))


@pytest.mark.parametrize("options", ["--dtype bfloat16", "--group_size 4"])
def test_resumed_with_float32_masters_or_without_a_critic(options, capsys):
    whole = whole_run(options)
    assert exit_codes(lambda: launch(FOUR + options, in_call("train.update", 3, ctrl_c_after))) == [130]
    Path("run/metrics.jsonl").unlink()  # the checkpoint holds the metrics too
    edited('"torch": ".*?"', '"torch": "1.0"')(Path("run/config.json"))
    launch(RESUME)
    assert "warning: the run began with other versions: torch 1.0" in capsys.readouterr().err
    assert_same_run(whole, Path("run"))


def test_killed_at_twenty_moments():
    """Killed a random number of function calls after its models were built, be it while it resumes, in a rollout, in an
    update or in a checkpoint; resumed, killed again, and at last allowed to finish."""
    options, done = "--steps 8 --save_every 1 --slots 4 --show_every 5", []
    whole = launch(f"{options} --out whole").folder

    def killed_after(moment, work):
        def tick(frame, event, argument):
            nonlocal moment
            moment -= 1
            if moment == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        run = work()
        sys.setprofile(tick)
        return run

    for moment in np.random.default_rng(0).integers(1, 250_000, size=20).tolist():
        kill = in_call("train.build_run", 1, partial(killed_after, moment))
        assert exit_codes(lambda: launch(options, kill)) == [-signal.SIGKILL]
        options = RESUME if Path("run/config.json").exists() else options
        done.append(max(Path("run").glob("checkpoint-*.pt"), default=None))
    assert len({*done} - {None}) > 1, "the kills should come in several steps"
    assert exit_codes(lambda: launch(options)) == [0]
    assert_same_run(whole, Path("run"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_ends_quietly(number, capfd):
    assert exit_codes(lambda: launch("", {"train.build_run": lambda _: os.kill(os.getpid(), number)})) == [130]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("options", [RESUME, f"--resume {FOUR} --out run --model base --preset paper"])
def test_resuming_a_finished_run_changes_nothing(options):
    """Even when the command repeats options of the run."""
    shutil.copytree(whole_run(), "run")
    assert launch(options).rollouts == []
    assert_same_run(whole_run(), Path("run"))


# -------------------- Checkpoints
@pytest.mark.parametrize("damage", ["truncated", "a changed byte", "garbage", "empty", "another zip"])
def test_a_corrupt_checkpoint_is_named_and_the_one_before_it_used(damage, capsys):
    shutil.copytree(whole_run(), "run")
    path = Path("run/checkpoint-000004.pt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    broken = {"truncated": content[:-1000], "a changed byte": content, "garbage": b"garbage" * 100, "empty": b""}
    path.write_bytes(broken.get(damage, b""))
    if damage == "another zip":
        with ZipFile(path, "w") as file:
            file.writestr("checkpoint", "sound, but none of ours")
    again = launch(RESUME)
    assert f"{path} is corrupt (" in capsys.readouterr().err and len(again.rollouts) == 2
    path.with_suffix(".corrupt").unlink()
    assert_same_run(whole_run(), Path("run"))


@pytest.mark.parametrize("lose", [lambda path: path.write_bytes(b""), lambda path: path.rename("run/training.png")])
def test_a_run_without_a_sound_checkpoint_does_not_start_anew(lose, capsys):
    shutil.copytree(whole_run(), "run")
    for path in Path("run").glob("checkpoint-*.pt"):
        lose(path)
    for _ in range(2):  # the first one renames them
        with pytest.raises(SystemExit, match="2"):
            launch(RESUME)
    assert "no checkpoint in run can be read" in capsys.readouterr().err and metrics("run") == metrics(whole_run())


def test_gradients_that_stay_infinite_end_the_run(capsys):
    """From step 3 on, in both minibatches of a step: the fifth such minibatch is the first of step 5."""

    def infinite(work):
        reference_DT, value_DT = work()
        return reference_DT + torch.inf, value_DT

    with pytest.raises(SystemExit, match="2"):
        launch("--steps 9", in_call("train.reference_logps_and_values", 3, infinite, last=9))
    assert "step 5: 5 steps in a row had no finite gradient" in capsys.readouterr().err
    assert [row["skipped"] for row in metrics()] == [0, 0, 2, 2]
    assert all(weight.isfinite().all() for weight in torch.load("run/checkpoint-000004.pt")["actor"].values())


# -------------------- What is not resumed: exit code 2, one sentence
def test_a_folder_in_use_is_refused(capsys):
    Path("run").mkdir()
    Path("run/notes.txt").write_text("mine")
    assert "run is not empty: continue that run with --resume, or choose another --out" in refused(capsys, "")
    Path("run/notes.txt").rename("run/config.json.part")  # what a process that was killed right at the start leaves
    assert len(launch("--steps 1").rows) == 1


def test_resume_needs_a_run(capsys):
    assert "--resume needs the folder of the run: --out runs/NAME" in refused(capsys, "--resume --preset smoke")
    Path("run").mkdir()
    assert "there is no run to resume in run" in refused(capsys, RESUME)


def test_resume_takes_no_other_options(capsys):
    shutil.copytree(whole_run(), "run")
    error = refused(capsys, f"{RESUME} --steps 3 --lr 0.001 --seed 4")
    assert "the run in run has other options: steps (4 there, 3 here), seed (0 there, 4 here); leave these out" in error


def test_a_longer_run_begins_like_the_shorter_one():
    """Its first steps have the shorter run's learning rates; its further ones have the last of these."""
    shutil.copytree(whole_run(), "run")
    assert exit_codes(lambda: launch(f"{RESUME} --steps 7", in_call("train.update", 1, ctrl_c_after))) == [130]
    rows = launch(RESUME).rows
    assert rows[:4] == metrics(whole_run()) and [row["step"] for row in rows] == [*range(1, 8)]
    assert [row["lr"] for row in rows[3:]] == pytest.approx([1e-4] * 4)
    assert metrics(launch(FOUR + "--steps 7 --lr_steps 4 --out other").folder) == rows


def other_weights(path):
    save_file({name: 1.01 * weight for name, weight in load_file(path).items()}, path, {"format": "pt"})


def other_shapes(path):
    state = torch.load(path)
    torch.save(state | {"actor": {name: weight[:3] for name, weight in state["actor"].items()}}, path)


def edited(old: str, new: str):
    return lambda path: path.write_text(re.sub(old, new, path.read_text(), count=1, flags=re.DOTALL))


CHANGES = [  # in which file of the run or its inputs, which, and the sentence
    ("run/config.json", edited(".*", "{"), "run/config.json is not JSON: "),
    ("run/config.json", edited("{", '{"kl_estimator": "k3",'), "unexpected keyword argument 'kl_estimator'"),
    ("run/checkpoint-000004.pt", other_shapes, "run/checkpoint-000004.pt is of another model, or of another version"),
    ("questions.jsonl", edited("on 3", "on 33"), "run began with other contents, precision or code: --data"),
    ("base/model.safetensors", other_weights, "run began with other contents, precision or code: --model"),
]


@pytest.mark.parametrize("name, change, sentence", CHANGES)
def test_what_has_changed_is_named(name, change, sentence, capsys):
    shutil.copytree(whole_run(), "run")
    if (shared := Path(name.split("/")[0])).is_symlink():  # an input, which all tests read
        (shutil.copytree if shared.is_dir() else shutil.copy)(shared.resolve(), "copy")
        shared.unlink()
        Path("copy").rename(shared)
    change(Path(name))
    assert sentence in refused(capsys, RESUME)


@pytest.mark.parametrize("name, options", [("train.build_run", ""), ("train.update", RESUME)])
def test_one_process_at_a_time_writes_to_a_folder(name, options, capsys):
    """While the first one builds its models, or is in a step, another one comes."""

    def another():
        assert "another process writes to run: wait for its end, or choose another --out" in refused(capsys, options)

    def meanwhile(work):
        assert exit_codes(another) == [0]
        return work()

    assert len(launch("", in_call(name, 1, meanwhile)).rows) == 2
