"""The record of reloads on disk: the journal, and the reports made from it."""
