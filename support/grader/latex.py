r"""Reading an answer: text in LaTeX or plain -> one clean spelling -> tokens -> a tree of tuples, or a refusal.

    read(clean(r"\$2\dfrac13"))  is  ("unit", ("mixed", ("num", 2), ("/", ("num", 1), ("num", 3))), "dollar")

The text is never evaluated as code, and it is read whole or not at all: what is left over makes it unreadable.
A node is a tuple, its kind first; the numbers in it are fractions:
    ("num", value)  ("dec", value, half a unit of its last digit, significant digits)  ("base", "101", base)
    ("sym", "x_1")  ("pi",)  ("e",)  ("i",)  ("inf",)  ("text", "even")  ("call", f, x ...)
    ("unit", node, "cm^2"); the units "%" and "deg" have a value
    ("+", a, b), also with - * / mod mixed pm mp     ("^", a, whole number)     ("pow", a, any other exponent)
    ("neg", a), also with ! abs floor ceil     ("root", a, index)     ("binom", n, k)
    ("sin", a), also with the other functions     ("log", a, base)
    ("rel", "< <=", a, b, c) for a < b <= c     ("list", a, b) for a, b     ("set", a, b)     ("union", a, b)
    ("seq", "(", "]", a, b) for (a, b]    ("seq", "matrix", "", rows or cells)    ("seq", ":", ":", a/c, b/c) for a:b:c
    ("unreadable", why)
"""

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

from support.grader.words import CHANGES, CLAUSES, MONEY, ONLY_QUOTED, UNIT_NAMES, UNITS, unit_name

MAX_CHARS, MAX_DEPTH, MAX_DIGITS = 400, 40, 60


class Unreadable(Exception):
    """The text is no answer that this file can read, or to compare it would cost too much."""


