"""Tests of the page that is made from records, by the function and by the command."""

import os
import re
import resource
import subprocess
import sys

import pytest

from ignite_hooks import MeanLoss
from ignite_hooks import MetricsLog
from ignite_hooks.observe import make_report
from tests.reference import batches_of
from tests.reference import make_trainer


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Returns the record of a run. No test changes its folder."""
    path = tmp_path_factory.mktemp("runs") / "a" / "metrics.jsonl"
    make_trainer(batches_of(3), handlers=[MeanLoss(every_steps=1), MetricsLog(path)]).run()
    return path


@pytest.fixture
def run_folder(tmp_path, record):
    """Returns a folder with a copy of the record."""
    folder = tmp_path / "a"
    folder.mkdir()
    folder.joinpath("metrics.jsonl").write_bytes(record.read_bytes())
    return folder


def command(*arguments, before="", folder=None):
    """Returns the ended command. ``before`` is code that its process runs first."""
    code = f"import sys\n{before}\nfrom ignite_hooks.observe.__main__ import main\nsys.exit(main())"
    start = ["-c", code] if before else ["-m", "ignite_hooks.observe"]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)], capture_output=True, text=True, cwd=folder
    )


def test_page_is_beside_the_record(run_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(run_folder.parent))
    page = run_folder / "report.html"
    for given in (run_folder, run_folder / "metrics.jsonl", str(run_folder), "~/a"):
        assert make_report(given) == page
        assert "max_epochs" in page.read_text()
        page.unlink()


def test_path_may_be_a_new_folder_an_existing_one_or_a_link(record, tmp_path):
    page = tmp_path / "new" / "folder" / "a.html"
    assert make_report(record, page) == page
    assert make_report([record, record.parent], tmp_path) == tmp_path / "report.html"
    link = tmp_path / "link.html"
    link.symlink_to(page)
    before = page.stat().st_ino
    make_report(record, link)
    assert link.is_symlink()
    assert page.stat().st_ino != before
    assert page.stat().st_mode == tmp_path.joinpath("report.html").stat().st_mode
    (tmp_path / "usual").touch()
    assert page.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_name_of_a_folder_may_have_bytes_that_are_no_text(record, tmp_path):
    folder = tmp_path / os.fsdecode(b"run\xff")
    folder.mkdir()
    (folder / "metrics.jsonl").write_bytes(record.read_bytes())
    assert "max_epochs" in make_report(folder).read_text()


def test_record_that_cannot_be_read_is_a_warning_beside_another(record, tmp_path):
    with pytest.warns(UserWarning, match=r"missing"):
        make_report([tmp_path / "missing", record], tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "missing" in page
    assert "max_epochs" in page


def test_page_is_kept_if_no_record_can_be_read(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("an earlier page")
    with pytest.raises(ValueError, match="misspelt"):
        make_report(tmp_path / "misspelt")
    assert page.read_text() == "an earlier page"
    for path in (None, tmp_path / "new" / "a.html"):
        with pytest.raises(ValueError, match="There is no such file"):
            make_report(tmp_path / "misspelt" / "metrics.jsonl", path)
    assert os.listdir(tmp_path) == ["report.html"]  # and no folder is made


@pytest.mark.parametrize(
    ("records", "page", "message"),
    [
        ([], None, "`records` must name at least one record"),
        (["a", "b"], None, "`path` must be given for several records"),
        ("a", "metrics.jsonl", r'ends in ".html", got .*: write .*metrics.html for example'),
        ("a", "no_folder", r'ends in ".html", got .*: write .*no_folder/report.html for example'),
        ("a", "folder.html/../file/x.html", "`path` must be a file that can be written"),
    ],
)
def test_wrong_arguments_are_errors(tmp_path, monkeypatch, records, page, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    for name in ("a", "file"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        make_report(records, page)


def test_command_says_where_the_page_is(run_folder):
    ended = command("report", "a", folder=run_folder.parent)
    page = run_folder / "report.html"
    assert ended.stdout.startswith(f"the report is in {page} (")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "max_epochs" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["a", "missing", "-o", "b.html"], 0, "warning: .*missing"),
        (["missing"], 1, "error: .*/missing: There is no such file: give the path"),
        (["missing/metrics.jsonl"], 1, "error: .*missing/metrics.jsonl: There is no such file"),
        (["a", "missing"], 2, "error: -o must be given for several records"),
        (["a", "-o", "a/metrics.jsonl"], 2, 'error: `path` must .* ends in ".html"'),
        ([], 2, "the following arguments are required: RECORD"),
    ],
)
def test_command_reports_problems_by_its_status(run_folder, arguments, status, message):
    ended = command("report", *arguments, folder=run_folder.parent)
    assert ended.returncode == status
    assert re.search(message, ended.stderr.splitlines()[-1])
    assert "Traceback" not in ended.stderr


def test_command_imports_neither_torch_nor_numpy(run_folder):
    forbid = "for name in ('torch', 'numpy', 'ignite', 'accelerate', 'pydantic', 'pandas'):\n"
    forbid += "    sys.modules[name] = None  # makes its import an error"
    ended = command("report", run_folder, before=forbid)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_full_disk_keeps_the_earlier_page(run_folder):
    page = run_folder / "report.html"
    page.write_text("an earlier page")
    limit = "import resource\n"
    limit += f"resource.setrlimit(resource.RLIMIT_FSIZE, (100, {resource.RLIM_INFINITY}))"
    ended = command("report", run_folder, before=limit)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: `path` must be a file that can be written")
    assert page.read_text() == "an earlier page"
    assert sorted(os.listdir(run_folder)) == ["metrics.jsonl", "report.html"]
