"""Heat as pictures: by itself, as a mask, over the image. Shapes: (H, W) or (H, W, 3)."""

from __future__ import annotations

import cv2
import numpy as np

from medray.images import encode_png, to_bits
from serve.records import Array, Heat

# How much of the hottest pixel is colour; the rest stays the image.
OPACITY = 0.6


def heatmap_png(heat_HW: Heat) -> bytes:
    """Heat in [0, 1] as grey levels."""
    return encode_png(_grey(heat_HW))


def mask_png(heat_HW: Heat, threshold: float) -> bytes:
    """255 where heat is at the threshold or above."""
    inside = (heat_HW >= threshold) & (heat_HW > 0)
    return encode_png(inside.astype(np.uint8) * np.uint8(255))


def overlay_png(image: Array, heat_HW: Heat) -> bytes:
    """The image with heat in colour over it, the more the hotter; RGB."""
    eight = to_bits(image, 8)
    shown = np.stack([eight] * 3, axis=-1) if eight.ndim == 2 else eight
    if shown.shape[:2] != heat_HW.shape:
        size = (heat_HW.shape[1], heat_HW.shape[0])
        shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
    colours = cv2.applyColorMap(_grey(heat_HW), cv2.COLORMAP_INFERNO)[..., ::-1]
    share_HW1 = OPACITY * np.clip(heat_HW, 0, 1)[..., None]
    mixed = shown * (1 - share_HW1) + colours * share_HW1
    return encode_png(np.ascontiguousarray(np.rint(mixed), np.uint8))


def _grey(heat_HW: Heat) -> Array:
    return np.rint(np.clip(heat_HW, 0, 1) * 255).astype(np.uint8)
