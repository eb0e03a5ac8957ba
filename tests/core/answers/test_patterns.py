"""Response patterns: each trigger, each action, how they add up, what must not be set, and their configuration."""

import tomllib
from itertools import permutations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mailq.config.classify import ruleset_of
from mailq.config.patterns import PatternConfig, PatternTables, patterns_of, problems
from mailq.core.answers.actions import (
    FLAGS,
    NOTHING,
    Actions,
    Edit,
    apply_to_document,
    apply_to_result,
    message_trouble,
    parse_pointer,
    result_trouble,
)
from mailq.core.answers.flags import Flags
from mailq.core.answers.patterns import Facts, Pattern, PatternError, Patterns, containing, exactly, wildcard
from mailq.core.jobs.job import Job
from mailq.core.states import Kind, State

RULES = ruleset_of(())

FACTS = {
    "state": State.RCPTTO,
    "kind": Kind.ERROR,
    "code": 451,
    "status": "4.7.1",
    "text": "Try again later [TSS04]",
    "number": 51,
    "source": "192.0.2.1",
    "pool": "bulk",
    "domain": "example.com",
    "hosts": ("mta5.am0.yahoodns.net", "mx.example.com"),
    "tags": ("news", "customer-7"),
}


def facts(**others):
    return Facts(**{**FACTS, **others})


def table(**keys):
    return PatternConfig(**{"id": "p", **keys})


def matches(facts, **keys):
    return patterns_of([table(**keys)]).match(facts).patterns == ("p",)


def matched(*tables, **others):
    return patterns_of([table(**{"id": str(place), **keys}) for place, keys in enumerate(tables)]).match(
        facts(**others)
    )


@pytest.mark.parametrize(
    ("keys", "text", "fits"),
    [
        ({"exact": "try AGAIN later"}, "Try again later", True),
        ({"exact": "Try again later"}, "Try again later.", False),
        ({"exact": "Try again later"}, "Please: Try again later", False),
        ({"exact": "Try again later"}, "Try again\nlater", True),
        ({"exact": "a.c"}, "abc", False),
        ({"contains": "TSS04"}, "x [tss04] y", True),
        ({"contains": "[TSS04]"}, "TSS04", False),
        ({"contains": "no such user"}, "no such\nuser here", True),
        ({"contains": "größe"}, "die GRÖSSE", False),
        ({"contains": "größe"}, "die GRÖßE", True),
        ({"wildcard": "try*later"}, "Try again\nlater", True),
        ({"wildcard": "try*later"}, "Try again later.", False),
        ({"wildcard": "*tss?4*"}, "x TSS04 y", True),
        ({"wildcard": "*tss?4*"}, "x TSS4 y", False),
        ({"wildcard": "[ab]c"}, "bc", True),
        ({"wildcard": "[!ab]c"}, "bc", False),
        ({"wildcard": "[!ab]c"}, "xc", True),
        ({"wildcard": "[a-c]d"}, "bd", True),
        ({"wildcard": "[]]d"}, "]d", True),
        ({"wildcard": "[a"}, "[a", True),
        ({"wildcard": "a+(b)"}, "a+(b)", True),
        ({"wildcard": "[^a]"}, "^", True),
        ({"wildcard": r"[\d]"}, "7", False),
        ({"regex": r"tss0[45]\b"}, "x TSS05 y", True),
        ({"regex": r"tss0[45]\b"}, "x TSS056 y", False),
        ({"regex": r"^try.*later$"}, "Try again\nlater", True),
        ({"regex": "(?-i)Try"}, "try", False),
    ],
)
def test_text_triggers(keys, text, fits):
    assert matches(facts(text=text), **keys) is fits


