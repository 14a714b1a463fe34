r"""Grading final answers: where one stands in a response, and whether two are the same. Standard library
only.

    text = after_thought(response)        what stands behind a <think> ... </think>
    start, answer = final_math(text)      behind the last #### or in the last \boxed{}; "" where there is none
    equal_math(answer, "1/2")             by value: 0.5, \frac12, 50% and x = 1/2 are equal
    start, text, letter = final_choice(text, choices)

Nothing of a response is ever evaluated by Python: an answer is rewritten, cut into tokens of a fixed list,
put into Python's notation and parsed, and its syntax tree is walked by `_value`, which knows arithmetic only.
"""

import ast
import cmath
import itertools
import math
import operator
import re
import unicodedata
import zlib
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

LONGEST_ANSWER = 300  # characters; a longer final answer is refused, which bounds the work on it
SEARCHED = 20_000  # characters at the end of a response among which the final answer must stand
UNREADABLE = (ValueError, ArithmeticError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError)


# ---- thoughts ----

OPENED = r"<(?:seed:)?think(?:ing)?>|\[THINK\]"
CLOSED = re.compile(r"</(?:seed:)?think(?:ing)?>|\[/THINK\]", re.I)


def after_thought(response: str) -> str:
    r"""What stands behind the last `</think>`: all of a response that never thinks, nothing of a
    half-finished thought.

    >>> [after_thought(text) for text in ("<think>2?</think> #### 4", "#### 4", "<think>it is #### 4")]
    [' #### 4', '#### 4', '']
    """
    visible = response[max((mark.end() for mark in CLOSED.finditer(response)), default=0):]
    return "" if re.search(OPENED, visible, re.I) else visible


def opened_thought(prompt: str) -> str:
    r"""The end of a prompt that has just opened a thought, to be put before its responses: they start inside
    of it.

    >>> opened_thought("<|assistant|>\n<think>\n"), opened_thought("<think>\n\n</think>\n\n")
    ('<think>\n', '')
    """
    found = re.search(rf"(?:{OPENED})\s*\Z", prompt, re.I)
    return found[0] if found else ""


# ---- where the final answer stands ----

REFUSED = re.compile(r"(?:\b(?:not?|never|or|n?either|maybe|perhaps|possibly)|n['’]t(?: be)?"
                     r"|\\neq?|[≠~≈]|\\approx|[=$(]\s*-)[$*(\s]*\Z|(?<=\s)-[$*(]*\Z", re.I)
FACTOR = re.compile(r"(?:[0-9]|\\(?:cdot|times)\s*|\\[dt]?frac\{|\\boxed\{[^{}]*\})\Z")  # 2\boxed{5}
SCALED = re.compile(r"\A(?:[0-9]|\s*(?:\\(?:pi|[dt]?frac|sqrt|times|cdot)(?![a-z])"  # \boxed{5}\pi
                    r"|\^\s*\{?\s*(?:[0-9]|[a-z]\b)|[*/]\s*[0-9]"
                    r"|(?:\\text\{\s*)?(?:hundred|thousand|[mb]illion|trillion)\b))", re.I)
RETRACTED = re.compile(r"\A[^\w?]*(?:\?|(?:text\W+)?(?:or\b|(?:is|was)"
                       r"(?:(?:n['’]t| not)(?: the| right| correct)| wrong| incorrect| false)\b"
                       r"|would be wrong\b))"
                       r"|\A\s*\n\s*[-+$\\]*[0-9](?![^\n]*=)|\boops\b|\bscratch that\b|\bmy (?:mistake|bad)\b"
                       r"|\bapologi[sz]e\b|\bI made an? (?:error|mistake)\b|\bon second thought\b"
                       r"|\bthat['’]s (?:wrong|incorrect|not right)\b|(?:\A|[.!?\n])\s*No, (?:the|it|that)\b"
                       r"|(?:\A|[.!?,;:(\n—–-])[\s*_]*(?:wait|actually|correction)\s*(?:[.,:!?…—–-]|\Z|\n)"
                       r"|\b(?:wait|actually|correction)[\s*_]+(?:(?:no|not|it|it['’]s|that|that['’]s|this)\b"
                       r"|(?:let me|I|the|so|my)\b[^.\n]{0,40}\b(?:is|was|be|made|check|answer|mistake|wrong)"
                       r"\b"
                       r"|[$\\(*-]*[0-9]|\(?\*{0,2}(?-i:[A-J])\b(?!['’/]))", re.I)
CORRECTED = re.compile(r"\b(?:correct(?:ed)?|actual|final|right) answer(?: is|:| should be)[\s*$\\(]*"
                       r"(-?[0-9](?:[0-9,./]*[0-9])?)(?!\.?[0-9]|\s*[-+*/=×(])", re.I)
# #### Step 3 is no answer
HEADING = r"(?!\s*\**(?:step|case|part|example|explanation|verification|check|note)\b)"
MARKER = re.compile("####" + HEADING, re.I)
ANSWER_LINE = re.compile(r"\W*(?:the )?(?:final )?answer(?: is)?\W*", re.I)  # the next line says it
BETWEEN_BOXES = re.compile(r"[\s$.]*(?:,|\bor\b|\band\b|\\text\{\s*(?:or|and)\s*\})[\s$]*(?:and|or)?[\s$]*")


