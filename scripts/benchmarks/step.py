"""One training step - forward, backward, optimizer - of fedmask beside other ways to train as few numbers.

Every variant trains the same random encoder on the same random tokens under the same loss, cross-entropy of a linear
head over mean-pooled features, with AdamW and without dropout. fedmask's side is the library's own code. Rivals:

published way     a dense gradient of every parameter, multiplied by the mask in a hook; AdamW over every parameter.
                  Its mask is of float32 where time is measured and of bool where memory is: the better one of each
dense + gather    dense gradients of the tensors that hold selected entries, gathered into one vector; AdamW on that
LoRA              peft, rank 8, on query and value
supertuning       peft, as many entries, of smallest magnitude in each tensor
native biases     the feed-forward biases ask for gradients themselves; AdamW on them

After the timing fedmask's gradients are held against the dense ones: a fast wrong step ends the benchmark.
Memory is the peak resident size of a fresh process that takes a few steps: all of it, with what Python and libraries
need, and the step's part alone: the encoder, and what the peak was above the process with the encoder loaded.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from peft import LoraConfig, PeftConfig, SupertuningConfig, get_peft_model
from torch import Tensor, nn

from benchmarks.encoders import random_encoder, random_inputs
from benchmarks.measure import MEGABYTE, Memory, Timing, Work, alternate, memory_of, time_rows
from benchmarks.rows import Row, Settings
from fedmask.errors import FedmaskError
from fedmask.masks import Mask, select
from fedmask.training.delta import SelectedEntries
from fedmask.training.gradient import SelectedGradient
from fedmask.training.head import HeadLayout
from fedmask.training.local import take_step
from fedmask.training.reparametrisation import BiasNetworks, Direct
from fedmask.training.text import mean_pooled

LEARNING_RATE = 1e-3
HIWI_RANK = 4  # that of conf/mask/hiwi.yaml
STEPS_OF_MEMORY = 3
MAX_GRADIENT_ERROR = 1e-6
"""Of the largest entry, and beyond what rounding makes of the dense gradient itself."""

PUBLISHED, LORA, NATIVE = "published way", "LoRA r=8", "native biases"
PUBLISHED_SMALL = "published way, bool mask"


@dataclass(frozen=True)
class Batch:
    """An encoder and what it is trained on."""

    name: str
    model: str
    """A configuration of conf/model."""
    num_layers: int
    batch_size: int
    num_tokens: int
    repeats: int
    """At least so many timed steps: short steps need more."""


BATCHES = (
    Batch("RoBERTa-base, 4 layers, 16 x 128 tokens", "roberta-base", 4, 16, 128, 7),
    Batch("MiniLM, 4 x 64 tokens", "minilm", 6, 4, 64, 25),
)
TRIAL_BATCHES = (Batch("tiny, 2 x 8 tokens", "tiny", 2, 2, 8, 1),)


class Task:
    """What every variant minimises: a loss over one batch, of the encoder that is asked and of a head."""

    def __init__(self, batch: Batch) -> None:
        self.encoder = random_encoder(batch.model, num_hidden_layers=batch.num_layers)
        self._inputs = random_inputs(self.encoder, batch.batch_size, batch.num_tokens)
        self._labels = torch.arange(batch.batch_size) % 2
        self._layout = HeadLayout("benchmark", ("even", "odd"), self.encoder.config.hidden_size)

    def new_head(self) -> nn.Parameter:
        return nn.Parameter(self._layout.random_start(0))

    def loss(self, encoder: nn.Module, head: Tensor) -> Tensor:
        features = mean_pooled(encoder, self._inputs)
        return nn.functional.cross_entropy(self._layout.outputs(head, features), self._labels)


Steps = Iterator[Tensor]
"""Endless training: every `next` takes one step, and gives what has been trained so far."""
Variant = Callable[[Task, nn.Module], Steps]
"""Trains the encoder, a copy of the task's."""


def rows(settings: Settings) -> Iterator[Row]:
    for batch in TRIAL_BATCHES if settings.is_trial else BATCHES:
        settings.say(f"{batch.name}: times")
        yield from _time_rows(batch, _timings(batch))
        yield from _memory_rows(batch, settings.say)


# ----------------------------------------------------------------------------------------------------------------------
# fedmask
# ----------------------------------------------------------------------------------------------------------------------


def pafi(density: float, task: Task, encoder: nn.Module) -> Steps:
    entries = SelectedEntries(encoder, _mask(encoder, density))
    yield from _fedmask(task, encoder, entries, Direct(torch.zeros(entries.mask.num_selected)))


def hiwi(task: Task, encoder: nn.Module) -> Steps:
    entries = SelectedEntries(encoder, select(encoder, "hiwi", base_digest="0" * 64))
    received = torch.zeros(entries.mask.num_selected)
    networks = BiasNetworks(entries, received, HIWI_RANK, torch.Generator().manual_seed(0))
    yield from _fedmask(task, encoder, entries, networks)