@pytest.mark.parametrize(
    ("keys", "others"),
    [
        ({"states": ["rcptto", "data"]}, {"state": State.MAILFROM}),
        ({"kinds": ["error"]}, {"kind": Kind.TIMEOUT}),
        ({"codes": [451]}, {"code": 452}),
        ({"codes": ["45x"]}, {"code": 421}),
        ({"codes": ["4xx", 550]}, {"code": 554}),
        ({"codes": ["4x1"]}, {"code": 450}),
        ({"statuses": ["4.7.1"]}, {"status": "4.7.10"}),
        ({"statuses": ["4.7"]}, {"status": "4.70.1"}),
        ({"statuses": ["4"]}, {"status": "5.7.1"}),
        ({"classes": [51, 52]}, {"number": 50}),
        ({"classes": [51]}, {"number": None}),
        ({"sources": ["192.0.2.1"]}, {"source": "192.0.2.2"}),
        ({"sources": ["192.0.2.1"]}, {"source": None}),
        ({"pools": ["bulk"]}, {"pool": None}),
        ({"domains": ["EXAMPLE.com"]}, {"domain": "sub.example.com"}),
        ({"mx": ["yahoodns.net"]}, {"hosts": ("notyahoodns.net",)}),
        ({"mx": ["yahoodns.net"]}, {"hosts": ()}),
        ({"tags": ["news", "x"]}, {"tags": ("n",)}),
        ({"contains": "later", "codes": ["4xx"], "tags": ["news"]}, {"tags": ()}),
        ({"contains": "later", "codes": ["4xx"], "tags": ["news"]}, {"code": 550}),
        ({"contains": "later", "codes": ["4xx"], "tags": ["news"]}, {"text": "now"}),
    ],
)
def test_other_triggers(keys, others):
    assert matches(facts(), **keys)
    assert not matches(facts(**others), **keys)


def test_a_pattern_without_triggers_is_for_every_ending():
    assert matches(facts(text="", code=250, state=State.PROCESS))


def test_no_pattern_no_effect():
    assert Patterns().match(facts()) is NOTHING
    assert patterns_of([table(contains="x y z", fail=True)]).match(facts()) == NOTHING
    assert NOTHING.over(Flags(fatal=True)) == Flags(fatal=True)


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("value", [True, False])
def test_flags(flag, value):
    effects = matched({flag: value})
    inferred = Flags(**dict.fromkeys(FLAGS, not value))
    assert effects.over(inferred) == Flags(**{**dict.fromkeys(FLAGS, not value), flag: value})
    assert apply_to_result({}, effects) == {flag: value, "patterns": ["0"]}


def test_retry_goes_on_and_fail_gives_up():
    retry, fail = matched({"retry": 77}), matched({"fail": True})
    assert (retry.retry, retry.gives_up, retry.decider, retry.over(Flags(fatal=True)).fatal) == (77, False, "0", False)
    assert (fail.fail, fail.gives_up, fail.decider) == (True, True, "0")
    assert matched({"strange": True}).gives_up is None
    assert matched({"strange": True}).decider == ""


def test_all_that_match_add_up():
    effects = matched(
        {"contains": "TSS04", "retry": 60, "add_tags": ["slow"]},
        {"contains": "nothing of this", "fallback": True},
        {"codes": ["4xx"], "strange": True, "set_result": {"/a": 1}},
        {"mx": ["yahoodns.net"], "individual": False, "set_result": {"/b": 2}, "add_tags": ["yahoo"]},
    )
    assert effects.patterns == ("0", "2", "3")
    assert (effects.retry, effects.strange, effects.individual, effects.fallback) == (60, True, False, None)
    assert effects.result == ((("a",), 1), (("b",), 2))
    assert effects.tags.of(["x"]) == ["x", "slow", "yahoo"]


@pytest.mark.parametrize(
    ("more", "less", "wanted"),
    [
        ({"retry": 60}, {"retry": 90}, (60, False, None)),
        ({"retry": 60}, {"fail": True}, (60, False, None)),
        ({"retry": 60}, {"fatal": True}, (60, False, None)),
        ({"fatal": False}, {"fail": True}, (None, False, False)),
        ({"fatal": False}, {"retry": 90}, (90, False, False)),
        ({"fail": True}, {"retry": 90}, (None, True, None)),
        ({"fail": True}, {"fatal": False}, (None, True, None)),
        ({"fail": True}, {"fatal": True}, (None, True, True)),
        ({"fatal": True}, {"retry": 90}, (None, False, True)),
        ({"strange": False}, {"retry": 90}, (90, False, None)),
    ],
)
def test_what_a_more_important_one_decided_holds(more, less, wanted):
    for tables in ([{**less, "priority": 1}, {**more, "priority": 5}], [more, less]):
        effects = matched(*tables)
        assert len(effects.patterns) == 2
        assert (effects.retry, effects.fail, effects.fatal) == wanted
        first = next(place for place, keys in enumerate(tables) if more.items() <= keys.items())
        assert effects.decider == str(first if "strange" not in more else 1 - first)


