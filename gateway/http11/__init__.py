"""HTTP/1.1 towards clients: connections, and one exchange of request and answer at a time on each."""
