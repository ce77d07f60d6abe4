"""A description of the machine and the versions, for the head of a table."""

import os
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version

PACKAGES = (
    "torch",
    "pytorch-ignite",
    "accelerate",
    "lightning",
    "transformers",
    "torchtnt",
    "mmengine",
)


def describe_machine():
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}"
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} not installed")
    return f"{machine}, {', '.join(versions)}"
