"""The checkpoints of a run: written whole or not at all, verified before use, kept and deleted by rule."""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Collection

from pydantic import Field
from torch import Tensor

from reid.contracts import Settings
from reid.storage import Location, delete_tree, list_names, read_bytes, write_bytes_atomic
from reid.training.checkpoint_content import files_of, state_of
from reid.training.checkpoint_files import (
    MANIFEST_NAME,
    PRODUCT,
    TEMPORARY_PREFIX,
    CheckpointDamagedError,
    CheckpointManifest,
    digest_of,
    json_from_bytes,
    json_to_bytes,
    make_checkpoint_folder,
    name_of_step,
    read_manifest,
    read_verified,
    refuse_newer,
    remove_checkpoint,
    step_of_name,
    tensors_from_bytes,
    verify_checkpoint,
    write_checkpoint,
)
from reid.training.snapshot import CheckpointState, Position, RunDescription

logger = logging.getLogger(__name__)

_PINS = "pins"


class CheckpointConfig(Settings):
    """Which checkpoints stay, and how much trouble is tolerated."""

    keep_last: int = Field(default=3, ge=1)
    """Newest verified checkpoints that stay. Pinned ones (the best, those being evaluated) stay beside them."""
    free_space_factor: float = Field(default=2.2, ge=1)
    """A checkpoint is only begun when the disk has this many times its size free."""
    max_failures_in_a_row: int = Field(default=3, ge=1)
    """The run is aborted when this many saves in a row failed; until then training goes on."""


class CheckpointFailedError(RuntimeError):
    """Too many saves in a row failed."""


