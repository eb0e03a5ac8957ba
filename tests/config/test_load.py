"""What `config.load` takes, in which order, and what it says about mistakes."""

import errno
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mailq.config import Config
from mailq.config import load as loading
from mailq.config.example import example
from mailq.config.load import ConfigError, load
from mailq.config.patterns import PatternConfig
from mailq.config.webhooks import EndpointConfig


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / "mailq.toml"
        file.write_text(text)
        return file

    return write


@pytest.fixture(autouse=True)
def _no_system_file(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "SYSTEM_FILE", tmp_path / "system.toml")


def complaint(file=None, environ=None):
    with pytest.raises(ConfigError) as caught:
        load(file, environ or {})
    return str(caught.value)


def test_nothing_given_is_the_defaults():
    assert load(None, {}) == Config()


def sample(head):
    """Return the commented sample table of the example that begins so, as it is when somebody makes use of it."""
    start = example().index(f"# {head}")
    block = example()[start : example().index("\n\n", start)]
    return "\n".join(line.removeprefix("# ") for line in block.splitlines())


def test_the_example_equals_the_defaults_and_has_every_key(write):
    assert load(write(example()), {}) == Config()
    document = tomllib.loads(example())
    for table, field in Config.model_fields.items():
        if table not in ("sources", "limits", "patterns"):
            keys = [key for key in field.annotation.model_fields if (table, key) != ("webhooks", "endpoints")]
            assert list(document[table]) == keys, table


def test_the_commented_limits_of_the_example_are_right_and_have_every_key(write):
    (limit,) = load(write(sample("[[limits]]")), {}).limits
    assert limit.model_fields_set == set(type(limit).model_fields)
    assert (limit.message_rate, limit.connection_rate) == (100 / 60, 10.0)


def test_the_commented_source_of_the_example_is_right(write):
    (source,) = load(write(sample("[[sources]]")), {}).sources
    assert source.model_fields_set == set(type(source).model_fields)
    assert (source.ip, source.ehlo) == ("192.0.2.1", "mta1.example.com")


def test_the_commented_endpoint_of_the_example_is_right_and_has_every_key(write):
    endpoints = load(write(sample("[webhooks.endpoints.crm]")), {}).webhooks.endpoints
    assert list(endpoints) == ["crm"]
    assert endpoints["crm"].model_fields_set == set(EndpointConfig.model_fields)
    assert endpoints["crm"].url.get_secret_value() == "https://crm.example.com/events"


def test_the_commented_pattern_of_the_example_has_every_key_and_each_is_right(write):
    """All at once they cannot be: a pattern gives up or goes on, and has one kind of text."""
    (keys,) = tomllib.loads(sample("[[patterns]]"))["patterns"]
    assert list(keys) == list(PatternConfig.model_fields)
    for line in sample("[[patterns]]").splitlines()[2:]:
        (pattern,) = load(write(f'[[patterns]]\nid = "p"\n{line}\n'), {}).patterns
        assert pattern.model_fields_set == {"id", line.split()[0]}


@pytest.mark.parametrize("rate", ["5", "5/x", "0/s", "-1/s", "fast"])
def test_a_rate_that_is_none_is_told(rate, write):
    assert "limits" in complaint(write(f'[[limits]]\nmessage_rate = "{rate}"\n'))


def test_order_of_files(write, tmp_path):
    asked = write("[worker]\nprefetch = 1")
    named = tmp_path / "named.toml"
    named.write_text("[worker]\nprefetch = 2")
    assert load(asked, {"MAILQ_CONFIG": str(named)}).worker.prefetch == 1
    assert load(None, {"MAILQ_CONFIG": str(named)}).worker.prefetch == 2
    loading.SYSTEM_FILE.write_text("[worker]\nprefetch = 3")
    assert load(None, {}).worker.prefetch == 3
    assert load(None, {"MAILQ_CONFIG": str(named)}).worker.prefetch == 2


