"""`python -m surgery`."""

from surgery.cli.main import main

if __name__ == "__main__":
    main()
