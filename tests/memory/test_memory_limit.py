import psutil
import pytest

from ignite_hooks.memory.memory_limit import available_bytes

MIB = 2**20


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize("path", ["job/step", "unknown/on/the/host"])
def test_limit_of_a_control_group_counts(tmp_path, path):
    membership = tmp_path / "membership"
    membership.write_text(f"0::/{path}\n")
    statistics = f"active_file 1\ninactive_file {MIB}\n"
    write(
        tmp_path,
        memory__max=f"{9 * MIB}\n",
        memory__current=f"{4 * MIB}\n",
        memory__stat=statistics,
    )
    write(tmp_path / "job", memory__max="max\n", memory__current="1\n", memory__stat=statistics)
    assert available_bytes(tmp_path, membership) == 6 * MIB


def test_limit_of_the_first_version_of_control_groups_counts(tmp_path):
    membership = tmp_path / "membership"
    membership.write_text("5:cpu:/a\n4:memory:/a/b\n1:name=systemd:/\n0::/\n")
    write(
        tmp_path / "memory/a",
        memory__limit_in_bytes=f"{3 * MIB}",
        memory__usage_in_bytes=f"{MIB}",
        memory__stat="total_inactive_file 0\n",
    )
    assert available_bytes(tmp_path, membership) == 2 * MIB


def test_without_a_limit_the_machine_counts(tmp_path):
    left = available_bytes(tmp_path, tmp_path / "none")
    assert left == pytest.approx(psutil.virtual_memory().available, rel=0.2)
