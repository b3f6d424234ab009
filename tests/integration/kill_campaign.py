"""Kill a small training run at random moments, damage its newest checkpoint now and then, compare with a calm run.

    python -m tests.integration.kill_campaign --kills 50 --steps 3000

No Ray: one process at a time, float32, one thread. Each life of the run continues from the newest sound checkpoint,
writes a line to its log after each step and one to its ledger after each checkpoint that the loop acknowledged. Then
SIGKILL ends it, about every other time while it saves. Asserted in the end: no acknowledged checkpoint was lost (except
those damaged on purpose, each of which had to be found); the steps together are the calm run's steps, with the same
images and losses; the final weights, moments and averages are equal to the last bit.

Lives are forked from a process that has only imported torch, so a start takes a fraction of a second instead
of ten; `--fresh` starts a new interpreter for each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from typing import Any

STEPS_PER_EPOCH = 25
CHECKPOINT_EVERY = 5
KEEP_LAST = 3


@dataclass
class Figures:
    """What a campaign found out; everything that must be zero is asserted by `check`."""

    steps: int = 0
    kills: int = 0
    kills_while_saving: int = 0
    corruptions: int = 0
    corruptions_found: int = 0
    acknowledged_checkpoints: int = 0
    acknowledged_lost: int = 0
    steps_missing: int = 0
    steps_differing: int = 0
    most_steps_replayed: int = 0
    final_state_differs: bool = True
    median_start_seconds: float = 0.0
    total_seconds: float = 0.0

    def check(self) -> None:
        assert self.acknowledged_checkpoints > 0
        assert self.acknowledged_lost == 0, self
        assert self.corruptions_found == self.corruptions, self
        assert self.steps_missing == 0, self
        assert self.steps_differing == 0, self
        assert not self.final_state_differs, self


# ---- the run that is killed


def live(folder: Path, steps: int) -> None:
    """One life of the run: continue from the newest sound checkpoint, to the end if nobody kills it."""
    with open(folder / "stderr.txt", "ab") as stderr:
        os.dup2(stderr.fileno(), 2)
    import torch

    from reid.contracts import EpochResult, IntervalResult
    from reid.storage import open_location
    from reid.training.checkpoint import CheckpointConfig, CheckpointStore
    from reid.training.checkpoint_files import tensors_to_bytes
    from reid.training.continuation import refuse_other_run
    from reid.training.loop import LoopConfig, fit
    from reid.training.randomness import seed_everything
    from reid.training.schedule import ScheduleConfig
    from reid.training.snapshot import Position, RunDescription, restore_snapshot
    from reid.training.step import StepConfig
    from tests.unit.training.small_run import PlannedStream, build_step, everything

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    seed_everything(3)
    step = build_step(StepConfig(precision="float32", ema_decay=0.99))
    stream = PlannedStream(steps=STEPS_PER_EPOCH)
    run = RunDescription(fixed={"seed": 3, "steps": steps}, data_hash="pure-function")
    store = CheckpointStore(open_location(folder / "checkpoints"), CheckpointConfig(keep_last=KEEP_LAST))
    store.remove_orphans()
    start, name = Position(), store.newest()
    if name is not None:
        state = store.load(name)
        refuse_other_run(name, state.run, run)
        restore_snapshot(step, state)
        start = state.position
    config = LoopConfig(
        epochs=steps // STEPS_PER_EPOCH,
        log_every_steps=1,
        checkpoint_every_steps=CHECKPOINT_EVERY,
        hang_after_seconds=None,
    )
    results = fit(
        step, stream, config=config, schedule=ScheduleConfig(warmup_epochs=2), run=run, store=store, start=start
    )
    with open(folder / "log.jsonl", "a") as log, open(folder / "ledger.jsonl", "a") as ledger:

        def note(file: object, **entry: object) -> None:
            file.write(json.dumps(entry) + "\n")  # type: ignore[attr-defined]
            file.flush()  # type: ignore[attr-defined]

        note(ledger, started_from=start.step, rejected=dict(store.rejected))
        for result in results:
            match result:
                case IntervalResult():
                    note(log, step=result.step, samples=stream.consumed[-1], loss=result.metrics["loss"])
                case EpochResult():
                    note(ledger, acknowledged=result.checkpoint)
    (folder / "final.safetensors").write_bytes(tensors_to_bytes(everything(step)))


# ---- the campaign


def campaign(
    folder: Path, *, kills: int, steps: int, seed: int = 0, corrupt_every: int = 10, fresh: bool = False
) -> Figures:
    """Run calmly, run again under fire, compare.

    Args:
        folder: An empty folder for both runs.
        kills: Number of SIGKILLs.
        steps: Length of the run; a multiple of `STEPS_PER_EPOCH`.
        seed: Of the moments of death.
        corrupt_every: One bit of the newest checkpoint is flipped after every so many kills.
        fresh: Start a new interpreter for each life.
    """
    began = time.monotonic()
    figures = Figures(steps=steps)
    moments = random.Random(seed)
    calm, fire = folder / "calm", folder / "fire"
    calm.mkdir()
    fire.mkdir()
    _finish(_begin(calm, steps, fresh))
    starts = []
    damaged: set[str] = set()
    unnoticed = False
    while figures.kills < kills:
        began_life = time.monotonic()
        life, entry = _begin_life(fire, steps, fresh)
        starts.append(time.monotonic() - began_life)
        figures.corruptions_found += unnoticed and sum(entry["rejected"].values()) > 0
        # The remaining steps are shared out among the remaining lives, so that none reaches the end by itself.
        last = int(entry["started_from"])
        goal = last + moments.uniform(0.2, 0.9) * (steps - last) / (kills - figures.kills + 1)
        leftovers = _temporaries(fire)
        _wait_for_death(life, fire, goal, leftovers, moments, while_saving=moments.random() < 0.6)
        life.kill()
        life.join()
        figures.kills += 1
        figures.kills_while_saving += not _temporaries(fire) <= leftovers
        figures.acknowledged_lost += _acknowledged_lost(fire, damaged)
        unnoticed = figures.kills % corrupt_every == 0
        if unnoticed:
            damaged.add(_flip_a_bit(fire / "checkpoints", moments))
            figures.corruptions += 1
    life, entry = _begin_life(fire, steps, fresh)
    figures.corruptions_found += unnoticed and sum(entry["rejected"].values()) > 0
    _finish(life)

    figures.acknowledged_checkpoints = sum("acknowledged" in entry for entry in _lines(fire / "ledger.jsonl"))
    expected = {entry["step"]: entry for entry in _lines(calm / "log.jsonl")}
    assert sorted(expected) == list(range(1, steps + 1)), "the calm run itself is not whole"
    log = _lines(fire / "log.jsonl")
    figures.steps_missing = len(expected.keys() - {entry["step"] for entry in log})
    figures.steps_differing = sum(entry != expected[entry["step"]] for entry in log)
    replayed = [before["step"] - after["step"] + 1 for before, after in pairwise(log)]
    figures.most_steps_replayed = max(0, *replayed)
    figures.final_state_differs = (calm / "final.safetensors").read_bytes() != (fire / "final.safetensors").read_bytes()
    figures.median_start_seconds = round(median(starts), 2)
    figures.total_seconds = round(time.monotonic() - began, 1)
    return figures


def _begin(folder: Path, steps: int, fresh: bool) -> BaseProcess:
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn" if fresh else "forkserver")
    if not fresh:
        context.set_forkserver_preload(["torch", "torch._dynamo", "safetensors.torch", "pyarrow.fs", "pydantic"])
    life = context.Process(target=live, args=(folder, steps), daemon=True)
    life.start()
    return life


def _begin_life(folder: Path, steps: int, fresh: bool) -> tuple[BaseProcess, dict[str, Any]]:
    """A new life, and what it wrote into the ledger at its beginning."""
    before = len(_lines(folder / "ledger.jsonl"))
    life = _begin(folder, steps, fresh)
    while True:
        for entry in _lines(folder / "ledger.jsonl")[before:]:
            if "started_from" in entry:
                return life, entry
        assert life.is_alive(), f"a life ended before its first step:\n{(folder / 'stderr.txt').read_text()[-3000:]}"
        time.sleep(0.005)


def _finish(life: BaseProcess) -> None:
    life.join()
    assert life.exitcode == 0, f"a life that nobody killed ended with exit code {life.exitcode}"


def _wait_for_death(
    life: BaseProcess, folder: Path, goal: float, leftovers: set[str], moments: random.Random, *, while_saving: bool
) -> None:
    """Return at the moment to kill: some milliseconds after the goal, or in the middle of a save after it."""
    while _last_step(folder) < goal and life.is_alive():
        time.sleep(0.002)
    if while_saving:
        while _temporaries(folder) <= leftovers and life.is_alive():
            pass
        time.sleep(moments.uniform(0.0, 0.004))
    else:
        time.sleep(moments.uniform(0.0, 0.02))
    assert life.is_alive(), "the run ended by itself before it was killed: give it more steps"


def _temporaries(folder: Path) -> set[str]:
    checkpoints = folder / "checkpoints"
    return {name for name in os.listdir(checkpoints) if name.startswith(".tmp-")} if checkpoints.exists() else set()


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a log; the last one of a killed life may be cut, and the next one then continues it."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def _last_step(folder: Path) -> int:
    path = folder / "log.jsonl"
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 2000))
        tail = file.read().decode(errors="replace").splitlines()
    for line in reversed(tail):
        try:
            return int(json.loads(line)["step"])
        except (json.JSONDecodeError, KeyError):
            continue
    return 0


def _acknowledged_lost(folder: Path, damaged: set[str]) -> int:
    """1 when the newest acknowledged checkpoint is not there and sound; those damaged on purpose do not count."""
    from reid.storage import open_location
    from reid.training.checkpoint_files import CheckpointDamagedError, verify_checkpoint

    names = [entry["acknowledged"] for entry in _lines(folder / "ledger.jsonl") if entry.get("acknowledged")]
    if not names:
        return 0
    try:
        verify_checkpoint(open_location(folder / "checkpoints").child(max(names)))
    except CheckpointDamagedError:
        return int(max(names) not in damaged)
    damaged.discard(max(names))  # written anew since
    return 0


def _flip_a_bit(checkpoints: Path, moments: random.Random) -> str:
    newest = max(path for path in checkpoints.iterdir() if path.name.startswith("step-"))
    file = moments.choice(sorted(newest.iterdir()))
    content = bytearray(file.read_bytes())
    bit = moments.randrange(len(content) * 8)
    content[bit // 8] ^= 1 << (bit % 8)
    file.write_bytes(content)
    return newest.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="a new interpreter for each life")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-campaign-") as folder:
        figures = campaign(
            Path(folder), kills=options.kills, steps=options.steps, seed=options.seed, fresh=options.fresh
        )
    print(json.dumps(asdict(figures), indent=1))
    figures.check()


if __name__ == "__main__":
    main()
