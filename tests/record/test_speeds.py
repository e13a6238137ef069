"""A speed is told from the dense model's only where the measurement can."""

import pytest

from svdexp.record.speeds import even, speedup, speedup_over_routed


@pytest.mark.parametrize(
    ("speed", "spreads", "alike"),
    [(95.0, (0.02, 0.06), True), (95.0, (0.06, 0.02), True), (95.0, (0.02, 0.03), False), (100.0, (0.0, 0.0), True)],
)
def test_inside_the_spread_of_either_both_are_as_fast(speed: float, spreads: tuple[float, float], alike: bool) -> None:
    record = {"tokens_per_second/decode": speed, "tokens_per_second/decode_dense": 100.0}
    record |= {"speed_spread/decode": spreads[0], "speed_spread_dense/decode": spreads[1]}
    assert speedup(record, "decode") == speed / 100
    assert even(record, "decode") is alike
    assert speedup(record, "prefill") is None
    assert not even(record, "prefill")


def test_beside_a_dense_model_by_our_routes() -> None:
    record = {"tokens_per_second/decode": 120.0, "tokens_per_second_routed/decode": 100.0}
    assert speedup_over_routed(record, "decode") == 1.2
    assert speedup_over_routed(record, "prefill") is None
