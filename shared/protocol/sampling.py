"""How a token is chosen: the parameters that the target's sampler and every drafter share."""

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, array_like=True):
    """Everything besides model and tokens that decides the next token. The defaults change nothing.

    Travels to drafters, so that they guess with the same filters and the same noise.
    """

    seed: int  # unsigned 64 bits; the key of the noise
    temperature: float = 1.0  # 0: argmax, lowest id on ties
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off
    repetition_penalty: float = 1.0  # over prompt and output; 1: off
    presence_penalty: float = 0.0  # over output; 0: off
    frequency_penalty: float = 0.0  # over output; 0: off
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)
    min_tokens: int = 0  # no stop id is chosen before this many output tokens
    stop_token_ids: tuple[int, ...] = ()  # end the sequence; the model's own end ids included

    @property
    def has_penalties(self) -> bool:
        """Whether the choice depends on which tokens came before."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )
