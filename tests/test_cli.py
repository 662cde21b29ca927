"""The command line: an option's value, mistakes in one sentence, --help, ranges, presets."""

import re
import sys
from dataclasses import asdict, fields

import pytest

from evaluate import Options
from support.cli import check_ranges, parse, parse_run
from train import GROUPS, PRESETS, Config

NAN = float("nan")


@pytest.mark.parametrize(
    "words, given",
    [
        ("", {}),  # no default is among what is given
        ("--steps 3 --lr=1e-3", {"steps": 3, "lr": 0.001}),
        ("--steps 3 --steps 4", {"steps": 4}),
        ("--max-new-tokens 7 --max-attempt-tokens=5", {"max_new_tokens": 7, "max_attempt_tokens": 5}),
        ("--model a-b --data=c-d", {"model": "a-b", "data": "c-d"}),
        ("--unboxed_reward -0.5", {"unboxed_reward": -0.5}),
        ("--max_attempt_tokens none --eval_data None", {"max_attempt_tokens": None, "eval_data": None}),
        ("--data none", {"data": "none"}),  # an option that cannot be None
        ("--resume --offload --seed 1", {"resume": True, "offload": True, "seed": 1}),
        ("--resume true --offload=False", {"resume": True, "offload": False}),
    ],
)
def test_parse_gives_what_was_given(words, given):
    assert parse(Config, words.split()) == given


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("", "the following arguments are required: --model, --data"),
        ("--modle a", "there is no option --modle: did you mean --model?"),
        ("--slot=3", "there is no option --slot: did you mean --slots?"),  # nor is it taken for --slots
        ("-xyzzy", "there is no option -xyzzy, see --help"),
        ("--model a --data b --slots 3.5", "argument --slots: invalid int value: '3.5'"),
        ("--model a --data b --slots none", "argument --slots: invalid int value: 'none'"),
        ("--model a --data b c", "'c' belongs to no option, see --help"),
        ("--data b --model", "argument --model: expected one argument"),
    ],
)
def test_parse_refuses_in_one_sentence(words, sentence, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["folder/evaluate.py"])
    with pytest.raises(SystemExit) as stop:
        parse(Options, words.split())
    assert stop.value.code == 2 and capsys.readouterr().err == f"evaluate.py: {sentence}\n"


def test_a_flag_is_true_or_false(capsys):
    with pytest.raises(SystemExit):
        parse(Config, ["--offload", "maybe"])
    assert capsys.readouterr().err.endswith("argument --offload: invalid bool value: 'maybe'\n")


@pytest.mark.parametrize("kind, titles", [(Config, GROUPS), (Options, ["options"])])
def test_help_has_every_option_in_its_group(kind, titles, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(kind, ["--help"], "What it is for.")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "\n\nWhat it is for.\n\n" in text
    for title in titles:
        (block,) = re.findall(rf"^{title}:\n(.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
        members = [f"--{each.name}" for each in fields(kind) if each.metadata["group"] == title]
        assert members and re.findall(r"^  (--\w+)", block, re.MULTILINE) == members
    assert "(required)" in text if kind is Options else "(default: 1280)" in text


@pytest.mark.parametrize(
    "name, good, bad, words",
    [
        ("steps", [1], [0, -1], "be greater than 0"),
        ("lr", [1e-9], [0.0, NAN], "be greater than 0"),
        ("seed", [0], [-1], "be 0 or more"),
        ("gamma", [0.0, 1.0], [-0.1, 1.1, NAN], "lie between 0 and 1"),
        ("unboxed_reward", [-1.0, 0.0], [-1.1, 0.1], "lie between -1 and 0"),
        ("max_attempt_tokens", [None, 1], [0], "be greater than 0"),
        ("log_to", [None, "wandb"], ["paper", ""], "be one of tensorboard, wandb"),
    ],
)
def test_ranges(name, good, bad, words):
    for value in good:
        check_ranges(Config(**{name: value}))
    for value in bad:
        with pytest.raises(ValueError, match=f"^--{name} must {words}, not {value}$"):
            check_ranges(Config(**{name: value}))


@pytest.mark.parametrize("options, without", [(Config(), []), (Options("model", "data"), ["samples"])])
def test_numbers_have_ranges_and_defaults_lie_in_them(options, without):
    check_ranges(options)
    numbers = [each for each in fields(options) if each.type in (int, float, int | None)]
    assert [each.name for each in numbers if each.metadata["valid"] is None] == without  # that one may be 0 as well


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_line_goes_before_the_preset_and_the_preset_before_the_defaults(preset, tmp_path):
    out, line = str(tmp_path / "run"), ["--steps", "7", "--offload"]
    options = parse_run(Config, PRESETS, ["--preset", preset, "--out", out, *line])
    own = {"preset": preset, "out": out, "steps": 7, "offload": True}
    assert asdict(options) == asdict(Config()) | parse(Config, PRESETS[preset].split()) | own
    assert parse_run(Config, PRESETS, []).preset == "paper"
    assert re.fullmatch(rf"runs/{preset}-\d{{8}}-\d{{6}}", parse_run(Config, PRESETS, ["--preset", preset]).out)
    with pytest.raises(ValueError, match="--steps must be greater than 0, not 0"):
        parse_run(Config, PRESETS, ["--preset", preset, "--steps", "0"])
