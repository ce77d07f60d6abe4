import os

import pytest

from ignite_hooks.checkpoint.regular_file import NotRegularFileError
from ignite_hooks.checkpoint.regular_file import open_regular


def test_only_regular_files_are_opened_without_blocking(tmp_path):
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.write_bytes(b"content")
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(pipe)
    for path in (file, tmp_path / "link"):
        with open_regular(path) as opened:
            assert opened.read() == b"content"
    for path in (pipe, tmp_path, "/dev/zero"):
        with pytest.raises(NotRegularFileError):
            open_regular(path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
