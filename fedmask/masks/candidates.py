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

_KEY_BIAS = re.compile(
    r"(^|\.)("
    r"attention\.self\.key"  # BERT, RoBERTa, MiniLM, ELECTRA
    r"|attention\.key"  # ALBERT, SqueezeBERT
    r"|attention\.k_lin|attentions\.\d+\.k_lin"  # DistilBERT, XLM
    r"|attention\.attn\.k"  # MPNet
    r")\.bias$"
)

KEY_BIASES_IGNORED_BY = frozenset(
    {
        *("albert", "bert", "bert-generation", "camembert", "canine", "convbert", "data2vec-text", "distilbert"),
        *("electra", "ernie", "esm", "flaubert", "layoutlm", "longformer", "luke", "markuplm", "megatron-bert"),
        *("mobilebert", "mpnet", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "splinter", "squeezebert"),
        *("tapas", "xlm", "xlm-roberta", "xlm-roberta-xl"),
    }
)
"""Types of model whose outputs do not depend on the bias b of the key projection: q . (k + b) adds q . b to all scores
of a query alike, and their softmax does not see it. So it is where positions come before the projection or are a term
of their own, and not where they turn, weigh or meet the keys (rotary, disentangled, relative-key). A test holds every
type against its own outputs; types that are not here keep all their biases."""


def encoder_weights(model: nn.Module, embeddings: bool) -> list[str]:
    """The 2-D weights, without those of embeddings and pooler."""
    outside = _pooler(model) | _embeddings(model)
    return [name for name, tensor in model.named_parameters() if name not in outside and tensor.ndim == 2]


def ffn_biases(model: nn.Module, embeddings: bool) -> list[str]:
    """The biases of the feed-forward blocks, by the names that architectures give them."""
    outside = _pooler(model)
    return [name for name, _ in model.named_parameters() if name not in outside and _FFN_BIAS.search(name)]


def all_biases(model: nn.Module, key_biases: bool) -> list[str]:
    """Every bias but the pooler's; without `key_biases` none of attention keys that the outputs do not depend on."""
    outside = _pooler(model) if key_biases else _pooler(model) | _ignored_key_biases(model)
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


def _ignored_key_biases(model: nn.Module) -> set[str]:
    """Biases of attention keys whatever whose values the outputs are the same, up to rounding."""
    config = getattr(model, "config", None)
    has_absolute_positions = getattr(config, "position_embedding_type", "absolute") == "absolute"
    if getattr(config, "model_type", None) not in KEY_BIASES_IGNORED_BY or not has_absolute_positions:
        return set()
    return {name for name, _ in model.named_parameters() if _KEY_BIAS.search(name)}
