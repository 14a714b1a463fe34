"""The graders: for each exercise one case computed by hand, properties, and a line for each typical mistake.

A grader takes the module that holds the function and a seed of the random cases; it raises Wrong with what
was probably done, and says nothing else. It calls no function of another exercise: what the function needs of
them is a stand-in here, with numbers put in by hand.
"""

import math
import random
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, tensor
from torch.overrides import TorchFunctionMode

torch.set_num_threads(1)  # a fork has no other thread
F.embedding_bag(tensor([[0]]), torch.ones(1, 1))  # looks up the processor, which nobody can once confined


class Wrong(Exception):
    """What is wrong, in words."""


def need(condition, message: str) -> None:
    """Raise Wrong with the message unless the condition holds."""
    if not condition:
        raise Wrong(message)


def close(a, b) -> bool:
    """Are two results equal: texts exactly, numbers to 1e-4, nan to nan?"""
    if not isinstance(b, (Tensor, list, float)) or isinstance(b, list) and b and isinstance(b[0], str):
        return a == b
    try:
        a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    except (TypeError, ValueError, RuntimeError):
        return False
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)


def expect(got, right, case: str, suspects: dict | None = None) -> None:
    """Raise Wrong unless got is right. `suspects`: what was probably done, and the result that it gives."""
    if close(got, right):
        return
    for message, values in (suspects or {}).items():
        if close(got, values):
            raise Wrong(f"{case}: {message}")
    show = [x.detach().tolist() if isinstance(x, Tensor) else x for x in (got, right)]
    raise Wrong(f"{case}: it gives {shorten(show[0])}, right is {shorten(show[1])}")


def shorten(value) -> str:
    """A result for a message."""
    if isinstance(value, list):
        return f"[{', '.join(map(shorten, value))}]"[:300]
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def raises(kind: type | tuple[type, ...], call) -> bool:
    """Does the call raise an error of this kind, or of one of these?"""
    try:
        call()
    except kind:
        return True
    return False


def numbers(seed: int) -> torch.Generator:
    """A generator of the random cases."""
    return torch.Generator().manual_seed(1000 + seed)


# -------------------------------------------------------------------------------------------- 1 majority_key


def majority_key(module, seed: int) -> None:
    f = module.majority_key
    expect(f(["7", "8", "7", "9", "5"]), "7", "7 8 7 9 5",
        {"the most common answer wins, also with less than half of the votes": None,
        "it gives the votes, and the answer is wanted": 2,
        "it gives the answer with its votes, and the answer alone is wanted": ("7", 2)})
    keys = ["7", None, None, "7", "8", "8", None, None, "7"]
    expect(f(given := list(keys)), "7", "three 7, two 8, four answers that do not parse",
        {"None won: what does not parse never votes": None,
        "the longest run of equal answers won: all votes count, wherever they stand": "8"})
    need(given == keys, "it changed the list that it was given: work on one of your own")
    errors, nothing = (ValueError, IndexError, TypeError), "a group in which nothing parses"
    need(not raises(errors, lambda: f([None, None])),
        f"{nothing}: the majority is None, no error (max has a default)")
    expect(f([None, None]), None, nothing)
    need(not raises(ValueError, lambda: f([" B"])), "' B': an answer is any text, not always a number")
    expect(f([None, " B"]), " B", "None and ' B'", {"one vote is enough where none has more": None})
    expect(f(["", "", "d"]), "", "'' '' d", {"'' is an answer, too: only None does not parse": "d"})
    first = "a tie goes to the one that was seen first"
    ties = [[chr(ord(key) + more) for key in "25931739157"] for more in (0, 16, 48)]
    won = "".join(str(f(keys)) for keys in ties)
    expect(won, "5Ee", "2 5 9 3 1 7 3 9 1 5 7, a tie of 5 9 3 1 7, and the same in letters",
        {f"it went to the smaller answer, {first}": "1Aa", f"it went to the larger answer, {first}": "9Ii",
        f"it went to the last one, {first}": "7Gg", f"the one that had its votes first won, {first}": "3Cc",
        "the first answer won, whatever the votes": "2Bb", f"nobody won, {first}": "NoneNoneNone",
        f"it went to one here, to another there (a set has no order), {first}": won})
    draw = random.Random(seed)
    for _ in range(50):
        keys = [draw.choice(["10", "9", " B", "None"]) for _ in range(draw.randrange(1, 12))]
        won = f(list(keys))
        need(won in keys, f"{keys}: {won!r} is no answer of the group")
        better = [key for key in keys if (keys.count(key), -keys.index(key)) > (keys.count(won),
            -keys.index(won))]
        need(not better, f"{keys}: it gives {won!r}, and {better[:1]} has more votes or was seen before")


# --------------------------------------------------------------------------------------------- 2 hide_labels


def hide_labels(module, seed: int) -> None:
    f, Task = module.hide_labels, module.Task
    tasks = [Task(f"t{i}", "demo", "code" if i % 4 == 3 else "qa", "?", ("one", "two"), str(i),
        ("assert f() == 1",) if i % 4 == 3 else None) for i in range(20)]
    before = repr(tasks)

    def kept(found):
        return [task.id for task in found if task.labelled]

    found = f(tasks, 0.2, seed)
    need(len(found) == 20,
        f"20 tasks, ratio 0.2: it gives {len(found)}, and all stay, with a label or without")
    need(repr(tasks) == before, "it changed the tasks that it was given: replace makes a new one")
    need([task.id for task in found] == [task.id for task in tasks], "the order of the tasks must stay")
    need(all(task.answer != "" and task.tests != () for task in found),
        "a hidden label is None: '' and () are still labels")
    left = [task for s in range(6) for task in f(tasks, 0.2, s) if not task.labelled
        and (task.answer, task.tests) != (None, None)]
    need(not left, "a hidden label must be gone: of some code task the answer (a solution) is still there")
    need(sum(task.tests is not None for task in found) < 5,
        "the tests of a code task are its label, and no code task has lost them")
    need(all((task.question, task.choices) == ("?", ("one", "two")) for task in found),
        "only the label goes: question and choices are not part of it")
    need(len({len(kept(f(tasks, 0.2, s))) for s in range(6)}) == 1,
        "how many labels are kept hangs on the seed: draw so many, and do not toss a coin for each")
    expect(sum(task.answer is not None for task in found), 4,
        "tasks that still have an answer, ratio 0.2 of 20")
    expect(len(kept(found)), 4, "20 labels, ratio 0.2")
    expect(len(kept(f(tasks[:7], 0.4, seed))), 3, "7 labels, ratio 0.4 is 2.8", {"cut off, not rounded": 2})
    expect(len(kept(f(tasks[:7], 0.6, seed))), 4, "7 labels, ratio 0.6 is 4.2", {"up, not rounded": 5})
    expect(len(kept(f(tasks[:10], 0.25, seed))), 2, "10 labels, ratio 0.25 is 2.5",
        {"a half went up, and round(2.5) is 2": 3})
    expect(len(kept(f(tasks, 0.01, seed))), 1, "20 labels, ratio 0.01", {"at least one label is kept": 0})
    half = [Task(f"u{i}", "demo", "math", "?") for i in range(20)] + tasks
    need(len(f(half, 0.2, seed)) == 40, "20 labels and 20 tasks without: the tasks without a label stay, too")
    expect(len(kept(f(half, 0.2, seed))), 4, "20 labels and 20 tasks without, ratio 0.2",
        {"the ratio is of the tasks that have a label, not of all": 8})
    need(kept(f(tasks, 0.2, seed)) == kept(f(tasks, 0.2, seed)), "the same seed must keep the same labels")
    draws = {tuple(kept(f(tasks, 0.2, s))) for s in range(8)}
    need(len(draws) > 1, "every seed keeps the same labels: they are to be drawn with the seed")
    state = random.getstate()
    f(tasks, 0.2, seed)
    need(random.getstate() == state,
        "it seeds the random numbers of the whole program: random.Random(seed) is a generator of its own")
    need(not raises(ValueError, lambda: f(tasks, 0.2, seed, ["t9", "t2", "t5", "t7", "t1"])),
        "five picked and four to keep: the first four keep their label, more are no error")
    picked, case = ("t9 t9 u3 u5 t2 t5 t7 t1 t8".split(),
        "picked t9 t9 u3 u5 t2 t5 t7 t1 t8, u3 and u5 have no label, 4 to keep")
    counted, given = "a picked task without a label, or one picked twice, counted", list(picked)
    need(not raises(ValueError, lambda: f(half, 0.2, seed, given)), f"{case}: {counted}")
    need(given == picked, "it changed the list `picked`")
    draws = {tuple(kept(f(half, 0.2, s, picked))) for s in range(8)}
    need(len(draws) == 1, f"{case}: drawn, and not the first of what is picked")
    expect(kept(f(half, 0.2, seed, picked)), ["t2", "t5", "t7", "t9"], case,
        {counted: ["t9"], "one that is picked twice counted": ["t2", "t5", "t9"],
        "tasks without a label counted": ["t2", "t9"],
        "the first of all tasks, and those that are picked first are wanted": ["t1", "t2", "t5", "t7"],
        "all that are picked kept their label": ["t1", "t2", "t5", "t7", "t8", "t9"]})
    for few, said in ((["t1"], "one task picked"), (["t9", "t2", "t5"], "three tasks picked"),
                      ([], "nothing picked ([] is not None)"),
                      (["u3", "t9", "t2", "t9", "t5"], "u3 t9 t2 t9 t5 picked, u3 has no label,")):
        need(raises(ValueError, lambda few=few: f(half, 0.2, seed, few)),
            f"{said} and four to keep: ValueError")
    code = [Task(f"v{i}", "demo", "code", "?", answer="a solution") for i in range(5)]
    code += [Task(f"w{i}", "demo", "code", "?", tests=("assert f() == 1",)) for i in range(5)]
    expect(kept(f(code, 0.4, seed, "w0 w1 w2 w3 v0 v1".split())), ["w0", "w1"],
        "5 code tasks with tests alone and 5 with an answer alone, ratio 0.4, picked w0 w1 w2 w3 v0 v1",
        {"tests are the label of a code task, also without an answer": [],
        "a code task without tests has no label (task.labelled)": ["w0", "w1", "w2", "w3"]})
    need(not raises(ValueError, lambda: f(tasks, 1.0, seed)), "ratio 1 is inside (0, 1]: all labels stay")
    need(raises(ValueError, lambda: f(half[:20], 0.2, seed)), "no task has a label: ValueError")
    for ratio in (0.0, 1.5, -0.5):
        need(not raises(AssertionError, lambda x=ratio: raises(ValueError, lambda: f(tasks, x, seed))),
            f"ratio {ratio}: an assertion fails, and a ValueError is wanted")
        need(raises(ValueError, lambda x=ratio: f(tasks, x, seed)),
            f"ratio {ratio} is outside (0, 1]: ValueError")


# ----------------------------------------------------------------------------------------------------- 3 knn