# ---------------------------------------------------------------------------- one spelling for what means the same
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau "
    "upsilon phi chi psi omega hbar ell partial nabla Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
).split()
_SYMBOLS = (
    "√ sqrt ∛ sqrt[3] ∞ infty ≤ le ⩽ le ≥ ge ⩾ ge ≠ ne ≈ approx ∪ cup ∈ in ± pm ∓ mp ∅ emptyset ⟨ langle ⟩ rangle "
    "⌊ lfloor ⌋ rfloor ⌈ lceil ⌉ rceil ≡ equiv ° circ º circ ˚ circ ∖ setminus € text{euro} £ text{pound} µ mu "
    "₹ text{rupee} ¥ text{yen} Γ Gamma Δ Delta Θ Theta Λ Lambda Ξ Xi Π Pi Σ Sigma Φ Phi Ψ Psi Ω Omega"
).split()
_SIGNS = {ord(sign): f"\\{name} " for sign, name in zip(_SYMBOLS[::2], _SYMBOLS[1::2])}
_SIGNS |= {0x3B1 + k: f"\\{name} " for k, name in enumerate(GREEK[:25])}
_SIGNS |= {ord(sign): to for signs, to in (("−–—‐‑", "-"), ("×·⋅∙∗", "*"), ("÷⁄∕", "/"), ("′’", "'")) for sign in signs}
UNICODE_RULES = [  # a pattern, its replacement, and an example that needs the rule; before NFKC makes plain digits of ²
    (r"[⁰¹²³⁴-⁹⁻ⁿ]+", r"^{\g<0>}", "x² is x^2"),
    (r"[₀-₉]+", r"_{\g<0>}", "52₈ is 52_8"),
    (r"(?=[¼-¾⅐-⅞])", " ", "2¾ is 11/4"),
]
RULES = [
    (r"^(\*\*|`{1,3})(.*)\1$", r"\2", "**73** is 73"),
    (r"(?i)^(\\text\{ *)?all real( numbers?)?\.?\}?$", r"\\mathbb{R}", r"\text{all real numbers} is \mathbb{R}"),
    (r"(?i)^(\\text\{ *)?no (real )?solutions?\.?\}?$", r"\\emptyset", r"\text{No solutions.} is \emptyset"),
    (r"\\(?:left|right|middle)(?![a-z])", "", r"\left(1,2\right) is (1,2)"),
    (
        r"^\\\{ *([a-z]) *(?:\\in *\\mathbb *\{?R\}? *)?(?:\\mid(?![a-z])|[|:])(?=.*\1)(.*)\\\}$",
        r"\2",
        r"\{x : x > 2\} is (2, \infty)",
    ),
    (r"\bUS *(?=\\?\$)", "", r"US\$18 is \$18"),
    (r"\b(?:square|sq\.?) ([a-z]+)|(?<=per )([a-z]+) squared", r"\1\2^2", "5 sq ft is 5 ft^2"),
    (r"\b(?:cubic|cu\.?) ([a-z]+)", r"\1^3", "5 cubic feet is 5 ft^3"),
    (r"\bRs\.", "Rs", "Rs. 500 is 500"),
    (r"k(\}?)\s*\\Omega", r"kohm\1", r"5\text{ k}\Omega is 5"),
    (r"\b(?:np|math)\.(?=[a-z])", "", r"np.arcsin(10/13) is \arcsin\frac{10}{13}"),
    (r"(\\begin\{\w+)\*?\}(?:\{[lcr| ]*\})?", r"\1}", r"\begin{array}{cc}1&2\end{array} is (1, 2)"),
    (r"\\\\\s*\[[\d.]+ *[a-z]{2}\]", r"\\\\", r"\begin{pmatrix}1\\[2pt]2\end{pmatrix} is (1, 2)"),
    (r"\\(d?dot|bar|tilde)(?![a-z])\s*\{?([a-zA-Z])(?![a-zA-Z])\}?", r"\2_{\1}", r"\dot x_0 t is t \dot{x}_{0}"),
    (r"(?<=\d)(?:,\s*\\!\s*(?=\d\d)|\{,\}(?=\d{3}))", "", r"56,\!01,\!78 is 560178"),
    (r"\^ ?\{ ?\\circ ?\}|\^ ?\\circ|(?<=\d)\^\{?o\}?(?![a-z])", r"\\circ ", r"90^{\circ} is 90"),
    (r"(\\[dtc]?frac|\\[dt]?binom) ?(\d) ?(\d)", r"\1{\2}{\3}", r"\frac12 is 0.5"),
    (r"\\[()]|(?<!\\)\\[\[\],;:>! \n]|(?<!\\)\$|~|\\q?quad|\\(?:display|text)style(?![a-z])", " ", r"\(7\) is $7$"),
    (
        r"\\[dt]?frac\{(\\(?:text|mathrm)\{[^{}]*)\}\}\{\\(?:text|mathrm)\{([^{}]*\}[^{}]*)\}",
        r"\1/\2",
        r"9\frac{\text{m}}{\text{s}^2} is 9",
    ),
    (r"(?<![\w./^}{)\\])\{(\d+)\}(?= ?\\[dtc]?frac)", r"\1", r"{2}\frac13 is 7/3"),
    (r"(?<![\w./^})\\])(\d{1,9}) ?(?=\{?\\[dtc]?frac\{\d+\}\{\d+\})", r"\1\\mixed ", r"2\frac13 is 7/3"),
    (r"(?<![\w./^})\\])(\d{1,9}) (\d{1,9}/\d{1,9})(?![\w/.^])", r"\1\\mixed{\2}", "2 1/3 is 7/3"),
    (r"(?<![\s,;.])(?:\\?\s|\\$|[,;]|(?<!\.)\.)+$", "", r"x+1.\ is x+1"),
]
UNICODE_RULES, RULES = ([(re.compile(rule[0]), *rule[1:]) for rule in rules] for rules in (UNICODE_RULES, RULES))


def clean(text: str) -> str:
    """Signs, spaces and markup in one spelling"""
    text = re.sub(r"[^\S\n]+", " ", text.strip())
    if re.fullmatch(r"-?\d*\.?\d+", text) and text.isascii():
        return text
    if not text.isascii():
        for pattern, to, _ in UNICODE_RULES:
            text = pattern.sub(to, text)
        text = text.translate(_SIGNS)  # before NFKC too: it makes a letter of º
        circled = [unicodedata.decomposition(c)[:5] in ("<circ", "<comp") for c in text]  # ④, (4)
        text = "".join(c if keep else unicodedata.normalize("NFKC", c) for c, keep in zip(text, circled))
        text = text.translate(_SIGNS)
        text = "".join(str(unicodedata.decimal(c, c)) for c in text if unicodedata.category(c) != "Cf")
    if r"\\begin" in text or r"\begin" not in text:  # it may have been escaped twice on its way here
        text = text.replace(r"\\", "\\")
    for pattern, to, _ in RULES:
        text = pattern.sub(to, text)
    return text.strip()