def last_boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of those among the last eight `\boxed{...}` whose braces balance."""
    found = []
    for box in list(re.finditer(r"\\(?:boxed|fbox)\s*(?:\{|([\w.]+))", text))[-8:]:
        end, depth = box.end(), 1
        for brace in re.finditer(r"\\.|[{}]", text[end: end + 2 * LONGEST_ANSWER],
                                 re.S) if not box[1] else ():
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if not depth:
                found.append((box.start(), end + brace.end(), text[end: end + brace.start()]))
                break
        if box[1]:
            found.append((box.start(), end, box[1]))  # \boxed 5
    return found


def final_math(response: str) -> tuple[int, str]:
    """(where the last marker starts, the final answer's text: "" where there is none, or it is denied or
    hedged)."""
    begin = max(len(response) - SEARCHED, 0)
    hashes = max((mark.start() for mark in MARKER.finditer(response, begin)), default=-1)
    offset = hashes + 4 if hashes >= 0 else begin
    text, boxes = response[offset:], last_boxes(response[offset:])
    if boxes:
        start, end, answer = boxes.pop()
        # \boxed{1} and \boxed{2}: one list
        while boxes and BETWEEN_BOXES.fullmatch(text, boxes[-1][1], start):
            start, answer = boxes[-1][0], f"{boxes.pop()[2]}, {answer}"
        start += offset
        before, behind = response[max(start - 20, 0): start], text[end: end + 2000]
        vague = FACTOR.search(before) or SCALED.match(behind)
    elif hashes >= 0 and (lines := list(re.finditer(r"[^\n]*[^\W_][^\n]*", text))):
        line = lines[len(lines) > 1 and ANSWER_LINE.fullmatch(lines[0][0]) is not None]
        start, answer = hashes, line[0].strip()  # the first line that says anything
        before, behind, vague = response[max(start - 20, 0): start], text[line.end(): line.end() + 2000], None
    else:
        return hashes if hashes >= 0 else len(response), ""
    vague = vague or REFUSED.search(before) or RETRACTED.search(behind)
    vague = vague or any(math_key(other[1]) != math_key(answer) for other in CORRECTED.finditer(behind))
    return start, "" if vague else answer


# ---- math: from text to tokens ----

UNICODE = str.maketrans({
    "−": "-", "–": "-", "—": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "⁄": "/", "√": r"\sqrt ",
                         "π": r"\pi ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "±": r"\pm ", "∪": r"\cup ", "∈": r"\in ",
                         "∅": r"\emptyset ",
    "€": "$", "£": "$", "¥": "$", "₹": "$", "¢": "$", "⟨": "(", "⟩": ")"})
ARGUMENT = r"\s*(?:\{([^{}]*)\}|([0-9a-zA-Z]|\\pi))"
ORDINAL = r"\s*\^\s*\{?\s*(?:\\[a-z]+\s*\{)?\s*(?:st|nd|rd|th)\s*\}{0,2}"
REWRITES = [(re.compile(pattern), new) for pattern, new in (  # once, in this order
    (r",\\!\s*(?=[0-9]{3}(?![0-9]))", ","), (r"(?<=[0-9])" + ORDINAL, " th"),
    (r"\\\\\s*\[\s*-?[0-9.]+\s*[a-z]{2}\s*\]", r"\\\\"),  # \\[4pt]
    (r"<<[^<>]*>>|<\|[^<>]*\|>|</?[a-z]+>|`", " "),          # calculator notes, special tokens, code marks
    (r"(?<![\w)])(\*\*|__)(.+?)\1(?![\w(])", r"\2"),         # **bold**
    (r"^[\s*_'\"]*(?:[-=]>|→)?|[\s*_'\".,;:]+$|\\!|(?<=\S)\s*(?:≈|\\approx).*", ""),
    (r"(?<=[A-Za-z])\.(?![0-9])", ""),                       # sq. ft, 6 p.m.
    (r"[¼-¾⅐-⅞]", lambda m: " " + unicodedata.normalize("NFKC", m[0])),
    (r"[⁰¹²³⁴-⁹⁻]+", lambda m: "^{" + unicodedata.normalize("NFKC", m[0]) + "}"),
    (r"(?s).+", lambda m: unicodedata.normalize("NFKC", m[0]).translate(UNICODE)),
    (r"\\?[$%]|\bpercent\b", " "), (r"\{,\}", ","), (r"\{\{([^{}]*)\}\}", r"{\1}"),
    # {x | 1 < x < 2}
    (r"\\\{\s*[a-z]\s*(?:\\mid|[|:])([^{}]*[<>][^{}]*|[^{}]*\\[gl]e[^{}]*)\\\}", r"\1"),
    (r"(?<=[(\[])([^()\[\],;]+);([^()\[\],;]+)(?=[)\]])", r"\1,\2"),  # (2; 3)
    (r"\\[dtc]frac", r"\\frac"), (r"\*\*", "^"),
                                                            (r"[⟦⟧]", "?"),
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\.?|\\(?:displaystyle|limits)", ""),
    (r"(?<=[0-9}])\s*(?:\\text\s*\{\s*|\\mathrm\s*\{\s*~\s*)([A-Z])\s*\}", r' "\1" '),  # 10 N
    (r"\\\{|\\lbrace", "⟦"), (r"\\\}|\\rbrace", "⟧"), (r"(?<!\\)\\[()\[\],;: ]|\\q?quad|(?<=[\w}{])~", " "),
    (r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degrees?\b|°|\bdegrees?\b)(?:\s*(?:[CF]\b|\\text\{\s*[CF]\s*\}))?",
     "° "),
    (r"\\operatorname\*?\s*\{([A-Za-z]+)\}(?=\s*(?:[({\\|0-9]|[a-z]\b))", r"\\\1 "),  # a function, not a unit
    (r"\\(?:text|mathrm)\s*\{\s*(?!and\b|or\b)([A-Za-z]{2,})\s*\}(?=\s*\()", r"\\\1 "),
    (r"(?i)(?<=[0-9])\s*\\(?:text|mathrm)\s*\{[\s~]*(hundred|thousand|million|billion|trillion)s?\b",
     r" \1 \\text{"),
    (r"(?<![\w}\]^\\])\{([^{},]+(?:,[^{},]+)+)\}", r"⟦\1⟧"),  # {1, 2}
    # words, not products
    (r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mbox|operatorname)\s*\{([^{}]*)\}",
     lambda m: " " + re.sub(r"[A-Za-z]{2,}|[a-df-hj-z]", r'"\g<0>"', m[1]) + " "),
    (r"([0-9]*)\.([0-9]*)\\overline\s*\{?([0-9]+)\}?",
     lambda m: f"({m[1] or 0}.{m[2] or 0}+{m[3]}/{'9' * len(m[3])}{'0' * len(m[2])})"),
    (r"\\(?:mathbf|mathbb|mathcal|mathit|boldsymbol|vec|overrightarrow|overline)(?![A-Za-z])", ""),
    (r"\\begin\{vmatrix\}", r"\\vmatrix "), (r"\\begin\{[pbB]?(?:small)?(?:matrix|array)\}(?:\{[clr|]*\})?",
                                             r"\\matrix "),
    (r"(?:\\\\\s*)?\\end\{[a-zA-Z]*\}", r"\\end "), (r"\|\s*\\matrix ([^|]*\\end )\s*\|", r"\\vmatrix \1"),
    (r"\\det\s*\(?\s*\\matrix ([^|()]*\\end )\s*\)?", r"\\vmatrix \1"),
    # 1,234
    (r"(?<![\w.,(\[{⟦])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,)\]⟧])", lambda m: m[0].replace(",", "")),
    # 1 234
    (r"(?<![\w.,])[0-9]{1,3}(?: [0-9]{3})+(?![0-9/])", lambda m: m[0].replace(" ", "")),
    # 2 1/2
    (r"(?<![\w.^])([0-9]+)(?: and|-)? ([0-9]+)/([0-9]+)", r"(\1+\2/\3)"),
    (r"(?<![\w.^])([0-9]+)\s*(\\frac\s*(?:\{[0-9]+\}|[0-9])\s*(?:\{[0-9]+\}|[0-9]))", r"(\1+\2)"),
    (r"(?<=[0-9])\s*[xX]\s*(?=[0-9])", "*"), (r"(?i)\b(?:negative|minus)\s+(?=[0-9])", "-"),
    (r"(?i)\b(?:over|under|up to)\s+(?=[$0-9])", "about "), (r"(?i)(?<=[0-9])\s+squared\b(?!\s+[a-z])", "^2"),
    (r"(?i)(?<=[0-9])\s+cubed\b(?!\s+[a-z])", "^3"),
    (r"(?i)(?<=[0-9])\s+(hundred|thousand|million|billion|trillion)\b",
     lambda m: "*1" + "0" * {"hu": 2, "th": 3, "mi": 6, "bi": 9, "tr": 12}[m[1][:2].lower()]))]
CALLED = r"\\(?:(?:arc)?(?:sin|cos|tan)|(?:ar)?(?:sin|cos|tan)h|sec|csc|cot|ln|log|exp)"
MACROS = [(re.compile(pattern), new) for pattern, new in (  # until nothing changes: innermost braces first
    (r"\\frac" + ARGUMENT * 2, r"((\1\2)/(\3\4))"), (r"\\d?binom" + ARGUMENT * 2, r" \\binom(\1\2,\3\4)"),
    (r"\\sqrt\s*\[([^\[\]]*)\]" + ARGUMENT, r" \\sqrt(\2\3,\1)"), (r"\\sqrt\s*([0-9.]+)", r" \\sqrt(\1)"),
    (r"\\sqrt" + ARGUMENT, r" \\sqrt(\1\2)"), (r"\^\s*\{([^{}]*)\}", r"^(\1)"), (r"_\s*\{(\w*)\}", r"_\1 "),
    (r"\\[lr]?vert(?![A-Za-z])", "|"), (r"\|([^|]*)\|", r" \\abs(\1)"),
                                                          (r"\b([0-9]+)\s*!", r" \\factorial(\1)"),
    (r"\\(sin|cos|tan)\s*\^\s*\(-1\)", r"\\arc\1"),
    (r"\\log\s*_\s*(\w+)\s*(?:\((\w+)\)|\s(\w+))", r"(\\ln(\2\3)/\\ln(\1))"),
    (rf"({CALLED})\s*\^\s*([0-9])\s*(\([^()]*\)|\\?[a-z]+)", r"(\1(\3))^\2"),
    (r"(\\(?:sin|cos|tan))\s*\(?([0-9.]+)°\s*\)?", r"\1(\2*\\pi/180)"),
    # \sin 2x
    (rf"({CALLED})\s*((?:[0-9.]|\\pi|\\theta|\b[a-z]\b|(?<=[0-9])[a-z])+(?:\^[0-9])?)", r"\1(\2)"))]
TOKEN = re.compile(r'"[^"]*"|\\[A-Za-z]+|\\.|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?:_[0-9]+)?'
                   r'|[A-Za-z]_(?:[0-9]+|[a-zA-Z])|[A-Za-z]+|[<>]=|\S', re.S)
ALIASES = {r"\leq": r"\le", r"\leqslant": r"\le", r"\geqslant": r"\ge", "<=": r"\le",
           r"\geq": r"\ge", ">=": r"\ge", r"\lt": "<", r"\gt": ">",
           r"\cdot": "*",
           r"\times": "*", r"\ast": "*", r"\div": "/", r"\langle": "(", r"\rangle": ")",
           r"\varnothing": r"\emptyset",
           r"\backslash": r"\setminus", "⟦": "{", "⟧": "}", "{": "(", "}": ")"}
UNITS = set("cm mm km kg mg ml sq ft in lb lbs oz hr hrs mph min sec pm am th st nd rd yr yrs pts tsp tbsp "
            "yd yds kwh dvds tvs cds gb mb".split())
SHORT_WORDS = set("is of to at by on so an no it he we be if my or us rs as".split())


def _is_word(token: str, before: str, after: str) -> bool:
    """Whether letters are a word or a unit rather than a product of variables: 3 dogs, 5 m, 5 a day; but
    3xyz."""
    product = re.search(r"[+*^]\s?\Z", before) or re.match(r"\s?[*^]|\+| \+ ", after)
    short = token.lower() in SHORT_WORDS and not re.search(r"[0-9)]\Z", before)
    long = len(token) > 2 + before[-1:].isdigit() and re.search("[aeiouAEIOU]", token) is not None
    return (token.lower() in UNITS and not re.search(r"[+*]\s?\Z", before) and not re.match(r"\s?[+*]", after)
            or (short or long) and not product
            or token in "mgshL" and re.fullmatch("[^^]?[0-9] ", before) is not None
            or token == "a" and re.match(" [A-Za-z]{2}", after) is not None)


def _tokens(text: str) -> list[str]:
    r"""LaTeX or plain text as tokens; a word starts with a quotation mark, a variable is one letter.

    >>> _tokens("**$72** clips"), _tokens(r"\dfrac12 xy"), _tokens("5 cm^2")
    (['72', '"clips'], ['(', '(', '1', ')', '/', '(', '2', ')', ')', 'x', 'y'], ['5', '"cm'])
    """
    for pattern, new in REWRITES:
        text = pattern.sub(new, text)
    before = ""
    while text != before and len(text) < 5 * LONGEST_ANSWER:
        before = text
        for pattern, new in MACROS:
            text = pattern.sub(new, text)
    tokens = []
    for match in TOKEN.finditer(text):
        token = match[0]
        if token[0] == '"':
            tokens.append('"' + token.strip('"').lower())
        elif not (token.isascii() and token.isalpha()):
            tokens.append(ALIASES.get(token, token))
        elif token == "pi" or token in FUNCTIONS and (token not in ("min", "max")
                                                      or text[match.end():][:1] == "("):
            tokens.append("\\" + token)
        elif _is_word(token, text[max(match.start() - 3, 0): match.start()],
                      text[match.end(): match.end() + 3]):
            # a function?
            tokens.append(("\\" if text[match.end(): match.end() + 1] == "(" else '"') + token.lower())
        else:
            tokens += token
    return re.sub(r'("\S+) \^ (?:[23]|\( [23] \))(?= |$)', r"\1", " ".join(tokens)).split()  # square units


# ---- math: from tokens to values ----

def _small(value) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 200:
        raise ValueError("expected a small whole number")
    return int(value)


def _whole(value) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1:
        raise ValueError("expected a whole number")
    return int(value)


def _greatest(*numbers):
    if not all(isinstance(number, (Fraction, float)) for number in numbers):
        raise ValueError("expected real numbers")
    return max(numbers)


def _determinant(rows):
    if not 1 <= len(rows) <= 5 or {len(row) for row in rows} != {len(rows)}:
        raise ValueError("expected a small square matrix")
    if len(rows) == 1:
        return rows[0][0]
    minors = ([row[:i] + row[i + 1:] for row in rows[1:]] for i in range(len(rows)))
    return sum((-1) ** i * rows[0][i] * _determinant(minor) for i, minor in enumerate(minors))


def _power(base, exponent):
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        if abs(exponent) * (base.numerator.bit_length() + base.denominator.bit_length()) > 8192:
            raise ValueError("power too large")
    return base ** exponent


def _root(x, degree=Fraction(2)):
    odd = isinstance(x, Fraction) and x < 0 and degree % 2 == 1
    return -_power(-x, 1 / degree) if odd else _power(x, 1 / degree)


FUNCTIONS = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "arcsin": cmath.asin, "arccos": cmath.acos,
    "arctan": cmath.atan, "sec": lambda z: 1 / cmath.cos(z), "csc": lambda z: 1 / cmath.sin(z),
    "cot": lambda z: 1 / cmath.tan(z), "ln": cmath.log, "log": cmath.log10, "exp": cmath.exp, "abs": abs,
    "sqrt": _root, "factorial": lambda n: Fraction(math.factorial(_small(n))),
    "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh, "arsinh": cmath.asinh, "arcosh": cmath.acosh,
    "artanh": cmath.atanh, "gcd": lambda *numbers: Fraction(math.gcd(*map(_whole, numbers))),
    "lcm": lambda *numbers: Fraction(math.lcm(*map(_whole, numbers))), "max": _greatest,
    "min": lambda *numbers: -_greatest(*(-number for number in numbers)),
    "binom": lambda n, k: Fraction(math.comb(_small(n), _small(k))),
             "matrix": lambda *rows: ("matrix", *rows),
    "vmatrix": lambda *rows: _determinant([row[1:] if isinstance(row, tuple) else (row,) for row in rows])}
# at two all variables are positive, at one negative, which tells |x| from x; and at each of the others
POINTS = 11
SIGNS = list(itertools.combinations(range(8), 4))  # half of the variables is: sqrt(x^2 y) is not x sqrt(y)
CONSTANTS = {"v_pi": math.pi, "v_infty": math.inf, "v_e": math.e, "v_i": 1j}
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
             ast.Pow: _power}
PYTHON = {"^": "**", "°": "", r"\matrix": "matrix((", r"\vmatrix": "vmatrix((", "&": ",", "\\\\": "),(",
          r"\end": "))",
          **{mark: mark for mark in "+-*/(),[]{}"}}


def _source(tokens: list[str]) -> str:
    """Tokens of one expression in Python's notation; numbers become strings, implied products are written
    out."""
    source, previous = "", ""
    for token in tokens:
        name = token.lstrip("\\")
        kind = ("mark" if token in PYTHON else "number" if re.match(r"\.?[0-9]", token) else
                "function" if name in FUNCTIONS else "operand" if re.fullmatch(r"[^\W\d]\w*", name) else "")
        if not kind or kind == "number" and previous == "operand":
            raise ValueError(f"cannot read {token!r}")
        if previous == "operand" and (kind != "mark" or token in "(["):
            source += "*"
        source += {"mark": PYTHON.get(token), "number": f"'{token}'", "function": name,
                   "operand": "v_" + name}[kind]
        previous = kind if kind == "function" else "operand" if kind != "mark" or token in ")]°" else ""
    return source


def _number(digits: str):
    digits, _, base = digits.partition("_")
    if base:
        return "base " + base, Fraction(int(digits, int(base)))
    if len(digits.lower().partition("e")[2]) > 4:
        raise ValueError("number too large")
    # a printed float is rounded
    return Fraction(digits) if len(digits.partition(".")[2]) < 12 else float(digits)


class _NotReal(ValueError):
    """A square root or logarithm of a negative number, where real numbers are meant."""


def _value(node: ast.AST, point: int, real: bool = False):
    """The value of a syntax tree: a Fraction while it is exact, else float or complex; collections as tagged
    tuples.

    Variables take pseudo-random values that differ at every point: expressions that agree at all of them are
    equal.
    """
    value = _evaluate(node, point, real)
    if not real or not isinstance(value, complex):
        return value
    if abs(value.imag) > 1e-12 * abs(value):
        raise _NotReal(f"{value} is not real")
    return value.real


def _evaluate(node: ast.AST, point: int, real: bool):
    match node:
        case ast.Constant():
            return _number(node.value)
        case ast.Name():
            code = zlib.crc32(f"{node.id} {point}".encode())
            size = 0.5 + code / 2 ** 31
            negative = point == 2 or point - 3 in SIGNS[sum(node.id.encode()) % len(SIGNS)]
            return CONSTANTS.get(node.id, -size if negative else size)
        case ast.UnaryOp():
            value = _value(node.operand, point, real)
            return -value if isinstance(node.op, ast.USub) else value
        case ast.BinOp():
            return OPERATORS[type(node.op)](_value(node.left, point, real), _value(node.right, point, real))
        case ast.Call():
            return FUNCTIONS[node.func.id](*(_value(argument, point, real) for argument in node.args))
        case ast.List(elts=[single]):
            return _value(single, point, real)
        case ast.Tuple() | ast.List() | ast.Set():
            return type(node).__name__, *(_value(element, point, real) for element in node.elts)
    raise ValueError(f"cannot evaluate {node}")


def _values(tokens: list[str], real: bool = False) -> list:
    """Values at all points. real: without `i`, None where an expression in variables has no real value."""
    tree = ast.parse(_source(tokens), mode="eval").body
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id[:2] == "v_"}
    if names <= CONSTANTS.keys():
        return [_value(tree, 0)]
    values = []
    for point in range(POINTS if real and "v_i" not in names else 0):
        try:
            values.append(_value(tree, point, real=True))
        except _NotReal:
            values.append(None)
    if values and None not in values[:2]:  # at the first two, all variables are positive
        return values
    return [_value(tree, point) for point in range(3)]


def _real(x: float, size: float) -> str:
    if not math.isfinite(x) or abs(x) > 1e9:
        return f"{x:.9g}"
    near = Fraction(x).limit_denominator(1000)  # sqrt(2) * sqrt(2) is 2
    return str(near) if abs(x - near) <= 1e-12 * size or abs(x) < 1e-14 else f"{x:.9g}"


def _canonical(value) -> str:
    """One string for equal values, exact or to nine digits."""
    if isinstance(value, tuple):
        head, *items = value[0], *map(_canonical, value[1:])
        return _set(items) if head == "Set" else f"{head}({','.join(items)})"
    if isinstance(value, (Fraction, int)):
        return str(value)
    if cmath.isnan(value):
        raise ValueError("undefined")
    real, imaginary = _real(complex(value).real, abs(value)), _real(complex(value).imag, abs(value))
    return real if imaginary == "0" else f"{real}+{imaginary}i"


def _set(items: list[str]) -> str:
    return "{" + ",".join(sorted(set(items))) + "}"


# ---- math: from tokens to a key ----

VAGUE = set("""not no none could might twice double than least most maybe perhaps probably possibly about
    around approximately roughly nearly almost between either neither half halves quarter third guess except
    wrong unsure minus thirds quarters fourths fifths sixths eighths tenths hundredths thousandths triple
    thrice doubled tripled crore lakh""".split())
FUNCTION_WORDS = set("""square cube root reciprocal inverse opposite negative negation factorial log logarithm
    sine cosine tangent multiple fraction percentage power complement conjugate""".split())
CURVE = {"x", "y", "z", "t", "r", r"\theta"}  # variables of equations that are answers themselves
CLOSING = set("""done as required requested desired needed wanted asked expected above shown total in all
    altogether the final answer result exactly only overall finished thanks thank you qed
    indeed for""".split())
SENTENCE = set("that that's this which as so it it's the i i'm we he she they these there hence thus".split())
SENTENCE_VAGUE = set("""infinity undefined unknown every any real imaginary but if unless other another also
    plus wait actually oops mistake incorrect cannot can't isn't instead rather should""".split())
FLIPPED = {">": "<", r"\ge": r"\le"}


def _split(tokens: list[str], marks: set[str]) -> tuple[list[list[str]], list[str]]:
    """Tokens cut at those marks that stand outside all brackets, and the marks."""
    parts, found, depth = [[]], [], 0
    for token in tokens:
        depth += (token in ("(", "[", "{", r"\matrix", r"\vmatrix")) - (token in (")", "]", "}", r"\end"))
        if token in marks and not depth:
            parts.append([])
            found.append(token)
        else:
            parts[-1].append(token)
    return parts, found


def _quantity(tokens: list[str]) -> list[str]:
    """Tokens without the words around them: she sold 72 clips a day -> 72."""
    words = [i for i, token in enumerate(tokens) if token[0] == '"']
    if not words:
        return tokens
    hard = [i for i, token in enumerate(tokens) if re.match(r"\.?[0-9]|\\", token)]
    if not hard or VAGUE & {tokens[i][1:] for i in words}:
        raise ValueError("words that are not a unit")
    before = [tokens[i][1:] for i in words if i < hard[0]]
    after = [tokens[i][1:] for i in words if i > hard[-1]]
    if FUNCTION_WORDS & set(before[-1:]
                            or ()) or before[-1:] == ["of"] and FUNCTION_WORDS & set(before[-3:-1]):
        raise ValueError("a function in words")
    if after[:1] == ["factorial"]:
        raise ValueError("a function in words")
    first = max((i + 1 for i in words if i < hard[0]), default=0)
    last = min((i for i in words if i > hard[-1]), default=len(tokens))
    around = [token for token in tokens[:first] + tokens[last:] if token[0] != '"' and not token.isalpha()]
    if not set(around) <= set("/-().':"):
        raise ValueError("more than a quantity and its unit")
    while last > first and tokens[last - 1] in ("/", "-", "("):
        last -= 1
    return tokens[first:last]


def _bracketed(tokens: list[str], brackets: str) -> list[list[str]] | None:
    """What the commas inside part, where one pair of brackets holds all of the tokens; else None."""
    if len(tokens) < 3 or tokens[0] not in brackets or tokens[-1] not in ")]}":
        return None
    depths = itertools.accumulate((token in ("(", "[", "{")) - (token in (")", "]", "}")) for token in tokens)
    return _split(tokens[1:-1], {","})[0] if 0 not in list(depths)[:-1] else None


def _without(tokens: list[str], holes: list[list[str]]) -> list[list[str]]:
    """The intervals that are left of an interval, or of a union of such, without some points."""
    intervals = _split(["(", "-", r"\infty", ",", r"\infty", ")"] if tokens in (["R"], ["(", "R", ")"])
                       else tokens, {r"\cup"})[0]
    for hole in sorted(holes, key=lambda hole: float(_values(hole)[0])):
        point = float(_values(hole)[0])
        for i, interval in enumerate(intervals):
            low, high = _bracketed(interval, "([")
            if float(_values(low)[0]) < point < float(_values(high)[0]):
                intervals[i: i + 1] = [interval[:1] + low + [",", *hole, ")"],
                                       ["(", *hole, ",", *high] + interval[-1:]]
                break
    return intervals


def _key(tokens: list[str]) -> str:
    """The canonical form of one expression, interval, tuple, set or matrix, or of a union of such."""
    parts = _split(tokens, {r"\setminus"})[0]
    if len(parts) == 2:
        parts = _without(parts[0], _bracketed(parts[1], "{"))
    else:
        parts = _split(tokens, {r"\cup"})[0]
    if len(parts) > 1:
        return "union " + _set([_key(part) for part in parts])
    tokens = parts[0]
    if tokens and tokens[0] + tokens[-1] in ("[)", "(]") and len(_split(tokens[1:-1], {","})[0]) == 2:
        return tokens[0] + tokens[-1] + _key(["(", *tokens[1:-1], ")"])
    keys = ["*" if value is None else _canonical(value) for value in _values(tokens, real=True)]
    return keys[0] if len({*keys} - {"*"}) == 1 else "~".join(keys)


def _side(tokens: list[str]) -> list[str]:
    """The keys of one side of a relation: two where it has a plus-minus, which a set takes in."""
    tokens = _quantity(tokens)
    if elements := _bracketed(tokens, "{"):
        return [_set([key for element in elements for key in _side(element)])]
    signs = ({r"\pm": "+", r"\mp": "-"}, {r"\pm": "-", r"\mp": "+"}) if {r"\pm",
                                                                         r"\mp"} & set(tokens) else ({},)
    return [_key([sign.get(token, token) for token in tokens]) for sign in signs]


def _is_name(tokens: list[str]) -> bool:
    """Whether tokens name what they equal: x, f(x), g(3), f'(2), dy/dx, the total."""
    if re.fullmatch(r"\(*d[a-z]\)?/\(?d[a-z]\)*", "".join(tokens)):
        return True
    if tokens[1:6] == ["^", "(", "-", "1", ")"]:
        tokens = tokens[:1] + tokens[6:]
    tokens = [token for token in tokens if token != "'"] or tokens
    if {r"\abs", r"\sqrt", r"\ln"} & set(tokens):  # of something unknown: no name
        return False
    if tokens[1:2] == ["("] and tokens[-1] == ")" and re.fullmatch(r"[A-Za-z](_\w+)?", tokens[0]):
        tokens = tokens[:1] + [token for token in tokens[1:] if not re.fullmatch(r"[0-9.]+|[-/]", token)]
    return all(re.fullmatch(r"\"\S+|[^\W\d](_\w+)?|\\[a-zA-Z]+|[(),']", token)
               and token not in CONSTANTS and "v_" + token.strip("\\") not in CONSTANTS for token in tokens)


