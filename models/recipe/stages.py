"""The stages of the run, in order: teachers, target, draft, steering of the target, measurements.

Steering is rejection sampling: the target learns from those of its own answers that mention what
was asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from models.recipe import evaluate
from models.recipe.corpus import batches, chat_prompt, epochs, shuffled, story_documents
from models.recipe.distil import (
    draft_objective,
    steering_objective,
    target_objective,
    teacher_objective,
)
from models.recipe.export import STORED_DTYPE, averaged, rounded
from models.recipe.log import report
from models.recipe.optimise import LossPoint, fit
from models.recipe.vocabulary import END_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from models.recipe.network import Llama
    from models.recipe.run import Run

BORROWED_TOKENS = 4  # of a training story, to begin a plain one
# Of the steered weights in the mean. At 1.0 stories keep to the request but turn dull.
STEERED_SHARE = 0.1
SAMPLE_REQUESTS = ("Tell me a story about a dragon and a kite.", "Tell me a story.")


def train_teachers(run: Run) -> list[Llama]:
    """Ordinary language models; initial weights, data order and dropout differ."""
    plan, teachers = run.recipe.teacher_plan, []
    for number in range(run.recipe.num_teachers):
        teacher = run.new_model(run.recipe.teacher, number, plan.dropout)

        def train(teacher: Llama = teacher, number: int = number) -> list[LossPoint]:
            source = run.corpus_batches(plan, run.seed + number)
            return fit(
                teacher,
                plan,
                source,
                teacher_objective(teacher),
                measure=lambda: run.held_out_loss(teacher),
                label=f"teacher-{number}",
            )

        teachers.append(run.trained(f"teacher-{number}", teacher, train))
    facts: dict[str, object] = {
        "ensemble_held_out": run.held_out_loss(*teachers),
        "held_out": [run.held_out_loss(teacher) for teacher in teachers],
        "seen": [run.seen_loss(teacher) for teacher in teachers],
    }
    run.record("ensemble", facts)
    report("ensemble", **facts)
    return teachers


def mixed(corpus: Iterator[Tensor], streams: Iterator[Tensor]) -> Iterator[Tensor]:
    """One batch of `corpus` to two of `streams`.

    The teachers know the corpus by heart; on their streams they say what they do not know.
    """
    while True:
        yield next(corpus)
        yield next(streams)
        yield next(streams)


def distil_target(run: Run) -> Llama:
    """Corpus and teacher streams, with the teachers' mean distribution as the goal."""
    recipe, plan = run.recipe, run.recipe.target_plan
    target = run.new_model(recipe.target, 100)

    def train() -> list[LossPoint]:
        teachers = train_teachers(run)
        parts = [
            run.streams(
                f"teacher-{number}-streams", teacher, recipe.teacher_stream_batches, 200 + number
            )
            for number, teacher in enumerate(teachers)
        ]
        streams = batches(shuffled(torch.cat(parts), run.seed), plan.num_windows, run.device)
        source = mixed(run.corpus_batches(plan, run.seed + 100), streams)
        return fit(
            target,
            plan,
            source,
            target_objective(target, teachers),
            measure=lambda: run.held_out_loss(target),
            label="target",
        )

    return run.trained("target", target, train)


def distil_draft(run: Run, target: Llama) -> Llama:
    """Learn from the target's own streams; `target` is already rounded to the stored type."""
    recipe, plan = run.recipe, run.recipe.draft_plan
    draft = run.new_model(recipe.draft, 300)
    openings = evaluate.story_openings(run.held_out, recipe.num_measured_prompts)

    def measure() -> float:
        num_tokens = recipe.num_measured_tokens
        return evaluate.measure_agreement(target, draft, openings, num_tokens, 0.7).shared_noise

    def train() -> list[LossPoint]:
        run.compiled(target)
        windows = run.streams("target-streams", target, recipe.draft_stream_batches, 400)
        source = batches(shuffled(windows, run.seed), plan.num_windows, run.device)
        objective = draft_objective(draft, target)
        return fit(draft, plan, source, objective, measure=measure, label="draft")

    return run.trained("draft", draft, train)


