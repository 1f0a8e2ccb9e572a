"""Pairs of answer and gold that are not the same; the other half of answer_cases.py, in its notation."""

WRONG = r"""
# no factor of a hundred, no tolerance
0.25                                    | 25
2500                                    | 25
25\%                                    | 25
25                                      | 0.25
0.333                                   | 1/3
3.14                                    | \pi
1.414214                                | \sqrt{2}
123456789012345678901234567891          | 123456789012345678901234567890
1000001                                 | 1000000
2^{-100}                                | 2^{-200}
# shape
(1,2)                                   | [1,2]
[1,2)                                   | (1,2)
(2,1)                                   | (1,2)
(1,2)                                   | \{1,2\}
1,2,2                                   | 1,2
1,2                                     | 1,2,3
1                                       | 1,2
(1,2,3)                                 | (1,2)
(-\infty,2)                             | (-\infty,2]
\begin{pmatrix} 1 & 2 \end{pmatrix}     | \begin{pmatrix} 1 \\ 2 \end{pmatrix}
# letters, names, words
x                                       | y
2x                                      | 2y
n                                       | N
\pi(R^2-r^2)                            | 0
x=5                                     | y=5
7=25                                    | 25
2x-y=0                                  | 0
3abc                                    | 3
odd                                     | \text{even}
\text{(A)}                              | \text{(B)}
B                                       | \text{(C)}
twenty-six                              | 25
5 \text{ or } 6                         | 5
1 2                                     | 12
# units, bases, signs
15 \text{ cm}                           | 15 \text{ m}
15\text{ cm}^2                          | 15\text{ cm}^3
42                                      | 52_8
52_7                                    | 52_8
-25                                     | 25
\sqrt{x^2}                              | x
1+274i                                  | 1+275i
f(x)=x+1                                | f(x)=x+2
\frac{d!}{2k(d-k)!}                     | 0
\text{infinitely many}                  | 5
open(1)                                 | x
# words after a number are not thrown away
5 \text{ million}                       | 5
5 million                               | 5
5 billion                               | 5
5 thousand                              | 5
5 dozen                                 | 5
5 hundred                               | 5
5 percent                               | 5
5 squared                               | 5
5 factorial                             | 5
5 negative                              | 5
5\text{ plus six}                       | 5
5\text{ times ten}                      | 5
5 \text{ at most}                       | 5
5 \text{ or more}                       | 5
5\text{ wrong}                          | 5
5 \text{ is wrong}                      | 5
5 unless zero                           | 5
\frac{5}{6}\text{ minus }               | 5/6
3 halves                                | 3
3\text{ thirds}                         | 3
12\text{ a.m.}                          | 12\text{ p.m.}
8 p.m.                                  | 8 a.m.
5 north                                 | 5 south
5\text{ north}                          | 5\text{ south}
5 apples                                | 5 \text{ pears}
6 million                               | 5 million
20^\circ\text{C}                        | 20^\circ\text{F}
33\frac13\%                             | \frac{9901}{300}
33.33\%                                 | 33\frac13\%
one hundred and five                    | 100, 5
# an equation is not its right side
x^2=4                                   | 4
x^3=8                                   | 8
2a=6                                    | 6
1/x=3                                   | 3
\sqrt{x}=3                              | 3
x^2+y^2=1                               | 1
a-b=4                                   | 4
\frac{x}{2}=3                           | 3
\sqrt{8}=5                              | 5
x=1, y=2                                | (2,1)
y=2, x=1                                | (2,1)
y=2, z=(1,2)                            | (1,2)
x(x-1)=6                                | 6
x \cdot x = 4                           | 4
\log x = 3                              | 3
5 apples, 6 pears                       | 5 pears, 6 apples
# letters in order
CAB                                     | ABC
BCA                                     | CAB
HTT                                     | TTH
TH                                      | HT
RGB                                     | BGR
AC                                      | CA
cat                                     | act
cos                                     | soc
no                                      | on
up                                      | pu
\text{CAB}                              | ABC
\overline{AB}                           | \overline{CD}
f'(x)                                   | f(x)
f'(x)+f(x)                              | f(x)+f(x)
x'                                      | x
25'                                     | 25
5''                                     | 5
# ratios, clock times, thousands beside lists
3:45                                    | 1:15
3:45                                    | \frac{1}{15}
12:30                                   | 2:5
3:1                                     | 1:3
1:2:3                                   | 1:2:4
1:2:3                                   | \frac16
1:2:3                                   | 1:2
3:1                                     | 3
2,100                                   | 100,2
1,234                                   | 234,1
(1,234)                                 | (234,1)
100,200                                 | 200,100
# constants behind commands, and variables that do not cancel
\sum_{k=1}^{10} k                       | 54
\int_0^1 2x\,dx                         | 2
\sin^2 x+\cos^2 y                       | 1
\sin^2 x-\cos^2 x                       | 1
x^2-x+5                                 | 5
\sin 30^\circ                           | \sin 30
\sin 30                                 | \frac12
2\boldsymbol{5}                         | 10
\textcolor{red}{6}                      | 5
\textcolor{5}{6}                        | 5
# sets of solutions
x<1 \text{ or } x>3                     | (-\infty,1]\cup(3,\infty)
x<1 \text{ or } y>3                     | (-\infty,1)\cup(3,\infty)
x<1 \text{ or } x>3                     | y<1 \text{ or } y>3
x<1 \text{ and } x>3                    | (-\infty,1)\cup(3,\infty)
\mathbb{R}                              | [0,\infty)
\mathbb{R}                              | R
\text{all real numbers except } 0       | \mathbb{R}
\text{no solution}                      | 0
\emptyset                               | \{0\}
\{x\mid x>3\}                           | [3,\infty)
\{x\mid y>3\}                           | (3,\infty)
\mathbb{R}\backslash\{0\}               | \mathbb{R}\backslash\{1\}
\mathbb{R}\backslash\{0\}               | \mathbb{R}
x\neq 0                                 | 0
x\neq 0                                 | (0,\infty)
x\neq 0                                 | y\neq 0
]1,2[                                   | [1,2]
# other notation
{10 \choose 3}                          | 10
0.\dot{3}                               | 0.3
\sqrt[3]{-8}                            | 2
\sqrt{-4}                               | -2
\lg 100                                 | \ln 100
(52)_8                                  | 52_9
AB_{16}                                 | BA_{16}
2\begin{pmatrix}1\\2\end{pmatrix}       | \begin{pmatrix}1\\2\end{pmatrix}
\left[\begin{matrix}1\\2\end{matrix}\right] | \begin{pmatrix}1&2\end{pmatrix}
\text{Alice, Bob}                       | \text{Alice, Carl}
\text{(A) and (B)}                      | A,C
\text{5 apples}                         | 6
3!!                                     | 720
5 \& 6                                  | 5
"""
