"""The papers' ablation tables as runs: which variants a table compares, and what the paper found on VeRi-776.

A variant is the base experiment with a few settings changed; tables share variants, so each is trained once. Figures of
the papers are theirs (VeRi-776, ResNet-50, ImageNet weights): they stand beside ours for the order of the rows, not for
the height of the figures on another data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from reid.config import Experiment, PMNetExperiment, ReidExperiment, with_overrides
from reid.contracts import flatten
from reid.keypoints import PLANE_NAMES

AblationBase = Experiment | PMNetExperiment
"""What variants are made of: one of PPT has the variants of PPT, one of PMANet has all."""

BASELINE: Final = "baseline"
PIXEL_SPACE: Final = "pixel-space"
"""Not a run but an ensemble of five (PPT, section 4.4.2)."""
PMANET: Final = "pmanet"
STRIPES: Final = "stripes"
"""Uniform stripes in place of the boxes of the data set."""

_NO_LOSS_OF_JOINED: Final = "loss.identity_losses=[global,main_sum,partial_sum]"
_EQUAL_DISTANCES: Final = "evaluation.retrieval_weights=[1,1,1]"
"""Where g and h have no identity loss, their distances have no learned weights."""
_EQUAL: Final = "loss.fixed_weights=[1,1,1,1,1]"
_FIXED: Final = ("model.learned_loss_weights=false", "loss.uncertainty_from_epoch=null", _EQUAL)
_WHOLE_MODEL: Final = ("model.planes=null", "evaluation.partial_tasks=false")
"""What every variant of PMANet starts from: rows say what is added, and how it is evaluated."""
_PLAIN_BRANCHES: Final = "model.part_head.tasks=partial"
_NO_ATTENTION: Final = "model.part_head.attention.kind=none"

PPT_VARIANTS: Final[dict[str, int]] = {BASELINE: 0, "front": 1, "front-back": 2, "front-back-side": 3, "ppt": 4}
"""Variants of PPT by how many planes count, in the order front, back, side, top."""

PMANET_VARIANTS: Final[dict[str, tuple[str, ...]]] = {
    PMANET: (),
    "pmanet-ppt": ("model.planes={}",),
    "global-only": ("model.part_head=null",),
    "plain-branches-no-mam": (_PLAIN_BRANCHES, _NO_ATTENTION),
    "plain-branches": (_PLAIN_BRANCHES,),
    "no-mam": (_NO_ATTENTION,),
    STRIPES: ("model.part_head.boxes=stripes",),
    "parts-only": ("model.global_head=null",),
    "squeeze-excitation": ("model.part_head.attention.kind=squeeze_excitation",),
    "residual-attention": ("model.part_head.attention.kind=residual",),
    "no-sharing": ("model.part_head.share_attention=false",),
    "no-transfer-loss": ("loss.part_transfer_weight=0",),
    "no-sharing-no-transfer-loss": ("model.part_head.share_attention=false", "loss.part_transfer_weight=0"),
    "no-classification": ("loss.identity_losses=[global,main,partial]",),
    "no-part-transfer-task": (
        _NO_LOSS_OF_JOINED,
        "loss.triplet_losses=[global]",
        "loss.part_transfer_weight=0",
        _EQUAL_DISTANCES,
    ),
    "no-summation": ("loss.branch_logits=each",),
    "no-concatenation": (_NO_LOSS_OF_JOINED, _EQUAL_DISTANCES),
    "fixed-1": _FIXED,
    "fixed-2": (*_FIXED, "loss.fixed_weights=[2,1,1,1,1]"),
    "fixed-4": (*_FIXED, "loss.fixed_weights=[4,1,1,1,1]"),
    "late-hul": (),
}
"""Variants of PMANet by the settings in which they differ from the base."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationRow:
    """A row of a table: one variant, evaluated one way."""

    cells: tuple[str, ...]
    """What the paper's row says, a cell for each of the table's columns."""
    variant: str
    paper: tuple[float, float, float] | None = None
    """mAP, CMC@1 and CMC@5 in percent, from the paper; None: it has no such row."""
    partial_tasks: bool = False
    """Evaluated with partial tasks (PMANet) where the variant has them."""
    occluded: float = 0.0
    """Share of each query's area under a colour patch; 0: clean queries."""

    @property
    def needs_occluded_parts(self) -> bool:
        """Parts must have been located in the occluded images, which then are a data set of their own."""
        return self.partial_tasks and self.occluded > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationTable:
    """A table of a paper."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[AblationRow, ...]
    notes: tuple[str, ...] = ()


def _parts(cells: tuple[str, ...], variant: str, paper: tuple[float, float, float]) -> AblationRow:
    """A row of PMANet's tables III to VII, which are all evaluated with partial tasks."""
    return AblationRow(cells=cells, variant=variant, paper=paper, partial_tasks=True)


