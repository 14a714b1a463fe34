"""The math and multiple-choice verifiers: where a final answer stands, and when two answers are the same.

Read it when you want to know what earns a reward; the method needs only `verify_math`, `verify_qa`, `split_response` and
`text_key`, at the end. Nothing of a response is ever evaluated by Python: an answer is rewritten, cut into tokens of a
fixed list, put into Python's notation and parsed, and its syntax tree is walked by `_value`, which knows arithmetic only.
"""

import ast
import cmath
import math
import operator
import re
import unicodedata
import zlib
from fractions import Fraction
from functools import lru_cache

from support.sandbox import extract_code

LONGEST_ANSWER = 300  # characters; a longer final answer is refused, which bounds the work on it
SEARCHED = 20_000  # characters at the end of a response among which the final answer must stand
UNREADABLE = (ValueError, ArithmeticError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError)


# ---- where the final answer stands ----

REFUSED = re.compile(r"(?:\b(?:not?|never|or|n?either)|n['’]t|\\neq?|[≠~≈]|\\approx|(?<=[\s$=(])-)[$*(\s]*\Z", re.I)
RETRACTED = re.compile(r"\A[^\w?]*(?:\?|(?:text\W+)?(?:or\b|(?:is|was)"
                       r"(?:(?:n['’]t| not)(?: the| right| correct)| wrong| incorrect| false)\b))"
                       r"|\A\s*\n\s*[-+$\\]*[0-9]|\b(?:wait|actually|oops|correction)\b", re.I)
BETWEEN_BOXES = re.compile(r"[\s$.]*(?:,|\bor\b|\band\b|\\text\{\s*(?:or|and)\s*\})[\s$]*(?:and|or)?[\s$]*")


