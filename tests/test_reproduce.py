"""The numbers that bench/reproduce.py makes of several runs, by hand."""

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("reproduce", Path(__file__).parents[1] / "bench" / "reproduce.py")
reproduce = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reproduce)


def row(accuracy: float, repeated: float | None = None) -> dict:
    return dict(attempts=1, accuracy=accuracy, low=0.1, high=0.9, repeated=repeated, truncated=0.0, tokens=9.0)


def test_over_seeds_is_the_mean_with_a_t_interval():
    """0.2, 0.4, 0.6: mean 0.4, standard deviation 0.2, half width 4.303 * 0.2 / sqrt(3) = 0.4969."""
    (result,) = reproduce.over_seeds([[row(0.2)], [row(0.4, 0.3)], [row(0.6)]])["by_attempts"]
    assert result["accuracy"] == pytest.approx(0.4) and result["repeated"] == pytest.approx(0.1)
    assert result["low"] == pytest.approx(-0.0969, abs=1e-4) and result["high"] == pytest.approx(0.8969, abs=1e-4)


def test_a_single_seed_keeps_its_interval_over_the_questions():
    (result,) = reproduce.over_seeds([[row(0.5)]])["by_attempts"]
    assert (result["accuracy"], result["low"], result["high"]) == (0.5, 0.1, 0.9)


def test_the_optimum_is_min_k_c_over_c():
    """Equally many riddles of 2, 3, 4 and 5 candidates."""
    quarter = [sum(min(k, c) / c for c in (2, 3, 4, 5)) / 4 for k in (1, 2, 3, 4, 5)]
    assert reproduce.optimum(5) == pytest.approx(quarter)


def test_a_finished_run_is_not_repeated_and_a_failed_one_is_named(tmp_path, monkeypatch):
    calls = []

    class Done:
        returncode = 1

    monkeypatch.setattr(reproduce.subprocess, "run", lambda command, **options: calls.append(command) or Done())
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "evaluation.json").write_text("{}")
    reproduce.run(tmp_path / "done", ["--seed", "1"])
    assert calls == []
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").write_text("{}")
    for name, expected in (("cut", ["--resume"]), ("new", ["--preset", "miniature", "--seed", "1"])):
        with pytest.raises(RuntimeError, match=f"{name} failed: see .*{name}.log"):
            reproduce.run(tmp_path / name, ["--seed", "1"])
        assert calls.pop()[4:] == expected
