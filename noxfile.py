"""The tests with other versions than CI's: ``nox -s tests-3.12``, ``nox -s lowest``.

``.ci/run`` runs everything on one version of Python. These sessions are for the others, one at a
time: torch with the libraries that it brings takes 5 GB in each environment. What is given after
``--`` goes to pytest.
"""

import nox

nox.options.reuse_existing_virtualenvs = True

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Runs the tests with the newest packages that pip finds."""
    session.install("-e", ".[test]")
    run_tests(session)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Runs the tests with the lowest packages that pyproject.toml admits."""
    session.install("-c", ".ci/lowest.txt", "-e", ".[test]")
    run_tests(session)


def run_tests(session: nox.Session) -> None:
    """Prints what is installed, and runs pytest."""
    session.run("python", "-m", "pip", "list")
    session.run("python", "-m", "pytest", "-n", "auto", "--dist", "worksteal", *session.posargs)
