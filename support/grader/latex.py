r"""Reading an answer: text in LaTeX or plain -> one clean spelling -> tokens -> a tree of tuples, or a refusal.

    read(clean(r"\$2\dfrac13"))  is  ("unit", ("+", ("num", 2), ("/", ("num", 1), ("num", 3))), "dollar")

The text is never evaluated as code, and it is read whole or not at all: what is left over makes it unreadable.
A node is a tuple, its kind first; the numbers in it are fractions:
    ("num", value)  ("dec", value, half a unit of its last digit, significant digits)  ("base", "101", "2")
    ("sym", "x_1")  ("pi",)  ("e",)  ("i",)  ("inf",)  ("text", "even")  ("unit", node, "cm^2")
    ("+", a, b), also with - * / and pm mp     ("^", a, whole number)     ("pow", a, any other exponent)
    ("neg", a), also with ! % deg abs floor ceil det     ("root", a, index)     ("binom", n, k)
    ("sin", a), also with the other functions     ("log", a, base)     ("group", x) for (x)     ("call", f, (...))
    ("rel", "< <=", a, b, c) for a < b <= c     ("list", a, b) for a, b     ("set", a, b)     ("union", a, b)
    ("seq", "(", "]", a, b) for (a, b]    ("seq", "matrix", "", rows or cells)    ("seq", ":", ":", a/c, b/c) for a:b:c
    ("unreadable", why)
"""

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

MAX_CHARS, MAX_DEPTH, MAX_DIGITS = 400, 40, 60


class Unreadable(Exception):
    """The text is no answer that this file can read, or evaluating it would cost too much."""


# ---------------------------------------------------------------------------- one spelling for what means the same
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau "
    "upsilon phi chi psi omega hbar ell partial nabla"
).split()
_NAMED = dict(
    zip(
        "√∞≤⩽≥⩾≠≈∪∈±∓∅⟨⟩⌊⌋⌈⌉≡°º˚",
        (
            "sqrt infty le le ge ge ne approx cup in pm mp emptyset langle rangle lfloor rfloor lceil rceil equiv "
            "circ circ circ"
        ).split(),
    )
) | {"∛": "sqrt[3]", "∜": "sqrt[4]", "∖": "setminus"}
_NAMED |= {chr(0x3B1 + k): name for k, name in enumerate(GREEK[:25])}
_NAMED |= dict(zip("ΓΔΘΛΞΠΣΦΨΩ", "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega".split()))
_SIGNS = {ord(sign): f"\\{name} " for sign, name in _NAMED.items()} | {
    ord(sign): to
    for signs, to in (
        ("−–—‐‑", "-"),
        ("×·⋅∙∗", "*"),
        ("÷⁄∕", "/"),
        ("′’", "'"),
        ("€", r"\text{euro}"),
        ("£", r"\text{pound}"),
    )
    for sign in signs
}
STYLES = (
    r"text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf|cal|bb)|operatorname\*?|boldsymbol|[mhf]box|bm|rm|bf|underline|"
    "boxed|vec|hat|overrightarrow"
)
_UNICODE = [
    (re.compile(pattern), to)
    for pattern, to in (  # before NFKC makes plain digits of them
        ("[⁰¹²³⁴-⁹⁻ⁿ]+", r"^{\g<0>}"),
        ("[₀-₉]+", r"_{\g<0>}"),
        ("[¼-¾⅐-⅞]", r" \g<0>"),
        ("ℝ", r"\\mathbb{R}"),
    )
]
_RULES = [
    (re.compile(pattern), to)
    for pattern, to in (
        (r"^(\*\*|`{1,3})(.*)\1$", r"\2"),
        (r"^\\f?boxed\s*\{([^{}]*(?:\{.*\})?[^{}]*)\}$", r"\1"),  # markdown, a box
        (r"(?i)^(?:\\text\{ *)?all real(?: number)?s?\.?\}?$", r"\\mathbb{R}"),
        (r"(?i)^(?:\\text\{ *)?no (?:real )?solutions?\.?\}?$", r"\\emptyset"),
        (
            r"^(?:\\left)?\\\{\s*([a-z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?"
            r"(?:\\mid(?![a-z])|\\vert|(?:\\middle)?\||:)(?=.*\1)(.*)\\\}$",
            r"\2",
        ),  # {x : x > 2}
        (r"\\\\\s*\[-?[\d.]+ *[a-z]{2}\]", r"\\\\"),
        (r"\\overline\s*\{([A-Z]{2})\}", r"\1"),
        (r"\.{3}", r"\\dots "),
        (r"\((\d+)\)(?=_\{?(?:\d|\\text))", r"\1"),  # (101)_2
        (r"\bm\s*(?=\\angle)|\\text\{ *rad(?:ian)?s?\}", " "),
        (r"(?<=\d)\^\{?o\}?(?![a-z])", r"^\\circ "),
        (r"\^\s*(?:\{\s*\\prime\s*\}|\\prime(?![a-z]))", "'"),
        (
            r"\\(d?dot|bar|tilde)(?![a-z])\s*(?:\{([a-zA-Z])\}|([a-zA-Z])(?![a-zA-Z]))(?:_\{?(\w+)\}?)?",
            r"\2\3_{\1\4}",
        ),  # x_{dot}
        (r"(?<=\d),\s*\\!\s*(?=\d\d)", ""),
        (r",\s*\\!\s*|(?<=\d)\s*\{\s*,\s*\}\s*(?=\d)", "{,}"),
        (r"\\!", ""),
        (r"\\(?:left|right)\s*\.|\\(?:text)?color\s*\{\w*\}", " "),
        (r"\\(left|right)\s*\|", r"\\\1bar "),
        (r"\*\*", "^"),
        (r"\b(?:np|math|sympy)\.(?=[a-z])", ""),
        (r"\\[()]|(?<!\\)\\[\[\],;:> \n]|(?<!\\)\$|~|\\q?quad|\\(?:display|text)style(?![a-z])|[^\S\n]", " "),
        (r" +", " "),
        (
            r"\^?\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z])|\\degree(?![a-z]))"
            r"(?:\s*\\(?:text|mathrm)\s*\{\s*[CF]\s*\}|\s*[CF](?![A-Za-z]))?",
            r"\\deg ",
        ),  # 20 degrees Celsius
        (r"(?<=\d)\{,\}(?=\d{3})", ""),
        (r"(?<![\d.,_^])(?<![\d.,] )\d{1,3}(?: \d{3})+(?![\d,])", lambda match: match[0].replace(" ", "")),
        (r"(?<![\w^_}.])(?<!\d,)\\\$ ?(\.?\d(?:[\d.,]*\d)?)", r"\1\\text{ dollar}"),
    )
]
_GROUPED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_MIXED = re.compile(
    r"(?<![\w./^}{)\\])(\d{1,9}) ?(?:(?<= )(\d{1,9})/(\d{1,9})(?![\w/.^])|"
    r"\\[dtc]?frac ?(?:\{(\d+)\}|(\d)) ?(?:\{(\d+)\}|(\d)(?!\d)))"
)