def test_edits_of_one_place_are_the_more_important_ones():
    effects = matched(
        {"set_message": {"/a": 1, "/x/y": 1}, "set_result": {"/r": 1}},
        {"set_message": {"/a/b": 2, "/x/z": 2}, "set_result": {"/r": 2}},
        {"set_message": {"/x": 3, "/ab": 3}},
    )
    assert apply_to_document({}, effects) == {"a": 1, "x": {"y": 1, "z": 2}, "ab": 3}
    assert apply_to_result({}, effects) == {"r": 1, "patterns": ["0", "1", "2"]}


def test_priority_then_order_then_final():
    tables = [{"priority": -1}, {}, {"priority": 5}, {}, {"priority": 5}]
    assert matched(*tables).patterns == ("2", "4", "1", "3", "0")
    tables[1]["final"] = True
    assert matched(*tables).patterns == ("2", "4", "1")
    tables[1]["contains"] = "not in the reply"
    assert matched(*tables).patterns == ("2", "4", "3", "0")


@pytest.mark.parametrize(
    ("edit", "values", "changed"),
    [
        (Edit(), ["a"], ["a"]),
        (Edit(add=("b", "a")), ["a"], ["a", "b"]),
        (Edit(remove=("a", "z")), ["a", "b"], ["b"]),
        (Edit(set=("c",)), ["a"], ["c"]),
        (Edit(set=("c",), add=("d",)), ["a"], ["c", "d"]),
        (Edit(set=()), ["a"], []),
        (Edit(add=("b",)).then(Edit(remove=("b", "a"))), ["a"], ["b"]),
        (Edit(remove=("b",)).then(Edit(add=("b",))), ["a", "b"], ["a"]),
        (Edit(set=("c",)).then(Edit(set=("d",), remove=("c",))), [], ["c"]),
        (Edit(add=("b",)).then(Edit(set=("d",))), ["a"], ["d", "b"]),
        (Edit(remove=("d",)).then(Edit(set=("d", "e"))), ["a"], ["e"]),
    ],
)
def test_lists_are_edited(edit, values, changed):
    assert edit.of(values) == changed


@pytest.mark.parametrize(
    ("keys", "document", "changed"),
    [
        ({"set_message": {"/maxattempts": 3}}, {"x": 1}, {"x": 1, "maxattempts": 3}),
        ({"set_message": {"/a/b": 1}}, {"a": {"c": 2}}, {"a": {"c": 2, "b": 1}}),
        ({"set_message": {"/a/b/c": 1}}, {}, {"a": {"b": {"c": 1}}}),
        ({"set_message": {"/a/1": "x"}}, {"a": [1, 2, 3]}, {"a": [1, "x", 3]}),
        ({"set_message": {"/a/1/b": "x"}}, {"a": [1, {}]}, {"a": [1, {"b": "x"}]}),
        ({"set_message": {"/a/-": 4}}, {"a": [1]}, {"a": [1, 4]}),
        ({"set_message": {"/a/7": 4}}, {"a": [1]}, {"a": [1]}),
        ({"set_message": {"/a/x": 4}}, {"a": [1]}, {"a": [1]}),
        ({"set_message": {"/a/b": 4}}, {"a": "text"}, {"a": "text"}),
        ({"set_message": {"/a/b": 4}}, {"a": None}, {"a": None}),
        ({"set_message": {"/a~1b~0c": 4}}, {}, {"a/b~c": 4}),
        ({"add_tags": ["b"]}, {}, {"tags": ["b"]}),
        ({"add_tags": ["b"]}, {"tags": None}, {"tags": ["b"]}),
        ({"remove_tags": ["b"]}, {"tags": ["a", "b"]}, {"tags": ["a"]}),
        ({"set_tags": []}, {"tags": ["a", "b"]}, {"tags": []}),
        ({"add_ips": ["192.0.2.9"]}, {"ips": ["192.0.2.1"]}, {"ips": ["192.0.2.1", "192.0.2.9"]}),
        ({"add_ips": ["192.0.2.9"]}, {}, {"ips": ["192.0.2.7", "192.0.2.8", "192.0.2.9"]}),
        ({"set_ips": ["192.0.2.9"]}, {"ips": ["192.0.2.1"]}, {"ips": ["192.0.2.9"]}),
        ({"set_ips": ["192.0.2.9"]}, {}, {"ips": ["192.0.2.9"]}),
        ({"remove_ips": ["192.0.2.7"]}, {}, {"ips": ["192.0.2.8"]}),
        ({"remove_ips": ["192.0.2.1"]}, {"ips": ["192.0.2.1"]}, {"ips": ["192.0.2.1"]}),
        ({"strange": True}, {"ips": ["192.0.2.1"]}, {"ips": ["192.0.2.1"]}),
    ],
)
def test_the_job_is_changed_for_its_next_attempt(keys, document, changed):
    before = orjson.dumps(document)
    assert apply_to_document(document, matched(keys), ["192.0.2.7", "192.0.2.8"]) == changed
    assert orjson.dumps(document) == before


