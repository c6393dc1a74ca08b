"""The configuration in force, and the file behind it."""

import anyio
import pytest

from opta_router.configuration import Configuration, FileState, Origin
from opta_router.errors import NoConfigFile
from opta_router.reloading import Settling
from policies.errors import ConfigError
from policies.load import load

pytestmark = pytest.mark.anyio

GOOD = "lanes: {interactive: {weight: 4}}\n"
BAD = "lanes:\n  interactive: {weight: heavy}\n"


class File:
    """A configuration read from a file, and everything that was put in force since."""

    def __init__(self, path, text=GOOD, **origin):
        self.path = path
        path.write_text(text)
        self.now_s = 1000.0
        self.configuration = Configuration(Origin(file=path, **origin), lambda: self.now_s)
        self.heard = []
        self.configuration.on_change(self.heard.append)

    async def reload(self, text):
        self.path.write_text(text)
        return await self.configuration.reload()

    @property
    def weight(self):
        return self.configuration.in_force.lanes.interactive.weight


@pytest.fixture
def file(tmp_path):
    return File(tmp_path / "opta.yaml")


async def test_a_reload_puts_the_file_in_force_and_tells_everyone(file):
    before, file.now_s = file.configuration.in_force, 2000.0
    result = await file.reload(GOOD.replace("4", "2"))
    assert (result.changed, file.weight) == (("lanes.interactive.weight",), 2.0)
    assert before.lanes.interactive.weight == 4.0, "whoever took the old one keeps it"
    assert file.heard == [file.configuration.in_force]
    assert file.configuration.loaded_at_s == 2000.0


@pytest.mark.parametrize("bad", [BAD, "", "lanes: [", "lane: {}", "presets: [{name: p, model: gone}]"])
async def test_a_bad_file_changes_nothing_and_is_kept_for_the_status_until_a_good_one_comes(file, bad, caplog):
    before, file.now_s = file.configuration.in_force, 2000.0
    with pytest.raises(ConfigError) as caught:
        await file.reload(bad)
    assert file.configuration.in_force is before
    assert (file.heard, file.configuration.loaded_at_s) == ([], 1000.0)
    refusal = file.configuration.last_refusal
    assert (refusal.at_s, refusal.error) == (2000.0, caught.value)
    assert [record.getMessage() for record in caplog.records if str(file.path) in record.getMessage()] == [
        f"not reloaded, the old configuration stays: {caught.value}"
    ]
    await file.reload(GOOD)
    assert file.configuration.last_refusal is None


async def test_a_file_that_is_gone_changes_nothing(file):
    file.path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        await file.configuration.reload()
    assert file.weight == 4.0


async def test_a_lane_set_by_hand_stays_so_until_the_next_reload(file):
    result = file.configuration.set_lane("interactive", {"weight": 9, "max_queue": 7})
    assert result.changed == ("lanes.interactive.weight", "lanes.interactive.max_queue")
    assert (file.weight, len(file.heard)) == (9.0, 1)
    reloaded = await file.configuration.reload()
    assert (file.weight, reloaded.changed) == (4.0, result.changed)


async def test_a_wrong_setting_by_hand_changes_nothing(file):
    before = file.configuration.in_force
    with pytest.raises(ConfigError):
        file.configuration.set_lane("interactive", {"weight": 9, "max_queue": -1})
    assert (file.configuration.in_force, file.heard) == (before, [])


async def test_what_the_command_line_said_outlives_a_reload(tmp_path):
    file = File(tmp_path / "opta.yaml", target="org/big", draft="org/small", host="::1", port=0)
    result = await file.reload(GOOD.replace("4", "2") + "server: {port: 9000}\n")
    config = file.configuration.in_force
    assert (result.changed, result.needs_restart) == (("lanes.interactive.weight",), ())
    assert (config.server.host, config.server.port, config.models[0].target) == ("::1", 0, "org/big")
    assert config.speculation.approved[0].draft == "org/small"


async def test_without_a_file_there_is_nothing_to_reload():
    configuration = Configuration(Origin())
    assert (configuration.in_force, configuration.file, configuration.file_state()) == (load(), None, None)
    with pytest.raises(NoConfigFile):
        await configuration.reload()


async def test_reloads_at_the_same_time_end_with_what_the_file_says_last(file):
    async with anyio.create_task_group() as tg:
        for weight in range(1, 9):
            file.path.write_text(GOOD.replace("4", str(weight)))
            tg.start_soon(file.configuration.reload)
    assert file.weight == 8.0
    assert file.heard[-1] is file.configuration.in_force


async def test_every_way_to_change_a_file_is_another_state_of_it(file):
    states = [file.configuration.file_state()]
    file.path.write_text(GOOD + "# longer\n")
    states.append(file.configuration.file_state())
    other = file.path.with_name("new.yaml")
    other.write_text(GOOD)
    other.replace(file.path)
    states.append(file.configuration.file_state())
    file.path.unlink()
    states.append(file.configuration.file_state())
    assert len(set(states)) == 4
    assert states[-1] is None
    assert file.configuration.handled_state == states[0]


def a_state(number):
    return FileState(mtime_ns=number, size_bytes=1, inode=1)


@pytest.mark.parametrize(
    ("looks", "reloads"),
    [
        ([0, 0, 0], []),
        ([1, 1, 1], [1]),
        ([1, 2, 3, 3, 3], [3]),
        ([1, 1, 2, 2], [1, 2]),
        ([1, 0, 0], []),
        ([None, 1, 1], [1]),
        ([None, None, None], [None]),
    ],
)
async def test_a_file_is_read_when_it_has_come_to_rest_and_once_in_each_state(looks, reloads):
    handled, settling, done = a_state(0), Settling(a_state(0)), []
    for look in looks:
        state = a_state(look) if look is not None else None
        if settling.settled(state, handled):
            handled = state
            done.append(look)
    assert done == reloads
