"""The code verifier: run a program that nobody trusts against its tests, so that it can neither cheat nor do
harm.

Read it when you want to know how; the method needs only `verify_code`, at the end. A light server process,
which has imported neither torch nor any test, forks two processes a run: `judge` holds the tests, `solve` the
program, and only calls and plain values cross between them. Both are confined by the kernel as far as the
system allows (`confine`).
"""

import ast
import builtins
import contextlib
import ctypes
import functools
import gc
import importlib
import itertools
import json
import math
import os
import pathlib
import platform
import random
import re
import resource
import select
import signal
import socket
import string
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import types
import warnings
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, MappingView, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from operator import attrgetter

# ---- Code: the program in a response
# ---------------------------------------------------------------------------------

CODE_LIMIT = 100_000  # characters; a longer program counts as none
FENCE = re.compile(r"```")
PYTHON = ("python", "python3", "py")
DEFINES = re.compile(r"^(?:async\s+def|def|class)\b|^\w+\s*=\s*lambda\b", re.MULTILINE)
TESTING = re.compile(r"test(?:_|[A-Z]|\Z)|Test|(?:check|main)\Z")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def parse_code(code: str, limit: float = CODE_LIMIT) -> ast.Module | None:
    """The syntax tree of a program, or None where it is empty, longer than `limit`, or refused by the
    parser."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code if len(code) <= limit else "")
        return tree if tree.body else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _close(text: str, begin: int, indent: str, tries: Iterator[int]) -> tuple[int, int]:
    """(end of the code, end of the fence) of the block that begins at `begin`. A fence at the indent of the
    first one closes it; any other does where Python can read what stands before it, so none in a docstring
    does."""
    for fence in FENCE.finditer(text, begin):
        line = text.rfind("\n", 0, fence.start()) + 1
        before = text[line: fence.start()] if line >= begin else "?"
        if before == indent and not indent.strip():
            return line, fence.end()
        if next(tries, None) and parse_code(textwrap.dedent(text[begin: fence.start()])):
            return fence.start() - (0 if before.strip() else len(before)), fence.end()
    return len(text), len(text)


def _blocks(text: str) -> list[tuple[str, str]]:
    """(mark, code) of all fenced blocks. A fence need not be alone on its line: ```python def f(): ...```"""
    blocks, place, tries = [], 0, iter(range(1, 20))
    if text.count("```") > 300:
        return []
    while (start := text.find("```", place)) >= 0:
        indent = text[text.rfind("\n", 0, start) + 1: start]
        mark = re.compile(r"[ \t]*([\w+-]*)").match(text, start + 3)
        line_end = (text.find("\n", start) + 1 or len(text) + 1) - 1
        python = mark[1].lower() in PYTHON
        if (close := text.find("```", start + 3, line_end)) >= 0:
            blocks.append((mark[1].lower(), text[mark.end(): close].strip()) if python else
                          ("", text[start + 3: close].strip()))
            place = close + 3
            continue
        here = python and DEFINES.match(text[mark.end(): line_end].strip())  # the code begins beside its mark
        begin = mark.end() if here else min(line_end + 1, len(text))
        end, place = _close(text, begin, indent, tries)
        blocks.append((mark[1].lower(), text[begin: end].strip() if here
                       else textwrap.dedent(text[begin: end])))
    return blocks


@functools.lru_cache(2**10)  # asked for the key, the reward, the embedding and the features of a response
def find_program(text: str) -> str:
    r"""The last block marked python or py that defines something, else the last such unmarked one, else the
    last marked one, else the last, else the whole text if it parses, else "". Passed over, where there is
    another, are a block that defines nothing but tests (test_..., main) and one that does not parse. Blocks
    that define what the chosen one reads are put before it. A block that is cut off counts up to the end of
    the text.

    >>> find_program("First\n```python\nx = 1\n```\nor rather\n```py\nx = 2\n```\nwhich prints\n```\n2\n```")
    'x = 2\n'
    >>> find_program("```python\ndef f(): return 1\n```\nFor example:\n```python\nprint(f())\n```")
    'def f(): return 1\n'
    >>> find_program("```\nx = 3"), find_program("x = 4"), find_program("I am not sure.")
    ('x = 3', 'x = 4', '')
    """
    blocks = [(mark, code) for mark, code in _blocks(text) if mark in (*PYTHON, "")][-20:]
    if not blocks:
        return "" if "```" in text or parse_code(text) is None else text
    trees = [parse_code(code) for _, code in blocks]
    marked = [i for i, (mark, _) in enumerate(blocks) if mark]
    defining = [i for i, (_, code) in enumerate(blocks) if DEFINES.search(code)]

    def only_tests(i: int) -> bool:
        made = [node.name for node in trees[i].body if isinstance(node, (ast.ClassDef, *FUNCTIONS[:2]))]
        return bool(made) and all(map(TESTING.match, made))

    found = [i for i in defining if i in marked] or defining or marked or list(range(len(blocks)))
    found = [i for i in found if trees[i]] or found
    chosen = ([i for i in found if not (trees[i] and only_tests(i))] or found)[-1]
    program, tree = blocks[chosen][1], trees[chosen]
    for i in reversed(range(chosen)):  # what it reads and does not define
        if tree and trees[i] and not only_tests(i):
            own = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)} | _bound(tree.body)
            names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
            own |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
            if ({node.id for node in names} - own) & _bound(trees[i].body):
                program = f"{blocks[i][1]}\n{program}"
                tree = parse_code(program)
    return program


@functools.lru_cache(2**10)
def code_key(program: str) -> str | None:
    r"""What counts as the same program: the syntax tree without docstrings, the locals of each function
    numbered.

    Names that also stand for something else (global, built in, imported, a keyword) are kept. None: nothing
    parses.

    >>> code_key("def f(x):\n    'Doubles.'\n    return 2 * x  # twice") == code_key("def f(n): return 2 * n")
    True
    >>> code_key("def f(x): return 2 * x") == code_key("def f(x): return x * 2"), code_key("def f(:")
    (False, None)
    """
    if (tree := parse_code(program)) is None:
        return None
    nodes, outside, functions = list(ast.walk(tree)), [tree], []
    for node in outside:  # grows while it is read: all that stands outside of functions
        for child in ast.iter_child_nodes(node):
            (functions if isinstance(child, FUNCTIONS) else outside).append(child)
    local = {node.arg for node in nodes if isinstance(node, ast.arg)}
    local |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    local -= {*dir(builtins), *(node.id for node in outside if isinstance(node, ast.Name))}
    for node in nodes:
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS[:2])) and ast.get_docstring(node,
                                                                                              clean=False):
            node.body = node.body[1:] or [ast.Pass()]
        if not isinstance(node, (ast.Name, ast.arg, ast.Attribute, ast.Constant)):
            values = [value if isinstance(value, list) else [value] for _, value in ast.iter_fields(node)]
            local.difference_update(name for value in values for name in value if isinstance(name, str))
    for function in functions:
        numbers = {}
        for node in ast.walk(function):
            field = {ast.Name: "id", ast.arg: "arg"}.get(type(node), "lineno")
            if (name := getattr(node, field, None)) in local:
                setattr(node, field, str(numbers.setdefault(name, len(numbers))))
    try:
        return ast.dump(tree)
    except RecursionError:  # deeper than it can be written down, and perhaps right
        return program


# ---- Code: the tests in one process, the solution in another
# ---------------------------------------------------------

MESSAGE_LIMIT = 1 << 24  # bytes
MUTABLE = (list, deque, bytearray, set, dict)
RECORDS = {complex: "real imag", Fraction: "numerator denominator", range: "start stop step",
           date: "year month day",
           timedelta: "days seconds microseconds", datetime: "year month day hour minute second microsecond"}
PLAIN = {  # type: (the parts of a value, the value of its parts)
    **{kind: (iter, kind) for kind in (list, tuple, set, frozenset, deque, bytes, bytearray)},
    **{kind: (kind.items, lambda pairs, kind=kind: kind(dict(pairs)))
       for kind in (dict, Counter, OrderedDict)},
    **{kind: (attrgetter(*names.split()), lambda parts, kind=kind: kind(*parts)) for kind,
       names in RECORDS.items()},
    int: (lambda value: [hex(value)], lambda parts: int(*parts, 16)),
    Decimal: (lambda value: [str(value)], lambda parts: Decimal(*parts)), Iterator: (iter, iter)}
TYPES = {kind.__name__: kind for kind in PLAIN}
# what tests may ask of values
METHODS = set().union(*map(dir, (*PLAIN, str, float, BaseException, random.Random)))
METHODS.add("dtype")  # EvalPlus asks arrays for it, and none crosses


def encode(value, opaque=False):
    """A plain value as JSON. A subclass becomes its plain base, without methods, and numpy's numbers
    Python's.

    opaque: any other object that is true becomes a mark.
    """
    kind = next((kind for kind in type(value).__mro__ if kind in (bool, str, float) or kind in PLAIN), None)
    if value is None or kind in (bool, str, float) or kind is int and abs(value) < 1 << 60:
        return value
    if kind is None and getattr(value, "ndim", None) == 0:  # a number of numpy's
        return encode(value.item(), opaque)
    if isinstance(value, (Iterator, MappingView)):
        kind = Iterator
    elif kind is None and opaque and value:
        return ["object", []]
    return [kind.__name__, [encode(part, opaque) for part in PLAIN[kind][0](value)]]


def decode(message):
    """The value that `encode` has written; a mark becomes an object that equals nothing."""
    if not isinstance(message, list):
        return message
    name, parts = message
    return object() if name == "object" else PLAIN[TYPES[name]][1](map(decode, parts))


def send(channel, *message):
    """Write one message, a line of JSON."""
    channel.write(json.dumps(message).encode() + b"\n")
    channel.flush()


def receive(channel):
    """The other side's message. One that makes no sense ends this process: no verdict, no reward."""
    try:
        return [decode(part) for part in json.loads(channel.readline(MESSAGE_LIMIT))]
    except Exception:
        os._exit(1)


