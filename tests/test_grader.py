"""The grader: tables of cases, properties, sympy as a slow judge, rewrites and near misses, hostile texts."""

import cProfile
import json
import random
import re
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

import bench.reward as bench
from reward import extract_boxed, is_equal
from support.grader import compare, latex, values, words

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"  # real gold answers, where this folder happens to be
SETTINGS = settings(derandomize=True, deadline=None, max_examples=150)

# A line is `gold | equal | equal || different | different`; an indented line goes on with the one before it, ␤ is a
# newline, and # begins a comment.
CASES = r"""
# integers
1234567 | 1,234,567 | 1{,}234{,}567 | 1,\!234,\!567 | 1 234 567 | 1\,234\,567 | +1234567 | 1234567.0 | １２３４５６７
    || 123,4567 | 1,234,568 | 1234567.5 | 1,2,3,4,5,6,7 | $1$ $234$ $567$ | 1 \quad 234 \quad 567 | 1234\; 567
12 | twelve | \text{twelve} || \text{twelve or thirteen} | eleven | twelfth
\frac{5!}{2!3!} | 10 || 5!/2!3 | {10 \over 2} | {5 \choose 2} | {10 \over 1}
27 | \textbf{(B) } 27 | (B) 27 | \text{(B)}\ 27 | B) 27 || (B) 28 | (A) 27 (B) 28 | (A) 27 \text{ or } 28 | A27
73 | 073 | 0073 | 73. | $73$ | \(73\) | \text{73} | \mathbf{73} | \boxed{73} | \displaystyle 73 | \displaystyle73 | ٧٣
    || 7.3 | 37 | 730 | 7 3 | -73
-5 | −5 | –5 | - 5 | -5.00 | (-5) || 5 | --5x | +5
# decimals
0.5 | .5 | 1/2 | \frac12 | 0.50 | 50\% | 5\times10^{-1} | ½ || 0.05 | 5 | 0.51 | 0.500001 | 50
0.0000672 | 6.72\times 10^{-5} | 6.72e-5 | 6.72 \cdot 10^{-5} || 0.0000673 | 0.00000672 | 0
0.29 | 0.290243531202435 | 29\% || 0.2902 | 0.295000000000001
2.5 | 5/2 || 2.500002500000 | 2.499997500000 | \frac{17}{7}
18.897 | \frac{737}{39} || \frac{738}{39}
0.66667 | \frac23 || 0.66666 | \frac{66666}{100000}
# fractions
\frac{3}{4} | \dfrac{3}{4} | \tfrac34 | \cfrac{3}{4} | \frac 34 | 3/4 | {3}/{4} | 0.75 | \frac{6}{8}
    | \left(\frac{3}{4}\right) | 75\% | ¾ | 3\div4 || \frac43 | 34 | 3/5 | 0.7 | -\frac34 | \frac{3}{4}x
\frac{9}{5} | 1\frac{4}{5} | 1 4/5 | 1 \frac45 | 1.8 || \frac{4}{5} | 1\frac{5}{4} | 14/5 | 1 \frac{5}{4}
1/3 | 0.\overline{3} | 0.333333333333333 | \frac13 || 0.3 | 0.33333 | 0.33333333 | 0.34 | 3
# percent, degrees, units, money
28\% | 28 percent | 28 | 0.28 | 28% | \frac{7}{25} || 0.0028 | 2800 | 2.8 | 29\%
12 \text{ m/s} | 12\,\mathrm{m/s} | 12 \text{ meters per second} | 12 | 12 m/s || 12 \text{ km/h} | 1\text{2} m/s
\frac{mg}{k} | \frac{m g}{k} | gm/k || \frac{m}{k} | 5 mg
90^\circ | 90° | 90 | 90^{\circ} | 90 \text{ degrees} | \frac{\pi}{2} | \angle ABC = 90^\circ || 91 | 9^\circ | \pi
15\mbox{ cm}^2 | 15 | 15 cm^2 | 15 \text{ square centimeters} | 15\,\text{cm}^{2} | 15.0 || 15 \text{ m}^2
    | 15 \text{ cm} | 16 | 15c | 15cm^2 \cdot 2
\$32,\!348 | 32348 | \$32,348 | 32{,}348 \text{ dollars} | $32,348 || 32 | 348 | 32348 \text{ cents} | (32, 348)
    | 32\$348 | 32,\$348
# bases
52_8 | 52_{8} | 52_{\text{eight}} | 052_8 || 52 | 42 | 52_9 | 25_8 | 52 \cdot 8 | 528
2A_{16} | 2A_16 || 42 | 2A | 2B_{16}
# roots and powers
3\sqrt{13} | 3 \sqrt{13} | \sqrt{117} | 3\sqrt13 | 3*sqrt(13) | 3√13 | \sqrt{13} \cdot 3 | 3(13)^{1/2} || \sqrt{13}
\frac{\sqrt3}{3} | \frac{1}{\sqrt{3}} | \sqrt{\frac13} | 3^{-1/2} | sqrt(3)/3 || \frac{\sqrt3}{2} | \sqrt3 | 0.577
2^{1009} | 2 \cdot 2^{1008} | 4^{504}\cdot 2 || 2^{1009}+1 | 2^{1010} | 2^{100}9
1024 | 2^{10} | 2^10 | 2**10 | 4^5 || 2^9 | 210 | 2^{1}0x
-2 | \sqrt[3]{-8} | i^2-1 || 2 | \sqrt{4}
# constants and functions
\pi | π | pi | 1\pi | \frac{2\pi}{2} | 3.141592653589793 || 3.14 | 22/7 | 3.1416 | p i x
e^{16}-1 | exp(16)-1 | -1 + e^{16} | \exp(16) - 1 | \mathrm{e}^{16}-1 || e^{16} | 1-e^{16}
\ln 2 | \log 2 | \ln{2} | \frac{\ln 4}{2} || \ln 3 | 0.69 | 2
3 | \log_2 8 | \log_{10} 1000 | \lfloor 3.7 \rfloor | \lceil 2.1\rceil | |-3| | |{-3}| || \log_3 8
\frac12 | \sin 30^\circ | \cos\frac{\pi}{3} | \sin(\pi/6) || \sin 30 | \cos 30^\circ
\frac35 | \cos A = \frac35 | \sin\theta = 0.6 | \Pr = 0.6 || \ln x = \frac35 | \cos A = \frac45 | \max = 0.6
\sin 2a \cos b | \cos b \sin 2a || \sin(2a\cos b)
1+I(0)e^{-t} | I(0)e^{-t} + 1 || 1+I(1)e^{-t}
\sec^2 y | \tan^2(y)+1 | \frac{1}{\cos^2 y} | (\sec y)^2 || \tan^2 y | \sec y | \sec^2 z
\frac{\pi}{6} | \arcsin\frac12 | \sin^{-1}(1/2) | \arctan(1/\sqrt3) || 30 | \arccos\frac12
\infty | infinity | +\infty | ∞ || -\infty | 10^{99} | \infty + 1 | 1/0
120 | 5! | \binom{10}{3} | 5\cdot4! || 5!! | 6! | \binom{10}{2}
6-5i | -5i+6 | 6 - 5 i | 6-5\mathrm{i} | 6.0-5.0i || 6+5i | 6-5 | 5-6i | 6
# polynomials and rational expressions
x^2+2x+1 | (x+1)^2 | 1+2x+x^2 | x^{2}+2*x+1 | x² + 2x + 1 | x^2-(-2x-1) || x^2+2x | x^3+2x+1 | (x+1) | y^2+2y+1
\frac{1}{2n+2} | \frac{1}{2(n+1)} | (2n+2)^{-1} | 1/(2n+2) || 1/2n+2 | \frac{1}{2n} | \frac{n}{2n+2}
x | 2x-x | \frac{x^2}{x} || |x| | \sqrt{x^2} | X | 1
|x-3| | |3-x| | \sqrt{(x-3)^2} || x-3 | |x|-3
mn-\lfloor m/2\rfloor | n m - \lfloor \frac m2 \rfloor || mn-\frac m2 | mn-\lceil m/2\rceil
-\frac{2(x^2+6)}{9(x^2-2)\sqrt[3]{x^2-2}^2} | -\frac{8x^2}{9(x^2-2)^{5/3}}+\frac{2}{3(x^2-2)^{2/3}}
    || -\frac{2(x^2+6)}{9(x^2-2)}
# equations
5 | x=5 | x = 5.0 | 5=x | x_1 = 5 | f(2)=5 | AB = 5 | |AB|=5 | \text{Area} = 5 | \angle A = 5 | 2+3=5 | x \approx 5
    || 2x=5 | x+1=5 | 5=6 | x=x | 0=0 | x=6=5
x=5 | 5 | 2x=10 | 5 = x | x-5=0 || y=5 | x=-5 | x=x | x=4+2=5 | 5=6
y=2x+3 | 2x+3 | 2x-y+3=0 | 3+2x=y | 2y=4x+6 || f(x)=2x+3 | y=2x-3 | x=2y+3 | 2x-y-3=0 | y=2x
5x-7y+11z+4=0 | -5x+7y-11z=4 | 10x-14y+22z+8=0 || 5x-7y+11z-4=0 | 0 | 5x-7y+11z+4
x^2+y^2=25 | \frac{x^2+y^2}{25}=1 || x^2+y^2=5 | 25
x=1, y=2 | y=2, x=1 | (1,2) | 1, 2 || 2, 1 | x=2, y=1 | x=1
# several solutions
1\pm\sqrt{19} | 1+\sqrt{19}, 1-\sqrt{19} | 1\mp\sqrt{19} | x = 1\pm\sqrt{19} | \{1-\sqrt{19},1+\sqrt{19}\}
    || 1+\sqrt{19} | 1\pm\sqrt{17} | 1-\sqrt{19}
1,-2 | -2,1 | -2, 1 | x=1, x=-2 | x=1\text{ or }x=-2 | 1 and -2 | \{1,-2\} | x \in \{-2,1\} | x=1,-2 || 1 | 1,2
    | 1,-2,3 | (1,-2] | 1;-3
\emptyset | \varnothing | \{\} || 0 | \{0\}
\text{no solution} | No solutions | \emptyset | \text{No real solutions.} || 0 | \text{one solution} | no
(1,2),(3,4) | (3,4),(1,2) | \{(1,2),(3,4)\} | (1,2) \text{ and } (3,4) || (2,1),(3,4) | (1,2) | 1,2,3,4
# tuples, intervals, unions
(6,31,-1) | \left(6, 31, -1\right) | (6,\,31,\,-1) | (6;31;-1) | 6,31,-1 || (31,6,-1) | [6,31,-1] | (6,31)
    | \{6,31,-1\} | \langle 6,31,-1\rangle
(3,4) | x=3, y=4 | (x,y)=(3,4) | \{(3,4)\} | \begin{cases} x=3 \\ y=4 \end{cases}
    || \begin{cases} x=4 \\ y=3 \end{cases} | \{(3,4),(4,3)\}
(x,y)=(3,4) | (3,4) | x=3, y=4 | y=4, x=3 || x=4, y=3 | (y,x)=(3,4)
(3,4] | \left(3,\frac82\right] | 3<x\le4 | x\in(3,4] | 4 \ge x > 3 || [3,4) | (3,4) | [3,4] | 3,4 | 3\le x\le 4
(2,\infty) | x>2 | 2<x | (2,+\infty) || [2,\infty) | x\ge2 | x<2 | (2,10^{9})
(3,\infty) | \{x : x > 3\} | \{x \mid x>3\} | \{x \in \mathbb{R} : x > 3\} | \left\{x\middle| x>3\right\}
    || \{x : x < 3\} | \{x : x \ge 3\} | \{x : y > 3\}
(-1,1) | -1<x \text{ and } x<1 | x<1, x>-1 | |x| < 1 || |x| \le 1 | |x| > 1 | |x|<2 | x<-1, x>1
(-\infty,-2)\cup(2,\infty) | x<-2 \lor x>2 | (-\infty,-2)\bigcup(2,\infty) | |x|>2 || |x|<2 | x>-2, x<2
(-\infty,-1)\cup(-1,1)\cup(1,\infty) | x\ne\pm1 | x \neq -1, 1 | x\ne1 \text{ and } x\ne-1
    | \mathbb{R}\setminus\{-1,1\} | x\in\mathbb{R}, x\ne\pm1 || x\ne1 | \mathbb{R}\setminus\{1,2\} | x\ne1, y\ne-1
(-\infty,2)\cup(3,\infty) | (3,\infty)\cup(-\infty,2) | x<2\text{ or }x>3 | (-∞,2)∪(3,∞) | (-\infty,2) U (3,\infty)
    || (-\infty,2) | (-\infty,2]\cup(3,\infty) | (-\infty,2)\cap(3,\infty)
(0,1) | 0<f(x)<1 || [0,1] | 0 < f(x)
x+y<1 || -x-y<-1 | x+y>1 | x+y\le 1 | x+y<2 | -x-y>-1 | 2x+2y<2 | 1>y+x
\mathbb{R} | (-\infty,\infty) | x\in\mathbb{R} | ℝ | \text{all real numbers} || (0,\infty) | 5
# matrices
\begin{pmatrix} -2 \\ 14 \end{pmatrix} | \begin{bmatrix}-2\\14.0\end{bmatrix} | (-2,14)
    | \left(\begin{array}{c}-2\\14\end{array}\right) || (14,-2) | \begin{pmatrix}-2\\-14\end{pmatrix} | -2,14x
\begin{pmatrix} 2 \\ 4 \end{pmatrix} | \vec{v} = \begin{pmatrix} 2 \\ 4 \end{pmatrix}
    || 2\begin{pmatrix} 1 \\ 3 \end{pmatrix} | \begin{pmatrix} 2 \\ 5 \end{pmatrix}
\begin{pmatrix}1&\frac12\\3&4\end{pmatrix} | \begin{bmatrix}1&0.5\\3&4\\\end{bmatrix}
    || \begin{pmatrix}1&3\\\frac12&4\end{pmatrix} | \begin{vmatrix}1&\frac12\\3&4\end{vmatrix} | (1,\frac12,3,4)
# ratios and times
7:32 | 7 : 32 | \frac{7}{32} || 32:7 | 7:33
1:2:3 || 1:3:2 | 1:2
8:34 \text{ p.m.} | 8:34 PM || 8:34 AM | 20:35
# sums and what else is read by its spelling
\sum_{k=1}^{n} \frac{1}{k} | \sum\limits_{k=1}^n\dfrac1k || \sum_{k=1}^{m} \frac{1}{k} | \sum_{k=0}^{n} \frac{1}{k}
1, 2, \ldots, n || 1, 3, \ldots, n | 1, 2, n | n | 1,2,\dots,n
n \equiv 1 \pmod{4} | n\equiv1\pmod 4 || n \equiv 1 \pmod{3} | 1
# words
\text{even} | even | Even. || odd | neve | \text{not even} | even or odd
\text{(C)} | C | (C) | \text{C} | C. | C) 42 | C: the third || D | c^2 | A, B, C | B. or C. | (C) (D)
\textbf{(E)}\ 17 | E | (E) | 17 | E) 17 || D | (D) 17 | (E) 18 | 18 | (e)+1
B | b | (b) | \textbf{(B) } 27 || b^2 | bb | \text{(B)}, 5 | \text{(B)} = 5 | B) no, C)
F | \mathrm{F} || f
"""
# The same, with every pair tried both ways round
BOTH_WAYS = r"""
# a negative number with a unit
-5 | -5 cm | -\$5 | \$-5 | -5\text{ cm} | -5\% | -5^\circ C || 5 cm | \$5 | -6 cm | -\$6 | 5
-5 cm | -5\text{ cm} | -5\mathrm{~cm} || -5 m | 5 cm
# words in another order
decreasing then increasing | \text{Decreasing then increasing} || increasing then decreasing
May 5, 2020 || 6 May 2020 | 5 March 2020 | 5 May 2020 | \text{May 5th, 2020}
# words after a number
5 | 5 apples | 5 red balls | 5 \text{ red balls} | 5 square units | 5 times | 5 minutes per mile || 5 dozen | 5 tens
    | 5 squared | 5 halves | 5 minus x | 5 divided by two | 5 below zero | 5 cubed | 5 tenths | 5 plus y | 5 over two
    | 5 thirds | 5 score | 5 times x | 5 to the third | 5 point two | 5 and a half | 5 factorial | 5 less than x
    | 5 out of 6 | 5 or so | 5 mod 7 | 5 hundred | 5 short | 5 recurring | 5 quarters | 5 in base 8 | 5 gross | 5 to one
    | 5 double | 5 is wrong | 5 negative | 5 above par | 5 choose 2 | 5 multiplied by 3 | 5 degrees below zero
60 || 5 eggs | 5 dozen | 5 dozen eggs
1 | 1 apple | 1 cup | 1 root || 2 cups | 1 dozen
# digits
42 | ４２ | 𝟒𝟐 || ④② | ㊷
x^2+1/2 | x²+½ || x2+½
# a float that was computed
\frac{13}{6} | 2.1666666666666665 | 2.1666666666666667 || 2.1666666666676665 | 2.16666666666669
3\sqrt2 | 4.242640687119286 | 4.242640687119285 | 4.24264068711929 || 4.24264068715
# units
5 | 5\,\mathrm{m/s^2} | 5 \mathrm{cm^{-1}} | 5 men | 5 min | 5\mathrm{~N}
    | 5 \mathrm{~kg} \cdot \mathrm{m} / \mathrm{s}^{2} | 5 women | 5 gallons | 5 \frac{\text{km}}{\text{h}} | 5\,\Omega
    | 5\,\mu\mathrm{m} || 5 N | 5m | 6 men | 5rs | 5ms | 5\omega | 5\mu | 5 sec(x) | 5\sec x | 5\mathbf{A}
5\,\mathrm{m/s^2} | 5\ \mathrm{m\,s^{-2}} | 5 \frac{\text{m}}{\text{s}^2} | 5 \text{ meters per second squared}
    || 5 \mathrm{m/s}
5 \Omega | 5 \text{ ohms} || 5 \text{ V} | 5 \mathrm{k\Omega} | 5\text{ k}\Omega
5\,\mu\mathrm{m} | 5 || 5\,\mathrm{m} | 5\,\mu\mathrm{s}
25 sec | 25 | 25 \text{ seconds} || 25 min
12 \text{ square feet} | 12 ft^2 | 12 sq ft || 12 ft | 12 \text{ cubic feet}
2\pi | 2\pi cm || 2\pi hr | 2\pi rh
# chains and equations with names
506.25 | y=k=506.25 | A = B = 506.25 || y=k=506.5 | y=506.25=k=5 | 2y=506.25
5 | f(x,y)=5 | E[X]=5 | S = 2+3 = 5 | AB=BC=5 | \gcd(10,15)=5 || 17 \bmod 5=2 | x=4=5 | x+1=5 | 5\bmod 7 | x^2=5
m+n=113 | 113 | n+m=113 || m-n=113 | m+n=112 | m+n=p | 226
P(\text{red})=1/3 | 1/3 | P(\text{red})=\frac13 || P(\text{blue})=1/3 | 2/3
0.3 | P(X>2)=0.3 | P(A|B)=0.3 | P(A \cap B)=0.3 || P(X>2)=0.4
2 | \frac{AB}{CD}=2 || 17 \bmod 5=3 | x x = 2 | 17 \bmod 5=2 | 17 mod 5 = 2 | 17 \pmod{5} = 2
10 | a+b+c=10 | AB+BC=10 || 2x=10 | a+a=10
x=3, y=3 | x = y = 3 || x = y = 4 | 3 | x=3
12 | \text{Area}=12 | \text{Total area} = 12 || \text{Area}=13
50 | \angle A=\angle B = 50^\circ || \angle A = 51^\circ
# text around the answer
2x^3 | 2x^3 \text{ for any constant} || 2x^3 \text{ for }x>0 | 3x^3 \text{ for any constant}
    | 2x^3, \text{ where } x \text{ is real}
\frac{737}{39} | \frac{737}{39}\text{ (about }18.9) | \frac{737}{39} (\approx 18.9)
    || \frac{737}{39}\text{ (about }28.9)
460 | \text{ANSWER: }\$460 | Answer: 460 || \text{ANSWER: }\$461 | \text{ANSWER: }460 \text{ or } 461
18 | Final answer: x=18 | Total: 18 | The total cost is \$18 || Total: 18 or 19 | Not: 18 | Total: 19 | Total: -18
12 | \text{The answer is 12} | The area is 12 | \text{The area is }12 | \text{The area is } 12 \text{ cm}^2
    || The area is not 12 | The area is 12 or 13 | The area is less than 12 | The area is at least 12 | The area is 13
    | The wrong answer: 12 | Half the area is 12 | The cube root is 12 | Its reciprocal is 12 | Twice the area is 12
    | The area isn't 12 | I think it is 12 | 12 if x > 0 | 12 for no x
Total: 18 | Total: 18.0 | The total is 18 || Total: 19
(B) 27 || (C) 27
# degree or percent within an expression
180^\circ-2\alpha | -2\alpha+180° | 2(90^\circ-\alpha) | 180-2\alpha || 180^\circ+2\alpha | 180^\circ-\alpha
90^\circ - \frac{A}{2} | \frac{\pi}{2} - \frac{A}{2} | \frac{180^\circ - A}{2} | 90 - A/2 || 90^\circ - A
30^\circ + 360^\circ k | x = 30^\circ + 360^\circ k || 30^\circ + 180^\circ k
100\% - x || 100\% + x | 100 - x
x\ne 0 | (-\infty,0)\cup(0,\infty) | \mathbb{R}\setminus\{0\} || x\ne 1 | \mathbb{R}
7 | \text{Answer} = 7 || \text{not} = 7
100 || 50 + 50\%
31 || 30^\circ+1
# money
18 | USD 18 | 18 USD | EUR 18 | €18 | \$18.00 | US\$18 || USD 19 | -\$18 | USD -18
\$18 | USD 18 | 18 dollars || 18 cents | €18
# choices
(C) | \text{(c)} | (c) | c) | C | \text{C} | \textbf{(c)} | \mathrm{(C)} || \text{(d)} | (c), (d) | (C) or (D) | c^2
# commas where brackets occur
1234 | f(3)=1,234 | P(2) = 1,234 | \frac{2,468}{2} || (1,234) | f(3)=1,235 | f(3)=234
\{1, 234\} | \{1,234\} || 1,234
# braces around a base or a mixed number
52_8 | {52}_8 | \displaystyle{52_8} | {52_8} | (52)_8 | 52_{(8)} | \mathbf{52}_8 || {52}_9 | 52
7/3 | {2}\frac13 | 2{\frac13} | {2\frac{1}{3}} | 2\,\frac{1}{3} | 2 1/3 || (2)\frac13 | -2\frac13 | {2}\frac23
# plus minus in a tuple
(\pm 1, 2) | (1,2), (-1,2) | (-1,2), (1,2) || (1,2) | (1,2),(-1,-2)
(0,3),(0,-3) | (0,\pm 3) || (\pm 3, 0)
# sets of real numbers
(0,2) | (0,1]\cup(1,2) | (0,1)\cup[1,2) | 0<x<2 || (0,1)\cup(1,2) | (0,1]\cup[1,2]
\mathbb{R} | (-\infty,0)\cup[0,\infty) || (-\infty,0)\cup(0,\infty)
(0,3) | (0,\sqrt 8)\cup[2\sqrt2,3) || (0,\sqrt 8)\cup(2\sqrt2,3)
(0,1] | (0,1)\cup\{1\} || (0,1)\cup\{2\}
[0,1)\cup(1,2] | [0,2]\setminus\{1\} || [0,2] | [0,2]\setminus\{0\} | (0,2)\setminus\{1\}
(-1,3) | -1<x<3 | |x-1|<2 | 2 > |x-1| || |x-1|>2 | |x-1|\le 2 | |x+1|<2 | |x-1|<3
(-\infty,-1)\cup(3,\infty) | x<-1\text{ or }x>3 | |x-1|>2 || x>-1\text{ or }x<3 | |x-1|\ge 2 | |x-1|<2
    | x<-1\text{ and }x>3 | x<-1,x>3
(2,\infty) | 2x>4 | -x<-2 || 2|x|>4 | 2x\ge 4
-1<x<3 || |y-1|<2
# a list over lines
1,2,3 | 1,␤2,␤3 | 1␤2␤3 || 1␤2 | 123 | 1␤2␤4
x=1, y=2 | x=1␤y=2 || x=2␤y=1
42 | ␤42␤ || 4␤2 | 4 ␤2 | 4␤ 2 | 4␤␤2 | 4	2 | 4 \, ␤2
"""


