"""From the settings to a drafter: loads the model, if there is one. N-grams need no torch."""

from dataclasses import dataclass

from draft_worker.config import Config, DrafterKind
from draft_worker.drafter import Drafter
from draft_worker.ngram_drafter import NgramDrafter
from shared.common.clock import SystemClock
from shared.common.errors import ConfigError
from shared.config.model import Dtype
from shared.config.source import served_name
from shared.engine.hub import Part, model_directory
from shared.engine.settings import MAX_GPU_SEQUENCES, ModelSettings
from shared.engine.text import TextTokenizer
from shared.protocol.messages import DraftRequest
from shared.protocol.sampling import SamplingParams

_WARM_UP_STEPS = 8  # the first passes allocate and plan; no session should wait for that
GPU_MEMORY_SHARE = 1.0  # its cache is a number of blocks; it may share the card with a target


@dataclass(frozen=True, slots=True)
class Equipment:
    """A drafter, ready to work, and what it can guess for."""

    drafter: Drafter
    name: str  # of the model, for the heartbeat
    vocabulary: str | None  # fingerprint; None: any
    max_model_len: int  # 0: any
    vocab_size: int  # 0: any


def equip(config: Config) -> Equipment:
    """Build the drafter that the settings ask for. Takes as long as loading the model.

    Raises:
        ConfigError: the model is missing or cannot be loaded.
        Unavailable: the model cannot be fetched now.
    """
    if config.drafter is DrafterKind.NGRAM:
        return _equip_ngram(config)
    if config.model is None:
        raise ConfigError("--model is required: must be a Hugging Face directory or a hub id")
    # The n-gram drafter starts without torch.
    from draft_worker.model_drafter import ModelDrafter  # noqa: PLC0415
    from shared.engine.blocks import BlockPool  # noqa: PLC0415
    from shared.engine.models import load_model  # noqa: PLC0415

    directory = model_directory(config.model)
    tokenizer = TextTokenizer.load(directory)
    model = load_model(directory, model_settings(config))
    shape = model.config
    drafter = ModelDrafter(
        model.ranker,
        BlockPool(model.num_blocks, config.block_size),
        vocab_size=shape.vocab_size,
        max_model_len=shape.max_model_len,
        limits=config.limits,
        clock=SystemClock(),
    )
    _warm_up(drafter, shape.max_model_len)
    return Equipment(
        drafter,
        name=served_name(config.model),
        vocabulary=tokenizer.fingerprint,
        max_model_len=shape.max_model_len,
        vocab_size=shape.vocab_size,
    )


def model_settings(config: Config) -> ModelSettings:
    """What the settings say of the model."""
    # A step that has more sequences is run in several passes.
    max_sequences = min(config.max_num_rows + config.max_num_seqs, MAX_GPU_SEQUENCES)
    return ModelSettings(
        device=config.device,
        dtype=Dtype.AUTO,
        block_size=config.block_size,
        cache_tokens=config.num_blocks * config.block_size,
        max_model_len=0,
        max_rows=config.max_num_batched_tokens,
        max_sequences=max_sequences,
        memory_share=GPU_MEMORY_SHARE,
        is_batch_invariant=False,
        threads=config.threads,
        cache_flag="--num-blocks",
        num_ranks=config.limits.num_ranks,
    )


def _equip_ngram(config: Config) -> Equipment:
    drafter = NgramDrafter(limits=config.limits)
    if config.model is None:
        return Equipment(drafter, name="ngram", vocabulary=None, max_model_len=0, vocab_size=0)
    tokenizer = TextTokenizer.load(model_directory(config.model, Part.DESCRIPTION))
    return Equipment(
        drafter,
        name="ngram",
        vocabulary=tokenizer.fingerprint,
        max_model_len=0,
        vocab_size=tokenizer.vocab_size,
    )


def _warm_up(drafter: Drafter, max_model_len: int) -> None:
    """One short session, forgotten again."""
    for temperature in (0.0, 0.7):
        sampling = SamplingParams(seed=0, temperature=temperature)
        request = DraftRequest("warm-up/0", "", 0, "", 1, min(64, max_model_len), (0,), sampling)
        if drafter.open(request):
            for _ in range(_WARM_UP_STEPS):
                drafter.step()
            drafter.close(request.session_id)
        while drafter.has_work:  # what is still under way
            drafter.step()
