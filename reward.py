r"""The teacher: which answer did an attempt give, does it equal the gold answer, and what is that worth?

    python reward.py "ANSWER" "GOLD"        prints the verdict and how both were read

An answer is model text, so nothing here evaluates it as code: our own tokenizer and precedence climber turn LaTeX into
nested tuples, or refuse it whole. Two expressions are equal when they agree at fixed probe points: exactly (fractions)
where the arithmetic is rational, else to 60 digits (mpmath; sympy itself is not needed). Every size is bounded before
any work is done, and what cannot be read equals only what is written the same.

Conventions (ANSWER is GOLD; the tests read this table). The gold's form decides:
| matter            | examples                                                     | reason                                   |
|-------------------|--------------------------------------------------------------|------------------------------------------|
| exact gold        | 2/4 is 1/2; 0.33 is not 1/3; 0.3333333333333 is 1/3           | only a float in full (13 digits) counts  |
| decimal gold      | 100/3 is 33.3; \pi is 3.14; 33.34 is not 33.3                 | it was rounded, an exact value was not   |
| integer gold      | 45001 is not 45000; 27.04 is not 27.0; 2^3 is 8               | no tolerance, but any exact spelling     |
| percent, degrees  | 28 is 28\%; 0.28 is 28\%; 28 is not 0.28; \pi/2 is 90^\circ   | the sign is a unit, or else a factor     |
| units, money      | 5 is 5 cm; 5 cm is 5; 5 km is not 5 cm; 5m is not 5           | may be left out, not exchanged           |
| bases             | 52 is not 52_8; 101_2 is 5                                   | a base that the gold names must be named |
| lists, sets       | 2, 1 is \{1, 2\}; 1 is not 1, 2; \pm 1 is 1, -1               | unordered, nothing missing, nothing more |
| tuples, intervals | (2, 1) is not (1, 2); [1, 2] is not (1, 2); 1, 2 is not (1, 2) | ordered, and the brackets count         |
| names, equations  | x = 5 is 5; y = 5 is not x = 5; y = 2x + 3 is 2x - y + 3 = 0  | a name may go, an equation be scaled     |
| inequalities      | 2 < x is (2, \infty); x \in (2, \infty) is x > 2              | the same set                             |
| words             | Even is \text{even}; C. 42 is (C); True is not 1              | case, articles, the text of a choice     |
"""
from __future__ import annotations

import contextlib, json, math, os, queue, re, resource, select, signal, subprocess, sys, threading, unicodedata  # noqa: E401
from concurrent.futures import Future
from fractions import Fraction
from functools import lru_cache, partial

MAX_CHARS, MAX_DEPTH, MAX_DIGITS, MAX_BITS, MAX_ITEMS = 400, 40, 60, 24_000, 32
FULL_FLOAT = 13                                           # significant digits from which a decimal was surely computed


class Unreadable(Exception):
    """The text is no answer that this file can read, or evaluating it would cost too much."""


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
    starts = []                                           # one per open brace: where a box's content starts, or None
    for mark in _BRACE.finditer(text):
        if mark[0] == "}":
            start = starts.pop() if starts else None
            if start is not None:
                return text[start:mark.start()].strip()
        elif mark[0] == "{" or len(mark[0]) > 2:
            starts.append(mark.end() if len(mark[0]) > 2 else None)
    return None


# ---------------------------------------------------------------------------------- one spelling for what means the same
_GREEK = ("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau "
          "upsilon phi chi psi omega hbar ell partial nabla").split()
_NAMED = dict(zip("√∞≤⩽≥⩾≠≈∪∈±∓∅⟨⟩⌊⌋⌈⌉≡°º˚", (
    "sqrt infty le le ge ge ne approx cup in pm mp emptyset langle rangle lfloor rfloor lceil rceil equiv circ circ circ").split()))
_NAMED |= {chr(0x3B1 + k): name for k, name in enumerate(_GREEK[:25])}
_SIGNS = {ord(sign): f"\\{name} " for sign, name in _NAMED.items()} | {ord(sign): to for signs, to in (
    ("−–—‐‑", "-"), ("×·⋅∙∗", "*"), ("÷⁄∕", "/"), ("′’", "'"), ("€", r"\text{euro}"), ("£", r"\text{pound}")) for sign in signs}
_STYLES = (r"text|mbox|hbox|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mathcal|mathbb|operatorname\*?|"
           "boldsymbol|bm|rm|bf|underline|boxed|fbox")
_UNICODE = [(re.compile(pattern), to) for pattern, to in [                  # before NFKC makes plain digits of them
    ("[⁰¹²³⁴-⁹⁻]+", r"^{\g<0>}"), ("[₀-₉]+", r"_{\g<0>}"), ("[¼-¾⅐-⅞]", r" \g<0>"), ("ℝ", r"\\mathbb{R}")]]
_RULES = [(re.compile(pattern), to) for pattern, to in [
    (r"^\s*(\*\*|`+)(.*)\1\s*$", r"\2"),                                                # markdown
    (r"^\s*(?:\\text\{)?\s*all real(?: number)?s?\}?\s*$", r"\\mathbb{R}"),
    (r",\s*\\!\s*|(?<=\d)\s*\{\s*,\s*\}\s*(?=\d)", "{,}"),
    (r"\\!|\\(?:left|right)\s*\.|\\(?:text)?color\s*\{\w*\}", ""),
    (r"\\(left|right)\s*\|", r"\\\1bar "), (r"\*\*", "^"), (r"\b(?:np|math|sympy)\.(?=[a-z])", ""),
    (r"\\[()]|(?<!\\)\\[\[\],;:> \n]|(?<!\\)\$|~|\\q?quad|\\(?:display|text)style\b|[^\S\n]", " "),
    (r"\^?\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z])|\\degree(?![a-z]))", r"\\deg "),
    (r"\\deg\s*(?:\\(?:text|mathrm)\s*\{\s*[CF]\s*\}|[CF](?![A-Za-z]))", r"\\deg "),    # 20 degrees Celsius
    (r" +", " "), (r"(?<=\d)\{,\}(?=\d{3})", ""),
    (r"(?<![\d.,_^])(?<![\d.,] )\d{1,3}(?: \d{3})+(?![\d,])", lambda match: match[0].replace(" ", ""))]]
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_MIXED = re.compile(r"(?<![\w./^}{)\\])(\d{1,9}) ?(?:(?<= )(\d{1,9})/(\d{1,9})(?![\w/.^])|"
                    r"\\[dtc]?frac ?(?:\{(\d+)\}|(\d)) ?(?:\{(\d+)\}|(\d)(?!\d)))")


