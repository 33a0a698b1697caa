"""`python -m search` is the same as `fmnist-search`."""

from search.cli import main

if __name__ == "__main__":
    main(prog_name="fmnist-search")
