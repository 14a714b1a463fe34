"""The math and QA verifiers against tables of what a careful human grader would say."""

import random
import time

import pytest

from data import split_response, text_key, verify_math, verify_qa

# (what stands after ####, the reference)
RIGHT_NUMBERS = [
    ("20 sq. ft", "20"), ("6 p.m.", "6"), ("Rs. 500", "500"), ("33 ≈ 33.1", "33"),
    ("72", "72"), (" 72", "72"), ("72.", "72"), ("72.0", "72"), ("072", "72"), ("+72", "72"), ("72 clips", "72"),
    ("$72", "72"), ("72$", "72"), ("$18.00", "18"), ("18 dollars per day", "18"), ("$18 a day", "18"),
    ("$18/day", "18"), ("USD 18", "18"), ("€18", "18"), ("18 USD", "18"), ("1,234", "1234"),
    ("$1,234,567.00", "1234567"), ("1 234 567", "1234567"), (r"10{,}000", "10000"), (r"10,\!000", "10000"),
    ("-5", "-5"), ("−5", "-5"), ("- 5", "-5"), ("negative 5", "-5"), ("-$5", "-5"), ("$-5", "-5"), ("50%", "50"),
    ("50 percent", "50"), (r"50\%", "50"), ("50%", "0.5"), ("0.5", r"50\%"), ("0.5", "1/2"), ("1/2", "0.5"),
    (".5", "0.5"), ("2 1/2", "2.5"), ("-2 1/2", "-2.5"), ("2½", "2.5"), ("½", "0.5"), ("2 and 1/2", "2.5"),
    ("3.0e2", "300"), ("1.5 x 10^3", "1500"), ("1.5×10³", "1500"), ("3e-2", "0.03"), ("**42**", "42"),
    ("**42** apples", "42"), ("`42`", "42"), ("$42$", "42"), (r"\(42\)", "42"), (r"\[42\]", "42"), ("４２", "42"),
    ("x = 5", "5"), ("5 = x", "5"), ("3*4 = 12", "12"), ("48 + 24 = 72 clips", "72"), ("3 x 4 = 12", "12"),
    ("x = 3 + 4 = 7", "7"), ("5 = 5", "5"), ("The answer is 72.", "72"), ("Answer: 72", "72"),
    ("Natalia sold 72 clips", "72"), ("She has $72 left.", "72"), ("Total = $72", "72"), ("5 million", "5000000"),
    ("90°", "90"), ("20 °C", "20"), ("90 degrees", "90"), ("5 cm^2", "5"), ("5 m", "5"), ("5kg", "5"),
    ("5 miles/hour", "5"), ("5 m/s", "5"), ("25 square feet", "25"), ("\n72", "72"), ("72\n\nI hope this helps!", "72"),
    ("72</s>", "72"), ("72<|im_end|>", "72"), ("<<48+24=72>>72", "72"), ("0.30000000000000004", "0.3"),
    ("0.3333333333333333", "1/3"), ("3 + 4", "7"), ("2^10", "1024"), ("2**10", "1024"), ("10/4", "2.5"), ("-0", "0"),
    ("(72)", "72"), ("1e3", "1000"), ("21st", "21"), ("=> 72", "72"), ("3/4 cup", "0.75"), ("14.80", "14.8"),
    ("72 (total)", "72"), ("5 #### 6", "6"),
    ("18 left over", "18"), ("25 squared feet", "25"), ("3/8 of a pizza", "0.375"),
    ("Janet makes $18 every day at the farmers' market.", "18"), ("$1,250.75", "1250.75"), ("18 (eggs)", "18"),
]
WRONG_NUMBERS = [
    ("5 or 6", "5"), ("6 or 5", "5"), ("5, 6", "5"), ("5,6", "5"), ("5 and 6", "5"), ("5/6", "5"), ("5-6", "5"),
    ("5 to 6", "5"), ("between 5 and 6", "5"), ("5; 6", "6"), ("5 6", "6"), ("5 6", "56"), ("5\n6", "5"),
    ("5\nor 6", "5"), ("5 #### 6", "5"), ("5 or #### 6", "6"), ("", "5"), (" ", "5"), ("\n\n", "5"), ("", ""),
    ("?", "5"), ("-5", "5"), ("5", "-5"), ("negative 5", "5"), ("minus 5", "5"), ("not 5", "5"), ("maybe 5", "5"),
    ("about 5", "5"), ("less than 5", "5"), ("5 or more", "5"), ("~5", "5"), ("≈5", "5"), ("5 and a half", "5"),
    ("5 hours and 30 minutes", "5"), ("5 hours 30 minutes", "5"), ("5 million", "5"), ("2 1/2", "2"), ("2 1/2", "21/2"),
    ("0.333", "1/3"), ("3.14", r"\pi"), ("1,23", "123"), ("1,2345", "12345"), ("72.5", "72"), ("7.2", "72"),
    ("1.2.3", "1.2"), ("1234", "234"), ("5!", "5"), ("5x", "5"), ("3xyz", "3"), ("x", "5"), ("none", "5"),
    ("0.5", "50"), ("0.5%", "50"), ("50%", "5000"), ("0.05", r"50\%"), ("five", "5"), ("9**9**9**9", "9"),
    ("1e999999", "1"), ("10^10^10", "10"), ("nan", "nan5"), ("inf", "5"), ("1/0", "0"), ("3*4 = 13", "13"),
    ("3x = 15", "15"), ("x > 5", "5"), ("5 is wrong", "5"), ("5. Wait, that is 6", "5"), ("5\nActually it is 6", "5"),
    ("I do not know", "5"), ("1" * 301, "1"), ("5:30", "5"), ("__import__('os')", "0"), ("[5, 5]", "5"),
    ("it could be 5", "5"), ("twice 5", "5"), ("5 squared", "5"), ("over 5", "5"), ("5 halves", "5"), ("up to $5", "5"),
    ("5 (or 6)", "5"),
    ("5? No, 6", "5"), ("5 times 2", "5"), ("% 5", "no idea what this is about at all"), ("5 -> 6", "5"), ("5k", "5"),
    ("5 if x else 6", "5"), ("5 ± 1", "5"), ("5 +", "5"), ("5 6", "30"), ("1" * 301, "1" * 301),
]
# (what stands in \boxed{...}, the reference)
RIGHT_LATEX = [
    (r"\frac{3}{4}", "0.75"), (r"\frac34", r"\frac{3}{4}"), (r"\dfrac{3}{4}", "3/4"), (r"\tfrac{6}{8}", r"\frac{3}{4}"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"), (r"\frac1{12}", "1/12"), (r"1\frac{1}{2}", "1.5"), (r"-1\frac12", "-3/2"),
    (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}"), (r"\sqrt{2}/2", r"\frac{\sqrt{2}}{2}"), ("√2", r"\sqrt{2}"),
    (r"\sqrt{8}", r"2\sqrt2"), (r"\sqrt{16}", "4"), (r"\sqrt[3]{27}", "3"), (r"\sqrt[3]{-8}", "-2"),
    (r"2\pi", r"\pi\cdot 2"), ("2π", r"2\pi"), (r"\frac{\pi}{4}", r"\pi/4"),
    (r"\frac{\frac{1}{2}}{\frac{3}{4}}", r"\frac{2}{3}"), (r"2^{10}", "1024"), (r"2^{-1}", "0.5"),
    (r"8^{\frac13}", "2"), (r"e^{2}", "e^2"), (r"3 \times 10^{4}", "30000"), (r"5!", "120"), (r"\binom{5}{2}", "10"),
    (r"\log_2 8", "3"), (r"\sin 30^\circ", r"\frac12"), (r"\cos\frac{\pi}{3}", "0.5"), (r"\ln e^2", "2"),
    (r"|-5|", "5"), (r"0.\overline{3}", r"\frac13"), (r"90^\circ", "90"), (r"90^{\circ}", r"90^\circ"),
    (r"5\text{ cm}", "5"), (r"5\,\text{cm}^2", "5"), (r"5~\mathrm{km/h}", "5"),
    (r"12\pi \text{ square units}", r"12\pi"), (r"\$18", "18"), (r"50\%", "50"), (r"\left(1, 2\right)", "(1,2)"),
    (r"(1,\frac{1}{2})", "(1, 0.5)"), (r"(3, \frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)"),
    (r"\{1,2\}", r"\{2, 1\}"), (r"\left\{1,2\right\}", r"\{1,2\}"), (r"1, 2", "2,1"), (r"1 \text{ and } 2", "1, 2"),
    ("x = 1 or x = 2", "1,2"), (r"\{1,2\}", "1,2"), (r"[1,2)", "[1, 2)"), (r"x \in [1,2]", "[1,2]"),
    (r"(-\infty, 3]", r"(-\infty,3]"), (r"x \le 3", r"(-\infty,3]"), (r"1 < x \leq 2", "(1,2]"), (r"3 < x", r"x > 3"),
    (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty) \cup (-\infty,1)"), (r"(-∞, 2)", r"(-\infty, 2)"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\\\end{bmatrix}"),
    (r"\begin{pmatrix} 0.5 \\ 2 \end{pmatrix}", r"\begin{pmatrix}\frac{1}{2}\\2\end{pmatrix}"), (r"101_2", "101_{2}"),
    (r"x = 5", "5"), (r"5", "x=5"), (r"x=5.0", "x = 5"), (r"y = 2x + 3", "y=3+2x"), (r"2x + 3", "y = 2x+3"),
    (r"y - 2x = 3", "y = 2x + 3"), (r"f(x) = x^2", "x^2"), (r"x^2+2x+1", "(x+1)^2"), (r"(x-1)(x+1)", "x^2 - 1"),
    (r"\frac{x+1}{2}", r"\frac{1}{2}x + \frac12"), (r"2(x+y)", "2x+2y"), (r"xy", "yx"), (r"\frac{x^2-1}{x+1}", "x-1"),
    (r"x^{2}y^{-1}", r"\frac{x^2}{y}"), (r"\sqrt{x}\cdot 3", r"3\sqrt{x}"), (r"\alpha + 1", r"1+\alpha"),
    (r"a_1 + a_2", "a_2+a_{1}"), (r"\sin^2 x + \cos^2 x", "1"), (r"x^2 + y^2 = 25", "y^2 + x^2 = 25"),
    (r"1 \pm \sqrt{2}", r"1+\sqrt2, 1-\sqrt2"), (r"\pm 3", "3, -3"), (r"x = \pm 3", r"\pm 3"), (r"3 + 4i", "4i+3"),
    (r"(1+i)^2", "2i"), (r"\text{Monday}", "Monday"), (r"\text{monday}.", "Monday"), (r"\text{(B)}", "B"),
    (r"(B)", r"\text{B}"), (r"\textbf{(B)}", "B"), (r"\text{No solution}", "no solution"),
    (r"\text{even}", r"\text{even}"), (r"\infty", "∞"), (r"\emptyset", r"\varnothing"), ("3:2", "3 : 2"),
    (r"10,\!000", "10000"), (r"\boxed{7}", "7"), (r"\dfrac{1}{2}\,\text{ mile}", "0.5"),
    (r"4\sqrt{3}\ \text{cm}", r"4\sqrt{3}"), (r"m\angle A = 30^\circ", "30"), (r"\frac{9 \pi}{2}", r"4.5\pi"),
    (r"\text{June 20}", "June 20"), (r"2^{2/3}", r"\sqrt[3]{4}"), (r"\sqrt{3}-1, -\sqrt{3}-1", r"-1\pm\sqrt{3}"),
    (r"(0, 9), (9, 0)", "(9,0),(0,9)"), (r"\frac{5\pi}{6}\text{ radians}", r"\frac{5 \pi}{6}"), (r"4\frac12", "9/2"),
]
WRONG_LATEX = [
    (r"\frac{3}{4}", "4/3"), (r"\frac{1}{2}", "2"), (r"\sqrt{2}", "2"), (r"\sqrt{2}", "1.414"), (r"2\pi", r"\pi"),
    (r"2\pi", "6.28"), (r"1\frac12", r"\frac12"), (r"x^2", "2x"), ("(1,2)", "(2,1)"), ("[1,2]", "[1,2)"),
    ("(1,2)", "[1,2]"), ("1,2", "(1,2)"), ("(1,2,3)", "(1,2)"), (r"\{1,2\}", r"\{1,2,3\}"), (r"\{1,2\}", "1"),
    ("1, 2", "1"), ("1", "1, 2"), (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"), ("101_2", "101_3"), ("101_2", "5"),
    ("101", "101_2"), ("x = 6", "5"), ("y = 5", "x = 5"), ("x = 2y + 3", "y = 2x+3"), ("y=2x+3", "y=2x+4"),
    ("2x+3", "2x-3"), (r"x+1", "1"), (r"|x|", "x"), (r"\sqrt{x^2}", "x"), (r"(x+1)^2", "x^2+1"), (r"\pm 3", "3"),
    ("3", r"\pm 3"), (r"3 \pm 1", "4"), (r"3+4i", "3-4i"), (r"\infty", r"-\infty"), (r"x < 3", r"x \le 3"),
    (r"x > 3", "x < 3"), (r"\text{Tuesday}", "Monday"), (r"\text{not Monday}", "Monday"),
    (r"\text{Monday or Tuesday}", "Monday"), ("C", "B"), (r"5 \text{ or } 6", "5"), ("", "5"), (r"\approx 5", "5"),
    (r"x \neq 5", "5"), ("3:2", "2:3"), (r"\frac{1}{0}", "0"), (r"10^{10^{10}}", "10"), (r"\sin x", r"\cos x"),
    ("2x", "2y"), ("a_1", "a_2"), (r"5\sqrt{2}", r"\sqrt{10}"), (r"e^{x}", "x^e"), (r"\log 100", r"\ln 100"),
    (r"0.\overline{3}", "0.3"), (r"(-\infty,1)\cup(2,\infty)", r"(-\infty,1)\cup[2,\infty)"), (r"2^{10}", "20"),
    (r"\frac{x}{y}", r"\frac{y}{x}"), (r"\pi", "355/113"), ("101_2", "12_3"), (r"0 \cdot \infty", r"\infty - \infty"),
    ("(0,9)", "(0,9),(9,0)"), (r"3\times2", "(3,2)"), (r"5, \ldots, 10", "10"), (r"2 \text{ (extraneous: } 3)", "3"),
    (r"\text{All reals except }2", "2"), (r"4\cdot\frac12", r"4\frac12"), (r"a/b+c", r"\frac{a}{b+c}"),
    ("June 21", "June 20"),
]
# (the whole response, the reference, its reward)
RESPONSES = [
    ("It is 5, surely 5.", "5", 0), ("The answer is 42", "42", 0), ("5", "5", 0), ("", "5", 0),
    (r"\boxed{6} is. " * 20 + r"\boxed{5}", "5", 1), (r"\boxed{5} is it.", "5", 1),
    (r"\boxed{6}, no: \boxed{5}", "5", 1), (r"\boxed{5} #### 6", "6", 1), (r"\boxed{5} #### 6", "5", 0),
    (r"#### 6 \boxed{5}", "5", 1), (r"#### \boxed{5}", "5", 1), (r"\boxed 5", "5", 1), (r"\boxed{ 5", "5", 0),
    (r"\fbox{5}", "5", 1), (r"$x=\boxed{5}$.", "5", 1), (r"\boxed{5} or \boxed{6}", "6", 0),
    (r"\boxed{5} or \boxed{6}", "5, 6", 1), (r"\boxed{5}, \boxed{6}", "6", 0), (r"\boxed{5} or 6", "5", 0),
    (r"$\boxed{5}$ is not right, it is 6", "5", 0), (r"\boxed{5}?? I think 6", "5", 0), ("isn’t \\boxed{5}", "5", 0),
    (r"\boxed{5}\text{ or }6", "5", 0), (r"\boxed{5} is not an odd one, as 5.", "5", 1),
    (r"either \boxed{5}", "5", 0), (r"not \boxed{5}", "5", 0), (r"\boxed{5}. Wait, \boxed{6}?", "5", 0),
    (r"\boxed{5} Wait, that is 6.", "5", 0), (r"$-\boxed{5}$", "5", 0), (r"\boxed{\text{It is }5}", "5", 1),
    (r"\boxed{\{1,2\}}", r"\{1,2\}", 1), ("#### 5\n#### 6", "5", 0), ("####5", "5", 1), ("### 5", "5", 0),
    ("#### 5\n####", "5", 0), (r"\boxed{5} \boxed{}", "5", 0),
    ("### Answer\n\\[\n\\boxed{\\dfrac{1}{2}}\n\\]", "0.5", 1), ("####\n\\[\n\\frac{1}{2}\n\\]", "0.5", 1),
]
MATH = ([("so\n####" + final, answer, 1) for final, answer in RIGHT_NUMBERS]
        + [("#### " + final, answer, 0) for final, answer in WRONG_NUMBERS]
        + [(rf"so $\boxed{{{final}}}$.", answer, 1) for final, answer in RIGHT_LATEX]
        + [(rf"$\boxed{{{final}}}$", answer, 0) for final, answer in WRONG_LATEX] + RESPONSES)

RIGHT_QA = [  # all for B
    "B - Paris", "I choose B.", "Option B", "#### B) Both A and C", "#### B (not A)", "<answer>B</answer>", "Answer B",
    "#### B", "####B", "#### (B)", "#### B)", "#### B.", "#### B) Paris", "#### B. Paris", "#### B: Paris",
    "#### B Paris", "#### b", "#### (b)", "#### b) paris", "#### **B**", "#### **B) Paris**", "#### [B]",
    "#### Answer: B", "#### The answer is B", "#### option B", r"#### \boxed{B}", r"\boxed{B}", r"\boxed{\text{B}}",
    r"\boxed{(B)}", r"$\boxed{\textbf{(B)}}$", r"\boxed{B) Paris}", r"\boxed{b}", "B", "(B)", "B.", "B)", "B) Paris",
    "**B**", "**B) Paris**", "b", "The answer is B", "The answer is B.", "the answer is: B", "The answer is (B).",
    "The answer is **B**.", "**Answer:** B", "**Answer: B**", "Answer: b", "answer = B",
    "The correct answer is B) Paris.", "The answer is option B.", "The correct option is B.", "Option B is correct.",
    "B is the correct answer.", "The best choice is B because Paris is in France.", "A is dry, C is wet.\n#### B",
    "The answer is A. No, the answer is B.", "#### A\n#### B", "The answer is A\n#### B", "#### B, because A is wrong",
    "The answer is B, not A.", "I think of a dog.\n\n#### B", "So the correct one is **B**.", "I would pick (B).",
    "B\n\nParis is the capital.", "####\nB", "Answer：Ｂ", "#### B) A dog", "The answer is definitely B.",
    "The answer would be B", "#### 'B'", "#### Paris (B)", "#### B</s>",
    "#### (B) I and II only", "#### B) is not soluble", "#### B. No, because it is illegal.",
    "#### B) None of the above",
    "(A) Iron.\n(B) Wood.\n\nSo the correct answer is:\n\n**(B) Wood**", "#### B) either rain or snow",
    "The answer to the question is B.", "Therefore, B is the answer.", "#### B.Paris",
]
WRONG_QA = [  # (response, reference): all earn nothing
    ("#### A", "B"), ("#### B or C", "B"), ("#### B and C", "B"), ("#### B/C", "B"), ("#### B, C", "B"),
    ("#### B, C", "C"), ("#### B C", "B"), ("#### A or B", "B"), ("#### (A) or (B)", "A"), ("#### B & C", "B"),
    ("#### BC", "B"), ("#### B\nC", "B"), ("#### B) Paris or C) Rome", "B"), ("#### A) Oslo B) Paris C) Rome", "A"),
    ("#### none", "E"), ("#### None of the above", "A"), ("####", "A"), ("", "A"), ("#### ", "B"), ("#### Paris", "A"),
    ("#### Bob", "B"), ("#### banana", "B"), ("#### a dog", "A"), ("The answer is a dog.", "A"),
    ("The answer is a\tdog", "A"), ("#### I think so", "I"), ("I am sure.", "I"), ("A dog barks.", "A"),
    ("The answer is I think clear.", "I"), ("The answer is not B.", "B"), ("#### not B", "B"),
    ("The answer isn't B.", "B"), ("The answer is neither A nor B.", "B"), ("The answer is either A or B.", "A"),
    ("The answer is A or B.", "B"), ("The answer is B or maybe C.", "B"), ("both A and B", "A"),
    ("#### both A and B", "A"), ("#### K", "K"), ("#### 2", "B"), ("#### B. Wait, it is C.", "B"),
    ("#### B\nActually C", "B"), ("A) Oslo\nB) Paris\nC) Rome", "C"), ("A) Oslo\nB) Paris", "B"),
    ("#### A\n#### none", "A"), ("It could be B.", "A"), ("#### B1", "B"), ("#### B's", "B"), (r"\boxed{A, B}", "A"),
    (r"\boxed{}", "A"), (r"\boxed{A} or \boxed{B}", "B"), ("A, B", "A"), ("A or B", "B"), ("**A** or **B**", "B"),
    ("The answer is unclear", "A"), ("The answer is B\n#### none", "B"), ("#### The answer is not A", "A"),
    ("the choice is yours", "C"), ("#### A, B, C, D", "D"), ("#### Oslo (A), Paris (B)", "A"),
    ("The answer is B. But no, the answer is neither.", "B"), ("The answer is B? No, it is C.", "B"),
    ("#### B vs C", "B"),
    ("The answer is B. No, it is C.", "B"), ("#### B is wrong", "B"), ("#### B? Or C?", "B"), ("(B) is incorrect", "B"),
    ("The answer is certainly not (B).", "B"), ("The answer isn't (B)", "B"), ("The answer isn’t (B).", "B"),
    ("Is the answer B?", "B"), ("#### anything but B", "B"), ("#### A, I", "A"), ("#### A.M. hours", "A"),
    ("No answer is B", "B"),
    ("The answer is never B", "B"),
]


@pytest.mark.parametrize("response, answer, reward", MATH)
def test_math_table(response, answer, reward):
    assert verify_math(response, answer) == reward


QA = [(response, "B", 1) for response in RIGHT_QA] + [(*case, 0) for case in WRONG_QA]


@pytest.mark.parametrize("response, answer, reward", QA)
def test_qa_table(response, answer, reward):
    assert verify_qa(response, answer) == reward


@pytest.mark.parametrize("same", [
    ["#### 1,000", "#### $1000.00", "#### 1000", r"\boxed{10^3}", "#### x = 1000 clips"],
    [r"\boxed{\frac12}", "#### 0.5", "#### 1/2"],
    [r"\boxed{x^2-1}", r"\boxed{(x+1)(x-1)}"], [r"\boxed{1, 2}", r"\boxed{\{2, 1\}}"],
    [r"\boxed{\text{Monday}}", "#### monday"],
    ["#### 2e400", "#### 20e399"]])
def test_equal_answers_have_one_math_key(same):
    keys = {text_key(response, "math") for response in same}
    assert len(keys) == 1 and None not in keys


def test_keys_tell_answers_apart_and_are_none_without_one():
    finals = [
    "5", "-5", "0.5", "5x", r"\pi", "(1,2)", "(2,1)", "[1,2)", r"\{1,2\}", "Monday", r"\sqrt2", "1.41421356", "3i",
]
    assert len({text_key(rf"\boxed{{{final}}}", "math") for final in finals}) == len(finals)
    unanswered = ("5", "####", r"\boxed{}", "#### I really do not know what it is, sorry")
    assert [text_key(response, "math") for response in unanswered] == [None] * 4
    assert [text_key(r, "qa") for r in ("#### b", "The answer is (B).", "#### A or B", "")] == ["B", "B", None, None]


@pytest.mark.parametrize("response, domain, parts", [
    ("6 * 7\n#### 42 eggs\nBye", "math", ("6 * 7\n", "42 eggs")),
    (r"so $\boxed{\frac{1}{2}}$.", "math", ("so $", r"\frac{1}{2}")), ("no marker: 42", "math", ("no marker: 42", "")),
    ("#### 1\n#### 2", "math", ("#### 1\n", "2")), (r"#### 1 \boxed{2}", "math", ("#### 1 ", "2")),
    ("why\n####", "math", ("why\n", "")), ("", "math", ("", "")),
    ("Paris.\n#### B) Paris", "qa", ("Paris.\n", "B) Paris")),
    ("I say so. The answer is B.", "qa", ("I say so. The ", "B.")), ("who knows", "qa", ("who knows", "")),
    ("B", "qa", ("", "B")), ("so\n```python\nx = 1\n```\n", "code", ("so\n", "x = 1\n")),
    ("x = 1", "code", ("", "x = 1")),
])
def test_split(response, domain, parts):
    assert split_response(response, domain) == parts


def test_references_of_any_kind_do_not_raise():
    answers = ("", "####", "{", "no idea what this is about at all", "5" * 999)
    assert [verify_math("#### 5", answer) for answer in answers] == [0.0] * 5


HOSTILE = [
    "9**9**9**9", "9^{9^8}", "1e999999999", r"10^{10^{10}}", "9^" * 99 + "9", "1e99999", "1e9999", r"\frac" * 70 + "1",
    r"\frac{" * 60, r"\sqrt{" * 40 + "2" + "}" * 40, "(" * 140 + "1" + ")" * 140, "-" * 290 + "1",
    "{" * 140 + "1" + "}" * 140, "[" * 299, r"\{" * 99, "|" * 299, "1,000" * 50, "1/0", "0^{-1}", "200!!!!",
    "999999999!", r"\binom{999999}{3}", r"\infty - \infty", r"\ln 0", "٣", "५", "²³", "½" * 99, "\0", "\ud800",
    "5\udfff", "ﷺ" * 99, "a_" * 99, "1_1", "5_0", "7_99", "__import__('os').system('true')", "(lambda: 5)()",
    "[x for x in y]", "x" * 300, "1" * 300, "." * 300, r"\begin{matrix}" * 20, r"\matrix \matrix", r"\end", "&", r"\\",
    "'5'", '"5', "5\"", r"\pm" * 99, r"x^{x^{x^{x}}}", "9^{9^{9}} x", "=" * 99, "<" * 99, ":" * 99, r"\cup" * 70,
    r"\in", "1 = " * 70 + "1", "(1,2)^(3,4)", r"\boxed{" * 40, "#" * 299, "𝟝", "e^{e^{e^{e^9}}}", "i^{i^i}",
    "0.\\overline{" + "3" * 280 + "}", "4^{0.5", "1e400 * x", "(-8)^{1/3}", "**" * 100, "<<" * 100, "~" * 200,
    "`" * 200,
]


def judge(response):
    """All there is in one call, within the second that one response may take."""
    start = time.process_time()
    verify_math(response, "5")
    verify_qa(response, "B")
    for domain in ("math", "qa"):
        split_response(response, domain)
        text_key(response, domain)
    assert time.process_time() - start < 1, repr(response[:300])


@pytest.mark.parametrize("final", HOSTILE)
def test_hostile_answers_cost_little_and_earn_nothing(final):
    for response in (f"#### {final}", rf"\boxed{{{final}}}", f"The answer is {final}", final):
        judge(response)
    assert verify_math(f"#### {final}", "5") == (final in ("'5'", '"5', '5"', "𝟝"))
    verify_math("#### 5", final)


@pytest.mark.parametrize("unit", [
    "#### 5", r"\boxed{", r"\boxed{5}", "9", "(", "the answer is ", "A) ", "####", "\n", " ", "**", "not ", "or ", "{",
    "a", r"\frac{1}{2}", "answer: B\n", "answer ", "ﷺ", "_", "(B) ", "is ", r"\boxed ", "\r", "A\n"])
def test_long_responses_are_bounded(unit):
    long = unit * (300_000 // len(unit))
    for response in (long, "#### 5\n" + long, "####" + long, long + r"\boxed{5}", "The answer is " + long):
        judge(response)


def test_random_strings_never_raise():
    rng, finals = random.Random(0), [final for final, _ in RIGHT_LATEX + WRONG_LATEX + RIGHT_NUMBERS] + HOSTILE
    pieces = list("0123456789xyabeiAI+-*/^_=<>()[]{}|&%$!,.;: \\\n\0\ud800٣²½√π∞−#'\"°") + [
        r"\frac", r"\sqrt", r"\left", r"\text{", r"\boxed{", r"\pm", r"\cup",
        r"\begin{pmatrix}", r"\end{pmatrix}", r"\sin", r"\log_", r"\overline{", "####", "or", "answer is"]
    for _ in range(1500):
        final = list(rng.choice(finals)[:290])
        for _ in range(rng.randrange(6)):
            place = rng.randrange(len(final) + 1)
            final[place: place + rng.randrange(3)] = rng.choices(pieces, k=rng.randrange(4))
        judge(rng.choice(["#### ", r"\boxed{", ""]) + "".join(final) + "}")
        judge("".join(rng.choices(pieces, k=rng.randrange(60))))
