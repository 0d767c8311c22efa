"""fedmask.wire.projections: the formulas, on figures that can be looked up or counted."""

from torch import nn

from fedmask.models import BaseModel
from fedmask.wire.projections import full_finetuning_bytes_each_way, projections


def bytes_by_name(num_parameters: int, num_biases: int, num_layers: int, hidden_size: int) -> dict[str, int]:
    found = projections(num_parameters, num_biases, num_layers, hidden_size)
    return {each.name: each.bytes_each_way for each in found}


def test_roberta_large() -> None:
    assert bytes_by_name(355_359_744, 273_408, 24, 1024) == {
        "full fine-tuning": 4 * 355_359_744,
        "LoRA r=8": 4 * 786_432,
        "BitFit": 4 * 273_408,
        "FedKSeed": 8192,
    }


def test_lora_is_what_its_matrices_hold(tiny: BaseModel) -> None:
    linear = [module for name, module in tiny.encoder.named_modules() if name.endswith(("query", "value"))]
    assert all(isinstance(module, nn.Linear) for module in linear)
    values = sum(8 * (module.in_features + module.out_features) for module in linear)
    assert bytes_by_name(0, 0, 2, tiny.hidden_size)["LoRA r=8"] == 4 * values


def test_full_fine_tuning_is_fp32() -> None:
    assert full_finetuning_bytes_each_way(22_713_216) == 4 * 22_713_216
