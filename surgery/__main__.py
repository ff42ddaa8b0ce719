"""`python -m surgery`."""

from surgery.common.stopping import end_on_signals

if __name__ == "__main__":
    end_on_signals()
    from surgery.cli.main import main  # what this loads can be interrupted too

    main()
