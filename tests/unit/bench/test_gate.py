"""Bounds, verdicts, and approvals that cite what they rest on."""

import msgspec
import pytest

from bench.cli import main
from bench.gates import GATES_FILE, judge, read_gates
from bench.matrix_plan import FULL, SHORT, Subject
from bench.matrix_result import write
from policies.errors import ConfigError
from policies.load import load
from policies.speculation import PairCapability, SpecReason, judge_pair, read_matrix, spec_policy
from tests.unit.bench.matrices import OFF, SUBJECT, a_run, active, matrix


def card(samples, **fields):
    (found,) = judge(matrix(samples, **fields), read_gates())
    return found


def failed(found):
    return [(bar.promise, bar.measured, bar.bound) for bar in found.failed]


# verdicts


def test_a_good_pair_is_ready():
    found = card(a_run())
    assert (found.verdict, found.failed, found.reasons) == ("READY", (), {})
    assert found.figures["interactive speedup"] == 2.0
    assert found.figures["acceptance ratio of the draft"] == 0.714


@pytest.mark.parametrize(
    ("change", "promises"),
    [
        ({"speedup": 0.8}, [("interactive speedup", 0.8, 1.0)]),
        ({"ttft_ms": 1000}, [("interactive TTFT kept", 0.1, 0.6)]),
        ({"kept": 0.5}, [("throughput tokens/s kept", 0.5, 0.6)]),
        ({"batched_ttft_ms": 90}, [("interactive TTFT improvement over the throughput lane", 0.9, 1.0)]),
        (
            {"report": active(2, 26)},
            [("acceptance ratio of the draft", 0.071, 0.35)],
        ),
    ],
)
def test_each_bound_fails_by_name_with_what_was_measured(change, promises):
    found = card(a_run(**change))
    assert found.verdict == "NOT READY"
    assert failed(found) == promises


def test_a_class_that_speculation_slows_down_is_named_though_the_mean_is_good():
    slow = a_run(speedup=0.5, classes=("json",))
    found = card([*a_run(speedup=3.0), *slow[:4]])
    assert failed(found) == [("interactive speedup, json", 0.5, 0.6)]


def test_what_prompt_lookup_proposed_says_nothing_of_the_draft():
    looked_up = active(100, 8, lookup_rounds=6, lookup_proposed=100, lookup_accepted=98)
    found = card(a_run(report=looked_up))
    assert failed(found) == [("acceptance ratio of the draft", 0.2, 0.35)]


def test_a_pair_that_did_not_speculate_is_not_ready_and_the_reasons_are_told():
    found = card(a_run(report=msgspec.structs.replace(OFF, requested=True, reason="low_acceptance")))
    assert found.verdict == "NOT READY"
    assert {bar.promise for bar in found.failed} == {
        "share of answers that speculated",
        "acceptance ratio of the draft",
    }
    assert found.reasons == {"low_acceptance": 3}


def test_what_was_not_measured_is_not_kept():
    interactive = [one for one in a_run() if one.place.lane == "interactive" and not one.place.background]
    found = card(interactive)
    assert {bar.promise for bar in found.failed} == {
        "throughput tokens/s kept",
        "interactive TTFT improvement over the throughput lane",
    }
    assert "throughput tokens/s kept" not in found.figures


def test_a_whole_matrix_is_held_against_its_own_bounds():
    assert card(a_run(speedup=1.2), plan=SHORT).verdict == "READY"
    assert failed(card(a_run(speedup=1.2), plan=FULL)) == [("interactive speedup", 1.2, 1.3)]


def test_a_known_pair_has_a_floor_of_its_own_and_a_model_without_a_draft_no_scorecard():
    embedded = Subject(model="m", target="embedded:target", draft="embedded:draft")
    few = active(11, 19)
    assert card(a_run(report=few)).verdict == "READY"
    assert failed(card(a_run(report=few), subjects=(embedded,))) == [("acceptance ratio of the draft", 0.367, 0.5)]
    assert judge(matrix(a_run(), subjects=(Subject(model="m", target="t", draft=None),)), read_gates()) == []


# the file


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("speedup: 1.3 ", "spedup: 1.3 ", "full.interactive.spedup: unknown key"),
        ("    ttft_kept: 0.6\n", "", "short.interactive.ttft_kept: is missing"),
        ("floor: 0.35", "floor: 2", "acceptance.floor: has a wrong type or value; found: 2"),
        ("floor: 0.5}", "floor: 0.5, why: x}", "acceptance.pairs[0].why: unknown key"),
    ],
)
def test_a_mistake_in_the_bounds_is_named_by_its_path(tmp_path, before, after, said):
    text = GATES_FILE.read_text("utf-8")
    assert before in text
    file = tmp_path / "gates.yaml"
    file.write_text(text.replace(before, after), "utf-8")
    with pytest.raises(ConfigError) as caught:
        read_gates(file)
    assert said in str(caught.value)


