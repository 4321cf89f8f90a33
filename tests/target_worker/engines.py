"""An engine on a model without weights, and the tokens that it has to come up with."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shared.bus.jobs import Claim
from shared.engine.blocks import BlockPool
from shared.engine.sampling import Row, sample
from shared.engine.spans import Runner
from shared.protocol.messages import DraftAccepted, DraftPath, Message
from shared.protocol.records import Done, Failed, Finished, FinishReason, Record, Tokens
from shared.protocol.sampling import SamplingParams
from target_worker.admitted import AdmittedJob, Choice
from target_worker.cost import Measured
from target_worker.engine import Engine
from target_worker.goodput import Policy
from target_worker.outcome import Outcome
from target_worker.rounds import Rounds
from target_worker.scheduler import Scheduler
from target_worker.speculation import Identity, Speculation
from tests.fakes import BoundedRunner, BoundedSampler, FakeFollower, FakeRunner, ManualClock

V = 50
DRAFTER = "draft:a"
ENDLESS = (3,) * 1_000_000  # a path that nobody may send


class LetterText:
    """Token 5 is shown as `f`; stops at stop strings, holding nothing back."""

    def __init__(self, stop_strings: Sequence[str] = ()) -> None:
        self.is_stopped = False
        self._stop_strings = stop_strings
        self._text = ""

    @property
    def can_stop(self) -> bool:
        return bool(self._stop_strings)

    def push(self, token_id: int) -> str:
        letter = chr(ord("a") + token_id % 26)
        self._text += letter
        self.is_stopped = any(self._text.endswith(stop) for stop in self._stop_strings)
        return letter

    def flush(self) -> str:
        return ""


@dataclass
class Rig:
    """An engine, and everything that it has said."""

    engine: Engine
    pool: BlockPool
    runner: FakeRunner
    clock: ManualClock
    speculation: Speculation
    follower: FakeFollower
    said: Outcome = field(default_factory=Outcome)

    def step(self) -> Outcome:
        """One round; also what it said."""
        pause = self.engine.step()
        if pause.seconds:
            self.clock.advance(pause.seconds)
        self.clock.advance(0.001)
        outcome = self.engine.take_outcome()
        self.said.merge(outcome)
        return outcome

    def run(self, *, drafter: "Drafter | None" = None, max_rounds: int = 3_000) -> None:
        """Rounds until no job is left."""
        for _ in range(max_rounds):
            if not self.engine.num_jobs:
                break
            outcome = self.step()
            if drafter is not None:
                messages = drafter.answer(outcome)
                self.engine.receive(messages, self.clock.monotonic_s())
        assert not self.engine.num_jobs
        self.said.merge(self.engine.take_outcome())
        assert self.pool.num_free == self.pool.num_blocks, "leaked blocks"

    def records(self, job_id: str = "job") -> list[Record]:
        """Everything written to a job's log."""
        return [
            record
            for (known, _), (_, records) in self.said.records.items()
            if known == job_id
            for record in records
        ]

    def tokens(self, job_id: str = "job", choice: int = 0) -> list[int]:
        """The output of one choice, checked to be dense and to end once."""
        return tokens_of(self.records(job_id), choice)


def tokens_of(records: Sequence[Record], choice: int = 0) -> list[int]:
    """The output tokens of one choice, after checking the log's grammar."""
    found: list[int] = []
    terminal = [record for record in records if isinstance(record, Done | Failed)]
    assert len(terminal) <= 1
    assert not terminal or records[-1] is terminal[0]
    for record in records:
        if isinstance(record, Tokens) and record.choice == choice:
            assert record.offset == len(found)
            found.extend(record.token_ids)
    assert sum(isinstance(r, Finished) and r.choice == choice for r in records) <= 1
    return found


def make_rig(
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    max_num_seqs: int = 8,
    max_batched_tokens: int = 32,
    policy: Policy = Policy.ON,
    profile: Sequence[Measured] = (Measured(1, 1, 0.001),),
    wrap: Callable[[FakeRunner], Runner] = lambda runner: runner,
    overlap_from: int | None = None,
    follows: bool = False,
    wrap_follower: Callable[[FakeFollower], FakeFollower] = lambda follower: follower,
) -> Rig:
    """An engine on FakeRunner; with `follows`, as on a device that goes on by itself."""
    clock = ManualClock()
    runner = BoundedRunner(
        max_batched_tokens, vocab_size=V, num_blocks=num_blocks, block_size=block_size
    )
    pool = BlockPool(num_blocks, block_size)
    scheduler = Scheduler(pool, max_num_seqs=max_num_seqs, max_batched_tokens=max_batched_tokens)
    speculation = Speculation(policy, Identity("target:a", "words"), profile=profile, clock=clock)
    follower = wrap_follower(FakeFollower(runner, BoundedSampler(max_batched_tokens)))
    rounds = Rounds(
        wrap(runner), follower, self_test=lambda: None, follower=follower if follows else None
    )
    engine = Engine(
        rounds, scheduler, speculation, vocab_size=V, clock=clock, overlap_from=overlap_from
    )
    return Rig(engine, pool, runner, clock, speculation, follower)


