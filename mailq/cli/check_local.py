"""What `mailq check` sees on this host: the file, rules, patterns, limits, the journal's directory.

Decides as `mailq.cli.check_remote` does what is a failure and what a warning. Nothing is made or written, so
that a journal can be kept is told from what the system says of its directory.
"""

import ipaddress
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mailq.cli.finding import Finding, Level
from mailq.config import Config
from mailq.config.classify import ruleset_of
from mailq.config.load import holds_secrets
from mailq.config.patterns import problems as pattern_problems
from mailq.core.answers.classify import problems as rule_problems
from mailq.core.answers.rules import RulesError
from mailq.core.journal.records import MAX_RECORD
from mailq.edges.journal.reader import refusal as journal_refusal
from mailq.edges.limits.file import refusal as limits_refusal
from mailq.edges.limits.table import SLOTS
from mailq.edges.sources import exists
from mailq.service.supervisor import cores

FILES = 2
"""Journal files that a process has at most at once."""

_REMOTE = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "davfs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs"),
        *("gfs2", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "smb3", "smbfs"),
    }
)
_FLEETING = frozenset({"ramfs", "tmpfs"})
_MOUNTS = Path("/proc/self/mounts")


def configuration(file: Path | None) -> Iterator[Finding]:
    """Look at the file; what stands in it was found good when it was loaded."""
    if file is None:
        yield Finding(Level.OK, "configuration", "built-in defaults and environment, no file")
    elif file.stat().st_mode & stat.S_IROTH and holds_secrets(file):
        yield Finding(
            Level.WARN, "configuration", f"{file} holds a password and everybody may read it", f"chmod o-r {file}"
        )
    else:
        yield Finding(Level.OK, "configuration", str(file))


def meaning(config: Config) -> Iterator[Finding]:
    """Try the rules of classification and the response patterns on their own examples."""
    files = config.classification.rules
    try:
        ruleset = ruleset_of(files)
    except RulesError as trouble:
        yield Finding(Level.FAIL, "rules", str(trouble), "Mend the file, or take it out of classification.rules.")
        ruleset = ruleset_of(())
    else:
        own = f", {len(files)} files before those that are shipped" if files else ""
        well = f"{len(ruleset.rules)} rules of version {ruleset.version}{own}"
        yield _tried("rules", rule_problems(ruleset), well, "Mend the rules; `mailq classify` tells what one decides.")
    if config.patterns:
        advice = "Mend the patterns, or their examples and counterexamples."
        found = [*pattern_problems(config.patterns, ruleset), *_unknown_to_patterns(config)]
        yield _tried("patterns", found, f"{len(config.patterns)} tried", advice)


def limits(config: Config) -> Iterator[Finding]:
    """Look whether each limit holds for pools and sources that there are."""
    if config.limits:
        found = [
            line
            for place, limit in enumerate(config.limits)
            for line in _unknown(config, f"limits.{place}", filter(None, [limit.pool]), filter(None, [limit.source]))
        ]
        advice = "Name what is configured in [[sources]], or remove the limit: it never holds."
        yield _tried("limits", found, f"{len(config.limits)} looked at", advice)


def _unknown_to_patterns(config: Config) -> Iterator[str]:
    for each in config.patterns:
        pools = [*each.pools, *(value for place, value in each.set_message.items() if place == "/pool")]
        yield from _unknown(config, f"patterns.{each.id}", pools, each.sources)


def _unknown(config: Config, where: str, pools: Iterable[str], sources: Iterable[str]) -> Iterator[str]:
    """Yield what says that nothing is sent from these; jobs may name any address of this host in `ips`."""
    known = {source.pool for source in config.sources}
    ips = {str(ipaddress.ip_address(source.ip)) for source in config.sources}
    for pool in pools:
        if pool not in known:
            yield f'{where}: no address in [[sources]] has the pool "{pool}"'
    for ip in sources:
        if ip not in ips and not exists(ip):
            yield f"{where}: {ip} is neither in [[sources]] nor an address of this host"


def _tried(what: str, problems: Sequence[str], well: str, advice: str) -> Finding:
    return Finding(Level.FAIL, what, "\n".join(problems), advice) if problems else Finding(Level.OK, what, well)


def journal(config: Config, mounts: str | None = None) -> Finding:
    """Look whether journals can be kept; `mounts` is the table of mounted file systems (None: the system's)."""
    what = "journal"
    if not config.worker.journal_dir:
        advice = "Set worker.journal_dir: without, a message may be sent twice when a worker dies."
        return Finding(Level.WARN, what, "none is kept", advice)
    directory = Path(config.worker.journal_dir).absolute()
    there = next(place for place in (directory, *directory.parents) if place.exists())
    if not there.is_dir():
        advice = "Remove it, or set worker.journal_dir elsewhere."
        return Finding(Level.FAIL, what, f"{there} is no directory", advice)
    if os.statvfs(there).f_flag & os.ST_RDONLY or not os.access(there, os.W_OK | os.X_OK):
        advice = "Make it writable for the user that runs mailq, or set worker.journal_dir elsewhere."
        return Finding(Level.FAIL, what, f"{there} cannot be written", advice)
    if refused := limits_refusal(directory, SLOTS) or journal_refusal(directory):
        seen, _, advice = refused.partition("; ")
        return Finding(Level.FAIL, what, seen, f"{advice[:1].upper()}{advice[1:]}.")
    kind = _kind_of(there.resolve(), _MOUNTS.read_text("utf-8", "replace") if mounts is None else mounts)
    if kind in _REMOTE:
        advice = "Set worker.journal_dir to a local disk: locks and memory maps are not kept there as here."
        return Finding(Level.FAIL, what, f"{directory} is on a network file system ({kind})", advice)
    return _room(config, directory, there) or _fit(config, directory, kind)


def _room(config: Config, directory: Path, there: Path) -> Finding | None:
    """Look for room for the files of all processes; those that are there already have theirs."""
    disk = os.statvfs(there)
    reserved = sum(file.stat().st_size for file in directory.glob("*.journal")) if directory.is_dir() else 0
    room, each = disk.f_bavail * disk.f_frsize + reserved, config.journal.size
    count = config.worker.processes or cores()
    if room >= FILES * count * each:
        return None
    level = Level.FAIL if room < count * each else Level.WARN
    seen = f"{directory} has room for {_mebi(room)} MiB, {count} processes want {_mebi(FILES * count * each)} MiB"
    return Finding(level, "journal", seen, "Free some, lower journal.size, or set worker.journal_dir to another disk.")


def _fit(config: Config, directory: Path, kind: str) -> Finding:
    if config.journal.size < config.worker.sessions * MAX_RECORD:
        seen = f"a file of {config.journal.size} octets has no room for all {config.worker.sessions} sessions at once"
        return Finding(Level.WARN, "journal", seen, "Raise journal.size to 64 KiB for each of worker.sessions.")
    if kind in _FLEETING:
        advice = "Set worker.journal_dir to a disk: there it is gone when the host restarts."
        return Finding(Level.WARN, "journal", f"{directory} is in memory ({kind})", advice)
    return Finding(Level.OK, "journal", f"{directory}: {_mebi(config.journal.size)} MiB a file")


def _kind_of(place: Path, mounts: str) -> str:
    """Return the type of the file system that a place is on; the last mounted there is the one that is seen."""
    found, kind = Path("/"), ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        if place.is_relative_to(point) and point.is_relative_to(found):
            found, kind = point, fields[2]
    return kind


def _mebi(octets: int) -> int:
    return octets // (1024 * 1024)
