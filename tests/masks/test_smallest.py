"""The k smallest and the k largest against a stable sort: ties, dtypes, memory layouts, threads, refusals."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from fedmask.errors import FedmaskError
from fedmask.masks.smallest import largest, refuse_nan, smallest

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ENDS = {"smallest": smallest, "largest": largest}


def oracle(tensors: Mapping[str, Tensor], count: int, end: str) -> npt.NDArray[np.int64]:
    """A stable sort of the concatenated |w|."""
    magnitudes = np.concatenate([tensor.float().abs().flatten().numpy() for tensor in tensors.values()])
    return np.sort(np.argsort(magnitudes if end == "smallest" else -magnitudes, kind="stable")[:count])


def size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


# Few distinct values make many ties; zeros of both signs, infinities and subnormal numbers are among them.
ODD_VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0**-24, -(2.0**-24), 1e-40, math.inf, -math.inf])
MATRICES = hnp.arrays(
    np.float32, st.tuples(st.integers(0, 6), st.integers(1, 6)), elements=ODD_VALUES | st.floats(-2, 2, width=16)
)


@st.composite
def weights(draw: st.DrawFn) -> dict[str, Tensor]:
    matrices = draw(st.lists(MATRICES, min_size=1, max_size=4).filter(lambda arrays: sum(a.size for a in arrays) > 0))
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    tensors = {f"w{i}": torch.from_numpy(matrix).to(dtype) for i, matrix in enumerate(matrices)}
    return {name: tensor.t().contiguous().t() if draw(st.booleans()) else tensor for name, tensor in tensors.items()}


@given(weights(), st.sampled_from(sorted(ENDS)), st.data())
@settings(max_examples=150, deadline=None)
def test_both_ends_are_those_of_a_stable_sort(tensors: dict[str, Tensor], end: str, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, size(tensors)))
    np.testing.assert_array_equal(ENDS[end](tensors, count), oracle(tensors, count, end))


@pytest.mark.parametrize("end", sorted(ENDS))
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("count", [1, 20_000, 400_000])
def test_larger_tensors_take_the_same_way(end: str, dtype: str, count: int) -> None:
    # More than one piece a tensor, and a sampled bound; 16-bit weights have hundreds of ties at the threshold.
    values = (torch.randn(400_000, generator=torch.Generator().manual_seed(count)) * 0.04).to(DTYPES[dtype])
    tensors = {"a": values[:300_000].reshape(500, 600), "b": values[300_000:].reshape(100, 1000)}
    np.testing.assert_array_equal(ENDS[end](tensors, count), oracle(tensors, count, end))


def test_a_sample_that_misleads_costs_time_and_nothing_else() -> None:
    # The sample takes every 243rd of these entries, just the tiny ones: its bound is far too low, and is raised.
    values = torch.rand(4096, 243, generator=torch.Generator().manual_seed(0)) + 1
    values[:, 0] = 1e-6
    np.testing.assert_array_equal(smallest({"w": values}, 50_000), oracle({"w": values}, 50_000, "smallest"))
    # And the other way round: the bound lets every entry through, and the surplus is dropped on the way.
    values = -values + 3
    np.testing.assert_array_equal(smallest({"w": values}, 50_000), oracle({"w": values}, 50_000, "smallest"))


def test_tensors_of_mixed_dtypes_are_ranked_by_value() -> None:
    values = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    tensors = {f"w{i}": values[i * 20 : i * 20 + 20].to(dtype) for i, dtype in enumerate(DTYPES.values())}
    np.testing.assert_array_equal(smallest(tensors, 90), oracle(tensors, 90, "smallest"))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("end", sorted(ENDS))
@pytest.mark.parametrize("kind", ["few values", "all equal"])
def test_threads_agree_on_ties(end: str, kind: str) -> None:
    # Three runs of tensors, for three threads; the k-th key has equals in all of them.
    generator = torch.Generator().manual_seed(0)
    tensors = {f"w{i}": torch.randint(-9, 9, (800, 1000 + i), generator=generator).float() for i in range(5)}
    tensors = {name: tensor.clamp(3, 3) if kind == "all equal" else tensor for name, tensor in tensors.items()}
    for count in (5, 300_000, 3_900_000):
        np.testing.assert_array_equal(ENDS[end](tensors, count), oracle(tensors, count, end))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("place", [0, 4])
def test_nan_is_seen_by_every_thread(place: int) -> None:
    tensors = {f"w{i}": torch.ones(800, 1000) for i in range(5)}
    tensors[f"w{place}"][-1, -1] = math.nan
    with pytest.raises(FedmaskError, match=rf"^parameter w{place}: it holds NaN"):
        smallest(tensors, 4_000)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_nan_is_refused(dtype: str) -> None:
    values = torch.ones(3, 3, dtype=DTYPES[dtype])
    values[2, 2] = -math.nan
    with pytest.raises(FedmaskError) as caught:
        refuse_nan({"w": values})
    assert str(caught.value) == "parameter w: it holds NaN; load the base weights again"


def test_dtypes_that_float32_does_not_hold_are_refused() -> None:
    for refuses in (refuse_nan, lambda tensors: smallest(tensors, 4)):
        with pytest.raises(FedmaskError) as caught:
            refuses({"w": torch.ones(3, 3, dtype=torch.float64)})
        assert str(caught.value) == "parameter w: masks are chosen in float32, float16 or bfloat16, not torch.float64"
