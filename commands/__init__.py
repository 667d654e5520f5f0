"""Small command-line programs, one file each."""
