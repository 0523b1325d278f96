"""Search by words: how much likelier an image makes a text."""

import torch
from torch import Tensor

from data.errors import UserError
from data.tokenizer import tokenize
from data.vocabulary import Vocabulary
from models.captioner import Captioner
from models.pooling import Visual
from models.tokens import UNK


class Query:
    """A text to find images for, with a captioner as the judge.

        match(text, image) = 1/T sum_t [log p(w_t | w_<t, image) - log p(w_t | w_<t, grey)]

    the pointwise mutual information of text and image a word, in nats, where p(. | grey) is what the captioner says
    before an evenly grey image: its habits alone. Above zero, the image makes the words likelier than no image would.

    Args:
        text: words; those that the captioner does not know are left out and stand in `unknown`. size: pixels that the
            captioner sees.

    Raises `UserError` where it knows none of the words.
    """

    def __init__(self, captioner: Captioner, vocabulary: Vocabulary, text: str, size: int) -> None:
        words = tokenize(text)
        tokens = vocabulary.encode(words, len(words))[:-1]  # a query need not be a whole sentence: no end
        self.unknown = [word for word, token in zip(words, tokens[1:], strict=True) if token == UNK]
        kept = [token for token in tokens if token != UNK]
        if len(kept) < 2:
            raise UserError(f"--find {text!r}: the checkpoint knows none of these words; use those of its captions")
        self.captioner = captioner
        self.tokens = torch.tensor(kept, device=captioner.encoder.mean.device)
        grey = torch.full((1, 3, size, size), 127, dtype=torch.uint8, device=self.tokens.device)
        self.habit = self._log_p(Visual(grey))

    @torch.inference_mode()
    def _log_p(self, visual: Visual) -> Tensor:
        """The mean log-probability of the words before each image [B]."""
        self.captioner.eval()
        tokens = self.tokens.expand(len(visual.content), -1)
        each = torch.arange(len(tokens), device=tokens.device)
        logits = self.captioner(visual, tokens[:, :-1], each).logits.float()
        return logits.log_softmax(-1).gather(2, tokens[:, 1:, None]).squeeze(2).mean(1)

    def match(self, visual: Visual) -> list[float]:
        """The match of each of a batch of images."""
        return (self._log_p(visual.to(self.tokens.device)) - self.habit).tolist()
