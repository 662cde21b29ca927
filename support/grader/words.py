r"""What an answer says in words: units, labels, choices, dates."""

import re

# The usual name of a unit, then its other spellings; a plural s may follow each. "%" and "deg" have a value.
UNITS = """
    cm centimeter centimetre, mm millimeter millimetre, km kilometer kilometre, m meter metre, inch in inche,
    ft foot feet, yd yard, mile mi, kg kilogram, g gram gm, mg milligram, lb, oz ounce, ton tonne, s second sec,
    min minute, time, h hour hr, day, week, month, year yr, mph, rpm, dollar usd buck, cent, euro eur, pound gbp,
    rupee inr, yen jpy, L liter litre l, mL milliliter millilitre ml, cup, gallon, unit, acre, N newton, J joule,
    W watt, V volt, A amp ampere, K kelvin, C coulomb, F farad, T tesla, Pa pascal, Hz hertz, mol mole, eV,
    ohm, man men, woman women, person people, child children, rad radian,
    % percent percentage pct, deg degree celsius fahrenheit"""
UNITS = {word: names.split()[0] for names in UNITS.split(",") for word in names.split()}
UNIT_NAMES = set(UNITS.values())
SCALED = "m s g L J W V A F T Pa Hz mol eV ohm".split()  # 5\text{ kJ}, 5\,\mu\mathrm{m}; 5 kJ is a product
SCALED = [prefix + unit for prefix in "k M G c m mu n".split() for unit in SCALED]
UNITS = dict(zip(SCALED, SCALED)) | UNITS
MONEY = {"dollar", "euro", "pound", "rupee", "yen"}
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
MONTHS = "january february march april may june july august september october november december".split()
MONTHS = {name: month[:3] for month in MONTHS for name in (month, month[:3])}


def unit_name(word: str) -> str:
    """The usual name of a unit; of any other word its singular"""
    singular = word[:-1] if word[-1:] == "s" and len(word) > 2 else word
    return UNITS.get(word) or UNITS.get(singular) or singular


# ------------------------------------------------------------------------------- answers that need no formula parsed
_MARKUP = re.compile(
    r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf)|[mhf]box|bf|rm)(?![a-z])|[{},]|\b(?:an?|the)\s+(?=[a-z])|"
    r"(?<=\d)(?:st|nd|rd|th)\b|(?<![a-z])\.(?!\d)",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"(?:\\text\w*\{|\{)?\s*\(?([A-Ja-j])(\)?[.:)]*)\s*\}?\s*(.*)", re.DOTALL)
_NO_TEXT = re.compile(r"[}).:=,;+*/^<>_]|-\s*[a-z]|.*(?:\b[A-J][.:)]|\b(?:or|and)\b)")  # (c) + 1; (C) (D); B. or C.
_LABEL = re.compile(
    r"(\\text\w*\{)?\s*(?:\(?([A-J])[.):]+|(?:So|Hence|Thus|[Tt]herefore),?(?=[ }]*(?:\w+ ?=|[\\\d-]))|"
    r"(?=[A-Za-z', ]*(?:[A-Za-z][a-z]{2}|[A-Z]{4}|It ))([A-Za-z][A-Za-z', ]+?)"
    r"(?:\s*:| (?:is|are|equals)(?![A-Za-z'])|(\})\s*=))\s*"
)


def words(text: str) -> list[str] | None:
    """The words of an answer in words, in lower case and without articles; None for a formula."""
    found = _MARKUP.sub(" ", text).lower().replace(".", "").split()
    if not re.search("[a-z]{2}", " ".join(found)) or not re.fullmatch(r"[a-z0-9:' -]*", " ".join(found)):
        return None
    if len(found) > 1 and all(word.isdigit() or word in MONTHS for word in found):
        found = sorted(MONTHS.get(word, word) for word in found)  # 5 May 2020 is May 5th, 2020
    return found


def same_choice(answer: str, gold: str) -> bool:
    """B is (B), (b) and B. 27, which has the text of a choice after its letter"""
    a, g = _CHOICE.fullmatch(answer), _CHOICE.fullmatch(gold)
    if not a or not g or a[3] and g[3] or any(m[3] and (not m[2] or _NO_TEXT.match(m[3])) for m in (a, g)):
        return False
    # F may be a force, a bare c a variable
    free = g[1] in "ABCDE" or (a[2] or g[2] or r"\text" in gold) and g[1] in "abcde"
    return a[1] == g[1] or bool(free) and a[1].upper() == g[1].upper()


def same_at_sight(answer: str, gold: str) -> bool | None:
    """Are two cleaned texts equal as they are, as words, as choices? None where a formula has to be read"""
    if answer == gold or same_choice(answer, gold):
        return True
    said, wanted = words(answer), words(gold)
    if not said or not wanted:
        return None
    swapped = sorted(said) == sorted(wanted) and all(len(word) > 1 and word.isalpha() for word in said)
    return True if said == wanted else False if swapped and not {"and", "or"} & set(said) else None


def labelled(text: str) -> tuple[str, str]:
    r"""The label and the rest: ("B", 27) of (B) 27, ("Total", 18) of "Total: 18", and ("", "") without one"""
    label = _LABEL.match(text)
    rest = text[label.end() :] if label else ""
    if not re.search(r"\w", rest) or CHANGES & set(re.findall("[a-z]+", (label[3] or "").lower())):
        return "", ""
    return label[2] or label[3] or "So", rest if label[4] else (label[1] or "") + rest