def rows(table: str) -> list:
    """(gold, equal answers, different answers) of each line"""
    joined = re.sub(r"\n +", " ", table.strip())
    lines = [line.replace("␤", "\n").partition(" || ") for line in joined.split("\n") if not line.startswith("# ")]
    return [(*equal.split(" | ")[:1], equal.split(" | ")[1:], other.split(" | ")) for equal, _, other in lines]


def entries(table: str) -> list[str]:
    return [entry.replace("␤", "\n") for entry in re.sub(r"\n", " ", table.strip()).split(" | ")]


@pytest.mark.parametrize("gold, equal, different", rows(CASES) + rows(BOTH_WAYS))
def test_cases(gold, equal, different):
    assert [answer for answer in [gold, *equal] if not is_equal(answer, gold)] == []
    assert [answer for answer in different if is_equal(answer, gold)] == []


@pytest.mark.parametrize("answer, equal, different", rows(BOTH_WAYS))
def test_cases_the_other_way_round(answer, equal, different):
    assert [gold for gold in equal if not is_equal(answer, gold)] == []
    assert [gold for gold in different if is_equal(answer, gold)] == []


PAGE = Path(__file__).resolve().parents[1] / "docs" / "grader.md"
CONVENTIONS = re.findall(r"`([^`]+)` is (not )?`([^`]+)`", PAGE.read_text().partition("The idea of all rows")[0])


