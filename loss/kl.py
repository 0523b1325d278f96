"""The Kullback-Leibler family: distillation, VAE, policy, RLHF and alignment losses."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loss.common import (
    along_first,
    check_choice,
    check_reduction,
    check_same_shape,
    either,
    full_precision,
    reduce,
    upcast,
)
from loss.divergence import Gaussian, categorical_kl, gaussian_kl

KL_REDUCTIONS = ("batchmean", "mean", "sum", "none")


class KLDistillationLoss(nn.Module):
    r"""Distillation: a student's softened distribution Q_T against its teacher's P_T.

    With P_T = softmax(teacher / T), Q_T = softmax(student / T) and B entries on the first axis:

        loss = T^2 / B sum_b sum_c P_T log(P_T / Q_T)

    T^2 keeps the gradient's size as T grows. Without a mask, "batchmean" of [B, T, V] divides by B, not by
    B T, as torch's does; with a mask it divides by the number of positions that count (use one for words).
    A teacher with a graph gets its gradient: run it under ``torch.no_grad()``.

    Args:
        temperature: T > 0.
        reduction: "batchmean" as above; "mean" divides by all counted elements, C times as many, as torch's
            does; "sum"; "none".

    Shape:
        - student_logits, teacher_logits: [B, C] or [B, ..., C].
        - mask: bool or numbers (how often it counts), the shape of the logits without the last axis.
        - token_count: the number of positions to divide by instead of the mask's sum, for a part of a batch.
        - output: scalar, or the shape of the logits with reduction "none".

    Raises:
        ValueError: temperature not above 0, shapes that differ, unknown reduction.

    Reference:
        Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.

    Example:
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
        >>> KLDistillationLoss(temperature=1.0)(student, teacher)
        tensor(0.3278)
    """

    reads: ClassVar[dict[str, str]] = {
        "student_logits": "out.pred",
        "teacher_logits": "target.teacher_logits",
        "mask": "target.mask?",
        "token_count": "target.token_count?",
    }

    def __init__(self, temperature: float = 4.0, reduction: str = "batchmean") -> None:
        super().__init__()
        check_reduction(reduction, KL_REDUCTIONS)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.temperature = temperature
        self.reduction = reduction

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        mask: Tensor | None = None,
        *,
        token_count: Tensor | float | None = None,
    ) -> Tensor:
        """Return the loss; see the class."""
        check_same_shape(student_logits, teacher_logits)
        if mask is not None:
            check_same_shape(mask, student_logits[..., 0])
        student, teacher = upcast(student_logits), upcast(teacher_logits)
        values = categorical_kl(teacher / self.temperature, student / self.temperature)
        scale = self.temperature**2
        if self.reduction == "none":
            return scale * reduce(values, "none", None if mask is None else mask[..., None])
        rows = values.sum(-1)
        if self.reduction == "sum":
            return scale * reduce(rows, "sum", mask)
        if token_count is None:
            token_count = upcast(mask).sum() if mask is not None else rows.numel()
            if mask is None and self.reduction == "batchmean":
                token_count = len(rows)
        divisor = token_count * (values.shape[-1] if self.reduction == "mean" else 1)
        return scale * reduce(rows, "mean", mask, divisor)


class VAEKLLoss(nn.Module):
    """KL of a VAE's Gaussian posterior from its prior, by default the standard normal.

    With posterior N(mu, e^lv) and prior N(m, e^pv) in each dimension, and B entries on the first axis:

        loss = 1 / B sum 1/2 [e^(lv - pv) - 1 - (lv - pv) + (mu - m)^2 e^-pv]
             = 1 / B sum 1/2 (mu^2 + e^lv - 1 - lv)      for the standard normal

    Args:
        reduction: "batchmean" as above; "sum"; "mean" divides by all elements; "none".

    Shape:
        - mu, logvar: [B, D] or [B, ...], the same shape.
        - prior_mu, prior_logvar: broadcastable to it; None is 0.
        - weight: [B], how often each entry counts; B is then the sum of weights. None: once.
        - output: scalar, or the shape of mu with reduction "none".

    Raises:
        ValueError: shapes that differ, unknown reduction.

    Reference:
        Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix B.

    Example:
        >>> VAEKLLoss()(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
        tensor(0.5000)
    """

    reads: ClassVar[dict[str, str]] = {
        "mu": "out.mu",
        "logvar": "out.logvar",
        "prior_mu": "out.prior_mu?",
        "prior_logvar": "out.prior_logvar?",
        "weight": "target.weight?",
    }

    def __init__(self, reduction: str = "batchmean") -> None:
        super().__init__()
        check_reduction(reduction, KL_REDUCTIONS)
        self.reduction = reduction

    def forward(
        self,
        mu: Tensor,
        logvar: Tensor,
        prior_mu: Tensor | None = None,
        prior_logvar: Tensor | None = None,
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Return the loss; see the class."""
        check_same_shape(mu, logvar)
        mu, logvar = upcast(mu), upcast(logvar)
        if prior_mu is not None:
            mu = mu - upcast(prior_mu)
        distance = mu.square()
        if prior_logvar is not None:
            logvar = logvar - upcast(prior_logvar)
            distance = distance * torch.exp(-upcast(prior_logvar))
        twice = torch.expm1(logvar) - logvar + distance
        each = None if weight is None else along_first(weight, twice)
        if self.reduction == "batchmean":
            return 0.5 * reduce(twice, "mean", each, len(twice) if weight is None else upcast(weight).sum())
        return 0.5 * reduce(twice, self.reduction, each)


class PolicyKLLoss(nn.Module):
    """KL between an old policy and the one that is trained, over the actions of each state.

        loss = mean over states of KL(pi_old || pi_new)      (direction "old_new")
        loss = mean over states of KL(pi_new || pi_old)      (direction "new_old")

    For categorical policies the sum over actions; for diagonal Gaussians the sum over action dimensions of
    log(s_q / s_p) + (s_p^2 + (mu_p - mu_q)^2) / (2 s_q^2) - 1/2. The old policy gets no gradient.

    Args:
        direction: "old_new" (TRPO's and PPO's constraint) or "new_old".
        reduction: "mean" over states, "sum" or "none" (one value a state).

    Shape:
        - old, new: logits [..., A], or pairs (mu, log_std) of tensors that broadcast to [..., A].
        - mask: bool or numbers [...], the states that count, and how often.
        - token_count: the number of states to divide by instead of the mask's sum, for a part of a batch.
        - output: scalar, or [...] with reduction "none".

    Raises:
        ValueError: unknown direction or reduction, shapes that differ.
        TypeError: one is logits and the other a pair.

    Reference:
        Schulman et al., "Trust Region Policy Optimization", ICML 2015, equation 12; PPO, arXiv 1707.06347,
        equation 8.

    Example:
        >>> unit = (torch.zeros(1, 1), torch.zeros(1, 1))                         # mean 0, log std 0
        >>> PolicyKLLoss()(unit, (torch.ones(1, 1), torch.zeros(1, 1)))
        tensor(0.5000)
    """

    reads: ClassVar[dict[str, str]] = {
        "old": "target.old_policy",
        "new": "out.policy",
        "mask": "target.mask?",
        "token_count": "target.token_count?",
    }

    def __init__(self, direction: str = "old_new", reduction: str = "mean") -> None:
        super().__init__()
        check_choice("direction", direction, ("old_new", "new_old"))
        check_reduction(reduction)
        self.direction = direction
        self.reduction = reduction

    def forward(
        self,
        old: Tensor | Gaussian,
        new: Tensor | Gaussian,
        mask: Tensor | None = None,
        *,
        token_count: Tensor | float | None = None,
    ) -> Tensor:
        """Return the loss; see the class."""
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            check_same_shape(old, new)
            pair = upcast(old).detach(), upcast(new)
            values = categorical_kl(*pair if self.direction == "old_new" else pair[::-1])
        elif isinstance(old, Tensor) or isinstance(new, Tensor) or len(old) != 2 or len(new) != 2:
            raise TypeError("old and new must both be logits or both be pairs (mu, log_std)")
        else:
            check_same_shape(old[0], new[0])
            pairs = [upcast(x).detach() for x in old], [upcast(x) for x in new]
            values = gaussian_kl(*pairs if self.direction == "old_new" else pairs[::-1])
        values = values.sum(-1)
        if mask is not None:
            check_same_shape(mask, values)
        return reduce(values, self.reduction, mask, token_count)


class RLHFKLLoss(nn.Module):
    """Keep a fine-tuned language model near the pretrained one.

    With r = log pi_ref - log pi of each token, and the mean over the tokens that count:

        full: loss = beta mean KL(pi_ref || pi)      (direction "ref_policy", the default)
              loss = beta mean KL(pi || pi_ref)      (direction "policy_ref", InstructGPT's)
        k1:   loss = beta mean -r
        k2:   loss = beta mean r^2 / 2
        k3:   loss = beta mean (e^r - 1 - r), never negative

    k1 to k3 see one sampled token's log-probabilities instead of the distribution. With samples from pi they
    estimate KL(pi || pi_ref), whatever ``direction`` is; as a loss, k1's gradient is 0 in the mean (the
    gradient of the sampled log-ratio), so prefer k2 or "full" where it is differentiated.

    Args:
        beta: factor.
        estimator: "full", "k1", "k2" or "k3".
        direction: "ref_policy" or "policy_ref", of "full".

    Shape:
        - policy_logits, ref_logits: [B, T, V] ([..., V]), for "full"; or
        - logprobs, ref_logprobs: log-probabilities [B, T] of the sampled tokens.
        - mask: bool or numbers [B, T], the tokens that count; what stands at the others may be -inf.
        - token_count: the number of tokens to divide by instead of the mask's sum, for a part of a batch.
        - output: scalar.

    Raises:
        ValueError: unknown estimator or direction, shapes that differ.

    Reference:
        Ouyang et al., "Training language models to follow instructions with human feedback", NeurIPS 2022,
        equation 2; Schulman, "Approximating KL divergence", 2020.

    Example:
        >>> policy, ref = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -2.0])
        >>> RLHFKLLoss(beta=1.0, estimator="k1")(policy, ref)
        tensor(0.2500)
    """

    reads: ClassVar[dict[str, str]] = {
        "policy_logits": "out.pred",
        "ref_logits": "target.ref_logits",
        "mask": "target.mask?",
        "token_count": "target.token_count?",
    }

    def __init__(self, beta: float = 0.1, estimator: str = "full", direction: str = "ref_policy") -> None:
        super().__init__()
        check_choice("estimator", estimator, ("full", "k1", "k2", "k3"))
        check_choice("direction", direction, ("ref_policy", "policy_ref"))
        self.beta = beta
        self.estimator = estimator
        self.direction = direction
        if estimator != "full":
            self.reads = {  # type: ignore[misc]
                "logprobs": "out.logprobs",
                "ref_logprobs": "target.ref_logprobs",
                "mask": "target.mask?",
                "token_count": "target.token_count?",
            }

    def forward(
        self,
        policy_logits: Tensor | None = None,
        ref_logits: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        logprobs: Tensor | None = None,
        ref_logprobs: Tensor | None = None,
        token_count: Tensor | float | None = None,
    ) -> Tensor:
        """Return the loss of (policy_logits, ref_logits, mask), or of (logprobs, ref_logprobs, mask)."""
        policy, ref = upcast(either(policy_logits, logprobs)), upcast(either(ref_logits, ref_logprobs))
        check_same_shape(policy, ref)
        if mask is not None:
            check_same_shape(mask, policy[..., 0] if self.estimator == "full" else policy)
        if self.estimator == "full":
            pair = (ref, policy) if self.direction == "ref_policy" else (policy, ref)
            return self.beta * reduce(categorical_kl(*pair).sum(-1), "mean", mask, token_count)
        r = ref - policy
        if mask is not None:  # not by a product afterwards: the r of two -inf is NaN
            r = torch.where(mask if mask.dtype == torch.bool else mask != 0, r, 0.0)
        forms = {"k1": lambda: -r, "k2": lambda: 0.5 * r.square(), "k3": lambda: torch.expm1(r) - r}
        values = forms[self.estimator]()
        if mask is not None and mask.dtype == torch.bool:  # what r is masked to already counts as 0
            return self.beta * reduce(values, "mean", divisor=mask.sum() if token_count is None else token_count)
        return self.beta * reduce(values, "mean", mask, token_count)


class AlignmentKLLoss(nn.Module):
    """Align images with texts: each one's similarities against which pairs belong together.

    With C columns and target P = softmax(target_scale label) over them, row by row:

        loss = 1 / C sum_rows KL(P || softmax(logits))

    Of embeddings, logits = scale image . text^T of vectors scaled to length 1, label_ij is 1 where
    labels_i = labels_j, else 0, and the loss is the mean of image-to-text and text-to-image.

    Args:
        scale: factor of the embeddings' cosine similarities (CLIP learns about 100).
        target_scale: sharpness of the target.
        symmetric: of embeddings, both directions; False is image-to-text alone.

    Shape:
        - logits, label: [N, C] and numbers [N, C]; or
        - image, text, labels: [N, D], [N, D] and int64 [N].
        - output: scalar.

    Raises:
        ValueError: shapes that do not fit.

    Reference:
        Wang et al., "ActionCLIP", arXiv 2109.08472, equations 3 to 6.

    Example:
        >>> vectors = torch.eye(2)
        >>> AlignmentKLLoss(scale=10.0)(vectors, vectors, torch.tensor([0, 1]))
        tensor(0.)
    """

    reads: ClassVar[dict[str, str]] = {
        "image": "out.image_embeddings",
        "text": "out.text_embeddings",
        "labels": "target.labels",
    }

    def __init__(self, scale: float = 1.0, target_scale: float = 10.0, symmetric: bool = True) -> None:
        super().__init__()
        self.scale = scale
        self.target_scale = target_scale
        self.symmetric = symmetric

    def forward(
        self,
        logits: Tensor | None = None,
        label: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        image: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of (logits, label) or of (image, text, labels); see the class."""
        image, text = either(logits, image), either(label, text)
        if labels is None:
            return self.one_way(upcast(image), text)
        image, text = (F.normalize(upcast(x), dim=-1) for x in (image, text))
        check_same_shape(image, text)
        if labels.shape != image.shape[:1]:
            raise ValueError(f"labels {tuple(labels.shape)} are not one per row of {tuple(image.shape)}")
        with full_precision(image):
            similarity = self.scale * image @ text.T.to(image.dtype)  # [N, N]
        same = (labels[:, None] == labels[None, :]).to(similarity.dtype)
        loss = self.one_way(similarity, same)
        return 0.5 * (loss + self.one_way(similarity.T, same)) if self.symmetric else loss

    def one_way(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return sum KL(softmax(target_scale label) || softmax(logits)) / C."""
        check_same_shape(logits, label)
        values = categorical_kl(self.target_scale * label.to(logits.dtype), logits)
        return reduce(values, "mean", divisor=logits.shape[-1])
