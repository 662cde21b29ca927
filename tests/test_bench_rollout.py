"""The rollout benchmark with tiny numbers: every side plays the script, and greedily every side writes the same."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

spec = importlib.util.spec_from_file_location("bench_rollout", Path(__file__).parents[1] / "bench" / "rollout.py")
bench = importlib.util.module_from_spec(spec)
sys.modules["bench_rollout"] = bench  # its dataclasses look themselves up
spec.loader.exec_module(bench)

if not bench.BATCHES_ON_CPU:
    for peer in ("generate_batch", "continuous"):
        del bench.PEERS[peer]
SIDES = {"ours": bench.play_ours, **bench.PEERS}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = bench.Qwen2Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=None,
        bos_token_id=None,
    )
    return bench.Qwen2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def script():
    return bench.draw_script(7, 96, prompt=(3, 9), length=(2, 9), median=4, feedback=5)


def test_script_is_as_described():
    script = bench.draw_script(3000, 50)
    lengths = torch.tensor([length for attempts in script.lengths for length in attempts])
    assert {len(prompt) for prompt in script.prompts} == set(range(24, 65)) and set(script.allowed) == {1, 2, 3, 4, 5}
    assert (lengths.min(), lengths.max(), len(script.feedback)) == (8, 160, 24)
    assert lengths.float().median() == pytest.approx(30, abs=2)
    assert sum(script.correct) / script.attempts == pytest.approx(0.35, abs=0.02)
    for attempts, allowed, correct in zip(script.lengths, script.allowed, script.correct):
        assert correct or len(attempts) == allowed
    assert script.budget == max(sum(attempts) + 24 * (len(attempts) - 1) for attempts in script.lengths)


def test_a_script_of_bounded_length():
    script = bench.draw_script(500, 50, length=(8, 90), median=60, longest=150)
    assert script.budget <= 150 and max(script.allowed) == 5
    for attempts, allowed, correct in zip(script.lengths, script.allowed, script.correct):
        assert correct or len(attempts) == allowed


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("rows", [2, 7])
def test_every_side_samples_the_tokens_of_the_script(model, script, side, rows):
    played = SIDES[side](model, script, rows)
    assert [list(map(len, attempts)) for attempts in played] == script.lengths
    assert sum(len(attempt) for attempts in played for attempt in attempts) == script.tokens


@pytest.mark.parametrize("peer", bench.PEERS)
def test_greedily_every_side_writes_the_same(model, script, peer):
    assert bench.PEERS[peer](model, script, 3, temperature=0.0) == bench.play_ours(model, script, 3, temperature=0.0)


def test_ours_feeds_the_script_and_marks_what_it_sampled(model, script):
    with bench.scripted(script):
        dialogues = bench.run_engine(model, script, slots=3)
    assert dialogues.used_D.tolist() == list(map(len, script.lengths))
    assert dialogues.correct_D.tolist() == script.correct and not dialogues.truncated_D.any()
    assert int(dialogues.sampled_DT.sum()) == script.tokens
    for tokens, prompt, attempts in zip(dialogues.tokens_DT, script.prompts, dialogues.attempts):
        assert tokens[: len(prompt)].tolist() == prompt
        for last, attempt in zip(attempts, attempts[1:]):
            assert tokens[last.end : attempt.start].tolist() == script.feedback


def test_a_side_that_leaves_the_script_is_an_error(model, script):
    def short(model, script, rows):
        return [attempts[:-1] for attempts in bench.play_ours(model, script, rows)]

    with pytest.raises(RuntimeError, match="short did not write"):
        bench.measure(short, model, script, 3)


def test_table_and_json(model, tmp_path, monkeypatch, capsys):
    workload = bench.Workload(
        "tiny", lambda: model, (2, 3), rows=2, requests=2, dialogues=3, share=1, length=(2, 4), median=3
    )
    monkeypatch.setattr(bench, "WORKLOADS", [workload])
    monkeypatch.setattr(bench, "BATCHES_ON_CPU", True)
    bench.main(["--minutes", "0", "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    (result,) = figures["workloads"]
    assert list(result["sides"]) == ["ours, 2 slots", "ours, 3 slots", *bench.PEERS]
    assert [side["dialogues"] for side in result["sides"].values()] == [8, 12, *(3 for _ in bench.PEERS)]
    for peer, ratios in result["ours is faster"].items():
        for ours, times in ratios.items():
            rates = (result["sides"][side]["tokens per CPU-second"] for side in (ours, peer))
            assert times == [a / b for a, b in zip(*rates)] and len(times) == 2
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}, transformers " in out and "threads a side 1" in out
    assert out.count("| tiny |") == 2 + len(bench.PEERS) and "2 slots: " in out


def test_a_version_without_batches_on_the_cpu_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(bench, "BATCHES_ON_CPU", False)
    with pytest.raises(SystemExit) as stop:
        bench.main([])
    assert stop.value.code not in (0, None) and "requirements.txt" in capsys.readouterr().err


def test_growth(tmp_path, monkeypatch, capsys):
    """Every setting is measured in every turn, and one that stands on several axes only once."""
    asked = []
    monkeypatch.setattr(bench, "GROWTH", {"slots": [2, 4], "context": [20, 40], "vocabulary": [64, 128]})
    monkeypatch.setattr(bench, "STANDARD", {"slots": 2, "context": 20, "vocabulary": 64})
    monkeypatch.setattr(bench, "qwen2", lambda vocabulary: vocabulary)

    def decode_seconds(model, slots, context, steps, clock):
        asked.append((slots, context, model))
        return slots / (1000 + len(asked))

    monkeypatch.setattr(bench, "decode_seconds", decode_seconds)
    bench.main(["--growth", str(tmp_path / "growth.png"), "--json", str(tmp_path / "figures.json")])
    curves = json.loads((tmp_path / "figures.json").read_text())["growth"]
    assert asked == 7 * [(2, 20, 64), (4, 20, 64), (2, 40, 64), (2, 20, 128)]
    assert curves["slots"][0] == [2, [pytest.approx(1001 + 4 * turn) for turn in range(7)]]
    assert curves["slots"][0][1] == curves["context"][0][1] == curves["vocabulary"][0][1]
    assert [value for value, _ in curves["context"]] == [20, 40] and len(curves) == 3
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert "vocabulary  64: 1013 (1001..1025)" in capsys.readouterr().out


def test_decode_seconds(model):
    """The time of the second launch over its steps; all slots write, around the given context."""
    times = iter([10.0, 11.0, 20.0, 26.0])
    lengths = []
    launch = bench.rollout.Grid.launch

    def watched(grid, count):
        lengths.append((count, grid.length_S.tolist(), grid.position_S.tolist()))
        return launch(grid, count)

    with bench.mock.patch.object(bench.rollout.Grid, "launch", watched):
        assert bench.decode_seconds(model, 3, 40, 6, lambda: next(times)) == 1.0
    assert lengths == [(2, 3 * [37], 3 * [37]), (6, 3 * [37], 3 * [37])]
