import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

from tests.test_house import FLOORS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_example_handler_prints_what_is_shown(tmp_path):
    # The second block uses the handler of the first one.
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks("python")))
    done = subprocess.run(
        [sys.executable, script],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.stdout, done.stderr) == (*blocks("text"), "")


def test_named_files_and_modules_exist():
    for link in re.findall(r"\]\((?!http)([^)]+)\)", PAGE):
        assert (ROOT / link).exists(), link
    for module in re.findall(r"python -m (tests[\w.]+)", PAGE):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    assert (ROOT / ".ci" / "run").exists()


def test_the_table_of_floors_matches_test_house():
    shown = [set() for _ in FLOORS]
    for floor, room in re.findall(r"^\| (\d+) \| `(\w+)(?:/|\.py)` ", PAGE, re.MULTILINE):
        shown[int(floor) - 1].add("ignite_hooks" if room == "__init__" else room)
    assert shown == FLOORS


def test_named_extras_and_markers_exist(pytestconfig):
    (extra,) = re.findall(r'"\.\[(\w+)\]"', *blocks("sh"))
    assert extra in metadata("ignite-hooks").get_all("Provides-Extra")
    markers = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    assert set(re.findall(r"pytest .*-m (\w+)", PAGE)) <= markers
