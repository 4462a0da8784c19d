"""What people wrote and were answered: transcripts.db."""
