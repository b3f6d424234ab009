"""Addresses, atomic writes and repeated requests on local disks and over http; object stores are in test_shards_s3."""

from __future__ import annotations

import os
import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from reid.storage import (
    RetryCounter,
    RetryPolicy,
    copy_to_local,
    delete_tree,
    exists,
    is_transient,
    list_names,
    list_sizes,
    open_location,
    read_bytes,
    rename_into_place,
    retry,
    sha256_of,
    upload_file,
    write_bytes_atomic,
)


def test_a_local_path_and_its_file_address_are_the_same_place(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(b"x")
    plain = open_location(tmp_path / "a b")
    address = open_location(f"file://{tmp_path}/a%20b")
    assert plain == address
    assert plain.is_local
    assert plain.local_path == tmp_path / "a b"
    assert read_bytes(address) == b"x"


def test_a_relative_path_becomes_absolute_and_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_location("data/set").uri == str(tmp_path / "data" / "set")
    assert open_location("~/set").uri == str(tmp_path / "home" / "set")


@pytest.mark.parametrize("address", ["pipe:cat x", "ftp://host/x", "data:x", "s3:bucket", "PIPE:x", "hdfs://x/y"])
def test_other_schemes_are_refused_by_name(address: str) -> None:
    with pytest.raises(ValueError, match=address.split(":")[0].lower() + ":"):
        open_location(address)


def test_a_local_name_with_a_colon_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_location("./run:1").local_path == tmp_path / "run:1"
    assert open_location(Path("run:1")).local_path == tmp_path / "run:1"


def test_credentials_inside_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="credentials") as caught:
        open_location("s3://AKIA:topsecret@bucket/x")
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize("address", ["", "s3://", "file://otherhost/x", "s3://bucket/x?colour=red"])
def test_addresses_that_mean_nothing_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"empty|bucket|otherhost|colour"):
        open_location(address)


@pytest.mark.parametrize("name", ["..", "a/../b", "", "/etc", "a//b", "a\\b", "a\0b"])
def test_a_child_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a plain name"):
        open_location(tmp_path).child(name)


def test_a_location_survives_pickling(tmp_path: Path) -> None:
    location = open_location(tmp_path).child("a/b")
    copy = pickle.loads(pickle.dumps(location))
    assert (copy.path, copy.uri, copy.is_local) == (location.path, location.uri, True)


def test_an_atomic_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    location = open_location(tmp_path).child("folder/file")
    write_bytes_atomic(location, b"old")
    write_bytes_atomic(location, b"new")
    assert read_bytes(location) == b"new"
    assert list_names(open_location(tmp_path / "folder")) == ["file"]


def test_a_write_that_fails_keeps_the_old_content_and_cleans_up(tmp_path: Path) -> None:
    location = open_location(tmp_path).child("file")
    write_bytes_atomic(location, b"old")
    with pytest.raises(TypeError):
        write_bytes_atomic(location, "text")  # type: ignore[arg-type]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_bytes_atomic(open_location(tmp_path / "folder"), b"x")
    assert read_bytes(location) == b"old"
    assert list_names(open_location(tmp_path)) == ["file", "folder"]


