"""The miniature: number riddles, and a base model for them that is built from nothing in under a minute on a laptop.

    "I am thinking of a number below 35. Divided by 12 it leaves 5. What is my number?"

The clues leave 2 to 5 candidates (here 5, 17, 29) and the hidden number is one of them, drawn at random: each candidate
is 0.7 times as likely as the one before it. So the best possible accuracy is known exactly: k attempts can do no better
than the first k candidates. A model that repeats an answer which was called incorrect gains nothing.

(Were all candidates equally likely, training with a single attempt would have nothing to prefer, and the noise of its
gradient would carry it from candidate to candidate.)

The base model is warmed up on worked solutions that go through the candidates and box the one at which they stop,
"5, 17. \\boxed{17}". Their dialogues are *neutral*: where an attempt stops is independent of the earlier ones (at every
candidate with probability 0.6, at the last in any case), so the base model knows the format and the arithmetic, and
does not know what feedback is for. That is left to reinforcement learning.

It ends up as an ordinary Hugging Face folder (Llama architecture, a fast tokenizer with ChatML's special tokens), and
nothing outside this file knows that it is special. Run it as

    python -m data.miniature --out runs/miniature/base
"""

import argparse
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data import Problem
from data.chat import CHAT_TEMPLATES, Chat, feedback_text, prompt_text
from data.sft import warm_up, worked_dialogue
from support.models import save_model

MODULI = range(3, 13)
CANDIDATES = (2, 3, 4, 5)
DECAY = 0.7  # a candidate's probability of being the hidden number, relative to the candidate before it
STOP = 0.6  # probability with which the base model's teacher settles for a candidate instead of going on to the next
ATTEMPTS = 5  # allowed in a worked dialogue at most
SPLITS = {"test": 150, "validation": 75, "train": 420}  # questions for each number of candidates
SEED = 2503_04808  # of the problem sets alone: they are the same in every run


@dataclass(frozen=True)
class Riddle:
    """A number below `bound` that leaves `remainder` when divided by `modulus`."""

    bound: int
    modulus: int
    remainder: int

    @property
    def candidates(self) -> range:
        return range(self.remainder, self.bound, self.modulus)

    @property
    def question(self) -> str:
        return (
            f"I am thinking of a number below {self.bound}. Divided by {self.modulus} it leaves {self.remainder}. "
            "What is my number?"
        )


def chances(count: int) -> np.ndarray:
    """The probability of each of `count` candidates to be the hidden number."""
    weights = DECAY ** np.arange(count)
    return weights / weights.sum()


def solution(candidates: range, answer: int) -> str:
    """A worked solution: goes through the candidates and boxes the one at which it stops."""
    tried = candidates[: candidates.index(answer) + 1]
    return f"{', '.join(map(str, tried))}. \\boxed{{{answer}}}"


def riddles(split: str) -> list[Problem]:
    """The problem set of a split, with equally many riddles of 2, 3, 4 and 5 candidates; no question is in two splits.

    A training question stands in the set five times, with hidden numbers drawn independently: there is nothing to learn
    by heart.
    """
    return [Problem(riddle.question, str(hidden)) for riddle, hidden in draw_riddles(split)]


def draw_riddles(split: str) -> list[tuple[Riddle, int]]:
    """The riddles of a split with their hidden numbers."""
    start = sum(SPLITS[earlier] for earlier in itertools.takewhile(lambda name: name != split, SPLITS))
    drawn = []
    for count in CANDIDATES:
        group = [
            Riddle(bound, modulus, remainder)
            for modulus in MODULI
            for remainder in range(modulus)
            # the bounds that leave this many candidates
            for bound in range(remainder + (count - 1) * modulus + 1, remainder + count * modulus + 1)
        ]
        order = np.random.default_rng((SEED, count)).permutation(len(group))  # the same for every split
        rng = np.random.default_rng((SEED, count, start))
        for i in np.repeat(order[start : start + SPLITS[split]], 5 if split == "train" else 1):
            drawn.append((group[i], group[i].candidates[rng.choice(count, p=chances(count))]))
    return [drawn[i] for i in np.random.default_rng((SEED, 0, start)).permutation(len(drawn))]


# ---------------------------------------------------------------------------------------------------------------------
# The base model


def neutral_attempts(riddle: Riddle, hidden: int, allowed: int, rng: np.random.Generator) -> list[str]:
    """The attempts of a solver that does not look back, until one is right or `allowed` are used up."""
    *others, final = riddle.candidates
    attempts = []
    while len(attempts) < allowed:
        answer = next((candidate for candidate in others if rng.random() < STOP), final)
        attempts.append(solution(riddle.candidates, answer))
        if answer == hidden:
            break
    return attempts


def build_tokenizer(problems: list[tuple[Riddle, int]]) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which a number is one token, trained on the dialogues' own text.

    Text is cut at numbers only, so the phrases of the chat become single tokens and dialogues stay short, but any text
    can be written.
    """
    chat = CHAT_TEMPLATES["chatml"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (
        part
        for riddle, hidden in problems
        for part in (prompt_text(chat, riddle.question, 1), solution(riddle.candidates, hidden), feedback_text(chat, 1))
    )
    texts = itertools.chain(texts, map(str, range(100)))
    pieces = (piece for text in texts for piece in re.split(r"<\|im_start\|>|<\|im_end\|>", text))
    tokenizer.train_from_iterator(pieces, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def build_model(vocab_size: int, eos_token_id: int, seed: int) -> LlamaForCausalLM:
    """Llama architecture, random weights. (For a Qwen2 folder AutoTokenizer would not keep our tokenizer's rules.)"""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        initializer_range=0.06,
        tie_word_embeddings=True,
        eos_token_id=eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def worked_dialogues(chat: Chat, problems: list[tuple[Riddle, int]], count: int, rng: np.random.Generator) -> list:
    """So many neutral dialogues about riddles drawn with replacement, as `warm_up` takes them."""
    dialogues = []
    for i in tqdm(rng.integers(len(problems), size=count), desc="worked dialogues", mininterval=1):
        riddle, hidden = problems[i]
        allowed = int(rng.integers(1, ATTEMPTS + 1))
        attempts = neutral_attempts(riddle, hidden, allowed, rng)
        dialogues.append(worked_dialogue(chat, riddle.question, allowed, attempts))
    return dialogues


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the miniature's base model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=800, help="warm-up steps")
    parser.add_argument("--batch", type=int, default=64, help="dialogues in a step")
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    problems = draw_riddles("train")
    tokenizer = build_tokenizer(problems[:500])
    model = build_model(len(tokenizer), tokenizer.eos_token_id, args.seed)
    rng = np.random.default_rng(args.seed)
    dialogues = worked_dialogues(Chat(model, tokenizer, "chatml"), problems, args.steps * args.batch, rng)
    warm_up(model, dialogues, args.batch, args.lr, rng)
    save_model(model, tokenizer, args.out)
    print(f"{args.out}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
