r"""Our grader and Math-Verify on the same pairs: verdicts, and pairs a second.

    pip install 'math-verify[antlr4_13_2]'    # the peer, needed only here
    python -m bench.reward [--json FILE]

The pairs are gold answers respelled so that they stay equal, and changed so little that they do not. Each is read anew.
"""

import argparse
import json
import platform
import re
import sys
import time
from pathlib import Path

from support.grader.compare import decide
from support.grader.latex import read

GOLDS = r"""
42 | -7 | 58,500 | 1{,}234{,}567 | 073 | 2.5 | .35625 | 18.90 | 0.0000672 | 4.5e33 | 6.02 \times 10^{23} | 27.0
\frac{3}{4} | -\frac{35}{9} | \frac59 | 7/12 | 1\frac{4}{5} | \frac{\sqrt{3}}{3} | 3\sqrt{13} | 2\sqrt[3]{5}
\frac{1+\sqrt{5}}{2} | \pi | 12\pi | \frac{\pi}{6} | 18+2\pi | e^2 | \ln 2 | 6 - 5i | 1+274i | 90^\circ | 15\%
36 \text{ cm}^2 | 12 \text{ hours} | \$32,\!348 | \$18.90 | 5.4 \text{ cents} | 52_8 | 4210_{5} | 2^{1009} | 7!
\binom{10}{3} | x+1 | 2k+2 | 3R^2 | x^2+2x+1 | (a+5)(b+2) | \frac{x+2}{7} | \frac{1}{2n+2} | \frac{2x-1}{x+3} | \sin x
2\sin b\cos a | \log_2 x | |x-3| | \sqrt{x^2+1} | x^{n+1} | 2^{n}-1 | x=5 | y=2x+3 | 5x-7y+11z+4=0 | x^2+y^2=25
f(x)=2x | 1,-2 | 3, 5, 7 | 1 \pm \sqrt{19} | \pm 3 | x=1, x=-4 | \{1,2,3\} | \{-1, \frac{1}{3}\} | (2,4) | (6,31,-1)
\left( 3, \frac{\pi}{2} \right) | (3,4] | [0,\infty) | (-\infty, 0] | (-\sqrt{3}, \sqrt{3}) | [-2,7]
(-\infty, 2) \cup (3, \infty) | (0,9) \cup (9,36) | x>5 | x \le -2 | -2<x\le 3 | x \in [-2,7] | (1,2), (3,4)
f(n)=n, g(n)=1 | \begin{pmatrix} -2 \\ 14 \\ -7 \end{pmatrix} | \text{even} | \text{(C)} | B | 7:32 | \infty
"""
GOLDS = GOLDS.strip().replace("\n", " | ").split(" | ")
# pattern -> replacement, with @ between two of them: gold answers that stay equal, and others that become wrong
RESPELLED = r"""
^(.+)$ -> $\1$ @ ^ -> \\displaystyle  @ $ -> . @ \\d?frac -> \\tfrac @ ^(-?)\\frac\{(\w+)\}\{(\d+)\}$ -> \1\2/\3
- -> − @ \\pi(?![a-z]) -> π @ \\cup -> ∪ @ \^\\circ -> \\text{ degrees} @ \\% ->  percent @ \\sqrt\{(\d+)\} -> √\1
(\d)\\(sqrt|pi) -> \1*\\\2 @ (\d)([a-df-zA-Z])(?![a-zA-Z]) -> \1 \\cdot \2 @ ^(\w+)\s*\+\s*([\w^]+)$ -> \2+\1
pmatrix -> bmatrix @ (\w)\^(\d) -> \1**\2 @ ^(-?\d+(?:\.\d+)?)$ -> \\mathbf{\1} @ ^(-?\d+(?:\.\d+)?)$ -> n = \1
\+ -> \\,+\\, @ ^(-?\d+(?:\.\d+)?)$ -> \1 \\times 10^0 @ ^([a-zA-Z0-9]+)$ -> \\text{\1} @ ^(\d+)$ -> 00\1
^(-?\d+)$ -> \1.0 @ ^([^=<>,]+)=([^=<>,]+)$ -> \2=\1 @ ^([^()\[\]{},]+), ([^()\[\]{},]+)$ -> \2, \1
"""
CHANGED = r"""
^\(([^(),]+),([^(),]+)\)$ -> (\2,\1) @ \\le  -> \\ge  @ \\sqrt\{?(\d+)\}? -> \1 @ \\pm -> + @ \\pi(?![a-z]) -> 3.14
\\cup -> \\cap @ ^(-?\d*\.\d*[1-9])$ -> \g<1>1 @ ^(-?\d+)$ -> \1.001 @ ^([1-9]\d*)$ -> \g<1>00 @ ^([1-9]\d*)$ -> \1m
^-([^,]*)$ -> \1 @ ^\[(.*[\])])$ -> (\1 @ ^\((?!-\\infty)(.*,.*[\])])$ -> [\1 @ ^(\d+)_\{?\d+\}?$ -> \1
^(\d+)$ -> \1 = 8191 @ ^(\d)(\d+)$ -> \1\n\2 @ ^(\\text\{\w{2,}(\w))\}$ -> \1\2} @ ^([^=|+]*)\+([^=|]*)$ -> \1-\2
^([^()\[\]{}]*), [^,()]*$ -> \1 @ ^([^()\[\]{}=_:a-zA-Z]*)$ -> \1, 8191 @ ^([a-zA-Z\d+*/.-]+)$ -> \1 \\text{ or } 8191
^([1-9][\d.]*)$ -> -\1 @ (?<![\d^_{.])[1-8](?=[a-z\\(]) -> 9
"""


def rewritten(golds: list[str]) -> list[tuple[str, str, bool]]:
    """(answer, gold, equal) for every gold and every row that changes it"""
    pairs = []
    for table, equal in ((RESPELLED, True), (CHANGED, False)):
        for row in table.strip().replace("\n", " @ ").split(" @ "):
            pattern, replacement = row.split(" -> ")
            pairs += [(re.sub(pattern, replacement, gold), gold, equal) for gold in golds]
    return [pair for pair in pairs if pair[0] != pair[1]]


def ours(answer: str, gold: str) -> bool:
    read.cache_clear()
    return decide(answer, gold)


def peer():
    """Math-Verify as a function of (answer, gold); None without it"""
    try:
        from math_verify import parse, verify
    except ImportError:
        print("Math-Verify is not installed (pip install 'math-verify[antlr4_13_2]'): ours alone", file=sys.stderr)
        return None
    return lambda answer, gold: verify(*(parse(rf"\boxed{{{text}}}") for text in (gold, answer)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    file = parser.parse_args().json
    results, pairs = {"machine": platform.platform()}, rewritten(GOLDS)
    for name, equal in (("ours", ours), ("Math-Verify", peer())):
        if equal:
            start = time.perf_counter()
            errors = [equal(answer, gold) - label for answer, gold, label in pairs]
            rate = round(len(pairs) / (time.perf_counter() - start))
            row = (len(pairs), errors.count(1), errors.count(-1), rate)
            results[name] = dict(zip(("pairs", "wrongly accepted", "wrongly refused", "pairs a second"), row))
    print(json.dumps(results, indent=1))
    if file:
        file.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