def _mixed(match: re.Match) -> str:
    r"""2 1/3 and 2\frac13 are sums; 2\frac{4}{3} is a product"""
    whole, top, bottom = filter(None, match.groups())
    return f"({whole}+{top}/{bottom})" if int(top) < int(bottom) else match[0]


def clean(text: str) -> str:
    """Signs, spaces and thousands in one spelling. Digits are not joined over a newline, nor by commas in brackets."""
    if not text.isascii():
        for pattern, to in _UNICODE:
            text = pattern.sub(to, text)
        text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
        text = "".join(str(unicodedata.decimal(c, c)) for c in text if unicodedata.category(c) != "Cf")
    text = re.sub(r"[^\S\n]{2,}", " ", text.strip())  # long runs would cost the rules below too much
    if re.search(r"(?<!\\)\\\\begin", text):  # all of it was escaped twice on its way here
        text = text.replace(r"\\", "\\")
    if r"\begin" not in text:  # or its commands were
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)
    for pattern, to in _RULES:
        text = pattern.sub(to, text)
    if not re.search(r"[(\[]|\\\{", text):  # (1,234) is a pair
        text = _GROUPED.sub(lambda match: match[0].replace(",", ""), text)
    text = re.sub(r"(?:[\s.,;]|\\(?![{}%]))+$", "", _MIXED.sub(_mixed, text))
    return re.sub(r"(?<![0-9A-Za-z.\s])\s+|\s+(?![0-9A-Za-z.\s])", "", text)