def call(channel, name, /, *args, **kwargs):
    """Call a function of the solution from the tests; what it does to its arguments happens to them here,
    too."""
    send(channel, name, encode(args), encode(kwargs))
    result, error, changed = receive(channel)
    for old, new in zip([*args, *kwargs.values()], changed, strict=False):
        if isinstance(old, MUTABLE) and type(old) is type(new):
            old.clear()
            (old.update if isinstance(old, (set, dict)) else old.extend)(new)
    if error is None:
        return result
    kinds = [kind for name in error if isinstance(kind := getattr(builtins, name, None), type)]
    kind = next((kind for kind in kinds if issubclass(kind, BaseException)), RuntimeError)
    # StopIteration would cut a loop over calls short
    raise RuntimeError if kind is StopIteration else kind(*result)


def solve(connection):
    """The solution's process: define it, then answer calls. It never sees a test, but those that must run
    beside it."""
    channel, module = connection.makefile("rwb"), types.ModuleType("solution")
    sys.modules["solution"], functions = module, vars(module)

    def define(program, names):
        exec(compile(program, "solution", "exec"), functions)
        return [name for name in names if name not in functions]

    def run_beside(tests, secret):
        exec(compile(tests, "tests", "exec"), functions)
        return secret

    functions.update({"<define>": define, "<beside>": run_beside})
    while True:
        name, args, kwargs = receive(channel)
        try:
            reply = encode(functions[name](*args, **kwargs), opaque=True), None
        except BaseException as error:  # SystemExit, too
            reply = encode(error.args, opaque=True), encode([kind.__name__ for kind in type(error).__mro__])
        changed = [value if isinstance(value, MUTABLE) else None for value in (*args, *kwargs.values())]
        send(channel, *reply, encode(changed, opaque=True))


