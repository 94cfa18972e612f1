"""The attacks on the HTTP/2 server under the bridge: that each kind can fail, and one of each that passes."""

import pytest

from bridge.emulator import Emulator
from lab.torture import attack_bytes
from lab.torture.attacks import attack_all, check_answered, check_failed, check_refused
from tests.kit.hostile import ATTACKS_MAX, MIB, Cost, Target, start_target
from tests.kit.http2 import END_STREAM, OPENING, build_fields, encode_block, encode_call, encode_headers

GOOD_CALL = OPENING + encode_call(attack_bytes.MESSAGE)
GET = [(name, b"GET" if name == b":method" else value) for name, value in build_fields()]
SAMPLES = {
    check_refused: (attack_bytes.BAD_FRAMES["PUSH_PROMISE"], GOOD_CALL),
    check_failed: (attack_bytes.PATHS["path: dots"], GOOD_CALL),
    check_answered: (attack_bytes.HARMLESS["gzip"], OPENING + encode_headers(encode_block(GET), 1, END_STREAM)),
}
"""Of each kind, bytes that pass and bytes that do not."""


@pytest.mark.parametrize("attack", SAMPLES, ids=lambda attack: attack.__name__)
async def test_attack_passes_or_names_the_case_that_does_not(attack):
    async with Emulator() as emulator, start_target(emulator) as target:

        async def find():
            target.forget()
            return target

        good, bad = SAMPLES[attack]
        passed = await attack_all("frames", attack, {"good": good}, find)
        assert (passed.ok, passed.tried) == (True, 1)
        failed = await attack_all("frames", attack, {"good": good, "bad": bad}, find)
        assert (failed.ok, failed.tried) == (False, 2)
        assert failed.outcome.startswith("bad: ")


async def test_attack_that_ends_the_process_says_so():
    async with Emulator() as emulator, start_target(emulator) as target:

        async def kill(target, _payload):
            target.bridge.process.kill()
            await target.bridge.wait_for_exit()
            raise ConnectionResetError

        async def find():
            return target

        result = await attack_all("frames", kill, {"one": b""}, find)
        assert (result.ok, result.outcome) == (False, "one: the process ended")


class Measured(Target):
    """A bridge that is unharmed, and whose resident set is as planned after each attack; the last value stays."""

    def __init__(self, *resident_mib: int) -> None:
        super().__init__(None, None, freed_s=0.01)
        self.plan = list(resident_mib)
        self.attacks = 0

    @property
    def cost(self) -> Cost:
        return Cost(self.plan[min(self.attacks, len(self.plan) - 1)] * MIB, 20)

    async def check_unharmed(self) -> None:
        pass

    async def attack(self) -> None:
        self.attacks += 1


async def test_new_heights_of_the_resident_set_are_no_leak():
    """A bridge on grpcio has left more after four floods of resets in a row, and stayed as it was after later ones."""
    target = Measured(70, 200, 240, 280, 320, 360, 400, 410)
    await target.check_cost_freed(target.attack)
    assert target.attacks == 7


async def test_growth_of_each_attack_is_a_leak():
    target = Measured(*range(70, 70 + 31 * 100, 31))
    with pytest.raises(AssertionError, match=r"^31 MiB and 0 files are not freed"):
        await target.check_cost_freed(target.attack)
    assert target.attacks == 1 + ATTACKS_MAX
