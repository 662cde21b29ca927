"""What the trees of support/grader/latex.py are worth: the elements of a list (`items`), the intervals that a relation stands for
(`intervals`), and when two expressions are the same (`same_value`, `scaled`).

Values are exact: fractions where all of the arithmetic is rational, else numbers of mpmath with 80 digits, compared to
60. Expressions with variables are compared at fixed probe points. Every size is bounded before any work is done: None,
or an error that `value_at` turns into None, stands for no value and for one too large to work with.
"""

import math
from fractions import Fraction
from functools import lru_cache, partial

from support.grader.latex import FUNCTIONS, Unreadable

REALS = ("sym", "R")
TRIGONOMETRIC = {"sin", "cos", "tan", "cot", "sec", "csc"}
MAX_BITS = 24_000  # of a number, numerator and denominator together
FULL_FLOAT = 13  # significant digits from which a decimal was surely computed


@lru_cache(1)
def numerics():
    """mpmath with 80 digits, imported when the first value needs it"""
    from mpmath.ctx_mp import MPContext  # a context of our own: the global one belongs to the caller

    context = MPContext()
    context.dps = 80
    return context


def lift(*values):
    """Fractions as they are, unless one of the values is none: then all with 80 digits"""
    return values if all(isinstance(v, Fraction) for v in values) else [numerics().convert(v) for v in values]


def _bounded(value):
    """The value, refused where its size makes further work expensive"""
    if isinstance(value, Fraction):
        return value if value.numerator.bit_length() + value.denominator.bit_length() <= MAX_BITS else None
    if isinstance(value, numerics().mpc) and abs(value.imag) <= abs(value.real) * numerics().mpf("1e-65"):
        value = value.real
    return value if value == 0 or numerics().isfinite(value) and abs(numerics().mag(value)) <= MAX_BITS else None


def _add(a, b):
    a, b = lift(a, b)
    total = a + b
    cancelled = not isinstance(total, Fraction) and abs(total) <= abs(a) * numerics().mpf("1e-65")
    return Fraction(0) if cancelled else total


def _power(a, b):
    whole = isinstance(b, Fraction) and b.denominator == 1
    if whole and isinstance(a, Fraction):
        bits = a.numerator.bit_length() + a.denominator.bit_length() - 1
        return a ** int(b) if abs(b) * bits <= MAX_BITS else None
    if a == 0:
        return Fraction(0) if isinstance(b, Fraction) and b > 0 else None
    a, b = numerics().convert(a), int(b) if whole else numerics().convert(b)
    return a**b if abs(b) * (abs(numerics().mag(a)) + 1) < MAX_BITS else None


def _root(x, index):
    odd = isinstance(index, Fraction) and index.denominator == 1 and index % 2 and not isinstance(x, numerics().mpc)
    return -_power(-x, 1 / index) if odd and x < 0 else _power(x, Fraction(1) / lift(index)[0])  # cube root of -8: -2


def _floor(x):
    return Fraction(math.floor(x) if isinstance(x, Fraction) else int(numerics().floor(x + numerics().mpf("1e-60"))))


def _call(name, x, *others):
    """A function of mpmath, where its argument is not too large and it has no pole"""
    x = numerics().convert(x)
    if numerics().mag(x) > (200 if name in ("sin", "cos", "tan", "log") else 13) or name == "log" and x == 0:
        return None
    value = getattr(numerics(), name)(x, *map(numerics().convert, others))
    if name[-3:] in ("tan", "cot", "sec", "csc") and numerics().mag(value) > 200:
        return None
    return Fraction(0) if abs(value) < numerics().mpf("1e-70") < abs(x) else value


def _factorial(n):
    return Fraction(math.factorial(int(n))) if n.denominator == 1 and 0 <= n < 2100 else None