# -------------------------------------------------------------------------------------------------------- the tokens
FUNCTIONS = set(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc asin acos atan sinh cosh tanh log "
    "ln exp abs floor ceil coth sech csch arcsinh arccosh arctanh asinh acosh atanh cis".split()
)
_SPELLINGS = {
    spelling: row.split()[0]
    for row in r"""
        <= le leq leqslant @ >= ge geq geqslant @ < lt @ > gt @ != ne neq @ = == := @ cup bigcup @ mod bmod pmod
        * times cdot @ / div @ ^ ** @ - setminus backslash @ : over colon @ , and or ; lor vee land wedge
        | vert mid lvert rvert \| @ % percent pct percentage \% @ circ degree degrees @ \{ lbrace @ \} rbrace
        asinh arsinh @ acosh arcosh @ atanh artanh @ infty infinity inf oo @ emptyset varnothing @ sqrt @ pi
        frac dfrac tfrac cfrac sfrac nicefrac @ binom dbinom tbinom @ dots ldots cdots dotsc ...
        """.strip()
    .replace("\n", "@")
    .split("@")
    for spelling in row.split()
}
_NUMERALS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_MULTIPLES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NAMED = {"pi": ("pi",)} | {name: ("sym", name) for name in (*GREEK, "max", "min", "gcd", "lcm", "Pr") if name != "pi"}
_NAMED |= {name: ("num", Fraction(value)) for value, name in enumerate(_NUMERALS)} | {r"\$": ("text", "dollar")}
_NAMED |= {"emptyset": ("set",), "infty": ("inf",)}
_QUIET = set(  # commands that change the look alone
    "big Big bigg Bigg bigl bigr Bigl Bigr limits angle triangle vec hat overline overrightarrow underline".split()
)
_TOKEN = re.compile(
    r"""[^\S\n]*(?:(?P<line>\n\s*)
    |(?P<repeat>\d*\.\d*)\\overline\s*\{(?P<cycle>\d{1,20})\}
    |(?P<number>(?:\d+(?:\.(?!\.)\d*)?|\.\d+)(?:[eE][+-]?\d+(?!\w))?)
    |\\(?P<style>text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf|cal|bb)|operatorname\*?|boldsymbol|[mhf]box|boxed|bm|rm|bf)
        (?![a-z])\s*(?:\{(?P<styled>(?:[^{}]|\{[^{}]*\})*)\}|(?P<bare>[A-Za-z0-9]))?
    |\\(?P<edge>begin|end)\{(?P<kind>\w+)\}
    |\\(?P<command>[A-Za-z]+)|(?P<word>[A-Za-z]+)|(?P<sign><=|>=|!=|==|:=|\*\*|\.\.\.|\\?\S))""",
    re.VERBOSE,
)
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:(?:,\d{3})+|(?: \d{3})+)(?![\d,])(?:\.\d+)?")
_SUBSCRIPT = re.compile(r"\s*_\s*(?:\{[^{}]*\}|\\[a-zA-Z]+|\d+|\w)|'")
_UNIT_AFTER = re.compile(r"\s*(?:$|[,;})/^\n\\]|[a-z]{2})")  # 25 sec, but 25 sec(x)


def _number(raw: str) -> tuple:
    mantissa, _, exponent = raw.lower().partition("e")
    digits, _, places = mantissa.partition(".")
    if len(digits + places) > MAX_DIGITS or len(exponent) > 4:
        raise Unreadable("a number with too many digits")
    unit = Fraction(10) ** (int(exponent or 0) - len(places))
    value = int(digits + places) * unit
    return ("dec", value, unit / 2, len((digits + places).lstrip("0"))) if places or exponent else ("num", value)


def _word(word: str, quoted: bool, out: list, rest: str) -> list:
    """Tokens for a run of letters: a unit or another word, a function, a name, a connective, or single variables."""
    low, last, per = word.lower(), out[-1] if out else "start", out[-1:] == ["/"] and out[-2][0] == "text"
    measured = last[0] in ("num", "dec", "text") or last in (")", "}", "*", "/", ("pi",), ("sym", "mu"))
    alone = last != ("sym", "mu") and low not in ONLY_QUOTED and _UNIT_AFTER.match(rest)
    if measured and len(word) > 1 and unit_name(low) in UNIT_NAMES and (quoted or alone):
        return [("text", low)]  # 5 mg, but mg/k
    if measured and quoted and word in UNITS or per:  # 5 \text{m}, km/h
        return [("text", word)]
    if word in FUNCTIONS or low in _MULTIPLES:
        return [word] if word in FUNCTIONS else ["*", ("num", Fraction(_MULTIPLES[low]))]
    if low in _SPELLINGS or low in _NUMERALS or word in GREEK:
        name = _SPELLINGS.get(low, low if low in _NUMERALS else word)
        return [_NAMED.get(name, name)]
    phrase = len(word) > 1 and (last[0:1] == ("text",) or measured and re.match(" [a-z]{3}", rest))  # red balls
    if len(word) > 3 or phrase or word in MONEY or quoted and re.search("[a-z]{2}", word):
        return [("text", low)]
    return [(c,) if c in "ei" else ("sym", c) for c in word]


