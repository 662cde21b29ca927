"""A base model for grade-school questions: SmolLM2-135M-Instruct, taught to answer with a calculation in a box.

Asked as in the paper, SmolLM2 hardly ever writes a box, so there would be no reward to learn from. It is fine-tuned
here on worked dialogues (data/sft.py) about MAWPS questions that one operation on two of their numbers answers:

    user       Joan found 70 seashells on the beach. she gave Sam some of her seashells. She has 27 seashell left. ...
    assistant  \\boxed{70 - 27}

The grader computes it, since 135 million parameters get too many sums wrong. So the whole question is which calculation
the story asks for. The teacher takes the right one with probability 0.5, else some other. It neither looks back at its
earlier attempts nor stops at a right one: in these dialogues feedback means nothing.

    python -m data.smollm2 --out runs/smollm2/base    # --dtype bfloat16 is faster on a CPU with instructions for it
"""

import argparse
import itertools
import re
from fractions import Fraction
from operator import add, mul, sub, truediv
from pathlib import Path

import numpy as np
import torch

from data import Problem, load
from data.chat import Chat
from data.sft import fine_tune, worked_dialogue
from support.cli import fail
from support.models import load_model, model_folder, pick_device, save_model

RIGHT = 0.5  # probability with which the teacher takes the right operation
ATTEMPTS = 3  # the most that a worked dialogue allows
OPERATIONS = {"+": add, "-": sub, "*": mul, "/": truediv}


def operations(question: str) -> dict[str, str]:
    """The results of one operation on two different numbers of the question: {"70 - 27": "43", ...}. Results that are
    negative, 0, or have more than two decimals are left out."""
    numbers = dict.fromkeys(number.replace(",", "") for number in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", question))
    found = {}
    for a, b in itertools.permutations(numbers, 2):
        for sign, operation in OPERATIONS.items():
            if (sign in "+*" and f"{b} {sign} {a}" in found) or Fraction(b) == 0:
                continue
            value = operation(Fraction(a), Fraction(b))
            if value > 0 and (100 * value).denominator == 1:
                found[f"{a} {sign} {b}"] = f"{float(value):.2f}".rstrip("0").rstrip(".")
    return found


def easy(problems: list[Problem]) -> list[Problem]:
    """The questions that at least one operation answers and at least one does not."""
    results = {problem: list(operations(problem.question).values()) for problem in problems}
    return [problem for problem, found in results.items() if 0 < found.count(problem.gold) < len(found)]


def neutral_attempts(problem: Problem, allowed: int, rng: np.random.Generator) -> list[str]:
    """`allowed` attempts of a teacher who looks neither at earlier ones nor at verdicts."""
    results = operations(problem.question)
    right = [calculation for calculation, result in results.items() if result == problem.gold]
    others = [calculation for calculation in results if calculation not in right]
    return [f"\\boxed{{{rng.choice(right if rng.random() < RIGHT else others)}}}" for _ in range(allowed)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Supervised fine-tuning of SmolLM2 for grade-school questions.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="model folder or hub name")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation only")
    args = parser.parse_args(argv)
    hint = ""  # no long work yet
    try:
        out, taught = model_folder(args.out), load("mawps-easy-train")
        model, tokenizer = load_model(args.model, pick_device(), torch.float32)
        chat = Chat(model, tokenizer, "chatml")
        hint, rng = "; nothing was written", np.random.default_rng(0)
        taught = [taught[i] for i in rng.permutation(len(taught))]
        dialogues = [worked_dialogue(chat, problem, ATTEMPTS, neutral_attempts, rng) for problem in taught]
        fine_tune(model, dialogues, batch=8, lr=1e-4, rng=rng, dtype=getattr(torch, args.dtype))
        save_model(model, tokenizer, out)
    except (KeyboardInterrupt, ValueError, OSError) as error:
        fail(error, hint)
    print(f"{out}: {args.model} after {len(dialogues)} worked dialogues")


if __name__ == "__main__":
    main()
