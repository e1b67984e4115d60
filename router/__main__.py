"""`python -m router --model DIR ...`: exits 0 after a drain, 2 for a wrong setting, 3 for a
checkpoint that cannot be read, 1 when Redis cannot be reached; each with one line that says so."""

import asyncio
import sys
from collections.abc import Sequence

import uvloop

from protocol.errors import BatonError, CheckpointError, SettingsError
from protocol.process.logs import configure_logging
from protocol.process.settings import EXIT_BAD_CHECKPOINT, EXIT_BAD_SETTINGS, load_or_exit
from protocol.text.tokenizer import Tokenizer
from router.server import listen, serve
from router.settings import RouterSettings


def main(argv: Sequence[str]) -> int:
    settings = load_or_exit(RouterSettings, argv, prog="router")
    configure_logging(process="router", level=settings.log_level)
    try:
        with listen(settings) as listener:
            tokenizer = Tokenizer.load(settings.model)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve(settings, listener=listener, tokenizer=tokenizer))
    except BatonError as error:
        sys.stderr.write(f"router: {error}\n")
        return _exit_code(error)
    return 0


def _exit_code(error: BatonError) -> int:
    match error:
        case SettingsError():
            return EXIT_BAD_SETTINGS
        case CheckpointError():
            return EXIT_BAD_CHECKPOINT
        case _:
            return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
