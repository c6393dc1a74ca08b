from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.classify import Classification, RequestFacts, classify
from policies.errors import UnknownModel, UnknownPreset
from policies.explain import explain
from policies.load import load
from policies.quantities import Digest
from policies.schema import ClientConfig, Config, Lane, PresetConfig

Load = Callable[[str], Config]


def client(name: str, lane: Lane | None = None, may_hint: tuple[Lane, ...] | None = None) -> ClientConfig:
    return ClientConfig(name=name, key_sha256=Digest("0" * 64), lane=lane, may_hint=may_hint)


def config_with(*clients: ClientConfig, presets: tuple[PresetConfig, ...] = ()) -> Config:
    return msgspec.structs.replace(load(), clients=clients, presets=presets)


def ask(
    config: Config, lane: str | None = None, *, model: str = "auto", who: str | None = None, **body: str
) -> Classification:
    headers = {} if lane is None else {"x-opta-lane": lane}
    return classify(config, RequestFacts(model, headers, body, who))


CHAT = PresetConfig(name="chat", model="opta-tiny", lane="interactive")
PLAIN = PresetConfig(name="plain", model="opta-tiny")


def test_a_request_that_says_nothing_takes_the_default_lane() -> None:
    answer = ask(load())
    assert (answer.model, answer.lane, answer.route) == ("opta-tiny", "auto", "default")
    assert (answer.hint, answer.hint_ignored, answer.preset, answer.client) == (None, None, None, None)


@pytest.mark.parametrize("lane", ["interactive", "throughput", "auto"])
def test_the_lane_header_asks_for_any_of_the_three(lane: str) -> None:
    answer = ask(load(), lane)
    assert (answer.lane, answer.route, answer.hint) == (lane, "hint:x-opta-lane", f"x-opta-lane={lane}")


@pytest.mark.parametrize(
    ("headers", "body", "lane", "route"),
    [
        ({"x-smg-priority": "system"}, {}, "interactive", "hint:x-smg-priority"),
        ({"x-smg-priority": "bulk"}, {}, "throughput", "hint:x-smg-priority"),
        ({"x-claude-code-request-class": "main"}, {}, "interactive", "hint:x-claude-code-request-class"),
        ({"x-claude-code-request-class": "subagent"}, {}, "throughput", "hint:x-claude-code-request-class"),
        ({}, {"service_tier": "priority"}, "interactive", "hint:service_tier"),
        ({}, {"service_tier": "flex"}, "throughput", "hint:service_tier"),
        ({"x-opta-lane": " Interactive "}, {}, "interactive", "hint:x-opta-lane"),
        ({"x-opta-lane": "throughput", "x-smg-priority": "system"}, {}, "throughput", "hint:x-opta-lane"),
        ({"x-smg-priority": "bulk"}, {"service_tier": "priority"}, "throughput", "hint:x-smg-priority"),
        ({"service_tier": "flex"}, {"x-opta-lane": "interactive"}, "auto", "default"),
    ],
)
def test_the_first_hint_with_a_known_value_wins(
    headers: dict[str, str], body: dict[str, str], lane: str, route: str
) -> None:
    answer = classify(load(), RequestFacts("auto", headers, body))
    assert (answer.lane, answer.route, answer.hint_ignored) == (lane, route, None)


def test_a_value_that_no_rule_knows_is_passed_over_and_reported() -> None:
    answer = ask(load(), "warp", service_tier="flex")
    assert (answer.lane, answer.route) == ("throughput", "hint:service_tier")
    assert answer.hint_ignored == "x-opta-lane: no rule for 'warp'"


def test_what_is_reported_of_a_value_is_short_and_fit_for_a_header() -> None:
    ignored = ask(load(), service_tier="x\r\nSet-Cookie: é" + "y" * 1000).hint_ignored
    assert ignored is not None
    assert ignored.isascii()
    assert ignored.isprintable()
    assert len(ignored) < 100