def _clean(text: str) -> str:
    """Signs, spaces and thousands in one spelling. Digits are not joined over a newline, nor by commas beside brackets."""
    if not text.isascii():
        for pattern, to in _UNICODE:
            text = pattern.sub(to, text)
        text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
        text = "".join(str(unicodedata.decimal(c, c)) for c in text if unicodedata.category(c) != "Cf")
    if r"\\begin" in text:                                # escaped twice on its way here
        text = text.replace(r"\\", "\\")
    elif r"\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)
    for pattern, to in _RULES:
        text = pattern.sub(to, text)

    def mixed(match):                                     # 2 1/3 and 2\frac13 are sums; 2\frac{4}{3} is a product
        whole, top, bottom = filter(None, match.groups())
        return f"({whole}+{top}/{bottom})" if int(top) < int(bottom) else match[0]
    if not re.search(r"[(\[]|\\\{", text):                # (1,234) is a pair
        text = _GROUPED.sub(lambda match: match[0].replace(",", ""), text)
    text = _MIXED.sub(mixed, text)
    return re.sub(r"(?<![0-9A-Za-z.])\s+|\s+(?![0-9A-Za-z.])", "", re.sub(r"(?:[\s.,;]|\\(?![{}%]))+$", "", text))


_BARE = re.compile(rf"\\(?:{_STYLES})(?![a-z])|[{{}}().,]|\b(?:an?|the)\s+(?=[a-z])|(?<=\d)(?:st|nd|rd|th)\b", re.IGNORECASE)
_MONTH = re.compile(r"\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)")
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?(?:\\text)?[\s{]*(?:([ap])\.?m\.?)?\}?", re.IGNORECASE)
_LETTER = re.compile(r"(?:\\text\w*)?\{?\(?([A-J])\)?\}?")
_CHOICE = re.compile(r"(?:\\text\w*\{)?\(?([A-J])[.:)]+\}?\s*(?!.*(?:\b[A-J][.:)]|\b(?:or|and)\b)).+")


def _words(clean: str) -> list[str] | None:
    """The words of an answer in words, lower case, without articles; None for a formula."""
    words = _BARE.sub(" ", clean).lower().split()
    if not any(re.search("[a-z]{2}", w) for w in words) or not re.fullmatch(r"[a-z0-9' -]*", " ".join(words)):
        return None
    return sorted(words) if _MONTH.search(" ".join(words)) else words       # 5 May 2020 = May 5th, 2020


def _at_sight(answer: str, gold: str) -> bool | None:
    """The verdict on two cleaned texts that need no parser: equal texts, words, times, choices. None: read on."""
    if answer == gold or not answer or not gold or max(len(answer), len(gold)) > MAX_CHARS:
        return answer == gold != ""
    if words := _words(gold):
        return True if words == _words(answer) else None
    if (a := _TIME.fullmatch(answer)) and (g := _TIME.fullmatch(gold)):     # 20:34 = 8:34 p.m. = 8:34 = 08:34:00
        hours = [int(t[1]) % 12 + 12 * (t[4] in "pP") if t[4] else int(t[1]) for t in (a, g)]
        either_half = bool(a[4]) != bool(g[4]) and int((g if a[4] else a)[1]) <= 12
        same_hour = hours[0] == hours[1] or either_half and (hours[0] - hours[1]) % 12 == 0
        return same_hour and a[2] == g[2] and (a[3] or "00") == (g[3] or "00")
    choice, letter = _CHOICE.fullmatch(answer), _LETTER.fullmatch(gold)
    return True if choice and letter and choice[1] == letter[1] else None


# ------------------------------------------------------------------------------------------------------------ the tokens
_FUNCTIONS = set("sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc asin acos atan sinh cosh tanh log ln exp "
                 "abs floor ceil".split())
_SPELLINGS = {spelling: name for name, spellings in {
    "<=": "le leq leqslant", ">=": "ge geq geqslant", "<": "lt", ">": "gt", "!=": "ne neq", "=": "== :=", "*": "times cdot",
    "/": "div", ",": "and or ;", "|": r"vert \|", "%": r"percent pct percentage \%", "deg": "degree degrees",
    "infty": "infinity inf oo", "frac": "dfrac tfrac cfrac", "binom": "dbinom tbinom",
    "emptyset": "varnothing", "dots": "ldots cdots dotsc", r"\{": "lbrace", r"\}": "rbrace",
}.items() for spelling in spellings.split()}
_UNITS = {word: words.split()[0] for words in (
    "cm centimeter centimetre", "mm millimeter millimetre", "km kilometer kilometre", "m meter metre", "inch in inche",
    "ft foot feet", "yd yard", "mile mi", "kg kilogram", "g gram", "mg milligram", "lb", "oz ounce", "s second sec",
    "min minute", "h hour hr", "mph", "dollar usd", "cent", "euro", "pound", "l liter litre", "ml milliliter", "unit",
    "day", "week", "month", "year") for word in words.split()}
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_BASES = {name: str(k + 2) for k, name in enumerate("two three four five six seven eight nine ten eleven twelve".split())}
_QUIET = set("left right big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle limits angle triangle".split())
_TOKEN = re.compile(rf"""\s*(?:(?P<repeat>\d*\.\d*)\\overline\s*\{{(?P<cycle>\d{{1,20}})\}}
    |(?P<number>\d[\dA-F]*(?=_\{{?1[1-6])|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+(?!\w))?)
        (?:_(?:\\text)?\{{?(?:\\text\{{)?(?P<base>\w+)\}}*)?
    |\\(?:{_STYLES})(?![a-z])\s*(?:\{{(?P<styled>[^{{}}]*)\}}|(?P<bare>[A-Za-z0-9]))?
    |\\(?P<accent>overline|vec|hat|bar|d?dot|tilde|widehat|overrightarrow)(?![a-z])\s*\{{?(?P<under>\w+)\}}?
    |\\begin\{{(?P<begin>\w+)\*?\}}(?:\{{[lcr|]*\}})?|(?P<end>\\end\{{\w+\*?\}})
    |\\(?P<command>[A-Za-z]+)|(?P<word>[A-Za-z]+)|(?P<sign><=|>=|!=|==|:=|\\?\S))""", re.VERBOSE)
