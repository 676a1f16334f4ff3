import contextlib
import itertools
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import picture_sets
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sdjax.pipeline.placement import make_mesh
from sdjax.train.data.array_records import ArrayRecords, write
from sdjax.train.data.buckets import Buckets
from sdjax.train.data.image_folder import Folder
from sdjax.train.data.loader import Loader, TooManyBadPictures, rows_of
from sdjax.train.data.pictures import Part, Pictures
from sdjax.train.data.tars import TarShards

SIZES = ((48, 48), (96, 48), (50, 47), (48, 96))
BUCKETS = Buckets(((48, 48), (64, 32), (32, 64)))


def examples(count=60, broken=(), **options):
    parts = [
        Part(picture_sets.Numbers(count, SIZES, broken=broken)),
        Part(picture_sets.Numbers(9, name="more"), repeats=2),
    ]
    return Pictures(parts, BUCKETS, least=8, flip=0.5, **options)


def loader(process=(0, 1), seed=3, batch_size=8, broken=(), **options):
    return Loader(
        examples(broken=broken),
        batch_size=batch_size,
        seed=seed,
        tokens=picture_sets.ids,
        process=process,
        threads=2,
        **options,
    )


def joined(batches):
    """The whole batch of the parts that processes hold."""
    names = batches[0]
    return {
        name: np.concatenate([b[name] for b in batches])
        if isinstance(names[name], np.ndarray)
        else [text for b in batches for text in b[name]]
        for name in names
    }


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("broken", [(), (1, 5, 9, 10, 22)])
def test_1_2_4_and_8_processes_see_the_same_batches(broken):
    """Also where pictures are bad and others stand in for them."""
    whole = [loader(broken=broken).batch(n) for n in range(20)]
    assert len({batch["image"].shape for batch in whole}) == 3  # all buckets come up
    for count in (2, 4, 8):
        parts = [loader((p, count), broken=broken) for p in range(count)]
        for n in range(20):
            same(joined([part.batch(n) for part in parts]), whole[n])


def test_every_epoch_shows_each_picture_once_in_another_order():
    one = loader()
    epochs = [
        [key for n in range(one.batches_per_epoch) for key in one.batch(e * one.batches_per_epoch + n)["key"]]
        for e in range(2)
    ]
    for keys in epochs:
        once = [key for key in keys if key.startswith("numbers/")]
        assert len(set(once)) == len(once) > 60 - 3 * 8
    assert epochs[0] != epochs[1]


def test_pictures_captions_and_ids_belong_together():
    batch = loader().batch(11)
    numbers = [int(key.split("/")[1]) for key in batch["key"]]
    assert batch["caption"] == [key.replace("/", " ") for key in batch["key"]]
    assert batch["ids"][:, 0].tolist() == numbers
    assert [round(image[..., 0].mean()) for image in batch["image"]] == numbers
    assert batch["image"].dtype == np.uint8


@pytest.mark.parametrize("first", [0, 7, 1000])
def test_iterating_starts_anywhere_and_gives_the_same_as_asking(first):
    one = loader()
    iterated = list(one.iterate(first, first + 5))
    assert len(iterated) == 5
    for n, batch in enumerate(iterated, first):
        same(batch, one.batch(n))
    assert one.drawn == 40


def test_iterating_has_no_end_by_default():
    with contextlib.closing(loader().iterate(2)) as batches:
        assert len(list(itertools.islice(batches, 30))) == 30


def test_the_seed_sets_the_order_and_threads_do_not():
    assert loader(seed=1).batch(0)["key"] != loader(seed=2).batch(0)["key"]
    one = list(Loader(examples(), batch_size=8, seed=3, process=(0, 1), threads=1).iterate(0, 6))
    many = list(Loader(examples(), batch_size=8, seed=3, process=(0, 1), threads=7).iterate(0, 6))
    for a, b in zip(one, many):
        same(a, b)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})

if __name__ == "__main__":
    import test_data_loader as here

    one = here.loader(broken=(4,), workers=2)
    for n, batch in enumerate(one.iterate(3, 13), 3):
        here.same(batch, here.loader(broken=(4,)).batch(n))
    print("bad", sum(one.bad.values()), "drawn", one.drawn)
