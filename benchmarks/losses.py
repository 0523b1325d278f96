"""Ours against the straightforward torch or torchvision formulation: python benchmarks/losses.py [NAME ...].

For every loss of the registry, forward and backward on the same input, the two alternating in one process.
The times are processor time, the least of the rounds, so that what else runs on the machine disturbs them
little. Before it is timed, a pair's values are compared. Sizes are those of real use. --rounds and --threads
say how long and how wide.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from image_losses import CASES as IMAGE_CASES

from loss import LOSS_REGISTRY

LIMIT = 1.2  # ours may take this much longer than the plain formulation


class Pair(NamedTuple):
    """Two formulations of one loss, each called without arguments, and the leaves that get gradients."""

    what: str
    leaves: list[Tensor]
    ours: Callable[[], Tensor]
    plain: Callable[[], Tensor]


CASES: dict[str, Callable[[], Pair]] = {}


def case(maker: Callable[[], Pair]) -> Callable[[], Pair]:
    """Enter a maker of a pair under its function's name: the criterion, or criterion__variant."""
    CASES[maker.__name__] = maker
    return maker


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape).requires_grad_()


# the captioning trainer's batch: 64 captions of 20 words, 3,000 words, 49 regions
P, T, V, N = 64, 20, 3000, 49


def make(criterion: str, **options: Any) -> Any:
    return LOSS_REGISTRY[criterion](**options)


def padded_words() -> Tensor:
    words = torch.randint(0, V, (P, T))
    words[torch.arange(T)[None, :] >= torch.randint(6, T + 1, (P, 1))] = -100
    return words


@case
def custum_loss() -> Pair:
    logits, words = leaf(P * T, V), padded_words().flatten()
    scores = leaf(P, T, N)
    loss = make("custum_loss")

    def plain() -> Tensor:
        attention = scores.softmax(2)
        dsr = ((1 - attention.sum(1)) ** 2).sum(1).mean()
        avr = torch.linalg.norm(attention - 1 / N, dim=2).sum(1).mean()
        return F.cross_entropy(logits, words) + dsr + avr

    return Pair(f"[{P * T}, {V}]", [logits, scores], lambda: loss(logits, words, scores.softmax(2), N), plain)


@case
def custum_loss__padded() -> Pair:
    logits, words, scores = leaf(P, T, V), padded_words(), leaf(P, T, N)
    weight = torch.randint(1, 4, (P,))
    loss = make("custum_loss")

    def plain() -> Tensor:
        real = (words != -100).float()
        attention = scores.softmax(2) * real[:, :, None]
        ce = F.cross_entropy(logits.flatten(0, 1), words.flatten(), reduction="none").view(P, T)
        dsr = ((1 - attention.sum(1)) ** 2).sum(1)
        avr = (torch.linalg.norm(attention - 1 / N, dim=2) * real).sum(1)
        words_term = (ce * weight[:, None]).sum() / (real * weight[:, None]).sum()
        return words_term + ((dsr + avr) * weight).sum() / weight.sum()

    def ours() -> Tensor:
        return loss(logits, words, scores.softmax(2), N, weight=weight)

    return Pair(f"[{P}, {T}, {V}]", [logits, scores], ours, plain)


@case
def cross_entropy() -> Pair:
    logits, words = leaf(P * T, V), padded_words().flatten()
    loss = make("cross_entropy", label_smoothing=0.1)
    return Pair(
        f"[{P * T}, {V}]",
        [logits],
        lambda: loss(logits, words),
        lambda: F.cross_entropy(logits, words, label_smoothing=0.1),
    )


@case
def cross_entropy__pixels() -> Pair:
    logits, labels = leaf(4, 19, 128, 128), torch.randint(0, 19, (4, 128, 128))
    loss = make("cross_entropy")
    return Pair(
        "[4, 19, 128, 128]",
        [logits],
        lambda: loss(logits, labels),
        lambda: F.cross_entropy(logits, labels),
    )


@case
def focal_loss() -> Pair:
    logits, target = leaf(8, 8400, 20), (torch.rand(8, 8400, 20) < 0.01).float()
    loss = make("focal_loss")
    return Pair(
        "[8, 8400, 20]",
        [logits],
        lambda: loss(logits, target),
        lambda: sigmoid_focal_loss(logits, target, reduction="mean"),
    )


@case
def softmax_focal_loss() -> Pair:
    logits, labels = leaf(P * T, V), torch.randint(0, V, (P * T,))
    loss = make("softmax_focal_loss")

    def plain() -> Tensor:
        log_p = logits.log_softmax(-1).gather(1, labels[:, None])
        return (-0.25 * (1 - log_p.exp()) ** 2 * log_p).mean()

    return Pair(f"[{P * T}, {V}]", [logits], lambda: loss(logits, labels), plain)


