"""The conformance suite of engines: what :class:`lanes.engines.base.Engine` promises, checked on a running one.

:func:`check_engine` runs all of it. A test suite that wants each check by its own name runs :data:`CHECKS` on an
:class:`EngineSuite`. Needs no mlx, and no particular model: what an answer must be is learnt from the engine itself,
running one greedy sequence alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import msgspec

from lanes.engines.base import Emission, Engine, SequenceSpec, advance
from lanes.wire import FinishReason, Sampling, SpecCounters

MakeEngine = Callable[[frozenset[int]], Engine]
"""Makes an idle engine whose answers end with one of the given token ids."""

ANSWER_TOKENS: Final = 10
LONG_PROMPT_TOKENS: Final = 150
"""Longer than one chunk of prefill: sequences are cancelled while it is under way."""

MAX_STEPS: Final = 2_000
NO_EOS: Final[frozenset[int]] = frozenset()
GREEDY: Final = Sampling(temperature=0.0)
SAMPLED: Final = Sampling(temperature=0.8, top_p=0.95, seed=11)
LOUD: Final = (
    Sampling(temperature=1.5, seed=1),
    Sampling(temperature=1.5, seed=2, top_k=5, min_p=0.01, frequency_penalty=1.0),
    Sampling(temperature=0.0, logit_bias={7: 100.0}, presence_penalty=2.0, repetition_penalty=1.3),
)
"""Settings that would show at once if they leaked into a neighbour."""


@dataclass
class Answer:
    """What one sequence has been given so far."""

    spec: SequenceSpec
    token_ids: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    error: str | None = None
    counters: SpecCounters | None = None

    @property
    def ended(self) -> bool:
        """True after the last emission."""
        return self.finish is not None or self.error is not None

    def take(self, emission: Emission) -> None:
        """Book an emission, and hold it to the contract."""
        assert not self.ended, f"an emission after the last one: {emission}"
        self.token_ids += emission.token_ids
        self.finish, self.error = emission.finish, emission.error
        assert self.finish is None or self.error is None, f"both finished and failed: {emission}"
        assert len(self.token_ids) <= self.spec.max_tokens, f"{len(self.token_ids)} tokens: {self.spec}"
        assert 0 <= emission.accepted <= len(emission.token_ids), f"more accepted than emitted: {emission}"
        counters = emission.counters
        if counters is None:
            assert emission.accepted == 0, f"accepted without counters: {emission}"
            return
        assert self.spec.num_draft_tokens > 0, f"drafted without being asked to: {emission}"
        assert counters.accepted == emission.accepted, f"counted and emitted differ: {emission}"
        assert counters.accepted + counters.rejected + counters.ignored == counters.proposed, f"lost drafts: {counters}"
        assert counters.proposed <= counters.rounds * self.spec.num_draft_tokens, f"more than asked for: {counters}"
        self.counters = counters if self.counters is None else self.counters + counters


class Driver:
    """Steps an engine, and holds every step to the contract."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.open: dict[str, Answer] = {}
        assert not engine.has_work(), "a new engine has work"
        assert engine.active() == 0, "a new engine has sequences"

    def add(self, spec: SequenceSpec) -> Answer:
        """Start a sequence."""
        self.engine.add(spec)
        self.open[spec.request_id] = answer = Answer(spec)
        self._check_counts()
        return answer

    def cancel(self, answer: Answer) -> None:
        """Cancel a sequence that has not ended."""
        self.engine.cancel(answer.spec.request_id)
        del self.open[answer.spec.request_id]
        self._check_counts()

    def step(self, limit_s: float | None = None) -> None:
        """One step."""
        for emission in advance(self.engine, limit_s):
            assert emission.request_id in self.open, f"an emission for nobody: {emission}"
            answer = self.open[emission.request_id]
            answer.take(emission)
            if answer.ended:
                del self.open[emission.request_id]
        self._check_counts()

    def until(self, condition: Callable[[], bool], limit_s: float | None = None) -> None:
        """Step until ``condition`` holds."""
        for _ in range(MAX_STEPS):
            if condition():
                return
            assert self.engine.has_work(), "no work, but sequences that have not ended"
            self.step(limit_s)
        raise AssertionError(f"not after {MAX_STEPS} steps")

    def finish(self, limit_s: float | None = None) -> None:
        """Step until every sequence has ended, and then once more at most until there is no work."""
        self.until(lambda: not self.open, limit_s)
        self.check_idle()

    def check_idle(self) -> None:
        """Nothing is left but what one step clears away."""
        if self.engine.has_work():
            self.step()
        assert not self.engine.has_work(), "work is left, but no sequence"
        assert self.engine.active() == 0

    def _check_counts(self) -> None:
        assert self.engine.active() == len(self.open), f"active() is {self.engine.active()}, not {len(self.open)}"
        assert self.engine.has_work() or not self.open, "has_work() is False, but sequences have not ended"


