"""The miniature: riddles whose best accuracy is known, a tokenizer that can write anything, a neutral base model."""

from collections import Counter
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from data import Problem, load, miniature
from data.chat import Chat
from data.miniature import ATTEMPTS, CANDIDATES, SPLITS, Riddle, best_possible, draw_riddles, neutral_attempts
from data.sft import boxed, fine_tune, worked_dialogue
from reward import extract_boxed

RIDDLE, WRONG = Riddle(35, 12, 5, hidden=29), boxed(r"2. \boxed{2}")
SETS = [*SPLITS, *(f"cue-{split}" for split in SPLITS)]


@pytest.fixture(scope="module")
def drawn():
    return {name: draw_riddles(name.removeprefix("cue-"), name.startswith("cue-")) for name in SETS}


@pytest.fixture(scope="module")
def chat(tokenizer):
    return Chat(new_model(tokenizer), tokenizer, "chatml")


def new_model(tokenizer):
    return miniature.build_model(len(tokenizer), tokenizer.eos_token_id)


def tokens_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_riddle_of_the_docstring():
    assert RIDDLE.question == "I am thinking of a number below 35. Divided by 12 it leaves 5. What is my number?"
    assert list(RIDDLE.candidates) == [5, 17, 29]
    assert RIDDLE.solution(17) == r"5, 17. \boxed{17}"


@pytest.mark.parametrize("name", SETS)
def test_splits(name, drawn):
    riddles, split = drawn[name], name.removeprefix("cue-")
    times = Counter(riddle._replace(cue="", hidden=None) for riddle in riddles)
    assert set(times.values()) == {5 if split == "train" else 1}
    assert Counter(len(riddle.candidates) for riddle in times) == {n: len(SPLITS[split]) for n in CANDIDATES}
    for riddle in riddles:
        assert riddle.hidden in riddle.candidates
        assert list(riddle.candidates) == [n for n in range(riddle.bound) if n % riddle.modulus == riddle.remainder]
    problems = load(f"riddles-{name}")
    assert [(p.question, p.gold) for p in problems] == [(riddle.question, str(riddle.hidden)) for riddle in riddles]


def test_splits_share_no_question_and_are_always_the_same(drawn):
    np.random.seed(1), torch.manual_seed(1)
    assert draw_riddles("validation") == drawn["validation"]
    riddles = [riddle for split in SPLITS for riddle in {riddle._replace(hidden=0) for riddle in drawn[split]}]
    questions = [riddle.question for riddle in riddles]
    assert len(questions) == len(set(questions)) == len(CANDIDATES) * 645


def test_the_cue_is_all_that_differs(drawn):
    """Without their cues, the riddles are the same as the plain ones; both cues are about equally frequent."""
    assert Riddle(35, 12, 5, " It is a large one.").question.endswith("leaves 5. It is a large one. What is my number?")
    for split in SPLITS:
        plain, cued = drawn[split], drawn[f"cue-{split}"]
        assert [riddle._replace(hidden=0) for riddle in plain] == [riddle._replace(cue="", hidden=0) for riddle in cued]
        cues = Counter(riddle.cue for riddle in cued)
        assert set(cues) == {" It is a small one.", " It is a large one."} and min(cues.values()) > 0.4 * len(cued)


@pytest.mark.parametrize("name", ["train", "cue-train"])
def test_hidden_numbers_are_drawn_with_the_chances_of_the_docstring(name, drawn):
    """Otherwise the best possible accuracy would not be known."""
    np.testing.assert_allclose(RIDDLE.chances, [1 / 2.19, 0.7 / 2.19, 0.49 / 2.19])
    np.testing.assert_allclose(RIDDLE._replace(cue=" It is a small one.").chances, [4 / 7, 2 / 7, 1 / 7])
    np.testing.assert_allclose(RIDDLE._replace(cue=" It is a large one.").chances, [1 / 7, 2 / 7, 4 / 7])
    places, expected = Counter(), Counter()
    for riddle in drawn[name]:
        kind = riddle.cue, len(riddle.candidates)
        places[*kind, riddle.candidates.index(riddle.hidden)] += 1
        expected.update({(*kind, place): chance for place, chance in enumerate(riddle.chances)})
    for key, count in expected.items():
        assert abs(places[key] - count) < 4.5 * count**0.5


