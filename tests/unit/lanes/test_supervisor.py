"""What a supervisor decides without a host."""

from lanes import wire
from lanes.states import HostEvent
from lanes.supervisor import HostSettings, Supervisor


def stats(**device_s):
    return wire.Stats(1, {lane: wire.LaneStats(spent_s, 1, 0) for lane, spent_s in device_s.items()}, 0, 0)


def test_the_device_time_of_a_lane_goes_on_after_a_host_is_lost():
    lane = wire.LaneSpec(1.0, 1)
    supervisor = Supervisor(HostSettings({"interactive": lane, "throughput": lane}, ()))
    seen_s = [supervisor.device_s["interactive"]]
    for life in range(2):
        supervisor._happened(HostEvent.SPAWN)
        supervisor._happened(HostEvent.READY)
        for spent_s in (0.5, 2.0):
            supervisor._received(stats(interactive=spent_s, throughput=life + 1.0))
            seen_s.append(supervisor.device_s["interactive"])
        supervisor._happened(HostEvent.DIED)
        seen_s.append(supervisor.device_s["interactive"])
    assert seen_s == [0.0, 0.5, 2.0, 2.0, 2.5, 4.0, 4.0]
    assert supervisor.device_s["throughput"] == 3.0