def _variables(tokens: list[str]) -> set[str]:
    return {token for token in tokens if re.fullmatch(r"[A-Za-z](_\w+)?|\\[A-Za-z]+", token)
            and token not in (r"\pm", r"\mp")
            and token.strip("\\") not in FUNCTIONS and "v_" + token.strip("\\") not in CONSTANTS}


def _restated(parts: list[list[str]]) -> tuple[str | None, bool]:
    """(the value of p + q = 17 + 24 = 41, an answer that repeats what was asked for; whether it is not an
    equation).

    An equation in x, y, z may be one that was asked for; one whose value is 0 then is no restatement at all.
    """
    parts = [_quantity(part) for part in parts]
    first = next((i for i, part in enumerate(parts) if not _variables(part)), len(parts))
    names = set().union(*map(_variables, parts[:first]))
    sides = [_side(part) for part in parts[first:]]
    if not first or not sides or len(names) < 2 and parts[0][:1] != [r"\abs"] or any(len(side) > 1
                                                                                     or side != sides[0]
                                                                                     for side in sides):
        return None, False
    curve = bool(names & CURVE)
    return (None, False) if curve and sides[0] == ["0"] else (sides[0][0], not curve)


def _equation(parts: list[list[str]]) -> "Keys":
    """x = 5 and 3 + 2 = 5 have the value of their last side; an equation in variables also has a key, up to
    scale."""
    relation = None
    try:
        difference = _values(["(", *parts[0], ")", "-", "(", *parts[1], ")"])
        if len(parts) == 2 and len(difference) > 1:
            relation = "equation" + ",".join(_canonical(value / difference[0]) for value in difference[1:])
    except UNREADABLE:  # a name in words, or a tuple, has no difference
        pass
    if _is_name(parts[-1]) and not _is_name(parts[0]):
        parts = parts[::-1]
    named = next((i for i, part in enumerate(parts[:-1]) if not _is_name(part)), len(parts) - 1)
    try:
        sides = [_side(part) for part in parts[named:]]
    except UNREADABLE:
        sides = []
    if sides and all(side == sides[0] for side in sides):
        return Keys(sides[0], relation)
    restated, plain = _restated(parts)
    if not relation and not restated:
        raise ValueError("the sides of the equation differ")
    return Keys([relation or restated], relation, restated, plain)