_COMPUTE = {
    name: partial(_call, {"arc": "a" + name[3:], "ln": "log", "cis": "expj"}.get(name[:3], name)) for name in FUNCTIONS
} | {
    "+": _add,
    "-": lambda a, b: _add(a, -b),
    "neg": lambda a: -a,
    "*": lambda a, b: math.prod(lift(a, b)),
    "/": lambda a, b: math.prod(lift(a, 1 / b)),
    "^": _power,
    "pow": _power,
    "root": _root,
    "group": lambda a: a,
    "%": lambda a: a / 100,
    "deg": lambda a: math.prod(lift(a, numerics().pi / 180)),
    "abs": abs,
    "floor": _floor,
    "ceil": lambda a: -_floor(-a),
    "!": _factorial,
    "binom": partial(_call, "binomial"),
    "pi": lambda: +numerics().pi,
    "e": lambda: +numerics().e,
    "i": lambda: numerics().mpc(0, 1),
    "base": lambda digits, base: Fraction(int(digits, int(base) or 1)),
}


def value_at(node, point: dict):
    """The value at one probe point: a Fraction where all of it is rational, else a number with 80 digits; None where
    there is none, or one too large to work with"""
    kind, *parts = node
    if kind in ("num", "dec"):
        return parts[0]
    if kind in ("sym", "call"):
        return point.get(str(node) if kind == "call" else parts[0])
    try:
        return _bounded(_COMPUTE[kind](*[value_at(n, point) if isinstance(n, tuple) else n for n in parts]))
    except (Unreadable, ArithmeticError, ValueError, TypeError, LookupError, AttributeError):
        return None


def kinds(node) -> set:
    """The kinds of all nodes of an expression"""
    return {node[0]}.union(*(kinds(n) for n in node[1:] if isinstance(n, tuple)))


def spread(node):
    """Multiples and sums of matrices as one matrix of expressions"""
    kind, *parts = node
    grids = [n for n in parts if isinstance(n, tuple) and n[:2] == ("seq", "matrix")]
    if kind in ("+", "-") and len(grids) == 2 and len(grids[0]) == len(grids[1]):
        return (*grids[0][:3], *(spread((kind, *cells)) for cells in zip(grids[0][3:], grids[1][3:])))
    if len(grids) == 1 and kind in ("*", "neg") or kind == "/" and grids == parts[:1]:
        return (*grids[0][:3], *(spread((kind, *(cell if n in grids else n for n in parts))) for cell in grids[0][3:]))
    return node


def names(node) -> set:
    """The variables of an expression; f(x) is one"""
    if node[0] == "call":
        return {str(node)}
    return {node[1]} if node[0] == "sym" else set().union(*(names(n) for n in node[1:] if isinstance(n, tuple)))


def is_name(node) -> bool:
    """May it stand left of = as a mere label? x, f(x), AB, |AB|, AB : CD, (p, q), Area, sin A"""
    if node[0] == "seq":
        return all(map(is_name, node[3:]))
    if node[0] in TRIGONOMETRIC:
        return is_name(node[1])
    capitals = kinds(node) <= {"*", "/", "abs", "sym"} and all(n[0].isupper() for n in names(node))
    inverse = node[0] == "*" and node[1][2:] == (("neg", ("num", 1)),) and node[2][0] == "group"  # f^{-1}(x)
    return capitals or inverse or node[0] in ("sym", "text", "call", "group")


def signed(node, sign: int):
    r"""The node with the upper (1) or lower (-1) sign of each \pm and \mp"""
    if node[0] in ("pm", "mp"):
        node = ("+" if (node[0] == "pm") == (sign > 0) else "-", *node[1:])
    return tuple(signed(n, sign) if isinstance(n, tuple) else n for n in node)


