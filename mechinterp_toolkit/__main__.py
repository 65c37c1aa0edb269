"""`python -m mechinterp_toolkit` is the command `mechinterp`."""

from mechinterp_toolkit.cli import main

if __name__ == "__main__":
    main()
