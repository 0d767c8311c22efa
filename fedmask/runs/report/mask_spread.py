"""Where a run's mask lies: over the layers and kinds of tensors of its base model."""

from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape

from fedmask.runs.page import figure, table
from fedmask.runs.plots import NUM_COLOURS, stacked_bars
from fedmask.runs.report.run import Run

_OUTSIDE, _OTHER_KINDS = "rest", "all other kinds"


def mask_over_layers(run: Run) -> str:
    selected: dict[str, int] = run.summary["mask"]["selected_by_tensor"]
    if not selected:
        return "<p>This run trains no entry of the base model, so it has no mask.</p>"
    layers = _layers(selected)
    bars = {kind: [0.0] * len(layers) for kind in _kinds(selected)}
    for name, number in selected.items():
        layer, kind = _place(name)
        bars[kind if kind in bars else _OTHER_KINDS][layers.index(layer)] += number
    labels = ("layer" if _OUTSIDE not in layers else f"layer ({_OUTSIDE}: outside the layers)", "selected entries")
    rows = [
        [escape(name), figure(f"{run.prefix}mask.selected_by_tensor.{name}", number, ",")]
        for name, number in selected.items()
    ]
    plot = stacked_bars(layers, bars, {}, labels, "Selected entries by layer and kind of tensor")
    by_tensor = table(["tensor", "selected entries"], rows)
    return f"{plot}<details><summary>by tensor</summary>{by_tensor}</details>"


def _place(tensor: str) -> tuple[str, str]:
    """Layer and kind: encoder.layer.3.output.dense.bias is of layer 3 and kind output.dense.bias."""
    parts = tensor.split(".")
    at = next((position for position, part in enumerate(parts) if part.isdecimal()), None)
    return (_OUTSIDE, tensor) if at is None else (parts[at], ".".join(parts[at + 1 :]))


def _layers(selected: Iterable[str]) -> list[str]:
    """What lies outside the layers first, where there is any; then every layer up to the last with a selected entry."""
    found = {_place(name)[0] for name in selected}
    numbers = [int(layer) for layer in found - {_OUTSIDE}]
    return [_OUTSIDE] * (_OUTSIDE in found) + [str(number) for number in range(max(numbers, default=-1) + 1)]


def _kinds(selected: Mapping[str, int]) -> list[str]:
    """The kinds with most selected entries, a colour for each; the others, where there are any, share the last."""
    totals: Counter[str] = Counter()
    for name, number in selected.items():
        totals[_place(name)[1]] += number
    kinds = [kind for kind, _ in totals.most_common()]
    return kinds if len(kinds) <= NUM_COLOURS else [*kinds[: NUM_COLOURS - 1], _OTHER_KINDS]
