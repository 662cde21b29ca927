"""The miniature: riddles whose best accuracy is known, a tokenizer that can write anything, a base model that has been
taught the format and nothing about feedback."""

import json
import sys
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import settled
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from data import load, miniature
from data.chat import Chat
from data.miniature import (
    ATTEMPTS,
    CANDIDATES,
    SPLITS,
    Riddle,
    build_model,
    build_tokenizer,
    chances,
    draw_riddles,
    neutral_attempts,
    solution,
    worked_dialogues,
)
from data.sft import warm_up, worked_dialogue
from reward import extract_boxed, is_equal, reward
from rollout import rollout


@pytest.fixture(scope="module")
def drawn():
    return {split: draw_riddles(split) for split in SPLITS}


@pytest.fixture(scope="module")
def chat(tokenizer):
    return Chat(build_model(len(tokenizer), tokenizer.eos_token_id, 0), tokenizer, "chatml")


def tokens_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# ---------------------------------------------------------------------------------------------------------------------
# Riddles


def test_the_riddle_of_the_docstring():
    riddle = Riddle(35, 12, 5)
    assert riddle.question == "I am thinking of a number below 35. Divided by 12 it leaves 5. What is my number?"
    assert list(riddle.candidates) == [5, 17, 29]
    assert solution(riddle.candidates, 17) == r"5, 17. \boxed{17}"


@pytest.mark.parametrize("split, copies", [("test", 1), ("validation", 1), ("train", 5)])
def test_splits(split, copies, drawn):
    riddles, size = drawn[split], SPLITS[split]
    times = Counter(riddle for riddle, _ in riddles)
    assert set(times.values()) == {copies}
    assert Counter(len(riddle.candidates) for riddle in times) == {n: size for n in CANDIDATES}
    assert len({riddle.question for riddle in times}) == len(times)
    for riddle, hidden in riddles:
        assert hidden in riddle.candidates
        assert list(riddle.candidates) == [n for n in range(riddle.bound) if n % riddle.modulus == riddle.remainder]
    problems = load(f"riddles-{split}")
    assert [(p.question, p.answer) for p in problems] == [(riddle.question, str(hidden)) for riddle, hidden in riddles]


def test_splits_share_no_question(drawn):
    questions = [riddle.question for split in drawn for riddle in {riddle for riddle, _ in drawn[split]}]
    assert len(questions) == len(set(questions)) == len(CANDIDATES) * sum(SPLITS.values())


def test_riddles_are_always_the_same(drawn):
    np.random.seed(1), torch.manual_seed(1)
    assert draw_riddles("validation") == drawn["validation"]


def test_hidden_numbers_are_drawn_with_the_chances_of_the_docstring(drawn):
    """Otherwise the best possible accuracy would not be known."""
    np.testing.assert_allclose(chances(3), [1 / 2.19, 0.7 / 2.19, 0.49 / 2.19])
    for count in CANDIDATES:
        group = [(riddle, hidden) for riddle, hidden in drawn["train"] if len(riddle.candidates) == count]
        places = Counter(riddle.candidates.index(hidden) for riddle, hidden in group)
        assert sorted(places) == list(range(count))
        for place, expected in enumerate(len(group) * chances(count)):
            assert abs(places[place] - expected) < 4.5 * expected**0.5