@pytest.mark.parametrize("cued, weights", [(False, [1, 0.7, 0.49, 0.343, 0.2401]), (True, [16, 8, 4, 2, 1])])
def test_the_best_possible_is_the_chance_of_the_likeliest_candidates(cued, weights):
    """Equally many riddles have 2, 3, 4 and 5 candidates, each 0.7 times (with a cue half) as likely as another one."""
    expected = [sum(sum(weights[: min(k, c)]) / sum(weights[:c]) for c in (2, 3, 4, 5)) / 4 for k in (1, 2, 3, 4, 5)]
    assert best_possible(cued, 5) == pytest.approx(expected)


def test_neutral_attempts_end_at_the_right_one_or_when_used_up():
    rng = np.random.default_rng(0)
    dialogues = [[int(extract_boxed(text)) for text in neutral_attempts(RIDDLE, 4, rng)] for _ in range(300)]
    assert {len(answers) for answers in dialogues} == {1, 2, 3, 4}
    for answers in dialogues:
        assert 29 not in answers[:-1] and (answers[-1] == 29 or len(answers) == 4)
    assert neutral_attempts(Riddle(4, 9, 3, hidden=3), 5, rng) == [r"3. \boxed{3}"]


def test_neutral_attempts_do_not_look_back():
    """After every first attempt the second stops at a candidate with probability 0.6, at the last in any case."""
    rng = np.random.default_rng(1)
    dialogues = [neutral_attempts(RIDDLE, 2, rng) for _ in range(9000)]
    pairs = Counter(tuple(int(extract_boxed(text)) for text in attempts) for attempts in dialogues)
    for first in (5, 17):
        counts = np.array([pairs[first, then] for then in RIDDLE.candidates])
        assert counts / counts.sum() == pytest.approx([0.6, 0.24, 0.16], abs=0.03)


ANY_TEXT = miniature.build_tokenizer(draw_riddles("train")[:500])  # as main() builds it; hypothesis takes no fixture


def test_numbers_and_special_tokens_are_single_tokens():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [tokens_of(ANY_TEXT, text) for text in (*special, *map(str, range(100)))]
    assert {len(some) for some in tokens} == {1} and len({some[0] for some in tokens}) == 103
    assert (ANY_TEXT.eos_token, ANY_TEXT.pad_token) == ("<|im_end|>", "<|endoftext|>")


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_survives(text):
    assert ANY_TEXT.decode(tokens_of(ANY_TEXT, text), clean_up_tokenization_spaces=False) == text


