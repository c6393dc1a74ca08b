"""What must hold between the values of a configuration, beyond each value's own type and bounds."""

from collections.abc import Iterable, Iterator

from policies.schema import Config
from policies.validation import Problem
from policies.yaml_source import KeyPath, shown


def problems(config: Config) -> Iterator[Problem]:
    """Every inconsistency, in the order of the file's sections. None: the configuration can be used."""
    yield from _models(config)
    yield from _lanes(config)
    yield from _presets(config)
    yield from _clients(config)
    yield from _hints(config)
    yield from _routing(config)
    yield from _speculation(config)
    yield from _memory(config)


def _twice(entries: Iterable[tuple[KeyPath, str]], what: str, *, hidden: bool = False) -> Iterator[Problem]:
    first: dict[str, KeyPath] = {}
    for path, value in entries:
        if value in first:
            yield Problem(path, f"is the second {what} of this value", None if hidden else shown(value), "another one")
        first.setdefault(value, path)


def _models(config: Config) -> Iterator[Problem]:
    if not config.models:
        yield Problem(("models",), "names no model", "an empty list", "at least one model")
    names: list[tuple[KeyPath, str]] = []
    for index, model in enumerate(config.models):
        names.append((("models", index, "name"), model.name))
        aliases: list[tuple[KeyPath, str]] = [
            (("models", index, "aliases", at), alias) for at, alias in enumerate(model.aliases)
        ]
        # Several models may share an alias; one model has it once.
        shared = {alias for other in config.models[:index] for alias in other.aliases}
        names += [entry for entry in aliases if entry[1] not in shared or model.aliases.count(entry[1]) > 1]
    # A preset is usable as "model", so it shares the models' names.
    names += [(("presets", index, "name"), preset.name) for index, preset in enumerate(config.presets)]
    yield from _twice(names, "model, alias or preset")


def _lanes(config: Config) -> Iterator[Problem]:
    if config.lanes.interactive.spill == "interactive":
        yield Problem(("lanes", "interactive", "spill"), "names its own lane", "'interactive'", "throughput or null")
    if config.lanes.throughput.spill == "throughput":
        yield Problem(("lanes", "throughput", "spill"), "names its own lane", "'throughput'", "interactive or null")


def _presets(config: Config) -> Iterator[Problem]:
    known = [name for model in config.models for name in (model.name, *model.aliases)]
    for index, preset in enumerate(config.presets):
        if preset.model not in known:
            yield Problem(("presets", index, "model"), "is not a model", shown(preset.model), ", ".join(known))


def _clients(config: Config) -> Iterator[Problem]:
    yield from _twice(((("clients", at, "name"), entry.name) for at, entry in enumerate(config.clients)), "client")
    keys: list[tuple[KeyPath, str]] = [
        (("clients", at, "key_sha256"), entry.key_sha256) for at, entry in enumerate(config.clients)
    ]
    if config.server.admin_key_sha256 is not None:
        keys.insert(0, (("server", "admin_key_sha256"), config.server.admin_key_sha256))
    yield from _twice(keys, "key", hidden=True)


def _hints(config: Config) -> Iterator[Problem]:
    for index, rule in enumerate(config.hints):
        if (rule.header is None) == (rule.body is None):
            found = "neither" if rule.header is None else "both"
            yield Problem(("hints", index), "reads one header or one body field", found, "either header or body")
        entries: list[tuple[KeyPath, str]] = [(("hints", index, "values", key), key.lower()) for key in rule.values]
        yield from _twice(entries, "hint value (case does not count)")
    sources: list[tuple[KeyPath, str]] = [
        (("hints", at), f"{'header' if rule.header else 'body'} {rule.source}")
        for at, rule in enumerate(config.hints)
        if rule.source
    ]
    yield from _twice(sources, "rule")


def _routing(config: Config) -> Iterator[Problem]:
    order = config.routing.order
    yield from _twice(((("routing", "order", at), rule) for at, rule in enumerate(order)), "rule")
    if not order or order[-1] != "default":
        found = f"the last is {order[-1]}" if order else "an empty list"
        yield Problem(("routing", "order"), "must end with default, which always decides", found, "…, default")


def _speculation(config: Config) -> Iterator[Problem]:
    for index, entry in enumerate(config.speculation.denied):
        if entry.family is None and entry.target is None and entry.draft is None:
            path = ("speculation", "denied", index)
            yield Problem(path, "denies everything", "no family, target or draft", "at least one of them")


def _memory(config: Config) -> Iterator[Problem]:
    limit, shed = config.memory.limit, config.memory.shed
    pairs = ((limit.fraction, shed.fraction), (limit.size_bytes, shed.size_bytes))
    if any(low is not None and high is not None and low > high for low, high in pairs):
        found = f"shed {shed.written()}, limit {limit.written()}"
        yield Problem(("memory", "shed"), "is below memory.limit", found, "the limit or more")
    kept = config.memory.prompt_caches
    if kept is None:
        return
    pairs = ((kept.fraction, limit.fraction), (kept.size_bytes, limit.size_bytes))
    if any(low is not None and high is not None and low > high for low, high in pairs):
        found = f"prompt_caches {kept.written()}, limit {limit.written()}"
        yield Problem(("memory", "prompt_caches"), "is above memory.limit", found, "the limit or less")
