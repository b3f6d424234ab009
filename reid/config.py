"""The configuration of a run: the folders' own settings composed into one experiment. The defaults are the paper's.

What is trained decides the kind: `Experiment` (PPT and its baseline), `PMNetExperiment` (PMANet's second network),
`PANetExperiment` (its part locator) or `KeypointExperiment` (the keypoint detector); `task` tells them apart in files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from reid.contracts import Settings, flatten
from reid.data.cache import CacheConfig
from reid.data.plan import ImagePlanConfig, PlanConfig
from reid.data.stream import LoaderConfig
from reid.data.transforms import TransformConfig
from reid.evaluation.keypoint_results import KeypointEvaluationConfig
from reid.evaluation.protocols import EvaluationConfig
from reid.losses.heat_maps import HeatMapLossConfig
from reid.losses.panet import PANetLossConfig
from reid.losses.pmnet import PMNetLossConfig
from reid.losses.ppt import PPTLossConfig
from reid.models.hourglass import HourglassConfig
from reid.models.panet import PANetConfig
from reid.models.pmnet import PMNetConfig
from reid.models.ppt import PPTConfig
from reid.settings_file import read_file, read_settings
from reid.training.checkpoint import CheckpointConfig
from reid.training.loop import LoopConfig
from reid.training.optim import OptimizerConfig
from reid.training.schedule import ScheduleConfig
from reid.training.step import StepConfig


class PackedDataConfig(Settings):
    """What is read, and how images are changed on the way."""

    shards: str = "data/shards"
    """Folder or URL (s3://, gs://, http(s)://) of a packed data set: manifest.json, index.parquet and tars."""
    verify: Literal["sizes", "full"] = "sizes"
    """Check before training: file sizes, or every shard's sha256."""
    cache: CacheConfig = CacheConfig()
    plan: PlanConfig | ImagePlanConfig
    transform: TransformConfig = TransformConfig()
    loader: LoaderConfig = LoaderConfig()


class DataConfig(PackedDataConfig):
    """The images of identities, in batches of P x K."""

    plan: PlanConfig = PlanConfig()


class KeypointDataConfig(PackedDataConfig):
    """What a detector reads: the annotated images of the training split, in plain shuffled batches."""

    plan: ImagePlanConfig = ImagePlanConfig()
    held_out_share: float = Field(0.05, ge=0.0, le=0.5)
    """Share of the training identities that are not trained on: visibility thresholds are fitted on them."""


class TrainingConfig(Settings):
    """How long, how fast and how exactly the network is trained."""

    loop: LoopConfig = LoopConfig()
    step: StepConfig = StepConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()


class ClusterConfig(Settings):
    """The machines a run asks Ray for. Nothing here changes what is learnt."""

    num_workers: int = Field(1, ge=1)
    """Training processes; identities_per_batch must be divisible by it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU a worker when the cluster has that many, else the CPU."""
    cpus_per_worker: int = Field(1, ge=1)
    """CPUs reserved for each training worker; also its thread count on the CPU."""
    max_failures: int = Field(3, ge=0)
    """Worker groups that may die before the run gives up (it can still be resumed then)."""
    evaluation_workers: int = Field(1, ge=1)
    """Slices in which a checkpoint's images are embedded and its queries ranked."""
    cpus_per_evaluation_worker: float = Field(1.0, ge=0.0)
    """CPUs reserved for each evaluation worker; 0 lets them share the training workers' CPUs."""
    gpus_per_evaluation_worker: float = Field(0.0, ge=0.0, le=1.0)
    """GPUs reserved for each evaluation worker, of those that do not train: a training worker has its GPU to itself. A
    fraction lets several evaluation workers share one. 0: embed on the CPU."""
    evaluation_timeout_seconds: float = Field(3600.0, gt=0)
    """An evaluation that runs for longer, embedding and ranking together, is given up; training is not touched. Only
    time in which one of its tasks runs counts, not the wait until training leaves resources. Of occluded queries each
    severity, and of the pixel-space ensemble each network, may take as long; several protocols of one evaluation
    together take so many times as long."""


class MetricsConfig(Settings):
    """Where figures go besides the log and the run's `metrics.jsonl`."""

    tensorboard: bool = True
    """Write TensorBoard events into the run folder."""
    prometheus_port: int = Field(0, ge=0, le=65535)
    """Port of the driver's Prometheus endpoint for figures that must outlive workers (evaluation, progress); when it
    is in use, the next free one, which the log names. 0: off."""
    prometheus_host: str = "127.0.0.1"
    """Address that endpoint binds to; anything but loopback is your explicit choice."""


RunName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="The run's folder below `runs`; resuming means the same name.",
    ),
]


