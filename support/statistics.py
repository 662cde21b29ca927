"""Shares of questions: intervals, the mean over data sets, independent samples, and the comparison of two models.

A record is what evaluate.py keeps of a dialogue; here its `allowed`, `correct`, `truncated` and `tokens` are read.
"""

from collections.abc import Sequence
from math import comb, dist, sqrt
from statistics import fmean


def wilson(correct: float, n: int) -> tuple[float, float]:
    """95% interval of a share: Wilson's score interval, sound for few questions and near 0 and 1; (0, 1) for n = 0."""
    z2 = 1.959964**2
    centre, half = correct + z2 / 2, (z2 * (correct * (n - correct) / max(n, 1) + z2 / 4)) ** 0.5
    return max(0.0, (centre - half) / (n + z2)), min(1.0, (centre + half) / (n + z2))


def gain(first: Sequence[bool], second: Sequence[bool]) -> dict[str, float]:
    """How much larger a share of the same questions is solved in `second`, with its 95% interval. Questions with the
    same outcome in both do not widen it, so it is narrower than the two shares' own intervals suggest. Wald's, after
    half a question is added to each of the four outcomes: sound near 0 and 1 as well (Agresti and Min, 2005)."""
    n, mended, spoiled = len(first) + 2, 0.5, 0.5
    for before, after in zip(first, second, strict=True):
        mended, spoiled = mended + (after and not before), spoiled + (before and not after)
    middle = (mended - spoiled) / n
    half = 1.959964 * sqrt(((mended + spoiled) / n - middle**2) / n)
    return {"gain": fmean(second) - fmean(first), "gain_low": middle - half, "gain_high": middle + half}


def repeats(answers: list[str | None]) -> list[bool]:
    """For each attempt after the first that has a box: whether it gives an earlier answer of the same dialogue again,
    letter for letter but for spaces around it."""
    answers = [None if answer is None else answer.strip() for answer in answers]
    return [answer in answers[:i] for i, answer in enumerate(answers) if i and answer is not None]


def repeated_share(dialogues: list[list[str | None]]) -> float | None:
    """Of the attempts after the first that have a box: the share that repeats an answer, over all dialogues, each given
    by the answers of its attempts. None when there is no such attempt."""
    repeated = [again for answers in dialogues for again in repeats(answers)]
    return sum(repeated) / len(repeated) if repeated else None


def mean_over(by_data: dict[str, dict]) -> dict:
    """The numbers of several data sets -> their means, each data set with the same weight, as in the paper; of a single
    one its own. The 95% interval combines theirs: the sets are independent, so their variances add up. A variance is
    recovered from each interval's end, below from the lower and above from the upper one (Zou and Donner, 2008); the
    binomial p (1 - p) / n itself would take a set with 0 of 30 solved for certain."""
    if len(by_data) == 1:
        return next(iter(by_data.values()))
    rows = []
    for same in zip(*(result["by_attempts"] for result in by_data.values())):
        means = {}
        for names in (("accuracy", "low", "high"), ("gain", "gain_low", "gain_high")):
            if names[0] in same[0]:
                middles, lows, highs = ([row[name] for row in same] for name in names)
                below, above = (dist(middles, ends) / len(same) for ends in (lows, highs))
                means |= zip(names, (fmean(middles), fmean(middles) - below, fmean(middles) + above))
        repeated = [row["repeated"] for row in same if row["repeated"] is not None]
        rows.append(
            {
                "attempts": same[0]["attempts"],
                "questions": sum(row["questions"] for row in same),
                **means,
                "repeated": fmean(repeated) if repeated else None,
                **{key: fmean(row[key] for row in same) for key in ("truncated", "attempts_used", "tokens")},
            }
        )
    return {"questions": rows[0]["questions"], "by_attempts": rows, "by_data": by_data}


def pass_at_k(asked: list[list[dict]], attempts: int) -> dict:
    """The control for attempts with feedback: would k answers do that know nothing of each other? `asked` holds for
    every question n independent single-attempt dialogues at temperature 1. When c of them are correct, k of them hold a
    correct one with probability 1 - C(n - c, k) / C(n, k), unbiased for pass@k (Chen et al., arXiv 2107.03374). A row
    for each k = 1 .. attempts: the mean over the questions with its 95% interval, Wilson's as if each question gave a
    yes or a no. Probabilities vary less, so it is rather too wide; their own spread would call 0 of 10 certain."""
    n, rows = len(asked[0]), []
    truncated, tokens = (fmean(dialogue[key] for same in asked for dialogue in same) for key in ("truncated", "tokens"))
    for k in range(1, attempts + 1):
        shares = [1 - comb(n - sum(dialogue["correct"] for dialogue in same), k) / comb(n, k) for same in asked]
        middle = fmean(shares)
        low, high = wilson(middle * len(shares), len(shares))
        rows.append(
            {
                "attempts": k,
                "questions": len(asked),
                "accuracy": middle,
                "low": low,
                "high": high,
                "repeated": None,
                "truncated": truncated,
                "attempts_used": k,
                "tokens": k * tokens,
            }
        )
    return {"questions": len(asked), "samples": n, "by_attempts": rows}


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test: were the two equally good, each question that only one of them solved would be a
    toss of a fair coin. The probability of a split at least as uneven as this one."""
    n = only_first + only_second
    tail = sum(comb(n, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


def compare(first: dict[str, list], second: dict[str, list]) -> dict[str, list[dict]]:
    """Two models on the same questions. Both hold, for each data set, every question's records by attempts allowed. A
    row for each number of attempts, for each data set and, where there are several, for all questions together."""
    if len(first) > 1:
        first, second = (
            {"all": [same for those in found.values() for same in those], **found} for found in (first, second)
        )
    rows = {data: [] for data in first}
    for data in first:
        for a, b in zip(zip(*first[data]), zip(*second[data]), strict=True):
            pairs = [(x["correct"], y["correct"]) for x, y in zip(a, b, strict=True)]
            one, two = pairs.count((True, False)), pairs.count((False, True))
            rows[data].append(
                {"attempts": a[0]["allowed"], "only_first": one, "only_second": two, "p": mcnemar(one, two)}
            )
    return rows
