"""From single answers to cells, comparisons, tables and a picture."""

import sys

import msgspec
import pytest

from bench.cli import main
from bench.matrix import plan_of
from bench.matrix_figures import cells, comparisons, lane_comparisons, section
from bench.matrix_measure import _groups
from bench.matrix_plan import FULL, SHORT, service_file, subject_config, subjects
from bench.matrix_result import read, report, write
from policies.errors import ConfigError
from policies.load import load
from tests.unit.bench.matrices import ACTIVE, OFF, a_run, matrix, place, sample


def test_a_cell_has_medians_of_its_samples_and_the_sum_of_what_was_drafted():
    where = place("editing", concurrency=2)
    found = [
        sample(where, "on", number=number, tokens_per_s=rate, ttft_ms=10 * rate)
        for number, rate in enumerate((5, 9, 7))
    ]
    (cell,) = cells(found)
    assert (cell.place, cell.way, cell.answers, cell.tokens, cell.tokens_per_s) == (where, "on", 6, 21, 7)
    assert (cell.ttft_ms, cell.ttft_p95_ms) == (70, 90)
    spec = cell.speculative
    assert (spec.active, spec.reasons, spec.telemetry) == (True, {"approved": 6}, "native")
    assert (spec.rounds, spec.proposed, spec.accepted, spec.rejected, spec.ignored) == (60, 180, 120, 48, 12)
    assert (spec.acceptance_ratio, spec.mean_accepted_tokens) == (0.7143, 2.0)


def test_one_answer_that_did_not_speculate_makes_a_section_inactive_and_counts_that_nobody_gave_unavailable():
    low = msgspec.structs.replace(OFF, requested=True, reason="low_acceptance")
    spec = section([ACTIVE, low])
    assert (spec.active, spec.reasons, spec.telemetry) == (False, {"approved": 1, "low_acceptance": 1}, "native")
    silent = msgspec.structs.replace(ACTIVE, telemetry="unavailable", rounds=None, proposed=None)
    assert section([ACTIVE, silent]).telemetry == "unavailable"
    nothing = section([OFF])
    assert (nothing.active, nothing.acceptance_ratio, nothing.mean_accepted_tokens) == (False, None, None)


def test_a_ratio_is_of_pairs_a_median_over_rounds_and_a_geometric_mean_over_prompts():
    where, found = place(), []
    # The machine becomes ten times slower with each round, and the pairs do not notice; one pair is disturbed.
    for number, true_ratio in enumerate((1.0, 4.0)):
        for round_ in range(3):
            slow = 10.0 ** (3 - round_)
            disturbed = 100.0 if (number, round_) == (0, 1) else 1.0
            found += [
                sample(
                    where, "on", round_=round_, number=number, tokens_per_s=slow * true_ratio * disturbed, ttft_ms=50
                ),
                sample(
                    where, "off", round_=round_, number=number, tokens_per_s=slow, ttft_ms=100, text="ab"[round_ % 2]
                ),
            ]
    (one,) = comparisons(found)
    assert (one.speedup, one.ttft_ratio, one.answers, one.identical) == (2.0, 2.0, 6, 4)


def test_what_was_asked_beside_a_background_compares_lanes_and_nothing_else():
    run = a_run(batched_ttft_ms=250)
    assert {one.place.background for one in comparisons(run)} == {0}
    (one,) = lane_comparisons(run)
    assert (one.model, one.background, one.ttft_improvement) == ("m", 4, 2.5)
    assert (one.throughput_ttft_ms, one.interactive_ttft_ms) == (250, 100)


def test_groups_ask_every_prompt_and_are_all_of_one_size():
    assert list(_groups("abc", 1)) == [["a"], ["b"], ["c"]]
    assert list(_groups("abc", 2)) == [["a", "b"], ["c", "a"]]
    assert list(_groups("ab", 5)) == [["a", "b", "a", "b", "a"]]