def tokens(text: str, out: list | None = None, quoted: bool = False) -> list:
    r"""Numbers, names and words as nodes, all else as plain strings; `quoted` in \text{...}, where letters are words"""
    out = [] if out is None else out
    at = depth = 0
    while at < len(text) and (match := _TOKEN.match(text, at)):
        group, at = match.groupdict(), match.end()
        last = out[-1] if out else "start"
        if group["line"]:  # a list over lines
            out += [","] * (not depth and (isinstance(last, tuple) or last in (")", "}", "]", r"\}")))
        elif group["repeat"]:  # 0.1\overline{6}
            whole, _, fixed = group["repeat"].partition(".")
            cycle = Fraction(int(group["cycle"]), 10 ** len(group["cycle"]) - 1)
            out.append(("num", (int(whole + fixed or 0) + cycle) / 10 ** len(fixed)))
        elif raw := group["number"]:
            grouped = _THOUSANDS.match(text, match.start("number"))
            if grouped and not (depth and "," in grouped[0]):  # (1,234) is a pair
                raw, at = re.sub("[, ]", "", grouped[0]), grouped.end()
            out.append(_number(raw))
        elif inner := group["styled"] or group["bare"]:
            tokens(inner, out, quoted=group["style"].startswith(("text", "mathrm", "mbox", "hbox", "oper")))
            if out[-2:-1] == [("sym", "mu")] and out[-1][0] == "text":  # \mu\mathrm{m}
                out[-2:] = [("text", "mu" + out[-1][1])]
        elif group["edge"]:
            out += ["begin", group["kind"]] if group["edge"] == "begin" else ["end"]
            depth += 1 if group["edge"] == "begin" else -1
        elif (name := group["command"] or group["sign"]) and name not in _QUIET:
            name = _SPELLINGS.get(name, name.removeprefix("var"))
            ohm = name == "Omega" and last[0:1] in (("num",), ("dec",), ("text",))
            out.append(("text", "ohm") if ohm else _NAMED.get(name, name) if name not in _NUMERALS else name)
            depth += (name in ("(", "[", r"\{")) - (name in (")", "]", r"\}"))
        elif word := group["word"]:
            out += ["cup"] if word == "U" and last in (")", "]") else _word(word, quoted, out, text[at : at + 9])
        while out and out[-1][0] == "sym" and (tail := _SUBSCRIPT.match(text, at)):  # x_1, x_{n+1}, f'
            out[-1], at = ("sym", out[-1][1] + re.sub(r"[\s{}\\]", "", tail[0])), tail.end()
    return out


# -------------------------------------------------------------------------------------------------------- the parser
_LEVEL = {
    sign: level
    for level, signs in enumerate((",", "< > <= >= = != in approx", "cup", ": choose", "+ - pm mp", "* / mod mixed"), 1)
    for sign in signs.split()
}
_CLOSES = {"(": ")]", "[": "])", r"\{": (r"\}",), "{": "}", "|": "|"}
_CLOSES |= {"langle": ("rangle",), "lfloor": ("rfloor",), "lceil": ("rceil",)}
_ENDS = {"the end", "end", "&", r"\\"}.union(*_CLOSES.values()) - {"|"}
_ABOUT = {"approx", ("text", "about"), ("text", "approximately"), ("text", "roughly")}
_FOR_ANY = [[("text", "for"), ("text", word)] for word in ("any", "all", "every", "some")]


def _without_remarks(found: list) -> list:
    r"""737/39 (about 18.9) as 737/39 \approx 18.9, and 2x^3 of `2x^3 for any constant`"""
    for k in range(1, len(found) - 2):
        if found[k] == "(" and found[k + 1] in _ABOUT and found[-1] == ")":
            return [*found[:k], "approx", *found[k + 2 : -1]]
        remark = found[k] == ("text", "where") or found[k : k + 2] in _FOR_ANY
        if remark and all(t[0] in ("text", "sym") and t[1] not in CHANGES for t in found[k:]):
            return found[: k - (found[k - 1] == ",")]
    return found


