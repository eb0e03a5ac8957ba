"""`python -m mailq` is the command `mailq`."""

from mailq.cli import main

if __name__ == "__main__":
    main()
