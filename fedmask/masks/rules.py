"""Base weights -> Mask: the rules that say which entries of a model may change.

`pafi` takes the k smallest |w| (the PaFi-style mask; no data enters the choice), `largest` the k largest, `random` k at
random; ties go to the lowest (tensor order, flat index). The others take whole tensors: feed-forward biases, all
biases, everything. k = round(density x parameters of the model).

The magnitude rules read the weights once, in pieces: a strided sample gives an upper bound of the k-th smallest |w|,
one pass collects what lies below, and whenever more than about 2 k are held the surplus is dropped, so memory stays
O(k) however many weights are tied. As many threads as torch has share the pass: each finds the k smallest of its run of
tensors, and the k smallest of those are the answer, whatever the number of threads.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedmask.errors import FedmaskError
from fedmask.masks.digest import base_digest as digest_of_base
from fedmask.masks.digest import logical_chunks
from fedmask.masks.indices import Indices
from fedmask.masks.mask import Mask, MaskRecipe
from fedmask.randomness import seed_for

Tensors = Mapping[str, Tensor]
Keys = npt.NDArray[np.uint32]

DEFAULT_DENSITY = 3e-4
"""The 0.03% of the base model's parameters that this project is about."""

SCOPES = ("global", "per_tensor")

_MAGNITUDE_BITS = np.uint32(0x7FFFFFFF)
_INFINITY_BITS = np.uint32(0x7F800000)
_SAMPLE_STRIDE = 997
_SAMPLE_ENTRIES = 4096
_SLACK_ENTRIES = 1 << 16
_ENTRIES_WORTH_A_THREAD = 1 << 19

_FFN_BIAS = re.compile(
    r"(^|\.)("
    r"intermediate\.dense|(?<!attention\.)output\.dense"  # BERT, RoBERTa, MiniLM, MPNet, ELECTRA, DeBERTa
    r"|ffns?\.(\d+\.)?lin[12]"  # DistilBERT, XLM
    r"|ffn|ffn_output"  # ALBERT
    r"|mlp\.\w*(?<!norm)"  # ModernBERT
    r"|layers\.\d+\.linear[12]"  # torch.nn.TransformerEncoder
    r")\.bias$"
)


@dataclass(frozen=True)
class Rule:
    """One way to choose entries: which tensors are candidates, and which k of their entries are selected."""

    takes_density: bool
    """Whether density, scope, include and exclude apply; otherwise every entry of the candidates is selected."""
    kind: str
    """What the candidates are, in words."""
    candidates: Callable[[nn.Module, bool], list[str]]
    """(model, embeddings) -> names of the candidate tensors, in model order; reads no values."""
    choose: Callable[[Tensors, int, int], dict[str, Indices]]
    """(candidate tensors, k, seed) -> sorted indices (k_i,) of each candidate, k in all."""


