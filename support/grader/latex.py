r"""Reading an answer: text in LaTeX or plain -> one clean spelling -> tokens -> a tree of tuples, or a refusal.

    read(clean(r"\$2\dfrac13"))  is  ("unit", ("+", ("num", 2), ("/", ("num", 1), ("num", 3))), "dollar")

The text is never evaluated as code, and it is read whole or not at all: what is left over makes it unreadable.
A node is a tuple, its kind first; the numbers in it are fractions:
    ("num", value)  ("dec", value, half a unit of its last digit, significant digits)  ("base", "101", base)
    ("sym", "x_1")  ("sym", "f(x)")  ("sym", "infinity")  ("pi",)  ("e",)  ("i",)  ("text", "even")
    ("unit", node, "m s^-2"); the units "%" and "deg" have a value
    ("+", a, b), also with - * / pm mp     ("^", a, exponent)
    ("neg", a), also with ! abs floor ceil and the functions     ("root", a, index)     ("binom", n, k)
    ("rel", "< <=", a, b, c) for a < b <= c     ("list", a, b), also with set, union, and both for x > 1 and x < 2
    ("seq", "(", "]", a, b) for (a, b]    ("seq", "matrix", "", rows or cells)     ("unreadable", why)
"""

import re
from fractions import Fraction
from functools import lru_cache

from support.grader.words import CHANGES, CLAUSES, MONEY, UNIT_NAMES, UNITS, unit_name

MAX_CHARS, MAX_DEPTH, MAX_DIGITS = 400, 40, 60


class Unreadable(Exception):
    """The text is no answer that this file can read, or comparing it would cost too much."""


# ---------------------------------------------------------------------------- one spelling for what means the same
NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau "
    "upsilon phi chi psi omega hbar ell partial nabla Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega Pr gcd"
).split()
_SYMBOLS = (
    "√ sqrt ∛ sqrt[3] ∞ infty ≤ le ⩽ le ≥ ge ⩾ ge ≠ ne ≈ approx ∪ cup ∈ in ± pm ∓ mp ∅ emptyset ° circ º circ ½ frac12 "
    "¼ frac14 ¾ frac34 ⅓ frac13 ⅔ frac23 ℝ mathbb{R} ∖ setminus € text{euro} £ text{pound} ₹ text{rupee} µ mu Ω Omega"
).split()
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉"
_SIGNS = str.maketrans("−–—‐－×·⋅∙∗÷⁄∕′’．，" + _RAISED + _LOWERED, "-----*****///''.,0123456789-n0123456789", "\u200b")
_SIGNS |= {ord(sign): f"\\{name} " for sign, name in zip(_SYMBOLS[::2], _SYMBOLS[1::2])}
_SIGNS |= {0x3B1 + k: f"\\{name} " for k, name in enumerate(NAMES[:25])}  # α to ω
_LABEL = r"(?i)^(\\text\w*\{|) *((?:it|[a-z]{3})[a-z', ]*?)(?::| (?:is|are|equals)\b|(?=\} *=))( *\}(?: *=)?|)"
_SPACE = r"(?:[ ~]|\\[()]|(?<!\\)\\[][,;:>! \n]|(?<!\\)\$|\\q?quad|\\(?:display|text)style(?![a-z]))"
_OUTSIDE = r"(?![^(\[]*(?:[)\]]|\\\}|\\end))"  # not within brackets, where a comma parts a pair
_THOUSANDS = rf"(?<![\d.,])[1-9]\d{{0,2}}(?:,\d{{3}}{_OUTSIDE}| \d{{3}})+(?![\d,/])"
_SCIENTIFIC = r"(?<![\w.^/}])(\d*\.\d*[1-9]) *(?:\\times|\\cdot|\*) *10 ?\^ ?(?:(-?\d+)|\{(-?\d+)\})(?![\w.^!])"


def _unlabelled(match) -> str:
    """What follows "Total:" or "The area is", unless such words change it: "half of it is", "the wrong answer:" """
    changed = CHANGES & set(re.findall("[a-z]+", match[2].lower()))
    return match[0] if changed else "" if match[3] else match[1]


