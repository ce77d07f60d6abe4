"""Marks tests that need a newer version of a package than the lowest that the project supports."""

from importlib.metadata import version

import pytest
from packaging.requirements import Requirement


def needs(requirement):
    """Skips a test if the installed version does not fulfill ``requirement``, "torch>=2.7" say."""
    needed = Requirement(requirement)
    installed = version(needed.name)
    return pytest.mark.skipif(
        not needed.specifier.contains(installed, prereleases=True),
        reason=f"needs {requirement}, {installed} is installed",
    )
