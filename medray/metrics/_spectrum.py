"""Power of images per spatial frequency, and how sharp made images are beside real ones.

Shape letters: N images, C channels, H and W pixels, R radii.
"""

import numpy as np
from numpy.typing import NDArray

from medray.metrics._checks import Images, check_pair, grey_parts


def spectral_power(images: Images) -> NDArray[np.float64]:
    """Mean power per spatial frequency, (px // 2 + 1,): radius 0 to px / 2 cycles a picture.

    Each image loses its mean and is faded out to its borders (Hann), so that a border is no edge.
    ValueError for anything but finite (N, px, px), or (N, C, px, px) for the channels' mean.
    """
    check_pair(images, images)
    px = images.shape[-1]
    ring_HW, counts_R = _rings(px)
    window_H = np.hanning(px + 2)[1:-1]
    total_HW = np.zeros((px, px))
    for _, part_NHW in grey_parts(images, np.float64):
        part_NHW -= part_NHW.mean(axis=(1, 2), keepdims=True)
        part_NHW *= np.outer(window_H, window_H)
        for image_HW in part_NHW:
            total_HW += np.abs(np.fft.fft2(image_HW)) ** 2
    power_R = np.bincount(ring_HW.ravel(), total_HW.ravel())[: len(counts_R)]
    return np.asarray(power_R / (counts_R * len(images) * px**2))


def top_octave_ratio(real: Images, fake: Images) -> float:
    """Power of the fakes over the reals' from px / 4 to px / 2 cycles: 1 is as sharp as real.

    ValueError as in `sliced_wasserstein`, and where the real images have no power there.
    """
    check_pair(real, fake)
    px = real.shape[-1]
    _, counts_R = _rings(px)
    top = slice(px // 4 + 1, px // 2 + 1)
    reals, fakes = (
        float((spectral_power(images)[top] * counts_R[top]).sum()) for images in (real, fake)
    )
    if reals <= 0:
        raise ValueError("the real images have no power in the top octave: nothing to compare with")
    return fakes / reals


def _rings(px: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each frequency's radius, rounded, (H, W); how many frequencies have radius 0 to px // 2."""
    frequency_H = np.fft.fftfreq(px, 1 / px)
    ring_HW = np.rint(np.hypot(frequency_H[:, None], frequency_H[None, :])).astype(np.int64)
    return ring_HW, np.bincount(ring_HW.ravel())[: px // 2 + 1]
