"""Checks that every source of training pictures must pass."""

import io
import pickle

from PIL import Image


def check_source(source, count, size=(48, 40)):
    """Checks records by number, sizes in the table, and that pickling keeps both; returns the records."""
    assert len(source) == count
    again = pickle.loads(pickle.dumps(source))
    for i in range(count):
        record = source[i]
        assert again[i] == record
        with Image.open(io.BytesIO(record.image)) as picture:
            assert picture.size == size
    assert source.table["width"].tolist() == [size[0]] * count
    assert source.table["height"].tolist() == [size[1]] * count
    return [source[i] for i in range(count)]