def _raised(base: tuple, exponent: tuple) -> tuple:
    whole = exponent[-1] if exponent[0] == "neg" else exponent
    return ("^" if whole[0] == "num" and whole[1].denominator == 1 else "pow", base, exponent)


def _measured(node: tuple, unit: str) -> tuple:
    """A node with a unit; a second unit joins the first, and nothing joins % and deg"""
    if node[0] == "unit":
        node, unit = node[1], " ".join(sorted([node[2], unit]))
    return ("unit", node, next((sign for sign in ("%", "deg") if sign in unit.split()), unit))


class _Parser:
    """Precedence climbing over one answer's tokens. All of them must be read, or nothing is."""

    def __init__(self, text: str):
        self.tokens = _without_remarks(tokens(text)) + ["the end"] * 3
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
        """How tightly the next token binds: _LEVEL, 6 for a product without a sign, 0 for an end"""
        return _LEVEL.get(self.next, 0 if self.next in _ENDS or self.next == "|" and self.bars else 6)

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
            elif token in _LEVEL:
                self.at += 1
                node = (token, node, self.read(binds) if binds < 6 or self.next in ("-", "+") else self.power())
            else:
                node = self.unit(node) if token[0] == "text" else self.product(node)
        self.depth -= 1
        return node

    def signed(self) -> tuple:
        sign = self.take("-", "+", "pm", "mp", *(("=", "approx") if self.at == 0 else ()))
        node = self.read(5) if sign else self.power()
        if sign == "-":  # -5 cm is (-5) cm
            return ("unit", ("neg", node[1]), node[2]) if node[0] == "unit" else ("neg", node)
        return (sign, ("num", Fraction(0)), node) if sign in ("pm", "mp") else node

    def several(self, node, binds: int) -> tuple:
        """a, b and c; a < b <= c; a union b; a : b : c"""
        parts, signs = [node], []
        while _LEVEL.get(self.next) == binds:
            signs.append(self.next)
            while self.take(signs[-1]) and binds == 1:  # ", and"
                pass
            parts.append(self.read(binds))
        if binds == 2:
            return ("rel", " ".join(signs), *parts)
        if signs[0] == "choose":
            return ("binom", *parts)
        if binds == 4:  # 2 : 3 is 2/3; 1 : 2 : 3 is 1/3, 2/3
            if node[0] == "text":
                self.fail("a label, not a ratio,")
            shares = [("/", part, parts[-1]) for part in parts[:-1]]
            return shares[0] if len(shares) == 1 else ("seq", ":", ":", *shares)
        if binds == 3 and {part[0] for part in parts} == {"set"}:  # {1, 2} with {3}
            return ("set", *(item for part in parts for item in part[1:]))
        return ("list" if binds == 1 else "union", *parts)

    def product(self, node) -> tuple:
        """2x, f(x); not 5 6 for 30, nor x2 for 2x, but 2^6 3^5"""
        last = node[-1] if node[0] == "*" else node
        number = self.next[0] in ("num", "dec")
        if number and last[0] not in ("^", "pow", "!") or node[0] == "unit" and node[2] not in ("%", "deg"):
            self.fail("two quantities side by side")
        return self.call(node) or ("*", node, self.power())

    def call(self, node) -> tuple | None:
        r"""f(x), f^{-1}(x), f(2), and before an equals sign also P(\text{red}), P(X > 2), f(x, y), E[X]"""
        inverse = node[0] == "^" and node[1][0] == "sym" and node[2] == ("neg", ("num", 1))
        if node[0] != "sym" and not inverse or self.next not in ("(", "[") or self.tokens[self.at - 1] == ")":
            return None
        end = depth = 1
        while depth and self.at + end < len(self.tokens) - 1:
            depth += (self.tokens[self.at + end] in ("(", "[")) - (self.tokens[self.at + end] in (")", "]"))
            end += 1
        inside, after = self.tokens[self.at + 1 : self.at + end - 1], self.tokens[self.at + end]
        equated = after in ("=", "approx") and (node[-1] in ("P", "E", "f", "g", "h") or len(node[-1]) > 1)
        if not equated and (self.next == "[" or len(inside) != 1 or inside[0][0] not in ("sym", "num")):
            return None
        self.at += end
        return ("call", node, *inside)

    def unit(self, node) -> tuple:
        """5 cm^2, 5 km/h, 5 red balls; not 5 dozen, 5 squared, "5 or more" """
        words, powers, sign = [], {}, 1
        while self.next[0] == "text" or self.next in ("/", "*") and self.tokens[self.at + 1][0] == "text":
            word = self.next[1] if self.next[0] == "text" else self.next
            self.at += 1
            if word in ("/", "per"):
                sign = -1
            elif word not in ("*", "of", "the", "a", "an"):
                exponent = self.argument(exponent=True) if self.take("^") else ("num", 1)
                power = -exponent[1][1] if exponent[0] == "neg" else exponent[1]
                powers[unit_name(word)] = powers.get(unit_name(word), 0) + sign * power
                words, sign = [*words, word], 1
        known = any(
            unit_name(word.removeprefix("mu")) in UNIT_NAMES or word.endswith("s") for word in words
        ) or node == ("num", 1)
        if CLAUSES & set(words) or not known or node[0] == "text":
            self.fail("words that are no unit,")
        powers.pop("rad", None)
        unit = " ".join(name if p == 1 else f"{name}^{p}" for name, p in sorted(powers.items()) if p)
        return _measured(node, unit.replace("h^-1 mile", "mph")) if unit else node

    def power(self) -> tuple:
        node = self.atom()
        while sign := self.take("!", "%", "circ", "^", "_"):
            exponent = self.argument(exponent=True) if sign in "^_" else None
            if node[0] == sign == "!" or node[0] == "unit":  # 5!!, 5%%
                self.fail("a second sign")
            if sign == "_":
                node = ("base", str(node[1]), int(exponent[1])) if node[0] == "num" else self.fail("no digits")
            elif sign in ("%", "circ"):
                node = ("unit", node, "%" if sign == "%" else "deg")
                self.take(("sym", "C"), ("sym", "F"))  # 20^\circ C
            else:
                node = _raised(node, exponent) if sign == "^" else ("!", node)
        return node

    def argument(self, exponent: bool = False) -> tuple:
        """What follows a command, ^ or _: {...} or one token"""
        if exponent and self.take("-"):
            return ("neg", self.argument(exponent))
        token, node = self.next, self.atom()
        return _raised(node, self.argument(exponent)) if exponent and token != "{" and self.take("^") else node  # 2^3^2

    def atom(self) -> tuple:
        token = self.next
        self.at += 1
        if token[0] == "text":
            if unit_name(token[1]) in MONEY.values() and self.binds() in (5, 6):  # USD 18
                return _measured(self.read(5), unit_name(token[1]))
            while self.next[0] == "text":  # \text{Total area} = 5
                token = ("text", f"{token[1]} {self.next[1]}")
                self.at += 1
            return token if self.binds() < 6 or self.next in ("/", "*") else self.fail("words")
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
        self.at -= 1
        self.fail("cannot read on")

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
        return ("seq", *("()" if opened == "langle" else (opened, closed)), *items)

    def function(self, name: str) -> tuple:
        base = power = None
        while sign := self.take("_", "^"):
            base, power = (self.argument(), power) if sign == "_" else (base, self.argument(exponent=True))
        if opened := self.take("(", "{"):
            node = self.bracket(opened)
        else:  # sin 2x cos y: up to the next function
            node = self.power()
            while (
                self.binds() == 6
                and self.next not in FUNCTIONS | {"*", "/", "|"}
                and self.next[0] not in ("text", "num")
            ):
                node = ("*", node, self.power())
        if power == ("neg", ("num", 1)):
            name, power = "arc" + name, None
        node = (name, node) if base is None else (name, node, base)
        return node if power is None else _raised(node, power)

    def matrix(self) -> tuple:
        """A column or a row is a sequence of its cells, any other matrix a sequence of rows."""
        kind, rows = self.next, [[]]
        self.at += 1
        while not self.take("end"):
            rows[-1].append(self.read())
            if self.take(r"\\") and self.next != "end":
                rows.append([])
            elif self.next != "end":
                self.take("&") or self.fail("no end of a matrix")
        if kind == "vmatrix":
            self.fail("a determinant")
        if len(rows) == 1 or all(len(row) == 1 for row in rows):
            cells = sum(rows, [])
            return ("list", *cells) if kind in ("cases", "aligned") else ("seq", "matrix", "", *cells)
        return ("seq", "matrix", "", *(("seq", "matrix", "", *row) for row in rows))


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
