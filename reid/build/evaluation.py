"""Checkpoint + shards -> retrieval figures: the pieces that evaluation workers share, and the whole in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from reid.build.checkpoints import EvaluatedCheckpoint, TrainedRun, load_trained_run
from reid.build.data import evaluation_parts, open_data, open_eval_stream, uses_stripes
from reid.build.results import Result
from reid.build.training import ReidModel, build_model
from reid.config import AnyExperiment, Experiment, KeypointExperiment, PANetExperiment, PMNetExperiment, ReidExperiment
from reid.contracts import Batch, Embeddings
from reid.data.occluded_queries import occlusion_of, refuse_clean_parts
from reid.data.occlusion import OcclusionConfig
from reid.data.shard_set import ShardSet
from reid.data.stored_parts import has_part_boxes
from reid.evaluation.examples import RankList, choose_queries, nearest_entries
from reid.evaluation.extract import Embed, extract_features, make_embeddings, select_embeddings
from reid.evaluation.protocols import Trial, check_positives, protocol_notes, protocol_trials, rows_of_trials
from reid.evaluation.ranking import PositiveRanks
from reid.evaluation.results import RetrievalResult
from reid.evaluation.trials import TrialRanks, check_reranking, evaluate_trials, make_result
from reid.models.pmnet import PMNet
from reid.progress import Progress, Stages, labelled, untold
from reid.storage import Location

IMAGES_EMBEDDED: Final = "images embedded"
"""Stage of an evaluation."""


@dataclass(frozen=True)
class TrainedModel:
    """A network with the weights of a checkpoint, in evaluation mode."""

    model: ReidModel
    experiment: ReidExperiment
    """The run that trained it."""
    checkpoint_hash: str
    """sha256 of the checkpoint's manifest, which holds the hashes of its files."""
    data_hash: str
    """Hash of the data set it was trained on."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of a checkpoint and queries worth looking at."""

    result: Result
    examples: tuple[dict[str, Any], ...]
    """Rank lists of easy, median and hard queries, or images of a detector, as plain data for the report."""
    settings: dict[str, Any]
    """The `evaluation` section it was made with: other settings make it another evaluation."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for the run folder."""
        return {**self.result.to_json(), "examples": list(self.examples), "settings": self.settings}


def load_trained_model(checkpoint: Location, device: torch.device) -> TrainedModel:
    """The network of a checkpoint folder: configuration, verified weights, evaluation mode.

    Raises:
        ValueError: The folder is no sound checkpoint, or not of a ReID model.
    """
    run: TrainedRun[ReidExperiment] = load_trained_run(checkpoint, Experiment, PANetExperiment, PMNetExperiment)
    # Every classifier, however many the model has, knows the same vehicles.
    classifier = next(weight for name, weight in run.weights.items() if name.endswith("classifier.weight"))
    model = build_model(run.experiment, len(classifier), pretrained=False)
    model.load_state_dict(run.weights)
    model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return TrainedModel(
        model=model, experiment=run.experiment, checkpoint_hash=run.checkpoint_hash, data_hash=run.data_hash
    )


def embed_rows(
    experiment: ReidExperiment,
    trained: TrainedModel,
    shards: ShardSet,
    rows: NDArray[np.int64],
    device: torch.device,
    occlusion: OcclusionConfig | None = None,
    stages: Stages = untold,
) -> Embeddings:
    """Features of the given rows of the index, occluded where that is asked for."""
    evaluation, model = experiment.evaluation, trained.model
    embed: Embed = model.embed
    if isinstance(model, PMNet) and evaluation.retrieval_weights is not None:
        embed = partial(model.embed, weights=evaluation.retrieval_weights)
    stream = open_eval_stream(experiment, shards, rows, device, occlusion)
    try:
        features, samples = extract_features(
            embed,
            counted(stream, len(rows), stages(IMAGES_EMBEDDED)),
            device,
            precision=evaluation.precision,
            flip=evaluation.flip,
        )
    finally:
        stream.close()
    index = shards.index
    return make_embeddings(features, samples, index.identity_codes(), index.camera_codes())