def test_a_reader_never_sees_a_part_of_a_file_that_is_being_replaced(tmp_path: Path) -> None:
    location = open_location(tmp_path).child("file")
    contents = [bytes([number]) * 100_000 for number in range(2)]
    write_bytes_atomic(location, contents[0])
    done = threading.Event()

    def write() -> None:
        for number in range(40):
            write_bytes_atomic(location, contents[number % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not done.is_set() or reads == 0:
        assert read_bytes(location) in contents
        reads += 1
    writer.join()


def test_listing_tells_sizes_and_a_missing_folder_is_empty(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"123")
    (tmp_path / "a").mkdir()
    assert list_sizes(open_location(tmp_path)) == {"a": None, "b": 3}
    assert list_names(open_location(tmp_path / "none")) == []


def test_files_and_folders_are_deleted_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("link", "kept/file", "missing"):
        delete_tree(open_location(tmp_path).child(name))
    assert list_names(open_location(tmp_path)) == ["kept"]
    delete_tree(open_location(tmp_path / "kept"))
    assert not exists(open_location(tmp_path / "kept"))


def test_a_missing_file_is_not_asked_for_twice(tmp_path: Path) -> None:
    counter = RetryCounter()
    with pytest.raises(FileNotFoundError):
        read_bytes(open_location(tmp_path / "none"), counter=counter)
    assert not counter.retries


def test_a_folder_is_renamed_into_place_once(tmp_path: Path) -> None:
    (tmp_path / "temporary" / "inner").mkdir(parents=True)
    (tmp_path / "temporary" / "inner" / "file").write_bytes(b"x")
    rename_into_place(tmp_path / "temporary", tmp_path / "deep" / "final")
    assert (tmp_path / "deep" / "final" / "inner" / "file").read_bytes() == b"x"
    (tmp_path / "temporary").mkdir()
    with pytest.raises(FileExistsError, match="final exists already"):
        rename_into_place(tmp_path / "temporary", tmp_path / "deep" / "final")
    assert (tmp_path / "temporary").is_dir()


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 5_000_000)
    expected = sha256_of(path.read_bytes())
    assert sha256_of(path) == sha256_of(open_location(path)) == expected
    assert copy_to_local(open_location(path), tmp_path / "copy") == (15_000_000, expected)
    upload_file(path, open_location(tmp_path / "upload"))
    assert sha256_of(tmp_path / "upload") == expected


class Flaky:
    """Fails with the given errors, then answers."""

    def __init__(self, *errors: Exception):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


SLOW_DOWN = OSError("When reading 'x': AWS Error SLOW_DOWN during GetObject operation: Please reduce it.")


def test_a_passing_error_is_repeated_counted_and_waited_for_with_growing_jitter() -> None:
    counter, waits = RetryCounter(), list[float]()
    request = Flaky(SLOW_DOWN, ConnectionResetError(), TimeoutError(), SLOW_DOWN, SLOW_DOWN)
    policy = RetryPolicy(base_seconds=1.0, cap_seconds=4.0)
    assert retry("read", "s3://b/x", request, policy, counter, waits.append) == "answer"
    assert request.calls == 6
    assert counter.retries == {"read": 5}
    assert all(0 <= wait <= limit for wait, limit in zip(waits, [1, 2, 4, 4, 4], strict=True))
    assert len(set(waits)) == 5


def test_the_jitter_is_full() -> None:
    waits: list[float] = []
    for _ in range(300):
        retry("read", "x", Flaky(TimeoutError()), RetryPolicy(base_seconds=1.0), None, waits.append)
    assert min(waits) < 0.1
    assert max(waits) > 0.9


def test_attempts_end_with_the_last_error_and_their_number() -> None:
    request = Flaky(*[TimeoutError(f"try {number}") for number in range(1, 9)])
    with pytest.raises(TimeoutError, match="try 6") as caught:
        retry("read", "s3://b/x", request, None, None, lambda seconds: None)
    assert caught.value.__notes__ == ["read of s3://b/x failed 6 times; gave up"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SLOW_DOWN, True),
        (OSError("AWS Error SERVICE_UNAVAILABLE during PutObject"), True),
        (OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Couldn't connect"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 500) during GetObject"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 429)"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 400) during GetObject"), False),
        (OSError("AWS Error ACCESS_DENIED during GetObject operation: Access Denied"), False),
        (OSError("AWS Error NO_SUCH_BUCKET during PutObject"), False),
        (OSError("AWS Error INVALID_ACCESS_KEY_ID during GetObject"), False),
        (OSError(28, "No space left on device"), False),
        (FileNotFoundError(2, "missing"), False),
        (PermissionError(13, "denied"), False),
        (BrokenPipeError(), True),
        (ValueError("SLOW_DOWN"), False),
    ],
)
def test_errors_that_pass_are_told_from_those_that_stay(error: Exception, expected: bool) -> None:
    assert is_transient(error) is expected


