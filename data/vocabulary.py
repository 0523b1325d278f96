"""Words and their numbers."""

from collections import Counter
from collections.abc import Iterable, Sequence

from models.tokens import END, PAD, START, UNK

SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")


class Vocabulary:
    """Words of the train split, numbered after the four special tokens.

    `words[i]` is the word of token i; tokens 0 to 3 are `<pad>`, `<start>`, `<end>`, `<unk>`.
    """

    def __init__(self, words: Sequence[str]) -> None:
        sound = isinstance(words, Sequence) and all(isinstance(word, str) for word in words)
        if not sound or tuple(words[: len(SPECIALS)]) != SPECIALS or len(set(words)) != len(words):
            raise ValueError(f"a vocabulary starts with {SPECIALS} and holds each word once")
        self.words = tuple(words)
        # an annotation's own "<end>" is a word like any other, and not known
        self._token = {word: token for token, word in enumerate(self.words) if token >= len(SPECIALS)}

    @classmethod
    def build(cls, captions: Iterable[Sequence[str]], min_count: int) -> "Vocabulary":
        """Words that stand at least `min_count` times in the tokenised `captions`, most frequent first."""
        counts = Counter(word for caption in captions for word in caption)
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return cls([*SPECIALS, *(w for w, count in ranked if count >= min_count and w not in SPECIALS)])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: Sequence[str], max_words: int) -> list[int]:
        """`<start>`, at most `max_words` words, `<end>`; a word that is not known becomes `<unk>`."""
        return [START, *(self._token.get(word, UNK) for word in words[:max_words]), END]

    def decode(self, tokens: Iterable[int]) -> list[str]:
        """The words of `tokens` up to `<end>`, without `<start>` and `<pad>`."""
        words = []
        for token in tokens:
            if token == END:
                break
            if token not in (PAD, START):
                words.append(self.words[token])
        return words