def knn(module, seed: int) -> None:
    f, rows = module.knn, [[0.0, 1.0], [2.0, 0.0], [3.0, 4.0]]
    memory = tensor(rows)
    errors, none = (TypeError, AttributeError), torch.zeros(1, 3, dtype=torch.bool)
    need(not raises(errors, lambda: f(tensor([[2.0, 0.0]]), memory, 2))
        or raises(errors, lambda: f(tensor([[2.0, 0.0]]), memory, 2, none)),
        "without `exclude` it is None, and your function needs a mask: then nothing is hidden")
    near, cosines = f(tensor([[2.0, 0.0]]), memory, 2)
    need(not near.is_floating_point(), "it gives cosines and indices: the indices come first")
    need(near.dtype == torch.long, f"the indices are {near.dtype}: gather takes torch.long only")
    right = tensor([[1.0, 0.6]])
    expect(cosines, right, "query (2, 0), memory (0, 1) (2, 0) (3, 4)",
        {"your result equals the plain dot product: did you divide by the lengths?": tensor([[6.0, 4.0]]),
        "you divided by the memory's lengths alone, the query has one too": tensor([[2.0, 1.2]]),
        "you divided by the query's length alone, the memory's rows have one too": tensor([[3.0, 2.0]]),
        "you divided by the lengths of columns (dim), a row's own is wanted": tensor([[3.0, 2.0]]) / 13**0.5,
        "the most distant come first: best first is wanted": tensor([[0.0, 0.6]]),
        "the right ones, worst first: best first is wanted": tensor([[0.6, 1.0]]),
        "the nearest in space: the closest in angle are wanted, whatever the lengths": tensor([[1.0, 0.0]]),
        "millionths are for the order alone, the cosines themselves are wanted": (right * 2**20).round(),
        "the angle, and its cosine is wanted": right.acos(),
        "the distance times -1, and the cosine is wanted": tensor([[0.0, -(5**0.5)]])})
    expect(near, tensor([[1, 2]]), "rows of the memory near (2, 0)")
    need(not raises(RuntimeError, lambda: f(tensor([[1.0, 0.0]]), memory, 9)),
        "k = 9 of 3 rows: min(k, M) are wanted")
    expect(f(tensor([[1.0, 0.0]]), memory, 9)[1], tensor([[1.0, 0.6, 0.0]]), "k = 9 of 3 rows",
        {"min(k, M) are 3: M are the rows, not the width": tensor([[1.0, 0.6]]),
        "in the order of the memory: best first is wanted": tensor([[0.0, 1.0, 0.6]])})
    near, cosines = f(tensor([[1.0, 0.0]]), memory, 3, tensor([[False, True, False]]))
    least = cosines.min()
    expect(cosines, tensor([[0.6, 0.0, -math.inf]]), "row 1 excluded",
        {"the excluded pair still meets": tensor([[1.0, 0.6, 0.0]]),
        f"what is excluded got the cosine {least:g}, and -inf is wanted": tensor([[0.6, 0.0, least]]),
        "you kept what `exclude` marks, and hid the rest": tensor([[1.0, -math.inf, -math.inf]]),
        "a column is missing: where rows are too few it holds the cosine -inf": tensor([[0.6, 0.0]]),
        "the excluded row came first, it is to come last": tensor([[-math.inf, 0.6, 0.0]])})
    queries, marks = [[2.0, 0.0], [-1.0, 0.0]], [[False, True, False], [True, False, False]]
    given = tensor(queries), tensor(rows), tensor(marks)
    cosines = f(*given[:2], 3, given[2])[1]
    need([x.tolist() for x in given] == [queries, rows, marks], "it changed the tensors that it was given")
    case = "queries (2, 0) (-1, 0), row 1 excluded for the first, row 0 for the second"
    need(cosines[:, 2].isinf().all(), f"{case}: what is excluded comes last, also behind cosines below 0")
    expect(cosines, tensor([[0.6, 0.0, -math.inf], [-0.6, -1.0, -math.inf]]), case,
        {"cosines below 0 were cut off": tensor([[0.6, 0.0, -math.inf], [0.0, 0.0, -math.inf]]),
        "what is excluded for one query was so for both":
        tensor([[0.6, -math.inf, -math.inf], [-0.6, -math.inf, -math.inf]])})
    for size in (5, 500):
        near, lowest = f(tensor([[1.0, 0.0]]), torch.ones(size, 2), 3)[0], tensor([[0, 1, 2]])
        expect(near, lowest, f"{size} equal rows",
            {"a tie went to the higher row, it goes to the lower": size - 1 - lowest,
            "a tie goes to the lower row (topk promises nothing, sort only with stable=True)": near})
    near = f(tensor([[3.0, 1.0]]), torch.arange(1.0, 41.0)[:, None] * tensor([[3.0, 1.0]]), 3)[0]
    expect(near, lowest, "40 rows of several lengths that point the same way",
        {"their cosines differ in the last digit alone: a tie, once they are rounded to millionths (to the "
        "nearest, not cut off)": near})
    expect(f(tensor([[1.0, 0.0]]), tensor([[1.0, 0.0201], [1.0, 0.02]]), 1)[0], tensor([[1]]),
        "cosines 0.999798 and 0.9998", {"they are no tie: only what agrees to 1e-6 is one": tensor([[0]])})
    zero = f(torch.zeros(1, 2), torch.zeros(2, 2), 1)[1]
    expect(zero, tensor([[0.0]]), "a row of zeros", {"0 / 0 is nan: its cosine to everything is 0":
        tensor([[math.nan]]), "it is not excluded: its cosine to everything is 0": tensor([[-math.inf]]),
        "two rows of zeros are not alike (their distance is 0): the cosine is 0": tensor([[1.0]])})
    g = numbers(seed)
    queries, memory = torch.randn(2, 5, 8, generator=g), torch.randn(2, 30, 8, generator=g)
    hide = torch.rand(2, 5, 30, generator=g) < 0.3
    need(not raises((RuntimeError, IndexError, ValueError), lambda: f(queries, memory, 4)),
        "queries (2, 5, 8), memory (2, 30, 8): leading dimensions are batches (x.mT, not x.T)")
    need(f(memory[0], memory[0], 1)[0].flatten().equal(torch.arange(30)),
        "the memory's rows as queries: each is nearest to itself, nothing but `exclude` hides a pair")
    near, cosines = f(queries, memory, 4, hide)
    need(near.shape == cosines.shape == (2, 5, 4),
        f"queries (2, 5, 8): shapes (2, 5, 4), not {tuple(near.shape)}")
    need(not hide.gather(-1, near).any(), "random rows: one that is excluded came (`exclude` is (2, 5, 30))")
    for b, n in ((b, n) for b in range(2) for n in range(5)):
        angles = torch.cosine_similarity(queries[b, n][None], memory[b], dim=-1)
        expect(cosines[b, n], angles[near[b, n]],
            "random rows: cosines must be those of the rows that you name")
        others = [angles[i] for i in range(30) if i not in near[b, n].tolist() and not hide[b, n, i]]
        need(cosines[b, n].min() >= max(others) - 1e-5, "random rows: one that is nearer was left out")
        need((cosines[b, n].diff() < 1e-5).all(), "random rows: best first")


# ------------------------------------------------------------------------------------------------ 4 messages


