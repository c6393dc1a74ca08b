"""What can go wrong between the front door and a host. Each class has a stable ``code``."""


class LaneError(Exception):
    """Base of all errors of this package."""

    code = "engine_error"


class WireError(LaneError):
    """The peer sent bytes that are not a frame of our protocol; the link is of no more use."""

    code = "wire_error"


class HostUnavailable(LaneError):
    """No host is ready: starting, restarting or draining. The request was not accepted; try again later."""

    code = "engine_unavailable"


class HostDied(LaneError):
    """The host went away while the request ran."""

    code = "engine_died"


class PoisonRequest(LaneError):
    """Host after host died of the request; it is not tried again."""

    code = "poison_request"


class HostFailedToStart(LaneError):
    """The host process ended, or was not ready, before its deadline."""

    code = "engine_start_failed"


class RequestRefused(LaneError):
    """The host refused one request; everything else goes on.

    ``code`` is one of :class:`lanes.wire.FailureCode`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ModelLoadFailed(LaneError):
    """A model could not be loaded: absent, malformed, unsafe, or its draft does not fit its target."""

    code = "model_load_failed"


class PairUnavailable(LaneError):
    """The model that a request names is configured, and cannot be loaded."""

    code = "model_unavailable"


class PairWaitedTooLong(LaneError):
    """The model was not resident within the time that the request could wait."""

    code = "deadline"


class PairQueueFull(LaneError):
    """Too many requests wait for models to become resident."""

    code = "queue_full"