def last_boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of those among the last eight `\boxed{...}` whose braces balance."""
    found = []
    for box in list(re.finditer(r"\\(?:boxed|fbox)\s*(?:\{|([\w.]+))", text))[-8:]:
        end, depth = box.end(), 1
        for brace in re.finditer(r"\\.|[{}]", text[end: end + 2 * LONGEST_ANSWER], re.S) if not box[1] else ():
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if not depth:
                found.append((box.start(), end + brace.end(), text[end: end + brace.start()]))
                break
        if box[1]:
            found.append((box.start(), end, box[1]))  # \boxed 5
    return found


def _final_math(response: str) -> tuple[int, str]:
    """(where the last marker starts, the final answer's text: "" where there is none, or it is denied or hedged)."""
    hashes = response.rfind("####", max(len(response) - SEARCHED, 0))
    offset = hashes + 4 if hashes >= 0 else max(len(response) - SEARCHED, 0)
    text, boxes = response[offset:], last_boxes(response[offset:])
    if boxes:
        start, end, answer = boxes.pop()
        while boxes and BETWEEN_BOXES.fullmatch(text, boxes[-1][1], start):  # \boxed{1} and \boxed{2}: one list
            start, answer = boxes[-1][0], f"{boxes.pop()[2]}, {answer}"
        start += offset
    elif word := hashes >= 0 and re.search(r"[^\W_]", text):  # the first line that says anything
        end = (text.find("\n", word.start()) + 1 or len(text) + 1) - 1
        start, answer = hashes, text[text.rfind("\n", 0, word.start()) + 1: end].strip()
    else:
        return hashes if hashes >= 0 else len(response), ""
    vague = REFUSED.search(response[max(start - 20, 0): start]) or RETRACTED.search(text[end: end + 2000])
    return start, "" if vague else answer


# ---- math: from text to tokens ----

UNICODE = str.maketrans({
    "−": "-", "–": "-", "—": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "⁄": "/", "√": r"\sqrt ", "π": r"\pi ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "±": r"\pm ", "∪": r"\cup ", "∈": r"\in ", "∅": r"\emptyset ",
    "€": "$", "£": "$", "¥": "$", "₹": "$", "¢": "$", "⟨": "(", "⟩": ")"})
ARGUMENT = r"\s*(?:\{([^{}]*)\}|([0-9a-zA-Z]|\\pi))"
REWRITES = [(re.compile(pattern), new) for pattern, new in (  # once, in this order
    (r"<<[^<>]*>>|<\|[^<>]*\|>|</?[a-z]+>|`", " "),          # calculator notes, special tokens, code marks
    (r"(?<![\w)])(\*\*|__)(.+?)\1(?![\w(])", r"\2"),         # **bold**
    (r"^[\s*_'\"]*(?:[-=]>|→)?|[\s*_'\".,;:]+$|\\!|(?<=\S)\s*(?:≈|\\approx).*", ""),
    (r"(?<=[A-Za-z])\.(?![0-9])", ""),                       # sq. ft, 6 p.m.
    (r"[¼-¾⅐-⅞]", lambda m: " " + unicodedata.normalize("NFKC", m[0])),
    (r"[⁰¹²³⁴-⁹⁻]+", lambda m: "^{" + unicodedata.normalize("NFKC", m[0]) + "}"),
    (r"(?s).+", lambda m: unicodedata.normalize("NFKC", m[0]).translate(UNICODE)),
    (r"\\?[$%]|\bpercent\b", " "), (r"\{,\}", ","), (r"\\[dtc]frac", r"\\frac"), (r"\*\*", "^"), (r"[⟦⟧]", "?"),
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\.?|\\(?:displaystyle|limits)", ""),
    (r"\\\{|\\lbrace", "⟦"), (r"\\\}|\\rbrace", "⟧"), (r"(?<!\\)\\[()\[\],;: ]|\\q?quad|(?<=[\w}])~", " "),
    (r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degrees?\b|°|\bdegrees?\b)(?:\s*(?:[CF]\b|\\text\{\s*[CF]\s*\}))?", "° "),
    (r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mbox|operatorname)\s*\{([^{}]*)\}",  # words, not products
     lambda m: " " + re.sub(r"[A-Za-z]{2,}|[a-df-hj-z]", r'"\g<0>"', m[1]) + " "),
    (r"([0-9]*)\.([0-9]*)\\overline\s*\{?([0-9]+)\}?",
     lambda m: f"({m[1] or 0}.{m[2] or 0}+{m[3]}/{'9' * len(m[3])}{'0' * len(m[2])})"),
    (r"\\(?:mathbf|mathbb|mathcal|mathit|boldsymbol|vec|overrightarrow|overline)(?![A-Za-z])", ""),
    (r"\\begin\{[pbB]?(?:matrix|array)\}(?:\{[clr|]*\})?", r"\\matrix "),
    (r"(?:\\\\\s*)?\\end\{[a-zA-Z]*\}", r"\\end "),
    (r"(?<![\w.,(\[{⟦])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,)\]⟧])", lambda m: m[0].replace(",", "")),        # 1,234
    (r"(?<![\w.,])[0-9]{1,3}(?: [0-9]{3})+(?![0-9/])", lambda m: m[0].replace(" ", "")),                 # 1 234
    (r"(?<![\w.^])([0-9]+)(?: and|-)? ([0-9]+)/([0-9]+)", r"(\1+\2/\3)"),                                # 2 1/2
    (r"(?<![\w.^])([0-9]+)\s*(\\frac\s*(?:\{[0-9]+\}|[0-9])\s*(?:\{[0-9]+\}|[0-9]))", r"(\1+\2)"),
    (r"(?<=[0-9])\s*[xX]\s*(?=[0-9])", "*"), (r"(?i)\b(?:negative|minus)\s+(?=[0-9])", "-"),
    (r"(?i)\b(?:over|under|up to)\s+(?=[$0-9])", "about "), (r"(?i)(?<=[0-9])\s+squared\b(?!\s+[a-z])", "^2"),
    (r"(?i)(?<=[0-9])\s+(hundred|thousand|million|billion)\b",
     lambda m: "*1" + "0" * {"h": 2, "t": 3, "m": 6, "b": 9}[m[1][0].lower()]))]
