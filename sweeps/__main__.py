"""python -m kdbench.sweeps: the command kdbench, also where it is not installed."""

from kdbench.sweeps.cli import main

if __name__ == "__main__":  # workers import this again
    main()
