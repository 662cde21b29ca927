"""The miniature: number riddles, and a base model for them that is built from scratch in under a minute on a laptop.

    "I am thinking of a number below 35. Divided by 12 it leaves 5. What is my number?"

The clues leave 2 to 5 candidates (here 5, 17, 29). The hidden number is one of them, drawn at random: each candidate is
0.7 times as likely as the one before it. So the best possible accuracy is known exactly: k attempts can do no better
than the first k candidates.

Riddles with a cue end differently: "... leaves 5. It is a large one. What is my number?" For a small number each
candidate is half as likely as the one before it, for a large number half as likely as the one after it. So there is a
better first answer than the base model's, and training can find it.

The base model learns from worked solutions, which go through the candidates and box the one where they stop,
"5, 17. \\boxed{17}". Its attempts are *neutral*: they stop at each candidate with probability 0.6, and at the last in
any case, whatever the earlier attempts were. So the base model knows the format and the arithmetic, but does not know
what feedback is for or what a cue says. That is left to reinforcement learning.

    python -m data.miniature --out runs/miniature/base    # --cue --out runs/cue/base
"""

import argparse
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.chat import CHAT_TEMPLATES, FEEDBACK_HELP, Chat, fill_feedback, prompt_text, resolve_feedback
from data.sft import boxed, fine_tune, worked_dialogue
from support.cli import fail
from support.models import model_folder, save_model

# A candidate's probability of being the hidden number, relative to the candidate before it, for each cue.
DECAYS = {"": 0.7, " It is a small one.": 0.5, " It is a large one.": 2.0}
CUES = list(DECAYS)[1:]
MODULI = range(3, 13)
CANDIDATES = (2, 3, 4, 5)
STOP = 0.6  # probability with which the base model's teacher stops at a candidate and does not go on to the next
ATTEMPTS = 5  # the most that a worked dialogue allows
# places among the shuffled riddles, the same for each number of candidates
SPLITS = {"test": range(150), "validation": range(150, 225), "train": range(225, 645)}
SEED = 2503_04808  # only for the problem sets, which are the same in every run


class Riddle(NamedTuple):
    """A number below `bound` that leaves `remainder` when divided by `modulus`."""

    bound: int
    modulus: int
    remainder: int
    cue: str = ""
    hidden: int | None = None  # the number, drawn from the candidates

    @property
    def candidates(self) -> range:
        return range(self.remainder, self.bound, self.modulus)

    @property
    def question(self) -> str:
        clues = f"below {self.bound}. Divided by {self.modulus} it leaves {self.remainder}.{self.cue}"
        return f"I am thinking of a number {clues} What is my number?"

    @property
    def gold(self) -> str:
        return str(self.hidden)

    @property
    def chances(self) -> np.ndarray:
        """The probability that each of the candidates is the hidden number."""
        weights = DECAYS[self.cue] ** np.arange(len(self.candidates))
        return weights / weights.sum()

    def solution(self, answer: int) -> str:
        """Goes through the candidates and boxes the one where it stops."""
        tried = self.candidates[: self.candidates.index(answer) + 1]
        return f"{', '.join(map(str, tried))}. \\boxed{{{answer}}}"


def draw_riddles(split: str, cued: bool = False) -> list[Riddle]:
    """The riddles of a split, equally many with 2, 3, 4 and 5 candidates. No riddle is in two splits, its candidates
    may be. A training riddle is in the set five times, each with a new draw of hidden number and cue."""
    places, drawn = SPLITS[split], []
    every = [Riddle(bound, modulus, rest) for modulus in MODULI for rest in range(modulus) for bound in range(100)]
    for count in CANDIDATES:
        group = [riddle for riddle in every if len(riddle.candidates) == count]
        order = np.random.default_rng((SEED, count)).permutation(len(group))  # the same for every split
        rng = np.random.default_rng((SEED, count, places.start))
        for i in np.repeat(order[places], 5 if split == "train" else 1):
            riddle = group[i]._replace(cue=CUES[rng.integers(2)]) if cued else group[i]
            drawn.append(riddle._replace(hidden=riddle.candidates[rng.choice(count, p=riddle.chances)]))
    return [drawn[i] for i in np.random.default_rng((SEED, 0, places.start)).permutation(len(drawn))]


