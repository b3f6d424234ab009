"""Marks in the run folder, by which the driver and the workers of a run tell each other that it is to end.

They may be on different machines; what all of them see is the run folder.
"""

from __future__ import annotations

import json
import logging

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


class RefusalMark:
    """Put by a worker: settings or data are wrong, and starting the workers anew would not mend them."""

    def __init__(self, folder: Location) -> None:
        self._location = folder.child("refused.json")

    def put(self, error: Exception, rank: int) -> None:
        """Says why, before the worker raises."""
        what = {"rank": rank, "is_data": isinstance(error, DataError), "text": str(error)}
        write_bytes_atomic(self._location, json.dumps(what).encode())

    def remove(self) -> None:
        """Forgets an earlier refusal: at the start of a driver's work."""
        if exists(self._location):
            delete_tree(self._location)

    def error(self) -> ValueError | None:
        """What a worker refused, for the driver to raise; None when none did."""
        if not exists(self._location):
            return None
        what = json.loads(read_bytes(self._location))
        return (DataError if what["is_data"] else ValueError)(f"rank {what['rank']}: {what['text']}")