class Keys(NamedTuple):
    """What an answer is compared by. A list of answers has several values."""

    values: list[str]
    relation: str | None = None  # of an equation or inequality
    restated: str | None = None  # the value of an expression that the answer repeats
    plain: bool = False  # whether what is repeated is surely not an equation that was asked for


def _element(tokens: list[str]) -> Keys:
    """The keys of one answer: x > 3 has the value (3, oo)."""
    parts, marks = _split(tokens, {"=", ":", r"\in", "<", ">", r"\le", r"\ge"})
    try:
        if not marks:
            return Keys(_side(tokens))
        if set(marks) == {":"} and not _is_name(parts[0]):
            return Keys([":".join(map(_key, parts))])
        if set(marks) <= {"=", ":", r"\in"}:
            return _equation(parts)
        if marks[0] in FLIPPED:
            parts, marks = parts[::-1], [FLIPPED[mark] for mark in reversed(marks)]
        if len(parts) == 2:  # x < 3 is -oo < x < 3
            parts, marks = (([["-", r"\infty"], *parts], ["<", *marks]) if _is_name(parts[0]) else
                            ([*parts, [r"\infty"]], [*marks, "<"]))
        low, name, high = parts
        if not _is_name(name) or not set(marks) <= {"<", r"\le"}:
            raise ValueError("not an interval")
        key = _key(["(" if marks[0] == "<" else "[", *low, ",", *high, ")" if marks[1] == "<" else "]"])
        return Keys([key], f"{' '.join(name)} in {key}")
    except UNREADABLE:
        return Keys([_text(tokens)])


