"""DICOM to grey or RGB: only an allow-list of attributes is ever read, the first frame is taken.

The order is the standard's (PS3.3 C.11): stored values, modality LUT or rescale, VOI LUT or window,
then MONOCHROME1 is inverted. Colour becomes RGB.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from medray.errors import DataError
from medray.images.functional_groups import GROUPS, take_first_frame
from medray.images.pixels import Decoded, Window, check_size, grey_levels, windowed

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Array = npt.NDArray[Any]
T = TypeVar("T")

# What survives of a file. Anything else is skipped while parsing and never becomes an object.
ALLOWED = (
    "SOPClassUID Modality BurnedInAnnotation ImageType "
    "SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns "
    "BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue "
    "PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing "
    "RescaleIntercept RescaleSlope ModalityLUTSequence "
    "WindowCenter WindowWidth VOILUTFunction VOILUTSequence "
    "RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor "
    "BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData "
    "GreenPaletteColorLookupTableData BluePaletteColorLookupTableData "
    "SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData "
    "SegmentedBluePaletteColorLookupTableData "
    "ExtendedOffsetTable ExtendedOffsetTableLengths PixelData FloatPixelData DoubleFloatPixelData"
).split()
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Deflated data sets are inflated up to here; a real one holds one image.
MAX_INFLATED_BYTES = 256 << 20
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_EXPLICIT = b"1.2.840.10008.1.2.1\0\0\0"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Devices that write names and dates into the pixels.
_OFTEN_BURNED_IN = frozenset(("US", "XA", "SC"))


@dataclass(frozen=True, slots=True)
class Header:
    """What planning needs of a file; `patient` is the raw id and must not leave the process."""

    bits: int
    patient: str | None
    burned_in: bool | None


def decode_dicom(data: bytes, window: Window = "auto") -> Decoded:
    """The first frame of a DICOM file; DataError for anything that cannot be decoded."""
    with quiet():
        dataset = guarded(lambda: _read_first_frame(data))
        return guarded(lambda: to_decoded(dataset, window))


def dicom_header(data: bytes) -> Header:
    """Bits, patient and burned-in annotation of a DICOM file, without decoding its pixels."""
    with quiet():
        return guarded(lambda: _header(data))


def _header(data: bytes) -> Header:
    dataset = read(data, "PatientID")
    check_pixels(dataset)
    patient = str(dataset.get("PatientID") or "").strip()
    return Header(bits_of(dataset), patient or None, burned_in_of(dataset))


def read(data: bytes, *more: str) -> Dataset:
    """The allow-listed attributes of a DICOM file, and those named in `more`."""
    import pydicom
    from pydicom.tag import Tag

    tags = [Tag(name) for name in (*ALLOWED, *more)]
    return pydicom.dcmread(io.BytesIO(_inflated(data)), specific_tags=tags)


def _read_first_frame(data: bytes) -> Dataset:
    dataset = read(data, *GROUPS)
    take_first_frame(dataset)
    return dataset


def first_frame(dataset: Dataset) -> Array:
    """Stored values of the first frame, (H, W) or (H, W, 3); YBR is turned into RGB."""
    from pydicom.pixels.utils import pixel_array

    check_pixels(dataset)
    return pixel_array(dataset, index=0)


def to_decoded(dataset: Dataset, window: Window = "auto") -> Decoded:
    """The first frame as grey levels or RGB, with the facts that may go with it."""
    stored = first_frame(dataset)
    if stored.ndim == 3 and stored.shape[2] != 3:
        raise DataError(f"{stored.shape[2]} samples per pixel; 1 or 3 are wanted", code="MR-D105")
    bits, used = bits_of(dataset), None
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        image = palette_levels(stored, dataset, bits)
    elif stored.ndim == 3:
        image = _full_range(stored, dataset, bits)
    else:
        image, used = _grey(stored, dataset, window, bits)
    return Decoded(
        np.ascontiguousarray(image),
        bits,
        modality=text_of(dataset, "Modality"),
        spacing_mm=spacing_mm_of(dataset),
        window=used,
        burned_in=burned_in_of(dataset),
        frames=frame_count(dataset),
    )


# --- bytes to a data set ----------------------------------------------------------------------


def _inflated(data: bytes) -> bytes:
    """The file with a deflated data set inflated, up to a cap that pydicom does not have."""
    end = _meta_end(data)
    if _DEFLATED not in data[:end]:
        return data
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    body = stream.decompress(data[end:], MAX_INFLATED_BYTES)
    if stream.unconsumed_tail:
        raise DataError(
            f"the deflated data set grows past {MAX_INFLATED_BYTES >> 20} MiB", code="MR-D113"
        )
    return data[:end].replace(_DEFLATED, _EXPLICIT, 1) + body


def _meta_end(data: bytes) -> int:
    """Where the file meta information (group 2, explicit VR little endian) ends."""
    start = 132
    while start + 8 <= len(data) and data[start : start + 2] == b"\2\0":
        long_form = data[start + 4 : start + 6] in (b"OB", b"OW", b"UN", b"UT", b"SQ")
        if long_form:
            length = struct.unpack("<I", data[start + 8 : start + 12].ljust(4, b"\0"))[0]
        else:
            length = struct.unpack("<H", data[start + 6 : start + 8])[0]
        start += length + (12 if long_form else 8)
    return min(start, len(data))


def check_pixels(dataset: Dataset) -> None:
    """Refuses what has no pixels or too many of them, before any of them is decoded."""
    if not any(name in dataset for name in PIXELS):
        raise DataError("the DICOM file has no pixels", code="MR-D104", hint="leave it out")
    check_size(int(dataset.Columns), int(dataset.Rows))


class quiet:
    """pydicom's warnings and log lines quote values of the file: none of them gets out."""

    def __enter__(self) -> None:
        self._catcher = warnings.catch_warnings()
        self._catcher.__enter__()
        warnings.simplefilter("ignore")
        self._logger = logging.getLogger("pydicom")
        self._level = self._logger.level
        self._logger.setLevel(logging.CRITICAL + 1)  # for the loggers below it too

    def __exit__(self, *error: object) -> None:
        self._logger.setLevel(self._level)
        self._catcher.__exit__(None, None, None)