class EngineSuite:
    """The checks of one engine.

    Args:
        make_engine: see :data:`MakeEngine`.
        prompts: at least three different ones, in token ids.
        poison: a prompt with which a step of this engine fails; the check of errors is left out without one.
        shares_fate: sequences that run together may fail together, as those of a batch do.
        barren_steps: in a row that may compute no token; more than one if a batch's cache is copied layer by layer.
    """

    def __init__(
        self,
        make_engine: MakeEngine,
        prompts: Sequence[tuple[int, ...]],
        *,
        poison: tuple[int, ...] | None = None,
        shares_fate: bool = False,
        barren_steps: int = 1,
    ) -> None:
        if len(set(prompts)) < 3:
            raise ValueError("at least three different prompts are needed")
        self._make = make_engine
        self._prompts = list(prompts)
        self._poison = poison
        self._shares_fate = shares_fate
        self._barren_steps = barren_steps
        self._alone = cache(self._run_alone)

    def check_an_answer_has_exactly_max_tokens(self) -> None:
        """Whatever the budget, and a smaller one gives the beginning of the same answer."""
        longest = self._alone(0).token_ids
        for max_tokens in (1, 2, ANSWER_TOKENS):
            answer = self._answers([self._spec(0, max_tokens=max_tokens, num_draft_tokens=4)])[0]
            assert answer.finish == "length"
            assert answer.token_ids == longest[:max_tokens]

    def check_an_end_of_sequence_token_is_the_last_one(self) -> None:
        """It is emitted and ends the answer with "stop": as the first token, within, and as the last of the budget."""
        whole = self._alone(0).token_ids
        for eos in dict.fromkeys((whole[0], whole[ANSWER_TOKENS // 2], whole[-1])):
            expected = whole[: whole.index(eos) + 1]
            for max_tokens in (len(expected), ANSWER_TOKENS):
                spec = self._spec(0, max_tokens=max_tokens, num_draft_tokens=4)
                answer = self._answers([spec], frozenset({eos}))[0]
                assert (answer.token_ids, answer.finish) == (expected, "stop")

    def check_sequences_at_once_answer_as_if_alone(self) -> None:
        """All prompts together, with budgets that make them leave one after the other."""
        specs = [self._spec(i, max_tokens=ANSWER_TOKENS - 2 * (i % 3)) for i in range(len(self._prompts))]
        for i, answer in enumerate(self._answers(specs)):
            assert answer.token_ids == self._alone(i).token_ids[: answer.spec.max_tokens]

    def check_a_sequence_may_join_at_any_time(self) -> None:
        """One that joins others in mid-answer changes nothing for them nor for itself."""
        driver = Driver(self._make(NO_EOS))
        first = driver.add(self._spec(0))
        driver.until(lambda: len(first.token_ids) >= 3)
        second = driver.add(self._spec(1))
        driver.until(lambda: len(second.token_ids) >= 1 or first.ended)
        third = driver.add(self._spec(2))
        driver.finish()
        for i, answer in enumerate((first, second, third)):
            assert answer.token_ids == self._alone(i).token_ids

    def check_a_neighbours_settings_never_change_my_answer(self) -> None:
        """Greedy among hot, biased and penalised ones, before, between and after them."""
        for position in range(len(LOUD) + 1):
            loud = [self._spec(1 + i % 2, f"loud-{i}", sampling=s, max_tokens=6 + i) for i, s in enumerate(LOUD)]
            loud.insert(position, self._spec(0))
            assert self._answers(loud)[position].token_ids == self._alone(0).token_ids

    def check_a_seed_decides_whatever_runs_beside_it(self) -> None:
        """The same seed gives the same tokens, alone, among others, and drafted or not."""
        alone = self._answers([self._spec(0, sampling=SAMPLED)])[0].token_ids
        neighbours = [self._spec(1, "greedy", max_tokens=5), self._spec(2, "hot", sampling=LOUD[0])]
        for num_draft_tokens in (0, 3):
            spec = self._spec(0, sampling=SAMPLED, num_draft_tokens=num_draft_tokens)
            assert self._answers([*neighbours, spec])[-1].token_ids == alone

    def check_drafting_changes_no_token(self) -> None:
        """Greedy, and with penalties, for every draft length."""
        penalised = msgspec.structs.replace(SAMPLED, repetition_penalty=1.2, presence_penalty=0.5)
        for sampling in (GREEDY, penalised):
            plain, *drafted = (
                self._answers([self._spec(0, sampling=sampling, num_draft_tokens=n)])[0] for n in (0, 1, 2, 4)
            )
            assert plain.counters is None
            for answer in drafted:
                assert answer.token_ids == plain.token_ids

    def check_drafts_are_accounted_for_however_an_answer_ends(self) -> None:
        """By length, by an end-of-sequence token, or cancelled: :meth:`Answer.take` checks the sums."""
        whole = self._alone(0).token_ids
        specs = [self._spec(i, num_draft_tokens=4) for i in range(3)]
        for eos in (NO_EOS, frozenset({whole[ANSWER_TOKENS // 2]})):
            counted = [answer.counters for answer in self._answers(specs, eos)]
            assert len({counters is None for counters in counted}) == 1
            for counters, spec in zip(counted, specs, strict=True):
                assert counters is None or counters.accepted <= spec.max_tokens

    def check_small_steps_change_nothing(self) -> None:
        """Steps that may hold the device for a moment only give the same answers."""
        driver = Driver(self._make(NO_EOS))
        answers = [driver.add(self._spec(i)) for i in range(3)]
        driver.finish(limit_s=1e-6)
        for i, answer in enumerate(answers):
            assert answer.token_ids == self._alone(i).token_ids

    def check_an_answer_goes_on_behind_what_was_emitted_elsewhere(self) -> None:
        """Greedy, seeded and penalised, drafted or not: the rest is what the whole answer has there, and no more."""
        penalised = msgspec.structs.replace(
            SAMPLED, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.3
        )
        for sampling in (GREEDY, SAMPLED, penalised):
            whole = self._answers([self._spec(0, sampling=sampling)])[0].token_ids
            for emitted in (1, ANSWER_TOKENS // 2, ANSWER_TOKENS - 1):
                driver = Driver(self._make(NO_EOS))
                beside = driver.add(self._spec(1))
                spec = self._spec(0, sampling=sampling, num_draft_tokens=4, emitted=tuple(whole[:emitted]))
                rest = driver.add(spec)
                driver.finish()
                assert rest.token_ids == whole[emitted:]
                assert rest.finish == "length"
                assert beside.token_ids == self._alone(1).token_ids

    def check_every_step_that_gets_anywhere_is_counted(self) -> None:
        """Through a long prompt and its answer; by how much is the engine's affair."""
        long_prompt = tuple(token for prompt in self._prompts for token in prompt) * LONG_PROMPT_TOKENS
        driver = Driver(self._make(NO_EOS))
        answer = driver.add(SequenceSpec("long", long_prompt[: 4 * LONG_PROMPT_TOKENS], ANSWER_TOKENS, GREEDY))
        barren = 0
        while not answer.ended:
            before = driver.engine.computed_tokens
            driver.step(limit_s=1e-6)
            barren = 0 if driver.engine.computed_tokens > before else barren + 1
            assert barren <= self._barren_steps, "steps that compute nothing, though there is work"

    def check_a_cancelled_sequence_is_gone_within_a_step(self) -> None:
        """Before its first step, in the middle of its prompt, and in the middle of its answer."""
        long_prompt = tuple(token for prompt in self._prompts for token in prompt) * LONG_PROMPT_TOKENS
        prompts = {0: self._prompts[0], 1: long_prompt[:LONG_PROMPT_TOKENS], 3: self._prompts[1]}
        for steps, prompt in prompts.items():
            driver = Driver(self._make(NO_EOS))
            answer = driver.add(SequenceSpec("cancelled", prompt, ANSWER_TOKENS * 4, GREEDY, 4))
            for _ in range(steps):
                driver.step()
            assert not answer.ended
            driver.cancel(answer)
            driver.check_idle()

    def check_a_cancellation_leaves_the_others_alone(self) -> None:
        """Whoever runs beside a sequence that is cancelled answers as if alone."""
        driver = Driver(self._make(NO_EOS))
        answers = [driver.add(self._spec(0)), driver.add(self._spec(1)), driver.add(self._spec(2))]
        gone = driver.add(self._spec(1, "gone", sampling=LOUD[0], max_tokens=ANSWER_TOKENS * 4))
        driver.until(lambda: all(len(answer.token_ids) >= 2 for answer in answers))
        driver.cancel(gone)
        driver.finish()
        for i, answer in enumerate(answers):
            assert answer.token_ids == self._alone(i).token_ids

    def check_cancelling_what_is_not_there_does_nothing(self) -> None:
        """An id that is unknown, has ended, or was cancelled before."""
        driver = Driver(self._make(NO_EOS))
        driver.engine.cancel("nobody")
        ended = driver.add(self._spec(0))
        driver.finish()
        driver.engine.cancel(ended.spec.request_id)
        cancelled = driver.add(self._spec(1))
        driver.step()
        driver.cancel(cancelled)
        driver.engine.cancel(cancelled.spec.request_id)
        driver.check_idle()

    def check_an_id_in_use_is_refused(self) -> None:
        """With ValueError, and the sequence that uses it goes on."""
        driver = Driver(self._make(NO_EOS))
        first = driver.add(self._spec(0, "same"))
        for steps in (0, 2):
            for _ in range(steps):
                driver.step()
            try:
                driver.engine.add(self._spec(1, "same"))
            except ValueError:
                pass
            else:
                raise AssertionError("an id in use was accepted")
        driver.finish()
        assert first.token_ids == self._alone(0).token_ids

    def check_an_id_is_free_again_afterwards(self) -> None:
        """As soon as its sequence has ended or was cancelled, before any other step."""
        driver = Driver(self._make(NO_EOS))
        driver.add(self._spec(0, "same"))
        driver.finish()
        for steps in (0, 2):
            cancelled = driver.add(self._spec(0, "same"))
            for _ in range(steps):
                driver.step()
            driver.cancel(cancelled)
            again = driver.add(self._spec(1, "same"))
            driver.finish()
            assert again.token_ids == self._alone(1).token_ids

    def check_close_drops_everything_and_the_engine_can_be_used_again(self) -> None:
        """Waiting, running, in any number; what comes afterwards is answered as ever."""
        driver = Driver(self._make(NO_EOS))
        for i in range(3):
            driver.add(self._spec(i))
        driver.step()
        driver.engine.close()
        driver.open.clear()
        driver.check_idle()
        again = driver.add(self._spec(0))
        driver.finish()
        assert again.token_ids == self._alone(0).token_ids

    def check_an_error_ends_its_sequence_and_the_engine_goes_on(self) -> None:
        """One that fails does so in an emission; its neighbours answer, or at least end, and so does who comes next."""
        if self._poison is None:
            return
        driver = Driver(self._make(NO_EOS))
        before = driver.add(self._spec(0))
        driver.step()
        poisoned = driver.add(SequenceSpec("poisoned", self._poison, ANSWER_TOKENS, GREEDY))
        beside = driver.add(self._spec(1))
        driver.finish()
        assert poisoned.error is not None
        for i, answer in enumerate((before, beside)):
            failed_too = self._shares_fate and answer.error is not None
            assert failed_too or answer.token_ids == self._alone(i).token_ids
        after = driver.add(self._spec(2))
        driver.finish()
        assert after.token_ids == self._alone(2).token_ids

    def _spec(self, prompt: int, request_id: str | None = None, **settings: Any) -> SequenceSpec:
        defaults: dict[str, Any] = {"max_tokens": ANSWER_TOKENS, "sampling": GREEDY}
        return SequenceSpec(request_id or f"prompt-{prompt}", self._prompts[prompt], **{**defaults, **settings})

    def _run_alone(self, prompt: int) -> Answer:
        return self._answers([self._spec(prompt)])[0]

    def _answers(self, specs: Sequence[SequenceSpec], eos: frozenset[int] = NO_EOS) -> list[Answer]:
        """What ``specs`` bring, started together on a new engine."""
        driver = Driver(self._make(eos))
        answers = [driver.add(spec) for spec in specs]
        driver.finish()
        for answer in answers:
            assert answer.error is None, answer.error
        driver.engine.close()
        return answers


CHECKS: Final = tuple(name for name in vars(EngineSuite) if name.startswith("check_"))
"""Names of the methods of :class:`EngineSuite` that check something."""


def check_engine(
    make_engine: MakeEngine,
    prompts: Sequence[tuple[int, ...]],
    *,
    poison: tuple[int, ...] | None = None,
    shares_fate: bool = False,
) -> None:
    """Hold an engine to everything that :class:`lanes.engines.base.Engine` promises; see :class:`EngineSuite`.

    Raises:
        AssertionError: it does not do what it promises.
    """
    suite = EngineSuite(make_engine, prompts, poison=poison, shares_fate=shares_fate)
    for name in CHECKS:
        getattr(suite, name)()
