r"""Our grader and Math-Verify side by side: verdicts and pairs a second on the same pairs.

    pip install 'math-verify[antlr4_13_2]'                          # the peer, needed only here
    python -m bench.reward [--json FILE] [--seconds 20]

`model` is what models box nine times in ten. `rewrites` are gold answers respelled so that they stay equal, and changed
so little that they do not. No cache helps. A grader is stopped after --seconds on a kind.
"""

import argparse
import json
import platform
import random
import re
import sys
import time
from functools import partial
from pathlib import Path

from reward import is_equal, read

GOLDS = r"""
42 | -7 | 0 | 1000 | 58,500 | 1{,}234{,}567 | 073 | 2.5 | .35625 | 18.90 | 0.0000672 | 4.5e33 | 6.02 \times 10^{23}
27.0 | \frac{3}{4} | -\frac{35}{9} | \frac59 | \dfrac{17}{50} | 7/12 | 1\frac{4}{5} | 137 \frac{1}{2}
\frac{\sqrt{3}}{3} | 3\sqrt{13} | \sqrt{51} | 2\sqrt[3]{5} | 11\sqrt2 | \frac{1+\sqrt{5}}{2} | 2+\sqrt{3} | \pi
12\pi | \frac{\pi}{6} | 18+2\pi | \frac{20000}{\pi} | e^2 | \ln 2 | \frac{e}{3} | 6 - 5i | 1+274i | -2+7i | 90^\circ
145^\circ | 15\% | 36 \text{ cm}^2 | 12 \text{ hours} | \$32,\!348 | \$18.90 | 5.4 \text{ cents} | 52_8 | 4210_{5}
2^{10} | 2^{1009} | 7! | \binom{10}{3} | x+1 | 2k+2 | 3R^2 | p - q | 5r^5 | x^2+2x+1 | 6r^2-4r-24 | (a+5)(b+2)
x^3+3x-6 | \frac{x+2}{7} | \frac{1}{2n+2} | \frac{2x-1}{x+3} | \frac{\pi r}{h+r} | 2n-2 | \sin x | 2\sin b\cos a
\cot x | \log_2 x | |x-3| | \sqrt{x^2+1} | x^{n+1} | 2^{n}-1 | x=5 | k=1 | y=2x+3 | 5x-7y+11z+4=0 | x^2+y^2=25
f(x)=2x | 1,-2 | 3, 5, 7 | -\frac12, 4, \sqrt7 | 1 \pm \sqrt{19} | \pm 3 | x=1, x=-4 | \{1,2,3\} | \{-1, \frac{1}{3}\}
(2,4) | (6,31,-1) | \left( 3, \frac{\pi}{2} \right) | (3,4] | [0,\infty) | (-\infty, 0] | (-\sqrt{3}, \sqrt{3})
[-2,7] | (-\infty, 2) \cup (3, \infty) | (0,9) \cup (9,36) | x>5 | x \le -2 | -2<x\le 3 | x \in [-2,7] | (1,2), (3,4)
f(n)=n, g(n)=1 | \begin{pmatrix} -2 \\ 14 \\ -7 \end{pmatrix} | \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
\text{even} | \text{Evelyn} | \text{(C)} | B | \text{Saturday} | 7:32 | 3:15 p.m. | \infty | 3:4:5 | 0.\overline{3}
"""
GOLDS = GOLDS.strip().replace("\n", " | ").split(" | ")
COLUMNS = ["pairs", "right", "accepted wrongly", "refused wrongly", "pairs a second"]


def changes(table: str) -> list:
    """Functions that replace a pattern, of rows `pattern -> replacement` with @ between them"""
    rows = [row.split(" -> ") for row in table.strip().replace("\n", " @ ").split(" @ ")]
    return [partial(re.sub, pattern, to) for pattern, to in rows]