def guarded(work: Callable[[], T]) -> T:
    """Runs `work`; whatever a parser raises becomes one DataError without the file's values."""
    try:
        return work()
    except (DataError, MemoryError):
        raise
    except ImportError:
        hint = "install medray[dicom]"
        raise DataError("pydicom or a codec of it is missing", code="MR-D105", hint=hint) from None
    except NotImplementedError:
        raise DataError(
            "its compression (transfer syntax) is not supported", code="MR-D105"
        ) from None
    except BaseException as error:
        # pydicom and its codecs raise eleven kinds and more, whose texts quote the file; a panic in
        # a codec written in Rust is not even an Exception.
        kind = type(error).__name__
        if not isinstance(error, Exception) and kind != "PanicException":
            raise
        raise DataError(
            f"the DICOM file cannot be decoded ({kind})", code="MR-D102", hint="get the file again"
        ) from None


# --- values to grey levels --------------------------------------------------------------------


def bits_of(dataset: Dataset) -> int:
    if "PixelData" not in dataset:
        return 16
    return 8 if int(dataset.get("BitsStored") or dataset.BitsAllocated) <= 8 else 16


def _full_range(stored: Array, dataset: Dataset, bits: int) -> Array:
    """Stored unsigned values spread from the bits stored to 8 or 16."""
    depth = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    if depth == bits and stored.dtype.kind == "u" and stored.itemsize * 8 == bits:
        return stored
    low = -float(1 << (depth - 1)) if stored.dtype.kind == "i" else 0.0
    return grey_levels(stored, low, low + float((1 << depth) - 1), bits)


def palette_levels(stored: Array, dataset: Dataset, bits: int) -> Array:
    from pydicom.pixels.processing import apply_color_lut

    coloured = apply_color_lut(stored, dataset)
    return grey_levels(coloured, 0, float(np.iinfo(coloured.dtype).max), bits)