_PHRASE = re.compile(r"(?: (?!and\b|or\b)[A-Za-z]+)+")
_SUBSCRIPT = re.compile(r"\s*_\s*(?:\{[^{}]*\}|\\[a-zA-Z]+|\w)|'")


def _number(raw: str) -> tuple:
    """("num", value) or, for a decimal, ("dec", value, half a unit of its last digit, how many significant digits)."""
    mantissa, _, exponent = raw.lower().partition("e")
    digits, _, places = mantissa.partition(".")
    if len(digits + places) > MAX_DIGITS or len(exponent) > 4:
        raise Unreadable("a number with too many digits")
    unit = Fraction(10) ** (int(exponent or 0) - len(places))
    value = int(digits + places) * unit
    return ("dec", value, unit / 2, len((digits + places).lstrip("0"))) if places or exponent else ("num", value)


def _word(word: str, quoted: bool = False) -> list:
    """Tokens for a run of letters: a function, a name, a connective, a unit or another word, or single variables."""
    low = word.lower()
    if word in _FUNCTIONS or word in ("sqrt", "infty"):
        return [word]
    if word in _GREEK or low in _SPELLINGS:
        return [_SPELLINGS.get(low) or (("pi",) if word == "pi" else ("sym", word))]
    if low in _POWERS:
        return ["*", ("num", Fraction(10) ** _POWERS[low])]
    if quoted or len(word) > 3 or len(word) > 1 and low.rstrip("s") in _UNITS:
        return [("text", low)]
    return [(c,) if c in "ei" else ("sym", c) for c in word]


def _tokens(text: str) -> list:
    """Atoms as nodes, all else as plain strings."""
    out, at = [], 0
    while at < len(text) and (match := _TOKEN.match(text, at)):
        group, at = match.groupdict(), match.end()
        if group["repeat"]:                                                 # 0.1\overline{6}
            whole, _, fixed = group["repeat"].partition(".")
            cycle = Fraction(int(group["cycle"]), (10 ** len(group["cycle"]) - 1) * 10 ** len(fixed))
            out.append(("num", Fraction(int(whole + fixed or 0), 10 ** len(fixed)) + cycle))
        elif group["number"]:
            money = [("text", "dollar")] if out[-1:] == [r"\$"] and out.pop() else []
            base = group["base"] and _BASES.get(group["base"], group["base"])
            out += [("base", group["number"].lstrip("0"), base) if base else _number(group["number"]), *money]
        elif styled := group["styled"] or group["bare"]:                    # words stay words, the rest is read as if bare
            words = styled.strip(" .,;:").lower()
            after = out and (out[-1][0] in ("num", "dec") or out[-1] in (")", "}", "/"))
            unit = after and re.fullmatch(r"[mgshLNJWVKA](/\w+)?", styled)             # 5 \text{m}
            if words[:1].isdigit() or not re.search("[a-z]{2}", re.sub(r"\b(?:and|or)\b", "", words)) and not unit:
                out += _tokens(styled)
            else:
                out += _word(words if words != styled.lower() else styled, True) if words.isalpha() else [("text", words)]
        elif group["accent"]:
            out.append(("sym", group["accent"] + group["under"]))
        elif group["begin"] or group["end"]:
            out += ["begin", group["begin"]] if group["begin"] else ["end"]
        elif name := group["command"]:
            if name.lower() in _GREEK or name[:3] == "var" and name[3:] in _GREEK:
                out.append(("pi",) if name == "pi" else ("sym", name))
            elif name not in _QUIET:
                out.append(_SPELLINGS.get(name, name))
        elif word := group["word"]:
            out += ["cup"] if word == "U" and out and out[-1] in (")", "]") else _word(word)
            if out[-1][:1] == ("text",) and (more := _PHRASE.match(text, at)):           # miles per hour
                out[-1], at = ("text", out[-1][1] + more[0].lower()), more.end()
        elif group["sign"]:
            out.append(_SPELLINGS.get(group["sign"], group["sign"]))
        while out and out[-1][:1] == ("sym",) and (tail := _SUBSCRIPT.match(text, at)):            # x_1, x_{n+1}, f'
            out[-1], at = ("sym", out[-1][1] + re.sub(r"[\s{}\\]", "", tail[0])), tail.end()
    return out


# ------------------------------------------------------------------------------------------------------------ the parser
_LEVEL = {",": 1, "<": 2, ">": 2, "<=": 2, ">=": 2, "=": 2, "!=": 2, "in": 2, "approx": 2, "cup": 3, ":": 4,
          "+": 5, "-": 5, "pm": 5, "mp": 5, "*": 6, "/": 6}
_CLOSES = {"(": ")]", "[": "])", r"\{": (r"\}",), "{": "}", "langle": ("rangle",), "leftbar": ("rightbar",), "|": "|",
           "lvert": ("rvert",), "lfloor": ("rfloor",), "lceil": ("rceil",)}
_NUMBERS = ("num", "dec", "base")
_ENDS = {"the end", "end", "&", r"\\"}.union(*_CLOSES.values()) - {"|"}
_CLAUSE = re.compile(r"\b(not|no|or|and|if|when|unless|except|but|more|less|least|most|than|maybe|for|where|is|are|to)\b|"
                     r"\d\D*\d")


