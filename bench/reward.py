r"""Our grader and Math-Verify on the same pairs: verdicts, and pairs a second.

    pip install 'math-verify[antlr4_13_2]'    # the peer, needed only here
    python -m bench.reward > bench/results/reward/bench.json

A pair is a gold answer (bench/pairs.toml) and a variant of it: respelled and still equal, or changed and not equal.
"""

import json
import platform
import re
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path

from support.cli import fail
from support.grader.compare import decide
from support.grader.latex import read

PAIRS = tomllib.loads(Path(__file__).with_name("pairs.toml").read_text(encoding="utf-8"))
GOLDS = PAIRS["golds"]


def rewritten(golds: list[str]) -> list[tuple[str, str, bool]]:
    """(answer, gold, equal) for every gold and every row that changes it"""
    pairs = []
    for table, equal in ((PAIRS["respelled"], True), (PAIRS["changed"], False)):
        for pattern, replacement in table:
            pairs += [(re.sub(pattern, replacement, gold), gold, equal) for gold in golds]
    return [pair for pair in pairs if pair[0] != pair[1]]


def ours(answer: str, gold: str) -> bool:
    read.cache_clear()
    return decide(answer, gold)


def theirs(answer: str, gold: str) -> bool:
    from math_verify import parse, verify

    return verify(*(parse(rf"\boxed{{{text}}}") for text in (gold, answer)))


def main():
    if not find_spec("math_verify"):
        fail("Math-Verify is not installed: pip install 'math-verify[antlr4_13_2]'")
    results, pairs = {"machine": platform.platform()}, rewritten(GOLDS)
    for name, equal in (("ours", ours), ("Math-Verify", theirs)):
        start = time.perf_counter()
        errors = [equal(answer, gold) - label for answer, gold, label in pairs]
        row = (len(pairs), errors.count(1), errors.count(-1), round(len(pairs) / (time.perf_counter() - start)))
        results[name] = dict(zip(("pairs", "wrongly accepted", "wrongly refused", "pairs a second"), row))
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
