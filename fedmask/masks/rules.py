"""Base weights -> Mask: the rules that say which entries of a model may change.

`pafi` takes the k smallest |w| (the PaFi-style mask; no data enters the choice), `largest` the k largest, `random` k at
random; ties go to the lowest (tensor order, flat index). The others take whole tensors: feed-forward biases, all
biases, everything. k = round(density x parameters of the model).
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import nn

from fedmask.errors import FedmaskError
from fedmask.masks.candidates import all_biases, encoder_weights, everything, ffn_biases
from fedmask.masks.digest import base_digest as digest_of_base
from fedmask.masks.drawn import drawn_positions
from fedmask.masks.indices import Indices
from fedmask.masks.mask import Mask, MaskRecipe
from fedmask.masks.rates import RateByCount
from fedmask.masks.smallest import Tensors, largest, refuse_nan, smallest
from fedmask.masks.zeros import tell_zeros
from fedmask.randomness import seed_for

DEFAULT_DENSITY = 3e-4
"""The 0.03% of the base model's parameters that this project is about."""

SCOPES = ("global", "per_tensor")

ABSENT = {"embeddings": False, "key_biases": True}
"""What a recipe without the option means: so it was before there was a choice."""


@dataclass(frozen=True)
class Rule:
    """One way to choose entries: which tensors are candidates, and which k of their entries are selected."""

    takes_density: bool
    """Whether density, scope, include and exclude apply; otherwise every entry of the candidates is selected."""
    kind: str
    """What the candidates are, in words."""
    candidates: Callable[[nn.Module, bool], list[str]]
    """(model, whether `switch` is on) -> names of the candidate tensors, in model order; reads no values."""
    choose: Callable[[Tensors, int, int], dict[str, Indices]]
    """(candidate tensors, k, seed) -> sorted indices (k_i,) of each candidate, k in all."""
    rate: RateByCount | None = None
    """AdamW's rate for its entries, where that follows their number; else conf/mask says one."""
    switch: str | None = None
    """The option, true or false, that adds to the candidates."""
    tells_zeros: bool = False
    """Whether it seeks small magnitudes, so that exact zeros among its entries are told: they come first of all."""