def judge(connection, request, verdict):
    """The process of the tests: it alone knows them, and says "1" when all of them have passed."""
    channel = connection.makefile("rwb")
    program, tests = json.load(request.makefile("rb"))
    names, modules, beside = survey(tree := ast.parse(tests))
    if missing := call(channel, "<define>", program, names):
        raise NameError(f"the solution lacks {missing}")
    if beside:
        secret = os.urandom(16).hex()
        passed = call(channel, "<beside>", tests, secret) == secret
    else:
        space = {name: importlib.import_module(name) for name in modules}
        exec(compile(tree, "tests", "exec"), space | {name: functools.partial(call, channel, name)
                                                      for name in names})
        passed = True
    if passed:
        verdict.send(b"1")


def survey(tests: ast.Module) -> tuple[list[str], list[str], bool]:
    """What tests want: names of the solution, modules that they do not import, and whether to run beside the
    solution.

    They must where calls on plain values do not suffice: where they make objects, read attributes that no
    plain value has, call a result, take some items of an iterator, hand functions over, or use the solution's
    names for anything but calls. A name like MyName is a class, unless its call is all that an assert holds
    or compares.

    >>> survey(ast.parse("assert math.isclose(half(3), 1.5)"))
    (['half'], ['math'], False)
    >>> survey(ast.parse("stack = Stack(); stack.push(1); assert stack.pop() == 1"))
    (['Stack'], [], True)
    """
    # the bulk of data
    nodes = [node for node in ast.walk(tests) if not isinstance(node, (ast.Constant, ast.UnaryOp))]

    def of(*kinds):
        return [node for node in nodes if isinstance(node, kinds)]

    def calls_of(among):
        return [call for call in of(ast.Call) if isinstance(call.func, ast.Name) and call.func.id in among]

    def is_module(node):
        node = node.value if isinstance(node, ast.Attribute) else node  # os, os.path
        return isinstance(node, ast.Name) and node.id in {*defined, *modules}

    loads = [node for node in of(ast.Name) if isinstance(node.ctx, ast.Load)]
    stored = {node.id for node in of(ast.Name) if not isinstance(node.ctx, ast.Load)}
    parameters = {node.arg for node in of(ast.arg)}
    defined = {node.name for node in of(*FUNCTIONS[:2], ast.ExceptHandler)}
    defined |= {(node.asname or node.name).partition(".")[0] for node in of(ast.alias)}
    free = list(dict.fromkeys(node.id for node in loads if node.id not in stored | parameters | defined))
    owners = {node.value.id for node in of(ast.Attribute) if isinstance(node.value, ast.Name)}
    modules = [name for name in free if name in owners & sys.stdlib_module_names]
    names = [name for name in free if name not in modules and not hasattr(builtins, name)]
    if not names:  # the solution has the name of a builtin, the innermost one that is called
        names = [call.func.id for call in calls_of(free)][-1:]

    called = [call.func for call in of(ast.Call)] + [arg for call in calls_of(defined) for arg in call.args]
    handed = [arg for call in calls_of({*names, *parameters})
              for arg in call.args + [k.value for k in call.keywords]]
    asserted = [part for node in of(ast.Assert) for part in (node.test, getattr(node.test, "left", None))]
    functions = defined | set(dir(builtins)) - stored
    words = {node.id for node in loads} | {node.attr for node in of(ast.Attribute)}
    return names, modules, bool(
        of(ast.ClassDef, ast.Await) or words & {"asyncio", "next", "islice"} or calls_of(stored)
        or any(node.attr not in METHODS and not is_module(node.value) for node in of(ast.Attribute))
        or any(not isinstance(call.func, (ast.Name, ast.Attribute)) for call in of(ast.Call))
        or any(node.id in names and node not in called for node in loads)
        or any(isinstance(arg, ast.Lambda) or getattr(arg, "id", 0) in functions for arg in handed)
        or any(re.fullmatch("[A-Z][A-Za-z0-9]*", call.func.id) and call not in asserted
               for call in calls_of(names)))