_WHOLE: Final = (81.8, 96.4, 98.6)
_YES: Final = "x"
OCCLUDED_SHARE: Final = 0.2
"""Of the queries of Table VIII: within the 5 to 30 % of METHOD 2.3."""
OCCLUSION_SEED: Final = 0

TABLES: Final[dict[str, AblationTable]] = {
    "methods": AblationTable(
        title="Baseline, PPT, PMANet and their combination",
        columns=("method",),
        rows=(
            AblationRow(cells=("baseline",), variant=BASELINE, paper=(77.4, 96.0, 97.6)),
            AblationRow(cells=("PPT",), variant="ppt", paper=(80.5, 95.9, 98.7)),
            AblationRow(cells=("PMANet-o (no partial tasks at test time)",), variant=PMANET, paper=(81.7, 96.7, 98.6)),
            _parts(("PMANet",), PMANET, _WHOLE),
            AblationRow(cells=("PMANet-o with PPT's planes",), variant="pmanet-ppt"),
            AblationRow(cells=("PMANet with PPT's planes",), variant="pmanet-ppt", partial_tasks=True),
        ),
        notes=(
            "the papers have no table of this kind; the combination is this project's",
            "paper: baseline and PPT from PPT's Table 5, PMANet from its Table I, where its own baseline has 77.2, 95.7"
            " and 97.9",
        ),
    ),
    "5": AblationTable(
        title="PPT, Table 5: the effectiveness of each part",
        columns=("front", "back", "side", "roof"),
        rows=(
            AblationRow(cells=("", "", "", ""), variant=BASELINE, paper=(77.4, 96.0, 97.6)),
            AblationRow(cells=(_YES, "", "", ""), variant="front", paper=(78.7, 96.6, 98.3)),
            AblationRow(cells=(_YES, _YES, "", ""), variant="front-back", paper=(78.8, 96.4, 98.2)),
            AblationRow(cells=(_YES, _YES, _YES, ""), variant="front-back-side", paper=(80.0, 96.4, 98.3)),
            AblationRow(cells=(_YES, _YES, _YES, _YES), variant="ppt", paper=(80.5, 95.9, 98.7)),
        ),
    ),
    "6": AblationTable(
        title="PPT, Table 6: transformation on different space",
        columns=("transformation on",),
        rows=(
            AblationRow(cells=("no transformation",), variant=BASELINE, paper=(77.4, 96.0, 97.6)),
            AblationRow(cells=("pixel space",), variant=PIXEL_SPACE, paper=(78.5, 95.0, 98.2)),
            AblationRow(cells=("feature space",), variant="ppt", paper=(80.5, 95.9, 98.7)),
        ),
        notes=("pixel space is an ensemble of five networks, one of them the baseline",),
    ),
    "iii": AblationTable(
        title="PMANet, Table III: each component",
        columns=("experiment", "global head", "PANet", "PMLH", "MAM"),
        rows=(
            _parts(("Exp-1", _YES, "", "", ""), "global-only", (72.4, 94.6, 97.2)),
            _parts(("Exp-2", _YES, _YES, "R2", ""), "plain-branches-no-mam", (78.5, 95.7, 98.0)),
            _parts(("Exp-3", _YES, _YES, _YES, ""), "no-mam", (79.5, 96.4, 98.1)),
            _parts(("Exp-4", _YES, "R1", _YES, _YES), STRIPES, (79.9, 96.4, 98.3)),
            _parts(("Exp-5", "", _YES, _YES, _YES), "parts-only", (78.1, 95.3, 97.8)),
            _parts(("Exp-6", _YES, _YES, "R2", _YES), "plain-branches", (78.2, 95.6, 98.0)),
            _parts(("Exp-7", _YES, _YES, _YES, _YES), PMANET, _WHOLE),
        ),
        notes=("R1: uniform stripes in place of PANet's boxes", "R2: K plain branches in place of main-partial pairs"),
    ),
    "iv": AblationTable(
        title="PMANet, Table IV: attention in the branches",
        columns=("method",),
        rows=(
            _parts(("PANet + SE-Net",), "squeeze-excitation", (81.0, 96.8, 98.2)),
            _parts(("PANet + residual attention",), "residual-attention", (80.7, 96.7, 98.7)),
            _parts(("PMANet",), PMANET, _WHOLE),
        ),
    ),
    "v": AblationTable(
        title="PMANet, Table V: part transfer",
        columns=("method",),
        rows=(
            _parts(("w/o parameter sharing",), "no-sharing", (81.1, 96.3, 98.4)),
            _parts(("w/o L_PT",), "no-transfer-loss", (80.2, 96.7, 98.6)),
            _parts(("w/o parameter sharing & L_PT",), "no-sharing-no-transfer-loss", (80.6, 96.4, 98.3)),
            _parts(("PMANet",), PMANET, _WHOLE),
        ),
    ),
    "vi": AblationTable(
        title="PMANet, Table VI: sub-tasks, summation and concatenation",
        columns=("method",),
        rows=(
            _parts(("w/o classification tasks",), "no-classification", (78.4, 95.7, 97.9)),
            _parts(("w/o part transfer task",), "no-part-transfer-task", (79.1, 95.6, 98.1)),
            _parts(("w/o feature summation",), "no-summation", (79.8, 96.3, 98.2)),
            _parts(("w/o feature concatenation",), "no-concatenation", (80.6, 96.0, 98.2)),
            _parts(("PMANet",), PMANET, _WHOLE),
        ),
        notes=(
            "w/o classification tasks: no identity losses of f_M and f_P (the paper's Task 2 and Task 3)",
            "w/o part transfer task: no part transfer loss, no identity losses and no triplets of g and h (Task 4)",
            "w/o feature summation: an identity loss for each branch's logits, their mean in place of that of the sums;"
            " the paper does not say what it put there",
            "w/o feature concatenation: no identity losses of g and h; retrieval weighs the three distances equally, as"
            " it does without Task 4",
        ),
    ),
    "vii": AblationTable(
        title="PMANet, Table VII: homoscedastic uncertainty learning",
        columns=("method",),
        rows=(
            _parts(("w/o HUL (1:1:1:1:1)",), "fixed-1", (80.5, 96.5, 98.0)),
            _parts(("w/o HUL (2:1:1:1:1)",), "fixed-2", (80.4, 96.2, 98.7)),
            _parts(("w/o HUL (4:1:1:1:1)",), "fixed-4", (79.8, 96.4, 98.0)),
            _parts(("HUL from a quarter of the run on (paper: epoch 30)",), "late-hul", (80.7, 96.1, 98.1)),
            _parts(("PMANet",), PMANET, _WHOLE),
        ),
        notes=("retrieval weighs the three distances equally without HUL, by the learned weights with it",),
    ),
    "viii": AblationTable(
        title="PMANet, Table VIII: occluded queries",
        columns=("method", "queries"),
        rows=(
            AblationRow(cells=("Baseline", "clean"), variant=BASELINE, paper=(77.2, 95.7, 97.9)),
            _parts(("PMANet", "clean"), PMANET, _WHOLE),
            AblationRow(cells=("PMANet-o", "clean"), variant=PMANET, paper=(81.7, 96.7, 98.6)),
            AblationRow(
                cells=("Baseline", "20 % covered"), variant=BASELINE, paper=(54.5, 75.9, 85.8), occluded=OCCLUDED_SHARE
            ),
            AblationRow(
                cells=("PMANet", "20 % covered"),
                variant=PMANET,
                paper=(65.7, 85.3, 91.6),
                occluded=OCCLUDED_SHARE,
                partial_tasks=True,
            ),
            AblationRow(
                cells=("PMANet-o", "20 % covered"), variant=PMANET, paper=(66.2, 86.0, 91.8), occluded=OCCLUDED_SHARE
            ),
        ),
        notes=(
            "paper: covered, the large set (queries of VeRi-776 under random patches; it gives no share of the area);"
            " clean, from Table I",
            "paper, small set (60 vehicles, 300 queries; not published), mAP / CMC@1 / CMC@5: ASAN 53.3 / 68.8 / 90.1,"
            " baseline 60.1 / 70.7 / 90.7, PMANet 85.3 / 96.0 / 99.7, PMANet-o 85.7 / 96.0 / 99.7",
            "the baseline is trained with the configuration's augmentation, PMANet's patches included; the paper does"
            " not say how its was",
            "PMANet takes the parts that PANet finds in the occluded images: jobs/make_occluded.py --severity"
            f" {OCCLUDED_SHARE:g} --seed {OCCLUSION_SEED}, jobs/add_masks.py --panet, then --occluded-parts",
        ),
    ),
}
"""By the name that the papers give them, in small letters: PPT counts in figures, PMANet in Roman numerals."""