class _Parser:
    """Precedence climbing over one answer's tokens. All of them must be read, or nothing is."""

    def __init__(self, tokens: list):
        self.tokens, self.at, self.depth, self.bars = tokens + ["the end"], 0, 0, 0

    @property
    def next(self):
        return self.tokens[self.at]

    def take(self, *wanted):
        token = self.next
        self.at += token in wanted
        return token if token in wanted else None

    def fail(self, why: str):
        raise Unreadable(f"{why} at {self.next}")

    def need(self, *wanted):
        return self.take(*wanted) or self.fail(f"expected {' or '.join(wanted)}")

    def read(self, level: int = 0):
        """All that binds tighter than `level`: 0 a list, 1 a relation, 2 a union, 3 a ratio, 4 a sum, 5 a product"""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail("nested too deeply")
        sign = self.take("-", "+", "pm", "mp", *(("=", "approx") if self.at == 0 else ()))
        node = self.read(5) if sign else self.power()
        node = ("neg", node) if sign == "-" else (sign, ("num", Fraction(0)), node) if sign in ("pm", "mp") else node
        while True:
            token = self.next
            binds = _LEVEL.get(token, 0 if token in _ENDS or token == "|" and self.bars else 6)
            if binds <= level:
                break
            if binds < 5:
                node = self.several(node, binds)
            elif token in _LEVEL:
                self.at += 1
                node = (token, node, self.read(binds) if binds < 6 or self.next in ("-", "+") else self.power())
            elif token[0] == "text":
                node = self.unit(node)
            elif node[0] == "unit" or token[0] in _NUMBERS and (node[-1] if node[0] == "*" else node)[0] not in ("^", "pow"):
                self.fail("two quantities side by side")                    # 5 6 is not 30, x2 is not 2x; 2^6 3^5 is read
            else:
                right = self.power()
                called = node[0] == "sym" and token == "(" and right[0] in ("group", "num")            # f(x)
                node = ("call" if called else "*", node, right)
        self.depth -= 1
        return node

    def several(self, node, binds):
        """a, b and c; a < b <= c; a union b; a : b : c"""
        parts, signs = [node], []
        while _LEVEL.get(self.next) == binds:
            signs.append(self.next)
            while self.take(signs[-1]) and binds == 1:                      # ", and"
                pass
            parts.append(self.read(binds))
        if binds == 4:                                                      # 2 : 3 is 2/3; 1 : 2 : 3 is 1/3, 2/3
            shares = [("/", part, parts[-1]) for part in parts[:-1]]
            return shares[0] if len(shares) == 1 else ("seq", ":", ":", *shares)
        if binds != 2:
            return ("list" if binds == 1 else "union", *parts)
        if signs == ["="] and (parts[1][0] == "call" != parts[0][0] or _is_name(parts[1]) and not _is_name(parts[0])):
            parts.reverse()                                                 # 5 = x, 2x = f(x)
        return _chain(parts, signs) if set(signs) <= {"=", "approx"} else ("rel", " ".join(signs), *parts)

    def unit(self, node):
        """5 cm^2, 5 km/h, 5 red balls; a clause as in "5 or more" is no unit"""
        words = self.next[1]
        self.at += 1
        while sign := self.take("^", "/"):
            words += sign + str((self.argument(exponent=True) if sign == "^" else self.atom(unit=True))[1])
        if _CLAUSE.search(words):
            self.fail("a clause, not a unit,")
        square = "^2" if re.search(r"\bsq(uare)?\b|\^2", words) else "^3" if re.search(r"\bcu(bic)?\b|\^3", words) else ""
        words = re.sub(r"\b(square|cubic|sq|cu)\b|\^\d|\.", " ", words).split()
        return ("unit", node, " ".join(_UNITS.get(w, _UNITS.get(w[:-1], w.rstrip("s"))) for w in words) + square)

    def power(self):
        node = self.atom()
        while sign := self.take("!", "%", "deg", "^"):
            if node[0] == sign != "^":                                      # 5!!, 5%%
                self.fail("the same sign twice")
            node = (sign, node) if sign != "^" else _raised(node, self.argument(exponent=True))
        return node

    def argument(self, exponent: bool = False):
        r"""What follows a command or ^: {...}, or one token; of a number one digit as in \frac12, but x^10 and \sqrt10"""
        if exponent and self.take("-"):
            return ("neg", self.argument(exponent))
        token = self.next
        if not exponent and token[0] == "num" and token[1] > 9:
            self.tokens[self.at] = ("num", Fraction(str(token[1])[1:]))
            return ("num", Fraction(str(token[1])[0]))
        node = self.atom()
        return _raised(node, self.argument(exponent)) if exponent and token != "{" and self.take("^") else node   # 2^3^2

    def atom(self, unit: bool = False):
        token = self.next
        self.at += 1
        if isinstance(token, tuple):
            return token if token[0] != "text" or unit or self.next in _ENDS or self.next in _LEVEL else self.fail("words")
        if token in _CLOSES:
            return self.bracket(token)
        if token in ("frac", "binom"):
            top, bottom = self.argument(), self.argument()
            return ("/" if token == "frac" else "binom", top, bottom)
        if token == "sqrt":
            index = self.bracket("[") if self.take("[") else ("num", Fraction(2))
            return ("root", self.argument(exponent=True), index)
        if token in _FUNCTIONS:
            return self.function(token)
        if token == "begin":
            return self.matrix()
        if token in ("emptyset", "infty"):
            return ("set",) if token == "emptyset" else ("inf",)
        self.at -= 1
        self.fail("cannot read on")

    def bracket(self, opened):
        self.bars, outer = int(opened == "|"), self.bars
        if opened == r"\{" and self.next[0] == "sym" and self.tokens[self.at + 1] in ("|", "mid"):         # {x | 1 < x < 2}
            self.at += 2
            node = self.read()
            return node if self.need(r"\}") and node[0] == "rel" else self.fail("no condition")
        node = ("set",) if opened == r"\{" and self.next == r"\}" else self.read()
        closed, self.bars = self.need(*_CLOSES[opened]), outer
        if opened in ("|", "lvert", "leftbar", "lfloor", "lceil"):
            return ({"lfloor": "floor", "lceil": "ceil"}.get(opened, "abs"), node)
        items = node[1:] if node[0] in ("list", "set") else (node,)
        if opened == r"\{":
            return ("set", *items)
        if opened == "{" or len(items) == 1 and opened + closed in ("()", "[]"):
            return ("group", node) if node[0] == "sym" and opened == "(" else node
        return ("seq", *("()" if opened == "langle" else (opened, closed)), *items)

    def function(self, name):
        base = power = None
        while sign := self.take("_", "^"):
            base, power = (self.argument(), power) if sign == "_" else (base, self.argument(exponent=True))
        if self.next in ("(", "{"):
            node = self.bracket(self.take("(", "{"))
        else:                                                               # sin 2x cos y: up to the next function
            node = self.power()
            while self.next not in _ENDS | _FUNCTIONS | set(_LEVEL) | {"|"} and self.next[0] not in ("text", "num"):
                node = ("*", node, self.power())
        if power == ("neg", ("num", 1)):
            name, power = "arc" + name, None
        node = (name, node) if base is None else (name, node, base)
        return node if power is None else _raised(node, power)

    def matrix(self):
        """A column or a row is a sequence of its cells, any other matrix a sequence of rows"""
        kind, rows = self.next, [[]]
        self.at += 1
        while not self.take("end"):
            rows[-1].append(self.read())
            if self.take(r"\\") and self.next != "end":
                rows.append([])
            elif self.next != "end":
                self.need("&")
        if kind == "cases" or len(rows) == 1 or all(len(row) == 1 for row in rows):
            cells = [cell for row in rows for cell in row]
            return ("list", *cells) if kind == "cases" else ("seq", "matrix", "", *cells)
        return ("det" if kind == "vmatrix" else "seq", "matrix", "", *(("seq", "matrix", "", *row) for row in rows))


