"""The model drafter under any order of requests, verdicts, ends and steps."""

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from draft_worker.limits import DraftLimits
from shared.engine.sampling import Row, sample
from shared.protocol.messages import DraftClosed, DraftPath, Verdict
from tests.draft_worker.builders import GREEDY, PENALISED, WARM, V, make_drafter, make_request
from tests.fakes import FakeRunner

LIMITS = DraftLimits(
    max_num_seqs=3, max_ahead=5, num_branches=3, max_num_rows=6, max_num_batched_tokens=12
)
NAMES = st.sampled_from(["a/0", "a/1", "b/0", "c/0"])
PROMPTS = st.lists(st.integers(0, V - 1), min_size=1, max_size=20).map(tuple)
ENDING = msgspec.structs.replace(WARM, stop_token_ids=tuple(range(0, V, 5)))
SAMPLINGS = st.sampled_from([GREEDY, WARM, PENALISED, ENDING])
MAX_LEN = 40
MAX_STEPS = 100  # without news


class DrafterMachine(RuleBasedStateMachine):
    """Keeps the confirmed tokens of each session beside the drafter."""

    can_follow = False

    def __init__(self) -> None:
        super().__init__()
        self.drafter = make_drafter(
            num_blocks=24, block_size=4, limits=LIMITS, can_follow=self.can_follow
        )
        self.confirmed: dict[str, list[int]] = {}
        self.model = FakeRunner(vocab_size=V, num_blocks=1, block_size=1)

    @rule(name=NAMES, prompt=PROMPTS, sampling=SAMPLINGS)
    def open(self, name: str, prompt: tuple[int, ...], sampling: object) -> None:
        request = make_request(name, token_ids=prompt, sampling=sampling, max_len=MAX_LEN)  # type: ignore[arg-type]
        if self.drafter.open(request):
            self.confirmed[name] = list(prompt)
        elif name not in self.drafter.sessions:
            self.confirmed.pop(name, None)

    @precondition(lambda self: self.confirmed)
    @rule(data=st.data(), num_right=st.integers(0, 6), wrong=st.integers(0, V - 1))
    def confirm(self, data: st.DataObject, num_right: int, wrong: int) -> None:
        """Some of the drafter's own guesses, then a token that may be anything or a runner-up."""
        name = data.draw(st.sampled_from(sorted(self.confirmed)))
        session, tokens = self.drafter.sessions[name], self.confirmed[name]
        right = session.main.token_ids[len(tokens) : len(tokens) + num_right]
        heads = [key[1] for key in session.branches if key[0] == len(tokens) + len(right)]
        last = data.draw(st.sampled_from([wrong, *heads]))
        new = [*right, last][: MAX_LEN - len(tokens)]
        overlap = data.draw(st.integers(0, len(tokens)))
        base_len = len(tokens) - overlap
        assert self.drafter.confirm(Verdict(name, base_len, (*tokens[base_len:], *new)))
        tokens += new

    @precondition(lambda self: self.confirmed)
    @rule(data=st.data(), gap=st.integers(1, 9))
    def lose_a_verdict(self, data: st.DataObject, gap: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.confirmed)))
        assert not self.drafter.confirm(Verdict(name, len(self.confirmed[name]) + gap, (1,)))
        self.close(name)

    @precondition(lambda self: self.confirmed)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.confirmed)))
        session, tokens = self.drafter.sessions[name], self.confirmed[name]
        request = make_request(
            name,
            token_ids=tuple(tokens),
            prompt_len=session.main.row.prompt_len,
            sampling=session.params,
            max_len=MAX_LEN,
        )
        num_computed = session.main.num_computed
        if self.drafter.open(request):
            assert self.drafter.sessions[name] is session
            assert session.main.num_computed == num_computed

    @rule(name=NAMES)
    def close(self, name: str) -> None:
        self.drafter.close(name)
        self.confirmed.pop(name, None)

    @rule()
    def step(self) -> None:
        for proposal in self.drafter.step():
            if isinstance(proposal, DraftClosed):
                del self.confirmed[proposal.session_id]
                continue
            assert isinstance(proposal, DraftPath)
            confirmed = self.confirmed[proposal.session_id]
            assert proposal.base_len == len(confirmed)
            assert 0 < len(proposal.token_ids) <= LIMITS.max_ahead
            assert proposal.base_len + len(proposal.token_ids) <= MAX_LEN
        self._check_guesses()

    @rule()
    def come_to_rest(self) -> None:
        """Without news there is an end to what can be guessed."""
        for _ in range(MAX_STEPS):
            if not self.drafter.has_work:
                return
            self.step()
        raise AssertionError("the drafter never rests")

    @invariant()
    def every_session_is_where_it_should_be(self) -> None:
        assert set(self.drafter.sessions) == set(self.confirmed)
        for name, tokens in self.confirmed.items():
            session = self.drafter.sessions[name]
            assert session.num_confirmed == len(tokens)
            assert session.main.token_ids[: len(tokens)] == tokens
            assert len(session.main.guesses) == session.num_ahead <= LIMITS.max_ahead
            assert len(session.branches) <= LIMITS.num_branches

    def teardown(self) -> None:
        for name in list(self.confirmed):
            self.close(name)
        assert self.drafter.usage == 0.0
        super().teardown()

    def _check_guesses(self) -> None:
        """A stale slot or a wrong block would show as another token."""
        for session in self.drafter.sessions.values():
            for chain in (session.main, *session.branches.values()):
                if not chain.guesses:
                    continue
                before = chain.token_ids[:-1]
                row = Row(session.params, before, chain.row.prompt_len)
                assert sample(self.model.logits(before)[None], [row]) == [chain.token_ids[-1]]


class FollowingMachine(DrafterMachine):
    """The same where steps begin before the one before is read, and news come between."""

    can_follow = True


STATEFUL = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestDrafterMachine = DrafterMachine.TestCase
TestFollowingMachine = FollowingMachine.TestCase
TestDrafterMachine.settings = TestFollowingMachine.settings = STATEFUL