def test_where_the_sources_are_not_known_none_is_added_or_removed():
    assert apply_to_document({}, matched({"add_ips": ["192.0.2.9"]})) == {}
    assert apply_to_document({}, matched({"remove_ips": ["192.0.2.9"]})) == {}
    assert apply_to_document({}, matched({"set_ips": ["192.0.2.9"]})) == {"ips": ["192.0.2.9"]}


def test_the_result_tells_what_patterns_made_of_it():
    effects = matched({"fatal": True, "set_result": {"/bounce-type": "inactive", "/own/depth": 2}})
    record = {"code": 450}
    assert apply_to_result(record, effects) == {
        "code": 450,
        "fatal": True,
        "patterns": ["0"],
        "bounce-type": "inactive",
        "own": {"depth": 2},
    }
    assert record == {"code": 450}
    assert apply_to_result(record, NOTHING) is record
    assert apply_to_document(record, NOTHING) is record


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab01-"), inner, max_size=3),
    max_leaves=12,
)
PATHS = st.lists(st.sampled_from([*"ab019-", "x y", "~", "²", "9" * 30]), min_size=1, max_size=8)


@given(st.dictionaries(st.sampled_from("ab01"), JSON), PATHS, JSON)
def test_any_edit_of_any_document_is_made_or_left(document, path, value):
    before = orjson.dumps(document)
    pointer = "/" + "/".join(part.replace("~", "~0") for part in path)
    assert parse_pointer(pointer) == tuple(path)
    changed = apply_to_document(document, Actions(message=((tuple(path), value),), patterns=("p",)))
    assert orjson.dumps(document) == before
    node = changed
    for part in path if changed != document else ():
        node = node[part] if isinstance(node, dict) else node[-1 if part == "-" else int(part)]
    assert node == value or changed == document


@given(
    st.text(st.characters(exclude_categories=[]), max_size=300),
    st.sampled_from(list(State)),
    st.sampled_from(list(Kind)),
    st.integers(200, 599),
)
def test_matching_never_raises(text, state, kind, code):
    patterns = patterns_of([table(id="a", regex="(a+)+$"), table(id="b", wildcard="*x?[!y]*", codes=["4xx"])])
    assert set(patterns.match(Facts(state, kind, code, "", text)).patterns) <= {"a", "b"}


@given(st.text(min_size=1, max_size=60), st.sampled_from(["", "x", "<<", " tail"]))
def test_every_text_matches_itself(text, tail):
    text = " ".join(text.split()) or "x"
    for make, fits in ((exactly, not tail.strip()), (containing, True), (wildcard, None)):
        pattern = Pattern("p", Actions(strange=True), text=make(text))
        found = Patterns([pattern]).match(facts(text=text + tail)).patterns == ("p",)
        assert fits is None or found is fits


