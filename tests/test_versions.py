from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

LOWEST = Path(__file__).parent.parent / ".ci" / "lowest.txt"


def lowest_required():
    """The lower bound of each package that is always installed, from the metadata."""
    found = map(Requirement, requires("ignite-hooks"))
    needed = [each for each in found if "extra" not in str(each.marker)]
    bounds = {}
    for each in needed:
        (bounds[canonicalize_name(each.name)],) = [
            s.version for s in each.specifier if s.operator == ">="
        ]
    return bounds


def lowest_tried():
    """The versions that the tests were run with as the lowest."""
    lines = [line for line in LOWEST.read_text().splitlines() if not line.startswith("#")]
    pairs = (line.split("==") for line in lines)
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_requirement_has_a_lower_bound_that_was_tried():
    required, tried = lowest_required(), lowest_tried()
    assert set(required) == set(tried)
    for name, version in required.items():
        assert Version(version) == Version(tried[name]), name
