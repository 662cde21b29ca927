r"""Several values: the items of a list, and sets of real numbers (an inequality, an interval, a union, "all but 2").

Two sets are equal when they have the same members among the numbers that are written in either, those just below and
just above each of these, and a grid. One of the two must show all its ends, as (1, 2] and x > 3 do: where the other one
has no such end, or one more, they differ on one side of it.
"""

from fractions import Fraction

from support.grader.latex import Unreadable
from support.grader.values import MP, Values, close, kinds, lift, names, walk

CONTAINERS = {"list", "set", "seq", "union", "rel"}
ORDER = {"<", "<=", ">", ">=", "!=", "=="}
REALS, X = ("sym", "R"), ("sym", "x")
FAR = {"infinity": Fraction(10) ** 7_000}  # nearly the largest number that a value may be
GRID = [Fraction(k, 2) for k in (0, *range(-21, 22))]
MAX_NUMBERS = 50


def signed(node, sign: int):
    r"""The node with the upper (1) or lower (-1) sign of each \pm and \mp"""
    if node[0] in ("pm", "mp"):
        node = ("+" if (node[0] == "pm") == (sign > 0) else "-", *node[1:])
    return tuple(signed(n, sign) if isinstance(n, tuple) else n for n in node)


def items(node) -> list:
    r"""The elements of a list or a set: 1 \pm 2 are two of them, x = 1, 2 is x = 1, x = 2; x = y = 1 is x = 1, y = 1"""
    if node[0] in ("list", "set"):
        parts = [item for n in node[1:] for item in items(n)]
        if parts and parts[0][:2] == ("rel", "=") and "rel" not in {n[0] for n in parts[1:]}:
            parts[1:] = [("rel", "=", parts[0][2], n) for n in parts[1:]]
        return parts
    if node[0] == "rel" and node[1] in ("=", "in") and (node[2][0] == "names" or node[3][0] in ("list", "set")):
        labels = node[2][1:] if node[2][0] == "names" else [node[2]]
        return [("rel", "=", label, item) for label in labels for item in items(node[3])]
    return [signed(node, 1), signed(node, -1)] if kinds(node) & {"pm", "mp"} else [node]


def _numbers(node) -> list:
    """All numbers that are written in a node"""
    if node[0] in CONTAINERS or names(node):
        return [m for n in node[1:] if isinstance(n, tuple) for m in _numbers(n)]
    return items(node)


def _holds(sign: str, x, y) -> bool:
    if x is None or y is None or x.imag or y.imag:
        return False
    if close(x, y):
        return sign in ("<=", ">=", "==")
    x, y = lift(x, y)
    return sign == "!=" or sign[0] == ("<" if x < y else ">")


def _members(node, points: list, values: Values) -> list[bool]:
    """Which of the points are in the set; Unreadable for what is no set of real numbers"""
    kind, *parts = node
    if kind == "rel" and parts[0] == "in":
        return _members(parts[2], points, values)
    if kind == "seq" and len(parts) == 4 and parts[0] in "([" and parts[1] in ")]" and not names(node):
        low, high = "<" + "=" * (parts[0] == "["), "<" + "=" * (parts[1] == "]")
        kind, parts = "rel", [f"{low} {high}", parts[2], X, parts[3]]
    elif kind == "-" and parts[0] == REALS:
        kind, parts = "rel", ["!=", X, parts[1]]
    elif kind == "set":
        kind, parts = "union", [("rel", "==", X, n) for n in items(node)]
    elif kind == "list" and parts[0][:2] == ("rel", "!="):  # x != 1, 2 is x != 1, x != 2
        parts = [n if n[0] == "rel" else (*parts[0][:3], n) for n in parts]
    if kind == "rel" and parts[0] == "!=" and len(items(parts[2])) > 1:
        kind, parts = "all", [("rel", "!=", parts[1], n) for n in items(parts[2])]
    if node == REALS:
        return [True] * len(points)
    variables = names((kind, *parts))
    if kind == "rel" and len(variables) == 1 and (signs := parts[0].split()) and ORDER.issuperset(signs):
        rows = [[values.evaluate(n, dict.fromkeys(variables, x) | FAR) for n in parts[1:]] for x in points]
        return [all(map(_holds, signs, row, row[1:])) for row in rows]
    if kind not in ("all", "union", "list") or len(variables - {"R"}) > 1 or kind == "list" and parts[0][0] != "rel":
        raise Unreadable("no set of real numbers")
    rows = list(zip(*(_members(part, points, values) for part in parts)))
    every, some = [all(row) for row in rows], [any(row) for row in rows]
    return every if kind == "all" or kind == "list" and any(every) else some  # x > 1 and x < 2, but x < 1 or x > 2


def same_set(a, g, values: Values) -> bool | None:
    """None where one of the two is no set of real numbers"""
    relations = [[n for n in walk(node) if n[0] == "rel"] for node in (a, g)]
    shown = [all(n[0] == "sym" or not names(n) for relation in part for n in relation[2:]) for part in relations]
    written = [values.at(n) for n in _numbers(a) + _numbers(g)]
    if not any(shown) or len(written) > MAX_NUMBERS:
        return None
    written = [v if isinstance(v, Fraction) else Fraction(MP.nstr(v, 70)) for v in written if v and not v.imag]
    near = [v + sign * abs(v) / 10**20 for v in written for sign in (-1, 0, 1)]
    try:
        members = [_members(node, near + (GRID[:1] if all(shown) else GRID), values) for node in (a, g)]
    except Unreadable:
        return None
    return members[0] == members[1] and any(members[0])