REWRITES = [  # a pattern, its replacement, and an example that needs the rule
    (r"(?i)^(\\text\{ *)?all real( numbers?)?\.?\}?$", r"\\mathbb{R}", r"\text{all real numbers} is \mathbb{R}"),
    (r"(?i)^(\\text\{ *)?no (real )?solutions?\.?\}?$", r"\\emptyset", r"\text{No solutions.} is \emptyset"),
    (r"\\(?:left|right|middle|[bB]ig[lr]?|limits)(?![a-z])", "", r"\left\{x : x > 2\right\} is x > 2"),
    (r"\\(angle|triangle|vec|hat|underline|overrightarrow|(?<![\d.]\\)overline)(?![a-z])", "", r"\angle A = 5 is 5"),
    (r"^\\\{ *([a-z]) *(\\in *\\mathbb *\{?R\}?)? *(\\mid\b|[|:])(?=.*\1)(.*)\\\}$", r"\4", r"\{x : x > 2\} is x > 2"),
    (r"\b(?:square|sq\.?) ([a-z]+)|(?<=per )([a-z]+) squared", r"\1\2^2", "5 sq ft is 5 ft^2"),
    (r"\b(?:cubic|cu\.?) ([a-z]+)", r"\1^3", "5 cubic feet is 5 ft^3"),
    (r"\^ ?\{? ?\\prime ?\}?", "'", r"y^{\prime}+y=0 is y'+y=0"),
    (r"\\(d?dot) *\{ *(\\?[a-zA-Z]+) *\}", r"\2_{\1}", r"\ddot{x}+1 is 1+\ddot{x}"),
    (r"\bnp\.(?=[a-z])", "", r"np.arcsin(10/13) is \arcsin\frac{10}{13}"),
    (r"(?<=\d)(?:,\s*\\!\s*(?=\d\d)|\{,\}(?=\d{3}))", "", r"56,\!01,\!78 is 560178"),
    (r"\^ ?\{ ?\\circ ?\}|\^ ?\\circ|(?<=\d)\^\{?o\}?(?![a-z])", r"\\circ ", r"90^{\circ} is 90"),
    (r"\\circ *(\\(text|mathrm)\{ ?)?[CF]\}?$", r"\\circ", r"20^\circ C is 20"),
    (r"(\\[dtc]?frac|\\[dt]?binom) ?(\d) ?(\d)", r"\1{\2}{\3}", r"\frac12 is 0.5"),
    (r"\bUS *(?=\\?\$)", "", r"US\$18 is \$18"),
    (f"{_SPACE}({_SPACE}+)?", lambda match: "  " if match[1] else " ", r"\(7\) is $7$"),  # 1 \quad 234 is not 1 234
    (r"(?i)^ *(?:\\text\{ *)?(?:so|hence|thus|therefore)\b,?[ }]*", "", "Hence x = 5 is 5"),
    (_LABEL, _unlabelled, r"\text{The area is }12 is 12"),
    (r"(?<!\w)(\\?[PE]r?|\\?gcd)[([]([^()[\]]{2,})[)\]] ?(?==)", r"\1_{\2}", "P(X > 2) = 5 is 5"),
    (r",? *(\\text\{)? *for (any|all)( real| constants?|[ }]+[a-zA-Z]\b)*\}?$", "", r"x \text{ for any constant} is x"),
    (r"(?<=\S)(?:[ (]|or |\\text\{)*(?:about|\\?approx\w*)[ }]*([\d.]+)\)? *$", r"\\approx\1", "1/3 about .33 is 1/3"),
    (r"\bRs\.? ?(?=\d)", r"\\text{rupee} ", "Rs. 500 is 500"),
    (r"(?<=\d) *\\(Omega|mu(?= *\\(?:mathrm|text)))(?![a-z])", r"\\text{\1}", r"5\,\Omega is 5"),
    (r"\\frac\{(\\(text|mathrm)\{[^{}]*)\}\}\{\\\2\{([^{}]*\}[^{}]*)\}", r"\1/\3", r"9\frac{\text{m}}{\text{s}} is 9"),
    (_THOUSANDS, lambda match: re.sub("[, ]", "", match[0]), "1,234 is 1234"),
    (r"(?<![\w./^})\\])(\d{1,9}) (\d{1,9}/\d{1,9})(?![\w/.^])", r"\1{\2}", "2 1/3 is 7/3"),
    (r"(?<=[\w)}\]%]),?\s*(?:\n|\\\\(?!.*\\end))\s*" + _OUTSIDE, ", ", "1\n2 is 1, 2"),
    (_SCIENTIFIC, r"\1e\2\3", r"\frac23 is 6.67 \times 10^{-1}"),
    (r"(?<![\s,;.])(?:\\?\s|\\$|[,;]|(?<!\.)\.)+$", "", r"x+1.\ is x+1"),
]
REWRITES = [(re.compile(pattern), *rest) for pattern, *rest in REWRITES]


