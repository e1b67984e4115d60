"""When a connection is read: uvicorn's flow control, which resumes whatever waits to be parsed."""

import asyncio

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl


class BoundedFlow(FlowControl):
    """Not read while more than `HIGH_WATER_LIMIT` is unread: that and one read are the bound."""

    def __init__(self, transport: asyncio.Transport, *, unread: bytearray) -> None:
        super().__init__(transport)
        self._unread = unread

    def resume_reading(self) -> None:
        if len(self._unread) <= HIGH_WATER_LIMIT:
            super().resume_reading()
