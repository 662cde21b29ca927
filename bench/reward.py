r"""Our grader and Math-Verify side by side: verdicts and pairs a second on the same pairs, in one process each.

    pip install 'math-verify[antlr4_13_2]'                          # the peer, needed only here
    python bench/reward.py [--json FILE] [--golds FILE] [--seconds 20]

Three kinds of pairs, made here from a list of gold answers (or from your own --golds file, one gold answer a line):
`model` what models box nine times in ten (short, mostly numbers, half of it wrong), `hard` one pair of every form that
graders stumble over, `rewrites` gold answers respelled so that they stay equal, and changed so little that they do not.
Each label is known from how the pair was made, so the share of right verdicts is measured too. Every pair is new to the
grader: caches are emptied before each pass. The peer is stopped after --seconds for each kind; its rate counts what it did.
"""
from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import reward as ours  # noqa: E402

GOLDS = r"""
42 | -7 | 0 | 1000 | 58,500 | 1{,}234{,}567 | 073 | 2.5 | .35625 | 18.90 | 0.0000672 | 4.5e33 | 6.02 \times 10^{23} | 27.0
\frac{3}{4} | -\frac{35}{9} | \frac59 | \dfrac{17}{50} | 7/12 | 1\frac{4}{5} | 137 \frac{1}{2} | \frac{\sqrt{3}}{3} | 3\sqrt{13}
\sqrt{51} | 2\sqrt[3]{5} | 11\sqrt2 | \frac{1+\sqrt{5}}{2} | 2+\sqrt{3} | \pi | 12\pi | \frac{\pi}{6} | 18+2\pi | \frac{20000}{\pi}
e^2 | \ln 2 | \frac{e}{3} | 6 - 5i | 1+274i | -2+7i | 90^\circ | 145^\circ | 15\% | 36 \text{ cm}^2 | 12 \text{ hours} | \$32,\!348
\$18.90 | 5.4 \text{ cents} | 52_8 | 4210_{5} | 2^{10} | 2^{1009} | 7! | \binom{10}{3} | x+1 | 2k+2 | 3R^2 | p - q | 5r^5
x^2+2x+1 | 6r^2-4r-24 | (a+5)(b+2) | x^3+3x-6 | \frac{x+2}{7} | \frac{1}{2n+2} | \frac{2x-1}{x+3} | \frac{\pi r}{h+r} | 2n-2
\sin x | 2\sin b\cos a | \cot x | \log_2 x | |x-3| | \sqrt{x^2+1} | x^{n+1} | 2^{n}-1 | x=5 | k=1 | y=2x+3 | 5x-7y+11z+4=0
x^2+y^2=25 | f(x)=2x | 1,-2 | 3, 5, 7 | -\frac12, 4, \sqrt7 | 1 \pm \sqrt{19} | \pm 3 | x=1, x=-4 | \{1,2,3\} | \{-1, \frac{1}{3}\}
(2,4) | (6,31,-1) | \left( 3, \frac{\pi}{2} \right) | (3,4] | [0,\infty) | (-\infty, 0] | (-\sqrt{3}, \sqrt{3}) | [-2,7]
(-\infty, 2) \cup (3, \infty) | (0,9) \cup (9,36) | x>5 | x \le -2 | -2<x\le 3 | x \in [-2,7] | (1,2), (3,4) | f(n)=n, g(n)=1
\begin{pmatrix} -2 \\ 14 \\ -7 \end{pmatrix} | \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | \text{even} | \text{Evelyn} | \text{(C)} | B
\text{Saturday} | 7:32 | 3:15 \text{ p.m.} | \infty | 3:4:5 | \lfloor m/2 \rfloor | \frac{9}{4}\pi | x^8+x^4+1 | 0.\overline{3}
"""
GOLDS = [gold.strip() for line in GOLDS.strip().split("\n") for gold in line.split(" | ")]
HARD = [(answer, gold, equal) for gold, equal_answers, other_answers in [    # a form a line: what is equal to it, what is not
    ("1/3", r"\frac26; 0.\overline{3}; 0.333333333333333", "0.33; 0.3333; 1/4"), ("3.14", r"\pi; 3.140", "3.15; 3.1; 22"),
    ("45000", r"45{,}000; 4.5\times10^4; 45\,000; ４５０００", "45001; 44999.5; 4500; 45,00"), ("0.28", r"28\%; \frac{7}{25}", "28; 2.8\\%"),
    (r"\frac{\sqrt3}{2}", r"\sqrt{\frac34}; \frac{3}{2\sqrt3}; \sin 60^\circ", r"\frac{\sqrt3}{3}; 0.87"), ("-2", r"\sqrt[3]{-8}; i^2-1; −2", "2; \\sqrt{4}"),
    (r"\tan^2 y+1", r"\sec^2(y); \frac{1}{\cos^2 y}", r"\sec y; \tan^2 y"), ("x", r"\frac{x^2}{x}; 2x-x", r"\sqrt{x^2}; |x|; y"),
    (r"\frac{x}{7}+\frac{2}{7}", r"\frac{x+2}{7}; (2+x)/7", r"\frac{x}{7}+2; \frac{x-2}{7}"), (r"\binom{2n}{n}", r"\frac{(2n)!}{n!^2}", r"\binom{2n}{2}"),
    ("y=2x+3", "2x-y+3=0; 2x+3; 2y=4x+6", "y=2x-3; x=2y+3; 2x+3=0"), ("x^2/4+y^2/3=1", "3x^2+4y^2=12", "3x^2+4y^2=1"),
    ("(3,4]", r"3<x\le 4; x\in(3,4]; \left(3,\frac82\right]", "[3,4); (3,4); 3<x<4; 3,4"), ("x>2", r"(2,\infty); 2<x; -x<-2", r"x\ge 2; x<2; (2,5)"),
    (r"(-\infty,1)\cup(2,\infty)", r"x<1\text{ or }x>2; (2,\infty)\cup(-\infty,1)", r"(-\infty,1)\cup[2,\infty); (-\infty,1)"),
    (r"1\pm\sqrt2", r"1+\sqrt2, 1-\sqrt2; \{1-\sqrt2,1+\sqrt2\}; x=1\pm\sqrt2", r"1+\sqrt2; 1\pm\sqrt3"), ("1,2,3", r"3,2,1; \{1,2,3\}; 1, 2\text{ and }3", "1,2; 1,2,3,4; (1,2,3"),
    ("52_8", r"52_{8}; 52_{\text{eight}}", "52; 42; 52_9"), ("90^\\circ", r"90; 90\text{ degrees}; \frac{\pi}{2}; 90°", r"\pi; 91"), ("5\\text{ cm}", "5; 5 cm", r"5\text{ m}; 5c"),
    ("3:15\\text{ p.m.}", "3:15; 15:15; 3:15 PM", "3:16; 3:15 AM"), ("\\text{(C)}", "C; (C); C. 42", "D; A. 42"), ("\\text{even}", "Even; \\textbf{even}", "odd; evn"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"(1,2); \begin{bmatrix}1\\2.0\end{bmatrix}", r"(2,1); \begin{pmatrix}1\\3\end{pmatrix}"), (r"\infty", "infinity; +\\infty", "-\\infty; 10^{99}"),
    (r"e^{16}-1", "exp(16)-1; -1+e^16", "e^{16}; 8886109"), (r"\frac{1}{2^{99}}", r"2^{-99}; 0.5^{99}", r"\frac{1}{2^{98}}; 0"), ("3:2", r"6:4; \frac32", "2:3"),
    (r"14-i", "14.0 + -1.0i; -i+14", "14+i; 14-1"), (r"\sqrt2", r"\frac{2}{\sqrt2}; 2^{1/2}", r"\frac{665857}{470832}; 1.414"),
] for answers, equal in ((equal_answers, True), (other_answers, False)) for answer in answers.split("; ")]


