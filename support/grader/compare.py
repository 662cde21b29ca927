r"""When two answers are the same: compares the trees of latex.py from the root down, by the kinds of their nodes."""

import re
from fractions import Fraction

from support.grader.latex import FUNCTIONS, MAX_CHARS, Unreadable, clean, read, tokens
from support.grader.values import MP, Values, close, kinds, lift, names, walk
from support.grader.words import choice, same_at_sight

MAX_ITEMS, MAX_NODES = 32, 100  # of a list or a matrix; of the trees of two sets
CONTAINERS = {"list", "both", "set", "seq", "union", "rel"}
LABELS = {"sym", "text", "seq", "+", "-", "*", "/", "sin", "cos", "tan"}  # the kinds that make up a name
ORDER = {"<", "<=", ">", ">=", "!="}
REALS = ("sym", "R")
FAR = {"infinity": Fraction(10) ** 7_000}  # nearly the largest number that a value may be
GRID = [Fraction(k, 2) for k in range(-20, 21)]  # GRID[::10] is -10, -5, 0, 5, 10


# ------------------------------------------------------------------------------------------------- parts of an answer
def is_label(node) -> bool:
    r"""May it be left out before an equals sign? x, f(x), AB, |AB|, AB/BC, (p, q), Area, m + n, \sin A; not x + x"""
    letters = [n[1] for n in walk(node) if n[0] == "sym"]
    points = all(letter[0].isupper() for letter in letters)  # |AB| is a length, |x| is not x
    return kinds(node) <= LABELS | ({"abs"} if points else set()) and (points or len(set(letters)) == len(letters))


def signed(node, sign: int):
    r"""The node with the upper (1) or lower (-1) sign of each \pm and \mp"""
    if node[0] in ("pm", "mp"):
        node = ("+" if (node[0] == "pm") == (sign > 0) else "-", *node[1:])
    return tuple(signed(n, sign) if isinstance(n, tuple) else n for n in node)


def without_units(node, everywhere: bool):
    """5 of 5 cm; everywhere, also 180 - 2a of 180° - 2a"""
    if node[0] == "unit":
        return node[1]
    return tuple(without_units(n, True) if isinstance(n, tuple) else n for n in node) if everywhere else node


def items(node) -> list:
    r"""The elements of a list or a set: 1 \pm 2 are two of them, x = 1, 2 is x = 1, x = 2; x = y = 1 is x = 1, y = 1"""
    if node[0] in ("list", "set"):
        parts = [item for n in node[1:] for item in items(n)]
        if parts and parts[0][:2] in (("rel", "="), ("rel", "!=")) and "rel" not in {n[0] for n in parts[1:]}:
            parts[1:] = [(*parts[0][:3], n) for n in parts[1:]]
        return parts
    if node[0] == "rel" and node[1] in ("=", "in", "!=") and (node[-1][0] in ("list", "set", "pm") or len(node) > 4):
        return [("rel", node[1].replace("in", "="), name, item) for name in node[2:-1] for item in items(node[-1])]
    return [signed(node, 1), signed(node, -1)] if kinds(node) & {"pm", "mp"} else [node]


# ---------------------------------------------------------------------------------------------- sets of real numbers
def holds(sign: str, x, y) -> bool:
    if x is None or y is None or x.imag or y.imag:
        return False
    if close(x, y):
        return sign in ("<=", ">=", "==")
    x, y = lift(x, y)
    return sign == "!=" or sign[0] == ("<" if x < y else ">")


