"""Shares of questions: intervals, means over data sets and over seeds, pass@k, the comparison of two models.

A record is what evaluate.py keeps of a dialogue. Shapes: S seeds, K numbers of attempts, Q questions; an entry says
whether a question was solved, or how probably.
"""

from collections.abc import Iterable, Sequence
from math import comb, dist, sqrt
from statistics import fmean, stdev

import numpy as np

Z_95 = 1.959964  # the normal distribution has 95% of its mass within this many standard deviations


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None when there is no such value."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def wilson(correct: float, n: int) -> tuple[float, float]:
    """95% interval of a share: Wilson's score interval, sound for few questions and near 0 and 1."""
    z2 = Z_95**2
    centre, half = correct + z2 / 2, sqrt(z2 * (correct * (n - correct) / n + z2 / 4))
    return max(0.0, (centre - half) / (n + z2)), min(1.0, (centre + half) / (n + z2))


def gain(first: Sequence[bool], second: Sequence[bool]) -> dict[str, float]:
    """How much larger the solved share of the same questions is in `second`, with its 95% interval: Wald's for
    pairs, with half a question added to each of the four outcomes, sound near 0 and 1 (Agresti and Min, 2005)."""
    outcomes = list(zip(first, second, strict=True))
    gained, lost, n = outcomes.count((False, True)) + 0.5, outcomes.count((True, False)) + 0.5, len(outcomes) + 2
    middle = (gained - lost) / n
    half = Z_95 * sqrt(((gained + lost) / n - middle**2) / n)
    return {"gain": fmean(second) - fmean(first), "gain_low": middle - half, "gain_high": middle + half}


def repeats(answers: list[str | None]) -> list[bool]:
    """Whether each answer after the first attempt of a dialogue was given before in it, letter for letter. An
    attempt without a box has the answer None, which does not count."""
    return [answer in answers[:i] for i, answer in enumerate(answers) if i and answer is not None]


def repeated_share(dialogues: list[list[str | None]]) -> float | None:
    """Of all attempts after the first that have a box, the share that repeats an earlier answer of its dialogue."""
    return mean(repeated for answers in dialogues for repeated in repeats(answers))


def mean_over(by_data: dict[str, dict]) -> dict:
    """The results of several data sets -> their means, each set with the same weight, as in the paper. The distance
    from a mean to an end of its interval combines the sets' own distances (MOVER, Zou and Donner, 2008)."""
    if len(by_data) == 1:
        return next(iter(by_data.values()))
    means = []
    for rows in zip(*(result["by_attempts"] for result in by_data.values())):
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        found = {key: mean(values) for key, values in columns.items()}
        found |= {"attempts": rows[0]["attempts"], "questions": sum(columns["questions"])}
        for key, low, high in (("accuracy", "low", "high"), ("gain", "gain_low", "gain_high")):
            if key in columns:
                below, above = (dist(columns[key], columns[end]) / len(rows) for end in (low, high))
                found |= {low: found[key] - below, high: found[key] + above}
        means.append(found)
    return {"questions": means[0]["questions"], "by_attempts": means, "by_data": by_data}


def pass_chance(right: int, samples: int, k: int) -> float:
    """The probability that k of the samples, or all if they are fewer, include a right one."""
    return 1 - comb(samples - right, min(k, samples)) / comb(samples, min(k, samples))


def pass_at_k(asked: list[list[dict]], attempts: int) -> dict:
    """The control for attempts with feedback: what do k independent answers solve, k = 1 .. attempts? `asked` holds n
    records of every question, sampled with 1 attempt allowed. The estimate is unbiased (Chen et al., arXiv 2107.03374).
    The interval is Wilson's, as if each question were either solved or not: too wide rather than too narrow."""
    n, rows = len(asked[0]), []
    right = [sum(sample["correct"] for sample in samples) for samples in asked]
    truncated, tokens = (fmean(x[key] for samples in asked for x in samples) for key in ("truncated", "tokens"))
    for k in range(1, attempts + 1):
        accuracy = fmean(pass_chance(c, n, k) for c in right)
        low, high = wilson(accuracy * len(asked), len(asked))
        row = {"attempts": k, "questions": len(asked), "accuracy": accuracy, "low": low, "high": high}
        rows.append(row | {"repeated": None, "truncated": truncated, "attempts_used": k, "tokens": k * tokens})
    return {"questions": len(asked), "samples": n, "right": right, "by_attempts": rows}


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test: the probability of a split at least as uneven as this one. If two models are
    equally good, each question that only one of them solved is the toss of a fair coin."""
    n = only_first + only_second
    tail = sum(comb(n, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


def compare(first: dict[str, list], second: dict[str, list]) -> dict[str, list[dict]]:
    """Compare two models on the same questions: a row for each number of attempts, by data set and for "all" sets."""
    if len(first) > 1:
        first, second = ({"all": sum(sets.values(), [])} | sets for sets in (first, second))
    rows = {data: [] for data in first}
    for data in first:
        for one, other in zip(zip(*first[data]), zip(*second[data]), strict=True):
            pairs = [(a["correct"], b["correct"]) for a, b in zip(one, other, strict=True)]
            counts = {"only_first": pairs.count((True, False)), "only_second": pairs.count((False, True))}
            rows[data].append({"attempts": one[0]["allowed"], **counts, "p": mcnemar(*counts.values())})
    return rows


# -------------------- Several training runs of the same kind
# 97.5% quantiles of Student's t by degrees of freedom; for a number in between, the next lower one counts
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
T_95 |= {12: 2.179, 16: 2.120, 24: 2.064, 50: 2.009, 200: 1.972}


def t_95(df: float) -> float:
    return T_95[max(known for known in T_95 if known <= max(df, 1))]


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% t interval of the mean over the seeds, of which there are at least two."""
    middle, half = fmean(values), t_95(len(values) - 1) * stdev(values) / sqrt(len(values))
    return middle - half, middle + half


def crossed_interval(value_SQ: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean over seeds and questions: where may it lie with other seeds *and* other questions?

    Every seed answers the same questions, so both are crossed random effects: the mean's variance is that of the seeds'
    means plus that of the questions' means, less their interaction, which is in both. Degrees of freedom by
    Satterthwaite (1946). With one seed only the questions count. If all questions agree, one is taken to differ."""
    S, Q = value_SQ.shape
    middle, seed_S1, question_Q = value_SQ.mean(), value_SQ.mean(1, keepdims=True), value_SQ.mean(0)
    terms = [(max(question_Q.var(ddof=1), 1 / Q) / Q, Q - 1)]  # of the variance, with their degrees of freedom
    if S > 1:
        interaction = ((value_SQ - seed_S1 - question_Q + middle) ** 2).sum() / ((S - 1) * (Q - 1))
        terms += [(seed_S1.var(ddof=1) / S, S - 1), (-interaction / (S * Q), (S - 1) * (Q - 1))]
    # the interaction is an estimate, and must not push the sum below a single term
    variance = max(sum(term for term, _ in terms), *(term for term, _ in terms))
    half = t_95(variance**2 / sum(term**2 / df for term, df in terms)) * sqrt(variance)
    return float(middle - half), float(middle + half)
