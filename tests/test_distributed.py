"""Several processes give what one gives, and none of them waits for one that is gone."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_runs import RESUME, exit_codes, in_call, launch, metrics, words

import train
from support import ranks

pytestmark = pytest.mark.usefixtures("inputs")
# Sums in another order are rounded differently. Where a uniform number is that close to the border between two tokens,
# the sampled dialogues part. It happens to these runs now and then, and not with this learning rate and seed.
THREE = "--seed 3 --lr 3e-5 --critic_lr 1e-3 --steps 3 --save_every 1 "


def launch_on_ranks(options: str, replaced: dict = {}, count: int = 2) -> list[int]:
    """launch(...) in this many processes, as torchrun would start them. Returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def process(rank):
        os.environ |= dict(RANK=f"{rank}", WORLD_SIZE=f"{count}", MASTER_ADDR="127.0.0.1", MASTER_PORT=f"{port}")
        launch(options, replaced)

    return exit_codes(*(partial(process, rank) for rank in range(count)))


def assert_close(a: Path, b: Path = Path("run")) -> None:
    """The metrics and the weights of two runs are equal to 1e-6."""
    rows, others = metrics(a), metrics(b)
    torch.testing.assert_close(rows, others, atol=1e-6, rtol=1e-6)
    states = [torch.load(folder / f"checkpoint-{len(rows):06d}.pt") for folder in (a, b)]
    for state in states:
        moments = state["actor_optimizer"]["states"]
        state["moments"] = {i: moment["exp_avg"] for i, moment in moments.items()}
    compared = [{part: state[part] for part in state.keys() & {"actor", "critic", "moments"}} for state in states]
    torch.testing.assert_close(*compared, atol=1e-6, rtol=0)


CASES = {
    "minibatches of 3 and 4 dialogues": "--dialogues 7 --minibatches 2 --epochs 2",
    "a rank without a dialogue in a minibatch": "--dialogues 3 --minibatches 3",
    "groups": "--dialogues 9 --group_size 3 --drop_uniform_groups --minibatches 2 --gradient_checkpointing",
    "bfloat16": "--dialogues 8 --drop_truncated --dtype bfloat16 --micro_batch_tokens 1 --offload",
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_two_processes_give_what_one_gives(options):
    one = launch(f"{THREE} {options} --out one")
    assert launch_on_ranks(THREE + options) == [0, 0]
    assert_close(one.folder)
    assert sum(row["accuracy"] for row in one.rows) > 0 < sum(row.get("kl", 0) for row in one.rows)
    shown = [sorted(path.read_text() for path in Path(folder).glob("dialogues/*")) for folder in ("one", "run")]
    assert shown[0] == shown[1] and len(shown[0]) == 3


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1)])
def test_a_run_resumes_with_another_number_of_processes(before, after):
    one = launch(f"{THREE} --out one")

    def saved_and_stopped(work):
        work()
        ranks.all_gather(None)  # all have finished the step
        raise KeyboardInterrupt

    assert launch_on_ranks(THREE, in_call("train.Run.save", 2, saved_and_stopped), before) == [130] * before
    assert launch_on_ranks(RESUME, count=after) == [0] * after
    assert_close(one.folder)


def test_one_process_reports():
    def report(*_):
        with open("reports", "a") as file:
            file.write(f"rank {os.environ['RANK']} ")

    assert launch_on_ranks("--steps 1", {"train.finish": report}) == [0, 0]
    assert Path("reports").read_text() == "rank 0 "


def test_a_mistake_is_said_once(capfd):
    assert launch_on_ranks("--dialogues 8 --group_size 8") == [2, 2]
    assert capfd.readouterr().err.count("--dialogues must give each of 2 processes a question, not 8") == 1


def test_a_signal_to_one_process_stops_all_of_them_after_the_same_step():
    one = launch(f"{THREE} --out one")

    def signal_to_rank_1(work):
        if ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return work()

    assert launch_on_ranks(f"{THREE} --save_every 9", in_call("train.update", 2, signal_to_rank_1)) == [130, 130]
    assert len(metrics("run")) == 2
    assert launch_on_ranks(RESUME) == [0, 0]
    assert_close(one.folder)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_torchrun_and_a_process_that_is_killed():
    """The other one stops at once with a clear message, and says how to go on from the last checkpoint."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", train.__file__]
    command = [*torchrun, *words(f"{THREE} --steps 10000 --save_every 2")]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while run.poll() is None and not Path("run/checkpoint-000002.pt").exists():
            time.sleep(0.1)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        _, error = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode != 0
    assert "lost another process" in error and "resume with: torchrun ... train.py --resume --out run" in error