def test_a_result_is_kept_as_json_a_table_and_a_picture_that_asks_no_other_host(tmp_path):
    result = matrix(a_run())
    write(result, tmp_path / "results" / "run")
    assert read(tmp_path / "results" / "run.json") == result
    text = (tmp_path / "results" / "run.md").read_text("utf-8")
    assert "| m | code | interactive | 1 | 2.00 | 1.00 | 1 of 1 |" in text
    assert "| m | code | 4 | 300 ms | 100 ms | 3.00 |" in text
    assert (
        "| m | chat | interactive | 1 | active | approved | 200.0 | 100 ms | 100 ms | 0.71 | 2.00 | 20 | 8 | 2 |"
        in text
    )
    assert "(run.svg)" in text
    drawn = (tmp_path / "results" / "run.svg").read_text("utf-8")
    assert "<svg" in drawn
    assert "<script" not in drawn


def test_without_the_library_there_is_no_picture_and_no_link_to_one(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write(matrix(a_run()), tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "run.md"]
    assert "run.svg" not in (tmp_path / "run.md").read_text("utf-8")


def test_what_is_no_result_is_refused_by_name(tmp_path):
    (tmp_path / "other.json").write_text('{"machine": 1}')
    for name in ("other.json", "missing.json"):
        with pytest.raises(ConfigError, match=f"{name}: is not a result of bench matrix"):
            read(tmp_path / name)


def test_a_report_without_a_background_has_no_table_of_lanes():
    assert "beside background" not in report(matrix([sample(place(), way) for way in ("on", "off")]))


# what is asked, and of which service


def planned(*options):
    import argparse

    from bench.matrix import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return plan_of(parser.parse_args(options))


def test_options_change_a_plan_and_make_it_ones_own():
    assert planned() == FULL
    assert planned("--short") == SHORT
    own = planned("--short", "--classes", "json", "--throughput", "2", "16", "--background", "0", "--tokens", "7")
    assert (own.profile, own.classes, own.throughput, own.background, own.max_tokens) == (
        "own",
        ("json",),
        (2, 16),
        0,
        7,
    )
    assert (own.rounds, own.interactive) == (SHORT.rounds, SHORT.interactive)


def test_a_short_plan_asks_the_throughput_lane_less_for_nothing_speculates_there():
    assert SHORT.of_lane("interactive") == SHORT.classes
    assert SHORT.of_lane("throughput") == ("code",)
    assert FULL.of_lane("throughput") == FULL.classes


def test_the_service_has_the_files_models_and_neither_its_keys_nor_its_collectors(tmp_path):
    (tmp_path / "approvals.yaml").write_text("approved: [{target: t, draft: d, evidence: e}]")
    file = tmp_path / "opta.yaml"
    file.write_text(
        "models: [{name: m, target: t, draft: d}, {name: n, target: t}]\n"
        "lanes: {interactive: {max_queue: 0}}\n"
        f"clients: [{{name: c, key_sha256: {'a' * 64}}}]\n"
        "telemetry: {otlp_endpoint: 'http://collector:4318'}\n"
        "speculation: {approvals_file: approvals.yaml}\n"
    )
    config = subject_config(file, None, None)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    plan = msgspec.structs.replace(SHORT, interactive=(1, 4))
    served = load(service_file(config, scratch, plan, on_trial=True))
    assert served.models == config.models
    assert (served.clients, served.telemetry.otlp_endpoint) == ((), None)
    assert served.lanes.interactive.max_queue == 4
    assert served.lanes.interactive.speculation.mode == "require"
    assert [entry.target for entry in served.speculation.approved] == ["t"]
    assert load(service_file(config, scratch, SHORT, on_trial=False)).lanes.interactive.speculation.mode == "auto"
    assert [subject.model for subject in subjects(config, ())] == ["m", "n"]
    assert [subject.draft for subject in subjects(config, ("n",))] == [None]


def test_a_model_that_is_not_configured_cannot_be_measured():
    with pytest.raises(ConfigError, match="--models: is not configured; found: 'other'; allowed: opta-tiny"):
        main(["matrix", "--models", "other"])