def _raised(base, exponent):
    whole = exponent[-1] if exponent[0] == "neg" else exponent
    kind = "^" if whole[0] == "num" and whole[1].denominator == 1 else "parity" if base == ("neg", ("num", 1)) else "pow"
    return (kind, base, exponent)


def _chain(parts, signs):
    """x = 1 + 1 = 2, 1/3 = 0.33...: one value, with a name or without; every link of the chain must hold"""
    label = _is_name(parts[0]) or len(parts) == 2 and "approx" not in signs and _names(("=", *parts))
    name, *values = parts if label else (None, *parts)
    for value, sign in zip(values[1:], signs[-len(values) + 1:]):
        if not _same(value, values[0]) and not (sign == "approx" and _same(values[0], value)):
            raise Unreadable("a chain of equalities that does not hold")
    return ("rel", "=", name, values[0]) if name else values[0]


@lru_cache(1 << 14)
def read(clean: str) -> tuple:
    """The node of a cleaned answer, or ("unreadable", why)."""
    try:
        parser = _Parser(_tokens(clean))
        node = parser.read()
        parser.need("the end")
        return node
    except (Unreadable, ArithmeticError, ValueError, IndexError, TypeError) as error:
        return ("unreadable", str(error))


# -------------------------------------------------------------------------------------------------------- exact evaluation
@lru_cache(1)
def _mp():
    from mpmath.ctx_mp import MPContext                   # a context of our own: the global one belongs to the caller
    context = MPContext()
    context.dps = 80
    return context


def _refuse():
    raise Unreadable("no value, or one too large to work with")


def _lift(*values):
    """Fractions as they are, unless one of the values is none: then all with 80 digits"""
    return values if all(isinstance(v, Fraction) for v in values) else [_mp().convert(v) for v in values]


def _bounded(value):
    """The value, refused where its size makes further work expensive"""
    if isinstance(value, Fraction):
        return value if value.numerator.bit_length() + value.denominator.bit_length() <= MAX_BITS else _refuse()
    if isinstance(value, _mp().mpc) and abs(value.imag) <= abs(value.real) * _mp().mpf("1e-65"):
        value = value.real
    return value if value == 0 or _mp().isfinite(value) and abs(_mp().mag(value)) <= MAX_BITS else _refuse()


def _add(a, b):
    a, b = _lift(a, b)
    total = a + b
    lost = not isinstance(total, Fraction) and abs(total) <= abs(a) * _mp().mpf("1e-65")           # all digits cancelled
    return Fraction(0) if lost else total


def _power(a, b):
    whole = isinstance(b, Fraction) and b.denominator == 1
    if whole and isinstance(a, Fraction):
        bits = a.numerator.bit_length() + a.denominator.bit_length() - 1
        return a ** int(b) if abs(b) * bits <= MAX_BITS else _refuse()
    if a == 0:
        return Fraction(0) if isinstance(b, Fraction) and b > 0 else _refuse()
    a, b = _mp().convert(a), int(b) if whole else _mp().convert(b)
    return a ** b if abs(b) * (abs(_mp().mag(a)) + 1) < MAX_BITS else _refuse()


def _root(x, index):
    odd = isinstance(index, Fraction) and index.denominator == 1 and index % 2 and not isinstance(x, _mp().mpc)
    return -_power(-x, 1 / index) if odd and x < 0 else _power(x, Fraction(1) / _lift(index)[0])   # the cube root of -8 is -2


def _floor(x):
    return Fraction(math.floor(x) if isinstance(x, Fraction) else int(_mp().floor(x + _mp().mpf("1e-60"))))


def _call(name, x, *others):
    """A function of mpmath, where its argument is not too large and it has no pole"""
    x = _mp().convert(x)
    if _mp().mag(x) > (200 if name in ("sin", "cos", "tan", "log") else 13) or name == "log" and x == 0:
        _refuse()
    value = getattr(_mp(), name)(x, *map(_mp().convert, others))
    if name[-3:] in ("tan", "cot", "sec", "csc") and _mp().mag(value) > 200:
        _refuse()
    return Fraction(0) if abs(value) < _mp().mpf("1e-70") < abs(x) else value


