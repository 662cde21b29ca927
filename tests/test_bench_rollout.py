"""The rollout benchmark with tiny numbers: every side plays the script; with nothing to choose all write the same."""

import pytest
import torch
import transformers
from transformers import ContinuousBatchingConfig, Qwen2Config

from bench import rollout as bench
from support.memory import SHAPE

TINY = Qwen2Config(**bench.COMMON, **dict(zip(SHAPE, (32, 48, 2, 4, 2, 96))), initializer_range=0.3)
PEERS = [bench.play_generate]
if hasattr(ContinuousBatchingConfig, "page_size"):  # transformers batches on the CPU; 5.17 does not
    PEERS.append(bench.play_continuous)
SCRIPT = bench.Script(7, 96, prompt=(3, 9), length=(2, 9), median=4)


@pytest.fixture(scope="module")
def model():
    return bench.random_model(TINY)


def test_script_is_as_described():
    script = bench.Script(3000, 50)
    lengths = torch.tensor([length for attempts in script.lengths for length in attempts])
    assert {len(prompt) for prompt in script.prompts} == set(range(24, 65)) and set(script.allowed) == {1, 2, 3, 4, 5}
    assert (lengths.min(), lengths.max(), len(script.feedback)) == (8, 160, 24)
    assert lengths.float().median() == pytest.approx(30, abs=2)
    assert script.budget == max(sum(attempts) + 24 * (len(attempts) - 1) for attempts in script.lengths)


@pytest.mark.parametrize("play", [bench.play_ours, *PEERS])
@pytest.mark.parametrize("rows", [2, 7])
def test_every_side_samples_the_tokens_of_the_script(model, play, rows):
    played = play(model, SCRIPT, rows)
    assert [list(map(len, attempts)) for attempts in played] == SCRIPT.lengths


@pytest.mark.parametrize("play", PEERS)
def test_where_there_is_nothing_to_choose_every_side_writes_the_same(play):
    model = bench.random_model(TINY)
    model.model.norm.weight.data *= 1e6  # the most probable token has all the probability
    assert play(model, SCRIPT, 3) == bench.play_ours(model, SCRIPT, 3)


def small_workload(monkeypatch, sides: list[tuple]) -> None:
    monkeypatch.setattr(bench, "WORKLOADS", {"tiny": (TINY, dict(length=(2, 4), median=3), sides)})
    monkeypatch.setattr(bench, "SIDES", bench.SIDES | {"continuous": PEERS[-1]})
    monkeypatch.setattr(ContinuousBatchingConfig, "page_size", 32, raising=False)


def test_a_side_that_leaves_the_script_is_an_error(monkeypatch):
    small_workload(monkeypatch, [("ours", 2, 8)])
    monkeypatch.setitem(bench.SIDES, "ours", lambda *args: bench.play_ours(*args)[1:])
    with pytest.raises(RuntimeError, match="ours did not write"):
        bench.main()


def test_table(monkeypatch, capsys):
    """A side plays two short dialogues that do not count, then its script twice."""
    small_workload(monkeypatch, [("ours", 2, 8), ("ours", 3, 12), ("generate", 2, 3), ("continuous", 2, 3)])
    clock = iter(range(0, 999, 2))
    monkeypatch.setattr(bench.time, "process_time", lambda: next(clock))
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"torch {torch.__version__}, transformers {transformers.__version__}, 2 turns"
    scripts = {n: bench.Script(n, 96, length=(2, 4), median=3).tokens / 2 for n in (8, 12, 3)}
    for line, side in zip(lines[4:], ("ours | 2 | 8", "ours | 3 | 12", "generate | 2 | 3", "continuous | 2 | 3")):
        rate = f"{scripts[int(side.split()[-1])]:.0f}"
        assert line == f"| tiny | {side} | {rate} ({rate} to {rate}) |"
