"""An S3 server on this machine, for tests of runs and shard sets on an object store."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs


class Gate:
    """Between the S3 server and its clients: counts requests and answers some of them with an error."""

    def __init__(self, address: str, application: Callable[..., Any]):
        self.address = address
        """host:port"""
        self.application = application
        self.requests: list[str] = []
        self.failures: list[tuple[str, str]] = []
        """(pattern of "METHOD /path", status line) of errors still to be given, first match first."""

    def __call__(self, environment: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        request = f"{environment['REQUEST_METHOD']} {environment['PATH_INFO']}"
        self.requests.append(request)
        for failure in self.failures:
            if re.search(failure[0], request):
                self.failures.remove(failure)
                code = {"503": "SlowDown", "500": "InternalError", "403": "AccessDenied"}[failure[1][:3]]
                body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
                headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
                start_response(failure[1], headers)
                return [b"" if environment["REQUEST_METHOD"] == "HEAD" else body]
        return self.application(environment, start_response)


@contextmanager
def s3_server(bucket: str) -> Iterator[Gate]:
    """A server with an empty bucket for the time of a `with` block; this process and its children find it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"{host}:{port}"
    assert server._server is not None
    gate = Gate(address, server._server.app)
    server._server.app = gate  # type: ignore[assignment]
    environment = {
        "AWS_ENDPOINT_URL": f"http://{address}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        store = fs.S3FileSystem(
            endpoint_override=address, scheme="http", region="us-east-1", allow_bucket_creation=True
        )
        store.create_dir(bucket)
        try:
            yield gate
        finally:
            server.stop()
