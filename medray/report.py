"""Pictures and pages that a run leaves: grids, film strips, curves, one self-contained HTML file.

Shape letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medray.images.png import encode_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = npt.NDArray[np.uint8]
GAP_PX = 2
GREY = 96


def grid(images_NCHW: Pixels, *, columns: int, cell_px: int) -> Pixels:
    """Images side by side, each enlarged by a whole factor to `cell_px` at most; (H, W[, 3])."""
    factor = max(1, cell_px // images_NCHW.shape[-1])
    big_NCHW = images_NCHW.repeat(factor, axis=2).repeat(factor, axis=3)
    count, channels, height, width = big_NCHW.shape
    rows = -(-count // columns)
    sheet_HWC = np.full(
        (rows * (height + GAP_PX) - GAP_PX, columns * (width + GAP_PX) - GAP_PX, channels),
        GREY,
        np.uint8,
    )
    for number, image_CHW in enumerate(big_NCHW):
        top = number // columns * (height + GAP_PX)
        left = number % columns * (width + GAP_PX)
        sheet_HWC[top : top + height, left : left + width] = image_CHW.transpose(1, 2, 0)
    return sheet_HWC[:, :, 0] if channels == 1 else sheet_HWC


def grid_png(images_NCHW: Pixels, *, columns: int = 8, cell_px: int = 64) -> bytes:
    """`grid` as PNG."""
    return encode_png(np.ascontiguousarray(grid(images_NCHW, columns=columns, cell_px=cell_px)))


def strip_png(sheets: Sequence[Pixels], *, rows_px: int) -> bytes:
    """The top `rows_px` of each sheet, one below the other: how the same latents grew."""
    width = min(sheet.shape[1] for sheet in sheets)
    cuts = [sheet[:rows_px, :width] for sheet in sheets]
    gap = np.full((GAP_PX, *cuts[0].shape[1:]), GREY, np.uint8)
    parts = [part for cut in cuts for part in (cut, gap)][:-1]
    return encode_png(np.ascontiguousarray(np.concatenate(parts)))


def attention_png(
    clips: Sequence[Pixels], weights_NT: npt.NDArray[Any], cell_px: int = 64
) -> bytes:
    """Clips (T, H, W), one below the other, each frame over a bar of its share of the clip's most.

    The longest bar of a clip is that of the frame that weighs most.
    """
    bar_px, sheets = 14, []
    for frames_THW, weights_T in zip(clips, weights_NT, strict=True):
        sheet = grid(frames_THW[:, None], columns=len(frames_THW), cell_px=cell_px)
        bars = np.full((bar_px, sheet.shape[1]), GREY, np.uint8)
        cell = (sheet.shape[1] + GAP_PX) // len(frames_THW)
        for number, share in enumerate(weights_T / max(float(weights_T.max()), 1e-12)):
            left, high = number * cell, max(1, round(float(share) * bar_px))
            bars[bar_px - high :, left : left + cell - GAP_PX] = 255
        sheets.append(np.concatenate([sheet, bars]))
    return strip_png(sheets, rows_px=max(len(sheet) for sheet in sheets))


def curves_png(rows: Sequence[Mapping[str, Any]], panels: Mapping[str, Sequence[str]]) -> bytes:
    """Curves over images seen; `panels` maps a title to the metrics drawn in it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.0), layout="constrained")
    for number, (title, names) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for name in names:
            points = [(row["images"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=name.rpartition("/")[2], linewidth=1)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("images seen", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def matrix_png(counts_KK: Sequence[Sequence[int]], names: Sequence[str]) -> bytes:
    """A confusion matrix: truth in rows, shares of a row as shades, counts as numbers."""
    from matplotlib.figure import Figure

    counts = np.asarray(counts_KK, np.float64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.2 + 0.7 * len(names)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        shade = "white" if shares[row, column] > 0.5 else "black"
        text = f"{counts[row, column]:.0f}\n{shares[row, column]:.0%}"
        axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("said", fontsize=8)
    axes.set_ylabel("is", fontsize=8)
    return _png(figure)


def reliability_png(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> bytes:
    """Probabilities said (x) against shares that were so (y), a curve a name; the diagonal is
    right."""
    return _by_diagonal(curves, "probability said", "share that was so", len(curves))


def roc_png(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> bytes:
    """True positive rates (y) over false positive rates (x), a curve a name; the diagonal is
    chance."""
    return _by_diagonal(curves, "real called synthetic", "synthetic called synthetic", 12)


def _by_diagonal(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, most_named: int
) -> bytes:
    """Curves beside the diagonal; more than `most_named` have no legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot((0, 1), (0, 1), color="grey", linewidth=0.8)
    for name, (along, up) in curves.items():
        axes.plot(along, up, marker="o", markersize=3, linewidth=1, label=name)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.grid(alpha=0.3)
    if 0 < len(curves) <= most_named:
        axes.legend(fontsize=7)
    return _png(figure)


def scatter_png(groups: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> bytes:
    """Real (circles) and made (crosses) points (N, 2) of each name, a panel a name, one scale."""
    from matplotlib.figure import Figure

    points = np.concatenate([part for pair in groups.values() for part in pair])
    low_2, high_2 = points.min(0), points.max(0)
    figure = Figure(figsize=(3.2 * len(groups), 3.2), layout="constrained")
    for number, (name, (real_N2, made_M2)) in enumerate(groups.items()):
        axes = figure.add_subplot(1, len(groups), number + 1)
        axes.scatter(
            real_N2[:, 0], real_N2[:, 1], s=9, facecolors="none", edgecolors="C0", label="real"
        )
        axes.scatter(
            made_M2[:, 0], made_M2[:, 1], s=9, marker="x", linewidths=0.7, color="C1", label="made"
        )
        axes.set_xlim(low_2[0], high_2[0])
        axes.set_ylim(low_2[1], high_2[1])
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7)
    return _png(figure)


STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; image-rendering: pixelated; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
pre { overflow: auto; } .note { opacity: .75; }
"""


def page(title: str, parts: Sequence[tuple[str, str]]) -> str:
    """One HTML page without outside references; `parts` are (heading, HTML)."""
    body = "\n".join(f"<h2>{html.escape(head)}</h2>\n{content}" for head, content in parts)
    note = "Research use only. Not for diagnosis. Synthetic images are marked as such."
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f'<h1>{html.escape(title)}</h1><p class="note">{note}</p>\n{body}\n</html>\n'
    )


def picture(png: bytes, text: str) -> str:
    """An image for `page`, embedded."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


def table(rows: Mapping[str, Any]) -> str:
    """Names and values for `page`."""
    cells = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(_shown(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{cells}</table>"


def columns(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table with a head for `page`."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_shown(value))}</td>" for value in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def preformatted(text: str) -> str:
    """Text as it is, for `page`."""
    return f"<pre>{html.escape(text)}</pre>"


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
