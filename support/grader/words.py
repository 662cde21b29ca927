r"""What an answer says in words: units, labels, choices."""

import re

# The usual name of a unit, then its other spellings; a plural s may follow each. "%" and "deg" have a value.
UNITS = """
    cm centimeter centimetre, mm millimeter millimetre, km kilometer kilometre, m meter metre, inch in inche,
    ft foot feet, yd yard, mile mi, kg kilogram, g gram gm, mg milligram, lb, oz ounce, ton tonne, s second sec,
    min minute, time, h hour hr, day, week, month, year yr, mph, rpm, dollar usd buck, cent, euro eur, pound gbp,
    rupee inr, yen jpy, L liter litre l, mL milliliter millilitre ml, cup, gallon, unit, acre, N newton, J joule,
    W watt, V volt, A amp ampere, K kelvin, C coulomb, F farad, T tesla, Pa pascal, Hz hertz, mol mole, eV,
    ohm, man men, woman women, person people, child children, rad radian,
    % percent percentage pct, deg degree"""
UNITS = {word: names.split()[0] for names in UNITS.split(",") for word in names.split()}
UNIT_NAMES = set(UNITS.values())
SCALED = "kJ kN kW kV kPa kHz MHz GHz MW MPa keV MeV mA mV mW nm ms mum mus mug muF muC muA kohm"  # not 5 kJ, a product
UNITS = {name: name for name in SCALED.split()} | UNITS
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
_CHOICE = re.compile(r"(?:(\\text\w*)?\{)?\s*\(?([A-Ja-j])(\)?[.:)]*)\s*\}?\s*(.*)", re.DOTALL)
_NO_TEXT = re.compile(r"[}).:=,;+*/^<>_]|-\s*[a-z]|.*(?:\b[A-J][.:)]|\b(?:or|and)\b)")  # (c) + 1; (C) (D); B. or C.
_LABEL = re.compile(
    r"(\\text\w*\{)?\s*(?:(?:So|Hence|Thus|[Tt]herefore),?(?=[ }]*(?:\w+ ?=|[\\\d-]))|"
    r"(?=[A-Za-z', ]*(?:[A-Za-z][a-z]{2}|[A-Z]{4}|It ))([A-Za-z][A-Za-z', ]+?)"
    r"(?:\s*:| (?:is|are|equals)(?![A-Za-z'])|(\})\s*=))\s*"
)


def words(text: str) -> list[str] | None:
    """The words of an answer in words, in lower case and without articles; None for a formula."""
    found = _MARKUP.sub(" ", text).lower().replace(".", "").split()
    if not re.search("[a-z]{2}", " ".join(found)) or not re.fullmatch(r"[a-z0-9:' -]*", " ".join(found)):
        return None
    return found


def same_at_sight(answer: str, gold: str) -> bool | None:
    """Are two cleaned texts equal as they are, as words? None where a formula has to be read"""
    if answer == gold:
        return True
    said, wanted = words(answer), words(gold)
    if not said or not wanted:
        return None
    swapped = sorted(said) == sorted(wanted) and all(len(word) > 1 and word.isalpha() for word in said)
    return True if said == wanted else False if swapped and not {"and", "or"} & set(said) else None


def labelled(text: str) -> tuple[str, str]:
    r"""The label and the rest: ("B", "") of B and (b), ("B", "27") of (B) 27, ("Total", "18") of "Total: 18" """
    choice = _CHOICE.fullmatch(text)
    if choice and not (choice[4] and (not choice[3] or _NO_TEXT.match(choice[4]))):
        marked = (choice[1] or choice[3]) and choice[2] in "abcde"  # else F may be a force, and c a variable
        return choice[2].upper() if marked else choice[2], choice[4]
    label = _LABEL.match(text)
    rest = text[label.end() :] if label else ""
    if not re.search(r"\w", rest) or CHANGES & set(re.findall("[a-z]+", (label[2] or "").lower())):
        return "", ""
    return label[2] or "So", rest if label[3] else (label[1] or "") + rest