@pytest.mark.parametrize(
    ("lane", "may_hint", "granted"),
    [
        (None, None, {"interactive", "throughput", "auto"}),
        ("interactive", None, {"interactive", "throughput", "auto"}),
        ("auto", None, {"throughput", "auto"}),
        ("throughput", None, {"throughput"}),
        ("interactive", (), set()),
        ("throughput", ("interactive",), {"interactive"}),
        ("throughput", ("auto",), {"auto"}),
        (None, ("interactive", "throughput"), {"interactive", "throughput", "auto"}),
    ],
)
def test_a_hint_counts_only_as_far_as_the_clients_policy_goes(
    lane: Lane | None, may_hint: tuple[Lane, ...] | None, granted: set[str]
) -> None:
    config = config_with(client("bob", lane, may_hint))
    answers = {asked: ask(config, asked, who="bob") for asked in ("interactive", "throughput", "auto")}

    assert {asked for asked, answer in answers.items() if answer.route == "hint:x-opta-lane"} == granted
    for asked, answer in answers.items():
        if asked not in granted:
            assert answer.hint_ignored == f"x-opta-lane: client bob may not ask for {asked}"
            assert answer.lane == (lane or "auto")


def test_a_forbidden_hint_gives_way_to_a_permitted_one() -> None:
    answer = ask(config_with(client("bob", "throughput")), "interactive", who="bob", service_tier="flex")
    assert (answer.lane, answer.route) == ("throughput", "hint:service_tier")
    assert answer.hint_ignored == "x-opta-lane: client bob may not ask for interactive"


@pytest.mark.parametrize("who", [None, "removed-by-a-reload"])
def test_once_clients_are_configured_an_unknown_one_gets_no_further_than_the_default(who: str | None) -> None:
    config = config_with(client("bob", "throughput", ("throughput",)))
    assert ask(config, "interactive", who=who).route == "default"
    assert ask(config, "throughput", who=who).route == "hint:x-opta-lane"


def test_a_sub_clients_name_in_a_header_grants_nothing() -> None:
    config = config_with(client("boss", "interactive"), client("bob", "throughput"))
    facts = RequestFacts("auto", {"x-client-id": "boss", "x-opta-lane": "interactive"}, {}, "bob")
    assert classify(config, facts).lane == "throughput"


def test_a_preset_decides_before_the_client_and_both_before_the_default() -> None:
    config = config_with(client("bob", "throughput"), presets=(CHAT, PLAIN))

    assert ask(config, model="chat", who="bob").route == "preset:chat"
    assert ask(config, model="plain", who="bob").route == "client:bob"
    assert ask(config, model="plain").route == "default"


def test_the_order_of_the_rules_is_the_configurations() -> None:
    config = config_with(presets=(CHAT,))
    routing = msgspec.structs.replace(config.routing, order=("preset", "hint", "default"))
    turned = msgspec.structs.replace(config, routing=routing)

    assert ask(config, "throughput", model="chat").route == "hint:x-opta-lane"
    assert ask(turned, "throughput", model="chat").route == "preset:chat"


def test_a_request_carries_its_client_and_preset_whichever_rule_decides() -> None:
    config = config_with(client("bob", "interactive"), presets=(CHAT,))
    answer = ask(config, "throughput", model="chat", who="bob")
    assert (answer.preset, answer.client) == (CHAT, config.clients[0])


def test_a_model_is_named_by_its_name_an_alias_or_a_preset() -> None:
    config = config_with(presets=(CHAT,))
    assert {ask(config, model=name).model for name in ("opta-tiny", "auto", "chat")} == {"opta-tiny"}


def test_the_preset_header_wins_over_the_model_of_the_body(load_text: Load) -> None:
    config = load_text(
        """\
        models: [{name: small, target: org/small}, {name: big, target: org/big, aliases: [huge]}]
        presets: [{name: think, model: huge, lane: throughput}, {name: talk, model: small}]
        """
    )
    for model in ("small", "big", "talk", ""):
        answer = classify(config, RequestFacts(model, {"x-opta-preset": "think"}))
        assert (answer.model, answer.route) == ("big", "preset:think")


