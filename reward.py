r"""The teacher: which answer did an attempt give, does it equal the gold answer, and what is that worth?

    python reward.py "ANSWER" "GOLD"        prints the verdict and how both were read

An answer is model text, so nothing here evaluates it as code: data/latex.py reads it into a tree of tuples, or refuses
it whole, and data/values.py compares two expressions at fixed probe points, exactly where the arithmetic is rational,
else to 60 digits. Every size is bounded before any work is done, and what cannot be read equals only what is written
the same.

Conventions (ANSWER is GOLD; the tests read this table). The gold's form decides:
| matter            | examples                                                       | reason                          |
|-------------------|----------------------------------------------------------------|---------------------------------|
| exact gold        | 2/4 is 1/2; 0.33 is not 1/3; 0.3333333333333 is 1/3            | only a 13-digit float counts    |
| decimal gold      | 100/3 is 33.3; \pi is 3.14; 33.34 is not 33.3                  | the gold itself was rounded     |
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
import queue
import re
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache

from data.latex import MAX_CHARS, MAX_DIGITS, Unreadable, clean, read, same_at_sight, tokens
from data.values import agree, kinds, lift, names, numerics, scaled, value_at

MAX_ITEMS = 32  # of a list, a set, a matrix
FULL_FLOAT = 13  # significant digits from which a decimal was surely computed


# ------------------------------------------------------------------------------------------ the reward rule and the box
def reward(correct: bool, boxed: bool, attempts_used: int = 1, discount: float = 1.0) -> float:
    """+1 when an attempt was correct, times `discount` for each attempt before it; -0.5 when the dialogue failed but
    its final attempt boxed an answer; -1 otherwise (the paper's rule; its discount is 1)."""
    if correct:
        return float(discount) ** (attempts_used - 1)
    return -0.5 if boxed else -1.0


_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)  # "\\." steps over \{ and \}, and over \\ before a brace


def extract_boxed(text: str) -> str | None:
    r"""The content of the `\boxed{...}` that closes first; "" for an empty box, None without one. Reads from left to
    right and stops at the closing brace, so no later text can change the answer that a prefix gave."""
    starts = []  # one per open brace: where a box's content starts, or None
    for mark in _BRACE.finditer(text):
        if mark[0] == "}":
            start = starts.pop() if starts else None
            if start is not None:
                return text[start:mark.start()].strip()
        elif mark[0] == "{" or len(mark[0]) > 2:
            starts.append(mark.end() if len(mark[0]) > 2 else None)
    return None


# ---------------------------------------------------------------------------------------------------------- comparison
def _is_name(node) -> bool:
    """May it stand left of = as a mere label? x, f(x), AB, |AB|, AB : CD, (p, q), Area"""
    if node[0] == "seq":
        return all(map(_is_name, node[3:]))
    capitals = kinds(node) <= {"*", "/", "abs", "sym"} and all(n[0].isupper() for n in names(node))
    inverse = node[0] == "*" and node[1][2:] == (("neg", ("num", 1)),) and node[2][0] == "group"  # f^{-1}(x)
    return capitals or inverse or node[0] in ("sym", "text", "call", "group")


def _settled(node):
    """The tree with every chain of = and \\approx brought down to `name = value`, to one value, or to one equation:
    5 = x, x = 1 + 1 = 2, 1/3 = 0.33. Each link of a chain must hold."""
    node = tuple(_settled(n) if isinstance(n, tuple) else n for n in node)
    if node[0] != "rel" or not set(signs := node[1].split()) <= {"=", "approx"}:
        return node
    left, *values = node[2:]
    if signs == ["="] and (values[0][0] == "call" != left[0] or _is_name(values[0]) and not _is_name(left)):
        left, values = values[0], [left]
    if not (_is_name(left) or signs == ["="] and names(node)):
        left, values = None, [left, *values]
    for value, sign in zip(values[1:], signs[1 - len(values):]):
        if not _same(value, values[0]) and not (sign == "approx" and _same(values[0], value)):
            raise Unreadable("a chain of equalities that does not hold")
    return ("rel", "=", left, values[0]) if left else values[0]