@pytest.mark.parametrize("answer, different, gold", CONVENTIONS)
def test_conventions_of_the_page(answer, different, gold):
    assert len(CONVENTIONS) > 40
    assert is_equal(answer, gold) is not bool(different)


# -------------------- Every rule has its example
def without_memory(answer: str, gold: str) -> bool:
    latex.read.cache_clear()
    return compare.decide(answer, gold)


@pytest.mark.parametrize("rule", latex.REWRITES, ids=lambda rule: rule[2])
def test_every_rule_of_spelling_is_needed_by_its_example(rule, monkeypatch):
    answer, gold = rule[2].rsplit(" is ", 1)
    assert without_memory(answer, gold)
    monkeypatch.setattr(latex, "REWRITES", [other for other in latex.REWRITES if other is not rule])
    assert not without_memory(answer, gold)
    latex.read.cache_clear()


def test_every_word_of_the_tables_is_needed(monkeypatch):
    units = list(words.UNITS)
    assert [u for u in units if not is_equal(rf"5\text{{ {u}}}", "5") or not is_equal("5", rf"5\text{{ {u}}}")] == []
    assert [u for u in units if not is_equal(rf"5\text{{ {u}}}", rf"5\text{{ {words.UNITS[u]}}}")] == []
    assert [u for u in words.UNIT_NAMES - {"cm", "%", "deg"} if is_equal(rf"5\text{{ {u}}}", "5 cm")] == []
    assert [w for w in words.CLAUSES if is_equal(f"5 {w}", "5") or is_equal(rf"5\text{{ {w} apples}}", "5")] == []
    assert [w for w in words.CHANGES if is_equal(f"The {w} answer: 5", "5")] == []
    monkeypatch.setattr(latex, "CLAUSES", set())
    assert without_memory(r"5\text{ below apples}", "5")
    latex.read.cache_clear()


