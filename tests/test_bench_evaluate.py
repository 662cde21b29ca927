"""The evaluation benchmark with tiny numbers: both sides write the same dialogues, and the figures are written."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

spec = importlib.util.spec_from_file_location("bench_evaluate", Path(__file__).parents[1] / "bench" / "evaluate.py")
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


@pytest.fixture
def command(tokenizer, tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    small = dict(model=tmp_path / "model", questions=3, attempts=2, max_new_tokens=8, runs=2)
    return [*(f"--{name}={value}" for name, value in small.items()), "--json", str(tmp_path / "figures.json")]


def test_figures(command, tmp_path, monkeypatch, capsys):
    counts = []
    for side in ("ask_alone", "ask_by_command"):
        measured = getattr(bench, side)
        monkeypatch.setattr(bench, side, lambda *args, measured=measured: counts.append(measured(*args)) or counts[-1])
    bench.main(command)
    assert {tokens for tokens, _ in counts} == {3 * 2 * 8}  # two sides, two turns and the one that does not count
    assert len(counts) == 6
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["runs"]["rollout"] == [tokens / seconds for tokens, seconds in counts[2::2]]
    assert figures["runs"]["evaluate"] == [tokens / seconds for tokens, seconds in counts[3::2]]
    printed = capsys.readouterr().out
    assert printed.startswith("| | sampled tokens per CPU-second |") and f"{figures['cost']:.2f} times" in printed


def test_dialogues_that_differ_are_no_comparison(command, monkeypatch):
    monkeypatch.setattr(bench, "ask_by_command", lambda options: (50, 1.0))
    with pytest.raises(SystemExit, match="evaluate.py wrote 50 tokens, the rollout 48: that is no comparison"):
        bench.main(command)
