"""Images and masks of any size brought to the size of a batch's, the same way everywhere."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def resize_image(raw: NDArray[np.uint8], out: NDArray[np.uint8], area_above: float) -> None:
    """Resize (h, w, 3) into `out` (H, W, 3), antialiased along axes that shrink by more than `area_above`."""
    height, width = raw.shape[:2]
    target_height, target_width = out.shape[:2]
    if height > area_above * target_height or width > area_above * target_width:
        # INTER_AREA averages only where neither axis grows: the growing axis, if any, is left for the linear pass
        smaller = (min(width, target_width), min(height, target_height))
        if smaller == (target_width, target_height):
            check_written(cv2.resize(raw, smaller, dst=out, interpolation=cv2.INTER_AREA), out)
            return
        raw = cv2.resize(raw, smaller, interpolation=cv2.INTER_AREA)
    resized = cv2.resize(raw, (target_width, target_height), dst=out, interpolation=cv2.INTER_LINEAR)
    check_written(resized, out)


def resize_mask(raw: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Resize (h, w) into `out` (H, W) by the nearest pixel centre (INTER_NEAREST is shifted by up to half a pixel)."""
    height, width = out.shape
    resized = cv2.resize(raw, (width, height), dst=out, interpolation=cv2.INTER_NEAREST_EXACT)
    check_written(resized, out)


def check_written(result: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """OpenCV writes into `dst` when type, size and strides allow; otherwise it returns another array."""
    if result is not out:
        np.copyto(out, result)
