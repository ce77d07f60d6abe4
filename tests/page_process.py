"""Runs the steps of a page; see ``tests.pages``, which starts this process.

The argument is a JSON file with the steps. What the step number N prints is written to ``N.txt``
beside that file. The file is removed when all steps have run.
"""

import json
import linecache
import os
import re
import subprocess
import sys
import threading
import traceback
import types
import warnings
from pathlib import Path

PROBLEM = "\0"  # begins the first line of an exception, a warning or a failure
WARNING = re.compile(r"^\S+:\d+: (\w+Warning: .*)", re.MULTILINE)


def show_problem(text):
    print(f"\n{PROBLEM}{text}", flush=True)


def run_python(code, name, namespace):
    lines = code.splitlines(keepends=True)
    linecache.cache[name] = (len(code), None, lines, name)  # for tracebacks and inspect.getsource
    try:
        exec(compile(code, name, "exec"), namespace)
    except BaseException as error:
        traceback.print_exc()
        show_problem(f"{type(error).__name__}: {error}")


def run_shell(command):
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], stderr=subprocess.PIPE, text=True
    )
    sys.stderr.write(done.stderr)
    if done.returncode:
        print(done.stderr.strip())
        show_problem(f"exit status {done.returncode}")
    else:
        for warning in WARNING.findall(done.stderr):
            show_problem(warning)


def show_warning(message, category, *_, **__):
    show_problem(f"{category.__name__}: {message}")


def show_unhandled(error):
    """Shows an exception of a thread, or of a destructor, which no block sees."""
    traceback.print_exception(error.exc_value)
    show_problem(f"{error.exc_type.__name__}: {error.exc_value}")


def main():
    file = Path(sys.argv[1])
    steps = json.loads(file.read_text(encoding="utf-8"))
    # The code runs as `__main__`, so that loader workers can find its classes.
    page = sys.modules["__main__"] = types.ModuleType("__main__")
    warnings.showwarning = show_warning
    threading.excepthook = sys.unraisablehook = show_unhandled
    sys.path.insert(0, "")
    for number, step in enumerate(steps):
        with open(file.with_name(f"{number}.txt"), "wb") as output:
            os.dup2(output.fileno(), 1)
        if step["kind"] == "file":
            Path(step["name"]).write_text(step["code"], encoding="utf-8")
        elif step["kind"] == "shell":
            run_shell(step["code"])
        else:
            run_python(step["code"], step["name"], vars(page))
        sys.stdout.flush()
    file.unlink()


if __name__ == "__main__":
    main()
