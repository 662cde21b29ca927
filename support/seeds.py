"""Several training runs of the same kind: means over their seeds, and what another seed or other questions may change.

Shapes: S seeds, K numbers of attempts, Q questions. An entry says whether a question was solved, or how probably.
"""

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev

import numpy as np

# 97.5% quantiles of Student's t by degrees of freedom. Between two of them the lower one counts, which is cautious.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
T_95 |= {12: 2.179, 16: 2.120, 24: 2.064, 50: 2.009, 200: 1.972}


def t_95(freedom: float) -> float:
    return T_95[max(known for known in T_95 if known <= max(freedom, 1))]


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% t interval of the mean over the seeds; of a single one the value itself."""
    middle, spread = fmean(values), stdev(values) if len(values) > 1 else 0.0
    half = t_95(len(values) - 1) * spread / sqrt(len(values))
    return middle - half, middle + half


def crossed_interval(value_SQ: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean over seeds and questions: where may it lie with other seeds *and* other questions?

    Every seed answers the same questions, so both are crossed random effects of a two-way analysis of variance: the
    mean's variance is that of the seeds' means plus that of the questions' means, less their interaction, which is in
    both. Degrees of freedom by Satterthwaite (1946). A difference of two models is paired when its entries are. With a
    single seed only the questions count. If no question differs from another, one is taken to."""
    S, Q = value_SQ.shape
    middle, seed_S1, question_Q = value_SQ.mean(), value_SQ.mean(1, keepdims=True), value_SQ.mean(0)
    terms = [(max(question_Q.var(ddof=1), 1 / Q) / Q, Q - 1)]  # of the variance, with their degrees of freedom
    if S > 1:
        interaction = ((value_SQ - seed_S1 - question_Q + middle) ** 2).sum() / ((S - 1) * (Q - 1))
        terms += [(seed_S1.var(ddof=1) / S, S - 1), (-interaction / (S * Q), (S - 1) * (Q - 1))]
    variance = max(sum(term for term, _ in terms), *(term for term, _ in terms))
    half = t_95(variance**2 / sum(term**2 / freedom for term, freedom in terms)) * sqrt(variance)
    return float(middle - half), float(middle + half)


def rows_over_seeds(solved_SKQ: np.ndarray) -> list[dict]:
    """A row of a table for each number of attempts. The interval of an accuracy is over the seeds, of a single seed
    over its questions; that of a gain is over both."""
    rows = []
    for attempts, solved_SQ in enumerate(solved_SKQ.swapaxes(0, 1), 1):
        ends = t_interval(solved_SQ.mean(1)) if len(solved_SQ) > 1 else crossed_interval(solved_SQ)
        low, high = np.clip(ends, 0, 1).tolist()
        row = {"attempts": attempts, "accuracy": float(solved_SQ.mean()), "low": low, "high": high}
        gain_low, gain_high = crossed_interval(solved_SQ - solved_SKQ[:, 0])
        rows.append(row | {"gain_low": gain_low, "gain_high": gain_high})
    return rows
