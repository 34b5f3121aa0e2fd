"""`python -m kinship_daemon`."""

from kinship_daemon.cli import main

if __name__ == "__main__":
    main()
