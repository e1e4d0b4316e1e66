"""A file that is written appears whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from alidade.imagery.atomic import atomic_write, is_temporary

KILLED = """
import os, signal, sys
from alidade.imagery.atomic import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_bytes(b"new" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_new_file_and_replacement(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    for content in (b"one", b"two"):
        with atomic_write(target) as temporary:
            assert temporary.parent == tmp_path
            assert is_temporary(temporary)
            assert not is_temporary(target)
            temporary.write_bytes(content)
            assert not target.exists() or target.read_bytes() == b"one"
        assert target.read_bytes() == content
    assert list(tmp_path.iterdir()) == [target]


def test_error_leaves_everything_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    writing = atomic_write(target)
    writing.__enter__().write_bytes(b"half")
    assert writing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None) is False
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_writing_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.bin"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_kill_leaves_the_old_file_and_a_name_to_clean_up(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    left = [p for p in tmp_path.iterdir() if p != target]
    assert len(left) == 1
    assert is_temporary(left[0])


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, os.replace

    def spy_fsync(descriptor: int) -> None:
        order.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def spy_rename(source: Path, target: Path) -> None:
        order.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_rename)
    with atomic_write(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"content")
    assert order == [temporary.name, "rename", tmp_path.name]
