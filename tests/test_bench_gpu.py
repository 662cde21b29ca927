"""The GPU benchmark with its small numbers on the CPU: every section runs, one that fails does not stop the others."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

spec = importlib.util.spec_from_file_location("bench_gpu", Path(__file__).parents[1] / "bench" / "gpu.py")
gpu = importlib.util.module_from_spec(spec)
sys.modules["bench_gpu"] = gpu
spec.loader.exec_module(gpu)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the numbers are those of the CPU")


def test_all_sections_in_small(tmp_path, capsys):
    assert gpu.main(["--small", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures["sections"]) == list(gpu.SECTIONS)
    exact = figures["sections"]["exact"]
    assert [value for name, value in exact.items() if "tokens that differ" in name] == [0, 0, 0]
    rounding = ("of a log-probability", "between a uniform number and its token")
    assert all(value < 1e-4 for name, value in exact.items() if any(what in name for what in rounding))
    assert exact["torch.float32, without flash attention: dialogues that part"] == 0
    assert figures["sections"]["rollout"]["overshoot"] == 0  # the CPU looks after every step
    parts = figures["sections"]["rollout"]["seconds"], figures["sections"]["update"]
    assert figures["step"] == {
        "the paper's step, from its parts: seconds": parts[0]
        + 2 * sum(parts[1][name] for name in ("seconds", "forward, seconds"))
    }
    assert 0 < figures["sections"]["decode"]["4 slots, 32 tokens of context: share of the bound"] < 1
    for section, measure in (("generate", "times as fast as generate"), ("update", "tokens/s"), ("copy", "bytes/s")):
        assert figures["sections"][section][measure] > 0
    out = capsys.readouterr().out
    assert "nothing here says anything about a GPU" in out and "failed" not in out
    assert "| generate | times as fast as generate | " in out and " | at least 5 |" in out


def test_exact_notices_a_token_that_is_not_what_the_model_says(monkeypatch):
    real = gpu.rollout.sample

    def off(logits_RV, uniform_R, temperature):
        token_R, logp_R = real(logits_RV, uniform_R, temperature)
        return (token_R + 1) % logits_RV.shape[1], logp_R

    monkeypatch.setattr(gpu.rollout, "sample", off)
    results = gpu.exact(None, gpu.SMALL, torch.device("cpu"), torch.float32)
    assert results["float32, greedy: tokens that differ"] > 0 and results["float32, sampled: tokens that differ"] > 0


def test_a_section_that_fails_is_named_and_the_others_run(monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("CUDA error: of some kind\nand more")

    monkeypatch.setitem(gpu.SECTIONS, "decode", broken)
    assert gpu.main(["--small", "--sections", "decode", "copy"]) == 1
    out, err = capsys.readouterr()
    assert "| decode | failed | RuntimeError: CUDA error: of some kind |  |" in out and "| copy | bytes/s | " in out
    assert "Traceback" in err


def test_targets_stand_beside_their_measures():
    assert gpu.line("rollout", "idle", "0.01") == "| rollout | idle | 0.01 | under 3% |"
    assert gpu.line("decode", "64 slots, 1000 tokens of context: tokens/s", "9").endswith("| 9 |  |")
    assert gpu.line("decode", "256 slots, 1000 tokens of context: tokens/s", "9").endswith("| 9 | about 40,000 |")
