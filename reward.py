r"""The teacher: which answer did an attempt give, does it equal the gold answer, and what is that worth?

    python reward.py "ANSWER" "GOLD"        prints the verdict and how both were read

An answer is model text, so nothing here evaluates it as code: support/grader/latex.py reads it into a tree of tuples, or refuses
it whole, and support/grader/values.py compares two expressions at fixed probe points, exactly where the arithmetic is rational,
else to 60 digits. Every size is bounded before any work is done, and what cannot be read equals only what is written
the same.

Conventions (ANSWER is GOLD; the tests read this table). The gold's form decides:
| matter            | examples                                                       | reason                          |
|-------------------|----------------------------------------------------------------|---------------------------------|
| exact gold        | 2/4 is 1/2; 0.33 is not 1/3; 0.3333333333333 is 1/3            | only a 13-digit float counts    |
| decimal gold      | 100/3 is 33.3; 33.34 is not 33.3; 6/11 is not 0.5              | the gold itself was rounded     |
| integer gold      | 45001 is not 45000; 27.04 is not 27.0; 2^3 is 8                | no tolerance, any spelling      |
| percent, degrees  | 28 is 28\%; 0.28 is 28\%; 28 is not 0.28; \pi/2 is 90^\circ    | the sign is a unit or a factor  |
| units, money      | 5 is 5 cm; 5 cm is 5; 5 km is not 5 cm; 5m is not 5            | may be left out, not exchanged  |
| bases             | 52 is not 52_8; 101_2 is 5                                     | the gold's base must be named   |
| lists, sets       | 2, 1 is \{1, 2\}; 1 is not 1, 2; \pm 1 is 1, -1                | any order, no more, no less     |
| tuples, intervals | (2, 1) is not (1, 2); [1, 2] is not (1, 2); 1, 2 is not (1, 2) | ordered, and brackets count     |
| names, equations  | x = 5 is 5; y = 5 is not x = 5; y = 2x + 3 is 2x - y + 3 = 0   | a name or a factor may go       |
| inequalities      | 2 < x is (2, \infty); x \in (2, \infty) is x > 2               | the same set                    |
| words             | Even is \text{even}; C. 42 is (C); True is not 1               | case, articles, a choice's text |
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from functools import lru_cache

from support.grader.latex import MAX_CHARS, MAX_DIGITS, Unreadable, clean, read, same_at_sight, tokens, without_label
from support.grader.values import (
    RATIONAL,
    intervals,
    is_name,
    items,
    kinds,
    names,
    numerics,
    same_value,
    scaled,
    spread,
)
from support.grader.workers import Verdict, Workers

MAX_ITEMS = 32  # of a list, a set, a matrix


# ------------------------------------------------------------------------------------------ the reward rule and the box
def reward(attempts, gold: str, discount: float = 1.0, unboxed: float = -1.0) -> list[float]:
    if attempts[-1].correct:
        value = float(discount) ** (len(attempts) - 1)
    else:
        value = -0.5 if any(attempt.answer is not None for attempt in attempts) else unboxed
    return [0.0] * (len(attempts) - 1) + [value]


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


# ---------------------------------------------------------------------------------------------------------- comparison
def _settled(node):
    """The tree with every chain of = and \\approx brought down to `name = value`, to one value, or to one equation:
    5 = x, x = 1 + 1 = 2, 1/3 = 0.33. Each link of a chain must hold."""
    node = spread(tuple(_settled(n) if isinstance(n, tuple) else n for n in node))
    if node[0] != "rel" or not set(signs := node[1].split()) <= {"=", "approx"}:
        return node
    if len(set(node[2:])) < len(node[2:]):
        raise Unreadable("a tautology")
    left, *values = node[2:]
    if signs == ["="] and (values[0][0] == "call" != left[0] or is_name(values[0]) and not is_name(left)):
        left, values = values[0], [left]
    if not (is_name(left) or signs == ["="] and names(node)):
        left, values = None, [left, *values]
    for value, sign in zip(values[1:], signs[1 - len(values) :]):
        if not _same(value, values[0]) and not (sign == "approx" and _same(values[0], value)):
            raise Unreadable("a chain of equalities that does not hold")
    return ("rel", "=", left, values[0]) if left else values[0]


def _matched(answers: list, golds: list) -> bool:
    """Each gold has its answer, in any order, and no answer is left over; one that is given twice is given once."""
    return (
        max(len(answers), len(golds)) <= MAX_ITEMS
        and all(any(_same(a, g) for a in answers) for g in golds)
        and all(any(_same(a, g) for g in golds) for a in answers)
    )


def _labelled(node) -> list | None:
    """(x, y) = (1, 2) as x = 1, y = 2"""
    fits = node[:2] == ("rel", "=") and node[2][0] == node[3][0] == "seq" and len(node[2]) == len(node[3])
    return [("rel", "=", *pair) for pair in zip(node[2][3:], node[3][3:])] if fits else None


def _numbered(a: set, g: set) -> bool:
    """Is one of them a name alone, and the other that name with numbers?"""
    one, many = sorted((a, g), key=len)
    return len(one) == 1 < len(many) and all(n[0] == "sym" and n[1].split("_")[0] == [*one][0][1] for n in many)


def _same_relation(a, g) -> bool:
    """Two relations, or one and what it names"""
    if a[0] != "rel":
        return g[1] in ("=", "in") and is_name(g[2]) and _same(a, g[3])
    if g[0] != "rel":
        return a[1] in ("=", "in") and is_name(a[2]) and _same(a[3], g)
    if {a[1], g[1]} <= {"=", "in"} and is_name(a[2]) and is_name(g[2]):
        labels = {a[2][0], g[2][0]}
        alike = a[2] == g[2] or "text" in labels or "call" in labels and ("sym", "y") in (a[2], g[2])
        if alike and _same(a[3], g[3]):
            return True
    a, g = [("rel", n[1].replace(">", "<"), *n[:1:-1]) if n[1][0] == ">" else n for n in (a, g)]
    return a[1] == g[1] != "in" and scaled(("-", *a[2:]), ("-", *g[2:]), positive=a[1][0] == "<")


def _same(a, g) -> bool:
    """Two nodes, by their kinds from the outermost inward"""
    a, g = (n[1] if n[0] == "set" and len(n) == 2 else n for n in (a, g))  # {5} is 5
    both = {a[0], g[0]}
    if a == g:
        return True
    if "unit" in both:
        bare = [n[1] if n[0] == "unit" else n for n in (a, g)]
        return (a[0] != g[0] or a[2] == g[2]) and not both & {"%", "deg"} and _same(*bare)
    several = items(a), items(g)
    spans = (intervals(a), intervals(g)) if both & {"rel", "union", "sym", "list"} else (None, None)
    if None not in spans and (both != {"rel"} or names(a) == names(g)):
        return _matched(*spans)
    if both == {"seq"} or both == {"seq", "list"}:
        lists = [n[3:] if n[0] == "seq" else parts for n, parts in zip((a, g), several)]
        fits = a[1:3] == g[1:3] or "matrix" in (a[1], g[1])
        if "list" in both:  # without brackets: three or more, or x = 1, y = 2
            fits = len(lists[0]) > 2 or "rel" in (several[0][0][0], several[1][0][0])
        return fits and len(lists[0]) == len(lists[1]) and all(map(_same, *lists))
    if both & {"list", "set"} or len(several[0]) + len(several[1]) > 2:
        several = [_labelled(n) or parts for n, parts in zip((a, g), several)]
        labels = [{n[2] for n in parts if n[0] == "rel"} for parts in several]
        if labels[0] and labels[1] and _numbered(*labels):  # x_1 = 2, x_2 = 3 against x = 2, 3
            return _matched(*([n[3] for n in parts] for parts in several))
        if min(map(len, labels)) == 0 and max(map(len, labels)) > 1:  # x = 1, y = 2 against 1, 2
            return len(several[0]) == len(several[1]) and all(map(_same, *several))
        return "seq" not in both and _matched(*several)
    if "rel" in both:
        return _same_relation(a, g)
    return not both & {"text", "seq", "union"} and g[0] != "base" and same_value(a, g)


def _decide(answer: str, gold: str, cheaply: bool) -> bool | None:
    """The verdict; None where it should come cheaply but takes more than fractions. Never raises."""
    try:
        if max(len(answer), len(gold)) > 4 * MAX_CHARS:  # even cleaning takes time
            return answer.strip() == gold.strip()
        if answer.isdecimal() and gold.isdecimal() and max(len(answer), len(gold)) <= MAX_DIGITS:
            return int(answer) == int(gold)
        answer, gold = clean(answer), clean(gold)
        if (verdict := same_at_sight(answer, gold)) is not None:
            return verdict
        a, g = read(answer), read(gold)
        if "unreadable" in a and (value := without_label(answer)):
            a = read(value)
        if "unreadable" in (a[0], g[0]):  # sums, integrals, remainders: equal as written, \sum_{k} is \sum_k
            written = [tokens(re.sub(r"\{(\w|\\[a-z]+)\}", r" \1 ", text)) for text in (answer, gold)]
            return a[0] == g[0] and written[0] == written[1]
        if cheaply and (kinds(a) | kinds(g)) - RATIONAL:
            return None
        return _same(_settled(a), _settled(g))
    except (Unreadable, ArithmeticError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return False


@lru_cache(1 << 16)
def is_equal(answer: str, gold: str) -> bool:
    """Is the answer equal to the gold one, by the conventions above? Bounded work in this process; never raises."""
    return _decide(answer, gold, cheaply=False)


# ---------------------------------------------------------------------------------------------------- worker processes
_WORKER = [sys.executable, os.path.abspath(__file__), "--worker"]


class Grader(Workers):
    """Verdicts that cost the caller no time. What is cheap is decided at once; the rest goes to worker processes with a
    limit on memory and a deadline for every pair (support/grader/workers.py), each a fresh python with this file and mpmath
    alone. A pair that costs a worker its life is not equal. Only a hard pair starts one."""

    def __init__(self, workers: int = 2, timeout: float = 5.0, memory: int = 1 << 30):
        super().__init__([*_WORKER, str(memory)], workers, timeout)
        self.submit = lru_cache(1 << 16)(self._submit)

    def _submit(self, answer: str, gold: str) -> Verdict:
        verdict = _decide(answer, gold, cheaply=True)
        return self.ask(json.dumps([answer, gold])) if verdict is None else Verdict(self, "", verdict)


def is_equal_all(pairs, workers: int = 2, timeout: float = 5.0) -> list[bool]:
    """The verdicts on many (answer, gold) pairs, in their order."""
    with Grader(workers, timeout) as grader:
        return [verdict.result() for verdict in [grader.submit(a, g) for a, g in pairs]]


def _work(memory: int):
    """In the worker: a pair a line from stdin, one byte a verdict to stdout, until stdin ends, as with its parent."""
    import resource

    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit; the bounds on every size hold there
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    numerics()
    os.write(1, b"r")
    for line in sys.stdin.buffer:
        os.write(1, b"1" if is_equal(*json.loads(line)) else b"0")


def main(arguments: list[str]):
    if len(arguments) == 2 and arguments[0] == "--worker":
        return _work(int(arguments[1]))
    if len(arguments) != 2:
        print('reward.py takes two texts: python reward.py "ANSWER" "GOLD"', file=sys.stderr)
        return 2

    def show(node):
        return f"{node[0]}({', '.join(map(show, node[1:]))})" if isinstance(node, tuple) else str(node)

    print("equal" if is_equal(*arguments) else "not equal")
    for name, text in zip(("answer", "gold"), map(clean, arguments)):
        print(f"{name}: {text}\n    read as {show(read(text))}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