def select(
    model: nn.Module,
    rule: str = "pafi",
    density: float | None = None,
    scope: str | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    embeddings: bool = False,
    key_biases: bool = False,
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
        key_biases: whether rule `bitfit` selects the biases of attention keys too where the model's outputs do not
            depend on them (BERT and its like; elsewhere it always does).
        seed: of rule `random`.
        base_digest: digest of the model's weights where the caller has it; computed where None.
        inputs: `BaseModel.inputs` for the recipe: an adapter then says with which tokenizer and settings it belongs.

    density, scope, include and exclude belong to pafi, largest and random. Raises FedmaskError for options out of
    range or given to a rule that takes none, patterns without a match, NaN among the candidates, and a model that has
    nothing for the rule. Logs a warning where the rule of smallest magnitude selects exact zeros.
    """
    given = {"density": density, "scope": scope, "include": include, "exclude": exclude, "seed": seed}
    mask = computed(model, rule, given | {"embeddings": embeddings, "key_biases": key_biases}, base_digest, inputs)
    if RULES[rule].tells_zeros:
        tell_zeros(model, rule, mask)
    return mask


def computed(
    model: nn.Module,
    rule: str,
    given: Mapping[str, Any],
    base_digest: str | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Mask:
    """`select` without a word on what it selected; `given` are its options by name, as a recipe carries them."""
    options = _checked_options(rule, **given)
    candidates = _candidates(model, rule, options)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    count = _count(candidates, options.get("density"), num_parameters)
    indices = _choose(candidates, rule, count, options.get("scope"), options.get("seed", 0))
    mask = Mask({name: tuple(candidates[name].shape) for name in indices}, indices, num_parameters)
    return replace(mask, recipe=MaskRecipe(rule, options, base_digest or digest_of_base(model), mask.digest, inputs))


def _checked_options(
    rule: str,
    density: float | None = None,
    scope: str | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    embeddings: bool | None = None,
    key_biases: bool | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The options that matter to the rule, defaults filled in: what its recipe carries. None: not given."""
    if rule not in RULES:
        near = difflib.get_close_matches(rule, RULES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(RULES)}"
        raise FedmaskError(f"mask.rule={rule}: there is no such rule; {hint}")
    switches = {"embeddings": embeddings, "key_biases": key_biases}
    for switch, is_on in switches.items():
        if is_on and switch != RULES[rule].switch:
            taker = next(name for name in RULES if RULES[name].switch == switch)
            raise FedmaskError(f"mask.{switch}=true: rule {rule} takes none, only rule {taker} does; leave it out")
    if not RULES[rule].takes_density:
        given = {"density": density, "scope": scope, "include": include, "exclude": exclude or None}
        for key, value in given.items():
            if value is not None:
                raise FedmaskError(f"mask.{key}={value}: rule {rule} takes none, it selects all {RULES[rule].kind}")
        own = {switch: is_on for switch, is_on in switches.items() if switch == RULES[rule].switch}
        return {switch: is_on for switch, is_on in own.items() if is_on is not None and is_on != ABSENT[switch]}
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


def _candidates(model: nn.Module, rule: str, options: Mapping[str, Any]) -> Tensors:
    """The tensors a rule chooses from, in model order."""
    parameters = dict(model.named_parameters())
    include, exclude = options.get("include"), options.get("exclude", ())
    if include is None:
        switch = RULES[rule].switch
        names = RULES[rule].candidates(model, switch is not None and options.get(switch, ABSENT[switch]))
    else:
        names = _matching("include", include, parameters)
    left_out = set(_matching("exclude", exclude, parameters))
    candidates = {name: parameters[name] for name in names if name not in left_out and parameters[name].numel()}
    if not candidates and (include is not None or exclude):
        patterns = {"include": include, "exclude": list(exclude) or None}
        given = [f"mask.{option}={each}" for option, each in patterns.items() if each is not None]
        raise FedmaskError(f"{', '.join(given)}: no candidate tensor is left")
    if not candidates:
        raise _nothing_for(model, rule)
    return candidates


def _nothing_for(model: nn.Module, rule: str) -> FedmaskError:
    """What to do with a model that has no candidates for the rule: the first rule that has some is named."""
    if not everything(model, False):
        return FedmaskError(
            f"rule {rule}: the model has no layers, for all its parameters are embeddings or a pooler's; take another"
            " model"
        )
    other = next(name for name in _PROPOSED if RULES[name].candidates(model, False))
    return FedmaskError(f"rule {rule}: the model has no {RULES[rule].kind}; choose another rule, such as {other}")


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


# Which of their entries -----------------------------------------------------------------------------------------------


def _smallest(tensors: Tensors, count: int, seed: int) -> dict[str, Indices]:
    return _split(tensors, smallest(tensors, count))


def _largest(tensors: Tensors, count: int, seed: int) -> dict[str, Indices]:
    return _split(tensors, largest(tensors, count))


def _random(tensors: Tensors, count: int, seed: int) -> dict[str, Indices]:
    refuse_nan(tensors)
    total = sum(tensor.numel() for tensor in tensors.values())
    # A tensor drawn from by itself (scope per_tensor) has its own stream, all tensors together have one.
    purpose = next(iter(tensors)) if len(tensors) == 1 else "all"
    return _split(tensors, drawn_positions(count, total, seed_for(seed, "random mask", purpose)))


def _whole(tensors: Tensors, count: int, seed: int) -> dict[str, Indices]:
    refuse_nan(tensors)
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


RULES: Mapping[str, Rule] = {
    "pafi": Rule(
        True, "2-D encoder weights", encoder_weights, _smallest, rate=RateByCount(0.02, 0.6, 0.003), tells_zeros=True
    ),
    "largest": Rule(True, "2-D encoder weights", encoder_weights, _largest, rate=RateByCount(0.03, 0.6, 0.003)),
    "random": Rule(True, "2-D encoder weights", encoder_weights, _random, rate=RateByCount(0.03, 0.4, 0.01)),
    "hiwi": Rule(False, "feed-forward biases", ffn_biases, _whole_unless_zero),
    "ffn_bias": Rule(False, "feed-forward biases", ffn_biases, _whole),
    "bitfit": Rule(False, "biases", all_biases, _whole, switch="key_biases"),
    "all": Rule(False, "parameters", everything, _whole, switch="embeddings"),
}
"""Rule name -> Rule. A new rule is a function or two and one line here."""

_PROPOSED = ("pafi", "bitfit", "all")
"""A rule for each kind of candidate, in the order in which they are tried where a model has none for the rule given."""
