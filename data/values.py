"""What an expression that data/latex.py has read is worth, and when two of them are the same: `agree`, `scaled`.

Values are exact: fractions where all of the arithmetic is rational, else numbers of mpmath with 80 digits, compared to
60. Expressions with variables are compared at fixed probe points. Every size is bounded before any work is done: None,
or an error that `value_at` turns into None, stands for no value and for one too large to work with.
"""

import math
from fractions import Fraction
from functools import lru_cache, partial

from data.latex import FUNCTIONS, Unreadable

MAX_BITS = 24_000  # of a number, numerator and denominator together


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
    return a ** b if abs(b) * (abs(numerics().mag(a)) + 1) < MAX_BITS else None


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


_COMPUTE = {name: partial(_call, {"arc": "a" + name[3:], "ln": "log"}.get(name[:3], name)) for name in FUNCTIONS} | {
    "+": _add, "-": lambda a, b: _add(a, -b), "neg": lambda a: -a, "*": lambda a, b: math.prod(lift(a, b)),
    "/": lambda a, b: math.prod(lift(a, 1 / b)), "^": _power, "pow": _power, "root": _root, "group": lambda a: a,
    "%": lambda a: a / 100, "deg": lambda a: math.prod(lift(a, numerics().pi / 180)), "abs": abs, "floor": _floor,
    "ceil": lambda a: -_floor(-a), "!": _factorial, "binom": partial(_call, "binomial"), "pi": lambda: +numerics().pi,
    "e": lambda: +numerics().e, "i": lambda: numerics().mpc(0, 1),
    "base": lambda digits, base: Fraction(int(digits, int(base) or 1))}


def value_at(node, point: dict):
    """The value at one probe point: a Fraction where all of it is rational, else a number with 80 digits; None where
    there is none, or one too large to work with"""
    kind, *parts = node
    if kind in ("num", "dec", "sym"):
        return parts[0] if kind != "sym" else point.get(parts[0])
    try:
        return _bounded(_COMPUTE[kind](*[value_at(n, point) if isinstance(n, tuple) else n for n in parts]))
    except (Unreadable, ArithmeticError, ValueError, TypeError, LookupError, AttributeError):
        return None


def kinds(node) -> set:
    """The kinds of all nodes of an expression"""
    return {node[0]}.union(*(kinds(n) for n in node[1:] if isinstance(n, tuple)))


def names(node) -> set:
    """The variables of an expression"""
    return {node[1]} if node[0] == "sym" else set().union(*(names(n) for n in node[1:] if isinstance(n, tuple)))


def _points(a, g) -> list[dict]:
    """Probe points for the variables of both: above 1, below 1, each variable once negative; whole for n! and floors"""
    variables = sorted(names(a) | names(g))
    if not variables:
        return [{}]
    if (kinds(a) | kinds(g)) & {"!", "binom", "floor", "ceil"}:
        return [{n: Fraction(2 + 3 * i + j) for i, n in enumerate(variables)} for j in range(6)]
    points = [{n: Fraction(90 + 41 * i + 83 * j + 11 * i * j, (37, 247)[j % 2]) for i, n in enumerate(variables)}
              for j in range(4)]
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
