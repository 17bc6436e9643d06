"""`python -m qtune_service.cli`."""

from qtune_service.cli import main

main()
