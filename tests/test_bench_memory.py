"""The table of what fits where."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

path = Path(__file__).parents[1] / "bench" / "memory.py"
bench = module_from_spec(spec := spec_from_file_location("bench_memory", path))
spec.loader.exec_module(bench)


@pytest.mark.parametrize("name", bench.MODELS)
def test_weights(name):
    shape = Qwen2Config(**bench.MODELS[name])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    assert bench.weights(shape) == model.num_parameters()


def test_what_fits_where():
    rows = bench.computed()
    assert len(rows) == len(bench.MODELS) * len(bench.CARDS) * len(bench.GPUS)
    found = {(row["model"], row["device"][:5], row["count"]): row for row in rows}
    paper = found["1.5B", "80 GB", 1]
    assert paper["options"] == "" and paper["memory"] < 79 * 2**30
    assert "--gradient_checkpointing true" in found["1.5B", "40 GB", 8]["options"]
    for row in rows:
        assert ("seconds" in row) == ("memory" in row) and row["source"] == "computed"
        fewer = found.get((row["model"], row["device"][:5], row["count"] // 2), {})
        if "seconds" in fewer and fewer["options"] == row["options"]:
            assert row["seconds"] == pytest.approx(fewer["seconds"] / 2)
    assert "seconds" not in found["7B", "24 GB", 1]


def test_seconds_of_the_papers_step_by_hand():
    """1.54e9 weights, of which 1.31e9 in the layers, on one H100."""
    shape = Qwen2Config(**bench.MODELS["1.5B"])
    tokens, sampled = 1024 * 1500, 1024 * 1200
    layers = 2 * 1.3103e9 + 2 * 28 * 1536 * 1500  # operations of a token
    output = 2 * 151936 * 1536
    update = 4 * tokens * 2 * layers + 4 * sampled * output + (tokens - sampled) * layers
    reads = 2 * 1.5437e9 + 192 * 750 * 28 * 2 * 2 * 128 * 2
    expected = update / (0.4 * 989e12) + sampled / 192 / 0.75 * reads / (0.6 * 3.35e12)
    assert bench.seconds(shape, 989e12, 3.35e12, 1, 192, True, False) == pytest.approx(expected, rel=1e-3)
    assert bench.seconds(shape, 989e12, 3.35e12, 1, 192, True, True) > 1.1 * expected  # checkpointing
    assert bench.seconds(shape, 989e12, 3.35e12, 1, 192, False, False) < 0.8 * expected  # no critic


def test_a_measured_row_and_the_json(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    shape = Qwen2Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    Qwen2ForCausalLM(shape).save_pretrained(run / "model")
    (run / "config.json").write_text(json.dumps({"preset": "smoke"}))
    lines = [json.dumps({"step": i, "seconds": took}) for i, took in enumerate((9.0, 2.5, 1.0))]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(sys, "argv", ["memory.py", "--json", str(tmp_path / "rows.json"), "--run", str(run)])
    bench.main()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("| smoke, ") and last.endswith("| 2.5 | `--preset smoke` | measured |")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[-1]["seconds"] == 2.5 and rows[-1]["source"] == "measured" and rows[0]["source"] == "computed"
