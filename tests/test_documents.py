"""What the documents say, held against the program: links, tables of properties and metrics, examples."""

import re
import tomllib
from pathlib import Path
from unittest.mock import Mock

import pytest

from mailq.config import Config
from mailq.config.operations import WorkerConfig
from mailq.config.patterns import problems as pattern_problems
from mailq.core.answers.classify import Ruleset
from mailq.core.answers.classify import problems as rule_problems
from mailq.core.jobs.job import NOT_BUILT, Job
from mailq.core.results.schema import ResultRecord
from mailq.data import bounces
from mailq.edges.metrics import Fleet, Metrics
from mailq.edges.metrics.webhooks import HookMetrics
from mailq.service.supervisor import GRACE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += [page for folder in ("docs", "bench", "fuzz", "examples") for page in (ROOT / folder).rglob("*.md")]


REFERENCE = ROOT / "docs" / "reference"


def section(page, begin="", end=None):
    text = (REFERENCE / page).read_text("utf-8")
    return text[text.index(begin) : text.index(end) if end else None]


def anchors(page):
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}


def examples(page):
    return re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / page).read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for url in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if url.startswith("https://"):
            continue
        path, _, anchor = url.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), url
        assert not anchor or anchor in anchors(target), url


def test_the_readme_is_an_introduction():
    assert len(README.splitlines()) <= 200


def test_metrics_are_those_of_the_page():
    pages = (Metrics().page(), Fleet(1).page({}, {}), HookMetrics(("crm",), Mock()).page())
    exported = {
        line.split()[2] for _, page in pages for line in page.decode().splitlines() if line.startswith("# TYPE")
    }
    told = set(re.findall(r"mailq_[a-z_]*[a-z]", section("metrics.md"))) - {"mailq_process"}
    assert {name for name in exported if name.startswith("mailq_")} == told


def test_properties_are_those_of_the_pages():
    jobs = section("jobs.md")
    assert [name for name in Job.model_fields if f"`{name}`" not in jobs] == []
    refused = jobs[jobs.index("Understood, but not built yet") : jobs.index("**Give every job")]
    assert re.findall(r"`(\w+)`", refused[refused.index("asked for:") :]) == [*NOT_BUILT, "mime"]
    results = section("results.md", end="## States")
    names = [field.alias or name for name, field in ResultRecord.model_fields.items()]
    assert [name for name in names if f"`{name}`" not in results] == []


def test_tables_of_the_configuration_are_those_of_the_page():
    told = section("configuration.md", "| table | what it says |", "To try a configuration")
    assert {name.strip("[]").partition(".")[0] for name in re.findall(r"`(\[[^`]+\])`", told)} == set(
        Config.model_fields
    )


def test_examples_of_configuration_can_be_used():
    rules, patterns = examples("reference/answers.md")
    ruleset = Ruleset.load([rules, bounces()], ["answers.md", "bounces.toml"])
    assert list(rule_problems(ruleset)) == []
    assert pattern_problems(Config(**tomllib.loads(patterns)).patterns, ruleset) == []
    (hooks,) = examples("how-to/webhooks.md")
    assert set(Config(**tomllib.loads(hooks)).webhooks.endpoints) == {"crm", "archive"}


def test_who_stops_a_worker_lets_it_drain():
    longest = WorkerConfig().drain_timeout + GRACE
    (unit,) = re.findall(r"^TimeoutStopSec=(\d+)$", (ROOT / "etc" / "mailq.service").read_text("utf-8"), re.MULTILINE)
    compose = (ROOT / "docker-compose.yml").read_text("utf-8")
    worker = compose[compose.index("\n  worker:") : compose.index("\n  webhooks:")]
    (grace,) = re.findall(r"stop_grace_period: (\d+)s", worker)
    assert longest < int(unit) == int(grace)


ADDRESS = re.compile(r"[A-Za-z0-9._+-]+@([A-Za-z0-9.-]+\.[a-z]+)")
RESERVED = re.compile(r"(?:.*\.)?(?:test|example|invalid|localhost|example\.(?:com|net|org))")
"""Domains that nobody has (RFC 2606, RFC 6761)."""


def test_no_example_reaches_a_stranger():
    files = [*PAGES, *(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*.js")]
    for page in files:
        text = page.read_text("utf-8")
        assert [domain for domain in ADDRESS.findall(text) if not RESERVED.fullmatch(domain)] == [], page
    for start in (README, (ROOT / "docs/tutorials/first-mail.md").read_text("utf-8")):
        recipients = re.findall(r'"recipient": "([^"]+)"', start)
        assert recipients
        assert all(each.endswith(".test") for each in recipients)
        assert "mailqctl sink" in start[: start.index('"recipient"')]
