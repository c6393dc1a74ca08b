"""What a supervisor decides without a host."""

from lanes import wire
from lanes.states import HostEvent
from lanes.supervisor import HostSettings, Supervisor


def stats(**device_s):
    return wire.Stats(1, {lane: wire.LaneStats(spent_s, 1, 0) for lane, spent_s in device_s.items()}, 0, 0)


def test_the_device_time_of_a_lane_goes_on_after_a_host_is_lost():
    lane = wire.LaneSpec(1.0, 1)
    supervisor = Supervisor(HostSettings({"interactive": lane, "throughput": lane}, ()))
    seen_s = [supervisor.lanes["interactive"].device_s]
    for life in range(2):
        supervisor._happened(HostEvent.SPAWN)
        supervisor._happened(HostEvent.READY)
        for spent_s in (0.5, 2.0):
            supervisor._received(stats(interactive=spent_s, throughput=life + 1.0))
            seen_s.append(supervisor.lanes["interactive"].device_s)
        supervisor._happened(HostEvent.DIED)
        seen_s.append(supervisor.lanes["interactive"].device_s)
    assert seen_s == [0.0, 0.5, 2.0, 2.0, 2.5, 4.0, 4.0]
    assert supervisor.lanes["throughput"].device_s == 3.0


def test_the_counters_of_prompt_caches_go_on_after_a_host_is_lost_and_what_it_kept_is_gone():
    supervisor = Supervisor(HostSettings({}, ()))
    for life in range(2):
        supervisor._happened(HostEvent.SPAWN)
        supervisor._happened(HostEvent.READY)
        kept = {"both": wire.PromptCacheStats(2, 70, 5, 3, 1, 400), f"only in {life}": wire.PromptCacheStats(hits=1)}
        supervisor._received(wire.Stats(1, {}, 0, 0, kept))
        assert supervisor.prompt_caches["both"].size_bytes == 70
        supervisor._happened(HostEvent.DIED)
    assert supervisor.prompt_caches == {
        "both": wire.PromptCacheStats(0, 0, 10, 6, 2, 800),
        "only in 0": wire.PromptCacheStats(hits=1),
        "only in 1": wire.PromptCacheStats(hits=1),
    }