def items(node) -> list:
    r"""The elements of a list or a set: 1 \pm 2 are two of them, x = 1, 2 is x = 1, x = 2"""
    if node[0] in ("list", "set"):
        parts = [item for n in node[1:] for item in items(n)]
        if parts and parts[0][:2] == ("rel", "=") and "rel" not in {n[0] for n in parts[1:]}:
            parts[1:] = [("rel", "=", parts[0][2], n) for n in parts[1:]]
        return parts
    if node[0] == "rel" and node[1] in ("=", "in") and node[3][0] in ("list", "set"):
        return [("rel", "=", node[2], item) for item in items(node[3])]
    return [signed(node, 1), signed(node, -1)] if kinds(node) & {"pm", "mp"} else [node]


def _outside(points) -> list:
    """The real line without some points"""
    ends = [("neg", ("inf",)), *sorted(points, key=lambda point: float(value_at(point, {}))), ("inf",)]
    return [("seq", "(", ")", low, high) for low, high in zip(ends, ends[1:])]


def _excluded(node) -> list | None:
    r"""The points that are left out by x \ne 1, x \ne \pm 1, x \ne 1 and x \ne 2, R without {1, 2}; None for others"""
    if node[:2] == ("-", REALS):
        points = items(node[2]) if node[2][0] in ("set", "list") else []
    else:
        parts = [n for n in (node[1:] if node[0] == "list" else [node]) if n[:2] != ("rel", "in") or n[3] != REALS]
        relations = [n for n in parts if n[0] == "rel"]
        if not parts or parts[0] not in relations or {n[1:3] for n in relations} != {("!=", parts[0][2])}:
            return None
        points = [point for n in parts for point in items(n[3] if n[0] == "rel" else n)]
    return None if any(map(names, points)) else points


def _bounded_by(node) -> list | None:
    """The intervals of |x| < 1, |x| > 1"""
    _, sign, (_, inner), limit = node
    if sign[0] == "<":
        return intervals(("rel", f"{sign} {sign}", ("neg", limit), inner, limit))
    return intervals(("list", node[:2] + (inner, limit), ("rel", sign.replace(">", "<"), inner, ("neg", limit))))


def _both(parts) -> list:
    """x > 1, x < 2 are meant together; x < 1, x > 2 cannot be and stay a union"""
    low, high = sorted(parts, key=lambda part: part[4] != ("inf",))
    halves = low[4] == ("inf",) and high[3] == ("neg", ("inf",)) and ("inf",) not in (low[3][-1], high[4])
    meet = halves and float(value_at(low[3], {})) < float(value_at(high[4], {}))
    return [("seq", low[1], high[2], low[3], high[4])] if meet else parts


def intervals(node) -> list | None:
    """The intervals that an inequality, a union or an interval stands for; None for anything else"""
    low, high, opened, closed = ("neg", ("inf",)), ("inf",), "(", ")"
    if points := _excluded(node):
        return _outside(points)
    if node[0] == "rel" and node[1] == "in":
        return intervals(node[3]) if is_name(node[2]) else None
    if node[0] == "union" or node[0] == "list" and {n[0] for n in node[1:]} == {"rel"}:
        parts = [intervals(n) for n in node[1:]]
        parts = None if None in parts else sum(parts, [])
        return _both(parts) if parts and node[0] == "list" and len(parts) == 2 else parts
    if node[0] == "rel" and node[1] in ("<", "<=", ">", ">=") and node[2][0] == "abs" and is_name(node[2][1]):
        return _bounded_by(node)
    if node[0] != "rel" or "=" in node[1].split():
        return _outside([]) if node == REALS else [node] if node[0] in ("seq", "set") else None
    if len({n for n in node[2:] if is_name(n)}) != 1 or {"<", ">"} <= set(node[1]):
        return None
    for sign, left, right in zip(node[1].split(), node[2:], node[3:]):
        limit = right if is_name(left) else left
        if names(limit):
            return None
        if (sign[0] == "<") == (limit is right):
            high, closed = limit, "]" if sign[1:] else ")"
        else:
            low, opened = limit, "[" if sign[1:] else "("
    return [("seq", opened, closed, low, high)]


