"""`python -m clipper_backup` is `clipper-backup`."""

from clipper_backup.cli.main import main

main()
