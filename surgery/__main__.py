"""`python -m surgery`."""

from surgery.commands import main

if __name__ == "__main__":
    main()
