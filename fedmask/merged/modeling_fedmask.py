"""A merged fedmask model with its task head, for transformers. This file travels with the model and needs no fedmask.

    AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)
    pipeline("text-classification", FOLDER, trust_remote_code=True)

The encoder is the folder's own, as AutoModel loads it; the head is in HEAD_FILE:
logits = features W^T + b, where features are the last hidden states' mean over the tokens that are no padding.
"""

import inspect
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, TextClassificationPipeline
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import cached_file

HEAD_FILE = "fedmask_head.safetensors"
"""W row by row, then b: one float32 tensor `values` of (C * H + C,)."""

_OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class FedmaskForSequenceClassification(PreTrainedModel):  # type: ignore[misc]
    """Token ids to logits (B, C), float32; a regression's C is 1."""

    # The encoder decides how it computes attention: this class must not decide for it.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: Any, encoder: Any = None) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(config) if encoder is None else encoder
        self.head = nn.Linear(config.hidden_size, config.num_labels, dtype=torch.float32)
        self.is_pair_head: bool | None = config.fedmask["pairs"]
        """None where its training did not say."""
        self.max_length: int = config.fedmask["max_length"]
        """Tokens that texts were cut to in training."""

    @property
    def takes_token_types(self) -> bool:
        """Whether the encoder tells the first text of a pair from the second."""
        known = "token_type_ids" in inspect.signature(self.encoder.forward).parameters
        return known and int(getattr(self.config, "type_vocab_size", 0)) > 1

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """The encoder as AutoModel loads it with these arguments, and the head."""
        kwargs.pop("trust_remote_code", None)  # the encoder is of transformers' own classes
        loaded = AutoModel.from_pretrained(folder, *args, **kwargs)
        encoder, *report = loaded if isinstance(loaded, tuple) else (loaded,)
        model = cls(encoder.config, encoder)
        of_hub = {name: value for name, value in kwargs.items() if name in _OF_THE_HUB}
        model._load_head(cached_file(folder, HEAD_FILE, **of_hub))
        model.eval()
        return (model, *report) if report else model

    @torch.no_grad()
    def _load_head(self, path: Any) -> None:
        values = load_file(path)["values"]
        num_labels = self.config.num_labels
        if values.shape != (num_labels * (self.config.hidden_size + 1),):
            raise ValueError(f"{path}: a head of {num_labels} labels does not have {len(values)} values")
        self.head.to(device=self.device)
        self.head.weight.copy_(values[:-num_labels].view_as(self.head.weight))
        self.head.bias.copy_(values[-num_labels:])

    def save_pretrained(self, folder: Any, **kwargs: Any) -> None:
        """Write a folder of the same form: encoder, head, this file."""
        self.encoder.save_pretrained(folder, **kwargs)
        values = torch.cat([self.head.weight.detach().flatten(), self.head.bias.detach()]).float().cpu()
        save_file({"values": values}, Path(folder) / HEAD_FILE)
        shutil.copyfile(inspect.getfile(type(self)), Path(folder) / Path(__file__).name)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Ids, mask and types (B, T); labels (B,), class indices or a regression's targets, for a loss.

        A text of no tokens is one token, the same as in training.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        is_first = torch.arange(input_ids.shape[1], device=input_ids.device) == 0
        is_empty = (attention_mask.sum(1, keepdim=True) == 0) & is_first
        input_ids = input_ids.masked_fill(is_empty, self.config.fedmask["stand_in_id"])
        attention_mask = attention_mask.masked_fill(is_empty, 1)
        if token_type_ids is not None and self.takes_token_types:
            kwargs["token_type_ids"] = token_type_ids.masked_fill(is_empty, 0)
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state.float()
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        features = (hidden * weights).sum(1) / weights.sum(1)
        logits = nn.functional.linear(features, self.head.weight.float(), self.head.bias.float())
        return SequenceClassifierOutput(loss=None if labels is None else self._loss(logits, labels), logits=logits)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.problem_type == "regression":
            return nn.functional.mse_loss(logits.squeeze(1), labels.float())
        return nn.functional.cross_entropy(logits, labels)


class FedmaskTextClassificationPipeline(TextClassificationPipeline):  # type: ignore[misc]
    """`pipeline("text-classification")` that cuts texts where training cut them."""

    def check_model_type(self, supported_models: Any) -> None:
        """It is made for the class above and loaded with it."""

    def preprocess(self, inputs: Any, **tokenizer_kwargs: Any) -> Any:
        """A text, or {"text": ..., "text_pair": ...}. Raises ValueError where the head is not for that."""
        if isinstance(inputs, str):
            texts = [inputs]
        elif isinstance(inputs, dict) and "text" in inputs and inputs.keys() <= {"text", "text_pair"}:
            texts = [inputs[key] for key in ("text", "text_pair") if key in inputs]
        else:
            raise ValueError(f'expected a text, or {{"text": ..., "text_pair": ...}}, found {inputs!r}')
        is_pair = len(texts) == 2
        if self.model.is_pair_head is not None and is_pair != self.model.is_pair_head:
            wanted = 'pairs: {"text": ..., "text_pair": ...}' if self.model.is_pair_head else "single texts"
            raise ValueError(f"this model's head is for {wanted}")
        as_trained = {
            "truncation": True,
            "max_length": self.model.max_length,
            "return_token_type_ids": self.model.takes_token_types,
        }
        # Lists of one: with texts alone a tokenizer takes an empty second text for none.
        encoded = self.tokenizer(*[[text] for text in texts], return_tensors="pt", **(as_trained | tokenizer_kwargs))
        if encoded["input_ids"].shape[1] == 0:
            encoded = encoded | {name: torch.zeros(1, 1, dtype=torch.long) for name in encoded}
        return encoded