# -------------------- Properties
def real_golds() -> list[str]:
    """Gold answers of real benchmarks, each once; none where the data is absent."""
    golds = []
    files = "math500:solution minerva_math_first20:solution olympiadbench_first20:final_answer aime24:answer "
    for name, key in (file.split(":") for file in f"{files} amc23:answer gsm8k_test:answer mawps:target".split()):
        path = DATA / f"{name}.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            value = json.loads(line)[key]
            if key == "solution":
                value = extract_boxed(value[value.rindex("\\boxed") :])
            golds.append(str(value[0] if key == "final_answer" else value).split("####")[-1].strip())
    return list(dict.fromkeys(golds))


REAL = real_golds()
HARD_REAL = [g for g in REAL if not g.replace(",", "").replace(".", "").isdigit()]
needs_data = pytest.mark.skipif(not REAL, reason="no folder with real gold answers")
both_kinds = pytest.mark.parametrize("golds", [bench.GOLDS, pytest.param(REAL, marks=needs_data)], ids=["made", "real"])


@both_kinds
def test_golds_equal_themselves_and_are_read(golds):
    assert [gold for gold in golds if not is_equal(gold, gold) or not is_equal(gold + " ", f"${gold}$")] == []
    unread = [gold for gold in golds if latex.read(latex.clean(gold))[0] == "unreadable"]
    assert [gold for gold in unread if not re.match(r"\d+:\d", gold)] == []


