"""Answers beside a gold and what a mathematician says: one case a line, `answer | gold`, spaces around ignored.

`|` inside mathematics is written `\\vert`. Kept apart from the test so that it reads as a document.
"""

CORRECT = r"""
# integers, zero-padded AIME integers
25                                      | 25
025                                     | 25
25                                      | 025
007                                     | 7
000                                     | 0
-0                                      | 0
+25                                     | 25
25.                                     | 25
25.0                                    | 25
２５                                    | 25
٢٥                                      | 25
−25                                     | -25
\text{25}                               | 25
\mathbf{25}                             | 25
$25$                                    | 25
\(25\)                                  | 25
{25}                                    | 25
2^{10}                                  | 1024
5!                                      | 120
\binom{5}{2}                            | 10
2 \cdot 3 \times 4                      | 24
\sqrt{49}                               | 7
10+15=25                                | 25
m+n = 25                                | 25
(C) 25                                  | 25
123456789012345678901234567890          | 123456789012345678901234567890
# thousands
1,234                                   | 1234
1{,}234                                 | 1234
10,\!080                                | 10080
11,\! 111,\! 111,\! 100                 | 11111111100
1\,234\,567                             | 1234567
12 345                                  | 12345
1,234.5                                 | 1234.5
# rationals and decimals
\frac{1}{2}                             | 0.5
\dfrac12                                | 1/2
\frac 59                                | 5/9
\frac9{19}                              | \frac{9}{19}
\frac{-3}{4}                            | -\frac{3}{4}
-\dfrac{3}{4}                           | -0.75
\frac{2}{4}                             | \frac{1}{2}
.35625                                  | \frac{57}{160}
1\frac{4}{5}                            | \frac{9}{5}
-1\frac{4}{5}                           | -1.8
137 1/2                                 | 137.5
½                                       | 0.5
0.\overline{3}                          | 1/3
0.1\overline{6}                         | 1/6
1.5 \times 10^{3}                       | 1500
6.72e-5                                 | .0000672
\frac{2016}{2017^2}                     | \frac{2016}{4068289}
# percent, units, currency, degrees
25\%                                    | 0.25
25\%                                    | \frac{1}{4}
0.25                                    | 25\%
25                                      | 25\%
62.5%                                   | 62.5\%
90^\circ                                | 90
90^{\circ}                              | 90^\circ
90°                                     | 90^\circ
\frac{\pi}{2}                           | 90^\circ
\frac{270}7\text{ degrees}              | \frac{270}{7}
15\mbox{ cm}^2                          | 15
15 cm^2                                 | 15 \text{ cm}^2
\$18.90                                 | 18.9
\$36                                    | 36 \text{ dollars}
5.4                                     | 5.4 \text{ cents}
25 \text{ miles per hour}               | 25 \text{ mph}
12 apples                               | 12
x = 12 \text{ ways}                     | 12
# names, equations, relations
x=5                                     | 5
5                                       | x=5
f(n)=2n                                 | f(x)=2x
f(x) = 2x                               | 2x
y=2x+3                                  | 2x-y+3=0
5x-7y+11z+4=0                           | 10x-14y+22z+8=0
x>5                                     | 5<x
k \geqslant 2                           | k \ge 2
k \ge 2                                 | [2,\infty)
-2 \le x \le 7                          | [-2,7]
x \in [-2,7]                            | [-2,7]
# tuples, lists, sets, intervals, unions, matrices
(1, 2)                                  | (1,2)
\left( 3, \frac{\pi}{2} \right)         | (3, \pi/2)
(x,y)=(1,2)                             | (1,2)
1,2                                     | (1,2)
\langle 1,2 \rangle                     | (1,2)
2, 1                                    | 1,2
1 and 2                                 | 2,1
1 \text{ or } 2                         | 1,2
a, b, and c                             | a, b, c
x=1, x=2                                | 1,2
\{1,2\}                                 | \{2,1\}
{1,2}                                   | \{1,2\}
\{1,1,2\}                               | \{2,1\}
\{5\}                                   | 5
\varnothing                             | \emptyset
1 \pm \sqrt{19}                         | 1+\sqrt{19}, 1-\sqrt{19}
\pm 2                                   | -2, 2
\{-2, 1-\sqrt5, 1+\sqrt5\}              | \{1\pm\sqrt{5},-2\}
(3,4]                                   | \left(3,4\right]
(3,\infty)\cup(-\infty,2)               | (-\infty, 2) \cup (3, \infty)
[1,2]\cup[2,3]                          | [1,3]
\begin{bmatrix} -\frac13 \\ \frac23 \end{bmatrix} | \begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}
# expressions
\sqrt{8}                                | 2\sqrt2
\frac{1}{\sqrt3}                        | \frac{\sqrt{3}}{3}
\frac{189}{\sqrt{11}}                   | \frac{189 \sqrt{11}}{11}
2.5\pi                                  | \frac{5\pi}{2}
x²                                      | x^{2}
(x-1)(x+1)                              | x^2-1
0.55+0.45a                              | \frac{11+9a}{20}
6+9i                                    | 9i+6
i^2                                     | -1
\log_2 8                                | 3
\cot x                                  | \frac{1}{\tan x}
\frac{(2n)!}{n!n!}                      | \binom{2n}{n}
\frac{n(n+1)}{2}                        | \frac{n^2+n}{2}
\sqrt[3]{108}                           | 3\sqrt[3]{4}
\sqrt{2}+3(\frac12)                     | 1.5+\sqrt2
e^{2\ln 3}                              | 9
# numbers of another base, words, choices
52_{8}                                  | 52_8
52                                      | 52_8
\text{Evelyn}                           | evelyn
\textbf{even}                           | \text{even}
twenty-five                             | 25
\text{one hundred and two}              | 102
three halves                            | 1.5
C                                       | \text{(C)}
\textbf{(C)}                            | C
(C)\ 12                                 | \text{(C)}
# words after a number: multipliers have a value, plain nouns measure nothing
5 \text{ million}                       | 5000000
\$5 million                             | 5000000
2.5 \text{ billion dollars}             | 2500000000
3 hundred thousand                      | 300000
5 dozen                                 | 60
10 percent                              | 0.1
10 \text{ percent}                      | 10\%
10                                      | 10 \text{ percent}
3 halves                                | \frac32
2 \text{ thirds}                        | 2/3
12 \text{ distinct real solutions}      | 12
12                                      | 12 \text{ students per class}
5 \text{ square units}                  | 5 \text{ units}^2
12 \text{ a.m.}                         | 12 \text{ am}
3:45 \text{ p.m.}                       | 3:45
20^\circ\text{C}                        | 20
20^\circ C                              | 20 \text{ degrees Celsius}
\text{5 apples}                         | 5
33\frac13\%                             | \frac13
33 1/3 %                                | 1/3
\pounds 5                               | 5
90\text{°}                              | 90
one hundred and five                    | 105
# equations
f(3)=7                                  | 7
f^{-1}(2) = 5                           | 5
x_1+x_2 = 3                             | 3
AB = 5                                  | 5
\text{Area} = 12                        | 12
\angle ABC = 30^\circ                   | 30
\sin A = \frac35                        | \frac35
\vert z \vert = 5                       | 5
\sqrt{8}=2\sqrt2                        | 2\sqrt2
S = \frac{n(n+1)}{2} = 55               | 55
y=2, x=1                                | x=1, y=2
y=2, x=1                                | (1,2)
x=2 \text{ or } x=3                     | 3, 2
x = \sqrt2 \approx 1.41                 | \sqrt2
# letters
AB                                      | \overline{AB}
ba                                      | ab
yx                                      | xy
2BA                                     | 2AB
\text{HTT}                              | HTT
f'(x)                                   | f'(x)\cdot 1
# ratios, clock times, thousands beside lists
4:6                                     | 2:3
1:2:3                                   | 2:4:6
2 : 3                                   | \frac23
\frac12 : \frac13                       | 3:2
1:\sqrt2                                | \sqrt2:2
3:45                                    | 3:45
1, 234                                  | 1,234
(2,100)                                 | 2,100
# constants behind commands, and variables that cancel
\sum_{k=1}^{10} k                       | 55
\sum_{n=1}^\infty \frac1{n^2}           | \frac{\pi^2}{6}
\prod_{k=1}^5 k                         | 120
\int_0^1 2x\,dx                         | 1
\lim_{x\to0}\frac{\sin x}{x}            | 1
\int_0^\infty e^{-x} dx                 | 1
\sin^2 x+\cos^2 x                       | 1
x^2-x^2+5                               | 5
\frac{5x}{x}                            | 5
\sin 30^\circ                           | \frac12
\tan 45^\circ                           | 1
\cos 36^\circ                           | \frac{1+\sqrt5}{4}
\cos(36^\circ)                          | \cos 36^\circ
2\sin 60^{\circ}                        | \sqrt3
\sin^2 30^\circ                         | \frac14
cos(0)                                  | 1
sin x                                   | \sin x
a^0                                     | 1
# wrappers
\boldsymbol{5}                          | 5
\bm{5}                                  | 5
\bold{5}                                | 5
\underline{5}                           | 5
\color{red}5                            | 5
\color{red}{5}                          | 5
\textcolor{blue}{5}                     | 5
\emph{even}                             | \text{even}
\mathcal{O}                             | O
2\mathbf{i}+3\mathbf{j}                 | 2i+3j
# sets of solutions
x<1 \text{ or } x>3                     | (-\infty,1)\cup(3,\infty)
x>3 or x<1                              | (-\infty,1)\cup(3,\infty)
x \le -\sqrt2 \text{ or } 3 \le x < 5   | (-\infty,-\sqrt2]\cup[3,5)
\mathbb{R}                              | (-\infty,\infty)
\text{all real numbers}                 | \mathbb{R}
all real numbers                        | (-\infty,\infty)
x \in \mathbb{R}                        | (-\infty,\infty)
\text{No solution}                      | \emptyset
\text{no real solutions}                | \varnothing
\{\}                                    | \emptyset
\{x\mid x>3\}                           | (3,\infty)
\{x : x>3\}                             | x>3
\{x\in\mathbb{R}\mid 1<x\le 3\}         | (1,3]
\mathbb{R}\backslash\{0\}               | (-\infty,0)\cup(0,\infty)
\mathbb{R}\setminus\{2,0\}              | (-\infty,0)\cup(0,2)\cup(2,\infty)
x\neq 0                                 | \mathbb{R}\setminus\{0\}
x \ne 0, x \ne 2                        | \mathbb{R}\setminus\{0,2\}
]1,2[                                   | (1,2)
]1,2]                                   | (1,2]
# other notation
{10 \choose 3}                          | 120
0.\dot{3}                               | \frac13
0.\bar{3}                               | \frac13
0.\dot{1}4285\dot{7}                    | \frac17
\sqrt[3]{-8}                            | -2
\sqrt[3]{-5}                            | -\sqrt[3]{5}
\lg 100                                 | 2
(52)_8                                  | 52_8
AB_{16}                                 | ab_{16}
\left(\begin{array}{cc}1&2\\3&4\end{array}\right) | \begin{pmatrix}1&2\\3&4\end{pmatrix}
\left[\begin{matrix}1\\2\end{matrix}\right] | \begin{pmatrix}1\\2\end{pmatrix}
2\begin{pmatrix}1\\2\end{pmatrix}       | \begin{pmatrix}2\\4\end{pmatrix}
\frac{1}{2}\begin{pmatrix}1\\\sqrt2\end{pmatrix} | \begin{pmatrix}1/2\\\frac{1}{\sqrt2}\end{pmatrix}
\text{(A) and (B)}                      | A,B
\text{Alice, Bob}                       | \text{Bob, Alice}
\text{DNE}                              | \text{does not exist}
5 \& 6                                  | 6, 5
5 & 6                                   | 5,6
5\\                                     | 5
\text{infinity}                         | \infty
2e                                      | 2\mathrm{e}
3!!                                     | 3
7!!                                     | 105
"""

TOO_LARGE = r"""
9^{9^{9^9}}                             | 25
9^{9^9}                                 | 25
10**10**10                              | 25
{{9^{9999}}^{9999}}^{9999}              | 25
((9^{999})^{999})^{999}                 | 25
2^{99999999}                            | 25
1e99999                                 | 25
99999999!                               | 25
5!!!!!!!!                               | 25
\binom{99999999}{5000000}               | 25
x^{1000000}                             | 25
2^{50!}                                 | 25
"""


def read(table: str) -> list[tuple[str, str]]:
    """The (answer, gold) pairs of a table."""
    lines = [line for line in table.strip().splitlines() if not line.startswith("#")]
    pairs = [line.split("|") for line in lines]
    return [(answer.strip(), gold.strip()) for answer, gold in pairs]


# Built by code: too long to read.
BUILT_TOO_LARGE = {
    "million digits": "9" * 10**6,
    "million characters": "x+" * 500_000,
    "deep braces": "{" * 3000 + "5" + "}" * 3000,
    "deep parentheses": "(" * 900 + "5" + ")" * 900,
    "many roots": r"\sqrt" * 300 + "2",
    "many signs": "-" * 500 + "1",
    "many parts": ",".join(str(number) for number in range(500)),
}
