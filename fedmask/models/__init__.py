"""Base models: a name in, a `BaseModel` out, whose weights have the same digest in every process."""

from fedmask.models.loading import DEVICES, DTYPES, BaseModel, lay_out_in_one_piece, load_base, shown_name
from fedmask.models.sources import MINILM_HUB_NAME, bundled_minilm
from fedmask.models.tokenizers import small_tokenizer

__all__ = [
    "DEVICES",
    "DTYPES",
    "MINILM_HUB_NAME",
    "BaseModel",
    "bundled_minilm",
    "lay_out_in_one_piece",
    "load_base",
    "shown_name",
    "small_tokenizer",
]