@both_kinds
def test_rewrites_are_accepted_and_near_misses_refused(golds):
    pairs = bench.rewritten([g for g in golds if golds is bench.GOLDS or g in HARD_REAL])
    assert len(pairs) > 400
    assert [pair for pair in pairs if is_equal(*pair[:2]) is not pair[2]] == []


@needs_data
def test_the_gold_of_another_question_is_refused():
    same = {(a, g) for a in HARD_REAL for g in HARD_REAL[::7] if a != g and is_equal(a, g)}

    def bare(gold):  # what is left when spelling, units and names are taken away
        left = re.sub(r"\s|\\[!,]|\\?\$|[{}]|\\text|^[a-z]=|\^\\circ|(?<=\d)\.0+$|\\%|\\mbox.*", "", gold)
        return left.replace("dfrac", "frac")

    different = [pair for pair in same if bare(pair[0]) != bare(pair[1])]
    assert [pair for pair in different if not ("pi" in "".join(pair) and "circ" in "".join(pair))] == []


@SETTINGS
@given(st.fractions(min_value=-(10**6), max_value=10**6), st.fractions(min_value=-(10**6), max_value=10**6))
def test_rational_numbers_are_compared_exactly(x, y):
    answer = rf"\frac{{{x.numerator}}}{{{x.denominator}}}"
    assert is_equal(answer, f"{y.numerator}/{y.denominator}") is (x == y)
    assert is_equal(f"{-x.numerator}/{x.denominator}", "-" + answer)


