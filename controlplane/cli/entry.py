"""Where the `baton` command begins: it can be ended before it knows what it is asked for."""

from protocol.process.early_end import EXIT_TERMINATED, end_when_asked


def main() -> None:
    end_when_asked(EXIT_TERMINATED)
    from controlplane.cli.main import main as obey

    obey()


if __name__ == "__main__":
    main()
