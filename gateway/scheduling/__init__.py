"""Which workers should exist, and which one serves a request: demand, the pure planner, and the loop that runs it."""
