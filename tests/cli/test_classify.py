"""`mailq classify`: one reply with the reason, and a corpus with its figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

CORPUS = Path(__file__).parent.parent / "data" / "replies.toml"
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")} | {"COLUMNS": "100"}

OWN = """
version = "own.1"
[[rule]]
id = "own-full"
class = 22
text = 'no more letters'
examples = ['550 no more letters']
counters = ['550 no letters']
source = "what our partner told us"
"""


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "mailq", "classify", *map(str, arguments)],
        capture_output=True, text=True, env=ENVIRON, timeout=60, check=False, **options,
    )  # fmt: skip


def test_a_reply_is_told_with_rule_and_reason():
    done = run("550 5.1.1 <nobody@example.com>: User unknown")

    assert done.returncode == 0
    for words in ("10 Invalid Recipient", "hard", "recipient", "unknown-user", "postfix.org", "also fit"):
        assert words in done.stdout, words


def test_a_reply_as_json():
    done = run("--json", "--host", "smtp-in.orange.fr", "421 ME Service refuse. OFR_999 [999]")
    answer = json.loads(done.stdout)

    assert done.returncode == 0
    assert answer["class"] == 51
    assert (answer["name"], answer["category"], answer["about"]) == ("Spam Block", "block", "source")
    assert answer["rule"] == "orange-blocked"
    assert "provider orange" in answer["why"]
    assert "code-transient" in answer["yielded"]
    assert answer["ruleset"]


def test_the_state_tells_what_a_reply_without_words_is_about():
    answers = [json.loads(run("--json", "--state", state, "550 no").stdout) for state in ("mailfrom", "message")]

    assert [answer["about"] for answer in answers] == ["sender", "message"]
    assert {answer["rule"] for answer in answers} == {"unknown"}


def test_states_in_which_no_server_answers_are_not_offered():
    assert "<intro|ehlo|" in run("--help").stdout
    done = run("--state", "dns", "550 no")
    assert done.returncode == 2
    assert "'intro'" in done.stderr


def test_files_that_cannot_be_read_are_told_with_the_remedy():
    for option in ("--rules", "--corpus"):
        done = run(option, "/none.toml", *(["550 no"] if option == "--rules" else []))
        assert (done.returncode, done.stderr) == (
            2, "mailq: /none.toml: cannot be read: No such file or directory; name a file that this user may read\n",
        )  # fmt: skip


def test_a_reply_of_several_lines_on_standard_input():
    done = run("--json", "-", input="554-mx.example.com\n554 Relay access denied\n")

    assert json.loads(done.stdout)["class"] == 54


def test_own_rules_come_first(tmp_path):
    (tmp_path / "own.toml").write_text(OWN)
    answer = json.loads(run("--json", "--rules", tmp_path / "own.toml", "550 5.1.1 no more letters").stdout)

    assert (answer["rule"], answer["class"]) == ("own-full", 22)
    assert answer["ruleset"].startswith("own.1+")


def test_the_corpus_is_counted_by_class():
    done = run("--corpus", CORPUS)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "100.0% right" in done.stdout
    for words in ("Invalid Recipient", "held out", "wrong: 0", "ties: 0", "undetermined: "):
        assert words in done.stdout, words


def test_a_wrong_answer_is_status_1_and_told(tmp_path):
    page = '[[page]]\nsource = "here"\nreplies = [[22, "soft", "550 User unknown"], [10, "hard", "550 User unknown"]]\n'
    (tmp_path / "corpus.toml").write_text(page)
    done = run("--corpus", tmp_path / "corpus.toml")
    figures = json.loads(run("--json", "--corpus", tmp_path / "corpus.toml").stdout)

    assert done.returncode == 1
    assert "10 (1)" in done.stdout
    assert "22 → 10 (unknown-user): 550 User unknown" in done.stdout
    assert (figures["replies"], figures["right"], figures["accuracy"]) == (2, 1, 0.5)
    assert figures["wrong"] == [{"text": "550 User unknown", "expected": 22, "class": 10, "rule": "unknown-user"}]


def test_what_cannot_be_used_is_one_sentence(tmp_path):
    (tmp_path / "own.toml").write_text(OWN.replace("'no more letters'", "'(no'"))
    (tmp_path / "corpus.toml").write_text('[[page]]\nreplies = [[22, "hard", "550 x"]]\n')
    wrong = [
        (["--rules", tmp_path / "own.toml", "550 x"], "rule own-full: text: missing )"),
        (["--rules", tmp_path / "none.toml", "550 x"], "none.toml"),
        (["--corpus", tmp_path / "corpus.toml"], "page 1: class 22 is not hard"),
        (["no reply"], "does not begin with a reply code"),
        (["250 ok"], "250 does not fail an attempt"),
        ([], "give a reply or --corpus"),
        (["--state", "dns", "550 x"], "is not one of 'intro'"),
    ]
    for arguments, words in wrong:
        done = run(*arguments)
        assert done.returncode == 2, arguments
        assert words in " ".join(done.stderr.replace("│", "").split()), done.stderr
        assert "Traceback" not in done.stderr


def test_control_characters_of_a_stranger_are_not_printed(tmp_path):
    (tmp_path / "corpus.toml").write_text('[[page]]\nreplies = [[22, "soft", "550 \\u001b[31mUser unknown"]]\n')

    for arguments in (["550 5.1.1 \x1b[31mUser unknown"], ["--corpus", tmp_path / "corpus.toml"]):
        assert "\x1b" not in run(*arguments).stdout
