"""Figures of a run for Prometheus and TensorBoard.

Training workers publish through `ray.util.metrics` (each Ray node exports them on one port); what must outlive the
workers, such as evaluation figures and progress, is published by the driver through prometheus-client. Labels come
from fixed sets only: loss parts, planes, reasons; never names, paths or messages.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from ray.util import metrics as ray_metrics
from torch.utils.tensorboard import SummaryWriter

from reid.config import MetricsConfig
from reid.storage import Location, write_bytes_atomic

logger = logging.getLogger(__name__)

PORTS_TO_TRY: Final = 100
"""From the one that is wanted on."""

FIGURES_THAT_WAIT: Final = 100_000
"""TensorBoard figures kept in memory while they cannot be written: some ten megabytes."""


class WorkerGauges:
    """Figures of the training workers as Ray metrics: `ray_reid_*` with the run's name as tag."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._gauges: dict[str, ray_metrics.Gauge] = {}

    def publish(self, row: Mapping[str, float]) -> None:
        """Sets a gauge for each figure of a row: `loss/planes` becomes `reid_loss{part="planes"}`."""
        for key, value in row.items():
            name, _, part = key.partition("/")
            name = "reid_" + re.sub(r"[^a-z0-9_]", "_", name.lower())
            gauge = self._gauges.get(name)
            if gauge is None:
                gauge = ray_metrics.Gauge(name, description=f"{name} of the newest interval", tag_keys=("run", "part"))
                self._gauges[name] = gauge
            gauge.set(float(value), {**self._tags, "part": part})


class DriverMetrics:
    """Progress and evaluation figures of a run on the driver's own Prometheus endpoint."""

    def __init__(self, config: MetricsConfig, run: str) -> None:
        self._registry = CollectorRegistry()
        self._run = run
        self._epoch = Gauge("reid_epoch", "Epochs finished", ["run"], registry=self._registry)
        self._evaluation = Gauge(
            "reid_evaluation", "Newest evaluation, fraction", ["run", "figure"], registry=self._registry
        )
        self._failed = Counter("reid_evaluations_failed", "Evaluations given up", ["run"], registry=self._registry)
        self._server: Any = None
        if config.prometheus_port:
            try:
                self._serve(config.prometheus_host, config.prometheus_port)
            except OSError as error:
                # Metrics never stop a run.
                logger.warning("no Prometheus endpoint on port %d: %s", config.prometheus_port, error)

    def _serve(self, host: str, wanted: int) -> None:
        """Serves on the port that is wanted, or on the first free one after it."""
        for port in range(wanted, min(wanted + PORTS_TO_TRY, 65536)):
            try:
                self._server, _ = start_http_server(port, addr=host, registry=self._registry)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            level = logging.INFO if port == wanted else logging.WARNING
            instead = "" if port == wanted else f" (port {wanted} is in use)"
            logger.log(level, "Prometheus endpoint: http://%s:%d/metrics%s", host, port, instead)
            return
        raise OSError(errno.EADDRINUSE, f"this port and the {PORTS_TO_TRY - 1} after it are in use")

    def epoch(self, finished: int) -> None:
        """Epochs finished so far."""
        self._epoch.labels(self._run).set(finished)

    def evaluation(self, figures: Mapping[str, float]) -> None:
        """Figures of the newest evaluation."""
        for name, value in figures.items():
            self._evaluation.labels(self._run, name).set(value)

    def evaluation_failed(self) -> None:
        """Counts an evaluation that was given up."""
        self._failed.labels(self._run).inc()

    def close(self) -> None:
        """Stops the endpoint."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class TensorBoardLog:
    """TensorBoard events of a run; for a run on an object store, written locally and copied there at each flush.

    A storage that refuses costs nothing: figures wait in memory, the newest `FIGURES_THAT_WAIT` of them, for the next
    flush, and one warning an outage says so. `failed` counts the flushes that did not happen.
    """

    def __init__(self, config: MetricsConfig, folder: Location) -> None:
        self.failed = 0
        self._is_on = config.tensorboard
        self._folder = folder
        self._temporary: Path | None = None
        self._writer: SummaryWriter | None = None
        self._waiting: deque[tuple[str, float, int]] = deque(maxlen=FIGURES_THAT_WAIT)
        """Tag, value and step of what was added since the last flush."""
        self._is_out = False

    def add(self, row: Mapping[str, Any], step: int, prefix: str) -> None:
        """Adds the numeric figures of a row, for the next flush."""
        if not self._is_on:
            return
        for key, value in row.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and key not in ("step", "epoch"):
                self._waiting.append((f"{prefix}/{key}", value, step))

    def flush(self) -> None:
        """Makes what was added visible to readers, now or at the first flush that the storage takes."""
        if not self._waiting:
            return
        try:
            self._write()
        except OSError as error:
            self._note_failure(error)
            return
        self._waiting.clear()
        self._is_out = False

    def _write(self) -> None:
        if self._writer is None:
            if not self._folder.is_local and self._temporary is None:
                self._temporary = Path(tempfile.mkdtemp(prefix="reid-tensorboard-"))
            self._writer = SummaryWriter(str(self._temporary or self._folder.local_path))
        for tag, value, step in self._waiting:
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()
        if self._temporary is not None:
            for file in self._temporary.iterdir():
                write_bytes_atomic(self._folder.child(file.name), file.read_bytes())

    def _note_failure(self, error: OSError) -> None:
        # A writer that failed once fails for ever: the next flush begins a file of its own.
        self._close_writer()
        self.failed += 1
        if not self._is_out:
            logger.warning("TensorBoard events could not be written to %s: %s; they wait", self._folder.uri, error)
        self._is_out = True

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError):
                writer.close()

    def close(self) -> None:
        """Flushes and ends the event file."""
        try:
            self.flush()
            self._close_writer()
        finally:
            if self._temporary is not None:
                shutil.rmtree(self._temporary, ignore_errors=True)
