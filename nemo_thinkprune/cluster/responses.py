"""What NeMo-RL's environments are not told: how long a response is, and whether it was cut.

NeMo-RL gives an environment the text of a response only. All of its trainers take that text from
`tokenizer.batch_decode`, so a tokenizer of ours that answers with `Response` carries both facts along.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from nemo_thinkprune.data.tokenizer import response_text


class Response(str):
    """The text of a response without its end token, other special tokens kept.

    `tokens` counts the response's tokens, the end token included; `finished` is False for a response that was
    cut at the limit. Copies and pickles keep both, text made from it (slices, `str(...)`) is plain.
    """

    __slots__ = ("finished", "tokens")

    tokens: int
    finished: bool

    def __new__(cls, text: str, tokens: int, finished: bool) -> Response:
        """`text` with its length in tokens and whether it ended by itself."""
        response = super().__new__(cls, text)
        response.tokens, response.finished = tokens, finished
        return response

    def __reduce__(self) -> tuple[Any, ...]:
        return Response, (str(self), self.tokens, self.finished)


class ResponseTokenizer:
    """A tokenizer for NeMo-RL's trainers: `batch_decode` answers with `Response`, all else is the wrapped one's.

    `end_ids` are the tokens that end a response. Give it to the trainer only: NeMo-RL's `setup` and data sets
    tell tokenizers from multimodal processors by class and want the wrapped one.
    """

    def __init__(self, tokenizer: Any, end_ids: Collection[int]) -> None:
        self.wrapped = tokenizer
        self.end_ids = frozenset(end_ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return ResponseTokenizer, (self.wrapped, self.end_ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def __len__(self) -> int:
        return len(self.wrapped)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the wrapped tokenizer."""
        return self.wrapped(*args, **kwargs)

    def batch_decode(self, sequences: Sequence[Any], **_: Any) -> list[Response]:
        """The responses of token ids, each a tensor or a list of any length.

        Options are NeMo-RL's wish to skip special tokens; they do not apply, since a response reads the same
        wherever this package trains.
        """
        return [self._response(_ids(sequence)) for sequence in sequences]

    def _response(self, ids: list[int]) -> Response:
        finished = bool(ids) and ids[-1] in self.end_ids
        return Response(response_text(self.wrapped, ids, finished=finished), len(ids), finished)


def _ids(sequence: Any) -> list[int]:
    return sequence.tolist() if hasattr(sequence, "tolist") else list(sequence)
