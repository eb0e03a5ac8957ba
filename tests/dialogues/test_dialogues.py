"""Every conversation in this folder, held by a real session over a real socket."""

import asyncio
from base64 import b64encode
from pathlib import Path

import orjson
import pytest
from support.dialogue import SECRET, deliver, read
from support.dialogue_server import DialogueServer

from mailq.core.states import WIRE_STATES, Kind, State

FILES = sorted(Path(__file__).parent.glob("*.smtp"))
NOT_SPOKEN = {State.AUTHXOAUTH2}
SECRETS = (SECRET.encode(), b64encode(SECRET.encode()), b64encode(f"\0me\0{SECRET}".encode()))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
async def test_dialogue(path):
    dialogue = read(path)
    expected = dialogue.expected
    with DialogueServer(dialogue) as server:
        result = await deliver(server.addresses, dialogue.options)
        problem = await asyncio.to_thread(server.finish)

    record = result.as_json()
    seen = (record["state"], record["result"], record["code"], record["status"])
    wanted = (expected.state, expected.kind, expected.code or seen[2], expected.status or seen[3])
    assert seen == wanted, f"{record} ({problem})"
    assert problem is None, f"{problem}; {record}"
    assert record.get("in_doubt", False) is expected.doubt
    assert result.delivered is (expected.kind == "accepted")
    assert not [secret for secret in SECRETS if secret in orjson.dumps(record)]
    assert record["description"].replace("\n", "").isprintable()


def test_every_state_on_the_wire_is_ended_in_every_way():
    written = {(State(end.state), Kind(end.kind)) for end in (read(path).expected for path in FILES)}
    bad = [kind for kind in Kind if kind is not Kind.ACCEPTED]
    missing = {(state, kind) for state in WIRE_STATES - NOT_SPOKEN for kind in bad} - written

    assert not missing
    assert (State.MESSAGE, Kind.ACCEPTED) in written