# --------------------------------------------------------------------------- answers that need no parser
_BARE = re.compile(
    rf"\\(?:{STYLES})(?![a-z])|[{{}},]|\.(?!\d)|\b(?:an?|the)\s+(?=[a-z])|(?<=\d)(?:st|nd|rd|th)\b", re.IGNORECASE
)
_UNQUOTE = re.compile(r" ?\\(?:text|mathrm|mbox)\{ *([^{}\d][^{}]*)\}| (?=[A-Za-z])")
_DECIMAL = re.compile(r"-?\d+\.\d\d+")
_MONTH = re.compile(r"\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)")
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?(?:\\text)?[\s{]*(?:([ap])\.?m\.?)?\}?", re.IGNORECASE)
_LETTER = re.compile(r"(?:\\text\w*)?\{?\(?([A-J])\)?\}?")
_LABEL = re.compile(r"(?:\\text\w*\{)?\(?[A-J][.):]+\}?\s*(?=.)")
_CHOICE = re.compile(r"(?:\\text\w*\{)?\(?([A-J])[.:)]+\}?\s*(?![\s}).:=,;]|.*(?:\b[A-J][.:)]|\b(?:or|and)\b)).+")


def _words(text: str) -> list[str] | None:
    """The words of an answer in words, lower case, without articles; None for a formula."""
    words = _BARE.sub(" ", text).lower().split()
    if not any(re.search("[a-z]{2}", w) for w in words) or not re.fullmatch(r"[a-z0-9' -]*", " ".join(words)):
        return None
    return sorted(words) if _MONTH.search(" ".join(words)) else words  # 5 May 2020 = May 5th, 2020


def _same_time(a: re.Match, g: re.Match) -> bool:
    """20:34 is 8:34 p.m., and so is 8:34, which leaves the half of the day open"""
    hours = [int(t[1]) % 12 + 12 * (t[4] in "pP") if t[4] else int(t[1]) for t in (a, g)]
    left_open = bool(a[4]) != bool(g[4]) and int((g if a[4] else a)[1]) <= 12
    same_hour = hours[0] == hours[1] or left_open and (hours[0] - hours[1]) % 12 == 0
    return same_hour and (a[2], a[3] or "00") == (g[2], g[3] or "00")


def same_at_sight(answer: str, gold: str) -> bool | None:
    """The verdict on two cleaned texts that need no parser: equal texts, words, times, choices. None: read on."""
    if answer == gold or not answer or not gold or max(len(answer), len(gold)) > MAX_CHARS:
        return answer == gold != ""
    if any(_DECIMAL.fullmatch(x) and x == y.replace(",", ".") for x, y in ((answer, gold), (gold, answer))):
        return True  # 2,74
    if words := _words(gold):
        return True if words == _words(answer) else None
    if _UNQUOTE.sub(r"\1", answer) == _UNQUOTE.sub(r"\1", gold):
        return True  # 12 m/s with its unit in \text{} or out of it
    if (a := _TIME.fullmatch(answer)) and (g := _TIME.fullmatch(gold)):
        return _same_time(a, g)
    if letter := _LETTER.fullmatch(gold):
        choice = _CHOICE.fullmatch(answer) or letter[1] < "F" and _LETTER.fullmatch(answer.upper())
        return True if choice and choice[1] == letter[1] else None
    return None


def without_label(answer: str) -> str | None:
    """27 of (B) 27"""
    label = _LABEL.match(answer)
    return answer[label.end() :] if label else None


