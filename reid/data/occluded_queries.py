"""A shard set whose queries are occluded, for looking at and for other programs; everything else in it stays clean.

Evaluating it gives the figures of the evaluation that occludes on the fly: the patches are the same, painted into the
same pixels, and stored as PNG, which loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.contracts import DataError
from reid.data.additions import BOX_MAKERS, MASK_MAKERS, Additions, Provenance, Sample
from reid.data.decode import UnreadableImageError, decode_image
from reid.data.manifest import Manifest
from reid.data.occlusion import OcclusionConfig, PatchTable, occlude, patch_table
from reid.data.shard_set import ShardSet

NAME: Final = "occluded-queries"


class OccludedQueries:
    """The enrichment: a patch on each image of the query split.

    Masks, keypoints and part boxes stay those of the clean images; what is to see the patches is computed anew from
    the occluded set (jobs/add_masks.py).
    """

    def __init__(self, shards: ShardSet, config: OcclusionConfig) -> None:
        """Draw the patches of all queries; nothing is read or painted yet.

        Args:
            shards: The clean set.
            config: Severity and seed.

        Raises:
            DataError: It has no query split, or its queries are occluded already.
        """
        refuse_occluded(shards)
        queries = shards.index.rows("query")
        if not len(queries):
            raise DataError(
                f"{shards.uri} has no query split (vehicleid draws its queries anew for each trial): occlude while"
                " evaluating, jobs/evaluate.py --occluded"
            )
        self.config = config
        self.patches: PatchTable = patch_table(shards.index, queries, config)

    @property
    def provenance(self) -> Provenance:
        """Severity, seed, the hash of all patches, and OpenCV's version, which encodes the images."""
        settings = self.patches.summary()
        version = f"patches {settings.pop('version')}, opencv {cv2.__version__}"
        return Provenance(name=NAME, version=version, settings=settings)

    def __call__(self, samples: Iterator[Sample]) -> Iterator[Additions]:
        """An occluded image for each query, nothing for other images.

        A query that cannot be decoded stays as it is and is counted: evaluation will name it.
        """
        for sample in samples:
            if sample.split != "query":
                yield Additions()
                continue
            try:
                pixels = decode_image(sample.image)
            except UnreadableImageError as error:
                yield Additions(problem=error.reason)
                continue
            occlude(pixels, sample.key, self.config)
            yield Additions(image=_as_png(pixels))


def occlusion_of(manifest: Manifest) -> OcclusionConfig | None:
    """How the queries of a set are occluded; None: not at all."""
    for addition in manifest.additions:
        if addition.name == NAME:
            return OcclusionConfig(severity=addition.settings["severity"], seed=addition.settings["seed"])
    return None


def refuse_clean_parts(shards: ShardSet, *, uses_stripes: bool = False) -> None:
    """DataError for a set whose queries are occluded, but whose masks or parts are still those of the clean images.

    Args:
        shards: The set.
        uses_stripes: The network takes uniform stripes in place of stored boxes.
    """
    stale = of_clean_images([addition.name for addition in shards.manifest.additions], uses_stripes=uses_stripes)
    if stale:
        raise DataError(
            f"{shards.uri} has occluded queries, but {' and '.join(stale)} of the clean images: compute them anew"
            " (jobs/add_masks.py --panet), or leave evaluation.partial_tasks out"
        )


def of_clean_images(additions: Sequence[str], *, uses_stripes: bool = False) -> list[str]:
    """What of "masks" and "part boxes" is older than the occlusion of a set; nothing for one without.

    Uniform stripes are of no image in particular, whenever they were added.

    >>> of_clean_images(["coarse-masks", "parts", "occluded-queries"])
    ['masks', 'part boxes']
    >>> of_clean_images(["coarse-masks", "stripes", "occluded-queries", "coarse-masks"])
    []
    """
    if NAME not in additions:
        return []
    since = additions[additions.index(NAME) :]
    box_makers = [name for name in additions if name in BOX_MAKERS]
    located = not uses_stripes and box_makers[-1:] == ["parts"]
    return [
        *(["masks"] if not set(MASK_MAKERS) & set(since) else []),
        *(["part boxes"] if located and "parts" not in since else []),
    ]


def refuse_occluded(shards: ShardSet) -> None:
    """DataError for a set whose queries are occluded already."""
    if (occlusion := occlusion_of(shards.manifest)) is not None:
        raise DataError(f"{shards.uri} has {occlusion.words} already: take the set that it was made from")


def _as_png(pixels: NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert done, f"OpenCV cannot encode an image of shape {pixels.shape}"
    return bytes(data)