@pytest.mark.parametrize(
    ("address", "error", "expected"),
    [
        ("s3://b/k", OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."), "AWS_PROFILE"),
        ("s3://b/k", OSError("AWS Error INVALID_ACCESS_KEY_ID during GetObject"), "AWS_ACCESS_KEY_ID"),
        ("s3://b/k", OSError("AWS Error NO_SUCH_BUCKET during PutObject"), None),
        ("/data/k", PermissionError("ACCESS_DENIED"), None),
    ],
)
def test_refused_access_names_the_variables_that_hold_the_keys(
    address: str, error: Exception, expected: str | None
) -> None:
    def request() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        retry("read", address, request)
    notes = " ".join(getattr(caught.value, "__notes__", []))
    assert (expected in notes) if expected else not notes


class WebServer(BaseHTTPRequestHandler):
    """Serves /set/file; fails twice at /busy (503), /cut (half the content) and /babble (no HTTP); refuses /secret;
    redirects /evil to a local file.
    """

    failed: ClassVar[Counter[str]] = Counter()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        match self.path:
            case "/set/file" | "/set/file?version=2":
                self.answer(200, b"content" + self.path[9:].encode())
            case "/busy":
                self.answer(503 if self.fails() else 200, b"at last")
            case "/cut":
                self.answer(200, b"at last", sent=3 if self.fails() else None)
            case "/babble" if self.fails():
                self.wfile.write(b"what?\r\n\r\n")
            case "/babble":
                self.answer(200, b"at last")
            case "/secret":
                self.answer(403, b"")
            case "/evil":
                self.send_response(302)
                self.send_header("Location", f"file://{os.path.abspath(__file__)}")
                self.end_headers()
            case _:
                self.answer(404, b"")

    def fails(self) -> bool:
        """Whether this is one of the first two requests of the path."""
        WebServer.failed[self.path] += 1
        return WebServer.failed[self.path] <= 2

    def answer(self, status: int, content: bytes, sent: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:sent])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    WebServer.failed.clear()
    with HTTPServer(("127.0.0.1", 0), WebServer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


FAST = RetryPolicy(base_seconds=0.001)


def test_files_are_read_over_http(web: str, tmp_path: Path) -> None:
    file = open_location(f"{web}/set").child("file")
    assert file.uri == f"{web}/set/file"
    assert read_bytes(file) == b"content"
    assert exists(file)
    assert not exists(open_location(f"{web}/none"))
    assert sha256_of(file) == sha256_of(b"content")
    assert copy_to_local(file, tmp_path / "copy") == (7, sha256_of(b"content"))
    assert read_bytes(open_location(f"{web}/set?version=2").child("file")) == b"content?version=2"


@pytest.mark.parametrize("path", ["busy", "cut", "babble"])
def test_a_web_server_that_is_busy_or_breaks_off_is_asked_again(web: str, tmp_path: Path, path: str) -> None:
    counter = RetryCounter()
    assert read_bytes(open_location(f"{web}/{path}"), FAST, counter) == b"at last"
    assert counter.retries == {"read": 2}
    WebServer.failed.clear()
    assert copy_to_local(open_location(f"{web}/{path}"), tmp_path / "copy", FAST, counter)[0] == 7
    assert counter.retries == {"read": 2, "download": 2}


def test_a_transfer_that_breaks_off_every_time_is_an_error_that_names_it(web: str) -> None:
    with pytest.raises(ConnectionError, match=rf"{web}/cut: IncompleteRead: .*3 bytes read") as caught:
        read_bytes(open_location(f"{web}/cut"), RetryPolicy(attempts=2, base_seconds=0.001))
    assert "failed 2 times" in caught.value.__notes__[0]


def test_http_errors_that_stay_are_raised_at_once(web: str) -> None:
    counter = RetryCounter()
    with pytest.raises(FileNotFoundError, match="404"):
        read_bytes(open_location(f"{web}/none"), FAST, counter)
    with pytest.raises(PermissionError, match="403"):
        read_bytes(open_location(f"{web}/secret"), FAST, counter)
    assert not counter.retries


def test_a_web_server_cannot_redirect_to_a_local_file(web: str) -> None:
    with pytest.raises(OSError, match="302"):
        read_bytes(open_location(f"{web}/evil"), FAST)


def test_nothing_can_be_written_over_http(web: str, tmp_path: Path) -> None:
    file = open_location(f"{web}/set/file")
    (tmp_path / "x").write_bytes(b"x")
    for attempt in (
        lambda: write_bytes_atomic(file, b"x"),
        lambda: upload_file(tmp_path / "x", file),
        lambda: delete_tree(file),
    ):
        with pytest.raises(ValueError, match="http and https are for reading"):
            attempt()
    with pytest.raises(ValueError, match="cannot be listed"):
        list_names(open_location(f"{web}/set"))
