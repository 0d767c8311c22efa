"""The plots of a measured communication, as PNG: what a round costs by codec, and what a score costs by run."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

_MEASURED, _PROJECTED, _GRID, _MUTED = "#0072B2", "#B8B8B8", "#e0e0e0", "#444444"
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6E6E6E", "#000000"]  # Okabe and Ito
_MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class Bar:
    name: str
    bytes_per_client_round: float
    note: str
    """Beside the bar's end."""
    is_projection: bool


def bytes_by_codec(title: str, bars: Sequence[Bar]) -> bytes:
    """Horizontal bars on a logarithmic scale, the first on top; projections are grey."""
    figure = Figure(figsize=(9, 1.4 + 0.36 * len(bars)), layout="constrained", facecolor="white")
    axes = figure.add_subplot(xlabel="bytes per client and round, train messages, down and up together")
    figure.suptitle(title.replace("; ", "\n", 1), x=0.01, ha="left", fontsize=10)
    positions = range(len(bars))
    colours = [_PROJECTED if bar.is_projection else _MEASURED for bar in bars]
    axes.barh(positions, [bar.bytes_per_client_round for bar in bars], color=colours, height=0.7)
    for position, bar in enumerate(bars):
        axes.text(1.15 * bar.bytes_per_client_round, position, bar.note, va="center", fontsize=8, color=_MUTED)
    axes.set_yticks(positions, [f"{bar.name} (projection)" if bar.is_projection else bar.name for bar in bars])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    _logarithmic(axes)
    least, most = axes.get_xlim()
    axes.set_xlim(least / 2, most * (most / least) ** 0.1)  # room for the notes
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def score_against_bytes(runs: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    """Points (bytes of all messages until then, mean validation score) of each run, by its name."""
    figure = Figure(figsize=(8, 5), layout="constrained", facecolor="white")
    labels = {"xlabel": "bytes of all messages until then, both ways, all clients", "ylabel": "validation score, mean"}
    axes = figure.add_subplot(title="Score against cumulative bytes", **labels)
    for number, (name, points) in enumerate(runs.items()):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, label=name, linewidth=1.5, markersize=5)
    _logarithmic(axes)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # runs may lie within one power of ten
    axes.legend(frameon=False)
    return _png(figure)


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=_GRID, axis="x")
    axes.set_axisbelow(True)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
