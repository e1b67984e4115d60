"""Where the `baton` command begins: it can be ended before it knows what it is asked for."""

from protocol.process.early_end import EXIT_TERMINATED, end_when_asked


def main() -> None:
    end_when_asked(EXIT_TERMINATED)
    import controlplane.cli.main

    controlplane.cli.main.main()


if __name__ == "__main__":
    main()
