"""Changes lines of the package one at a time, and prints which changes the tests notice.

::

    python -m tests.mutations --record tests/core tests/optim   # which test executes which line
    python -m tests.mutations --lines 60 --seed 0

The first command runs tests under coverage and adds to the file of ``--coverage``, with the tests
as contexts. The second takes lines of functions at random, changes each in a copy of the tree, and
runs the tests that execute it. A change that survives shows a missing test, or changes nothing.
A recording is valid for the current source only: record again after changes.
"""

import argparse
import ast
import copy
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "ignite_hooks"
RECORD = "IGNITE_HOOKS_RECORD"  # the environment variable with the file that a recording writes
STARTUP_SECONDS = 60  # the time to import torch and collect the tests
TIME_FACTOR = 5  # a change hangs if its tests take this many times their recorded duration
EXCLUDED = (".git", ".venv", "venv", "*_cache", "__pycache__", ".coverage*", ".hypothesis", "runs")
OPPOSITES = {
    ast.Eq: ast.NotEq,
    ast.Lt: ast.LtE,
    ast.Gt: ast.GtE,
    ast.Is: ast.IsNot,
    ast.In: ast.NotIn,
    ast.And: ast.Or,
}
OPPOSITES |= {after: before for before, after in OPPOSITES.items()}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
ASSIGNMENTS = (ast.Assign, ast.AugAssign, ast.AnnAssign)


class Recorder:
    """A plugin of pytest that records which test executes which line, and its seconds."""

    def __init__(self, file):
        self.file = file
        self.coverage = coverage.Coverage(
            file, include=[f"{ROOT / PACKAGE}/*"], config_file=False, messages=False
        )
        self.seconds, self.unusable = defaultdict(float), set()

    def pytest_sessionstart(self):
        self.coverage.load()
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.coverage.switch_context(item.nodeid)
        result = yield
        self.coverage.switch_context("")
        return result

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        if report.outcome != "passed":
            self.unusable.add(report.nodeid)

    def pytest_sessionfinish(self):
        self.coverage.stop()
        self.coverage.save()
        known = seconds_of(self.file) | self.seconds
        seconds = {test: each for test, each in known.items() if test not in self.unusable}
        seconds_file(self.file).write_text(json.dumps(seconds, indent=0))


def pytest_configure(config):
    if RECORD in os.environ:
        config.pluginmanager.register(Recorder(os.environ[RECORD]))


def seconds_file(coverage_file):
    return Path(f"{coverage_file}.seconds.json")


def seconds_of(coverage_file):
    """Returns the duration of each recorded test that passed; the others are not usable."""
    file = seconds_file(coverage_file)
    return json.loads(file.read_text()) if file.exists() else {}


def tests_by_line(coverage_file, seconds):
    """Returns the tests with known seconds that execute each line, by file and number of line."""
    data = coverage.CoverageData(coverage_file)
    data.read()
    found = defaultdict(set)  # a combined file can know a line by several paths
    for measured in data.measured_files():
        inside = str(measured).rpartition(f"{PACKAGE}/")[2]
        for line, contexts in data.contexts_by_lineno(measured).items():
            usable = seconds.keys() & set(contexts)
            if usable:
                found[f"{PACKAGE}/{inside}", line] |= usable
    return found


def quickest_tests(tests, seconds, most):
    """Returns at most so many tests, the quickest case of each function before further cases."""
    groups = defaultdict(list)
    for test in sorted(tests, key=lambda test: (seconds[test], test)):
        groups[test.partition("[")[0]].append(test)
    rank = {test: number for group in groups.values() for number, test in enumerate(group)}
    return sorted(rank, key=lambda test: (rank[test], seconds[test], test))[:most]


def expressions_in(node):
    """Yields the expressions of a statement itself, not those of the statements within it."""
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            # Before Python 3.12 the parts of an f-string have no position of their own.
            if name != "annotation" and not isinstance(child, ast.stmt | ast.JoinedStr):
                if isinstance(child, ast.expr):
                    yield child
                if isinstance(child, ast.expr | ast.withitem | ast.comprehension | ast.keyword):
                    yield from expressions_in(child)


def is_none(node):
    return node is None or (isinstance(node, ast.Constant) and node.value is None)


def replacements(node):
    """Yields replacements of a node, each with one change."""
    changed = copy.copy(node)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        changed.ops = [OPPOSITES[type(node.ops[0])]()]
        yield changed
    elif isinstance(node, ast.BoolOp):
        changed.op = OPPOSITES[type(node.op)]()
        yield changed
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int):
        is_switch = isinstance(node.value, bool)
        yield ast.Constant(not node.value if is_switch else node.value + 1)
    elif isinstance(node, ast.Return) and not is_none(node.value):
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, (ast.Expr, *ASSIGNMENTS)):
        is_docstring = isinstance(node.value, ast.Constant) and isinstance(node, ast.Expr)
        has_yield = any(isinstance(each, ast.Yield | ast.YieldFrom) for each in ast.walk(node))
        if node.value is not None and not is_docstring and not has_yield:
            yield ast.Pass()