def variant_of(base: AblationBase, variant: str, seed: int) -> ReidExperiment:
    """The experiment of a variant, under a name of its own: `<base>-<variant>-s<seed>`.

    Variants of PPT made of a base of PMANet keep its data, batches, augmentation, schedule and backbone; so does the
    baseline.

    Args:
        base: What they all have in common.
        variant: Of `PPT_VARIANTS` or `PMANET_VARIANTS`, or `PIXEL_SPACE`: the plain networks of the ensemble.
        seed: Of the run.

    Raises:
        ValueError: An unknown variant, one of PMANet of a base of PPT, one of PPT of a base without planes, or settings
            of the base that contradict it.
    """
    name = [f"name={base.name}-{variant}-s{seed}", f"seed={seed}"]
    if variant in PPT_VARIANTS or variant == PIXEL_SPACE:
        ppt = base if isinstance(base, Experiment) else _as_ppt(base)
        if variant in (BASELINE, PIXEL_SPACE):
            return with_overrides(ppt, [*name, "model.planes=null"])
        if ppt.model.planes is None:
            raise ValueError(
                f"variant {variant!r} is one of PPT, but the configuration has model.planes=null: remove it"
            )
        weights = ppt.loss.planes.plane_weights
        kept = [weight if place < PPT_VARIANTS[variant] else 0.0 for place, weight in enumerate(weights)]
        return with_overrides(ppt, [*name, f"loss.planes.plane_weights={kept}"])
    if variant not in PMANET_VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join([*PPT_VARIANTS, *PMANET_VARIANTS])}")
    if not isinstance(base, PMNetExperiment):
        raise ValueError(f"variant {variant!r} is one of PMANet, but the configuration is of task {base.task}")
    changes = [*_WHOLE_MODEL, *PMANET_VARIANTS[variant]]
    if variant == "late-hul":
        changes += [f"loss.uncertainty_from_epoch={max(1, base.training.loop.epochs // 4)}", _EQUAL]
    if "model.learned_loss_weights=false" in changes:
        changes.append("training.optimizer.loss_weight_rate=1")
    try:
        # All at once: in between, settings may contradict each other.
        return with_overrides(base, [*name, *changes])
    except ValueError as error:
        raise ValueError(f"variant {variant!r}: {error}") from error


