"""`previous_response_id`: an earlier response, rebuilt on any gateway from its body and its log."""

from gateway.desk import Desk
from gateway.response_request import conversation
from shared.common.errors import ClientError
from shared.protocol.records import Done
from shared.protocol.requests import ChatMessage

_PARAM = "previous_response_id"


async def earlier_messages(desk: Desk, response_id: str | None) -> tuple[ChatMessage, ...]:
    """What was said up to and with the earlier response; nothing without one.

    Raises:
        ClientError: it is unknown (400, as OpenAI has it), not finished, or no conversation.
        Unavailable: the server does not answer.
    """
    if not response_id:
        return ()
    try:
        job = await desk.find(response_id, code="previous_response_not_found", param=_PARAM)
    except ClientError as error:
        raise ClientError(error.message, param=_PARAM, code=error.code) from error
    transcript = await desk.transcript(job)
    if not isinstance(transcript.terminal, Done) or job.request.messages is None:
        message = "the earlier response did not complete, so nothing can follow it"
        raise ClientError(message, param=_PARAM, code="previous_response_not_completed")
    return conversation(job, transcript.text())
