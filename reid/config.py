"""The configuration of a run: the folders' own settings composed into one experiment, read strictly from YAML.

What is trained decides the kind: `Experiment` (PPT and its baseline) or `KeypointExperiment` (the keypoint detector);
`task` tells them apart in files.

A file holds only what differs from the defaults, which are the paper's. `key=value` on the command line overrides the
file: dotted path, value in YAML (`training.loop.epochs=30`, `data.loader.processes=0`). Unknown keys, duplicate keys,
wrong types and values out of range are errors; all of them are shown together, each with its path and, for a misspelt
key, the likely one.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from reid.contracts import Settings, flatten
from reid.data.cache import CacheConfig
from reid.data.plan import ImagePlanConfig, PlanConfig
from reid.data.stream import LoaderConfig
from reid.data.transforms import TransformConfig
from reid.evaluation.keypoint_results import KeypointEvaluationConfig
from reid.evaluation.protocols import EvaluationConfig
from reid.losses.heat_maps import HeatMapLossConfig
from reid.losses.ppt import PPTLossConfig
from reid.models.hourglass import HourglassConfig
from reid.models.ppt import PPTConfig
from reid.training.checkpoint import CheckpointConfig
from reid.training.loop import LoopConfig
from reid.training.optim import OptimizerConfig
from reid.training.schedule import ScheduleConfig
from reid.training.step import StepConfig

AnySettings = TypeVar("AnySettings", bound=Settings)


class DataConfig(Settings):
    """What is read, in which order, and how images are changed on the way."""

    shards: str = "data/shards"
    """Folder or URL (s3://, gs://, http(s)://) of a packed data set: manifest.json, index.parquet and tars."""
    verify: Literal["sizes", "full"] = "sizes"
    """Check before training: file sizes, or every shard's sha256."""
    cache: CacheConfig = CacheConfig()
    plan: PlanConfig = PlanConfig()
    transform: TransformConfig = TransformConfig()
    loader: LoaderConfig = LoaderConfig()


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
    """GPUs reserved for each evaluation worker; a fraction shares one. 0: embed on the CPU."""
    evaluation_timeout_seconds: float = Field(3600.0, gt=0)
    """An evaluation that takes longer, from its first finished slice on, is given up; training is not touched."""


class MetricsConfig(Settings):
    """Where figures go besides the log and the run's `metrics.*.jsonl`."""

    tensorboard: bool = True
    """Write TensorBoard events into the run folder."""
    prometheus_port: int = Field(0, ge=0, le=65535)
    """Port of the driver's Prometheus endpoint for figures that must outlive workers (evaluation, progress); 0: off."""
    prometheus_host: str = "127.0.0.1"
    """Address that endpoint binds to; anything but loopback is your explicit choice."""


class Experiment(Settings):
    """A run of PPT, whole."""

    task: Literal["ppt"] = "ppt"
    """What is trained."""
    name: str = Field("ppt", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """The run's folder below `runs`; resuming means the same name."""
    runs: str = "runs"
    """Folder or URL that holds the runs."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Everything random follows from it."""
    data: DataConfig = DataConfig()
    model: PPTConfig = PPTConfig()
    loss: PPTLossConfig = PPTLossConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    metrics: MetricsConfig = MetricsConfig()

    @model_validator(mode="after")
    def _evaluations_need_checkpoints(self) -> Self:
        _check_evaluations(self.training, self.evaluation.every_epochs)
        return self


class KeypointDataConfig(Settings):
    """What a detector reads: the annotated images of the training split, in plain shuffled batches."""

    shards: str = "data/shards"
    """Folder or URL (s3://, gs://, http(s)://) of a packed data set: manifest.json, index.parquet and tars."""
    verify: Literal["sizes", "full"] = "sizes"
    """Check before training: file sizes, or every shard's sha256."""
    held_out_share: float = Field(0.05, ge=0.0, le=0.5)
    """Share of the training identities that are not trained on: visibility thresholds are fitted on them."""
    cache: CacheConfig = CacheConfig()
    plan: ImagePlanConfig = ImagePlanConfig()
    transform: TransformConfig = TransformConfig()
    loader: LoaderConfig = LoaderConfig()


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


class KeypointExperiment(Settings):
    """A run of the keypoint detector, whole."""

    task: Literal["keypoints"] = "keypoints"
    """What is trained."""
    name: str = Field("keypoints", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """The run's folder below `runs`; resuming means the same name."""
    runs: str = "runs"
    """Folder or URL that holds the runs."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Everything random follows from it."""
    data: KeypointDataConfig = KeypointDataConfig()
    model: HourglassConfig = HourglassConfig()
    loss: HeatMapLossConfig = HeatMapLossConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: KeypointEvaluationConfig = KeypointEvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    metrics: MetricsConfig = MetricsConfig()

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_recipe(cls, values: Any) -> Any:
        return _merged(KEYPOINT_RECIPE, values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _evaluations_need_checkpoints(self) -> Self:
        _check_evaluations(self.training, self.evaluation.every_epochs)
        return self


AnyExperiment = Experiment | KeypointExperiment
"""A run of any kind. Whoever needs to know which matches on it; most code does not."""
SomeExperiment = TypeVar("SomeExperiment", bound=AnyExperiment)


def experiment_of(values: Mapping[str, Any]) -> AnyExperiment:
    """The experiment that `model_dump` made plain data of; without a `task` it is one of PPT, as older ones are.

    Raises:
        ValueError: Settings that are none.
    """
    match values.get("task", "ppt"):
        case "keypoints":
            return KeypointExperiment.model_validate(values)
        case _:
            return Experiment.model_validate(values)


def _merged(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` over `base`, section by section."""
    merged = dict(base)
    for key, value in values.items():
        below = base.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _check_evaluations(training: TrainingConfig, every_epochs: int) -> None:
    saved = training.loop.checkpoint_every_epochs
    if every_epochs % saved:
        raise ValueError(
            f"only checkpoints can be evaluated, but evaluation.every_epochs {every_epochs} is not a multiple of"
            f" training.loop.checkpoint_every_epochs {saved}"
        )


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
)
"""What may change between a checkpoint and the run that continues it. The data set itself is compared by its
manifest's hash."""


class ConfigError(ValueError):
    """All problems of a configuration at once; `problems` holds one line each."""

    def __init__(self, problems: Sequence[str], source: str) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{source}: {len(problems)} problem(s)\n" + "\n".join(f"  {line}" for line in problems))


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
    source = "defaults" if path is None else str(path)
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = parse_yaml(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError([f"cannot be read: {error.strerror or error}"], source) from None
        except yaml.YAMLError as error:
            raise ConfigError([_yaml_problem(error)], source) from None
    return read_settings(kind, overrides, values, source)


def with_overrides(experiment: SomeExperiment, overrides: Sequence[str]) -> SomeExperiment:
    """The experiment with `key=value` overrides, checked like a file.

    Raises:
        ConfigError: for anything wrong in the overrides, all problems together.
    """
    return read_settings(type(experiment), overrides, experiment.model_dump(mode="json"))


def read_settings(
    schema: type[AnySettings],
    overrides: Sequence[str],
    values: Mapping[str, Any] | None = None,
    source: str = "settings",
) -> AnySettings:
    """Settings of any schema from values and `key=value` overrides.

    Args:
        schema: What they are.
        overrides: `dotted.key=value`, value in YAML.
        values: What is overridden; None: the defaults.
        source: What errors name as their origin.

    Raises:
        ConfigError: for anything wrong, all problems together.
    """
    values = copy.deepcopy(dict(values or {}))
    problems: list[str] = []
    for override in overrides:
        try:
            _override(values, override)
        except (ValueError, yaml.YAMLError) as error:
            problems.append(f"override {override!r}: {' '.join(str(error).split())}")
    try:
        settings = schema.model_validate(values)
    except ValidationError as error:
        problems += [_problem(schema, detail) for detail in error.errors()]
        raise ConfigError(problems, source) from None
    if problems:
        raise ConfigError(problems, source)
    return settings


def digestible(experiment: AnyExperiment) -> dict[str, Any]:
    """Flat `{dotted key: value}` of all that decides what is learnt; what a resumed run is compared by."""
    flat = flatten(experiment.model_dump(mode="json"))
    return {
        key: value for key, value in flat.items() if not any(key == f or key.startswith(f + ".") for f in FREE_KEYS)
    }


def digest(experiment: AnyExperiment) -> str:
    """sha256 of `digestible`, in hex."""
    return hashlib.sha256(json.dumps(digestible(experiment), sort_keys=True).encode()).hexdigest()


def to_yaml(experiment: AnyExperiment) -> str:
    """The experiment as a YAML file that `load_experiment` reads back to the same, each key with its description."""
    return "\n".join(_commented(experiment, 0)) + "\n"


def parse_yaml(text: str) -> dict[str, Any]:
    r"""A mapping from YAML text, read by YAML 1.2's core rules: `1e-3` is a number, `no` a word, duplicate keys an
    error.

    >>> parse_yaml("rate: 1e-3\nanswer: no")
    {'rate': 0.001, 'answer': 'no'}
    """
    value = yaml.load(text, Loader=_StrictLoader)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise yaml.YAMLError(f"expected a mapping of settings, got {type(value).__name__}")
    return value


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader by YAML 1.2's core schema, refusing duplicate keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the base class declares it so


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    ("float", r"^[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _construct_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {text}" if mark else str(text)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ValueError("expected key=value, such as training.loop.epochs=30")
    node = values
    *parents, last = key.strip().split(".")
    for name in parents:
        child = node.get(name)
        if not isinstance(child, dict):
            # A null or absent section is opened by an override inside it.
            child = node[name] = {}
        node = child
    node[last] = yaml.load(text, Loader=_StrictLoader)


def _problem(schema: type[Settings], detail: Mapping[str, Any]) -> str:
    location = detail["loc"]
    path = ".".join(str(part) for part in location) or "settings"
    match detail["type"]:
        case "extra_forbidden":
            siblings = _fields_at(schema, location[:-1])
            name = str(location[-1])
            close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.5)
            if not close:
                close = [k for k in _all_keys(schema) if k.rsplit(".", 1)[-1] == name][:1]
            hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(siblings)}"
            return f"{path}: unknown key; {hint}"
        case _:
            message = detail["msg"]
            got = "" if isinstance(detail["input"], dict) else f", got {detail['input']!r}"
            return f"{path}: {message[0].lower()}{message[1:]}{got}"


def _sections(annotation: Any) -> list[type[Settings]]:
    """The Settings classes an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [section for argument in typing.get_args(annotation) for section in _sections(argument)]
    return []


def _fields_at(section: type[Settings], location: Sequence[Any]) -> list[str]:
    if not location:
        return list(section.model_fields)
    name, *rest = location
    field = section.model_fields.get(str(name))
    if field is None:
        return []
    return [key for inner in _sections(field.annotation) for key in _fields_at(inner, rest)]


def _all_keys(section: type[Settings], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner in _sections(field.annotation):
            yield from _all_keys(inner, f"{prefix}{name}.")


def _commented(section: Settings, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if field.description:
            yield from (f"{indent}# {line}" for line in field.description.splitlines())
        if isinstance(value, Settings):
            yield f"{indent}{name}:"
            yield from _commented(value, depth + 1)
        else:
            plain = section.model_dump(mode="json", include={name})[name]
            yield f"{indent}{name}: {json.dumps(plain, ensure_ascii=False)}"