CALLED = r"\\(?:(?:arc)?(?:sin|cos|tan)|sec|csc|cot|ln|log|exp)"
MACROS = [(re.compile(pattern), new) for pattern, new in (  # until nothing changes: innermost braces first
    (r"\\frac" + ARGUMENT * 2, r"((\1\2)/(\3\4))"), (r"\\d?binom" + ARGUMENT * 2, r" \\binom(\1\2,\3\4)"),
    (r"\\sqrt\s*\[([^\[\]]*)\]" + ARGUMENT, r" \\sqrt(\2\3,\1)"), (r"\\sqrt\s*([0-9.]+)", r" \\sqrt(\1)"),
    (r"\\sqrt" + ARGUMENT, r" \\sqrt(\1\2)"), (r"\^\s*\{([^{}]*)\}", r"^(\1)"), (r"_\s*\{(\w*)\}", r"_\1 "),
    (r"\\[lr]?vert(?![A-Za-z])", "|"), (r"\|([^|]*)\|", r" \\abs(\1)"), (r"\b([0-9]+)\s*!", r" \\factorial(\1)"),
    (r"\\(sin|cos|tan)\s*\^\s*\(-1\)", r"\\arc\1"),
    (r"\\log\s*_\s*(\w+)\s*(?:\((\w+)\)|\s(\w+))", r"(\\ln(\2\3)/\\ln(\1))"),
    (rf"({CALLED})\s*\^\s*([0-9])\s*(\([^()]*\)|\\?[a-z]+)", r"(\1(\3))^\2"),
    (r"(\\(?:sin|cos|tan))\s*\(?([0-9.]+)°\s*\)?", r"\1(\2*\\pi/180)"),
    (rf"({CALLED})\s*((?:[0-9.]|\\pi|\\theta|\b[a-z]\b|(?<=[0-9])[a-z])+(?:\^[0-9])?)", r"\1(\2)"))]  # \sin 2x
TOKEN = re.compile(r'"[^"]*"|\\[A-Za-z]+|\\.|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?:_[0-9]+)?'
                   r'|[A-Za-z]_(?:[0-9]+|[a-zA-Z])|[A-Za-z]+|[<>]=|\S', re.S)
ALIASES = {r"\leq": r"\le", "<=": r"\le", r"\geq": r"\ge", ">=": r"\ge", r"\lt": "<", r"\gt": ">", r"\cdot": "*",
           r"\times": "*", r"\ast": "*", r"\div": "/", r"\langle": "(", r"\rangle": ")", r"\varnothing": r"\emptyset",
           "⟦": "{", "⟧": "}", "{": "(", "}": ")"}
SHORT_WORDS = set("cm mm km kg mg ml sq ft in lb lbs oz hr hrs mph min sec pm am th st nd rd "
                  "is of to at by on so an no it he we be if my or us rs".split())


def _is_word(token: str, before: str, after: str) -> bool:
    """Whether letters are a word or a unit rather than a product of variables: 3 dogs, 5 m, 5 a day; but 3xyz."""
    return (token.lower() in SHORT_WORDS
            or len(token) > 2 + before[-1:].isdigit() and re.search("[aeiouAEIOU]", token) is not None
            or token in "mgshL" and re.fullmatch("[0-9] ", before) is not None
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
        elif token in FUNCTIONS or token == "pi":
            tokens.append("\\" + token)
        elif _is_word(token, text[max(match.start() - 2, 0): match.start()], text[match.end(): match.end() + 3]):
            tokens.append('"' + token.lower())
        else:
            tokens += token
    return re.sub(r'("\S+) \^ (?:[23]|\( [23] \))(?= |$)', r"\1", " ".join(tokens)).split()  # square units


# ---- math: from tokens to values ----

def _small(value) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 200:
        raise ValueError("expected a small whole number")
    return int(value)


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
    "binom": lambda n, k: Fraction(math.comb(_small(n), _small(k))), "matrix": lambda *rows: ("matrix", *rows)}