def signatures(tests: Sequence[str]) -> dict[str, str]:
    """What tests want of a solution, name by name, with as many letters as they pass arguments.

    >>> signatures(["assert add(1, 2) == 3"])
    {'add': 'add(a, b)'}
    """
    tree = parse_code("\n".join(tests), math.inf)
    if tree is None:
        raise ValueError(f"tests must be Python statements, at least one of them: {tests[0][:80]!r}")
    arguments: dict[str, str] = {}
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            letters = string.ascii_lowercase[: len(call.args) + len(call.keywords)]
            arguments.setdefault(call.func.id, ", ".join(letters))
    return {name: f"{name}({arguments[name]})" if name in arguments else name for name in survey(tree)[0]}


def name_functions(question: str, tests: Sequence[str]) -> str:
    """A question that does not name what its tests call gets the signatures, in plain words.

    >>> name_functions("Add two numbers.", ["assert add(1, 2) == 3"])
    'Add two numbers.\\nDefine add(a, b).'
    """
    named = {name for pair in re.findall(r"(\w+)\s*\(|\bclass\s+(\w+)", question) for name in pair}
    missing = [call for name, call in signatures(tests).items() if name not in named]
    return f"{question}\nDefine {', '.join(missing)}." if missing else question


def _question_code(question: str) -> ast.Module | None:
    """The Python in a question: all of it, or a fenced block, or what stands from some line to its end."""
    found = [question, *(code for mark, code in _blocks(question) if mark in (*PYTHON, ""))]
    lines = question.splitlines(keepends=True)
    starts = [i for i, line in enumerate(lines) if re.match(r"(?:from|import|def|class|async|@)\b|@", line)]
    found += ["".join(lines[i:]) for i in starts[:20]]
    return next((tree for code in found if (tree := parse_code(code))), None)


