"""``python -m dp``."""

from dp.cli import main


if __name__ == "__main__":
    main()
