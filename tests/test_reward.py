"""The grader: extraction, case tables by form, properties, rewrites and near misses, hostile inputs."""

import importlib.util
import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import reward  # noqa: E402
from reward import extract_boxed, is_equal  # noqa: E402
from support.grader import latex  # noqa: E402

spec = importlib.util.spec_from_file_location("bench_reward", ROOT / "bench" / "reward.py")
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)
DATA = ROOT.parent / "shared" / "data"  # real gold answers, where this folder happens to be
SETTINGS = settings(derandomize=True, deadline=None, max_examples=150)


# ---------------------------------------------------------------------------------------------------------- extraction
@pytest.mark.parametrize(
    "text, answer",
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        ("\\boxed\n{7}", "7"),
        (r"\boxed{1} and \boxed{2}", "1"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{}", ""),
        (r"\boxed{ }", ""),
        ("", None),
        (r"\boxed{5", None),
        (r"\boxed", None),
        (r"\boxed 5", None),
        ("boxed{5}", None),
        (r"\boxedx{5}", None),
        ("5", None),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\}}", r"\}"),
        (r"\boxed{\{}", r"\{"),
        (r"\\boxed{5}", None),
        (r"\\\boxed{5}", "5"),
        (r"{ \boxed{5}", "5"),
        (r"} \boxed{5}", "5"),
        (r"\boxed{a} }", "a"),
        (r"\boxed{\text{a {b} c}}", r"\text{a {b} c}"),
        (r"\boxed{ {1 } \boxed{2}", "2"),
        (r"\boxed{\\}", r"\\"),
        (r"\fbox{5}", None),
        (r"\boxed{x", None),
        (r"\boxed\boxed{5}", "5"),
    ],
)
def test_extract_boxed(text, answer):
    assert extract_boxed(text) == answer


def slow_extract(text):
    """The definition, written as a scan of single characters."""
    stack, i = [], 0
    while i < len(text):
        if text[i] == "\\":
            box = re.match(r"\\boxed\s*\{", text[i:])
            if box:
                stack.append(i + box.end())
                i += box.end()
            else:
                i += 2
            continue
        if text[i] == "{":
            stack.append(None)
        elif text[i] == "}" and stack:
            start = stack.pop()
            if start is not None:
                return text[start:i].strip()
        i += 1
    return None


pieces = st.lists(
    st.sampled_from(
        ["\\boxed", "\\boxed{", "{", "}", "\\", "\\{", "\\}", "\\\\", " ", "\n", "x", "1", "é", "\x00", "boxed"]
    ),
    max_size=30,
)


@SETTINGS
@given(pieces.map("".join))
def test_extraction_is_the_definition_and_stable_over_prefixes(text):
    answers = [extract_boxed(text[:k]) for k in range(len(text) + 1)]
    assert answers[-1] == slow_extract(text)
    given_at = next((k for k, a in enumerate(answers) if a is not None), len(answers))
    assert len(set(answers[given_at:])) <= 1, "a longer text changed the answer"


@SETTINGS
@given(st.binary(max_size=200))
def test_random_bytes_are_harmless(data):
    text = data.decode("latin-1")
    assert extract_boxed(text) is None or "\\boxed" in text
    assert is_equal(text, "5") in (True, False)
    assert is_equal(data.decode("utf-8", "surrogateescape"), "x+1") in (True, False)


def test_extraction_is_linear():
    assert extract_boxed("\\boxed{" * 200_000) is None
    assert extract_boxed("\\boxed " * 200_000 + "{1}") == "1"
    assert extract_boxed("{" * 500_000 + "\\boxed{1}") == "1"


# ------------------------------------------------------------------------------------------------------------- the rule
@pytest.mark.parametrize(
    "attempts, options, value",
    [  # an attempt: + correct, - boxed and wrong, 0 without a box
        ("+", {}, [1.0]),
        ("-", {}, [-0.5]),
        ("0", {}, [-1.0]),
        ("--+", {}, [0.0, 0.0, 1.0]),
        ("-0+", {"discount": 0.5}, [0.0, 0.0, 0.25]),
        ("+", {"discount": 0.5}, [1.0]),
        ("0-", {"discount": 0.5}, [0.0, -0.5]),
        ("-0", {}, [0.0, -0.5]),
        ("00", {"unboxed": -2.0}, [0.0, -2.0]),
    ],
)
def test_reward_rule(attempts, options, value):
    kinds = {"+": ("5", True), "-": ("6", False), "0": (None, False)}
    attempts = [SimpleNamespace(answer=kinds[kind][0], correct=kinds[kind][1]) for kind in attempts]
    assert reward.reward(attempts, "5", **options) == value


# ------------------------------------------------------------------------------------------------------ tables of cases
CONVENTIONS = [
    tuple(re.split(r" is (?:not )?", case.strip())) + (" is not " not in case,)
    for line in reward.__doc__.splitlines()
    if line.startswith("| ") and not line.startswith("| matter")
    for case in line.split(" | ")[1].split(";")
]


@pytest.mark.parametrize("answer, gold, equal", CONVENTIONS)
def test_conventions_of_the_docstring(answer, gold, equal):
    assert len(CONVENTIONS) > 30
    assert is_equal(answer, gold) is equal


# form: lines of "gold | equal | equal ... || different | different ..."; the gold comes first
CASES = {
    "integers": r"""
        1234567 | 1,234,567 | 1{,}234{,}567 | 1,\!234,\!567 | 1 234 567 | 1\,234\,567 | +1234567 | 1234567.0 | １２３４５６７ || 123,4567 | 1,234,568 | 1234567.5 | 1,2,3,4,5,6,7
        56017895760 | 56,\!01,\!78,\!95,\!760 || 56,01,78,95,760
        12 | twelve | \text{twelve} || \text{twelve or thirteen} | eleven | twelfth
        \frac{5!}{2!3!} | 10 | {5 \choose 2} | {10 \over 1} || 5!/2!3 | {10 \over 2}
        27 | \textbf{(B) } 27 | (B) 27 | \text{(B)}\ 27 | B) 27 || (B) 28 | (A) 27 (B) 28 | (A) 27 \text{ or } 28 | A27 | \text{(B)} = 27, 28
        73 | 073 | 0073 | 73. | $73$ | \(73\) | \text{73} | \mathbf{73} | \boxed{73} | \displaystyle 73 | **73** | \displaystyle73 | ٧٣ || 7.3 | 37 | 730 | 7 3 | -73
        -5 | −5 | –5 | - 5 | -5.00 | (-5) || 5 | --5x | +5""",
    "decimals": r"""
        0.5 | .5 | 1/2 | \frac12 | 0.50 | 50\% | 5\times10^{-1} | ½ || 0.05 | 5 | 0.51 | 0.500001 | 50
        2.74 | 2,74 | 2.740 || 274 | 2.75 | 2.7 | 2.741
        0.0000672 | 6.72\times 10^{-5} | 6.72e-5 | 6.72 \cdot 10^{-5} || 0.0000673 | 0.00000672 | 0
        4.5e33 | 4.5\times10^{33} | 45 \times 10^{32} || 4.6e33 | 4.5e32 | 4.5 | 4.5\times10^{33}x
        33.3 | \frac{100}{3} | 33.33333333333333 || 33.33 | 33.4 | \frac{101}{3}
        1,22 | 1.22 || 122 | 12.2
        0.111 | 0,111 || 111 | 0111
        0.29 | 0.290243531202435 | 29\% || 0.2902 | 0.295000000000001
        2.5 | 5/2 || 2.500002500000 | 2.499997500000 | \frac{17}{7}
        0.5 | \frac12 || \frac{6}{11} | \frac{5}{11} | 26.4^\circ
        125.663 | 40\pi || 40.001\pi | 125.664
        1.41 | \sqrt2 || \sqrt3 | 1.42""",
    "fractions": r"""
        \frac{3}{4} | \dfrac{3}{4} | \tfrac34 | \cfrac{3}{4} | \frac 34 | 3/4 | {3}/{4} | 0.75 | \frac{6}{8} | \left(\frac{3}{4}\right) | 75\% | ¾ | 3\div4 || \frac43 | 34 | 3/5 | 0.7 | -\frac34 | \frac{3}{4}x
        \frac{9}{5} | 1\frac{4}{5} | 1 4/5 | 1 \frac45 | 1.8 || \frac{4}{5} | 1\frac{5}{4} | 14/5 | 1 \frac{5}{4}
        -\frac{3}{2} | -1\frac12 | -1 1/2 | \frac{-3}{2} | \frac{3}{-2} || -\frac12 | \frac32
        1/3 | 0.\overline{3} | 0.333333333333333 | \frac13 || 0.3 | 0.33333 | 0.34 | 3
        \frac{1}{2^{99}} | 2^{-99} | 0.5^{99} || \frac{1}{2^{98}} | 0 | \frac{1}{2^{99}+1}""",
    "percent, degrees, units, money": r"""
        28\% | 28 percent | 28 | 0.28 | 28% | \frac{7}{25} || 0.0028 | 2800 | 2.8 | 29\%
        0.15 | 15\% | 15 \% || 15 | 0.15x
        0.2 | 20\% || 25\% | 15\% | 2\%
        12 \text{ m/s} | 12 m/s | 12\,\mathrm{m/s} | 12 \text{ meters per second} | 12 || 12 \text{ km/h} | 1\text{2} m/s
        9 \text{ m s}^{-2} | 9 || 9 \text{ m s}^{-1}
        \frac{mg}{k} | \frac{m g}{k} | gm/k || \frac{m}{k} | 5 mg
        90^\circ | 90° | 90 | 90^{\circ} | 90 \text{ degrees} | \frac{\pi}{2} | \angle ABC = 90^\circ || 91 | 9^\circ | \pi | 90\pi
        30^\circ | m\angle A = 30^\circ | 30^{o} | \frac{\pi}{6} \text{ radians} | \overline{AB} = 30 || 30\pi | m30 | 300
        15\mbox{ cm}^2 | 15 | 15 cm^2 | 15 \text{ square centimeters} | 15\,\text{cm}^{2} | 15.0 || 15 \text{ m}^2 | 15 \text{ cm} | 16 | 15c | 15cm^2 \cdot 2
        12 \text{ hours} | 12 | 12 hours | 12\text{ hour} || 12 \text{ minutes} | 12h+1
        \$32,\!348 | 32348 | \$32,348 | 32{,}348 \text{ dollars} | $32,348 || 32 | 348 | 32348 \text{ cents} | (32, 348) | 32\$348 | 32,\$348
        18.9 | \$18.90 | 18.90 | 18.90 \text{ dollars} || \$18.91 | \$18.9) | 1890
        5 million | 5000000 | 5{,}000{,}000 | 5\times 10^6 | 5 \text{ million} || 5 | 5 billion""",
    "bases": r"""
        101_2 | (101)_2 | (101)_{\text{two}} || (101) | (11)_2
        52_8 | 52_{8} | 52_{\text{eight}} | 052_8 || 52 | 42 | 52_9 | 25_8 | 52 \cdot 8 | 528
        2A_{16} | 2A_16 || 42 | 2A | 2B_{16}""",
    "roots and powers": r"""
        3\sqrt{13} | 3 \sqrt{13} | \sqrt{117} | 3\sqrt13 | 3*sqrt(13) | 3√13 | \sqrt{13} \cdot 3 | 3(13)^{1/2} || \sqrt{13} | 3\sqrt{12} | 3+\sqrt{13} | 10.8167
        \sqrt[3]{5} | ∛5 | \sqrt[3] 5 || \sqrt5 | 3\sqrt5
        x^n | xⁿ | x^{n} || xn | nx
        \frac{\sqrt3}{3} | \frac{1}{\sqrt{3}} | \sqrt{\frac13} | 3^{-1/2} | sqrt(3)/3 || \frac{\sqrt3}{2} | \sqrt3 | 0.577
        \sqrt[3]{2} | 2^{1/3} | \sqrt[3]2 | 2^{\frac13} || \sqrt2 | 3\sqrt2 | 2^{3}
        2^{1009} | 2 \cdot 2^{1008} | 4^{504}\cdot 2 || 2^{1009}+1 | 2^{1010} | 2^{100}9
        1024 | 2^{10} | 2^10 | 2**10 | 4^5 || 2^9 | 210 | 2^{1}0x
        -2 | \sqrt[3]{-8} | i^2-1 || 2 | \sqrt{4}""",
    "constants and functions": r"""
        \pi | π | pi | 1\pi | \frac{2\pi}{2} | 3.141592653589793 || 3.14 | 22/7 | 3.1416 | p i x
        12\pi | 12 \pi | \pi\cdot 12 | 12*pi || 12 | 37.7 | 12\pi^2
        \frac{9}{4}\pi | \frac{9\pi}{4} | 2.25\pi || \frac{9}{4\pi}
        e^{16}-1 | exp(16)-1 | -1 + e^{16} | \exp(16) - 1 | \mathrm{e}^{16}-1 || e^{16} | 1-e^{16}
        \ln 2 | \log 2 | \ln{2} | \frac{\ln 4}{2} || \ln 3 | 0.69 | 2
        3 | \log_2 8 | \log_{10} 1000 | \lfloor 3.7 \rfloor | \lceil 2.1\rceil | |-3| | |{-3}| || \log_3 8 | \lfloor 4.1 \rfloor
        \frac12 | \sin 30^\circ | \cos\frac{\pi}{3} | \sin(\pi/6) || \sin 30 | \cos 30^\circ
        \frac35 | \cos A = \frac35 | \sin\theta = 0.6 | \Pr = 0.6 | \max = 0.6 || \ln x = \frac35 | \cos A = \frac45 | \sin A = \cos B
        e^{i\pi/3} | \operatorname{cis}\frac{\pi}{3} | \text{cis } 60^\circ || \operatorname{cis}\frac{\pi}{6} | \cos\frac{\pi}{3}
        \sinh^{-1} a | \operatorname{arsinh} a | \ln(a+\sqrt{a^2+1}) || \frac{1}{\sinh a}
        1+I(0)e^{-t} | I(0)e^{-t} + 1 || 1+I(1)e^{-t}
        \dot{x}_{0} t | t \dot x_0 || x_0 t | \dot{x}_1 t
        \sec^2 y | \tan^2(y)+1 | \frac{1}{\cos^2 y} | (\sec y)^2 || \tan^2 y | \sec y | \sec^2 z
        2\sin b\cos a | 2 \cos a \sin b | \sin(a+b)-\sin(a-b) || 2\sin a\cos b | \sin b \cos a
        \frac{\pi}{6} | \arcsin\frac12 | \sin^{-1}(1/2) | \arctan(1/\sqrt3) || 30 | \arccos\frac12
        \infty | infinity | +\infty | ∞ || -\infty | 10^{99} | \infty + 1 | 1/0
        120 | 5! | \binom{10}{3} | 5\cdot4! || 5!! | 6! | \binom{10}{2}
        \binom{2n}{n} | \frac{(2n)!}{n!^2} | \dbinom{2n}{n} || \binom{2n}{2} | \frac{(2n)!}{n!}
        \frac{1}{2004!} | 1/2004! || \frac{1}{2006!} | 0""",
    "complex numbers": r"""
        6-5i | -5i+6 | 6 - 5 i | 6-5\mathrm{i} | 6.0-5.0i || 6+5i | 6-5 | 5-6i | 6
        1+2i | i(2-i) | \frac{(1+2i)i}{i} || 1-2i | 2+i""",
    "polynomials and rational expressions": r"""
        x^2+2x+1 | (x+1)^2 | 1+2x+x^2 | x^{2}+2*x+1 | x² + 2x + 1 | x^2-(-2x-1) || x^2+2x | x^3+2x+1 | (x+1) | y^2+2y+1
        \frac{x+2}{7} | \frac{x}{7}+\frac27 | (x+2)/7 || \frac{x}{7}+2 | \frac{x-2}{7}
        p-q | -q+p || q-p | p+q
        \frac{1}{2n+2} | \frac{1}{2(n+1)} | (2n+2)^{-1} | 1/(2n+2) || 1/2n+2 | \frac{1}{2n} | \frac{n}{2n+2}
        x | 2x-x | \frac{x^2}{x} || |x| | \sqrt{x^2} | X | 1
        |x-3| | |3-x| | \sqrt{(x-3)^2} || x-3 | |x|-3
        a_n | a_{n} || a_m | an
        x^{n+1} | x\cdot x^n || x^n+1 | x^{n-1}
        mn-\lfloor m/2\rfloor | n m - \lfloor \frac m2 \rfloor || mn-\frac m2 | mn-\lceil m/2\rceil
        -\frac{2(x^2+6)}{9(x^2-2)\sqrt[3]{x^2-2}^2} | -\frac{8x^2}{9(x^2-2)^{5/3}}+\frac{2}{3(x^2-2)^{2/3}} || -\frac{2(x^2+6)}{9(x^2-2)}""",
    "equations": r"""
        5 | x=5 | x = 5.0 | 5=x | x_1 = 5 | f(2)=5 | AB = 5 | |AB|=5 | \text{Area} = 5 | \angle A = 5 | 2+3=5 | x \approx 5 || 2x=5 | x+1=5 | 5=6 | x=x | 0=0 | x=6=5
        7 | 6+1=7 | \{7\} || 7=7 | x=7=7 | 7=7=7
        x=5 | 5 | 2x=10 | 5 = x | x-5=0 || y=5 | x=-5 | x=x | x=4+2=5 | 5=6
        y=2x+3 | 2x+3 | 2x-y+3=0 | 3+2x=y | f(x)=2x+3 | 2y=4x+6 || y=2x-3 | x=2y+3 | 2x-y-3=0 | y=2x
        5x-7y+11z+4=0 | -5x+7y-11z=4 | 10x-14y+22z+8=0 || 5x-7y+11z-4=0 | 0 | 5x-7y+11z+4
        x^2+y^2=25 | \frac{x^2+y^2}{25}=1 || x^2+y^2=5 | 25
        \frac{\sqrt3}{3} | \frac{\sqrt3}{3} \approx 0.577 || \frac{\sqrt3}{3} \approx 5
        (3,2) | (p,q)=(3,2) || (q,p)=(2,3)
        x=1, y=2 | y=2, x=1 | (1,2) | 1, 2 || 2, 1 | x=2, y=1 | x=1""",
    "several solutions": r"""
        1\pm\sqrt{19} | 1+\sqrt{19}, 1-\sqrt{19} | 1\mp\sqrt{19} | x = 1\pm\sqrt{19} | \{1-\sqrt{19},1+\sqrt{19}\} || 1+\sqrt{19} | 1\pm\sqrt{17} | 1-\sqrt{19}
        \pm 3 | 3, -3 | -3\text{ and }3 | {-3, 3} || 3 | -3 | 3, 3
        1,-2 | -2,1 | -2, 1 | x=1, x=-2 | x=1\text{ or }x=-2 | 1 and -2 | \{1,-2\} | x \in \{-2,1\} | x=1,-2 || 1 | 1,2 | 1,-2,3 | (1,-2] | 1;-3
        x=2,-3 | x_1=2, x_2=-3 | x = 2 \lor x = -3 || x_1=2, x_2=3 | x_1=2, y_2=-3 | x_1=2
        1, 2, 3 | 3, 2, 1 || 1, 2, 3, ... | 1, 2, 3, \ldots
        \{1,3\}\cup\{2,4\} | 1, 2, 3, 4 | \{1,2\}\cup\{3,4\} || \{1,3\} | \{1,2,3,4,5\}
        \text{no solution} | No solutions | \emptyset | \text{No real solutions.} || 0 | \text{one solution} | no
        \{1\pm\sqrt5,-2\} | -2, 1-\sqrt5, 1+\sqrt5 || -2, 1+\sqrt5
        19, 46, \text{ and } 82 | 19, 46, 82 | 82, 19, 46 || 19, 46 | 19, 46, 83
        (1,2),(3,4) | (3,4),(1,2) | \{(1,2),(3,4)\} | (1,2) \text{ and } (3,4) || (2,1),(3,4) | (1,2) | 1,2,3,4
        \emptyset | \{\} | \varnothing || 0 | \{0\}""",
    "tuples, intervals, unions": r"""
        (6,31,-1) | \left(6, 31, -1\right) | (6,\,31,\,-1) | (6;31;-1) | 6,31,-1 | \langle 6,31,-1\rangle || (31,6,-1) | [6,31,-1] | (6,31) | \{6,31,-1\}
        (3,4) | x=3, y=4 | (x,y)=(3,4) | \begin{cases} x=3 \\ y=4 \end{cases} | \{(3,4)\} || \begin{cases} x=4 \\ y=3 \end{cases} | \{(3,4),(4,3)\}
        (x,y)=(3,4) | x=3, y=4 | y=4, x=3 | (3,4) || x=4, y=3 | (y,x)=(3,4)
        (3,\frac{\pi}{2}) | \left( 3, \frac{\pi}{2} \right) | (3,\pi/2) || (\frac\pi2,3) | (3,90)
        (3,4] | \left(3,\frac82\right] | 3<x\le4 | x\in(3,4] | 4 \ge x > 3 || [3,4) | (3,4) | [3,4] | 3,4 | 3\le x\le 4
        (2,\infty) | x>2 | 2<x | (2,+\infty) || [2,\infty) | x\ge2 | x<2 | (2,10^{9})
        (3,\infty) | \{x : x > 3\} | \{x \mid x>3\} | \{x \in \mathbb{R} : x > 3\} | \left\{x\middle| x>3\right\} || \{x : x < 3\} | \{x : x \ge 3\} | \{x : y > 3\}
        (-1,1) | |x| < 1 | -1<x \text{ and } x<1 | x<1, x>-1 || |x| \le 1 | |x| > 1 | |x|<2 | x<-1, x>1
        (-\infty,-2)\cup(2,\infty) | |x|>2 | x<-2 \lor x>2 | (-\infty,-2)\bigcup(2,\infty) || |x|<2 | x>-2, x<2
        (-\infty,-1)\cup(-1,1)\cup(1,\infty) | x\ne\pm1 | x \neq -1, 1 | x\ne1 \text{ and } x\ne-1 | \mathbb{R}\setminus\{-1,1\} | x\in\mathbb{R}, x\ne\pm1 || x\ne1 | \mathbb{R}\setminus\{1,2\} | x\ne1, y\ne-1
        x>2 | -x<-2 | 2x > 4 | x+1>3 | 4<2x || x\ge2 | -x<2 | x>4
        x\le -2 | (-\infty,-2] | -2\ge x | x\leqslant-2 || (-\infty,-2) | x<-2 | x\ge-2 | y\le-2
        (-\infty,2)\cup(3,\infty) | (3,\infty)\cup(-\infty,2) | x<2\text{ or }x>3 | (-∞,2)∪(3,∞) | (-\infty,2) U (3,\infty) || (-\infty,2) | (-\infty,2]\cup(3,\infty) | (-\infty,2)\cap(3,\infty)
        (-\infty,5)\cup(5,\infty) | x\ne 5 | x \neq 5 || (-\infty,\infty) | x=5
        (0,1) | 0<f(x)<1 || [0,1] | 0 < f(x)
        x+y<1 | -x-y>-1 | 2x+2y<2 | 1>y+x || -x-y<-1 | x+y>1 | x+y\le 1 | x+y<2
        \mathbb{R} | (-\infty,\infty) | x\in\mathbb{R} | ℝ | \text{all real numbers} || (0,\infty) | 5""",
    "matrices": r"""
        \begin{pmatrix} -2 \\ 14 \end{pmatrix} | \begin{bmatrix}-2\\14.0\end{bmatrix} | (-2,14) | \left(\begin{array}{c}-2\\14\end{array}\right) || (14,-2) | \begin{pmatrix}-2\\-14\end{pmatrix} | -2,14x
        \begin{pmatrix} 2 \\ 4 \end{pmatrix} | 2\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \frac12\begin{pmatrix} 4 \\[2pt] 8 \end{pmatrix} | -\begin{pmatrix} -2 \\ -4 \end{pmatrix} | \vec{v} = \begin{pmatrix} 2 \\ 4 \end{pmatrix} || 2\begin{pmatrix} 1 \\ 3 \end{pmatrix} | \begin{pmatrix} 1 \\ 2 \end{pmatrix}
        \begin{pmatrix} 6 & 8 \\ 10 & 12 \end{pmatrix} | \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} + \begin{pmatrix} 5 & 6 \\ 7 & 8 \end{pmatrix} | \\begin{pmatrix} 6 & 8 \\\\ 10 & 12 \\end{pmatrix} || \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} + \begin{pmatrix} 5 \\ 6 \end{pmatrix}
        \begin{pmatrix}1&\frac12\\3&4\end{pmatrix} | \begin{bmatrix}1&0.5\\3&4\\\end{bmatrix} || \begin{pmatrix}1&3\\\frac12&4\end{pmatrix} | \begin{vmatrix}1&\frac12\\3&4\end{vmatrix} | (1,\frac12,3,4)""",
    "ratios and times": r"""
        7:32 | 7 : 32 | \frac{7}{32} || 32:7 | 7:33
        1:2:3 | 2:4:6 || 1:3:2 | 1:2
        12:00 | 12:00:00 || 1:00 | 12 | 12:01
        20:34 | 08:34 \text{ p.m.} | 8:34 PM || 8:34 AM | 20:35""",
    "sums and what else is read by its spelling": r"""
        \sum_{k=1}^{n} \frac{1}{k} | \sum\limits_{k=1}^n\dfrac1k || \sum_{k=1}^{m} \frac{1}{k} | \sum_{k=0}^{n} \frac{1}{k} | \frac{1}{k}
        1, 2, \ldots, n | 1,2,\dots,n || 1, 3, \ldots, n | 1, 2, n | n
        n \equiv 1 \pmod{4} | n\equiv1\pmod 4 || n \equiv 1 \pmod{3} | 1
        \frac{2GM_{\odot}}{c^2} | \frac{2 G M_\odot}{c^{2}} || \frac{2GM}{c^2} | \frac{GM_{\odot}}{c^2}""",
    "words": r"""
        \text{Evelyn} | Evelyn | evelyn | \textbf{Evelyn} | \mathrm{Evelyn} || \text{Eve} | Briana | e v e l y n
        \text{even} | even | Even. || odd | neve | \text{not even} | even or odd
        ellipse | an ellipse | \text{the ellipse} || circle
        \text{(C)} | C | (C) | \text{C} | C. | C) 42 | C: the third || D | c^2 | A, B, C | B. or C. | (C) (D)
        B | b | (b) | \textbf{(B) } 27 || b^2 | bb | \text{(B)}, 5 | \text{(B)} = 5 | B) no, C)
        F | \mathrm{F} || f
        \text{May 5, 2020} | 5 May 2020 | May 5th, 2020 || 6 May 2020""",
}


