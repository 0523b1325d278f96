import pytest
import torch

from models.captioner import Captioner
from models.decoder import Decoder
from models.encoder import Encoder
from models.pooling import Visual, pool_regions, together


def naive(features: torch.Tensor, shares: torch.Tensor, by: str) -> torch.Tensor:
    """Region by region, cell by cell."""
    out = torch.zeros(len(features), shares.shape[1], features.shape[2])
    for b in range(len(features)):
        for n in range(shares.shape[1]):
            area = float(shares[b, n].sum()) if by == "area" else shares.shape[2]
            for c in range(shares.shape[2]):
                if area:
                    out[b, n] += shares[b, n, c] * features[b, c] / area
    return out


@pytest.mark.parametrize("by", ["area", "map"])
def test_pooling_is_the_weighted_mean_of_the_cells(by: str) -> None:
    features, shares = torch.randn(2, 6, 3), torch.rand(2, 4, 6) * (torch.rand(2, 4, 6) < 0.5)
    shares[1, 2] = 0
    regions, present = pool_regions(features, shares, by)
    torch.testing.assert_close(regions, naive(features, shares, by))
    assert present.tolist() == (shares.sum(-1) > 0).tolist()
    assert not present[1, 2] and (regions[1, 2] == 0).all()


def test_a_region_smaller_than_a_cell_has_the_features_of_its_cell() -> None:
    features, shares = torch.randn(1, 4, 5), torch.zeros(1, 1, 4, dtype=torch.float16)
    shares[0, 0, 2] = 1 / 1024  # a pixel of a cell of 32 x 32
    torch.testing.assert_close(pool_regions(features, shares)[0][0, 0], features[0, 2])
    torch.testing.assert_close(pool_regions(features, shares, "map")[0][0, 0], features[0, 2] / 4096)


def test_half_precision_stays() -> None:
    regions, _ = pool_regions(torch.randn(1, 4, 2).bfloat16(), torch.ones(1, 3, 4, dtype=torch.float16))
    assert regions.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="'area' or 'map'"):
        pool_regions(torch.randn(1, 4, 2), torch.ones(1, 3, 4), "volume")


def test_the_cells_as_regions_are_the_grid() -> None:
    model = Captioner(Encoder("resnet18"), Decoder(9, 512, 16, 0.0)).eval()
    images, tokens = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8), torch.ones(3, 4, dtype=torch.long)
    owners = torch.tensor([0, 1, 1])
    grid = model(Visual(images), tokens, owners)
    cells = model(Visual(images, torch.eye(4).expand(2, 4, 4)), tokens, owners)
    torch.testing.assert_close(grid.logits, cells.logits)
    assert grid.region_mask is None and grid.region_count == 4
    assert cells.region_mask is not None and cells.region_mask.shape == (3, 4)


def test_missing_regions_change_nothing_and_are_not_looked_at() -> None:
    model = Captioner(Encoder("resnet18"), Decoder(9, 512, 16, 0.0)).eval()
    content, shares = torch.randn(2, 4, 512), torch.rand(2, 3, 4)
    more = torch.cat([shares, torch.zeros(2, 2, 4)], 1)
    tokens = torch.ones(2, 4, dtype=torch.long)
    few, many = (model(Visual(content, s), tokens, torch.arange(2)) for s in (shares, more))
    torch.testing.assert_close(few.logits, many.logits)
    torch.testing.assert_close(few.attention, many.attention[..., :3])
    assert (many.attention[..., 3:] == 0).all()
    assert isinstance(many.region_count, torch.Tensor) and many.region_count.tolist() == [3, 3]


def test_visuals_are_joined() -> None:
    one, two = Visual(torch.zeros(1, 4, 2), torch.zeros(1, 3, 4)), Visual(torch.ones(2, 4, 2), torch.ones(2, 3, 4))
    joined = together([one, two])
    assert joined.shares is not None
    assert (joined.content.shape, joined.shares.shape) == ((3, 4, 2), (3, 3, 4))
    assert together([Visual(torch.zeros(1, 4, 2))]).shares is None
