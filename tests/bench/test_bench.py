"""`python -m bench`, tiny: that it runs through, leaves nothing behind, and measures what it says."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.jobs import Jobs, message
from bench.measure import Figures, Phase
from bench.options import parse
from bench.report import print_json
from bench.usage import cpu_seconds, peak_rss_mb, tree
from mailq.core.content.mime import normalize
from mailq.core.jobs.job import Job

ROOT = Path(__file__).parents[2]

FIGURES = (
    *("rate", "worker_cpu_per_1000", "broker_cpu_per_1000", "sink_cpu_per_1000", "p50_ms", "p99_ms", "peak_rss_mb"),
    *("classify_known_us", "classify_unlike_us"),
)


def bench(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "bench", "--dir", str(tmp_path / "run"), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def processes_in(directory):
    """Return the command lines of processes that have to do with a directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = str((entry / "cwd").readlink())
        except OSError:
            continue
        if str(directory) in line or place.startswith(str(directory)):
            found.append(line)
    return found


def wait_until_gone(directory):
    """Wait until no process has to do with a directory; epmd is told to end, but not waited for."""
    deadline = time.monotonic() + 10
    while left := processes_in(directory):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def test_a_tiny_run_ends_with_all_figures_and_leaves_nothing_behind(tmp_path):
    done = bench(tmp_path, "--jobs", "2000", "--pace", "100", "--pace-seconds", "1", "--latency", "1")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["jobs"] == figures["delivered"] == 2000
    assert all(figures[name] > 0 for name in FIGURES)
    assert figures["p50_ms"] <= figures["p99_ms"]
    assert figures["round_trips_per_message"] > 1
    assert list((tmp_path / "run").iterdir()) == []
    wait_until_gone(tmp_path)


def test_a_directory_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "run").touch()
    done = bench(tmp_path, "--jobs", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"bench: no files can be made in {tmp_path / 'run'}: File exists\n"


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--jobs", "2000000"], ["--latency", "-1"], ["--vs", "exim"]])
def test_what_is_out_of_bounds_is_refused(arguments):
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    assert end.value.code == 2


@pytest.mark.parametrize("size", [2000, 10_240, 100_000])
def test_a_message_has_the_size_asked_for(size):
    assert size - 90 < len(normalize(message(size))) <= size


def test_jobs_are_jobs_of_their_own_spread_over_domains():
    made = [Job.parse(body, message_id=identity, limit=10**6) for identity, body in Jobs(2000, 3).take(7)]
    assert len({job.identity for job in made}) == len({str(job.recipient) for job in made}) == 7
    assert {job.recipient.domain for job in made} == {f"d{number}.bench.test" for number in range(3)}
    assert len({job.mime for job in made}) == 7
    assert all(f"To: {job.recipient}\n" in job.mime and job.document["id"] == job.identity for job in made)
    assert {len(job.mime) // 100 for job in made} == {len(message(2000)) // 100}
    times = [job.document["t"] for job in made]
    assert times == sorted(times)
    assert times[0] > 10**18


def test_jobs_taken_later_are_others():
    jobs = Jobs(2000, 1)
    first, second = [identity for identity, _ in jobs.take(3)], [identity for identity, _ in jobs.take(3)]
    assert not set(first) & set(second)


def test_percentiles_are_by_nearest_rank():
    phase = Phase(jobs=500, seconds=2.0, cpu={"worker": 0.5}, elsewhere=0.0)
    figures = Figures(
        phase, complete=True, pace=1, latencies=[float(x) for x in range(100, 0, -1)], live=None, peak_rss_mb=1
    )
    assert [figures.percentile(share) for share in (0.5, 0.99, 1)] == [50.0, 99.0, 100.0]
    assert phase.rate == 250
    assert phase.cpu_per_1000("worker") == 1.0


def test_of_several_rounds_the_best_of_each_counts(capsys):
    def round_of(mine, peer):
        mailq, postfix = (Phase(rate, 1.0, {"worker": 1.0}, 0.0) for rate in (mine, peer))
        figures = Figures(mailq, complete=True, pace=1, latencies=[1.0], live=None, peak_rss_mb=1)
        return figures, {"cached": postfix}

    print_json(parse(["--rounds", "2"]), [round_of(300, 100), round_of(200, 150)], {"known_us": 1, "unlike_us": 2})

    record = json.loads(capsys.readouterr().out)
    assert (record["rate"], record["postfix_rate"], record["ratio"]) == (300, 150, 2)
    assert record["rounds"] == {"mailq": [300, 200], "Postfix": [100, 150]}


_BURN = """
import time
ends = time.process_time() + 0.3
hoard = b"x" * 60_000_000
while time.process_time() < ends: pass
print("burnt", flush=True)
input()
"""

_PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=False)"


def test_the_cpu_and_memory_of_a_grandchild_count():
    process = subprocess.Popen(
        [sys.executable, "-c", _PARENT, _BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "burnt\n"
        assert len(tree(process.pid)) == 2
        alive = cpu_seconds(process.pid)
        assert 0.25 < alive < 3
        assert 60 < peak_rss_mb(process.pid) < 200
        process.stdin.write("\n")
        process.stdin.flush()
        process.wait(20)
    finally:
        process.kill()
        process.communicate()
    assert tree(process.pid) == []
    assert cpu_seconds(process.pid) == 0


def test_the_flow_alone_is_measured():
    arguments = [sys.executable, "-m", "bench.flow", "--jobs", "100", "--rounds", "2"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    least, _, rest = done.stdout.partition(" µs of CPU a message (rounds: ")
    assert int(least) == min(int(each) for each in rest.rstrip(")\n").split(", ")) > 0
