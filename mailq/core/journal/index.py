"""What the journals of a host mean together: how a job stands, by the records of all writers. Pure.

An entry is open from its intent until it is withdrawn or settled. A claim makes an entry its
claimant's to settle for as long as that lives. What is settled is remembered by key where the publication
has a mark, whoever settled it and whatever becomes of the file (`core.journal.recently_settled`); of
equal publications without one, each entry is one publication's and is forgotten with it, so that two of
them stay two messages. One that is published was acknowledged, and the broker had that: whoever comes is another
publication, unless the broker ended just then, so that it is in doubt. Reading the files, and telling who is alive, is
for `edges.journal`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mailq.core.journal import records as codec
from mailq.core.journal.recently_settled import SettledWindow
from mailq.core.journal.records import (
    ANSWER_BODY,
    BODY_SIZES,
    CLAIM_BODY,
    ENTRY_BODY,
    INTENT_BODY,
    SERIAL,
    TRIAL_BODY,
    Entry,
    EntryId,
    EntryState,
    Header,
    JobKey,
    Mark,
)


@dataclass(slots=True, eq=False)
class _Item:
    """An entry that is not settled; `published` tells that the broker had the acknowledgement."""

    writer: bytes
    serial: int
    digest: bytes
    marked: bool
    record: bytes | None = None
    released: bool = False
    published: bool = False

    @property
    def id(self) -> EntryId:
        """The entry's name."""
        return EntryId(self.writer, self.serial)


@dataclass(slots=True, eq=False)
class _Writer:
    """What one writer said; `last` is the latest moment it told."""

    name: bytes
    last: int
    alive: bool = True
    items: dict[int, _Item] = field(default_factory=dict)
    trials: dict[bytes, int] = field(default_factory=dict)