def rows():
    for form, table in CASES.items():
        for line in table.strip().splitlines():
            equal, _, different = line.strip().partition(" || ")
            gold, *answers = equal.split(" | ")
            yield form, gold, answers, different.split(" | ")


@pytest.mark.parametrize("form, gold, equal, different", list(rows()))
def test_cases_by_form(form, gold, equal, different):
    assert [answer for answer in [gold, *equal] if not is_equal(answer, gold)] == []
    assert [answer for answer in different if is_equal(answer, gold)] == []


def test_newlines_never_join_digits():
    assert [
        text
        for text in ("4 \n2", "4\n 2", "4\n\n2", "4 \r\n 2", "4\t2", "4\u20282", "4 \\, \n2")
        if is_equal(text, "42")
    ] == []
    assert not is_equal("1 \n 000", "1000") and not is_equal("1\n\n000", "1000")
    assert not is_equal("4\n2", "42") and not is_equal("1\n000", "1000") and not is_equal("1\n1/2", "1.5")
    assert is_equal("\n42\n", "42")


# ------------------------------------------------------------------------------------------------------------ properties
def real_golds():
    """Gold answers of real benchmarks, each once; none where the data is absent."""
    golds = []
    for name, key in [
        ("math500", "solution"),
        ("minerva_math_first20", "solution"),
        ("olympiadbench_first20", "final_answer"),
        ("aime24", "answer"),
        ("amc23", "answer"),
        ("gsm8k_test", "answer"),
        ("mawps", "target"),
    ]:
        path = DATA / f"{name}.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            value = json.loads(line)[key]
            if key == "solution":
                value = extract_boxed(value[value.rindex("\\boxed") :])
            golds.append(str(value[0] if key == "final_answer" else value).split("####")[-1].strip())
    return list(dict.fromkeys(golds))


REAL = real_golds()
needs_data = pytest.mark.skipif(not REAL, reason="no folder with real gold answers")


@pytest.mark.parametrize("golds", [bench.GOLDS, pytest.param(REAL, marks=needs_data)], ids=["made", "real"])
def test_golds_equal_themselves_and_are_read(golds):
    assert [gold for gold in golds if not is_equal(gold, gold)] == []
    assert [gold for gold in golds if not is_equal(gold + " ", f"${gold}$")] == []
    assert [
        gold for gold in golds if latex.read(latex.clean(gold))[0] == "unreadable" and not re.match(r"\d+:\d\d", gold)
    ] == []


@pytest.mark.parametrize(
    "golds",
    [bench.GOLDS, pytest.param([g for g in REAL if not g.replace(",", "").isdigit()], marks=needs_data)],
    ids=["made", "real"],
)
def test_rewrites_are_accepted_and_near_misses_refused(golds):
    pairs = bench.rewritten(golds)
    assert len(pairs) > 1000
    assert [pair for pair in pairs if is_equal(*pair[:2]) is not pair[2]] == []


@needs_data
def test_the_gold_of_another_question_is_refused():
    hard = [g for g in REAL if not g.replace(",", "").replace(".", "").isdigit()]
    same = {(a, g) for a in hard for g in hard[::7] if a != g and is_equal(a, g)}

    def bare(gold):  # what is left when spelling, units and names are taken away
        return re.sub(r"\s|\\[!,]|\\?\$|[{}]|\\text|^[a-z]=|\^\\circ|(?<=\d)\.0+$|\\%|\\mbox.*", "", gold).replace(
            "dfrac", "frac"
        )

    wrong = [
        pair
        for pair in same
        if bare(pair[0]) != bare(pair[1]) and not ("pi" in "".join(pair) and "circ" in "".join(pair))
    ]
    assert wrong == []


def test_symmetric_where_the_form_of_the_gold_does_not_matter():
    pairs = [
        (a, g) for a, g, _ in bench.HARD + bench.rewritten(bench.GOLDS) if not re.search(r"\d\.\d|_|\\pi|C\.", a + g)
    ]
    assert [pair for pair in pairs if is_equal(*pair) != is_equal(*pair[::-1])] == []


@SETTINGS
@given(st.fractions(min_value=-(10**6), max_value=10**6), st.fractions(min_value=-(10**6), max_value=10**6))
def test_rational_numbers_are_compared_exactly(x, y):
    latex = rf"\frac{{{x.numerator}}}{{{x.denominator}}}"
    assert is_equal(latex, f"{y.numerator}/{y.denominator}") is (x == y)
    assert is_equal(f"{-x.numerator}/{x.denominator}", "-" + latex)


@SETTINGS
@given(st.integers(-(10**30), 10**30), st.integers(1, 10**6))
def test_a_perturbed_integer_is_another_one(n, by):
    assert is_equal(f"{n:,}", str(n)) and is_equal(f"{n}.00", str(n))
    assert not is_equal(str(n + by), str(n)) and not is_equal(str(n - by), f"{n:,}") and not is_equal(f"{n}.5", str(n))


expressions = st.recursive(  # trees over + - * / and powers, with x and y
    st.integers(0, 9).map(lambda n: ("n", n)) | st.sampled_from([("v", "x"), ("v", "y")]),
    lambda tree: (
        st.tuples(st.sampled_from("+-*/"), tree, tree)
        | st.tuples(st.just("^"), tree, st.integers(2, 3).map(lambda n: ("n", n)))
    ),
    max_leaves=7,
)


def evaluate(tree, x, y):
    kind, *args = tree
    if kind in "nv":
        return Fraction(args[0]) if kind == "n" else {"x": x, "y": y}[args[0]]
    a, b = (evaluate(t, x, y) for t in args)
    return {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b, "^": lambda: a ** int(b)}[
        kind
    ]()


def spell(tree, style):
    """LaTeX (0), LaTeX with other commands (1), or what a calculator reads (2)"""
    kind, *args = tree
    if kind in "nv":
        return str(args[0])
    a, b = (spell(t, style) for t in args)
    if kind == "/":
        return [rf"\frac{{{a}}}{{{b}}}", rf"\left({a}\right)\div\left({b}\right)", f"(({a})/({b}))"][style]
    if kind == "*":
        return [f"({a})({b})", rf"\left({b}\right) \cdot \left({a}\right)", f"({a})*({b})"][style]
    if kind == "^":
        return [f"({a})^{{{b}}}", rf"\left({a}\right)^{b}", f"({a})**{b}"][style]
    return [f"{a}{kind}({b})", f"({a}) {kind} ({b})", f"({a}){kind}({b})"][style]


@SETTINGS
@given(expressions)
def test_expressions_in_several_spellings(tree):
    values = []
    for x, y in [
        (Fraction(2, 7), Fraction(5, 3)),
        (Fraction(13, 3), Fraction(17, 2)),
        (Fraction(-3, 8), Fraction(29, 5)),
    ]:
        try:
            values.append(evaluate(tree, x, y))
        except ZeroDivisionError:
            return
    one, two, three = (spell(tree, style) for style in range(3))
    assert is_equal(one, two) and is_equal(two, three) and is_equal(three, one)
    assert not is_equal(f"{one}+1", two) and not is_equal(two, f"{three} - x")
    assert is_equal(f"2({one})", two) is (set(values) == {0})


