"""`python -m compress_cli`: the command line where another `compress` shadows the script."""

from compress_cli.app import main

if __name__ == "__main__":
    main()
