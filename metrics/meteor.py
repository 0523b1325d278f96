"""METEOR 1.5 through its reference implementation: one Java process that stays alive."""

import atexit
import importlib.util
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

# Java may start slowly on a loaded machine; silence for longer than this means that it hangs.
PATIENCE_S = 120.0


class Unavailable(Exception):
    """A metric cannot run here; the message is one line with the reason and the remedy."""


def find_java() -> str:
    """The path of the Java runtime; `Unavailable` where there is none."""
    java = shutil.which("java")
    if java is None:
        raise Unavailable("no Java runtime; install one (Debian, Ubuntu: `apt install default-jre`)")
    return java


def find_scorer(name: str) -> Path:
    """The folder of one of pycocoevalcap's scorers; `Unavailable` where the package is not installed."""
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise Unavailable("pycocoevalcap is not installed; `pip install pycocoevalcap==1.2`")
    return Path(package.submodule_search_locations[0]) / name


class MeteorProcess:
    """The METEOR jar of pycocoevalcap, spoken to over its standard input and output.

    Its locale and encoding are set, so that neither the system's decimal comma nor an ASCII terminal changes
    a score. Requests are written from a thread of their own and its complaints go to a file: no pipe can fill
    up and block. When Java ends or falls silent, `Unavailable` tells why.

    Raises:
        Unavailable: Java or pycocoevalcap is not installed.
    """

    def __init__(self) -> None:
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        options = ["-Xmx2G", "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]
        self._process = subprocess.Popen(
            [find_java(), *options, "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"],
            cwd=find_scorer("meteor"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
        )
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        atexit.register(self.close)

    @property
    def alive(self) -> bool:
        """Whether Java still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End Java."""
        atexit.unregister(self.close)
        self._process.kill()
        self._process.wait()

    def align(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Align each hypothesis with the reference that it fits best.

        Args:
            hypotheses: B tokenised captions, words separated by spaces.
            references: for each its tokenised references.

        Returns:
            float64 [B, 23], the counts that `score` explains.

        Raises:
            Unavailable: Java ended, or was silent for `PATIENCE_S`.
        """
        lines = [
            " ||| ".join(["SCORE", *(_clean(sentence) for sentence in [*group, hypothesis])]) + "\n"
            for hypothesis, group in zip(hypotheses, references, strict=True)
        ]
        threading.Thread(target=self._say, args=("".join(lines).encode(),), daemon=True).start()
        try:
            counts = np.array([self._hear().split() for _ in lines], np.float64).reshape(len(lines), 23)
        except BaseException:
            self.close()  # answers left unread would be taken for the next request's
            raise
        # The jar's own sums leave out the chunk of a caption that equals its reference, which has no penalty.
        counts[(counts[:, 20] == 1) & (counts[:, 21:23] == counts[:, 0:2]).all(axis=1), 20] = 0
        return counts

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _say(self, request: bytes) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except OSError:
            pass  # Java ended; the reader hears of it

    def _hear(self) -> bytes:
        try:
            answer = self._answers.get(timeout=PATIENCE_S)
        except queue.Empty:
            raise Unavailable(f"METEOR's Java process was silent for {PATIENCE_S:.0f} s; run it again") from None
        if answer is None:
            self._process.wait()
            self._complaints.seek(0)
            last = self._complaints.read().decode(errors="replace").strip().splitlines()[-1:]
            raise Unavailable(
                f"METEOR's Java process ended ({' '.join(last) or f'code {self._process.returncode}'}); "
                "free memory (it takes up to 2 GB), or try another Java (8, 11 and 17 work)"
            )
        return answer


def _clean(sentence: str) -> str:
    # As pycocoevalcap cleans hypotheses. It leaves `|||` in references, where it would shift all that
    # follows.
    return sentence.replace("|||", "").replace("  ", " ")


# METEOR's parameters for ranking English: Denkowski and Lavie 2014, table 3 and section 3.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.20, 0.60, 0.75
_MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase


def score(counts: np.ndarray) -> np.ndarray:
    """METEOR of summed counts: of one caption, or of a corpus.

    P and R are the matched shares of hypothesis and reference, each match weighted by its matcher, content
    words by 0.75 and function words by 0.25; F = P R / (0.85 P + 0.15 R); METEOR = F (1 - 0.6 (chunks /
    matches)^0.2).

    Args:
        counts: float64 [..., 23]: words of the hypothesis, of the reference, function words of both; for each of
            four matchers the matched content words of both and function words of both; chunks, 0 where
            hypothesis and reference are equal; matched words of both.

    Returns:
        float64 [...], 0 to 1.

    Reference:
        Denkowski, Lavie: Meteor Universal: Language Specific Translation Evaluation for Any Target Language,
        WMT 2014.
    """
    length, function = counts[..., 0:2], counts[..., 2:4]  # [..., hypothesis and reference]
    matches = counts[..., 4:20].reshape(*counts.shape[:-1], 4, 2, 2)  # [..., matcher, content or function, side]
    chunks, matched = counts[..., 20], counts[..., 21:23]

    of_kind = np.array([_DELTA, 1 - _DELTA])
    weighted = np.einsum("...mks,m,k->...s", matches, _MATCHERS, of_kind)
    total = _DELTA * (length - function) + (1 - _DELTA) * function
    precision, recall = np.moveaxis(_ratio(weighted, total), -1, 0)
    f = _ratio(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
    fragmentation = _ratio(chunks, matched.mean(axis=-1))
    return f * (1 - _GAMMA * fragmentation**_BETA)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
