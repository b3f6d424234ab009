"""The pieces of PMNet cell by cell, in float64, from METHOD 2.2 and Eq. 2 of PMANet. They import nothing of ours."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def mask_on_map(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) 0/1 -> (height, width): at least half of the cell's area is covered, in exact fractions."""
    tall, wide = Fraction(mask.shape[0], height), Fraction(mask.shape[1], width)
    chosen = np.zeros((height, width), dtype=bool)
    for i in range(height):
        for j in range(width):
            covered = Fraction(0)
            for y in range(math.floor(i * tall), math.ceil((i + 1) * tall)):
                for x in range(math.floor(j * wide), math.ceil((j + 1) * wide)):
                    down = min((i + 1) * tall, Fraction(y + 1)) - max(i * tall, Fraction(y))
                    across = min((j + 1) * wide, Fraction(x + 1)) - max(j * wide, Fraction(x))
                    covered += down * across * int(mask[y, x])
            chosen[i, j] = covered >= tall * wide / 2
    return chosen


def bilinear(channel: Array, x: float, y: float) -> float:
    """Value of (h, w) at a point whose cells have their centres at whole numbers; outside, the nearest cell's."""
    height, width = channel.shape
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    left, top = min(math.floor(x), width - 2) if width > 1 else 0, min(math.floor(y), height - 2) if height > 1 else 0
    total = 0.0
    for i in {top, min(top + 1, height - 1)}:
        for j in {left, min(left + 1, width - 1)}:
            total += max(0.0, 1 - abs(y - i)) * max(0.0, 1 - abs(x - j)) * float(channel[i, j])
    return total


def crop(maps: Array, box: tuple[float, float, float, float], *, stays_inside: bool = True) -> Array:
    """(C, h, w) -> (C, h, w): the box (left, top, right, bottom in shares) resized. The option is a mistake."""
    _, height, width = maps.shape
    left, top, right, bottom = box[0] * width, box[1] * height, box[2] * width, box[3] * height

    def place(begin: float, end: float, number: int, count: int) -> float:
        point = begin + (number + 0.5) * (end - begin) / count
        if stays_inside and end - begin >= 1:
            point = min(max(point, begin + 0.5), end - 0.5)
        elif stays_inside:
            point = (begin + end) / 2
        return point - 0.5  # cell j has its centre at j + 0.5 from the map's edge

    return np.array(
        [
            [
                [bilinear(channel, place(left, right, j, width), place(top, bottom, i, height)) for j in range(width)]
                for i in range(height)
            ]
            for channel in maps
        ]
    )


def convolution(maps: Array, weight: Array, bias: Array | None = None, dilation: int = 1) -> Array:
    """(C, h, w), (O, C, k, k) -> (O, h, w), zeros around the map."""
    _, height, width = maps.shape
    reach = weight.shape[2] // 2
    result = np.zeros((len(weight), height, width))
    for o in range(len(weight)):
        for i in range(height):
            for j in range(width):
                total = 0.0 if bias is None else float(bias[o])
                for u in range(weight.shape[2]):
                    for v in range(weight.shape[3]):
                        y, x = i + (u - reach) * dilation, j + (v - reach) * dilation
                        if 0 <= y < height and 0 <= x < width:
                            total += float(weight[o, :, u, v] @ maps[:, y, x])
                result[o, i, j] = total
    return result


def batch_norm(maps: Array, state: dict[str, Array], prefix: str, epsilon: float = 1e-5) -> Array:
    """With its running statistics; `state` holds weight, bias, running_mean and running_var below `prefix`."""
    result = np.empty_like(maps)
    for c in range(len(maps)):
        deviation = math.sqrt(float(state[f"{prefix}.running_var"][c]) + epsilon)
        scaled = (maps[c] - state[f"{prefix}.running_mean"][c]) / deviation
        result[c] = scaled * state[f"{prefix}.weight"][c] + state[f"{prefix}.bias"][c]
    return result


