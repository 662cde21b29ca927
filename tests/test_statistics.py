"""The numbers of an evaluation against cases worked out by hand, and against slower ways to the same number."""

from itertools import combinations
from statistics import fmean

import numpy as np
import pytest

from bench.reproduce import over_seeds
from support import statistics as stats


@pytest.mark.parametrize(
    "correct, n, low, high",
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_interval(correct, n, low, high):
    assert stats.wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_gain_by_hand():
    """Of 8 questions, the first solves 3 and the second 5: 3 are gained, 1 is lost. With half a question more in each
    of the four outcomes, the middle is (3.5 - 1.5) / 10 and the variance (5 / 10 - 0.2^2) / 10."""
    first, second = [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 1, 1, 0, 0]
    half = 1.959964 * 0.046**0.5
    assert stats.gain(first, second) == pytest.approx({"gain": 0.25, "gain_low": 0.2 - half, "gain_high": 0.2 + half})
    none = stats.gain([1, 0], [1, 0])
    assert none["gain"] == 0 and none["gain_low"] == -none["gain_high"] < 0  # two questions make nothing certain


@pytest.mark.parametrize(
    "dialogues, share",
    [
        ([["1"], [None, None]], None),  # without a box there is no answer to repeat
        ([["1", "1.0"]], 0.0),  # letter for letter
        ([["", ""]], 1.0),  # only None is no answer: another verifier may give ""
        ([["1", "2", "1"]], 0.5),  # any earlier answer, not only the last
        ([[None, "1", "1", None]], 0.5),
        ([["1", "1"], ["2", "3"], ["1"], ["3", "1"]], 1 / 3),  # not the answer of another dialogue
    ],
)
def test_repeated_share(dialogues, share):
    assert stats.repeated_share(dialogues) == (None if share is None else pytest.approx(share))


def result(accuracy, low, high, questions, repeated=None, tokens=10.0):
    row = {"attempts": 1, "questions": questions, "accuracy": accuracy, "low": low, "high": high}
    row |= {"repeated": repeated, "truncated": 0.5, "attempts_used": 1.0, "tokens": tokens}
    return {"questions": questions, "by_attempts": [row]}


def test_mean_over_data_sets():
    by_data = {"a": result(0.5, 0.3, 0.7, 30, None, 10.0), "b": result(0.1, 0.04, 0.25, 500, 0.4, 30.0)}
    found = stats.mean_over(by_data)
    assert found["by_data"] == by_data and found["questions"] == 530
    low, high = 0.3 - (0.2**2 + 0.06**2) ** 0.5 / 2, 0.3 + (0.2**2 + 0.15**2) ** 0.5 / 2
    (row,) = result(0.3, low, high, 530, 0.4, 20.0)["by_attempts"]  # of the repeated answers, only "b" has a share
    assert found["by_attempts"] == [pytest.approx(row)]
    for name, (gain, low, high) in {"a": (0.3, 0.2, 0.5), "b": (0.1, 0.05, 0.2)}.items():
        by_data[name]["by_attempts"][0] |= {"gain": gain, "gain_low": low, "gain_high": high}
    (row,) = stats.mean_over(by_data)["by_attempts"]
    assert row["gain"] == pytest.approx(0.2) and row["low"] == found["by_attempts"][0]["low"]
    assert row["gain_low"] == pytest.approx(0.2 - (0.1**2 + 0.05**2) ** 0.5 / 2)
    assert row["gain_high"] == pytest.approx(0.2 + (0.2**2 + 0.1**2) ** 0.5 / 2)
    assert stats.mean_over({"a": by_data["a"]}) == by_data["a"]
    none = stats.mean_over({name: result(0.0, *stats.wilson(0, 30), 30) for name in "abcde"})["by_attempts"][0]
    assert none["low"] == 0 and none["high"] == pytest.approx(stats.wilson(0, 30)[1] / 5**0.5)  # not certain
    assert none["repeated"] is None


def test_pass_at_k_is_the_share_of_all_choices_of_k_samples():
    n, solved = 6, (0, 2, 6)  # samples of a question, and how many of them are correct
    asked = [[{"correct": i < c, "truncated": i == 0, "tokens": 10 + i} for i in range(n)] for c in solved]
    found = stats.pass_at_k(asked, attempts=5)
    assert found["questions"] == 3 and found["samples"] == n and len(found["by_attempts"]) == 5
    for k, row in enumerate(found["by_attempts"], 1):
        accuracy = fmean(any(record["correct"] for record in some) for same in asked for some in combinations(same, k))
        assert row["accuracy"] == pytest.approx(accuracy)
        assert (row["low"], row["high"]) == pytest.approx(stats.wilson(3 * accuracy, 3))
        assert row["truncated"] == pytest.approx(1 / 6) and row["tokens"] == 12.5 * k and row["repeated"] is None
        assert row["attempts"] == row["attempts_used"] == k and row["questions"] == 3
    never = stats.pass_at_k(asked[:1], attempts=3)["by_attempts"]  # 0 of 6 samples of a single question
    assert {(row["low"], row["high"]) for row in never} == {stats.wilson(0, 1)}  # make nothing certain


@pytest.mark.parametrize(
    "first, second, p",
    # with 5 and 5 the middle is in both tails, which makes more than 1
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (2, 8, 2 * (1 + 10 + 45) / 1024), (5, 5, 1.0), (300, 200, 8.9e-6)],
)
def test_mcnemar(first, second, p):
    assert stats.mcnemar(first, second) == stats.mcnemar(second, first) == pytest.approx(p, rel=0.01)


def test_compare():
    def asked(*solved):  # a word for each question, with a letter for each number of attempts
        return [[{"allowed": k, "correct": mark == "+"} for k, mark in enumerate(word, 1)] for word in solved]

    first = {"a": asked("-+", "--", "++"), "b": asked("+-")}
    second = {"a": asked("+-", "--", "+-"), "b": asked("-+")}
    rows = {data: [tuple(row.values()) for row in rows] for data, rows in stats.compare(first, second).items()}
    assert rows == {  # attempts, only the first solved it, only the second, p
        "all": [(1, 1, 1, 1.0), (2, 2, 1, 1.0)],
        "a": [(1, 0, 1, 1.0), (2, 2, 0, 0.5)],
        "b": [(1, 1, 0, 1.0), (2, 0, 1, 1.0)],
    }
    assert list(stats.compare({"a": first["a"]}, {"a": second["a"]})) == ["a"]


def test_the_t_interval_over_seeds():
    """0.2, 0.4, 0.6: mean 0.4, standard deviation 0.2, half width 4.303 * 0.2 / sqrt(3) = 0.4969."""
    assert stats.t_interval([0.2, 0.4, 0.6]) == pytest.approx((-0.0969, 0.8969), abs=1e-4)


def test_the_crossed_interval_by_hand():
    """Two seeds, three questions. Seeds have means 0 and 1/3, which gives the mean the variance 1/36, with 1 degree of
    freedom. Questions have means -1, 1/2, 1: 13/36, 2 degrees. The interaction, mean square 1/6: 1/36, 2 degrees."""
    value_SQ = np.array([[-1.0, 0, 1], [-1, 1, 1]])
    freedom = 13**2 / (1 + 13**2 / 2 + 1 / 2)
    half = stats.T_95[1] * (13 / 36) ** 0.5
    assert 1 < freedom < 2 and stats.crossed_interval(value_SQ) == pytest.approx((1 / 6 - half, 1 / 6 + half))
    # one seed: the t interval over its questions; and where all questions agree, one is taken to differ
    half = stats.T_95[2] * (1 / 3) ** 0.5
    assert stats.crossed_interval(value_SQ[:1]) == pytest.approx((-half, half))
    half = stats.T_95[50] / 200
    assert stats.crossed_interval(np.zeros((3, 200))) == pytest.approx((-half, half), rel=0.02)


@pytest.mark.parametrize("S, Q, by_seed, by_question", [(5, 200, 0.1, 0.3), (5, 200, 0.0, 0.3), (4, 100, 0.1, 0.0)])
def test_the_crossed_interval_covers_the_truth(S, Q, by_seed, by_question):
    """In about 95 of 100 experiments, wherever the noise comes from; more when there is less of it than there seems."""
    rng = np.random.default_rng(0)

    def experiment():
        noise_SQ = by_seed * rng.normal(size=(S, 1)) + by_question * rng.normal(size=Q) + 0.3 * rng.normal(size=(S, Q))
        low, high = stats.crossed_interval(noise_SQ)
        return low < 0 < high

    assert 0.93 < np.mean([experiment() for _ in range(600)]) < 0.99


def test_rows_over_seeds():
    def rows(*solved_SK: list[str]) -> list[dict]:
        runs = [dict(samples=1, solved=x, repeated=0.25, truncated=0.0, tokens=9.0) for x in solved_SK]
        return over_seeds(dict(enumerate(runs)), slice(None))["by_attempts"]

    first, second = rows(["0011", "0111"], ["0001", "0101"])
    assert (first["attempts"], first["accuracy"], second["attempts"], second["accuracy"]) == (1, 0.375, 2, 0.625)
    assert (second["low"], second["high"], second["repeated"]) == (0, 1, 0.25)  # no accuracy is below 0 or above 1
    assert (second["gain_low"], second["gain_high"]) == stats.crossed_interval(np.array([[0, 1.0, 0, 0]] * 2))
    first = rows(["0011"], ["0011"], ["0001"], ["0011"])[0]
    assert (first["low"], first["high"]) == stats.t_interval([0.5, 0.5, 0.25, 0.5])
    only = rows(["0011" * 100])[0]
    assert (only["low"], only["high"]) == stats.crossed_interval(np.array([[0.0, 0, 1, 1] * 100]))
