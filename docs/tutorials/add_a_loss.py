"""Add a loss: python docs/tutorials/add_a_loss.py [what train.py takes ...].

The loss asks the attention of every word to be peaked. To stay, it would be one file in loss/, one line in the registry
(loss/builder.py) and one row in loss/README.md; any recipe could then name it in model.losses. It has no parameters of
its own: the optimizer has the captioner's alone.
"""

import sys
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository

from torch import Tensor, nn

import train
from loss.builder import LOSS_REGISTRY
from utils.config import load_config
from utils.files import run_program


class AttentionEntropy(nn.Module):
    """The mean entropy of the attention a word, in nats: -sum_n a_n log a_n."""

    reads: ClassVar = {
        "attention": "out.attention",
        "mask": "target.mask",
        "token_count": "target.token_count",
    }

    def forward(self, attention: Tensor, mask: Tensor, token_count: Tensor) -> Tensor:
        """Of attention [P, T, N]; word t of caption p counts mask[p, t] times.

        `token_count` is how many words the whole step has, over all processes and parts of an accumulated batch: what
        is divided by it has the same weight however the batch is split.
        """
        entropy = -(attention * attention.clamp_min(1e-9).log()).sum(-1)
        return (entropy * mask).sum() / token_count


if __name__ == "__main__":
    LOSS_REGISTRY["attention_entropy"] = AttentionEntropy
    default = "{criterion: custum_loss, beta: 0.01, gamma: 0.01, label_smoothing: 0.1}"
    losses = f"model.losses=[{default}, {{criterion: attention_entropy, weight: 0.05}}]"
    arguments = train.parse_arguments([*sys.argv[1:], losses])
    run_program(lambda: train.main(load_config(arguments), arguments.resume))
