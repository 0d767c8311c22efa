"""The plot of a study: score on validation against the bytes that all messages have taken, a panel a setting.

In: final cells. Out: the text of an SVG that stands alone. The same cells give the same text.
"""

import io
import statistics
from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from fedmask.runs.study import Finished, Study

MAX_LINES = 16
"""Rows drawn in a panel: the first of the study's that send something."""
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6E6E6E", "#000000"]  # Okabe and Ito
_MARKERS = "osD^vP*X"
_LEVELS = {"frozen": ":", "alone": "--", "central": "-."}


def score_against_bytes(study: Study, results: Mapping[tuple[str, str], Sequence[Finished]]) -> str:
    """Lines of the rows that run in every setting, and the study's baselines as levels."""
    lines = [row for row in study.rows.values() if (row.tuning or row.against) and row.name not in _LEVELS][:MAX_LINES]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": study.name, "font.size": 9, "axes.axisbelow": True}):
        figure = Figure(figsize=(10, 7), layout="constrained", facecolor="white")
        columns = min(2, len(study.settings))
        panels = figure.subplots(-(-len(study.settings) // columns), columns, squeeze=False).flatten()
        for setting, axes in zip(study.settings.values(), panels, strict=False):
            for number, row in enumerate(lines):
                _draw_line(axes, row.title, number, results.get((row.name, setting.name), ()))
            for name, style in _LEVELS.items():
                if found := results.get((name, setting.name)):
                    level = statistics.mean(entry.validation_score for entry in found)
                    axes.axhline(level, linestyle=style, color="#444444", linewidth=1.2, label=study.rows[name].title)
            axes.set_title(f"({setting.name}) {setting.title}", loc="left")
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(EngFormatter("B"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(color="#e0e0e0")
        for axes in panels[len(study.settings) :]:
            axes.set_axis_off()
        figure.supxlabel("bytes of all messages until then, both ways, all clients")
        figure.supylabel("score on validation, mean over tasks and seeds")
        labels = {
            text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(labels.values(), labels.keys(), loc="outside upper center", ncols=3, frameon=False)
        return _svg(figure)


def _draw_line(axes: Axes, title: str, number: int, found: Sequence[Finished]) -> None:
    """Score and bytes of each scored round, both means over seeds."""
    if not found:
        return
    by_round = list(zip(*(entry.validation for entry in found), strict=True))
    scores = [statistics.mean(score for _, score, _ in seeds) for seeds in by_round]
    sent = [statistics.mean(total for _, _, total in seeds) for seeds in by_round]
    again, place = divmod(number, len(_COLOURS))  # beyond the eighth, colours and markers come again on broken lines
    style = f"{_MARKERS[place]}{'--' if again else '-'}"
    axes.plot(sent, scores, style, color=_COLOURS[place], label=title, linewidth=1.5, markersize=5)


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
