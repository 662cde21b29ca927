r"""Reward: what is a dialogue worth, which answer did an attempt give, and does it equal the gold answer?

    python reward.py "ANSWER" "GOLD"        prints the verdict and how both were read

An answer is model text: nothing evaluates it as code, and it is read whole or refused (docs/grader.md says how).
What "equal" means, case by case (ANSWER is GOLD; the tests read this table). The gold's form decides:
| matter            | examples                                                       | reason                          |
|-------------------|----------------------------------------------------------------|---------------------------------|
| exact gold        | 2/4 is 1/2; 0.33 is not 1/3; 2.1666666666666665 is 13/6        | only a 13-digit float counts    |
| decimal gold      | 100/3 is 33.3; 33.34 is not 33.3; 6/11 is not 0.5              | the gold itself was rounded     |
| integer gold      | 45001 is not 45000; 27.04 is not 27.0; 2^3 is 8                | no tolerance, any spelling      |
| percent, degrees  | 28 is 28\%; 0.28 is 28\%; 28 is not 0.28; \pi/2 is 90^\circ    | the sign is a unit or a factor  |
| units, money      | -5 is -5 cm; USD 5 is 5; 5 km is not 5 cm; 5m is not 5         | may be omitted, not replaced    |
| words on a number | 5 red balls is 5; 5 dozen is not 5; 5 squared is not 5         | only a plural is like a unit    |
| bases             | 52 is not 52_8; 101_2 is 5                                     | the gold's base must be named   |
| lists, sets       | 2, 1 is \{1, 2\}; 1 is not 1, 2; \pm 1 is 1, -1                | any order, no more, no less     |
| tuples, intervals | (2, 1) is not (1, 2); [1, 2] is not (1, 2); 1, 2 is not (1, 2) | ordered, and brackets count     |
| names, equations  | x = 5 is 5; y = 5 is not x = 5; y = 2x + 3 is 2x - y + 3 = 0   | a name or a factor may go       |
| chains            | y = k = 5 is 5; y = 4 = 5 is not 5; 17 \bmod 5 = 2 is 2        | each link must hold             |
| named expressions | m + n = 5 is 5; 5 is m + n = 5; 2x = 5 is not 5                | names alone, each once, may go  |
| curves            | x + y = 1 is 1; 1 is not x + y = 1                             | a gold in x, y, z is a curve    |
| sets of numbers   | 2 < x is (2, \infty); (0, 1] \cup (1, 2) is (0, 2)             | the same members                |
| words             | Even is \text{even}; (c) is (C); C. 42 is (C); True is not 1   | case, articles, a choice's text |
| text around       | Total: 18 is 18; 2x \text{ for any constant} is 2x             | unless it changes what is said  |
"""

from __future__ import annotations

import os
import re
import sys
from functools import lru_cache

from support.grader.compare import decide
from support.grader.latex import clean, read


def reward(
    attempts, gold: str, discount: float = 1.0, unboxed: float = -1.0, wrong: float = 0.0, repeat_penalty: float = 0.0
) -> list[float]:
    """One reward per attempt of a dialogue; the paper's rule (section 3.1) puts all of it on the last one.

    `attempts` have an `answer` (None without a box) and `correct`. A correct last attempt earns +1, times `discount`
    for each attempt before it. A failed dialogue earns -0.5 if any of its attempts boxed an answer, else `unboxed`.
    The paper's values are the defaults; it has no rewards in between. With the others, every wrong attempt earns
    `wrong`, and one that gives an earlier answer again loses `repeat_penalty` (the idea of UFO, arXiv 2507.14295).
    `gold` is unused; a rule of your own may use it."""
    answers = [attempt.answer for attempt in attempts]
    rewards = [0.0 if attempt.correct else float(wrong) for attempt in attempts]
    for i, answer in enumerate(answers):
        rewards[i] -= repeat_penalty * (answer is not None and answer in answers[:i])
    if attempts[-1].correct:
        rewards[-1] += discount ** (len(attempts) - 1)
    else:
        rewards[-1] += unboxed if answers.count(None) == len(answers) else -0.5
    return rewards


_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)  # "\\." steps over \{ and \}, and over \\ before a brace


def extract_boxed(text: str) -> str | None:
    r"""The content of the `\boxed{...}` that closes first; "" for an empty box, None without one. Reads from left to
    right and stops at the closing brace, so no later text can change the answer that a prefix gave."""
    starts = []  # one per open brace: where a box's content starts, or None
    for mark in _BRACE.finditer(text):
        if mark[0] == "}":
            start = starts.pop() if starts else None
            if start is not None:
                return text[start : mark.start()].strip()
        elif mark[0] == "{" or len(mark[0]) > 2:
            starts.append(mark.end() if len(mark[0]) > 2 else None)
    return None


@lru_cache(1 << 16)
def is_equal(answer: str, gold: str) -> bool:
    """Is the answer equal to the gold one, by the conventions above? Never raises; its work is bounded."""
    return decide(answer, gold)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print('reward.py takes two texts: python reward.py "ANSWER" "GOLD"', file=sys.stderr)
        return 2

    def show(node) -> str:
        return f"{node[0]}({', '.join(map(show, node[1:]))})" if isinstance(node, tuple) else str(node)

    try:
        print("equal" if is_equal(*arguments) else "not equal")
        for name, text in zip(("answer", "gold"), map(clean, arguments)):
            print(f"{name}: {text}\n    read as {show(read(text))}")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head -1`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