def _bound(statements: Sequence[ast.stmt]) -> set[str]:
    """The names that statements define, import or assign at their own level."""
    names = set()
    for node in statements:
        if isinstance(node, (*FUNCTIONS[:2], ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)
                      and isinstance(part.ctx, ast.Store)}
    return names


def with_context(program: str, question: str, tests: Sequence[str]) -> str:
    """A program with the imports and helpers of its question before it, where it lacks them.

    A stub (nothing but a docstring) is no helper. Where the question itself defines all that the tests call,
    as one that asks for a repair does, none of that is taken from it: the program has to bring it.

    >>> question = "import math\\ndef area(r):\\n    'Of a circle.'"
    >>> print(with_context("def area(r): return math.pi * r ** 2", question, ["assert area(0) == 0"]))
    import math
    def area(r): return math.pi * r ** 2
    """
    tree, given, wanted = parse_code(program), _question_code(question), parse_code("\n".join(tests),
                                                                                    math.inf)
    if not (tree and given and wanted):
        return program
    kinds = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, *FUNCTIONS[:2], ast.ClassDef)
    helpers = [node for node in given.body if isinstance(node, kinds) and not (
        isinstance(node, (*FUNCTIONS[:2], ast.ClassDef)) and all(
            isinstance(part, (ast.Pass, ast.Raise)) or isinstance(part, ast.Expr)
                                                                 and isinstance(part.value, ast.Constant)
            for part in node.body))]
    called = set(survey(wanted)[0])
    if called <= _bound(helpers):
        helpers = [node for node in helpers if not _bound([node]) & called]
    brought = _bound(tree.body)
    helpers = [node for node in helpers if _bound([node]) - brought]
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | called
    if not used & (_bound(helpers) - brought):
        return program
    futures = [node.end_lineno for node in tree.body if isinstance(node, ast.ImportFrom)
               and node.module == "__future__"]
    lines, first = program.splitlines(), max(futures, default=0)
    return "\n".join([*lines[:first], *map(ast.unparse, helpers), *lines[first:]])


# ---- Code: confinement, and the server that forks
# --------------------------------------------------------------------

