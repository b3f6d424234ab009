"""Reading over http(s) in the shape of a `pyarrow` file system."""

from __future__ import annotations

import contextlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, NoReturn

import pyarrow as pa
from pyarrow import fs


class HttpFiles(fs.FileSystemHandler):  # type: ignore[misc]
    """Whole files of one web server: no lists, nothing can be written.

    Redirects are followed to http and https only (the rule of `urllib`). What breaks is an OSError: a transfer that
    ends before its end or an answer that is none is a ConnectionError, which `retry` repeats.
    """

    def __init__(self, origin: str, query: str):
        self.origin, self.query = origin, query

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HttpFiles) and (self.origin, self.query) == (other.origin, other.query)

    __hash__ = None  # type: ignore[assignment]

    def _address(self, path: str) -> str:
        return f"{self.origin}/{path.lstrip('/')}" + (f"?{self.query}" if self.query else "")

    @contextlib.contextmanager
    def _answer(self, path: str, method: str) -> Iterator[Any]:
        request = urllib.request.Request(self._address(path), method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                yield answer
        except http.client.HTTPException as error:
            raise ConnectionError(f"{self._address(path)}: {type(error).__name__}: {error}") from error
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in {404, 410}:
                raise FileNotFoundError(f"{self._address(path)}: HTTP status {error.code}") from None
            if error.code in {401, 403}:
                raise PermissionError(f"{self._address(path)}: HTTP status {error.code}") from None
            raise OSError(f"{self._address(path)}: HTTP status {error.code}") from None

    def get_type_name(self) -> str:
        """Short name of the file system."""
        return "http"

    def normalize_path(self, path: str) -> str:
        """The path as it is."""
        return path

    def get_file_info(self, paths: list[str]) -> list[Any]:
        """Whether files exist, and their sizes where the server tells."""
        found = []
        for path in paths:
            try:
                with self._answer(path, "HEAD") as answer:
                    size = answer.headers.get("Content-Length")
                found.append(fs.FileInfo(path, fs.FileType.File, size=None if size is None else int(size)))
            except FileNotFoundError:
                found.append(fs.FileInfo(path, fs.FileType.NotFound))
        return found

    def open_input_stream(self, path: str) -> Any:
        """The whole content of a file, for reading."""
        with self._answer(path, "GET") as answer:
            return pa.BufferReader(answer.read())

    def get_file_info_selector(self, selector: Any) -> NoReturn:
        """ValueError: web servers have no lists."""
        raise ValueError(f"{self._address(selector.base_dir)}: folders cannot be listed over http")

    def _read_only(self, *_: object) -> NoReturn:
        raise ValueError(f"{self.origin} is read over http: nothing can be written or moved there")

    open_input_file = open_input_stream
    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = move = copy_file = (
        _read_only
    )
    open_output_stream = open_append_stream = _read_only
