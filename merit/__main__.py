"""`python -m merit` is the `merit` command."""

from merit.run.cli import main

if __name__ == "__main__":
    main()
