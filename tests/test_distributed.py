"""Several processes give what one gives, and none of them waits for one that is gone."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_train import arguments, fork, launch, metrics, place, tokenizer  # noqa: F401

import train
from support import ranks

# Other sums are rounded otherwise. Where a uniform number lies within that of the border between two tokens, the sampled
# dialogues part; it happens to these runs once in a while, and not with this learning rate.
OPTIONS = dict(lr=3e-5, critic_lr=1e-3, steps=3, save_every=1)


def side_by_side(argv: list[str], count: int = 2, code: int = 0, **replaced) -> None:
    """launch(argv) in so many processes, as torchrun would start them; they end with this code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def process():
        os.environ |= dict(RANK=f"{rank}", WORLD_SIZE=f"{count}", MASTER_ADDR="127.0.0.1", MASTER_PORT=f"{port}")
        launch(argv, **replaced)

    children = []
    for rank in range(count):
        children.append(fork(process))
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [code] * count


def assert_close(a: Path, b: Path) -> None:
    """The metrics and the weights of two runs are equal to 1e-6."""
    rows, others = metrics(a), metrics(b)
    assert len(rows) == len(others)
    for row, other in zip(rows, others):
        assert row.keys() == other.keys()
        for name in row.keys() - {"padding"}:
            assert row[name] == pytest.approx(other[name], abs=1e-6, rel=1e-6), f"{name} of step {row['step']}"
    step = f"checkpoint-{len(rows):06d}.pt"
    state, other = torch.load(a / step), torch.load(b / step)
    assert state.keys() == other.keys()
    for part in ("actor", "critic"):
        for name, weight in state.get(part, {}).items():
            torch.testing.assert_close(weight, other[part][name], atol=1e-6, rtol=0, msg=f"{part}: {name}")
    moments = [state["actor_optimizer"]["adamw"]["state"] for state in (state, other)]
    assert moments[0].keys() == moments[1].keys()
    for i, moment in moments[0].items():
        torch.testing.assert_close(moment["exp_avg"], moments[1][i]["exp_avg"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        dict(dialogues=7, minibatches=2, epochs=2),  # 3 and 4 dialogues
        dict(dialogues=3, minibatches=3),  # every minibatch is one dialogue, so that a rank has none
        dict(dialogues=9, group_size=3, drop_equal=True, minibatches=2, gradient_checkpointing=True),
        dict(dialogues=8, drop_truncated=True, dtype="bfloat16", micro_batch_tokens=1, offload=True),
    ],
    ids=["uneven", "nothing in a minibatch", "groups", "bfloat16"],
)
def test_two_processes_give_what_one_gives(options, place, tmp_path):
    one = launch(arguments(place, tmp_path / "one", **(OPTIONS | options)))
    side_by_side(arguments(place, tmp_path / "two", **(OPTIONS | options)))
    assert_close(one.folder, tmp_path / "two")
    assert sum(row["accuracy"] for row in one.rows) > 0 and one.rows[-1]["kl"] > 0
    folders = one.folder / "dialogues", tmp_path / "two" / "dialogues"
    shown = [sorted(path.read_text() for path in folder.iterdir()) for folder in folders]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_processes(before, after, place, tmp_path):
    one = launch(arguments(place, tmp_path / "one", **OPTIONS))

    class Run(train.Run):
        def save(self):
            super().save()
            if self.step == 2:
                ranks.gather(None)
                raise KeyboardInterrupt

    side_by_side(arguments(place, tmp_path / "other", **OPTIONS), before, code=130, Run=Run)
    side_by_side(["--resume", "--out", str(tmp_path / "other")], after)
    assert_close(one.folder, tmp_path / "other")


def test_every_process_gets_dialogues(place, tmp_path, capfd):
    side_by_side(arguments(place, tmp_path / "run", dialogues=8, group_size=8), code=2)
    assert capfd.readouterr().err.count("--dialogues must give each of 2 processes a question, not 8") == 1


def test_a_signal_to_one_process_stops_all_of_them_after_the_same_step(place, tmp_path):
    one = launch(arguments(place, tmp_path / "one", **OPTIONS))

    def update(*args, seed, **kwargs):
        if seed[1] == 2 and ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return update_(*args, seed=seed, **kwargs)

    update_ = train.update
    side_by_side(arguments(place, tmp_path / "run", **OPTIONS | dict(save_every=9)), code=130, update=update)
    assert len(metrics(tmp_path / "run")) == 2
    side_by_side(["--resume", "--out", str(tmp_path / "run")])
    assert_close(one.folder, tmp_path / "run")


def processes_of(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_torchrun_and_a_process_that_is_killed(place, tmp_path):
    """The other one stops at once with a clear message, and the run goes on from its last checkpoint."""
    argv = arguments(place, tmp_path / "run", **OPTIONS | dict(steps=10_000, save_every=2))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", train.__file__]
    run = subprocess.Popen([*torchrun, *argv], stderr=subprocess.PIPE, text=True)
    try:
        while run.poll() is None and not (tmp_path / "run" / "checkpoint-000002.pt").exists():
            time.sleep(0.1)
        os.kill(processes_of(run.pid)[1], signal.SIGKILL)
        _, error = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode != 0
    assert "lost another process of the run" in error and f"--resume --out {tmp_path / 'run'}" in error
