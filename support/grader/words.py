r"""What an answer says in words: units, labels, choices, dates and times of the day."""

import re

UNITS = {
    word: words.split()[0]
    for words in """
        cm centimeter centimetre, mm millimeter millimetre, km kilometer kilometre, m meter metre, mum micrometer
        inch in inche, ft foot feet, yd yard, mile mi, kg kilogram, g gram gm, mg milligram, lb, oz ounce, ton tonne
        s second sec, min minute, time, h hour hr, day, week, month, year yr, ms millisecond, mph, rpm
        dollar usd buck, cent, euro eur, pound gbp, rupee rs inr, yen jpy, l L liter litre
        ml mL milliliter millilitre, cup, pint, quart, gallon, tsp, tbsp, acre, unit
        N newton, J joule, W watt, V volt, F farad, T tesla, A amp ampere, K kelvin
        C coulomb, Pa pa pascal, Hz hz hertz, ohm, kohm, mol mole, eV ev, kW kw, kWh kwh, kJ kj
        man men, woman women, person people, child children, rad radian
        % percent percentage pct, deg degree celsius fahrenheit
    """.replace("\n", ",").split(",")
    for word in words.split()
}
UNIT_NAMES = set(UNITS.values())
MONEY = {"USD": "dollar", "EUR": "euro", "GBP": "pound", "INR": "rupee", "Rs": "rupee", "JPY": "yen"}
ONLY_QUOTED = {"hr", "gm", "ms", "rs"}  # else products, as in 2\pi hr
# after these words a number or a label says something else: 5 dozen, 5 squared, "the wrong answer: 5"
CHANGES = set(
    """not no never or if when unless except but maybe more less fewer least most than plus minus divided multiplied
    half halves third thirds quarter quarters fourths fifths sixths sevenths eighths ninths tenths twelfths hundredths
    thousandths squared cubed root factorial mod modulo choose point power twice double triple negative opposite inverse
    ones twos threes fours fives sixes sevens eights nines tens dozens hundreds thousands millions billions pairs
    scores gross grosses wrong incorrect guess think perhaps sometimes
    always else thus unlikely cannot lambda over above under below between about around""".split()
)
# and these after a number: 5 to one, 5 is wrong, 5 below zero
CLAUSES = CHANGES | set("to is are was where for as by out into".split())


def unit_name(word: str) -> str:
    """The usual name of a unit; of any other word its singular"""
    singular = word[:-1] if word[-1:] == "s" and len(word) > 2 else word
    return UNITS.get(word) or UNITS.get(singular) or singular


# ------------------------------------------------------------------------------- answers that need no formula parsed
_MARKUP = re.compile(
    r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf)|[mhf]box|bf|rm)(?![a-z])|[{},]|\.(?!\d)|"
    r"\b(?:an?|the)\s+(?=[a-z])|(?<=\d)(?:st|nd|rd|th)\b",
    re.IGNORECASE,
)
_MONTHS = "january february march april may june july august september october november december".split()
_MONTHS = {name: month[:3] for month in _MONTHS for name in (month, month[:3])}
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?\s*(?:\\text)?[\s{]*(?:([ap])\.?m\.?)?\}?", re.IGNORECASE)
_CHOICE = re.compile(r"(?:\\text\w*\{|\{)?\s*\(?([A-Ja-j])(\)?[.:)]*)\s*\}?\s*(.*)", re.DOTALL)
_OTHER_CHOICE = re.compile(r"[}).:=,;]|.*(?:\b[A-J][.:)]|\b(?:or|and)\b)")  # (C) (D), "B. or C."
_LABEL = re.compile(
    r"(\\text\w*\{)?\s*(?:\(?[A-J][.):]+|(?:So|Hence|Thus|Therefore),?(?=[ }]*\w+ ?=)|"
    r"(?=[A-Za-z', ]*(?:[A-Za-z][a-z]{2}|[A-Z]{4}))([A-Za-z][A-Za-z', ]+?)(?:\s*:| (?:is|are|equals)(?![A-Za-z'])))\s*"
)


def words(text: str) -> list[str] | None:
    """The words of an answer in words, in lower case and without articles; None for a formula."""
    found = _MARKUP.sub(" ", text).lower().split()
    if not re.search("[a-z]{2}", " ".join(found)) or not re.fullmatch(r"[a-z0-9' -]*", " ".join(found)):
        return None
    if len(found) > 1 and [word.isdigit() or word in _MONTHS for word in found].count(False) == 0:
        return sorted(_MONTHS.get(word, word) for word in found)  # 5 May 2020 is May 5th, 2020
    return found


def same_choice(answer: str, gold: str) -> bool:
    """B is (B), (b), B. 27; the gold is the letter alone"""
    a, g = _CHOICE.fullmatch(answer), _CHOICE.fullmatch(gold)
    if not a or not g or g[3] or a[3] and (not a[2] or _OTHER_CHOICE.match(a[3])):
        return False
    free = (
        g[1] in "ABCDE" or (a[2] or g[2] or r"\text" in gold) and g[1] in "abcde"
    )  # F may be a force, a bare c a variable
    return a[1] == g[1] or bool(free) and a[1].upper() == g[1].upper()


def same_time(answer: str, gold: str) -> bool:
    """20:34 is 8:34 p.m., and so is 8:34, which leaves the half of the day open"""
    a, g = _TIME.fullmatch(answer), _TIME.fullmatch(gold)
    if not a or not g or (a[2], a[3] or "00") != (g[2], g[3] or "00"):
        return False
    hours = [int(t[1]) % 12 + 12 * (t[4] in "pP") if t[4] else int(t[1]) for t in (a, g)]
    left_open = bool(a[4]) != bool(g[4]) and int((g if a[4] else a)[1]) <= 12
    return hours[0] == hours[1] or left_open and (hours[0] - hours[1]) % 12 == 0


def same_at_sight(answer: str, gold: str) -> bool | None:
    """Are two cleaned texts equal as they are, as words, as choices, as times? None where a formula has to be read"""
    if answer == gold or same_choice(answer, gold) or same_time(answer, gold):
        return True
    if any(re.fullmatch(r"-?\d+\.\d\d+", x) and x == y.replace(",", ".") for x, y in ((answer, gold), (gold, answer))):
        return True  # 2,74
    said, wanted = words(answer), words(gold)
    if not said or not wanted:
        return None
    swapped = sorted(said) == sorted(wanted) and all(len(word) > 1 and word.isalpha() for word in said)
    return True if said == wanted else False if swapped and not {"and", "or"} & set(said) else None


def labelled(text: str) -> tuple[str, str]:
    r"""The words of a label and the rest: ("", 27) of (B) 27, ("Total", 18) of "Total: 18", and ("", "") without one"""
    label = _LABEL.match(text)
    if (
        not label
        or CHANGES & set(re.findall("[a-z]+", (label[2] or "").lower()))
        or not re.search(r"\w", text[label.end() :])
    ):
        return "", ""
    return label[2] or "", (label[1] or "") + text[label.end() :]
