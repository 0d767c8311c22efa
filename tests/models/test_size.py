"""fedmask.models.size: what a geometry asks for is known before it is allocated, and a giant is given up at once."""

import resource
import time
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from fedmask.errors import FedmaskError
from fedmask.models import BaseModel
from fedmask.models.size import num_parameters_of

TINY: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[2] / "conf" / "model" / "tiny.yaml").read_text(encoding="utf-8")
)["geometry"]


def test_it_is_as_many_as_the_model_has(tiny: BaseModel) -> None:
    assert num_parameters_of("tiny", TINY, tiny.num_parameters) == tiny.num_parameters
    with pytest.raises(FedmaskError, match="asks for more than 1,000 parameters, for which there is no memory here"):
        num_parameters_of("tiny", TINY, 1000)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 10**12},
        {"vocab_size": 2**62},
        {"hidden_size": 2**40},
        {"intermediate_size": 10**12},
        {"max_position_embeddings": 10**11},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 10**9, "hidden_size": 2, "num_attention_heads": 1, "intermediate_size": 1},
        {"vocab_size": -1},
    ],
    ids=str,
)
def test_a_giant_is_refused_before_it_is_allocated_or_built(changes: dict[str, int]) -> None:
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(FedmaskError) as caught:
        num_parameters_of("tiny", TINY | changes, 10**9)
    assert "\n" not in str(caught.value)
    assert time.process_time() - started < 20  # 10^9 layers were still being built after 25 s
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes
