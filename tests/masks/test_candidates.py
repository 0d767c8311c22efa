"""Which tensors a rule chooses from, by architecture."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, DistilBertConfig, ModernBertConfig, RobertaConfig

from fedmask.masks.candidates import KEY_BIASES_IGNORED_BY, all_biases, encoder_weights, everything, ffn_biases

KINDS = {"weights": encoder_weights, "feed-forward biases": ffn_biases, "biases": all_biases, "all": everything}


def test_roberta_large_counts_by_shapes() -> None:
    config = RobertaConfig(
        vocab_size=50265,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    parameters = dict(model.named_parameters())
    counts = {kind: sum(parameters[name].numel() for name in of(model, False)) for kind, of in KINDS.items()}
    matrices = 24 * (4 * 1024**2 + 2 * 1024 * 4096)
    assert counts == {
        "weights": matrices,
        "feed-forward biases": 122_880,
        "biases": 24 * (6 * 1024 + 4096) + 1024,
        "all": matrices + 24 * (9 * 1024 + 4096),
    }
    assert round(0.0003 * sum(tensor.numel() for tensor in parameters.values())) == 106_608


def test_distilbert_names() -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(DistilBertConfig(n_layers=1))
    layer = "transformer.layer.0"
    assert ffn_biases(model, False) == [f"{layer}.ffn.lin1.bias", f"{layer}.ffn.lin2.bias"]
    linears = [f"attention.{part}_lin" for part in "qkv"] + ["attention.out_lin", "ffn.lin1", "ffn.lin2"]
    assert encoder_weights(model, False) == [f"{layer}.{linear}.weight" for linear in linears]


def test_modernbert_names() -> None:
    with torch.device("meta"):
        plain = AutoModel.from_config(ModernBertConfig(num_hidden_layers=1))
        biased = AutoModel.from_config(ModernBertConfig(num_hidden_layers=1, mlp_bias=True, norm_bias=True))
    assert ffn_biases(plain, False) == []
    assert ffn_biases(biased, False) == ["layers.0.mlp.Wi.bias", "layers.0.mlp.Wo.bias"]
    names = ["attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"]
    assert encoder_weights(plain, False) == [f"layers.0.{name}.weight" for name in names]


def test_embedding_modules_outside_the_embedding_block_are_embeddings() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(4, 4), "relative_attention": nn.Embedding(4, 4)})
    assert encoder_weights(model, False) == ["layer.weight"]


# Key biases ----------------------------------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "embedding_size": 16,  # ALBERT, ELECTRA, MobileBERT
    "attention_window": 8,  # Longformer
    "entity_vocab_size": 4,  # LUKE
    "entity_emb_size": 8,
    "true_hidden_size": 16,  # MobileBERT
    "intra_bottleneck_size": 16,
    "q_groups": 1,  # SqueezeBERT
    "k_groups": 1,
    "v_groups": 1,
    "post_attention_groups": 1,
    "intermediate_groups": 1,
    "output_groups": 1,
    "pad_token_id": 1,
    # DistilBERT
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 24,
    "emb_dim": 16,  # XLM, FlauBERT
}
WITH_KEY_BIASES_THAT_COUNT: Mapping[str, Mapping[str, Any]] = {
    "roformer": {},
    "esm": {"position_embedding_type": "rotary"},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": True},
    "yoso": {},
    "gte": {},
    "qwen2": {"num_key_value_heads": 2},
}


def small(kind: str, **more: Any) -> nn.Module:
    """Two layers of an architecture, all values random and none small."""
    known = vars(CONFIG_MAPPING[kind]())
    aliases = CONFIG_MAPPING[kind].attribute_map
    given = {key: value for key, value in SMALL.items() if key in known or key in aliases} | more
    torch.manual_seed(0)
    model: nn.Module = AutoModel.from_config(CONFIG_MAPPING[kind](**given))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += torch.randn(tensor.shape) * (0.3 if tensor.ndim == 1 else 0.1)
    return model.eval()


def features(model: nn.Module) -> torch.Tensor:
    """(2, H): means over the tokens of a text and of a shorter one that is padded."""
    ids = torch.randint(3, 40, (2, 16), generator=torch.Generator().manual_seed(1))
    attention = torch.ones_like(ids)
    ids[1, 9:], attention[1, 9:] = 1, 0
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=attention).last_hidden_state
    return (states * attention[..., None]).sum(1) / attention.sum(1, keepdim=True)


def perturb(model: nn.Module, names: Collection[str]) -> None:
    with torch.no_grad():
        for name in names:
            tensor = model.get_parameter(name)
            tensor += torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2)) * 3


@pytest.mark.parametrize("kind", sorted(KEY_BIASES_IGNORED_BY))
def test_key_biases_are_left_out_where_nothing_depends_on_them(kind: str) -> None:
    model = small(kind)
    everywhere, counted = all_biases(model, True), all_biases(model, False)
    left_out = sorted(set(everywhere) - set(counted))
    assert len(left_out) >= (1 if kind == "albert" else 2)  # one a layer, and ALBERT's layers are one
    assert all(name in everywhere for name in counted)
    before = features(model)
    perturb(model, left_out)
    torch.testing.assert_close(features(model), before, rtol=1e-6, atol=1e-6)
    # And the test sees what it looks for.
    perturb(model, [name for name in counted if "value" in name or ".v" in name])
    assert (features(model) - before).abs().max() > 1e-2


@pytest.mark.parametrize("kind", sorted(WITH_KEY_BIASES_THAT_COUNT))
def test_key_biases_are_kept_where_outputs_depend_on_them(kind: str) -> None:
    model = small(kind, **WITH_KEY_BIASES_THAT_COUNT[kind])
    assert all_biases(model, False) == all_biases(model, True)
    keys = [name for name in all_biases(model, False) if re.search(r"\.(key|k_proj|key_proj)\.bias$", name)]
    assert len(keys) == 2
    before = features(model)
    perturb(model, keys)
    assert (features(model) - before).abs().max() > 1e-3


def test_key_biases_under_relative_positions_are_kept() -> None:
    model = small("bert")
    model.config.position_embedding_type = "relative_key"  # type: ignore[union-attr]
    assert all_biases(model, False) == all_biases(model, True)


def test_fused_projections_and_unknown_models_keep_all_biases() -> None:
    fused = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False)
    assert "layers.0.self_attn.in_proj_bias" in all_biases(fused, False)
    unknown = small("bert")
    unknown.config.model_type = "of-a-person"  # type: ignore[union-attr]
    for model in (fused, unknown, small("modernbert", attention_bias=True)):
        assert all_biases(model, False) == all_biases(model, True)
