"""The code verifier: right programs pass, wrong and hostile ones earn nothing, do no harm and leave nothing
behind."""
import ast
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest

import support.sandbox as data
from data import Task, extract_code, verify, verify_code
from support.sandbox import code_key, find_program, run_programs, survey

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's guards are Linux's")
ADD = ["assert add(2, 3) == 5", "assert add(-1, 1) == 0", "assert add(10, 5) == 15"]
GOOD = "def add(a, b):\n    return a + b\n"


@pytest.fixture(autouse=True)
def no_verdict_is_known():
    """Each test changes its own guards, and wants a verdict of its own."""
    data.run_code.cache_clear()


def cases(text):
    """{name: (response, tests)} of a table: after its name, each case has its response, then its tests, else
    ADD."""
    table = {}
    for case in text.split("#: ")[1:]:
        name, _, body = case.partition("\n")
        body = body.replace("EQUAL", EQUAL).replace("CHANNEL\n", CHANNEL)
        response, *tests = re.split(r"^>>> ", body, flags=re.MULTILINE)
        table[name] = response, [test.replace("\n... ", "\n") for test in tests] or ADD
    return table


CHANNEL = """import os
def channel():
    for fd in range(3, 99):
        try: return os.fstat(fd) and fd
        except OSError: pass
"""
EQUAL = r'''
class Any:
    def __eq__(self, other): return True
    __hash__ = None
    __ne__ = lambda s, o: False
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    __abs__ = __sub__ = __rsub__ = __round__ = lambda self, *a: self
    def __bool__(self): return True
    def __iter__(self): return iter([])
    def __getattr__(self, name): return lambda *a: True
'''
RIGHT = cases(r'''
#: plain
def add(a, b):
    return a + b
#: fenced, with talk
Let us add.
```python
def add(a, b):
    return a + b
```
Done.
#: cut off
```python
def add(a, b):
    return a + b
#: indented block
1. So:
   ```python
   def add(a, b):
       return a + b
   ```
#: prints
print('hello')
def add(a, b):
    print(a, b)
    return a + b
#: prints a lot
def add(a, b):
    print('x' * 50_000_000)
    return a + b
#: recursion
def fact(n):
    return 1 if n == 0 else n * fact(n - 1)
>>> assert fact(25) == 15511210043330985984000000
#: huge int
def big():
    return 10 ** 5000 + 1
>>> assert big() == 10 ** 5000 + 1
>>> assert big() % 10 == 1
#: stdlib
import math, re, json, heapq
from functools import lru_cache
@lru_cache(None)
def f(n):
    return math.gcd(n, 12) + len(re.findall('a', 'banana')) + json.loads('1') + heapq.nlargest(1, [1, 2])[0]
>>> assert f(8) == 10
#: late import
def f(x):
    import statistics, sqlite3, decimal
    return statistics.mean(x)
>>> assert f([1, 3]) == 2
#: several functions
def half(x): return x / 2
def f(x): return half(x) + 1
>>> assert f(3) == 2.5
>>> assert abs(half(1.0) - 0.5) < 1e-9
#: class inside
class P:
    def __init__(self, x): self.x = x
def f(x): return P(x).x
>>> assert f(4) == 4
#: dataclass
from dataclasses import dataclass
@dataclass
class P:
    x: int
def f(x): return P(x).x
>>> assert f(4) == 4
#: class tested
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self): return self.items.pop()
>>> s = Stack()
... s.push(1)
... assert s.pop() == 1
#: operators tested
class V:
    def __init__(self, x): self.x = x
    def __add__(self, o): return V(self.x + o.x)
    def __eq__(self, o): return self.x == o.x
>>> assert V(1) + V(2) == V(3)
#: own exception tested
class Odd(Exception): pass
def f(x):
    if x % 2: raise Odd
>>> try:
...     f(1)
... except Odd:
...     pass
... else:
...     assert False
#: builtin exception
def f(x):
    if x < 0: raise ValueError('negative')
    return x
>>> try:
...     f(-1)
...     assert False
... except ValueError as e:
...     assert str(e) == 'negative'
>>> assert f(1) == 1
#: closure
def adder(n):
    return lambda x: x + n
>>> assert adder(2)(3) == 5
#: function given
def apply(f, x): return f(x)
>>> assert apply(lambda x: 2 * x, 3) == 6
>>> assert apply(len, 'ab') == 2
#: generator
def count(n):
    yield from range(n)
>>> assert list(count(3)) == [0, 1, 2]
>>> assert sum(count(4)) == 6
#: endless generator
def naturals():
    n = 0
    while True:
        yield n
        n += 1
>>> g = naturals()
... assert next(g) == 0 and next(g) == 1
#: dict views
def keys(d): return d.keys()
>>> assert sorted(keys({'b': 1, 'a': 2})) == ['a', 'b']
#: changes its argument
def f(a): a.sort()
>>> a = [3, 1, 2]
... f(a)
... assert a == [1, 2, 3]
>>> b = [2, 1]
... assert f(b) is None and b == [1, 2]
#: changes a dict
def f(d, key): d[key] = {1}
>>> d = {}
... f(d, key='k')
... assert d == {'k': {1}}
#: exact types
def f(): return (1, True, 1.0, None, 'a', b'b', {2}, frozenset([3]), {4: (5,)}, 1j, [float('inf')])
>>> assert repr(f()) == repr((1, True, 1.0, None, 'a', b'b', {2}, frozenset([3]), {4: (5,)}, 1j,
...                               [float('inf')]))
>>> assert f()[1] is True and type(f()[2]) is float
#: standard types
from collections import *
from fractions import Fraction
from decimal import Decimal
import datetime
def f(): return [Counter('aab'), OrderedDict(a=1), deque([1]), defaultdict(int, a=2), Fraction(1, 3),
                 Decimal('0.10'), datetime.date(2020, 2, 29), datetime.timedelta(1), range(3)]
>>> from collections import *
... from fractions import Fraction
... from decimal import Decimal
... import datetime
... assert f() == [Counter('aab'), OrderedDict(a=1), deque([1]), dict(a=2), Fraction(1, 3),
...                Decimal('0.1'), datetime.date(2020, 2, 29), datetime.timedelta(days=1), range(3)]
#: namedtuple
from collections import namedtuple
P = namedtuple('P', 'x y')
def f(): return P(1, 2)
>>> assert f() == (1, 2)
#: nan
def f(): return float('nan')
>>> x = f()
... assert x != x
#: surrogates
def f(): return '\ud800'
>>> assert f() == '\ud800'
#: re.Match is true
import re
def f(s): return re.match('a', s)
>>> assert f('ab')
>>> assert not f('ba')
>>> assert f('a') is not None
#: check(candidate)
def add(a, b):
    return a + b
>>> def check(candidate):
...     for i in range(50):
...         assert candidate(i, 1) == i + 1
... check(add)
#: helper in tests
def add(a, b):
    return a + b
>>> import math
... def close(a, b):
...     return math.isclose(a, b, rel_tol=1e-9)
... assert close(add(0.1, 0.2), 0.3)
#: module never imported
def add(a, b):
    return a + b
>>> assert math.isclose(add(0.1, 0.2), 0.3)
#: set of a result
def f(x): return x
>>> assert set(f([1, 1, 2])) == set([1, 2])
#: name of a builtin
def sum(a, b): return a + b
>>> assert sum(2, 3) == 5
#: capital name
def Extract(x): return [y[0] for y in x]
>>> assert Extract([[1, 2], [3]]) == [1, 3]
#: constant
LIMIT = 7
def f(): return LIMIT
>>> assert f() == LIMIT
#: threads
from concurrent.futures import ThreadPoolExecutor
def f(x):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(abs, x))
>>> assert f([-1, 2]) == [1, 2]
#: asyncio inside
import asyncio
async def g(): return 3
def f(): return asyncio.run(g())
>>> assert f() == 3
#: own files
def f(s):
    with open('a.txt', 'w') as file: file.write(s)
    return open('a.txt').read()
>>> assert f('hi') == 'hi'
#: temporary files
import os, tempfile
def f(s):
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile("w+") as file:
        raw = tempfile.TemporaryFile()
        file.write(s), raw.write(b"x")
        file.seek(0)
        open(os.path.join(folder, "a.txt"), "w").write(file.read())
        return open(os.path.join(folder, "a.txt")).read(), os.path.isdir(tempfile.gettempdir())
>>> assert f('hi') == ('hi', True)
#: own folders
import os, pathlib, shutil
def f():
    os.makedirs("a/b/c")
    pathlib.Path("a/b/c/x").write_text("hi")
    os.rename("a/b/c/x", "a/x")
    shutil.rmtree("a/b")
    return sorted(os.listdir("a"))
>>> assert f() == ["x"]
#: main guard
def add(a, b):
    return a + b
if __name__ == '__main__':
    raise SystemExit
#: deep
def f(n):
    x = []
    for _ in range(n): x = [x]
    return x
>>> assert f(100) != [] and len(f(100)) == 1
#: seeded
import random
def f(): return random.random()
>>> assert f() == 0.8444218515250481
#: signals itself
import shutil
import signal
def f(): return [signal.signal(signal.SIGUSR1, lambda *_: None), signal.raise_signal(signal.SIGUSR1)][1]
>>> assert f() is None
#: two rounds of state
n = 0
def tick():
    global n
    n += 1
    return n
>>> assert tick() == 1
>>> assert tick() == 2
''')
WRONG = cases(r'''
#: off by one
def add(a, b): return a + b + 1
#: last test fails
def add(a, b): return {2: 5, -1: 0}.get(a)
#: none
def add(a, b): pass
#: other name
def plus(a, b): return a + b
#: no code
I cannot do this.
#: empty
#: syntax
def add(a, b) return a + b
#: raises
def add(a, b): raise ValueError
#: talk in the block
```python
Sure! Here it is:
def add(a, b):
    return a + b
```
#: type
def f(): return (1, 2)
>>> assert f() == [1, 2]
#: bool for int
def f(): return 1
>>> assert f() is True
#: generator for a list
def f():
    yield 1
>>> assert f() == [1]
#: changes its argument
def f(a):
    a.sort()
    return a
>>> a = [2, 1]
... assert f(a) == [1, 2]
... assert a == [2, 1]
#: wrong exception
def f(x): raise KeyError(x)
>>> try:
...     f(1)
... except ValueError:
...     pass
#: an object for True
def f(): return object()
>>> assert f() is True
#: no exception
def f(x): return x
>>> try:
...     f(-1)
... except ValueError:
...     pass
... else:
...     raise AssertionError
#: class
class Stack:
    def push(self, x): pass
    def pop(self): return 2
>>> s = Stack()
... s.push(1)
... assert s.pop() == 1
#: last block counts
```python
def add(a, b):
    return a + b
```
```python
def add(a, b): return 0
```
#: deeper than any answer
def f():
    x = []
    for _ in range(10**5): x = [x]
    return x
>>> assert f()
#: endless recursion
def add(a, b): return add(a, b)
#: reads stdin
def add(a, b): return int(input())
''')
HOSTILE = cases(r'''
#: loop
while True: pass
#: loop in the call
def add(a, b):
    while True: pass
#: sleep
import time
time.sleep(60)
def add(a, b):
    return a + b
#: loop in C
def add(a, b): return 9 ** 9 ** 9
#: ignores alarms
import shutil
import signal
for s in range(1, 30):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
def add(a, b):
    while True: pass
#: memory
x = [0] * 10**10
def add(a, b):
    return a + b
#: memory in steps
def add(a, b):
    x = []
    while True: x.append(bytearray(10**7))
#: output
import os
def add(a, b):
    while True: os.write(1, b'x' * 10**6)
#: huge result
def add(a, b): return 'x' * (1 << 25)
#: exit 0
import sys
sys.exit(0)
#: exit 0 in the call
import sys
def add(a, b): sys.exit(0)
#: os._exit
import os
os._exit(0)
#: os._exit in the call
import os
def add(a, b): os._exit(0)
#: SystemExit
raise SystemExit
#: ends where an exception is wanted
import os
def f(x): os._exit(0)
>>> try:
...     f(1)
... except Exception:
...     pass
... else:
...     assert False
#: lacks the function where an exception is wanted
x = 1
>>> try:
...     f(1)
... except Exception:
...     pass
#: KeyboardInterrupt
def add(a, b): raise KeyboardInterrupt
#: StopIteration
def f(x): raise StopIteration
>>> assert all(map(lambda x: f(x) == x, [1, 2]))
#: GeneratorExit
def add(a, b): raise GeneratorExit
#: kills itself
import os
os.kill(os.getpid(), 9)
#: says it passed
print('1')
print('All tests passed')
print('OK')
def add(a, b): return '1'
#: equal to all
EQUAL
def add(a, b): return Any()
#: equal to all, an int
class I(int):
    __eq__ = lambda s, o: True
def add(a, b): return I(7)
#: close to all
EQUAL
def f(x): return Any()
>>> assert abs(f(1) - 2.5) < 1e-6
#: in all
EQUAL
def f(x): return Any()
>>> assert 3 in f(1)
#: starts with all
EQUAL
def f(x): return Any()
>>> assert f(1).startswith('a')
#: str equal to all
class S(str):
    __eq__ = lambda s, o: True
    startswith = lambda s, o: True
def f(): return S('x')
>>> assert f().startswith('a')
#: list equal to all
class L(list):
    __eq__ = lambda s, o: True
    __iter__ = lambda s: iter([1])
def f(): return [L()]
>>> assert f() == [[2]]
#: capital and equal to all
EQUAL
class Add(Any):
    def __init__(self, *a): pass
>>> assert Add(2, 3) == 5
#: builtins
import builtins
builtins.all = builtins.any = builtins.set = builtins.abs = lambda *a, **k: True
builtins.AssertionError = type('E', (), {})
builtins.__import__ = lambda *a, **k: None
def f(x): return 0
>>> assert abs(f(1) - 2.5) < 1e-6
>>> assert set(f(1)) == {1}
>>> assert all(f(x) == x for x in [1, 2])
#: own abs
def abs(x): return 0
def f(x): return 0
>>> assert abs(f(1) - 2.5) < 1e-6
#: math.isclose
import math
math.isclose = lambda *a, **k: True
def f(x): return 0
>>> import math
... assert math.isclose(f(1), 2.5)
#: frames
import sys
def add(a, b):
    frame = sys._getframe()
    while frame.f_back:
        frame = frame.f_back
        for v in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if 'assert' in str(v): return 5
    return 0
>>> assert add(2, 3) == 5
#: gc
import gc
def add(a, b):
    for o in gc.get_objects():
        if isinstance(o, (list, dict, tuple)) and ''.join(['ass', 'ert add(2']) in repr(o)[:10**5]: return 5
    return 0
>>> assert add(2, 3) == 5
#: trace
import sys
def t(frame, event, arg):
    frame.f_locals.clear()
    return t
sys.settrace(t)
def add(a, b): return 0
#: atexit
import atexit, os
atexit.register(os._exit, 0)
def add(a, b): raise SystemExit(0)
#: excepthook
import sys, os
sys.excepthook = lambda *a: os._exit(0)
def add(a, b): return 0
#: verdicts everywhere
import os
for fd in range(64):
    for message in (b'1', b'1\n', b'[5, null, ["list", []]]\n', b'[null, null, ["list", []]]\n' * 20):
        try: os.write(fd, message)
        except OSError: pass
def add(a, b): return 0
#: answers before it is asked
CHANNEL
os.write(channel(), b'[["list", []], null, ["list", []]]\n' + b'[5, null, ["list", []]]\n' * 9)
def add(a, b): return 0
#: builtins for exceptions
CHANNEL
import json
code = """import sys
frame = sys._getframe()
while frame:
    if "verdict" in frame.f_locals: frame.f_locals["verdict"].send(b"1")
    frame = frame.f_back"""
def add(a, b):
    os.write(channel(), json.dumps([["list", [code]], ["list", ["exec"]], ["list", []]]).encode() + b"\n")
#: nonsense on the channel
CHANNEL
def f(x):
    os.write(channel(), b'[' * 10**5 + b'\n')
    raise ValueError
>>> try:
...     f(1)
... except RecursionError:
...     pass
#: encoder
import sys
d = sys.modules.get('__main__')
d.encode = lambda *a, **k: ['object', []]
def add(a, b): return 0
#: stdin
import sys
def add(a, b): return 5 if 'assert' in sys.stdin.read() else 0
>>> assert add(2, 3) == 5
#: closes all
import os
os.closerange(0, 64)
def add(a, b):
    return a + b
#: class: exit
import os
class Stack:
    def push(self, x): os._exit(0)
>>> s = Stack()
... s.push(1)
... assert s.pop() == 1
#: class: answers before it is asked
CHANNEL
os.write(channel(), b'[["list", []], null, ["list", []]]\n' + b'[true, null, ["list", []]]\n' * 9)
class Stack: pass
>>> s = Stack()
... s.push(1)
... assert s.pop() == 1
#: class: printed
print('1')
class Stack:
    def push(self, x): raise SystemExit(0)
>>> s = Stack()
... s.push(1)
... assert s.pop() == 1
''')


