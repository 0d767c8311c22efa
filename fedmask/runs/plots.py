"""The plots of a run's report: numbers in, HTML out: an inline SVG, and its legend below it.

matplotlib draws; colours and font come from the page, so that one drawing reads well in light and dark. Names stand in
the legend, escaped; matplotlib sees numbers alone. The same numbers give the same bytes.
"""

import io
import logging
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from matplotlib.typing import RcKeyType

# Where it finds no font cache, or no place for one, it says so on the terminal, in the middle of a run.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

NUM_COLOURS = 6
"""Series colours of the page: --series-0 and so on."""
MAX_MARKERS = 30
"""Of a line: enough to tell it by, too few to hide it."""
_MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}
_TEXT, _MUTED, _LINE = "#000001", "#000002", "#000003"
_SERIES = [f"#00010{number}" for number in range(NUM_COLOURS)]
# Colours that nothing else has: each stands for a variable of the page until the SVG is written.
_VARIABLES = {_TEXT: "text", _MUTED: "muted", _LINE: "line"} | {
    colour: f"series-{number}" for number, colour in enumerate(_SERIES)
}
_STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.size": 11,
    "text.color": _TEXT,
    "axes.labelcolor": _MUTED,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "axes.edgecolor": _LINE,
    "grid.color": _LINE,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "lines.markersize": 5,
    "axes.spines.right": False,
}


def line_plot(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    levels: Mapping[str, float],
    labels: tuple[str, str],
    description: str,
    x_unit: str = "",
) -> str:
    """Points (x, y) by name, each joined by a line; levels are dashed and horizontal. labels: of the x and y axes.

    x_unit: such as "B", shown with kilo, mega and so on; without one, x is a whole number.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": description}):
        figure, axes = _figure(labels)
        for number, points in enumerate(lines.values()):
            colour, marker = _look(number)
            every = math.ceil(len(points) / MAX_MARKERS)
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markevery=every, linewidth=1.5)
        for number, level in enumerate(levels.values(), start=len(lines)):
            axes.axhline(level, color=_look(number)[0], linestyle="--", linewidth=1.5)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=not x_unit))
        if x_unit:
            axes.xaxis.set_major_formatter(EngFormatter(x_unit))
        svg = _svg(figure, description)
    glyphs = [_MARKERS[_look(number)[1]] for number in range(len(lines))] + ["╌╌"] * len(levels)
    return svg + _legend([*lines, *levels], glyphs)


def stacked_bars(
    ticks: Sequence[str],
    above: Mapping[str, Sequence[float]],
    below: Mapping[str, Sequence[float]],
    labels: tuple[str, str],
    description: str,
    y_unit: str = "",
) -> str:
    """One bar a tick: the values of `above` piled up from zero, those of `below` down from it; a colour a name.

    Every sequence has a value a tick; after NUM_COLOURS names the colours begin again. labels: of the x and y axes.
    """
    names = list(dict.fromkeys([*above, *below]))
    with mpl.rc_context({**_STYLE, "svg.hashsalt": description}):
        figure, axes = _figure(labels)
        for sign, side in ((1, above), (-1, below)):
            bottoms = [0.0] * len(ticks)
            for name, values in side.items():
                heights = [sign * value for value in values]
                axes.bar(range(len(ticks)), heights, 0.8, bottoms, color=_look(names.index(name))[0], linewidth=0)
                bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
        if below:
            axes.axhline(0, color=_MUTED, linewidth=0.8)
        _label_bars(axes, ticks)
        engineering = EngFormatter(y_unit)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: engineering(abs(value))))
        svg = _svg(figure, description)
    return svg + _legend(names, ["■"] * len(names))


def _figure(labels: tuple[str, str]) -> tuple[Figure, Axes]:
    """Narrow, with large type: it is scaled to the width of a phone."""
    figure = Figure(figsize=(5.3, 3.3), layout="constrained")
    axes = figure.add_subplot(xlabel=labels[0], ylabel=labels[1])
    axes.tick_params(length=0)
    return figure, axes


def _look(number: int) -> tuple[str, str]:
    """Colour and marker of a line; the markers shift by one whenever the colours begin again."""
    return _SERIES[number % NUM_COLOURS], list(_MARKERS)[(number + number // NUM_COLOURS) % len(_MARKERS)]


def _label_bars(axes: Axes, ticks: Sequence[str]) -> None:
    """As many labels as there is room for, evenly, from the first bar on."""
    wanted = MaxNLocator(20, integer=True).tick_values(0, len(ticks) - 1)
    positions = [int(position) for position in wanted if 0 <= position < len(ticks)]
    axes.set_xticks(positions, [ticks[position] for position in positions])


def _svg(figure: Figure, description: str) -> str:
    """Inline SVG: nothing of the web, no date, no size, style or font of its own, the page's colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    view_box = re.search(r'viewBox="[^"]*"', text)
    assert view_box is not None, "matplotlib gives every SVG its box"
    text = text[text.index("</metadata>") + len("</metadata>") :]
    text = re.sub(r"\s*<style.*?</style>", "", text, flags=re.DOTALL)  # its rule is for `*`, and the page is more
    text = re.sub(r"font-family: [^;]*; ", "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # every plot counts its groups from 1, and ids are the page's
    text = re.sub("|".join(_VARIABLES), lambda colour: f"var(--{_VARIABLES[colour[0]]})", text)
    return f'<svg role="img" aria-label="{escape(description)}" {view_box[0]}>{text}'


def _legend(names: Sequence[str], glyphs: Sequence[str]) -> str:
    entries = (
        f'<li><span style="color: var(--series-{number % NUM_COLOURS})">{glyph}</span> {escape(name)}</li>'
        for number, (name, glyph) in enumerate(zip(names, glyphs, strict=True))
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'