def test_a_hostile_reply_is_matched_in_linear_time():
    patterns = patterns_of([table(id=f"p{n}", regex=f"(a|a?)+{n}$") for n in range(300)])
    assert patterns.match(facts(text="a" * 4000)) == NOTHING
    assert patterns.match(facts(text="a" * 4000 + "299")).patterns[-1] == "p299"


def test_equal_texts_are_matched_for_each_of_their_patterns():
    assert matched({"contains": "later", "codes": ["5xx"]}, {"contains": "later"}).patterns == ("1",)


def test_an_expression_that_is_none_names_its_pattern():
    with pytest.raises(PatternError, match="p: is no regular expression of RE2: "):
        Patterns([Pattern("p", NOTHING, text="(")])


def refused(**keys):
    with pytest.raises(ValidationError) as trouble:
        table(**keys)
    return trouble.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"id": "a b"}, "pattern"),
        ({"colour": 1}, "Extra"),
        ({"regex": "(?=x)"}, "is no regular expression of RE2: invalid perl operator"),
        ({"regex": r"(x)\1"}, "is no regular expression of RE2: invalid escape"),
        ({"contains": " "}, "pattern"),
        ({"exact": ""}, "pattern"),
        ({"regex": "x" * 1001}, "at most 1000"),
        ({"exact": "a", "regex": "b"}, "more than one of exact"),
        ({"codes": ["6xx"]}, "is no code"),
        ({"codes": [45]}, "is no code"),
        ({"states": ["rcpt"]}, "Input should be"),
        ({"sources": ["localhost"]}, "does not appear to be an IPv4 or IPv6"),
        ({"retry": 60, "fail": True}, "has retry and fail: to go on and to give up"),
        ({"retry": 60, "fatal": True}, "has retry and fatal = true"),
        ({"fail": True, "fatal": False}, "has fatal = false and fail"),
        ({"retry": 0}, "greater"),
        ({"set_ips": []}, "at least 1"),
        ({"add_tags": ["a\nb"]}, "pattern"),
        ({"add_tags": ["a"], "remove_tags": ["a"]}, 'has "a" in remove_tags and in add_tags or set_tags'),
        ({"set_message": {"maxattempts": 3}}, "is not a JSON pointer"),
        ({"set_message": {"": {}}}, "is not a JSON pointer"),
        ({"set_message": {"/a~2": 3}}, 'has a "~"'),
        ({"set_message": {"/1/2/3/4/5/6/7/8/9": 3}}, "deeper than 8"),
        ({"set_message": {"/a": 1, "/a/b": 2}}, "within another place"),
        ({"set_message": {"/results": []}}, "is the history"),
        ({"set_message": {"/results/0/code": 250}}, "is the history"),
        ({"set_message": {"/recipient": "x@y.test"}}, "whom the job is for"),
        ({"set_message": {"/envelope": "x@y.test"}}, "who gets the bounces"),
        ({"set_message": {"/mime": "x"}}, "is the message"),
        ({"set_message": {"/nextattempt": {"time": "2030-01-01 00:00:00"}}}, "use retry"),
        ({"set_message": {"/tags": ["x"]}}, "use add_tags"),
        ({"set_message": {"/maxattempts": "three"}}, "would make the job invalid: /maxattempts"),
        ({"set_message": {"/retries": [0]}}, "would make the job invalid: /retries/0"),
        ({"set_message": {"/inlinecss": True}}, "would make the job invalid"),
        ({"set_message": {"/smarthost/port": 587}}, 'set "/smarthost" as a whole'),
        ({"set_message": {"/own": "x" * 10_001}}, "larger than 10000 octets"),
        ({"set_message": tomllib.loads('"/own" = 2030-01-01')}, "write times as text"),
        ({"set_result": {"/code": 250}}, "says what happened"),
        ({"set_result": {"/from": "x"}}, "says what happened"),
        ({"set_result": {"/class": 10}}, "says what happened"),
        ({"set_result": {"/fatal": True}}, "use fatal = true or false"),
        ({"examples": ["no such user"]}, 'is no reply that refuses, such as "550'),
        ({"examples": ["550 a\n551 b"]}, "is no reply that refuses"),
        ({"counterexamples": ["250 ok"]}, "is no reply that refuses"),
        ({"codes": ["250"]}, '"250" is no code that an attempt fails with'),
        ({"codes": [354]}, '"354" is no code that an attempt fails with'),
        ({"codes": ["55"]}, '"55" is no code that an attempt fails with'),
        ({"classes": [10, 99]}, "there is no bounce class 99; docs/reference/answers.md lists them: 1, 10, 20,"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_reason(keys, reason):
    assert reason in refused(**keys)


@pytest.mark.parametrize(
    "edits",
    [
        {"/maxattempts": 3},
        {"/retries": [60, 600]},
        {"/smarthost": {"hostname": "relay.example.com", "port": 587}},
        {"/priority": 0},
        {"/queues": {"failure": "looked-at-by-hand"}},
        {"/campaign/state/0": "slow", "/campaign/why": ["a", {"b": 1.5}]},
        {"/a/": 1},
    ],
)
def test_a_job_stays_one_with_what_may_be_set(edits):
    effects = patterns_of([table(set_message=edits)]).match(facts())
    document = apply_to_document({"recipient": "b@b.test"}, effects)
    assert Job.parse(orjson.dumps(document), limit=10_000).document == document


def test_every_property_of_a_job_and_a_result_is_protected_or_checked():
    for name in Job.model_fields:
        assert message_trouble((name, "x"), 1) is not None
    for name in ("state", "result", "time", "attempt", "to", "description", "in_doubt", "patterns", *FLAGS):
        assert result_trouble((name,), 1) is not None


def test_ids_are_distinct():
    tables = TypeAdapter(PatternTables)
    assert len(tables.validate_python([{"id": "a"}, {"id": "b"}])) == 2
    with pytest.raises(ValidationError, match='the id "a" is there twice'):
        tables.validate_python([{"id": "a"}, {"id": "b"}, {"id": "a"}])


def test_expressions_that_need_too_much_memory_together_are_refused():
    tables = [{"id": f"p{number}", "regex": f"{number}[a-z]{{900}}"} for number in range(200)]
    with pytest.raises(ValidationError, match="together are too large"):
        TypeAdapter(PatternTables).validate_python(tables)


def test_tables_survive_the_way_to_another_process():
    tables = TypeAdapter(PatternTables)
    before = tables.validate_python(
        [{"id": "a", "codes": [421, "4xx"], "states": ["data"], "set_message": {"/a": {"b": 1}}, "retry": 60}]
    )
    assert tables.validate_json(tables.dump_json(before)) == before


def test_the_samples_of_the_example_configuration_are_valid():
    samples = {name: field.examples[0] for name, field in PatternConfig.model_fields.items()}
    for text in ("exact", "contains", "wildcard", "regex"):
        keys = {key: value for key, value in samples.items() if key not in {"exact", "contains", "wildcard", "regex"}}
        assert table(**{**keys, text: samples[text], "statuses": ["4.7"]}).id == "yahoo-deferred"


GOOD = {
    "contains": "[TSS04]",
    "codes": [421],
    "retry": 7200,
    "examples": ["421 4.7.0 [TSS04] Messages temporarily deferred", "421-4.7.0 [TSS04]\n421 4.7.0 deferred"],
    "counterexamples": ["421 4.7.0 Too many connections", "451 4.7.0 [TSS04] other code"],
}


def test_good_patterns_have_no_problems():
    assert problems([], RULES) == []
    assert problems([table(**GOOD), table(id="q", tags=["news"], fallback=True)], RULES) == []


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"examples": []}, "patterns.p: has no example; add a reply"),
        ({"counterexamples": []}, "patterns.p: has no counterexample; add a reply"),
        ({"examples": ["550 no"]}, 'patterns.p: does not match its example "550 no" of class 1'),
        ({"counterexamples": ["421 [TSS04]"]}, 'patterns.p: matches its counterexample "421 [TSS04]"'),
        ({"retry": None}, "patterns.p: does nothing but be told in results; give it an effect"),
    ],
)
def test_problems_are_found_by_the_examples(keys, problem):
    assert problems([table(**{**GOOD, **keys})], RULES) == [problem]


