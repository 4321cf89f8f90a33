"""The engine under anything at all: jobs, guesses, lies, cancellations, in any order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from shared.engine.sampling import choice_seed
from shared.protocol.messages import DraftAccepted, DraftClosed, DraftPath
from shared.protocol.records import Done, Failed
from shared.protocol.sampling import SamplingParams
from target_worker.admitted import AdmittedJob
from target_worker.goodput import Policy
from tests.target_worker.engines import V, make_job, make_rig, reference, tokens_of

IDS = st.integers(-2, V + 1)


class EngineMachine(RuleBasedStateMachine):
    """Every log is a beginning of what the job answers alone, and ends at most once."""

    overlap_from: int | None = None
    follows = False

    def __init__(self) -> None:
        super().__init__()
        self.rig = make_rig(
            num_blocks=14,
            max_num_seqs=3,
            max_batched_tokens=7,
            policy=Policy.ON,
            overlap_from=self.overlap_from,
            follows=self.follows,
        )
        self.jobs: dict[str, AdmittedJob] = {}
        self.dropped: set[str] = set()
        self.truth: dict[str, list[int]] = {}

    session_ids = Bundle("session_ids")

    @rule(
        target=session_ids,
        prompt_len=st.integers(1, 14),
        max_tokens=st.integers(1, 9),
        num_choices=st.integers(1, 2),
        sampling=st.sampled_from([(0.0, 0.0), (0.9, 0.0), (0.9, 0.0), (0.9, 0.8)]),
        deadline_ms=st.sampled_from([None, None, 40]),
    )
    def submit(
        self,
        prompt_len: int,
        max_tokens: int,
        num_choices: int,
        sampling: tuple[float, float],
        deadline_ms: int | None,
    ) -> str:
        name, (temperature, penalty) = f"job{len(self.jobs)}", sampling
        params = [
            SamplingParams(
                seed=choice_seed(5, choice),
                temperature=temperature,
                presence_penalty=penalty,
                stop_token_ids=(3,),
            )
            for choice in range(num_choices)
        ]
        job = make_job(
            name,
            [(len(self.jobs) % 3 + i) % V for i in range(prompt_len)],
            max_tokens=max_tokens,
            params=params,
            deadline_ms=deadline_ms and self.rig.clock.unix_ms() + deadline_ms,
        )
        self.jobs[name] = job
        for choice in range(num_choices):
            self.truth[f"{name}/{choice}"] = reference(self.rig, job, choice)
        self.rig.engine.submit(job)
        return f"{name}/0"

    @rule(session_id=session_ids, num=st.integers(0, 6), spoil=st.lists(IDS, max_size=3))
    def guess(self, session_id: str, num: int, spoil: list[int]) -> None:
        job = self.jobs[session_id.split("/", maxsplit=1)[0]]
        base = len(job.prompt_ids)
        path = (*self.truth[session_id][:num], *spoil)
        self.rig.engine.receive([DraftPath(session_id, base, path)], 0.0)

    @rule(session_id=session_ids, base=st.integers(-3, 30), path=st.lists(IDS, max_size=70))
    def lie(self, session_id: str, base: int, path: list[int]) -> None:
        self.rig.engine.receive([DraftPath(session_id, base, tuple(path))], 0.0)

    @rule(session_id=session_ids, drafter=st.sampled_from(["draft:a", "draft:b"]))
    def offer(self, session_id: str, drafter: str) -> None:
        self.rig.engine.receive([DraftAccepted(session_id, drafter)], 0.0)

    @rule(session_id=session_ids)
    def leave(self, session_id: str) -> None:
        self.rig.engine.receive([DraftClosed(session_id)], 0.0)

    @rule(session_id=session_ids)
    def cancel(self, session_id: str) -> None:
        self.rig.engine.cancel(session_id.split("/", maxsplit=1)[0])

    @rule(session_id=session_ids)
    def drop(self, session_id: str) -> None:
        name = session_id.split("/", maxsplit=1)[0]
        self.dropped.add(name)
        self.rig.engine.drop(name)

    @rule(num=st.integers(1, 8))
    def step(self, num: int) -> None:
        for _ in range(num):
            self.rig.step()

    @invariant()
    def logs_are_right_so_far(self) -> None:
        self.rig.said.merge(self.rig.engine.take_outcome())
        for name, job in self.jobs.items():
            records = self.rig.records(name)
            for choice in range(len(job.choices)):
                truth = self.truth[f"{name}/{choice}"]
                tokens = tokens_of(records, choice)
                assert tokens == truth[: len(tokens)]
                if records and isinstance(records[-1], Done):
                    assert tokens == truth

    @invariant()
    def blocks_are_held_by_running_sessions_only(self) -> None:
        scheduler, pool = self.rig.engine._scheduler, self.rig.pool
        held = {block for s in scheduler.running if s.table for block in s.table.block_ids}
        assert pool.num_free == pool.num_blocks - len(held)
        assert all(session.table is None for session in scheduler.waiting)

    def teardown(self) -> None:
        self.rig.run()
        for name in self.jobs:
            records = self.rig.records(name)
            if name not in self.dropped:
                assert isinstance(records[-1], Done | Failed)


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


class OverlappingMachine(EngineMachine):
    """The same where rounds overlap: one is booked while the next is under way."""

    overlap_from = 1


class FollowingMachine(EngineMachine):
    """The same where rounds begin before the one before is known, if nobody guesses."""

    overlap_from = 2
    follows = True


class TellingMachine(EngineMachine):
    """The same where drafters of a small round hear of it before it is booked."""

    overlap_from = 3


TestTellingMachine = TellingMachine.TestCase
TestTellingMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestOverlappingMachine = OverlappingMachine.TestCase
TestOverlappingMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestFollowingMachine = FollowingMachine.TestCase
TestFollowingMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
