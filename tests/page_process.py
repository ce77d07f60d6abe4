"""Runs the steps of a page; see ``tests.pages``, which starts this process.

The argument is a JSON file with the steps. What the step number N prints is written to ``N.txt``
beside that file.
"""

import json
import linecache
import os
import subprocess
import sys
import traceback
import types
import warnings
from pathlib import Path


def run_python(code, name, namespace):
    lines = code.splitlines(keepends=True)
    linecache.cache[name] = (len(code), None, lines, name)  # for tracebacks and inspect.getsource
    try:
        exec(compile(code, name, "exec"), namespace)
    except BaseException as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}")


def run_shell(command):
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], stderr=subprocess.PIPE, text=True
    )
    sys.stderr.write(done.stderr)
    if done.returncode:
        print(done.stderr.strip(), f"exit status {done.returncode}", sep="\n")


def show_warning(message, category, *_, **__):
    print(f"{category.__name__}: {message}")


def main():
    file = Path(sys.argv[1])
    steps = json.loads(file.read_text(encoding="utf-8"))
    # The code runs as `__main__`, so that loader workers can find its classes.
    page = sys.modules["__main__"] = types.ModuleType("__main__")
    warnings.showwarning = show_warning
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


if __name__ == "__main__":
    main()