CONSTANTS = {"v_pi": math.pi, "v_infty": math.inf, "v_e": math.e, "v_i": 1j}
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
             ast.Pow: _power}
PYTHON = {"^": "**", "°": "", r"\matrix": "matrix((", "&": ",", "\\\\": "),(", r"\end": "))",
          **{mark: mark for mark in "+-*/(),[]{}"}}


def _source(tokens: list[str]) -> str:
    """Tokens of one expression in Python's notation; numbers become strings, implied products are written out."""
    source, previous = "", ""
    for token in tokens:
        name = token.lstrip("\\")
        kind = ("mark" if token in PYTHON else "number" if re.match(r"\.?[0-9]", token) else
                "function" if name in FUNCTIONS else "operand" if re.fullmatch(r"[^\W\d]\w*", name) else "")
        if not kind or kind == "number" and previous == "operand":
            raise ValueError(f"cannot read {token!r}")
        if previous == "operand" and (kind != "mark" or token in "(["):
            source += "*"
        source += {"mark": PYTHON.get(token), "number": f"'{token}'", "function": name, "operand": "v_" + name}[kind]
        previous = kind if kind == "function" else "operand" if kind != "mark" or token in ")]°" else ""
    return source


def _number(digits: str):
    digits, _, base = digits.partition("_")
    if base:
        return "base " + base, Fraction(int(digits, int(base)))
    if len(digits.lower().partition("e")[2]) > 4:
        raise ValueError("number too large")
    return Fraction(digits) if len(digits.partition(".")[2]) < 12 else float(digits)  # a printed float is rounded


def _value(node: ast.AST, point: int):
    """The value of a syntax tree: a Fraction while it is exact, else float or complex; collections as tagged tuples.

    Variables take pseudo-random values that differ at every point: expressions that agree at three are equal.
    """
    match node:
        case ast.Constant():
            return _number(node.value)
        case ast.Name():
            size = 0.5 + zlib.crc32(f"{node.id} {point}".encode()) / 2 ** 31
            return CONSTANTS.get(node.id, -size if point == 2 else size)  # one negative point tells |x| from x
        case ast.UnaryOp():
            return -_value(node.operand, point) if isinstance(node.op, ast.USub) else _value(node.operand, point)
        case ast.BinOp():
            return OPERATORS[type(node.op)](_value(node.left, point), _value(node.right, point))
        case ast.Call():
            return FUNCTIONS[node.func.id](*(_value(argument, point) for argument in node.args))
        case ast.List(elts=[single]):
            return _value(single, point)
        case ast.Tuple() | ast.List() | ast.Set():
            return type(node).__name__, *(_value(element, point) for element in node.elts)
    raise ValueError(f"cannot evaluate {node}")


def _values(tokens: list[str]) -> list:
    tree = ast.parse(_source(tokens), mode="eval").body
    symbolic = any(isinstance(n, ast.Name) and n.id[:2] == "v_" and n.id not in CONSTANTS for n in ast.walk(tree))
    return [_value(tree, point) for point in range(3 if symbolic else 1)]


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

VAGUE = set("""not no none could might twice double than least most maybe perhaps probably possibly about around
    approximately roughly nearly almost between either neither half halves quarter third guess except wrong unsure""".split())
FLIPPED = {">": "<", r"\ge": r"\le"}


def _split(tokens: list[str], marks: set[str]) -> tuple[list[list[str]], list[str]]:
    """Tokens cut at those marks that stand outside all brackets, and the marks."""
    parts, found, depth = [[]], [], 0
    for token in tokens:
        depth += (token in ("(", "[", "{", r"\matrix")) - (token in (")", "]", "}", r"\end"))
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
    first = max((i + 1 for i in words if i < hard[0]), default=0)
    last = min((i for i in words if i > hard[-1]), default=len(tokens))
    around = [token for token in tokens[:first] + tokens[last:] if token[0] != '"' and not token.isalpha()]
    if not set(around) <= set("/-().':"):
        raise ValueError("more than a quantity and its unit")
    while last > first and tokens[last - 1] in ("/", "-", "("):
        last -= 1
    return tokens[first:last]


