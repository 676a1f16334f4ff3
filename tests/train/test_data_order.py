import itertools
from collections import Counter

import numpy as np
import pytest

from sdjax.train.data.order import Order, Stream, permuted


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 1000, 2**14, 2**14 + 1, 70_000])
def test_a_permutation_takes_every_place_once(length):
    for seed in range(3):
        assert sorted(permuted(np.arange(length), length, seed)) == list(range(length))


def test_places_are_permuted_alone_as_together():
    for length in (1000, 20_000):
        whole = permuted(np.arange(length), length, 5, "x")
        assert [int(permuted([i], length, 5, "x")[0]) for i in range(0, length, 997)] == whole[::997].tolist()


def test_all_permutations_of_a_few_come_up_alike():
    """Pearson's statistic of 119 degrees of freedom: above 190 once in 40,000 of fair draws; keys are fixed here."""
    counts = Counter(tuple(permuted(np.arange(5), 5, seed)) for seed in range(6000))
    assert sum((counts[p] - 50) ** 2 / 50 for p in itertools.permutations(range(5))) < 190


def test_permutations_of_many_have_no_order_left():
    """Neighbours and places of 2**16 + 1 are uncorrelated, to five standard deviations (1 / 256) of a fair draw."""
    n = 2**16 + 1
    p = permuted(np.arange(n), n, "key")
    assert abs(np.corrcoef(p, np.arange(n))[0, 1]) < 5 / 256
    assert abs(np.corrcoef(p[1:], p[:-1])[0, 1]) < 5 / 256
    q = permuted(np.arange(n), n, "another")
    assert abs(np.corrcoef(p, q)[0, 1]) < 5 / 256


def streams():
    return [
        Stream(0, (64, 64), np.arange(0, 23)),
        Stream(0, (128, 64), np.arange(23, 40)),
        Stream(1, (64, 64), np.arange(7), 3.0),
    ]


def test_an_epoch_shows_nothing_twice_and_drops_less_than_a_batch_of_each_size():
    order = Order(streams(), 4, seed=1)
    assert order.batches_per_epoch == (23 + 3 * 7) // 4 + 17 // 4
    for epoch in range(3):
        rows = [order.batch(epoch * order.batches_per_epoch + n) for n in range(order.batches_per_epoch)]
        assert all(len({row.size for row in batch}) == 1 for batch in rows)
        shown = Counter((row.part, row.index) for batch in rows for row in batch)
        assert max(shown[0, i] for i in range(40)) == 1
        assert all(shown[1, i] <= 3 for i in range(7))
        assert sum(shown.values()) == 4 * order.batches_per_epoch
        visits = Counter((row.part, row.index, row.visit) for batch in rows for row in batch)
        assert max(visits.values()) == 1  # so that no two crops are drawn alike


def test_repeats_show_each_record_as_often():
    order = Order([Stream(0, (8,), np.arange(5), 4.0)], 5, seed=3)
    for epoch in range(2):
        rows = [row for n in range(4) for row in order.batch(4 * epoch + n)]
        assert Counter(row.index for row in rows) == dict.fromkeys(range(5), 4)
        assert {row.visit for row in rows} == set(range(4 * epoch, 4 * epoch + 4))


def test_shares_smaller_than_a_part_go_round_it():
    order = Order([Stream(0, (8,), np.arange(100), 0.3)], 10, seed=3)
    assert order.batches_per_epoch == 3
    shown = Counter(row.index for n in range(30) for row in order.batch(n))
    assert shown == dict.fromkeys(range(100), 3)  # ten epochs of 30


def test_every_seed_and_epoch_has_its_own_order():
    def epoch(seed, e):
        order = Order(streams(), 4, seed)
        count = order.batches_per_epoch
        return tuple(tuple(order.batch(e * count + n)) for n in range(count))

    assert len({epoch(seed, e) for seed in range(3) for e in range(3)}) == 9
    assert epoch(0, 2) == epoch(0, 2)


def test_rows_of_a_batch_are_the_same_in_part_as_in_whole():
    order = Order(streams(), 4, 7)
    for n in (0, 5, 1000, np.int64(10**12)):
        assert order.batch(n)[1:3] == order.batch(n, 1, 3)
        assert order.batch(n) == order.batch(int(n))


def test_what_stands_in_is_of_the_same_size_and_differs_by_attempt():
    order = Order(streams(), 4, 7)
    for n in range(20):
        row = order.batch(n)[2]
        others = [order.instead(n, 2, attempt) for attempt in range(20)]
        assert {other.size for other in others} == {row.size}
        assert len({(other.part, other.index) for other in others}) > 5
        assert others == [order.instead(n, 2, attempt) for attempt in range(20)]


def test_too_few_records_for_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"a batch of 8 cannot be filled: an epoch shows 7 pictures; repeat"):
        Order([Stream(0, (8,), np.arange(7))], 8, 0)