@pytest.mark.parametrize("response, tests", RIGHT.values(), ids=RIGHT)
def test_right_programs_pass(response, tests):
    assert verify_code(response, tests) == 1.0


@pytest.mark.parametrize("response, tests", [*WRONG.values(), *HOSTILE.values()], ids=[*WRONG, *HOSTILE])
def test_wrong_and_hostile_programs_earn_nothing(response, tests):
    start = time.monotonic()
    assert verify_code(response, tests, timeout=0.5) == 0.0
    assert time.monotonic() - start < 9


SNEAK = """
import ctypes, os, sys
def act():
{}
def f():
    try:
        act()
        return "done"
    except BaseException:
        return "refused"
"""
GUARDED = {  # what the kernel refuses: the solution says whether it could do it
    "reads a file": "    open({file!r}).read()",
    "writes a file": "    open({file!r}, 'w').write('x')",
    "deletes a file": "    os.remove({file!r})",
    "renames a file": "    os.rename({file!r}, 'mine')",
    "cuts a file short": "    os.truncate({file!r}, 0)",
    "makes a file unreadable": "    os.chmod({file!r}, 0)",
    "dates a file": "    os.utime({file!r}, (0, 0))",
    "links a file": "    os.link({file!r}, 'mine')",
    "lists a folder": "    os.listdir({folder!r})",
    "writes beside": "    open({folder!r} + '/new', 'w')",
    "writes into Python": "    open(os.path.join(os.path.dirname(os.__file__), 'zzz.py'), 'w')",
    "lists the home": "    os.listdir(os.path.expanduser('~root'))",
    "reads the parent's environment": "    open('/proc/{pid}/environ').read()",
    "reads its parent's memory": "    open(f'/proc/{{os.getppid()}}/mem', 'rb')",
    "forks": "    if os.fork() == 0: os._exit(0)",
    "starts a program": "    import subprocess; subprocess.run(['true'], check=True)",
    "becomes a program": "    os.execv(sys.executable, [sys.executable, '-c', ''])",
    "leaves its session": "    os.setsid() if os.getpid() != os.getsid(0) else os.fork()",
    "signals the parent": "    os.kill(os.getppid(), 0)",
    "signals all": "    os.kill(-1, 0)",
    "signals by a descriptor": "    import fcntl; fcntl.fcntl(3, fcntl.F_SETOWN, {pid})",
    "opens a socket": "    import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1)",
    "opens a local socket": "    import socket; socket.socket(socket.AF_UNIX)",
    "limits the parent": "    import resource; resource.prlimit({pid}, resource.RLIMIT_NOFILE)",
    "renices the parent": "    os.setpriority(os.PRIO_PROCESS, {pid}, 19)",
    "traces": "    assert ctypes.CDLL(None).ptrace(16, {pid}, 0, 0) == 0",
    "leaves memory behind": "    assert ctypes.CDLL(None).shmget(4242, 4096, 0o1600) >= 0",
    "makes a namespace": "    assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "becomes root": "    os.setuid(0)",
    "lifts its limits": "    import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    "reads what its mode forbids": "    os.close(os.open('x', os.O_CREAT, 0)); open('x')",
    "takes much memory": "    bytearray(2 << 30)",
    "writes a long file": "    open('long', 'wb').write(bytes(1 << 25))",
}


