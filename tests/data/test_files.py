"""Files that appear whole or not at all, locks."""
import threading

import numpy as np
import pytest

from advprune import files
from advprune.errors import UserError


def test_files_appear_whole_or_not_at_all(tmp_path):
    with pytest.raises(OSError, match="disk full"), files.writing(tmp_path / "a") as file:
        file.write(b"half")
        raise OSError(28, "disk full")
    assert list(tmp_path.iterdir()) == []
    files.write(tmp_path / "a", "one")
    (tmp_path / ".a.part").write_text("left by a killed process, and longer")
    files.write(tmp_path / "a", b"two")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "two")]
    files.write_npz(tmp_path / "a.npz", x=np.arange(3))
    assert np.load(tmp_path / "a.npz")["x"].tolist() == [0, 1, 2]


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / ".lock"
    with files.locked(path, "the run"):
        with pytest.raises(UserError, match="the run is in use"), files.locked(path, "the run"):
            pass
        waits = threading.Thread(target=lambda: files.locked(path, wait=True).__enter__())
        waits.start()
        waits.join(0.2)
        assert waits.is_alive()
    waits.join(20)
    assert not waits.is_alive()
