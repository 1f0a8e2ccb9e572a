"""`python -m nemo_thinkprune` is `thinkprune`: for places where the package is on PYTHONPATH and not installed."""

from nemo_thinkprune.cli import main

if __name__ == "__main__":
    main()