def _refuse_ablated(base: PMNetExperiment) -> None:
    """ValueError for a base without something of PMANet: its rows would be called what they are not."""
    whole = PMNetExperiment()
    keys = {change.split("=")[0] for changes in PMANET_VARIANTS.values() for change in changes}
    keys = keys - {"model.planes", "model.part_head", "model.global_head"}
    ours, defaults = flatten(base.model_dump(mode="json")), flatten(whole.model_dump(mode="json"))
    changed = sorted(
        key
        for key in ours.keys() | defaults.keys()
        if any(key == name or key.startswith(f"{name}.") for name in keys) and ours.get(key) != defaults.get(key)
    )
    missing = [f"model.{head}" for head in ("global_head", "part_head") if getattr(base.model, head) is None]
    if changed or missing:
        raise ValueError(
            f"the configuration sets {', '.join([*missing, *changed])}, which the rows of the tables change or do not"
            " show: remove it"
        )


def evaluated_as(experiment: ReidExperiment, row: AblationRow) -> ReidExperiment:
    """The experiment of a row's variant with the evaluation that the row asks for."""
    if not isinstance(experiment, PMNetExperiment):
        return experiment
    has_partial_tasks = experiment.model.parts_read > 0
    return with_overrides(experiment, [f"evaluation.partial_tasks={row.partial_tasks and has_partial_tasks}"])


