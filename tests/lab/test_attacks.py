"""The attacks on the HTTP/2 server under the bridge: that each kind can fail, and one of each that passes."""

import pytest

from bridge.emulator import Emulator
from lab.torture import attack_bytes
from lab.torture.attacks import attack_all, check_answered, check_failed, check_refused
from tests.kit.hostile import start_target
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