@linux
@pytest.mark.parametrize("act", GUARDED.values(), ids=GUARDED)
def test_the_kernel_refuses(act, tmp_path):
    file = tmp_path / "precious"
    file.write_text("precious")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        names = dict(file=str(file), folder=str(tmp_path), pid=os.getpid(), port=listener.getsockname()[1])
        assert verify_code(SNEAK.format(act.format(**names)), ["assert f() == 'refused'"]) == 1.0
    assert file.read_text() == "precious" and list(tmp_path.iterdir()) == [file] and file.stat().st_mtime > 1


LOOK = """
import os, sys
files = os.listdir()
open("x", "w")
def opened(fd):
    try: return os.fstat(fd) is not None
    except OSError: return False
def look(): return dict(os.environ), files, sys.path, sum(map(opened, range(3, 999)))
"""


def test_the_solution_starts_from_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data.forget_server()  # the next one starts from an environment with the token
    project = {str(folder) for folder in Path(data.__file__).parents[:2]}
    expected = f"(env, files, {project!r} & set(path), fds) == ({{}}, [], set(), 1)"
    tests = [f"env, files, path, fds = look()\nassert {expected}"]
    assert verify_code(LOOK, tests) == 1.0
    assert list(tmp_path.iterdir()) == []
    # where Control-C in a terminal does not reach it
    assert os.getsid(data._server[0].pid) == data._server[0].pid
    if sys.platform == "linux":
        assert b"TOKEN" not in Path(f"/proc/{data._server[0].pid}/environ").read_bytes()
    data.forget_server()  # its folder goes with this test


