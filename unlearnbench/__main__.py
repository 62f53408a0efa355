"""``python -m unlearnbench``: the same as the ``unlearnbench`` command."""

from unlearnbench.cli import main

if __name__ == "__main__":
    main()
