"""Formulas of schedules, and how many attempts a schedule has room for."""

import orjson
import pytest
from pydantic import ValidationError

from mailq.config.delivery import DeliveryConfig
from mailq.core.answers.formula import LONGEST, from_formula, planned
from mailq.core.jobs.document import InvalidJobError
from mailq.core.jobs.job import Job

PLAIN = ("", "5", "600,1800")
WRONG = ("5*2^m", "0*2^n", "5*0^n", "5*2^n ", "5*2**n", "100000*2^n", "5*2^n,3600", "n")


def test_a_formula_is_emailengines_exponential_back_off():
    assert from_formula("5*2^n")[:10] == (10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120)
    assert from_formula("60*1^n") == (60,) * 100
    assert from_formula("60*1.5^n")[:3] == (90, 135, 202)
    for text in ("5*2^n", "99999*99.999^n", "1*1^n"):
        waits = from_formula(text)
        assert 1 <= min(waits) <= max(waits) <= LONGEST


def test_a_formula_stands_beside_the_list_in_configuration_and_jobs():
    config = DeliveryConfig(retries="5*2^n")
    assert config.retries == from_formula("5*2^n")
    assert DeliveryConfig.model_validate_json(config.model_dump_json()) == config
    body = orjson.dumps({"recipient": "b@b.test", "retries": "5*2^n"})
    assert Job.parse(body, limit=1000).retries == list(from_formula("5*2^n"))


@pytest.mark.parametrize("text", PLAIN + WRONG)
@pytest.mark.parametrize("strict", [False, True])
def test_a_text_that_is_no_formula_is_refused(text, strict):
    with pytest.raises(ValidationError, match="formula"):
        DeliveryConfig(retries=text)
    body = orjson.dumps({"recipient": "b@b.test", "retries": text})
    if text in PLAIN and not strict:  # see docs/tolerance.md
        assert Job.parse(body, limit=1000).warnings
        return
    with pytest.raises(InvalidJobError, match="formula") as refused:
        Job.parse(body, limit=1000, strict=strict)
    assert refused.value.pointer == "/retries"


def test_planned_attempts():
    assert planned(1, 0, 3600, (600, 1800), 1000) == 3
    assert planned(1, 0, 2400, (600, 1800), 1000) == 3
    assert planned(0, 0, 0, (600,), 1000) == 1
    assert planned(3, 0, -1, (600,), 1000) == 3
    assert planned(1, 0, 1e9, (1,), 1000) == 1000
    assert planned(5, 0, 1e9, (), 1000) == 5