def block(maps: Array, state: dict[str, Array], prefix: str, dilation: int = 1) -> Array:
    """Convolution, batch norm, ReLU."""
    convolved = convolution(maps, state[f"{prefix}.0.weight"], dilation=dilation)
    return np.maximum(batch_norm(convolved, state, f"{prefix}.1"), 0.0)


def sigmoid(values: Array) -> Array:
    return 1 / (1 + np.exp(-values))


def channel_layers(vector: Array, state: dict[str, Array]) -> Array:
    hidden = np.maximum(state["channel.0.weight"] @ vector + state["channel.0.bias"], 0.0)
    return state["channel.2.weight"] @ hidden + state["channel.2.bias"]


def pooled(maps: Array, kind: str) -> Array:
    return np.array([channel.mean() if kind == "mean" else channel.max() for channel in maps])


def multi_scale_attention(
    maps: Array, state: dict[str, Array], *, dilations: tuple[int, ...] = (1, 2, 3), added: bool = True
) -> Array:
    """Eq. 2 for one image (C, h, w); other dilations and a missing `+ f` are mistakes."""
    scales = np.concatenate([block(maps, state, f"scales.{n}", dilation) for n, dilation in enumerate(dilations)])
    narrow = block(block(scales, state, "spatial.0"), state, "spatial.1")
    spatial = sigmoid(convolution(narrow, state["spatial.2.weight"], state["spatial.2.bias"]))  # (1, h, w)
    channel = sigmoid(channel_layers(pooled(maps, "mean"), state) + channel_layers(pooled(maps, "maximum"), state))
    result = np.empty_like(maps)
    for c, i, j in np.ndindex(maps.shape):
        result[c, i, j] = spatial[0, i, j] * channel[c] * maps[c, i, j] + (maps[c, i, j] if added else 0.0)
    return result


def squeeze_excitation(maps: Array, state: dict[str, Array]) -> Array:
    channel = sigmoid(channel_layers(pooled(maps, "mean"), state))
    return np.array([weight * values for weight, values in zip(channel, maps, strict=True)])


def residual_attention(maps: Array, state: dict[str, Array], *, residual: bool = True) -> Array:
    """(1 + mask) * map; without the 1 it is a mistake."""
    channels, height, width = maps.shape
    small = np.full((channels, (height + 1) // 2, (width + 1) // 2), -np.inf)
    for c, i, j in np.ndindex(small.shape):
        window = maps[c, max(0, 2 * i - 1) : 2 * i + 2, max(0, 2 * j - 1) : 2 * j + 2]
        small[c, i, j] = window.max()
    inner = block(block(small, state, "unit.0"), state, "unit.1")
    inner = batch_norm(convolution(inner, state["unit.2.weight"]), state, "unit.3")
    small = np.maximum(small + inner, 0.0)
    large = np.empty_like(maps)
    for c, i, j in np.ndindex(maps.shape):
        y, x = (i + 0.5) * small.shape[1] / height - 0.5, (j + 0.5) * small.shape[2] / width - 0.5
        large[c, i, j] = bilinear(small[c], x, y)
    last = convolution(block(large, state, "up.0"), state["up.1.weight"], state["up.1.bias"])
    return (sigmoid(last) + (1.0 if residual else 0.0)) * maps


def part_distance(main: Array, partial: Array) -> float:
    """Mean over the rows of |N(g) - N(h)|, the sum inside Eq. 3."""
    total = 0.0
    for g, h in zip(main, partial, strict=True):
        g_length, h_length = math.sqrt(sum(x * x for x in g)), math.sqrt(sum(x * x for x in h))
        total += math.sqrt(sum((x / g_length - y / h_length) ** 2 for x, y in zip(g, h, strict=True)))
    return total / len(main)


def uncertainty_weighted(losses: list[float], log_variances: list[float]) -> float:
    """Eq. 7 in the paper's own terms: L / sigma^2 + log(sigma)."""
    total = 0.0
    for loss, log_variance in zip(losses, log_variances, strict=True):
        sigma = math.sqrt(math.exp(min(max(log_variance, -4.0), 4.0)))
        total += loss / sigma**2 + math.log(sigma)
    return total