def _key(tokens: list[str]) -> str:
    """The canonical form of one expression, interval, tuple, set or matrix, or of a union of such."""
    parts = _split(tokens, {r"\cup"})[0]
    if len(parts) > 1:
        return "union " + _set([_key(part) for part in parts])
    if tokens and tokens[0] + tokens[-1] in ("[)", "(]") and len(_split(tokens[1:-1], {","})[0]) == 2:
        return tokens[0] + tokens[-1] + _key(["(", *tokens[1:-1], ")"])
    keys = [_canonical(value) for value in _values(tokens)]
    return keys[0] if len(set(keys)) == 1 else "~".join(keys)


def _side(tokens: list[str]) -> list[str]:
    """The keys of one side of a relation: two where it has a plus-minus."""
    tokens = _quantity(tokens)
    signs = ({r"\pm": "+", r"\mp": "-"}, {r"\pm": "-", r"\mp": "+"}) if {r"\pm", r"\mp"} & set(tokens) else ({},)
    return [_key([sign.get(token, token) for token in tokens]) for sign in signs]


def _is_name(tokens: list[str]) -> bool:
    return all(re.fullmatch(r"\"\S+|[^\W\d](_\w+)?|\\[a-zA-Z]+|[(),']", token)
               and token not in CONSTANTS and "v_" + token.strip("\\") not in CONSTANTS for token in tokens)


def _equation(parts: list[list[str]]) -> tuple[list[str], str | None]:
    """x = 5 and 3 + 2 = 5 have the value of their last side; an equation in variables also has a key, up to scale."""
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
    sides = [_side(part) for part in parts[named:]]
    if all(side == sides[0] for side in sides):
        return sides[0], relation
    if not relation:
        raise ValueError("the sides of the equation differ")
    return [relation], relation


def _element(tokens: list[str]) -> tuple[list[str], str | None]:
    """(keys of the values, key of the relation) of one answer: x > 3 has the value (3, oo)."""
    parts, marks = _split(tokens, {"=", ":", r"\in", "<", ">", r"\le", r"\ge"})
    try:
        if not marks:
            return _side(tokens), None
        if set(marks) == {":"} and not _is_name(parts[0]):
            return [":".join(map(_key, parts))], None
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
        return [key], f"{' '.join(name)} in {key}"
    except UNREADABLE:
        return [_text(tokens)], None


def _text(tokens: list[str]) -> str:
    """An answer that is no expression, as plain words; prose is no answer."""
    words = " ".join(token.lstrip('"') for token in tokens if token not in ("(", ")"))
    words = re.sub(r"^(?:(?:so|the|final|answer|is|it|an?)\b[\s:=]*)+(?=\w)", "", words)
    if not words or sum(token[0] == '"' for token in tokens) > 5:
        raise ValueError("neither an expression nor a short text")
    return "text " + words


@lru_cache(maxsize=8192)
def _math_keys(text: str) -> tuple[str | None, str | None]:
    """(key of the value, key of the relation) of a final answer; a list of answers has the key of their set."""
    if len(text) > LONGEST_ANSWER:
        return None, None
    try:
        elements = [_element(part) for part in _split(_tokens(text), {",", ";", '"and', '"or'})[0] if part]
    except UNREADABLE:
        return None, None
    values, relations = [value for keys, _ in elements for value in keys], [relation for _, relation in elements]
    if len(values) == 1:
        return values[0], relations[0]
    return (_set(values), _set(relations) if all(relations) else None) if values else (None, None)