def test_the_order_says_nothing_about_the_candidates(drawn):
    for riddles in drawn.values():
        half = [len(riddle.candidates) for riddle, _ in riddles[: len(riddles) // 2]]
        assert np.mean(half) == pytest.approx(np.mean(CANDIDATES), abs=0.2)


def test_worked_solutions_are_graded_correct(drawn):
    for riddle, hidden in drawn["test"]:
        for candidate in riddle.candidates:
            answer = extract_boxed(solution(riddle.candidates, candidate))
            assert is_equal(answer, str(hidden)) == (candidate == hidden)


# ---------------------------------------------------------------------------------------------------------------------
# Neutral attempts


def test_neutral_attempts_end_at_the_right_one_or_when_used_up():
    rng = np.random.default_rng(0)
    riddle = Riddle(35, 12, 5)
    lengths = Counter()
    for _ in range(300):
        attempts = neutral_attempts(riddle, 29, 4, rng)
        right = [attempt == solution(riddle.candidates, 29) for attempt in attempts]
        assert not any(right[:-1]) and (right[-1] or len(attempts) == 4)
        lengths[len(attempts)] += 1
    assert set(lengths) == {1, 2, 3, 4}
    assert neutral_attempts(Riddle(4, 9, 3), 3, 5, rng) == [r"3. \boxed{3}"]


def test_neutral_attempts_do_not_look_back():
    """The second attempt has the same distribution after every first one, and the same as the first has: it
    stops at a candidate with probability 0.6, at the last in any case."""
    rng = np.random.default_rng(1)
    riddle = Riddle(35, 12, 5)
    second = {5: Counter(), 17: Counter()}
    for _ in range(9000):
        attempts = neutral_attempts(riddle, 29, 2, rng)
        if len(attempts) == 2:
            first, then = (int(extract_boxed(attempt)) for attempt in attempts)
            second[first][then] += 1
    for counts in second.values():
        shares = [counts[n] / counts.total() for n in riddle.candidates]
        assert shares == pytest.approx([0.6, 0.24, 0.16], abs=0.03)


# ---------------------------------------------------------------------------------------------------------------------
# The tokenizer


def test_a_number_is_one_token():
    """As main() builds it."""
    tokenizer = build_tokenizer(draw_riddles("train")[:500])
    assert [n for n in range(100) if len(tokens_of(tokenizer, str(n))) != 1] == []


def test_special_tokens_are_single_and_apart(tokenizer):
    special = [tokens_of(tokenizer, text) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    assert all(len(tokens) == 1 for tokens in special) and len({tokens[0] for tokens in special}) == 3
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


ANY_TEXT = build_tokenizer(draw_riddles("validation")[:50])  # a fixture and hypothesis do not go together well


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_survives(text):
    assert ANY_TEXT.decode(tokens_of(ANY_TEXT, text), clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize(
    "text", ["", " ", "  a  b , c .", "1234567890 ½ ² ٣", "a\n\n\tb\0", "𝛑 é é", "<|im_end|>\n<|im_start|>x"]
)
def test_this_text_survives(text, chat):
    assert chat.text(chat.encode(text)) == text


def test_the_saved_tokenizer_is_the_same(tokenizer, drawn, chat, tmp_path):
    model = build_model(len(tokenizer), tokenizer.eos_token_id, 0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    reloaded = Chat(model, loaded, "chatml")
    for riddle, hidden in drawn["validation"]:
        assert reloaded.prompt(riddle.question, 3) == chat.prompt(riddle.question, 3)
        written = solution(riddle.candidates, hidden)
        assert reloaded.encode(written) == chat.encode(written)
    assert reloaded.feedback_after(0, 2) == chat.feedback_after(0, 2)
    for text in (
        "Janet's 16 ducks lay \\frac{1}{2} egg; ü, 數 👍",
        " a  b",
        "<|im_start|>user\n12345",
        "x. \\boxed{7}",
    ):
        assert reloaded.encode(text) == chat.encode(text) and reloaded.text(reloaded.encode(text)) == text
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert (reloaded.ends, reloaded.closing) == (chat.ends, chat.closing)


# ---------------------------------------------------------------------------------------------------------------------
# Worked dialogues and the warm-up


class Writer(torch.nn.Module):
    """Through the rollout engine it writes the tokens it is given, whatever it reads."""

    def __init__(self, model, target: list[int]):
        super().__init__()
        self.model, self.target = model, target
        self.config, self.device, self.dtype = model.config, model.device, model.dtype
        self.generation_config, self.base_model = model.generation_config, model.base_model
        self.set_attn_implementation = model.set_attn_implementation

    def forward(self, position_ids, **inputs):
        output = self.model(position_ids=position_ids, **inputs)
        token = self.target[min(int(position_ids[0, 0]) + 1, len(self.target) - 1)]
        output.logits = F.one_hot(torch.tensor([[max(token, 0)]]), self.config.vocab_size).float()
        return output


def test_worked_dialogues_are_what_the_rollout_engine_would_feed(tokenizer, chat, drawn):
    """A model that writes the targets, where there are any, gets exactly these tokens from the engine: prompt, attempts
    and feedback, the targets on the attempts alone."""
    model = build_model(len(tokenizer), tokenizer.eos_token_id, 0).eval()
    rng = np.random.default_rng(3)
    used = Counter()
    for riddle, hidden in drawn["test"][:24]:
        allowed = int(rng.integers(1, ATTEMPTS + 1))
        attempts = neutral_attempts(riddle, hidden, allowed, rng)
        tokens, target = worked_dialogue(chat, riddle.question, allowed, attempts)
        dialogues = rollout(
            Writer(model, target),
            tokenizer,
            [riddle.question],
            [str(hidden)],
            [allowed],
            extract=extract_boxed,
            grade=lambda answer, gold: settled(answer == gold),
            reward=reward,
            max_new_tokens=300,
            temperature=0,
            slots=1,
        )
        assert dialogues.tokens_DT[0].tolist() == tokens
        assert torch.where(dialogues.sampled_DT[0], dialogues.tokens_DT[0], -100).tolist() == target
        assert [attempt.text for attempt in dialogues.attempts[0]] == attempts
        used[len(attempts)] += 1
    assert len(used) > 2  # dialogues of several lengths were among them


def test_a_worked_dialogue_by_hand(chat):
    prompt, feedback = chat.prompt("Q?", 3), chat.feedback_after(-1, 2)
    first, second = chat.encode(r"2. \boxed{2}"), chat.encode(r"2, 9. \boxed{9}")
    tokens, target = worked_dialogue(chat, "Q?", 3, [r"2. \boxed{2}", r"2, 9. \boxed{9}"])
    assert tokens == prompt + first + feedback + second
    assert target == [-100] * len(prompt) + first + [-100] * len(feedback) + second


def loss_of(model, dialogues) -> float:
    """Mean cross-entropy of the solver's tokens, one dialogue at a time."""
    losses = []
    with torch.no_grad():
        for tokens, target in dialogues:
            logits = model(input_ids=torch.tensor([tokens])).logits[0, :-1]
            losses.append(F.cross_entropy(logits, torch.tensor(target)[1:], ignore_index=-100, reduction="none"))
    return torch.cat([loss[loss > 0] for loss in losses]).mean().item()


def test_warm_up_teaches_new_riddles(tokenizer, chat, drawn):
    model = build_model(len(tokenizer), tokenizer.eos_token_id, 0)
    rng = np.random.default_rng(7)
    unseen = worked_dialogues(chat, drawn["test"], 24, rng)
    before = loss_of(model, unseen)
    warm_up(model, worked_dialogues(chat, drawn["train"], 40 * 16, rng), 16, 4e-3, rng)
    after = loss_of(model, unseen)
    assert before > 5.5 and after < 0.5 * before


def test_warm_up_is_decided_by_its_seed(tokenizer, chat, drawn):
    def warmed(seed):
        model = build_model(len(tokenizer), tokenizer.eos_token_id, 0)
        rng = np.random.default_rng(seed)
        warm_up(model, worked_dialogues(chat, drawn["train"], 3 * 4, rng), 4, 4e-3, rng)
        return model.lm_head.weight.detach().clone()

    first = warmed(0)
    assert torch.equal(first, warmed(0)) and not torch.equal(first, warmed(1))


def build(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["miniature.py", *map(str, words)])
    miniature.main()


def test_the_command_builds_a_model_folder(monkeypatch, tmp_path, capsys):
    out = tmp_path / "deep" / "base"
    build(monkeypatch, "--out", out, "--steps", 2, "--batch", 4)
    assert [path.name for path in out.parent.iterdir()] == ["base"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.num_parameters() < 1_000_000 and model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id == tokens_of(tokenizer, "<|im_end|>")[0]
    assert f"{out}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"

    # a second build takes the first one's place; the same seed gives the same weights
    (out / "old").write_text("")
    weights = (out / "model.safetensors").read_bytes()
    build(monkeypatch, "--out", out, "--steps", 2, "--batch", 4)
    assert not (out / "old").exists() and (out / "model.safetensors").read_bytes() == weights


def test_a_build_that_fails_leaves_no_folder(monkeypatch, tmp_path):
    def fails(*_):
        raise KeyboardInterrupt

    for name in ("warm_up", "PreTrainedTokenizerFast.save_pretrained"):
        with monkeypatch.context() as patch:
            patch.setattr(miniature, "warm_up", lambda *_: None)
            patch.setattr(f"data.miniature.{name}", fails)
            with pytest.raises(KeyboardInterrupt):
                build(patch, "--out", tmp_path / "base")
        assert not (tmp_path / "base").exists()
