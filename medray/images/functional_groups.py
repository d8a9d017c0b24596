"""The first frame of an enhanced multi-frame DICOM: what its functional groups say of its values.

PS3.3 C.7.6.16: a macro stands once for all frames (shared) or in each frame's item (per frame). Of
both only spacing, rescale and window are taken; the groups, which may name people, go at once.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
MACROS = {
    "PixelMeasuresSequence": ("PixelSpacing",),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
}


def take_first_frame(dataset: Dataset) -> None:
    """Puts the first frame's values where a single frame has them, and removes the groups."""
    for name in GROUPS:
        if name in dataset:
            item = _first_item(dataset, name)
            del dataset[name]
            if item is not None:
                _take(item, dataset)


def _first_item(dataset: Dataset, name: str) -> Dataset | None:
    """The first item, without parsing those of the other frames, of which there are thousands."""
    from pydicom.dataelem import RawDataElement
    from pydicom.filereader import read_sequence_item

    element: Any = dataset.get_item(name)
    if not isinstance(element, RawDataElement):
        items = dataset[name].value
        return items[0] if items else None
    if not element.value or element.VR not in (None, "SQ"):
        return None
    return read_sequence_item(
        io.BytesIO(element.value), element.is_implicit_VR, element.is_little_endian, "iso8859"
    )


def _take(group: Dataset, dataset: Dataset) -> None:
    for macro, names in MACROS.items():
        items = group.get(macro)
        if not items:
            continue
        for name in names:
            # A macro is the whole truth: what it leaves out has its default.
            if name in dataset:
                del dataset[name]
            if name in items[0]:
                setattr(dataset, name, items[0][name].value)