def messages(module, seed: int) -> None:
    weigh, hear, inf = module.edge_weights, module.receive_messages, math.inf
    cosines = tensor([[1.0, 0.5, -0.6], [0.8, 0.4, 0.2]])
    got, above = weigh(given := cosines.clone()), cosines.clamp(min=0)
    need(given.equal(cosines), "edge_weights changed the cosines that it was given (clamp_ does)")
    expect(got, above / 3, "edge_weights of two receivers, cosines 1, 0.5, -0.6 and 0.8, 0.4, 0.2",
        {"not divided by the degree: the more edges, the louder": above,
        "divided by the sum of the weights: the degree, 3, is wanted": above / above.sum(-1, keepdim=True),
        "what is unlike speaks against: max(cos, 0) is wanted": cosines / 3,
        "|cos|: what is unlike says nothing, max(cos, 0) is wanted": cosines.abs() / 3,
        "a softmax: max(cos, 0) / degree is wanted": cosines.softmax(-1),
        "an edge of cosine below 0 is still an edge, it counts in the degree": above / tensor([[2], [3]]),
        "the edges of both were counted: each receiver has a degree of its own": above / 6,
        "the degree was counted over the receivers: each has its own, over its edges": above / 2,
        "divided by the root of the degree": above / 3**0.5, "divided by degree + 1": above / 4,
        "the cosines are not used: max(cos, 0) / degree is wanted": (cosines > 0) / 3})
    expect(weigh(tensor([[0.8, -inf]])), tensor([[0.8, 0.0]]), "edge_weights of cosines 0.8, -inf",
        {"a column of -inf is no edge, it does not count in the degree": tensor([[0.4, 0.0]]),
        "-inf times 0 is nan: max(cos, 0), clamp, makes it 0": tensor([[0.8, math.nan]])})
    expect(weigh(tensor([[-inf, -inf]])), tensor([[0.0, 0.0]]), "edge_weights without any edge",
        {"0 / 0 is nan: let the degree be 1 at least": tensor([[math.nan, math.nan]])})
    expect(weigh(tensor([[0.8, 0.0], [-0.2, -0.5]])), tensor([[0.4, 0.0], [0.0, 0.0]]),
        "edge_weights of cosines 0.8, 0 and of -0.2, -0.5",
        {"an edge of cosine 0 is an edge, it counts in the degree": tensor([[0.8, 0.0], [0.0, 0.0]]),
        "who has only edges below 0 hears nothing": tensor([[0.4, 0.0], [0.5, 0.5]])})
    expect(weigh(tensor([[[0.8, -inf]], [[0.4, 0.2]]])), tensor([[[0.8, 0.0]], [[0.2, 0.1]]]),
        "edge_weights of cosines (2, 1, 2)",
        {"a receiver's edges are the last dim, -1, not always 1": tensor([[[0.8, 0.0]], [[0.4, 0.2]]])})
    said = tensor([[1.0, -10.0], [2.0, -20.0], [4.0, -40.0]])
    errors = IndexError, RuntimeError, ValueError
    one, more, rollouts = [
        raises(errors, lambda x=x, n=n: hear(x, torch.ones(n, dtype=torch.long), torch.ones(n)))
        for x, n in ((said, (1, 2)), (said, (4, 1, 2)), (torch.ones(3, 8, 2), (4, 1, 2)))]
    need(not (one and more) or rollouts, "messages may be (M, w), too: an error, and (M, G, w) is none")
    need(one == more, "senders (1, 2) or (4, 1, 2): an error, and any number of dims comes before k")
    expect(hear(said, tensor([[0, 2]]), tensor([[0.5, 0.25]])), tensor([[1.5, -15.0]]), "receive_messages",
        {"a sum is wanted, the weights have been divided already": tensor([[0.75, -7.5]]),
        "divided by the sum of the weights: they have been divided already": tensor([[2.0, -20.0]]),
        "the weights are not used": tensor([[5.0, -50.0]]),
        "summed over the width: over the edges is wanted": tensor([[-4.5, -9.0]]),
        "the largest message: their sum is wanted": tensor([[1.0, -5.0]]),
        "what is below 0 became 0: the sum is wanted as it is": tensor([[1.5, 0.0]])})
    weights = tensor([[0.5, 0.25, 0.0, 1.0, 2.0]])
    heard = hear(said.requires_grad_(), tensor([[0, 2, 1, 1, 0]]), given := weights.clone())
    need(given.equal(weights), "receive_messages changed the weights that it was given")
    need(heard.requires_grad, "receive_messages: no gradient comes to the messages, which are learned")
    expect(heard, tensor([[5.5, -55.0]]), "receive_messages, five edges")
    g = numbers(seed)
    said, weights = torch.randn(3, 2, 5, generator=g), torch.rand(4, 2, 3, generator=g)
    senders = torch.randint(6, (4, 2, 3), generator=g)
    need(not raises(errors, lambda: hear(torch.ones(3, 8, 5), 4 * senders, weights)),
        "messages (M, G, w) of rollouts: senders count all M * G of them, flatten first")
    need(not raises(errors, lambda: hear(said, senders, weights)),
        "messages (M, G, w) of rollouts: G is messages.shape[1], here 2, and not always 8")
    heard = hear(said, senders, weights)
    need(heard.shape == (4, 2, 5),
        f"senders (4, 2, 3), messages (3, 2, 5): (4, 2, 5) is wanted, not {heard.shape}")

    def sum_of(message):
        return sum(weights[3, 1, j] * message(senders[3, 1, j]) for j in range(3))

    expect(heard[3, 1], sum_of(lambda s: said[s // 2, s % 2]),
        "messages of rollouts (M, G, w): sender 5 is rollout 1 of group 2, if G is 2",
        {"the numbers were read as g*M + m, m*G + g is wanted": sum_of(lambda s: said[s % 3, s // 3]),
        "the mean of the sender's group: one rollout is wanted": sum_of(lambda s: said[s // 2].mean(0))})


# ----------------------------------------------------------------------------------------------- 5 gcn_layer


def gcn_layer(module, seed: int) -> None:
    layer = module.GCNLayer(1, 1)
    with torch.no_grad():
        layer.linear.weight.fill_(1.0)
        layer.linear.bias.fill_(0.0)
    x, edges, r6, r2 = tensor([[1.0], [2.0], [3.0]]), tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 6**0.5, 2**0.5
    given, ways = x.clone(), edges.clone()
    got = layer(x, edges).flatten()
    need(torch.equal(x, given) and torch.equal(edges, ways), "it changed the x or the edges it was given")
    need(close(got, layer(x, edges).flatten()),
        "the same x gives other numbers at each call: the weights are those of self.linear, without dropout")
    expect(got, tensor([1 / 2 + 2 / r6, 1 / r6 + 2 / 3 + 3 / r6, 2 / r6 + 3 / 2]),
        "a path 0 - 1 - 2, x = 1 2 3, W = 1", {"self-loops are missing: A + I, a node hears itself, too":
        tensor([2 / r6, 4 / r6, 2 / r6]), "self-loops are missing in the sum and in the degrees":
        tensor([2 / r2, 4 / r2, 2 / r2]), "D counts the degrees of A + I, yours those of A":
        tensor([1 + 2 / r2, 4 / r2 + 1, 2 / r2 + 3]),
        "a mean, D^-1 (A + I): the square root is taken on both sides": tensor([1.5, 2.0, 2.5]),
        "D^-1/2 on one side only": tensor([1 / r2 + 2 / 3**0.5, 1 / r2 + 2 / 3**0.5 + 3 / r2,
        2 / 3**0.5 + 3 / r2]), "D^-1/2 on one side only, that of the receiver":
        tensor([3 / r2, 6 / 3**0.5, 5 / r2]), "no normalisation at all": tensor([3.0, 6.0, 5.0]),
        "of two edges into node 1 one was lost: h[target] += ... does not add twice, index_add does":
        tensor([1 / 2 + 2 / r6, 2 / 3 + 3 / r6, 2 / r6 + 3 / 2]),
        "of all that comes to a node only the last stays: out[target] = ... does not add, index_add does":
        tensor([1 / 2, 2 / 3, 3 / 2]), "divided by D on both sides: by its square root":
        tensor([1 / 4 + 2 / 6, 1 / 6 + 2 / 9 + 3 / 6, 2 / 6 + 3 / 4]),
        "edges stand there both ways already: yours count twice": tensor([1 / 3 + 4 / 15**0.5,
        2 / 15**0.5 + 2 / 5 + 6 / 15**0.5, 4 / 15**0.5 + 3 / 3]),
        "the self-loop is divided by D, too: yours adds x itself to the rest":
        tensor([1 + 2 / r6, 4 / r6 + 2, 2 / r6 + 3]),
        "the self-loop came twice: once in the edges or at the start, and once more":
        tensor([1 + 2 / r6, 4 / r6 + 4 / 3, 2 / r6 + 3]),
        "the self-loop came twice, in the sum and in the degrees: A + I has one":
        tensor([2 / 3 + 2 / 12**0.5, 4 / 12**0.5 + 1, 2 / 12**0.5 + 2]),
        "x was added at the end: a residual connection is not in the equation":
        tensor([1.5 + 2 / r6, 4 / r6 + 2 / 3 + 2, 2 / r6 + 4.5]),
        "D^-1 on the side of the sender: the square root is taken on both sides":
        tensor([1 / 2 + 2 / 3, 1 / 2 + 2 / 3 + 3 / 2, 2 / 3 + 3 / 2]),
        "multiplied by the root of D on both sides: divide by it":
        tensor([2 + 2 * r6, r6 + 6 + 3 * r6, 2 * r6 + 6]),
        "node 1 has degree 3: degree[target] += 1 does not add twice, bincount does":
        tensor([1.5, 3.0, 2.5]),
        "all that comes to a node is summed up: yours takes the largest": tensor([2.0, 3.0, 3.0])})
    star = tensor([[0] * 8, list(range(1, 9))])
    hub = layer(torch.ones(9, 1), torch.cat([star, star.flip(0)], 1))[0, 0]
    expect(hub, tensor(1 / 9 + 8 / 18**0.5), "a star, node 0 with 1 to 8, x and W = 1: node 0")
    with torch.no_grad():
        layer.linear.bias.fill_(-10.0)
    along, got = -10 * tensor([1 / 2 + 1 / r6, 2 / r6 + 1 / 3, 1 / r6 + 1 / 2]), got.detach()
    expect(layer(x, edges).flatten(), got - 10, "with a bias of -10",
        {"the bias went along the edges: W X first, the bias at the end": got + along,
        "the bias came twice, and once along the edges": got + along - 10, "the bias is missing": got,
        "a relu: that is the network's, not the layer's": torch.zeros(3)})
    out = layer(x.requires_grad_(), edges).sum()
    for name, value in (("x", x), ("self.linear.weight", layer.linear.weight)):
        need(out.requires_grad and torch.autograd.grad(out, value, retain_graph=True, allow_unused=True)[0]
            is not None, f"no gradient comes to {name} (detach, .data or no_grad): training needs it")
    g, layer = numbers(seed), module.GCNLayer(4, 6)
    x, pairs = (torch.randn(9, 4, generator=g), torch.tensor([[0, 1], [1, 2], [4, 2], [5, 6], [6, 7], [0, 7],
        [3, 5]]).T)
    edges, order = torch.cat([pairs, pairs.flip(0)], 1), torch.randperm(9, generator=g)
    crash = RuntimeError, IndexError, AssertionError, ValueError
    need(not raises(crash, lambda: layer(x[:8], edges)),
        "8 nodes, 4 numbers in, 6 out: the shapes do not fit, self.linear.weight is (out_dim, in_dim)")
    need(layer(x[:8], edges).shape == (8, 6), "the shape (n, out_dim) is wanted, a row for each node")
    need(not raises(crash, lambda: layer(x, edges)),
        "an error where the last node has no edge: the nodes are the rows of x, not those in edge_index")
    expect(layer(x, edges)[8], layer.linear(x[8]), "a node without edges gives W x + b",
        {"its self-loop stays, yours is the bias alone": layer.linear.bias})
    none = edges[:, :0]
    need(not raises(crash, lambda: layer(x, none)), "no edges at all: an error, and W x + b is wanted")
    expect(layer(x, none), layer.linear(x), "no edges at all gives W x + b",
        {"the self-loops stay, yours is the bias alone": layer.linear.bias.expand(9, 6)})
    place = order.argsort()
    expect(layer(x[order], place[edges]), layer(x, edges)[order],
        "nodes in another order give the same, in that order")


# ------------------------------------------------------------------------------------------- 6 leave_one_out


def leave_one_out(module, seed: int) -> None:
    g = numbers(seed)
    groups = module.Groups(*(torch.randn(4, *shape, generator=g) for shape in ((8,), (2, 8), (2, 8), (2, 3))))
    copy, query, answer = tensor([0, 1, 0, 3, 2]), tensor([0, 1, 0, 1, 2]), tensor([0, 1, 0, 3, 1])
    groups = groups.rows(copy)._replace(queries=groups.queries[query], answers=groups.answers[answer])
    given = [part.clone() for part in groups]  # 2 is a copy of 0; 3 has the query of 1; 4 the answers of 1
    got, right = module.same_rollouts(groups), torch.eye(5, dtype=torch.bool)
    need(all(map(torch.equal, groups, given)), "it changed the groups that it was given")
    right[0, 2] = right[2, 0] = True
    kin, pair = right.clone(), torch.zeros(5, 5, dtype=torch.bool)
    kin[1, 3] = kin[3, 1] = pair[1, 4] = pair[4, 1] = True
    need(isinstance(got, Tensor) and got.shape == (5, 5) and got.dtype == torch.bool,
        "a mask (M, M) of bool is wanted")
    expect(got, right, "groups 0 and 2 are copies, 1 and 3 of one query, 1 and 4 of the same answers",
        {"a group's copy still tells it its own rewards: equal rollouts are hidden, too": torch.eye(5).bool(),
        "siblings, other groups of one query, are hidden: they may be heard": kin,
        "equal answers were enough: the query, thinkings and features are to be equal, too": right | pair,
        "one equal number or part was enough: all are to be equal (all, and; not any, or)": kin | pair,
        "the mask is upside down: True hides": ~right, "a group is hidden from itself, too":
        right & ~torch.eye(5).bool(), "a copy hides one way only, the mask is symmetric": right.triu(),
        "a copy hides one way only, the mask is symmetric; yours is its lower half": right.tril()})
    near = groups.rows(tensor([0, 0, 1, 3]))  # rows 0 and 1 are copies, until one of them is changed
    flipped = [torch.cat([part[:1], part[1:2].flip(1), part[2:]]) for part in near[1:]]
    need(not module.same_rollouts(type(near)(near.queries, *flipped))[0, 1],
        "the same rollouts in another order were taken for a copy: equal rollout by rollout is wanted")
    swap = {"thinkings": torch.cat([near.thinkings[:1], near.answers[1:]]),
        "answers": torch.cat([near.answers[:1], near.thinkings[1:]])}
    need(not module.same_rollouts(near._replace(**swap))[0, 1],
        "thinkings and answers changed places, and that was taken for a copy: each part is to be equal")
    number = "copies are equal in every number"
    for change, where, why in (  # x: the numbers of a part in a row, its second half of the second rollout
        (lambda x, i: x + 1, "in their {}", number),
        (lambda x, i: x * 2, "in the length of their {}", f"do not normalise, {number}"),
        (lambda x, i: x.roll(len(x) // 2), "in the order of their {}", f"rollout by rollout {number}"),
        (lambda x, i: x + (i >= len(x) / 2), "in the {} of one rollout", f"in all rollouts {number}"),
        (lambda x, i: x + (i == len(x) - 1), "in one number of their {}", number),
        (lambda x, i: x + 0.01 * (i == len(x) - 1), "by 0.01 in one number of their {}",
            f"{number}, and a wide tolerance, a mean or a cosine overlooks one"),
    ):
        for part in ("thinkings", "answers", "features", "queries"):
            values = getattr(near, part).clone()
            row = values[1].view(-1)
            row.copy_(change(row, torch.arange(len(row))))
            need(not module.same_rollouts(near._replace(**{part: values}))[0, 1],
                f"two groups that differ {where.format(part)} are not the same: {why}")
    near.answers[:2, 0] = 0.5 * 10.0 ** -torch.arange(8)
    hair = 1 + 2e-7 * tensor([1.0, -1.0, 0.0, 0.0])
    rounded = type(near)(*((part.flatten(1) * hair[:, None]).view_as(part) for part in near))
    pair = module.same_rollouts(rounded)
    need(pair[0, 1], "copies that differ by 4e-7 of each number, as another batch rounds, "
        "stay copies: leave a tolerance (== has none, nor has == after rounding: 0.00005 goes up or down)")
    size = 60
    many = module.Groups(*(torch.randn(size, *part.shape[1:], generator=g) for part in groups))
    many = many.rows(torch.randint(size, (size,), generator=g))
    hidden = module.same_rollouts(many)
    need(hidden.diagonal().all(), "60 groups: one is not hidden from itself, and of 5 groups each was "
        "(cdist, say, multiplies matrices over 25 rows: too coarse in float32)")
    rewards = torch.randint(2, (size,), generator=g).double() * 2 - 1
    weights = torch.rand(size, size, generator=g).double()
    weights = weights.masked_fill(hidden, 0.0)  # a memory of one layer: whom the mask lets through, votes
    row = many.features[:, 0, 0] == many.features[0, 0, 0]
    moved = (weights @ rewards.where(~row, -rewards)) != (weights @ rewards)
    need(not moved[row].any(),
        "random groups: flip the label of a group and of its copies, and their own logit moves")
    need(moved[~row].all() or row.all(), "random groups: flip a label, and no logit of the others moves")


# ------------------------------------------------------------------------------------------------- 7 metrics


def metrics(module, seed: int) -> None:
    f = module.metrics
    p, r = tensor([0.9, 0.8, 0.7, 0.3, 0.1]), tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    given = p.clone(), r.clone()
    found = f(p, r)
    need(torch.equal(p, given[0]) and torch.equal(r, given[1]), "it changed what it was given")
    names = {"accuracy", "precision", "recall", "f1", "fp_rate", "auc"}
    need(set(found) == names, f"wanted are {', '.join(sorted(names))}")
    need(all(isinstance(value, (int, float)) for value in found.values()), "floats are wanted, not tensors")
    expect(found["auc"], 2 / 3, "auc of p .9 .8 .7 .3 .1, rewards 1 0 1 1 0", {"it was rounded": 0.667,
        "that is the auc of the predictions, 0 or 1: the probabilities tell more": 7 / 12,
        "turned round: 1 is wanted where all right ones score higher": 1 / 3,
        "your ranks start at 0, and n (n + 1) / 2 is for ranks from 1": 1 / 6,
        "ranks start at 1, and n (n + 1) / 2 of them are those among the right ones": 5 / 3,
        "every right one is compared with every wrong one, and yours compares a few (or two medians)": 1.0})
    p, r = tensor([0.95, 0.9, 0.8, 0.8, 0.1]), tensor([0.0, 1.0, 0.0, 1.0, 0.0])
    auc, case = f(p, r)["auc"], "p .95 .9 .8 .8 .1, rewards 0 1 0 1 0"
    need(close(auc, f(p.flip(0), r.flip(0))["auc"]), f"auc of {case}: back to front they give another, "
        "so among equal p the place decides: a tie is one half")
    expect(auc, 3.5 / 6, f"auc of {case}", {"a tie of right and wrong counts as won: it is one half": 4 / 6,
        "a tie of right and wrong counts as lost: it is one half": 3 / 6,
        "pairs that tie were left out: they are pairs, too, and count one half": 3 / 5})
    p, r = tensor([0.9, 0.6, 0.7, 0.2, 0.1, 0.3, 0.4, 0.4]), tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    found, case = f(p, r), "p .9 .6 .7 .2 .1 .3 .4 .4, rewards 1 0 0 1 0 1 0 0"
    of_wrong = "the share of the WRONG rollouts that are rewarded, yours is"
    for name, right, suspects in [
        ("accuracy", 4 / 8, {"a share is wanted, not percent": 50.0,
            "only hits count in yours: a wrong one that is not rewarded is decided right, too": 1 / 8,
            "the mean of recall and 1 - fp_rate: the share of right decisions is wanted": 7 / 15}),
        ("precision", 1 / 3, {}),
        ("recall", 1 / 3, {}),
        ("f1", 1 / 3, {"twice the hits, yours has them once": 1 / 6,
            "the mean of the f1 of right and of wrong ones: that of the right ones is wanted": 7 / 15}),
        ("fp_rate", 2 / 5, {f"{of_wrong} of all": 1 / 4, f"{of_wrong} of the rewarded ones": 2 / 3,
            f"{of_wrong} of those that are not: 1 - fp_rate": 3 / 5}),
    ]:
        expect(found[name], right, f"{name} of {case}", suspects)
    found = f(tensor([0.9, 0.8, 0.7, 0.6, 0.1]), tensor([1.0, 0.0, 0.0, 0.0, 1.0]))
    case = "p .9 .8 .7 .6 .1, rewards 1 0 0 0 1"
    expect(found["precision"], 0.25, f"precision of {case}", {"precision and recall are swapped": 0.5})
    expect(found["recall"], 0.5, f"recall of {case}")
    expect(found["f1"], 1 / 3, f"f1 of {case}",
        {"the plain mean of precision and recall: f1 is their harmonic mean": 0.375})
    for name, p, r, text in (
        ("auc", [0.6, 0.4], [0.0, 0.0], "without a right rollout"),
        ("recall", [0.6, 0.4], [0.0, 0.0], "without a right rollout"),
        ("auc", [0.9, 0.8], [1.0, 1.0], "without a wrong rollout"),
        ("fp_rate", [0.9, 0.8], [1.0, 1.0], "without a wrong rollout"),
        ("precision", [0.1], [1.0], "where nothing is rewarded"),
        ("f1", [0.1], [0.0], "where nothing is rewarded and nothing is right"),
        ("accuracy", [], [], "of no rollouts"),
        ("auc", [], [], "of no rollouts"),
    ):
        try:
            value = f(tensor(p), tensor(r))[name]
        except (ZeroDivisionError, RuntimeError, ValueError, IndexError):
            value = 0.0
        need(value != value, f"{name} {text} is 0 / 0: nan, no number and no error")
    expect(f(tensor([0.5, 0.4]), tensor([0.0, 0.0]))["accuracy"], 1.0, "accuracy of p .5 .4, rewards 0 0",
        {"0.5 is not above the threshold 0.5": 0.5,
        "no rollout is right, and both are decided right: 2 of 2 is no 0 / 0": math.nan})
    expect(f(tensor([0.6, 0.4]), tensor([0.0, 0.0]), 0.7)["accuracy"], 1.0,
        "p .6 .4, rewards 0 0, threshold 0.7", {"it was compared with 0.5: the threshold is not used": 0.5})
    expect(f(tensor([0.6, 0.4]), tensor([1.0, 0.0]), 1.0)["recall"], 0.0,
        "recall of p .6 .4, rewards 1 0, threshold 1",
        {"the threshold is for the probabilities, and the rewards were compared with it, too": math.nan})
    expect(f(tensor([0.6, 0.4]), tensor([0.0, 1.0]))["f1"], 0.0, "f1 of p .6 .4, rewards 0 1",
        {"precision and recall are 0, and twice the hits, 0, over predicted plus right, 2, is no 0 / 0":
        math.nan})
    g = numbers(seed)
    p, r = torch.randint(8, (60,), generator=g) / 8, torch.randint(2, (60,), generator=g).float()
    auc = f(p, r)["auc"]
    expect(f(p**3, r)["auc"], auc, "random p with ties: p ** 3 has the same order, and the same auc")
    expect(f(1 - p, r)["auc"], 1 - auc, "random p with ties: 1 - p turns the auc round")
    expect(f(p.repeat(20), r.repeat(20))["auc"], auc, "random p, each rollout twenty times: the same auc")
    mean = sum((a > b).item() + 0.5 * (a == b).item() for a in p[r == 1] for b in p[r == 0])
    expect(auc, float(mean / (r == 1).sum() / (r == 0).sum()), "random p with ties: auc counts pairs")


# --------------------------------------------------------------------------------------------- 8 calibration


def calibration(module, seed: int) -> None:
    f, error = module.calibrate, module.calibration_error
    p = tensor([0.9, 0.9, 0.22, 0.1])
    value = error(p, tensor([1.0, 0.0, 0.0, 0.0]))
    expect(value, 0.28, "error, p .9 .9 .22 .1, rewards 1 0 0 0",
        {"bins count by their size, yours equally": 0.24,
        "bins count by their size, yours equally, with the empty ones": 0.072, "the mean distance of each "
        "rollout: bins have an equal width, not an equal size, and each is averaged first": 0.33,
        "the middle of each bin: the mean of the probabilities in it is wanted": 0.325,
        "the largest gap: a mean is wanted": 0.4, "gaps are squared: their absolute value is wanted": 0.0946,
        "gaps are summed, and not divided by the number of rollouts": 1.12,
        "gaps are divided by the number of bins: by that of rollouts": 0.112,
        "an empty bin is 0 / 0, which is nan: it adds nothing": math.nan,
        "the mean squared distance of each rollout (Brier score): gaps of bins are wanted": 0.2196,
        "that is how sure p is either way, max(p, 1 - p): p itself is wanted": 0.23})
    need(isinstance(value, float), f"error: a float is wanted, yours is a {type(value).__name__}")
    need(torch.equal(p, tensor([0.9, 0.9, 0.22, 0.1])), "error: it changed the probabilities it was given")
    expect(error(tensor([0.8, 0.2]), tensor([1.0, 0.0])), 0.2, "error, p .8 .2, rewards 1 0",
        {"gaps of unlike sign cancel: the absolute value of each bin's is wanted": 0.0})
    expect(error(tensor([0.15, 0.27, 0.45]), tensor([0.0, 1.0, 0.0]), 2), 0.13 / 3,
        "error, p .15 .27 .45, rewards 0 1 0, bins 2",
        {"there are ten bins, and two were asked for": 1.33 / 3,
        "p went to the nearest edge: each bin goes from one edge to the next": 0.43 / 3,
        "bins cut the range of p: they cut [0, 1]": 1.03 / 3})
    try:
        value = error(tensor([1.0, 0.95]), tensor([0.0, 1.0]))
    except (IndexError, RuntimeError):
        value = 0.025
    expect(value, 0.475, "error, p 1 .95, rewards 0 1", {"p = 1 has a bin of its own: it belongs into the "
        "last": 0.525, "p = 1 belongs into the last bin, not behind it": 0.025})
    expect(error(tensor([0.0, 0.0, 0.5]), tensor([1.0, 1.0, 0.0])), 2.5 / 3,
        "error, p 0 0 .5, rewards 1 1 0", {"p = 0 belongs into the first bin, and is in none": 0.5 / 3})
    g = numbers(seed)
    logit = 2 * torch.randn(400, generator=g)
    shares = (0.25 * logit + 0.3).sigmoid()
    rewards = (torch.rand(400, generator=g) < shares).float()
    inputs, start = torch.stack([logit, torch.ones(400)], 1), tensor([1.0, 0.0])
    cases = [("", inputs, rewards, 3.0), ("", inputs, rewards, 200.0),
        ("rewards between 0 and 1: ", inputs, shares, 3.0),
        ("logits 30 times as large: ", inputs * tensor([30.0, 1.0]), rewards, 3.0)]

    def flat(slope: Tensor, pull: Tensor) -> bool:  # as flat as LBFGS in float32 makes it
        rest = 5.0 if case.startswith("logits") else 0.05  # of thousands at (1, 0)
        return bool((slope + pull).norm() < max(rest, 0.05 * float(slope.norm())))

    def steep(x: Tensor, y: Tensor, w: Tensor) -> Tensor:  # the slope of the summed cross-entropy
        return x.T @ ((x @ w).sigmoid() - y)

    for case, x, y, strength in cases:
        given = x.clone(), y.clone()
        w = f(x, y, strength)
        need(torch.equal(x, given[0]) and torch.equal(y, given[1]),
            "calibrate changed the inputs or the rewards that it was given")
        need(w.shape == (2,), f"two inputs: weights (2,) are wanted, yours are {tuple(w.shape)}")
        need(not w.requires_grad, "weights without a graph are wanted: detach them")
        need(w.dtype == torch.float32, f"weights of float32 are wanted, yours are {w.dtype}")
        slope, off = steep(x, y, w), w - start
        pull, scaled = strength * off, x / torch.where(x.std(0) > 0, x.std(0), 1.0)
        suspects = {"the weights are held near 0, and (1, 0) is wanted: the logit as it is":
            (slope, strength * w),
            "the mean over rollouts: the sum is wanted, or the pull outweighs the labels":
            (slope / 400, pull),
            "strength times the squared distance: half of that is wanted": (slope, 2 * pull),
            "nothing holds the weights: strength is not used": (slope, 0 * pull),
            "strength is 3 whatever is asked": (slope, 3 * off),
            "the weights are held near (1, 1), and (1, 0) is wanted: of all but the logit nothing":
            (slope, strength * (w - 1)), "the weights are held near (0, 1), and (1, 0) is wanted: the logit "
            "comes first": (slope, strength * (w - start.flip(0))),
            "the first weight is not held: all of them are": (slope, pull * tensor([0.0, 1.0])),
            "the last weight is not held: all of them are": (slope, pull * tensor([1.0, 0.0])),
            "the distance holds the weights: its square is wanted": (slope, pull / (2 * off.norm() + 1e-9)),
            "the rewards are turned round": (steep(x, 1 - y, w), pull),
            "the rewards were made 0 or 1: they count as they are": (steep(x, (y > 0.5).float(), w), pull),
            "squared errors: the cross-entropy is wanted": (x.T @ (x @ w - y), pull),
            "the inputs went through a sigmoid: they count as they are": (steep(x.sigmoid(), y, w), pull),
            "these are weights of scaled inputs: those of the inputs are wanted": (steep(scaled, y, w), pull)}
        for message, where in suspects.items():
            need(case[:6] == "logits" or not flat(*where) or flat(slope, pull), case + message)
        need(flat(slope, pull), f"{case}strength {strength:g}: weights {shorten(w.tolist())} are no minimum, "
            f"the slope there is {shorten((slope + pull).tolist())}; steps must go on until it is 0")
    case, wide = "", torch.cat([inputs[:, :1], torch.randn(400, 2, generator=g), inputs[:, 1:]], dim=1)
    try:
        w = f(wide, rewards, 3.0)
    except RuntimeError as error:
        raise Wrong(f"four inputs, two of them features: {error}") from None
    need(flat(steep(wide, rewards, w), 3.0 * (w - tensor([1.0, 0.0, 0.0, 0.0]))),
        "four inputs, two of them features: all four weights are fitted, held near (1, 0, 0, 0)")


# ------------------------------------------------------------------------------------------- 9 choose_tokens


def choose_tokens(module, seed: int) -> None:
    f = module.choose_tokens
    logits, u = tensor([[0.1, 0.6, 0.3]] * 3).log(), tensor([0.05, 0.68, 0.95])
    many = logits[:1].repeat(64, 1)
    need(torch.equal(*(f(many, torch.full((64,), 0.5), 1.0)[0] for _ in range(2))),
        "the same u twice, other tokens: u is the draw, the function draws nothing itself")
    given = u.clone()
    got = f(logits, given, 1.0)[0]
    need(torch.equal(given, u), "it changed the uniforms that it was given")
    need(not got.is_floating_point(), "the ids of the tokens come first, then their log-probabilities")
    need(got.shape == (3,), f"three rows: token ids (3,) are wanted, yours are {tuple(got.shape)}")
    expect(got, tensor([0, 1, 2]), "p .1 .6 .3, u .05 .68 .95",
        {"sorted by probability: the sum runs over the tokens in their own order": tensor([1, 2, 0]),
        "the order is turned round: the sum runs from token 0": tensor([2, 1, 0]),
        "one token too far": tensor([1, 2, 3]), "one token too far, and the last stays": tensor([1, 2, 2]),
        "one token too early": tensor([0, 0, 1]),
        "as if all were equally probable: softmax over the tokens, not over the rows": tensor([0, 2, 2]),
        "the most probable token, whatever u is": tensor([1, 1, 1]),
        "the u of the first row for all: each row has its own": tensor([0, 0, 0])})
    logits = tensor([[0.25, 0.25, 0.5]] * 4).log()
    u = tensor([0.1, 0.25, 0.3, 0.8])
    got, logprobs = f(logits, u, 1.0)
    expect(got, tensor([0, 1, 1, 2]), "p .25 .25 .5, u .1 .25 .3 .8",
        {"u = .25 gave token 0: the sum must be ABOVE u, or u = 0 could choose a token of probability 0":
        tensor([0, 0, 1, 2])})
    right = tensor([0.25, 0.25, 0.25, 0.5]).log()
    expect(logprobs, right, "their log-probabilities", {"these are probabilities: the logarithm is wanted":
        right.exp(), "that of the most probable token: the chosen one's is wanted": right[3:].expand(4)})
    expect(f(tensor([[0.0, 0.5, 0.5]]).log(), tensor([0.0]), 1.0)[0], tensor([1]), "p 0 .5 .5, u 0",
        {"a token of probability 0 was chosen": tensor([0])})
    rare = f(tensor([[-16.0, 0.0]]), tensor([0.0]), 1.0)[1].item()
    need(abs(rare + 16) < 1e-3, f"logits -16 0, u 0: the log-probability is -16, yours {rare:.4g}: a small "
        "number added to the probability, or a limit below, changes it")
    logits = tensor([[0.0, 2.0]])
    two, given = logits.div(2).log_softmax(-1)[0], logits.clone()
    expect(f(given, tensor([0.2]), 2.0)[1], two[:1], "logits 0 2, temperature 2, u .2",
        {"multiplied by the temperature: it divides": logits.mul(2).log_softmax(-1)[0, 1:],
        "the log-probability is that of temperature 1: the policy that samples is the one that is trained":
        logits.log_softmax(-1)[0, :1], "temperature 1: it is not used": logits.log_softmax(-1)[0, 1:],
        "log-probabilities were divided, and no longer are some: the logits are divided":
        logits.log_softmax(-1)[0, :1] / 2})
    need(torch.equal(given, logits), "it changed the logits that it was given")
    expect(f(tensor([[0.0, 0.3]]), tensor([0.01]), 0.1)[0], tensor([0]),
        "logits 0 .3, temperature .1, u .01",
        {"a low temperature was taken for 0: only 0 itself takes the most probable": tensor([1])})
    logits = tensor([[1.0, 3.0, 0.0]])
    divided = "temperature 0: there is nothing to divide by, it takes the most probable token"
    need(not raises((RuntimeError, IndexError, ZeroDivisionError), lambda: f(logits, u[:1], 0.0)), divided)
    greedy = f(logits, tensor([0.0]), 0.0)
    need(greedy[1].isfinite().all(), divided)
    expect(greedy[0], tensor([1]), "temperature 0, logits 1 3 0, u 0",
        {"it draws: temperature 0 takes the most probable": tensor([0]),
        "the least probable: temperature 0 takes the most probable": tensor([2])})
    expect(greedy[1], logits.log_softmax(-1)[0, 1:2], "temperature 0",
        {"the log-probability is that of temperature 1, not 0": tensor([0.0]),
        "that is the logit: the log-probability is wanted": tensor([3.0])})
    g = numbers(seed)
    many = torch.randn(300, 2000, generator=g)
    often = f(many[:1].expand(1000, -1), (torch.arange(1000) + 0.5) / 1000, 1.0)[0].unique()
    need(len(often) > 200,
        f"2000 tokens, u evenly in [0, 1): only {len(often)} tokens ever come: nothing is cut off")
    u = 0.98 * torch.rand(300, generator=g)
    sums, chosen = many.double().softmax(-1).cumsum(-1), f(many, u, 1.0)[0][:, None]
    need(chosen.max() < 2000 and (sums.gather(-1, chosen)[:, 0] > u - 5e-5).all()
        and (F.pad(sums, (1, 0)).gather(-1, chosen)[:, 0] < u + 5e-5).all(),
        "2000 tokens: u is not between the sums before and with the token: sums are rounded too much, they "
        "want float32")
    behind = "u next to 1, 2000 tokens: rounded sums end below u, and "
    near = torch.full((300,), 1 - 2**-24)
    need(not raises((IndexError, RuntimeError), lambda: f(many, near, 1.0)),
        f"{behind}a token behind the last was chosen")
    last = f(many, near, 1.0)[0]
    bad = sums[torch.arange(300), last] <= 0.99
    need(not bad.any() or (last != many.argmax(-1))[bad].any(),
        "u next to 1, 2000 tokens: the most probable was chosen: the last possible one is wanted")
    need(not bad.any(), f"{behind}token {last[bad.long().argmax()]} was chosen where none is above it")
    tail = torch.cat([many, torch.full((300, 9), -math.inf)], 1)
    need((f(tail, near, 1.0)[0] < 2000).all(),
        "u next to 1, the last 9 of 2009 tokens are impossible: rounded sums end below u, and one was chosen")
    dtype = f(many[:9].bfloat16(), torch.full((9,), 0.5), 1.0)[1].dtype
    need(dtype == torch.float32,
        f"logits of bfloat16, as large models give: log-probabilities in float32 are wanted, not {dtype}")
    chosen = f(many[:1, :5].expand(4000, -1), (torch.arange(4000) + 0.5) / 4000, 1.0)[0]
    off = torch.bincount(chosen, minlength=5) / 4000 - many[0, :5].softmax(-1)
    need(off.abs().max() < 1e-3, "u evenly in [0, 1): each token is to come as often as it is probable")


# --------------------------------------------------------------------------------------- 10 group_advantages


def group_advantages(module, seed: int) -> None:
    f = module.group_advantages
    rewards = tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    centred, std = rewards - tensor([[0.25], [0.5]]), tensor([[1 / 4], [1 / 3]]).sqrt()
    right = centred / (std + 0.3)
    given = rewards.clone()
    got = f(given, eps=0.3)
    need(got.shape == (2, 4), f"rewards (2, 4): advantages (2, 4) are wanted, yours are {tuple(got.shape)}")
    expect(got, right, "rewards 1 0 0 0 and 1 1 0 0, eps 0.3",
        {"the deviation of the population: G - 1 is wanted, as TRL has it": centred / (std * 0.75**0.5 + 0.3),
        "eps is not added to the deviation": centred / std, "eps is 1e-4 whatever is asked":
        centred / (std + 1e-4), "eps stands under the root: it is added to the deviation":
        centred / (std**2 + 0.3).sqrt(), "divided by the variance, not by its root": centred / (std**2 + 0.3),
        "divided by the deviation of the mean: by that of the rewards": centred / (std / 2 + 0.3),
        "divided by the range: by the deviation": centred / 1.3, "divided by the mean absolute deviation, a "
        "mean of squares is wanted": centred / (centred.abs().mean(1, keepdim=True) + 0.3),
        "not divided": centred, "the mean is not taken off, or the median was, which is 0 here":
        rewards / (std + 0.3),
        "0.5 was taken off: the mean of the group is wanted": (rewards - 0.5) / (std + 0.3),
        "the sign is turned round: it is reward minus mean": -right,
        "what is below the mean got 0: it is to get less": right.clamp(min=0),
        "the mean of the others was taken off: the mean of the group is wanted": right * 4 / 3,
        "mean and deviation of the whole batch: each group has its own":
        (rewards - 0.375) / (rewards.std() + 0.3), "the mean of the whole batch: each group has its own":
        (rewards - 0.375) / (std + 0.3), "the deviation of the whole batch: each group has its own":
        centred / (rewards.std() + 0.3), "the mean over tasks: a group is a row":
        (rewards - rewards.mean(0)) / (std + 0.3), "mean and deviation over tasks: a group is a row":
        (rewards - rewards.mean(0)) / (rewards.std(0) + 0.3)})
    need(torch.equal(given, rewards), "it changed the rewards that it was given")
    expect(f(rewards, normalize="none"), centred, 'the same, normalize "none"',
        {'"none" divides by the deviation, too': centred / (std + 1e-4),
        "the mean is taken off, also without dividing": rewards})
    for some, what in ((rewards[:1], "one task of 4 rollouts"), (rewards[:, ::3], "two tasks of 2 rollouts"),
        (tensor([[1.0, 0.0], [1.0, 1.0]]), "a group of equal rewards beside another")):
        need(not raises(ValueError, lambda some=some: f(some)), f"{what}: no error, only groups of ONE are")
        need(f(some).shape == some.shape, f"{what}: the advantages are to have the shape of the rewards")
    for size in range(2, 14):
        for value in (0.1, 0.7, 1.0):
            for normalize in ("std", "none"):
                need((f(torch.full((1, size), value), normalize) == 0).all(),
                    f"{size} equal rewards of {value}: exactly 0 is wanted; a rounded mean leaves a rest, "
                    "of which Adam makes full steps")
    for few in (0.008, 8e-5):
        need((f(tensor([[0.0, few, 0.0, 0.0]])) != 0).all(),
            f"rewards 0 {few} 0 0: a small deviation was taken for none: only EQUAL rewards get 0")
    for normalize in ("std", "none"):
        need(raises(ValueError, lambda how=normalize: f(torch.ones(4, 1), how)), "groups of one rollout, "
            f'rewards (4, 1), normalize "{normalize}": nothing to be compared with, raise ValueError')
    for other in ("mean", "group", "batch"):
        try:
            refused = raises(ValueError, lambda other=other: f(rewards, other))
        except (AssertionError, LookupError) as error:
            raise Wrong(f'normalize "{other}": raise ValueError, not {type(error).__name__}') from None
        need(refused, f'normalize "{other}" is neither "std" nor "none": raise ValueError')
    rewards = torch.rand(5, 6, generator=numbers(seed))
    got, mean = f(rewards), rewards.mean(1, keepdim=True)
    expect(got, (rewards - mean) / (rewards.std(1, keepdim=True) + 1e-4), "random rewards between 0 and 1",
        {"the deviation is that of rewards of 0 or 1, p (1 - p): rewards may be any numbers":
        (rewards - mean) / ((mean * (1 - mean) * 6 / 5).sqrt() + 1e-4)})
    expect(f(rewards + 3), got, "random rewards: 3 more for everybody changes nothing")


# ------------------------------------------------------------------------------------------ 11 token_weights


def token_weights(module, seed: int) -> None:
    f = module.token_weights
    mask = tensor([[1.0, 1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    sequence, constant = mask * tensor([[1 / 6], [1 / 2]]), mask / 10
    wrong = {"that is the mean over all tokens": mask / 4, "that is the mean over rollouts": sequence,
        "that is the sum over N * T": constant, "padding has a weight: it is no token":
        torch.full((2, 5), 1 / 10)}

    def others(name: str) -> dict:
        return {text: values for text, values in wrong.items() if name not in text}

    def twice(x):  # two processes
        need(isinstance(x, Tensor), "reduce sums tensors: a plain number it would leave as it is")
        return 2 * x

    case = "responses of 3 and 1 tokens, T = 5"
    given = mask.clone()
    got = f(given)
    need(torch.equal(given, mask), "it changed the mask that it was given")
    need(got.shape == (2, 5), f"every token has a weight: (2, 5) is wanted, yours are {tuple(got.shape)}")
    expect(got, sequence, f"sequence, {case}", others("rollouts") | {
        "not divided by the number of rollouts": 2 * sequence, "padding has a weight":
        tensor([[1 / 6] * 5, [1 / 2] * 5]), "not divided by the response's length": mask / 2,
        "divided by the tokens of the column: by those of the row": mask / tensor([4.0, 2.0, 2.0, 1.0, 1.0])})
    expect(f(mask, "token"), mask / 4, f"token, {case}", others("tokens") | {
        "padding has a weight": torch.full((2, 5), 1 / 4)})
    expect(f(mask, "constant"), constant, f"constant, {case}", others("sum") | {"divided by T alone: N * T":
        mask / 5, "divided by N alone: N * T": mask / 2,
        "divided by the longest response: T is the width of the mask": mask / 6})
    empty = tensor([[1.0, 1.0], [0.0, 0.0]])
    need(f(empty).isfinite().all(), "a response without tokens: 0 / 0 is nan, its weights are 0")
    for name in ("sequence", "constant"):
        expect(f(empty, name), empty / 4, f"{name}, responses of 2 and 0 tokens",
            {"a response without tokens counts in N, too": empty / 2})
    expect(f(torch.zeros(2, 2), "token"), torch.zeros(2, 2), "no token at all",
        {"0 / 0 is nan, the weights are 0": torch.full((2, 2), math.nan)})
    for name, right in (("sequence", sequence / 2), ("token", mask / 8), ("constant", constant / 2)):
        expect(f(mask, name, twice), right, f"{name}, two processes with such a batch each",
            {"reduce is not used: weights are those of the whole batch, over all processes": 2 * right,
            "a length is its response's own: only counts of the whole batch are summed over processes"
            if name == "sequence" else "one count is summed over processes, and once": right / 2,
            "the weights were summed over processes: the counts are": 4 * right})
    for name, right in (("sequence", sequence * 2 / 5), ("token", mask / 7)):
        expect(f(mask, name, lambda x: x + 3), right, f"{name}, another process has 3 responses of 1 token",
            {"the mean of the processes' means: sum the counts, or tokens of a small batch weigh more":
            (sequence if name == "sequence" else mask / 4) / 4})
    for other in ("tokens", "seq"):
        try:
            refused = raises(ValueError, lambda other=other: f(mask, other))
        except (AssertionError, LookupError) as error:
            raise Wrong(f'loss_norm "{other}": raise ValueError, not {type(error).__name__}') from None
        need(refused, f'loss_norm "{other}" is none of the three: raise ValueError')
    g = numbers(seed)
    lengths = torch.randint(1, 7, (9, 1), generator=g)
    mask = (torch.arange(6) < lengths).float()
    expect(f(mask).sum(1), torch.full((9,), 1 / 9), "sequence, random lengths: every rollout weighs 1 / N")
    expect(f(mask, "token").sum(), tensor(1.0), "token, random lengths: the weights add up to 1")


# ---------------------------------------------------------------------------------------------- 12 grpo_loss


def grpo_loss(module, seed: int) -> None:
    def f(new, old, ref, advantages, mask=None, weights=None, **settings):
        new = new.clone().requires_grad_()
        mask = torch.ones_like(new) if mask is None else mask
        weights = mask / mask.sum() if weights is None else weights  # so that token_weights is not asked
        given = new, old, ref, advantages, mask, weights
        before = [x if x is None else x.detach().clone() for x in given]
        loss, found = module.grpo_loss(*given[:-1], weights=weights, **settings)
        need(loss.requires_grad, "no gradient reaches the log-probabilities: only the old ones are constants")
        need(all(map(close, given, before)), "it changed tensors that it was given, in place")
        case = "old_logprobs None: " if old is None else "" if settings.get("kl_coef", 1) else "kl_coef 0: "
        for name in ("ratio", "clip_fraction", "kl")[: 2 + (ref is not None)]:
            need(name in found, f'{case}the metric "{name}" is missing')
        need(all(isinstance(x, Tensor) for x in found.values()), "metrics are tensors, not floats")
        loss.backward()
        return loss.detach(), found, new.grad

    module.token_weights = lambda mask, *rest, **more: mask / len(mask)  # a stand-in
    clipping(f)
    expect(f(torch.zeros(2, 2), None, None, tensor([1.0, -1.0]), tensor([[1.0, 0.0], [1.0, 1.0]]),
        tensor([[0.5, 0.0], [0.3, 0.1]]))[0], tensor(-0.1), "weights .5 and .3 .1, advantages 1 -1",
        {"a mean: the tokens have their weights": tensor(1 / 3),
        "weights are given, and yours are those of token_weights": tensor(0.0),
        "weights are given, and they are not used": tensor(0.5),
        "divided by N once more: the weights have done that": tensor(-0.05),
        "a mean of what is weighted: the sum is wanted": tensor(-0.025),
        "an advantage is of a whole response, a row: here they lie along the tokens": tensor(-0.7)})
    divergence(f)
    masks_and_metrics(f)
    unequal_clips(f)
    alone, asked = torch.zeros(2, 2), []
    module.token_weights = lambda mask, loss_norm="sequence", *rest: (
        asked.append(loss_norm) or mask * tensor([[0.5], [0.0]]))
    loss, _ = module.grpo_loss(alone, None, None, tensor([1.0, 1.0]), torch.ones(2, 2))
    need(asked, "weights None: `token_weights` of the mask is wanted")
    need(set(asked) == {"sequence"}, f'weights None: `token_weights` was asked for {asked[0]!r}')
    expect(loss, tensor(-1.0), "weights None: those of `token_weights` are wanted, here 0.5 and 0 a row")
    g = numbers(seed)
    new, old, weights = (torch.randn(4, 5, generator=g) for _ in range(3))
    weights, advantages = weights.abs(), 2 * torch.randn(4, generator=g)
    ratio, a = (new - old).exp(), advantages[:, None]
    dead = ((ratio > 1.2) & (a > 0)) | ((ratio < 0.8) & (a < 0))
    slope = f(new, old, None, advantages, weights=weights)[2]
    expect(slope, (-weights * a * ratio).masked_fill(dead, 0.0),
        "random: the gradient is -w A ratio, 0 where it is clipped")


def clipping(f) -> None:
    """Ratio, clip and min on one token; `f` gives loss, metrics and gradient."""
    zero, good, bad = torch.zeros(1, 1), tensor([1.0]), tensor([-1.0])
    up, down = tensor([[1.5]]).log(), tensor([[0.5]]).log()
    expect(f(up, zero, None, good)[0], tensor(-1.2), "ratio 1.5, advantage 1",
        {"nothing is clipped, or max(J) for min(J): the gain beyond 1 + clip_high is not to count":
        tensor(-1.5), "the sign: the loss is minus the objective": tensor(1.2),
        "the difference of log-probabilities is no ratio yet: exp": -up[0, 0],
        "old over new: the ratio is new over old": tensor(-1 / 1.5),
        "the logarithm was clipped: clip the ratio": -tensor(0.2).exp(),
        "the limits of the clip are 1 - clip_low and 1 + clip_high": tensor(-0.2),
        "nan: if the advantages are normalised once more, take them as they are": tensor(math.nan),
        "not summed up: the loss is a scalar": tensor([[-1.2]])})
    expect(f(up, zero, None, bad)[0], tensor(1.5), "ratio 1.5, advantage -1",
        {"clipped, and here it must not be: min(plain, clipped) lets through what makes things worse":
        tensor(1.2), "1 + the difference of log-probabilities is no ratio: exp": 1 + up[0, 0]})
    expect(f(tensor([[4.0]]), zero, None, 3 * bad)[0], tensor(3 * math.exp(4)),
        "ratio e^4, advantage -3, where equation (5) has no bound",
        {"it is cut off at 3 |A|, the bound of a dual clip": tensor(9.0)})
    expect(f(down, zero, None, bad)[0], tensor(0.8), "ratio 0.5, advantage -1",
        {"not clipped at 1 - clip_low": tensor(0.5)})
    expect(f(up, zero, None, good, clip_low=0.1, clip_high=0.4)[0], tensor(-1.4), "ratio 1.5, clip_high 0.4",
        {"1 + clip_low: above, clip_high counts": tensor(-1.1), "clip_high is not used": tensor(-1.2)})
    expect(f(down, zero, None, bad, clip_low=0.1, clip_high=0.4)[0], tensor(0.9), "ratio 0.5, clip_low 0.1",
        {"1 - clip_high: below, clip_low counts": tensor(0.6), "clip_low is not used": tensor(0.8)})
    loss, found, slope = f(up, None, None, good)
    expect(loss, tensor(-1.0), "old_logprobs None: the ratio is 1",
        {"the old log-probabilities are those of this policy, detached, and not 0": tensor(-1.2),
        "the log-probability itself times A is no ratio": -up[0, 0]})
    expect(slope, tensor([[-1.0]]), "old_logprobs None: the ratio is 1, and its gradient is alive",
        {"no gradient: the old log-probabilities are detached, the new ones are not": zero,
        "half a gradient: plain or clipped is detached, and neither must be": tensor([[-0.5]])})
    expect([float(found[name]) for name in ("ratio", "clip_fraction")], [1.0, 0.0],
        "old_logprobs None: the metrics ratio and clip_fraction")


def unequal_clips(f) -> None:
    """clip_fraction where the two limits differ."""
    for ratio, advantage, cut in ((0.8, 1.0, 0.0), (0.8, -1.0, 1.0), (1.3, 1.0, 0.0), (1.5, 1.0, 1.0),
                                  (0.5, 0.0, 0.0), (1.5, 0.0, 0.0)):
        found = f(tensor([[ratio]]).log(), torch.zeros(1, 1), None, tensor([advantage]), clip_low=0.1,
            clip_high=0.4)[1]
        expect(found["clip_fraction"], tensor(cut),
            f"clip_fraction, ratio {ratio}, clip_low 0.1, clip_high 0.4, advantage {advantage:g}"
            + " and so no gradient that the clip removes" * (advantage == 0))


def masks_and_metrics(f) -> None:
    """What stands behind a response counts nowhere; metrics are means over tokens."""
    nan, mask = math.nan, tensor([[1.0, 0.0], [1.0, 1.0]])
    new, old, ref = (torch.zeros(2, 2), tensor([[0.0, nan], [0.0, 0.0]]),
        tensor([[0.0, -math.inf], [0.0, 0.0]]))
    for behind in (0.0, nan):
        weights = tensor([[0.5, behind], [0.3, 0.1]])
        loss, found, slope = f(new, old, ref, tensor([1.0, -1.0]), mask, weights)
        need(loss.isfinite() and slope.isfinite().all(), "nan behind a response: masked places are not to be "
            "read: 0 * nan is nan, also in gradients" if behind == 0 else
            "the weight of a masked place is nan here: it counts, and only the mask's tokens are summed")
    new = tensor([[1.5, 1.5, 1.0, 1.0], [1.5, 0.5, 0.5, 9.0]]).log()
    mask = tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
    found = f(new, torch.zeros(2, 4), None, tensor([1.0, -1.0]), mask)[1]
    expect(found["clip_fraction"], tensor(4 / 7),
        "clip_fraction, ratios 1.5 1.5 1 1 of advantage 1, 1.5 .5 .5 of -1 and one that is masked",
        {"means of metrics are over tokens, not over padding": tensor(4 / 8),
        "a mean of the responses' means: a plain mean over all tokens is wanted": tensor(7 / 12),
        "the share of ratios outside: with advantage -1 the gradient of 1.5 stays": tensor(5 / 7),
        "a ratio of 1 counts: there nothing is clipped": tensor(6 / 7),
        "one side only: it clips above for advantages over 0, and below for those under 0": tensor(2 / 7),
        "the sides are swapped: above, it clips where the advantage is over 0": tensor(1 / 7),
        "a number of tokens: a share is wanted": tensor(4.0),
        "all of them: if it is one ratio for a response, each token has its own": tensor(1.0)})
    expect(found["ratio"], tensor(7.5 / 7), 'the metric "ratio", a mean over tokens',
        {"clipped: the ratio itself is wanted": tensor(7.2 / 7)})


def divergence(f) -> None:
    """The KL term alone: the advantage is 0."""
    zero, down, none = torch.zeros(1, 1), tensor([[0.5]]).log(), tensor([0.0])
    d = math.log(2)  # the reference's log-probability is lower by d
    k3 = 0.5 + d - 1
    loss, found, slope = f(zero, zero, down, none, kl_coef=2.0)
    expect(loss, tensor(2 * k3), "KL alone, times 2: log-probabilities 0, of the reference log(1/2)",
        {"k1, the plain difference: it is negative half of the time": tensor(2 * d),
        "k1 with its sign turned round": tensor(-2 * d), "k2, half the square: k3 is wanted": tensor(d * d),
        "k3 of the difference turned round: r is reference over policy": tensor(2 * (2 - d - 1)),
        "the KL term is taken off: it is a penalty, added to the loss": tensor(-2 * k3),
        "kl_coef is not used": tensor(k3), "kl_coef is not used, 0.001 is": tensor(0.001 * k3),
        "no KL term, or one against the old policy: the reference is wanted": tensor(0.0),
        "k3 is r - log r - 1: the 1 is missing": tensor(2 * (k3 + 1))})
    expect(slope, tensor([[1.0]]), "the gradient of the KL term, 2 (1 - 1/2)",
        {"it is detached: it would hold nothing near the reference": zero})
    expect(found["kl"], tensor(k3), 'the metric "kl"',
        {"times kl_coef: the divergence itself is wanted": tensor(2 * k3),
        "the plain difference: k3 is wanted, as in the loss": tensor(d)})
    expect(f(zero, zero, tensor([[4.0]]), none)[1]["kl"], tensor(math.exp(4) - 5),
        'the metric "kl", the reference e^4 times as likely: k3 grows without a bound')
    f(zero, zero, down, none, kl_coef=0.0)  # "kl" is still among the metrics
    need(not any(value.requires_grad for value in found.values()),
        "metrics hang on the graph: they are numbers for the log, detach them")
    loss, found, _ = f(torch.zeros(1, 2), None, torch.cat([down, zero], 1), none, None,
        tensor([[0.3, 0.1]]), kl_coef=1.0)
    expect(loss, tensor(0.3 * k3), "KL alone, two tokens of weights .3 .1, the second like the reference",
        {"the KL term is a plain mean: its tokens have their weights, too": tensor(k3 / 2)})
    expect(found["kl"], tensor(k3 / 2), 'the same, the metric "kl"',
        {"weighted as in the loss: a plain mean over the tokens is wanted": tensor(0.3 * k3),
        "a mean weighted as in the loss: a plain one is wanted": tensor(0.75 * k3),
        "a sum: the mean over the tokens is wanted": tensor(k3)})
    need("kl" not in f(zero, zero, None, none)[1], 'ref_logprobs None: no metric "kl"')

# ---------------------------------------------------------------------------------------- 13 acquire_rewards


def acquire_rewards(module, seed: int) -> None:
    from data import Task
    from gnn import Groups

    stages = []

    def predict(queries, thinkings, answers, features, exclude=None):
        need(exclude is None or len(exclude) == len(features), "the memory wants an id to exclude for each "
            "group that it is asked for, and got those of other tasks")
        stages.append("memory")
        return features[..., 0]

    memory = SimpleNamespace(predict=predict)
    tasks = [Task(f"t{i}", "demo", "math", "?", answer=("4" if i in (0, 3) else None)) for i in range(5)]
    said = ["#### 4", "#### 5", "#### 1", "#### 2", "#### 1", "no answer", "#### 6", "#### 4", "#### 9",
        "#### 9"]
    keys = [["4", "5"], ["1", "2"], ["1", None], ["6", "4"], ["9", "9"]]
    p = tensor([[0.1, 0.9], [0.05, 0.8], [0.5, 0.95], [0.9, 0.8], [0.55, 0.6]])  # the memory's, by group
    groups = Groups(torch.zeros(5, 2), torch.zeros(5, 2, 2), torch.zeros(5, 2, 2), p[..., None])
    module.majority_key = lambda group: group[0]  # a stand-in: that is another exercise

    def f(memory=memory, groups=groups, **settings):
        return module.acquire_rewards(tasks, said, memory, groups, keys, **settings)

    def sources(*unsure, guess="memory"):
        known = ["verifier", guess, guess, "verifier", guess]
        return ["abstained" if b in unsure else source for b, source in enumerate(known)]

    rewards, source = f()
    expect(list(source), sources(), "the sources of tasks 1 to 5, 1 and 4 labelled",
        {"a labelled task is verified, and the memory not asked": ["memory"] * 5,
        "there is a memory, and the majority votes only where there is none": sources(guess="majority"),
        "one for each group, not for each rollout": [source for source in sources() for _ in range(2)],
        "the order of the tasks is to stay": ["verifier"] * 2 + ["memory"] * 3})
    need(isinstance(rewards, Tensor), "the rewards are a tensor (B, G)")
    right = tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])

    def but(rows: list, *values: list) -> Tensor:
        return right.index_copy(0, tensor(rows), tensor(values))

    expect(rewards, right,
        "tasks 1 and 4 labelled; p .05 .8 for task 2, .5 .95 for 3, .55 .6 for 5; no answer in 3's second",
        {"0.5 is not above the threshold 0.5": but([2], [1.0, 0.0]),
        "the memory judged the labelled tasks, too: they have a verifier":
        but([0, 3], [0.0, 1.0], [1.0, 1.0]), "a rollout without an answer was rewarded": but([2], [0.0, 1.0]),
        "keys of another group were used: which rollout has no answer?": but([2, 4], [0.0, 1.0], [1.0, 0.0]),
        "the memory was shown groups that are not those of the unlabelled tasks":
        but([4], [0.0, 1.0]), "the verifier's rewards stand in the wrong rows":
        but([0, 3], [0.0, 1.0], [1.0, 0.0]), "the majority was asked, and there is a memory":
        but([1, 2], [1.0, 0.0], [1.0, 0.0]), "soft is False: 0 or 1 by the threshold, not sigma":
        but([1, 2, 4], [0.05, 0.8], [0.5, 0.0], [0.55, 0.6]),
        "what the memory says of tasks 1 to 3 was given to the unlabelled 2, 3 and 5":
        but([2, 4], [0.0, 1.0], [0.0, 0.0]), "flat: (B, G) is wanted": right.flatten(),
        "-1 for what is wrong: the verifier gives 0": but([0, 3], [1.0, -1.0], [-1.0, 1.0]),
        "only a group's first response was verified": but([0, 3], [1.0, 1.0], [0.0, 0.0]),
        "response b * G + g is rollout g of task b: others were read":
        but([3], [0.0, 0.0])})
    expect(f(threshold=0.7)[0], but([4], [0.0, 0.0]), "the same, threshold 0.7",
        {"p was compared with 0.5: the threshold is not used": right})
    stages.clear()
    f(lap=stages.append)
    expect(list(dict.fromkeys(stages)), ["verify", "memory", "predict"],
        'what `lap` was called with, and "memory" where the memory was asked',
        {"both came at the end: the first stage ends earlier": ["memory", "verify", "predict"],
        "it ends a stage: call it after the work": ["verify", "predict", "memory"],
        "it was never called": ["memory"], "the names are swapped": ["predict", "memory", "verify"]})
    soft = f(soft=True)[0]
    expect(soft, but([1, 2, 4], [0.05, 0.8], [0.5, 0.0], [0.55, 0.6]),
        "soft=True: the probabilities themselves", {"they are still 0 or 1": right,
        "those below the threshold became 0": but([1, 2, 4], [0.0, 0.8], [0.0, 0.0], [0.55, 0.6]),
        "rewards are of whole numbers": but([1, 2, 4], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])})
    (rewards, source), every = f(abstain=0.2), f(abstain=2.0)[1]  # what has no answer is surely wrong
    never = ("what abstains has rewards of 0, and its source does not say so" if not rewards[4].any() else
        "none abstains" if list(every) == sources() else
        "0 and 1 are always sure: p itself decides, before the threshold")
    expect([*source, *f(abstain=0.5)[1]], 2 * sources(4),
        "abstain 0.2, then 0.5, where means of |2p - 1| of tasks 2, 3 and 5 are .75 .5 .15",
        {never: 2 * sources(),
        "`source` counts all tasks, your unsure ones count the unlabelled": 2 * sources(2),
        "sure groups abstain, unsure ones do not": 2 * sources(1, 2),
        "the mean probability decides: 0.1 is as sure as 0.9, take |2p - 1|": sources() + sources(1, 2),
        "one unsure rollout is enough: the mean over the group decides": 2 * sources(2, 4),
        "one sure rollout is enough: the mean over the group decides": sources() + sources(4),
        "the mean of all groups decides: each group has its own": sources() + sources(1, 2, 4),
        "|2p - 1| of each rollout, then the mean: .05 and .8 are sure": 2 * sources(1, 4),
        "|p - 0.5| is half of |2p - 1|": sources(4) + sources(1, 2, 4),
        "0.5 is not below 0.5": sources(4) + sources(2, 4)})
    none = [0.0, 0.0]
    expect(rewards, but([4], none), "a group that abstains, where 0 for all is wanted",
        {"it still has its rewards": right, "it has their mean": but([4], [0.575, 0.575]),
        "it has 0.5": but([4], [0.5, 0.5]), "it has nan": but([4], [math.nan, math.nan]),
        "all of it abstains, not each rollout by itself": but([4], [0.0, 1.0]),
        "labelled groups never abstain": 0 * right})
    expect(list(every), sources(1, 2, 4), "abstain 2, which is above every |2p - 1|",
        {"labelled groups never abstain": ["abstained"] * 5})
    rewards, source = f(abstain=0.2, threshold=0.7, soft=True)
    expect(list(source), sources(4), "abstain 0.2, threshold 0.7",
        {"|2p - 1| is how far p is from 0.5, not from the threshold": sources()})
    expect(rewards, but([1, 2, 4], [0.05, 0.8], [0.5, 0.0], none), "soft=True, a group that abstains",
        {"it still has its probabilities: 0 for all is wanted": soft})
    need(not raises(AttributeError, lambda: f(memory=None, groups=None)),
        "no memory: `groups` is None, and is asked for rows")
    rewards, source = f(memory=None, groups=None)
    expect(list(source), sources(guess="majority"), "no memory: the majority's vote",
        {'its source is "majority"': sources()})
    expect(rewards[[1, 2, 4]], tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), "no memory: the majority's vote")
    for kind, part in (("labelled", [0, 3]), ("unlabelled", [1, 2, 4])):
        stages.clear()
        try:
            found = module.acquire_rewards(
                [tasks[b] for b in part], [said[2 * b + i] for b in part for i in range(2)], memory,
                groups.rows(tensor(part)), [keys[b] for b in part], lap=stages.append)
        except (IndexError, TypeError, ValueError, RuntimeError) as error:
            raise Wrong(f"a batch of {kind} tasks alone raises {type(error).__name__}: {error}") from None
        expect(found[0], right[part], f"a batch of {kind} tasks alone")
        expect([stage for stage in stages if stage != "memory"], ["verify", "predict"],
            f"what `lap` was called with, {kind} tasks alone: both, also where there was nothing to do")
    expect(module.acquire_rewards(tasks[1:2], said[2:4], None, None, [[None, None]])[0], torch.zeros(1, 2),
        "no memory, one task, no answer",
        {"None is equal to None, and what has no answer gets 0": torch.ones(1, 2),
        "(G,): rewards are (B, G), also for one task": torch.zeros(2)})
    code = [Task("c", "demo", "code", "?", answer="def f(): return 1")]  # no tests
    need(not raises(ValueError, lambda: module.acquire_rewards(code, ["a", "b"], memory,
        groups.rows(tensor([1])), [["a", "b"]])),
        "a code task with a solution and no tests has no label: ask `task.labelled`")
    random_tasks(module, memory, seed)


def random_tasks(module, memory, seed: int) -> None:
    """Each reward is the verifier's or the memory's."""
    from data import Task
    from gnn import Groups

    draw = random.Random(seed)
    truth = [draw.choice((None, "1", "2")) for _ in range(12)]
    some = [Task(f"t{i}", "demo", "math", "?", answer=answer) for i, answer in enumerate(truth)]
    words = [f"#### {draw.choice('12')}" for _ in range(36)]
    odd = torch.rand(12, 3, generator=numbers(seed))
    groups = Groups(torch.zeros(12, 2), torch.zeros(12, 3, 2), torch.zeros(12, 3, 2), odd[..., None])
    rewards, _ = module.acquire_rewards(some, words, memory, groups, [["1"] * 3] * 12)
    for b, g in ((b, g) for b in range(12) for g in range(3)):
        right = float(odd[b, g] > 0.5) if truth[b] is None else float(words[3 * b + g] == f"#### {truth[b]}")
        expect(rewards[b, g].item(), right, f"random tasks: rollout {g} of task {b}, " + ("which has no label"
            if truth[b] is None else "which has a label"))


# -------------------------------------------------------------------------------------- 14 facility_location


def facility_location(module, seed: int) -> None:
    f = module.facility_location
    x = tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.8, 0.6], [-1.0, 0.0]])
    order, added = f(x, 2)  # coverage of 1: 0.8 + 1 + 0.96 + 1; then 4, which nothing is near to, adds 1
    need(isinstance(order, list) and isinstance(added, list)
        and not any(isinstance(x, Tensor) for x in order + added), "lists of numbers are wanted, no tensors")
    need(all(f(x, 2)[0] == order for _ in range(9)), "it draws at random: the row that adds most is wanted")
    alone = "|cos|: what points away is not near" if added[:1] > [0.8] else "a row does not cover itself"
    expect(order, [1, 4], "rows (1, 0) (.8, .6) (.6, .8) (.8, .6) (-1, 0)",
        {"the farthest first: that picks outliers, take the row that adds most": [0, 4],
        "cosines below 0 were added: what is unlike counts 0": [1, 2],
        "a row that has a pick like it adds little: what is covered cannot be gained twice": [1, 3],
        "a tie goes to the first row": [3, 4], alone: [1, 0],
        "columns were normalised: the length of each row is wanted": [2, 4]})
    expect(added, [3.76 / 5, 0.2], "what the two picks added, as a share of n",
        {"the sum over rows: a share of n is wanted": [3.76, 1.0],
        "added up: what each pick added is wanted": [0.752, 0.952],
        "a share of the rows not yet picked: a share of all n is wanted": [0.752, 0.25],
        "a share of `count`: a share of n is wanted": [1.88, 0.5],
        "the nearest cosine starts at 0, not at -1": [1.592, 0.36],
        "the nearest pick counts, and that is not the last one: take the maximum": [0.752, 0.36],
        "what the pick gains for itself: it counts for all rows": [0.2, 0.2]})
    some = [0.752, 0.2, 0.04]
    expect(f(x, 5)[1], [*some, 0.008, 0.0], "what all five rows added",
        {"it stops where nothing is gained: a row that adds 0 is chosen, too": [*some, 0.008],
        "a row near to a pick may be chosen, too": [*some, -0.2, -0.2],
        "the nearest pick counts, not all of them together": [*some, 0.0, 0.0]})
    expect(f(x[:1].repeat(5, 1), 4)[0], [0, 1, 2, 3], "equal rows: a tie goes to the first, also at 0",
        {"a row was chosen twice": [0, 0, 0, 0]})
    need(len(f(x, 0)[0]) == 0, "count 0: nothing is chosen")
    expect(f(tensor([[0.1, 0.0], [8.0, 6.0], [0.6, 0.8], [0.8, 0.6], [-1.0, 0.0]]), 2)[0], [1, 4],
        "rows of other lengths")
    long = f(tensor([[1.0, 0.0], [0.8, 0.6], [60.0, 80.0], [0.8, 0.6], [-1.0, 0.0]]), 1)[0]
    expect(long, [1], "the same, row 2 a hundred times as long", {"lengths count: cosines are wanted": [2]})
    expect(f(x, 1, picked=[1])[0], [4], "row 1 is picked already",
        {"what is picked already was not looked at, or chosen again": [1],
        "what is picked already covers the rows near it: they have less to gain": [3],
        "only what is chosen is returned, not what was picked": [1, 4],
        "count is how many are chosen, without those picked already": []})
    expect(f(x, 1, picked=[1, 4])[0], [0], "rows 1 and 4 are picked already",
        {"only the first of them was looked at": [4], "the nearest of them counts, not the last": [3]})
    need(not raises(ValueError, lambda: f(x, 9, picked=[1])), "count 9, four rows left: all four, no error")
    left = f(x, 9, picked=[1])[0]
    need(1 not in left, "row 1 is picked already, and was chosen again")
    expect(left, [4, 0, 2, 3], "count 9 of 5 rows, one picked already: the four others, best first",
        {"they are sorted": [0, 2, 3, 4]})
    g = numbers(seed)
    x = torch.randn(40, 6, generator=g) * (1 + 5 * torch.rand(40, 1, generator=g))
    unit = x / x.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).clamp(min=0)
    before = x.clone()
    order, added = f(x, 6, picked=[3, 5])
    need(x.equal(before), "it changed the embeddings that it was given, in place")
    need(len(set(order) | {3, 5}) == 8, "random rows: no row is chosen twice, or again")
    for n in range(6):
        picks = [3, 5, *order[:n]]
        gains = (cosines.maximum(cosines[:, picks].amax(1, keepdim=True)) - cosines[:, picks].amax(1,
            keepdim=True)).mean(0)
        need(gains[order[n]] > gains.max() - 1e-4,
            f"random rows: pick {n + 1} adds {gains[order[n]]:.3f}, another would add {gains.max():.3f}")
        gain, had = gains[order[n]].item(), cosines[:, [3, 5]].amax(1).mean().item()
        expect(added[n], gain, f"random rows: what pick {n + 1} added, as a share of n",
            {"what was picked before is in it": gain + had,
            "a share of the rows not picked before: of all n is wanted": gain * 40 / 38})
    need(not raises((AssertionError, ValueError, RuntimeError), lambda: f(x, 6, [3, 5], block=7)),
        "block = 7 of 40 rows: the last block is smaller, and no error")
    with Largest() as seen:
        blocks = f(x, 6, picked=[3, 5], block=7)[0]
    expect(blocks, order, "block = 7: the block's size changes nothing")
    need(seen.numbers <= 7 * 40, "block = 7 of 40 rows: cosines of more than 7 rows stood there at once")


class Largest(TorchFunctionMode):
    """How many numbers the largest tensor holds that comes out of a function of torch."""

    numbers = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, found.numel() if isinstance(found, Tensor) else 0)
        return found
