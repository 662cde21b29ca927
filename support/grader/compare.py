r"""When two answers are the same: compares the trees of latex.py by the values of values.py."""

import re

from support.grader.latex import MAX_CHARS, MAX_DIGITS, Unreadable, clean, read, same_at_sight, tokens, without_label
from support.grader.values import intervals, is_name, items, names, same_value, scaled, spread

MAX_ITEMS = 32  # of a list, a set, a matrix


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


def decide(answer: str, gold: str) -> bool:
    """Is the answer equal to the gold one, by the conventions of reward.py? Never raises."""
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
        return _same(_settled(a), _settled(g))
    except (
        Unreadable,
        ArithmeticError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        RecursionError,
        MemoryError,
    ):
        return False
