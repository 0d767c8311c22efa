"""fedmask.wire.codecs.sign: signs and mean magnitudes; what is lost is shorter than what was to be sent."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from fedmask.wire.codecs import codec, decode


def decoded(values: np.ndarray) -> np.ndarray:
    return decode(codec("sign").encode(values, 0), values.size)


def test_signs_and_the_mean_magnitude_of_each_block() -> None:
    values = np.concatenate([np.tile([1.0, -3.0], 128), [8.0, -4.0, 0.0]]).astype(np.float32)
    assert np.array_equal(decoded(values), np.concatenate([np.tile([2.0, -2.0], 128), [4.0, -4.0, 4.0]]))


@given(stn.arrays(np.float32, st.integers(1, 600), elements=st.floats(-1e6, 1e6, width=32)))
def test_it_shrinks(values: np.ndarray) -> None:
    """What error feedback rests on: the rest is no longer than the vector, and shorter by the share it points along."""
    lost = np.linalg.norm(values - decoded(values).astype(np.float64))
    assert lost <= np.linalg.norm(values.astype(np.float64)) * np.sqrt(1 - 0.99 / 256) + 1e-37