_COMPUTE = {
    "+": _add, "-": lambda a, b: _add(a, -b), "neg": lambda a: -a, "*": lambda a, b: math.prod(_lift(a, b)),
    "/": lambda a, b: math.prod(_lift(a, 1 / b)), "^": _power, "pow": _power, "parity": _power, "root": _root,
    "group": lambda a: a, "%": lambda a: a / 100, "deg": lambda a: math.prod(_lift(a, _mp().pi / 180)),
    "abs": abs, "floor": _floor,
    "ceil": lambda x: -_floor(-x), "ln": lambda x: _call("log", x), "binom": lambda n, k: _call("binomial", n, k),
    "!": lambda n: Fraction(math.factorial(int(n))) if isinstance(n, Fraction) and n.denominator == 1 and 0 <= n < 2100
    else _call("factorial", n), "pi": lambda: +_mp().pi, "e": lambda: +_mp().e, "i": lambda: _mp().mpc(0, 1),
    "base": lambda digits, base: Fraction(int(digits, int(base) or 1))}


def _value(node, at: dict):
    """The node at one probe point: a Fraction where all of it is rational, else a number with 80 digits"""
    kind, *parts = node
    if kind in ("num", "dec", "sym"):
        return parts[0] if kind != "sym" else at[parts[0]]
    parts = [_value(n, at) if isinstance(n, tuple) else n for n in parts]
    compute = _COMPUTE.get(kind) or partial(_call, {"arc": "a" + kind[3:]}.get(kind[:3], kind))
    return _bounded(compute(*parts)) if kind in _COMPUTE or kind in _FUNCTIONS else _refuse()


def _at(node, point: dict):
    """_value, but None where there is none"""
    try:
        return _value(node, point)
    except (Unreadable, ArithmeticError, ValueError):
        return None


def _kinds(node) -> set:
    return {node[0]}.union(*(_kinds(n) for n in node[1:] if isinstance(n, tuple)))


def _names(node) -> set:
    return {node[1]} if node[0] == "sym" else set().union(*(_names(n) for n in node[1:] if isinstance(n, tuple)))


def _points(a, g) -> list[dict]:
    """Probe points for the variables of both: above 1, below 1, each variable once negative; whole for n! and floors"""
    names = sorted(_names(a) | _names(g))
    if not names:
        return [{}]
    if (_kinds(a) | _kinds(g)) & {"!", "binom", "floor", "ceil", "parity"}:
        return [{n: Fraction(2 + 3 * i + j) for i, n in enumerate(names)} for j in range(6)]
    points = [{n: Fraction(90 + 41 * i + 83 * j + 11 * i * j, (37, 247)[j % 2]) for i, n in enumerate(names)} for j in range(4)]
    return points + [{**points[k % 2], n: -points[k % 2][n]} for k, n in enumerate(names[:4])]


def _close(x, y) -> bool:
    x, y = _lift(x, y)
    return x == y if isinstance(x, Fraction) else abs(x - y) <= _mp().mpf("1e-60") * max(abs(x), abs(y))


def _agree(a, g) -> bool:
    """Equal at every point where both are real; at every point where both have a value, if hardly any is real."""
    pairs, imaginary, points = [], [], _points(a, g)
    for point in points:
        x, y = _at(a, point), _at(g, point)
        if x is not None and y is not None:
            real = not any(hasattr(v, "imag") and v.imag for v in (x, y))
            (pairs if real else imaginary).append((x, y))
            if real and not _close(x, y):
                return False
    return len(pairs) >= min(2, len(points)) or bool(imaginary) and all(_close(x, y) for x, y in imaginary)


def _scaled(a, g, sign: int = 0) -> bool:
    """a = factor * g at every point, the factor not zero and, with a sign, of that sign: two equations or inequalities"""
    ratios = [r for point in _points(a, g) if (r := _at(("/", a, g), point)) is not None]
    constant = len(ratios) > 1 and ratios[0] != 0 and all(_close(r, ratios[0]) for r in ratios)
    return constant and (not sign or ratios[0] * sign > 0)


# ------------------------------------------------------------------------------------------------------------- comparison
def _signed(node, sign: int):
    """The node with the upper (1) or lower (-1) sign of each \\pm and \\mp"""
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
    return [_signed(node, 1), _signed(node, -1)] if _kinds(node) & {"pm", "mp"} else [node]


def _is_name(node) -> bool:
    """May it stand left of = as a mere label? x, f(x), AB, |AB|, AB : CD, (p, q), Area"""
    capitals = _kinds(node) <= {"*", "/", "abs", "sym"} and all(n[0].isupper() for n in _names(node))
    inverse = node[0] == "*" and node[1][0] == "^" and node[1][2] == ("neg", ("num", 1)) and node[2][0] == "group"
    tuple_of_names = node[0] == "seq" and all(map(_is_name, node[3:]))
    return capitals or inverse or tuple_of_names or node[0] in ("sym", "text", "call", "group")


def _matched(answers: list, golds: list) -> bool:
    """Each gold has its answer, in any order, and no answer is left over; one that is given twice is given once."""
    if max(len(answers), len(golds)) > MAX_ITEMS:
        return False
    return all(any(_same(a, g) for a in answers) for g in golds) and all(any(_same(a, g) for g in golds) for a in answers)


def _bound(left, right, name: str):
    """(slope, root) of left - right where that is linear in the name, else None"""
    y = [_at(("-", left, right), {name: Fraction(x)}) for x in (0, 1, 2)]
    if None in y or not isinstance(y[0], Fraction) and y[0].imag:
        return None
    slope = _add(y[1], -y[0])
    linear = slope != 0 and _close(_add(y[2], -y[1]), slope)
    return (slope, ("num", _value(("/", ("num", -y[0]), ("num", slope)), {}))) if linear else None


def _intervals(node) -> list | None:
    """The intervals that an inequality, a union or an interval stands for; None for anything else"""
    low, high = ("neg", ("inf",)), ("inf",)
    if node[0] == "rel" and node[1] == "in":
        return _intervals(node[3]) if _is_name(node[2]) else None
    if node[0] == "union" or node[0] == "list" and {n[0] for n in node[1:]} == {"rel"}:
        parts = [_intervals(n) for n in node[1:]]
        return None if None in parts else sum(parts, [])
    if node[0] != "rel" or "=" in node[1].split():
        return [("seq", "(", ")", low, high)] if node == ("sym", "R") else [node] if node[0] in ("seq", "set") else None
    names = [n for n in node[2:] if _is_name(n) and n[0] != "sym"]                       # 0 < f(x) < 1
    parts = [("sym", "?") if n in names else n for n in node[2:]]
    if len(unknown := set().union(*map(_names, parts))) != 1:
        return None
    opened, closed = "(", ")"
    for sign, left, right in zip(node[1].split(), parts, parts[1:]):
        bound = _bound(left, right, *unknown)
        if bound is None or sign == "!=":
            return bound and [("seq", "(", ")", low, bound[1]), ("seq", "(", ")", bound[1], high)]
        if (sign[0] == "<") == (bound[0] > 0):
            high, closed = bound[1], "]" if sign[1:] else ")"
        else:
            low, opened = bound[1], "[" if sign[1:] else "("
    return [("seq", opened, closed, low, high)]


def _same_relation(a, g) -> bool:
    """Two relations, or one and what it names"""
    if a[0] != "rel" or g[0] != "rel":
        rel, other = (a, g) if a[0] == "rel" else (g, a)
        if rel[1] not in ("=", "in") or len(rel) > 4 or not (_is_name(rel[2]) or _is_name(rel[3])):
            return False
        value = rel[3] if _is_name(rel[2]) else rel[2]
        return _same(value, other) if rel is a else _same(other, value)
    if len(a) > 4 or len(g) > 4:
        return a[1] == g[1] and len(a) == len(g) and all(map(_same, a[2:], g[2:]))
    if {a[1], g[1]} <= {"=", "in"}:
        labels = {a[2][0], g[2][0]}
        alike = a[2] == g[2] or "text" in labels or "call" in labels and ("sym", "y") in (a[2], g[2])
        alike = alike or labels == {"call"} and a[2][2][0] == g[2][2][0] == "group"      # f(x) = and g(t) =, but not f(2) =
        if alike and _is_name(a[2]) and _is_name(g[2]) and _same(a[3], g[3]):
            return True
    sign = {("<", "<"): 1, (">", ">"): 1, ("<", ">"): -1, (">", "<"): -1}.get((a[1][0], g[1][0]), 0)
    return (a[1][1:] == g[1][1:] if sign else a[1] == g[1] != "in") and _scaled(("-", *a[2:]), ("-", *g[2:]), sign)


def _rounding(node):
    """(half a unit, digits) of a decimal, of -1.5 and of 1.5 * 10^8; None for an exact value, and 27.0 is one"""
    if node[0] == "dec":
        return node[2:] if node[1].denominator > 1 or node[2] > 1 else None
    inner = _rounding(node[1]) if node[0] == "neg" or node[0] == "*" and node[2][:2] == ("^", ("num", 10)) else None
    return inner and (inner[0] * (_value(node[2], {}) if node[0] == "*" else 1), inner[1])


def _same_value(a, g) -> bool:
    """Two expressions: equal, or one is such a rounding of the other as the conventions allow"""
    for kind, factor in (("%", ("num", Fraction(1, 100))), ("deg", ("/", ("pi",), ("num", Fraction(180))))):
        bare = [n[1] if n[0] == kind else ("neg", n[1][1]) if n[0] == "neg" and n[1][0] == kind else None for n in (a, g)]
        if any(bare):
            return _same_value(bare[0] or a, bare[1] or g) or not all(bare) and _same_value(
                *(("*", n, factor) if n else whole for n, whole in zip(bare, (a, g))))
    if _agree(a, g):
        return True
    rounded, given = _rounding(g), _rounding(a)
    if rounded and not (given and given[1] < max(FULL_FLOAT, rounded[1] + 3)):
        half = rounded[0]
    elif given and given[1] >= FULL_FLOAT and not rounded and g[0] != "num":
        half = 2 * given[0]                                                 # the last digit of a float may be off
    else:
        return False
    gap = None if _names(a) | _names(g) else _at(("-", a, g), {})
    return gap is not None and abs(_lift(gap)[0]) <= (half if isinstance(gap, Fraction) else _mp().convert(half))


def _same(a, g) -> bool:
    """Two nodes, by their kinds from the outermost inward"""
    kinds = {a[0], g[0]}
    if a == g or "unreadable" in kinds:
        return "unreadable" not in kinds
    if "unit" in kinds:
        bare = [n[1] if n[0] == "unit" else n for n in (a, g)]
        return (a[0] != g[0] or a[2] == g[2]) and not kinds & {"%", "deg"} and _same(*bare)
    several = _items(a), _items(g)
    spans = (_intervals(a), _intervals(g)) if kinds & {"rel", "union", "sym"} else (None, None)
    if None not in spans and (kinds != {"rel"} or _names(a) == _names(g)):
        return _matched(*spans)
    if kinds == {"seq"} or kinds == {"seq", "list"}:
        lists = [n[3:] if n[0] == "seq" else items for n, items in zip((a, g), several)]
        fits = a[1:3] == g[1:3] or "matrix" in (a[1], g[1])
        if "list" in kinds:                                                 # without brackets: three or more, or x = 1, y = 2
            fits = len(lists[0]) > 2 or "rel" in (several[0][0][0], several[1][0][0])
        return fits and len(lists[0]) == len(lists[1]) and all(map(_same, *lists))
    if kinds & {"list", "set"} or len(several[0]) + len(several[1]) > 2:
        labels = [{n[2] for n in items if n[0] == "rel"} for items in several]
        if min(map(len, labels)) == 0 and max(map(len, labels)) > 1:         # x = 1, y = 2 against 1, 2
            return len(several[0]) == len(several[1]) and all(map(_same, *several))
        return "seq" not in kinds and _matched(*several)
    if "rel" in kinds:
        return _same_relation(a, g)
    return not kinds & {"text", "seq", "union"} and g[0] != "base" and _same_value(a, g)