def _text(tokens: list[str]) -> str:
    """An answer that is no expression, as plain words; prose is no answer."""
    words = " ".join(token.lstrip('"') for token in tokens if token not in ("(", ")"))
    words = re.sub(r"^(?:(?:so|the|final|answer|is|it|an?)\b[\s:=]*)+(?=\w)", "", words)
    if not words or sum(token[0] == '"' for token in tokens) > 5:
        raise ValueError("neither an expression nor a short text")
    return "text " + words


NOTHING = Keys([])
OPEN = re.compile(r"=[\s_?.$\\]*\Z")  # 40 + 60 = ___ repeats a question


@lru_cache(maxsize=8192)
def _keys(text: str) -> Keys:
    """The keys of a final answer; a list of answers has the key of their set."""
    if len(text) > LONGEST_ANSWER or OPEN.search(text):
        return NOTHING
    try:
        parts, marks = _split(_tokens(text), {",", ";", '"and', '"or'})
        elements = [_element(part) for part in parts if part]
    except UNREADABLE:
        return NOTHING
    values, relations = [value for keys in elements for value in keys.values], [keys.relation
                                                                                for keys in elements]
    if len(values) == 1:
        return elements[0]
    if set(marks) == {'"or'} and all(" in " in (relation or "") for relation in relations):  # x < 1 or x > 2
        return Keys(["union " + _set(values)], " or ".join(sorted(relations)))
    return Keys([_set(values)], _set(relations) if all(relations) else None) if values else NOTHING


