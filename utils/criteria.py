"""The criteria of `model.losses` at work: what a step of training offers them, and what it makes of their terms."""

from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from data.errors import UserError
from data.loading import Batch
from loss import LOSS_REGISTRY, LossFactory, LossResult, build_loss, custum_loss
from loss.builder import FACTORY_KEYS
from models.captioner import Output
from utils.config import Config
from utils.guides import TARGET as GUIDES
from utils.heads import OUT as HEADS_OUT
from utils.heads import TARGET as HEADS_TARGET

# What `offered` gives; loss/README.md says which of the criteria reads what.
OUT = ("pred", "policy", "attention", "region_count", *HEADS_OUT)
TARGET = ("target", "weight", "mask", "region_mask", "token_count", "caption_count", *HEADS_TARGET)


def build_criteria(config: Config) -> LossFactory:
    """The criteria of `model.losses`.

    `UserError` where one is not known, has a value of the wrong kind or parameters that would have to be trained, reads
    what the run does not offer, or makes no sense of the negative weights of `train.reward`; and where the run has
    teachers of whom none learns, or captions by a head that none trains.
    """
    for entry in config.model.losses:
        _check_values(entry)
    try:
        criteria = build_loss(config.model_dump(), class_dim=-1)
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise UserError(f"model.losses: {error}") from None
    guided = [key for key, option in GUIDES.items() if getattr(config.train, option)]
    if problems := criteria.missing(OUT, (*TARGET, *guided)):
        ways = [f"; train.{option} brings {key}" for key, option in GUIDES.items() if key in str(problems)]
        raise UserError(f"model.losses: {'; '.join(problems)}{''.join(ways)}")
    if learns := [name for name, parameter in criteria.named_parameters() if parameter.requires_grad]:
        raise UserError(
            f"model.losses: {learns[0]} is a loss's own parameter, which nothing trains; make it an argument"
        )
    if config.train.teachers and "target.teacher_logits" not in criteria.reads:
        raise UserError("train.teachers: no loss learns from them; add {criterion: kl_distillation} to model.losses")
    if config.decoding.method == "parallel" and "parallel" not in criteria.heads:
        raise UserError("decoding.method=parallel wants a loss of head: parallel in model.losses")
    if config.train.reward:
        for name, head, loss in zip(criteria.names, criteria.heads, criteria.losses, strict=True):
            pulled = isinstance(loss, custum_loss) and (loss.use_dsr * loss.beta or loss.use_avr * loss.gamma)
            if head is None and (pulled or getattr(loss, "label_smoothing", 0)):
                raise UserError(
                    f"model.losses: train.reward weighs captions, some below 0, of which DSR, AVR and label smoothing "
                    f"make no sense; take them from {name}, as by model.losses=[{{criterion: cross_entropy}}]"
                )
    return criteria


def _check_values(entry: dict[str, Any]) -> None:
    loss = LOSS_REGISTRY.get(str(entry.get("criterion")))  # one that is not known is named as it is built
    kinds = get_type_hints(loss.__init__) if loss else {}
    for key, value in entry.items():
        kind = kinds.get(key.removesuffix("_"))
        if key in FACTORY_KEYS or kind is None:
            continue
        try:
            TypeAdapter(kind, config=ConfigDict(strict=True, arbitrary_types_allowed=True)).validate_python(value)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise UserError(f"model.losses: {entry['criterion']}: {key} = {value!r}: {said}") from None


def offered(output: Output, batch: Batch, counts: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """What criteria can read of a batch, `out` and `target`; `counts` [3] are the step's words, captions and images."""
    token_count, caption_count, image_count = counts
    out = {
        "pred": output.logits,
        "policy": output.logits,
        "attention": output.attention,
        "region_count": output.region_count,
        **output.heads,
    }
    target = {
        "target": batch.words,
        "weight": batch.weight,
        "mask": batch.mask,
        "region_mask": output.region_mask,
        "token_count": token_count,
        "caption_count": caption_count,
        **{name: {**wanted, "share": len(batch.rows) / image_count} for name, wanted in batch.targets.items()},
        **batch.guides,
    }
    return out, target


def log_terms(result: LossResult) -> dict[str, Tensor]:
    """The loss and its terms under the names that they have in the log: raw, weighted, and the parts of each."""
    return {
        "train/loss": result.total.detach(),
        **{f"train/{name}": value for name, value in (result.terms | result.parts).items()},
        **{f"train/raw/{name}": value for name, value in result.raw.items()},
        **{f"train/weighted/{name}": value for name, value in result.weighted.items()},
    }


def stop_unless_finite(value: Tensor, what: str, terms: dict[str, Tensor]) -> None:
    """`FloatingPointError` with every term where `value` is infinite or no number."""
    if not torch.isfinite(value):
        every = ", ".join(f"{name} {float(term):.4g}" for name, term in terms.items())
        raise FloatingPointError(f"the {what} is not finite ({every})")