def _signed(node, sign: int):
    r"""The node with the upper (1) or lower (-1) sign of each \pm and \mp"""
    if node[0] in ("pm", "mp"):
        node = ("+" if (node[0] == "pm") == (sign > 0) else "-", *node[1:])
    return tuple(_signed(n, sign) if isinstance(n, tuple) else n for n in node)


def _items(node) -> list:
    r"""The elements of a list or a set: 1 \pm 2 are two of them, x = 1, 2 is x = 1, x = 2"""
    if node[0] in ("list", "set"):
        items = [item for n in node[1:] for item in _items(n)]
        if items and items[0][:2] == ("rel", "=") and "rel" not in {n[0] for n in items[1:]}:
            items[1:] = [("rel", "=", items[0][2], n) for n in items[1:]]
        return items
    if node[0] == "rel" and node[1] in ("=", "in") and node[3][0] in ("list", "set"):
        return [("rel", "=", node[2], item) for item in _items(node[3])]
    return [_signed(node, 1), _signed(node, -1)] if kinds(node) & {"pm", "mp"} else [node]


def _matched(answers: list, golds: list) -> bool:
    """Each gold has its answer, in any order, and no answer is left over; one that is given twice is given once."""
    return (max(len(answers), len(golds)) <= MAX_ITEMS and all(any(_same(a, g) for a in answers) for g in golds)
            and all(any(_same(a, g) for g in golds) for a in answers))


def _intervals(node) -> list | None:
    """The intervals that an inequality, a union or an interval stands for; None for anything else"""
    low, high, opened, closed = ("neg", ("inf",)), ("inf",), "(", ")"
    if node[0] == "rel" and node[1] == "in":
        return _intervals(node[3]) if _is_name(node[2]) else None
    if node[0] == "union" or node[0] == "list" and {n[0] for n in node[1:]} == {"rel"}:
        parts = [_intervals(n) for n in node[1:]]
        return None if None in parts else sum(parts, [])
    if node[0] != "rel" or "=" in node[1].split():
        return [("seq", "(", ")", low, high)] if node == ("sym", "R") else [node] if node[0] in ("seq", "set") else None
    if len({n for n in node[2:] if _is_name(n)}) != 1 or {"<", ">"} <= set(node[1]):
        return None
    for sign, left, right in zip(node[1].split(), node[2:], node[3:]):
        limit = right if _is_name(left) else left
        if names(limit):
            return None
        if sign == "!=":
            return [("seq", "(", ")", low, limit), ("seq", "(", ")", limit, high)]
        if (sign[0] == "<") == (limit is right):
            high, closed = limit, "]" if sign[1:] else ")"
        else:
            low, opened = limit, "[" if sign[1:] else "("
    return [("seq", opened, closed, low, high)]


def _same_relation(a, g) -> bool:
    """Two relations, or one and what it names"""
    if a[0] != "rel":
        return g[1] in ("=", "in") and _is_name(g[2]) and _same(a, g[3])
    if g[0] != "rel":
        return a[1] in ("=", "in") and _is_name(a[2]) and _same(a[3], g)
    if {a[1], g[1]} <= {"=", "in"} and _is_name(a[2]) and _is_name(g[2]):
        labels = {a[2][0], g[2][0]}
        alike = a[2] == g[2] or "text" in labels or "call" in labels and ("sym", "y") in (a[2], g[2])
        if alike and _same(a[3], g[3]):
            return True
    a, g = [("rel", n[1].replace(">", "<"), *n[:1:-1]) if n[1][0] == ">" else n for n in (a, g)]
    return a[1] == g[1] != "in" and scaled(("-", *a[2:]), ("-", *g[2:]), positive=a[1][0] == "<")


