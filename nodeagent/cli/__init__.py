"""The command line: parse, call, print, exit. Nothing else prints or exits.

stdout is data, stderr is everything else.
"""

from nodeagent.cli.main import main

__all__ = ["main"]
