"""Loads what a target worker works with: model, cache, tokenizer; checks that they fit together."""

from dataclasses import dataclass

import structlog

from shared.common.clock import Clock
from shared.common.errors import ConfigError
from shared.config.model import CPU
from shared.config.source import served_name
from shared.engine.blocks import BlockPool
from shared.engine.hub import model_directory
from shared.engine.models import Model, load_model
from shared.engine.settings import ModelSettings
from shared.engine.text import TextTokenizer
from target_worker.admission import Served
from target_worker.config import Config
from target_worker.engine import Engine
from target_worker.goodput import Policy
from target_worker.rounds import Rounds
from target_worker.scheduler import Scheduler
from target_worker.speculation import Identity, Speculation
from target_worker.warmup import profile, self_test

# Sessions of a round on a GPU: with fewer, telling drafters at once is worth more than its time.
OVERLAP_FROM = 4

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Equipment:
    """A loaded model, and how requests see it."""

    model: Model
    served: Served


def equip(config: Config) -> Equipment:
    """Load the model.

    Raises:
        ConfigError: the model or the sizes do not work.
        Unavailable: the model cannot be fetched now.
    """
    directory = model_directory(config.model)
    tokenizer = TextTokenizer.load(directory)
    model = load_model(directory, model_settings(config))
    vocab_size = model.config.vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise ConfigError(
            f"model {config.model}: its tokenizer has {tokenizer.vocab_size} ids, "
            f"the model only {vocab_size}"
        )
    served = Served(
        name=served_name(config.model),
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        max_model_len=_max_model_len(
            config, model.config.max_model_len, model.num_blocks * config.block_size
        ),
        eos_token_ids=model.config.eos_token_ids,
        num_speculative_tokens=_num_speculative_tokens(config),
    )
    return Equipment(model, served)


def model_settings(config: Config) -> ModelSettings:
    """What the settings say of the model."""
    return ModelSettings(
        device=config.device,
        dtype=config.dtype,
        block_size=config.block_size,
        cache_tokens=config.cache_tokens,
        max_model_len=config.max_model_len,
        max_rows=config.round_tokens,
        max_sequences=config.max_num_seqs,
        memory_share=config.gpu_memory_utilization,
        is_batch_invariant=config.batch_invariant,
        threads=config.threads,
        cache_dtype=config.kv_cache_dtype,
    )


def build_engine(config: Config, equipment: Equipment, worker_id: str, clock: Clock) -> Engine:
    """An engine for the model, its rounds timed once so that the policy starts with prices."""
    model, served = equipment.model, equipment.served
    runner = model.runner
    pool = BlockPool(model.num_blocks, config.block_size)
    prices = profile(
        runner,
        model.sampler,
        pool,
        clock,
        max_num_seqs=config.max_num_seqs,
        max_batched_tokens=config.round_tokens,
        max_model_len=served.max_model_len,
    )
    speculation = Speculation(
        config.speculation if served.num_speculative_tokens else Policy.OFF,
        Identity(worker_id, served.tokenizer.fingerprint),
        profile=prices,
        clock=clock,
    )
    fixed_s, per_sequence_s, per_row_s = speculation.cost.prices_s
    _log.info(
        "rounds_profiled",
        fixed_ms=round(1e3 * fixed_s, 3),
        per_sequence_ms=round(1e3 * per_sequence_s, 3),
        per_row_ms=round(1e3 * per_row_s, 3),
    )
    return Engine(
        Rounds(
            runner,
            model.sampler,
            lambda: self_test(runner, model.sampler, pool),
            model.follower,
        ),
        Scheduler(
            pool,
            max_num_seqs=config.max_num_seqs,
            max_batched_tokens=config.round_tokens,
        ),
        speculation,
        vocab_size=served.vocab_size,
        clock=clock,
        overlap_from=None if config.device == CPU else OVERLAP_FROM,
    )


def _num_speculative_tokens(config: Config) -> int:
    return 0 if config.speculation is Policy.OFF else config.num_speculative_tokens


def _max_model_len(config: Config, own: int, room: int) -> int:
    """The context that is served: a sequence alone must always fit the cache of `room` tokens."""
    asked = config.max_model_len
    if asked > own:
        raise ConfigError(f"--max-model-len is {asked}: must be at most the model's own, {own}")
    if asked > room:
        raise ConfigError(
            f"--max-model-len is {asked}: must be at most what the cache holds, {room} tokens"
        )
    return asked or min(own, room)