@SETTINGS
@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_computed_float_is_the_fraction(n, d):
    if len(repr(n / d)) > 17:
        assert is_equal(repr(n / d), f"{n}/{d}") and is_equal(f"{n}/{d}", repr(n / d))
    assert not is_equal(repr(n / d * (1 + 1e-12)), f"{n}/{d}")


interval = st.tuples(st.integers(-6, 6), st.integers(-6, 6), st.sampled_from(["()", "[]", "(]", "[)"]))
union = st.lists(interval, min_size=2, max_size=3)


def covered(parts) -> list:
    """Which of the whole and half numbers lie in one of the intervals"""

    def inside(x, a, b, s):
        return (a < x or x == a and s[0] == "[") and (x < b or x == b and s[1] == "]")

    return [any(inside(Fraction(k, 2), *part) for part in parts) for k in range(-13, 14)]


@SETTINGS
@given(union, union)
def test_unions_are_the_sets_that_they_cover(one, two):
    for left, right in ((one, two), (one + two, two[::-1] + one)):
        if any(covered(left)) and any(covered(right)):
            spelled = [r" \cup ".join(f"{s[0]}{a}, {b}{s[1]}" for a, b, s in parts) for parts in (left, right)]
            assert is_equal(*spelled) is (covered(left) == covered(right))


# -------------------- Sympy, the slow judge
X, Y = sympy.symbols("x y")
POINTS = [dict(zip((X, Y), map(sympy.Rational, point.split()))) for point in ("7/5 13/9", "31/11 3/17", "-5/4 -19/8")]
FUNCTIONS = {r"\sqrt": sympy.sqrt, r"\sin": sympy.sin, r"\cos": sympy.cos, r"\exp": sympy.exp, r"\ln": sympy.log}


CHANGES = [sympy.expand, sympy.factor, sympy.together, sympy.expand_trig, lambda e: e + X, lambda e: e - 1]


def random_expression(rng, depth: int) -> tuple:
    """A random expression, in our LaTeX and in sympy's own objects, which never come from text"""
    n = rng.randrange(1, 9)
    if depth == 0 or rng.random() < 0.15:
        return rng.choice([("x", X), ("y", Y), (r"\pi", sympy.pi), *[(str(n), sympy.Integer(n))] * 3])
    (a, p), (b, q) = random_expression(rng, depth - 1), random_expression(rng, depth - 1)
    name = rng.choice(list(FUNCTIONS))
    forms = [(f"{a}+{b}", p + q), (rf"{a}-\left({b}\right)", p - q), (rf"({a})\cdot({b})", p * q)]
    forms += [(rf"\frac{{{a}}}{{{b}}}", p / q), (f"({a})^3", p**3), (rf"{name}{{{a}}}", FUNCTIONS[name](p))]
    return rng.choice(forms)


def test_sympy_judges_random_expressions_alike():
    """sympy rewrites an expression or changes it, says by its own numerics whether the two are equal, and prints the
    answer. Where we differ, a number is above 10^60 or below 10^-60 somewhere, and then we refuse."""
    rng, verdicts, unlike = random.Random(0), [], []
    while len(verdicts) < 1000:
        gold, own = random_expression(rng, 3)
        other = rng.choice(CHANGES)(own) if rng.random() < 0.9 else random_expression(rng, 3)[1]
        answer = sympy.latex(other)
        if len(answer) > 300 or any(e.has(sympy.zoo, sympy.nan) for e in (own, other)):
            continue
        pairs = [(abs(sympy.N((other - own).subs(p), 50)), abs(sympy.N(own.subs(p), 50))) for p in POINTS]
        equal = all(gap <= size * 1e-30 for gap, size in pairs)
        verdicts.append(equal)
        if is_equal(answer, gold) != equal and (not equal or all(1e-60 < size < 1e60 for _, size in pairs)):
            unlike.append((answer, gold, equal))
    assert unlike == []
    assert 300 < sum(verdicts) < 800


