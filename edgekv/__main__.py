"""`python -m edgekv`."""

from edgekv.cli import main

if __name__ == "__main__":
    main()
