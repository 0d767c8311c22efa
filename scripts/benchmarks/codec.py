"""Every codec on a vector of roberta-large at density 0.0003, beside its limit: 20 ms, with entropy coding 50 ms.

The limits are of encoding and decoding together on one core, so they stand against CPU time. fp32 beside a copy of the
values is for information: what a header and a look for NaN cost.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import alternate
from benchmarks.rows import Row, Settings
from fedmask.wire.codecs import codec, decode

NUM_VALUES = 106_608
NAMES = ("fp32", "fp16", "bf16", "int8", "int4", "sign", "topk:0.1", "topk:0.01:int4")
ENTROPY = "+entropy"
LIMIT_SECONDS, ENTROPY_LIMIT_SECONDS = 0.020, 0.050
COPY = "a copy of the values"


def rows(settings: Settings) -> Iterator[Row]:
    work = f"encoding and decoding {NUM_VALUES:,} values"
    settings.say(work)
    values = np.random.default_rng(0).laplace(scale=1e-3, size=NUM_VALUES).astype(np.float32)
    specs = [*NAMES, *(name + ENTROPY for name in NAMES)]
    works = {spec: partial(_round_trip, spec, values) for spec in specs} | {COPY: values.copy}
    timings = alternate(works, settings.repeats)
    for spec in specs:
        limit = ENTROPY_LIMIT_SECONDS if spec.endswith(ENTROPY) else LIMIT_SECONDS
        yield Row("codec", work, spec, f"{1000 * limit:.0f} ms", timings[spec].cpu, limit, "s of CPU", 1.0)
    yield Row("codec", work, "fp32", COPY, timings["fp32"].cpu, timings[COPY].cpu, "s of CPU")


def _round_trip(spec: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    return decode(codec(spec).encode(values, seed=0), NUM_VALUES)
