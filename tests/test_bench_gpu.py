"""The GPU benchmark with its tiny sizes on the CPU: every section runs, one that fails does not stop the others."""

import json

import pytest
import torch

from bench import gpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the numbers are those of the CPU")


def test_all_sections_in_small(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("support.run.plot_training", lambda *_: None)  # slow
    assert gpu.main(["--small", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    sections = figures["sections"]
    assert list(sections) == list(gpu.SECTIONS)
    assert [value for name, value in sections["exact"].items() if "that differ" in name] == [0, 0]
    assert all(value < 1e-4 for name, value in sections["exact"].items() if "of a log-probability" in name)
    assert 0 < sections["decode"]["4 slots, 64 tokens of context: share of the bound"] < 1
    assert sections["generate"]["times as fast as generate"] > 0 and sections["decode"]["device copy, bytes/s"] > 0
    assert sections["step"]["--dialogues 8 --minibatches 1 --steps 2, ratio"] == pytest.approx(1, abs=1e-5)
    assert sections["smollm2"]["--preset smollm2 --dialogues 16 --steps 2, seconds"] > 0
    assert set(sections["resume"].values()) == {0, sections["resume"]["seconds of the section"]}
    out = capsys.readouterr().out
    assert "nothing here says anything about a GPU" in out and "failed" not in out


def test_exact_notices_a_token_that_is_not_what_the_model_says(monkeypatch):
    real = gpu.rollout.sample

    def off_by_one(logits_RV, *rest):
        return (real(logits_RV, *rest)[0] + 1) % logits_RV.shape[1], real(logits_RV, *rest)[1]

    monkeypatch.setattr(gpu.rollout, "sample", off_by_one)
    found = gpu.exact("cpu", torch.float32)
    assert [value for name, value in found.items() if "that differ" in name] == [8, 8]


def test_a_section_that_fails_is_named_and_the_others_run(monkeypatch, capsys):
    def broken(*_, **sizes):
        raise RuntimeError("CUDA error: of some kind\nand more")

    monkeypatch.setitem(gpu.SECTIONS, "decode", broken)
    assert gpu.main(["--small", "--sections", "decode", "generate"]) == 1
    out, err = capsys.readouterr()
    assert "| decode | failed | RuntimeError: CUDA error: of some kind |" in out and "Traceback" in err
    assert "| generate | ours, tokens/s | " in out