class Run(Settings):
    """What every run has; each kind says which data, model, loss and evaluation are its own."""

    recipe: ClassVar[Mapping[str, Any]] = {}
    """Where the defaults of this kind are others than those of the sections."""

    task: str
    """What is trained."""
    name: RunName
    runs: str = "runs"
    """Folder or URL that holds the runs."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Everything random follows from it."""
    data: PackedDataConfig
    model: Settings
    loss: Settings
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig | KeypointEvaluationConfig
    cluster: ClusterConfig = ClusterConfig()
    metrics: MetricsConfig = MetricsConfig()

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_recipe(cls, values: Any) -> Any:
        return _merged(cls.recipe, values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _evaluations_need_checkpoints(self) -> Self:
        saved, evaluated = self.training.loop.checkpoint_every_epochs, self.evaluation.every_epochs
        if evaluated % saved:
            raise ValueError(
                f"only checkpoints can be evaluated, but evaluation.every_epochs {evaluated} is not a multiple of"
                f" training.loop.checkpoint_every_epochs {saved}"
            )
        return self


class RetrievalRun(Run):
    """What runs have that are evaluated by who is found."""

    data: DataConfig = DataConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


class Experiment(RetrievalRun):
    """A run of PPT, whole."""

    task: Literal["ppt"] = "ppt"
    """What is trained."""
    name: RunName = "ppt"
    model: PPTConfig = PPTConfig()
    loss: PPTLossConfig = PPTLossConfig()

    @model_validator(mode="after")
    def _has_one_feature(self) -> Self:
        _refuse_options_of_pmanet(self.evaluation)
        return self

    @model_validator(mode="after")
    def _masks_teach_nothing(self) -> Self:
        if self.data.loader.masks:
            raise ValueError("data.loader.masks is true, but PPT and its baseline learn nothing from masks: remove it")
        return self


PANET_RECIPE: dict[str, Any] = {
    "data": {"loader": {"masks": True}, "transform": {"erasing_probability": 0.0, "flip_probability": 0.5}},
    "training": {
        "loop": {"epochs": 100},
        "optimizer": {"learning_rate": 1e-4},
        "schedule": {"warmup_epochs": 0.0, "milestones": ()},
    },
}
"""Where PANet's defaults are others than PPT's in settings that both have: METHOD 2.1 and PMANet section IV-B (Adam
1e-4, 100 epochs, batch 64 = 16 x 4). The paper names no schedule for PANet: the rate is constant. Erasing is off: a
mask says nothing about what was erased. Flips are those of PMANet (section IV-B)."""


class PANetExperiment(RetrievalRun):
    """A run of PANet, whole: what locates the parts that PMANet learns from."""

    recipe: ClassVar[Mapping[str, Any]] = PANET_RECIPE

    task: Literal["panet"] = "panet"
    """What is trained."""
    name: RunName = "panet"
    model: PANetConfig = PANetConfig()
    loss: PANetLossConfig = PANetLossConfig()

    @model_validator(mode="after")
    def _has_one_feature(self) -> Self:
        _refuse_options_of_pmanet(self.evaluation)
        return self

    @model_validator(mode="after")
    def _learns_from_masks(self) -> Self:
        if not self.data.loader.masks:
            raise ValueError("data.loader.masks is false, but PANet learns from masks: remove it")
        return self


PMNET_RECIPE: dict[str, Any] = {
    "data": {
        "plan": {"identities_per_batch": 4, "images_per_identity": 8},
        "transform": {"flip_probability": 0.5, "occlusion_probability": 0.3},
    },
    "training": {
        "loop": {"epochs": 120},
        "optimizer": {"learning_rate": 1.5e-4},
        "schedule": {"milestones": (40.0, 70.0, 100.0), "floor": None},
    },
}
"""Where PMNet's defaults are others than PPT's in settings that both have: METHOD 2.2 and PMANet section IV-B (batch 32
= 4 x 8, Adam 1.5e-4 with warm-up, flips, occlusion); epochs and milestones, which the paper does not give, are those of
the baseline that it builds on, down to 1.5e-7."""


class PMNetExperiment(RetrievalRun):
    """A run of PMNet, whole: the network of PMANet that retrieves, on shards with masks and part boxes."""

    recipe: ClassVar[Mapping[str, Any]] = PMNET_RECIPE

    task: Literal["pmanet"] = "pmanet"
    """What is trained."""
    name: RunName = "pmanet"
    model: PMNetConfig = PMNetConfig()
    loss: PMNetLossConfig = PMNetLossConfig()

    @model_validator(mode="after")
    def _model_and_loss_agree(self) -> Self:
        learned, epoch = self.model.learned_loss_weights, self.loss.uncertainty_from_epoch
        if learned != (epoch is not None):
            raise ValueError(
                f"model.learned_loss_weights is {str(learned).lower()}, but loss.uncertainty_from_epoch is"
                f" {'null' if epoch is None else epoch}: weights that are learned need an epoch to start from; set"
                " true and an epoch, or false and null"
            )
        return self

    @model_validator(mode="after")
    def _partial_tasks_are_there_at_test_time(self) -> Self:
        tasks = None if self.model.part_head is None else self.model.part_head.tasks
        if self.evaluation.partial_tasks and tasks in (None, "main"):
            raise ValueError("evaluation.partial_tasks is true, but the model has none: remove it")
        if tasks == "partial" and self.model.global_head is None and not self.evaluation.partial_tasks:
            raise ValueError(
                "the model has nothing but partial tasks, so retrieval needs them: set evaluation.partial_tasks to true"
            )
        return self

    @model_validator(mode="after")
    def _learning_of_weights_begins(self) -> Self:
        epoch, epochs = self.loss.uncertainty_from_epoch, self.training.loop.epochs
        if epoch is not None and epoch >= epochs:
            raise ValueError(
                f"loss.uncertainty_from_epoch is {epoch}, but the run ends after {epochs} epochs, so no weight is ever"
                " learned: set an earlier epoch, or null and model.learned_loss_weights to false"
            )
        return self

    @model_validator(mode="after")
    def _retrieval_has_weights(self) -> Self:
        if not self.model.learned_loss_weights or self.evaluation.retrieval_weights is not None:
            return self
        tasks = None if self.model.part_head is None else self.model.part_head.tasks
        retrieved = {
            "global": self.model.global_head is not None,
            "main": tasks in ("main", "main_and_partial"),
            "partial": tasks is not None and self.evaluation.partial_tasks,
        }
        without = [name for name, used in retrieved.items() if used and name not in self.loss.identity_losses]
        if without and any(name in self.loss.identity_losses for name in retrieved if retrieved[name]):
            raise ValueError(
                f"loss.identity_losses leaves out {', '.join(without)}, so the weight of that distance in retrieval is"
                " not learned as the others are: set evaluation.retrieval_weights"
            )
        return self

    @model_validator(mode="after")
    def _masks_come_with_the_parts(self) -> Self:
        if self.data.loader.masks:
            raise ValueError("data.loader.masks is true, but PMANet's masks come with its parts: remove it")
        return self


KEYPOINT_RECIPE: dict[str, Any] = {
    "data": {
        "transform": {
            "padding": 0,
            "warp": {},
            "flip_probability": 0.5,
            "brightness": 0.4,
            "contrast": 0.4,
            "saturation": 0.4,
            "erasing_probability": 0.0,
        }
    },
    "training": {
        "loop": {"epochs": 6},
        "optimizer": {"name": "rmsprop", "learning_rate": 2.5e-4, "weight_decay": 0.0},
        "schedule": {"warmup_epochs": 0.0},
    },
}
"""Where the detector's defaults are others than PPT's in settings that both have: PPT section 4.2 (RMSprop 2.5e-4, 6
epochs) and the usual augmentation of Newell et al. 2016; flip and colour are this project's (METHOD 1.6)."""


class KeypointExperiment(Run):
    """A run of the keypoint detector, whole."""

    recipe: ClassVar[Mapping[str, Any]] = KEYPOINT_RECIPE

    task: Literal["keypoints"] = "keypoints"
    """What is trained."""
    name: RunName = "keypoints"
    data: KeypointDataConfig = KeypointDataConfig()
    model: HourglassConfig = HourglassConfig()
    loss: HeatMapLossConfig = HeatMapLossConfig()
    evaluation: KeypointEvaluationConfig = KeypointEvaluationConfig()


ReidExperiment = Experiment | PANetExperiment | PMNetExperiment
"""A run whose model gives retrieval features: trained on identities, evaluated by who is found."""
AnyExperiment = ReidExperiment | KeypointExperiment
"""A run of any kind. Whoever needs to know which matches on it; most code does not."""
SomeExperiment = TypeVar("SomeExperiment", bound=AnyExperiment)


def retrievals_of(experiments: Sequence[AnyExperiment]) -> list[ReidExperiment]:
    """Those that are evaluated by who is found: all but a keypoint detector's."""
    return [experiment for experiment in experiments if not isinstance(experiment, KeypointExperiment)]


def experiment_of(values: Mapping[str, Any]) -> AnyExperiment:
    """The experiment that `model_dump` made plain data of; without a `task` it is one of PPT, as older ones are.

    Settings that checkpoints of older versions still carry and nothing reads any more (`RETIRED_KEYS`) are left out.

    Raises:
        ValueError: Settings that are none.
    """
    for key in RETIRED_KEYS:
        values = _without(values, key.split("."))
    match values.get("task", "ppt"):
        case "keypoints":
            return KeypointExperiment.model_validate(values)
        case "panet":
            return PANetExperiment.model_validate(values)
        case "pmanet":
            return PMNetExperiment.model_validate(values)
        case _:
            return Experiment.model_validate(values)


def _without(values: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    """The nested values without the one at `path`, if it is there."""
    name, *below = path
    if name not in values:
        return values
    rest = {key: value for key, value in values.items() if key != name}
    return {**rest, name: _without(values[name], below)} if below else rest


def _merged(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` over `base`, section by section."""
    merged = dict(base)
    for key, value in values.items():
        below = base.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _refuse_options_of_pmanet(evaluation: EvaluationConfig) -> None:
    if evaluation.partial_tasks:
        raise ValueError("evaluation.partial_tasks is for PMANet, whose partial tasks see one part each: remove it")
    if evaluation.retrieval_weights is not None:
        raise ValueError("evaluation.retrieval_weights is for PMANet, which retrieves by three features: remove it")


RETIRED_KEYS: tuple[str, ...] = ("data.cache.max_open_shards",)
"""Free keys of older versions. In a file or an override they are unknown."""

FREE_KEYS: tuple[str, ...] = (
    "task",
    "name",
    "runs",
    "data.shards",
    "data.verify",
    "data.cache",
    "data.loader",
    "evaluation",
    "cluster",
    "metrics",
    "training.checkpoint",
    "training.loop.epochs",
    "training.loop.checkpoint_every_epochs",
    "training.loop.checkpoint_every_steps",
    "training.loop.log_every_steps",
    "training.loop.hang_after_seconds",
    "training.step.max_consecutive_nonfinite",
    "model.backbone.weights",
    "model.backbone.sha256",
    "model.weights",
    "model.sha256",
)
"""What may change between a checkpoint and the run that continues it. The data set itself is compared by its
manifest's hash."""


def load_experiment(
    path: str | Path | None,
    overrides: Sequence[str] = (),
    kind: type[SomeExperiment] = Experiment,  # type: ignore[assignment]
) -> SomeExperiment:
    """The experiment of a YAML file (None: the defaults) with `key=value` overrides.

    Args:
        path: The file.
        overrides: `dotted.key=value`, value in YAML.
        kind: What is trained.

    Raises:
        ConfigError: for anything wrong in file or overrides, all problems together.
    """
    values = {} if path is None else read_file(path)
    return read_settings(kind, overrides, values, "defaults" if path is None else str(path))


def with_overrides(experiment: SomeExperiment, overrides: Sequence[str]) -> SomeExperiment:
    """The experiment with `key=value` overrides, checked like a file.

    Raises:
        ConfigError: for anything wrong in the overrides, all problems together.
    """
    return read_settings(type(experiment), overrides, experiment.model_dump(mode="json"))


def digestible(experiment: AnyExperiment) -> dict[str, Any]:
    """Flat `{dotted key: value}` of all that decides what is learnt; what a resumed run is compared by."""
    flat = flatten(experiment.model_dump(mode="json"))
    return {
        key: value for key, value in flat.items() if not any(key == f or key.startswith(f + ".") for f in FREE_KEYS)
    }


def digest(experiment: AnyExperiment) -> str:
    """sha256 of `digestible`, in hex."""
    return hashlib.sha256(json.dumps(digestible(experiment), sort_keys=True).encode()).hexdigest()
