"""What the cases do not show of the kits: pings on a silent connection, and one result of any chunks."""

import asyncio
import json
import random
from contextlib import AsyncExitStack

import pytest

from ollmbridge_client import accumulate
from tests.clients.streams import build_stream
from tests.clients.vectors import encode, write_json
from tests.interop.clients import programs
from tests.interop.clients.hold import start_hold
from tests.interop.clients.place import start_place

pytestmark = pytest.mark.timeout(len(programs.KITS) * programs.BUILD_S + programs.RUN_S)

STREAMS = 500


async def test_kit_pings_a_connection_that_is_silent(tmp_path):
    kits = [kit for kit in sorted(programs.KITS) if not programs.find_missing(kit)]
    for kit in kits:
        await asyncio.to_thread(programs.build, kit)
    with start_place(tmp_path) as place:
        async with AsyncExitStack() as stack:
            holds = [await stack.enter_async_context(start_hold(place.variables["BRIDGE_ADDRESS"])) for _ in kits]
            calls = [
                asyncio.to_thread(
                    programs.run,
                    f"{programs.read_commands(kit)[2]} unary",
                    programs.CLIENTS / kit,
                    {"BRIDGE_ADDRESS": hold.address},
                )
                for kit, hold in zip(kits, holds, strict=True)
            ]
            lines = await asyncio.gather(*calls)  # with a deadline of 60 s each
    assert dict(zip(kits, lines, strict=True)) == {kit: {"unary": programs.read_expected(kit)["unary"]} for kit in kits}
    assert {kit for kit, hold in zip(kits, holds, strict=True) if hold.pings} == {*kits}


@pytest.mark.parametrize("kit", sorted(programs.KITS))
def test_kit_makes_of_any_chunks_what_the_python_kit_makes(kit, tmp_path):
    if lacking := programs.find_missing(kit):
        pytest.skip(f"this machine has no {' and no '.join(lacking)}")
    programs.build(kit)
    streams = {f"stream {seed}": build_stream(random.Random(seed)) for seed in range(STREAMS)}
    vectors = [{"name": name, "chunks": [encode(chunk) for chunk in chunks]} for name, chunks in streams.items()]
    (tmp_path / "accumulate.jsonl").write_text("".join(f"{json.dumps(vector)}\n" for vector in vectors))
    command = f"{programs.read_commands(kit)[2]} accumulate"
    lines = programs.run(command, programs.CLIENTS / kit, {"VECTORS": str(tmp_path)})
    expected = {name: write_json(accumulate(chunks)) for name, chunks in streams.items()}
    assert lines["accumulate"]["responses"] == expected