def clean(text: str) -> str:
    """Signs, spaces and markup in one spelling"""
    text = re.sub(r"[^\S\n]+", " ", text.strip())
    if not text.isascii():
        text = re.sub(f"[{_RAISED}]+", r"^{\g<0>}", re.sub(f"[{_LOWERED}]+", r"_{\g<0>}", text)).translate(_SIGNS)
    for pattern, to, _ in REWRITES:
        text = pattern.sub(to, text)
    return text.strip()


# -------------------------------------------------------------------------------------------------------- the tokens
FUNCTIONS = set(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh log ln exp abs floor ceil".split()
)
_SPELLINGS = r"""
    <= le leq leqslant @ >= ge geq geqslant @ < lt @ > gt @ != ne neq @ = == := @ cup bigcup
    @ * times cdot @ / div @ : colon @ ^ ** @ - setminus backslash @ , ; @ or lor vee @ and land wedge
    @ | vert mid lvert rvert \| @ \{ lbrace @ \} rbrace @ frac dfrac tfrac cfrac @ binom dbinom tbinom"""
_TOKENS = {spelling: row.split()[0] for row in _SPELLINGS.split("@") for spelling in row.split()}
_TOKENS |= {name: name for name in FUNCTIONS | {"sqrt"}} | {name: ("sym", name) for name in NAMES}
_TOKENS |= {r"\$": ("text", "dollar"), "circ": ("text", "deg"), "%": ("text", "%"), r"\%": ("text", "%"), "pi": ("pi",)}
_TOKENS |= dict.fromkeys(("infty", "infinity", "inf"), ("sym", "infinity"))
_TOKENS |= dict.fromkeys(("emptyset", "varnothing"), ("set",))
_NUMERALS = enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())
_NUMERALS = {name: ("num", Fraction(value)) for value, name in _NUMERALS}
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>(?:\d+(?:\.(?!\.)\d*)?|\.\d+)(?:[eE][+-]?\d+(?!\w))?)(?:\\overline\s*\{(?P<cycle>\d{1,20})\})?
    |\\(?P<style>text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf|cal|bb)|operatorname\*?|boldsymbol|[mhf]box|boxed|bm|rm|bf)
        (?![a-z])\s*(?:\{(?P<styled>(?:[^{}]|\{[^{}]*\})*)\}|(?P<bare>[A-Za-z0-9]))?
    |\\(?P<edge>begin|end)\{(?P<kind>\w+)\*?\}(?:\{[lcr| ]*\})?
    |\\(?P<command>[A-Za-z]+)|(?P<word>[A-Za-z]+)|(?P<sign><=|>=|!=|==|:=|\*\*|\\?\S))""",
    re.VERBOSE,
)
_TAIL = re.compile(r"\s*_\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\[a-zA-Z]+|\d+|\w)|'|\((?:\d+|[a-z]|\\\w+)(?:, ?[a-z])*\)")
_UNIT_AFTER = re.compile(r"\s*(?:$|[,;})/^\n\\]|[a-z]{2})")  # 25 sec, but 25 sec(x)


def _number(raw: str, cycle: str | None) -> tuple:
    mantissa, _, exponent = raw.lower().partition("e")
    digits, _, places = mantissa.partition(".")
    if len(digits + places) > MAX_DIGITS or len(exponent) > 4:
        raise Unreadable("a number with too many digits")
    unit = Fraction(10) ** (int(exponent or 0) - len(places))
    value = int(digits + places) * unit
    if cycle:  # 0.1\overline{6}
        return ("num", value + unit * Fraction(int(cycle), 10 ** len(cycle) - 1))
    rounded = (places or exponent) and (value.denominator > 1 or unit > 2)  # 27.0 is not
    return ("dec", value, unit / 2, len((digits + places).lstrip("0"))) if rounded else ("num", value)


def _negative(node: tuple) -> tuple:
    if node[0] == "unit":  # -5 cm is (-5) cm
        return ("unit", _negative(node[1]), node[2])
    return (node[0], -node[1], *node[2:]) if node[0] in ("num", "dec") else ("neg", node)


def _word(word: str, quoted: bool, out: list, rest: str) -> list:
    """Tokens for a run of letters: a unit or another word, a function, a name, a connective, or single variables."""
    low, last = word.lower(), out[-1] if out else "start"
    per = last == "/" and out[-2][0] == "text" and out[-2][1] not in ("%", "deg")
    measured = last[0] in ("num", "dec", "text") or last in (")", "}", "*", "/", ("pi",))
    alone = len(word) > 1 and (low, last) != ("hr", ("pi",)) and _UNIT_AFTER.match(rest)  # 5 mg, but mg/k and 2\pi hr
    unit = word if len(word) == 1 or unit_name(word) in UNITS else low
    if per or measured and (quoted and unit in UNITS or alone and unit_name(unit) in UNIT_NAMES):  # km/h, 5 \text{m}
        return [("text", unit)]
    if low in _NUMERALS or word in _TOKENS or low in _TOKENS and low not in FUNCTIONS:
        return [_NUMERALS.get(low) or _TOKENS.get(word) or _TOKENS[low]]
    phrase = len(word) > 1 and (last[0:1] == ("text",) or measured and re.match(" [a-z]{3}", rest))  # red balls
    if len(word) > 3 or phrase or unit_name(low) in MONEY or quoted and re.search("[a-z]{2}", word):
        return [("text", low)]
    return [(c,) if c in "ei" else ("sym", c) for c in word]


def tokens(text: str, out: list | None = None, quoted: bool = False) -> list:
    r"""Numbers, names and words as nodes, all else as plain strings; `quoted` in \text{...}, where letters are words"""
    out = [] if out is None else out
    at = 0
    while at < len(text) and (match := _TOKEN.match(text, at)):
        at = match.end()
        if raw := match["number"]:
            out.append(_number(raw, match["cycle"]))
        elif inner := match["styled"] or match["bare"]:
            tokens(inner, out, quoted=match["style"].startswith(("text", "mathrm", "mbox", "hbox", "oper")))
        elif match["edge"]:
            out += ["begin", match["kind"]] if match["edge"] == "begin" else ["end"]
        elif name := match["command"] or match["sign"]:
            out.append(_TOKENS.get(name) or _TOKENS.get(name.removeprefix("var"), name))
        elif word := match["word"]:
            united = word == "U" and out and out[-1] in (")", "]")  # (0, 1) U (2, 3)
            out += ["cup"] if united else _word(word, quoted, out, text[at:])
        while out and out[-1][0] == "sym" and (tail := _TAIL.match(text, at)):  # x_1, x_{n+1}, f', f(x)
            out[-1], at = ("sym", out[-1][1] + re.sub(r"[\s{}\\]", "", tail[0])), tail.end()
    return out


# -------------------------------------------------------------------------------------------------------- the parser
_LEVELS = (", and or", "< > <= >= = != in approx", "cup", ":", "+ - pm mp", "* /")
_LEVEL = {sign: level for level, signs in enumerate(_LEVELS, 1) for sign in signs.split()}
_LEVEL |= dict.fromkeys(FUNCTIONS, 6)  # sin 2a cos b is (sin 2a)(cos b)
_CLOSES = {"(": ")]", "[": "])", r"\{": (r"\}",), "{": "}", "|": "|", "lfloor": ("rfloor",), "lceil": ("rceil",)}
_ENDS = {"the end", "end", "&", r"\\"}.union(*_CLOSES.values()) - {"|"}


class _Parser:
    """Precedence climbing over one answer's tokens. All of them must be read, or nothing is."""

    def __init__(self, text: str):
        self.tokens = tokens(text) + ["the end"] * 3
        self.at, self.depth, self.bars = 0, 0, False

    @property
    def next(self):
        return self.tokens[self.at]

    def take(self, *wanted):
        token = self.next
        self.at += token in wanted
        return token if token in wanted else None

    def fail(self, why: str):
        raise Unreadable(f"{why} at {self.next}")

    def binds(self) -> int:
        """How tightly the next token binds: _LEVEL, 7 for a product without a sign, 0 for an end"""
        return _LEVEL.get(self.next, 0 if self.next in _ENDS or self.next == "|" and self.bars else 7)

    def read(self, level: int = 0) -> tuple:
        """All that binds tighter than `level`: 0 a list, 1 a relation, 2 a union, 3 a ratio, 4 a sum, 5 a product."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail("nested too deeply")
        node = self.signed()
        while (binds := self.binds()) > level:
            token = self.next
            if binds < 5:
                node = self.several(node, binds)
            elif token in _LEVEL and token not in FUNCTIONS:
                self.at += 1
                node = (token, node, self.read(binds) if binds < 6 or self.next in ("-", "+") else self.power())
            else:
                node = self.unit(node) if token[0] == "text" else self.product(node)
        self.depth -= 1
        return node

    def signed(self) -> tuple:
        sign = self.take("-", "+", "pm", "mp", *(("=", "approx") if self.at == 0 else ()))
        node = self.read(5) if sign else self.power()
        if sign == "-":
            return _negative(node)
        return (sign, ("num", Fraction(0)), node) if sign in ("pm", "mp") else node

    def several(self, node, binds: int) -> tuple:
        """a, b and c; a < b <= c; a union b; a : b"""
        parts, signs = [node], []
        while _LEVEL.get(self.next) == binds:
            signs.append(self.next)
            self.at += 1
            while binds == 1 and self.take(",", "and", "or"):  # ", and"
                pass
            parts.append(self.read(binds))
        if binds == 2:
            return ("rel", " ".join(signs), *parts)
        if binds == 1 and parts[0][0] == "rel" and parts[0][1][0] in "<>":  # x > 1 and x < 2
            return ({"and": "both", "or": "union"}.get(signs[0], "list"), *parts)
        return ({1: "list", 3: "union", 4: "/"}[binds], *parts)

    def product(self, node) -> tuple:
        """2x; not 5 6 for 30, nor x2 for 2x, but 2^6 3^5 and (n-1) 2^n; 2 1/3 is a sum"""
        last = node[-1] if node[0] == "*" else node
        apart = last[0] in ("^", "!") or self.tokens[self.at - 1] == ")"
        if self.next[0] in ("num", "dec") and not apart or node[0] == "unit" and node[2] not in ("%", "deg"):
            self.fail("two quantities side by side")
        right = self.power()
        if last[0] == "num" and not apart and right[0] == "/" and right[1][0] == right[2][0] == "num":
            return ("+", node, right) if node is last else self.fail("an unclear product")
        return ("*", node, right)

    def unit(self, node) -> tuple:
        """5 cm^2, 5 km/h, 5 red balls; not 5 dozen, 5 squared, "5 or more" """
        words, powers, sign = [], {}, 1
        while self.next[0] == "text" or self.next in ("/", "*") and self.tokens[self.at + 1][0] == "text":
            word = self.next[1] if self.next[0] == "text" else self.next
            self.at += 1
            if word in ("/", "per"):
                sign = -1
            elif word not in ("*", "of", "the", "a", "an"):
                power = self.argument(exponent=True)[1] if self.take("^") else 1
                powers[unit_name(word)] = powers.get(unit_name(word), 0) + sign * power
                words, sign = [*words, word], 1
        known = any(unit_name(word) in UNITS or word.endswith("s") for word in words) or node == ("num", 1)
        twice = powers.get("%", 1) != 1 or powers.get("deg", 1) != 1
        if CLAUSES & {*words, *powers} or not known or twice or node[0] in ("text", "unit"):
            self.fail("words that are no unit,")
        unit = " ".join(name if p == 1 else f"{name}^{p}" for name, p in sorted(powers.items()) if p)
        return ("unit", node, unit) if unit else node

    def power(self) -> tuple:
        node = self.atom()
        while sign := self.take("!", "^", "_"):
            exponent = self.argument(exponent=True) if sign in "^_" else None
            if node[0] == sign == "!":
                self.fail("a second sign")
            if sign == "_":
                node = ("base", str(node[1]), int(exponent[1])) if node[0] == "num" else self.fail("no digits")
            else:
                node = ("^", node, exponent) if sign == "^" else ("!", node)
        return node

    def argument(self, exponent: bool = False) -> tuple:
        """What follows a command, ^ or _: {...} or one token"""
        if exponent and self.take("-"):
            return _negative(self.argument(exponent))
        token, node = self.next, self.atom()
        return ("^", node, self.argument(exponent)) if exponent and token != "{" and self.take("^") else node  # 2^3^2

    def atom(self) -> tuple:
        token = self.next
        self.at += 1
        if token[0] == "text" and unit_name(token[1]) in MONEY and self.binds() > 4:  # USD 18
            return ("unit", self.read(5), unit_name(token[1]))
        if token[0] == "text" and (token[1] in CLAUSES or self.binds() == 7):
            raise Unreadable(f"words: {token[1]}")
        if isinstance(token, tuple):
            return token
        if token in _CLOSES:
            return self.bracket(token)
        if token in ("frac", "binom"):
            return ("/" if token == "frac" else "binom", self.argument(), self.argument())
        if token == "sqrt":
            index = self.bracket("[") if self.take("[") else ("num", Fraction(2))
            return ("root", self.argument(), index)
        if token in FUNCTIONS:
            return self.function(token)
        if token == "begin":
            return self.matrix()
        raise Unreadable(f"cannot read on at {token}")

    def bracket(self, opened: str) -> tuple:
        self.bars, outer = opened == "|", self.bars
        node = ("list",) if opened == r"\{" and self.next == r"\}" else self.read()
        closed = self.take(*_CLOSES[opened]) or self.fail(f"no end of {opened}")
        self.bars = outer
        if opened in ("|", "lfloor", "lceil"):
            return ({"|": "abs", "lfloor": "floor", "lceil": "ceil"}[opened], node)
        items = node[1:] if node[0] == "list" else (node,)
        if opened == r"\{":
            return ("set", *items)
        if opened == "{" or len(items) == 1 and opened + closed in ("()", "[]"):
            return node
        return ("seq", opened, closed, *items)

    def function(self, name: str) -> tuple:
        base = power = None
        while sign := self.take("_", "^"):
            base, power = (self.argument(), power) if sign == "_" else (base, self.argument(exponent=True))
        opened = self.take("(", "{")
        node = self.bracket(opened) if opened else self.read(6)  # sin 2x cos y
        if power == ("num", -1):
            name, power = "arc" + name, None
        node = (name, node) if base is None else ("/", (name, node), (name, base))  # log_2 8
        return node if power is None else ("^", node, power)

    def matrix(self) -> tuple:
        """A column or a row is a sequence of its cells, any other matrix a sequence of rows."""
        kind, rows = self.next, [[]]
        self.at += 1
        while not self.take("end"):
            if self.take(r"\\"):
                rows.append([])
            elif not self.take("&"):
                rows[-1].append(self.read())
        rows = [row[0] if len(row) == 1 else ("seq", "matrix", "", *row) for row in rows if row]
        if kind not in ("matrix", "pmatrix", "bmatrix", "array", "cases"):
            self.fail(f"{kind} is no matrix,")
        start = ("list",) if kind == "cases" else ("seq", "matrix", "")
        return rows[0] if len(rows) == 1 else (*start, *rows)


@lru_cache(1 << 14)
def read(text: str) -> tuple:
    """The tree of a cleaned answer"""
    try:
        if not text or len(text) > MAX_CHARS:
            raise Unreadable("nothing, or too much")
        parser = _Parser(text)
        node = parser.read()
        return node if parser.next == "the end" else parser.fail("something is left over")
    except (Unreadable, ArithmeticError, ValueError, LookupError, TypeError) as error:
        return ("unreadable", str(error))