# --------------------------------------------------------------------------------------------------------- hostile inputs
INJECTIONS = [
    "__import__('os').system('touch CANARY')",
    "(lambda: open('CANARY', 'w'))()",
    "open('CANARY','w').close() or 5",
    "exec(\"open('CANARY','w')\")",
    "eval('5')",
    "[].__class__.__base__.__subclasses__()",
    "().__class__",
    "sympify('5')",
    "5 if 1 else 6",
    "5;import os",
    "lambda: 5",
    "int('5')",
    r"\input{/etc/passwd}",
    r"\write18{touch CANARY}",
    r"\immediate\write18{touch CANARY}",
    "$(touch CANARY)",
    "`touch CANARY`",
    "{{5}}}}",
    "${5}${6}",
    r"\def\x{5}\x",
    r"\newcommand{\a}{5}\a",
    r"\csname 5\endcsname",
    "Integer(5)",
    "S(5).func",
    "breakpoint()",
    "exit(5)",
    "%s5" % "%n",
    "5\x00",
]
EXPENSIVE = [
    "9^{9^{9^9}}",
    "9**9**9**9",
    "10^{10^{10}}",
    "2^{2^{2^{2^{2^2}}}}",
    "(10^9)!",
    "100000!",
    "((((9!)!)!)!)",
    "5" + "!" * 300,
    r"\binom{10^9}{10^8}",
    r"\sin(10^{10^{10}})",
    r"\exp(\exp(\exp(\exp(9))))",
    "e^{e^{e^{e^e}}}",
    r"\tan(10^{9999})",
    r"\ln(10^{10^8})",
    "(x+1)^{1000000}",
    "x^{x^{x^{x^x}}}",
    "`" * 1600,
    "$" * 1600,
    "~" * 1600,
    r"\{x:" + "x" * 1500,
    "5" + " " * 1500 + "^",
    "f(x)" * 95,
    "x\\ne " + ",".join(map(str, range(90))),
    "(x+y+z+w)^{5000}",
    "(1+\\sqrt2)^{100000}",
    "(\\pi+e)^{20000}",
    "9" * 400,
    "9" * 100_000,
    "1e999999999",
    "1e-9999",
    "(" * 5000,
    "(" * 150 + "5" + ")" * 150,
    "\\frac{1}{" * 60 + "2" + "}" * 60,
    "\\sqrt{" * 60 + "2" + "}" * 60,
    "\\cos(" * 60 + "1" + ")" * 60,
    "{" * 9999,
    "x" * 400,
    "1+" * 199 + "1",
    "x_" * 150,
    "*".join(["1999!"] * 60),
    "+".join(["1/1999!"] * 45),
    "1\\pm1" * 30,
    "\\{" + ",".join(map(str, range(99))) + "\\}",
    "5" + "%" * 300,
    "-" * 399 + "5",
    "|" * 300,
    "^" * 300,
    "=" * 300,
    "1=" * 199 + "1",
    "x<" * 190 + "x",
    "," * 400,
    "\\boxed{" * 300,
    "\\text{" * 300,
    "\\begin{pmatrix}" * 25,
    "\\begin{pmatrix}" + "1&" * 150 + "1\\end{pmatrix}",
    "\\sum_{k=1}^{10^{10}} k",
    "\\int_0^1 x^x dx",
    "\\lfloor 10^{10^5} \\rfloor",
    "\u200b" * 5000,
    "0.\\overline{" + "1" * 300 + "}",
    "\\sqrt[10^{99}]{2}",
    "2^{0.5^{0.5^{0.5}}}",
    "\\log_{1.0000000001} 2",
    "1,000" * 80,
    "1 000 " * 60,
    "1 1/2 " * 60,
    " " * 100_000 + "x",
    "{,}" * 130,
    "\\left(" * 60,
]
FORGED = [  # against the gold answer 5
    "any number",
    r"\text{any number}",
    "x",
    "n",
    r"\mathbb{R}",
    r"(-\infty,\infty)",
    "[0,100]",
    r"x\in\mathbb{R}",
    r"5 \text{ or } 6",
    "5 or 6",
    "1 or 2 or 5",
    "(A) 5 (B) 6",
    "(A) 5 or 6",
    "A) 5, 6",
    r"\{x : x = 5 \text{ or } x = 6\}",
    r"\{x : x \in \{4,5,6\}\}",
    r"x\ne5",
    r"\mathbb{R}\setminus\{5\}",
    "x>4, x<6",
    "|x|=5",
    "5=5",
    "x=5=5",
    "five and six",
    "5...",
    r"5\dots",
    r"\{5\}\cup\{6\}",
    r"\begin{aligned}5\\6\end{aligned}",
    r"5 \over 2",
    r"5\lor6",
    r"\ln x=5",
    "5,6",
    "4, 5, 6",
    r"\{5,6\}",
    "5;6",
    "5 and 6",
    "5 6",
    "5\n6",
    "5=6",
    "6=5",
    "x=5=6",
    "5=x=6",
    "x=6=5",
    "x=x",
    "0=0",
    "5=5=6",
    r"5\ne 6",
    r"5\pm1",
    r"5\pm0,1",
    "4<x<6",
    r"4\le 5\le 6",
    "True",
    r"\text{True}",
    "the answer",
    "answer",
    "gold",
    "correct",
    r"\text{correct}",
    r"5\text{ is wrong}",
    r"5\text{ or more}",
    r"5\text{ if }x>0",
    r"\text{5 or 6}",
    r"\text{at least }5",
    "at least 5",
    "NaN",
    "nan",
    "0/0",
    r"\infty",
    "1/0",
    r"\infty-\infty",
    r"5\approx 6",
    r"6\approx5",
    r"5\cup6",
    "(5",
    "5)",
    "[5",
    "5]",
    "{5",
    "5}",
    r"5\to6",
    r"\ldots,5,\ldots",
    r"1,2,\ldots,10",
    "5x",
    "5m",
    "5a",
    "5+n",
    "5y+0",
    "x^0+4y",
    "5?",
    "?",
    r"\square",
    r"\boxed{}",
    r"\phantom{5}",
    r"5\pmod 7",
    r"5\bmod 7",
    "-5",
    "-5 or 5",
    r"\pm5",
    "|5-x|",
    "none",
    r"\text{none of these}",
    "5e",
    "5i",
    "5.0.0",
    "..5",
    "5''",
    "5*",
    "*5*6",
    "5/",
    "/5",
    "5--",
    "+",
    "-",
    "{}",
    "()",
    r"\{\}",
    "_",
    "^",
    "5_",
    "5^",
    "",
    " ",
    ".",
    ",",
    "$",
    "$$",
    "%",
    "\\",
    r"\text{}",
    "\u200b",
    r"\frac{5}{}",
    r"\frac{}{5}",
    r"\sqrt{}",
    "5\\\\6",
    "5&6",
    "#5",
    "5 # 6",
    "5 // 6",
    "5 = 5 or 6",
    "4.9999999999999999",
    "5.000000000000001",
    "5,000",
    "0x5",
    "0b101",
    "1_5",
    r"\begin{cases}5\\6\end{cases}",
    "{5,6}",
    "(5,5)",
    "max(5,6)",
    "five or six",
    "random",
    "What is 2+3?",
    "Put your final answer within \\boxed{}.",
]


