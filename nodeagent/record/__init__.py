"""What the disk remembers of a reload: the journal, and the reports made of it."""
