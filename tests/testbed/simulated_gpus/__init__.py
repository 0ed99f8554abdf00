"""A simulated GPU host: a folder that says which cards there are and who holds their memory."""