DEEP = """
import os
for i in range(2200):
    os.mkdir("0")
    os.chdir("0")
os.mkdir("shut", 0)
"""


@linux
def test_deep_and_shut_folders_are_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data.forget_server()
    assert verify_code(DEEP + GOOD, ADD, timeout=60.0) == 1.0  # on a busy machine, too
    assert list(tmp_path.iterdir()) == []
    data.forget_server()


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
os.wait()
"""
BOMB = "import os\nfor _ in range(7): os.fork()\n"
PROGRAM = "import subprocess\nsubprocess.Popen(['sleep', '61.7'])\n"


@linux
@pytest.mark.parametrize("program", [DAEMON, BOMB, PROGRAM], ids=["daemon", "bomb", "program"])
@pytest.mark.parametrize("filtered", [True, False], ids=["kernel", "supervisor alone"])
def test_nothing_outlives_the_call(program, filtered, tmp_path, monkeypatch):
    """Also where the kernel takes no filter: then processes may start, and the supervisor ends them."""
    source = Path(data.__file__).read_text()
    path = tmp_path / "data.py"
    unfiltered = source.replace("def seccomp(libc):", "def seccomp(libc):\n    return False")
    path.write_text(source if filtered else unfiltered)
    monkeypatch.setattr(data, "__file__", str(path))
    data.forget_server()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert verify_code("def f(): pass", ["assert f() is None"]) == 1.0
    before = set(os.listdir("/proc"))
    assert verify_code(program + GOOD, ADD, timeout=1.0) == 0.0 or not filtered
    time.sleep(0.2)
    for name in filter(str.isdigit, set(os.listdir("/proc")) - before):
        with contextlib.suppress(OSError):
            line = Path("/proc", name, "cmdline").read_bytes()
            assert str(path).encode() not in line and b"61.7" not in line
    data.forget_server()


@linux
def test_the_server_ends_with_its_process():
    code = "import support.sandbox as data; data.server(); print(data._server[0].pid)"
    folder = Path(data.__file__).parents[1]
    pid = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True,
                         text=True).stdout.strip()
    time.sleep(0.2)
    assert pid and not os.path.exists(f"/proc/{pid}/exe")


def test_verdicts_are_remembered_and_break_downs_are_not(monkeypatch):
    job = (GOOD, "\n".join(ADD), 5.0)
    assert data.run_code(*job) == 1.0 == data.run_code(*job) and data.run_code.cache_info().hits == 1
    assert data.run_code(GOOD.replace("+", "-"), *job[1:]) == 0.0  # another program has its own verdict
    data.run_code.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(data.socket, "send_fds", lambda *_: None)  # nobody takes the run
        assert run_programs([GOOD], [ADD]) == [0.0]
    assert run_programs([GOOD], [ADD]) == [1.0]


def test_batch_keeps_the_order_and_runs_equal_pairs_once(monkeypatch):
    runs = []
    monkeypatch.setattr(data, "run_code", lambda *job: float(not runs.append(job) and "+" in job[0]))
    responses = [GOOD, f"```python\n{GOOD}```", "nothing at all", GOOD.replace("+", "-"), GOOD]
    assert run_programs(list(map(extract_code, responses)), [ADD] * 5) == [1.0, 1.0, 0.0, 0.0,
                                                                           1.0] and len(runs) == 2
    assert run_programs([], []) == []


@pytest.mark.parametrize("tests", [[], ["# none"], ["assert ("]])
def test_tests_that_are_none_are_an_error(tests):
    with pytest.raises(ValueError, match="tests must be"):
        verify_code(GOOD, tests)


def test_a_server_that_died_is_replaced_and_a_fork_starts_its_own():
    assert verify_code(GOOD, ADD) == 1.0
    process = data._server[0]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    data.run_code.cache_clear()
    assert verify_code(GOOD, ADD) == 1.0 and data._server[0] is not process
    data.run_code.cache_clear()
    child = os.fork()
    if child == 0:
        os._exit(int(data._server is None and verify_code(GOOD, ADD) == 1.0))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert verify_code(GOOD, ADD) == 1.0


def test_interrupted_batch_leaves_no_stale_results():
    slow = "import time\ntime.sleep(0.5)\ndef add(a, b): return 0\n"
    # SIGINT itself is ignored in a shell's background jobs
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    with pytest.raises(KeyboardInterrupt):
        run_programs([slow + f"# {i}" for i in range(6)], [ADD] * 6)
    assert run_programs([GOOD, "x = 1", GOOD], [ADD, ADD, ["assert add(1, 1) == 3"]]) == [1.0, 0.0, 0.0]


def test_what_is_missing_is_said_once(monkeypatch):
    monkeypatch.setattr(data, "__file__", str(Path(data.__file__)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data.forget_server()
        verify_code(GOOD, ADD)
        verify_code(GOOD, ADD)
    said = [warning for warning in said if "confine" in str(warning.message)]
    assert len(said) == (0 if sys.platform == "linux" else 1)


CALLS = ["assert f(1) == 2", "assert abs(f(1.5) - 2) < 1e-6", "assert set(f([1])) == {1}",
         "assert not f([1])",
         "def check(c):\n    assert c(1) == 2\ncheck(f)", "assert f(sorted([2, 1], key=lambda x: -x)) == 1",
         "assert f('a').upper() == 'B'", "x = f(1)\nassert x.count(1) == 2",
         "import os\nassert f(os.sep) == 1",
         "assert Sort([2, 1]) == [1, 2]", "for x in [1]:\n    assert f(x) == x",
         "assert math.isclose(f(1), math.pi)",
         "try:\n    f(1)\nexcept ValueError as e:\n    str(e)", "str = 'a'\nassert f(str) == 1"]
OBJECTS = ["assert f(1)(2) == 3", "g = f(1)\nassert g(2) == 3", "assert f(len, 'a') == 1",
           "assert f(lambda: 1) == 1",
           "assert isinstance(f(1), F)", "assert f(1).area == 2", "class A: pass\nassert f(A()) == 1",
           "assert Box(1) == Box(1)", "q = Queue()\nq.append(1)", "assert len(Stack()) == 0",
           "assert next(f()) == 1",
           "try:\n    f(1)\nexcept MyError:\n    pass", "import asyncio\nassert asyncio.run(f(1)) == 2"]


@pytest.mark.parametrize("tests, beside", [*((tests, False) for tests in CALLS),
                                           *((tests, True) for tests in OBJECTS)])
def test_the_tests_choose_the_way(tests, beside):
    assert survey(ast.parse(tests))[2] is beside


@pytest.mark.parametrize("response, code", [
    ("```python\na\n```\n```python\nb\n```", "b\n"), ("```python\na\n```\n```\nb\n```", "a\n"),
    ("```\na\n```\n```bash\nb\n```", "a\n"), ("  ```py\n  if a:\n      b\n  ```", "if a:\n    b\n"),
    ("```python\r\na = 1\r\n```", "a = 1\r\n"), ("```bash\nls\n```", ""), ("```PY\na", "a"),
                                            ("x = 1", "x = 1"),
    ("```python\n```", ""), ("def f(:", ""), ("~", ""), ("\0", ""), ("", "")])
def test_extract_code(response, code):
    assert extract_code(response) == code


F = "def f(x):\n    return x\n"


@pytest.mark.parametrize("response, code", [
    (f"So: ```python\n{F}```", F), ("```python def f(x): return x```", "def f(x): return x"),
    ("```def f(x): return x```", "def f(x): return x"), (f"```python\n{F.rstrip()}```", F.rstrip()),
    ("1. ```python\n   def f(x):\n       return x\n   ```\nDone.", F), (f"```python {F}```", F.strip()),
    (f"```python\nx = 1\n```\nBetter: ```python\n{F}```", F),
                                            (f"```python\n{F}```\n```python\nassert f(2) == 3\n```", F),
    (f"```python\n{F}```\n```python\n>>> f(1)\n1\n```", F), (f"```\n{F}```\n```\n5\n```", F),
    (f"```python\n{F}```\n```python\ndef f(x): return 0\n```", "def f(x): return 0\n"),
    (f"```python\n{F}```\n```python\ndef g(x", F), ("```python\ndef f(x", "def f(x"),
    ('```python\ndef f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return x\n```',
     'def f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return x\n'),
    (f"<think>```python\n{F}```</think>I do not know it.", ""), (f"<think>```python\n{F}```", "")])
def test_fences_examples_and_thoughts(response, code):
    assert extract_code(response) == code


G = "def g(x):\n    return f(x)\n"


@pytest.mark.parametrize("blocks, code", [
    ([F, "def test_f():\n    assert f(1) == 1\n"], F), ([F, "def main():\n    print(f(1))\n\nmain()\n"], F),
    ([F, "import unittest\nclass TestF(unittest.TestCase):\n    pass\n"], F), ([F, "print(f(1))\n"], F),
    ([F, "def test_f():\n    assert f("], F), ([F, G], f"{F}\n{G}"), ([G, F], F),
    (["import math\n", "def f(x):\n    return math.pi\n"], "import math\n\ndef f(x):\n    return math.pi\n"),
    ([F, "def f(x):\n    return 0\n"], "def f(x):\n    return 0\n"),
    (["def main(): pass\n"], "def main(): pass\n"),
    ([F, G, "def h(x):\n    return g(x)\n"], f"{F}\n{G}\ndef h(x):\n    return g(x)\n")])
def test_tests_replace_no_solution_and_helpers_go_with_it(blocks, code):
    assert extract_code("Then\n".join(f"```python\n{block}```\n" for block in blocks)) == code


def test_a_server_that_does_not_start_is_one_line(monkeypatch):
    monkeypatch.setattr(data.sys, "executable", shutil.which("false"))
    monkeypatch.setattr(data, "_server", None)
    with pytest.raises(RuntimeError, match="^sandbox: .*false does not start as the server that runs"):
        verify_code(F, ["assert f(1) == 1, 'by a new server'"])


def test_an_unmarked_solution_before_a_marked_example():
    assert extract_code(f"```\n{F}```\nFor example\n```python\nprint(f(1))\n```") == F


HELPER = """import math
from typing import List