# -------------------------------------------------------------------------------------------------------- the tokens
FUNCTIONS = set(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc asin acos atan sinh cosh tanh log "
    "ln exp abs floor ceil coth sech csch arcsinh arccosh arctanh asinh acosh atanh cis".split()
)
_SPELLINGS = {
    spelling: name
    for name, spellings in {
        "<=": "le leq leqslant",
        ">=": "ge geq geqslant",
        "<": "lt",
        ">": "gt",
        "!=": "ne neq",
        "=": "== :=",
        "*": "times cdot",
        "/": "div",
        ",": "and or ; lor vee land wedge",
        "-": "setminus backslash",
        ":": "over colon",
        "cup": "bigcup",
        "asinh": "arsinh",
        "acosh": "arcosh",
        "atanh": "artanh",
        "|": r"vert \|",
        "%": r"percent pct percentage \%",
        "deg": "degree degrees",
        "infty": "infty infinity inf oo",
        "sqrt": "sqrt",
        ("pi",): "pi",
        "frac": "dfrac tfrac cfrac sfrac nicefrac",
        "binom": "dbinom tbinom",
        "emptyset": "varnothing",
        "dots": "ldots cdots dotsc",
        r"\{": "lbrace",
        r"\}": "rbrace",
    }.items()
    for spelling in spellings.split()
}
_UNITS = {
    word: words.split()[0]
    for words in (
        "cm centimeter centimetre",
        "mm millimeter millimetre",
        "km kilometer kilometre",
        "m meter metre",
        "inch in inche",
        "ft foot feet",
        "yd yard",
        "mile mi",
        "kg kilogram",
        "g gram",
        "mg milligram",
        "lb",
        "oz ounce",
        "s second sec",
        "min minute",
        "h hour hr",
        "mph",
        "dollar usd",
        "cent",
        "euro",
        "pound",
        "l liter litre",
        "ml milliliter",
        "unit",
        "day",
        "week",
        "month",
        "year",
    )
    for word in words.split()
}
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_COUNTS = {
    name: ("num", Fraction(k))
    for k, name in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())
}
_BASES = {name: str(count[1]) for name, count in _COUNTS.items()}
_QUIET = set("left right big Big bigg Bigg bigl bigr Bigl Bigr limits angle triangle".split())
_TOKEN = re.compile(
    rf"""\s*(?:(?P<repeat>\d*\.\d*)\\overline\s*\{{(?P<cycle>\d{{1,20}})\}}
    |(?P<number>\d[\dA-F]*(?=_\{{?1[1-6])|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+(?!\w))?)
        (?:_(?:\\text)?\{{?(?:\\text\{{)?(?P<base>\w+)\}}*)?
    |\\(?:{STYLES})(?![a-z])\s*(?:\{{(?P<styled>[^{{}}]*)\}}|(?P<bare>[A-Za-z0-9]))?
    |\\begin\{{(?P<begin>\w*matrix|array|cases|aligned)\*?\}}(?:\{{[lcr|]*\}})?|(?P<end>\\end\{{\w+\*?\}})
    |\\(?P<command>[A-Za-z]+)|(?P<word>[A-Za-z]+)|(?P<sign><=|>=|!=|==|:=|\\?\S))""",
    re.VERBOSE,
)
_PHRASE = re.compile(r"(?: (?!and\b|or\b)[A-Za-z]+)+")
_SUBSCRIPT = re.compile(r"\s*_\s*(?:\{[^{}]*\}|\\[a-zA-Z]+|\w)|'")


def _number(raw: str) -> tuple:
    mantissa, _, exponent = raw.lower().partition("e")
    digits, _, places = mantissa.partition(".")
    if len(digits + places) > MAX_DIGITS or len(exponent) > 4:
        raise Unreadable("a number with too many digits")
    unit = Fraction(10) ** (int(exponent or 0) - len(places))
    value = int(digits + places) * unit
    return ("dec", value, unit / 2, len((digits + places).lstrip("0"))) if places or exponent else ("num", value)


def _quantity(token) -> bool:
    """May a unit follow this token?"""
    return token[0] in ("num", "dec", "pi") or token in (")", "}", "/")


def _word(word: str, quoted: bool = False, after="the start") -> list:
    """Tokens for a run of letters: a function, a name, a connective, a unit or another word, or single variables."""
    low = word.lower()
    if word in FUNCTIONS:
        return [word]
    if low in _SPELLINGS or word in GREEK:
        return [_SPELLINGS.get(low, ("sym", word))]
    if low in _COUNTS:
        return [_COUNTS[low]]
    if low in _POWERS:
        return ["*", ("num", Fraction(10) ** _POWERS[low])]
    if quoted or len(word) > 3 or len(word) > 1 and low.rstrip("s") in _UNITS and _quantity(after):  # 5 mg, but mg/k
        return [("text", low)]
    return [(c,) if c in "ei" else ("sym", c) for c in word]


def _styled(text: str, after) -> list:
    r"""Tokens for what stands in \text or \mathrm: words stay words, the rest is read as if bare."""
    words = text.strip(" .,;:")
    unit = _quantity(after) and re.fullmatch(r"[mgshLNJWVKA]([ /]\w+)?", words)  # 5 \text{m}
    bare = re.sub(r"\b(and|or)\b", "", words.lower())
    if "\\" in words or words[:1].isdigit() or not unit and not re.search("[a-z]{2}", bare):
        return tokens(text)
    return _word(words, quoted=True) if words.isalpha() else [("text", words.lower())]


