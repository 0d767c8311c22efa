"""Every family of encoders that transformers has and mean pooling can take, small and at random: features of a text
alone are those in a batch, the gradient of selected entries is autograd's. Every other family is refused.

The oracles are plain: no padding, and one backward pass of a copy in which everything asks for a gradient.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from fedmask.errors import FedmaskError
from fedmask.masks import Mask, select
from fedmask.models import BaseModel, load_base
from fedmask.tasks.task import Split
from fedmask.training.delta import SelectedEntries
from fedmask.training.fitness import check_fitness
from fedmask.training.gradient import SelectedGradient
from fedmask.training.text import TokenizedSplit, encode, mean_pooled, tokenize

Geometry = dict[str, Any]
CPU = torch.device("cpu")

TAKEN: dict[str, Geometry] = {
    "albert": {"embedding_size": 16},
    "bert": {},
    "big_bird": {"block_size": 4},
    "camembert": {},
    "clip_text_model": {},
    "data2vec-text": {},
    "deberta": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "distilbert": {},
    "electra": {"embedding_size": 16},
    "ernie": {},
    "esm": {"position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": 4},
    "esmc": {},
    "eurobert": {},
    "flaubert": {},
    "gte": {},
    "ibert": {},
    "jina_embeddings_v3": {},
    "layoutlm": {},
    "longformer": {"attention_window": 4},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 16},
    "markuplm": {"xpath_unit_hidden_size": 4},
    "megatron-bert": {},
    "modernbert": {"local_attention": 8},
    "mpnet": {},
    "nomic_bert": {},
    "rembert": {"input_embedding_size": 16},
    "roberta": {},
    "roberta-prelayernorm": {},
    "roc_bert": {
        "pronunciation_vocab_size": 9,
        "shape_vocab_size": 9,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "roformer": {"embedding_size": 16},
    "splinter": {},
    "squeezebert": {},
    "tapas": {},
    "ultrabert": {},
    "visual_bert": {"visual_embedding_dim": 8},
    "xlm": {},
    "xlm-roberta": {},
    "xlm-roberta-xl": {},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}
"""By model_type, what is needed beside the sizes to make it small."""

REFUSED: dict[str, tuple[Geometry, str]] = {
    "bart": ({}, "is not an encoder"),
    "bros": ({}, "cannot be read (You have to specify bbox)"),
    "canine": (
        {"num_hash_buckets": 64, "local_transformer_stride": 16, "max_position_embeddings": 256},
        "reads padding as text",
    ),
    "clip": ({}, "has no hidden_size"),
    "convbert": ({"embedding_size": 16, "head_ratio": 1}, "reads padding as text"),
    "dpr": ({}, "last_hidden_state, of which features are the mean, is not there"),
    "fnet": ({}, "reads padding as text"),
    "gpt2": ({}, "is not an encoder"),
    "layoutlmv3": ({}, "cannot be read ("),
    "llama": ({}, "is not an encoder"),
    "lxmert": ({}, "cannot be read (`visual_feats` cannot be `None`)"),
    "mobilebert": ({"embedding_size": 32, "intra_bottleneck_size": 32}, "reads padding as text"),
    "mra": ({"block_per_row": 1}, "no token's state depends on the others"),
    "nystromformer": ({"num_landmarks": 4, "segment_means_seq_len": 16}, "cannot be read ("),
    "t5": ({}, "is not an encoder"),
    "vilt": ({}, "cannot be read ("),
    "vit": ({}, "reads no token ids"),
    "xlnet": ({}, "is not an encoder"),
    "yoso": ({}, "reads padding as text"),
}
"""What is said of those that are no encoders, that need more than texts, or whose texts would read their neighbours."""

SIZES = {"hidden": ("hidden_size", "dim", "emb_dim", "d_model", "n_embd"), "layers": ("num_hidden_layers", "n_layers")}
SIZES |= {"layers_too": ("num_layers", "n_layer"), "heads": ("num_attention_heads", "n_heads", "n_head", "num_heads")}
SIZES |= {"heads_too": ("num_key_value_heads",), "ffn": ("intermediate_size", "hidden_dim", "d_ff")}
SIZES |= {"vocabulary": ("vocab_size",), "positions": ("max_position_embeddings", "n_positions")}

WORDS = ("a", "cat", "sat", "where", "the", "sun", "fell", "on", "3", "steps", "of", "stone,", "and", "(quietly)")


def geometry_of(kind: str, hidden: int = 32, layers: int = 2, heads: int = 2, ffn: int = 48) -> Geometry:
    values = {"hidden": hidden, "layers": layers, "layers_too": layers, "heads": heads, "heads_too": heads, "ffn": ffn}
    values |= {"vocabulary": 1461, "positions": 66}
    made = CONFIG_MAPPING[kind]
    geometry: Geometry = {"model_type": kind}
    for size, names in SIZES.items():
        geometry |= {name: values[size] for name in names if name in made.__dataclass_fields__}
    if "pad_token_id" in made.__dataclass_fields__:
        geometry["pad_token_id"] = 0
    if kind == "squeezebert":
        geometry["embedding_size"] = hidden
    return geometry | (TAKEN.get(kind) or REFUSED.get(kind, ({}, ""))[0])


def missing_here(kind: str) -> bool:
    """Another version of transformers may lack a family."""
    return kind not in MODEL_MAPPING_NAMES


def mask_of(base: BaseModel, rule: str, seed: int) -> Mask:
    if base.encoder.config.model_type == "squeezebert" and rule != "all":  # type: ignore[union-attr]
        rule = "bitfit"  # its layers are convolutions
    options: Geometry = {"density": 0.003} if rule in ("pafi", "random", "largest") else {}
    return select(
        base.encoder, rule=rule, base_digest=base.digest, **options | ({"seed": seed} if rule == "random" else {})
    )


def texts(base: BaseModel, seed: int) -> TokenizedSplit:
    draw = np.random.default_rng(seed)
    rows = tuple(" ".join(draw.choice(WORDS, size=size)) for size in (*draw.integers(1, 13, size=4), 60))
    return tokenize(Split(rows, None, np.zeros(len(rows), np.int64)), base.tokenizer, base.encoder, max_length=48)


@torch.no_grad()
def features_alone(encoder: nn.Module, tokens: TokenizedSplit) -> Tensor:
    """Oracle: each text by itself, its mean in float64."""
    rows = [tokens.batch([row], CPU) for row in range(len(tokens))]
    return torch.stack([encoder(**inputs).last_hidden_state[0].double().mean(0) for inputs in rows])


def loss_of(encoder: nn.Module, tokens: TokenizedSplit, seed: int) -> Tensor:
    features = mean_pooled(encoder, tokens.batch(range(len(tokens)), CPU))
    return (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(seed))).sum()


def dense_gradient(base: BaseModel, mask: Mask, tokens: TokenizedSplit, seed: int) -> list[Tensor]:
    """Oracle: of each selected tensor autograd's whole gradient, from one backward pass; zeros where there is none."""
    everything = copy.deepcopy(base.encoder).requires_grad_(True)
    loss_of(everything, tokens, seed).backward()  # type: ignore[no-untyped-call]
    parameters = (everything.get_parameter(name) for name in mask.shapes)
    return [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]