def verify_math(response: str, answer: str) -> float:
    r"""1.0 if the response's final answer equals the reference, else 0.0; never raises on a response.

    The final answer stands after the last `####` or in the last `\boxed{}`; one that is denied, hedged or retracted is
    none. Numbers and expressions compare by value (exactly where both are exact), collections element by element.

    >>> cases = [("#### $1,234.50 a day", "1234.5"), (r"\boxed{\frac{\sqrt2}{2}}", r"\frac{1}{\sqrt{2}}"),
    ...          ("#### 48 + 24 = 72 clips", "72"), (r"so $x = \boxed{5}$.", "5"), ("#### 50%", "0.5"),
    ...          (r"\boxed{[1, 2)}", r"1 \le x < 2"), (r"\boxed{(x+1)^2}", "x^2+2x+1"), (r"\boxed{3, 1}", "1, 3")]
    >>> [verify_math(*case) for case in cases]
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    >>> wrong = [("#### 5 or 6", "5"), ("#### 5, 6", "5"), ("It is 5.", "5"), ("#### 0.333", "1/3"), ("####", "5"),
    ...          (r"\boxed{(2,1)}", "(1,2)"), (r"\boxed{10^{10^{10}}}", "10"), ("#### 5 #### 6", "5"), ("#### -5", "5")]
    >>> sum(verify_math(*case) for case in wrong)
    0.0
    """
    final = _final_math(response)[1]
    (value, relation), (true_value, true_relation) = _math_keys(final), _math_keys(answer)
    if relation and true_relation:  # y = 5 is not x = 5
        return float(relation == true_relation)
    if None in (value, true_value) or value == true_value:
        return float(value is not None and value == true_value)
    shares = [re.sub(r"\\?%|percent", "/100", text) for text in (final, answer)]  # 50% is 50, or else 0.5
    return float((shares[0] == final) != (shares[1] == answer) and _math_keys(shares[0])[0] == _math_keys(shares[1])[0])


# ---- QA ----

STATEMENT = re.compile(
    r"####|\\boxed\s*\{?|<answer>|\bI (?:choose|pick|select)\b|\b(?:answer|option|choice)\b"
    r"(?: to th\w+ question)?[*\"'\s]{0,3}(?:(?:\s*(?:is|was|would|should|must|be)\b)+|\s*[:=：])"
    r"|(?=\b(?:option |choice )?\(?[A-J]\)?\*{0,2} is (?:the )?(?:correct|right|best|answer)\b)", re.I)
FILLER = r"[\W_]*(?:(?:the|correct|best|option|choice|answer|letter|is|definitely|clearly|therefore|thus)\b[\W_]*)*"
LETTER = re.compile(FILLER + r"([A-J])(?!'?\w|\.\w\.)(.*)", re.S | re.I)
NO_LETTER = re.compile(FILLER + r"(?:\b(?:not|none|no|neither|nor|either|both|unclear|unknown|cannot)|n['’]t)\b", re.I)
HEDGE = re.compile(r"[\W_]*(?:\b(?:or|vs)\b|(?:(?:and|maybe|perhaps|possibly|option|choice)[\W_]+)*"
                   r"(?!I\W.*\bI[IV])[A-J](?=[\W_]*\Z|[)\]}*.,;/\n]|\s+(?:or|and|are|both)\b))", re.I)
ENDS = re.compile(r"\s*(?:[^\w\s]|\n|\Z)|\s+(?:because|since|as|due|is|which|for|based|given)\b")
CHOICE_LINE = re.compile(
    r"^[^\w\n]*(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)[^\w\n]+)?([A-J])(?:[^\w\n]*$|(?:[).:*]| -)[^\n]*$)"
    r"|^(?![^\n]*(?:\bnot|n['’]t)\b)[^\n]*[(*]([A-J])[).*]{1,3}[^\w\n]*$|\A[\W_]*([b-hj])[\W_]*\Z", re.M)


