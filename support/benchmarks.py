"""Thirteen benchmarks of the Hugging Face hub: where each is, and what makes one of its rows a task.

A mapping turns a row into a plain dict, the fields of `data.Task` without id and dataset: None where the row
is not wanted, an answer of None where it has none. Columns and ids come from documentation and are tested on
rows of that shape; a set that has changed fails with one line that names the column.
"""

import random
import ssl
import sys
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from support.answers import LETTERS, last_boxes


class Benchmark(NamedTuple):
    """Where a benchmark is, which of its splits are for training and for testing, what makes a row a task."""

    hub: str
    config: str | None
    train: str
    test: str
    task: Callable[[dict], dict | None]
    cut: str | None = None  # of a set with one split: the column whose checksum names a row's part


def _math(question: str, answer: str | None) -> dict:
    return {"domain": "math", "question": question.strip(), "answer": answer}


def _choice(question: str, choices: Iterable[str], right: int) -> dict:
    choices = tuple(choice.strip() for choice in choices)
    answer = LETTERS[right] if 0 <= right < len(choices) <= len(LETTERS) else None
    return {"domain": "qa", "question": question.strip(), "choices": choices, "answer": answer}


def _code(question: str, solution: str, tests: tuple[str, ...]) -> dict:
    return {"domain": "code", "question": question.strip(), "answer": solution, "tests": tests}


def _gsm8k(row: dict) -> dict:
    _, marker, answer = row["answer"].rpartition("####")
    return _math(row["question"], answer.strip().replace(",", "") if marker else None)


def _hendrycks(row: dict) -> dict:
    return _math(row["problem"], row["answer"])


def _numina(row: dict) -> dict | None:
    boxes = last_boxes(row["solution"])
    fields = _math(row["problem"], boxes[-1][2] if boxes else None)
    return None if row["source"] in ("gsm8k", "math") else fields  # they are benchmarks of their own


def _mmlu(row: dict) -> dict:
    row = row.get("train") or row  # so the rows of auxiliary_train come in some versions
    return _choice(row["question"], row["choices"], row["answer"])


def _lettered(row: dict) -> dict:
    """ARC, CommonsenseQA: choices with labels, A to E or 1 to 5, and the label of the right one."""
    labels, key = row["choices"]["label"], (row["answerKey"] or "").strip()
    return _choice(row["question"], row["choices"]["text"], labels.index(key) if key in labels else -1)


def _openbook(row: dict) -> dict:
    return _lettered({**row, "question": row["question_stem"]})


def _gpqa(row: dict) -> dict:
    right = row["Correct Answer"]
    choices = [right, *(row[f"Incorrect Answer {i}"] for i in (1, 2, 3))]
    random.Random(f"gpqa {row['Record ID']}").shuffle(choices)
    return _choice(row["Question"], choices, choices.index(right))


def _piqa(row: dict) -> dict:
    return _choice(row["goal"], (row["sol1"], row["sol2"]), int(row["label"]))


def _siqa(row: dict) -> dict:
    choices = (row[f"answer{letter}"] for letter in "ABC")
    return _choice(f"{row['context']} {row['question']}", choices, int(row["label"]) - 1)


def _humaneval(row: dict) -> dict:
    tests = (row["test"], f"check({row['entry_point']})")
    return _code(row["prompt"], row["prompt"] + row["canonical_solution"], tests)


def _mbpp(row: dict) -> dict:
    tests = (*row["test_imports"], *row["test_list"], row["test"])  # MBPP's own, and what MBPP+ adds
    return _code(row["prompt"], row["code"], tests)


BENCHMARKS = {
    "gsm8k": Benchmark("openai/gsm8k", "main", "train", "test", _gsm8k),
    "math": Benchmark("nlile/hendrycks-MATH-benchmark", None, "train", "test", _hendrycks),
    "gsm_symbolic": Benchmark("apple/GSM-Symbolic", "main", "test", "test", _gsm8k, cut="original_id"),
    "mmlu": Benchmark("cais/mmlu", "all", "auxiliary_train", "test", _mmlu),
    "commonsenseqa": Benchmark("tau/commonsense_qa", None, "train", "validation", _lettered),
    "obqa": Benchmark("allenai/openbookqa", "main", "train", "test", _openbook),
    "arc_c": Benchmark("allenai/ai2_arc", "ARC-Challenge", "train", "test", _lettered),
    "gpqa": Benchmark("Idavidrein/gpqa", "gpqa_diamond", "train", "train", _gpqa, cut="Record ID"),
    "humaneval_plus": Benchmark("evalplus/humanevalplus", None, "test", "test", _humaneval, cut="task_id"),
    "mbpp_plus": Benchmark("evalplus/mbppplus", None, "test", "test", _mbpp, cut="task_id"),
    "numina_math": Benchmark("AI-MO/NuminaMath-CoT", None, "train", "train", _numina, cut="problem"),
    "piqa": Benchmark("baber/piqa", None, "train", "validation", _piqa),
    "siqa": Benchmark("lighteval/siqa", None, "train", "validation", _siqa),
}
OUT_OF_DOMAIN = ("numina_math", "piqa", "siqa")  # in the paper: tested, never trained on
STREAMED = ("numina_math",)  # 860,000 rows, of which a few hundred are wanted
CUT_BY_HASH = tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.cut)
SHARES = ("train",) * 5 + ("test",) * 3 + ("valid",) * 2  # the paper's shares; the last stays unused


