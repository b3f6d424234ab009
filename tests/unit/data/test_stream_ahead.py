"""The stream across the end of an epoch: the next one is begun while nobody has asked for it."""

from __future__ import annotations

import multiprocessing
import threading
import time

import pytest

from tests.unit.data.memory_source import MemorySource, make_source
from tests.unit.data.small_stream import VEHICLES, everything, stream_of


@pytest.fixture
def source() -> MemorySource:
    return make_source(VEHICLES, masks=True)


@pytest.mark.parametrize("processes", [0, 2])
def test_batches_made_ahead_across_the_end_of_an_epoch_are_those_of_a_cold_start(
    source: MemorySource, processes: int
) -> None:
    cold = {epoch: [everything([batch]) for batch in stream_of(source).batches(epoch)] for epoch in range(3)}
    stream = stream_of(source, processes, num_epochs=3)
    actual = [[everything([batch]) for batch in stream.batches(epoch, start_step=epoch == 0)] for epoch in range(3)]
    assert actual == [cold[0][1:], cold[1], cold[2]]
    # another epoch, or the middle of one, than what was made ahead
    assert [everything([batch]) for batch in stream.batches(0)] == cold[0]
    assert [everything([batch]) for batch in stream.batches(1, start_step=2)] == cold[1][2:]
    assert [everything([batch]) for batch in stream.batches(1)] == cold[1]
    assert [everything([batch]) for batch in stream.batches(5)]  # after the run's end
    stream.close()


def test_the_next_epoch_is_begun_while_nobody_asks_for_it_and_not_after_the_last_one(source: MemorySource) -> None:
    stream = stream_of(source, num_epochs=2, prefetch_batches=2)
    for epoch, expected in ((0, 2), (1, 0)):
        whole = stream.steps_in_epoch(epoch)
        begun = stream.batches(epoch)
        for _ in range(whole):
            next(begun)
        begun.close()  # as the training loop does, without having asked for a batch after the last
        num_planned = 36 * sum(stream.steps_in_epoch(e) for e in range(epoch + 1))
        deadline = time.monotonic() + 30
        while len(source.reads) < num_planned + 36 * expected and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(source.reads) == num_planned + 36 * expected
    stream.close()


def at_work() -> list[object]:
    threads = [thread for thread in threading.enumerate() if thread.name == "batch-loader"]
    return [*threads, *multiprocessing.active_children()]


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_a_stream_that_ends_between_two_epochs_leaves_nothing_at_work(
    source: MemorySource, how: str, processes: int
) -> None:
    stream = stream_of(source, processes, num_epochs=9)
    list(stream.batches(0))
    assert at_work()
    if how == "closed":
        stream.close()
    else:
        del stream
    assert not at_work()


def test_an_error_in_a_batch_made_ahead_is_raised_where_that_batch_is_due(source: MemorySource) -> None:
    class BrokenLater(MemorySource):
        def read_image(self, row: int) -> bytes:
            if len(self.reads) == 36 * steps:
                raise OSError("disk gone")
            return super().read_image(row)

    steps = stream_of(source).steps_in_epoch(0)
    stream = stream_of(BrokenLater(source.index, source.files, source.masks), num_epochs=2)
    assert len(list(stream.batches(0))) == steps
    with pytest.raises(OSError, match="disk gone"):
        next(stream.batches(1))
    stream.close()
