"""What a classifier leaves beside its weights to tell images that are unlike its training data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs._classify_data import Samples
from medray import log
from medray.rundir import RunDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from medray.models.classifier import Classifier
    from medray.stream import Fact, Roster

# Enough for the covariance of a few hundred numbers.
MOST_IMAGES = 2000


def leave_familiarity(
    run: RunDir, model: Classifier, found: Samples, sha256: str, device: torch.device
) -> dict[str, Any]:
    """Fits distances on training images and their threshold on validation; figures of it."""
    from dataclasses import asdict

    from medray.evaluate import ood

    training_ND = _rows(model, found.train, found.train_facts, device)
    validation_ND = _rows(model, found.validation, found.validation_facts, device)
    try:
        fitted = ood.fit(training_ND, validation_ND, sha256)
    except ValueError as error:
        log.event("familiarity", f"images unlike the training data cannot be told: {error}")
        return {"threshold": None, "reason": str(error)}
    fitted.save(run.store.child("model"))
    facts = asdict(fitted.facts)
    text = f"unlike the training data: a distance past {fitted.facts.threshold:.3f}"
    log.event("familiarity", text, **facts)
    return {name: facts[name] for name in ("threshold", "expected", "validation_images")}


def _rows(
    model: Classifier, roster: Roster, facts: list[Fact], device: torch.device
) -> npt.NDArray[np.float64]:
    """Rows of `ood.describe` of at most MOST_IMAGES samples, evenly over the split."""
    import numpy as np
    import torch

    from medray.evaluate import ood
    from medray.models.pixels import resized, to_unit

    step = -(-len(facts) // MOST_IMAGES)
    rows = []
    with torch.no_grad():
        for images in roster.images(facts[::step]):
            seen_NCHW = resized(to_unit(torch.from_numpy(images)).to(device), model.size_px)
            features_NF = model.features(seen_NCHW).cpu().numpy()
            rows.append(ood.describe(seen_NCHW.cpu().numpy(), features_NF))
    return np.concatenate(rows)
