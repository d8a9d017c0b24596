"""A jigsaw judged while it trains: on puzzles of held-out patients, by its features' neighbours.

Shape letters: N puzzles or frames, S = 9 places, C channels, p pixels of a view, D features,
P permutations.

The puzzles are the same each time: frames evenly over those held out, permutations and offsets of
fixed addresses; once as cut, once turned, moved and noisy as in training. The probe uses labels to
report, never to train or to choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from medray import report, rng
from medray.kernels.neighbours import nearest_ref
from medray.metrics import UndefinedMetricError
from medray.metrics.intervals import bootstrap
from medray.models.encoder import SMALLEST_PX
from medray.models.jigsaw import Jigsaw
from medray.models.pixels import resized, to_unit
from medray.rundir import RunDir
from medray.stream.frames import Frames
from medray.stream.views import PLACES, SIDE, Views
from medray.train.jigsaw import JigsawTraining
from medray.train.jigsaw_batches import orders_of
from medray.train.targets import patient_of

STREAM = "jigsaw.validation"
BATCH, PROBE_BATCH = 64, 16
# More than any score (1 - accuracy): weights that answer with NaN are never the best.
WORST = 2.0
NEIGHBOURS = 5
SHOWN = 6
GAP_PX = 2
WRONG_RGB = (255, 96, 64)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Puzzles:
    """Puzzles to be judged by, N: views as cut and as in training, the patient."""

    views_NSCpp: Floats
    augmented_NSCpp: Floats
    order_N: npt.NDArray[np.int64]
    patient_N: npt.NDArray[np.str_]


def puzzles_of(
    frames: Frames, permutations: Sequence[str], plain: Views, augmented: Views, count: int
) -> Puzzles:
    """`count` puzzles of frames evenly over all; their permutations are drawn from seed 0."""
    number_N = np.arange(count)
    frame_N = number_N * len(frames.frames_FCHW) // count
    order_N = rng.integers(0, STREAM, number_N, 1, 0, len(permutations))[:, 0]
    orders_NS = orders_of(permutations)[order_N]
    patients = np.array([patient_of(fact) for fact in frames.facts])
    views, augmented_views = (
        made_by.make(frames.frames_FCHW, frame_N, number_N, orders_NS)
        for made_by in (plain, augmented)
    )
    return Puzzles(views, augmented_views, order_N, patients[frames.clip_F[frame_N]])


class Validation:
    """The snapshot of a jigsaw's run: scores, curves, pictures, the best weights kept.

    The score is 1 minus the accuracy on puzzles as cut.
    """

    def __init__(self, model: JigsawTraining, run: RunDir, puzzles: Puzzles, probe: Probe) -> None:
        self.model, self.run, self.puzzles, self.probe = model, run, puzzles, probe
        self._images = 0

    def __call__(self, images: int) -> dict[str, float]:
        """Figures after `images` frames."""
        self._images = images
        network, device = self.model.ready(), self.model.context.device
        judged = judge(network, self.puzzles.views_NSCpp, self.puzzles.order_N, device)
        figures = {"score": WORST}
        if judged.finite:
            augmented = judge(network, self.puzzles.augmented_NSCpp, self.puzzles.order_N, device)
            accuracy = float(judged.right_N.mean())
            figures = {
                "accuracy": accuracy,
                "augmented_accuracy": float(augmented.right_N.mean()),
                "pieces": float(judged.pieces_N.mean()),
                "loss": judged.loss,
                "score": 1 - accuracy,
            }
            figures |= {f"probe_{name}": v for name, v in self.probe(network, device).items()}
        self.model.keep_if_best(figures["score"], images)
        draw_progress(self.run)
        self.run.write_picture("puzzles.png", puzzles_png(self.puzzles, judged))
        return figures

    def enough(self) -> bool:
        """Whether the score has not fallen for as long as the configuration waits."""
        return self._images - self.model.best_images >= self.model.config.patience


def draw_progress(run: RunDir) -> None:
    """Draws the curves of the rows so far."""
    if rows := run.metrics():
        probes = sorted({name for row in rows for name in row if "/probe_" in name})
        panels: dict[str, Sequence[str]] = {
            "loss": ("train/loss", "snapshot/loss"),
            "accuracy": ("train/accuracy", "snapshot/accuracy", "snapshot/augmented_accuracy"),
            **({"nearest neighbours": probes} if probes else {}),
            "share of time that waits for data": ("perf/data_wait_share",),
        }
        run.write_picture("progress.png", report.curves_png(rows, panels))


@dataclass(frozen=True)
class Judged:
    """What a network said of N puzzles and what is so; `pieces_N` is the share in its place."""

    said_NS: npt.NDArray[np.int64]
    true_NS: npt.NDArray[np.int64]
    right_N: npt.NDArray[np.bool_]
    pieces_N: npt.NDArray[np.float64]
    loss: float
    finite: bool


@torch.no_grad()
def judge(
    network: Jigsaw, views_NSCpp: Floats, order_N: npt.NDArray[np.int64], device: torch.device
) -> Judged:
    """The network on puzzles whose permutations have the numbers `order_N`."""
    parts: list[Tensor] = []
    for first in range(0, len(views_NSCpp), BATCH):
        views = torch.from_numpy(views_NSCpp[first : first + BATCH]).to(device)
        parts.append(network(views).cpu())
    logits_NP = torch.cat(parts)
    orders_PS = network.orders.cpu().numpy()
    said_N = logits_NP.argmax(1).numpy()
    said_NS, true_NS = orders_PS[said_N], orders_PS[order_N]
    loss = float(functional.cross_entropy(logits_NP, torch.from_numpy(order_N)))
    finite = bool(logits_NP.isfinite().all())
    pieces_N = (said_NS == true_NS).mean(1)
    return Judged(said_NS, true_NS, said_N == order_N, pieces_N, loss, finite)


def figures(judged: Judged, puzzles: Puzzles, seed: int, draws: int) -> dict[str, Any]:
    """Accuracy and share of pieces in their place, {estimate, low, high} over patients (95%)."""
    found: dict[str, Any] = {
        "puzzles": len(judged.right_N),
        "patients": len(np.unique(puzzles.patient_N)),
    }
    for name, values_N in (("accuracy", judged.right_N * 1.0), ("pieces", judged.pieces_N)):
        estimate, low, high = float(values_N.mean()), None, None
        if found["patients"] > 1:
            _, low, high = bootstrap(
                lambda rows, v=values_N: float(v[rows].mean()),  # type: ignore[misc]
                puzzles.patient_N,
                seed=seed,
                draws=draws,
            )
        found[name] = {"estimate": estimate, "low": low, "high": high}
    return found


# --- the probe ----------------------------------------------------------------------------------


class Probe:
    """Whether frames that look alike to the encoder share labels: votes of 5 nearest neighbours.

    Neighbours are of other patients. A figure is the balanced accuracy of a label: the class, and
    each finding; a label with one value, or too few patients, has none.
    """

    def __init__(self, frames: Frames, count: int) -> None:
        chosen = np.unique(np.arange(count) * len(frames.frames_FCHW) // max(count, 1))
        clips = frames.clip_F[chosen]
        facts = [frames.facts[clip] for clip in clips]
        self._patients = np.array([patient_of(fact) for fact in facts])
        self._labels = {
            name: values for name, values in _labels_of(facts).items() if len(set(values)) > 1
        }
        self._frames_NCHW = frames.frames_FCHW[chosen] if self._labels else None

    @torch.no_grad()
    def __call__(self, network: Jigsaw, device: torch.device) -> dict[str, float]:
        """Balanced accuracy by label."""
        if self._frames_NCHW is None:
            return {}
        rows_ND = features_of(network, self._frames_NCHW, device)
        found = {}
        for name, values in self._labels.items():
            known = np.array([value is not None for value in values])
            truth = np.array([str(value) for value in values])[known]
            try:
                found[name] = neighbours_accuracy(rows_ND[known], truth, self._patients[known])
            except UndefinedMetricError:
                continue
        return found


def _labels_of(facts: Sequence[Any]) -> dict[str, list[Any]]:
    """The class and each finding, by name, a value a fact."""
    names = sorted({name for fact in facts for name in fact.labels})
    found: dict[str, list[Any]] = {
        name: [fact.labels.get(name) for fact in facts] for name in names
    }
    return {"label": [fact.label for fact in facts], **found}


def features_of(
    network: Jigsaw, frames_NCHW: npt.NDArray[Any], device: torch.device
) -> npt.NDArray[np.float64]:
    """Features of whole frames, each row of length 1, (N, D)."""
    parts = []
    for first in range(0, len(frames_NCHW), PROBE_BATCH):
        unit = to_unit(torch.from_numpy(frames_NCHW[first : first + PROBE_BATCH])).to(device)
        # Smaller frames than the encoder takes are enlarged, as their patches are.
        parts.append(network.features(resized(unit, max(SMALLEST_PX, unit.shape[-1]))).cpu())
    rows_ND = functional.normalize(torch.cat(parts).double())
    found: npt.NDArray[np.float64] = rows_ND.numpy()
    return found


def neighbours_accuracy(
    rows_ND: npt.NDArray[np.float64],
    truth_N: npt.NDArray[np.str_],
    patients_N: npt.NDArray[np.str_],
) -> float:
    """Balanced accuracy of the majority among the nearest rows of other patients.

    Of equal votes the nearer neighbour's counts. UndefinedMetricError for one class or one patient.
    """
    if len(np.unique(truth_N)) < 2 or len(np.unique(patients_N)) < 2:
        raise UndefinedMetricError("neighbours of other patients need two classes and two patients")
    right: dict[str, list[bool]] = {name: [] for name in np.unique(truth_N)}
    for patient in np.unique(patients_N):
        own = patients_N == patient
        others = truth_N[~own]
        _, indices_Nk = nearest_ref(rows_ND[own], rows_ND[~own], min(NEIGHBOURS, len(others)))
        for truth, near_k in zip(truth_N[own], others[indices_Nk], strict=True):
            votes = {name: (int((near_k == name).sum()), -place) for place, name in _first(near_k)}
            right[truth].append(max(votes, key=lambda name: votes[name]) == truth)
    return float(np.mean([np.mean(answers) for answers in right.values()]))


def _first(names_k: npt.NDArray[np.str_]) -> list[tuple[int, str]]:
    """Each name and the place at which it stands first."""
    return [(names_k.tolist().index(name), name) for name in dict.fromkeys(names_k.tolist())]


# --- the picture --------------------------------------------------------------------------------


def puzzles_png(puzzles: Puzzles, judged: Judged) -> bytes:
    """Puzzles in rows: shuffled, as the network solves them (misplaced pieces framed), solved."""
    some = np.unique(np.arange(SHOWN) * len(judged.right_N) // SHOWN)
    sheets = []
    for number in some:
        views_SCpp = puzzles.views_NSCpp[number]
        said_S = judged.said_NS[number]
        true_S = judged.true_NS[number]
        sheets.append(_laid(views_SCpp, np.arange(PLACES), np.ones(PLACES, bool)))
        sheets.append(_laid(views_SCpp, said_S, said_S == true_S))
        sheets.append(_laid(views_SCpp, true_S, np.ones(PLACES, bool)))
    return report.grid_png(np.stack(sheets), columns=3, cell_px=sheets[0].shape[-1])


def _laid(
    views_SCpp: Floats, places_S: npt.NDArray[np.int64], good_S: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    """Views at their places in a square of 3 x 3, (3, H, H); those that are not good framed."""
    view_px = views_SCpp.shape[-1]
    side = SIDE * view_px + (SIDE - 1) * GAP_PX
    sheet = np.full((3, side, side), report.GREY, np.uint8)
    for view_Cpp, place, good in zip(views_SCpp, places_S.tolist(), good_S, strict=True):
        tile = np.clip((view_Cpp + 1) * 127.5, 0, 255).astype(np.uint8)
        tile_3pp = np.broadcast_to(tile, (3, view_px, view_px)).copy()
        if not good:
            colour = np.asarray(WRONG_RGB, np.uint8)[:, None, None]
            inner = tile_3pp[:, GAP_PX:-GAP_PX, GAP_PX:-GAP_PX].copy()
            tile_3pp[:] = colour
            tile_3pp[:, GAP_PX:-GAP_PX, GAP_PX:-GAP_PX] = inner
        top, left = (at * (view_px + GAP_PX) for at in divmod(place, SIDE))
        sheet[:, top : top + view_px, left : left + view_px] = tile_3pp
    return sheet
