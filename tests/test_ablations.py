"""bench/ablations.py: its numbers by hand, finished runs, and the whole script with tiny runs."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_runs import in_this_process

import train
from bench import ablations, reproduce
from bench.ablations import REFERENCE, TASKS, VARIANTS
from support import cli
from support.run import parse_run

OTHER = "N fixed at 5"


def curve(accuracy: list[float], repeated: float = 0.2) -> list[dict]:
    """Evaluated every 1000 dialogues of 20 tokens. The first attempt solves half as much."""
    counts = ({"dialogues": 1000 * i, "tokens": 20_000 * i} for i in range(1, len(accuracy) + 1))
    shares = ({"accuracy": x, "accuracy_first": x / 2, "repeated": repeated} for x in accuracy)
    return [count | share for count, share in zip(counts, shares)]


def cells(table: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]
    return {line[0]: line[1:] for line in lines}


def test_the_table_by_hand():
    """The paper's recipe needs 2 and 4 thousand dialogues, the other 1 and 3: one less in both seeds. With two seeds of
    standard deviation s, a t interval reaches 12.706 * s / sqrt(2) to both sides: 12.706 for 2 and 4."""
    reference = {"0": curve([0.5, 0.9, 0.95, 1.0]), "1": curve([0.3, 0.5, 0.8, 0.9], 0.4)}
    faster = {"0": curve([0.91, 0.8, 0.9, 1.0]), "1": curve([0.5, 0.7, 0.92, 1.0])}
    found = cells(ablations.table({REFERENCE: reference, OTHER: faster, "no KL": {}}))
    assert list(found) == [REFERENCE, OTHER]  # of the third no run is finished
    option, dialogues, apart, tokens, repeated, solved, first = found[REFERENCE]
    assert (option, dialogues, apart) == ("", "3.0 (0.0 to 15.7)", "") and repeated == "30.0 (0.0 to 100.0)"
    assert tokens == "0.06 (0.00 to 0.31)" and solved == "95.0 (31.5 to 100.0)" and first == "47.5 (15.7 to 79.3)"
    option, dialogues, apart, *_ = found[OTHER]
    assert (option, dialogues, apart) == (f"`{VARIANTS[OTHER]}`", "2.0 (0.0 to 14.7)", "-1.0 (-1.0 to -1.0)")


def test_a_seed_that_never_gets_there_is_counted():
    never, late = curve([0.5, 0.6]), curve([0.5, 0.9])
    found = cells(ablations.table({REFERENCE: {"0": late, "1": late}, OTHER: {"0": never, "1": late}}))
    assert found[OTHER][1:4] == ["2.0, 1 of 2 seeds", "+0.0", "0.04"]
    found = cells(ablations.table({REFERENCE: {"0": never}, OTHER: {"0": late}}))
    assert found[REFERENCE][1:6] == ["-, 0 of 1 seeds", "", "-", "-", "60.0"] and found[OTHER][1:3] == ["2.0", "-"]


@pytest.mark.parametrize("preset", TASKS)
def test_every_variant_is_made_of_options(preset):
    for options in VARIANTS.values():
        words = ["--preset", preset, "--steps", str(TASKS[preset][1]), *ablations.EVERY_RUN.split(), *options.split()]
        config = parse_run(train.Config, words)
        assert config.steps % config.eval_every == 0 and config.eval_data is None
    texts = [json.dumps(cli.parse(train.Config, options.split())) for options in VARIANTS.values()]
    assert len(set(texts)) == len(VARIANTS)


def test_the_whole_script(inputs, monkeypatch, capsys):
    """Two variants and one seed of each task with real runs; then the same without runs, and from the summary."""
    commands, out = in_this_process(monkeypatch), Path("ablations")
    monkeypatch.setattr(ablations, "VARIANTS", {name: VARIANTS[name] for name in (REFERENCE, "groups, no critic")})
    tiny = """--model=base --data=questions.jsonl --validation_data=held_out.jsonl --steps=4 --dialogues=8
        --minibatches=1 --slots=8 --max_new_tokens=60 --max_attempt_tokens=8 --device=cpu --dtype=float32"""
    argv = ["--seeds", "3", "--out", str(out), "--extra", *tiny.split()]
    with pytest.raises(SystemExit):
        ablations.main(["--finished", *argv])
    assert "no run of 'the paper' in ablations is finished" in capsys.readouterr().err and commands == []
    ablations.main(argv)
    assert len(commands) == 4 and {command[2] for command in commands} == set(TASKS)
    summary = reproduce.read_json(out / "summary.json")
    rows = [json.loads(line) for line in (out / "cue" / "the-paper-3" / "metrics.jsonl").read_text().splitlines()]
    found = summary["cue"][REFERENCE]["3"]
    assert [point["dialogues"] for point in found] == [16, 32]
    tokens = [8 * sum(row["tokens_sampled"] for row in rows[:n]) for n in (2, 4)]
    assert [point["tokens"] for point in found] == pytest.approx(tokens, abs=1)
    for key in ("accuracy", "accuracy_first", "repeated"):
        assert [point[key] for point in found] == [rows[n][f"validation_{key}"] for n in (1, 3)]
    config = reproduce.read_json(out / "miniature" / "groups-no-critic-3" / "config.json")
    assert (config["group_size"], config["seed"], config["preset"]) == (8, 3, "miniature")

    files = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".md", ".png")}
    assert sorted(files) == ["cue.png", "miniature.png", "table.md"]
    text = files["table.md"].decode()
    assert text.strip() in capsys.readouterr().out and "Riddles with a cue: until 90% are solved" in text
    ablations.main(argv)  # everything is there
    ablations.main(["--finished", *argv])
    ablations.main(["--draw", str(out / "summary.json"), "drawn"])
    assert len(commands) == 4 and {name: Path("drawn", name).read_bytes() for name in files} == files
    shutil.rmtree(out / "cue" / "groups-no-critic-3" / "model")
    ablations.main(["--finished", *argv])
    assert reproduce.read_json(out / "summary.json")["cue"]["groups, no critic"] == {}