def _swap(pattern: str, to, count: int = 0):
    return lambda gold: re.sub(pattern, to, gold, count=count)


PLAIN = r"-?\d+(?:\.\d+)?"
REWRITES = {                                                   # name: gold -> the same answer in another spelling, or itself
    "dollars": lambda g: f"${g}$", "display": lambda g: rf"\displaystyle {g}", "stop": lambda g: g + ".", "spaces": lambda g: f"  {g} ",
    "thin": lambda g: g.replace(",", r",\,").replace("+", r"\,+\,") if "{,}" not in g and r"\!" not in g and not re.search(r"\d,\d{3}", g) else g,
    "dfrac": _swap(r"\\frac", r"\\dfrac"), "tfrac": _swap(r"\\[d]?frac", r"\\tfrac"), "slash": _swap(r"^(-?)\\frac\{(\w+)\}\{(\d+)\}$", r"\1\2/\3"),
    "left": lambda g: g if r"\left" in g or "\\{" in g or "_" in g else re.sub(r"([\])])", r"\\right\1", re.sub(r"([(\[])", r"\\left\1", re.sub(r"\\sqrt\[", r"\\sqrt[", g))) if "sqrt[" not in g and "text" not in g and "begin" not in g else g,
    "minus": lambda g: g.replace("-", "−"), "unicode": lambda g: g.replace(r"\pi", "π").replace(r"\infty", "∞").replace(r"\le ", "≤").replace(r"\cup", "∪").replace(r"\pm", "±").replace(r"^\circ", "°"),
    "invisible": lambda g: "\u200b" + g + "\u200e", "bold": lambda g: rf"\mathbf{{{g}}}" if re.fullmatch(PLAIN, g) else g,
    "text": lambda g: rf"\text{{{g}}}" if re.fullmatch(r"\w+", g) and "_" not in g else g.replace(r"\text{", r"\mathrm{") if r"\text{" in g and " " not in g else g,
    "zeros": lambda g: "00" + g if re.fullmatch(r"\d+", g) else g, "point": lambda g: g + ".0" if re.fullmatch(r"-?\d+", g) else g + "0" if re.fullmatch(r"-?\d*\.\d+", g) else g,
    "fullwidth": lambda g: "".join(chr(ord(c) + 0xFEE0) if c.isdigit() else c for c in g) if re.fullmatch(PLAIN, g) else g,
    "commas": lambda g: f"{int(g):,}" if re.fullmatch(r"-?\d+", g) else g, "braces": lambda g: f"{int(g):,}".replace(",", "{,}") if re.fullmatch(r"\d+", g) else g,
    "named": lambda g: f"n = {g}" if re.fullmatch(PLAIN, g) else g, "half": lambda g: rf"\frac{{{2 * int(g)}}}{{2}}" if re.fullmatch(r"\d{1,6}", g) else g,
    "power": lambda g: rf"{g} \times 10^0" if re.fullmatch(PLAIN, g) else g, "sci": lambda g: f"{float(g):.10e}".replace("e", r" \times 10^{") + "}" if re.fullmatch(r"\d{3,6}", g) else g,
    "sqrt": _swap(r"\\sqrt\{(\d+)\}", r"\\sqrt{\1 }"), "asterisk": _swap(r"(\d)\\(sqrt|pi)", r"\1*\\\2"), "cdot": _swap(r"(\d)([a-df-zA-Z](?![a-zA-Z]))", r"\1 \\cdot \2") , "paren": lambda g: f"({g})" if re.fullmatch(r"[\w^+*-]+", g) and "_" not in g and len(g) > 1 else g,
    "plus": lambda g: re.sub(r"^(\w+)\s*\+\s*([\w^]+)$", r"\2+\1", g), "sides": lambda g: re.sub(r"^([^=<>]+)=([^=<>]+)$", r"\2=\1", g) if "," not in g else g,
    "order": lambda g: ", ".join(reversed(g.split(","))) if re.fullmatch(r"[^()\[\]{}]*,[^()\[\]{}]*", g) and not re.search(r"\d,\d{3}|\\!|=", g) else g,
    "bmatrix": lambda g: g.replace("pmatrix", "bmatrix"), "degrees": lambda g: g.replace(r"^\circ", r"\text{ degrees}"), "unitless": _swap(r"\s*\\text\{ ?(cm|hours|cents)\}(\^2)?$", ""), "percent": lambda g: g.replace(r"\%", " percent"),
    "member": lambda g: rf"x \in {g}" if re.fullmatch(r"[(\[][^()\[\]]*\\infty[^()\[\]]*[\])]", g) else g, "exponent": _swap(r"\^(\d)(?!\d)", r"^{\1}"), "stars": _swap(r"(\w)\^(\d)", r"\1**\2"),
}
NEAR_MISSES = {                                                # name: gold -> nearly the same, and wrong; or itself
    "plus one": lambda g: re.sub(r"(?<![\d.,_{}^!])(\d+)(?![\d.,%}!:]|\\!|\^)", lambda m: str(int(m[1]) + 1), g, count=1), "last digit": lambda g: g[:-1] + str((int(g[-1]) + 1) % 10) if re.fullmatch(r"-?[\d,]*\.?\d+", g) else g,
    "one more digit": lambda g: g + "1" if re.fullmatch(r"-?\d*\.\d*[1-9]", g) else g, "tiny": lambda g: g + ".001" if re.fullmatch(r"-?\d+", g) else g, "relative": lambda g: str(int(g) + 1) if re.fullmatch(r"\d{4,}", g) else g,
    "sign": lambda g: g[1:] if g[0] == "-" and "," not in g else "-" + g if re.fullmatch(r"[1-9\\][^,=]*", g) and not re.search(r"text|!|_|pm|begin|cup|:|in|le|infty", g) else g, "hundred": lambda g: g + "00" if re.fullmatch(r"[1-9]\d*", g) else g,
    "open": lambda g: g.replace("[", "(") if re.fullmatch(r"\[.*[\])]", g) else g, "closed": lambda g: g.replace("(", "[", 1) if re.fullmatch(r"\((?!-\\infty).*,.*[\])]", g) else g,
    "base": lambda g: re.sub(r"_\{?\d+\}?$", "", g) if re.fullmatch(r"\d+_\{?\d+\}?", g) else g, "subset": lambda g: g.rsplit(",", 1)[0] if re.fullmatch(r"[^()\[\]{}]*,[^()\[\]{}]*", g) and not re.search(r"\d,\d{3}|\\!", g) else g,
    "superset": lambda g: g + ", 97" if re.fullmatch(r"[^()\[\]{}=_:]*", g) and not re.search("text|^[A-Z]$", g) else g, "or": lambda g: g + r" \text{ or } 97" if re.fullmatch(r"[\w\\{}^+*/.-]+", g) and "text" not in g and "_" not in g else g,
    "swapped": lambda g: re.sub(r"^\(([^(),]+),([^(),]+)\)$", r"(\2,\1)", g), "operator": lambda g: g.replace("+", "-", 1) if re.fullmatch(r"[^=|]*\+[^=|]*", g) else g, "flipped": lambda g: g.translate(str.maketrans("<>", "><")) if re.search("[<>]", g) else g.replace(r"\le", r"\ge") if r"\le " in g else g,
    "variable": lambda g: re.sub(r"(?<![a-zA-Z\\])([xnkr])(?![a-zA-Z])", "t", g) if not re.search(r"[<>]|\\le|\\in |=", g) else g, "letter": lambda g: g + "m" if re.fullmatch(r"[1-9]\d*", g) else g, "root": _swap(r"\\sqrt\{?(\d+)\}?", r"\1"),
    "pi": lambda g: g.replace(r"\pi", "3.14") if r"\pi" in g else g, "newline": lambda g: g[0] + "\n" + g[1:] if re.fullmatch(r"\d{2,}", g) else g, "chain": lambda g: f"{g} = 97" if re.fullmatch(r"\d+", g) and g != "97" else g, "junk": lambda g: f"97 = {g}" if re.fullmatch(r"\d+", g) and g != "97" else g,
    "word": lambda g: re.sub(r"(\w)\}$", r"\1\1}", g) if re.fullmatch(r"\\text\{\w{3,}\}", g) else g, "plus minus": lambda g: g.replace(r"\pm", "+"), "half": lambda g: g.replace(r"\cup", r"\cap") if r"\cup" in g else g,
}