def best_possible(cued: bool, attempts: int) -> list[float]:
    """The accuracy to expect on the test riddles if k attempts give the k likeliest candidates, k = 1 .. `attempts`."""
    chances = [sorted(riddle.chances, reverse=True) for riddle in draw_riddles("test", cued)]
    return [float(np.mean([sum(likeliest[:k]) for likeliest in chances])) for k in range(1, attempts + 1)]


def neutral_attempts(riddle: Riddle, allowed: int, rng: np.random.Generator) -> list[str]:
    """The attempts of a teacher who does not look back, until one is right or `allowed` are used up."""
    *others, final = riddle.candidates
    answers = []
    while len(answers) < allowed and riddle.hidden not in answers:
        answers.append(next((candidate for candidate in others if rng.random() < STOP), final))
    return [riddle.solution(answer) for answer in answers]


def build_tokenizer(riddles: list[Riddle], feedback: str = "paper") -> PreTrainedTokenizerFast:
    """Byte-level BPE in which a number is one token, trained on the text of the dialogues. Text is cut only at numbers,
    so whole phrases of the chat become single tokens and dialogues stay short. Any text can still be encoded."""
    tokenizer = Tokenizer(models.BPE())
    numbers = pre_tokenizers.Split(Regex(r"\d+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([numbers, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    control, alphabet = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=control, initial_alphabet=alphabet, show_progress=False)
    template, feedback = CHAT_TEMPLATES["chatml"], resolve_feedback(feedback)
    texts = list(map(str, range(100)))
    for riddle in riddles:
        solved = riddle.solution(riddle.hidden)
        words = fill_feedback(feedback, 1, boxed(solved), riddle.gold)
        texts += prompt_text(template, riddle.question, 1), solved, template.feedback.replace("{feedback}", words)
    tokenizer.train_from_iterator((piece for text in texts for piece in re.split(r"<\|im_\w+\|>", text)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def build_model(vocab_size: int, eos_token_id: int) -> LlamaForCausalLM:
    """Llama architecture, random weights. (For a Qwen2 folder AutoTokenizer would not keep our tokenizer's rules.)"""
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    sizes |= dict(vocab_size=vocab_size, max_position_embeddings=4096, tie_word_embeddings=True)
    return LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=eos_token_id, bos_token_id=None, initializer_range=0.06))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Build the miniature's base model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--cue", action="store_true", help="for riddles with a cue")
    parser.add_argument("--feedback", default="paper", help=FEEDBACK_HELP)
    parser.add_argument("--steps", type=int, default=800, help="steps of the supervised fine-tuning")
    parser.add_argument("--batch", type=int, default=64, help="dialogues in a step")
    args = parser.parse_args(argv)
    if min(args.steps, args.batch) < 1:
        fail("--steps and --batch must be greater than 0")
    riddles, hint = draw_riddles("train", args.cue), ""  # no long work yet
    try:
        out = model_folder(args.out)
        tokenizer = build_tokenizer(riddles[:500], args.feedback)
        hint = "; nothing was written"
        model = build_model(len(tokenizer), tokenizer.eos_token_id)
        rng = np.random.default_rng(0)
        chat = Chat(model, tokenizer, "chatml", args.feedback)
        draws = tqdm(rng.integers(len(riddles), size=args.steps * args.batch), desc="worked dialogues", mininterval=1)
        dialogues = [worked_dialogue(chat, riddles[i], ATTEMPTS, neutral_attempts, rng) for i in draws]
        fine_tune(model, dialogues, args.batch, lr=4e-3, rng=rng)
        save_model(model, tokenizer, out)
    except (KeyboardInterrupt, ValueError, OSError) as error:
        fail(error, hint)
    print(f"{out}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