@pytest.mark.parametrize("model", ["", "gpt-4", "OPTA-TINY", "opta-tiny ", "../opta-tiny"])
def test_an_unknown_model_is_an_error_that_lists_the_known_ones(model: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        ask(config_with(presets=(CHAT,)), model=model)
    assert caught.value.name == model
    assert caught.value.known == ("auto", "chat", "opta-tiny")
    assert "auto, chat, opta-tiny" in str(caught.value)


def test_an_unknown_model_is_an_error_beside_a_known_preset_too() -> None:
    with pytest.raises(UnknownModel):
        classify(config_with(presets=(CHAT,)), RequestFacts("gpt-4", {"x-opta-preset": "chat"}))


@pytest.mark.parametrize("preset", ["", "opta-tiny", "Chat"])
def test_an_unknown_preset_is_an_error_that_lists_the_known_ones(preset: str) -> None:
    with pytest.raises(UnknownPreset) as caught:
        classify(config_with(presets=(CHAT,)), RequestFacts("auto", {"x-opta-preset": preset}))
    assert caught.value.known == ("chat",)


def test_the_error_for_a_hostile_name_is_one_short_line() -> None:
    with pytest.raises(UnknownModel) as caught:
        ask(load(), model="a\nb" * 1000)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_explanation_lists_every_rule_in_order_and_which_decided() -> None:
    config = config_with(client("bob", "throughput"), presets=(CHAT,))
    lines = explain(config, RequestFacts("chat", {"x-opta-lane": "interactive"}, {"service_tier": "flex"}, "bob"))

    assert [(line.rule, line.outcome) for line in lines] == [
        ("hint:x-opta-lane", "ignored"),
        ("hint:x-smg-priority", "silent"),
        ("hint:x-claude-code-request-class", "silent"),
        ("hint:service_tier", "decides"),
        ("preset:chat", "not reached"),
        ("client:bob", "not reached"),
        ("default", "not reached"),
    ]
    assert lines[0].detail == "x-opta-lane: client bob may not ask for interactive"
    assert lines[4].detail == "preset chat has lane interactive"


_values = st.sampled_from([None, "interactive", "throughput", "auto", "bulk", "flex", "nonsense"])
_lanes = st.sampled_from([None, "interactive", "throughput", "auto"])
_lists = st.none() | st.sets(st.sampled_from(["interactive", "throughput", "auto"])).map(
    lambda lanes: tuple(sorted(lanes))
)


@given(
    hints=st.fixed_dictionaries(dict.fromkeys(("x-opta-lane", "x-smg-priority"), _values)),
    tier=_values,
    lane=_lanes,
    may_hint=_lists,
    model=st.sampled_from(["auto", "chat", "plain"]),
    who=st.sampled_from([None, "bob"]),
    order=st.permutations(["hint", "preset", "client"]).map(lambda rules: (*rules, "default")),
)
def test_the_explanation_always_agrees_with_the_classification(
    hints: dict[str, str | None],
    tier: str | None,
    lane: Lane | None,
    may_hint: tuple[Lane, ...] | None,
    model: str,
    who: str | None,
    order: tuple[str, ...],
) -> None:
    config = config_with(client("bob", lane, may_hint), presets=(CHAT, PLAIN))
    config = msgspec.structs.replace(config, routing=msgspec.structs.replace(config.routing, order=order))
    headers = {name: value for name, value in hints.items() if value is not None}
    facts = RequestFacts(model, headers, {} if tier is None else {"service_tier": tier}, who)

    answer, lines = classify(config, facts), explain(config, facts)

    assert [line.rule for line in lines if line.outcome == "decides"] == [answer.route]
    assert ("; ".join(line.detail for line in lines if line.outcome == "ignored") or None) == answer.hint_ignored
    if may_hint is not None and who == "bob" and answer.hint is not None and answer.lane != "auto":
        assert answer.lane in may_hint


def test_several_models_may_share_an_alias_and_all_of_them_are_candidates(load_text: Load) -> None:
    config = load_text("models: [{name: a, target: x, aliases: [any]}, {name: b, target: y, aliases: [any]}]")
    assert classify(config, RequestFacts("any")).candidates == ("a", "b")
    assert classify(config, RequestFacts("b")).candidates == ("b",)
