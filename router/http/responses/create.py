"""`POST /v1/responses`: as any endpoint that generates, but for what it looks up in between."""

from protocol.ids import RequestId
from router.api.generation import Generation, context_tokens
from router.http.admission import Share
from router.http.exchange import Exchange
from router.http.generate import AppState, GenerateResponse, Surface
from router.http.middleware import client_of, request_id
from router.http.responses.kept import find_responses, keeping_of
from router.http.responses.response_answer import StreamedResponse, WholeResponse
from router.responses.prepare import prepare_response, read_request, wanted_ids
from router.runtime import Runtime


def _never(runtime: Runtime, body: bytes, request: RequestId, context: int) -> Generation:
    raise AssertionError("prepared in steps")


RESPONSES = Surface(prepare=_never, whole=WholeResponse, stream=StreamedResponse)


class ResponseCreation(GenerateResponse):
    def __init__(self, state: AppState) -> None:
        super().__init__(state, RESPONSES)

    async def _prepared(self, exchange: Exchange, seats: Share) -> Generation:
        state, runtime = self._state, self._state.runtime
        request, context = request_id(exchange.scope), context_tokens(runtime)
        client = client_of(exchange.scope)
        keeping = keeping_of(state, client)
        async with state.body_of(exchange, seats) as body:
            fields = await state.run_in_thread(read_request, body)
            with state.bodies.share(client.name) as room:
                found = await find_responses(keeping, wanted_ids(fields), room)
                return await state.run_in_thread(
                    prepare_response, runtime, fields, found, keeping, request, context
                )