def test_the_environment_comes_before_the_file(write):
    file = write('[rabbitmq]\nurl = "amqp://a/"\noutbox = "mine"')
    config = load(
        file,
        {
            "MAILQ_RABBITMQ__URL": "amqps://u:p@b/v",
            "MAILQ_WORKER__PREFETCH": "7",
            "MAILQ_TLS__RETRY_PLAINTEXT": "false",
            "MAILQ_DELIVERY__RETRIES": "[1, 2]",
            "MAILQ_DNS__OVERRIDES": '{"*": ["127.0.0.1:2525"]}',
            "MAILQ_DNS__TIMEOUT": "0.5",
            "MAILQ_SOURCES": '[{"ip": "192.0.2.1"}, {"ip": "2001:db8::1", "ehlo": "six.example"}]',
        },
    )
    assert config.rabbitmq.url.get_secret_value() == "amqps://u:p@b/v"
    assert config.rabbitmq.outbox == "mine"
    assert config.worker.prefetch == 7
    assert config.tls.retry_plaintext is False
    assert config.delivery.retries == (1, 2)
    assert config.dns.overrides == {"*": ("127.0.0.1:2525",)}
    assert config.dns.timeout == 0.5
    assert [source.ip for source in config.sources] == ["192.0.2.1", "2001:db8::1"]


def test_foreign_variables_do_not_matter():
    assert load(None, {"MAILQ_PORT": "tcp://10.0.0.1:25", "MAILQ_SERVICE_HOST": "x", "OTHER__URL": "y"}) == Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[delivery]\nprot = 26", ["delivery.prot", "no such key", "did you mean delivery.port?"]),
        ("[delivary]\nport = 26", ["delivary", "did you mean delivery?"]),
        ("[worker]\nport = 26", ["worker.port", "no such key", "did you mean", ".port?"]),
        ("[[sources]]\nip = '192.0.2.1'\nehol = 'x'", ["sources.ehol", "did you mean sources.ehlo?"]),
        ("[worker]\nprefetch = 0", ["worker.prefetch: input should be greater than or equal to 1"]),
        ("[tls]\nmode = 'perhaps'", ["tls.mode", "'opportunistic', 'required' or 'none'"]),
        ("[worker\nprefetch = 0", ["is not TOML", "line 1"]),
        ("worker = 3", ["worker: input should be a valid dictionary"]),
        ("[[sources]]\nehlo = 'x'", ["sources.0.ip: field required"]),
        ("[[sources]]\nip = '192.0.2.300'", ["sources.0.ip", "is not an IP address"]),
        ("[[sources]]\nip = '::1'\n[[sources]]\nip = '0:0::1'", ["sources: ::1 is there twice"]),
        ("[[sources]]\nip = '::1'\nehlo = \"a\\r\\nQUIT\"", ["sources.0.ehlo: is not a host name"]),
        ("[delivery]\nehlo = 'two words'", ["delivery.ehlo: is not a host name"]),
        ("[delivery]\nsink = 'localhost'", ["delivery.sink", "has no port"]),
        ("[delivery]\nsink = 'localhost:x'", ["delivery.sink", "no port between 1 and 65535"]),
        ("[delivery]\nsink = 'localhost:65536'", ["delivery.sink", "no port between 1 and 65535"]),
        ("[delivery]\nsink = '2001:db8::g:25'", ["delivery.sink", "host:port"]),
        ("[delivery]\nretries = []", ["delivery.retries", "at least 1 item"]),
        ("[delivery]\nretries = [60, 0]", ["delivery.retries.1", "greater than or equal to 1"]),
        ("[delivery]\nattempt_timeout = 1800", ["delivery.attempt_timeout", "less than or equal to 1740"]),
        ("[dns]\nservers = ['dns.example']", ["dns.servers.0", "not an IP address"]),
        ("[dns]\nservers = ['192.0.2.1:0']", ["dns.servers.0", "no port between"]),
        ("[dns]\noverrides = {'a.example' = ['b c']}", ["dns.overrides.a.example.0", "host:port"]),
        (
            "[dns]\nprohibited = ['::1', 'localhost']",
            ["dns.prohibited.1", '"localhost" is not a network such as "10.0'],
        ),
        ("[dns]\nprohibited = ['10.0.0.0/33']", ["dns.prohibited.0", '"10.0.0.0/33" is not a network such as']),
        ("[dns]\nprohibited = ['10.1.2.3/8']", ["dns.prohibited.0", 'write "10.0.0.0/8", or "10.1.2.3" for it alone']),
        ("[dns]\nprohibited = '10.0.0.0/8'", ["dns.prohibited: input should be a valid"]),
        ("[dns]\nmin_ttl = 10\nmax_ttl = 5", ["dns: min_ttl is greater than max_ttl"]),
        ("[smarthost]\nusername = 'me'", ["smarthost: username and password go together"]),
        (
            "[webhooks.endpoints.crm]\nurl = 'https://a.example/'\ncategories = ['hrad']",
            ["webhooks.endpoints.crm.categories.0: input should be 'hard', 'soft'"],
        ),
        ("[rabbitmq]\nurl = 'http://broker/'", ["rabbitmq.url", "amqp://"]),
        ("[rabbitmq]\nurl = 'amqp://broker:99999/'", ["rabbitmq.url", "amqp://"]),
        ("[rabbitmq]\nca_file = '/nonexistent.pem'", ["rabbitmq.ca_file", "cannot be read: No such file"]),
        (f"[tls]\nca_file = '{__file__}'", ["tls.ca_file", "holds no CA certificates"]),
        ("[rabbitmq]\nresults = 'outbox'", ["results and outbox are one queue"]),
        ("[rabbitmq]\npoison = 'outbox'", ["outbox and poison are one queue"]),
        ("[rabbitmq]\nreconnect_delay = 9\nreconnect_max = 5", ["reconnect_delay is greater"]),
    ],
)
def test_a_mistake_is_one_line_that_names_file_key_and_reason(write, text, words):
    file = write(text)
    said = complaint(file)
    assert said.startswith(f"{file}: ")
    assert "\n" not in said
    for word in words:
        assert word in said