class Comparison(Values):
    """One answer beside one gold answer"""

    def contains(self, node, x: Fraction, variable: str) -> bool:
        """Is a number in a set of real numbers: an inequality, an interval, a union, a difference?"""
        kind, *parts = node
        if kind == "rel" and parts[0] == "in":
            return self.contains(parts[2], x, variable)
        if kind in ("both", "union"):
            return (all if kind == "both" else any)([self.contains(n, x, variable) for n in parts])
        if kind == "set":
            return any(holds("==", x, self.at(n)) for n in items(node))
        if kind == "-":
            return self.contains(parts[0], x, variable) and not self.contains(parts[1], x, variable)
        if kind == "seq" and len(parts) == 4 and parts[0] in "([" and parts[1] in ")]" and not names(node):
            low, high = (self.evaluate(n, FAR) for n in parts[2:])
            return all(holds("<=" if end in "[]" else "<", *gap) for end, gap in zip(parts, ((low, x), (x, high))))
        if kind == "rel" and ORDER.issuperset(signs := parts[0].split()):
            row = [self.evaluate(n, {variable: x, **FAR}) for n in parts[1:]]
            return all(map(holds, signs, row, row[1:]))
        if node == REALS:
            return True
        raise Unreadable("no set of real numbers")

    def members(self, node, points: list) -> list[bool]:
        """Which of the points are in a set; x > 1, x < 2 is both"""
        parts, variables = items(node), names(node) - {"R"}
        if len(parts) > 1 and parts[0][0] == "rel":
            node = ("both", *parts)
        if len(variables) > 1 or not variables and "rel" in kinds(node):
            raise Unreadable("no relation of one variable")
        return [self.contains(node, x, min(variables, default="")) for x in points]

    def same_set(self, a, g) -> bool | None:
        """Do two sets have the same members at, below and above every number written in either, and on a grid? One of
        them must show its ends, as (1, 2] and x > 3 do, but |x| < 2 does not. None where one is not a set."""
        nodes = [n for node in (a, g) for n in walk(("list", *items(node)))]
        shown = [all(s[0] == "sym" or not names(s) for n in walk(x) if n[0] == "rel" for s in n[2:]) for x in (a, g)]
        if not any(shown) or len(nodes) > MAX_NODES:
            return None
        parts = [part for n in nodes if n[0] in CONTAINERS or names(n) for part in n[1:] if isinstance(part, tuple)]
        written = {v for v in (self.at(part) for part in parts if not names(part)) if v and not v.imag}
        written = [v if isinstance(v, Fraction) else Fraction(MP.nstr(v, 70)) for v in written]
        near = [v + k * abs(v) / 10**20 for v in written for k in (-1, 0, 1)]
        try:
            members = [self.members(node, near + (GRID[::10] if all(shown) else GRID)) for node in (a, g)]
        except Unreadable:
            return None
        return members[0] == members[1] and any(members[0])

    def settled(self, node):
        """Every chain of = and \\approx as names = value, one value or one equation; each of its links must hold."""
        node = tuple(self.settled(n) if isinstance(n, tuple) else n for n in node)
        if node[0] != "rel" or not set(signs := node[1].split()) <= {"=", "approx"}:
            return node
        if len(set(node[2:])) < len(node[2:]):
            raise Unreadable("a tautology")
        labels = [n for n in node[2:] if is_label(n)]
        values = [n for n in node[2:] if not is_label(n)] or [labels.pop()]
        if not labels and len(values) == 2 and signs == ["="] and names(node):
            return node  # 2x + y = 3
        for value in values[1:]:
            if not self.same(value, values[0]) and not ("approx" in signs and self.same(values[0], value)):
                raise Unreadable("a chain of equalities that does not hold")
        if len(labels) == 1 and labels[0][0] == values[0][0] == "seq" and len(labels[0]) == len(values[0]):
            return ("list", *(("rel", "=", *pair) for pair in zip(labels[0][3:], values[0][3:])))  # (x, y) = (1, 2)
        return ("rel", "=", *sorted(labels, key=str), values[0]) if labels else values[0]

    def same(self, a, g) -> bool:
        """Two settled nodes, by their kinds from the outermost inward"""
        a, g = (n[1] if n[0] == "set" and len(n) == 2 else n for n in (a, g))  # {5} is 5
        both, inside = {a[0], g[0]}, kinds(a) | kinds(g)
        if a == g:
            return True
        if "unit" in inside and not both & CONTAINERS:
            return self.same_quantity(a, g)
        sets = both & {"rel", "union", "list", "both"} or REALS in (a, g, *a[1:2], *g[1:2])
        if sets and (both != {"rel"} or names(a) == names(g)) and (verdict := self.same_set(a, g)) is not None:
            return verdict
        if inside & {"pm", "mp"} or both & {"list", "set"} or both == {"seq"}:
            return self.same_items(a, g)
        if "rel" in both:
            return self.same_relation(a, g)
        return not both & CONTAINERS and "text" not in both and g[0] != "base" and self.same_number(a, g)

    def same_quantity(self, a, g) -> bool:
        """A unit may be left out, but not exchanged; percent and degrees are units or factors."""
        found = {n[2] for side in (a, g) for n in walk(side) if n[0] == "unit"}
        inside = kinds(a) | kinds(g)
        degrees = found == {"deg"} and "sym" in inside and not inside & {"^", *FUNCTIONS}  # 180 - 2a, but not sin 30
        inner = [without_units(n, everywhere=degrees) for n in (a, g)]
        omitted = inner != [a, g] and self.same(*inner)
        products = [("*", n[1], read(n[2])) if n[0] == "unit" else n for n in (a, g)]  # 12 m/s without \text
        return len(found) == 1 and (omitted or self.agree(a, g) or self.agree(*products))  # 28 and 0.28 are 28%

    def same_items(self, a, g) -> bool:
        r"""Tuples, intervals, matrices in order; lists, sets, \pm in any order, and a name in front of each may go"""
        both = {a[0], g[0]}
        ordered = both in ({"seq"}, {"seq", "list"}) and not (kinds(a) | kinds(g)) & {"pm", "mp"}
        lists = [n[3:] if ordered and n[0] == "seq" else items(n) for n in (a, g)]
        named = [{n[2] for n in parts if n[0] == "rel"} for parts in lists]
        ambiguous = "list" in both and len(lists[0]) < 3 and not any(named)  # 1, 2 may be an interval or a pair
        brackets = "list" not in both and a[1:3] != g[1:3] and "matrix" not in (a[1], g[1])
        if ordered and (ambiguous or brackets) or max(map(len, lists)) > MAX_ITEMS:
            return False
        if ordered or not all(named) and max(map(len, named)) > 1:  # x = 1, y = 2 against 1, 2
            return len(lists[0]) == len(lists[1]) and all(map(self.same, *lists))
        answers, golds = lists
        matched = [any(self.same(a, g) for a in answers) for g in golds]
        return all(matched) and all(any(self.same(a, g) for g in golds) for a in answers)

    def same_relation(self, a, g) -> bool:
        """Two relations, or one and what it names"""
        relations = [n for n in (a, g) if n[0] == "rel"]
        named = all(n[1] in ("=", "in") and is_label(n[2]) for n in relations)
        alike = len(relations) == 1 or a[2:-1] == g[2:-1] or "text" in (a[2][0], g[2][0])
        curve = a[0] != "rel" and g[2][0] in ("+", "-", "*", "/") and names(g[2]) & {"x", "y", "z"}  # not m + n = 1
        if named and alike and not curve and self.same(*(n[-1] if n[0] == "rel" else n for n in (a, g))):
            return True
        gaps = [("-", *n[2:]) for n in relations if n[1] == "="]
        factor = len(gaps) > 1 and self.at(("/", *gaps))  # 2x + 2y = 2 is x + y = 1
        return bool(factor) and self.agree(gaps[0], ("*", ("num", factor), gaps[1]))


