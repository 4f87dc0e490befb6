"""`python -m limbeck`, which is also what `accelerate launch -m limbeck` starts."""

from limbeck.cli import main

main()
