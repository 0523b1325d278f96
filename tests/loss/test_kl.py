import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from loss.kl import AlignmentKLLoss, KLDistillationLoss, PolicyKLLoss, RLHFKLLoss, VAEKLLoss

INF = torch.inf


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    exps = [math.exp(x / temperature) for x in row]
    return [e / sum(exps) for e in exps]


def naive_kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


# distillation


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")  # torch's own warning of the trap
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_torchs_times_t_squared(reduction: str, temperature: float) -> None:
    student, teacher = numbers(2, 3, 5), numbers(2, 3, 5, seed=1).detach()
    ours = KLDistillationLoss(temperature, reduction)(student, teacher)
    torchs = temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1), reduction=reduction
    )
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-15)
    gradients = [torch.autograd.grad(x.sum(), student)[0] for x in (ours, torchs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


def test_distillation_definition_with_a_mask() -> None:
    student, teacher = numbers(2, 3, 4), numbers(2, 3, 4, seed=1)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    values = [
        9 * naive_kl(softmax(teacher[b, t].tolist(), 3), softmax(student[b, t].tolist(), 3))
        for b, t in mask.nonzero().tolist()
    ]
    for reduction, divisor in (("batchmean", 3), ("mean", 12), ("sum", 1)):
        loss = KLDistillationLoss(3.0, reduction)
        assert loss(student, teacher, mask).item() == pytest.approx(sum(values) / divisor, rel=1e-12)
        torch.testing.assert_close(loss(student, teacher, mask.long()), loss(student, teacher, mask))
    kept = KLDistillationLoss(3.0, "none")(student, teacher, mask)
    torch.testing.assert_close(kept.sum(-1)[mask], torch.tensor(values, dtype=torch.float64))
    assert kept[~mask].eq(0).all()


def test_the_mean_trap_is_one_over_c() -> None:
    student, teacher = numbers(2, 5), numbers(2, 5, seed=1)
    mean = KLDistillationLoss(reduction="mean")(student, teacher)
    torch.testing.assert_close(5 * mean, KLDistillationLoss()(student, teacher))


def test_words_are_counted_with_a_mask_and_captions_without() -> None:
    student, teacher = numbers(2, 3, 5), numbers(2, 3, 5, seed=1)
    total = KLDistillationLoss(reduction="sum")(student, teacher)
    torch.testing.assert_close(KLDistillationLoss()(student, teacher), total / 2)
    every = torch.ones(2, 3, dtype=torch.bool)
    torch.testing.assert_close(KLDistillationLoss()(student, teacher, every), total / 6)


def test_a_mask_of_numbers_is_repetition_and_parts_add_up() -> None:
    student, teacher, often = numbers(3, 5), numbers(3, 5, seed=1), torch.tensor([2.0, 0.0, 1.0])
    rows = [0, 0, 2]
    expected = KLDistillationLoss()(student[rows], teacher[rows])
    torch.testing.assert_close(KLDistillationLoss()(student, teacher, often), expected)
    parts = [
        KLDistillationLoss()(student[i : i + 1], teacher[i : i + 1], often[i : i + 1], token_count=3) for i in range(3)
    ]
    torch.testing.assert_close(sum(parts), expected)


def test_t_squared_keeps_the_gradients_size() -> None:
    student, teacher = numbers(1, 5), numbers(1, 5, seed=1).detach()
    KLDistillationLoss(1e5)(student, teacher).backward()
    difference = student.detach() - teacher
    # Hinton's limit, equation 4; what is left out is of the order of the logits / T
    torch.testing.assert_close(gradient(student), (difference - difference.mean()) / 5, rtol=0, atol=1e-4)


def test_distillation_of_an_equal_student_is_0() -> None:
    logits = numbers(3, 5)
    loss = KLDistillationLoss()(logits, logits.detach() + 7)
    loss.backward()
    assert abs(loss.item()) < 1e-14  # a few of T^2 = 16 units in the last place
    assert gradient(logits).abs().max() < 1e-15


# variational autoencoder


@pytest.mark.parametrize("prior", [False, True])
def test_vae_is_the_kl_of_normals(prior: bool) -> None:
    mu, logvar, m, pv = (numbers(4, 3, seed=seed) for seed in range(4))
    given = (m, pv) if prior else ()
    expected = kl_divergence(
        Normal(mu, (logvar / 2).exp()),
        Normal(m, (pv / 2).exp()) if prior else Normal(torch.zeros_like(mu), torch.ones_like(mu)),
    )
    torch.testing.assert_close(VAEKLLoss("none")(mu, logvar, *given), expected, rtol=1e-10, atol=1e-13)
    for reduction, value in (
        ("sum", expected.sum()),
        ("mean", expected.mean()),
        ("batchmean", expected.sum() / 4),
    ):
        torch.testing.assert_close(VAEKLLoss(reduction)(mu, logvar, *given), value, rtol=1e-10, atol=0)
    torch.autograd.gradcheck(VAEKLLoss(), (mu, logvar, *given))


@pytest.mark.parametrize("reduction", ["batchmean", "sum", "mean"])
def test_a_weight_of_vae_is_a_repetition(reduction: str) -> None:
    mu, logvar, weight = numbers(3, 2), numbers(3, 2, seed=1), torch.tensor([2.0, 0.0, 1.0])
    loss, rows = VAEKLLoss(reduction), [0, 0, 2]
    torch.testing.assert_close(loss(mu, logvar, weight=weight), loss(mu[rows], logvar[rows]), rtol=1e-12, atol=0)


def test_vae_definition_and_limits() -> None:
    mu, logvar = numbers(2, 3), numbers(2, 3, seed=1)
    pairs = zip(mu.flatten().tolist(), logvar.flatten().tolist(), strict=True)
    expected = sum(0.5 * (m * m + math.exp(v) - 1 - v) for m, v in pairs)
    assert VAEKLLoss("sum")(mu, logvar).item() == pytest.approx(expected, rel=1e-12)
    assert VAEKLLoss()(torch.zeros(2, 3), torch.zeros(2, 3)) == 0
    assert VAEKLLoss()(mu, logvar, mu, logvar) == 0
    one = torch.full((1, 1), 1e-3)  # (e^v - 1 - v) / 2 is v^2 / 4: exp(v) - 1 - v in float32 would be 7 % off
    assert VAEKLLoss()(torch.zeros(1, 1), one).item() == pytest.approx(2.5e-7, rel=1e-3)


# policies


@pytest.mark.parametrize("direction", ["old_new", "new_old"])
def test_categorical_policies(direction: str) -> None:
    old, new = numbers(2, 3, 4), numbers(2, 3, 4, seed=1)
    pair = (old, new) if direction == "old_new" else (new, old)
    expected = kl_divergence(*[Categorical(logits=x) for x in pair])
    loss = PolicyKLLoss(direction)
    torch.testing.assert_close(loss(old, new), expected.mean())
    torch.testing.assert_close(PolicyKLLoss(direction, "none")(old, new), expected)
    loss(old, new).backward()
    assert old.grad is None
    torch.autograd.gradcheck(lambda x: loss(old.detach(), x), (new,))


@pytest.mark.parametrize("direction", ["old_new", "new_old"])
def test_gaussian_policies(direction: str) -> None:
    old = numbers(5, 3), numbers(3, seed=1)  # one log std for all states
    new = numbers(5, 3, seed=2), numbers(3, seed=3)
    pair = (old, new) if direction == "old_new" else (new, old)
    expected = kl_divergence(*[Normal(mu, log_std.exp().expand_as(mu)) for mu, log_std in pair])
    loss = PolicyKLLoss(direction)
    torch.testing.assert_close(loss(old, new), expected.sum(-1).mean())
    loss(old, new).backward()
    assert old[0].grad is None
    assert old[1].grad is None
    torch.autograd.gradcheck(lambda *x: loss([y.detach() for y in old], x), new)


def test_equal_policies_give_0_and_mixed_ones_are_refused() -> None:
    mu, log_std = numbers(4, 2), numbers(4, 2, seed=1)
    assert PolicyKLLoss()((mu, log_std), (mu, log_std)) == 0
    assert PolicyKLLoss()(mu, mu) == 0
    with pytest.raises(TypeError, match="both"):
        PolicyKLLoss()(mu, (mu, log_std))


# fine-tuning


def test_rlhf_full_has_two_directions() -> None:
    policy, ref = numbers(2, 3, 4), numbers(2, 3, 4, seed=1)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    pairs = [(softmax(policy[b, t].tolist()), softmax(ref[b, t].tolist())) for b, t in mask.nonzero().tolist()]
    ref_policy = sum(naive_kl(r, p) for p, r in pairs) / 3
    policy_ref = sum(naive_kl(p, r) for p, r in pairs) / 3
    assert abs(ref_policy - policy_ref) > 1e-3
    assert RLHFKLLoss()(policy, ref, mask).item() == pytest.approx(0.1 * ref_policy, rel=1e-12)
    loss = RLHFKLLoss(beta=2.0, direction="policy_ref")
    assert loss(policy, ref, mask).item() == pytest.approx(2 * policy_ref, rel=1e-12)
    torch.autograd.gradcheck(lambda p, r: loss(p, r, mask), (policy, ref))


FORMS: dict[str, Callable[[float], float]] = {
    "k1": lambda r: -r,
    "k2": lambda r: r * r / 2,
    "k3": lambda r: math.exp(r) - 1 - r,
}


@pytest.mark.parametrize("estimator", FORMS)
@pytest.mark.parametrize("masked", [None, "bool", "number"])
def test_rlhf_estimators(estimator: str, masked: str | None) -> None:
    policy, ref = numbers(2, 4), numbers(2, 4, seed=1)
    weight = torch.tensor([[1.0, 2.0, 0.0, 1.0], [0.0, 3.0, 1.0, 0.0]]).double()
    mask = {"bool": weight > 0, "number": weight, None: None}[masked]
    often = torch.ones(2, 4) if mask is None else mask
    pairs = zip((ref - policy).flatten().tolist(), often.flatten().tolist(), strict=True)
    expected = 0.1 * sum(w * FORMS[estimator](r) for r, w in pairs) / float(often.sum())
    for direction in ("ref_policy", "policy_ref"):
        loss = RLHFKLLoss(estimator=estimator, direction=direction)
        assert loss(policy, ref, mask).item() == pytest.approx(expected, rel=1e-12)
    torch.autograd.gradcheck(lambda p, r: loss(p, r, mask), (policy, ref))


@pytest.mark.parametrize("estimator", FORMS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_rlhf_masked_positions_may_be_minus_infinity(estimator: str, dtype: torch.dtype) -> None:
    policy = torch.tensor([[-1.0, -INF, -INF]], requires_grad=True)
    ref = torch.tensor([[-1.5, -INF, 0.0]])
    loss = RLHFKLLoss(1.0, estimator)(policy, ref, torch.tensor([[1, 0, 0]]).to(dtype))
    loss.backward()
    assert loss.item() == pytest.approx(FORMS[estimator](-0.5), rel=1e-6)
    assert gradient(policy).isfinite().all()
    assert gradient(policy)[0, 1:].eq(0).all()


@pytest.mark.parametrize("estimator", ["full", "k2", "k3"])
def test_anchors_count_words_as_often_as_their_mask_says_and_parts_add_up(estimator: str) -> None:
    shape = (2, 3, 5) if estimator == "full" else (2, 3)
    new, old = numbers(*shape), numbers(*shape, seed=1).detach()
    times = torch.tensor([[2.0, 1.0, 0.0], [3.0, 0.0, 0.0]])
    repeated = [new[0, 0], new[0, 0], new[0, 1], *[new[1, 0]] * 3], [old[0, 0], old[0, 0], old[0, 1], *[old[1, 0]] * 3]
    names = ("policy_logits", "ref_logits") if estimator == "full" else ("logprobs", "ref_logprobs")
    rlhf = RLHFKLLoss(estimator=estimator)

    def anchored(a: Tensor, b: Tensor, mask: Tensor | None = None, **more: float) -> Tensor:
        return rlhf(**dict(zip(names, (a, b), strict=True)), mask=mask, **more)

    losses: list[Callable[..., Tensor]] = [anchored]
    if estimator == "full":
        losses.append(lambda a, b, mask=None, **more: PolicyKLLoss()(b, a, mask, **more))
    for loss in losses:
        whole = loss(new, old, times)
        torch.testing.assert_close(whole, loss(*(torch.stack(x)[None] for x in repeated)))
        parts = [loss(new[i : i + 1], old[i : i + 1], times[i : i + 1], token_count=6.0) for i in range(2)]
        torch.testing.assert_close(parts[0] + parts[1], whole)


def test_rlhf_k1_and_k3_estimate_policy_ref_and_k1s_gradient_is_0_in_the_mean() -> None:
    policy, ref = numbers(4), numbers(4, seed=1).detach()
    p, log_ref = policy.softmax(-1), ref.log_softmax(-1)
    exact = RLHFKLLoss(1.0, direction="policy_ref")(policy[None], ref[None]).item()
    for estimator in ("k1", "k3"):
        values = [RLHFKLLoss(1.0, estimator)(p.log()[a : a + 1], log_ref[a : a + 1]) for a in range(4)]
        # the expectation over the policy's own samples, summed exactly
        assert sum(p[a].item() * values[a].item() for a in range(4)) == pytest.approx(exact, rel=1e-10)
        gradients = [torch.autograd.grad(value, policy, retain_graph=True)[0] for value in values]
        mean = sum(p[a].detach() * gradients[a] for a in range(4))
        assert isinstance(mean, Tensor)
        assert (mean.abs().max() < 1e-12) == (estimator == "k1")


def test_both_names_of_an_argument_are_taken() -> None:
    x, y, mask = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([[1, 1, 0], [1, 0, 0]])
    k2, align, labels = RLHFKLLoss(estimator="k2"), AlignmentKLLoss(), torch.tensor([0, 1])
    assert k2(logprobs=x, ref_logprobs=y, mask=mask) == k2(x, y, mask) == k2(policy_logits=x, ref_logits=y, mask=mask)
    assert align(image=x, text=y, labels=labels) == align(x, y, labels)
    assert align(logits=x, label=y) == align(x, y)
    for call in (lambda: k2(x), lambda: k2(x, y, logprobs=x), lambda: align(image=x), lambda: align()):
        with pytest.raises(TypeError, match="missing, or given under both"):
            call()


def test_rlhf_k3_is_never_negative() -> None:
    policy = -torch.rand(10_000)
    ref = policy + 1e-4 * torch.randn(10_000)
    r = (ref - policy).double()
    loss = RLHFKLLoss(1.0, "k3")(policy, ref)
    assert loss.item() == pytest.approx((torch.expm1(r) - r).mean().item(), rel=1e-2)  # r has 3 digits in float32
    assert loss > 0
    assert (r.float().exp() - 1 - r.float()).min() < 0  # the plain form


# alignment


def test_alignment_of_logits_divides_by_c() -> None:
    logits, label = numbers(2, 3), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 1.0]])
    rows = [
        naive_kl(softmax([10 * x for x in y]), softmax(x)) for x, y in zip(logits.tolist(), label.tolist(), strict=True)
    ]
    assert AlignmentKLLoss()(logits, label).item() == pytest.approx(sum(rows) / 3, rel=1e-12)
    # ActionCLIP's form: size_average's mean over all elements, times the batch
    sum_of_all = F.kl_div(logits.log_softmax(1), (10 * label.double()).softmax(1), reduction="sum")
    theirs = sum_of_all / logits.numel() * len(logits)
    torch.testing.assert_close(AlignmentKLLoss()(logits, label), theirs)
    assert AlignmentKLLoss(target_scale=3.0)(logits, label) != AlignmentKLLoss()(logits, label)
    torch.autograd.gradcheck(lambda x: AlignmentKLLoss()(x, label), (logits,))


