"""NIfTI to frames along its slice axis; the patient's directions come from its affine.

NIfTI-1 and 2 in one file, gzipped or not. Values are scaled by slope and intercept where it has
them. Letters: T frames, H and W pixels; I, J, K the file's own axes.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from medray.errors import DataError
from medray.images.frames import MAX_VALUES, Frames, Vector, check_frames, native
from medray.images.pixels import Array

# Values of 8 bytes, and room for header and extensions.
MAX_INFLATED_BYTES = 8 * MAX_VALUES + (1 << 20)
# An axis is the slices' where its voxels are longer than the others' by this.
LONGER = 1.05


def nifti_frames(data: bytes) -> Frames:
    """The volume of a NIfTI file; DataError MR-D107 for more than three axes, and for colour."""
    try:
        import nibabel
    except ImportError:
        hint = "install medray[dicom]"
        raise DataError("nibabel is missing", code="MR-D105", hint=hint) from None
    data = inflated(data, MAX_INFLATED_BYTES)
    kind = nibabel.Nifti2Image if _head(data)[1] == 540 else nibabel.Nifti1Image
    volume = kind.from_bytes(data)
    shape = tuple(int(length) for length in volume.shape)
    if len(shape) > 3 and set(shape[3:]) == {1}:
        shape = shape[:3]
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3:
        raise DataError(f"the volume has shape {shape}; three axes are wanted", code="MR-D107")
    axis = _slice_axis(volume)
    check_frames((shape[axis], *(shape[k] for k in range(3) if k != axis)))
    values_IJK = _values(volume).reshape(shape)
    others = [k for k in range(3) if k != axis]
    affine = np.asarray(volume.affine, np.float64)[:3, :3]
    lengths = np.linalg.norm(affine, axis=0)
    if not (np.isfinite(affine).all() and (lengths > 0).all()):
        raise DataError("the volume's affine is not one of a volume", code="MR-D102")
    first, second = others
    directions = [_vector(affine[:, k] / lengths[k]) for k in (axis, first, second)]
    return Frames(
        native(np.transpose(values_IJK, (axis, first, second))),
        8 if values_IJK.dtype == np.uint8 else 16,
        spacing_mm=(float(lengths[first]), float(lengths[second])),
        slice_mm=float(lengths[axis]),
        directions=(directions[0], directions[1], directions[2]),
    )


def nifti_bits(data: bytes) -> int:
    """8 for unsigned bytes, else 16; the header is enough, but a gzipped file must be whole."""
    head = inflated(data, 1 << 10, partly=True)
    order, size = _head(head)
    at = 12 if size == 540 else 70
    return 8 if struct.unpack_from(f"{order}h", head, at)[0] == 2 else 16


def inflated(data: bytes, most: int, *, partly: bool = False) -> bytes:
    """The file without gzip, up to a cap; `partly`: no more than that of it."""
    from isal import isal_zlib

    if data[:2] != b"\x1f\x8b":
        return data
    stream = isal_zlib.decompressobj(31)
    body: bytes = stream.decompress(data, most)
    if partly:
        return body
    if stream.unconsumed_tail:
        raise DataError(f"the file inflates past {most >> 20} MiB", code="MR-D113")
    if not stream.eof:
        raise DataError("damaged NIfTI: its gzip stream is cut", code="MR-D102")
    return body


def _head(data: bytes) -> tuple[str, int]:
    """Byte order and length of the header; DataError for what is no NIfTI (a gzip of else)."""
    for order in "<>":
        size = struct.unpack(f"{order}i", data[:4])[0] if len(data) >= 4 else 0
        if size == 348 and data[344:348] == b"n+1\0" or size == 540 and data[4:8] == b"n+2\0":
            return order, size
    raise DataError("not a NIfTI volume in one file (.nii, .nii.gz)", code="MR-D101")


def _slice_axis(volume: Any) -> int:
    """The axis that the header names, else the one with the longest voxels, else the third."""
    named = volume.header.get_dim_info()[2]
    if named is not None:
        return int(named)
    zooms = [float(zoom) for zoom in volume.header.get_zooms()[:3]]
    longest = max(range(len(zooms)), key=zooms.__getitem__)
    rest = [zoom for axis, zoom in enumerate(zooms) if axis != longest]
    return longest if len(zooms) == 3 and zooms[longest] > LONGER * max(rest) else 2


def _values(volume: Any) -> Array:
    proxy = volume.dataobj
    values: Array = proxy.get_unscaled()
    if values.dtype.kind not in "buif":
        raise DataError(f"the volume holds {values.dtype}; numbers are wanted", code="MR-D107")
    if (proxy.slope, proxy.inter) == (1, 0):
        return values
    return values.astype(np.float32) * np.float32(proxy.slope) + np.float32(proxy.inter)


def _vector(values: Array) -> Vector:
    return float(values[0]), float(values[1]), float(values[2])