def _fedmask(
    task: Task, encoder: nn.Module, entries: SelectedEntries, reparametrisation: Direct | BiasNetworks
) -> Steps:
    """The calls of fedmask.training.local, in its order."""
    head, gradient = task.new_head(), SelectedGradient(encoder, entries)
    optimizer = _adamw([*reparametrisation.parameters(), head])
    values = reparametrisation.values()
    with entries.written(values.detach()), gradient:
        while True:
            values = take_step(task.loss(encoder, head), gradient, reparametrisation, values, optimizer)
            yield values.detach()


# ----------------------------------------------------------------------------------------------------------------------
# Rivals
# ----------------------------------------------------------------------------------------------------------------------


def published(density: float, mask_dtype: torch.dtype, task: Task, encoder: nn.Module) -> Steps:
    mask, head = _mask(encoder, density), task.new_head()
    encoder.requires_grad_(True)
    for name, parameter in encoder.named_parameters():
        parameter.register_hook(partial(torch.mul, _dense_mask(mask, name, parameter).to(mask_dtype)))
    yield from _plain(task, encoder, head, list(encoder.parameters()))


def _dense_mask(mask: Mask, name: str, parameter: Tensor) -> Tensor:
    """True at the selected entries, in the parameter's shape."""
    selected = torch.zeros(parameter.numel(), dtype=torch.bool)
    if name in mask.indices:
        selected[torch.from_numpy(mask.indices[name].copy())] = True
    return selected.view_as(parameter)


def dense_and_gather(density: float, task: Task, encoder: nn.Module) -> Steps:
    entries, head = SelectedEntries(encoder, _mask(encoder, density)), task.new_head()
    values = nn.Parameter(torch.zeros(entries.mask.num_selected))
    optimizer = _adamw([values, head])
    while True:
        optimizer.zero_grad()
        values.grad = _dense_gradient(task, encoder, head, entries)
        optimizer.step()
        entries.write(values.detach())
        yield values.detach()


def lora(task: Task, encoder: nn.Module) -> Steps:
    yield from _peft(task, encoder, LoraConfig(r=8, target_modules=["query", "value"]))


def supertuning(density: float, task: Task, encoder: nn.Module) -> Steps:
    """As many entries as the mask has, up to one a tensor, and of the same tensors."""
    mask = _mask(encoder, density)
    share = mask.num_selected / sum(encoder.get_parameter(name).numel() for name in mask.shapes)
    modules = [name.removesuffix(".weight") for name in mask.shapes]
    yield from _peft(task, encoder, SupertuningConfig(target_modules=modules, sparsity=1 - share, select_top=False))


def native_biases(task: Task, encoder: nn.Module) -> Steps:
    mask = select(encoder, "ffn_bias", base_digest="0" * 64)
    biases = [encoder.get_parameter(name).requires_grad_(True) for name in mask.shapes]
    yield from _plain(task, encoder, task.new_head(), biases)


def _peft(task: Task, encoder: nn.Module, config: PeftConfig) -> Steps:
    with warnings.catch_warnings():  # peft asks transformers for what it has renamed
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(encoder, config).eval()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    yield from _plain(task, adapted, task.new_head(), trained)


def _plain(task: Task, encoder: nn.Module, head: nn.Parameter, trained: list[nn.Parameter]) -> Steps:
    optimizer = _adamw([*trained, head])
    while True:
        optimizer.zero_grad()
        task.loss(encoder, head).backward()
        optimizer.step()
        yield head.detach()


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)


def _mask(encoder: nn.Module, density: float) -> Mask:
    return select(encoder, "pafi", density=density, base_digest="0" * 64)


def _dense_gradient(task: Task, encoder: nn.Module, head: Tensor, entries: SelectedEntries) -> Tensor:
    """(k,), by whole gradients of the tensors."""
    for tensor in entries.tensors:
        tensor.requires_grad_(True)
    task.loss(encoder, head).backward()
    gathered = [tensor.grad.view(-1)[index] for tensor, index in zip(entries.tensors, entries.indices, strict=True)]
    for tensor in entries.tensors:
        tensor.grad = None
    return torch.cat(gathered)


VARIANTS: Mapping[str, Variant] = {
    "pafi 0.005": partial(pafi, 0.005),
    "pafi 0.0003": partial(pafi, 0.0003),
    "hiwi": hiwi,
    PUBLISHED: partial(published, 0.005, torch.float32),  # its time and memory are the same at any density
    PUBLISHED_SMALL: partial(published, 0.005, torch.bool),
    "dense + gather 0.005": partial(dense_and_gather, 0.005),
    "dense + gather 0.0003": partial(dense_and_gather, 0.0003),
    LORA: lora,
    "supertuning 0.005": partial(supertuning, 0.005),
    "supertuning 0.0003": partial(supertuning, 0.0003),
    NATIVE: native_biases,
}