@pytest.mark.parametrize("scale", [1.0, 14.0])
def test_alignment_of_embeddings(scale: float) -> None:
    image, text, labels = numbers(4, 3), numbers(4, 3, seed=1), torch.tensor([0, 1, 0, 2])
    cosine = F.cosine_similarity(image[:, None], text[None], dim=-1)
    same = torch.tensor([[float(a == b) for b in labels] for a in labels])
    there, back = AlignmentKLLoss()(scale * cosine, same), AlignmentKLLoss()(scale * cosine.T, same)
    torch.testing.assert_close(AlignmentKLLoss(scale)(image, text, labels), (there + back) / 2)
    torch.testing.assert_close(AlignmentKLLoss(scale, symmetric=False)(image, text, labels), there)
    assert AlignmentKLLoss(scale)(image, text.detach().float(), labels).dtype == torch.float64
    torch.testing.assert_close(
        AlignmentKLLoss(scale)(7 * image, text / 3, labels), AlignmentKLLoss(scale)(image, text, labels)
    )
    torch.autograd.gradcheck(lambda x, y: AlignmentKLLoss(scale)(x, y, labels), (image, text))


def test_alignment_keeps_its_precision_under_autocast() -> None:
    image, text, labels = numbers(8, 64).float(), numbers(8, 64, seed=1).float(), torch.arange(8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = AlignmentKLLoss(20.0)(image, text, labels)
    torch.testing.assert_close(inside, AlignmentKLLoss(20.0)(image, text, labels), rtol=0, atol=0)


# all of them

CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "distillation": lambda x: KLDistillationLoss()(x, torch.flip(x.detach(), [-1])),
    "distillation masked": lambda x: KLDistillationLoss()(x, x.detach() + 1, torch.zeros(x.shape[:-1])),
    "vae": lambda x: VAEKLLoss()(x, torch.zeros_like(x)),
    "policy": lambda x: PolicyKLLoss()(torch.flip(x.detach(), [-1]), x),
    "gaussian": lambda x: PolicyKLLoss()((x.detach() / 2, torch.zeros_like(x)), (x, torch.zeros_like(x))),
    "rlhf": lambda x: RLHFKLLoss()(x, torch.flip(x.detach(), [-1])),
    "rlhf masked": lambda x: RLHFKLLoss()(x, x.detach() + 1, torch.zeros(x.shape[:-1])),
    "k1": lambda x: RLHFKLLoss(estimator="k1")(x, x.detach() / 2),
    "k3": lambda x: RLHFKLLoss(estimator="k3")(x, x.detach() - 1, torch.ones_like(x) > 0),
    "alignment": lambda x: AlignmentKLLoss()(x, torch.flip(x.detach(), [-1])),
    "embeddings": lambda x: AlignmentKLLoss()(x, x.detach() + 1, torch.arange(len(x))),
}


