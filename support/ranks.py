"""Several processes, one run: torchrun starts the program once for every GPU, and each copy is a rank.

All hold the same models and know all dialogues of a step. Each writes its share of them and computes its share of every
minibatch's gradient; the gradients are added up. All read the folder of the run. A single process is rank 0 of 1.
"""

import os
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.utils.rnn import pad_sequence


def join() -> None:
    """Meet the other processes that torchrun started, if it did."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30))  # a rank waits this long for the slowest


def leave() -> None:
    """From here on each process is alone, and rank 0."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number 0 prints and writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def own_slice(dialogues: int, group_size: int) -> slice:
    """The dialogues of a step that this rank writes: neighbours, in whole groups."""
    first, end = (dialogues // group_size * i // world_size() for i in (rank(), rank() + 1))
    return slice(first * group_size, end * group_size)


def collective(operation: Callable, *args) -> None:
    """A collective operation, if there are several ranks. ConnectionError when one of them is gone."""
    try:
        if world_size() > 1:
            operation(*args)
    except torch.OutOfMemoryError:  # a RuntimeError, but not a lost process
        raise
    except RuntimeError as error:
        raise ConnectionError(f"rank {rank()} lost another process of the run: {error}") from error


def all_reduce_sum(x: torch.Tensor) -> torch.Tensor:
    """The sum over the ranks, in place."""
    collective(dist.all_reduce, x)
    return x


def broadcast(x: torch.Tensor, source: int) -> None:
    """Give all ranks the values that `source` has, in place."""
    collective(dist.broadcast, x, source)


def gather_on_rank0(states: dict[int, dict[str, torch.Tensor]]) -> dict[int, dict[str, torch.Tensor]]:
    """On rank 0 the states of all ranks in one dictionary, elsewhere the rank's own; with several ranks, on the CPU."""
    if world_size() == 1:
        return states
    mine = {n: {name: x.cpu() for name, x in state.items()} for n, state in states.items()}
    shares = [mine] * world_size()
    collective(dist.gather_object, mine, shares if rank() == 0 else None)
    return {n: state for share in shares for n, state in share.items()}


def all_gather(value) -> list:
    """Every rank's value, in the order of the ranks."""
    values = [value] * world_size()
    collective(dist.all_gather_object, values, value)
    return values


def on_rank0(function: Callable, *args):
    """Call function(*args) on rank 0; return its result on every rank. If it fails, all end, and rank 0 says why."""
    result = error = None
    if rank() == 0:
        try:
            result = function(*args)
        except (ValueError, OSError, SystemExit) as mistake:
            error = mistake
    result, failed = all_gather((result, error is not None))[0]
    if failed:
        raise error or SystemExit(2)
    return result


def gather_rows(batch):
    """A dataclass of tensors and lists with a row for each dialogue: the rows of all ranks, padded alike."""
    parts, joined = all_gather(batch), {}
    for name in vars(batch):
        rows = [row for part in parts for row in getattr(part, name)]
        if name.endswith("_DT"):
            rows = pad_sequence(rows, batch_first=True)
        elif name.endswith("_D"):
            rows = torch.stack(rows)
        joined[name] = rows
    return type(batch)(**joined)
