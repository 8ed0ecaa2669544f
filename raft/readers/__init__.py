"""From files of any format to documents, each parsed in a process with limits. The way in is ``source.read_source``."""
