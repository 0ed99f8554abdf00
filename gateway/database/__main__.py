"""`python -m gateway.database`: what `scripts/backup` and `scripts/restore` do where no gateway runs."""

from gateway.database.command import main

if __name__ == "__main__":
    main()