@case
def gan_loss() -> Pair:
    real, fake = leaf(16, 1, 62, 62), leaf(16, 1, 62, 62)
    loss = make("gan_loss")

    def plain() -> Tensor:
        on_real = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
        return 0.5 * (on_real + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake)))

    return Pair("2 x [16, 1, 62, 62]", [real, fake], lambda: loss.discriminator_loss(real, fake), plain)


@case
def gan_loss__gradient_penalty() -> Pair:
    critic = nn.Sequential(nn.Conv2d(3, 32, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 4, 2))
    real, fake, alpha = torch.randn(8, 3, 64, 64), torch.randn(8, 3, 64, 64), torch.rand(8, 1)
    loss = make("gan_loss", gan_mode="wgangp")

    def plain() -> Tensor:
        x = (alpha[:, :, None, None] * real + (1 - alpha[:, :, None, None]) * fake).requires_grad_()
        scores = critic(x)
        (slope,) = torch.autograd.grad(scores, x, torch.ones_like(scores), create_graph=True)
        return 10 * ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()

    return Pair(
        "[8, 3, 64, 64]",
        list(critic.parameters()),
        lambda: loss.gradient_penalty(critic, real, fake, alpha=alpha),
        plain,
    )


@case
def kl_distillation() -> Pair:
    student, teacher = leaf(P * T, V), torch.randn(P * T, V)
    loss = make("kl_distillation", temperature=4.0)

    def plain() -> Tensor:
        log_q, log_p = F.log_softmax(student / 4, -1), F.log_softmax(teacher / 4, -1)
        return 16 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    return Pair(f"[{P * T}, {V}]", [student], lambda: loss(student, teacher), plain)


@case
def vae_kl() -> Pair:
    mu, logvar = leaf(256, 512), leaf(256, 512)
    loss = make("vae_kl")
    return Pair(
        "[256, 512]",
        [mu, logvar],
        lambda: loss(mu, logvar),
        lambda: -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum() / len(mu),
    )


@case
def policy_kl() -> Pair:
    mu, log_std = leaf(4096, 32), leaf(4096, 32)
    old_mu, old_log_std = torch.randn(4096, 32), torch.randn(4096, 32)
    loss = make("policy_kl")

    def plain() -> Tensor:
        old = torch.distributions.Normal(old_mu, old_log_std.exp())
        new = torch.distributions.Normal(mu, log_std.exp())
        return torch.distributions.kl_divergence(old, new).sum(-1).mean()

    return Pair("[4096, 32]", [mu, log_std], lambda: loss((old_mu, old_log_std), (mu, log_std)), plain)


@case
def policy_kl__categorical() -> Pair:
    old, new = torch.randn(P * T, V), leaf(P * T, V)
    loss = make("policy_kl")

    def plain() -> Tensor:
        log_q, log_p = F.log_softmax(new, -1), F.log_softmax(old, -1)
        return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    return Pair(f"[{P * T}, {V}]", [new], lambda: loss(old, new), plain)


@case
def rlhf_kl() -> Pair:
    policy, ref = leaf(P, T, V), torch.randn(P, T, V)
    mask = (padded_words() != -100).float()
    loss = make("rlhf_kl")

    def plain() -> Tensor:
        log_q, log_p = F.log_softmax(policy, -1), F.log_softmax(ref, -1)
        tokens = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        return 0.1 * (tokens * mask).sum() / mask.sum()

    return Pair(f"[{P}, {T}, {V}]", [policy], lambda: loss(policy, ref, mask), plain)


@case
def rlhf_kl__k3() -> Pair:
    policy, ref = leaf(64, 1024), torch.randn(64, 1024)
    mask = torch.arange(1024) < torch.randint(200, 1025, (64, 1))
    loss = make("rlhf_kl", estimator="k3")

    def plain() -> Tensor:
        r = torch.where(mask, ref - policy, 0.0)  # a product with the mask would be NaN at two -inf
        return 0.1 * (r.exp() - 1 - r).sum() / mask.sum()

    return Pair("[64, 1024]", [policy], lambda: loss(policy, ref, mask), plain)


