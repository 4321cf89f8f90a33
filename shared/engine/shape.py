"""What engine and workers read of a model's configuration, whatever code computes the model."""

from typing import Protocol

from kernels.head_layout import HeadLayout


class ModelShape(Protocol):
    """Of our own decoder's `ModelConfig`, and of transformers' models."""

    @property
    def vocab_size(self) -> int:
        """Ids that have logits."""
        ...

    @property
    def max_model_len(self) -> int:
        """Tokens of a sequence, prompt and output together."""
        ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        ...

    @property
    def num_layers(self) -> int:
        """Layers with keys and values."""
        ...

    @property
    def layout(self) -> HeadLayout:
        """The heads of every layer, as the kernels see them."""
        ...

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Of each layer: how many tokens back it sees, itself included; None for all."""
        ...
