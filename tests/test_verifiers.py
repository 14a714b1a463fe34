"""The math and QA verifiers against tables of what a careful human grader would say."""

import random
import time
from dataclasses import replace

import pytest

from data import Task, answer_key, split_response, verify, verify_math, verify_qa
from support.answers import opened_thought

# (what stands after ####, the reference)
RIGHT_NUMBERS = [
    ("20 sq. ft", "20"), ("6 p.m.", "6"), ("Rs. 500", "500"), ("33 ≈ 33.1", "33"), ("72", "72"),
    (" 72", "72"), ("72.", "72"), ("72.0", "72"), ("072", "72"), ("+72", "72"), ("72 clips", "72"),
    ("$72", "72"), ("72$", "72"), ("$18.00", "18"), ("18 dollars per day", "18"), ("$18 a day", "18"),
    ("$18/day", "18"), ("USD 18", "18"), ("€18", "18"), ("18 USD", "18"), ("1,234", "1234"),
    ("$1,234,567.00", "1234567"), ("1 234 567", "1234567"), (r"10{,}000", "10000"), (r"10,\!000", "10000"),
    ("-5", "-5"), ("−5", "-5"), ("- 5", "-5"), ("negative 5", "-5"), ("-$5", "-5"), ("$-5", "-5"),
    ("50%", "50"), ("50 percent", "50"), (r"50\%", "50"), ("50%", "0.5"), ("0.5", r"50\%"), ("0.5", "1/2"),
    ("1/2", "0.5"), (".5", "0.5"), ("2 1/2", "2.5"), ("-2 1/2", "-2.5"), ("2½", "2.5"), ("½", "0.5"),
    ("2 and 1/2", "2.5"), ("3.0e2", "300"), ("1.5 x 10^3", "1500"), ("1.5×10³", "1500"), ("3e-2", "0.03"),
    ("**42**", "42"), ("**42** apples", "42"), ("`42`", "42"), ("$42$", "42"), (r"\(42\)", "42"),
    (r"\[42\]", "42"), ("４２", "42"), ("x = 5", "5"), ("5 = x", "5"), ("3*4 = 12", "12"),
    ("48 + 24 = 72 clips", "72"), ("3 x 4 = 12", "12"), ("x = 3 + 4 = 7", "7"), ("5 = 5", "5"),
    ("The answer is 72.", "72"), ("Answer: 72", "72"), ("Natalia sold 72 clips", "72"),
    ("She has $72 left.", "72"), ("Total = $72", "72"), ("5 million", "5000000"), ("90°", "90"),
    ("20 °C", "20"), ("90 degrees", "90"), ("5 cm^2", "5"), ("5 m", "5"), ("5kg", "5"),
    ("5 miles/hour", "5"), ("5 m/s", "5"), ("25 square feet", "25"), ("\n72", "72"),
    ("72\n\nI hope this helps!", "72"), ("72</s>", "72"), ("72<|im_end|>", "72"), ("<<48+24=72>>72", "72"),
    ("0.30000000000000004", "0.3"), ("0.3333333333333333", "1/3"), ("3 + 4", "7"), ("2^10", "1024"),
    ("2**10", "1024"), ("10/4", "2.5"), ("-0", "0"), ("(72)", "72"), ("1e3", "1000"), ("21st", "21"),
    ("=> 72", "72"), ("3/4 cup", "0.75"), ("14.80", "14.8"), ("72 (total)", "72"), ("5 #### 6", "6"),
    ("18 left over", "18"), ("25 squared feet", "25"), ("3/8 of a pizza", "0.375"),
    ("Janet makes $18 every day at the farmers' market.", "18"), ("$1,250.75", "1250.75"),
    ("18 (eggs)", "18"),
]
WRONG_NUMBERS = [
    ("5 or 6", "5"), ("6 or 5", "5"), ("5, 6", "5"), ("5,6", "5"), ("5 and 6", "5"), ("5/6", "5"),
    ("5-6", "5"), ("5 to 6", "5"), ("between 5 and 6", "5"), ("5; 6", "6"), ("5 6", "6"), ("5 6", "56"),
    ("5\n6", "5"), ("5\nor 6", "5"), ("5 #### 6", "5"), ("5 or #### 6", "6"), ("", "5"), (" ", "5"),
    ("\n\n", "5"), ("", ""), ("?", "5"), ("-5", "5"), ("5", "-5"), ("negative 5", "5"), ("minus 5", "5"),
    ("not 5", "5"), ("maybe 5", "5"), ("about 5", "5"), ("less than 5", "5"), ("5 or more", "5"), ("~5", "5"),
    ("≈5", "5"), ("5 and a half", "5"), ("5 hours and 30 minutes", "5"), ("5 hours 30 minutes", "5"),
    ("5 million", "5"), ("2 1/2", "2"), ("2 1/2", "21/2"), ("0.333", "1/3"), ("3.14", r"\pi"),
    ("1,23", "123"), ("1,2345", "12345"), ("72.5", "72"), ("7.2", "72"), ("1.2.3", "1.2"), ("1234", "234"),
    ("5!", "5"), ("5x", "5"), ("3xyz", "3"), ("x", "5"), ("none", "5"), ("0.5", "50"), ("0.5%", "50"),
    ("50%", "5000"), ("0.05", r"50\%"), ("five", "5"), ("9**9**9**9", "9"), ("1e999999", "1"),
    ("10^10^10", "10"), ("nan", "nan5"), ("inf", "5"), ("1/0", "0"), ("3*4 = 13", "13"), ("3x = 15", "15"),
    ("x > 5", "5"), ("5 is wrong", "5"), ("5. Wait, that is 6", "5"), ("5\nActually it is 6", "5"),
    ("I do not know", "5"), ("1" * 301, "1"), ("5:30", "5"), ("__import__('os')", "0"), ("[5, 5]", "5"),
    ("it could be 5", "5"), ("twice 5", "5"), ("5 squared", "5"), ("over 5", "5"), ("5 halves", "5"),
    ("up to $5", "5"), ("5 (or 6)", "5"), ("5? No, 6", "5"), ("5 times 2", "5"),
    ("% 5", "no idea what this is about at all"), ("5 -> 6", "5"), ("5k", "5"), ("5 if x else 6", "5"),
    ("5 ± 1", "5"), ("5 +", "5"), ("5 6", "30"), ("1" * 301, "1" * 301),
]
# (what stands in \boxed{...}, the reference)
RIGHT_LATEX = [
    (r"\frac{3}{4}", "0.75"), (r"\frac34", r"\frac{3}{4}"), (r"\dfrac{3}{4}", "3/4"),
    (r"\tfrac{6}{8}", r"\frac{3}{4}"), (r"-\frac{1}{2}", r"\frac{-1}{2}"), (r"\frac1{12}", "1/12"),
    (r"1\frac{1}{2}", "1.5"), (r"-1\frac12", "-3/2"), (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"\sqrt{2}/2", r"\frac{\sqrt{2}}{2}"), ("√2", r"\sqrt{2}"), (r"\sqrt{8}", r"2\sqrt2"),
    (r"\sqrt{16}", "4"), (r"\sqrt[3]{27}", "3"), (r"\sqrt[3]{-8}", "-2"), (r"2\pi", r"\pi\cdot 2"),
    ("2π", r"2\pi"), (r"\frac{\pi}{4}", r"\pi/4"), (r"\frac{\frac{1}{2}}{\frac{3}{4}}", r"\frac{2}{3}"),
    (r"2^{10}", "1024"), (r"2^{-1}", "0.5"), (r"8^{\frac13}", "2"), (r"e^{2}", "e^2"),
    (r"3 \times 10^{4}", "30000"), (r"5!", "120"), (r"\binom{5}{2}", "10"), (r"\log_2 8", "3"),
    (r"\sin 30^\circ", r"\frac12"), (r"\cos\frac{\pi}{3}", "0.5"), (r"\ln e^2", "2"), (r"|-5|", "5"),
    (r"0.\overline{3}", r"\frac13"), (r"90^\circ", "90"), (r"90^{\circ}", r"90^\circ"), (r"5\text{ cm}", "5"),
    (r"5\,\text{cm}^2", "5"), (r"5~\mathrm{km/h}", "5"), (r"12\pi \text{ square units}", r"12\pi"),
    (r"\$18", "18"), (r"50\%", "50"), (r"\left(1, 2\right)", "(1,2)"), (r"(1,\frac{1}{2})", "(1, 0.5)"),
    (r"(3, \frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)"), (r"\{1,2\}", r"\{2, 1\}"),
    (r"\left\{1,2\right\}", r"\{1,2\}"), (r"1, 2", "2,1"), (r"1 \text{ and } 2", "1, 2"),
    ("x = 1 or x = 2", "1,2"), (r"\{1,2\}", "1,2"), (r"[1,2)", "[1, 2)"), (r"x \in [1,2]", "[1,2]"),
    (r"(-\infty, 3]", r"(-\infty,3]"), (r"x \le 3", r"(-\infty,3]"), (r"1 < x \leq 2", "(1,2]"),
    (r"3 < x", r"x > 3"), (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty) \cup (-\infty,1)"),
    (r"(-∞, 2)", r"(-\infty, 2)"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\\\end{bmatrix}"),
    (r"\begin{pmatrix} 0.5 \\ 2 \end{pmatrix}", r"\begin{pmatrix}\frac{1}{2}\\2\end{pmatrix}"),
    (r"101_2", "101_{2}"), (r"x = 5", "5"), (r"5", "x=5"), (r"x=5.0", "x = 5"), (r"y = 2x + 3", "y=3+2x"),
    (r"2x + 3", "y = 2x+3"), (r"y - 2x = 3", "y = 2x + 3"), (r"f(x) = x^2", "x^2"), (r"x^2+2x+1", "(x+1)^2"),
    (r"(x-1)(x+1)", "x^2 - 1"), (r"\frac{x+1}{2}", r"\frac{1}{2}x + \frac12"), (r"2(x+y)", "2x+2y"),
    (r"xy", "yx"), (r"\frac{x^2-1}{x+1}", "x-1"), (r"x^{2}y^{-1}", r"\frac{x^2}{y}"),
    (r"\sqrt{x}\cdot 3", r"3\sqrt{x}"), (r"\alpha + 1", r"1+\alpha"), (r"a_1 + a_2", "a_2+a_{1}"),
    (r"\sin^2 x + \cos^2 x", "1"), (r"x^2 + y^2 = 25", "y^2 + x^2 = 25"),
    (r"1 \pm \sqrt{2}", r"1+\sqrt2, 1-\sqrt2"), (r"\pm 3", "3, -3"), (r"x = \pm 3", r"\pm 3"),
    (r"3 + 4i", "4i+3"), (r"(1+i)^2", "2i"), (r"\text{Monday}", "Monday"), (r"\text{monday}.", "Monday"),
    (r"\text{(B)}", "B"), (r"(B)", r"\text{B}"), (r"\textbf{(B)}", "B"),
    (r"\text{No solution}", "no solution"), (r"\text{even}", r"\text{even}"), (r"\infty", "∞"),
    (r"\emptyset", r"\varnothing"), ("3:2", "3 : 2"), (r"10,\!000", "10000"), (r"\boxed{7}", "7"),
    (r"\dfrac{1}{2}\,\text{ mile}", "0.5"), (r"4\sqrt{3}\ \text{cm}", r"4\sqrt{3}"),
    (r"m\angle A = 30^\circ", "30"), (r"\frac{9 \pi}{2}", r"4.5\pi"), (r"\text{June 20}", "June 20"),
    (r"2^{2/3}", r"\sqrt[3]{4}"), (r"\sqrt{3}-1, -\sqrt{3}-1", r"-1\pm\sqrt{3}"),
    (r"(0, 9), (9, 0)", "(9,0),(0,9)"), (r"\frac{5\pi}{6}\text{ radians}", r"\frac{5 \pi}{6}"),
    (r"4\frac12", "9/2"),
]
WRONG_LATEX = [
    (r"\frac{3}{4}", "4/3"), (r"\frac{1}{2}", "2"), (r"\sqrt{2}", "2"), (r"\sqrt{2}", "1.414"),
    (r"2\pi", r"\pi"), (r"2\pi", "6.28"), (r"1\frac12", r"\frac12"), (r"x^2", "2x"), ("(1,2)", "(2,1)"),
    ("[1,2]", "[1,2)"), ("(1,2)", "[1,2]"), ("1,2", "(1,2)"), ("(1,2,3)", "(1,2)"),
    (r"\{1,2\}", r"\{1,2,3\}"), (r"\{1,2\}", "1"), ("1, 2", "1"), ("1", "1, 2"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"), ("101_2", "101_3"),
    ("101_2", "5"), ("101", "101_2"), ("x = 6", "5"), ("y = 5", "x = 5"), ("x = 2y + 3", "y = 2x+3"),
    ("y=2x+3", "y=2x+4"), ("2x+3", "2x-3"), (r"x+1", "1"), (r"|x|", "x"), (r"\sqrt{x^2}", "x"),
    (r"(x+1)^2", "x^2+1"), (r"\pm 3", "3"), ("3", r"\pm 3"), (r"3 \pm 1", "4"), (r"3+4i", "3-4i"),
    (r"\infty", r"-\infty"), (r"x < 3", r"x \le 3"), (r"x > 3", "x < 3"), (r"\text{Tuesday}", "Monday"),
    (r"\text{not Monday}", "Monday"), (r"\text{Monday or Tuesday}", "Monday"), ("C", "B"),
    (r"5 \text{ or } 6", "5"), ("", "5"), (r"\approx 5", "5"), (r"x \neq 5", "5"), ("3:2", "2:3"),
    (r"\frac{1}{0}", "0"), (r"10^{10^{10}}", "10"), (r"\sin x", r"\cos x"), ("2x", "2y"), ("a_1", "a_2"),
    (r"5\sqrt{2}", r"\sqrt{10}"), (r"e^{x}", "x^e"), (r"\log 100", r"\ln 100"), (r"0.\overline{3}", "0.3"),
    (r"(-\infty,1)\cup(2,\infty)", r"(-\infty,1)\cup[2,\infty)"), (r"2^{10}", "20"),
    (r"\frac{x}{y}", r"\frac{y}{x}"), (r"\pi", "355/113"), ("101_2", "12_3"),
    (r"0 \cdot \infty", r"\infty - \infty"), ("(0,9)", "(0,9),(9,0)"), (r"3\times2", "(3,2)"),
    (r"5, \ldots, 10", "10"), (r"2 \text{ (extraneous: } 3)", "3"), (r"\text{All reals except }2", "2"),
    (r"4\cdot\frac12", r"4\frac12"), (r"a/b+c", r"\frac{a}{b+c}"), ("June 21", "June 20"),
]
# (the whole response, the reference, its reward)
RESPONSES = [
    ("It is 5, surely 5.", "5", 0), ("The answer is 42", "42", 0), ("5", "5", 0), ("", "5", 0),
    (r"\boxed{6} is. " * 20 + r"\boxed{5}", "5", 1), (r"\boxed{5} is it.", "5", 1),
    (r"\boxed{6}, no: \boxed{5}", "5", 1), (r"\boxed{5} #### 6", "6", 1), (r"\boxed{5} #### 6", "5", 0),
    (r"#### 6 \boxed{5}", "5", 1), (r"#### \boxed{5}", "5", 1), (r"\boxed 5", "5", 1), (r"\boxed{ 5", "5", 0),
    (r"\fbox{5}", "5", 1), (r"$x=\boxed{5}$.", "5", 1), (r"\boxed{5} or \boxed{6}", "6", 0),
    (r"\boxed{5} or \boxed{6}", "5, 6", 1), (r"\boxed{5}, \boxed{6}", "6", 0), (r"\boxed{5} or 6", "5", 0),
    (r"$\boxed{5}$ is not right, it is 6", "5", 0), (r"\boxed{5}?? I think 6", "5", 0),
    ("isn’t \\boxed{5}", "5", 0), (r"\boxed{5}\text{ or }6", "5", 0),
    (r"\boxed{5} is not an odd one, as 5.", "5", 1), (r"either \boxed{5}", "5", 0),
    (r"not \boxed{5}", "5", 0), (r"\boxed{5}. Wait, \boxed{6}?", "5", 0),
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
    "B - Paris", "I choose B.", "Option B", "#### B) Both A and C", "#### B (not A)", "<answer>B</answer>",
    "Answer B", "#### B", "####B", "#### (B)", "#### B)", "#### B.", "#### B) Paris", "#### B. Paris",
    "#### B: Paris", "#### B Paris", "#### b", "#### (b)", "#### b) paris", "#### **B**", "#### **B) Paris**",
    "#### [B]", "#### Answer: B", "#### The answer is B", "#### option B", r"#### \boxed{B}", r"\boxed{B}",
    r"\boxed{\text{B}}", r"\boxed{(B)}", r"$\boxed{\textbf{(B)}}$", r"\boxed{B) Paris}", r"\boxed{b}", "B",
    "(B)", "B.", "B)", "B) Paris", "**B**", "**B) Paris**", "b", "The answer is B", "The answer is B.",
    "the answer is: B", "The answer is (B).", "The answer is **B**.", "**Answer:** B", "**Answer: B**",
    "Answer: b", "answer = B", "The correct answer is B) Paris.", "The answer is option B.",
    "The correct option is B.", "Option B is correct.", "B is the correct answer.",
    "The best choice is B because Paris is in France.", "A is dry, C is wet.\n#### B",
    "The answer is A. No, the answer is B.", "#### A\n#### B", "The answer is A\n#### B",
    "#### B, because A is wrong", "The answer is B, not A.", "I think of a dog.\n\n#### B",
    "So the correct one is **B**.", "I would pick (B).", "B\n\nParis is the capital.", "####\nB",
    "Answer：Ｂ",
    "#### B) A dog", "The answer is definitely B.", "The answer would be B", "#### 'B'", "#### Paris (B)",
    "#### B</s>", "#### (B) I and II only", "#### B) is not soluble", "#### B. No, because it is illegal.",
    "#### B) None of the above", "(A) Iron.\n(B) Wood.\n\nSo the correct answer is:\n\n**(B) Wood**",
    "#### B) either rain or snow", "The answer to the question is B.", "Therefore, B is the answer.",
    "#### B.Paris",
]
WRONG_QA = [  # (response, reference): all earn nothing
    ("#### A", "B"), ("#### B or C", "B"), ("#### B and C", "B"), ("#### B/C", "B"), ("#### B, C", "B"),
    ("#### B, C", "C"), ("#### B C", "B"), ("#### A or B", "B"), ("#### (A) or (B)", "A"),
    ("#### B & C", "B"), ("#### BC", "B"), ("#### B\nC", "B"), ("#### B) Paris or C) Rome", "B"),
    ("#### A) Oslo B) Paris C) Rome", "A"), ("#### none", "E"), ("#### None of the above", "A"),
    ("####", "A"), ("", "A"), ("#### ", "B"), ("#### Paris", "A"), ("#### Bob", "B"), ("#### banana", "B"),
    ("#### a dog", "A"), ("The answer is a dog.", "A"), ("The answer is a\tdog", "A"),
    ("#### I think so", "I"), ("I am sure.", "I"), ("A dog barks.", "A"),
    ("The answer is I think clear.", "I"), ("The answer is not B.", "B"), ("#### not B", "B"),
    ("The answer isn't B.", "B"), ("The answer is neither A nor B.", "B"),
    ("The answer is either A or B.", "A"), ("The answer is A or B.", "B"),
    ("The answer is B or maybe C.", "B"), ("both A and B", "A"), ("#### both A and B", "A"), ("#### K", "K"),
    ("#### 2", "B"), ("#### B. Wait, it is C.", "B"), ("#### B\nActually C", "B"),
    ("A) Oslo\nB) Paris\nC) Rome", "C"), ("A) Oslo\nB) Paris", "B"), ("#### A\n#### none", "A"),
    ("It could be B.", "A"), ("#### B1", "B"), ("#### B's", "B"), (r"\boxed{A, B}", "A"), (r"\boxed{}", "A"),
    (r"\boxed{A} or \boxed{B}", "B"), ("A, B", "A"), ("A or B", "B"), ("**A** or **B**", "B"),
    ("The answer is unclear", "A"), ("The answer is B\n#### none", "B"), ("#### The answer is not A", "A"),
    ("the choice is yours", "C"), ("#### A, B, C, D", "D"), ("#### Oslo (A), Paris (B)", "A"),
    ("The answer is B. But no, the answer is neither.", "B"), ("The answer is B? No, it is C.", "B"),
    ("#### B vs C", "B"), ("The answer is B. No, it is C.", "B"), ("#### B is wrong", "B"),
    ("#### B? Or C?", "B"), ("(B) is incorrect", "B"), ("The answer is certainly not (B).", "B"),
    ("The answer isn't (B)", "B"), ("The answer isn’t (B).", "B"), ("Is the answer B?", "B"),
    ("#### anything but B", "B"), ("#### A, I", "A"), ("#### A.M. hours", "A"), ("No answer is B", "B"),
    ("The answer is never B", "B"),
]


@pytest.mark.parametrize("response, answer, reward", MATH)
def test_math_table(response, answer, reward):
    assert verify_math(response, answer) == reward


QA = [(response, "B", 1) for response in RIGHT_QA] + [(*case, 0) for case in WRONG_QA]


@pytest.mark.parametrize("response, answer, reward", QA)
def test_qa_table(response, answer, reward):
    assert verify_qa(response, answer) == reward


def key(response, domain):
    return answer_key(Task("", "", domain, "?"), response)


@pytest.mark.parametrize("same", [
    ["#### 1,000", "#### $1000.00", "#### 1000", r"\boxed{10^3}", "#### x = 1000 clips"],
    [r"\boxed{\frac12}", "#### 0.5", "#### 1/2"],
    [r"\boxed{x^2-1}", r"\boxed{(x+1)(x-1)}"], [r"\boxed{1, 2}", r"\boxed{\{2, 1\}}"],
    [r"\boxed{\text{Monday}}", "#### monday"],
    ["#### 2e400", "#### 20e399"]])
def test_equal_answers_have_one_math_key(same):
    keys = {key(response, "math") for response in same}
    assert len(keys) == 1 and None not in keys


@pytest.mark.parametrize("response", ["#### blue", "#### B", "The answer is blue.", r"\boxed{blue}"])
def test_the_text_of_a_choice_is_its_letter(response):
    assert answer_key(Task("", "", "qa", "?", choices=("red", "blue")), response) == "B"


def test_keys_tell_answers_apart_and_are_none_without_one():
    finals = [
    "5", "-5", "0.5", "5x", r"\pi", "(1,2)", "(2,1)", "[1,2)", r"\{1,2\}", "Monday", r"\sqrt2", "1.41421356",
    "3i",
]
    assert len({key(rf"\boxed{{{final}}}", "math") for final in finals}) == len(finals)
    unanswered = ("5", "####", r"\boxed{}", "#### I really do not know what it is, sorry")
    assert [key(response, "math") for response in unanswered] == [None] * 4
    assert [key(r, "qa") for r in ("#### b", "The answer is (B).", "#### A or B", "")] == ["B", "B", None,
                                                                                           None]


@pytest.mark.parametrize("response, domain, parts", [
    ("6 * 7\n#### 42 eggs\nBye", "math", ("6 * 7\n", "42 eggs")),
    (r"so $\boxed{\frac{1}{2}}$.", "math", ("so $", r"\frac{1}{2}")),
                                                     ("no marker: 42", "math", ("no marker: 42", "")),
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


RESTATED = [  # an expression that was asked for, said again with its value
    (r"\boxed{p+q = 41}", "41", 1), ("#### p + q = 17 + 24 = 41", "41", 1), (r"\boxed{|u-v| = 6}", "6", 1),
    (r"\boxed{g(3) = 8}", "8", 1), (r"\boxed{m + n + k = 12}", "12", 1),
    (r"\boxed{100a + b = 312}", "312", 1), (r"\boxed{f(-2) = \frac{1}{2}}", "0.5", 1),
    (r"\boxed{P(A) = 0.25}", r"\frac14", 1), ("#### ab + bc = 9", "9", 1), (r"\boxed{p+q = 40}", "41", 0),
    ("#### p + q = 17 + 24 = 42", "42", 0), ("#### p + q = 41 = 42", "41", 0), (r"\boxed{g(3) = 8}", "3", 0),
    (r"\boxed{x + y = 5}", "x + y = 5", 1), (r"\boxed{x + y = 5}", "x + y = 6", 0),
    ("#### 5", "x + y = 5", 0), ("#### 25", "x^2 + y^2 = 25", 0), ("#### 3x = 15", "15", 0),
    ("#### 40 + 60 =", "100", 0), ("#### 40 + 60 = ___", "100", 0), ("#### 40 + 60 = $?$", "100", 0),
    (r"\boxed{40 + 60 = \_\_}", "100", 0), ("#### 40 + 60 = 100.", "100", 1), ("#### x = 7", "7", 1),
    ("#### x + 36 = 41", "41", 0), (r"\boxed{x^2 + y^2 - 4 = 0}", "0", 0), (r"\boxed{2a = 10}", "10", 0),
    ("#### a + b = c", "c + 1", 0), ("#### p + q = 5 or 6", "5", 0), ("#### 41", "p + q = 41", 0),
    (r"\boxed{p + q = 41}", "q + p = 41", 1),
]
FUNCTIONS = [  # a function, in words too, is no unit
    (r"\boxed{3}", r"\operatorname{arsinh}(3)", 0), (r"\boxed{12}", r"\operatorname{lcm}(4,6)", 1),
    (r"\boxed{9}", r"\text{the square of } 9", 0), ("#### gcd(12, 18)", "6", 1), ("#### lcm(4, 6)", "24", 0),
    (r"\boxed{\operatorname{arsinh}(3)}", r"\operatorname{arsinh}(3)", 1),
    (r"\boxed{\operatorname{sgn}(3)}", "3", 0), (r"\boxed{\mathrm{floor}(3)}", "3", 0),
    (r"\boxed{3}", r"\operatorname{Log}(3)", 0), ("#### the cube root of 8", "8", 0),
    ("#### the reciprocal of 4", "4", 0), ("#### 9 factorial", "9", 0), ("#### 3 cubed", "27", 1),
    ("#### 3 cubed", "3", 0), ("#### foo(7)", "7", 0), (r"\boxed{\operatorname{max}(3, 5)}", "5", 1),
    ("#### 5 min", "5", 1), (r"\boxed{5\operatorname{cm}}", "5", 1), (r"\boxed{\sinh 0}", "0", 1),
    ("#### a total of 9", "9", 1), ("#### the sum is 9", "9", 1), ("#### 72 (total)", "72", 1),
    (r"\boxed{\operatorname{Arg}(5)}", "5", 0),
]
FORMS = [  # forms of numbers, sets, roots, matrices, intervals
    (r"\boxed{22,\! 333,\! 444}", "22333444", 1), ("#### 22333444", r"22,\! 333,\! 444", 1),
    (r"\boxed{1,\!000}", "1000", 1), (r"\boxed{22,\!333}", "22", 0),
    (r"\boxed{\{\pm 5, 2\}}", r"\{-5, 5, 2\}", 1), (r"\boxed{\{2, 1 \pm 3\}}", r"\{4, -2, 2\}", 1),
    (r"\boxed{\{\pm 5, 2\}}", r"\{5, 2\}", 0), (r"\boxed{\{\pm 5\}}", r"\pm 5", 1),
    (r"\boxed{\{\pm 5, 2\}}", "5, -5, 2", 1), (r"\boxed{\sqrt{1/k}}", r"\frac{1}{\sqrt k}", 1),
    (r"\boxed{t\sqrt t}", r"\sqrt{t^3}", 1), ("#### x", r"\sqrt{x^2}", 0),
    (r"\boxed{\sqrt{x}\sqrt{y}}", r"\sqrt{xy}", 1), (r"\boxed{x\sqrt{y}}", r"\sqrt{x^2 y}", 0),
    (r"\boxed{y\sqrt{x}}", r"\sqrt{x y^2}", 0), (r"\boxed{|x|\sqrt{y}}", r"\sqrt{x^2 y}", 1),
    (r"\boxed{\sqrt{k}}", r"\frac{1}{\sqrt k}", 0), (r"\boxed{a^2}", r"\sqrt{a^4}", 1),
    (r"\boxed{a^3}", r"\sqrt{a^6}", 0), (r"\boxed{\sqrt{n}+1}", r"\sqrt{n+1}", 0),
    (r"\boxed{\frac{a}{\sqrt{a}}}", r"\sqrt{a}", 1),
    (r"\boxed{\begin{pmatrix} 1 & 2 \\[4pt] 3 & 4 \end{pmatrix}}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
     1),
    (r"\boxed{\begin{smallmatrix}1&2\\3&4\end{smallmatrix}}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", 1),
    (r"\boxed{\left(\begin{smallmatrix}1\\2\end{smallmatrix}\right)}", r"\begin{pmatrix}1\\2\end{pmatrix}",
     1),
    (r"\boxed{\begin{vmatrix}1&2\\3&4\end{vmatrix}}", "-2", 1),
    (r"\boxed{\begin{vmatrix}1&2\\3&4\end{vmatrix}}", "2", 0),
    (r"\boxed{\begin{vmatrix}2&0&0\\0&3&0\\0&0&4\end{vmatrix}}", "24", 1),
    (r"\boxed{\det\begin{pmatrix}1&2\\3&4\end{pmatrix}}", "-2", 1),
    (r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}", "-2", 0),
    (r"\boxed{\begin{vmatrix}a&b\\c&d\end{vmatrix}}", "ad-bc", 1), (r"\boxed{7^{\text{th}}}", "7", 1),
    (r"\boxed{7^{th}}", "7", 1), (r"\boxed{21^\text{st}}", "21", 1), (r"\boxed{7^{\text{th}}}", "8", 0),
    (r"\boxed{2^{\mathrm{nd}}}", "2", 1), (r"\boxed{7^{t}}", "7", 0), ("#### 42 (as required)", "42", 1),
    ("#### 42; done", "42", 1), ("#### 42 - done", "42", 1), ("#### 42, as required", "42", 1),
    ("#### 42; that is all she had", "42", 1), ("#### 42 (the total)", "42", 1), ("#### 42; 43", "42", 0),
    ("#### 42 (or 43)", "42", 0), ("#### 42; maybe", "42", 0), ("#### 42, not sure", "42", 0),
    ("#### 5, Monday", "5", 0), ("#### 5", r"5, \text{Monday}", 0), ("#### 2, infinity", "2", 0),
    ("#### 42; no solution", "42", 0), ("#### 42; this is wrong", "42", 0),
    (r"\boxed{(0,10)\setminus\{4\}}", r"(0,4)\cup(4,10)", 1),
    (r"\boxed{(0,10)\setminus\{4\}}", r"(0,10)\setminus\{4\}", 1),
    (r"\boxed{(0,10)\setminus\{4\}}", "(0,10)", 0),
    (r"\boxed{(0,10)\setminus\{4\}}", r"(0,10)\setminus\{5\}", 0),
    (r"\boxed{[0,10]\setminus\{4\}}", r"(0,10)\setminus\{4\}", 0),
    (r"\boxed{\mathbb{R}\setminus\{2\}}", r"(-\infty,2)\cup(2,\infty)", 1),
    (r"\boxed{\mathbb{R}\setminus\{1, 2\}}", r"(-\infty,1)\cup(1,2)\cup(2,\infty)", 1),
    (r"\boxed{(0,1)\cup(2,9)\setminus\{4\}}", r"(0,1)\cup(2,4)\cup(4,9)", 1), ("#### {1, 2}", r"\{1,2\}", 1),
    (r"\boxed{{1,2}}", r"\{2, 1\}", 1), ("#### {1, 2}", "(1,2)", 0), ("#### {1, 2, 3}", r"\{1,2\}", 0),
    (r"10{,}000 is \boxed{10{,}000}", "10000", 1), (r"\boxed{x_{1,2}}", "3", 0),
]
RETRACTIONS = [  # and ordinary words that are none
    (r"\boxed{27} dollars is what he actually earned.", "27", 1),
    (r"\boxed{27}. They had to wait.", "27", 1), ("#### 27\nThe correction took long.", "27", 1),
    (r"\boxed{27}. Actually, it is 28.", "27", 0), (r"\boxed{27}. Wait, no.", "27", 0),
    (r"\boxed{27}, oops", "27", 0), ("#### 27\nwait that is 28", "27", 0),
    (r"\boxed{27}. Correction: 28", "27", 0), (r"\boxed{27}... wait", "27", 0),
    (r"\boxed{27} - actually 28", "27", 0), (r"\boxed{27}. Wait. Let me recheck.", "27", 0),
    (r"\boxed{27}. Scratch that, 28", "27", 0), ("#### 27\nActually the answer is 28.", "27", 0),
]
THOUGHTS = [  # only what stands behind one counts
    ("<think>so #### 42", "42", 0), (r"<think>\boxed{42} it seems", "42", 0),
    ("<think>#### 41</think>\n#### 42", "42", 1), ("<think>#### 42</think>\n#### 41", "42", 0),
    ("First \\boxed{41}.\n</think>\n\nThe final answer is 42.", "41", 0),
    ("First \\boxed{41}.\n</think>\n\n\\boxed{42}", "42", 1), ("<think>#### 42</think>", "42", 0),
    ("<think>1</think><think>#### 42", "42", 0), ("<THINK>#### 42", "42", 0),
    ("<think>a</think>b<think>#### 41</think>#### 42", "42", 1), ("[THINK]#### 41[/THINK]#### 42", "42", 1),
    ("<thinking>#### 42", "42", 0), ("#### 42\n<think>hm", "42", 0), ("#### 42\n</think>", "42", 0),
]
LETTERS = [  # (response, reference letter, reward)
    ("The answer is (A) or (C).", "C", 0), ("The answer is (A) or (C).", "A", 0),
    ("The answer is A or (C)", "C", 0), ("The answer is A or (C)", "A", 0),
    ("The answer is A. O(C)", "A", 1), ("The answer is A. O(C)", "C", 0), ("#### A|B|C", "A", 0),
    ("#### A|B|C", "C", 0), ("The answer is either (A) or (B).", "B", 0), ("The answer is B or (D)", "D", 0),
    ("The answer is A/(C)", "C", 0), ("The answer is (A), or maybe (C).", "C", 0),
    ("The answer is A or B.\n\n**B**", "B", 1), ("The answer is (A) and (C).", "C", 0),
    ("#### D. B and C only", "D", 1), ("#### D. B and C only", "B", 0), ("#### B. E. coli", "B", 1),
    ("#### B. E. coli", "E", 0), ("#### A. I/O devices", "A", 1), ("#### B. P(A|C)", "B", 1),
    ("#### B. P(A|C)", "C", 0), ("#### (D) A and B", "D", 1),
    ("The answer is B. P(A|C) is too small", "B", 1), ("#### C) A, B, and D", "C", 1),
    ("#### E. A dog", "E", 1), ("#### B. C-section", "B", 1), ("#### B. C", "B", 0),
    ("#### A. B. C", "A", 0), ("#### A) and B)", "A", 0), ("#### B) or C)", "B", 0),
    ("#### B. or C.", "B", 0), ("#### B) C) D)", "B", 0), ("#### A. Vitamin C", "A", 1),
    ("#### A. B or C", "A", 0), ("#### B: D and E", "B", 1), ("#### A. The process must wait", "A", 1),
    ("#### C. the correction factor", "C", 1), ("#### A. Wait, it is C.", "A", 0),
    ("#### B. It is actually used", "B", 1), ("#### B. Wait for the signal", "B", 1),
    ("#### B. Actually, C", "B", 0), ("#### B. Oops, C", "B", 0), ("#### B. Correction: C", "B", 0),
    ("#### D. They wait in line", "D", 1), ("#### B\nActually C", "B", 0),
    ("The answer is A.\n</think>\n\nB", "B", 1), ("The answer is A.\n</think>\n\nB", "A", 0),
    ("</think> **B**", "B", 1), ("<think>The answer is B.", "B", 0), ("<think>A</think>\n(B)", "B", 1),
    ("A\n</think>\n\nThe answer is B.", "B", 1), ("#### B\n</think>\n\nA or B", "B", 0),
    ("<think>#### B</think>\n", "B", 0),
]
CHOICES = ("London", "Paris", "a dog", "-5", "5")
CHOICE_TEXTS = [  # (response, its letter among CHOICES)
    ("#### Paris", "B"), ("The answer is Paris.", "B"), (r"\boxed{Paris}", "B"),
    (r"\boxed{\text{Paris}}", "B"), ("**Paris**", "B"), ("Paris", "B"), ("Answer: Paris", "B"),
    ("The correct answer is **Paris**.", "B"), ("#### paris.", "B"), ("#### A dog", "C"), ("#### -5", "D"),
    ("#### 5", "E"), ("It is in France.\n\nParis", "B"),
    ("The answer is Paris because it is the capital.", "B"), ("#### The answer is Paris", "B"),
    ("#### B) Paris", "B"), ("<think>#### Paris</think>\n#### London", "A"), ("#### Paris or London", None),
    ("#### Rome", None), ("#### not Paris", None), ("The answer is not Paris.", None),
    ("#### Paris\nLondon", None), ("London\nParis", None), ("I like Paris.", None),
    ("The answer is Paris. Wait, it is London.", None), ("<think>#### Paris", None),
    ("The answer isn't Paris", None), ("#### Paris, London", None), ("The answer is Paris or London.", None),
]


CAPITALS = [  # (response, its letter among Rome, Paris, Oslo, Bern): what stands beside the answer
    ("The correct answer is **B. Paris**.\n\n- **A. Rome**: Incorrect, this is in Italy.", "B"),
    ("The correct answer is (B) Paris.\n\n(A) is wrong.", "B"), ("#### B\n\n(A) Rome is in Italy", "B"),
    ("#### (B) Paris\n\nA and C are wrong.", "B"), ("#### B\nC", None), ("#### B\n\nor C", None),
    ("Let's go through the options.\n\n(A) Rome - incorrect, it is in Italy.\n", None),
    ("A. Rome is incorrect.\n\nThe capital of France is Paris.", None), ("We can rule out (A).", None),
    ("Consider option (A)", None), ("A: The capital of France is Paris.", None), ("So it must be (B)", "B"),
    ("D. melanogaster is a fly.\nSo unclear", None), ("B. Paris is the capital of France.", "B"),
    ("A. Rome\nB. Paris\nC. Oslo", None), ("A. Rome is wrong.\nB. Paris", "B"),
    ("Bern is small.\n\nB) Paris", "B"), ("#### B\n\nA tempting but wrong answer is A.", "B"),
    ("The answer is B.\nThe wrong answer is C.", "B"),
    ("The correct answer is B. The incorrect option is A.", "B"), ("The answer would be B", "B"),
    ("The answer is B. If the question asked about Italy, the answer would be A.", "B"),
    ("If we read it again, the answer is B.", "B"), ("The answer is B. Bern C is the best known one.", "B"),
    ("#### B\n\nOption A is correct about Italy, but not France.", "B"),
    ("Option B is the correct one.", "B"),
    ("#### B\n\nNote: The answer is not C because Oslo is in Norway.", "B"), ("The answer is not C.", None),
    ("The answer is B. But the answer is not B.", None), ("#### E", None), ("#### Final Answer\nB", "B"),
    ("#### Step 2: B is far", None), ("#### B\n\n#### Explanation\nA is in Italy.", "B"),
    ("#### A Rome", "A"), ("#### A dog", None), ("The answer is most likely B.", "B"),
    ("The answer is simply B", "B"), ("The answer is indeed (B).", "B"),
    ("#### B\n\nI apologize, it is C.", None),
]
AUDITED = [  # what stands around an answer, names that look like units, words that scale
    (r"\boxed{2x+3=13}", "x=5", 0), (r"\boxed{3x=15}", "x = 5", 0), (r"\boxed{x=5}", "2x+3=13", 1),
    (r"\boxed{\frac{x}{2}-1=\frac32}", "x=5", 0), (r"\boxed{x = 5}", "x=5", 1),
    (r"\boxed{2y = 4x+6}", "y=2x+3", 1), (r"\boxed{\pi r^2 h}", r"\pi r^2", 0),
    (r"\boxed{\frac12 b^2 h}", r"\frac12 b^2", 0), (r"\boxed{\pi r^2h}", r"\pi r^2 h", 1),
    (r"\boxed{\frac{1}{2}at^2}", "1/2", 0), (r"\boxed{2as}", "2at", 0), (r"\boxed{2rs}", "2st", 0),
    (r"\boxed{2by}", "2", 0), (r"\boxed{km+1}", "1", 0), (r"\boxed{abc+1}", "1", 0),
    (r"\boxed{1+abc}", "1", 0), (r"\boxed{abc + 1}", "cba+1", 1), ("#### 5 km", "5", 1),
    ("#### 5km", "5", 1), ("#### profit +5", "5", 1), (r"\boxed{5\text{ million}}", "5", 0),
    (r"\boxed{5\text{ million}}", "5000000", 1), (r"\boxed{\$1.2\text{ million}}", "1200000", 1),
    ("#### 5 trillion", "5", 0), ("#### 3 fourths", "3", 0), ("#### 5 hundredths", "5", 0),
    ("#### triple 5", "5", 0), (r"\boxed{\text{minus } \frac12}", "1/2", 0), (r"$\boxed{5}\pi$", "5", 0),
    (r"2\boxed{5}", "5", 0), (r"\boxed{5} million", "5", 0), (r"$\boxed{5}\frac{1}{2}$", "5", 0),
    (r"$\boxed{5} \times 10^3$", "5", 0), (r"$\frac{\boxed{5}}{2}$", "5", 0),
    (r"\boxed{1}\boxed{0}", "0", 0), (r"maybe \boxed{5}", "5", 0), (r"It can't be \boxed{5}", "5", 0),
    (r"**\boxed{5}**", "5", 1), (r"$\boxed{90}^\circ$", "90", 1), (r"\boxed{5} apples", "5", 1),
    (r"$\boxed{5}\text{ cm}$", "5", 1), (r"So 2 + 3 = \boxed{5}", "5", 1), (r"$x = - \boxed{5}$", "5", 0),
    ("**Answer:**\n- $\\boxed{42}$", "42", 1), (r"Final answer - $\boxed{42}$", "42", 1),
    (r"$-\boxed{5}$", "5", 0), ("\\boxed{42}\n\n40 + 2 = 42.", "42", 1), ("#### 5\n6", "5", 0),
    ("#### 5\n\nI apologize for the mistake. The correct answer is 6.", "5", 0),
    ("#### 5\n\nNo, the correct answer is 6.", "5", 0),
    ("#### 5\n\nHmm, that's wrong. It should be 6.", "5", 0),
    (r"\boxed{5} would be wrong; 6 is right.", "5", 0), ("#### 5\n\nThe final answer is 5.", "5", 1),
    ("#### 5\n\nThe final answer is 6.", "5", 0), ("#### 5\n\nThe final answer is 2 + 3 = 5.", "5", 1),
    ("#### 1000\n\nThe final answer is $1,000.", "1000", 1),
    ("#### 0.5\n\nThe correct answer is 1/2.", "0.5", 1), (r"\boxed{|x|>1}", r"(1,\infty)", 0),
    (r"\boxed{|x|<1}", r"(-\infty,1)", 0), (r"\boxed{\sqrt{x}>2}", r"(2,\infty)", 0),
    (r"\boxed{\sqrt{x}=5}", "5", 0), (r"\boxed{\ln x=2}", "2", 0), (r"\boxed{\sin A = \frac35}", "3/5", 1),
    ("#### Step 3", "3", 0), ("#### Case 3:\nx", "3", 0), ("#### 3.", "3", 1),
    ("#### Final Answer\n42", "42", 1), ("#### Answer\n\n**42**", "42", 1),
    ("#### Final Answer:\n\n42", "42", 1),
    ("The answer is \\boxed{42}.\n\n#### Explanation\nWe add.", "42", 1),
    ("#### 42\n\n#### Verification\n6 * 7", "42", 1), (r"\boxed{24}", r"24 \mathrm{~cm}^2", 1),
    (r"\boxed{5 \mathrm{~cm}}", "5", 1), (r"\boxed{5\text{~cm}}", "5", 1),
    (r"\boxed{10\text{ N}}", "10", 1), (r"\boxed{10 \mathrm{~J}}", "10", 1), ("#### 42 DVDs", "42", 1),
    ("#### 3 yrs", "3", 1), (r"\boxed{f^{-1}(x) = \frac{x-1}{2}}", r"\frac{x-1}{2}", 1),
    (r"\boxed{f'(2)=4}", "4", 1), (r"\boxed{\frac{dy}{dx}=2x}", "2x", 1), (r"\boxed{f'(2)=4}", "2", 0),
    (r"\boxed{(1,2) \text{ and } (3,4)}", "(1,2),(3,4)", 1),
    (r"\boxed{x<-1 \text{ or } x>1}", r"(-\infty,-1)\cup(1,\infty)", 1),
    (r"\boxed{x>-1 \text{ and } x<1}", "(-1,1)", 0), (r"\boxed{\{x \mid -1<x<1\}}", "(-1,1)", 1),
    (r"\boxed{x\geqslant 2}", r"[2,\infty)", 1), (r"\boxed{(2;3)}", "(2,3)", 1),
    (r"\boxed{\frac{{1}}{{2}}}", "1/2", 1), (r"\boxed{\text{(C) }12}", "C", 1), (r"\boxed{C. 12}", "C", 1),
    (r"\boxed{12}", r"\textbf{(C)}\ 12", 1), (r"\boxed{C}", r"\textbf{(C) }12", 1),
    (r"\boxed{(C) 12}", "12", 1), (r"\boxed{B}", r"\textbf{(C) }12", 0),
    (r"\boxed{13}", r"\textbf{(C) }12", 0), (r"\boxed{(C) 13}", "(C) 12", 0),
]


@pytest.mark.parametrize("response, answer, reward", [*RESTATED, *FUNCTIONS, *FORMS, *RETRACTIONS, *THOUGHTS,
                                                      *AUDITED])
def test_math_kinds(response, answer, reward):
    assert verify_math(response, answer) == reward


@pytest.mark.parametrize("response, answer, reward", LETTERS)
def test_letters(response, answer, reward):
    assert verify_qa(response, answer) == reward


@pytest.mark.parametrize("response, letter", CHOICE_TEXTS)
def test_choices_by_their_text(response, letter):
    task = Task("", "", "qa", "?", CHOICES)
    assert answer_key(task, response) == letter
    for reference in "ABCDE":
        assert verify(replace(task, answer=reference), response) == (letter == reference)
    if letter:
        thinking, answer = split_response(response, "qa", CHOICES)
        assert response.startswith(thinking) and answer


@pytest.mark.parametrize("response, letter", CAPITALS)
def test_what_stands_beside_a_letter(response, letter):
    assert answer_key(Task("", "", "qa", "?", ("Rome", "Paris", "Oslo", "Bern")), response) == letter


@pytest.mark.parametrize("response, letter", [("#### 3.0", "A"), ("#### −5", "B"), (r"#### \(-5\)", "B"),
                                              ("#### 1,000", "C"), ("#### 4", None), ("#### 5 or 3", None)])
def test_choices_that_are_numbers_compare_by_value(response, letter):
    assert answer_key(Task("", "", "qa", "?", ("3", "-5", "1000", "5")), response) == letter


def test_a_text_that_two_choices_have_is_no_answer():
    assert answer_key(Task("", "", "qa", "?", ("Rome", "Rome", "Oslo")), "#### Rome") is None


PROGRAM = "def f(x):\n    return x\n"


@pytest.mark.parametrize("response, domain, parts", [
    ("<think>2? #### 2</think>\n#### 4", "math", ("<think>2? #### 2</think>\n", "4")),
    ("2? #### 2</think>#### 4", "math", ("2? #### 2</think>", "4")),
                                                     ("<think>#### 4", "math", ("<think>#### 4", "")),
    ("<think>A</think>\n**B**", "qa", ("<think>A</think>\n**", "B**")), ("<think>B", "qa", ("<think>B", "")),
    (f"<think>```python\nx = 1\n```</think>\n```python\n{PROGRAM}```", "code",
     ("<think>```python\nx = 1\n```</think>\n", PROGRAM)),
    (f"<think>```python\n{PROGRAM}```", "code", (f"<think>```python\n{PROGRAM}```", "")),
    ("<think>#### a</think>#### b", "own", ("<think>#### a</think>", "b")),
                                                     ("<think>#### a", "own", ("<think>#### a", ""))])
def test_thought_and_answer(response, domain, parts):
    assert split_response(response, domain) == parts
    assert (key(response, domain) is None) == (parts[1] == "")


def test_a_thought_that_the_template_opened():
    prompt = "<|user|>\nWhat is <think>?<|assistant|>\n<think>\n"
    assert opened_thought(prompt) == "<think>\n" and opened_thought(prompt + "</think>\n") == ""
    assert opened_thought("What is <think>?") == ""
    half, whole = "so #### 42", "so #### 41\n</think>\n#### 42"
    assert [verify_math(opened_thought(prompt) + response, "42") for response in (half, whole)] == [0.0, 1.0]


HOSTILE = [
    "9**9**9**9", "9^{9^8}", "1e999999999", r"10^{10^{10}}", "9^" * 99 + "9", "1e99999", "1e9999",
    r"\frac" * 70 + "1", r"\frac{" * 60, r"\sqrt{" * 40 + "2" + "}" * 40, "(" * 140 + "1" + ")" * 140,
    "-" * 290 + "1", "{" * 140 + "1" + "}" * 140, "[" * 299, r"\{" * 99, "|" * 299, "1,000" * 50, "1/0",
    "0^{-1}", "200!!!!", "999999999!", r"\binom{999999}{3}", r"\infty - \infty", r"\ln 0", "٣", "५", "²³",
    "½" * 99, "\0", "\ud800", "5\udfff", "ﷺ" * 99, "a_" * 99, "1_1", "5_0", "7_99",
    "__import__('os').system('true')", "(lambda: 5)()", "[x for x in y]", "x" * 300, "1" * 300, "." * 300,
    r"\begin{matrix}" * 20, r"\matrix \matrix", r"\end", "&", r"\\", "'5'", '"5', "5\"", r"\pm" * 99,
    r"x^{x^{x^{x}}}", "9^{9^{9}} x", "=" * 99, "<" * 99, ":" * 99, r"\cup" * 70, r"\in", "1 = " * 70 + "1",
    "(1,2)^(3,4)", r"\boxed{" * 40, "#" * 299, "𝟝", "e^{e^{e^{e^9}}}", "i^{i^i}",
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
        key(response, domain)
    assert time.process_time() - start < 1, repr(response[:300])


@pytest.mark.parametrize("final", HOSTILE)
def test_hostile_answers_cost_little_and_earn_nothing(final):
    for response in (f"#### {final}", rf"\boxed{{{final}}}", f"The answer is {final}", final):
        judge(response)
    assert verify_math(f"#### {final}", "5") == (final in ("'5'", '"5', '5"', "𝟝"))
    verify_math("#### 5", final)


@pytest.mark.parametrize("unit", [
    "#### 5", r"\boxed{", r"\boxed{5}", "9", "(", "the answer is ", "A) ", "####", "\n", " ", "**", "not ",
                                  "or ", "{",
    "a", r"\frac{1}{2}", "answer: B\n", "answer ", "ﷺ", "_", "(B) ", "is ", r"\boxed ", "\r", "A\n"])
def test_long_responses_are_bounded(unit):
    long = unit * (300_000 // len(unit))
    for response in (long, "#### 5\n" + long, "####" + long, long + r"\boxed{5}", "The answer is " + long):
        judge(response)


def test_random_strings_never_raise():
    rng, finals = random.Random(0), [final for final,
                                     _ in RIGHT_LATEX + WRONG_LATEX + RIGHT_NUMBERS] + HOSTILE
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
