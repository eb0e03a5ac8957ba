"""Results: what was mended is told in each of them, whatever became of the attempt."""

from datetime import UTC, datetime

import orjson
import pytest

from mailq.core.jobs.job import Job
from mailq.core.results.result import Trail, accepted, failed, pack, unpack, vanished
from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import Reply
from mailq.core.states import Kind, State

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
TAKEN = Reply(250, "2.0.0", "queued")
REFUSED = Failure(State.RCPTTO, Kind.ERROR, reply=Reply(550, "5.1.1", "unknown"))
JOB = Job.parse(orjson.dumps({"recipient": "a@a.test", "mime": "x"}), limit=1000)


@pytest.mark.parametrize(
    "end",
    [
        lambda trail: accepted(trail, TAKEN, time=NOW, attempt=1),
        lambda trail: failed(trail, REFUSED, time=NOW, attempt=1),
    ],
    ids=["accepted", "failed"],
)
def test_a_result_tells_what_was_mended_in_the_job_and_for_the_last_connection(end):
    trail = Trail()
    assert "warnings" not in end(trail).as_json()
    trail.warn("The job was mended.")
    trail.warn("The first server got it otherwise.", here=True)
    trail.forget_connection()
    assert end(trail).as_json()["warnings"] == ["The job was mended."]
    trail.warn("The second server got it otherwise.", here=True)
    assert end(trail).as_json()["warnings"] == ["The job was mended.", "The second server got it otherwise."]


def test_warnings_for_one_connection_alone_are_told_too():
    trail = Trail()
    trail.warn("This server got it otherwise.", here=True)
    assert accepted(trail, TAKEN, time=NOW, attempt=1).as_json()["warnings"] == ["This server got it otherwise."]


def test_the_journal_keeps_warnings():
    trail = Trail(warnings=("The job was mended.",))
    trail.warn("The server got it otherwise.", here=True)
    again = unpack(pack(accepted(trail, TAKEN, time=NOW, attempt=1)), JOB, NOW)
    assert again.as_json()["warnings"] == ["The job was mended.", "The server got it otherwise."]


def test_a_result_without_a_worker_tells_the_warnings_of_the_job():
    job = Job.parse(orjson.dumps({"recipient": "a@a.test"}), limit=1000)
    vars(job).update(warnings=("The job was mended.",))
    assert vanished(job, NOW).as_json()["warnings"] == ["The job was mended."]
