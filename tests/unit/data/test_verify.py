"""Verification finds everything that can be wrong with a shard set, and nothing in a whole one."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reid.data.manifest import INDEX_NAME, MANIFEST_NAME, manifest_from_json, manifest_to_json
from reid.data.shard_set import open_shards
from reid.data.shards import pack_shards
from reid.data.tar import walk_tar
from reid.data.verify import VerifyReport, verify_shards
from tests.unit.data.raw_images import SMALL, draw_records, encoded_noise

SHARD = "train-000000.tar"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pack_shards(draw_records(tmp_path / "raw", masks=True), tmp_path / "set", SMALL)
    return tmp_path / "set"


def vouch_for(folder: Path, name: str = SHARD) -> None:
    """Makes the manifest agree with a shard's new bytes, so that only the shard's structure can give it away."""
    entry = folder / MANIFEST_NAME
    manifest = manifest_from_json(entry.read_bytes(), "manifest")
    data = (folder / name).read_bytes()
    shards = tuple(
        shard.model_copy(update={"size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        if shard.name == name
        else shard
        for shard in manifest.shards
    )
    entry.write_bytes(manifest_to_json(manifest.model_copy(update={"shards": shards}).sealed()))


def add_member(folder: Path, member: tarfile.TarInfo, data: bytes = b"", name: str = SHARD) -> None:
    member.size = len(data)
    with tarfile.open(folder / name, "a") as tar:
        tar.addfile(member, io.BytesIO(data))
    vouch_for(folder, name)


def rewrite(folder: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> None:
    """Writes the shard anew from changed members."""
    with tarfile.open(folder / SHARD) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(folder / SHARD, "w") as tar:
        for name, data in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    vouch_for(folder)


def kinds(report: VerifyReport) -> set[str]:
    return set(report.counts)


def test_a_whole_set_passes_with_its_counts(folder: Path) -> None:
    report = verify_shards(folder, decode=True)
    assert report.problems == ()
    assert report.passed
    assert (report.num_shards, report.num_images) == (5, 15)
    assert report.num_bytes == sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert verify_shards(open_shards(folder)).passed


def test_one_flipped_bit_at_100_random_places_is_found_100_times(folder: Path) -> None:
    files = sorted(folder.iterdir())
    sizes = np.array([path.stat().st_size for path in files])
    generator = np.random.default_rng(0)
    found = 0
    for number in range(100):
        # The first few flips visit every file, the others fall where the bytes are.
        path = files[number] if number < len(files) else files[int(generator.choice(len(files), p=sizes / sizes.sum()))]
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[int(generator.integers(len(damaged)))] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        report = verify_shards(folder)
        found += any(problem.file == path.name for problem in report.problems)
        path.write_bytes(whole)
    assert found == 100
    assert verify_shards(folder).passed


@pytest.mark.parametrize("keep", [0, 1, 511, 512, 1000, 5000, -1, -512, -1024, -1536])
def test_a_cut_shard_is_found_even_by_its_structure_alone(folder: Path, keep: int) -> None:
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[:keep])
    assert {"wrong_size", "wrong_hash", "bad_tar"} <= kinds(verify_shards(folder))
    vouch_for(folder)
    report = verify_shards(folder)
    assert "bad_tar" in kinds(report)
    assert not {"wrong_size", "wrong_hash"} & kinds(report)


@pytest.mark.parametrize("name", [SHARD, INDEX_NAME, MANIFEST_NAME])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (problem,) = verify_shards(folder).problems
    assert (problem.file, problem.kind) == (name, "missing_file")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.witness,)


@pytest.mark.parametrize(
    "ending", ["pyd", "pkl", "pickle", "pth", "pt", "npy", "PKL", "py", "so", "jpg.pkl", "mask.pth"]
)
def test_members_that_readers_would_execute_are_found_and_not_executed(
    folder: Path, tmp_path: Path, ending: str
) -> None:
    witness = tmp_path / "witness"
    pickle.loads(pickle.dumps(Payload(witness)))
    assert witness.exists(), "the payload works"
    witness.unlink()
    add_member(folder, tarfile.TarInfo(f"evil.{ending}"), pickle.dumps(Payload(witness)))
    report = verify_shards(folder, decode=True)
    assert report.counts == {"unsafe_member": 1}
    assert f"evil.{ending}" in str(report.problems[0])
    assert not witness.exists()


@pytest.mark.parametrize("name", ["/etc/passwd.jpg", "../outside.jpg", "folder/a.jpg", "a\\b.jpg"])
def test_members_with_a_path_are_unsafe(folder: Path, name: str) -> None:
    add_member(folder, tarfile.TarInfo(name), encoded_noise(0))
    assert verify_shards(folder).counts == {"unsafe_member": 1}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_folders_and_devices_are_unsafe(folder: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("a.jpg")
    member.type, member.linkname = kind, "/etc/passwd"
    add_member(folder, member)
    assert verify_shards(folder).counts == {"unsafe_member": 1}


@pytest.mark.parametrize("name", ["noending", ".jpg", "ä.jpg", "a b.jpg", "k" * 129 + ".jpg"])
def test_names_that_readers_drop_or_split_are_found(folder: Path, name: str) -> None:
    add_member(folder, tarfile.TarInfo(name), encoded_noise(0))
    assert not {"wrong_hash", "wrong_size", "bad_tar"} & kinds(verify_shards(folder))
    assert {"bad_name", "unsafe_member"} & kinds(verify_shards(folder))


def test_a_member_that_is_there_twice_is_found_next_to_the_first_and_far_from_it(folder: Path) -> None:
    rewrite(folder, lambda members: [members[0], *members])
    assert "duplicate_key" in kinds(verify_shards(folder))


def test_a_sample_whose_members_are_apart_is_found(folder: Path) -> None:
    rewrite(folder, lambda members: [*members[1:], members[0]])
    report = verify_shards(folder)
    assert {"duplicate_key", "bad_offset"} <= kinds(report)


def test_a_key_that_another_shard_has_too_is_found(folder: Path) -> None:
    with tarfile.open(folder / "train-000001.tar") as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith(".jpg"))
        name, data = member.name, tar.extractfile(member).read()  # type: ignore[union-attr]
    rewrite(folder, lambda members: [*members, (name, data), (name.replace(".jpg", ".json"), b"{}")])
    report = verify_shards(folder)
    assert report.counts == {"wrong_count": 2}
    assert any(f"image {name.removesuffix('.jpg')!r} is not in the index" in str(p) for p in report.problems)


@pytest.mark.parametrize("ending", [".json", ".jpg"])
def test_a_sample_with_a_missing_half_is_found(folder: Path, ending: str) -> None:
    gone: list[str] = []

    def drop_first(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        gone.append(next(name for name, _ in members if name.endswith(ending)))
        return [member for member in members if member[0] != gone[0]]

    rewrite(folder, drop_first)
    report = verify_shards(folder)
    assert "missing_part" in kinds(report)
    assert any(gone[0].partition(".")[0] in problem.detail for problem in report.problems)


@pytest.mark.parametrize("data", [b"[]", b"{", b"\xff", b'{"vehicle_id": "9999"}', b"{}", b"[" * 100_000])
def test_metadata_that_does_not_belong_to_the_image_is_found(folder: Path, data: bytes) -> None:
    rewrite(folder, lambda members: [(name, data if name.endswith(".json") else old) for name, old in members])
    assert "bad_metadata" in kinds(verify_shards(folder))


def test_an_image_that_does_not_decode_is_found_when_asked_for(folder: Path) -> None:
    rewrite(folder, lambda members: [(n, b"x" * len(d) if n.endswith(".jpg") else d) for n, d in members])
    assert "bad_image" not in kinds(verify_shards(folder))
    assert "bad_image" in kinds(verify_shards(folder, decode=True))


def test_two_shards_that_traded_places_are_found(folder: Path) -> None:
    one, other = folder / "train-000000.tar", folder / "train-000001.tar"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert "wrong_hash" in kinds(verify_shards(folder))
    vouch_for(folder, one.name)
    vouch_for(folder, other.name)
    assert "wrong_count" in kinds(verify_shards(folder))


def test_counts_that_do_not_add_up_are_found(folder: Path) -> None:
    entry = folder / MANIFEST_NAME
    manifest = manifest_from_json(entry.read_bytes(), "manifest")
    entry.write_bytes(manifest_to_json(manifest.model_copy(update={"source_counts": {"train": 99}}).sealed()))
    report = verify_shards(folder)
    assert report.counts == {"wrong_count": 1}
    assert "99 source images are not 15 packed + 0 skipped" in report.problems[0].detail


def test_walking_a_tar_agrees_with_tarfile(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "names.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for length in (1, 99, 100, 101, 137, 600):
            info = tarfile.TarInfo("n" * length)
            info.size = length
            tar.addfile(info, io.BytesIO(b"x" * length))
    for tar_path in [path, *folder.glob("*.tar")]:
        with tarfile.open(tar_path) as tar:
            expected = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
        actual = [(m.name, m.offset, m.size) for m in walk_tar(tar_path.read_bytes())]
        assert actual == expected
        assert expected


def test_bytes_behind_the_end_of_the_archive_are_found(folder: Path) -> None:
    with open(folder / SHARD, "ab") as file:
        file.write(b"appended")
    vouch_for(folder)
    assert kinds(verify_shards(folder)) == {"bad_tar"}
