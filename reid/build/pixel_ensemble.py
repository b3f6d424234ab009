"""The pixel-space ensemble: a network of whole images and one of each plane's images, evaluated as one.

Source: PPT section 4.4.2 and Table 6. Everything here works with any way of embedding (in this process, on evaluation
workers), so that the figures do not depend on where they were computed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from reid.build.checkpoints import checkpoint_digest
from reid.build.data import open_data
from reid.build.evaluation import embed_rows, evaluation_trials, load_trained_model
from reid.build.plane_images import rows_in_source
from reid.config import Experiment
from reid.contracts import Embeddings
from reid.data.index import Index
from reid.data.occluded_queries import refuse_occluded
from reid.evaluation.ensemble import EnsembleEmbeddings, Member, join_members, rank_ensemble, select_images
from reid.evaluation.protocols import Trial, protocol_notes, rows_of_trials
from reid.evaluation.ranking import PositiveRanks
from reid.evaluation.results import RetrievalResult
from reid.evaluation.trials import make_result
from reid.storage import Location

GLOBAL: Final = "global"
"""The part that is the whole image."""
PART_WEIGHTS: Final[Mapping[str, float]] = {GLOBAL: 10.0, "front": 5.0, "back": 5.0, "side": 2.0, "top": 1.0}
"""The paper's weights of the networks' distances."""


@dataclass(frozen=True, kw_only=True)
class PartNetwork:
    """One trained network of the ensemble."""

    part: str
    """`GLOBAL`, or the plane that it sees."""
    weight: float
    experiment: Experiment
    """Its run; `data.shards` is the set of its images."""
    checkpoint: Location
    """Folder of the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class EnsembleEvaluation:
    """Figures of an ensemble and of its networks."""

    result: RetrievalResult
    """Of the ensemble, on all queries and the whole gallery."""
    alone: tuple[RetrievalResult, ...]
    """Of each network alone; of a plane's on those queries and gallery images that show it."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for the run folder."""
        return {**self.result.to_json(), "alone": [result.to_json() for result in self.alone]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> EnsembleEvaluation:
        """What `to_json` gave.

        Raises:
            ValueError: It is of another format.
        """
        return cls(
            result=RetrievalResult.from_json(stored),
            alone=tuple(RetrievalResult.from_json(result) for result in stored["alone"]),
        )


Embed = Callable[[Experiment, Location, NDArray[np.int64]], Embeddings]
"""(run, checkpoint folder, rows of the run's data set) -> their features."""


def embed_here(experiment: Experiment, checkpoint: Location, rows: NDArray[np.int64]) -> Embeddings:
    """Features of rows of a run's data set, in this process and on the CPU."""
    device = torch.device("cpu")
    with open_data(experiment) as shards:
        return embed_rows(experiment, load_trained_model(checkpoint, device), shards, rows, device)


def describe_networks(networks: Sequence[PartNetwork]) -> dict[str, Any]:
    """What the figures of an ensemble follow from, as plain data: other networks or settings, another evaluation."""
    whole = networks[0].experiment
    return {
        "weights": {network.part: network.weight for network in networks},
        "runs": {network.part: network.experiment.name for network in networks},
        "checkpoints": {network.part: checkpoint_digest(network.checkpoint) for network in networks},
        "evaluation": whole.evaluation.model_dump(mode="json"),
        "transform": whole.data.transform.model_dump(mode="json"),
    }


def evaluate_pixel_ensemble(
    networks: Sequence[PartNetwork], embed: Embed = embed_here, *, name: str = "", notes: Sequence[str] = ()
) -> EnsembleEvaluation:
    """The figures of an ensemble under the protocol of its global network.

    Args:
        networks: The global one first, then those of the planes that there are.
        embed: How images are embedded.
        name: Of the row in the table.
        notes: What else a reader must know.

    Raises:
        DataError: A data set cannot be used.
        ValueError: The first network is not the global one, or a plane's set was made of another data set.
    """
    began = time.monotonic()
    if not networks or networks[0].part != GLOBAL:
        raise ValueError(f"expected the global network first, got {[network.part for network in networks]}")
    whole = networks[0].experiment
    with open_data(whole) as shards:
        refuse_occluded(shards)
        index, manifest_hash = shards.index, shards.manifest.hash
        trials = evaluation_trials(whole, shards)
    rows = rows_of_trials(trials)
    embeddings: list[Embeddings | None] = [embed(whole, networks[0].checkpoint, rows)]
    embeddings += [_embed_planes(network, index, manifest_hash, rows, embed) for network in networks[1:]]
    ensemble = join_members(embeddings, [network.weight for network in networks])
    common = [*protocol_notes(trials, index)]
    if whole.evaluation.flip:
        common.append("features averaged over each image and its mirror image")

    def figures(part: str, hashes: Sequence[str], ranked: _Ranked, notes: Sequence[str]) -> RetrievalResult:
        return make_result(
            whole.evaluation.protocol, ranked.trials, ranked.ranks,
            checkpoint_hash=hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest(),
            manifest_hash=manifest_hash, name=f"{name} {part}".strip(), notes=[*common, *notes],
            trapezoid=whole.evaluation.trapezoid_ap, seconds=time.monotonic() - began,
        )  # fmt: skip

    hashes = [checkpoint_digest(network.checkpoint) for network in networks]
    budget = whole.evaluation.memory_budget_mb << 20
    alone = []
    for network, digest, member in zip(networks, hashes, ensemble.members, strict=True):
        ranked = _rank_alone(ensemble, member, trials, budget)
        if ranked is not None:
            among = [f"{network.part} alone: among the images that show it"] if network.part != GLOBAL else []
            alone.append(figures(network.part, [digest], ranked, among))
    ranked = _rank(ensemble, trials, budget)
    about = [_ensemble_note(networks, ensemble), *notes]
    return EnsembleEvaluation(result=figures("ensemble", hashes, ranked, about), alone=tuple(alone))


def _embed_planes(
    network: PartNetwork, source: Index, source_hash: str, wanted: NDArray[np.int64], embed: Embed
) -> Embeddings | None:
    """Features of the wanted images that show the network's plane, by their rows in the source's index."""
    with open_data(network.experiment) as shards:
        made_of = [addition.source_hash for addition in shards.manifest.additions[-1:]]
        if made_of != [source_hash]:
            raise ValueError(
                f"data.shards={network.experiment.data.shards} of the {network.part} network was not made of the set"
                f" {source_hash[:12]} that is evaluated: make the plane images of that one"
            )
        rows = rows_in_source(source, shards.index)
    chosen = np.flatnonzero(np.isin(rows, wanted)).astype(np.int64)
    if len(chosen) == 0:
        return None
    embeddings = embed(network.experiment, network.checkpoint, chosen)
    return replace(embeddings, samples=rows[embeddings.samples])


@dataclass(frozen=True)
class _Ranked:
    """Trials and the ranks of their positives."""

    trials: list[Trial]
    ranks: list[PositiveRanks]


def _rank(ensemble: EnsembleEmbeddings, trials: Sequence[Trial], memory_budget_bytes: int) -> _Ranked:
    ranks = [
        rank_ensemble(
            select_images(ensemble, trial.query_rows),
            select_images(ensemble, trial.gallery_rows),
            remove_junk=trial.remove_junk,
            memory_budget_bytes=memory_budget_bytes,
        )
        for trial in trials
    ]
    return _Ranked(list(trials), ranks)


def _rank_alone(
    ensemble: EnsembleEmbeddings, member: Member, trials: Sequence[Trial], memory_budget_bytes: int
) -> _Ranked | None:
    """The ranks of one network among the images that it knows; None where it leaves a trial nothing to find."""
    known = ensemble.samples[member.places >= 0]
    narrowed = [
        replace(
            trial,
            query_rows=trial.query_rows[np.isin(trial.query_rows, known)],
            gallery_rows=trial.gallery_rows[np.isin(trial.gallery_rows, known)],
        )
        for trial in trials
    ]
    if not all(len(trial.query_rows) and len(trial.gallery_rows) for trial in narrowed):
        return None
    ranked = _rank(replace(ensemble, members=(member,)), narrowed, memory_budget_bytes)
    return ranked if all(len(ranks.ranks) for ranks in ranked.ranks) else None


def _ensemble_note(networks: Sequence[PartNetwork], ensemble: EnsembleEmbeddings) -> str:
    """What the ensemble is, in words."""
    parts = ", ".join(
        f"{network.part} {network.weight:g}" + (f" (on {np.mean(member.places >= 0):.0%} of the images)" * (number > 0))
        for number, (network, member) in enumerate(zip(networks, ensemble.members, strict=True))
    )
    return (
        f"pixel-space ensemble (PPT, section 4.4.2): weighted mean of the cosine distances of {len(networks)} networks"
        f" over what both images show; weights {parts}"
    )
