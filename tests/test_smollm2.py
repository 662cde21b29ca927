"""SmolLM2's supervised fine-tuning: the operations of a question, a teacher who looks at nothing, the command."""

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
CALCULATIONS = ("70 - 27", "70 + 27", "70 * 27")  # the right one first


def test_operations_by_hand():
    assert operations(JOAN.question) == {"70 + 27": "97", "70 * 27": "1890", "70 - 27": "43"}
    # a number is read without its comma and taken once; 4 / 1200.5 has too many decimals and 4 - 1200.5 is negative
    expected = {"1200.50 + 4": "1204.5", "1200.50 - 4": "1196.5", "1200.50 * 4": "4802"}
    assert operations("1,200.50 men, 4 and 4") == expected
    assert operations("8 or 5")["8 / 5"] == "1.6" and operations("one number, 7") == {}
    assert operations("0 and 50") == {"0 + 50": "50"}  # 0 is not divided by, and no result
    for calculation, answer in operations("1,200.50 men, 8 and 5").items():  # the grader computes them all
        assert is_equal(calculation, answer) and not is_equal(calculation, f"{answer}1")


def test_only_what_one_operation_answers_is_taught():
    problems = [Problem("He has 2 and 5 and pays 27.", "1000"), JOAN, Problem("Half of 10 is what?", "5")]
    assert easy([*problems, Problem("He has 0 and 50.", "50")]) == [JOAN]


def test_the_teacher_looks_neither_back_nor_at_verdicts():
    """All attempts are made, each right with the same probability, whatever came before it."""
    rng = np.random.default_rng(0)
    dialogues = [neutral_attempts(JOAN, 3, rng) for _ in range(4000)]
    answers = [[extract_boxed(attempt) for attempt in attempts] for attempts in dialogues]
    assert {answer for answered in answers for answer in answered} == set(CALCULATIONS)
    assert dialogues[0][0] == rf"\boxed{{{answers[0][0]}}}" and all(len(attempts) == 3 for attempts in dialogues)
    for first in CALCULATIONS:
        after = Counter(answered[1] for answered in answers if answered[0] == first)
        shares = [after[answer] / after.total() for answer in CALCULATIONS]
        assert shares == pytest.approx([RIGHT, (1 - RIGHT) / 2, (1 - RIGHT) / 2], abs=0.06)


@pytest.fixture
def folder(tmp_path, tokenizer, monkeypatch):
    small_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(smollm2, "load", lambda name: {"mawps-easy-train": [JOAN] * 48}[name])
    return tmp_path


def test_the_command_writes_a_fine_tuned_model(folder, capsys):
    def weight(out, *words):
        smollm2.main(["--model", f"{folder}/model", "--out", f"{folder}/{out}", *words])
        assert f"{folder}/{out}: {folder}/model after 48 worked dialogues" in capsys.readouterr().out
        return AutoModelForCausalLM.from_pretrained(folder / out).lm_head.weight.detach()

    before = AutoModelForCausalLM.from_pretrained(folder / "model").lm_head.weight.detach()
    full, same = weight("full"), weight("same")
    assert torch.equal(full, same) and not torch.equal(full, before)
    rounded = weight("rounded", "--dtype", "bfloat16")  # computed in bfloat16: the same but rounded
    assert rounded.dtype == torch.float32 and not torch.equal(full, rounded)
    assert torch.nn.functional.cosine_similarity((full - before).flatten(), (rounded - before).flatten(), dim=0) > 0.8


def test_a_missing_model_is_one_sentence(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        smollm2.main(["--model", str(folder / "none"), "--out", str(folder / "out")])
    assert stop.value.code and "there is no model folder" in capsys.readouterr().err
    assert not (folder / "out").exists()