def make_job(
    job_id: str = "job",
    prompt: Sequence[int] = (1, 2, 3, 4, 5),
    *,
    max_tokens: int = 12,
    params: Sequence[SamplingParams] = (SamplingParams(seed=7),),
    stop_strings: Sequence[str] = (),
    outputs: Sequence[Sequence[int]] | None = None,
    reasons: Sequence[FinishReason | None] | None = None,
    max_drafts: int = 8,
    tenant: str = "",
    deadline_ms: int | None = None,
    epoch: int = 1,
) -> AdmittedJob:
    """A job as admission hands it over; one choice per entry of `params`."""
    outputs = outputs or [()] * len(params)
    texts = [LetterText(stop_strings) for _ in params]
    for text, output in zip(texts, outputs, strict=True):
        for token_id in output:
            text.push(token_id)
    return AdmittedJob(
        claim=Claim(
            job_id, "jobs", "1-0", epoch, 7, is_cancelled=False, deliveries=1, lengths=(0,)
        ),
        prompt_ids=tuple(prompt),
        max_len=len(prompt) + max_tokens,
        choices=tuple(
            Choice(one, tuple(output), text, reason)
            for one, output, text, reason in zip(
                params, outputs, texts, reasons or [None] * len(params), strict=True
            )
        ),
        max_drafts=max_drafts,
        tenant=tenant,
        deadline_ms=deadline_ms,
    )


def reference(
    rig: Rig, job: AdmittedJob, choice: int = 0, *, stop_strings: Sequence[str] = ()
) -> list[int]:
    """What the job has to answer: one token after another, no batch, no cache, no guess."""
    params = job.choices[choice].params
    tokens = list(job.prompt_ids)
    text = LetterText(stop_strings)
    while len(tokens) < job.max_len:
        logits = rig.runner.logits(tokens)[None]
        (token_id,) = sample(logits, [Row(params, tokens, len(job.prompt_ids))])
        tokens.append(token_id)
        text.push(token_id)
        if token_id in params.stop_token_ids or text.is_stopped:
            break
    return tokens[len(job.prompt_ids) :]


Guess = Callable[[str, list[int]], list[tuple[int, tuple[int, ...]]]]


class Drafter:
    """Follows every session it is asked for by verdicts alone; `guess` says what it sends.

    Args:
        guess: (session id, confirmed tokens as far as known) to (base_len, path) pairs.
    """

    def __init__(self, guess: Guess) -> None:
        self._guess = guess
        self.known: dict[str, list[int]] = {}
        self.num_verdicts = 0

    def answer(self, outcome: Outcome) -> list[Message]:
        """Messages in answer to what the target said."""
        answers: list[Message] = []
        for request in outcome.requests:
            self.known[request.session_id] = list(request.token_ids)
            answers.append(DraftAccepted(request.session_id, DRAFTER))
        for message in outcome.mail.get(DRAFTER, []):
            self._hear(message)
        for session_id, known in self.known.items():
            answers += [DraftPath(session_id, *path) for path in self._guess(session_id, known)]
        return answers

    def _hear(self, message: Message) -> None:
        kind = type(message).__name__
        session_id = getattr(message, "session_id", "")
        if kind == "DraftClosed":
            self.known.pop(session_id, None)
        elif kind == "Verdict" and session_id in self.known:
            known = self.known[session_id]
            base_len = getattr(message, "base_len", -1)
            assert base_len == len(known), "a verdict is missing"
            known.extend(getattr(message, "token_ids", ()))
            self.num_verdicts += 1


def right_guess(answers: dict[str, list[int]], length: int = 5) -> Guess:
    """Guesses what will come: `answers` maps a session id to prompt and answer."""

    def guess(session_id: str, known: list[int]) -> list[tuple[int, tuple[int, ...]]]:
        return [(len(known), tuple(answers[session_id][len(known) : len(known) + length]))]

    return guess


def mixed_guess(answers: dict[str, list[int]], length: int = 5) -> Guess:
    """Right, wrong, half right, stale, doubled and hostile guesses by turns, each run the same."""

    def guess(session_id: str, known: list[int]) -> list[tuple[int, tuple[int, ...]]]:
        base, answer = len(known), answers[session_id]
        truth = tuple(answer[base : base + length])
        turn = zlib.crc32(f"{session_id}{base}".encode()) % 9
        wrong = tuple((token_id + 1) % V for token_id in truth)
        return [
            [(base, truth)],
            [(base, wrong)],
            [(base, truth[:2] + wrong[2:]), (base, wrong[:1] + truth[1:])],
            [(max(0, base - 3), tuple(answer[max(0, base - 3) : base + 4]))],
            [(base, truth), (base, truth)],
            [(base, (-1, V, 1 << 62)), (base, (*truth[:1], -5)), (-3, truth)],
            [(base, ENDLESS), (10**9, truth)],
            [],
            [(max(0, base - 2), wrong)],
        ][turn]

    return guess
