"""Which entries of a base model may change: the mask, the rules that choose it, and the forms it travels in."""

from fedmask.masks.digest import base_digest
from fedmask.masks.mask import Mask, MaskRecipe
from fedmask.masks.rules import RULES, select
from fedmask.masks.zeros import exact_zeros

__all__ = ["RULES", "Mask", "MaskRecipe", "base_digest", "exact_zeros", "select"]
