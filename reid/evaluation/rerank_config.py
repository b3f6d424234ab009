"""How much is re-ranked: the settings of k-reciprocal encoding, and those that the benchmarks are published with."""

from __future__ import annotations

from typing import Final, Self

from pydantic import Field, model_validator

from reid.contracts import Settings


class RerankConfig(Settings):
    """Re-ranking by k-reciprocal encoding (Zhong et al., CVPR 2017); 20/6/0.3 is what most papers used."""

    k1: int = Field(20, ge=1)
    """Neighbours that are looked at: about the number of images of a vehicle (VeRi-776 has 64: 80)."""
    k2: int = Field(6, ge=1)
    """Neighbours whose encodings are averaged; 1: none but the image's own."""
    weight: float = Field(0.3, ge=0.0, le=1.0)
    """Weight of the original distance beside the Jaccard distance, the paper's lambda; 1: nothing is re-ranked."""

    @model_validator(mode="after")
    def _averages_within_the_neighbourhood(self) -> Self:
        if self.k2 > self.k1:
            raise ValueError(f"k2 {self.k2} is larger than k1 {self.k1}: only neighbours can be averaged")
        return self

    def describe(self) -> str:
        """What a result says was done.

        >>> RerankConfig(k1=80, k2=15, weight=0.2).describe()
        're-ranking k1=80 k2=15 lambda=0.2'
        """
        return f"re-ranking k1={self.k1} k2={self.k2} lambda={self.weight:g}"

    def check_size(self, num_images: int) -> None:
        """Refuse a neighbourhood that there are not enough images for.

        Raises:
            ValueError: `k1` is not smaller than the number of images.
        """
        if self.k1 >= num_images:
            raise ValueError(
                f"expected re-ranking with k1 below the {num_images} images of queries and gallery, got k1 {self.k1};"
                " lower evaluation.rerank.k1"
            )


_BY_FAMILY: Final = {
    "veri776": RerankConfig(k1=80, k2=15, weight=0.2),
    "veriwild": RerankConfig(k1=20, k2=6, weight=0.3),
    "vehicleid": None,
}


def usual_reranking(protocol: str) -> RerankConfig | None:
    """The settings that figures of a protocol are published with; None where re-ranking makes no sense (one positive).

    >>> usual_reranking("veri776-raw").k1, usual_reranking("vehicleid-small"), usual_reranking("table").k1
    (80, None, 20)
    """
    return _BY_FAMILY.get(protocol.partition("-")[0], RerankConfig())


def read_reranking(text: str, protocol: str) -> RerankConfig | None:
    """What a command line asks for: `k1,k2,lambda`, or `auto` for the usual settings of the protocol.

    >>> read_reranking("50,15,0.3", "table").describe()
    're-ranking k1=50 k2=15 lambda=0.3'

    Raises:
        ValueError: If it is neither.
    """
    if text == "auto":
        return usual_reranking(protocol)
    words = text.split(",")
    try:
        k1, k2, weight = int(words[0]), int(words[1]), float(words[2])
        if len(words) != 3:
            raise ValueError
    except (ValueError, IndexError):
        raise ValueError(f"expected re-ranking as k1,k2,lambda such as 80,15,0.2, or auto; got {text!r}") from None
    problem = _problem(k1, k2, weight)
    if problem:
        raise ValueError(f"re-ranking {text}: {problem}")
    return RerankConfig(k1=k1, k2=k2, weight=weight)


def _problem(k1: int, k2: int, weight: float) -> str:
    """What is wrong with the numbers of a command line, in its own words."""
    if k1 < 1 or k2 < 1:
        return "k1 and k2 must be at least 1"
    if k2 > k1:
        return f"k2 {k2} is larger than k1 {k1}: only neighbours can be averaged"
    if not 0 <= weight <= 1:
        return f"lambda {weight:g} is not in 0..1"
    return ""
