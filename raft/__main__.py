"""python -m raft."""

from raft.cli import main

main()
