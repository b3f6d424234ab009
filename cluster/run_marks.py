"""Marks in the run folder, by which the driver and the workers of a run tell each other that it is to end.

They may be on different machines; what all of them see is the run folder.
"""

from __future__ import annotations

import json
import logging
import socket
from typing import Final

from cluster.error_words import words_of
from reid.contracts import DataError
from reid.storage import Location, delete_tree, exists, read_bytes, write_bytes_atomic

logger = logging.getLogger(__name__)

LOCAL_POLL_SECONDS, REMOTE_POLL_SECONDS = 0.5, 5.0


class StopMark:
    """Put by the driver: the workers save a checkpoint and end."""

    def __init__(self, folder: Location) -> None:
        self._location = folder.child("stop")
        self.poll_seconds = LOCAL_POLL_SECONDS if folder.is_local else REMOTE_POLL_SECONDS
        """Pause between two looks."""

    def put(self) -> None:
        """Asks the workers to stop."""
        write_bytes_atomic(self._location, b"")

    def remove(self) -> None:
        """Takes it back: at the start and at the end of a driver's work."""
        if exists(self._location):
            delete_tree(self._location)

    def is_there(self) -> bool:
        """Whether the workers are to stop; a storage that fails for the moment means no."""
        try:
            return exists(self._location)
        except OSError as error:
            logger.warning("could not look for %s: %s", self._location.uri, error)
            return False


class GivenUp(RuntimeError):  # noqa: N818 - an outcome of training, reported as such
    """A worker ended training: what went wrong would go wrong again from the same checkpoint."""


class EndMark:
    """Put by a worker that raises what starting the workers anew would not mend: the run ends at the first time."""

    def __init__(self, folder: Location) -> None:
        self._location = folder.child("ended.json")

    def put(self, error: Exception, rank: int) -> None:
        """Says why, before the worker raises; a storage that refuses costs new tries by Ray, not the reason.

        Args:
            error: DataError or ValueError: data or settings are refused. Any other: training is given up.
            rank: Of the worker.
        """
        kind = next((name for name, types in _KINDS.items() if isinstance(error, types)), "training")
        what = {"rank": rank, "node": socket.gethostname(), "kind": kind, "text": words_of(error)}
        try:
            write_bytes_atomic(self._location, json.dumps(what).encode())
        except OSError as failure:
            logger.warning("could not write %s: %s", self._location.uri, failure)

    def remove(self) -> None:
        """Forgets an earlier end: at the start of a driver's work."""
        if exists(self._location):
            delete_tree(self._location)

    def error(self) -> DataError | ValueError | GivenUp | None:
        """What a worker ended the run for; None when none did."""
        if not exists(self._location):
            return None
        what = json.loads(read_bytes(self._location))
        return _KINDS.get(what["kind"], GivenUp)(f"rank {what['rank']} on {what['node']}: {what['text']}")


_KINDS: Final[dict[str, type[ValueError]]] = {"data": DataError, "settings": ValueError}
"""A DataError is a ValueError too: the first that fits."""