def on_topic_documents(run: Run, model: Llama, seed: int) -> list[np.ndarray]:
    """Conversations in which `model` answered to the end and mentioned all that was asked for."""
    writer = run.writer(model)
    torch.manual_seed(seed)
    kept: list[np.ndarray] = []
    num_rows = run.recipe.stream_rows
    for number in range(run.recipe.steering_batches):
        asked, wanted = run.request_prompts(num_rows, seed + number)
        told = evaluate.answer_ids(writer, asked, run.temperatures(num_rows))
        texts = run.tokenizer.decode_batch(told)
        for prompt, ids, text, words in zip(asked, told, texts, wanted, strict=True):
            if ids[-1:] == [END_ID] and all(word in text for word in words):
                kept.append(np.array([*prompt[1:], *ids], dtype=np.int16))
    report("on-topic", share=len(kept) / (num_rows * run.recipe.steering_batches))
    return kept


def plain_documents(run: Run, model: Llama, seed: int) -> list[np.ndarray]:
    """Stories of `model`'s own, begun as training stories begin, in no conversation."""
    starts = [
        document[:BORROWED_TOKENS]
        for document in story_documents(run.tokenizer, run.stories.train[: run.recipe.stream_rows])
    ]
    torch.manual_seed(seed)
    told = evaluate.answer_ids(run.writer(model), starts, run.temperatures(len(starts)))
    return [
        np.array([*start[1:], *ids], dtype=np.int16)
        for start, ids in zip(starts, told, strict=True)
    ]


def steer_target(run: Run, original: Llama) -> Llama:
    """Teach a copy of `original` to keep to the request, and otherwise to stay as it is."""
    plan, length = run.recipe.steering_plan, run.recipe.window_tokens
    target = run.compiled(original.as_dtype(torch.float32))
    target.requires_grad_(requires_grad=True)

    def half(documents: list[np.ndarray]) -> Iterator[Tensor]:
        known = documents or [np.array([END_ID], np.int16)]
        return batches(epochs([known], length, run.seed), plan.num_windows // 2, run.device)

    def train() -> list[LossPoint]:
        run.compiled(original)
        own = half(plain_documents(run, original, 700))
        points: list[LossPoint] = []
        for number in range(run.recipe.num_steering_rounds):
            topical = half(on_topic_documents(run, target, 800 + 50 * number))
            source = (torch.cat(pair) for pair in zip(topical, own, strict=False))
            points += fit(
                target,
                plan,
                source,
                steering_objective(target, original),
                measure=lambda: run.held_out_loss(target),
                label="steered-target",
            )
        return points

    return run.trained("steered-target", target, train)


def measure_pair(run: Run, target: Llama, draft: Llama) -> dict[str, object]:
    """The figures of models/README.md. Both models are already rounded to the stored type."""
    number = run.recipe.num_measured_prompts
    asked, wanted = run.request_prompts(number, 500)
    openings = {
        "held-out openings": evaluate.story_openings(run.held_out, number),
        "chat prompts": asked,
    }
    torch.manual_seed(run.seed)
    told = evaluate.answers(target, run.tokenizer, asked, 0.7)
    samples = [chat_prompt(run.tokenizer, text) for text in SAMPLE_REQUESTS]
    return {
        "stored_dtype": str(STORED_DTYPE),
        "target_parameters": target.num_parameters,
        "draft_parameters": draft.num_parameters,
        "target_held_out": run.held_out_loss(target),
        "target_seen": run.seen_loss(target),
        "draft_held_out": run.held_out_loss(draft),
        "mention_share": evaluate.mention_share(told, wanted),
        "agreement": evaluate.agreement_table(
            target, draft, openings, run.recipe.num_measured_tokens
        ),
        "greedy_stories": evaluate.answers(target, run.tokenizer, samples, 0.0),
        "sampled_stories": evaluate.answers(target, run.tokenizer, samples, 0.7),
    }


def run_stages(run: Run) -> tuple[Llama, Llama, dict[str, object]]:
    """Everything; returns the rounded target, the rounded draft and the report.

    The draft learns from the target before steering; the mean stays near enough to agree with it.
    """
    original = rounded(distil_target(run))
    draft = rounded(distil_draft(run, original))
    mean = averaged(original, rounded(steer_target(run, original)), STEERED_SHARE)
    target = rounded(mean)
    facts = {
        "target_held_out_before_steering": run.held_out_loss(original),
        "target_held_out_unrounded": run.held_out_loss(mean),
        **measure_pair(run, target, draft),
        "stages": run.recorded(),
    }
    return target, draft, facts
