"""Which tensors a rule chooses from, by architecture."""

import torch
from torch import nn
from transformers import AutoModel, DistilBertConfig, ModernBertConfig, RobertaConfig

from fedmask.masks.candidates import all_biases, encoder_weights, everything, ffn_biases

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
        "biases": 271_360,
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