def assert_features_and_gradient(base: BaseModel, mask: Mask, seed: int) -> None:
    tokens = texts(base, seed)
    expected = features_alone(base.encoder, tokens)
    assert (encode(base.encoder, tokens) - expected).norm(dim=1).max() <= 1e-5 * expected.norm(dim=1).max()
    with SelectedGradient(base.encoder, SelectedEntries(base.encoder, mask)) as gradient:
        loss_of(base.encoder, tokens, seed).backward()  # type: ignore[no-untyped-call]
        packed = gradient.take()
    for (name, where), whole in zip(mask.slices.items(), dense_gradient(base, mask, tokens, seed), strict=True):
        selected = whole.flatten()[torch.from_numpy(mask.indices[name].copy())]
        assert (packed[where] - selected).abs().max() <= 1e-4 * whole.abs().max() + 1e-9, name


@pytest.mark.parametrize("kind", TAKEN)
def test_a_family_passes_the_check_and_loads_from_its_own_folder(kind: str, tmp_path: Path) -> None:
    if missing_here(kind):
        pytest.skip("not in this version of transformers")
    base = load_base(kind, geometry=geometry_of(kind))
    check_fitness(base, mask_of(base, "pafi", 0), 48)
    check_fitness(base, mask_of(base, "all", 0), 48)
    base.encoder.save_pretrained(tmp_path)  # type: ignore[operator]
    base.tokenizer.save_pretrained(tmp_path)
    again = load_base(kind, path=str(tmp_path), dtype="float32")
    assert again.digest == base.digest


@st.composite
def small_encoders(draw: st.DrawFn) -> tuple[str, Geometry]:
    kind = draw(st.sampled_from([kind for kind in TAKEN if not missing_here(kind)]))
    heads = draw(st.sampled_from([1, 2, 4]))
    hidden = heads * draw(st.sampled_from([8, 16]))
    sizes = {
        "hidden": hidden,
        "heads": heads,
        "layers": draw(st.integers(1, 3)),
        "ffn": draw(st.sampled_from([16, 48])),
    }
    return kind, geometry_of(kind, **sizes)


@given(
    small_encoders(), st.sampled_from(["pafi", "random", "largest", "ffn_bias", "bitfit", "all"]), st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_features_alone_are_those_in_a_batch_and_the_gradient_is_autograds(
    encoder: tuple[str, Geometry], rule: str, seed: int
) -> None:
    kind, geometry = encoder
    base = load_base(kind, geometry=geometry)
    try:
        mask = mask_of(base, rule, seed)
    except FedmaskError:  # a family without biases of that kind
        mask = mask_of(base, "all", seed)
    check_fitness(base, mask, 48)
    assert_features_and_gradient(base, mask, seed)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_family_that_cannot_be_taken_is_refused_in_one_line(kind: str) -> None:
    if missing_here(kind):
        pytest.skip("not in this version of transformers")
    with pytest.raises(FedmaskError) as caught:
        check_fitness(load_base(kind, geometry=geometry_of(kind)), None, 48)
    assert REFUSED[kind][1] in str(caught.value)
    assert "\n" not in str(caught.value)
