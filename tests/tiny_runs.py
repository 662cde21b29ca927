"""Whole runs in a second: `launch("--steps 3")` is train.py on a model of 50,000 weights, in the folder `run`."""

import io
import json
import multiprocessing
import signal
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from itertools import count
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace

import pytest
import torch

import evaluate
import train
from bench import reproduce
from support import cli
from support.run import parse_run

TINY = """--out run --model base --data questions.jsonl --eval_data none --steps 2 --dialogues 8 --minibatches 2
    --max_attempts 3 --max_new_tokens 48 --max_attempt_tokens 14 --slots 8 --lr 1e-3 --critic_lr 1e-2 --save_every 2
    --show_every 1 --device cpu --dtype float32 """
RESUME = "--resume --out run"
assert_equal = partial(torch.testing.assert_close, atol=0, rtol=0)


def words(options: str) -> list[str]:
    """The command line of a tiny run with these options. A resumed run has its own."""
    return (options if "--resume" in options else TINY + options).split()


def read_config(options: str) -> train.Config:
    return parse_run(train.Config, words(options))


def launch(options: str = "", replaced: dict = {}, report: bool = False) -> SimpleNamespace:
    """train.py with these options, and with some names replaced, as in {"train.update": ...}. Returns its folder,
    metrics, printed output, rollouts and Run. The report at the end, and plots, are left out unless asked for."""
    seen = SimpleNamespace(rollouts=[], run=None)
    rollout, whole_report, output, before = train.rollout, train.finish, io.StringIO(), signal.getsignal(signal.SIGTERM)

    def watched_rollout(*args, **kwargs):
        dialogues = rollout(*args, **kwargs)
        if "engine" in kwargs:  # those of support/check.py have none
            seen.rollouts.append(dialogues)
        return dialogues

    def watched_report(run, held_out):
        seen.run = run
        if report:
            whole_report(run, held_out)

    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
            ours = {"train.finish": watched_report, "train.rollout": watched_rollout}
            if not report:
                ours["support.run.plot_training"] = lambda *_: None
            for name, value in (ours | replaced).items():
                patch.setattr(name, value)
            train.main(words(options))
    finally:
        signal.signal(signal.SIGTERM, before)
    seen.folder = Path(cli.parse(train.Config, words(options))["out"]).absolute()
    seen.rows, seen.output = metrics(seen.folder), output.getvalue()
    return seen


def refused(capsys, options: str, replaced: dict = {}) -> str:
    """The one sentence with which train.py refuses these options, before any work."""

    def too_late(*_):
        raise AssertionError("the work has begun")

    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        launch(options, {"train.train": too_late} | replaced)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    return error


def metrics(folder: str | Path = "run") -> list[dict]:
    """The lines of metrics.jsonl without the measured times."""
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in row.items() if name != "seconds" and "per_second" not in name} for row in rows]


def in_this_process(patch) -> list[list[str]]:
    """bench/reproduce.py calls train.main and evaluate.main, one at a time, in place of processes; their plots are left
    out. Returns the list of their command lines, which grows."""
    commands, lock = [], threading.Lock()

    def call(command, **_):
        with lock:
            commands.append(command[1:])
            {"train.py": train.main, "evaluate.py": evaluate.main}[command[1]](command[2:])
        return SimpleNamespace(returncode=0)

    patch.setattr(reproduce, "subprocess", SimpleNamespace(run=call))  # git is called as ever
    patch.setattr(train.signal, "signal", lambda *_: None)  # not possible outside of the main thread
    patch.setattr("support.run.plot_training", lambda *_: None)
    patch.setattr(evaluate, "plot_accuracy", lambda *_: None)
    return commands


def names(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def same(a, b) -> bool:
    """Equal bit for bit, through all nesting."""
    try:
        return assert_equal(a, b) is None
    except AssertionError:
        return False


def assert_same_run(a: Path, b: Path) -> None:
    """Both folders hold the same run, bit for bit but for the measured times."""
    assert metrics(a) == metrics(b)
    last = f"checkpoint-{len(metrics(a)):06d}.pt"
    states = [torch.load(folder / last) for folder in (a, b)]
    assert states[0].pop("metrics") and states[1].pop("metrics")  # with the measured times
    assert_equal(*states)
    # a run that was stopped has saved at other steps
    assert {*names(a)} ^ {*names(b)} <= {f"checkpoint-{step:06d}.pt" for step in range(99)}
    for path in sorted([*a.glob("model/*"), *a.glob("dialogues/*")]):
        assert path.read_bytes() == (b / path.relative_to(a)).read_bytes(), f"{path.name} differs"


# -------------------- Interruptions
def in_call(name: str, call: int, event: Callable, last: int = 0) -> dict:
    """For launch: in this call of the function of this name, counted from 1, or in all from it to the `last`,
    `event(work)` takes its place; `work()` does what the function would have done."""
    function, calls = resolve_name(name), count(1)

    def watched(*args, **kwargs):
        work = partial(function, *args, **kwargs)
        return event(work) if call <= next(calls) <= max(call, last) else work()

    return {name: watched}


def exit_codes(*works: Callable) -> list[int]:
    """How these functions end, each in a process of its own, all at the same time; minus the number of a signal. A
    forked process is much quicker than a new one."""

    def isolated(work):
        train.tqdm.set_lock(threading.RLock())  # processes share the usual one: a killed one never gives it back
        torch.set_num_threads(torch.get_num_threads())  # a new thread pool, before two threads at once ask for it
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may let what it runs ignore Ctrl-C
        signal.alarm(100)  # no test waits for ever
        work()

    processes = [multiprocessing.get_context("fork").Process(target=isolated, args=[work]) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]
