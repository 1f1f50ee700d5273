"""Files that appear whole or not at all, state with a checksum, locks."""
import threading

import numpy as np
import pytest

from advprune import checkpoint, files
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


def test_a_state_is_read_as_written_or_set_aside(tmp_path, capsys):
    state = checkpoint.State(tmp_path / "a.state")
    assert state.read() is None
    state.write({"done": 3})
    assert state.read() == {"done": 3}
    content = bytearray(state.path.read_bytes())
    content[-1] ^= 1
    for damaged in (content, content[:100], b""):
        state.path.write_bytes(damaged)
        with pytest.raises(ValueError, match="checksum"):
            state.load()
        assert state.read() is None
        assert "a.state is damaged" in capsys.readouterr().err
        assert (tmp_path / "a.state.damaged").read_bytes() == damaged
        assert not state.path.exists()
    state.delete()


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
