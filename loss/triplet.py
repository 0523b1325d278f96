"""Triplet loss, on given triplets or with triplets mined from a labelled batch."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loss.common import check_choice, check_reduction, either, full_precision, reduce, upcast

DISTANCES = ("l2", "cosine")
MINING = (None, "all", "batch_hard", "semihard")


def pairwise_distance(embeddings: Tensor, distance: str, p: float) -> Tensor:
    """Return all distances [B, B] of ``embeddings`` [B, D]: p-norms, or 1 - cosine.

    Of a point to itself the gradient is 0. p-norms are computed from differences, not by a matrix product,
    whose cancellation would leave a distance of 1e-3 no correct digit.
    """
    if distance == "l2":
        return torch.cdist(embeddings, embeddings, p, compute_mode="donot_use_mm_for_euclid_dist")
    unit = F.normalize(embeddings, dim=1, eps=1e-8)
    with full_precision(unit):
        return 1.0 - unit @ unit.T


def distance_of(x: Tensor, y: Tensor, distance: str, p: float, eps: float = 0.0) -> Tensor:
    """Return the distances [...] of ``x`` and ``y`` [..., D]; ``eps`` is added to each difference."""
    if distance == "cosine":
        return 1.0 - F.cosine_similarity(x, y, dim=-1)
    return torch.linalg.vector_norm(x - y + eps, p, dim=-1)


def hardest_triplets(distances: Tensor, same: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each anchor its farthest positive, its nearest negative, and whether it has both.

    Args:
        distances: [B, B].
        same: bool [B, B], True where two labels are equal.

    Returns:
        int64 [B], int64 [B], bool [B].
    """
    positive = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    farthest = distances.masked_fill(~positive, -torch.inf).argmax(1)
    nearest = distances.masked_fill(same, torch.inf).argmin(1)
    return farthest, nearest, positive.any(1) & ~same.all(1)