class JournalIndex:
    """What the records of all writers mean together.

    Each writer's files are applied in their order, writers in any order: a claim or a settlement may
    come before the entry that it names.
    """

    def __init__(self) -> None:
        self._writers: dict[bytes, _Writer] = {}
        self._open: dict[bytes, list[_Item]] = {}
        self._claims: dict[EntryId, set[bytes]] = {}
        self._ended: set[EntryId] = set()
        self._done = SettledWindow()
        meanings: dict[int, Callable[[_Writer, bytes], None]] = {
            Mark.INTENT: self._intent,
            Mark.ANSWER: self._answer,
            Mark.WITHDRAWN: self._withdrawn,
            Mark.RELEASED: self._released,
            Mark.SETTLED: self._settled,
            Mark.CLAIM: self._claim,
            Mark.TRIAL: self._trial,
            Mark.TRIED: self._tried,
            Mark.PUBLISHED: self._published,
        }
        self._meanings = {mark: (BODY_SIZES.get(mark, 0), meaning) for mark, meaning in meanings.items()}

    def at(self, now: float) -> None:
        """Note the moment, in seconds on a clock that only goes on: what is settled is not remembered for ever."""
        self._done.at(now)

    def begin(self, header: Header) -> None:
        """Note that a writer's next file is about to be applied: what is still open stands in it once more."""
        writer = self._writers.setdefault(header.writer, _Writer(header.writer, header.begun))
        writer.last = max(writer.last, header.begun)
        for item in list(writer.items.values()):
            self._drop(writer, item)
        writer.trials.clear()
        self._void_claims(header.writer)

    def apply(self, name: bytes, bodies: Iterable[bytes]) -> None:
        """Take in the records of a writer that has begun; what is not understood is passed over."""
        writer, meanings, nothing = self._writers[name], self._meanings, (-1, self._answer)
        for body in bodies:
            size, meaning = meanings.get(body[0], nothing)
            if len(body) == size or (not size and len(body) >= ANSWER_BODY.size):
                meaning(writer, body)

    def died(self, name: bytes) -> None:
        """Note that a writer lives no more: its claims are void."""
        self._writers[name].alive = False
        self._void_claims(name)

    def forget(self, name: bytes) -> None:
        """Drop all that a writer left open, and what was said of its entries: its files are gone."""
        writer = self._writers.pop(name)
        for item in list(writer.items.values()):
            self._drop(writer, item)
        self._void_claims(name)
        self._ended = {entry for entry in self._ended if entry.writer != name}
        self._claims = {entry: claimants for entry, claimants in self._claims.items() if entry.writer != name}

    def last(self, name: bytes) -> int:
        """Return the latest moment that a writer told of, in seconds since 1970."""
        return self._writers[name].last

    def knows(self, name: bytes) -> bool:
        """Tell whether there are files of a writer."""
        return name in self._writers

    def open(self, name: bytes) -> list[bytes]:
        """Return the records of all that a writer left open, as its next file would have them; trials too."""
        writer = self._writers[name]
        records = []
        for item in writer.items.values():
            records.append(codec.intent(item.serial, JobKey(item.digest, item.marked), writer.last))
            if item.record is not None:
                records.append(codec.answer(item.serial, item.record))
            if item.published:
                records.append(codec.published([item.serial]))
            if item.released:
                records.append(codec.ending(Mark.RELEASED, item.id))
        for digest, begun in writer.trials.items():
            records += begun * [codec.trial(Mark.TRIAL, digest, writer.last)]
        return records

    def ended(self, entry: EntryId) -> bool:
        """Tell whether a claimant settled an entry."""
        return entry in self._ended

    def involved(self, digest: bytes) -> set[bytes]:
        """Return the writers on whose life it depends how a job stands."""
        items = self._open.get(digest, ())
        return {item.writer for item in items}.union(*(self._claims.get(item.id, ()) for item in items))

    def claimed(self, entry: EntryId, *, but: bytes) -> bool:
        """Tell whether a living writer other than `but` has claimed an entry, or somebody settled it."""
        return entry in self._ended or any(claimant != but for claimant in self._claims.get(entry, ()))

    def state(self, key: JobKey) -> Entry:
        """Return how a job stands, and the entry that may be claimed for it."""
        underway, doubt = False, None
        for item in self._open.get(key.digest, ()):
            alive = self._writers[item.writer].alive
            if self._claims and item.id in self._claims:
                underway = True
            elif item.record is None:
                underway, doubt = underway or alive, doubt if alive else doubt or item
            elif item.published and (item.released or not alive):
                doubt = doubt or item
            elif key.marked or item.released or not alive:
                return Entry(EntryState.ANSWERED, item.id, item.record)
            else:  # it may be an equal job's, which is just being settled
                underway = True
        if underway:
            return Entry(EntryState.UNDERWAY)
        if key.marked and self._done.has(key.digest):
            return Entry(EntryState.SETTLED)
        return Entry(EntryState.DOUBT, doubt.id) if doubt else Entry(EntryState.UNKNOWN)

    def rival(self, key: JobKey, mine: EntryId) -> str | None:
        """Return why the job of one's own entry must not be handed over now, None if it may be."""
        for item in self._open.get(key.digest, ()):
            other = item.id != mine  # of this process too: a retry that was published twice comes twice
            if item.record is None and other and self._writers[item.writer].alive:
                return "it is being handed over"
            if item.record is not None and key.marked:
                return "it was handed over and answered"
        return "it was handed over and settled" if key.marked and self._done.has(key.digest) else None

    def trials(self, digest: bytes) -> int:
        """Return how many trials ended with the death of their process."""
        return sum(writer.trials.get(digest, 0) for writer in self._writers.values() if not writer.alive)

    def _intent(self, writer: _Writer, body: bytes) -> None:
        _, serial, digest, marked, at = INTENT_BODY.unpack(body)
        writer.last = max(writer.last, at)
        if self._ended and EntryId(writer.name, serial) in self._ended:
            if marked:
                self._done.add(digest)
            return
        if serial in writer.items:
            return
        writer.items[serial] = item = _Item(writer.name, serial, digest, marked)
        equal = self._open.get(digest)
        if equal is None:
            self._open[digest] = [item]
        else:
            equal.append(item)

    def _answer(self, writer: _Writer, body: bytes) -> None:
        _, serial = ANSWER_BODY.unpack_from(body)
        item = writer.items.get(serial)
        if item is not None:
            item.record = body[ANSWER_BODY.size :]

    def _withdrawn(self, writer: _Writer, body: bytes) -> None:
        _, _, serial = ENTRY_BODY.unpack(body)
        item = writer.items.get(serial)
        if item is not None:
            self._drop(writer, item)

    def _released(self, writer: _Writer, body: bytes) -> None:
        _, name, serial = ENTRY_BODY.unpack(body)
        self._unclaim(EntryId(name, serial), writer.name)
        item = writer.items.get(serial) if name == writer.name else None
        if item is not None:
            item.released = True

    def _published(self, writer: _Writer, body: bytes) -> None:
        for (serial,) in SERIAL.iter_unpack(body[1 : 1 + (len(body) - 1) // SERIAL.size * SERIAL.size]):
            item = writer.items.get(serial)
            if item is not None:
                item.published = True

    def _settled(self, writer: _Writer, body: bytes) -> None:
        _, name, serial = ENTRY_BODY.unpack(body)
        owner: _Writer | None = writer
        if name != writer.name:
            owner = self._writers.get(name)
            self._ended.add(EntryId(name, serial))
        if self._claims:
            self._claims.pop(EntryId(name, serial), None)
        item = owner.items.get(serial) if owner else None
        if owner is None or item is None:
            return
        self._drop(owner, item)
        if item.marked:
            self._done.add(item.digest)

    def _claim(self, writer: _Writer, body: bytes) -> None:
        _, name, serial, at = CLAIM_BODY.unpack(body)
        writer.last = max(writer.last, at)
        if writer.alive:
            self._claims.setdefault(EntryId(name, serial), set()).add(writer.name)

    def _trial(self, writer: _Writer, body: bytes) -> None:
        _, digest, at = TRIAL_BODY.unpack(body)
        writer.last = max(writer.last, at)
        writer.trials[digest] = writer.trials.get(digest, 0) + 1

    def _tried(self, writer: _Writer, body: bytes) -> None:
        _, digest, _ = TRIAL_BODY.unpack(body)
        left = writer.trials.pop(digest, 0) - 1
        if left > 0:
            writer.trials[digest] = left

    def _drop(self, writer: _Writer, item: _Item) -> None:
        del writer.items[item.serial]
        equal = self._open[item.digest]
        if len(equal) == 1:
            del self._open[item.digest]
        else:
            equal.remove(item)

    def _void_claims(self, name: bytes) -> None:
        for entry in [entry for entry, claimants in self._claims.items() if name in claimants]:
            self._unclaim(entry, name)

    def _unclaim(self, entry: EntryId, claimant: bytes) -> None:
        claimants = self._claims.get(entry, set())
        claimants.discard(claimant)
        if not claimants:
            self._claims.pop(entry, None)