def decide(answer: str, gold: str) -> bool:
    """Is the answer equal to the gold one, by the conventions of docs/grader.md? Never raises."""
    try:
        if max(len(answer), len(gold)) > 4 * MAX_CHARS:  # even cleaning takes time
            return answer == gold
        answer, gold = clean(answer), clean(gold)
        (letter, rest), (letter_of_gold, rest_of_gold) = choice(answer), choice(gold)
        alike = letter_of_gold and letter_of_gold in (letter, letter.upper() if letter in "abcde" else letter)
        if alike and not (rest and rest_of_gold):  # (B) 27 is B
            return True
        lettered = alike or bool(letter) != bool(letter_of_gold)  # (B) 27 is 27, but not (C) 27
        return _same_text(answer, gold) or lettered and _same_text(rest, rest_of_gold)
    except Exception:  # no texts, or too much work: whatever goes wrong, it is not equal
        return False


def _same_text(answer: str, gold: str) -> bool:
    if (verdict := same_at_sight(answer, gold)) is not None:
        return verdict
    a, g = read(answer), read(gold)
    if "unreadable" in (a[0], g[0]):  # sums, integrals, remainders: equal as written, \sum_{k} is \sum_k
        written = [tokens(re.sub(r"\{(\w|\\[a-z]+)\}", r" \1 ", text)) for text in (answer, gold)]
        return a[0] == g[0] and written[0] == written[1]
    comparison = Comparison(a, g)
    return comparison.same(comparison.settled(a), comparison.settled(g))