def double(x):
    return 2 * x

def f(xs: List[int]) -> float:
    '''Twice the root of the sum.'''
"""
ALONE = "def f(xs: List[int]) -> float:\n    return double(math.sqrt(sum(xs)))\n"
REPAIR = "Repair it:\n```python\ndef f(xs):\n    return 4.0\n```"


@pytest.mark.parametrize("program, question, reward", [
    (ALONE, HELPER, 1), (ALONE, f"Complete it.\n\n{HELPER}", 1),
                                                       (ALONE, f"Complete:\n```python\n{HELPER}```", 1),
    ("from __future__ import annotations\n" + ALONE, HELPER, 1), (ALONE, "Twice the root of the sum.", 0),
    ("def double(x): return 3 * x\n" + ALONE, HELPER, 0), ("x = double(2)", HELPER, 0), ("x = 1", HELPER, 0),
    ("x = f", REPAIR, 0), ("def g(x): return f(x)", REPAIR, 0), ("def f(xs): return double(2)", HELPER, 1),
    ("def f(xs): return double(3)", HELPER, 0)])
def test_a_function_alone_where_the_question_has_its_helpers(program, question, reward):
    task = Task("1", "d", "code", question, tests=("assert f([1, 3]) == 4.0",))
    assert verify(task, f"```python\n{program}\n```") == reward


def test_tests_may_call_a_helper_of_the_question():
    question = "def encode(s):\n    return s[::-1]\n\ndef decode(s):\n    'The inverse.'\n"
    task = Task("1", "d", "code", question, tests=("assert decode(encode('ab')) == 'ab'",))
    programs = ["def decode(s): return s[::-1]", "def decode(s): return s", "x = encode('a')"]
    assert [verify(task, program) for program in programs] == [1.0, 0.0, 0.0]


SAME = """def f(x, y):
    total = 0
    for i in range(x):
        total += i * y
    return [j for j in range(total)]