def _without_closing(text: str) -> str:
    """An answer without the words that round it off: 42; done -> 42, 42, as required -> 42."""
    found = re.fullmatch(r"(.*[0-9)}\]].*?)\s*[;,]\s*([A-Za-z'’ ]+?)[\s.!]*", text)
    words = found[2].lower().replace("’", "'").split() if found else ()
    sentence = len(words) > 2 and words[0] in SENTENCE and not set(words) & (VAGUE | SENTENCE_VAGUE)
    return found[1] if words and (sentence or set(words) <= CLOSING) else text


def math_key(text: str) -> str | None:
    r"""The canonical form of a final answer: equal for equal answers, None where it cannot be read.

    >>> answers = "$1,000", r"10^3", r"\frac12", "0.5 m", "p + q = 41", "so hard to say it now"
    >>> [math_key(answer) for answer in answers]
    ['1000', '1000', '1/2', '1/2', '41', None]
    """
    keys = _keys(_without_closing(text))
    return keys.restated if keys.plain else keys.values[0] if keys.values else None


def _same(key: str | None, other: str | None) -> bool:
    """Whether two keys agree wherever both have a real value: sqrt(1/k) and 1/sqrt(k) have none for k < 0."""
    if key is None or other is None or key == other:
        return key is not None and key == other
    pairs = list(zip(key.split("~"), other.split("~"), strict=False))
    flat = not re.search(r"[{(\[]", key + other) and key.count("~") == other.count("~") > 0
    return flat and all(a == b or "*" in (a, b) for a, b in pairs)


