"""Requests that are repeated while they fail for a passing reason."""

from __future__ import annotations

import logging
import random
import re
import threading
import time
import urllib.error
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

logger = logging.getLogger(__name__)

_TRANSIENT_TEXT: Final = re.compile(
    r"SLOW_?DOWN|THROTTL|INTERNAL_FAILURE|INTERNAL_ERROR|SERVICE_UNAVAILABLE|NETWORK_CONNECTION|REQUEST_TIMEOUT|"
    r"REQUEST_EXPIRED|HTTP status (?:408|429|5\d\d)|curlCode|timed? ?out|connection reset|unexpected end of stream",
    re.IGNORECASE,
)
_REFUSED_TEXT: Final = re.compile(
    r"ACCESS_DENIED|PERMISSION_DENIED|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE_DOES_NOT_MATCH|EXPIRED_TOKEN"
    r"|UNRECOGNIZED_CLIENT|MISSING_AUTHENTICATION|AccessDenied|InvalidAccessKeyId|ExpiredToken|HTTP status 40[13]",
)
_CREDENTIALS: Final = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN for temporary keys), or AWS_PROFILE,",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}
_TRANSIENT_STATUS: Final = frozenset({408, 429, 500, 502, 503, 504})

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently a request is repeated: full jitter, wait ~ U(0, min(cap, base * 2^n)) seconds."""

    attempts: int = 6
    base_seconds: float = 0.5
    cap_seconds: float = 60.0


@dataclass(slots=True)
class RetryCounter:
    """Repeated requests by operation ("read", "write", "list", "download" ...); pass one in to see them."""

    retries: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, operation: str) -> None:
        """Count one more attempt of `operation`."""
        with self._lock:
            self.retries[operation] += 1


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later (throttling, 5xx, a broken connection), judged by the error.

    A missing file, refused access, an expired key or a full disk is not: repeating those only delays the message.
    """
    match error:
        case FileNotFoundError() | PermissionError() | FileExistsError() | IsADirectoryError() | NotADirectoryError():
            return False
        case urllib.error.HTTPError():
            return error.code in _TRANSIENT_STATUS
        case ConnectionError() | TimeoutError() | urllib.error.URLError():
            return True
        case OSError():
            return error.errno is None and _TRANSIENT_TEXT.search(str(error)) is not None
        case _:
            return False


def is_refused(error: BaseException) -> bool:
    """Whether access was refused: a key that is missing, wrong or has expired, or a folder without the right."""
    return isinstance(error, PermissionError) or (
        isinstance(error, OSError) and _REFUSED_TEXT.search(str(error)) is not None
    )


def credentials_hint(address: str, error: BaseException) -> str:
    """Where the keys of an object store come from, for an error that refuses them; empty for any other.

    >>> credentials_hint("gs://bucket/set", OSError("PERMISSION_DENIED"))
    'access was refused: check GOOGLE_APPLICATION_CREDENTIALS where this process runs'
    """
    source = _CREDENTIALS.get(address.partition("://")[0])
    if source is None or not is_refused(error):
        return ""
    return f"access was refused: check {source} where this process runs"


def retry(
    operation: str,
    address: str,
    request: Callable[[], Result],
    policy: RetryPolicy | None = None,
    counter: RetryCounter | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """The result of `request`, repeated while it fails for a passing reason.

    Args:
        operation: what is counted, such as "read".
        address: what the log and the final error name.
        request: does the work; must be safe to repeat.
        policy: attempts and waits.
        counter: where repetitions are counted.
        sleep: waits that many seconds.

    Raises:
        OSError: the last error, when all attempts failed (its notes tell how many) or the error will not pass.
    """
    policy = policy or RetryPolicy()
    attempt = 1
    while True:
        try:
            return request()
        except Exception as error:
            if not is_transient(error):
                if hint := credentials_hint(address, error):
                    error.add_note(hint)
                raise
            if attempt >= policy.attempts:
                error.add_note(f"{operation} of {address} failed {attempt} times; gave up")
                raise
            if counter is not None:
                counter.add(operation)
            wait = random.uniform(0.0, min(policy.cap_seconds, policy.base_seconds * 2.0 ** (attempt - 1)))
            logger.warning(
                "%s of %s failed (%s); attempt %d of %d in %.1f s",
                operation, address, error, attempt + 1, policy.attempts, wait,
            )  # fmt: skip
            sleep(wait)
        attempt += 1