@pytest.mark.parametrize("name", CALLS)
def test_empty_batches_are_0_with_a_graph(name: str) -> None:
    x = torch.zeros(0, 5, requires_grad=True)
    loss = CALLS[name](x)
    loss.backward()
    assert loss == 0
    assert gradient(x).shape == (0, 5)


@pytest.mark.parametrize("name", ["distillation masked", "rlhf masked"])
def test_nothing_that_counts_is_0_with_a_graph(name: str) -> None:
    x = torch.ones(2, 5, requires_grad=True)
    loss = CALLS[name](x)
    loss.backward()
    assert loss == 0
    assert gradient(x).eq(0).all()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_upcast(name: str, dtype: torch.dtype) -> None:
    x = (numbers(3, 5).detach() * 2e4).clamp(-6e4, 6e4).to(dtype).requires_grad_()
    loss = CALLS[name](x)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert gradient(x).isfinite().all()


def test_bad_input() -> None:
    for build in (
        lambda: KLDistillationLoss(reduction="avg"),
        lambda: VAEKLLoss("avg"),
        lambda: PolicyKLLoss("forwards"),
        lambda: PolicyKLLoss(reduction="batchmean"),
        lambda: RLHFKLLoss(estimator="k4"),
        lambda: RLHFKLLoss(direction="old_new"),
    ):
        with pytest.raises(ValueError, match="must be one of"):
            build()
    with pytest.raises(ValueError, match="temperature"):
        KLDistillationLoss(0.0)
    x, y = torch.zeros(2, 3), torch.zeros(1, 3)
    for call in (KLDistillationLoss(), VAEKLLoss(), PolicyKLLoss(), RLHFKLLoss(), AlignmentKLLoss()):
        with pytest.raises(ValueError, match="differ"):
            call(x, y)
    logits = torch.zeros(2, 3, 4)
    for mask in (torch.ones(3), torch.ones(2, 4), torch.ones(2, 3, 4)):  # [3] would broadcast
        for loss in (KLDistillationLoss(), KLDistillationLoss(reduction="none"), RLHFKLLoss()):
            with pytest.raises(ValueError, match="differ"):
                loss(logits, logits, mask)
    with pytest.raises(ValueError, match="differ"):
        RLHFKLLoss(estimator="k1")(x, x, torch.ones(3))
    with pytest.raises(ValueError, match="one per row"):
        AlignmentKLLoss()(x, x, torch.zeros(3))
