"""Keeping a checkpoint from deletion while a process works with it."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from reid.storage import Location
from reid.training.checkpoint import CheckpointStore

logger = logging.getLogger(__name__)

EXPIRY_SECONDS = 600.0
"""A pin outlives its process by this much, so that one that died holds nothing for ever."""


@contextmanager
def held(checkpoint: Location, purpose: str, *, expiry_seconds: float = EXPIRY_SECONDS) -> Iterator[None]:
    """Pins a checkpoint folder for the time of a `with` block, however long that is.

    Its run may still train, and retention there would delete it. Where the storage cannot be written nothing is pinned,
    with a warning.

    Args:
        checkpoint: Folder of the checkpoint.
        purpose: Letters, digits, `-` and `_`, for people who look into the folder.
        expiry_seconds: After the death of this process; the pin is renewed in half of it.
    """
    store, holder = CheckpointStore(checkpoint.parent), f"{purpose}-{uuid.uuid4().hex[:8]}"
    try:
        store.pin(checkpoint.name, holder, expiry_seconds)
    except (OSError, ValueError) as error:
        logger.warning("%s may be deleted by its run meanwhile, it cannot be pinned: %s", checkpoint.uri, error)
        yield
        return
    done = threading.Event()

    def renew() -> None:
        while not done.wait(expiry_seconds / 2):
            try:
                store.pin(checkpoint.name, holder, expiry_seconds)
            except OSError as error:
                logger.warning("the pin of %s could not be renewed: %s", checkpoint.uri, error)

    thread = threading.Thread(target=renew, name="checkpoint-hold", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        store.unpin(checkpoint.name, holder)
