r"""Sets of real numbers: an inequality, an interval, a union, "all but 2".

Two of them are equal when they have the same members among the numbers that are written in either, those just below and
just above each of these, and a grid. One of the two must show all its ends, as (1, 2] and x > 3 do: where the other one
has no such end, or one more, they differ on one side of it.
"""

from fractions import Fraction

from support.grader.latex import Unreadable
from support.grader.values import Values, close, items, lift, names, numerics

REALS, INFINITY, X = ("sym", "R"), ("inf",), ("sym", "x")
GRID = [Fraction(k, 2) for k in (0, *range(-21, 22))]
MAX_CONDITIONS = 24


def _conditions(node) -> tuple:
    """The set as ("all", ...) or ("any", ...) of conditions (sign, left, right); ("list", ...) may be all or any"""
    kind, *parts = node
    if kind == "rel" and parts[0] == "in":
        return _conditions(parts[2])
    if kind == "rel" and len(names(node)) == 1:
        signs, parts = parts[0].split(), parts[1:]
        if signs == ["!="]:
            return ("all", *(("!=", parts[0], n) for n in items(parts[1])))
        if {"<", "<="}.issuperset(signs) or {">", ">="}.issuperset(signs):
            conditions = zip(signs, parts, parts[1:])
            return ("all", *(c for c in conditions if INFINITY not in c and ("neg", INFINITY) not in c))
    if kind == "seq" and len(parts) == 4 and parts[0] in ("(", "[") and parts[1] in (")", "]") and not names(node):
        low, high = "<" + "=" * (parts[0] == "["), "<" + "=" * (parts[1] == "]")
        return _conditions(("rel", f"{low} {high}", parts[2], X, parts[3]))
    if kind == "union":
        return ("any", *map(_conditions, parts))
    if kind == "list" and parts[0][0] == "rel" and len(names(node) - {"R"}) == 1:
        first = parts[0][:3]  # x != 1, 2 is x != 1, x != 2
        return ("list", *(_conditions((*first, n) if n[0] != "rel" and first[1] == "!=" else n) for n in parts))
    if kind == "set" and not names(node):
        return ("any", *(("=", X, n) for n in items(node)))
    if kind == "-" and parts[0] == REALS and not names(parts[1]):
        return ("all", *(("!=", X, n) for n in items(parts[1])))
    if node == REALS:
        return ("all",)
    raise Unreadable("no set of real numbers")


def _leaves(tree) -> list:
    return [leaf for part in tree[1:] for leaf in _leaves(part)] if tree[0] in ("all", "any", "list") else [tree]


def _numbers(node) -> list:
    """All numbers that are written in a node"""
    return [m for n in node[1:] if isinstance(n, tuple) for m in _numbers(n)] if names(node) else [node]


def _holds(sign: str, x, y) -> bool:
    if x is None or y is None or x.imag or y.imag:
        return False
    if close(x, y):
        return sign in ("<=", ">=", "=")
    x, y = lift(x, y)
    return sign == "!=" or sign[0] == ("<" if x < y else ">")


def _members(tree, points: list, values: Values) -> list[bool]:
    """Which of the points are in the set"""
    kind, *parts = tree
    if kind not in ("all", "any", "list"):
        sides = [[values.evaluate(n, dict.fromkeys(names(n), x)) for x in points] for n in parts]
        return [_holds(kind, left, right) for left, right in zip(*sides)]
    rows = list(zip(*(_members(part, points, values) for part in parts))) or [()] * len(points)
    every, some = [all(row) for row in rows], [any(row) for row in rows]
    return every if kind == "all" or kind == "list" and any(every) else some  # x > 1 and x < 2, but x < 1 or x > 2


def same_set(a, g, values: Values) -> bool | None:
    """None where one of the two is no set of real numbers"""
    try:
        trees = [_conditions(a), _conditions(g)]
    except Unreadable:
        return None
    leaves = [_leaves(tree) for tree in trees]
    shown = [all(n[0] in ("sym", "call") or not names(n) for leaf in part for n in leaf[1:]) for part in leaves]
    if not any(shown) or sum(map(len, leaves)) > MAX_CONDITIONS:
        return None
    written = [values.at(n) for leaf in sum(leaves, []) for side in leaf[1:] for n in _numbers(side)]
    written = [v if isinstance(v, Fraction) else Fraction(numerics().nstr(v, 70)) for v in written if v and not v.imag]
    near = [v + sign * abs(v) / 10**20 for v in written for sign in (-1, 0, 1)]
    members = [_members(tree, near + (GRID[:1] if all(shown) else GRID), values) for tree in trees]
    return members[0] == members[1] and any(members[0])