"""


def test_worker_processes_give_the_same_batches(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one = loader(broken=(4,))
    list(one.iterate(3, 13))
    assert done.stdout.split() == ["bad", str(sum(one.bad.values())), "drawn", str(one.drawn)]


def test_bad_pictures_are_counted_by_reason_and_replaced_by_others_of_the_bucket():
    broken = (0, 1, 9)  # 0's bucket is shown whole
    one = loader(broken=broken)
    seen = list(one.iterate(0, one.batches_per_epoch))
    keys = {key for batch in seen for key in batch["key"]}
    assert not keys & {f"numbers/{i}" for i in broken}
    assert len(one.bad) == 1
    assert 1 <= sum(one.bad.values()) <= 3
    (reason,) = one.bad
    assert "picture" in reason
    for batch in seen:
        assert len({image.shape for image in batch["image"]}) == 1


def test_bad_pictures_are_named_once_by_their_file(tmp_path):
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(picture_sets.encoded(i, 48, 48))
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2])  # its head is whole
    (tmp_path / "4.png").write_bytes(b"some text")
    (tmp_path / "5.png").unlink()
    os.mkfifo(tmp_path / "5.png")
    pictures = Pictures([Part(Folder(tmp_path, default="x"))], Buckets.square(48))
    (notice,) = pictures.notices
    assert f"{tmp_path / '4.png'}: the picture: PNG, JPEG and WebP files are read" in notice
    assert f"{tmp_path / '5.png'}: the file cannot be read" in notice
    one, said = Loader(pictures, batch_size=5, seed=0, threads=1), []
    one.say = said.append
    list(one.iterate(0, 8))
    assert len(said) == 1
    assert said[0].startswith(f"passed over: {tmp_path / '3.png'}: ")


def test_bad_pictures_of_shards_are_named_by_shard_and_member(tmp_path):
    whole = picture_sets.encoded(0, 48, 48)
    picture = lambda i: whole[: len(whole) // 2] if i == 1 else whole  # noqa: E731
    source = TarShards(picture_sets.write_tar(tmp_path / "a.tar", range(3), picture=picture))
    pictures = Pictures([Part(source)], Buckets.square(48))
    assert pictures.place(0, 1) == f"000000001 in {tmp_path / 'a.tar'}"
    write(source, tmp_path / "records")
    (file,) = (tmp_path / "records").glob("*.array_record")
    assert ArrayRecords(file).place(1) == f"record 1 of {file}"


def test_too_many_bad_pictures_end_the_run():
    one = loader(broken=range(30), bad_limit=0.2)
    with pytest.raises(TooManyBadPictures, match=r"\d+ of \d+ records could not be used, more than 20.00% .\d+ x "):
        list(one.iterate(0, 100))
    assert sum(one.bad.values()) > max(10, 0.2 * one.drawn)
    with pytest.raises(TooManyBadPictures, match="25 records in a row could not be used"):
        Loader(
            Pictures([Part(picture_sets.Numbers(10, broken=range(10)))], Buckets.square(48)),
            batch_size=2, seed=0, process=(0, 1),
        ).batch(0)  # fmt: skip


def test_an_error_in_reading_reaches_the_caller():
    class Fails(picture_sets.Numbers):
        def __getitem__(self, i):
            raise ZeroDivisionError("as it happens")

    one = Loader(Pictures([Part(Fails(8))], Buckets.square(48)), batch_size=4, seed=0, process=(0, 1))
    with pytest.raises(ZeroDivisionError, match="as it happens"):
        list(one.iterate(0, 3))


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_devices_hold_the_whole_batch_in_its_order(devices):
    sharding = NamedSharding(make_mesh(jax.devices()[:devices]), P("data"))
    one = loader()
    for n, batch in enumerate(one.on_devices(sharding, 2, 8), 2):
        expected = one.batch(n)
        assert batch["image"].sharding == sharding
        assert len(batch["image"].addressable_shards) == devices
        same(
            jax.tree.map(np.asarray, batch, is_leaf=lambda leaf: isinstance(leaf, list)),
            {k: np.asarray(v) for k, v in expected.items()},
        )
        assert batch["caption"] == expected["caption"]
    assert n == 7


def test_a_process_makes_the_rows_of_its_devices_wherever_they_lie():
    class Spread:
        """The devices of one of four processes, as a TPU slice's topology may arrange them."""

        def addressable_devices_indices_map(self, shape):
            return {device: (slice(row, row + 1),) for device, row in enumerate((5, 0, 1, 4))}

    assert rows_of(Spread(), 8) == ((0, 2), (4, 6))
    pictures = loader().examples
    one = Loader(pictures, batch_size=8, seed=0, process=(0, 1), sharding=Spread())
    whole = Loader(pictures, batch_size=8, seed=0, process=(0, 1))
    for n in range(3):
        mine, every = one.batch(n), whole.batch(n)
        assert mine["key"] == [every["key"][row] for row in (0, 1, 4, 5)]
        np.testing.assert_array_equal(mine["image"], every["image"][[0, 1, 4, 5]])


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_in_another_order_hold_their_rows(devices):
    mesh = make_mesh(jax.devices()[:devices][::-1])
    sharding = NamedSharding(mesh, P("data"))
    one = loader()
    batch = one.batch(3)
    np.testing.assert_array_equal(np.asarray(one.put(batch, sharding)["image"]), batch["image"])


def test_stopping_early_leaves_no_threads_behind():
    before = threading.active_count()
    batches = loader().on_devices(NamedSharding(make_mesh(jax.devices()[:1]), P("data")), 0)
    next(batches)
    batches.close()
    until = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_a_share_that_does_not_come_out_even_is_refused():
    with pytest.raises(ValueError, match="process 0 of 3 cannot take its share of a batch of 8"):
        loader((0, 3))
    with pytest.raises(ValueError, match="process 2 of 2"):
        loader((2, 2))


def test_the_summary_says_what_is_there_and_what_is_left_out():
    parts = [Part(picture_sets.Numbers(60, SIZES), where="number < 40")]
    one = Loader(Pictures(parts, BUCKETS, least=8), batch_size=8, seed=0, process=(0, 1))
    assert one.summary() == [
        "40 records, 4 batches of 8 an epoch (32 x 64: 10, 48 x 48: 20, 64 x 32: 10)",
        "20 records left out: filtered by number < 40",
    ]


def test_what_makes_batches_can_be_pickled_without_its_tables():
    one = pickle.loads(pickle.dumps(loader().make))
    same(one(5).batch, loader().batch(5))
