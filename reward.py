r"""Reward: what is a dialogue worth, which answer did an attempt give, and does it equal the gold answer?

    python reward.py "ANSWER" "GOLD"        prints the verdict and how both were read

An answer is model text: nothing evaluates it as code, and it is read whole or refused. docs/grader.md has a table of
what "equal" means, and support/grader/ the grader.
"""

import re
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from support.cli import fail
from support.grader.compare import decide
from support.grader.latex import clean, read


def reward(
    attempts, gold: str, attempt_discount=1.0, unboxed_reward=-1.0, wrong_reward=0.0, repeat_penalty=0.0
) -> list[float]:
    """One reward per attempt of a dialogue; the paper's rule (section 3.1) puts all of it on the last one.

    `attempts` have an `answer` (None without a box) and `correct`. A correct last attempt earns +1, times
    `attempt_discount` for each attempt before it. A failed dialogue earns -0.5 if any of its attempts boxed an answer,
    else `unboxed_reward`. The paper's values are the defaults. Beyond the paper, every wrong attempt earns
    `wrong_reward`, and one that gives an earlier answer again, letter for letter, loses `repeat_penalty` (UFO's idea,
    arXiv 2507.14295). `gold` is unused; a rule of your own may use it."""
    answers = [attempt.answer for attempt in attempts]
    if attempts[-1].correct:
        outcome = attempt_discount ** (len(attempts) - 1)
    else:
        outcome = -0.5 if any(answer is not None for answer in answers) else unboxed_reward
    rewards = [0.0 if attempt.correct else wrong_reward for attempt in attempts]
    for i, answer in enumerate(answers):
        if answer is not None and answer in answers[:i]:
            rewards[i] -= repeat_penalty
    rewards[-1] += outcome
    return rewards


BRACE = re.compile(r"(?P<box>\\boxed\s*\{)|\\.|[{}]", re.DOTALL)  # "\\." steps over \{ and \}, and \\ before a brace


def extract_boxed(text: str) -> str | None:
    r"""The content of the `\boxed{...}` that closes first; None without one. An empty box is no box: the next one
    counts. Reads from left to right and stops at the closing brace: no later text changes an answer once given."""
    starts = []  # one per open brace: where a box's content starts, or None
    for mark in BRACE.finditer(text):
        if mark[0] == "}":
            start = starts.pop() if starts else None
            if start is not None and (answer := text[start : mark.start()].strip()):
                return answer
        elif mark[0] == "{" or mark["box"]:
            starts.append(mark.end() if mark["box"] else None)
    return None


@lru_cache(1 << 16)
def is_equal(answer: str, gold: str) -> bool:
    """Is the answer equal to the gold one, by the conventions of docs/grader.md? Never raises; its work is bounded."""
    return decide(answer, gold)


class Rules(NamedTuple):
    """The three functions that judge attempts."""

    extract: Callable[[str], str | None]  # an attempt's text up to a token with a "}" -> its answer, or None
    is_equal: Callable[[str, str], bool]  # answer (any text), gold answer -> is it correct? Must not raise
    reward: Callable[..., list[float]]  # attempts, gold answer, options of training by name -> one reward each


RULES = Rules(extract_boxed, is_equal, reward)  # for training, evaluation and benchmarks: put yours here


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        fail('give two texts: python reward.py "ANSWER" "GOLD"')

    def show(node) -> str:
        return f"{node[0]}({', '.join(map(show, node[1:]))})" if isinstance(node, tuple) else str(node)

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end without a traceback when the reader of a pipe has gone
    print("equal" if RULES.is_equal(*arguments) else "not equal")
    for name, text in zip(("answer", "gold"), map(clean, arguments)):
        print(f"{name}: {text}\n    read as {show(read(text))}")


if __name__ == "__main__":
    main(sys.argv[1:])