@pytest.mark.parametrize("gold", ["5", "x+1", r"\{5,7\}", r"(2,\infty)", r"\frac{\pi}{2}", r"\text{yes}"])
def test_hostile_answers_get_a_verdict_and_run_nothing(gold, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    is_equal(r"\sqrt2", r"\pi")  # what it imports, it has imported
    for name in ("eval", "exec", "compile", "open"):
        monkeypatch.setattr(
            f"builtins.{name}", lambda *a, **k: pytest.fail("model text reached eval, exec, compile or open")
        )
    verdicts = [is_equal(text, gold) for text in INJECTIONS + EXPENSIVE]
    monkeypatch.undo()
    assert verdicts == [False] * len(verdicts)
    assert not list(tmp_path.iterdir())


def test_expensive_texts_as_gold_and_against_each_other():
    for text in EXPENSIVE:
        for other in (text + "+1", "1+" + text, text.replace("9", "8"), "x"):
            assert is_equal(other, text) in (True, False)
    assert [
        text for text in EXPENSIVE if len(text) < 300 and text.strip(" ,\\|=\u200b") and is_equal("1+" + text, text)
    ] == []


@pytest.mark.parametrize("answer", FORGED)
def test_forged_answers(answer):
    assert not is_equal(answer, "5")


@pytest.mark.parametrize("answer", ["x=x", "0=0", "any number", "1", "x", r"\mathbb{R}", "0x=0", "x-x=0"])
@pytest.mark.parametrize("gold", ["x=5", "y=2x+3", "x^2+y^2=1"])
def test_forged_equations(answer, gold):
    assert not is_equal(answer, gold)


HACKS = {  # the field's reward hacks: attempt -> (what is graded, verdict for 5)
    "many boxes, the first counts": (r"\boxed{4} or \boxed{5}", "4", False),
    "an empty box": (r"\boxed{}", "", False),
    "no box": ("The answer is 5", None, False),
    "a box quoting the template": (r"put it within \boxed{} : \boxed{5}", "", False),
    "an unclosed box": (r"\boxed{5", None, False),
    "a set of guesses": (r"\boxed{1 or 2 or 5}", "1 or 2 or 5", False),
    "the question's own text": (r"\boxed{What is 2+3?}", "What is 2+3?", False),
    "a huge expression": (r"\boxed{5+9^{9^{9^9}}-9^{9^{9^9}}}", "5+9^{9^{9^9}}-9^{9^{9^9}}", False),
    "a box in a box": (r"\boxed{\boxed{4} 5}", "4", False),
    "a number in a sentence": (r"\boxed{I think it is 5}", "I think it is 5", False),
    "code": (r"\boxed{print(5)}", "print(5)", False),
    "a chain": (r"\boxed{x = 4 = 5}", "x = 4 = 5", False),
    "an honest answer": (r"so \boxed{5}, not \boxed{6}", "5", True),
}


@pytest.mark.parametrize("name", HACKS)
def test_reward_hacks(name):
    attempt, graded, verdict = HACKS[name]
    assert extract_boxed(attempt) == graded
    assert graded is None or is_equal(graded, "5") is verdict


@pytest.mark.parametrize(
    "answer, gold",
    [(None, "5"), ("5", None), (5, 5), (b"5", "5"), ("\ud800", "5"), ("5", "\ud800"), ("\ud800", "\\ud800x")],
)
def test_never_raises(answer, gold):
    assert is_equal(answer, gold) is False


def test_the_source_evaluates_nothing_and_imports_little():
    for path in ("reward.py", "support/grader/latex.py", "support/grader/values.py", "support/grader/compare.py"):
        code = re.sub(r'""".*?"""', "", (ROOT / path).read_text(), flags=re.DOTALL)
        assert not re.search(
            r"\b(eval|exec|sympify|parse_expr|parse_latex|pickle|SIGALRM|setitimer|threading|fork)\b", code
        )
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, reward; print([m for m in ('torch', 'sympy', 'mpmath') if m in sys.modules])",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    assert loaded.strip() == "[]"


# ----------------------------------------------------------------------------------------------------------- command line
def command(*arguments):
    return subprocess.run([sys.executable, "reward.py", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_command_line():
    run = command(r"\frac12", "0.5")
    assert run.returncode == 0 and run.stdout.startswith("equal\n") and run.stdout.count("read as") == 2
    assert command("6", "5").stdout.startswith("not equal\n")
    assert "unreadable" in command("5)", "5").stdout
    for bad in ((), ("5",), ("5", "6", "7")):
        run = command(*bad)
        assert run.returncode == 2 and run.stdout == "" and run.stderr.count("\n") == 1


def test_command_line_survives_a_closed_pipe():
    run = subprocess.Popen(
        [sys.executable, "reward.py", "5", "5"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    run.stdout.close()
    assert run.stderr.read() == b"" and run.wait() == 0


def test_benchmark_without_the_peer_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert bench.peer() is None and "pip install" in capsys.readouterr().err