# the command, and approvals


@pytest.fixture
def result(tmp_path):
    write(matrix(a_run()), tmp_path / "good.json")
    write(matrix(a_run(speedup=0.5)), tmp_path / "bad.json")
    return lambda name: str(tmp_path / f"{name}.json")


def test_the_command_fails_with_each_gate_that_failed(result, capsys):
    assert main(["gate", result("good")]) == 0
    assert "m (org/target with draft org/draft): READY" in capsys.readouterr().out
    assert main(["gate", result("bad")]) == 1
    said = capsys.readouterr().out
    assert "NOT READY" in said
    assert "FAIL interactive speedup: 0.5 (bound 1)" in said
    assert "FAIL interactive speedup, chat: 0.5 (bound 0.6)" in said


def test_a_matrix_without_pairs_shows_nothing_and_fails(tmp_path, capsys):
    write(matrix(a_run(), subjects=(Subject(model="m", target="t", draft=None),)), tmp_path / "plain")
    assert main(["gate", str(tmp_path / "plain.json")]) == 1
    assert "no model has a draft" in capsys.readouterr().out


def test_a_pair_that_is_ready_is_approved_in_a_file_that_the_configuration_takes(tmp_path, result, capsys):
    approvals, config = tmp_path / "approvals.yaml", tmp_path / "opta.yaml"
    pair = PairCapability(target=SUBJECT.target, draft=SUBJECT.draft)
    config.write_text(f"models: [{{name: m, target: {SUBJECT.target}, draft: {SUBJECT.draft}}}]\n")
    assert judge_pair(pair, spec_policy(load(config))) == SpecReason.NOT_APPROVED
    assert main(["gate", result("good"), "--approve", str(approvals)]) == 0
    with config.open("a") as file:
        file.write("speculation: {approvals_file: approvals.yaml}\n")
    assert judge_pair(pair, spec_policy(load(config))) == SpecReason.APPROVED
    (entry,) = load(config).speculation.approved
    assert (entry.evidence, entry.measured.date) == (result("good"), "2026-01-02")
    assert entry.measured.machine == "a machine, cpu"
    assert entry.measured.figures["acceptance ratio of the draft"] == 0.714


def test_a_pair_that_is_not_ready_is_not_approved(tmp_path, result, capsys):
    approvals = tmp_path / "approvals.yaml"
    assert main(["gate", result("bad"), "--approve", str(approvals)]) == 1
    assert "not approved: m is not ready: interactive speedup" in capsys.readouterr().err
    assert not approvals.exists()


def test_an_approval_takes_the_place_of_the_pairs_older_one_and_leaves_the_others(tmp_path, result):
    approvals = tmp_path / "approvals.yaml"
    approvals.write_text(
        "approved:\n"
        "- {target: other, draft: d, evidence: e}\n"
        f"- {{target: {SUBJECT.target}, draft: {SUBJECT.draft}, evidence: older}}\n"
        "denied: [{family: f, reason: r}]\n"
    )
    assert main(["gate", result("good"), "--approve", str(approvals)]) == 0
    found = read_matrix(approvals)
    assert [(entry.target, entry.evidence) for entry in found.approved] == [
        ("other", "e"),
        (SUBJECT.target, result("good")),
    ]
    assert [entry.family for entry in found.denied] == ["f"]


def test_an_approval_without_evidence_is_bad_usage(tmp_path, capsys):
    assert main(["gate", "--approve", str(tmp_path / "approvals.yaml")]) == 2
    assert "an approval cites its evidence" in capsys.readouterr().err


def test_a_mistake_in_the_approvals_is_named_with_its_file_and_line(tmp_path):
    (tmp_path / "approvals.yaml").write_text("approved:\n- {target: t, draft: d}\n")
    config = tmp_path / "opta.yaml"
    config.write_text("speculation: {approvals_file: approvals.yaml}\n")
    with pytest.raises(ConfigError, match=r"approvals\.yaml:2: approved\[0\]\.evidence: is missing"):
        load(config)
    config.write_text("speculation: {approvals_file: none.yaml}\n")
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load(config)
