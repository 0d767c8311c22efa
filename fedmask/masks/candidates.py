"""Model -> names of the tensors that a rule chooses from, in model order; no values are read."""

import re

from torch import nn

_FFN_BIAS = re.compile(
    r"(^|\.)("
    r"intermediate\.dense|(?<!attention\.)output\.dense"  # BERT, RoBERTa, MiniLM, MPNet, ELECTRA, DeBERTa
    r"|ffns?\.(\d+\.)?lin[12]"  # DistilBERT, XLM
    r"|ffn|ffn_output"  # ALBERT
    r"|mlp\.\w*(?<!norm)"  # ModernBERT
    r"|layers\.\d+\.linear[12]"  # torch.nn.TransformerEncoder
    r")\.bias$"
)


def encoder_weights(model: nn.Module, embeddings: bool) -> list[str]:
    """The 2-D weights, without those of embeddings and pooler."""
    outside = _pooler(model) | _embeddings(model)
    return [name for name, tensor in model.named_parameters() if name not in outside and tensor.ndim == 2]


def ffn_biases(model: nn.Module, embeddings: bool) -> list[str]:
    """The biases of the feed-forward blocks, by the names that architectures give them."""
    outside = _pooler(model)
    return [name for name, _ in model.named_parameters() if name not in outside and _FFN_BIAS.search(name)]


def all_biases(model: nn.Module, embeddings: bool) -> list[str]:
    """Every bias, without the pooler's."""
    outside = _pooler(model)
    return [name for name, _ in model.named_parameters() if name not in outside and re.search(r"(^|[._])bias$", name)]


def everything(model: nn.Module, embeddings: bool) -> list[str]:
    """Every parameter but the pooler's, and but the embeddings' where `embeddings` is false."""
    outside = _pooler(model) if embeddings else _pooler(model) | _embeddings(model)
    return [name for name, _ in model.named_parameters() if name not in outside]


def _pooler(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters() if "pooler" in name.split(".")}


def _embeddings(model: nn.Module) -> set[str]:
    """Tensors of the embedding block, its normalisation included, and of embedding modules anywhere else."""
    block = {name for name, _ in model.named_parameters() if any(part.startswith("embed") for part in name.split("."))}
    modules = (f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Embedding))
    return block | set(modules)
