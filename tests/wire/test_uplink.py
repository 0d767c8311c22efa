"""fedmask.wire.uplink: what a client sends is what the server adds up, and nothing of an update is lost."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmask.errors import RejectedMessage
from fedmask.runs.config import CodecConfig
from fedmask.wire.uplink import Values, decode_updates, encode_updates
from fedmask.wire.vectors import NamedVector, frames

DELTA, HEAD = ("delta", "ab" * 32, 700), ("head", "cd" * 32, 9)
SEED, CLIENT = 5, 3


def updates(server_round: int) -> list[NamedVector]:
    generator = np.random.default_rng(server_round)
    return [
        NamedVector(name, layout, generator.standard_normal(size, dtype=np.float32))
        for name, layout, size in (DELTA, HEAD)
    ]


def sent(
    config: CodecConfig, server_round: int, residuals: dict[str, Values]
) -> tuple[list[NDArray[np.float32]], dict[str, Values]]:
    payload, after = encode_updates(updates(server_round), residuals, config, server_round, CLIENT, SEED)
    found = decode_updates(payload, [DELTA, HEAD], config, server_round, SEED)
    assert [(each.name, each.layout_digest) for each in found] == [DELTA[:2], HEAD[:2]]
    return [each.values for each in found], after


def test_a_lossless_codec_sends_the_update_itself_and_keeps_nothing() -> None:
    found, residuals = sent(CodecConfig("fp32+entropy", "fp32", 1, True), 1, {})
    assert all(np.array_equal(values, update.values) for values, update in zip(found, updates(1), strict=True))
    assert residuals == {}


@pytest.mark.parametrize("spec", ["int4+entropy", "sign", "topk:0.1:int8", "fp32"])
@pytest.mark.parametrize("rotate", [1, 4])
def test_what_is_sent_and_what_is_left_are_the_updates_together(spec: str, rotate: int) -> None:
    config, residuals = CodecConfig(spec, "fp32", rotate, True), dict[str, Values]()
    total = [np.zeros(size, np.float64) for _, _, size in (DELTA, HEAD)]
    for server_round in range(1, 9):
        found, residuals = sent(config, server_round, residuals)
        for sum_, values in zip(total, found, strict=True):
            sum_ += values
    if not config.keeps_residuals:
        assert residuals == {}
    for number, (name, _, size) in enumerate((DELTA, HEAD)):
        wanted = np.sum([updates(each)[number].values for each in range(1, 9)], axis=0, dtype=np.float64)
        left = residuals.get(name, np.zeros(size, np.float32))
        assert np.allclose(total[number] + left, wanted, atol=1e-5)


def test_in_a_cycle_every_entry_travels_once_and_the_parts_are_the_same_for_all_clients() -> None:
    config = CodecConfig("fp32", "fp32", 4, False)
    travelled = np.zeros(DELTA[2], int)
    for server_round in range(1, 5):
        parts = []
        for client in (0, 1):
            payload, residuals = encode_updates(updates(server_round), {}, config, server_round, client, SEED)
            assert residuals == {}  # without error feedback the other entries are dropped
            assert len(frames(payload)[0].body) == 8 + 4 * 175
            parts.append(decode_updates(payload, [DELTA, HEAD], config, server_round, SEED)[0].values != 0)
        assert np.array_equal(*parts)
        travelled += parts[0]
    assert (travelled == 1).all()


def test_a_vector_shorter_than_the_number_of_parts_travels_an_entry_a_round() -> None:
    payload, _ = encode_updates(updates(1), {}, CodecConfig("fp32", "fp32", 16, True), 1, CLIENT, SEED)
    assert [len(each.body) for each in frames(payload)] == [8 + 4 * 44, 8 + 4]


def test_rounding_differs_from_client_to_client_and_from_round_to_round() -> None:
    config = CodecConfig("int4", "fp32", 1, False)
    bodies = {
        encode_updates(updates(1), {}, config, server_round, client, SEED)[0]
        for server_round in (1, 2)
        for client in (0, 1)
    }
    assert len(bodies) == 4


def test_an_update_of_another_part_is_rejected() -> None:
    config = CodecConfig("fp32", "fp32", 3, True)
    payload, _ = encode_updates(updates(1), {}, config, 1, CLIENT, SEED)
    with pytest.raises(RejectedMessage) as caught:
        decode_updates(payload, [DELTA, HEAD], CodecConfig("fp32", "fp32", 1, True), 1, SEED)
    assert caught.value.cause == "wrong-length"
