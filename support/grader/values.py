"""The value of an expression: a fraction where all of it is rational, else a number of mpmath with 80 digits.

Expressions with variables have values at fixed probe points. The work is bounded twice: every number that comes out
of an operation has a limited size, and `Values` counts what it does for one pair of answers and gives up at MAX_WORK.
"""

import math
import operator
from fractions import Fraction
from functools import partial

from mpmath.ctx_mp import MPContext

from support.grader.latex import FUNCTIONS, Unreadable

MAX_BITS = 24_000  # of a number, numerator and denominator together
MAX_WORK = 2_500  # for one pair, in units of about 10 microseconds
FULL_FLOAT = 13  # significant digits from which a decimal was surely computed
MP = MPContext()  # a context of our own: the global one belongs to the caller
MP.dps = 80
FACTORS = {"%": Fraction(1, 100), "deg": MP.pi / 180}  # the units that have a value


def walk(node) -> list:
    """A node and all nodes in it"""
    return [node] + [n for part in node[1:] if isinstance(part, tuple) for n in walk(part)]


def kinds(node) -> set:
    return {n[0] for n in walk(node)}


def names(node) -> set:
    """The variables of an expression; f(x) is one, infinity is none"""
    return {n[1] for n in walk(node) if n[0] == "sym"} - {"infinity"}


def _real(value):
    """A number of mpmath; its own conversion of large fractions is slow"""
    return MP.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def lift(*values):
    """Fractions as they are, unless one of the values is not a fraction: then all with 80 digits"""
    return values if all(isinstance(v, Fraction) for v in values) else [_real(v) for v in values]


def close(x, y) -> bool:
    """Equal as fractions, or to 60 digits"""
    x, y = lift(x, y)
    return x == y if isinstance(x, Fraction) else abs(x - y) <= MP.mpf("1e-60") * max(abs(x), abs(y))


# ------------------------------------------------------------------------------------- operations, each of bounded size
def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _bounded(value):
    """The value; None where its size makes further work expensive. A real or imaginary part that is negligible beside
    the other one becomes 0: mpmath shifts by the difference of their exponents."""
    if isinstance(value, Fraction):
        return value if _bits(value) <= MAX_BITS else None
    tiny = MP.mpf("1e-65")
    if isinstance(value, MP.mpc):
        if abs(value.imag) <= abs(value.real) * tiny:
            value = value.real
        elif abs(value.real) <= abs(value.imag) * tiny:
            value = MP.mpc(0, value.imag)
    return value if value == 0 or MP.isfinite(value) and abs(MP.mag(value)) <= MAX_BITS else None


def _add(a, b):
    a, b = lift(a, b)
    total = a + b
    if isinstance(total, Fraction):
        return total
    low, high = sorted((abs(a), abs(b)))
    if 0 < low <= high * MP.mpf("1e-60"):
        return None  # the smaller one is lost
    return Fraction(0) if abs(total) <= high * MP.mpf("1e-65") else total


def _power(a, b):
    whole = isinstance(b, Fraction) and b.denominator == 1
    if whole and isinstance(a, Fraction):
        return a ** int(b) if abs(b) * (_bits(a) - 1) <= MAX_BITS else None
    if a == 0:
        return Fraction(0) if isinstance(b, Fraction) and b > 0 else None
    a, b = _real(a), int(b) if whole else _real(b)
    return a**b if abs(b) * (abs(MP.mag(a)) + 1) < MAX_BITS else None


def _root(x, index):
    odd = isinstance(index, Fraction) and index.denominator == 1 and index % 2 and not isinstance(x, MP.mpc)
    return -_power(-x, 1 / index) if odd and x < 0 else _power(x, 1 / index)  # cube root of -8: -2


def _floor(x):
    return Fraction(math.floor(x) if isinstance(x, Fraction) else int(MP.floor(x + MP.mpf("1e-60"))))


def _call(name, x):
    """A function of mpmath, where its argument is not too large and it has no pole"""
    x = _real(x)
    if x == 0 and name == "log" or x != 0 and MP.mag(x) > (200 if name in ("sin", "cos", "tan", "log") else 13):
        return None
    value = getattr(MP, name)(x)
    if name[-3:] in ("tan", "cot", "sec", "csc") and MP.mag(value) > 200:
        return None
    vanishes = name != "exp" and abs(value) < MP.mpf("1e-70") < abs(x)  # sin(pi)
    return Fraction(0) if vanishes else value


def _count(function, *numbers):
    """A factorial or a binomial coefficient"""
    whole = all(n.denominator == 1 and 0 <= n < 2100 for n in numbers)
    return Fraction(function(*map(int, numbers))) if whole else None


_COMPUTE = {name: partial(_call, name.replace("arc", "a").replace("ln", "log")) for name in FUNCTIONS}
_COMPUTE |= {"+": _add, "-": lambda a, b: _add(a, -b), "neg": operator.neg, "^": _power, "root": _root}
_COMPUTE |= {"*": lambda a, b: math.prod(lift(a, b)), "/": lambda a, b: math.prod(lift(a, 1 / b)), "abs": abs}
_COMPUTE |= {"floor": _floor, "ceil": lambda a: -_floor(-a)}
_COMPUTE |= {"!": partial(_count, math.factorial), "binom": partial(_count, math.comb)}
_COMPUTE |= {"base": lambda digits, base: Fraction(int(digits, base or 1))}
_COMPUTE |= {"unit": lambda value, unit: math.prod(lift(value, FACTORS[unit]))}
_COMPUTE |= {"pi": lambda: +MP.pi, "e": lambda: +MP.e, "i": lambda: MP.mpc(0, 1)}


# ---------------------------------------------------------------------------------------------- two answers, by values
def _probes(variables: list[str], whole: bool) -> list[dict]:
    """Above 1, below 1, and each variable once negative; whole numbers for n! and floors"""
    numbered = list(enumerate(variables))
    if whole:
        return [{n: Fraction(2 + 3 * i + j) for i, n in numbered} for j in range(6)]
    points = [{n: Fraction(90 + 41 * i + (83 + 11 * i) * j, (37, 247)[j % 2]) for i, n in numbered} for j in range(4)]
    return points + [{**points[k % 2], n: -points[k % 2][n]} for k, n in enumerate(variables[:4])]


class Values:
    """The values of the expressions of two answers, all at the same probe points, and the work that they cost"""

    def __init__(self, a, g):
        whole = bool((kinds(a) | kinds(g)) & {"!", "binom", "floor", "ceil"})
        self.points = _probes(sorted(names(a) | names(g)), whole)
        self.work, self.known = 0, {}

    def evaluate(self, node, point: dict):
        """The value at one probe point: a Fraction where all of it is rational, else a number with 80 digits; None
        where it has no value, or one too large to work with"""
        kind, *parts = node
        if kind in ("num", "dec"):
            return parts[0]
        if kind == "sym":
            return point.get(parts[0])
        arguments = [self.evaluate(n, point) if isinstance(n, tuple) else n for n in parts]
        if any(argument is None for argument in arguments):
            return None
        try:
            value = _bounded(_COMPUTE[kind](*arguments))
        except (ArithmeticError, ValueError, TypeError, LookupError, AttributeError):
            value = None
        self.work += (1 + _bits(value) // 600) if isinstance(value, Fraction) else 5
        if self.work > MAX_WORK:
            raise Unreadable("too much work")
        return value

    def at(self, node, k: int = 0):
        """The value of a node at probe point k, from memory where it was asked for before"""
        if (node, k) not in self.known:
            self.known[node, k] = self.evaluate(node, self.points[k])
        return self.known[node, k]

    def agree(self, a, g) -> bool:
        """Equal at every point where both are real; at every point where both have a value, if hardly any is real."""
        count = len(self.points) if names(a) | names(g) else 1
        pairs = [(self.at(a, k), self.at(g, k)) for k in range(count)]
        pairs = [(x, y) for x, y in pairs if x is not None and y is not None]
        real = [(x, y) for x, y in pairs if not x.imag and not y.imag]
        chosen = real if len(real) >= min(2, count) else pairs
        return len(chosen) > 0 and all(close(x, y) for x, y in chosen)

    def same_number(self, a, g) -> bool:
        """Two expressions are equal, or one is a rounding of the other that the conventions allow."""
        if self.agree(a, g):
            return True
        x, y, decimals = self.at(a), self.at(g), [n for n in (a, g) if n[0] == "dec"]
        if not decimals or names(a) | names(g) or x is None or y is None:
            return False
        x, y = lift(x, y)
        gap, computed = _real(abs(x - y)), min(n[3] for n in decimals) >= FULL_FLOAT
        if computed and (g[0] == "dec" or getattr(y, "denominator", 0) != 1):
            return gap <= max(_real(2 * max(n[2] for n in decimals)), _real(abs(y)) / 2**51)
        rounded = g[0] == "dec" and (g[2] <= Fraction(1, 200) or g[3] > 2)  # 2.5 is too short for a rounded number
        return rounded and (a[0] != "dec" or a[3] >= FULL_FLOAT) and gap <= _real(g[2])