@case
def alignment_kl() -> Pair:
    image, text, labels = leaf(256, 512), leaf(256, 512), torch.randint(0, 30, (256,))
    loss = make("alignment_kl", scale=20.0)

    def plain() -> Tensor:
        logits = 20 * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
        target = (10 * (labels[:, None] == labels[None]).float()).softmax(1)
        rows = F.kl_div(logits.log_softmax(1), target, reduction="sum")
        columns = F.kl_div(logits.T.log_softmax(1), target, reduction="sum")
        return (rows + columns) / (2 * len(image))

    return Pair("[256, 512]", [image, text], lambda: loss(image, text, labels), plain)


@case
def ctc_loss() -> Pair:
    logits, targets = leaf(64, 16, 80), torch.randint(1, 80, (16, 20))
    inputs, lengths = torch.full((16,), 64), torch.randint(5, 21, (16,))
    loss = make("ctc_loss")
    return Pair(
        "[64, 16, 80]",
        [logits],
        lambda: loss(logits, targets, inputs, lengths),
        lambda: F.ctc_loss(logits.log_softmax(2), targets, inputs, lengths),
    )


@case
def triplet_loss() -> Pair:
    a, p, n = leaf(256, 512), leaf(256, 512), leaf(256, 512)
    loss = make("triplet_loss")
    return Pair("[256, 512]", [a, p, n], lambda: loss(a, p, n), lambda: F.triplet_margin_loss(a, p, n))


def mining_pair(mining: str, batch: int, plain_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Pair:
    vectors, labels = leaf(batch, 128), torch.arange(batch) // 4
    loss = make("triplet_loss", mining=mining)
    same = labels[:, None] == labels
    positive = same & ~torch.eye(batch, dtype=torch.bool)

    def plain() -> Tensor:
        return plain_of(torch.cdist(vectors, vectors), positive, ~same)

    return Pair(f"[{batch}, 128]", [vectors], lambda: loss(vectors, labels), plain)


@case
def triplet_loss__batch_hard() -> Pair:
    def plain(distances: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        hardest = distances.masked_fill(~positive, -torch.inf).max(1).values
        nearest = distances.masked_fill(~negative, torch.inf).min(1).values
        return F.relu(hardest - nearest + 1).mean()

    return mining_pair("batch_hard", 256, plain)


@case
def triplet_loss__all() -> Pair:
    def plain(distances: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        values = F.relu(distances[:, :, None] - distances[:, None, :] + 1)
        return values[positive[:, :, None] & negative[:, None, :]].mean()

    return mining_pair("all", 128, plain)


@case
def triplet_loss__semihard() -> Pair:
    def plain(distances: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        gap = distances[:, None, :] - distances[:, :, None]
        chosen = positive[:, :, None] & negative[:, None, :] & (gap > 0) & (gap <= 1)
        return F.relu(1 - gap)[chosen].mean()

    return mining_pair("semihard", 128, plain)


def entered(make: Callable[[], tuple]) -> Callable[[], Pair]:
    return lambda: Pair(*make())


CASES |= {name: entered(make) for name, make in IMAGE_CASES.items()}


def seconds(formulation: Callable[[], Tensor], leaves: list[Tensor]) -> float:
    for tensor in leaves:
        tensor.grad = None
    start = time.process_time()
    formulation().backward()
    return time.process_time() - start


def measure(pair: Pair, rounds: int) -> tuple[float, float]:
    """Return the least seconds of ours and of the plain formulation, after two rounds of warming up."""
    ours, plain = float(pair.ours().detach()), float(pair.plain().detach())
    if abs(ours - plain) > 1e-4 * abs(plain) + 1e-6:  # float32 sums of up to 4 million terms
        raise AssertionError(f"ours gives {ours}, the plain formulation {plain}")
    times = [(seconds(pair.ours, pair.leaves), seconds(pair.plain, pair.leaves)) for _ in range(rounds + 2)]
    return min(a for a, _ in times[2:]), min(b for _, b in times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description="Time every loss against its plain formulation.")
    parser.add_argument("names", nargs="*", help="criteria or cases; all if none is given")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    untimed = sorted(set(LOSS_REGISTRY) - {name.split("__")[0] for name in CASES})
    if untimed:
        print("no case for", ", ".join(untimed))
    print(f"{'loss':32}{'input':22}{'ours ms':>10}{'plain ms':>10}{'ratio':>8}")
    for name, maker in CASES.items():
        if args.names and not {name, name.split("__")[0]} & set(args.names):
            continue
        torch.manual_seed(0)
        pair = maker()
        ours, plain = measure(pair, args.rounds)
        ratio = ours / plain
        verdict = "" if ratio <= LIMIT else f"  over {LIMIT}"
        print(f"{name:32}{pair.what:22}{ours * 1e3:10.2f}{plain * 1e3:10.2f}{ratio:8.2f}{verdict}")


if __name__ == "__main__":
    main()