# -------------------- Hostile texts
FORGED = r"""
any number | \text{any number} | x | n | \mathbb{R} | (-\infty,\infty) | [0,100] | x\in\mathbb{R} | 5 \text{ or } 6
| 5 or 6 | 1 or 2 or 5 | (A) 5 (B) 6 | (A) 5 or 6 | A) 5, 6 | \{x : x = 5 \text{ or } x = 6\}
| \{x : x \in \{4,5,6\}\} | x\ne5 | \mathbb{R}\setminus\{5\} | x>4, x<6 | |x|=5 | 5=5 | x=5=5 | five and six | 5...
| 5\dots | \{5\}\cup\{6\} | \begin{aligned}5\\6\end{aligned} | 5 \over 2 | 5\lor6 | \ln x=5 | 5,6 | 4, 5, 6 | \{5,6\}
| 5;6 | 5 and 6 | 5 6 | 5␤6 | 5=6 | 6=5 | x=5=6 | 5=x=6 | x=6=5 | x=x | 0=0 | 5=5=6 | 5\ne 6 | 5\pm1 | 5\pm0,1 | 4<x<6
| 4\le 5\le 6 | True | \text{True} | the answer | answer | gold | correct | \text{correct} | 5\text{ is wrong}
| 5\text{ or more} | 5\text{ if }x>0 | \text{5 or 6} | \text{at least }5 | at least 5 | NaN | nan | 0/0 | \infty | 1/0
| \infty-\infty | 5\approx 6 | 6\approx5 | 5\cup6 | (5 | 5) | [5 | 5] | {5 | 5} | 5\to6 | \ldots,5,\ldots
| 1,2,\ldots,10 | 5x | 5m | 5a | 5+n | 5y+0 | x^0+4y | 5? | ? | \square | \boxed{} | \phantom{5} | 5\pmod 7 | 5\bmod 7
| -5 | -5 or 5 | \pm5 | |5-x| | none | \text{none of these} | 5e | 5i | 5.0.0 | ..5 | 5'' | 5* | *5*6 | 5/ | /5 | 5--
| + | - | {} | () | \{\} | _ | ^ | 5_ | 5^ | . | , | $ | $$ | % | \ | \text{} | \frac{5}{} | \frac{}{5} | \sqrt{}
| 5\\6 | 5&6 | #5 | 5 # 6 | 5 // 6 | 5 = 5 or 6 | 4.9999999999999999 | 5.000000000000001 | 5,000 | 0x5 | 0b101 | 1_5
| \begin{cases}5\\6\end{cases} | {5,6} | (5,5) | max(5,6) | five or six | random | What is 2+3?
| Put your final answer within \boxed{}. | 5+9^{9^{9^9}}-9^{9^{9^9}} | print(5) | x = 4 = 5
"""  # against the gold answer 5
INJECTIONS = r"""
__import__('os').system('touch CANARY') | (lambda: open('CANARY', 'w'))() | open('CANARY','w').close() or 5
| exec("open('CANARY','w')") | eval('5') | [].__class__.__base__.__subclasses__() | ().__class__ | sympify('5')
| 5 if 1 else 6 | 5;import os | lambda: 5 | int('5') | \input{/etc/passwd} | \write18{touch CANARY}
| \immediate\write18{touch CANARY} | $(touch CANARY) | `touch CANARY` | {{5}}}} | ${5}${6} | \def\x{5}\x
| \newcommand{\a}{5}\a | \csname 5\endcsname | Integer(5) | S(5).func | breakpoint() | exit(5) | %n5
"""
# pieces with their number, joined without the spaces between them; ␠ is a space
EXPENSIVE = r"""
9^{9^{9^9}} | 9**9**9**9 | 10^{10^{10}} | 2^{2^{2^{2^{2^2}}}} | (10^9)! | 100000! | ((((9!)!)!)!) | 5 !×300
| \binom{10^9}{10^8} | \sin(10^{10^{10}}) | \exp(\exp(\exp(\exp(9)))) | e^{e^{e^{e^e}}} | \tan(10^{9999})
| \ln(10^{10^8}) | (x+1)^{1000000} | x^{x^{x^{x^x}}} | (x+y+z+w)^{5000} | (1+\sqrt2)^{100000} | (\pi+e)^{20000}
| 9×400 | 9×100000 | 1e999999999 | 1e-9999 | \lfloor␠10^{10^5}␠\rfloor | 0.\overline{ 1×300 }
| \sqrt[10^{99}]{2} | 2^{0.5^{0.5^{0.5}}}
| \log_{1.0000000001}␠2 | `×1600 | $×1600 | ~×1600 | ␠×100000 x | \u200b×5000 | \{x: x×1500 | 5 ␠×1500 ^ | f(x)×95
| x\ne␠ 1,2,3,4,5,×36 6 | \{ 7,8,9,6,×49 5\} | (×5000 | (×150 5 )×150 | \frac{1}{×40 2 }×40 | \sqrt{×60 2 }×60
| \cos(×60 1 )×60 | {×9999 | x×400 | 1+×199 1 | x_×150 | 1999!*×60 1 | 1/1999!+×45 1 | 1\pm1×30 | 5 %×300 | -×399 5
| |×300 | ^×300 | =×300 | 1=×199 1 | x<×190 x | ,×400 | \boxed{×300 | \text{×300 | \begin{pmatrix}×25
| \begin{pmatrix} 1&×150 1\end{pmatrix} | \sum_{k=1}^{10^{10}}␠k | \int_0^1␠x^x␠dx | 1,000×80 | 1␠000␠×60 | 1␠1/2␠×60
| {,}×130 | \left(×60 | \binom{10^{-6000}i}{2099!} | (10^{-6000}i+1)^{i+0.5} | (10^{-20000}+i)^{1/3} | \sin␠a,×30 b
| \sqrt{-x}+×40 1 | \log_{x}(1999!)+×25 1 | i^i,×60 1 | 5\text{␠apples}×20 | x^{99}+×60 1 | ((1+i)^{99999})^{\pi}
| \sqrt{1+×40 x }×40 | \arccos(×30 2 )×30 | x!×100 | 2=4 5!×190
| \circ×200 | 1<x<×60 5 | (1,2)\cup×40 (3,4) | a_{1}=×40 5
"""


