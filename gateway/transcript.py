"""All that was said in one job: its log, folded. Pure; the base of every final message."""

from shared.protocol.records import Done, Failed, Finished, Record, Tokens

Entry = tuple[str, Record]  # (entry id, `milliseconds-sequence` by the server's clock; record)


class Times:
    """When a job's tokens came, by the server's clock, which stamps every entry."""

    def __init__(self) -> None:
        self.first_ms: int | None = None  # Unix time of the first tokens
        self.last_ms: int | None = None  # of the last entry

    def add(self, entry: Entry) -> None:
        """Note the next entry."""
        self.last_ms = int(entry[0].partition("-")[0])
        if self.first_ms is None and isinstance(entry[1], Tokens):
            self.first_ms = self.last_ms


class Transcript:
    """Texts, reasons and times of a job, as far as its log was added."""

    def __init__(self, num_choices: int) -> None:
        self._parts: list[list[str]] = [[] for _ in range(num_choices)]
        self.lengths = [0] * num_choices  # output tokens
        self.reasons: list[str | None] = [None] * num_choices
        self.terminal: Done | Failed | None = None
        self.times = Times()

    def add(self, entry: Entry) -> None:
        """Add the next entry of the log."""
        self.times.add(entry)
        record = entry[1]
        match record:
            case Tokens():
                self._parts[record.choice].append(record.text)
                self.lengths[record.choice] = record.offset + len(record.token_ids)
            case Finished():
                self._parts[record.choice].append(record.text)
                self.reasons[record.choice] = record.reason.value
            case Done():
                self._parts[record.choice].append(record.text)
                self.reasons = [reason.value for reason in record.reasons]
                self.terminal = record
            case Failed():
                self.terminal = record

    def text(self, choice: int = 0) -> str:
        """What may be shown of one choice."""
        return "".join(self._parts[choice])
