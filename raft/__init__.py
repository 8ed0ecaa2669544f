"""raft: turn a document store into a question-answering service tuned to read retrieved documents."""

__version__ = "0.1.0"
