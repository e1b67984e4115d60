"""`POST /v1/responses`: as any endpoint that generates, but for what it looks up in between."""

from protocol.ids import RequestId
from router.api.generation import Generation
from router.api.model_choice import Choose
from router.http.generate import AppState, Asked, GenerateResponse, Surface
from router.http.responses.kept import find_responses, keeping_of
from router.http.responses.response_answer import StreamedResponse, WholeResponse
from router.responses.prepare import prepare_response, read_request, wanted_ids
from router.runtime import Runtime


def _never(runtime: Runtime, body: bytes, request: RequestId, choose: Choose) -> Generation:
    raise AssertionError("prepared in steps")


RESPONSES = Surface(prepare=_never, whole=WholeResponse, stream=StreamedResponse)


class ResponseCreation(GenerateResponse):
    def __init__(self, state: AppState) -> None:
        super().__init__(state, RESPONSES)

    async def _made(self, asked: Asked, body: bytes) -> Generation:
        state, client = self._state, asked.client
        keeping = keeping_of(state, client)
        fields = await state.run_in_thread(read_request, body, num_bytes=len(body))
        with state.bodies.share(client.name) as room:
            found = await find_responses(keeping, wanted_ids(fields), room)
            return await state.run_in_thread(
                prepare_response,
                state.runtime,
                fields,
                found,
                keeping,
                asked.request,
                asked.choice.choose,
                num_bytes=len(body) + room.num,
            )
