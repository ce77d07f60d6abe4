"""The machine of a measurement: its description, the core to use, and the versions of packages."""

import os
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version

__all__ = ["CONTESTING", "describe_machine", "use_core"]

CONTESTING = (
    "pytorch-ignite",
    "accelerate",
    "lightning",
    "transformers",
    "torchtnt",
    "mmengine",
)


def describe_machine(packages=CONTESTING):
    """Returns a description of the machine, with the versions of torch and of the packages."""
    release = ".".join(platform.release().split(".")[:2])
    machine = f"{os.cpu_count()} cores, {platform.system()} {release}"
    versions = [f"Python {platform.python_version()}"]
    for package in ("torch", *packages):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} not installed")
    return f"{machine}, {', '.join(versions)}"


def use_core(core=None):
    """Keeps this process, and those that it starts, on one core: by default the last one."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if core is None else core})