class TripletLoss(nn.Module):
    """Triplet loss: an anchor is to be nearer to its positive than to its negative, by a margin.

        loss = mean over triplets of max(d(a, p) - d(a, n) + margin, 0)

    or softplus(d(a, p) - d(a, n)) with ``soft_margin``, which has no margin.

    Mining takes the triplets from a batch with labels: "all" that are valid; "batch_hard", one an anchor, the
    farthest positive and the nearest negative; "semihard", all with 0 < d(a, n) - d(a, p) <= margin.

    Args:
        margin: as above; torch's default. Metric-learning libraries often take 0.05 to 0.2 on unit vectors.
        distance: "l2", the p-norm of the difference, or "cosine", 1 - cosine similarity.
        p: of the norm.
        swap: take min(d(a, n), d(p, n)) for d(a, n), after mining.
        mining: None, "all", "batch_hard" or "semihard".
        reduction: "mean", "sum" or "none" (one value a triplet).
        average: what "mean" divides by: "all" triplets or those with a loss above 0, "nonzero".
        normalize: scale embeddings to length 1 first.
        soft_margin: as above.

    Shape:
        - anchor, positive, negative: [N, D] (or [..., D]), without mining. As in torch, 1e-6 is added to
          each difference.
        - embeddings [B, D], labels int64 [B]: with mining; embeddings [K, B, D] are K views of each of B things
          (its image and its text), all with that thing's label. Nothing is added to the differences; the gradient
          of two equal embeddings' distance is 0. "all" and "semihard" take B times the number of positive
          pairs of memory.
        - output: scalar; exactly 0.0 where there is no triplet.

    Raises:
        ValueError: an unknown choice, shapes that do not fit.
        TypeError: ``negative`` missing without mining, or given with it.

    Reference:
        Schroff et al., "FaceNet", CVPR 2015, equation 2; Hermans et al., "In Defense of the Triplet Loss",
        arXiv 1703.07737, equations 5 (batch hard) and 6 (soft margin); swap: Balntas et al., BMVC 2016.

    Example:
        >>> loss = TripletLoss(margin=1.0, mining="batch_hard")
        >>> loss(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([5, 5, 7]))     # (0 + 0) / 2
        tensor(0.)
        >>> loss(torch.tensor([[0.0], [1.0], [1.5]]), torch.tensor([5, 5, 7]))     # (.5 + 1.5) / 2
        tensor(1.)
    """

    reads: ClassVar[dict[str, str]] = {
        "anchor": "out.anchor",
        "positive": "out.positive",
        "negative": "out.negative",
    }

    def __init__(
        self,
        margin: float = 1.0,
        distance: str = "l2",
        p: float = 2,
        swap: bool = False,
        mining: str | None = None,
        reduction: str = "mean",
        average: str = "all",
        normalize: bool = False,
        soft_margin: bool = False,
    ) -> None:
        super().__init__()
        check_choice("distance", distance, DISTANCES)
        check_choice("mining", mining, MINING)
        check_choice("average", average, ("all", "nonzero"))
        check_reduction(reduction)
        self.margin = margin
        self.distance = distance
        self.p = float(p)
        self.swap = swap
        self.mining = mining
        self.reduction = reduction
        self.average = average
        self.normalize = normalize
        self.soft_margin = soft_margin
        if mining is not None:
            self.reads = {"embeddings": "out.embeddings", "labels": "target.labels"}  # type: ignore[misc]

    def forward(
        self,
        anchor: Tensor | None = None,
        positive: Tensor | None = None,
        negative: Tensor | None = None,
        *,
        embeddings: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of (anchor, positive, negative), or with mining of (embeddings, labels)."""
        anchor, positive = either(anchor, embeddings), either(positive, labels)
        if (negative is None) != (self.mining is not None):
            raise TypeError("without mining give anchor, positive, negative; with it embeddings, labels")
        if self.mining is not None or negative is None:
            near, far = self.mine(self.prepare(anchor), positive)
        else:
            if not anchor.shape == positive.shape == negative.shape:
                shapes = ", ".join(str(tuple(x.shape)) for x in (anchor, positive, negative))
                raise ValueError(f"anchor, positive and negative must have one shape, not {shapes}")
            a, p, n = self.prepare(anchor), self.prepare(positive), self.prepare(negative)
            near, far = self.distances(a, p, n, eps=1e-6)
        difference = near - far
        values = F.softplus(difference) if self.soft_margin else F.relu(difference + self.margin)
        return reduce(values, self.reduction, values > 0 if self.average == "nonzero" else None)

    def prepare(self, embeddings: Tensor) -> Tensor:
        """Return the embeddings upcast, and of length 1 if asked."""
        embeddings = upcast(embeddings)
        return F.normalize(embeddings, dim=-1) if self.normalize else embeddings

    def distances(self, a: Tensor, p: Tensor, n: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return d(a, p) and d(a, n) (or the lesser d(p, n), with swap) of N triplets."""
        near = distance_of(a, p, self.distance, self.p, eps)
        far = distance_of(a, n, self.distance, self.p, eps)
        if self.swap:
            far = torch.minimum(far, distance_of(p, n, self.distance, self.p, eps))
        return near, far

    def mine(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return d(a, p) and d(a, n) of the triplets that ``mining`` takes from the batch."""
        if embeddings.ndim == 3:
            labels = labels.repeat(len(embeddings))
            embeddings = embeddings.flatten(0, 1)
        if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
            shapes = f"{tuple(embeddings.shape)} and {tuple(labels.shape)}"
            raise ValueError(f"embeddings and labels must be [B, D] and [B], not {shapes}")
        if len(embeddings) == 0:
            return embeddings.sum(1), embeddings.sum(1)
        same = labels[:, None] == labels[None, :]  # [B, B]
        if self.mining == "batch_hard":
            # choose without a graph, then compute the chosen distances with one: 2 B of them, not B * B
            with torch.no_grad():
                if self.distance == "l2":
                    # cdist's matrix product is fast, and exact enough to choose by: to 1e-7 of the spread
                    # around the mean. What is chosen is then computed from differences.
                    centred = embeddings - embeddings.mean(0)
                    distances = torch.cdist(centred, centred, self.p)
                else:
                    distances = pairwise_distance(embeddings, self.distance, self.p)
                farthest, nearest, valid = hardest_triplets(distances, same)
            a, p, n = embeddings[valid], embeddings[farthest[valid]], embeddings[nearest[valid]]
            return self.distances(a, p, n)
        distances = pairwise_distance(embeddings, self.distance, self.p)
        a, p = (same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)).nonzero(as_tuple=True)
        near = distances[a, p][:, None].expand(-1, len(same))  # [positive pairs, B]
        far = distances[a]
        chosen = ~same[a]
        if self.mining == "semihard":
            gap = (far - near).detach()
            chosen &= (gap > 0) & (gap <= self.margin)
        if self.swap:
            far = torch.minimum(far, distances[p])
        return near[chosen], far[chosen]