def counted(batches: Iterable[Batch], num_images: int, progress: Progress) -> Iterator[Batch]:
    """The batches, told of when they have been worked on."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.samples)
        progress(done, num_images)


def evaluation_trials(experiment: ReidExperiment, shards: ShardSet) -> list[Trial]:
    """Who queries whom under the experiment's protocol.

    Raises:
        ValueError: The data set has no images for it, no query has a positive, or too few for the re-ranking.
        DataError: Retrieval takes parts, and those in the shards are not of the images that are there.
    """
    evaluation = experiment.evaluation
    if evaluation_parts(experiment):
        refuse_clean_parts(shards, uses_stripes=uses_stripes(experiment))
    trials = protocol_trials(evaluation.protocol, shards.index, evaluation.trials)
    check_positives(evaluation.protocol, trials, shards.index.identity_codes(), shards.index.camera_codes())
    check_reranking(evaluation.rerank, trials)
    return trials


def check_evaluation(experiment: AnyExperiment, shards: ShardSet) -> None:
    """Refuses a data set on which the evaluations of a run would fail.

    Raises:
        ValueError, DataError: As `evaluation_trials` (a keypoint detector's images: see `annotated_rows`).
    """
    if not isinstance(experiment, KeypointExperiment):
        evaluation_trials(experiment, shards)


def conclude(
    experiment: ReidExperiment,
    trained: EvaluatedCheckpoint,
    shards: ShardSet,
    trials: Sequence[Trial],
    ranks: Sequence[TrialRanks],
    embeddings: Embeddings,
    *,
    name: str,
    seconds: float,
) -> Evaluation:
    """Figures and examples from the ranks of all trials."""
    evaluation = experiment.evaluation
    notes = [*protocol_notes(list(trials), shards.index), *_part_notes(experiment, shards, list(trials))]
    if (occlusion := occlusion_of(shards.manifest)) is not None:
        notes.append(f"the data set holds occluded queries, seed {occlusion.seed}")
    if evaluation.flip:
        notes.append("features averaged over each image and its mirror image")
    if trained.data_hash != shards.manifest.hash:
        notes.append(f"trained on another data set (manifest {trained.data_hash[:12]})")
    if evaluation.rerank is not None and evaluation.protocol.startswith("vehicleid"):
        notes.append("re-ranking looks for several positives of a query, and here is one")

    def result_of(ranks: Sequence[PositiveRanks], post_processing: str = "none") -> RetrievalResult:
        return make_result(
            evaluation.protocol if occlusion is None else occlusion.label(evaluation.protocol), trials, ranks,
            checkpoint_hash=trained.checkpoint_hash, manifest_hash=shards.manifest.hash, name=name,
            post_processing=post_processing, notes=notes, trapezoid=evaluation.trapezoid_ap, seconds=seconds,
        )  # fmt: skip

    result = result_of([trial.base for trial in ranks])
    if evaluation.rerank is not None:
        after = [trial.reranked for trial in ranks if trial.reranked is not None]
        # What both have in common is said once, by the base result.
        reranked = replace(result_of(after, evaluation.rerank.describe()), notes=(), drawn_galleries={})
        result = replace(result, reranked=reranked)
    return Evaluation(
        result=result,
        examples=tuple(_examples(experiment, trials[0], ranks[0].base, embeddings)),
        settings=evaluation.model_dump(mode="json"),
    )


def _part_notes(experiment: ReidExperiment, shards: ShardSet, trials: list[Trial]) -> list[str]:
    """What a reader must know about parts at test time."""
    if not evaluation_parts(experiment):
        return []
    rows = rows_of_trials(trials)
    notes = ["retrieval with partial tasks (h joins f_g and g)"]
    uses_stripes = isinstance(experiment, PMNetExperiment) and experiment.model.uses_stripes
    without = int(np.count_nonzero(~has_part_boxes(shards.index, rows)))
    if uses_stripes:
        notes.append("parts are uniform stripes")
    elif without:
        notes.append(f"{without:,} of {len(rows):,} images have no part boxes: uniform stripes")
    if without_mask := int(np.count_nonzero(shards.index.mask_size[rows] < 0)):
        notes.append(f"{without_mask:,} of {len(rows):,} images have no mask: all of the image counts as vehicle")
    return notes


def evaluate_here(experiment: ReidExperiment, checkpoint: Location, *, name: str = "") -> Evaluation:
    """The whole evaluation in this process and on the CPU; evaluation workers give the same figures."""
    return evaluate_all_here([experiment], checkpoint, name=name)[0]


def evaluate_all_here(
    experiments: Sequence[ReidExperiment], checkpoint: Location, *, name: str = "", stages: Stages = untold
) -> list[Evaluation]:
    """Evaluations of one checkpoint on one data set, as `evaluate_here`; see `evaluate_all`."""
    device = torch.device("cpu")
    with open_data(experiments[0]) as shards:
        trained = load_trained_model(checkpoint, device)
        return evaluate_all(
            experiments,
            trained,
            shards,
            embed=lambda rows: embed_rows(experiments[0], trained, shards, rows, device, stages=stages),
            rank=lambda experiment, trials, embeddings: evaluate_trials(
                embeddings,
                trials,
                rerank_config=experiment.evaluation.rerank,
                memory_budget_bytes=experiment.evaluation.memory_budget_mb << 20,
                stages=labelled(stages, experiment.evaluation.protocol),
            ),
            name=name,
        )


def evaluate_all(
    experiments: Sequence[ReidExperiment],
    trained: EvaluatedCheckpoint,
    shards: ShardSet,
    *,
    embed: Callable[[NDArray[np.int64]], Embeddings],
    rank: Callable[[ReidExperiment, Sequence[Trial], Embeddings], Sequence[TrialRanks]],
    name: str,
) -> list[Evaluation]:
    """Evaluations of one checkpoint on one data set, wherever embedding and ranking take place.

    An image that several need is embedded once; the seconds of each result are those of embedding and of its ranking.

    Args:
        experiments: They differ in protocol and re-ranking only.
        trained: The checkpoint.
        shards: The data set.
        embed: Features of rows of the index.
        rank: Ranks of an experiment's trials.
        name: Of the checkpoint, for tables.
    """
    trials = [evaluation_trials(experiment, shards) for experiment in experiments]
    began = time.monotonic()
    embeddings = embed(np.unique(np.concatenate([rows_of_trials(some) for some in trials])))
    embedding_seconds = time.monotonic() - began
    found = []
    for experiment, some in zip(experiments, trials, strict=True):
        began = time.monotonic() - embedding_seconds
        ranks = rank(experiment, some, embeddings)
        seconds = time.monotonic() - began
        found.append(conclude(experiment, trained, shards, some, ranks, embeddings, name=name, seconds=seconds))
    return found


def _examples(
    experiment: ReidExperiment, trial: Trial, ranks: PositiveRanks, embeddings: Embeddings
) -> list[dict[str, Any]]:
    evaluation = experiment.evaluation
    query = select_embeddings(embeddings, trial.query_rows)
    gallery = select_embeddings(embeddings, trial.gallery_rows)
    chosen = choose_queries(ranks, query.vehicle_ids, evaluation.num_rank_lists)
    lists = nearest_entries(
        query, gallery, [position for _, position, _ in chosen], evaluation.rank_list_length,
        remove_junk=trial.remove_junk,
    )  # fmt: skip
    return [
        _example(difficulty, precision, ranked)
        for (difficulty, _, precision), ranked in zip(chosen, lists, strict=True)
    ]


def _example(difficulty: str, precision: float, ranked: RankList) -> dict[str, Any]:
    return {
        "difficulty": difficulty,
        "average_precision": precision,
        "query": int(ranked.query_sample),
        "gallery": ranked.gallery_samples.tolist(),
        "distances": [float(distance) for distance in ranked.distances],
        "is_positive": ranked.is_positive.tolist(),
    }
