"""What outlives the process: received and encoded files, and the database."""
