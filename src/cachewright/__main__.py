"""``python -m cachewright``: the command line."""

from cachewright.cli import main

if __name__ == "__main__":
    main()