def test_the_saved_tokenizer_is_the_same(tokenizer, drawn, chat, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    new_model(tokenizer).save_pretrained(tmp_path)  # AutoTokenizer looks at its config
    reloaded = Chat(new_model(tokenizer), AutoTokenizer.from_pretrained(tmp_path), "chatml")
    texts = [riddle.solution(riddle.hidden) for riddle in drawn["validation"]]
    peculiar = "  a  b , c .\n\n\tb\0 1234567890 ½ ² ٣ 𝛑 é 數 👍<|im_end|>\n<|im_start|>x \\frac{1}{2}"
    for text in [*texts, " ", peculiar]:
        assert reloaded.encode(text) == chat.encode(text) and reloaded.decode(reloaded.encode(text)) == text
        assert reloaded.prompt(text, 3) == chat.prompt(text, 3)
    assert reloaded.feedback_after(0, 2, WRONG, "") == chat.feedback_after(0, 2, WRONG, "")
    assert reloaded.tokenizer.pad_token_id == tokenizer.pad_token_id
    assert (reloaded.end_tokens, reloaded.brace_tokens) == (chat.end_tokens, chat.brace_tokens)


def test_worked_attempts_end_where_a_rollout_ends_them(chat, drawn):
    """At the first token after which a box is closed. A rollout looks at it, and no end token comes before it."""
    for riddle in drawn["test"]:
        for candidate in riddle.candidates:
            tokens = chat.encode(riddle.solution(candidate))
            answers = [extract_boxed(chat.decode(tokens[:i])) for i in range(1, len(tokens) + 1)]
            assert answers == [None] * (len(tokens) - 1) + [str(candidate)]
            assert tokens[-1] in chat.brace_tokens and not chat.end_tokens & set(tokens)


def test_a_worked_dialogue_by_hand(chat):
    prompt, feedback = chat.prompt("Q?", 3), chat.feedback_after(-1, 2, WRONG, "9")
    first, second = chat.encode(r"2. \boxed{2}"), chat.encode(r"2, 9. \boxed{9}")
    attempts, rng = [r"2. \boxed{2}", r"2, 9. \boxed{9}"], Mock(integers=lambda low, above: above - 1)
    tokens, target = worked_dialogue(chat, Problem("Q?", "9"), 3, lambda *_: attempts, rng)
    assert tokens == prompt + first + feedback + second
    assert target == [-100] * len(prompt) + first + [-100] * len(feedback) + second


def loss_of(model, dialogues) -> float:
    """Mean cross-entropy of the solver's tokens over the dialogues, one at a time."""
    logits = ((model(input_ids=torch.tensor([tokens])).logits[0, :-1], targets) for tokens, targets in dialogues)
    with torch.no_grad():
        return np.mean([F.cross_entropy(each, torch.tensor(targets)[1:]).item() for each, targets in logits])


def test_the_fine_tune_teaches_new_riddles_and_is_decided_by_its_seed(tokenizer, chat, drawn):
    def worked(split, count, rng):
        return [worked_dialogue(chat, riddle, ATTEMPTS, neutral_attempts, rng) for riddle in drawn[split][:count]]

    def taught(seed, steps, batch):
        rng, model = np.random.default_rng(seed), new_model(tokenizer)
        fine_tune(model, worked("train", steps * batch, rng), batch, 4e-3, rng)
        return model

    unseen = worked("test", 24, np.random.default_rng(7))
    before, after = loss_of(new_model(tokenizer), unseen), loss_of(taught(7, 40, 16), unseen)
    assert before > 5.5 and after < 0.5 * before
    first, same, other = (taught(seed, 3, 4).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_the_command_builds_a_model_folder(tmp_path, monkeypatch, capsys):
    out = tmp_path / "deep" / "base"
    command = ["--out", str(out), "--steps", "2", "--batch", "4"]
    miniature.main(command)
    assert [path.name for path in out.parent.iterdir()] == ["base"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.model_type == "llama" and model.num_parameters() < 1_000_000
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id == tokens_of(tokenizer, "<|im_end|>")[0]
    assert f"{out}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens" in capsys.readouterr().out

    # a second build takes the first one's place; the same seed gives the same weights
    (out / "old").write_text("")
    weights = (out / "model.safetensors").read_bytes()
    miniature.main(command)
    assert not (out / "old").exists() and (out / "model.safetensors").read_bytes() == weights

    # nothing else is replaced
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(out)
    for more in (["--out", str(tmp_path / "file")], ["--out", str(tmp_path / "link")], ["--batch", "0"]):
        with pytest.raises(SystemExit, match="2"):
            miniature.main([*command, *more])
    errors = capsys.readouterr().err
    assert errors.count("something other than a model folder") == 2 and "--batch must be greater than 0" in errors

    # one that is interrupted, or finds the disk full, leaves no folder
    for error, code in ((KeyboardInterrupt, 130), (SafetensorError, 2)):
        monkeypatch.setattr(miniature.PreTrainedTokenizerFast, "save_pretrained", Mock(side_effect=error))
        with pytest.raises(SystemExit, match=str(code)):
            miniature.main([*command, "--out", str(tmp_path / "new")])
        assert [path.name for path in tmp_path.glob("new*")] == []
