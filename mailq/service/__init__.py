"""A process: its composition, its run, the supervisor of several processes, and reload on SIGHUP."""
