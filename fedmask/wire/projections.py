"""What rivals would send per client and round, by formula: projections, nothing that was measured here.

All in fp32, both ways the same, without framing, and without a task head, which any of them may send beside it; but
FedKSeed's scalars are taken at 2 bytes, as its authors count them (8.2e3 numbers in less than 18 KB).
"""

from dataclasses import dataclass

FP32_BYTES, FP16_BYTES = 4, 2
LORA_RANK, LORA_MATRICES_PER_LAYER = 8, 2
FEDKSEED_SEEDS = 4096


@dataclass(frozen=True)
class Projection:
    name: str
    formula: str
    bytes_each_way: int
    """Per client and round."""


def projections(num_parameters: int, num_biases: int, num_layers: int, hidden_size: int) -> tuple[Projection, ...]:
    """Of a base model without a head: its parameters, those of them that are biases, its layers and their width."""
    lora = num_layers * LORA_MATRICES_PER_LAYER * 2 * LORA_RANK * hidden_size
    return (
        Projection("full fine-tuning", "4 bytes x parameters", full_finetuning_bytes_each_way(num_parameters)),
        Projection(f"LoRA r={LORA_RANK}", "4 bytes x layers x (query, value) x 2 x r x hidden size", FP32_BYTES * lora),
        Projection("BitFit", "4 bytes x biases", FP32_BYTES * num_biases),
        Projection("FedKSeed", f"2 bytes x {FEDKSEED_SEEDS} scalars of known seeds", FP16_BYTES * FEDKSEED_SEEDS),
    )


def full_finetuning_bytes_each_way(num_parameters: int) -> int:
    """Every parameter in fp32."""
    return FP32_BYTES * num_parameters
