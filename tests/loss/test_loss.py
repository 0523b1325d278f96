"""custum_loss: the captioning loss."""

import math

import pytest
import torch
from torch import Tensor

import loss
import loss.loss_function
from loss.loss import custum_loss

B, T, V, N = 4, 5, 7, 3
Batch = tuple[Tensor, Tensor, Tensor]  # logits, words, attention


@pytest.fixture
def batch() -> Batch:
    """Four captions of up to five words, the third without any: logits, words, attention."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, T, V, generator=generator, dtype=torch.float64)
    words = torch.randint(0, V, (B, T), generator=generator)
    words[0, 3:], words[2] = -100, -100
    attention = torch.randn(B, T, N, generator=generator, dtype=torch.float64).softmax(-1)
    return logits.requires_grad_(), words, attention.requires_grad_()


def naive(
    batch: Batch,
    count: int,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    padding: bool = True,
    smoothing: float = 0.0,
) -> dict[str, float]:
    """Return ce, dsr, avr by loops over numbers."""
    logits, words, attention = batch
    often = [1.0] * B if weight is None else weight.tolist()
    ce = dsr = avr = tokens = captions = 0.0
    for b in range(B):
        steps = [t for t in range(T) if words[b, t] != -100]
        for t in steps:
            exps = [math.exp(x) for x in logits[b, t].tolist()]
            log_p = [math.log(e / sum(exps)) for e in exps]
            value = -(1 - smoothing) * log_p[int(words[b, t])] - smoothing * sum(log_p) / V
            ce, tokens = ce + often[b] * value, tokens + often[b]
        if padding and not steps:
            continue
        steps = steps if padding else list(range(T))
        regions = [n for n in range(N) if mask is None or mask[b, n]]
        a = attention[b].tolist()
        dsr += often[b] * sum((1 - sum(a[t][n] for t in steps)) ** 2 for n in regions)
        avr += often[b] * sum(math.sqrt(sum((a[t][n] - 1 / count) ** 2 for n in regions)) for t in steps)
        captions += often[b]
    return {"ce": ce / tokens, "dsr": dsr / captions, "avr": avr / captions}


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def close(terms: dict[str, Tensor], expected: dict[str, float]) -> None:
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value, rel=1e-12), name


def test_it_is_one_class_under_three_names() -> None:
    assert loss.custum_loss is custum_loss is loss.loss_function.custum_loss


def test_flat_input_counts_every_step_of_the_attention_as_the_original_does(batch: Batch) -> None:
    logits, words, attention = batch
    total, terms = custum_loss()(logits.flatten(0, 1), words.flatten(), attention, N, return_terms=True)
    close(terms, naive(batch, N, padding=False))
    assert total.item() == pytest.approx(sum(map(float, terms.values())), rel=1e-12)


def test_attention_may_have_more_steps_than_flat_words(batch: Batch) -> None:
    logits, words, attention = batch
    _, terms = custum_loss()(logits[:, 1:].flatten(0, 1), words[:, 1:].flatten(), attention, N, return_terms=True)
    assert float(terms["dsr"]) == pytest.approx(naive(batch, N, padding=False)["dsr"], rel=1e-12)


def test_padding_counts_in_no_term(batch: Batch) -> None:
    _, terms = custum_loss()(*batch, N, return_terms=True)
    close(terms, naive(batch, N))


def test_attention_at_padding_may_be_anything(batch: Batch) -> None:
    logits, words, attention = batch
    plain = custum_loss()(logits, words, attention, N)
    plain.backward()
    expected = gradient(attention).clone()
    attention.grad = None
    spoilt = torch.where((words == -100)[:, :, None], torch.nan, attention)
    total = custum_loss()(logits.detach(), words, spoilt, N)
    total.backward()
    torch.testing.assert_close(total, plain, rtol=0, atol=0)
    torch.testing.assert_close(gradient(attention), expected)


def test_label_smoothing(batch: Batch) -> None:
    _, terms = custum_loss(label_smoothing=0.1)(*batch, N, return_terms=True)
    close(terms, naive(batch, N, smoothing=0.1))


def test_beta_gamma_and_switches(batch: Batch) -> None:
    expected = naive(batch, N)
    total, terms = custum_loss(beta=0.5, gamma=2.0)(*batch, N, return_terms=True)
    close(terms, {"ce": expected["ce"], "dsr": 0.5 * expected["dsr"], "avr": 2 * expected["avr"]})
    assert not any(term.requires_grad for term in terms.values())
    assert total.requires_grad
    for flags, names in (
        ((False, True), ["ce", "avr"]),
        ((True, False), ["ce", "dsr"]),
        ((False, False), ["ce"]),
    ):
        _, terms = custum_loss(*flags)(*batch, N, return_terms=True)
        assert list(terms) == names


def test_the_switches_belong_to_the_instance_and_not_to_a_module(batch: Batch) -> None:
    plain, full = custum_loss(False, False), custum_loss()
    before = full(*batch, N).item()
    plain(*batch, N)
    assert full(*batch, N).item() == before
    assert plain(*batch, N).item() < before


def test_weight_is_repetition(batch: Batch) -> None:
    weight = torch.tensor([2, 1, 3, 0])
    rows = torch.repeat_interleave(torch.arange(B), weight)
    values, gradients = [], []
    for arguments, options in (
        (batch, {"weight": weight}),
        ([x[rows] for x in batch], {}),
    ):
        total, terms = custum_loss(label_smoothing=0.1)(*arguments, N, return_terms=True, **options)
        values.append(torch.stack([total.detach(), *terms.values()]))
        gradients.append(torch.autograd.grad(total, [batch[0], batch[2]]))
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)
    close(terms, naive(batch, N, weight=weight, smoothing=0.1))


def test_missing_regions_count_nowhere(batch: Batch) -> None:
    logits, words, attention = batch
    mask = torch.tensor([[True, True, False], [True] * 3, [True] * 3, [True, False, False]])
    _, terms = custum_loss()(*batch, N, region_mask=mask, return_terms=True)
    close(terms, naive(batch, N, mask=mask))
    wide = torch.cat([attention, torch.full((B, T, 2), 0.7, dtype=torch.float64)], 2)
    wide_mask = torch.tensor([True] * N + [False] * 2).expand(B, -1)
    with pytest.warns(UserWarning, match="Region_count 3"):
        total = custum_loss()(logits, words, wide, N, region_mask=wide_mask)
    torch.testing.assert_close(total, custum_loss()(*batch, N))


def test_parts_with_the_counts_of_the_whole_add_up(batch: Batch) -> None:
    logits, words, attention = batch
    weight = torch.tensor([2.0, 1.0, 3.0, 0.5])
    whole = custum_loss()(*batch, N, weight=weight)
    tokens = ((words != -100) * weight[:, None]).sum()
    captions = ((words != -100).any(1) * weight).sum()
    parts = sum(
        custum_loss()(
            logits[rows], words[rows], attention[rows], N,
            weight=weight[rows], token_count=tokens, caption_count=captions,
        )
        for rows in (slice(0, 1), slice(1, 3), slice(3, 4))
    )  # fmt: skip
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(parts, [logits, attention]),
        torch.autograd.grad(whole, [logits, attention]),
        rtol=1e-12,
        atol=1e-15,
    )


def test_classes_are_on_the_last_axis_even_where_words_are_as_many(batch: Batch) -> None:
    logits = batch[0][:, :, :T]  # [B, T, T]: torch alone would silently read axis 1 as the classes
    words = torch.where(batch[1] == -100, -100, batch[1] % T)
    attention = batch[2]
    flat = custum_loss(False, False)(logits.flatten(0, 1), words.flatten(), attention, N)
    torch.testing.assert_close(custum_loss(False, False)(logits, words, attention, N), flat)
    assert abs(torch.nn.functional.cross_entropy(logits, words) - flat) > 0.01


def test_classes_on_axis_1_are_taken_where_the_last_cannot_be(batch: Batch) -> None:
    logits, words, attention = batch
    torch.testing.assert_close(custum_loss()(logits.transpose(1, 2), words, attention, N), custum_loss()(*batch, N))


def test_region_count_is_used_as_given_with_a_warning(batch: Batch) -> None:
    with pytest.warns(UserWarning, match="Region_count 8 is not the attention's 3"):
        _, terms = custum_loss()(*batch, 8, return_terms=True)
    close(terms, naive(batch, 8))
    as_tensor = custum_loss()(*batch, torch.tensor(N))
    torch.testing.assert_close(as_tensor, custum_loss()(*batch, N))
    with pytest.raises(ValueError, match="at least 1"):
        custum_loss()(*batch, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [8, torch.tensor(8), 36, torch.tensor(36)])  # 1 / 36 is no binary fraction
def test_uniform_attention_has_zero_gradient_and_not_nan(batch: Batch, dtype: torch.dtype, count: int | Tensor) -> None:
    attention = torch.full((B, T, int(count)), 1 / int(count), dtype=dtype, requires_grad=True)
    assert custum_loss().AVR(attention, count) == 0
    custum_loss(use_dsr=False)(batch[0], batch[1], attention, count).backward()
    assert gradient(attention).eq(0).all()


def test_the_methods_are_the_terms_without_their_weights(batch: Batch) -> None:
    expected = naive(batch, N, padding=False)
    assert custum_loss(beta=9.0).DSR(batch[2]).item() == pytest.approx(expected["dsr"], rel=1e-12)
    assert custum_loss(gamma=9.0).AVR(batch[2], N).item() == pytest.approx(expected["avr"], rel=1e-12)


def test_dsr_cannot_be_zero_where_steps_and_regions_differ_in_number() -> None:
    # all attention sums to T, and N ones are wanted: at best each region is (T - N) / N off
    best = torch.full((1, T, N), 1 / N, dtype=torch.float64)
    assert float(custum_loss().DSR(best)) == pytest.approx((T - N) ** 2 / N, rel=1e-12)
    assert custum_loss().DSR(torch.eye(N)[None]) == 0
    for seed in range(5):
        torch.manual_seed(seed)
        other = torch.randn(1, T, N, dtype=torch.float64).softmax(-1)
        assert custum_loss().DSR(other) > (T - N) ** 2 / N


def test_avr_is_a_norm_summed_over_time() -> None:
    attention = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])  # each step is (.5, -.5) off
    assert float(custum_loss().AVR(attention, 2)) == pytest.approx(2 * math.sqrt(0.5), rel=1e-6)


def test_class_0_is_a_word_like_any_other_unless_it_is_ignored(batch: Batch) -> None:
    logits, _, attention = batch
    words = torch.zeros(B, T, dtype=torch.long)
    assert custum_loss(False, False)(logits, words, attention, N).item() == pytest.approx(
        -logits.log_softmax(-1)[..., 0].mean().item(), rel=1e-12
    )
    assert custum_loss(ignore_index=0)(logits, words, attention, N) == 0


def test_nothing_but_padding_is_zero_with_a_graph(batch: Batch) -> None:
    logits, _, attention = batch
    total = custum_loss()(logits, torch.full((B, T), -100), attention, N)
    total.backward()
    assert total == 0
    assert gradient(logits).eq(0).all()
    assert gradient(attention).eq(0).all()


@pytest.mark.parametrize("flat", [False, True])
def test_an_empty_batch_is_zero_with_a_graph(flat: bool) -> None:
    logits = torch.zeros((0, V) if flat else (0, T, V), requires_grad=True)
    words = torch.zeros(0 if flat else (0, T), dtype=torch.long)
    attention = torch.zeros(0, T, N, requires_grad=True)
    total = custum_loss()(logits, words, attention, N)
    total.backward()
    assert total == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_upcast(batch: Batch, dtype: torch.dtype) -> None:
    logits = (batch[0].detach() * 6e3).to(dtype).requires_grad_()
    attention = batch[2].detach().to(dtype).requires_grad_()
    total = custum_loss()(logits, batch[1], attention, N)
    total.backward()
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, custum_loss()(logits.float(), batch[1], attention.float(), N))
    assert gradient(logits).isfinite().all()
    assert gradient(attention).isfinite().all()


def test_forbidden_words_have_logit_minus_infinity(batch: Batch) -> None:
    logits, words, attention = batch
    forbidden = torch.zeros(V, dtype=torch.bool)
    forbidden[3] = True
    words = torch.where(words == 3, 2, words)
    total = custum_loss()(logits.masked_fill(forbidden, -torch.inf), words, attention, N)
    kept = [c for c in range(V) if c != 3]
    total.backward()
    fewer = custum_loss()(logits[..., kept], torch.where(words > 3, words - 1, words), attention, N)
    torch.testing.assert_close(total, fewer)
    assert gradient(logits).isfinite().all()


def test_gradcheck(batch: Batch) -> None:
    logits, words, attention = batch
    options = {
        "weight": torch.tensor([2.0, 1.0, 3.0, 0.5]),
        "region_mask": torch.ones(B, N, dtype=torch.bool),
    }
    torch.autograd.gradcheck(
        lambda x, a: custum_loss(label_smoothing=0.1)(x, words, a, N, **options), (logits, attention)
    )


def test_inputs_are_left_alone(batch: Batch) -> None:
    copies = [x.detach().clone() for x in batch]
    custum_loss()(*batch, N).backward()
    for x, copy in zip(batch, copies, strict=True):
        assert torch.equal(x, copy)


def test_bad_input(batch: Batch) -> None:
    logits, words, attention = batch
    with pytest.raises(IndexError):
        custum_loss()(logits, torch.where(words == -100, V, words), attention, N)
    with pytest.raises(ValueError, match="do not fit logits"):
        custum_loss()(logits, words[:, 1:], attention, N)
    with pytest.raises(ValueError, match="flat"):
        custum_loss()(logits.flatten(0, 1), words.flatten(), attention, N, weight=torch.ones(B))
    with pytest.raises(ValueError, match=r"\[B, T, N\]"):
        custum_loss()(logits, words, attention[0], N)
    with pytest.raises(ValueError, match="attention of 1 captions, but words of 4"):
        custum_loss()(logits, words, attention[:1], N)
    with pytest.raises(ValueError, match="label_smoothing"):
        custum_loss(label_smoothing=1.5)
    with pytest.raises(TypeError):
        custum_loss(alpha=1.0)  # type: ignore[call-arg]


def test_counts_of_each_caption_are_the_regions_that_its_image_has() -> None:
    attention = torch.rand(3, 4, 6, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([6, 3, 1])[:, None]
    attention = (attention * mask[:, None]) / (attention * mask[:, None]).sum(-1, keepdim=True)
    logits, words = torch.randn(3, 4, 5, dtype=torch.float64), torch.randint(5, (3, 4))
    loss = custum_loss(beta=0.3, gamma=0.7)
    whole, terms = loss(logits, words, attention, mask.sum(-1), region_mask=mask, return_terms=True)
    parts = [
        loss(logits[b : b + 1], words[b : b + 1], attention[b : b + 1, :, :n], n, return_terms=True)[1]
        for b, n in enumerate((6, 3, 1))
    ]
    for name in ("dsr", "avr"):  # as if the missing regions had never been
        torch.testing.assert_close(terms[name], torch.stack([part[name] for part in parts]).mean())
    assert torch.isfinite(whole)