def test_a_pattern_that_never_gets_its_turn_is_found():
    before = {"id": "first", "codes": ["4xx"], "strange": True, "final": True, "priority": 1}
    before |= {"examples": ["421 a"], "counterexamples": ["550 a"]}
    found = problems([table(**GOOD), table(**before)], RULES)
    assert len(found) == 2
    assert found[0] == (
        'patterns.p: never gets its example "421 4.7.0 [TSS04] Messages temporarily deferred": "first" comes first'
    )


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"classes": [22]}, []),
        ({"classes": [22], "kinds": ["timeout", "error"], "states": ["connect", "rcptto"]}, []),
        ({"classes": [10]}, ['patterns.p: does not match its example "552 5.2.2 mailbox full" of class 22']),
        ({"classes": [70], "examples": ["550 Ip frequency limited. http://x/"], "mx": ["qq.com"]}, []),
    ],
)
def test_an_example_is_of_the_class_that_the_rules_give_it(keys, found):
    good = {"codes": ["5xx"], "retry": 60, "examples": ["552 5.2.2 mailbox full"], "counterexamples": ["450 no"]}
    assert problems([table(**{**good, **keys})], RULES) == found


def test_a_counterexample_is_of_the_class_that_the_rules_give_it():
    keys = {"classes": [22], "retry": 60, "counterexamples": ["550 5.1.1 no such user"]}
    assert problems([table(**keys)], RULES) == []
    found = problems([table(**{**keys, "counterexamples": ["552 5.2.2 mailbox full"]})], RULES)
    assert found == ['patterns.p: matches its counterexample "552 5.2.2 mailbox full"']