def test_every_mistake_has_a_line(write):
    said = complaint(write("[worker]\nprefetch = 0\nsessoins = 1")).splitlines()
    assert len(said) == 2
    assert "worker.prefetch" in said[0]
    assert "did you mean worker.sessions?" in said[1]


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MAILQ_WORKER__PREFECTH": "1"}, ["MAILQ_WORKER__PREFECTH", "did you mean worker.prefetch?"]),
        ({"MAILQ_WROKER__PREFETCH": "1"}, ["MAILQ_WROKER__PREFETCH", "did you mean worker.prefetch?"]),
        ({"MAILQ_WORKER__PREFETCH": "many"}, ["environment MAILQ_WORKER__PREFETCH", "worker.prefetch", "integer"]),
        ({"MAILQ_DELIVERY__RETRIES": "60,600"}, ["environment MAILQ_DELIVERY__RETRIES", "JSON"]),
        ({"MAILQ_SOURCES": '[{"ip": "x"}]'}, ["environment MAILQ_SOURCES", "sources.0.ip"]),
        ({"MAILQ_SOURCES__0__IP": "::1"}, ["MAILQ_SOURCES__0__IP", "no such key"]),
        ({"MAILQ_CONFIG": "/nonexistent/mailq.toml"}, ["/nonexistent/mailq.toml: cannot be read: No such file"]),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(environ, words):
    said = complaint(None, environ)
    for word in words:
        assert word in said


def test_a_file_that_is_not_text(tmp_path):
    file = tmp_path / "mailq.toml"
    file.write_bytes(b"\xff\xfe[worker]")
    assert complaint(file) == f"{file}: is not UTF-8 text; save it as UTF-8"
    assert "cannot be read: Is a directory" in complaint(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[rabbitmq]\nurl = 'http://me:hunter2@broker/'",
        "[rabbitmq]\nurl = ['hunter2']",
        "[smarthost]\npassword = ['hunter2']",
        "[smarthost]\npassword = 'hunter2'",
        "[smarthost]\npasswort = 'hunter2'",
    ],
)
def test_no_secret_is_shown(write, text):
    assert "hunter2" not in complaint(write(text))


def test_no_secret_is_in_the_representation():
    config = load(None, {"MAILQ_RABBITMQ__URL": "amqp://me:hunter2@broker/"})
    assert "hunter2" not in repr(config)
    assert "hunter2" not in config.model_dump_json()


