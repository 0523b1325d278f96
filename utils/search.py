"""Search by words: how well an image fits a text."""

import torch
import torch.nn.functional as F
from torch import Tensor

from data.errors import UserError
from data.tokenizer import tokenize
from data.vocabulary import Vocabulary
from models.captioner import Captioner
from models.heads.retrieval import RetrievalHead
from models.pooling import Visual
from models.tokens import UNK


class Query:
    """A text to find images for.

    Where the captioner has the head `retrieval`, that is the judge:

        match(text, image) = cos(embedding of the text, embedding of the image)

    else the captioner is:

        match(text, image) = 1/T sum_t [log p(w_t | w_<t, image) - log p(w_t | w_<t, grey)]

    the pointwise mutual information of text and image a word, in nats, where p(. | grey) is what the captioner says
    before an evenly grey image: its habits alone. Above zero, the image makes the words likelier than no image would.

    Args:
        text: words; those that the captioner does not know are left out and stand in `unknown`. size: pixels that the
            captioner sees. views: in how many it sees each image.

    Raises `UserError` where it knows none of the words.
    """

    def __init__(self, captioner: Captioner, vocabulary: Vocabulary, text: str, size: int, views: int = 1) -> None:
        words = tokenize(text)
        *tokens, end = vocabulary.encode(words, len(words))
        self.unknown = [word for word, token in zip(words, tokens[1:], strict=True) if token == UNK]
        kept = [token for token in tokens if token != UNK]
        if len(kept) < 2:
            raise UserError(f"--find {text!r}: the checkpoint knows none of these words; use those of its captions")
        self.captioner = captioner.eval()
        device = captioner.encoder.mean.device
        self.head = dict(captioner.heads.items()).get("retrieval")
        if isinstance(self.head, RetrievalHead):
            with torch.inference_mode():
                self.embedding = self.head.embed_text(torch.tensor([[*kept, end]], device=device))
        else:
            self.tokens = torch.tensor(kept, device=device)  # a query need not be a whole sentence: no end
            grey = torch.full((1, 3, size, size), 127, dtype=torch.uint8, device=device)
            with torch.inference_mode():
                self.habit = self._log_p(Visual(captioner.features(grey, views)))

    @torch.inference_mode()
    def _log_p(self, visual: Visual) -> Tensor:
        """The mean log-probability of the words before each image [B]."""
        tokens = self.tokens.expand(len(visual.content), -1)
        each = torch.arange(len(tokens), device=tokens.device)
        logits = self.captioner(visual, tokens[:, :-1], each).logits.float()
        return logits.log_softmax(-1).gather(2, tokens[:, 1:, None]).squeeze(2).mean(1)

    @torch.inference_mode()
    def match(self, visual: Visual) -> list[float]:
        """The match of each of a batch of images, or of features of them."""
        seen = visual.to(self.captioner.encoder.mean.device)
        if isinstance(self.head, RetrievalHead):
            images = self.head.embed_images(self.captioner.features(seen.content))
            return F.cosine_similarity(images, self.embedding).tolist()
        return (self._log_p(seen) - self.habit).tolist()