LABELLED = re.compile(r"\s*(?:\\text(?:bf)?\s*\{\s*|\\mathrm\s*\{\s*)?(?:\(([A-J])\)|([A-J])[.)])"
                      r"[.\s~]*\}?[\s~\\:]*([^\s}].*)", re.S)


def equal_math(given: str, answer: str) -> bool:
    """Whether a given final answer equals the reference, by value; the reference may be an equation or a
    percentage."""
    given = _without_closing(given)
    keys, truth = _keys(given), _keys(answer)
    for one, other in ((given, answer), (answer, given)):  # (C) 12 is C and is 12
        if (both := LABELLED.fullmatch(one)) and not LABELLED.fullmatch(other):
            return other.strip("$.() ") == (both[1] or both[2]) or equal_math(both[3], other)
    if not keys.values or not truth.values:
        return False
    if keys.relation and truth.relation:  # y = 5 is not x = 5
        solved = truth.relation == truth.values[0] or "~" in truth.values[0]  # 2x = 10 is not yet x = 5
        return keys.relation == truth.relation and (solved or keys.values == truth.values)
    if _same(keys.values[0], truth.values[0]) or truth.relation is None and _same(keys.restated,
                                                                                  truth.values[0]):
        return True
    shares = [re.sub(r"\\?%|percent", "/100", text) for text in (given, answer)]  # 50% is 50, or else 0.5
    changed = [share != text for share, text in zip(shares, (given, answer), strict=False)]
    return sum(changed) == 1 and _keys(shares[0]).values == _keys(shares[1]).values != []


# ---- QA ----

STATEMENT = re.compile(
    "####" + HEADING + r"|\\boxed\s*\{?|<answer>|\bI (?:choose|pick|select)\b|\b(?:answer|option|choice)\b"
    r"(?: to th\w+ question)?[*\"'\s]{0,3}(?:(?:\s*(?:is|was|would|should|must|be)\b)+|\s*[:=：])"
    r"|(?=\b(?:option |choice )?\(?[A-J]\)?\*{0,2} is (?:the )?(?:correct|right|best|answer)"
    r"(?: (?:answer|option|choice|one))?\b\W*(?:[.,;:!\n]|\Z|(?:because|since|as|for|here)\b))", re.I)
ASIDE = re.compile(r"\b(?:wrong|incorrect|tempting|false|worst|second)\W*\Z", re.I)
FILLER = (r"[\W_]*(?:(?:the|correct|best|final|option|choice|answer|letter|is|definitely|clearly|therefore"
          r"|thus|most likely|simply|indeed|obviously|certainly)\b"
          r"[\W_]*)*")
LETTER = re.compile(FILLER + r"([A-J])(?!'?\w|\.\w\.)(.*)", re.S | re.I)
NO_LETTER = re.compile(FILLER + r"(?:\b(?:not|none|no|neither|nor|either|both|unclear|unknown|cannot)"
                       r"|n['’]t)\b", re.I)
HEDGE = re.compile(r"(?:[^\w\n]|_)*(?:\n[\W_]*(?=(?:or|vs)\b|[A-J]\W*(?:\n|\Z)))?(?:\b(?:or|vs)\b"
                   r"|(?:(?:and|maybe|perhaps|possibly|option|choice)[\W_]+)*"
                   r"(?!I\W.*\bI[IV])[A-J](?=[\W_]*\Z|[)\]}*.,;/\n]|\s+(?:or|and|are|both)\b))", re.I)
ENDS = re.compile(r"\s*(?:[^\w\s]|\n|\Z)|\s+(?:because|since|as|due|is|which|for|based|given)\b")
CHOICE_LINE = re.compile(
    r"^[^\w\n]*(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)[^\w\n]+)?([A-J])(?:[^\w\n]*$|(?:[).:*]| -)[^\n]*$)"
    r"|^(?![^\n]*(?i:\b(?:not|rule|ruling|incorrect|wrong|(?:eliminat|exclud|discard|consider)\w*)\b"
    r"|n['’]t\b))"
    r"[^\n]*[(*]([A-J])[).*]{1,3}[^\w\n]*$|\A[\W_]*([b-hj])[\W_]*\Z", re.M)
REJECTED = re.compile(r"\b(?:not?|never|incorrect|wrong|false|untrue|rule|ruling)\b|n['’]t\b"
                      r"|\b(?:eliminat|exclud|discard)", re.I)
# between a letter and its choice's text
LABEL = re.compile(r"[*)\]]*[).:\]][*]*[ \t]+|[*)\]]+[ \t]+|[ \t]+[-–—][ \t]+")
# of letters alone
LIST = re.compile(r"(?:[\W_]*(?:\b(?:or|vs|maybe|perhaps|possibly)\b[\W_]*)?\b[A-J]\b)+[\W_]*\Z")
STATED = re.compile(r"\A[\s*_:]*(?:(?:so |thus |the )*(?:final |correct |right |best )*"
                    r"(?:answer|choice|option)(?: is)?\b[\s*_:]*)?", re.I)
LETTERS = "ABCDEFGHIJ"


def _is_hedged(letter: str, rest: str) -> bool:
    """Whether other letters follow as answers, too: A or C, A) Oslo B) Rome; not in a choice's text: D. B and
    C only."""
    line = rest.partition("\n")[0]
    outside = re.sub(r"\b\w+\([^()\n]*\)", "", line)  # P(A|C), O(C)
    others = set(re.findall(r"(?<!not )(?:(?<![|,])\b(?=.\))|\b(?:is |be )|'s )([A-J])\b",
                            outside)) - {letter}
    others |= set(re.findall(r"\b(?:or|vs\.?) \(?\*{0,2}([A-J])(?=[)*.:]*\Z)", outside)) - {letter}
    if others or re.match(r"[\s*_\"')}\].,;:]*\|\W*[A-J]\b", rest):
        return True
    label = LABEL.match(rest)
    if label and not re.match(r"\W*(?:or|vs)\b", rest) and not re.match(r"and\W+[A-J]\b", rest[label.end():]):
        text = line[label.end():]
        return bool(re.match(r"\(?[A-J]\)", text) or LIST.fullmatch(text) or HEDGE.match(rest)
                    and not re.match(r"[A-J]\b(?: and [A-J]\b|[./]? ?\w*[a-z]{2}|[/.]\w|, [A-J],? and )",
                                     text))
    return bool(HEDGE.match(rest))