TIME_PAIRS: tuple[tuple[str, str, float | None], ...] = (
    ("pafi 0.005", LORA, 1 / 1.15),
    ("pafi 0.0003", LORA, 1 / 1.1),
    ("pafi 0.005", PUBLISHED, 1.4),
    ("pafi 0.0003", PUBLISHED, 1.4),
    ("pafi 0.005", "supertuning 0.005", 1.0),
    ("pafi 0.0003", "supertuning 0.0003", 1.0),
    ("pafi 0.005", "dense + gather 0.005", None),
    ("pafi 0.0003", "dense + gather 0.0003", None),
    ("hiwi", NATIVE, 1 / 1.05),
    ("hiwi", LORA, None),
)
"""(variant, rival, least ratio)."""

MEMORY_PAIRS: tuple[tuple[str, str, float | None], ...] = (
    ("pafi 0.005", PUBLISHED_SMALL, 1 / 0.55),
    ("pafi 0.0003", PUBLISHED_SMALL, 1 / 0.55),
    ("pafi 0.005", LORA, None),
    ("pafi 0.0003", LORA, None),
    ("hiwi", NATIVE, None),
)


# ----------------------------------------------------------------------------------------------------------------------
# Measuring
# ----------------------------------------------------------------------------------------------------------------------


def _timings(batch: Batch) -> dict[str, Timing]:
    """Of one step of every variant, each on a copy of the encoder; checks the gradients where the steps led."""
    task = Task(batch)
    timed = dict.fromkeys(name for variant, rival, _ in TIME_PAIRS for name in (variant, rival))
    steps = {name: VARIANTS[name](task, copy.deepcopy(task.encoder)) for name in timed}
    timings = alternate({name: partial(next, each) for name, each in steps.items()}, batch.repeats)
    for name, mask in _masks(task.encoder).items():
        check_gradient(task, name, mask, next(steps[name]))
    return timings


def _masks(encoder: nn.Module) -> dict[str, Mask]:
    """Of fedmask's variants."""
    hiwi_mask = select(encoder, "hiwi", base_digest="0" * 64)
    return {"pafi 0.005": _mask(encoder, 0.005), "pafi 0.0003": _mask(encoder, 0.0003), "hiwi": hiwi_mask}


def check_gradient(task: Task, name: str, mask: Mask, values: Tensor) -> None:
    """Raises FedmaskError where fedmask's gradient at `values` (k,) is not the dense one.

    Both sum float32 numbers, each in its own order; how far that alone takes them off, the same in float64 tells.
    """
    entries, head = SelectedEntries(task.encoder, mask), task.new_head()
    with entries.written(values):
        with SelectedGradient(task.encoder, entries) as gradient:
            task.loss(task.encoder, head).backward()
            selected = gradient.take()
        dense = _dense_gradient(task, task.encoder, head, entries)
        task.encoder.requires_grad_(False)
        double = copy.deepcopy(task.encoder).double()
    exact = _dense_gradient(task, double, head, SelectedEntries(double, mask))
    largest = exact.abs().max()
    rounding, error = (float((other - dense).abs().max() / largest) for other in (exact, selected))
    if not error <= MAX_GRADIENT_ERROR + rounding:
        raise FedmaskError(
            f"step: the gradient of {name} differs from the dense one by {error:.1g} of its largest entry, and the"
            f" dense one from itself in float64 by {rounding:.1g}"
        )


def _time_rows(batch: Batch, timings: Mapping[str, Timing]) -> Iterator[Row]:
    for variant, rival, target in TIME_PAIRS:
        yield from time_rows("step", batch.name, variant, rival, timings, target)


def _memory_rows(batch: Batch, say: Callable[[str], None]) -> Iterator[Row]:
    found: dict[str, Memory] = {}
    encoder_bytes = sum(parameter.nbytes for parameter in Task(batch).encoder.parameters())
    for name in dict.fromkeys(name for variant, rival, _ in MEMORY_PAIRS for name in (variant, rival)):
        say(f"{batch.name}: memory of {name}")
        found[name] = memory_of(partial(_prepare_steps, batch, name))
    for variant, rival, target in MEMORY_PAIRS:
        ours, theirs = found[variant], found[rival]
        of_step = ((encoder_bytes + memory.growth_bytes) / MEGABYTE for memory in (ours, theirs))
        yield Row("step", batch.name, variant, rival, *of_step, "MB, encoder and step", target)
        of_process = (memory.peak_bytes / MEGABYTE for memory in (ours, theirs))
        yield Row("step", batch.name, variant, rival, *of_process, "MB, whole process")


def _prepare_steps(batch: Batch, name: str) -> Work:
    task = Task(batch)

    def take_steps() -> None:
        steps = VARIANTS[name](task, task.encoder)
        for _ in range(STEPS_OF_MEMORY):
            next(steps)

    return take_steps
