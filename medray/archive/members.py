"""A synthetic image as a sample's members: pixels, provenance in the PNG, DICOM beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from medray.archive.plan import Plan
from medray.images.png import encode_png
from medray.records import Provenance, Sample
from medray.shards import encode_members

TEXT_KEYS = "SyntheticData Software Address Label Provenance".split()


def encoded(sample: Sample, plan: Plan) -> list[tuple[str, bytes]]:
    """The members (extension, bytes) of a sample, sorted by extension."""
    if plan.format == "npy":
        return encode_members(sample, "raw")
    members = [*encode_members(sample, None), ("png", png(sample))]
    if plan.format == "dicom":
        members.append(("dcm", dicom(sample, plan)))
    return sorted(members)


def png(sample: Sample) -> bytes:
    """The image as PNG with its provenance in text chunks."""
    return encode_png(sample.image, text(sample), filter="smallest")


def dicom(sample: Sample, plan: Plan) -> bytes:
    """The image as DICOM Secondary Capture."""
    from medray.images.secondary_capture import encode_secondary_capture

    about = _provenance(sample)
    return encode_secondary_capture(
        sample.image,
        address=about.address,
        model=f"pggan {about.generator_sha256[:12]}",
        seed=about.seed,
        label=sample.label or "",
        series=plan.name,
        audited=about.audited,
        body_part=plan.body_part,
    )


def text(sample: Sample) -> dict[str, str]:
    """What a PNG says of itself."""
    from medray import __version__

    about = _provenance(sample)
    record: Mapping[str, Any] = sample.record()["provenance"]
    body = json.dumps(record, sort_keys=True, separators=(",", ":"))
    values = ("YES", f"medray {__version__}", about.address, sample.label or "", body)
    return dict(zip(TEXT_KEYS, values, strict=True))


def _provenance(sample: Sample) -> Provenance:
    assert sample.provenance is not None, "a synthetic image has its provenance"
    return sample.provenance