# bytes a process: far more than short programs need, and one for every core still fits a laptop
MEMORY = 1 << 30
# What a Python program asks of the kernel for its files, memory, threads and time: nothing that makes
# processes, sends
# signals or changes modes and owners, no socket but a pair. The last six with the arguments only that
# `seccomp` lists.
SYSCALLS = {  # machine: (AUDIT_ARCH, ranges of numbers, (clone, kill, tgkill, prlimit64, fcntl, ioctl))
    "x86_64": (0xC000003E,
               "0-15 17-28 32-40 44-48 53 60 63 73-75 77-89 95-100 102 104 107-108 110-111 115 118 "
               "120-121 124 127-128 130-131 137-138 158 186 201-202 204 217-219 221 228-233 257-258 262-267 "
               "269-271 "
               "273-274 281 290-293 295-296 309 316 318 324 326 332 334 436 439", (56, 62, 234, 302, 72, 16)),
    "aarch64": (0xC00000B7,
                "17 19-24 32 34-38 43-44 46 48-50 56-57 59 61-73 78-80 82-83 93-94 96 98-103 113-115 "
                "123-124 128 132-137 139 148 150 153 155-156 158 160 163 165-166 168-169 172-179 199 206-207 "
                "210-212 "
                "214-216 222-223 226-227 232-233 276 278 283 285 291 293 436 439",
                (220, 129, 131, 261, 25, 29))}


