"""`python -m merit` is the `merit` command."""

from merit.cli import main

if __name__ == "__main__":
    main()