def _rounding(node):
    """(half a unit, digits) of a decimal, of -1.5 and of 1.5 * 10^8; None for an exact value, and 27.0 is one"""
    if node[0] == "dec":
        return node[2:] if node[1].denominator > 1 or node[2] > 1 else None
    inner = _rounding(node[1]) if node[0] == "neg" or node[0] == "*" and node[2][:2] == ("^", ("num", 10)) else None
    return inner and (inner[0] * (value_at(node[2], {}) if node[0] == "*" else 1), inner[1])


def _same_value(a, g) -> bool:
    """Two expressions: equal, or one is such a rounding of the other as the conventions allow"""
    for kind, factor in (("%", ("num", Fraction(1, 100))), ("deg", ("/", ("pi",), ("num", Fraction(180))))):
        bare = [n[1] if n[0] == kind else n for n in (a, g)]
        if a[0] == kind or g[0] == kind:
            factored = [("*", n[1], factor) if n[0] == kind else n for n in (a, g)]
            return _same_value(*bare) or a[0] != g[0] and _same_value(*factored)
    if agree(a, g):
        return True
    rounded, given = _rounding(g), _rounding(a)
    if rounded and not (given and given[1] < max(FULL_FLOAT, rounded[1] + 3)):
        half = rounded[0]
    elif given and given[1] >= FULL_FLOAT and not rounded and g[0] != "num":
        half = 2 * given[0]  # the last digit of a float may be off
    else:
        return False
    gap = None if names(a) | names(g) else value_at(("-", a, g), {})
    return gap is not None and abs(lift(gap)[0]) <= (half if isinstance(gap, Fraction) else numerics().convert(half))


def _same(a, g) -> bool:
    """Two nodes, by their both from the outermost inward"""
    both = {a[0], g[0]}
    if a == g:
        return True
    if "unit" in both:
        bare = [n[1] if n[0] == "unit" else n for n in (a, g)]
        return (a[0] != g[0] or a[2] == g[2]) and not both & {"%", "deg"} and _same(*bare)
    several = _items(a), _items(g)
    spans = (_intervals(a), _intervals(g)) if both & {"rel", "union", "sym"} else (None, None)
    if None not in spans and (both != {"rel"} or names(a) == names(g)):
        return _matched(*spans)
    if both == {"seq"} or both == {"seq", "list"}:
        lists = [n[3:] if n[0] == "seq" else items for n, items in zip((a, g), several)]
        fits = a[1:3] == g[1:3] or "matrix" in (a[1], g[1])
        if "list" in both:  # without brackets: three or more, or x = 1, y = 2
            fits = len(lists[0]) > 2 or "rel" in (several[0][0][0], several[1][0][0])
        return fits and len(lists[0]) == len(lists[1]) and all(map(_same, *lists))
    if both & {"list", "set"} or len(several[0]) + len(several[1]) > 2:
        labels = [{n[2] for n in items if n[0] == "rel"} for items in several]
        if min(map(len, labels)) == 0 and max(map(len, labels)) > 1:  # x = 1, y = 2 against 1, 2
            return len(several[0]) == len(several[1]) and all(map(_same, *several))
        return "seq" not in both and _matched(*several)
    if "rel" in both:
        return _same_relation(a, g)
    return not both & {"text", "seq", "union"} and g[0] != "base" and _same_value(a, g)


_RATIONAL = set("num dec sym text base inf unit list set seq rel union + - * / ^ neg % call group pm mp abs floor "
                "ceil".split())


