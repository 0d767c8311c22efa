"""fedmask.wire.error_feedback: over rounds everything arrives, whatever the codec, with and without rotation."""

import numpy as np
import pytest

from fedmask.errors import FedmaskError
from fedmask.wire.codecs import codec, decode
from fedmask.wire.error_feedback import encode_with_feedback
from fedmask.wire.rotation import rotation

SIZE, ROUNDS = 300, 400
SPECS = ("fp32", "fp16", "bf16", "int8", "int4", "sign", "int4+entropy", "topk:0.05", "topk:0.05:sign", "topk:0.1:int4")
VALUES = np.random.default_rng(0).laplace(size=SIZE).astype(np.float32)


def error_of_mean(spec: str, parts: int, rounds: int = ROUNDS) -> float:
    """Of what has arrived over the rounds, each of the same values; relative to their length."""
    arrived, residual = np.zeros(SIZE), np.zeros(SIZE, np.float32)
    for server_round in range(1, rounds + 1):
        part = rotation(SIZE, parts, server_round, 0)
        data, residual = encode_with_feedback(codec(spec), VALUES, residual, server_round, part)
        arrived[part] += decode(data, len(part))
    return float(np.linalg.norm(arrived / rounds - VALUES) / np.linalg.norm(VALUES))


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("spec", SPECS)
def test_the_mean_of_what_arrives_becomes_the_value(spec: str, parts: int) -> None:
    assert error_of_mean(spec, parts) < min(0.12, error_of_mean(spec, parts, ROUNDS // 8) / 2 + 1e-6)


def test_without_feedback_it_does_not() -> None:
    sent = decode(codec("sign").encode(VALUES, 0), SIZE)
    assert np.linalg.norm(sent - VALUES) > 0.5 * np.linalg.norm(VALUES)


@pytest.mark.parametrize("spec", SPECS)
def test_what_was_sent_and_what_stays_is_what_was_to_be_sent(spec: str) -> None:
    residual = np.random.default_rng(1).standard_normal(SIZE, dtype=np.float32)
    before = residual.copy()
    data, after = encode_with_feedback(codec(spec), VALUES, residual, 3)
    assert np.allclose(decode(data, SIZE) + after, VALUES + residual, atol=1e-6)
    assert np.array_equal(residual, before)
    assert data == codec(spec).encode(VALUES + residual, 3)


def test_what_is_not_of_this_rounds_part_stays() -> None:
    residual = np.ones(SIZE, np.float32)
    part = rotation(SIZE, 5, 2, 0)
    data, after = encode_with_feedback(codec("fp32"), VALUES, residual, 0, part)
    assert np.array_equal(decode(data, len(part)), (VALUES + 1)[part])
    others = np.setdiff1d(np.arange(SIZE), part)
    assert np.array_equal(after[others], (VALUES + 1)[others])
    assert not after[part].any()


def test_a_sum_that_overflows_is_refused() -> None:
    huge = np.full(3, 3e38, np.float32)
    with pytest.raises(FedmaskError, match="3 of 3 values are not finite"):
        encode_with_feedback(codec("sign"), huge, huge, 0)