def tokens(text: str) -> list:
    """Numbers, names and words as nodes, all else as plain strings."""
    out, at = [], 0
    while at < len(text) and (match := _TOKEN.match(text, at)):
        group, at = match.groupdict(), match.end()
        if group["repeat"]:  # 0.1\overline{6}
            whole, _, fixed = group["repeat"].partition(".")
            cycle = Fraction(int(group["cycle"]), 10 ** len(group["cycle"]) - 1)
            out.append(("num", (int(whole + fixed or 0) + cycle) / 10 ** len(fixed)))
        elif base := group["base"]:
            out.append(("base", group["number"].lstrip("0"), _BASES.get(base, base)))
        elif group["number"]:
            out.append(_number(group["number"]))
        elif styled := group["styled"] or group["bare"]:
            out += _styled(styled, out[-1] if out else "the start")
        elif group["begin"] or group["end"]:
            out += ["begin", group["begin"]] if group["begin"] else ["end"]
        elif name := group["command"]:
            if name not in _QUIET:
                known = name.removeprefix("var").lower() in GREEK or name in ("max", "min", "Pr")
                out.append(_SPELLINGS.get(name, ("sym", name) if known else name))
        elif word := group["word"]:
            last = out[-1] if out else "the start"
            out += ["cup"] if word == "U" and last in (")", "]") else _word(word, after=last)
            if out[-1][0] == "text" and (more := _PHRASE.match(text, at)):  # miles per hour
                out[-1], at = ("text", out[-1][1] + more[0].lower()), more.end()
        elif sign := group["sign"]:
            out.append(_SPELLINGS.get(sign, sign))
        while out and out[-1][0] == "sym" and (tail := _SUBSCRIPT.match(text, at)):  # x_1, x_{n+1}, f'
            out[-1], at = ("sym", out[-1][1] + re.sub(r"[\s{}\\]", "", tail[0])), tail.end()
    return out


# -------------------------------------------------------------------------------------------------------- the parser
_LEVEL = {
    ",": 1,
    "<": 2,
    ">": 2,
    "<=": 2,
    ">=": 2,
    "=": 2,
    "!=": 2,
    "in": 2,
    "approx": 2,
    "cup": 3,
    ":": 4,
    "choose": 4,
    "+": 5,
    "-": 5,
    "pm": 5,
    "mp": 5,
    "*": 6,
    "/": 6,
}
_CLOSES = {
    "(": ")]",
    "[": "])",
    r"\{": (r"\}",),
    "{": "}",
    "langle": ("rangle",),
    "leftbar": ("rightbar",),
    "|": "|",
    "lvert": ("rvert",),
    "lfloor": ("rfloor",),
    "lceil": ("rceil",),
}
_ENDS = {"the end", "end", "&", r"\\"}.union(*_CLOSES.values()) - {"|"}
_CLAUSE = re.compile(
    r"\b(not|no|or|and|if|when|unless|except|but|more|less|least|most|than|maybe|for|where|is|are|to)"
    r"\b|\d\D*\d"
)


def _raised(base: tuple, exponent: tuple) -> tuple:
    whole = exponent[-1] if exponent[0] == "neg" else exponent
    return ("^" if whole[0] == "num" and whole[1].denominator == 1 else "pow", base, exponent)


class _Parser:
    """Precedence climbing over one answer's tokens. All of them must be read, or nothing is."""

    def __init__(self, text: str):
        self.tokens, self.at, self.depth, self.bars = tokens(text) + ["the end"], 0, 0, False

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

    def read(self, level: int = 0) -> tuple:
        """All that binds tighter than `level`: 0 a list, 1 a relation, 2 a union, 3 a ratio, 4 a sum, 5 a product."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail("nested too deeply")
        sign = self.take("-", "+", "pm", "mp", *(("=", "approx") if self.at == 0 else ()))
        node = self.read(5) if sign else self.power()
        if sign == "-":  # -5% is (-5)%
            node = (node[0], ("neg", node[1])) if node[0] in ("%", "deg") else ("neg", node)
        elif sign in ("pm", "mp"):
            node = (sign, ("num", Fraction(0)), node)
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
            elif (
                node[0] == "unit"
                or token[0] in ("num", "dec", "base")
                and ((node[-1] if node[0] == "*" else node)[0] not in ("^", "pow", "!"))
            ):
                self.fail("two quantities side by side")  # 5 6 is not 30, x2 not 2x; 2^6 3^5 is read
            else:
                right = self.power()
                called = node[0] == "sym" and token == "(" and right[0] in ("group", "num")  # f(x)
                node = ("call" if called else "*", node, right)
        self.depth -= 1
        return node

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
            shares = [("/", part, parts[-1]) for part in parts[:-1]]
            return shares[0] if len(shares) == 1 else ("seq", ":", ":", *shares)
        if binds == 3 and {part[0] for part in parts} <= {"set", "list"}:  # {1, 2} with {3}
            return ("set", *(item for part in parts for item in part[1:]))
        return ("list" if binds == 1 else "union", *parts)

    def unit(self, node) -> tuple:
        """5 cm^2, 5 km/h, 5 red balls; a clause as in "5 or more" is no unit"""
        words = self.next[1]
        self.at += 1
        while sign := self.take("^", "/"):
            part = self.argument(exponent=True) if sign == "^" else self.atom(unit=True)
            words += sign + (f"-{part[1][1]}" if part[0] == "neg" else str(part[1]))
        if _CLAUSE.search(words):
            self.fail("a clause, not a unit,")
        for prefix, power in (("sq(?:uare)?", 2), ("cu(?:bic)?", 3)):
            words = re.sub(rf"\b{prefix}\.? (\w+)", rf"\1^{power}", words)

        def short(word):
            return _UNITS.get(word[0]) or _UNITS.get(word[0][:-1]) or word[0].rstrip("s")

        words = re.sub("[a-z]+", short, words.replace(".", "").replace(" per ", "/"))
        return ("unit", node, words.replace("mile/h", "mph"))

    def power(self) -> tuple:
        node = self.atom()
        while sign := self.take("!", "%", "deg", "^"):
            if node[0] == sign != "^":  # 5!!, 5%%
                self.fail("the same sign twice")
            node = (sign, node) if sign != "^" else _raised(node, self.argument(exponent=True))
        return node

    def argument(self, exponent: bool = False) -> tuple:
        r"""What follows a command or ^: {...} or one token; of a number one digit as in \frac12, but x^10, \sqrt10"""
        if exponent and self.take("-"):
            return ("neg", self.argument(exponent))
        token = self.next
        if not exponent and token[0] == "num" and token[1] > 9:
            self.tokens[self.at] = ("num", Fraction(str(token[1])[1:]))
            return ("num", Fraction(str(token[1])[0]))
        node = self.atom()
        return _raised(node, self.argument(exponent)) if exponent and token != "{" and self.take("^") else node  # 2^3^2

    def atom(self, unit: bool = False) -> tuple:
        token = self.next
        self.at += 1
        if isinstance(token, tuple):
            alone = token[0] != "text" or unit or self.next in _ENDS or self.next in _LEVEL
            return token if alone else self.fail("words")
        if token in _CLOSES:
            return self.bracket(token)
        if token in ("frac", "binom"):
            return ("/" if token == "frac" else "binom", self.argument(), self.argument())
        if token == "sqrt":
            index = self.bracket("[") if self.take("[") else ("num", Fraction(2))
            return ("root", self.argument(exponent=True), index)
        if token in FUNCTIONS:
            return self.function(token)
        if token == "begin":
            return self.matrix()
        if token in ("emptyset", "infty"):
            return ("set",) if token == "emptyset" else ("inf",)
        self.at -= 1
        self.fail("cannot read on")

    def bracket(self, opened: str) -> tuple:
        self.bars, outer = opened == "|", self.bars
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

    def function(self, name: str) -> tuple:
        base = power = None
        while sign := self.take("_", "^"):
            base, power = (self.argument(), power) if sign == "_" else (base, self.argument(exponent=True))
        if opened := self.take("(", "{"):
            node = self.bracket(opened)
        else:  # sin 2x cos y: up to the next function
            node = self.power()
            while self.next not in _ENDS | FUNCTIONS | set(_LEVEL) | {"|"} and self.next[0] not in ("text", "num"):
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
                self.need("&")
        if kind in ("cases", "aligned") and all(len(row) == 1 for row in rows):
            return ("list", *sum(rows, []))
        if len(rows) == 1 or all(len(row) == 1 for row in rows):
            return ("seq", "matrix", "", *sum(rows, []))
        return ("det" if kind == "vmatrix" else "seq", "matrix", "", *(("seq", "matrix", "", *row) for row in rows))


@lru_cache(1 << 14)
def read(text: str) -> tuple:
    """The tree of a cleaned answer."""
    try:
        parser = _Parser(text)
        node = parser.read()
        parser.need("the end")
        return node
    except (Unreadable, ArithmeticError, ValueError, LookupError, TypeError) as error:
        return ("unreadable", str(error))