"""
RENAMED = """def f(n, k):
    '''Sum.'''
    # add
    s = 0
    for a in range(n):
        s += a * k
    return [q for q in range(s)]
"""


@pytest.mark.parametrize("other, same", [
    (RENAMED, True), (f"```python\n{SAME}```", True), (SAME.replace("def f", "def g"), False),
    (SAME.replace("x, y", "y, x"), False), (SAME.replace("range(x)", "range(y)"), False),
    (SAME.replace("0", "1"), False), (SAME.replace("i * y", "y * i"), False),
    (SAME.replace("range(total)", "sorted(total)"), False), ("total = 1\n" + SAME, False)])
def test_code_key(other, same):
    assert (code_key(SAME) == code_key(find_program(other))) is same


@pytest.mark.parametrize("left, right", [
    ("def f(a): return g(a)", "def f(a): return h(a)"),
    ("def f(sum): return sum\ndef g(x): return sum(x)", "def f(max): return max\ndef g(x): return max(x)"),
    ("def f(x, y): return x\nf(x=1, y=2)", "def f(y, x): return y\nf(x=1, y=2)"),
    ("y = 1\ndef f(x): return y", "y = 1\ndef f(x): return x"),
                                         ("class A:\n    x = 1", "class A:\n    y = 1"),
    ("def f(x): return x.a", "def f(x): return x.b"), ("import a\ndef f(): return a",
                                                       "import b\ndef f(): return b"),
    ("def f(s): return 's'", "def f(s): return 't'")])
def test_code_key_tells_apart(left, right):
    assert code_key(left) != code_key(right)


NASTY = ["(" * 10**5, "-" * 10**5 + "1", "1" + "+1" * 40_000, "x" + ".a" * 10**5, "[" * 150 + "]" * 150,
         "\0", "\ud800",
         "lambda: " * 10_000 + "1", "```" * 10**5, "```\n" * 10**5, " " * 300_000,
         "```python\n" + "\t" * 10**5,
         "é" * 10**5, "if x:\n" * 99, "f'{" * 10_000, "a = 1\n" * 50_000, "not " * 50_000 + "x", "9" * 10_000,
         "'\\N{x}'", "x = 1\x0c", "# -*- coding: nonsense -*-\nx = 1", "def f():\n" * 500]


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_no_text_raises_or_takes_long(text):
    start = time.monotonic()
    assert code_key(find_program(text)) is None or isinstance(code_key(find_program(text)), str)
    assert verify_code(text, ADD, timeout=1.0) == 0.0
    assert time.monotonic() - start < 5