@pytest.mark.parametrize(
    ("name", "reason", "remedy"),
    [
        ("none.toml", "No such file", "`mailq example-config > "),
        ("", "Is a directory", "name a file with --config"),
        ("no.toml", "is not TOML", "texts stand in quotes"),
    ],
)
def test_what_cannot_be_read_is_told_with_the_remedy(tmp_path, name, reason, remedy):
    (tmp_path / "no.toml").write_text("url = amqp")
    told = complaint(tmp_path / name)
    assert told.startswith(f"{tmp_path / name}: ")
    assert reason in told
    assert remedy in told


def test_a_system_file_that_only_others_may_see_is_not_left_out(monkeypatch):
    class Hidden(type(Path())):
        def exists(self):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

        def read_text(self, encoding):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr("mailq.config.load.SYSTEM_FILE", Hidden("/etc/mailq/mailq.toml"))
    with pytest.raises(ConfigError, match=r"mailq\.toml: cannot be read: Permission denied; let this user read it"):
        load(None, {})


def test_the_program_prints_the_line_and_exits_78(write):
    file = write("[worker]\nprefetch = 0")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")}
    for command in ("run", "check"):
        done = subprocess.run(
            [sys.executable, "-m", "mailq", command, "-c", str(file)],
            capture_output=True, text=True, env=environ, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 78
        assert done.stderr == f"mailq: {file}: worker.prefetch: input should be greater than or equal to 1\n"
        assert done.stdout == ""


@pytest.mark.parametrize("text", ["host:25", "a.b.example:1", "192.0.2.1:25", "[2001:db8::1]:25"])
def test_sinks(write, text):
    assert load(write(f"[delivery]\nsink = '{text}'"), {}).delivery.sink == text


@pytest.mark.parametrize("text", ["192.0.2.1", "192.0.2.1:53", "2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:53"])
def test_name_servers(write, text):
    assert load(write(f"[dns]\nservers = ['{text}']"), {}).dns.servers == (text,)


@pytest.mark.parametrize("text", ["192.0.2.1", "host", "host.example.", "host:2525", "[::1]:25", "::1"])
def test_overrides(write, text):
    assert load(write(f"[dns.overrides]\n'*' = ['{text}']"), {}).dns.overrides == {"*": (text,)}


@pytest.mark.parametrize("text", ["10.0.0.0/8", "192.0.2.1", "192.0.2.0/255.255.255.0", "fd00::/8", "::1", "0.0.0.0/0"])
def test_prohibited_networks(write, text):
    assert load(write(f"[dns]\nprohibited = ['{text}']"), {}).dns.prohibited == (text,)


def test_loopback_multicast_and_reserved_networks_are_prohibited_until_others_are_set():
    loopback, others = ("127.0.0.0/8", "0.0.0.0/8", "::1/128", "::/128"), ("224.0.0.0/4", "240.0.0.0/4", "ff00::/8")
    assert set(load(None, {}).dns.prohibited) == {*loopback, *others}
    assert load(None, {"MAILQ_DNS__PROHIBITED": "[]"}).dns.prohibited == ()


def test_names_in_limits_are_brought_to_the_form_of_jobs(write):
    text = '[[limits]]\nsource = "2001:DB8::0:1"\ndomain = "B\u00dccher.Example."\nmx = "Google.COM"\nconnections = 1\n'
    (limit,) = load(write(text), {}).limits
    assert (limit.source, limit.domain, limit.mx) == ("2001:db8::1", "xn--bcher-kva.example", "google.com")


@pytest.mark.parametrize("line", ['domain = "a b"', 'mx = ""', 'source = "mail"'])
def test_a_limit_for_what_is_none_is_told(line, write):
    assert "limits" in complaint(write(f"[[limits]]\n{line}\n"))


def test_domains_of_overrides_are_brought_to_the_form_of_jobs(write):
    text = '[dns.overrides]\n"Example.COM" = ["192.0.2.1"]\n"*" = ["192.0.2.2"]\n"[192.0.2.3]" = []\n'
    assert set(load(write(text), {}).dns.overrides) == {"example.com", "*", "[192.0.2.3]"}