def _plain(text: str) -> str:
    """A text as choices compare: without case, marks and space."""
    text = re.sub(r"\\(?:text|math)\w*|\\mbox", "", unicodedata.normalize("NFKC", text))
    return " ".join(re.sub(r"[\"'*_`$\\{}]+|[.,;:!\s]+\Z", "", text).casefold().split())


def _text_of(letter: str, choices: Sequence[str]) -> str | None:
    """What the choice of that letter says, as texts compare; None where there is none."""
    return _plain(choices[LETTERS.index(letter)]) if letter in LETTERS[: len(choices)] else None


def _choice(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the only choice whose text a line says, alone, or before a reason."""
    line, _, more = text.strip().partition("\n")
    plain = list(map(_plain, choices))
    if RETRACTED.search(text) or {_plain(other) for other in more.splitlines()} & {*plain}:
        return None
    line = STATED.sub("", line)
    said = {_plain(part) for part in (line, re.split(r"[,.;]? (?:because|since|as|for)\b|[.;] |\}", line)[0])}
    found = [letter for letter, choice in zip(LETTERS, plain, strict=False) if choice and choice in said]
    if not found and re.search("[0-9]", line) and len(line) <= LONGEST_ANSWER:  # 3.0, where choice C is 3
        found = [letter for letter, choice in zip(LETTERS, choices, strict=False) if equal_math(line, choice)]
    return found[0] if len(found) == 1 and plain.count(plain[LETTERS.index(found[0])]) == 1 else None


def _letter(text: str, choices: Sequence[str] = ()) -> str | None:
    """The one letter that text states (B, (b), B) Paris, or Paris); "" for a hedge, None for what states
    nothing."""
    text = re.sub(r"\\(?:text|math)\w*|\\mbox", "", unicodedata.normalize("NFKC", text))
    found = LETTER.match(text)
    if not found:
        named = re.findall(r"(?<!\w)\(([A-J])\)", line := text.partition("\n")[0])
        letter = named[0] if len(named) == 1 and not NO_LETTER.search(line) else "" if named else None
        return _choice(text, choices) or letter
    letter, rest = found[1].upper(), found[2]
    if (found[1].islower() or letter in "AI") and not ENDS.match(rest):
        if _plain(rest.partition("\n")[0]) == _text_of(letter, choices):  # A Rome
            return letter
        hedged = found[1].isupper() and re.match(r"\s+(?:or|and|vs)\b\W*[A-J]\b", rest)
        return "" if hedged else _choice(text, choices)
    label = LABEL.match(rest)
    if label and _plain(rest[label.end():].partition("\n")[0]) == _text_of(letter, choices):  # B. C: B says C
        rest = "\n" + rest.partition("\n")[2]
    return "" if _is_hedged(letter, rest) or RETRACTED.search(rest) else letter


def _is_aside(mark: re.Match, response: str) -> bool:
    """Whether a statement is of another answer: the wrong answer is A; if it were, the answer would be A."""
    before = response[max(mark.start() - 80, 0): mark.start()]
    return bool(ASIDE.search(before) or "would" in mark[0] and re.search(r"\bif\b[^.\n]*\Z", before, re.I))


def _is_answer_line(line: re.Match, choices: Sequence[str]) -> bool:
    """Whether a line with a letter may be an answer: the letter alone, or, where choices are known, with its
    text; never one that calls the choice wrong."""
    letter, rest = line[line.lastindex].upper(), line[0][line.end(line.lastindex) - line.start():]
    said = _text_of(letter, choices)
    if not re.search(r"\w", rest):
        return not choices or said is not None
    if REJECTED.search(rest):
        return False
    return not choices or bool(said) and _plain(rest.lstrip(" ).:*-–—]")).startswith(said)


def final_choice(response: str, choices: Sequence[str] = ()) -> tuple[int, str, str | None]:
    """(start, text, letter) of the last statement of an answer, or of the only line that is nothing but a
    choice."""
    begin, end, others = 0, len(response), set()
    for mark in reversed(list(STATEMENT.finditer(response, max(len(response) - SEARCHED, 0)))):
        text = response[mark.end(): min(mark.end() + LONGEST_ANSWER, end)]
        denied = REFUSED.search(response[max(mark.start() - 20, 0): mark.start()])
        no = re.match(FILLER + r"not\W+(?:option |choice )?\(?([A-J])\b", text, re.I)
        if mark[0][:1] not in ("#", "\\", "<") and (no or _is_aside(mark, response)):
            end = mark.start()
            others |= {no[1].upper()} if no else set()
            continue
        letter = _letter(text, choices) if not denied else None
        if letter and (letter in others or choices and _text_of(letter, choices) is None):
            letter = None
        if letter or mark[0][:1] in ("#", "\\") or NO_LETTER.match(text):  # others may be no statement at all
            return mark.start(), text.strip().partition("\n")[0], letter or None
        if letter == "":  # a hedge: only what stands behind it can still be an answer
            begin = mark.end() + len(text.partition("\n")[0])
            break
    searched = response[: max(begin, 0) + SEARCHED]
    lines = [(m, _letter(searched[m.start(m.lastindex): m.end()]))
             for m in CHOICE_LINE.finditer(searched, begin) if _is_answer_line(m, choices)]
    if len({letter for _, letter in lines}) == 1:
        match, letter = lines[-1]
        start = match.start(match.lastindex)
        return start, response[start: match.end()], letter or None
    last = response.rstrip().rfind("\n") + 1
    plain = list(map(_plain, choices))
    said = [letter for line in response[begin:][-SEARCHED:].splitlines() if _plain(line) in plain
            and (letter := _choice(line, choices))]
    if not lines and len(set(said)) == 1 and last >= begin and _choice(response[last:], choices) == said[0]:
        return last, response[last:].strip(), said[0]
    return len(response), "", None


# ---- all of them ----

TELLING = re.compile(r"[^\W_]|[+/<>=^]|[-*](?=\s*[\d(])|(?<=\d)\.(?=\d)")  # other punctuation is style


def question_key(question: str, choices: tuple[str, ...] | None = None) -> tuple[str, frozenset[str]]:
    """Equal for questions that differ in case, spaces, punctuation or the order of their choices only.

    >>> question_key("What is 2 + 3?", ("6", "5.")) == question_key("what is  2+3", ("5", "6"))
    True
    >>> question_key("2 - 3?") == question_key("23?"), question_key("1.5?") == question_key("15?")
    (False, False)
    """
    question, *choices = ("".join(TELLING.findall(unicodedata.normalize("NFKC", text).casefold()))
                          for text in (question, *(choices or ())))
    return question, frozenset(choices)
