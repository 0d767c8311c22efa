"""The weighted mean of a thousand updates beside one read of their values and beside Flower's aggregate_arrayrecords.

Flower is given each client's update as two hundred arrays, which is what a model's state dict is, and as one array; it
decodes them, and so does fedmask's side there.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from numpy.typing import NDArray

from benchmarks.measure import alternate, time_rows
from benchmarks.rows import Row, Settings
from fedmask.aggregation import WeightedMean
from fedmask.errors import FedmaskError
from fedmask.wire.codecs import codec
from fedmask.wire.vectors import frame, unframe

NUM_CLIENTS, NUM_VALUES = 1_000, 106_500
NUM_ARRAYS = 200
MEAN, READING = "running mean in float64", "reading the values once"
FROM_FRAMES = "frames decoded, checked, running mean in float64"
LAYOUT = "0" * 64
IN_ARRAYS, IN_ONE = (
    f"aggregate_arrayrecords, {NUM_ARRAYS} arrays a client",
    "aggregate_arrayrecords, one array a client",
)
LEAST_OF_READING, LEAST_FASTER = 1 / 3, 10.0
WEIGHT = "num-examples"


def rows(settings: Settings) -> Iterator[Row]:
    num_clients = 5 if settings.is_trial else NUM_CLIENTS
    work = f"{num_clients:,} clients x {NUM_VALUES:,} values, weighted"
    settings.say(work)
    generator = np.random.default_rng(0)
    updates = generator.standard_normal((num_clients, NUM_VALUES), dtype=np.float32)
    weights = generator.integers(1, 1000, num_clients).tolist()
    payloads = [frame("delta", LAYOUT, codec("fp32").encode(update, 0)) for update in updates]
    works = {MEAN: partial(mean, updates, weights), READING: partial(read, updates)}
    yield from time_rows("aggregate", work, MEAN, READING, alternate(works, settings.repeats), LEAST_OF_READING)
    for rival, num_arrays, target in ((IN_ARRAYS, NUM_ARRAYS, LEAST_FASTER), (IN_ONE, 1, None)):
        settings.say(rival)
        records = [_record(update, num_arrays, weight) for update, weight in zip(updates, weights, strict=True)]
        check_same_mean(updates, weights, records)
        works = {FROM_FRAMES: partial(mean_of_frames, payloads, weights)}
        works |= {rival: partial(aggregate_arrayrecords, records, WEIGHT)}
        yield from time_rows("aggregate", work, FROM_FRAMES, rival, alternate(works, settings.repeats), target)


def mean(updates: NDArray[np.float32], weights: Sequence[int]) -> NDArray[np.float64]:
    running = WeightedMean(updates.shape[1])
    for update, weight in zip(updates, weights, strict=True):
        running.add(update, weight)
    return running.result()


def mean_of_frames(payloads: Sequence[bytes], weights: Sequence[int]) -> NDArray[np.float64]:
    """From what arrives, as the server takes it: decoded, which looks for what is not finite, and added."""
    running = WeightedMean(NUM_VALUES)
    for payload, weight in zip(payloads, weights, strict=True):
        values = unframe(payload, [("delta", LAYOUT, NUM_VALUES)])["delta"].values
        running.add(values, weight)
    return running.result()


def read(updates: NDArray[np.float32]) -> float:
    return torch.from_numpy(updates).sum().item()


def _record(update: NDArray[np.float32], num_arrays: int, weight: int) -> RecordDict:
    arrays = {f"tensor-{i}": Array(part) for i, part in enumerate(np.array_split(update, num_arrays))}
    return RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({WEIGHT: weight})})


def check_same_mean(updates: NDArray[np.float32], weights: Sequence[int], records: list[RecordDict]) -> None:
    """Raises FedmaskError where Flower's mean, in float32, is another than ours."""
    theirs = np.concatenate([array.numpy() for array in aggregate_arrayrecords(records, WEIGHT).values()])
    if not np.allclose(mean(updates, weights), theirs, atol=1e-5):
        raise FedmaskError("aggregate: fedmask and Flower come to different means")