# gold -> the same answer in another spelling, or itself
REWRITES = changes(
    r"""
^(.+)$ -> $\1$ @ ^ -> \\displaystyle  @ $ -> . @ ^(.+)$ -> \\u200b\1\\u200b @ \\frac -> \\dfrac @ \\d?frac -> \\tfrac
^(-?)\\frac\{(\w+)\}\{(\d+)\}$ -> \1\2/\3 @ - -> − @ \\pi(?![a-z]) -> π @ \\infty -> ∞ @ \\le  -> ≤ @ \\cup -> ∪
\\pm -> ± @ \^\\circ -> ° @ \^\\circ -> \\text{ degrees} @ \\% ->  percent @ \\sqrt\{(\d+)\} -> \\sqrt{ \1 }
\\sqrt\{(\d+)\} -> √\1 @ (\d)\\(sqrt|pi) -> \1*\\\2 @ (\d)([a-df-zA-Z])(?![a-zA-Z]) -> \1 \\cdot \2
^(\w+)\s*\+\s*([\w^]+)$ -> \2+\1 @ pmatrix -> bmatrix @ \s*\\text\{ ?(cm|hours|cents)\}(\^2)?$ -> 
\^(\d)(?!\d) -> ^{\1} @ (\w)\^(\d) -> \1**\2 @ ^(-?\d+(?:\.\d+)?)$ -> \\mathbf{\1} @ ^(-?\d+(?:\.\d+)?)$ -> n = \1
^(-?\d+(?:\.\d+)?)$ -> \1 \\times 10^0 @ ^([a-zA-Z0-9]+)$ -> \\text{\1} @ ^\\text(\{[^ ]*\})$ -> \\mathrm\1
^(\d+)$ -> 00\1 @ ^(-?\d+)$ -> \1.0 @ ^(-?\d*\.\d+)$ -> \g<1>0 @ ^([a-zA-Z\d^+*-]{2,})$ -> (\1)
^([^=<>,]+)=([^=<>,]+)$ -> \2=\1 @ ^([(\[][^()\[\]]*\\infty[^()\[\]]*[\])])$ -> x \\in \1
^(.+)$ ->   \1  @ (\w),(?= ) -> \1,\\, @ \+ -> \\,+\\, @ ^([^()\[\]{},]+), ([^()\[\]{},]+)$ -> \2, \1
"""
)
REWRITES.append(lambda gold: f"{int(gold):,}" if gold.isdecimal() else gold)
REWRITES.append(lambda gold: "".join(chr(ord(c) + 0xFEE0) for c in gold) if gold.isdecimal() else gold)  # wide digits
# gold -> nearly the same, and wrong; or itself
NEAR_MISSES = changes(
    r"""
^\(([^(),]+),([^(),]+)\)$ -> (\2,\1) @ \\le  -> \\ge  @ \\sqrt\{?(\d+)\}? -> \1 @ \\pm -> + @ \\pi(?![a-z]) -> 3.14
\\cup -> \\cap @ ^(-?\d*\.\d*[1-9])$ -> \g<1>1 @ ^(-?\d+)$ -> \1.001 @ ^([1-9]\d*)$ -> \g<1>00 @ ^([1-9]\d*)$ -> \1m
^-([^,]*)$ -> \1 @ ^\[(.*[\])])$ -> (\1 @ ^\((?!-\\infty)(.*,.*[\])])$ -> [\1 @ ^(\d+)_\{?\d+\}?$ -> \1
^(\d+)$ -> \1 = 8191 @ ^(\d+)$ -> 8191 = \1 @ ^(\d)(\d+)$ -> \1\n\2 @ ^(\\text\{\w{2,}(\w))\}$ -> \1\2}
^([^=|+]*)\+([^=|]*)$ -> \1-\2
^([^()\[\]{}]*), [^,()]*$ -> \1 @ ^([^()\[\]{}=_:a-zA-Z]*)$ -> \1, 8191 @ ^([a-zA-Z\d+*/.-]+)$ -> \1 \\text{ or } 8191
^([1-9][\d.]*)$ -> -\1 @ (?<![a-zA-Z\\])[nkr](?=[ +*^/}-]) -> t @ (?<![\d^_{.])[1-8](?=[a-z\\(]) -> 9
"""
)


def rewritten(golds: list[str]) -> list[tuple[str, str, bool]]:
    """(answer, gold, equal) for every gold and every change that changes it."""
    kinds = [(change, True) for change in REWRITES] + [(change, False) for change in NEAR_MISSES]
    pairs = [(change(gold).replace(r"\u200b", "\u200b"), gold, equal) for change, equal in kinds for gold in golds]
    return [pair for pair in pairs if pair[0] != pair[1]]


def modelled(count: int = 3000) -> list[tuple[str, str, bool]]:
    """What a model boxes: mostly plain numbers, now and then a formula; right, or another answer."""
    pairs, rng = [], random.Random(0)
    for k in range(count):
        gold = str(rng.randrange(-20, 3000)) if rng.random() < 0.8 else rng.choice(GOLDS)
        wrong = str(rng.randrange(3000, 9000)) if rng.random() < 0.8 else rf"\frac{{{k + 7}}}{{{k + 8}}}"
        pairs.append(rng.choice([(gold.replace(r"\frac", r"\dfrac"), gold, True), (wrong, gold, False)]))
    return pairs


def measure(equal, pairs, seconds: float, forget=lambda: None) -> dict:
    """Rate and right verdicts of a grader for at most `seconds`; `forget` empties its caches each time."""
    errors, times = [], []
    for answer, gold, label in pairs:
        forget()
        start = time.perf_counter()
        errors.append(equal(answer, gold) - label)
        times.append(time.perf_counter() - start)
        if sum(times) > seconds:
            break
    right, rate = errors.count(0) / len(times), len(times) / sum(times)
    return dict(zip(COLUMNS, (len(times), right, errors.count(1), errors.count(-1), rate)))


def peer():
    """Math-Verify as a function of (answer, gold) that parses both anew, as a trainer does; None without it."""
    try:
        from math_verify import parse, verify
    except ImportError:
        print("Math-Verify is not installed (pip install 'math-verify[antlr4_13_2]'): ours alone", file=sys.stderr)
        return None
    return lambda answer, gold: verify(*(parse(rf"\boxed{{{text}}}") for text in (gold, answer)))


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--json", type=Path, help="write the figures to this file")
    options.add_argument("--seconds", type=float, default=20.0, help="limit for each grader and kind")
    options = options.parse_args()
    graders = {"ours": (is_equal, lambda: (is_equal.cache_clear(), read.cache_clear()))}
    if equal := peer():
        graders["Math-Verify"] = equal, lambda: None
    results = {"command": " ".join(["python -m bench.reward", *sys.argv[1:]]), "machine": platform.platform()}
    print(f"{'kind':<10}{'grader':<13}" + "".join(f"{column:>18}" for column in COLUMNS))
    for kind, pairs in (("model", modelled()), ("rewrites", rewritten(GOLDS))):
        pairs = random.Random(1).sample(pairs, len(pairs))
        for name, (grader, forget) in graders.items():
            row = results[f"{kind}/{name}"] = measure(grader, pairs, options.seconds, forget)
            print(f"{kind:<10}{name:<13}" + "".join(f"{round(row[column], 3):>18}" for column in COLUMNS))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