def seccomp(libc):
    """Refuse all system calls but those of SYSCALLS. True where the kernel has taken the filter."""
    if platform.machine() not in SYSCALLS:
        return False
    machine, ranges, special = SYSCALLS[platform.machine()]
    # with ENOSYS
    load, equal, above, least, end, allow, refuse = 0x20, 0x15, 0x25, 0x35, 0x06, 0x7FFF0000, 0x50026
    code = [(load, 0, 0, 4), (equal, 1, 0, machine), (end, 0, 0, refuse), (load, 0, 0, 0)]
    for low, *high in (map(int, part.split("-")) for part in ranges.split()):
        code += [(least, 0, 2, low), (above, 1, 0, *(high or [low])), (end, 0, 0, allow)]
    threads, own = [0x3D0F00, 0x7D0F00], [os.getpid()]  # clone's flags for a thread in glibc and in musl
    fcntl, ioctl = [*range(8), 1030], [0x5401, 0x5421, 0x5450, 0x5451]
    for number, position, values in zip(special, (0, 0, 0, 0, 1, 1), (threads, own, own, [0], fcntl, ioctl),
                                        strict=False):
        code += [(equal, 0, 2 * len(values) + 2, number), (load, 0, 0, 16 + 8 * position)]
        code += [step for value in values for step in ((equal, 0, 1, value), (end, 0, 0, allow))]
        code += [(end, 0, 0, refuse)]
    code += [(end, 0, 0, refuse)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
    return libc.prctl(22, 2, struct.pack("HxxxxxxP", len(code), ctypes.addressof(program)), 0, 0) == 0


def landlock(libc, folder):
    """Leave only the Python installation to read and files in `folder` to write. True where all of it is
    enforced."""
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        return False
    known = (1 << (13, 14, 15, 15, 16)[min(version, 5) - 1]) - 1  # the rights that this version handles
    rules = libc.syscall(444, struct.pack("Q", known), 8, 0)
    read, write = 0x0C, 0x61BE & known  # files and folders, no links
    paths = {path: read for root in (sys.prefix, sys.base_prefix, "/usr", "/usr/local", "/") for path in
             (os.path.join(root, "lib"), os.path.join(root, "lib64"))}
    for path, rights in {**paths, "/usr/share/zoneinfo": read, os.devnull: 0x4006 & known,
                         folder: write}.items():
        if os.path.exists(path):
            libc.syscall(445, rules, 1, struct.pack("=Qi", rights, os.open(path, os.O_PATH)), 0)
    return libc.syscall(446, rules, 0) == 0 and version >= 3  # before, a file to be read could be cut short


def confine(folder, seconds, keep, memory=MEMORY):
    """Give up all but `folder`, some memory and time, and the descriptors `keep`; name what the system cannot
    take."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.environ.clear()
    os.chdir(folder)
    tempfile.tempdir = folder
    random.seed(0)
    limits = dict(AS=memory, CPU=math.ceil(seconds), FSIZE=MESSAGE_LIMIT, NOFILE=64, CORE=0, NPROC=4096)
    for name, limit in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))
    missing = ["memory", "files", "processes, signals and network"]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, or an ordinary user may do neither of the following
        libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24))  # root, too, becomes an ordinary user
        missing = [name for name, done in zip(missing, (True, landlock(libc, folder), seccomp(libc)),
                                              strict=False) if not done]
    for low, high in zip([2, *sorted(keep)], [*sorted(keep), 4096], strict=False):
        os.closerange(low + 1, high)
    return missing


def spawn(run, folder, seconds, *sockets, memory=MEMORY):
    """Fork a confined process that runs run(*sockets) and nothing else. `memory` includes what this
    process has mapped already."""
    pid = os.fork()
    if pid == 0:
        try:
            confine(folder, seconds, [end.fileno() for end in sockets], memory)
            run(*sockets)
        finally:
            os._exit(0)
    return pid


def remove(room):
    """Delete a folder and all in it, however deep: what it holds is moved up first, so that no path grows
    long."""
    waiting, number = [os.path.join(room, "home")], itertools.count()
    while waiting:
        path = waiting.pop()
        os.chmod(path, 0o700)
        for entry in list(os.scandir(path)):
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, 0o700)
                os.rename(entry.path, aside := os.path.join(room, str(next(number))))
                waiting.append(aside)
            else:
                os.unlink(entry.path)
        os.rmdir(path)
    os.rmdir(room)


def supervise(request, seconds):
    """Run one solution and its tests; answer when nothing of them is left."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if sys.platform == "linux":
        # PR_SET_CHILD_SUBREAPER: orphans become children of this process
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    room = tempfile.mkdtemp()
    folder = os.path.join(room, "home")
    os.mkdir(folder)
    (tests, solution), (verdict, pen) = socket.socketpair(), socket.socketpair()
    pids = [spawn(solve, folder, seconds, solution), spawn(judge, folder, seconds, tests, request, pen)]
    for end in (tests, solution, pen):
        end.close()
    passed = select.select([verdict], [], [], 2 * seconds)[0] and verdict.recv(1) == b"1"
    orphans = pathlib.Path(f"/proc/self/task/{os.getpid()}/children")
    while pids:
        for pid in pids:
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError):
                    kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        pids = list(map(int, orphans.read_text().split())) if orphans.exists() else []
    with contextlib.suppress(OSError):  # on a system that confines nothing, what it may not delete is left
        remove(room)
    request.sendall(b"1" if passed else b"0")


def serve():
    """The server's process: it forks a supervisor for every request and ends with the process that started
    it."""
    sys.path.pop(0)  # this file's own folder holds nothing for a solution to import
    for name in "bisect cmath copy hashlib heapq itertools numpy statistics string typing".split():
        importlib.import_module(name)
    tempfile.gettempdir()  # looks for one only once
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control = socket.socket(fileno=0)
    report, pen = os.pipe()
    if os.fork() == 0:
        try:
            os.write(pen, json.dumps(confine("/", 1, [pen])).encode())
        finally:
            os._exit(0)
    os.close(pen)  # so that a child that dies is seen
    control.send(os.read(report, 4096))
    gc.freeze()  # the collector would copy the memory that forks share
    while True:
        timeout, descriptors, *_ = socket.recv_fds(control, 8, 1)
        if not timeout:
            return
        with socket.socket(fileno=descriptors[0]) as request:
            if os.fork() == 0:
                supervise(request, *struct.unpack("d", timeout))
                os._exit(0)


def forget_server():
    """At the start, and in a fork of this process, which shall have a server of its own."""
    global _server, _lock
    _server, _lock = None, threading.Lock()


