"""`python -m kenya_birds` is `kenya-birds`."""

from kenya_birds.cli import main

if __name__ == "__main__":
    main()
