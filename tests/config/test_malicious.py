"""Tests that malicious documents run no code and take little time and memory.

A subprocess reads all documents, and records the audit events of each.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.config.malicious_documents import GROUPS
from tests.config.malicious_documents import document_name
from tests.config.malicious_documents import documents

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json
import resource
import sys
from pathlib import Path
from time import process_time

from ignite_hooks.config import loads
from tests.config.malicious_documents import documents
import yaml

events = None
WATCHED = ("compile", "exec", "import", "open", "code.", "ctypes.", "cpython.", "marshal.", "os.",
           "pickle.", "pty.", "shutil.", "signal.", "socket.", "subprocess.", "tempfile.")


def record(event, arguments):
    if events is not None and event.startswith(WATCHED):
        events.append(event)


def report(name, read, *arguments):
    global events
    before = set(sys.modules)
    resource.setrlimit(resource.RLIMIT_CPU, (int(process_time()) + 15, resource.RLIM_INFINITY))
    events = seen = []
    try:
        became = type(read(*arguments)).__name__
    except BaseException as error:
        became = type(error).__name__
    events = None
    new = sorted(set(sys.modules) - before)
    print(json.dumps([name, {"became": became, "events": seen, "modules": new}]), flush=True)


sys.addaudithook(record)
report("code", yaml.unsafe_load, "!!python/object/apply:os.system ['touch made_by_the_control']")
report("module", __import__, "this_module_is_made_by_the_test")
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 3 * 2**29, resource.RLIM_INFINITY))
for name, document in documents().items():
    report(name, loads, document.text, document.format)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sizes are read from /proc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("malicious")
    (path / "this_module_is_made_by_the_test.py").write_text("")
    return path


@pytest.fixture(scope="module")
def outcomes(folder):
    code = f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(folder)!r}]\n{PROGRAM}"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    reported = dict(map(json.loads, found.stdout.splitlines()))
    ended = {"became": f"nothing: the process has ended, {found.returncode}"}
    return {name: reported.get(name, ended) for name in (*documents(), "code", "module")}


@pytest.mark.exhaustive
@pytest.mark.parametrize("group", GROUPS)
def test_document_is_refused_or_plain_data_without_side_effects(outcomes, group):
    for index, document in enumerate(GROUPS[group]):
        outcome = outcomes[document_name(group, index, document)]
        assert outcome == {"became": document.expected, "events": [], "modules": []}


@pytest.mark.exhaustive
def test_control_detects_executed_code_and_imports(outcomes, folder):
    assert "os.system" in outcomes["code"]["events"]
    assert (folder / "made_by_the_control").exists()
    assert "import" in outcomes["module"]["events"]
    assert outcomes["module"]["modules"] == ["this_module_is_made_by_the_test"]


@pytest.mark.exhaustive
def test_no_document_creates_a_file(outcomes, folder):
    assert not (folder / "made_by_a_document").exists()


def test_documents_are_within_the_size_that_is_allowed():
    assert max(len(each.text.encode()) for each in documents().values()) <= 2**20
