"""The curves of a run, written as tensorboard's event files by the thread that trains.

Tensorboard's own writer has a thread, and prints that thread's traceback where the disk takes no more. Here whoever
logs a step is told.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]


class Scalars:
    """Opens a new event file in a folder; what lies there of steps after ``done`` is hidden.

    A step is on its way to the disk when ``add`` returns, so that a killed run keeps its curves.

    Args:
        folder: made where it is missing.
        done: the last step, counted from 1, whose scalars stay.

    Raises:
        OSError: the folder cannot be written to, here and from ``add``.
    """

    def __init__(self, folder: Path, done: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # nanoseconds: runs that follow each other within a second have files of their own, in order
        path = folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        self._file = path.open("xb", buffering=0)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=done + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step, by name."""
        found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=found)))

    def close(self) -> None:
        """Nothing is left to be written."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        left = record.getbuffer()
        # a disk takes what it has room for, and refuses only what comes after that
        while left:
            left = left[self._file.write(left) :]
