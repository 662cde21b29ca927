"""The command line: an option's value, mistakes in one sentence, --help."""

import io
import re
import sys
from dataclasses import fields

import pytest

from evaluate import Options
from support.cli import parse
from train import Config


@pytest.mark.parametrize(
    "words, given",
    [
        ("", {}),  # no default is among what is given
        ("--steps 3 --lr=1e-3 --steps 4 --unboxed_reward -0.5", {"steps": 4, "lr": 0.001, "unboxed_reward": -0.5}),
        ("--max-new-tokens 7 --model a-b --data=c-d", {"max_new_tokens": 7, "model": "a-b", "data": "c-d"}),
        ("--max_attempt_tokens none --eval_data None", {"max_attempt_tokens": None, "eval_data": None}),
        ("--data none", {"data": "none"}),  # an option that cannot be None
        ("--out auto --slots auto", {"out": "auto", "slots": None}),
        ("--resume --offload --seed 1", {"resume": True, "offload": True, "seed": 1}),
        ("--resume true --offload=False", {"resume": True, "offload": False}),
    ],
)
def test_parse_gives_what_was_given(words, given):
    assert parse(Config, words.split()) == given


@pytest.mark.parametrize(
    "kind, words, sentence",
    [
        (Options, "", "--model, --data must be given, see --help"),
        (Options, "--modle a", "there is no option --modle: did you mean --model?"),
        (Config, "--step=3", "there is no option --step: did you mean --steps?"),  # nor is it taken for --steps
        (Config, "-xyzzy", "there is no option -xyzzy, see --help"),
        (Config, "--steps 3.5", "--steps: invalid int value: '3.5'"),
        (Config, "--offload maybe", "--offload: invalid true-or-false value: 'maybe'"),
        (Config, "--model a b", "there is no option b, see --help"),
        (Config, "--steps 3 --model", "--model: expected one argument"),
    ],
)
def test_parse_refuses_in_one_sentence(kind, words, sentence, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["folder/evaluate.py"])
    with pytest.raises(SystemExit, match="2"):
        parse(kind, words.split())
    assert capsys.readouterr().err == f"evaluate.py: {sentence}\n"


def test_output_that_the_terminal_cannot_show(monkeypatch):
    monkeypatch.setattr(sys, "__stdout__", io.TextIOWrapper(io.BytesIO(), "ascii"))
    parse(Config, [])
    print("\ufffd", end="", file=sys.__stdout__, flush=True)
    assert sys.__stdout__.buffer.getvalue() == b"?"


@pytest.mark.parametrize("kind, titles", [(Config, "task rollout reward PPO run machine"), (Options, "options")])
def test_help_has_every_option_in_its_group(kind, titles, capsys):
    with pytest.raises(SystemExit, match="0"):
        parse(kind, ["--help"], "What it is for.")
    text = capsys.readouterr().out
    assert "\n\nWhat it is for.\n\n" in text and ("(required)" if kind is Options else "(default: 1280)") in text
    for title in titles.split():
        (block,) = re.findall(rf"^{title}:\n(.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
        members = [f"--{each.name}" for each in fields(kind) if each.metadata["group"] == title]
        assert members and re.findall(r"^  (--\w+)", block, re.MULTILINE) == members
