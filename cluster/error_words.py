"""What an error says to people."""

from __future__ import annotations


def words_of(error: BaseException) -> str:
    """Its text, and what was added to it or to the error that it came from on their way."""
    notes = [note for one in (error, error.__cause__) for note in getattr(one, "__notes__", [])]
    return "\n".join([str(error), *notes])