def select(
    model: nn.Module,
    rule: str = "pafi",
    density: float | None = None,
    scope: str | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    embeddings: bool = False,
    seed: int = 0,
    base_digest: str | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Mask:
    """The mask of `rule` over the bare encoder `model`, with its recipe.

    Args:
        model: the encoder as `AutoModel` loads it (head excluded), in float32, float16 or bfloat16.
        rule: a name in RULES.
        density: selected entries / parameters of the model (pooler included), in (0, 1]; DEFAULT_DENSITY where None.
        scope: "global" (one ranking over all candidates, the default) or "per_tensor" (each candidate's share of the
            same k, by largest remainder).
        include: name patterns (shell style) of the candidates, any tensor; by default the encoder's 2-D weights: no
            embeddings, and no pooler, which has no gradient under mean pooling.
        exclude: name patterns taken out of the candidates.
        embeddings: whether rule `all` selects the embeddings too.
        seed: of rule `random`.
        base_digest: digest of the model's weights where the caller has it; computed where None.
        inputs: `BaseModel.inputs` for the recipe: an adapter then says with which tokenizer and settings it belongs.

    density, scope, include and exclude belong to pafi, largest and random. Raises FedmaskError for options out of
    range or given to a rule that takes none, patterns without a match, NaN among the candidates, and a model that has
    nothing for the rule.
    """
    options = _checked_options(rule, density, scope, include, exclude, embeddings, seed)
    candidates = _candidates(model, rule, include, exclude, embeddings)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    count = _count(candidates, options.get("density"), num_parameters)
    indices = _choose(candidates, rule, count, options.get("scope"), seed)
    mask = Mask({name: tuple(candidates[name].shape) for name in indices}, indices, num_parameters)
    return replace(mask, recipe=MaskRecipe(rule, options, base_digest or digest_of_base(model), mask.digest, inputs))


def _checked_options(
    rule: str,
    density: float | None,
    scope: str | None,
    include: Sequence[str] | None,
    exclude: Sequence[str],
    embeddings: bool,
    seed: int,
) -> dict[str, Any]:
    """The options that matter to the rule, defaults filled in: what its recipe carries."""
    if rule not in RULES:
        near = difflib.get_close_matches(rule, RULES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(RULES)}"
        raise FedmaskError(f"mask.rule={rule}: there is no such rule; {hint}")
    if embeddings and rule != "all":
        raise FedmaskError(f"mask.embeddings=true: rule {rule} takes none, only rule all does; leave it out")
    if not RULES[rule].takes_density:
        given = {"density": density, "scope": scope, "include": include, "exclude": exclude or None}
        for key, value in given.items():
            if value is not None:
                raise FedmaskError(f"mask.{key}={value}: rule {rule} takes none, it selects all {RULES[rule].kind}")
        return {"embeddings": True} if embeddings else {}
    density = DEFAULT_DENSITY if density is None else density
    scope = "global" if scope is None else scope
    if not isinstance(density, int | float) or not 0 < density <= 1:
        raise FedmaskError(f"mask.density={density}: it is a fraction of the model's parameters, above 0, at most 1")
    if scope not in SCOPES:
        raise FedmaskError(f"mask.scope={scope}: choose one of {', '.join(SCOPES)}")
    options: dict[str, Any] = {"density": density, "scope": scope}
    options |= {"include": list(include)} if include is not None else {}
    options |= {"exclude": list(exclude)} if exclude else {}
    return options | ({"seed": seed} if rule == "random" else {})


def _candidates(
    model: nn.Module, rule: str, include: Sequence[str] | None, exclude: Sequence[str], embeddings: bool
) -> Tensors:
    """The tensors a rule chooses from, in model order."""
    parameters = dict(model.named_parameters())
    names = RULES[rule].candidates(model, embeddings) if include is None else _matching("include", include, parameters)
    left_out = set(_matching("exclude", exclude, parameters))
    candidates = {name: parameters[name] for name in names if name not in left_out and parameters[name].numel()}
    if not candidates and (include is not None or exclude):
        raise FedmaskError(f"mask.include={include}, mask.exclude={exclude}: they leave no candidate tensor")
    if not candidates:
        raise FedmaskError(f"rule {rule}: the model has no {RULES[rule].kind}; choose another rule, such as pafi")
    return candidates


def _matching(key: str, patterns: Sequence[str], names: Mapping[str, Any]) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise FedmaskError(f"mask.{key}: pattern {pattern!r} matches no tensor; the first is {next(iter(names))}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _count(candidates: Tensors, density: float | None, num_parameters: int) -> int:
    """k, the entries to select: all candidates, or round(density x parameters)."""
    total = sum(tensor.numel() for tensor in candidates.values())
    if density is None:
        return total
    count = round(density * num_parameters)
    if count == 0:
        least = 1 / num_parameters
        raise FedmaskError(
            f"mask.density={density}: of {num_parameters:,} parameters that is no entry; give at least {least:.2g}"
        )
    if count > total:
        raise FedmaskError(
            f"mask.density={density}: of {num_parameters:,} parameters that is {count:,} entries, but the"
            f" {len(candidates)} candidate tensors have {total:,}; lower it to at most"
            f" {math.floor(1e6 * total / num_parameters) / 1e6:g}, or widen mask.include"
        )
    return count


def _choose(candidates: Tensors, rule: str, count: int, scope: str | None, seed: int) -> dict[str, Indices]:
    """Sorted indices of each tensor that has any, `count` in all."""
    if scope != "per_tensor":
        chosen = RULES[rule].choose(candidates, count, seed)
    else:
        chosen = {}
        shares = _shares(count, [tensor.numel() for tensor in candidates.values()])
        for (name, tensor), share in zip(candidates.items(), shares, strict=True):
            chosen |= RULES[rule].choose({name: tensor}, share, seed)
    return {name: indices for name, indices in chosen.items() if len(indices)}


def _shares(count: int, sizes: Sequence[int]) -> list[int]:
    """`count` split in proportion to `sizes`: whole parts first, then the largest remainders, ties to the earlier."""
    total = sum(sizes)
    shares = [count * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: -(count * sizes[i] % total))
    for i in by_remainder[: count - sum(shares)]:
        shares[i] += 1
    return shares


# Which tensors -------------------------------------------------------------------------------------------------------


def _encoder_weights(model: nn.Module, embeddings: bool) -> list[str]:
    outside = _pooler(model) | _embeddings(model)
    return [name for name, tensor in model.named_parameters() if name not in outside and tensor.ndim == 2]


def _ffn_biases(model: nn.Module, embeddings: bool) -> list[str]:
    outside = _pooler(model)
    return [name for name, _ in model.named_parameters() if name not in outside and _FFN_BIAS.search(name)]


def _all_biases(model: nn.Module, embeddings: bool) -> list[str]:
    outside = _pooler(model)
    return [name for name, _ in model.named_parameters() if name not in outside and re.search(r"(^|[._])bias$", name)]


def _everything(model: nn.Module, embeddings: bool) -> list[str]:
    outside = _pooler(model) if embeddings else _pooler(model) | _embeddings(model)
    return [name for name, _ in model.named_parameters() if name not in outside]


def _pooler(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters() if "pooler" in name.split(".")}


def _embeddings(model: nn.Module) -> set[str]:
    """Tensors of the embedding block, its normalisation included, and of embedding modules anywhere else."""
    block = {name for name, _ in model.named_parameters() if any(part.startswith("embed") for part in name.split("."))}
    modules = (f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Embedding))
    return block | set(modules)


# Which of their entries ----------------------------------------------------------------------------------------------


def _smallest(tensors: Tensors, count: int, seed: int) -> dict[str, Indices]:
    return _split(tensors, _bottom(tensors, count, _keys))


def _largest(tensors: Tensors, count: int, seed: int) -> dict[str, Indices]:
    return _split(tensors, _bottom(tensors, count, _reversed_keys))


def _random(tensors: Tensors, count: int, seed: int) -> dict[str, Indices]:
    _refuse_nan(tensors)
    total = sum(tensor.numel() for tensor in tensors.values())
    # A tensor drawn from by itself (scope per_tensor) has its own stream, all tensors together have one.
    purpose = next(iter(tensors)) if len(tensors) == 1 else "all"
    return _split(tensors, _draw(count, total, seed_for(seed, "random mask", purpose)))


def _whole(tensors: Tensors, count: int, seed: int) -> dict[str, Indices]:
    _refuse_nan(tensors)
    return {name: np.arange(tensor.numel(), dtype=np.int64) for name, tensor in tensors.items()}


def _whole_unless_zero(tensors: Tensors, count: int, seed: int) -> dict[str, Indices]:
    """HiWi's deltas are functions of the biases: of zeros they would stay zero."""
    indices = _whole(tensors, count, seed)
    if not any(bool(torch.any(tensor != 0)) for tensor in tensors.values()):
        raise FedmaskError(
            f"rule hiwi: all {count:,} feed-forward biases are exactly zero, so its networks could never learn; use"
            " ffn_bias, which trains them directly"
        )
    return indices


def _split(tensors: Tensors, positions: Indices) -> dict[str, Indices]:
    """Sorted positions in the concatenation of the tensors -> indices in each."""
    starts = np.cumsum([0, *(tensor.numel() for tensor in tensors.values())])
    cuts = np.searchsorted(positions, starts)
    return {name: positions[cuts[i] : cuts[i + 1]] - starts[i] for i, name in enumerate(tensors)}


def _draw(count: int, total: int, seed: int) -> Indices:
    """`count` distinct sorted positions below `total`, every such set equally likely, in O(count) memory.

    The raw stream of PCG64 is the same on every machine and NumPy version; NumPy's own samplers do not promise that.
    """
    if 2 * count > total:
        selected = np.ones(total, dtype=bool)
        selected[_draw(total - count, total, seed)] = False
        return np.flatnonzero(selected)
    stream = np.random.PCG64(seed)
    # Numbers from here on would make some remainders likelier than others.
    fair_end = np.uint64(2**64 // total * total - 1)
    drawn = np.empty(0, dtype=np.int64)
    while len(drawn) < count:
        raw = stream.random_raw(count - len(drawn) + 16)
        drawn = np.concatenate([drawn, (raw[raw <= fair_end] % np.uint64(total)).astype(np.int64)])
        _, first_places = np.unique(drawn, return_index=True)
        drawn = drawn[np.sort(first_places)][:count]
    return np.sort(drawn)


# The k smallest keys -------------------------------------------------------------------------------------------------


def _keys(magnitudes: Keys) -> Keys:
    """Bits of |w| as float32 order as |w| does, without rounding and with 0 = -0."""
    return magnitudes


def _reversed_keys(magnitudes: Keys) -> Keys:
    return np.subtract(_INFINITY_BITS, magnitudes, out=magnitudes)


def _bottom(tensors: Tensors, count: int, to_keys: Callable[[Keys], Keys]) -> Indices:
    """Positions, in the concatenation of the tensors, of the `count` smallest keys; ties to the lowest position."""
    sample = to_keys(_sample(tensors))
    total = sum(tensor.numel() for tensor in tensors.values())
    expected = count * len(sample) / total
    rank = math.ceil(expected + 6 * math.sqrt(expected)) + 16
    while True:
        is_bounded = rank < len(sample)
        # Exclusive bound; every key is at most that of infinity.
        bound = int(np.partition(sample, rank)[rank]) + 1 if is_bounded else int(_INFINITY_BITS) + 1
        positions = _collect(tensors, count, bound, to_keys)
        if len(positions) == count:
            return positions
        rank *= 2


def _sample(tensors: Tensors) -> Keys:
    """Magnitude bits of every 997th entry (of more where there are few): a guess at the bound, never the answer."""
    total = sum(tensor.numel() for tensor in tensors.values())
    stride = min(_SAMPLE_STRIDE, max(1, total // _SAMPLE_ENTRIES))
    taken = [t.detach().take(torch.arange(0, t.numel(), stride, device=t.device)) for t in tensors.values()]
    return np.concatenate([_bits(piece.cpu()) & _MAGNITUDE_BITS for piece in taken])


def _collect(tensors: Tensors, count: int, bound: int, to_keys: Callable[[Keys], Keys]) -> Indices:
    """Positions of the `count` smallest keys below `bound` (of all of them, where there are fewer), ascending."""
    runs = _runs(tensors, torch.get_num_threads())
    with ThreadPoolExecutor(len(runs)) as pool:  # NumPy lets other threads work while it does
        futures = [pool.submit(_collect_run, run, start, count, bound, to_keys) for start, run in runs]
        keys, positions = zip(*(future.result() for future in futures), strict=True)
    return _lowest(np.concatenate(keys), np.concatenate(positions), count)[1]


def _runs(tensors: Tensors, most: int) -> Sequence[tuple[int, Tensors]]:
    """The tensors in at most `most` runs of about the same size, each with the position where it starts."""
    total = sum(tensor.numel() for tensor in tensors.values())
    most = max(1, min(most, total // _ENTRIES_WORTH_A_THREAD))
    runs: list[tuple[int, dict[str, Tensor]]] = []
    start = 0
    for name, tensor in tensors.items():
        if start * most >= len(runs) * total:
            runs.append((start, {}))
        runs[-1][1][name] = tensor
        start += tensor.numel()
    return runs


def _collect_run(
    tensors: Tensors, start: int, count: int, bound: int, to_keys: Callable[[Keys], Keys]
) -> tuple[Keys, Indices]:
    """The `count` smallest keys below `bound` of tensors that start at position `start`, and their positions."""
    keys, positions = [np.empty(0, dtype=np.uint32)], [np.empty(0, dtype=np.int64)]
    held = 0
    for offset, magnitudes in _magnitude_chunks(tensors):
        chunk = to_keys(magnitudes)
        below = np.flatnonzero(chunk < np.uint32(bound))
        if not len(below):
            continue
        keys.append(chunk[below])
        positions.append(below + (start + offset))
        held += len(below)
        if held > 2 * count + _SLACK_ENTRIES:
            kept_keys, kept_positions = _lowest(np.concatenate(keys), np.concatenate(positions), count)
            keys, positions, held = [kept_keys], [kept_positions], count
            # Later positions lose every tie, so only smaller keys are of interest from here on.
            bound = int(kept_keys.max(initial=0))
    return _lowest(np.concatenate(keys), np.concatenate(positions), count)


def _lowest(keys: Keys, positions: Indices, count: int) -> tuple[Keys, Indices]:
    """The `count` smallest keys and their positions; among ties, and in the result, by ascending position."""
    if len(keys) <= count:
        return keys, positions
    if count == 0:
        return keys[:0], positions[:0]
    largest = np.partition(keys, count - 1)[count - 1]
    kept = keys < largest
    ties = np.flatnonzero(keys == largest)
    kept[ties[: count - np.count_nonzero(kept)]] = True
    return keys[kept], positions[kept]


def _magnitude_chunks(tensors: Tensors) -> Iterator[tuple[int, Keys]]:
    """(position, magnitude bits) of piece after piece of the tensors; a piece is overwritten by the next one.

    Raises FedmaskError at a NaN, and for a dtype whose values float32 does not hold exactly.
    """
    buffer: Keys = np.empty(0, dtype=np.uint32)
    start = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise FedmaskError(
                f"parameter {name}: masks are chosen in float32, float16 or bfloat16, not {tensor.dtype}"
            )
        for chunk in logical_chunks(name, tensor):
            bits = _bits(chunk)
            if len(buffer) < len(bits):
                buffer = np.empty(len(bits), dtype=np.uint32)
            magnitudes = np.bitwise_and(bits, _MAGNITUDE_BITS, out=buffer[: len(bits)])
            # Among magnitude bits, NaN is what lies above infinity.
            if magnitudes.max(initial=0) > _INFINITY_BITS:
                raise FedmaskError(f"parameter {name}: it holds NaN; load the base weights again")
            yield start, magnitudes
            start += len(bits)


def _bits(values: Tensor) -> Keys:
    """float16 and bfloat16 fit into float32 exactly, and one order then holds for models that mix them."""
    bits: Keys = values.to(torch.float32).view(torch.int32).numpy().view(np.uint32)
    return bits


def _refuse_nan(tensors: Tensors) -> None:
    for _ in _magnitude_chunks(tensors):
        pass


RULES: Mapping[str, Rule] = {
    "pafi": Rule(True, "2-D encoder weights", _encoder_weights, _smallest),
    "largest": Rule(True, "2-D encoder weights", _encoder_weights, _largest),
    "random": Rule(True, "2-D encoder weights", _encoder_weights, _random),
    "hiwi": Rule(
        False,
        "feed-forward biases",
        _ffn_biases,
        _whole_unless_zero,
    ),
    "ffn_bias": Rule(False, "feed-forward biases", _ffn_biases, _whole),
    "bitfit": Rule(False, "biases", _all_biases, _whole),
    "all": Rule(False, "parameters", _everything, _whole),
}
"""Rule name -> Rule. A new rule is a function or two and one line here."""