def rewritten(golds: list[str]) -> list[tuple[str, str, bool]]:
    """(answer, gold, equal) for every gold and every change that changes it."""
    return [(change(gold), gold, equal) for changes, equal in ((REWRITES, True), (NEAR_MISSES, False))
            for change in changes.values() for gold in golds if change(gold) != gold]


def modelled(golds: list[str], count: int = 3000) -> list[tuple[str, str, bool]]:
    """What a model boxes: mostly plain numbers, now and then a formula; right, or another gold's answer."""
    rng = random.Random(0)
    pairs = []
    for k in range(count):
        gold = str(rng.randrange(-20, 3000)) if rng.random() < 0.8 else rng.choice(golds)
        wrong = str(rng.randrange(3000, 9000)) if rng.random() < 0.8 else rf"\frac{{{k + 7}}}{{{k + 8}}}"
        answer = wrong if rng.random() < 0.5 else f"{int(gold):,}" if gold.isdecimal() and k % 7 == 0 else gold.replace(r"\frac", r"\dfrac")
        pairs.append((answer, gold, answer is not wrong))
    return pairs


def measure(equal, pairs, seconds: float) -> dict:
    """Rate, right verdicts and slow calls of one grader, at most `seconds` long."""
    right = slow = done = accepted = refused = 0
    begin = time.perf_counter()
    for answer, gold, label in pairs:
        start = time.perf_counter()
        verdict = equal(answer, gold)
        slow += time.perf_counter() - start > 0.02
        done += 1
        right += verdict == label
        accepted += verdict and not label
        refused += label and not verdict
        if time.perf_counter() - begin > seconds:
            break
    spent = time.perf_counter() - begin
    return {"pairs": done, "right": right / done, "accepted wrongly": accepted, "refused wrongly": refused, "pairs a second": done / spent, "calls over 20 ms": slow}