def _unbraced(tokens: list) -> list:
    """The tokens without the braces around a single one: \\sum_{k} is \\sum_k"""
    out = []
    for token in tokens:
        out.append(token)
        if token == "}" and out[-3:-2] == ["{"]:
            out[-3:] = [out[-2]]
    return out


def _decide(answer: str, gold: str, cheaply: bool) -> bool | None:
    """The verdict; None where it should come cheaply but takes more than fractions. Never raises."""
    try:
        if max(len(answer), len(gold)) > 10 * MAX_CHARS:                    # even cleaning takes time
            return answer.strip() == gold.strip()
        if answer.isdecimal() and gold.isdecimal() and max(len(answer), len(gold)) <= MAX_DIGITS:
            return int(answer) == int(gold)
        answer, gold = _clean(answer), _clean(gold)
        verdict = _at_sight(answer, gold)
        if verdict is None:
            a, g = read(answer), read(gold)
            if a[0] == g[0] == "unreadable":                                # sums, integrals, remainders
                return _unbraced(_tokens(answer)) == _unbraced(_tokens(gold))
            if cheaply and "unreadable" not in (a[0], g[0]) and (_kinds(a) | _kinds(g)) - _RATIONAL:
                return None
            decimal_comma = re.fullmatch(r"-?\d+\.\d\d+", gold) and answer.replace(",", ".") == gold          # 2,74
            verdict = _same(a, g) or bool(decimal_comma)
        return verdict
    except (Unreadable, ArithmeticError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return False


_RATIONAL = set("num dec sym text base inf unit list set seq rel union + - * / ^ neg % call group pm mp abs floor ceil".split())


@lru_cache(1 << 16)
def is_equal(answer: str, gold: str) -> bool:
    """Is the answer equal to the gold one, by the conventions above? Bounded work in this process; never raises."""
    return _decide(answer, gold, cheaply=False)


# ------------------------------------------------------------------------------------------------------ worker processes
class Grader:
    """Verdicts as futures. What is cheap is decided at once; the rest goes to workers, each a fresh python with this file
    and mpmath alone, in its own process group, with a limit on memory and a deadline for every pair. A pair that costs a
    worker its life is not equal, and the next pair gets a new worker. Without a pair that is hard no worker ever starts."""

    def __init__(self, workers: int = 2, timeout: float = 5.0, memory: int = 1 << 30):
        self.workers, self.timeout, self.memory = workers, timeout, memory
        self.jobs, self.threads, self.known = queue.SimpleQueue(), [], {}

    def submit(self, answer: str, gold: str) -> Future:
        """The future verdict; `RuntimeError` from its result() where no worker can start."""
        if len(self.known) > 1 << 16:
            self.known.clear()
        if (answer, gold) not in self.known:
            future = self.known[answer, gold] = Future()
            verdict = _decide(answer, gold, cheaply=True)
            if verdict is not None:
                future.set_result(verdict)
                return future
            self.jobs.put((answer, gold, future))
            if len(self.threads) < self.workers:
                self.threads.append(threading.Thread(target=self._serve, daemon=True))       # a daemon: it blocks no exit
                self.threads[-1].start()
        return self.known[answer, gold]

    def _serve(self):
        """One thread for each worker: hand it a pair, wait for one byte or the deadline."""
        worker = None
        while (job := self.jobs.get()) is not None:
            answer, gold, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if worker is None or worker.poll() is not None:
                    worker = _start_worker(self.timeout, self.memory)
                worker.stdin.write(json.dumps([answer, gold]).encode() + b"\n")
                reply = _reply(worker, self.timeout)
            except OSError:
                reply = b""
            except RuntimeError as error:
                future.set_exception(error)
                continue
            if not reply:
                worker = _kill(worker)
            future.set_result(reply == b"1")
        _kill(worker)

    def close(self):
        """Finishes what was submitted and ends every worker."""
        for _ in self.threads:
            self.jobs.put(None)
        while self.threads:
            self.threads.pop().join()

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
    worker = subprocess.Popen([*_WORKER, str(timeout), str(memory)], bufsize=0, start_new_session=True, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if _reply(worker, 60) != b"r":                        # ready: the time to start is not the first pair's
        _kill(worker)
        raise RuntimeError(f"no grading worker starts: {' '.join(worker.args)}")
    return worker


def _reply(worker: subprocess.Popen, timeout: float) -> bytes:
    """One byte from the worker; none when it died or the time is up"""
    poll = select.poll()
    poll.register(worker.stdout, select.POLLIN)
    return worker.stdout.read(1) if poll.poll(1000 * timeout) else b""


def _kill(worker: subprocess.Popen | None) -> None:
    if worker is not None:
        with contextlib.suppress(OSError):                # dead already
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        worker.stdin.close()
        worker.stdout.close()


def _work(timeout: float, memory: int):
    """In the worker: a pair a line from stdin, one byte a verdict to stdout, until stdin ends, as when the parent dies."""
    with contextlib.suppress(ValueError, OSError):        # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    _mp()
    os.write(1, b"r")
    for line in sys.stdin.buffer:
        spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])           # should nobody be left to kill this process
        resource.setrlimit(resource.RLIMIT_CPU, (int(spent + timeout) + 2, resource.RLIM_INFINITY))
        os.write(1, b"1" if is_equal(*json.loads(line)) else b"0")


def main(arguments: list[str]):
    if len(arguments) == 3 and arguments[0] == "--worker":
        return _work(float(arguments[1]), int(arguments[2]))
    if len(arguments) != 2:
        print('reward.py takes two texts: python reward.py "ANSWER" "GOLD"', file=sys.stderr)
        return 2

    def show(node):
        return f"{node[0]}({', '.join(map(show, node[1:]))})" if isinstance(node, tuple) else str(node)
    print("equal" if is_equal(*arguments) else "not equal")
    for name, text in zip(("answer", "gold"), map(_clean, arguments)):
        print(f"{name}: {text}\n    read as {show(read(text))}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