@lru_cache
def hub_error(endpoint: str) -> str | None:
    """Why the hub does not answer within five seconds, or None. In a thread: a name may take longer."""
    errors: list[str | None] = ["no answer within 5 seconds"]

    def probe():
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=5).close()
            errors.append(None)
        except Exception as error:  # a status is an answer, and so is a certificate
            reason = getattr(error, "reason", error)
            answered = isinstance(error, urllib.error.HTTPError) or isinstance(reason, ssl.SSLError)
            errors.append(None if answered else str(reason))

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(5)
    return errors[-1]


def reach_hub(name: str) -> None:
    """Call it before a folder, model or dataset `name` is loaded: a missing hub then fails at once.

    The hub's libraries would retry for 20 s and more. Where the hub gives no answer, they are told to work
    offline: what their cache holds is loaded, all else raises their error. HF_ENDPOINT names a mirror.
    """
    if Path(name).exists():
        return
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and (error := hub_error(constants.ENDPOINT)):
        import datasets

        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        print(f"the hub {constants.ENDPOINT} is out of reach ({error}): only what is cached can be loaded",
              file=sys.stderr)


def _load(name: str, part: str):
    """One split of a benchmark from the hub or its cache; the hub's errors as one line each."""
    hub, config = BENCHMARKS[name][:2]
    reach_hub(hub)
    import datasets

    try:
        return datasets.load_dataset(hub, config, split=part, streaming=name in STREAMED)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise ValueError(f"tasks: {name}: {hub} is gated or gone; ask for access at https://huggingface.co/"
                         f"datasets/{hub} and log in with `hf auth login` ({error})") from None
    except OSError as error:
        raise ConnectionError(f"tasks: {name}: the hub is out of reach and {hub} is not in its "
                              f"cache: connect, set HF_ENDPOINT to a mirror, "
                              f"or give .jsonl files ({error})") from None
    except ValueError as error:  # no such config or split
        raise ValueError(f"tasks: {name}: {hub} is not as support/benchmarks.py says: {error}") from None


def hub_rows(name: str, split: str) -> Iterator[dict | str]:
    """The fields of all tasks in one part of a benchmark, and for each row that gives none the reason.

    Args:
        name: a key of BENCHMARKS. split: "train" or "test".
    Raises:
        ValueError, ConnectionError: one line that names the set and what to do.
    """
    hub, _, *parts, mapping, cut = BENCHMARKS[name]
    part = parts[split == "test"]
    for position, row in enumerate(_load(name, part)):
        try:
            if cut and SHARES[zlib.crc32(str(row[cut]).encode()) % len(SHARES)] != split:
                continue
            fields = mapping(row)
        except KeyError as error:
            raise ValueError(f"tasks: {name}: {hub} has no column {error}, only {', '.join(row)}; the set "
                             f"has changed: adapt its line of BENCHMARKS in support/benchmarks.py, or give a "
                             f".jsonl file") from None
        if fields is None:
            yield "of a source that is left out"
        elif fields["answer"] is None:
            yield "no usable answer"
        else:
            yield {"id": f"{name}/{part}/{position}", "dataset": name, **fields}


def averages(accuracy: dict[str, float], questions: dict[str, int]) -> tuple[float, float]:
    """(the paper's average, the mean over sets) of a table of accuracies by data set.

    The paper weights each set by its number of test questions (450 each, GPQA 60, HumanEval+ 39, MBPP+ 80),
    so that every question counts the same. Its mean over sets would be lower by five to seven points.

    >>> averages({"large": 0.9, "small": 0.3}, {"large": 450, "small": 50})
    (0.84, 0.6)
    """
    total = sum(questions[name] for name in accuracy)
    weighted = sum(accuracy[name] * questions[name] for name in accuracy) / total
    return weighted, sum(accuracy.values()) / len(accuracy)
