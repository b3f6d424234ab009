"""Coarse masks by plain OpenCV calls, step by step as METHOD 2.1 tells them: slow, obvious, imports nothing of ours."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np


def plain_padded(image: Any, size: int = 192, padding: int = 32) -> Any:
    """The image stretched to a square, with its edge repeated around it."""
    shrinks = image.shape[0] > size and image.shape[1] > size
    square = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return cv2.copyMakeBorder(square, padding, padding, padding, padding, cv2.BORDER_REPLICATE)


def plain_cut(padded: Any, size: int = 192, padding: int = 32, iterations: int = 5, seed: int = 0) -> Any:
    """(size + 2 padding, ...) bool: GrabCut's foreground."""
    labels = np.zeros(padded.shape[:2], np.uint8)
    background = np.zeros((1, 65), np.float64)
    foreground = np.zeros((1, 65), np.float64)
    cv2.setRNGSeed(seed)
    rectangle = (padding, padding, size, size)
    cv2.grabCut(padded, labels, rectangle, background, foreground, iterations, cv2.GC_INIT_WITH_RECT)
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def plain_square_mask(image: Any, size: int = 192, padding: int = 32, iterations: int = 5, seed: int = 0) -> Any:
    """(size, size) bool: foreground of the image and of the image turned by 180 degrees."""
    padded = plain_padded(image, size, padding)
    upright = plain_cut(padded, size, padding, iterations, seed)
    turned = plain_cut(np.ascontiguousarray(padded[::-1, ::-1]), size, padding, iterations, seed)
    both = upright & turned[::-1, ::-1]
    return both[padding:-padding, padding:-padding]


def plain_coarse_mask(image: Any, size: int = 192, padding: int = 32, iterations: int = 5, seed: int = 0) -> Any:
    """(H, W) uint8 0/1, or None where the foreground is outside 15 % to 95 % of the square."""
    square = plain_square_mask(image, size, padding, iterations, seed)
    if not 0.15 <= square.mean() <= 0.95:
        return None
    height, width = image.shape[:2]
    grows = height < size and width < size
    values = np.where(square, np.uint8(255), np.uint8(0))
    stretched = cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA if grows else cv2.INTER_LINEAR)
    return (stretched >= 128).astype(np.uint8)
