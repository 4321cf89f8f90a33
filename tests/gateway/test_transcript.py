from gateway.transcript import Transcript
from shared.protocol.records import Done, Failed
from tests.gateway.scripted import STORY, story, tokens

TEXT = "".join(STORY) + " End"


def test_a_log_folds_into_its_texts() -> None:
    """Every choice has its text, its length and its reason, held-back text included."""
    transcript = Transcript(2)
    for number, record in enumerate(story(2)):
        transcript.add((f"{1_000 + number}-0", record))
    assert [transcript.text(choice) for choice in range(2)] == [TEXT, TEXT]
    assert transcript.lengths == [len(STORY)] * 2
    assert transcript.reasons == ["stop", "stop"]
    assert isinstance(transcript.terminal, Done)
    assert transcript.times.first_ms == 1_000


def test_a_failed_job_keeps_what_was_said() -> None:
    """What was logged before a failure stays true."""
    transcript = Transcript(1)
    for record in [*tokens("Once"), Failed("cancelled", "", status=499)]:
        transcript.add(("5-0", record))
    assert transcript.text() == "Once"
    assert isinstance(transcript.terminal, Failed)