forget_server()
os.register_at_fork(after_in_child=forget_server)


def server():
    """The socket of a light process that has loaded neither torch nor any test, started where none is
    alive."""
    global _server
    if _server is None or _server[0].poll() is not None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-sB", os.path.abspath(__file__), "--serve"]
        # a thread would not outlive a fork
        environment = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1",
                       "TMPDIR": tempfile.gettempdir()}
        process = subprocess.Popen(command, stdin=theirs, cwd="/", env=environment, start_new_session=True)
        theirs.close()
        ours.settimeout(60)
        told = b""
        with contextlib.suppress(OSError):  # which would pass for a program that fails
            told = ours.recv(4096)
        if not told:
            process.kill()
            raise RuntimeError(f"sandbox: {sys.executable} does not start as the server that runs programs")
        ours.settimeout(None)
        if missing := json.loads(told):
            parts = ", nor in its ".join(missing)
            warnings.warn(f"this system confines no code in its {parts}: use a container", stacklevel=2)
        _server = process, ours
    return _server[1]


@functools.lru_cache(2**14)  # a policy writes the same programs again and again
def run_code(code: str, tests: str, timeout: float) -> float:
    """1.0 if the program passes the tests, which the server's forks find out. Raises OSError where a run
    breaks down or hangs, which is no verdict and not remembered."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs, _lock:
            socket.send_fds(server(), [struct.pack("d", timeout)], [theirs.fileno()])
        ours.settimeout(2 * timeout + 10)
        ours.sendall(json.dumps([code, tests]).encode())
        ours.shutdown(socket.SHUT_WR)
        verdict = ours.makefile("rb").read()  # up to the end of its supervisor
    if verdict not in (b"0", b"1"):
        raise OSError("the run has broken down")
    return float(verdict)


def run_programs(programs: Sequence[str], tests: Sequence[Sequence[str]],
                 timeout: float = 5.0) -> list[float]:
    """1.0 for every program that passes its tests (statements with asserts), else 0.0. One runs at a time on
    each core; equal pairs run once, and the last 16,384 verdicts are remembered.

    `timeout` is in seconds of processor time; by the clock it is twice as much.

    The tests run in one process, the solution in another that never sees them: its functions are called,
    arguments and results cross as plain values, and an object that claims to equal everything is none. Tests
    that need more (see `survey`) run beside the solution, where code that looks for them can tamper with
    them. The tests choose the way, never the response.

    Covered: ending early in any way, endless loops, floods of memory or output, forged verdicts, tampering
    with builtins, frames, hooks. On Linux the kernel also refuses the solution other processes, signals, the
    network, and all files but the Python installation and those of an empty folder that goes with it. Its
    environment is empty, and nothing that it started outlives the call. A system that cannot do all of this
    is warned about once (macOS: memory, files, signals, network, and processes that leave their session). Not
    covered: tests beside the solution, errors of the kernel, floods of the disk until the time is up. A
    process is no sandbox for code that you distrust: train in a container, without secrets.

    >>> programs = ["def double(x): return 2 * x", "import sys; sys.exit(0)"]
    >>> run_programs(programs, [["assert double(4) == 8"]] * 2)
    [1.0, 0.0]
    """
    jobs = [(program, "\n".join(lines)) for program, lines in zip(programs, tests, strict=True)]
    for text in {text for _, text in jobs}:
        if parse_code(text, math.inf) is None:
            raise ValueError(f"tests must be Python statements, at least one of them: {text[:80]!r}")
    runs = {job: 0.0 for job in jobs if parse_code(job[0])}

    def passes(job: tuple[str, str]) -> float:
        try:
            return run_code(*job, timeout)
        except OSError:  # no verdict, no reward
            return 0.0

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs.update(zip(runs, pool.map(passes, runs), strict=False))
    return [runs.get(job, 0.0) for job in jobs]


if __name__ == "__main__" and sys.argv[1:] == ["--serve"]:
    serve()
