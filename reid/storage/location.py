"""Addresses: which file system an address belongs to, and the path there."""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyarrow import fs

from reid.storage.http import HttpFiles
from reid.storage.repetition import retry

SCHEMES: Final = ("file", "s3", "gs", "http", "https")
_SCHEME_PATTERN: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")


@dataclass(frozen=True, slots=True)
class Location:
    """A file or folder: where it is, and the file system that reads it. Picklable."""

    filesystem: Any
    """`pyarrow.fs.FileSystem`."""
    path: str
    """Path as `filesystem` wants it, without a trailing slash: `/data/veri` or `bucket/veri`."""
    uri: str
    """The address for people and for other processes: an absolute local path, or `scheme://...` without secrets."""

    @property
    def is_local(self) -> bool:
        """Whether this machine's own disk (or a mount of it) holds it."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be written there (http and https)."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def local_path(self) -> Path:
        """The local path; a ValueError where there is none."""
        if not self.is_local:
            raise ValueError(f"{self.uri} is not a local path: copy it with copy_to_local first")
        return Path(self.path)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> Location:
        """The folder that holds this entry."""
        base, mark, query = self.uri.partition("?")
        return Location(
            self.filesystem, self.path.rpartition("/")[0], f"{base.rstrip('/').rpartition('/')[0]}{mark}{query}"
        )

    def child(self, name: str) -> Location:
        """The entry `name` (one name, or several joined by `/`) inside this folder."""
        parts = name.split("/")
        if any(part in {"", ".", ".."} for part in parts) or "\\" in name or "\0" in name:
            raise ValueError(f"{name!r} is not a plain name below {self.uri}")
        base, mark, query = self.uri.partition("?")
        return Location(self.filesystem, f"{self.path.rstrip('/')}/{name}", f"{base.rstrip('/')}/{name}{mark}{query}")


def open_location(uri: str | Path) -> Location:
    """The file or folder at an address; nothing is read yet.

    S3 takes its credentials from the environment as every AWS program does; `AWS_ENDPOINT_URL(_S3)` or the query
    `?endpoint_override=host:port&scheme=http&region=...` name another server.

    Args:
        uri: local path, `file:///...`, `s3://bucket/key`, `gs://bucket/key`, `http(s)://host/path`.

    Raises:
        ValueError: another scheme (`pipe:` among them), or a password inside the address.
    """
    text = os.fspath(uri)
    scheme_match = None if isinstance(uri, Path) else _SCHEME_PATTERN.match(text)
    if scheme_match is None:
        if not text:
            raise ValueError("the address of a file or folder is empty")
        path = os.path.abspath(os.path.expanduser(text))
        return Location(fs.LocalFileSystem(), path, path)
    scheme = scheme_match.group(1).lower()
    parts = urllib.parse.urlsplit(text)
    if scheme not in SCHEMES or not text[len(scheme) :].startswith("://"):
        allowed = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(
            f"refused to open {text!r}: the scheme {scheme}: is not one of {allowed} or a local path"
            f" (a local name with a colon is written ./{text})"
        )
    if "@" in parts.netloc:
        address = text.replace(parts.netloc.rpartition("@")[0] + "@", "***@")
        raise ValueError(f"{address} carries credentials: give them by the environment, addresses are logged")
    if scheme == "file":
        if parts.netloc not in {"", "localhost"}:
            raise ValueError(f"{text!r} names a file on host {parts.netloc!r}: file:// addresses must be file:///path")
        path = os.path.abspath(urllib.parse.unquote(parts.path))
        return Location(fs.LocalFileSystem(), path, path)
    if not parts.netloc:
        raise ValueError(f"{text!r} names no {'host' if scheme.startswith('http') else 'bucket'}")
    if scheme == "s3":
        return Location(_s3_filesystem(parts), (parts.netloc + parts.path).rstrip("/"), text)
    if scheme == "gs":
        return Location(fs.GcsFileSystem(), (parts.netloc + parts.path).rstrip("/"), text)
    handler = HttpFiles(f"{scheme}://{parts.netloc}", parts.query)
    return Location(fs.PyFileSystem(handler), parts.path.rstrip("/"), text)


def _s3_filesystem(parts: urllib.parse.SplitResult) -> Any:
    """An S3 client of its own retries off (ours are counted), endpoint and region from the query or the environment."""
    options = dict(urllib.parse.parse_qsl(parts.query))
    endpoint, scheme, region = (options.pop(key, None) for key in ("endpoint_override", "scheme", "region"))
    if options:
        raise ValueError(
            f"unknown option {sorted(options)[0]!r} in {parts.geturl()!r}: endpoint_override, scheme, region"
        )
    variable = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint is None and variable:
        server = urllib.parse.urlsplit(variable)
        endpoint, scheme = server.netloc, server.scheme
    region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint else retry("resolve", parts.netloc, lambda: fs.resolve_s3_region(parts.netloc))
    return fs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        scheme=scheme or "https",
        connect_timeout=20,
        request_timeout=60,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