def _decide(answer: str, gold: str, cheaply: bool) -> bool | None:
    """The verdict; None where it should come cheaply but takes more than fractions. Never raises."""
    try:
        if max(len(answer), len(gold)) > 10 * MAX_CHARS:  # even cleaning takes time
            return answer.strip() == gold.strip()
        if answer.isdecimal() and gold.isdecimal() and max(len(answer), len(gold)) <= MAX_DIGITS:
            return int(answer) == int(gold)
        answer, gold = clean(answer), clean(gold)
        if (verdict := same_at_sight(answer, gold)) is not None:
            return verdict
        a, g = read(answer), read(gold)
        if "unreadable" in (a[0], g[0]):  # sums, integrals, remainders: equal as written, \sum_{k} is \sum_k
            written = [tokens(re.sub(r"\{(\w|\\[a-z]+)\}", r" \1 ", text)) for text in (answer, gold)]
            return a[0] == g[0] and written[0] == written[1]
        if cheaply and (kinds(a) | kinds(g)) - _RATIONAL:
            return None
        decimal_comma = re.fullmatch(r"-?\d+\.\d\d+", gold) and answer.replace(",", ".") == gold  # 2,74
        return bool(decimal_comma) or _same(_settled(a), _settled(g))
    except (Unreadable, ArithmeticError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return False


@lru_cache(1 << 16)
def is_equal(answer: str, gold: str) -> bool:
    """Is the answer equal to the gold one, by the conventions above? Bounded work in this process; never raises."""
    return _decide(answer, gold, cheaply=False)


# ---------------------------------------------------------------------------------------------------- worker processes
class Grader:
    """Verdicts as futures. What is cheap is decided at once; the rest goes to workers, each a fresh python with this
    file and mpmath alone, in its own process group, with a limit on memory and a deadline for every pair. A pair that
    costs a worker its life is not equal, and the next pair gets a new worker. Without a hard pair no worker starts."""

    def __init__(self, workers: int = 2, timeout: float = 5.0, memory: int = 1 << 30):
        self.timeout, self.memory = timeout, memory
        self.threads, self.idle = ThreadPoolExecutor(workers), queue.SimpleQueue()
        for _ in range(workers):
            self.idle.put(None)  # a worker that is yet to start
        self.submit = lru_cache(1 << 16)(self._submit)

    def _submit(self, answer: str, gold: str) -> Future:
        """The future verdict; `RuntimeError` from its result() where no worker can start."""
        verdict = _decide(answer, gold, cheaply=True)
        if verdict is None:
            return self.threads.submit(self._ask, answer, gold)
        future = Future()
        future.set_result(verdict)
        return future

    def _ask(self, answer: str, gold: str) -> bool:
        """In a thread: hand the pair to a worker and wait for one byte."""
        worker, reply = self.idle.get(), b""
        try:
            if worker is None or worker.poll() is not None:
                worker = _start_worker(self.timeout, self.memory)
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.write(json.dumps([answer, gold]).encode() + b"\n")
                reply = worker.stdout.read(1)  # nothing when the worker died, and it dies at the deadline
        finally:
            self.idle.put(worker if reply else _end(worker))
        return reply == b"1"

    def close(self):
        """Finishes what was submitted and ends every worker."""
        self.threads.shutdown()
        while not self.idle.empty():
            _end(self.idle.get())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def is_equal_all(pairs, workers: int = 2, timeout: float = 5.0) -> list[bool]:
    """The verdicts on many (answer, gold) pairs, in their order."""
    with Grader(workers, timeout) as grader:
        return [future.result() for future in [grader.submit(a, g) for a, g in pairs]]


_WORKER = [sys.executable, os.path.abspath(__file__), "--worker"]


def _start_worker(timeout: float, memory: int) -> subprocess.Popen:
    worker = subprocess.Popen([*_WORKER, str(timeout), str(memory)], bufsize=0, start_new_session=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if worker.stdout.read(1) != b"r":  # ready: the time to start is not the first pair's
        _end(worker)
        raise RuntimeError(f"no grading worker starts: {' '.join(worker.args)}")
    return worker


def _end(worker: subprocess.Popen | None) -> None:
    if worker is not None:
        with worker:  # closes its pipes and waits for it
            worker.kill()


def _work(timeout: float, memory: int):
    """In the worker: a pair a line from stdin, one byte a verdict to stdout, until stdin ends, as with its parent."""
    import resource
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit; the bounds on every size hold there
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    numerics()
    os.write(1, b"r")
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_REAL, timeout)  # no handler: the kernel ends the process, whatever it is doing
        verdict = is_equal(*json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(1, b"1" if verdict else b"0")


def main(arguments: list[str]):
    if len(arguments) == 3 and arguments[0] == "--worker":
        return _work(float(arguments[1]), int(arguments[2]))
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
