"""The GPU benchmark with its tiny sizes on the CPU: every section runs, one that fails does not stop the others."""

import json
from unittest.mock import Mock

import pytest
import torch
from transformers import LlamaConfig

from bench import gpu
from bench.rollout import COMMON
from support.memory import SHAPE

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the numbers are those of the CPU")


@pytest.fixture(autouse=True)
def small_tokenizer(tokenizer, monkeypatch):
    monkeypatch.setattr(gpu, "build_tokenizer", lambda _: tokenizer)  # to train the real one takes time


def test_all_sections_in_small(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("support.run.plot_training", lambda *_: None)  # slow
    assert gpu.main(["--json", str(tmp_path / "figures.json")]) == 0
    sections = json.loads((tmp_path / "figures.json").read_text())["sections"]
    assert list(sections) == list(gpu.SECTIONS)
    assert [value for name, value in sections["exact"].items() if "that differ" in name] == [0, 0]
    assert all(value < 1e-4 for name, value in sections["exact"].items() if "of a log-probability" in name)
    assert 0 < sections["decode"]["4 slots, 64 tokens of context: share of the bound"] < 1
    assert sections["generate"]["times as fast as generate"] > 0 and sections["decode"]["device copy, bytes/s"] > 0
    assert sections["step"]["ratio"] == pytest.approx(1, abs=1e-4)
    assert sections["smollm2"]["ratio"] == pytest.approx(1, abs=1e-2)
    assert set(sections["resume"].values()) == {0, sections["resume"]["seconds of the section"]}
    out = capsys.readouterr().out
    assert "nothing here says anything about a GPU" in out and "failed" not in out


def test_exact_notices_a_token_that_is_not_what_the_model_says(monkeypatch):
    real = gpu.rollout.sample

    def off_by_one(logits_RV, *rest):
        return (real(logits_RV, *rest)[0] + 1) % logits_RV.shape[1], real(logits_RV, *rest)[1]

    monkeypatch.setattr(gpu.rollout, "sample", off_by_one)
    assert [value for name, value in gpu.exact().items() if "that differ" in name] == [8, 8]


def test_a_section_that_fails_is_named_and_the_others_run(monkeypatch, capsys):
    error = RuntimeError("CUDA error: of some kind\nand more")
    monkeypatch.setitem(gpu.SECTIONS, "decode", Mock(side_effect=error))
    assert gpu.main(["--sections", "decode", "generate"]) == 1
    out, err = capsys.readouterr()
    assert "| decode | failed | RuntimeError: CUDA error: of some kind |" in out and "Traceback" in err
    assert "| generate | ours, tokens/s | " in out


def test_the_share_of_the_peak_by_hand(monkeypatch):
    """One layer of 4 x 8 x 8 + 3 x 8 x 16 weights, and norms of 3 x 8: 664. A token of dialogues of 30 costs 6
    operations a weight and 6 x 8 x 30 for the attention, twice for the two models. Every second token is an action,
    which costs 6 x 16 x 8 more."""
    shape = LlamaConfig(**COMMON, **dict(zip(SHAPE, (8, 16, 1, 2, 2, 16))))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    row = {"tokens_sampled": 15, "tokens_total": 30, "update_tokens_per_second": 1e6, "critic_lr": 1e-5}
    operations = 2 * 6 * (664 + 8 * 30) + 6 * 16 * 8 / 2
    assert gpu.share_of_peak(shape, row) == pytest.approx(1e6 * operations / 989e12)
