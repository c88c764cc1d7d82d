"""`python -m tinyssl` is the command line."""

from tinyssl.cli import main

main()