class CheckpointStore:
    """The folder with the checkpoints of one run. One process writes (rank 0); any number read.

    `rejected` counts by reason the checkpoints that `newest` passed over, `failed` the saves that did not happen.
    """

    def __init__(self, location: Location, config: CheckpointConfig | None = None) -> None:
        self.location = location
        self.config = config or CheckpointConfig()
        self.rejected: Counter[str] = Counter()
        self.failed = 0
        self.repeated = 0
        self._failed_in_a_row = 0
        self._verified: set[str] = set()

    def names(self) -> list[str]:
        """The checkpoints by rising step, whole or not."""
        found = [(step, name) for name in list_names(self.location) if (step := step_of_name(name)) is not None]
        return [name for _, name in sorted(found)]

    def newest(self) -> str | None:
        """The newest checkpoint whose every file is what was written; None when there is none.

        Damaged ones are passed over with one warning each and counted in `rejected`.
        """
        for name in reversed(self.names()):
            try:
                verify_checkpoint(self.location.child(name))
            except CheckpointDamagedError as error:
                self._verified.discard(name)
                self.rejected[error.reason] += 1
                total = sum(self.rejected.values())
                logger.warning("checkpoint %s passed over (%d so far): %s", name, total, error)
                continue
            self._verified.add(name)
            return name
        return None

    def load(self, name: str) -> CheckpointState:
        """Everything in a checkpoint, on the processor; each file is checked as it is read.

        Raises:
            CheckpointDamagedError: When it is not what was written.
            CheckpointRefusedError: When newer code wrote it.
        """
        checkpoint = self.location.child(name)
        manifest = self._readable_manifest(name)
        content = read_verified(checkpoint, manifest, manifest.files)
        return state_of(content, name)

    def load_model_weights(self, name: str, *, average: bool = True) -> dict[str, Tensor]:
        """The weights to evaluate: the moving average where the run keeps one and `average` is set, else the model's.

        Raises:
            CheckpointDamagedError: When they are not what was written.
            CheckpointRefusedError: When newer code wrote them.
        """
        manifest = self._readable_manifest(name)
        file = "ema.safetensors" if average and "ema.safetensors" in manifest.files else "model.safetensors"
        content = read_verified(self.location.child(name), manifest, [file])
        return tensors_from_bytes(content[file], f"{name}/{file}")

    def load_run(self, name: str) -> RunDescription:
        """What the checkpoint says about its run, without reading the tensors."""
        manifest = self._readable_manifest(name)
        content = read_verified(self.location.child(name), manifest, ["state.json"])
        return RunDescription(**json_from_bytes(content["state.json"], f"{name}/state.json")["run"])

    def load_position(self, name: str) -> Position | None:
        """Where the run goes on from a checkpoint, without reading the tensors; None when it is gone or damaged."""
        try:
            manifest = self._readable_manifest(name)
            content = read_verified(self.location.child(name), manifest, ["state.json"])
            return Position(**json_from_bytes(content["state.json"], f"{name}/state.json")["position"])
        except (CheckpointDamagedError, FileNotFoundError):
            return None

    def newest_position(self) -> tuple[str, Position] | None:
        """The newest checkpoint that says where the run goes on, and where; its tensors are neither read nor hashed."""
        for name in reversed(self.names()):
            position = self.load_position(name)
            if position is not None:
                return name, position
        return None

    def save(self, state: CheckpointState, protected: Collection[str] = ()) -> str | None:
        """Write a checkpoint and delete superseded ones.

        Saving the same step of the same settings again does nothing when the first one is sound. A storage that refuses
        (full disk, no permission, network) costs this checkpoint only: what was staged is deleted, older ones stay,
        training may go on.

        Args:
            state: What to save; call it on rank 0 only.
            protected: Names that retention must not delete, beside the pinned ones.

        Returns:
            The checkpoint's name once it is safely there under its final name, or None when it could not be written.

        Raises:
            CheckpointFailedError: When this was one failure in a row too many.
        """
        name = name_of_step(state.position.step)
        digest = digest_of(state.run.fixed)
        if self._is_sound(name, digest):
            self.repeated += 1
            return name
        try:
            files = files_of(state)
            self._refuse_full_disk(sum(len(data) for data in files.values()))
            write_checkpoint(
                self.location, name, files, step=state.position.step, config_digest=digest, product=PRODUCT
            )
        except OSError as error:
            self._note_failure(name, error)
            return None
        self._failed_in_a_row = 0
        self._verified.add(name)
        self._delete_superseded(protected)
        return name

    def pin(self, name: str, holder: str, expires_after_seconds: float | None = None) -> None:
        """Keep a checkpoint from deletion, from any process that sees the folder, until `unpin` or expiry.

        Args:
            name: The checkpoint.
            holder: Who needs it: letters, digits, `-` and `_`. The same holder may pin several.
            expires_after_seconds: For work that may die without unpinning, such as an evaluation; None: never.
        """
        until = None if expires_after_seconds is None else time.time() + expires_after_seconds
        write_bytes_atomic(self._pin(name, holder), json_to_bytes({"until": until}))

    def unpin(self, name: str, holder: str) -> None:
        """Take a pin back; nothing happens when it is gone already."""
        delete_tree(self._pin(name, holder))

    def pinned(self) -> set[str]:
        """Names of the checkpoints that somebody needs now."""
        folder = self.location.child(_PINS)
        names = set()
        for entry in list_names(folder):
            name = entry.partition(".")[0]
            if step_of_name(name) is None:
                continue
            try:
                until = json_from_bytes(read_bytes(folder.child(entry)), entry).get("until")
            except FileNotFoundError:
                continue
            except CheckpointDamagedError:
                until = None  # when in doubt, keep
            if until is None or until > time.time():
                names.add(name)
        return names

    def remove_orphans(self, older_than_seconds: float = 3600.0) -> int:
        """Delete what interrupted writes left behind; the writer calls it at the start of a run.

        Returns:
            Number of folders deleted.
        """
        removed = 0
        for name in list_names(self.location):
            entry = self.location.child(name)
            temporary = name.startswith(TEMPORARY_PREFIX)
            unfinished = step_of_name(name) is not None and MANIFEST_NAME not in list_names(entry)
            if (temporary or unfinished) and _age_seconds(entry) > older_than_seconds:
                delete_tree(entry)
                removed += 1
        if removed:
            logger.info("removed %d unfinished checkpoint(s) of interrupted writes", removed)
        return removed

    def _pin(self, name: str, holder: str) -> Location:
        if not holder or not holder.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"holder {holder!r} must consist of letters, digits, '-' and '_'")
        return self.location.child(_PINS).child(f"{name}.{holder}")

    def _readable_manifest(self, name: str) -> CheckpointManifest:
        manifest = read_manifest(self.location.child(name))
        refuse_newer(name, manifest.schema, manifest.product)
        return manifest

    def _is_sound(self, name: str, config_digest: str) -> bool:
        if name not in self.names():
            return False
        try:
            return verify_checkpoint(self.location.child(name)).config_digest == config_digest
        except CheckpointDamagedError:
            return False

    def _refuse_full_disk(self, size: int) -> None:
        if not self.location.is_local:
            return
        make_checkpoint_folder(self.location)
        free = shutil.disk_usage(self.location.local_path).free
        needed = int(self.config.free_space_factor * size)
        if free < needed:
            raise OSError(
                f"{free / 1e6:,.0f} MB free, {needed / 1e6:,.0f} MB wanted = {self.config.free_space_factor:g} x "
                f"{size / 1e6:,.0f} MB"
            )

    def _note_failure(self, name: str, error: OSError) -> None:
        self.failed += 1
        self._failed_in_a_row += 1
        limit = self.config.max_failures_in_a_row
        text = f"checkpoint {name} could not be written to {self.location.uri}: {error}"
        if self._failed_in_a_row >= limit:
            raise CheckpointFailedError(
                f"{text}; that is {limit} failures in a row, free some space and resume"
            ) from error
        logger.warning("%s; training goes on (failure %d of %d in a row)", text, self._failed_in_a_row, limit)

    def _delete_superseded(self, protected: Collection[str]) -> None:
        """Delete everything older than the newest `keep_last` verified checkpoints, except what somebody needs."""
        verified = 0
        try:
            kept = self.pinned() | set(protected)
            for name in reversed(self.names()):
                if verified >= self.config.keep_last:
                    if name not in kept:
                        remove_checkpoint(self.location, name)
                        self._verified.discard(name)
                elif self._verify_once(name):
                    verified += 1
        except OSError as error:
            logger.warning("old checkpoints in %s could not be deleted: %s", self.location.uri, error)

    def _verify_once(self, name: str) -> bool:
        if name not in self._verified:
            try:
                verify_checkpoint(self.location.child(name))
            except CheckpointDamagedError:
                return False
            self._verified.add(name)
        return True


def _age_seconds(entry: Location) -> float:
    """Time since the newest change in a folder (or of a file); 0 when the storage does not say."""
    if entry.is_local:
        return time.time() - entry.local_path.lstat().st_mtime
    times = [entry.filesystem.get_file_info(entry.child(name).path).mtime_ns for name in list_names(entry)]
    known = [moment for moment in times if moment is not None]
    return time.time() - max(known) / 1e9 if known else 0.0
