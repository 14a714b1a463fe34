"""Exercises that grade themselves: write a part of the method anew, and be told what is wrong with it.

    python exercises/course.py                        # the exercises, their points, and which are written
    python exercises/course.py start 3                # student/: a copy of the project in which knn is blank
    python exercises/course.py check 3                # grade exercise 3 of the copy that this file stands in
    python exercises/course.py check all              # all of them: what is handed in
    python exercises/course.py handout DIR            # the student version: everything blank
    python exercises/course.py grade DIR... --seed 7  # instructors: a table over hand-ins, with other numbers

A blank is made of the project's own code: signature and docstring stay, the body goes. A hand-in is graded
function by function: the student's function, with what it needs that the project's file lacks, takes the
place of the project's own, so that no exercise depends on another. It runs confined (support/sandbox.py).
"""

import argparse
import ast
import contextlib
import functools
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import traceback
import types
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import sandbox

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 10  # of processor time, for one grader
STUDENT = ("data.py gnn.py memreward.py grpo.py train.py support lab exercises docs assets/policy README.md "
           "requirements.txt LICENSE").split()  # no tests: their slow twins are solutions
STUDENT += [f"assets/{path.name}" for kind in ("png", "svg") for path in (ROOT / "assets").glob(f"*.{kind}")]
NEVER = ("__pycache__", "mistakes.py")
BLANK = "is still blank"


class Exercise(NamedTuple):
    """One function, or several, of a file of the project."""

    title: str  # graders.py has a function of this name
    file: str
    names: tuple[str, ...]
    points: int
    idea: str


EXERCISES = [Exercise(title, file, tuple(names.split()), *rest) for title, file, names, *rest in [
    ("majority_key", "memreward.py", "majority_key", 4, "the vote of a group"),
    ("hide_labels", "data.py", "hide_labels", 6, "a hidden label is gone, not ignored"),
    ("knn", "gnn.py", "knn", 8, "who is near: cosines, ties, pairs that must not meet"),
    ("messages", "gnn.py", "edge_weights receive_messages", 6, "what neighbours say, and how much it counts"),
    ("gcn_layer", "gnn.py", "GCNLayer.forward", 8, "a graph convolution"),
    ("leave_one_out", "gnn.py", "same_rollouts", 8, "flip a label: no logit of its own group may move"),
    ("metrics", "gnn.py", "metrics", 7, "accuracy, and AUC with ties"),
    ("calibration", "support/calibration.py", "calibrate calibration_error", 8, "0.8 shall mean 0.8"),
    ("choose_tokens", "grpo.py", "choose_tokens", 8, "sampling by inverting a cumulative distribution"),
    ("group_advantages", "grpo.py", "group_advantages", 6, "better than the rest of one's group"),
    ("token_weights", "grpo.py", "token_weights", 6, "how much a token counts, in three ways"),
    ("grpo_loss", "grpo.py", "grpo_loss", 10, "ratio, clip, min, k3"),
    ("acquire_rewards", "memreward.py", "acquire_rewards", 8, "a verifier if there is a label, else memory"),
    ("facility_location", "support/coverage.py", "facility_location", 7, "which labels to buy"),
]]


# --------------------------------------------------------------------------------- functions in source code


def find(tree: ast.Module, name: str) -> ast.FunctionDef:
    """The function `name`, or the method "Class.name", of a syntax tree; LookupError where there is none."""
    node, kinds = tree, (ast.FunctionDef, ast.ClassDef)
    for part in name.split("."):
        node = next((child for child in node.body if isinstance(child, kinds) and child.name == part), None)
        if node is None:
            raise LookupError(f"there is no {name} any more")
    return node


def blank(source: str, exercise: Exercise) -> str:
    """The source without the bodies of the exercise's functions; signatures and docstrings stay."""
    lines, tree = source.splitlines(), ast.parse(source)
    for function in sorted((find(tree, name) for name in exercise.names), key=lambda f: -f.lineno):
        first = function.body[0]
        begin = first.end_lineno if ast.get_docstring(function) else first.lineno - 1
        said = f"{label(exercise)}: {function.name} {BLANK}"
        lines[begin : function.end_lineno] = [f'{" " * first.col_offset}raise NotImplementedError("{said}")']
    return "\n".join(lines) + "\n"


def label(exercise: Exercise) -> str:
    """ "exercise 3, knn" """
    return f"exercise {EXERCISES.index(exercise) + 1}, {exercise.title}"


def is_blank(source: str, exercise: Exercise) -> bool:
    """Is any of the exercise's functions still as `blank` leaves it?"""
    tree = ast.parse(source)
    ends = [find(tree, name).body[-1] for name in exercise.names]
    return any(isinstance(end, ast.Raise) and BLANK in ast.unparse(end) for end in ends)


def bound(node: ast.stmt) -> set[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    names = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
    return {name.id for name in names if isinstance(name.ctx, ast.Store)}


def transplant(project: str, handed_in: str, exercise: Exercise) -> ast.Module:
    """The project's file with the exercise's functions as handed in, and with the imports and helpers beside
    them whose names the project's file does not have. Line numbers of what is handed in stay."""
    tree, student = ast.parse(project), ast.parse(handed_in)
    known = set().union(*map(bound, tree.body))
    for name in exercise.names:
        ours, theirs = find(tree, name), find(student, name)
        ours.args, ours.body = theirs.args, theirs.body
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    more = [node for node in student.body if isinstance(node, kinds) and bound(node) - known]
    place = max(i for i, node in enumerate(tree.body) if isinstance(node, (ast.Import, ast.ImportFrom))) + 1
    tree.body[place:place] = more
    return tree


# ------------------------------------------------------------------------------------------------- grading


def grade(exercise: Exercise, handed_in: str, seed: int = 0) -> str:
    """What is wrong with an exercise, in one line, or "": `handed_in` is its file's source."""
    name = exercise.file.removesuffix(".py").replace("/", ".")
    try:
        tree = transplant((ROOT / exercise.file).read_text(), handed_in, exercise)
        for needed in (name, "graders"):  # and all that they import, while files can be read
            importlib.import_module(needed)
    except SyntaxError as error:
        file = exercise.file if error.filename in (None, "<unknown>") else Path(error.filename).name
        return f"{file}, line {error.lineno}: {error.msg}"
    except (LookupError, ValueError, RecursionError, MemoryError) as error:
        return f"{exercise.file}: {error or 'too deep'}"
    room = tempfile.mkdtemp()
    os.mkdir(folder := os.path.join(room, "home"))
    ours, theirs = socket.socketpair()
    run = functools.partial(confined, exercise, name, tree, seed)
    with ours:
        with theirs:
            pid = sandbox.spawn(run, folder, SECONDS, theirs, memory=sandbox.MEMORY + mapped())
        ours.settimeout(3 * SECONDS)
        try:
            return json.loads(ours.makefile("rb").read())["fault"]
        except (OSError, ValueError):
            return f"no verdict: over {SECONDS} s or {sandbox.MEMORY >> 20} MiB, or it ended its own process"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            sandbox.remove(room)


def mapped() -> int:
    """Bytes of address space that this process has, torch with it; 0 where the system does not tell."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0


def confined(exercise: Exercise, name: str, tree: ast.Module, seed: int, channel: socket.socket) -> None:
    """In the process that may do nothing else: make the module, let the grader look, send what it says."""
    import graders

    fault = ""
    try:
        module = sys.modules[name] = types.ModuleType(name)
        exec(compile(tree, exercise.file, "exec"), vars(module))
        getattr(graders, exercise.title)(module, seed)
    except (graders.Wrong, NotImplementedError) as error:
        fault = str(error)
    except BaseException as error:
        steps = traceback.extract_tb(error.__traceback__)
        lines = [f" (line {step.lineno})" for step in steps if step.filename == exercise.file]
        cases = [f", in the case of exercises/graders.py, line {step.lineno}" for step in steps
                 if Path(step.filename).name == "graders.py"]
        fault = f"{type(error).__name__}: {error}{''.join(lines[-1:] + cases[:1])}"
    channel.sendall(json.dumps({"fault": " ".join(fault.split())}).encode())


# ------------------------------------------------------------------------------------------------- commands


def chosen(which: str) -> list[Exercise]:
    """The exercise of a number, or all of them."""
    if which == "all":
        return EXERCISES
    if not which.isdigit() or not 0 < int(which) <= len(EXERCISES):
        sys.exit(f"error: exercise {which!r} is neither a number from 1 to {len(EXERCISES)} nor 'all'")
    return [EXERCISES[int(which) - 1]]


def show() -> None:
    """A line for each exercise."""
    for number, exercise in enumerate(EXERCISES, 1):
        state = "blank" if is_blank((ROOT / exercise.file).read_text(), exercise) else "written"
        print(f"{number:>2}  {exercise.title:<18}{exercise.points:>3} points  {state:<9}"
              f"{exercise.file:<24}{exercise.idea}")


def copy_with_blanks(folder: Path, exercises: list[Exercise]) -> None:
    """Copy what students get, if the folder is not there yet, and blank the exercises in it."""
    if not folder.exists():
        for part in STUDENT:
            source, target = ROOT / part, folder / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns(*NEVER))
            else:
                shutil.copy(source, target)
    for exercise in exercises:
        text = (path := folder / exercise.file).read_text()
        if not untouched(text, exercise):
            sys.exit(f"error: {path} has work on {label(exercise)} already; name another folder")
        path.write_text(blank(text, exercise))


def untouched(text: str, exercise: Exercise) -> bool:
    """Is each of the exercise's functions in this text the project's, or as `blank` leaves it?"""
    project = (ROOT / exercise.file).read_text()
    theirs, known = ast.parse(text), (ast.parse(project), ast.parse(blank(project, exercise)))
    return all(ast.dump(find(theirs, name)) in [ast.dump(find(tree, name)) for tree in known]
               for name in exercise.names)


def check(exercises: list[Exercise], seed: int) -> int:
    """Grade exercises of this copy of the project; gives how many are wrong."""
    points = wrong = 0
    for exercise in exercises:
        name, fault = f"{label(exercise)}: ", grade(exercise, (ROOT / exercise.file).read_text(), seed)
        said = f"wrong. {fault.split(name)[-1]}" if fault else f"right, {exercise.points} points"
        print(f"{name}{said}", flush=True)
        points, wrong = points + exercise.points * (not fault), wrong + bool(fault)
    if len(exercises) > 1:
        print(f"{points} of {sum(exercise.points for exercise in exercises)} points")
    elif not wrong:
        left = [other.title for other in EXERCISES if is_blank((ROOT / other.file).read_text(), other)]
        train = "now train with yours: python train.py --preset quick"
        print(f"still blank: {', '.join(left)}" if left else train)
    return wrong


def grade_all(folders: list[Path], seed: int) -> None:
    """A table of points, a row for each hand-in, and below it what was wrong."""
    sandbox.server()  # warns where this system confines less
    notes, width = [], max(len(folder.name) for folder in folders) + 2
    print(" " * width + "".join(f"{number:>4}" for number in range(1, len(EXERCISES) + 1)) + "  points")
    for folder in folders:
        row = []
        for exercise in EXERCISES:
            path = folder / exercise.file
            handed_in = path.read_text(errors="replace") if path.is_file() else ""
            fault = grade(exercise, handed_in, seed)
            row.append(0 if fault else exercise.points)
            name = f"{label(exercise)}: "
            notes += [f"{folder.name}: {name}{fault.split(name)[-1]}"] * bool(fault)
        columns = "".join(f"{points:>4}" for points in row)
        print(f"{folder.name:<{width}}{columns}{sum(row):>8}", flush=True)
    print("\n".join(["", *notes]))


def main(arguments: list[str]) -> None:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="the exercises; also without a command")
    for command, about in (("start", "a copy with an exercise blank"), ("check", "grade this copy")):
        commands.add_parser(command, help=about).add_argument("which", help="a number, or 'all'")
    commands.choices["start"].add_argument("folder", nargs="?", type=Path, default=Path("student"))
    commands.add_parser("handout", help="the student version").add_argument("folder", type=Path)
    commands.add_parser("grade", help="a table over hand-ins").add_argument("folders", nargs="+", type=Path)
    for command in ("check", "grade"):
        commands.choices[command].add_argument("--seed", type=int, default=0, help="of the random cases")
    given = parser.parse_args(arguments)
    if given.command == "handout" and given.folder.exists():
        sys.exit(f"error: {given.folder} exists already; name a new folder")
    for folder in given.folders if given.command == "grade" else ():
        if not folder.is_dir():
            sys.exit(f"error: there is no folder {folder}")
    if given.command in ("start", "handout"):
        which = given.which if given.command == "start" else "all"
        copy_with_blanks(given.folder, chosen(which))
        print(f"{given.folder}: write what is blank, then there: python exercises/course.py check {which}")
    elif given.command == "check":
        sys.exit(min(1, check(chosen(given.which), given.seed)))
    elif given.command == "grade":
        grade_all(given.folders, given.seed)
    else:
        show()


if __name__ == "__main__":
    main(sys.argv[1:])