def _points(a, g) -> list[dict]:
    """Probe points for the variables of both: above 1, below 1, each variable once negative; whole for n! and floors"""
    variables = sorted(names(a) | names(g))
    if not variables:
        return [{}]
    if (kinds(a) | kinds(g)) & {"!", "binom", "floor", "ceil"}:
        return [{n: Fraction(2 + 3 * i + j) for i, n in enumerate(variables)} for j in range(6)]
    points = [
        {n: Fraction(90 + 41 * i + 83 * j + 11 * i * j, (37, 247)[j % 2]) for i, n in enumerate(variables)}
        for j in range(4)
    ]
    return points + [{**points[k % 2], n: -points[k % 2][n]} for k, n in enumerate(variables[:4])]


def _close(x, y) -> bool:
    x, y = lift(x, y)
    return x == y if isinstance(x, Fraction) else abs(x - y) <= numerics().mpf("1e-60") * max(abs(x), abs(y))


def agree(a, g) -> bool:
    """Equal at every point where both are real; at every point where both have a value, if hardly any is real."""
    points = _points(a, g)
    pairs = [pair for point in points if None not in (pair := (value_at(a, point), value_at(g, point)))]
    real = [pair for pair in pairs if not any(v.imag for v in pair)]
    if len(real) < min(2, len(points)):
        real = pairs if len(pairs) > len(real) else []
    return bool(real) and all(_close(x, y) for x, y in real)


def scaled(a, g, positive: bool) -> bool:
    """a = factor * g, the factor not zero or even positive: two equations or inequalities"""
    factor = next((r for point in _points(a, g) if (r := value_at(("/", a, g), point))), 0) if names(g) else 0
    return (factor > 0 if positive else factor != 0) and agree(a, ("*", ("num", factor), g))


def _rounding(node):
    """(half a unit, digits) of a decimal, of -1.5 and of 1.5 * 10^8; None for an exact value, and 27.0 is one"""
    if node[0] == "dec":
        return node[2:] if node[1].denominator > 1 or node[2] > 1 else None
    inner = _rounding(node[1]) if node[0] == "neg" or node[0] == "*" and node[2][:2] == ("^", ("num", 10)) else None
    return inner and (inner[0] * (value_at(node[2], {}) if node[0] == "*" else 1), inner[1])


def same_value(a, g) -> bool:
    """Two expressions: equal, or one is such a rounding of the other as the conventions allow"""
    for kind, factor in (("%", ("num", Fraction(1, 100))), ("deg", ("/", ("pi",), ("num", Fraction(180))))):
        bare = [n[1] if n[0] == kind else n for n in (a, g)]
        if a[0] == kind or g[0] == kind:
            factored = [("*", n[1], factor) if n[0] == kind else n for n in (a, g)]
            return same_value(*bare) or a[0] != g[0] and agree(*factored)
    if agree(a, g):
        return True
    rounded, given = _rounding(g), _rounding(a)
    gap = None if not (rounded or given) or names(a) | names(g) else value_at(("-", a, g), {})
    if gap is None:
        return False
    gap, size = map(abs, lift(gap, value_at(g, {})))
    if given and given[1] >= FULL_FLOAT and not rounded and g[0] != "num":
        return gap <= lift(gap, 2 * given[0])[1]  # the last digit of a float may be off
    if not rounded or given and given[1] < max(FULL_FLOAT, rounded[1] + 3):
        return False
    if given and rounded[1] < 5 and size / 10**13 < gap < size / 500_000:  # no rounding makes 2.5 of 2.500002500000
        return False
    if not given and rounded[0] > Fraction(1, 200) and rounded[1] < 3:  # so short, it is exact
        return False
    cut = not given and rounded[1] >= 5 and value_at(("/", a, g), {}) > 1  # a long decimal may be cut off instead
    return gap <= lift(gap, (1 + cut) * rounded[0])[1]