def _letter(text: str) -> str | None:
    """The one letter that text states (B, (b), B) Paris); None for an article, a pronoun, a hedge or nothing."""
    text = re.sub(r"\\(?:text|math)\w*|\\mbox", "", unicodedata.normalize("NFKC", text))
    found = LETTER.match(text)
    if not found:
        named = re.findall(r"\(([A-J])\)", line := text.partition("\n")[0])
        return named[0] if len(named) == 1 and not NO_LETTER.search(line) else None
    letter, rest = found[1].upper(), found[2]
    if (found[1].islower() or letter in "AI") and not ENDS.match(rest):
        return None
    others = set(re.findall(r"(?<!not )(?:\b(?=.\))|\b(?:is |be )|'s )([A-J])\b", rest.partition("\n")[0])) - {letter}
    return None if others or HEDGE.match(rest) or RETRACTED.search(rest) else letter


def _final_qa(response: str) -> tuple[int, str, str | None]:
    """(start, text, letter) of the last statement of an answer, or of the only line that is nothing but a choice."""
    for mark in reversed(list(STATEMENT.finditer(response, max(len(response) - SEARCHED, 0)))):
        text = response[mark.end(): mark.end() + LONGEST_ANSWER]
        letter = _letter(text) if not REFUSED.search(response[max(mark.start() - 20, 0): mark.start()]) else None
        if letter or mark[0][:1] in ("#", "\\") or NO_LETTER.match(text):  # others may be no statement at all
            return mark.start(), text.strip().partition("\n")[0], letter
    lines = [(m, _letter(response[m.start(m.lastindex): m.end()])) for m in CHOICE_LINE.finditer(response[:SEARCHED])]
    if len({letter for _, letter in lines}) == 1:
        match, letter = lines[-1]
        return match.start(match.lastindex), response[match.start(match.lastindex): match.end()], letter
    return len(response), "", None


def verify_qa(response: str, answer: str) -> float:
    r"""1.0 if the last statement of the response names the reference letter (A to J) and no other one, else 0.0.

    >>> right = ["#### b", "B) Paris", r"\boxed{\text{(B)}}", "The answer is B.", "A? No. **B**", "#### B, not A"]
    >>> [verify_qa(response, "B") for response in right]
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    >>> wrong = ["#### A or B", "#### none", "The answer is a dog", "The answer is not A", "I think so", "A, B"]
    >>> sum(verify_qa(response, "A") + verify_qa(response, "I") for response in wrong)
    0.0
    """
    return float(_final_qa(response)[2] == answer.strip("() .").upper())


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
                          for text in (question, *(choices or ())))  # fmt: skip
    return question, frozenset(choices)



def split_response(response: str, domain: str) -> tuple[str, str]:
    """(thinking, answer): what stands before the final answer's marker, and the final answer ("" where there is none).

    >>> split_response("6 * 7 is 42.\\n#### 42", "math")
    ('6 * 7 is 42.\\n', '42')
    """
    if domain == "code":
        code = extract_code(response)
        return response.partition("```")[0] if "```" in response else response.replace(code, ""), code
    if domain not in ("math", "qa"):
        thinking, marker, answer = response.rpartition("####")
        return (thinking, answer.strip()) if marker else (response, "")
    start, answer = _final_math(response) if domain == "math" else _final_qa(response)[:2]
    return response[:start], answer


def text_key(response: str, domain: str) -> str | None:
    """The canonical final answer of a response, code apart: equal for equal answers, None where there is none.

    >>> [text_key(r, "math") for r in ("#### $1,000", "#### 1000.00", r"\\boxed{\\frac12}", "#### 0.5", "who knows")]
    ['1000', '1000', '1/2', '1/2', None]
    """
    if domain not in ("math", "qa"):
        answer = split_response(response, domain)[1] or response  # its verifier may read all of it
        return " ".join(answer.casefold().split()) or None
    return _final_qa(response)[2] if domain == "qa" else _math_keys(_final_math(response)[1])[0]
