"""An admission on a clock that the test turns by hand."""

from opta_router.admission import Admission, Granted, MoveGranted, Rejected
from opta_router.lane_queue import LaneLimits
from opta_router.tickets import Ask


class Door:
    """An admission with its clock, and what became of everyone who asked."""

    def __init__(self, interactive=(1, 4, 30.0, None), throughput=(2, 4, 60.0, None)):
        self.now_s = 1000.0
        self.admission = Admission({"interactive": LaneLimits(*interactive), "throughput": LaneLimits(*throughput)})
        self.granted = []
        self.rejected = []
        self.moves = []

    def offer(self, client="", lane="interactive", **ask):
        ticket, effects = self.admission.offer(Ask(lane=lane, route="default", client=client, **ask), self.now_s)
        self.perform(effects)
        return ticket

    def confirmed(self, client="", **ask):
        ticket = self.offer(client, **ask)
        self.admission.confirm(ticket)
        return ticket

    def release(self, ticket):
        self.perform(self.admission.release(ticket, self.now_s))

    def withdraw(self, ticket):
        self.perform(self.admission.withdraw(ticket, self.now_s))

    def move(self, ticket, lane="throughput"):
        self.perform(self.admission.move(ticket, lane, self.now_s))

    def moved(self, ticket, lane="throughput"):
        self.perform(self.admission.moved(ticket, lane, self.now_s))

    def perform(self, effects):
        for effect in effects:
            {Granted: self.granted, MoveGranted: self.moves, Rejected: self.rejected}[type(effect)].append(effect)
        self.admission.check_integrity()

    def serve(self, count, each_s=0.0):
        """Confirm and release whoever is granted next, `count` times; the clients in the order of service."""
        served = []
        for _ in range(count):
            ticket = self.granted[-1].ticket
            self.admission.confirm(ticket)
            served.append(ticket.ask)
            self.now_s += each_s
            self.release(ticket)
        return served

    def stats(self, lane="interactive"):
        return self.admission.stats()[lane]
