"""Files and folders by address: local paths, `s3://`, `gs://`, and, for reading only, `http(s)://`.

Built on `pyarrow.fs`, Ray's own storage layer. Addresses come from an allow-list of schemes: a shard list is data, and
readers that hand `pipe:` addresses to a shell execute what they read. Two promises hold everywhere: a file under its
final name is complete (temporary name, fsync, rename on local disks; one put on object stores), and a request that
failed for a passing reason is repeated with exponential back-off and full jitter, and counted.
"""

from reid.storage.files import (
    check_output_file,
    copy_to_local,
    delete_tree,
    exists,
    list_names,
    list_sizes,
    make_folder,
    read_bytes,
    rename_into_place,
    sha256_of,
    sync_file,
    sync_folder,
    upload_file,
    write_bytes_atomic,
)
from reid.storage.location import Location, open_location
from reid.storage.repetition import RetryCounter, RetryPolicy, is_refused, is_transient, retry

__all__ = [
    "Location",
    "RetryCounter",
    "RetryPolicy",
    "check_output_file",
    "copy_to_local",
    "delete_tree",
    "exists",
    "is_refused",
    "is_transient",
    "list_names",
    "list_sizes",
    "make_folder",
    "open_location",
    "read_bytes",
    "rename_into_place",
    "retry",
    "sha256_of",
    "sync_file",
    "sync_folder",
    "upload_file",
    "write_bytes_atomic",
]