def peer():
    """Math-Verify as a function of (answer, gold), parsing both anew each time as a trainer's reward does."""
    try:
        from math_verify import parse, verify
    except ImportError:
        sys.exit("bench/reward.py compares with Math-Verify, which is not installed: pip install 'math-verify[antlr4_13_2]'")

    def equal(answer: str, gold: str) -> bool:
        return verify(parse(rf"\boxed{{{gold}}}"), parse(rf"\boxed{{{answer}}}"))
    return equal


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--json", type=Path, help="write the figures to this file")
    options.add_argument("--golds", type=Path, help="gold answers, one a line, instead of the built-in ones")
    options.add_argument("--seconds", type=float, default=20.0, help="limit for each grader and kind")
    options = options.parse_args()
    equal = peer()
    golds = options.golds.read_text().splitlines() if options.golds else GOLDS
    rng, results = random.Random(1), {}
    kinds = {"model": modelled(golds), "hard": HARD, "rewrites": rewritten(golds)}
    ours.is_equal(r"\sqrt2", r"\pi")                           # the one-time import of mpmath
    print(f"{'kind':<10}{'grader':<13}{'pairs':>7}{'right':>8}{'accepted':>10}{'refused':>9}{'pairs/s':>10}{'>20 ms':>8}")
    for kind, pairs in kinds.items():
        rng.shuffle(pairs)
        pairs = list(dict.fromkeys(pairs))                     # no pair twice: a cached verdict says nothing about speed
        for cached in (ours.is_equal, ours.read):
            cached.cache_clear()
        for name, grader in (("ours", ours.is_equal), ("Math-Verify", equal)):
            row = results[f"{kind}/{name}"] = measure(grader, pairs, options.seconds)
            print(f"{kind:<10}{name:<13}{row['pairs']:>7}{row['right']:>8.1%}{row['accepted wrongly']:>10}{row['refused wrongly']:>9}"
                  f"{row['pairs a second']:>10.0f}{row['calls over 20 ms']:>8}")
        print(f"{'':<10}{results[f'{kind}/ours']['pairs a second'] / results[f'{kind}/Math-Verify']['pairs a second']:.1f} times as fast")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
