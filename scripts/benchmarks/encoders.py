"""Encoders to measure with: the geometry of conf/model/NAME.yaml, random weights, no tokenizer, no file to fetch."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from server.compose import compose


def random_encoder(name: str, **changes: Any) -> nn.Module:
    """In evaluation mode, no parameter asking for a gradient. changes: to the geometry, as num_hidden_layers=4."""
    geometry = compose([f"model={name}"]).model.geometry
    assert geometry is not None, f"conf/model/{name}.yaml has a geometry"
    encoder: nn.Module = AutoModel.from_config(AutoConfig.for_model(**(dict(geometry) | changes)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in encoder.named_parameters():
            is_norm_scale = parameter.dim() == 1 and parameter_name.endswith("weight")
            # Biases too: HiWi's networks have nothing to work on where they are zero.
            parameter.normal_(1.0 if is_norm_scale else 0.0, 0.02, generator=generator)
    return encoder.eval().requires_grad_(False)


def random_inputs(encoder: nn.Module, batch_size: int, num_tokens: int) -> dict[str, Tensor]:
    """Token ids and a mask of ones, each (batch_size, num_tokens)."""
    shape = (batch_size, num_tokens)
    first_word = 5  # below lie padding and other special tokens
    ids = torch.randint(first_word, encoder.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones(shape, dtype=torch.int64)}