def expanded(entry: str) -> str:
    pieces = [piece.partition("×") for piece in entry.split(" ")]
    text = "".join(piece * int(count or 1) for piece, _, count in pieces)
    return text.replace("␠", " ").replace(r"\u200b", "\u200b")


HOSTILE = [expanded(entry) for entry in entries(EXPENSIVE)]


LEAVES = r"""i e \pi x y n f(x) \infty 0 7 1/3 (1+i) \sqrt{-2} i^i (10^{-6000}i)
10^{-7000} 10^{-50} 10^{7000} 9! 1999! 2099! 37e-300 91e+3 0.0000000000000000000000007 864924639076924800619768366178"""
FORMS = r"""A+B A-B (A)(B) \frac{A}{B} (A)^{B} \sqrt[A]{B} \NAME(A) \NAME(B) (A)! \binom{A}{B} |A|
\lfloor{}A\rfloor \log_{A}(B) (A\pm{}B) (A)^\circ"""
NAMES = sorted(latex.FUNCTIONS - {"abs", "floor", "ceil"})


def random_text(rng, depth: int) -> str:
    """A random composition of everything that can be evaluated, with tiny, huge and complex numbers"""
    if depth <= 0 or rng.random() < 0.12:
        return rng.choice(LEAVES.split())
    parts = {"A": random_text(rng, depth - 1), "B": random_text(rng, depth - 1), "NAME": rng.choice(NAMES)}
    return re.sub("NAME|A|B", lambda match: parts[match[0]], rng.choice(FORMS.split()))


def random_pair(rng) -> tuple[str, str]:
    def some(count, depth):
        return [random_text(rng, rng.randrange(depth)) for _ in range(rng.randrange(1, count))]

    joined = rng.choice([", ", ",", "=", "<", r"\cup", ":", "+", r"\pm "]).join(some(30, 3))
    golds = [random_text(rng, rng.randrange(1, 8)), joined, f"({','.join(some(5, 5))}]", r"\{" + joined + r"\}"]
    gold = rng.choice(golds)[:400]
    others = [gold + "+1", gold.replace("x", "y"), ",".join(reversed(gold.split(","))), random_text(rng, 5)[:400]]
    return rng.choice(others), gold


class Meter:
    """Counts what one verdict costs: calls of functions, units of the grader's own count, bits that it remembers"""

    def __init__(self, monkeypatch):
        self.made, comparison = [], compare.Comparison
        monkeypatch.setattr(compare, "Comparison", lambda *trees: self.made.append(comparison(*trees)) or self.made[-1])

    def calls(self, answer: str, gold: str) -> int:
        self.made.clear()
        latex.read.cache_clear()
        profile = cProfile.Profile(builtins=False)
        assert profile.runcall(compare.decide, answer, gold) in (True, False)
        return sum(function.callcount for function in profile.getstats())

    def within_bounds(self) -> bool:
        numbers = [n for made in self.made for n in made.known.values() if isinstance(n, Fraction)]
        bits = sum(n.numerator.bit_length() + n.denominator.bit_length() for n in numbers)
        return all(made.work <= values.MAX_WORK + 50 for made in self.made) and bits < 4e6


@pytest.fixture
def meter(monkeypatch):
    is_equal(r"\sqrt2", r"\pi")  # what is imported once, is imported
    return Meter(monkeypatch)


MAX_CALLS = 120_000  # of Python functions, for one pair: a tenth of a second


def test_hostile_texts_against_each_other_cost_little(meter):
    texts = [text for text in HOSTILE if len(text) <= 400]
    pairs = [(a, g) for k, a in enumerate(HOSTILE) for g in HOSTILE[k % 36 :: 36]] + [(t + "+1", t) for t in texts]
    assert [(a, g) for a, g in pairs if meter.calls(a, g) > MAX_CALLS or not meter.within_bounds()] == []
    assert [text for text in texts if re.search(r"[\w)}]$", text) and is_equal("1+" + text, text)] == []
    # on a run of spaces some patterns would take cubic time
    assert [text for text in HOSTILE if "   " in latex.clean(f"x{text}x")] == []


def test_random_compositions_cost_little(meter):
    rng = random.Random(0)
    for _ in range(600):
        answer, gold = random_pair(rng)
        assert meter.calls(answer, gold) <= MAX_CALLS and meter.within_bounds(), (answer, gold)


@pytest.mark.parametrize("gold", ["5", "x+1", r"\{5,7\}", r"(2,\infty)", r"\frac{\pi}{2}", r"\text{yes}"])
def test_hostile_answers_get_a_verdict_and_run_nothing(gold, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    is_equal(r"\sqrt2", r"\pi")  # what it imports, it has imported

    def refuse(*arguments, **options):
        pytest.fail("model text reached eval, exec, compile or open")

    for name in ("eval", "exec", "compile", "open"):
        monkeypatch.setattr(f"builtins.{name}", refuse)
    accepted = [text for text in [*entries(INJECTIONS), "5\x00", *HOSTILE] if is_equal(text, gold)]
    monkeypatch.undo()
    assert accepted == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answer", [*entries(FORGED), "", " ", "\u200b"])
def test_forged_answers(answer):
    assert not is_equal(answer, "5")


@pytest.mark.parametrize("answer", ["x=x", "0=0", "any number", "1", "x", r"\mathbb{R}", "0x=0", "x-x=0"])
@pytest.mark.parametrize("gold", ["x=5", "y=2x+3", "x^2+y^2=1"])
def test_forged_equations(answer, gold):
    assert not is_equal(answer, gold)


STRANGE = [(None, "5"), ("5", None), (5, 5), (b"5", "5"), ("\ud800", "5"), ("5", "\ud800"), ("\ud800", "\\ud800x")]


@pytest.mark.parametrize("answer, gold", STRANGE)
def test_never_raises(answer, gold):
    assert is_equal(answer, gold) is False


def test_benchmark_without_the_peer_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(SystemExit, match="2"):
        bench.main()
    assert "pip install" in capsys.readouterr().err