def tables_of(base: AblationBase, names: Sequence[str]) -> dict[str, AblationTable]:
    """The tables of these names.

    Raises:
        ValueError: An unknown one, one of PMANet for a base of PPT or for one without something of PMANet, or a base
            that is re-ranked, which no table shows.
    """
    if base.evaluation.rerank is not None:
        raise ValueError(
            "the tables show figures without re-ranking, but evaluation.rerank is set: evaluation.rerank=null"
        )
    unknown = [name for name in names if name.lower() not in TABLES]
    if unknown:
        raise ValueError(f"unknown table {', '.join(unknown)}; there are {', '.join(TABLES)}")
    tables = {name.lower(): TABLES[name.lower()] for name in names}
    for name, table in tables.items():
        needed = [row.variant for row in table.rows if row.variant in PMANET_VARIANTS]
        if needed and not isinstance(base, PMNetExperiment):
            raise ValueError(
                f"table {name} has variants of PMANet ({', '.join(dict.fromkeys(needed))}): give it a configuration of"
                f" task pmanet, not {base.task} (for PPT alone: tables 5 and 6)"
            )
        if needed and isinstance(base, PMNetExperiment):
            _refuse_ablated(base)
    return tables


def _as_ppt(base: PMNetExperiment) -> Experiment:
    """PPT on the data, with the batches, augmentation, schedule and backbone of a PMANet."""
    settings = base.model_dump(mode="json")
    settings["task"] = "ppt"
    planes = settings["model"]["planes"] or {}
    settings["model"] = {
        "backbone": settings["model"]["backbone"], "neck": settings["model"]["neck"], "planes": planes
    }  # fmt: skip
    settings["training"]["optimizer"]["loss_weight_rate"] = 1.0
    settings["evaluation"] |= {"partial_tasks": False, "retrieval_weights": None}
    settings["loss"] = {key: settings["loss"][key] for key in ("planes", "planes_weight")}
    return Experiment.model_validate(settings)


assert len(PLANE_NAMES) == max(PPT_VARIANTS.values())
