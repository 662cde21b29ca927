r"""What an answer says in words: units, choices, and words that are compared as words."""

import re

# The usual name of a unit, then its other spellings; a plural s may follow each. "%" and "deg" have a value.
UNITS = """
    cm centimeter centimetre, mm millimeter millimetre, km kilometer kilometre, m meter metre, inch in inche, mile mi,
    ft foot feet, yd yard, kg kilogram, g gram gm, mg milligram, lb, oz ounce, L liter litre l, cup, time, s second sec,
    mL milliliter millilitre ml, min minute, h hour hr, year yr, mph, rpm, dollar usd buck, cent, euro eur, pound gbp,
    rupee inr, yen jpy, N newton, J joule, W watt, V volt, A amp ampere, K kelvin, C coulomb, F farad, T tesla,
    Pa pascal, Hz hertz, mol mole, eV, ohm Omega, mu, man men, woman women, person people, child children, rad radian,
    % percent percentage pct, deg degree"""
UNITS = {word: names.split()[0] for names in UNITS.split(",") for word in names.split()}
UNIT_NAMES = set(UNITS.values())
SCALED = "kJ kN kW kV kPa kHz MHz GHz MW MPa keV MeV mA mV mW nm ms"  # only in \text{...}: a bare 5 kJ is a product
UNITS = {name: name for name in SCALED.split()} | UNITS
MONEY = {"dollar", "euro", "pound", "rupee", "yen"}
# words that make another number or a condition of it: 5 to one, 5 dozen eggs, 5 below zero
CLAUSES = set(
    """to is are was where for as by out into not no never or if when unless except but more less fewer least most than
    plus minus over above under below between about around squared cubed dozen hundred thousand million billion trillion
    half halves third quarter fourth fifth sixth seventh eighth ninth tenth twelfth hundredth thousandth ones twos
    threes fours fives sixes sevens eights nines tens pair score gross grosses perhaps maybe reciprocal""".split()
)
# words that change the number after them: the wrong answer: 5
CHANGES = CLAUSES | set("root twice double triple negative opposite inverse wrong incorrect guess think lambda".split())


def unit_name(word: str) -> str:
    """The usual name of a unit; of any other word its singular"""
    singular = word[:-1] if word[-1:] == "s" and len(word) > 2 else word
    return UNITS.get(word) or UNITS.get(singular) or singular


# ------------------------------------------------------------------------------- answers that need no formula parsed
_MARKUP = re.compile(r"(?i)\\(?:text\w*|math(?:rm|bf|it|sf)|[mhf]box|bf|rm)(?![a-z])|[{},]|\b(?:an?|the)\s+(?=[a-z])")
_CHOICE = re.compile(r"(?:(\\text\w*)?\{)?\s*\(?([A-Ja-j])(\)?[.:)]*)\s*\}?\s*(.*)", re.DOTALL)
_NO_TEXT = re.compile(r"[}).:=,;+*/^<>_]|-\s*[a-z]|.*(?:\b[A-J][.:)]|\b(?:or|and)\b)")  # (c) + 1; (C) (D); B. or C.


def words(text: str) -> list[str] | None:
    """The words of an answer in words, in lower case and without articles; None for a formula."""
    text = _MARKUP.sub(" ", text).lower().replace(".", "")
    return text.split() if re.search("[a-z]{2}", text) and re.fullmatch(r"[a-z0-9:'\s-]*", text) else None


def same_at_sight(answer: str, gold: str) -> bool | None:
    """Are two cleaned texts equal as they are, as words? None where a formula has to be read"""
    said, wanted = words(answer), words(gold)
    if answer == gold or said and said == wanted:
        return True
    if not said or not wanted:
        return None
    swapped = sorted(said) == sorted(wanted) and all(len(word) > 1 and word.isalpha() for word in said)
    return False if swapped and not {"and", "or"} & set(said) else None


def choice(text: str) -> tuple[str, str]:
    r"""The letter and the rest: ("B", "") of B and (b), ("B", "27") of (B) 27, ("", text) without a choice"""
    match = _CHOICE.fullmatch(text)
    if not match or match[4] and (not match[3] or _NO_TEXT.match(match[4])):
        return "", text
    marked = (match[1] or match[3]) and match[2] in "abcde"  # else F may be a force, and c a variable
    return match[2].upper() if marked else match[2], match[4]