def changes_of(source):
    """Returns the changes by line, each as the old code, the new code and the new source."""
    text, tree, found = source.encode(), ast.parse(source), defaultdict(list)
    starts = [0, *(match.end() for match in re.finditer(rb"\n", text))]
    functions = [each for each in ast.walk(tree) if isinstance(each, DEFINITIONS[:2])]
    bodies = {each for function in functions for each in ast.walk(function)} - set(functions)
    for statement in bodies:
        if not isinstance(statement, ast.stmt) or isinstance(statement, DEFINITIONS):
            continue
        for node in (statement, *expressions_in(statement)):
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            for other in replacements(node):
                new = ast.unparse(other)
                if isinstance(other, ast.expr) and not isinstance(other, ast.Constant):
                    new = f"({new})"  # the expression around it may bind tighter
                whole = (text[:begin] + new.encode() + text[end:]).decode()
                found[statement.lineno].append((text[begin:end].decode(), new, whole))
    return {line: sorted(changes) for line, changes in found.items()}


def candidates(tests, paths):
    """Returns the changes of each line under ``paths`` that a usable test executes."""
    found = {}
    for file in sorted({file for file, _ in tests}):
        if any((ROOT / file).is_relative_to(path.resolve()) for path in paths):
            for line, changes in changes_of((ROOT / file).read_text()).items():
                if (file, line) in tests:
                    found[file, line] = changes
    return found


def run_tests(tests, folder, limit, *options):
    """Returns the output of pytest, or None after the time limit."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        # Python would reuse the compiled file of a change of the same length in the same second.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfE", "--color=no"]
    process = subprocess.Popen(
        [*command, "-p", "no:cacheprovider", *options, *tests],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def limit_for(tests, seconds):
    return STARTUP_SECONDS + TIME_FACTOR * sum(seconds[test] for test in tests)


def failures_in(output):
    return re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)


def find_noticing_test(source, file, tests, limit, folder):
    """Returns the test that notices a change of one file, or the time limit, or an empty text."""
    path = folder / file
    before = path.read_text()
    try:
        path.write_text(source)
        output = run_tests(tests, folder, limit, "-x")
    finally:
        path.write_text(before)
    if output is None:
        return f"no end within {limit:.0f} s"
    failures = failures_in(output)
    if failures:
        return failures[0]
    return "" if re.search(r"^\d+ passed", output, re.MULTILINE) else one_line(output[-200:])


def one_line(text, length=50):
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1]}…"


def mutate(options):
    seconds = seconds_of(options.coverage)
    tests = tests_by_line(options.coverage, seconds)
    possible = candidates(tests, options.paths)
    if not possible:
        sys.exit(f"{options.coverage} has no tests of these paths: record some with --record")
    choice = random.Random(options.seed)
    lines = choice.sample(sorted(possible), min(options.lines, len(possible)))
    notices = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*EXCLUDED))
        print("| line | change | | noticed by | seconds |\n|---|---|---|---|---|")
        try:
            for file, line in lines:
                old, new, source = choice.choice(possible[file, line])
                selected = quickest_tests(tests[file, line], seconds, options.most_tests)
                limit = limit_for(selected, seconds)
                begin = time.monotonic()
                notices.append(find_noticing_test(source, file, selected, limit, tree))
                took = time.monotonic() - begin
                verdict = "caught" if notices[-1] else "survived"
                change = f"`{one_line(old)}` → `{one_line(new)}`"
                print(
                    f"| {file}:{line} | {change} | {verdict} | {notices[-1]} | {took:.0f} |",
                    flush=True,
                )
        finally:
            print(f"\n{sum(map(bool, notices))} caught, {notices.count('')} survived")
        used = sorted(seconds.keys() & set(notices))
        wrong = failures_in(run_tests(used, tree, limit_for(used, seconds)) or "") if used else []
        print("\n".join(f"no verdict, it fails without a change: {test}" for test in wrong))


def record(options):
    environment = {
        **os.environ,
        RECORD: str(options.coverage.resolve()),
        "PYTHONPATH": str(ROOT),
        "COVERAGE_CORE": "ctrace",  # the core that supports contexts on all versions of Python
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.mutations", *options.record]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--record", nargs="+", metavar="TESTS", help="paths of tests to record")
    parser.add_argument("--coverage", type=Path, default=ROOT / ".coverage", metavar="FILE")
    parser.add_argument(
        "--paths", type=Path, nargs="+", default=[ROOT / PACKAGE], help="what to change"
    )
    parser.add_argument("--lines", type=int, default=60, help="how many lines to change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-tests", type=int, default=40, help="for each line")
    return parser.parse_args()


if __name__ == "__main__":
    options = arguments()
    sys.exit(record(options) if options.record else mutate(options))
