"""The warm-up of SmolLM2: the operations a question offers, a teacher who looks at nothing, and the command."""

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import small_model
from transformers import AutoModelForCausalLM

from data import Problem, smollm2
from data.smollm2 import RIGHT, easy, neutral_attempts, operations
from reward import extract_boxed, is_equal

JOAN = Problem("Joan found 70 shells and has 27 left. How many did she give away ?", "43")
RIGHT_LINE, OTHERS = "70 - 27", ["70 + 27", "70 * 27"]


def test_operations_by_hand():
    assert operations(JOAN.question) == {"70 + 27": "97", "70 * 27": "1890", "70 - 27": "43"}
    # a number is read without its comma and taken once; 4 / 1200.5 has too many decimals and 4 - 1200.5 is negative
    assert operations("1,200.50 men, 4 and 4") == {
        "1200.50 + 4": "1204.5",
        "1200.50 - 4": "1196.5",
        "1200.50 * 4": "4802",
    }
    assert operations("8 or 5")["8 / 5"] == "1.6"
    assert operations("0 and 50") == {"0 + 50": "50"}  # 0 is not divided by, and no result
    assert operations("one number, 7") == {}


def test_only_what_one_operation_answers_is_taught():
    problems = [Problem("He has 2 and 5 and pays 27.", "1000"), JOAN, Problem("Half of 10 is what?", "5")]
    assert easy([*problems, Problem("He has 0 and 50.", "50")]) == [JOAN]


def test_the_grader_computes_every_calculation():
    for calculation, answer in operations("1,200.50 men, 8 and 5").items():
        assert is_equal(calculation, answer) and not is_equal(calculation, f"{answer}1")


def test_the_teacher_looks_neither_back_nor_at_verdicts():
    """All attempts are made, each right with the same probability, whatever came before it."""
    rng = np.random.default_rng(0)
    dialogues = [neutral_attempts([RIGHT_LINE], OTHERS, 3, rng) for _ in range(4000)]
    answers = [[extract_boxed(attempt) for attempt in attempts] for attempts in dialogues]
    assert {answer for answered in answers for answer in answered} == {RIGHT_LINE, *OTHERS}
    assert dialogues[0][0] == rf"\boxed{{{answers[0][0]}}}" and all(len(attempts) == 3 for attempts in dialogues)
    for first in (RIGHT_LINE, *OTHERS):
        after = Counter(answered[1] for answered in answers if answered[0] == first)
        shares = [after[answer] / after.total() for answer in (RIGHT_LINE, *OTHERS)]
        assert shares == pytest.approx([RIGHT, (1 - RIGHT) / 2, (1 - RIGHT) / 2], abs=0.06)


@pytest.fixture
def folder(tmp_path, tokenizer, monkeypatch):
    small_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(smollm2, "load", lambda name: {"mawps-easy-train": [JOAN] * 12}[name])
    return tmp_path


def test_the_command_writes_a_warmed_up_model(folder, capsys):
    weights = []
    for out, limit, passes in (("one", 4, 2), ("same", 4, 2), ("less", 2, 2), ("once", 4, 1)):
        words = ["--model", folder / "model", "--out", folder / out, "--batch", 2, "--limit", limit, "--passes", passes]
        smollm2.main(list(map(str, words)))
        assert f"{folder / out}: {folder / 'model'} after {limit * passes} worked dialogues" in capsys.readouterr().out
        weights.append(AutoModelForCausalLM.from_pretrained(folder / out).model.embed_tokens.weight)
    before = AutoModelForCausalLM.from_pretrained(folder / "model").model.embed_tokens.weight
    assert torch.equal(weights[0], weights[1])
    assert not any(torch.equal(weights[0], others) for others in (before, *weights[2:]))


def test_bfloat16_computes_the_same_but_rounded(folder):
    for dtype in ("float32", "bfloat16"):
        words = ["--model", str(folder / "model"), "--out", str(folder / dtype), "--batch", "2", "--dtype", dtype]
        smollm2.main(words)
    full, rounded = (
        AutoModelForCausalLM.from_pretrained(folder / dtype).lm_head.weight.detach()
        for dtype in ("float32", "bfloat16")
    )
    before = AutoModelForCausalLM.from_pretrained(folder / "model").lm_head.weight.detach()
    assert rounded.dtype == torch.float32 and not torch.equal(full, rounded)
    moved = torch.nn.functional.cosine_similarity((full - before).flatten(), (rounded - before).flatten(), dim=0)
    assert moved > 0.8


def test_a_missing_model_is_one_sentence(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        smollm2.main(["--model", str(folder / "none"), "--out", str(folder / "out")])
    assert stop.value.code and "there is no model folder" in capsys.readouterr().err
    assert not (folder / "out").exists()
