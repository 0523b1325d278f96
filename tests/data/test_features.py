import pickle
from pathlib import Path

import h5py
import pytest
import torch

from data.errors import UserError
from data.features import FeatureStore, build_store, store_key


def numbered(count: int) -> list[torch.Tensor]:
    return [torch.full((1, 3, 4, 4), i, dtype=torch.uint8) for i in range(count)]


def encode(images: torch.Tensor) -> torch.Tensor:
    """[b, 1 view, 2 cells, 5 channels]."""
    return images.float().mean((1, 2, 3))[:, None, None, None].expand(-1, 1, 2, 5) + torch.arange(5)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "store.h5"
    build_store(path, numbered(7), 7, encode, {"encoder": "test"})
    store = FeatureStore(path)
    assert store.shape == (7, 1, 2, 5)
    rows = store.read([6, 0, 6])
    assert rows.dtype == torch.float16
    assert rows[:, 1, 4].tolist() == [10.0, 4.0, 10.0]
    assert store.read([]).shape == (0, 2, 5)
    assert h5py.File(path)["features"].chunks == (1, 1, 2, 5)
    copy = pickle.loads(pickle.dumps(store))  # as a worker process gets it
    assert copy.read([3])[0, 0, 0] == 3


def test_every_epoch_sees_one_view_of_each_image(tmp_path: Path) -> None:
    def views(images: torch.Tensor) -> torch.Tensor:
        return encode(images) + 100 * torch.arange(8.0)[:, None, None]

    path = tmp_path / "store.h5"
    build_store(path, numbered(30), 30, views, {})
    rows = list(range(30))
    store, again, other = FeatureStore(path, 3), FeatureStore(path, 3), FeatureStore(path, 4)
    seen = torch.stack([store.read(rows, epoch)[:, 0, 0] for epoch in range(40)])  # [epochs, images]
    assert (seen % 100 == torch.arange(30)).all()  # each row has its own image
    counts = torch.bincount((seen // 100).long().flatten(), minlength=8)
    assert counts.min() > 0.7 * counts.float().mean()  # all eight, about as often
    assert (again.read(rows, 7) == store.read(rows, 7)).all()
    assert (store.read(rows, 7) != store.read(rows, 8)).any()
    assert (other.read(rows, 7) != store.read(rows, 7)).any()


def test_an_interrupted_pass_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.h5"

    def broken(images: torch.Tensor) -> torch.Tensor:
        if images[0, 0, 0, 0] == 3:
            raise KeyboardInterrupt
        return encode(images)

    with pytest.raises(KeyboardInterrupt):
        build_store(path, numbered(7), 7, broken, {})
    with pytest.raises(ValueError, match="announced"):
        build_store(path, numbered(6), 7, encode, {})
    assert list(tmp_path.iterdir()) == []


def test_the_key_depends_on_all_that_features_depend_on(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(b"pixels")
    keys = {
        store_key({"encoder": "x"}, paths),
        store_key({"encoder": "y"}, paths),
        store_key({"encoder": "x"}, paths[:1]),
    }
    assert store_key({"encoder": "x"}, paths) in keys
    paths[0].write_bytes(b"other pixels")
    keys.add(store_key({"encoder": "x"}, paths))
    assert len(keys) == 4
    paths[1].unlink()
    with pytest.raises(UserError, match=r"b\.png"):
        store_key({}, paths)


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    path = tmp_path / "store.h5"
    path.write_bytes(b"half a store")
    with pytest.raises(UserError, match="delete it"):
        FeatureStore(path).read([0])
