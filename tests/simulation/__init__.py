"""A discrete-event simulation of one machine, which runs the real planner over months of traffic in seconds.

    scripts/simulate --help

Nothing here is installed with Hostler. Times are seconds since the start of a trace, memory is MiB.
"""