@pytest.mark.parametrize(
    ("one", "other", "effect"),
    [
        ({"retry": 60}, {"retry": 61}, "retry"),
        ({"retry": 60}, {"fail": True}, "retry"),
        ({"fatal": True}, {"retry": 60}, "fatal"),
        ({"strange": True}, {"strange": False}, "strange"),
        ({"set_message": {"/a": 1}}, {"set_message": {"/a": 2}}, "set_message"),
        ({"set_result": {"/a/b": 1}}, {"set_result": {"/a": {"c": 1}}}, "set_result"),
        ({"add_tags": ["x"]}, {"remove_tags": ["x"]}, "tags"),
        ({"set_ips": ["192.0.2.1"]}, {"set_ips": ["192.0.2.2"]}, "ips"),
        ({"retry": 60, "add_tags": ["x"]}, {"retry": 60, "add_tags": ["y"]}, None),
        ({"fatal": False}, {"retry": 60}, None),
        ({"set_result": {"/a": 1}}, {"set_result": {"/b": 1}}, None),
        ({"set_tags": ["x"]}, {"add_tags": ["y"]}, None),
    ],
)
def test_two_patterns_of_one_priority_must_not_disagree(one, other, effect):
    replies = {"codes": ["4xx"], "examples": ["450 a", "451 b"], "counterexamples": ["550 a"]}
    tables = [table(**replies, **one), table(id="q", **replies, **other)]
    words = f'patterns.q: disagrees about {effect} with "p", which stands first and wins, on "450 a"; '
    expected = [f"{words}give one of them a higher priority"] if effect else []
    assert problems(tables, RULES) == expected
    assert problems([tables[0], table(id="q", priority=1, **replies, **other)], RULES) == []


SINGLE = [{"retry": 60}, {"fail": True}, {"fatal": False}, {"fatal": True}, {"strange": True}, {"add_tags": ["x"]}]


def test_in_any_order_the_first_decision_holds():
    for tables in permutations(SINGLE, 3):
        effects = matched(*tables)
        decisions = [patterns_of([table(**keys)]).match(facts()).gives_up for keys in tables]
        assert effects.gives_up is next((each for each in decisions if each is not None), None)
        assert effects.patterns == ("0", "1", "2")
