"""What influence scores saw: read from the files that runs leave behind."""
