"""Named streams: the published generator, keyed as promised, turned into numbers that may never change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ipdiff import rng
from ipdiff.rng import Purpose

_MASK = 2**64 - 1


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 in whole numbers, after Salmon et al. 2011: the reference of this file."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
        c = [(second >> 64) ^ c[1] ^ k[0], second & _MASK, (first >> 64) ^ c[3] ^ k[1], first & _MASK]
        k = [(k[0] + 0x9E3779B97F4A7C15) & _MASK, (k[1] + 0xBB67AE8584CAA73B) & _MASK]
    return c


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]),
        ([_MASK] * 4, [_MASK] * 2, [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]),
    ],
)
def test_the_reference_of_these_tests_gives_the_published_answers(
    counter: list[int], key: list[int], expected: list[int]
) -> None:
    """Source: Random123 kat_vectors, philox4x64 10 rounds."""
    assert philox4x64(counter, key) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 5, 2**64 - 1])
@pytest.mark.parametrize(("index", "step", "lane"), [(0, 0, 0), (3, 0, 0), (0, 7, 0), (0, 0, 9), (49_999, 500_000, 40)])
def test_words_are_philox_of_the_promised_key_and_counter(seed: int, index: int, step: int, lane: int) -> None:
    found = rng.words(seed, Purpose.EPS, [index], 10, step=step, lane=lane)
    blocks = [philox4x64([block, index, step, lane], [seed, Purpose.EPS]) for block in (1, 2, 3)]
    assert found[0].tolist() == [word for block in blocks for word in block][:10]
    key, counter = np.array([seed, Purpose.EPS], np.uint64), np.array([0, index, step, lane], np.uint64)
    assert (found[0] == np.random.Philox(key=key, counter=counter).random_raw(10)).all()


def test_golden_numbers() -> None:
    """The stream itself. If this fails, every artifact is void: undo the change."""
    assert rng.words(0, Purpose.EPS, [0], 4)[0].tolist() == [
        0x966BD67D71CF81D7,
        0x8FC628DFE98B40BA,
        0x4C4BD8EB1C597054,
        0x068015560D76D2E3,
    ]
    assert rng.uniforms(7, Purpose.TIMESTEP, [5], 2, step=3)[0].tolist() == [0.9019918053982113, 0.7613896363335153]
    assert rng.normals(0, Purpose.EPS, [0], (4,))[0].tolist() == [
        -0.9549241065979004,
        -0.3893527090549469,
        1.5362297296524048,
        0.24719403684139252,
    ]
    assert rng.normals(12345, Purpose.SAMPLE_STEP, [67], (3,), step=89, lane=2)[0].tolist() == [
        -1.2321603298187256,
        -0.4753821790218353,
        -0.33882057666778564,
    ]
    assert rng.permutation(7, Purpose.ORDER, 8, epoch=3).tolist() == [6, 1, 3, 2, 4, 7, 5, 0]
    assert rng.keep_mask(7, [5], (12,), 32768, step=3, lane=2)[0].astype(int).tolist() == [
        0,
        1,
        1,
        0,
        0,
        1,
        0,
        0,
        0,
        1,
        1,
        1,
    ]


def test_purposes_keep_their_numbers() -> None:
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        "INIT": 1,
        "ORDER": 2,
        "TIMESTEP": 3,
        "FLIP": 4,
        "EPS": 5,
        "XI": 6,
        "PROBE": 7,
        "DROPOUT": 8,
        "SAMPLE_START": 9,
        "SAMPLE_STEP": 10,
        "EXPOSURE_ORDER": 11,
        "EXPOSURE_EPS": 12,
        "CLASSIFIER_INIT": 13,
        "CLASSIFIER_ORDER": 14,
        "SUBSET": 15,
        "REFERENCE_SUBSET": 16,
        "KID_SUBSETS": 17,
        "ANALYSIS_ORDER": 20,
        "ANALYSIS_EPS": 21,
        "ANALYSIS_PICK": 22,
    }


@given(indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=5), count=st.integers(1, 9))
def test_a_number_does_not_depend_on_what_else_is_drawn(indices: list[int], count: int) -> None:
    whole = rng.words(3, Purpose.EPS, indices, 9, step=2)
    for row, index in enumerate(indices):
        assert (rng.words(3, Purpose.EPS, [index], count, step=2)[0] == whole[row, :count]).all()
    assert (rng.words(3, Purpose.EPS, np.array(indices), 9, step=2) == whole).all()


def test_a_batch_of_normals_is_the_rows_of_any_other_batch() -> None:
    shape = (3, 5, 7)  # an odd count: the last pair is cut
    whole = rng.normals(1, Purpose.XI, range(40), shape, step=9)
    assert whole.shape == (40, *shape)
    assert whole.dtype == np.float32
    parts = [rng.normals(1, Purpose.XI, range(a, b), shape, step=9) for a, b in ((0, 1), (1, 17), (17, 40))]
    assert (np.concatenate(parts) == whole).all()
    assert (rng.normals(1, Purpose.XI, [31, 4], shape, step=9) == whole[[31, 4]]).all()


def test_rows_longer_than_a_pass_of_the_transform() -> None:
    count = 2 * rng._CHUNK + 6
    whole = rng.normals(1, Purpose.XI, [0, 1, 2], (count,))
    assert (rng.normals(1, Purpose.XI, [1], (count,))[0] == whole[1]).all()
    assert (rng.normals(1, Purpose.XI, [2], (10,))[0] == whole[2, :10]).all()


def test_every_coordinate_makes_another_stream() -> None:
    base: dict[str, int] = {"seed": 1, "purpose": Purpose.EPS, "index": 2, "step": 3, "lane": 4}
    streams = [base] + [{**base, name: 5 + base[name]} for name in base]
    streams += [{**base, "step": 4, "lane": 3}, {**base, "seed": 5, "purpose": Purpose.INIT}]
    drawn = [
        tuple(rng.words(s["seed"], Purpose(s["purpose"]), [s["index"]], 4, step=s["step"], lane=s["lane"])[0])
        for s in streams
    ]
    assert len(set(drawn)) == len(streams)
    assert len({word for words in drawn for word in words}) == 4 * len(streams)


def test_every_purpose_is_another_stream() -> None:
    assert len({int(rng.words(0, purpose, [0], 1)[0, 0]) for purpose in Purpose}) == len(Purpose)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed is {seed}; use 0 <= seed < 2\*\*64"):
        rng.words(seed, Purpose.EPS, [0], 1)


def test_uniforms_are_the_upper_53_bits() -> None:
    raw = rng.words(3, Purpose.TIMESTEP, range(50), 20)
    found = rng.uniforms(3, Purpose.TIMESTEP, range(50), 20)
    assert found.tolist() == [[(word >> 11) / 2**53 for word in row] for row in raw.tolist()]
    assert stats.kstest(found.ravel(), "uniform").pvalue > 0.01


def test_normals_are_normal() -> None:
    found = rng.normals(0, Purpose.EPS, range(400), (100,)).astype(np.float64)
    flat = found.ravel()
    assert stats.kstest(flat, "norm").pvalue > 0.01
    moments = [flat.mean(), flat.var() - 1, (flat**3).mean(), (flat**4).mean() - 3]
    # standard errors of the first four moments of a standard normal, n = 40000
    assert (np.abs(moments) < 4 * np.sqrt(np.array([1, 2, 15, 96]) / flat.size)).all()
    assert np.abs(flat).max() > 3.5


@pytest.mark.parametrize("axis", ["cosine and sine of a pair", "images", "steps", "lanes", "purposes", "seeds"])
def test_neighbours_are_uncorrelated(axis: str) -> None:
    n = 20_000
    draws = {
        "images": [rng.normals(0, Purpose.EPS, [i], (n,))[0] for i in (0, 1)],
        "steps": [rng.normals(0, Purpose.EPS, [0], (n,), step=i)[0] for i in (0, 1)],
        "lanes": [rng.normals(0, Purpose.EPS, [0], (n,), lane=i)[0] for i in (0, 1)],
        "purposes": [rng.normals(0, purpose, [0], (n,))[0] for purpose in (Purpose.EPS, Purpose.XI)],
        "seeds": [rng.normals(seed, Purpose.EPS, [0], (n,))[0] for seed in (0, 1)],
        "cosine and sine of a pair": list(rng.normals(0, Purpose.EPS, [0], (n, 2))[0].T),
    }[axis]
    for a, b in (draws, [draw**2 for draw in draws]):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(n)


EDGES = np.array([0, 1, 2**11 - 1, 2**11, 2**62, 2**63 - 1, 2**63, 2**63 + 2**62, 2**64 - 2**11, 2**64 - 1], np.uint64)


def test_box_muller_is_the_textbook_formula() -> None:
    raw = rng.words(5, Purpose.EPS, range(20), 1000)
    u, v = (raw[:, 0::2] >> 11) * 2.0**-53 + 2.0**-54, (raw[:, 1::2] >> 11) * 2.0**-53
    radius = np.sqrt(-2 * np.log(u))
    expected = np.stack([radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)], axis=-1).reshape(raw.shape)
    np.testing.assert_allclose(rng.box_muller(raw), expected, rtol=2.0**-23, atol=1e-14)


def test_the_transforms_own_functions_are_good_to_a_few_bits() -> None:
    u = (rng.words(6, Purpose.EPS, range(20), 1000).ravel() >> np.uint64(11)) * 2.0**-53
    tiny = 2.0 ** -np.arange(1, 55)
    x = np.concatenate([u + 2.0**-54, tiny, 1 - tiny, [np.sqrt(0.5)]])
    x = x[x < 1]
    np.testing.assert_allclose(rng._log(x), np.log(x), rtol=1e-15)
    assert rng._log(np.array([1.0]))[0] == 0
    turns = np.concatenate([u, tiny, 1 - tiny[:53], np.arange(0, 1, 0.125)])
    cos, sin = rng._cos_sin_turns(turns)
    np.testing.assert_allclose(cos, np.cos(2 * np.pi * turns), rtol=0, atol=2e-15)
    np.testing.assert_allclose(sin, np.sin(2 * np.pi * turns), rtol=0, atol=2e-15)
    small = turns[turns < 0.125]
    np.testing.assert_allclose(rng._cos_sin_turns(small)[1], np.sin(2 * np.pi * small), rtol=1e-15)
    quarters = [part.tolist() for part in rng._cos_sin_turns(np.array([0.0, 0.25, 0.5, 0.75]))]
    assert quarters == [[1, 0, -1, 0], [0, 1, 0, -1]]


def test_the_rarest_words_give_finite_normals() -> None:
    raw = np.array([[a, b] for a in EDGES for b in EDGES], np.uint64)
    found = rng.box_muller(raw)
    assert np.isfinite(found).all()
    assert np.abs(found).max() == pytest.approx(np.sqrt(2 * 54 * np.log(2)), rel=1e-6)  # the smallest u is 2**-54


def test_box_muller_leaves_its_argument_alone() -> None:
    raw = rng.words(5, Purpose.EPS, range(3), 8)
    before = raw.copy()
    rng.box_muller(raw)
    assert (raw == before).all()


@given(n=st.integers(0, 300), epoch=st.integers(0, 1000))
def test_a_permutation_is_one(n: int, epoch: int) -> None:
    assert sorted(rng.permutation(1, Purpose.ORDER, n, epoch=epoch).tolist()) == list(range(n))


def test_permutations_of_epochs_and_seeds_differ_and_leave_nothing_in_place() -> None:
    orders = [rng.permutation(seed, Purpose.ORDER, 200, epoch=epoch) for seed in (0, 1) for epoch in range(20)]
    assert len({tuple(order) for order in orders}) == len(orders)
    fixed = sum(int((order == np.arange(200)).sum()) for order in orders)
    assert fixed < 40 + 4 * np.sqrt(40)  # one fixed point is expected in each
    firsts = np.bincount([rng.permutation(0, Purpose.ORDER, 4, epoch=e)[0] for e in range(400)], minlength=4)
    assert stats.chisquare(firsts).pvalue > 0.01


@pytest.mark.parametrize(("threshold", "rate"), [(0, 1.0), (6554, 1 - 6554 / 65536), (32768, 0.5), (65535, 1 / 65536)])
def test_masks_keep_the_asked_for_share(threshold: int, rate: float) -> None:
    found = rng.keep_mask(3, range(20), (10, 999), threshold, step=1, lane=2)  # 9990 is no multiple of 4
    assert found.shape == (20, 10, 999)
    assert found.dtype == np.bool_
    error = np.sqrt(rate * (1 - rate) / found.size)
    assert abs(found.mean() - rate) <= 4 * error


def test_a_mask_does_not_depend_on_the_batch() -> None:
    whole = rng.keep_mask(3, range(10), (7,), 20_000, step=1, lane=2)
    assert (rng.keep_mask(3, [8, 2], (7,), 20_000, step=1, lane=2) == whole[[8, 2]]).all()
    for other in ({"step": 2, "lane": 2}, {"step": 1, "lane": 3}):
        assert (rng.keep_mask(3, range(10), (7,), 20_000, **other) != whole).any()
