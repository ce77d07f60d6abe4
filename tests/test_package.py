"""The wheel and the sdist, as users install them."""

import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PathDistribution
from importlib.metadata import distribution
from math import inf
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.pages import HOME
from tests.pages import is_same
from tests.test_examples import blocks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def run(*arguments, **options):
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def tracked_files():
    if not (ROOT / ".git").exists():
        pytest.skip("only a clone of the repository knows its files")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def built(tmp_path):
    """Builds the sdist, and from it the wheel. Returns their paths."""
    pytest.importorskip("build", reason="build comes with the extra package")
    run("-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ROOT)
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    return sdist, wheel


def link_dependencies(package, folder):
    """Links the installed packages that a package needs, and those that these need, to a folder."""
    waiting, seen = [(package, {""})], set()
    while waiting:
        package, extras = waiting.pop()
        for each in map(Requirement, package.requires or ()):
            is_optional = each.marker and not any(
                each.marker.evaluate({"extra": extra}) for extra in extras
            )
            if is_optional or (each.name, frozenset(each.extras)) in seen:
                continue
            seen.add((each.name, frozenset(each.extras)))
            needed = distribution(each.name)
            for name in {file.parts[0] for file in needed.files} - {"..", "__pycache__"}:
                if not (folder / name).exists():
                    (folder / name).symlink_to(needed.locate_file(name))
            waiting.append((needed, {"", *each.extras}))


@pytest.mark.exhaustive
def test_sdist_and_wheel_contain_every_file_of_the_repository(tmp_path):
    files = tracked_files()
    sdist, wheel = built(tmp_path)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names == {*files, "PKG-INFO"}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {name for name in files if name.startswith("ignite_hooks/")}
    assert {Path(name).suffix for name in names} == {".py", ".typed", ".html", ".css", ".js"}


@pytest.mark.exhaustive
def test_the_description_of_the_package_works_without_the_repository(tmp_path):
    with zipfile.ZipFile(built(tmp_path)[1]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        description = archive.read(name).decode().partition("\n\n")[2]
    assert "## What it promises" in description
    assert re.findall(r"<picture>|<!--|\]\((?!https://)[^)]*\)", description) == []


# The end of the script: it imports every module, and prints where the package is.
IMPORTS = """
from importlib import import_module
from pkgutil import walk_packages
for module in walk_packages(ih.__path__, "ignite_hooks."):
    if not module.name.endswith("__main__"):
        import_module(module.name)
print(ih.__file__)
"""


@pytest.mark.exhaustive
def test_the_wheel_and_its_dependencies_run_the_readme_example(tmp_path):
    _, wheel = built(tmp_path)
    packages = tmp_path / "packages"
    run("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", packages, wheel)
    (information,) = packages.glob("*.dist-info")
    link_dependencies(PathDistribution(information), packages)
    script = tmp_path / "example.py"
    script.write_text(blocks("python")[0] + IMPORTS)
    # With -S Python ignores the packages of this environment.
    bare = {"PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"}
    *printed, file = run("-S", script, cwd=tmp_path, env=bare).splitlines()
    assert Path(file).is_relative_to(packages)
    (shown,) = blocks("output")
    printed = "\n".join(printed).replace(str(tmp_path), HOME)
    assert is_same(shown, printed, tolerance=inf)


def test_the_citation_names_the_version_and_the_license():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    # Not the metadata of the installed package, which keep the version of the installation.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert citation["abstract"] == project["description"]
    assert citation["keywords"] == project["keywords"]
    assert citation["authors"] == project["authors"]