def _grey(
    stored: Array, dataset: Dataset, window: Window, bits: int
) -> tuple[Array, tuple[float, float] | None]:
    from pydicom.pixels.processing import apply_modality_lut

    values = apply_modality_lut(stored, dataset)
    image, used = _windowed(stored, values, dataset, window, bits)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        image = np.bitwise_not(image)
    return image, used


def _windowed(
    stored: Array, values: Array, dataset: Dataset, window: Window, bits: int
) -> tuple[Array, tuple[float, float] | None]:
    if window != "auto":
        return windowed(values, window, bits)
    if dataset.get("VOILUTSequence"):
        return _voi_lut(values, dataset, bits), None
    own = _own_window(dataset)
    if own is not None:
        return _own_windowed(values, own, str(dataset.get("VOILUTFunction") or "LINEAR"), bits), own
    if bits == 8 and stored.dtype.kind == "u" and np.array_equal(values, stored):
        return _full_range(stored, dataset, bits), None
    return windowed(values, "minmax", bits)


def _voi_lut(values: Array, dataset: Dataset, bits: int) -> Array:
    from pydicom.pixels.processing import apply_voi

    # The table is addressed by whole values; a rescale by a fraction has made floats of them.
    levels = apply_voi(np.rint(values).astype(np.int32), dataset)
    descriptor = dataset.VOILUTSequence[0].LUTDescriptor
    return grey_levels(levels, 0, float((1 << int(descriptor[2])) - 1), bits)


def _own_window(dataset: Dataset) -> tuple[float, float] | None:
    """The file's first window, if it has one that means something."""
    centre, width = number_of(dataset, "WindowCenter"), number_of(dataset, "WindowWidth")
    exact = str(dataset.get("VOILUTFunction") or "LINEAR") != "LINEAR"
    if centre is None or width is None or width < (1e-12 if exact else 1):
        return None
    return centre, width


def _own_windowed(values: Array, own: tuple[float, float], function: str, bits: int) -> Array:
    """PS3.3 C.11.2.1.2: LINEAR, LINEAR_EXACT, SIGMOID."""
    centre, width = own
    if function == "SIGMOID":
        exponent = -4 * (values.astype(np.float32) - centre) / width
        curve = 1 / (1 + np.exp(np.clip(exponent, -80, 80)))
        return grey_levels(curve, 0, 1, bits)
    if function == "LINEAR_EXACT":
        return grey_levels(values, centre - width / 2, centre + width / 2, bits)
    low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    if width == 1:  # a step: black up to centre - 0.5, white above
        return grey_levels(values > low, 0, 1, bits)
    return grey_levels(values, low, high, bits)


# --- facts ------------------------------------------------------------------------------------


def number_of(dataset: Dataset, name: str) -> float | None:
    """The first value of a number attribute, None where it is absent, empty or not finite."""
    value = dataset.get(name)
    if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue":
        value = value[0] if len(value) else None
    if value is None or value == "":
        return None
    number = float(value)
    return number if np.isfinite(number) else None


def text_of(dataset: Dataset, name: str) -> str | None:
    """A code string; what does not look like one is not passed on."""
    value = str(dataset.get(name) or "")
    return value if 0 < len(value) <= 16 and value.replace("_", "").isalnum() else None


def spacing_mm_of(dataset: Dataset) -> tuple[float, float] | None:
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        value = dataset.get(name)
        if value is not None and type(value).__name__ == "MultiValue" and len(value) == 2:
            rows_mm, columns_mm = float(value[0]), float(value[1])
            if 0 < rows_mm < 1e3 and 0 < columns_mm < 1e3:
                return rows_mm, columns_mm
    return None


def frame_count(dataset: Dataset) -> int:
    return int(number_of(dataset, "NumberOfFrames") or 1)


def burned_in_of(dataset: Dataset) -> bool | None:
    """True for YES, and for devices that often do it unless the file says NO; None is unknown."""
    said = str(dataset.get("BurnedInAnnotation") or "").strip().upper()
    if said in ("YES", "NO"):
        return said == "YES"
    captured = str(dataset.get("SOPClassUID") or "").startswith(_SECONDARY_CAPTURE)
    return True if captured or text_of(dataset, "Modality") in _OFTEN_BURNED_IN else None
